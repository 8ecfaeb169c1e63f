//! Steps that are not known before they run: what a front end that is a program does its work with.
//!
//! A program is one job. It makes volumes and runs steps as it comes to them, as many at once as it likes; what it says is
//! the output of a step of its own, [`StepKind::Script`], whose end is the run's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use orchestra::{
    Captured, ContainerId, Error, ErrorKind, Job, JobId, Labels, LogChunk, LogStream, Name, OutputSink, OutputStream,
    Result, SharedDriver, TaskHandle, VolumeId,
};
use orchestra_secrets::JobSecrets;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::artifacts::Artifacts;
use super::cache::CacheUse;
use super::deeds::{Deed, Deeds};
use super::event::{Data, RunEventKind, Teller};
use super::job::JobRun;
use super::output::Tail;
use super::resource::Versions;
use super::tree::Scope;
use super::{RunOptions, RunReport, Status, StepReport, cache};
use crate::{Action, Artifact, CachePlan, Hooks, JobPlan, SingleStep, StepKind};

/// What a program is called.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Program {
    /// Its file's name.
    pub name: String,
    /// Its job, and the step that stands for the program itself.
    pub job: Name,
}

impl Program {
    /// A program of this file name and job.
    #[must_use]
    pub fn new(name: impl Into<String>, job: Name) -> Self {
        let name = name.into();
        Self { name, job }
    }
}

/// How a program ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ended {
    /// How.
    pub status: Status,
    /// What went wrong.
    pub error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Ended {
    /// It did all it was to do.
    #[must_use]
    pub fn well() -> Self {
        Self {
            status: Status::Succeeded,
            error: None,
            hint: None,
        }
    }

    /// It did not.
    #[must_use]
    pub fn with(status: Status, error: impl Into<String>, hint: Option<String>) -> Self {
        Self {
            status,
            error: Some(error.into()),
            hint,
        }
    }
}

/// What came of a step.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepOutcome {
    /// As it stands in the run's report.
    pub report: StepReport,
    /// Its standard output, as far as it was kept.
    pub stdout: Captured,
    /// Its standard error, as far as it was kept; of a build, its progress as text.
    pub stderr: Captured,
}

/// A program's run.
pub struct Session<'a> {
    run: JobRun<'a>,
    artifacts: Arc<Artifacts>,
    reports: Mutex<Vec<StepReport>>,
}

/// A container that waits for [execs](orchestra::Driver::exec).
#[derive(Debug)]
pub struct Sandbox {
    single: SingleStep,
    /// What is done in it is noted of this.
    subject: ContainerId,
    /// `None` as long as it need not run: an earlier process of the run has closed it.
    running: tokio::sync::Mutex<Option<(ContainerId, TaskHandle)>>,
    began: Instant,
}

impl Sandbox {
    /// Its step.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.single.step.name
    }

    /// What the volumes are called that it has.
    fn volumes(&self) -> impl Iterator<Item = &Name> {
        let plan = match &self.single.step.action {
            Action::Task(plan) => Some(plan),
            _ => None,
        };
        let caches = plan.into_iter().flat_map(|plan| &plan.caches);
        let caches = caches.filter_map(|cache| cache.volume.as_ref());
        let inputs = plan.into_iter().flat_map(|plan| &plan.inputs);
        inputs.map(|input| &input.name).chain(caches)
    }

    /// What a [deed](Session::deed) in it is done to.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.subject.as_str()
    }
}

