//! One job of a run.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::try_join_all;
use orchestra::{
    Captured, ContainerId, Credentials, Error, ErrorKind, EventKind, ImageRef, Job, JobId, Labels, Name, OutputSink,
    Result, SharedDriver, VolumeId, VolumePath, file_from_tar, import_archive,
};
use orchestra_image_build::SharedBuilders;
use orchestra_secrets::{JobSecrets, Reference, SecretValue};
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::artifacts::Artifacts;
use super::cache::CacheUse;
use super::deeds::Deeds;
use super::event::{RunEventKind, Teller};
use super::resource::{Versions, With};
use super::rootfs::RootFs;
use super::state::Recorded;
use super::tree::Scope;
use super::{RunOptions, Status, StepReport};
use crate::yaml::loaded::is_numbered;
use crate::{Action, BuildPlan, JobPlan, Step, StepKind, TaskImage, Version};

/// Events of the engine, or of a build, that may wait for whoever receives the run's events.
pub(super) const EVENTS: usize = 64;

/// Where the image is in an artifact that is one.
const ARCHIVE: &str = "image.tar";

/// Names as a person lists them.
pub(super) fn listed(names: &[Name]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
}

/// What the volume of a version is called that a step gets: the artifact's own in the first try.
pub(super) fn got(step: &Step, name: &Name, artifact: &Name) -> Result<Name> {
    match *name == step.name {
        true => Ok(step.volume_of(artifact)),
        false => super::cache::hashed("put", name.as_str()),
    }
}

/// A job that is being run, and what its steps have made so far.
pub(super) struct JobRun<'a> {
    pub(super) plan: &'a JobPlan,
    /// The pipeline's name.
    pub(super) pipeline: &'a str,
    pub(super) job: Job,
    pub(super) driver: SharedDriver,
    pub(super) cache_use: CacheUse,
    /// Caches that are on their way to the store.
    pub(super) releasing: TaskTracker,
    /// Whether all of it went well, once that is known.
    pub(super) succeeded: bool,
    /// Daemons that builds of the job share.
    pub(super) builders: SharedBuilders,
    /// Tasks and builds that may still run: what they use can't go.
    pub(super) pending: Mutex<HashSet<Name>>,
    pub(super) options: &'a RunOptions,
    pub(super) teller: &'a Teller,
    pub(super) secrets: Option<JobSecrets>,
    /// What was fetched of the secrets that the pipeline's text refers to.
    pub(super) known: &'a [(Reference, SecretValue)],
    /// What was found of the versions of resources in this run.
    pub(super) versions: &'a Versions,
    flush: mpsc::Sender<oneshot::Sender<()>>,
    /// Names of containers that are not their step's own: those of later tries of what holds the step.
    aliases: Aliases,
    /// Two steps that need a volume at once make it once.
    volumes: Mutex<HashMap<Name, Arc<OnceCell<VolumeId>>>>,
    /// Images of artifacts, as the engine has them.
    loaded: tokio::sync::Mutex<HashMap<(Name, u32), ImageRef>>,
    /// How often each volume was written to by steps, as far as they say.
    written: Mutex<HashMap<Name, u32>>,
    /// Steps in the order in which they began.
    executed: Mutex<Vec<Name>>,
    /// What it has done beside its steps.
    pub(super) deeds: Deeds,
    /// Steps of an `across` that the plan does not have: those of all values but the first.
    pub(super) further: Mutex<Vec<(Name, StepKind)>>,
    /// What an earlier process of this run has done.
    pub(super) recorded: Option<Recorded>,
    /// What was pushed, by its canonical name, and how the registry was spoken to.
    pushed: Mutex<HashMap<String, Pushed>>,
    reports: Mutex<HashMap<Name, StepReport>>,
    warnings: Arc<Mutex<Vec<String>>>,
    pub(super) begun: bool,
    /// Whether what steps write is kept until it is [asked for](Self::kept).
    pub(super) keep_output: bool,
    output: Mutex<HashMap<Name, (Captured, Captured)>>,
    sinks: Mutex<HashMap<Name, Box<dyn OutputSink>>>,
    started: Started,
}

/// Who waits for a task to run, and its container once there is one.
type Started = Arc<Mutex<HashMap<Name, (Option<ContainerId>, oneshot::Sender<ContainerId>)>>>;

