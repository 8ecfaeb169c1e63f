//! One job of a run.

use std::collections::HashMap;
use std::future::Future;
use std::time::Instant;

use futures_util::future::try_join_all;
use orchestra::{Credentials, EventKind, ImageRef, Job, JobId, Labels, Name, Result, SharedDriver, VolumeId};
use orchestra_secrets::JobSecrets;
use tokio::sync::mpsc;

use super::cache::CacheUse;
use super::event::{RunEventKind, Teller};
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
    /// The volumes of the current step's caches.
    pub(super) caches: Vec<Name>,
    pub(super) options: &'a RunOptions,
    pub(super) teller: &'a Teller,
    secrets: Option<JobSecrets>,
    engine: mpsc::Receiver<orchestra::Event>,
    volumes: HashMap<Name, VolumeId>,
    /// What was pushed, by its canonical name, and how the registry was spoken to.
    pub(super) pushed: HashMap<String, Pushed>,
    warnings: Vec<String>,
    begun: bool,
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
            .cancel_with(&options.cancel)
            .build();
        Self {
            plan,
            pipeline: "",
            job,
            driver,
            cache_use: CacheUse::default(),
            caches: Vec::new(),
            options,
            teller,
            secrets,
            engine,
            volumes: HashMap::new(),
            pushed: HashMap::new(),
            warnings: Vec::new(),
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
        for (at, step) in self.plan.plan.iter().enumerate() {
            let skipped = report.status != Status::Succeeded || self.options.cancel.is_cancelled();
            let finished = if skipped {
                StepReport::new(&self.plan.name, &step.name, step.kind(), Status::Skipped)
            } else {
                let finished = self.step(step).await;
                report.status = finished.status;
                let caches = std::mem::take(&mut self.caches);
                if self.cache_use.is_on() && !self.options.keep && report.status == Status::Succeeded {
                    self.release(at, step.caches(), &caches);
                }
                finished
            };
            self.teller
                .tell(RunEventKind::StepFinished {
                    report: Box::new(finished.clone()),
                })
                .await;
            report.steps.push(finished);
        }
    }

    async fn step(&mut self, step: &Step) -> StepReport {
        let (job, name, kind) = (self.plan.name.clone(), step.name.clone(), step.kind());
        self.teller
            .tell(RunEventKind::StepStarted { job, step: name, kind })
            .await;
        let began = Instant::now();
        let mut report = match &step.action {
            Action::Task(plan) => self.task(step, plan).await,
            Action::BuildImage(plan) => self.build(step, plan).await,
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
        report
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
        report.warnings.append(&mut self.warnings);
    }

    /// The volumes of these names, made where they are not there yet.
    pub(super) async fn volumes(&mut self, wanted: &[(Name, Labels)]) -> Result<Vec<VolumeId>> {
        let missing = wanted.iter().filter(|(name, _)| !self.volumes.contains_key(name));
        let missing: Vec<_> = missing.cloned().collect();
        let job = self.job.clone();
        let made = missing
            .iter()
            .map(|(name, labels)| job.create_volume_with(name, labels.clone()));
        let made = self.watch(try_join_all(made)).await?;
        self.volumes
            .extend(missing.iter().map(|(name, _)| name.clone()).zip(made));
        Ok(wanted
            .iter()
            .filter_map(|(name, _)| self.volumes.get(name).cloned())
            .collect())
    }

    /// A volume that is about to go.
    pub(super) fn forget(&mut self, name: &Name) -> Option<VolumeId> {
        self.volumes.remove(name)
    }

    /// How to pull `image`, if an earlier step pushed it.
    pub(super) fn pushed(&self, image: &ImageRef) -> Option<Pushed> {
        self.pushed.get(&image.canonical()).cloned()
    }

    /// Waits for something that the job does, and meanwhile passes on what the engine tells of it. All of that is told
    /// when this returns.
    pub(super) async fn watch<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(event) = self.engine.recv() => self.engine_event(event).await,
                output = &mut work => {
                    while let Ok(event) = self.engine.try_recv() {
                        self.engine_event(event).await;
                    }
                    return output;
                }
            }
        }
    }

    async fn engine_event(&mut self, event: orchestra::Event) {
        if let EventKind::Warning { message } = &event.kind {
            return self.warn(message.clone()).await;
        }
        let (job, step) = (self.plan.name.clone(), event.task.clone());
        self.teller
            .tell(RunEventKind::Engine {
                job,
                step,
                detail: Box::new(event),
            })
            .await;
    }

    pub(super) async fn warn(&mut self, message: String) {
        let message = self
            .secrets
            .as_ref()
            .map_or_else(|| message.clone(), |secrets| secrets.redact(&message));
        self.warnings.push(message.clone());
        self.teller
            .tell(RunEventKind::Warning {
                job: Some(self.plan.name.clone()),
                message,
            })
            .await;
    }
}