/// Runs `body`, which runs steps, to its end, and removes everything that was made, as [`run`](super::run()) does.
pub async fn run_program<F>(program: &Program, driver: SharedDriver, options: RunOptions, body: F) -> RunReport
where
    F: AsyncFnOnce(&Session<'_>) -> Ended,
{
    let began = Instant::now();
    let run_id = options.run_id.clone().unwrap_or_else(JobId::unique);
    let teller = Teller(options.events.clone());
    let started = RunEventKind::RunStarted {
        run_id: run_id.clone(),
        jobs: Vec::new(),
    };
    teller.tell(started).await;
    let (driver, cache_events, cache_use) = match &options.caches {
        Some(caches) => {
            let (driver, events, cache_use) = cache::wrap(driver, caches, &options, &teller);
            (driver, Some(events), cache_use)
        }
        None => (driver, None, CacheUse::default()),
    };
    let plan = JobPlan {
        name: program.job.clone(),
        plan: Vec::new(),
        hooks: Hooks::default(),
        after: Vec::new(),
        serial_groups: Vec::new(),
        execution: None,
    };
    let secrets = options.secrets.as_ref().map(|secrets| secrets.job(&run_id));
    let versions = Versions::default();
    let mut run = JobRun::new(&plan, run_id.clone(), driver, &options, secrets, &teller, &versions);
    run.pipeline = &program.name;
    run.cache_use = cache_use;
    run.keep_output = true;
    run.begun = true;
    let deeds = Deeds::recall(options.state.as_ref(), &run.driver, &run_id).await;
    let failed = match deeds {
        Ok(deeds) => {
            run.deeds = deeds;
            None
        }
        Err(error) => Some(error),
    };
    let mut session = Session {
        run,
        artifacts: Arc::default(),
        reports: Mutex::default(),
    };
    let body = async |session: &Session<'_>| match failed {
        // Done again, it would be noted beside what was done before.
        Some(error) => {
            let hint = error.hint().map(str::to_owned);
            Ended::with(Status::of_error(error.kind()), error.to_string(), hint)
        }
        None => body(session).await,
    };
    let mut report = session.whole(run_id, body).await;
    session.run.succeeded = report.status == Status::Succeeded;
    report.warnings.extend(session.run.end().await);
    if let Some(events) = cache_events {
        report.warnings.extend(events.finish().await);
    }
    report.duration = began.elapsed();
    let finished = RunEventKind::RunFinished {
        status: report.status,
        duration: report.duration,
    };
    teller.tell(finished).await;
    report
}