/// What came of a job.
pub(super) struct JobOutcome {
    pub(super) status: Status,
    pub(super) steps: Vec<StepReport>,
}

/// Whether, and if not why, a job is begun.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    Yes,
    /// A job that it comes after has not succeeded.
    No,
    /// The run as a whole can't be.
    Refused,
}

type Aliases = Arc<Mutex<HashMap<Name, Name>>>;

pub(super) fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes on what the engine tells. Who asks for it is answered when all that was told before is passed on.
struct Pump {
    job: Name,
    teller: Teller,
    secrets: Option<JobSecrets>,
    aliases: Aliases,
    warnings: Arc<Mutex<Vec<String>>>,
    started: Started,
}

impl Pump {
    async fn run(self, mut engine: mpsc::Receiver<orchestra::Event>, mut flush: mpsc::Receiver<oneshot::Sender<()>>) {
        loop {
            tokio::select! {
                biased;
                Some(event) = engine.recv() => self.pass_on(event).await,
                Some(done) = flush.recv() => {
                    done.send(()).ok();
                }
                else => return,
            }
        }
    }

    async fn pass_on(&self, event: orchestra::Event) {
        if let EventKind::Warning { message } = &event.kind {
            return self.warn(message.clone()).await;
        }
        self.note_start(&event);
        let step = event.task.clone();
        let step = step.map(|name| locked(&self.aliases).get(&name).cloned().unwrap_or(name));
        self.teller
            .tell(RunEventKind::Engine {
                job: self.job.clone(),
                step,
                detail: Box::new(event),
            })
            .await;
    }

    fn note_start(&self, event: &orchestra::Event) {
        let Some(task) = &event.task else { return };
        let mut started = locked(&self.started);
        match &event.kind {
            EventKind::ContainerReady { container, .. } => {
                if let Some((known, _)) = started.get_mut(task) {
                    *known = Some(container.clone());
                }
            }
            EventKind::TaskStarted => {
                if let Some((Some(container), waiting)) = started.remove(task) {
                    waiting.send(container).ok();
                }
            }
            _ => {}
        }
    }

    async fn warn(&self, message: String) {
        let message = self
            .secrets
            .as_ref()
            .map_or_else(|| message.clone(), |secrets| secrets.redact(&message));
        locked(&self.warnings).push(message.clone());
        self.teller
            .tell(RunEventKind::Warning {
                job: Some(self.job.clone()),
                message,
            })
            .await;
    }
}

/// How to get back what a build has pushed.
#[derive(Clone, Default)]
pub(super) struct Pushed {
    pub(super) credentials: Option<Credentials>,
    pub(super) insecure: bool,
}

impl Pushed {
    /// The registry of the tag may be another one than that of the credentials.
    pub(super) fn by(plan: &BuildPlan) -> Self {
        let own = plan
            .registry
            .as_ref()
            .filter(|auth| auth.hostname.as_deref().is_none_or(|host| host == plan.tag.registry()));
        own.map(|auth| Self {
            credentials: auth.credentials.clone(),
            insecure: auth.insecure,
        })
        .unwrap_or_default()
    }
}

impl<'a> JobRun<'a> {
    pub(super) fn new(
        plan: &'a JobPlan,
        id: JobId,
        driver: SharedDriver,
        options: &'a RunOptions,
        secrets: Option<JobSecrets>,
        teller: &'a Teller,
        versions: &'a Versions,
    ) -> Self {
        let (events, engine) = mpsc::channel(EVENTS);
        let job = Job::builder(driver.clone())
            .id(id)
            // Containers of finished tasks are kept for whoever carries on, or looks at them.
            .resumable(options.run_id.is_some() || options.keep)
            .grace(options.grace)
            .capture(options.capture)
            .events(events)
            .build();
        let builders = SharedBuilders::new(&job);
        let (flush, flushes) = mpsc::channel(EVENTS);
        let (aliases, warnings, started) = (Aliases::default(), Arc::default(), Started::default());
        let pump = Pump {
            started: Arc::clone(&started),
            job: plan.name.clone(),
            teller: teller.clone(),
            secrets: secrets.clone(),
            aliases: Arc::clone(&aliases),
            warnings: Arc::clone(&warnings),
        };
        tokio::spawn(pump.run(engine, flushes));
        Self {
            plan,
            pipeline: "",
            job,
            driver,
            cache_use: CacheUse::default(),
            releasing: TaskTracker::new(),
            succeeded: false,
            builders,
            pending: Mutex::new(plan.leaves().into_iter().map(|step| step.name.clone()).collect()),
            options,
            teller,
            secrets,
            known: &[],
            versions,
            flush,
            aliases,
            volumes: Mutex::default(),
            loaded: tokio::sync::Mutex::default(),
            written: Mutex::default(),
            executed: Mutex::default(),
            deeds: Deeds::default(),
            further: Mutex::default(),
            recorded: None,
            pushed: Mutex::default(),
            reports: Mutex::default(),
            warnings,
            begun: false,
            keep_output: false,
            output: Mutex::default(),
            sinks: Mutex::default(),
            started,
        }
    }

