//! One job of a run.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::try_join_all;
use orchestra::{Credentials, EventKind, ImageRef, Job, JobId, Labels, Name, Result, SharedDriver, VolumeId};
use orchestra_secrets::JobSecrets;
use tokio::sync::{mpsc, oneshot};

use super::cache::CacheUse;
use super::event::{RunEventKind, Teller};
use super::tree::Scope;
use super::{RunOptions, RunReport, Status, StepReport};
use crate::{Action, BuildPlan, JobPlan, Step};

/// Events of the engine, or of a build, that may wait for whoever receives the run's events.
pub(super) const EVENTS: usize = 64;

/// A job that is being run, and what its steps have made so far.
pub(super) struct JobRun<'a> {
    pub(super) plan: &'a JobPlan,
    /// The pipeline's name.
    pub(super) pipeline: &'a str,
    pub(super) job: Job,
    pub(super) driver: SharedDriver,
    pub(super) cache_use: CacheUse,
    /// Tasks and builds that may still run: what they use can't go.
    pub(super) pending: Mutex<HashSet<Name>>,
    pub(super) options: &'a RunOptions,
    pub(super) teller: &'a Teller,
    secrets: Option<JobSecrets>,
    flush: mpsc::Sender<oneshot::Sender<()>>,
    /// Names of containers that are not their step's own: those of later tries of what holds the step.
    aliases: Aliases,
    /// One lock: two steps that need a volume at once make it once.
    volumes: tokio::sync::Mutex<HashMap<Name, VolumeId>>,
    /// What was pushed, by its canonical name, and how the registry was spoken to.
    pushed: Mutex<HashMap<String, Pushed>>,
    reports: Mutex<HashMap<Name, StepReport>>,
    warnings: Arc<Mutex<Vec<String>>>,
    begun: bool,
}

type Aliases = Arc<Mutex<HashMap<Name, Name>>>;

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes on what the engine tells. Who asks for it is answered when all that was told before is passed on.
struct Pump {
    job: Name,
    teller: Teller,
    secrets: Option<JobSecrets>,
    aliases: Aliases,
    warnings: Arc<Mutex<Vec<String>>>,
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
        let (flush, flushes) = mpsc::channel(EVENTS);
        let (aliases, warnings) = (Aliases::default(), Arc::default());
        let pump = Pump {
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
            pending: Mutex::new(plan.leaves().into_iter().map(|step| step.name.clone()).collect()),
            options,
            teller,
            secrets,
            flush,
            aliases,
            volumes: tokio::sync::Mutex::default(),
            pushed: Mutex::default(),
            reports: Mutex::default(),
            warnings,
            begun: false,
        }
    }

    /// Runs the steps; none if an earlier job did not succeed.
    pub(super) async fn run(&mut self, report: &mut RunReport) {
        if report.status == Status::Succeeded && !self.options.cancel.is_cancelled() {
            self.begun = true;
            let id = self.job.id().clone();
            self.teller
                .tell(RunEventKind::JobStarted {
                    job: self.plan.name.clone(),
                    id,
                })
                .await;
        }
        if self.begun {
            report.status = self.whole(&self.options.cancel).await;
        } else if report.status == Status::Succeeded {
            report.status = Status::Aborted;
        }
        let mut reports = std::mem::take(&mut *locked(&self.reports));
        for step in self.plan.leaves() {
            let finished = match reports.remove(&step.name) {
                Some(finished) => finished,
                None => {
                    let skipped = StepReport::new(&self.plan.name, &step.name, step.kind(), Status::Skipped);
                    let report = Box::new(skipped.clone());
                    self.teller.tell(RunEventKind::StepFinished { report }).await;
                    skipped
                }
            };
            report.steps.push(finished);
        }
    }

    /// Runs a task or a build.
    pub(super) async fn leaf(&self, step: &Step, scope: &Scope) -> Status {
        let (finished, caches) = self.step(step, scope).await;
        let status = finished.status;
        if !scope.tried_again {
            locked(&self.pending).remove(&step.name);
            if self.cache_use.is_on() && !self.options.keep && status == Status::Succeeded {
                self.release(step, &caches).await;
            }
        }
        locked(&self.reports).insert(step.name.clone(), finished.clone());
        let report = Box::new(finished);
        self.teller.tell(RunEventKind::StepFinished { report }).await;
        status
    }

    async fn step(&self, step: &Step, scope: &Scope) -> (StepReport, Vec<Name>) {
        let (job, name, kind) = (self.plan.name.clone(), step.name.clone(), step.kind());
        self.teller
            .tell(RunEventKind::StepStarted { job, step: name, kind })
            .await;
        let began = Instant::now();
        let mut caches = Vec::new();
        let mut report = match (&step.action, self.own_name(step, scope)) {
            (Action::Task(plan), Ok(name)) => self.task(step, plan, name, scope, &mut caches).await,
            (Action::BuildImage(plan), Ok(name)) => self.build(step, plan, &name, scope, &mut caches).await,
            (_, name) => {
                let mut report = StepReport::new(&self.plan.name, &step.name, kind, Status::Failed);
                report.error = name.err().map(|error| error.to_string());
                report
            }
        };
        report.duration = began.elapsed();
        // What the driver says is clean; what the plan itself says may hold what was put into it.
        if let Some(secrets) = &self.secrets {
            for text in report
                .error
                .iter_mut()
                .chain(&mut report.hint)
                .chain([&mut report.log_tail])
            {
                *text = secrets.redact(text);
            }
        }
        (report, caches)
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

    /// Removes everything of the job, or leaves it where that was asked for.
    pub(super) async fn end(&mut self, report: &mut RunReport) {
        let job = self.job.clone();
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
        report.warnings.append(&mut locked(&self.warnings));
    }

    /// The volumes of these names, made where they are not there yet.
    pub(super) async fn volumes(&self, wanted: &[(Name, Labels)]) -> Result<Vec<VolumeId>> {
        let mut volumes = self.volumes.lock().await;
        let missing = wanted.iter().filter(|(name, _)| !volumes.contains_key(name));
        let missing: Vec<_> = missing.cloned().collect();
        let made = missing
            .iter()
            .map(|(name, labels)| self.job.create_volume_with(name, labels.clone()));
        let made = self.watch(try_join_all(made)).await?;
        volumes.extend(missing.iter().map(|(name, _)| name.clone()).zip(made));
        Ok(wanted
            .iter()
            .filter_map(|(name, _)| volumes.get(name).cloned())
            .collect())
    }

    /// A volume that is about to go.
    pub(super) async fn forget(&self, name: &Name) -> Option<VolumeId> {
        self.volumes.lock().await.remove(name)
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
        };
        pump.warn(message).await;
    }
}