impl Session<'_> {
    async fn whole<F>(&self, run_id: JobId, body: F) -> RunReport
    where
        F: AsyncFnOnce(&Session<'_>) -> Ended,
    {
        let (job, began) = (self.run.plan.name.clone(), Instant::now());
        let id = self.run.job.id().clone();
        self.tell(RunEventKind::JobStarted { job: job.clone(), id }).await;
        let kind = StepKind::Script;
        let step = job.clone();
        self.tell(RunEventKind::StepStarted { job, step, kind }).await;
        let ended = body(self).await;
        let mut own = self.report(&self.run.plan.name, kind, ended.status);
        (own.error, own.hint, own.duration) = (ended.error, ended.hint, began.elapsed());
        self.run.redact(&mut own);
        self.finish(own).await;
        RunReport {
            run_id,
            status: ended.status,
            steps: std::mem::take(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner)),
            warnings: Vec::new(),
            duration: Duration::ZERO,
        }
    }

    async fn tell(&self, kind: RunEventKind) {
        self.run.teller.tell(kind).await;
    }

    fn report(&self, step: &Name, kind: StepKind, status: Status) -> StepReport {
        StepReport::new(&self.run.plan.name, step, kind, status)
    }

    async fn finish(&self, report: StepReport) {
        {
            let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
            reports.push(report.clone());
        }
        let report = Box::new(report);
        self.tell(RunEventKind::StepFinished { report }).await;
    }

    /// The job. Tasks that are run on it directly are in no report.
    #[must_use]
    pub fn job(&self) -> &Job {
        &self.run.job
    }

    /// What ends the run.
    #[must_use]
    pub fn cancel(&self) -> &CancellationToken {
        &self.run.options.cancel
    }

    /// The job's secrets, where the run has the layer of secrets.
    #[must_use]
    pub fn secrets(&self) -> Option<&JobSecrets> {
        self.run.secrets.as_ref()
    }

    /// The program's own output, without secrets: what is to be [said](Self::say).
    #[must_use]
    pub fn redacted(&self, said: LogStream) -> LogStream {
        match self.secrets() {
            Some(secrets) => secrets.output(said),
            None => said,
        }
    }

    /// Tells what the program says, which has to be [redacted](Self::redacted).
    pub async fn say(&self, chunk: LogChunk) {
        self.say_for(&self.run.plan.name, chunk.stream, chunk.bytes).await;
    }

    /// Tells something that should be known.
    pub async fn warn(&self, message: String) {
        self.run.warn(message).await;
    }

    /// A text without secrets.
    #[must_use]
    pub fn redact(&self, text: String) -> String {
        self.run.redacted(text)
    }

    fn scope(&self) -> Scope {
        Scope {
            cancel: self.cancel().clone(),
            expired: CancellationToken::new(),
            tries: String::new(),
            tried_again: true,
            tolerated: false,
            variables: Default::default(),
            artifacts: self.artifacts.clone(),
        }
    }

    /// Runs a step, whose artifacts are volumes of this session, or are made. `allow_failure` says that its program may fail.
    pub async fn step(
        &self,
        single: SingleStep,
        output: Option<Box<dyn OutputSink>>,
        allow_failure: bool,
    ) -> StepOutcome {
        let step = &single.step;
        if let Some(output) = output {
            self.run.also(&step.name, output);
        }
        let mut report = self.run.step(step, &self.scope()).await.0;
        report.tolerated = allow_failure && report.status == Status::Failed && report.exit.is_some();
        let (stdout, stderr) = self.run.kept(&step.name);
        self.finish(report.clone()).await;
        StepOutcome { report, stdout, stderr }
    }

    /// Starts a task that is not expected to end by itself, and waits until it runs. One that an earlier process of this run
    /// has closed is started if something is to be executed in it that was not before.
    ///
    /// # Errors
    /// What the task was refused for, or ended with before it ran.
    pub async fn sandbox(&self, single: SingleStep) -> Result<Sandbox> {
        let began = Instant::now();
        let subject = self.run.job.id().container(&single.step.name, 1);
        let (job, step, kind) = (self.run.plan.name.clone(), single.step.name.clone(), single.step.kind());
        self.tell(RunEventKind::StepStarted { job, step, kind }).await;
        let running = match self.run.deeds.is_closed(subject.as_str()) {
            true => None,
            false => match self.start(&single).await {
                Ok(running) => Some(running),
                Err(error) => {
                    let mut report = self.report(&single.step.name, kind, Status::of_error(error.kind()));
                    report.error = Some(error.to_string());
                    report.duration = began.elapsed();
                    self.run.redact(&mut report);
                    self.finish(report).await;
                    return Err(error);
                }
            },
        };
        Ok(Sandbox {
            single,
            subject,
            running: tokio::sync::Mutex::new(running),
            began,
        })
    }

    async fn start(&self, single: &SingleStep) -> Result<(ContainerId, TaskHandle)> {
        let step = &single.step;
        let Action::Task(plan) = &step.action else {
            return Err(Error::invalid("a sandbox is made of a task"));
        };
        self.run.warn_of_short_secrets().await;
        let (run, scope, mut used) = (&self.run, self.scope(), Vec::new());
        let mounts = run.mounts(step, &plan.inputs, &plan.outputs, &plan.caches, &scope, &mut used);
        let mounts = mounts.await?;
        let task = run
            .describe(step, plan, step.name.clone(), mounts, &scope, &Tail::new())
            .await?;
        let (started, mut runs) = oneshot::channel();
        self.run.when_started(&step.name, started);
        let mut handle = self.run.job.scope(self.cancel()).start(task);
        let ended = tokio::select! {
            biased;
            Ok(container) = &mut runs => return Ok((container, handle)),
            ended = handle.wait() => ended,
        };
        Err(match ended {
            Ok(result) if result.exit == orchestra::ExitStatus::Cancelled => {
                Error::new(ErrorKind::Cancelled, "the sandbox was cancelled")
            }
            Ok(result) => Error::new(
                ErrorKind::TaskFailed,
                format!("the sandbox ended at once: {}", result.exit),
            ),
            Err(error) => error,
        })
    }

    /// The container of a sandbox, which is started where that was [not needed](Self::sandbox) before.
    ///
    /// # Errors
    /// As those of [`sandbox`](Self::sandbox).
    pub async fn container(&self, sandbox: &Sandbox) -> Result<ContainerId> {
        let mut running = sandbox.running.lock().await;
        if let Some((container, _)) = &*running {
            return Ok(container.clone());
        }
        let started = self.start(&sandbox.single).await?;
        Ok(running.insert(started).0.clone())
    }

    /// Ends a sandbox and removes it.
    ///
    /// # Errors
    /// Of the engine.
    pub async fn close(&self, sandbox: &Sandbox) -> Result<()> {
        let running = sandbox.running.lock().await.take();
        let ended = match running {
            Some((_, mut handle)) => {
                handle.cancel();
                let ended = self.run.watch(handle.wait()).await.map(|_| ());
                // What was done in it is not done again, though nothing is left of it.
                let job = self.run.job.id();
                let volumes: Vec<VolumeId> = sandbox.volumes().map(|name| job.volume(name)).collect();
                let volumes: Vec<&str> = volumes.iter().map(VolumeId::as_str).collect();
                if let Err(error) = self.run.deeds.close(sandbox.subject(), &volumes).await {
                    self.run.warn(error.to_string()).await;
                }
                ended
            }
            None => Ok(()),
        };
        let status = if ended.is_ok() {
            Status::Succeeded
        } else {
            Status::Errored
        };
        let mut report = self.report(sandbox.name(), StepKind::Task, status);
        report.duration = sandbox.began.elapsed();
        report.error = ended.as_ref().err().map(ToString::to_string);
        self.finish(report).await;
        ended
    }

    /// Whether what is done is [noted](Self::did): the run has a [state](RunOptions::state) to note it in.
    #[must_use]
    pub fn is_noted(&self) -> bool {
        self.run.deeds.are_noted()
    }

    /// Begins something that is no step: what is executed in a container, or done to a volume. `subject` is the container's or
    /// volume's id, and `what` tells it from all else that is done to that; the same may be done again. Returns what an earlier
    /// process of this run was [answered](Self::did), where the subject is still there.
    #[must_use]
    pub fn deed(&self, subject: &str, what: &str) -> (Deed, Option<String>) {
        self.run.deeds.begin(subject, what)
    }

    /// Notes what came of it, for a process that carries this run on. An answer that holds a secret that is known by now is not
    /// noted, nor is one of more than 16 MiB, nor what comes after 64 MiB in all: then it is done again.
    pub async fn did(&self, deed: Deed, answer: String) {
        self.run.did(deed, answer).await;
    }

    /// Output of a process in a sandbox.
    pub async fn say_for(&self, step: &Name, stream: OutputStream, bytes: Bytes) {
        let (job, step, data) = (self.run.plan.name.clone(), step.clone(), Data(bytes));
        let output = RunEventKind::Output {
            job,
            step,
            stream,
            data,
        };
        self.tell(output).await;
    }

    /// The volume of this name, made where it is not there yet.
    ///
    /// # Errors
    /// Whatever [`Job::create_volume`] fails with.
    pub async fn volume(&self, name: &Name) -> Result<VolumeId> {
        let volume = self.first(&[(name.clone(), Labels::new())]).await?;
        self.artifacts.make(name, name);
        Ok(volume)
    }

    async fn first(&self, wanted: &[(Name, Labels)]) -> Result<VolumeId> {
        let volumes = self.run.volumes(wanted).await?;
        let none = || Error::invalid("there is no such volume");
        volumes.into_iter().next().ok_or_else(none)
    }

    /// The volume of a cache and its name, restored if that was not done yet. `single` is a task that has the cache and
    /// the inputs of which its key needs checksums.
    ///
    /// # Errors
    /// Whatever [`Job::create_volume`] fails with.
    pub async fn cache(&self, single: &SingleStep) -> Result<Name> {
        let (artifacts, caches): (&[Artifact], &[CachePlan]) = match &single.step.action {
            Action::Task(plan) => (&plan.inputs, &plan.caches),
            _ => (&[], &[]),
        };
        let mut places = Vec::new();
        for artifact in artifacts {
            places.push((artifact, self.artifacts.volume(&artifact.name)?));
        }
        let wanted = self.run.caches(&single.step, &places, caches).await?;
        self.first(&wanted).await?;
        let none = || Error::invalid("there is no cache");
        let (name, _) = wanted.into_iter().next().ok_or_else(none)?;
        self.artifacts.make(&name, &name);
        Ok(name)
    }

    /// Lets a volume go. If it is a cache it is persisted, if all that used it succeeded: now, or at the run's end where the
    /// run can be carried on with, since the container of a finished step is kept there and uses it.
    ///
    /// # Errors
    /// Whatever [`remove_volume`](orchestra::Driver::remove_volume) fails with.
    pub async fn release(&self, name: &Name) -> Result<()> {
        let Some(volume) = self.run.forget(name) else {
            return Err(Error::invalid(format!(
                "there is no volume {name}, or it was let go already"
            )));
        };
        let removed = self.run.watch(self.run.driver.remove_volume(&volume)).await;
        if removed.is_ok() {
            // One of that name may be made again.
            self.run.deeds.forget(volume.as_str()).await?;
        }
        match removed {
            Err(error) if error.kind() == ErrorKind::Conflict && self.run.job.is_resumable() => Ok(()),
            removed => removed,
        }
    }
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("job", &self.run.job)
            .finish_non_exhaustive()
    }
}