    /// Sends a step's output there too.
    pub(super) fn also(&self, step: &Name, sink: Box<dyn OutputSink>) {
        locked(&self.sinks).insert(step.clone(), sink);
    }

    /// Where else a step's output goes.
    pub(super) fn sink(&self, step: &Name) -> Option<Box<dyn OutputSink>> {
        locked(&self.sinks).remove(step)
    }

    /// Keeps what a step wrote, if anybody will ask.
    pub(super) fn keep(&self, step: &Name, stdout: &Captured, stderr: &Captured) {
        if self.keep_output {
            locked(&self.output).insert(step.clone(), (stdout.clone(), stderr.clone()));
        }
    }

    /// What a step wrote, once.
    pub(super) fn kept(&self, step: &Name) -> (Captured, Captured) {
        locked(&self.output).remove(step).unwrap_or_default()
    }

    /// Tells when a task that is about to be started runs.
    pub(super) fn when_started(&self, task: &Name, waiting: oneshot::Sender<ContainerId>) {
        locked(&self.started).insert(task.clone(), (None, waiting));
    }

    /// Tells of the secrets that are too short to be redacted.
    pub(super) async fn warn_of_short_secrets(&self) {
        for message in self.secrets.iter().flat_map(JobSecrets::warnings) {
            self.warn(message).await;
        }
    }

    /// A text without secrets.
    pub(super) fn redacted(&self, text: String) -> String {
        match &self.secrets {
            Some(secrets) => secrets.redact(&text),
            None => text,
        }
    }

    /// Takes secrets out of what the plan itself may have said, and of an output's end of which others may show the letters
    /// alone: a secret that colours have cut into pieces is whole then.
    pub(super) fn redact(&self, report: &mut StepReport) {
        let letters = |c: &char| !c.is_control() || "\n\t".contains(*c);
        let plain: String = strip_ansi_escapes::strip_str(&report.log_tail)
            .chars()
            .filter(letters)
            .collect();
        let clean = self.redacted(plain.clone());
        if clean != plain {
            report.log_tail = clean;
        }
        let texts = report.error.iter_mut().chain(&mut report.hint);
        // A program's answer was read as JSON: what was no secret's form in there may be one now.
        let version = report.version.iter_mut().flat_map(Version::values_mut);
        let metadata = report.metadata.iter_mut().map(|metadata| &mut metadata.value);
        for text in texts.chain([&mut report.log_tail]).chain(version).chain(metadata) {
            *text = self.redacted(std::mem::take(text));
        }
    }

    /// Runs the steps, if it is to begin.
    pub(super) async fn run(&mut self, begin: Begin) -> JobOutcome {
        self.begun = begin == Begin::Yes && !self.options.cancel.is_cancelled();
        let mut status = match begin {
            Begin::Yes => Status::Aborted,
            Begin::No => Status::Skipped,
            Begin::Refused => Status::Failed,
        };
        if self.begun {
            let id = self.job.id().clone();
            self.teller
                .tell(RunEventKind::JobStarted {
                    job: self.plan.name.clone(),
                    id,
                })
                .await;
            if let Err(error) = self.recall().await {
                self.warn(format!("what was done before is not known: {error}")).await;
            }
            status = self.whole(&self.options.cancel).await;
            status = self.held(status).await;
        }
        let mut steps = Vec::new();
        let mut reports = std::mem::take(&mut *locked(&self.reports));
        let mut further = std::mem::take(&mut *locked(&self.further));
        for planned in self.plan.leaves() {
            let own = further.extract_if(.., |(name, _)| is_numbered(name, &planned.name));
            let all = std::iter::once((planned.name.clone(), planned.kind())).chain(own);
            for (name, kind) in all {
                let finished = match reports.remove(&name) {
                    Some(finished) => finished,
                    None => {
                        let skipped = StepReport::new(&self.plan.name, &name, kind, Status::Skipped);
                        let report = Box::new(skipped.clone());
                        self.teller.tell(RunEventKind::StepFinished { report }).await;
                        skipped
                    }
                };
                steps.push(finished);
            }
        }
        JobOutcome { status, steps }
    }

    /// Compares what was run with what has to have been.
    async fn held(&self, status: Status) -> Status {
        let executed = locked(&self.executed).clone();
        match &self.plan.execution {
            Some(expected) if *expected != executed && status != Status::Aborted => {
                let message = format!(
                    "the assertion of the job `{}` does not hold: it ran {}, not {}",
                    self.plan.name,
                    listed(&executed),
                    listed(expected)
                );
                self.warn(message).await;
                Status::Failed
            }
            _ => status,
        }
    }

    /// Runs a step that holds no others.
    pub(super) async fn leaf(&self, step: &Step, scope: &Scope) -> Status {
        locked(&self.executed).push(step.name.clone());
        let (finished, caches, whole) = self.step(step, scope).await;
        let step = whole.as_ref().unwrap_or(step);
        if !scope.tried_again {
            locked(&self.pending).remove(&step.name);
            if self.cache_use.is_on() && finished.status == Status::Succeeded {
                self.release(step, &caches);
            }
        }
        self.ended(step, finished, scope).await
    }

    pub(super) async fn ended(&self, step: &Step, mut finished: StepReport, scope: &Scope) -> Status {
        if finished.status == Status::Aborted && scope.expired.is_cancelled() {
            finished.status = Status::Failed;
            finished
                .error
                .get_or_insert_with(|| "what holds it did not end within its timeout".to_owned());
        }
        let status = finished.status;
        // What was aborted from within, by a step beside it or a timeout, has failed as the whole has.
        let from_within = status == Status::Aborted && !self.options.cancel.is_cancelled();
        finished.tolerated = scope.tolerated && (from_within || matches!(status, Status::Failed | Status::Errored));
        locked(&self.reports).insert(step.name.clone(), finished.clone());
        let report = Box::new(finished);
        self.teller.tell(RunEventKind::StepFinished { report }).await;
        status
    }

    /// The step's report, its caches, and the step as a whole, if that was not known before.
    pub(super) async fn step(&self, step: &Step, scope: &Scope) -> (StepReport, Vec<Name>, Option<Step>) {
        let (job, name, kind) = (self.plan.name.clone(), step.name.clone(), step.kind());
        self.teller
            .tell(RunEventKind::StepStarted { job, step: name, kind })
            .await;
        self.warn_of_short_secrets().await;
        let began = Instant::now();
        let mut caches = Vec::new();
        let whole = match &step.action {
            Action::Late(late) => self.whole_step(step, late, scope).await.map(Some),
            _ => Ok(None),
        };
        let named = self.own_name(step, scope);
        let mut ran = None;
        let mut report = match (&whole, named) {
            (Ok(whole), Ok(name)) => {
                let step = whole.as_ref().unwrap_or(step);
                let inputs = self.recorded.as_ref().map(|_| self.inputs_of(step, scope));
                match self.ended_before(step, &name, scope) {
                    Some(report) => {
                        self.caches_of_ended(step, &inputs.unwrap_or_default(), &mut caches)
                            .await;
                        report
                    }
                    None => {
                        let report = self.action(step, name.clone(), scope, &mut caches).await;
                        ran = Some(name);
                        report
                    }
                }
            }
            (Err(error), _) => self.not_run(step, error),
            (_, Err(error)) => self.not_run(step, &error),
        };
        let whole = whole.unwrap_or_default();
        let step = whole.as_ref().unwrap_or(step);
        report.duration = began.elapsed();
        // What the driver says is clean; what the plan itself says may hold what was put into it.
        self.redact(&mut report);
        if let Some(name) = ran {
            self.remember(step, &name, &report).await;
        }
        self.outdate(step, scope);
        // Of what it announced, and of secrets that only it asked for.
        self.warn_of_short_secrets().await;
        (report, caches, whole)
    }

    pub(super) fn not_run(&self, step: &Step, error: &Error) -> StepReport {
        let mut report = StepReport::new(&self.plan.name, &step.name, step.kind(), Status::Failed);
        super::step::failed(&mut report, error);
        report
    }

    async fn action(&self, step: &Step, name: Name, scope: &Scope, caches: &mut Vec<Name>) -> StepReport {
        match &step.action {
            Action::Task(plan) => self.task(step, plan, name, scope, caches).await,
            Action::BuildImage(plan) => self.build(step, plan, &name, scope, caches).await,
            Action::LoadVar(plan) => self.load_var(step, plan, scope).await,
            Action::Get(plan) => self.resource(step, With::Get(plan), &name, scope).await,
            Action::Put(plan) => self.resource(step, With::Put(plan), &name, scope).await,
            Action::Do(_) | Action::InParallel(_) | Action::Try(_) | Action::Across(_) | Action::Late(_) => {
                self.not_run(step, &Error::invalid("it is no step that runs by itself"))
            }
        }
    }

    /// The engine tells of `container` what is the step's.
    pub(super) fn alias(&self, container: &Name, step: &Name) {
        locked(&self.aliases).insert(container.clone(), step.clone());
    }

    /// The image of a task; one that is in an artifact is loaded into the engine first, once.
    pub(super) async fn image(&self, image: &TaskImage, artifacts: &Artifacts) -> Result<TaskImage> {
        let artifact = Name::new(image.reference.as_str()).ok();
        let Some((artifact, volume)) = artifact
            .filter(|_| image.may_be_artifact)
            .and_then(|name| Some((name.clone(), artifacts.volume(&name).ok()?)))
        else {
            return Ok(image.clone());
        };
        let mut loaded = self.loaded.lock().await;
        let times = locked(&self.written).get(&volume).copied().unwrap_or_default();
        if let Some(reference) = loaded.get(&(volume.clone(), times)) {
            return Ok(TaskImage::new(reference.clone()));
        }
        let volumes = self.volumes(&[(volume.clone(), Labels::new())]).await?;
        // One for each content: an engine keeps what a tag was taken from.
        let told_by = format!("{}\0{volume}\0{times}", self.job.id());
        let tag = super::cache::hashed("image", told_by)?;
        let reference = ImageRef::new(format!("localhost/orchestra-artifact:{tag}"))?;
        // What an earlier process of the run has loaded is what its steps have run in.
        let carries_on = self.recorded.as_ref().is_some_and(|recorded| !recorded.left.is_empty());
        let is_there = carries_on && self.watch(self.driver.image_exists(&reference)).await?;
        let archive = VolumePath::new(ARCHIVE)?;
        for volume in volumes.iter().filter(|_| !is_there) {
            let open = async || {
                let tar = self.driver.read_volume(volume, std::slice::from_ref(&archive)).await?;
                file_from_tar(tar, &archive).await
            };
            let load = async {
                match import_archive(&*self.driver, &reference, open).await {
                    Err(error) if error.kind() == ErrorKind::PathNotFound => {
                        let image = RootFs::of(&*self.driver, &self.job, volume).await?;
                        import_archive(&*self.driver, &reference, || image.archive()).await
                    }
                    loaded => loaded,
                }
            };
            self.watch(load).await.map_err(|error| match error.kind() {
                ErrorKind::PathNotFound => error.with("artifact", &artifact).with_hint(format!(
                    "an artifact that is an image holds it as `{ARCHIVE}`, an OCI layout or what `build_image` writes, or its files in `rootfs/`"
                )),
                _ => error.with("artifact", &artifact),
            })?;
        }
        loaded.insert((volume, times), reference.clone());
        Ok(TaskImage::new(reference))
    }

    /// Has images of what a step has made loaded anew when they are asked for next.
    fn outdate(&self, step: &Step, scope: &Scope) {
        let mut written = locked(&self.written);
        let volumes = step
            .outputs()
            .into_iter()
            .filter_map(|artifact| scope.artifacts.volume(artifact).ok());
        volumes.for_each(|volume| *written.entry(volume).or_default() += 1);
    }

    /// What the step's container is called: another one in each try, as one that is kept would be taken for this try's.
    fn own_name(&self, step: &Step, scope: &Scope) -> Result<Name> {
        if scope.tries.is_empty() {
            return Ok(step.name.clone());
        }
        let name = Name::new(format!("{}.{}", step.name, scope.tries))
            .map_err(|error| error.with_hint("give the step a shorter name"))?;
        locked(&self.aliases).insert(name.clone(), step.name.clone());
        Ok(name)
    }

    /// Removes everything of the job, or leaves it where that was asked for. Returns what should be known.
    pub(super) async fn end(&mut self) -> Vec<String> {
        let job = self.job.clone();
        // What they write is whole then.
        self.watch(self.builders.stop()).await;
        // What is kept stays where it is.
        if self.succeeded && self.cache_use.is_on() && !self.options.keep {
            self.release_all();
        }
        // Of a job that is kept, nothing else waits for caches that are being persisted.
        self.releasing.close();
        self.releasing.wait().await;
        // A job that was not begun has nothing, unless another process began it.
        if self.options.keep || !self.begun && self.options.run_id.is_none() {
            job.keep();
        } else if let Err(error) = self.watch(job.end()).await {
            let message = format!(
                "the job {} could not be removed: {error}; `orchestra gc` will do it once this process has ended",
                job.id()
            );
            self.warn(message).await;
        }
        if !self.options.keep {
            for reference in self.loaded.lock().await.values() {
                if let Err(error) = self.driver.remove_image(reference).await {
                    self.warn(format!(
                        "the image {reference} of an artifact could not be removed: {error}"
                    ))
                    .await;
                }
            }
        }
        std::mem::take(&mut *locked(&self.warnings))
    }

    /// The volumes of these names, made where they are not there yet.
    pub(super) async fn volumes(&self, wanted: &[(Name, Labels)]) -> Result<Vec<VolumeId>> {
        let cell = |name: &Name| locked(&self.volumes).entry(name.clone()).or_default().clone();
        // Each by itself: one that is restored from a cache takes its time.
        let made = wanted.iter().map(|(name, labels)| {
            let cell = cell(name);
            async move {
                let make = || self.job.create_volume_with(name, labels.clone());
                cell.get_or_try_init(make).await.cloned()
            }
        });
        self.watch(try_join_all(made)).await
    }

    /// The names of all volumes that there are.
    pub(super) fn volume_names(&self) -> Vec<Name> {
        locked(&self.volumes).keys().cloned().collect()
    }

    /// A volume that is about to go.
    pub(super) fn forget(&self, name: &Name) -> Option<VolumeId> {
        let mut volumes = locked(&self.volumes);
        let made = volumes.get(name)?.get().cloned()?;
        volumes.remove(name);
        Some(made)
    }

    /// Whether the step may still run.
    pub(super) fn is_pending(&self, step: &Step) -> bool {
        locked(&self.pending).contains(&step.name)
    }

    /// How to pull `image`, if an earlier step pushed it.
    pub(super) fn pushed(&self, image: &ImageRef) -> Option<Pushed> {
        locked(&self.pushed).get(&image.canonical()).cloned()
    }

    /// Notes what a build has pushed.
    pub(super) fn push(&self, plan: &BuildPlan) {
        locked(&self.pushed).insert(plan.tag.canonical(), Pushed::by(plan));
    }

    /// Waits for something that the job does. All that the engine told of it meanwhile is passed on when this returns.
    pub(super) async fn watch<F: Future>(&self, work: F) -> F::Output {
        let output = work.await;
        let (done, flushed) = oneshot::channel();
        if self.flush.send(done).await.is_ok() {
            flushed.await.ok();
        }
        output
    }

    pub(super) async fn warn(&self, message: String) {
        let pump = Pump {
            job: self.plan.name.clone(),
            teller: self.teller.clone(),
            secrets: self.secrets.clone(),
            aliases: Arc::clone(&self.aliases),
            warnings: Arc::clone(&self.warnings),
            started: Arc::clone(&self.started),
        };
        pump.warn(message).await;
    }
}
