//! The executor: jobs as their [schedule] has it, the [tree] of a job's steps as it says, up to what does not succeed.
//!
//! Each [`JobPlan`](crate::JobPlan) is one [`orchestra::Job`], its artifacts and caches are that job's volumes, its steps
//! that job's tasks. All that a run keeps is in the engine, under names that follow from the run's id and the plan:
//! that is how another process carries on with it.

mod artifacts;
pub(crate) mod cache;
mod carry;
mod deeds;
mod event;
mod job;
mod late;
mod output;
mod report;
mod resource;
mod rootfs;
mod schedule;
mod session;
mod state;
mod status;
mod step;
mod tree;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use orchestra::layer::PrivilegePolicy;
use orchestra::{ImageRef, JobId, Name, NetworkMode, PullPolicy, SharedDriver};
use orchestra_secrets::{JobSecrets, Secrets};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use cache::Caches;
pub(crate) use cache::within;
pub use deeds::Deed;
pub use event::{Data, PlannedJob, PlannedStep, RunEvent, RunEventKind};
pub use report::{BuiltImage, Metadata, RunReport, StepReport};
pub use session::{Ended, Program, Sandbox, Session, StepOutcome, run_program};
pub use state::RunState;
pub use status::Status;

use self::cache::CacheUse;
use self::event::Teller;
use self::resource::Versions;
use self::schedule::Schedule;
use crate::{JobPlan, Pipeline};

/// How a pipeline is run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RunOptions {
    /// Names the run, so that another process can carry on with it if this one dies: finished tasks are not run twice,
    /// running ones are attached to. A run that has no name given gets one, and can't be carried on with.
    pub run_id: Option<JobId>,
    /// What the run has done, for another process that carries on with it. It says something only with a `run_id`.
    pub state: Option<RunState>,
    /// Leaves containers and volumes where they are at the end.
    pub keep: bool,
    /// Only the job of this name.
    pub job: Option<Name>,
    /// Ends the run when it is cancelled: the step that runs is stopped, what follows is skipped, all is removed.
    pub cancel: CancellationToken,
    /// Tells what happens. It is waited for: receive while the run goes on, or drop the receiver.
    pub events: Option<mpsc::Sender<RunEvent>>,
    /// How long a task that is asked to end has until it is killed.
    pub grace: Duration,
    /// How many bytes of a step's output are kept from its start and from its end, each stream.
    pub capture: usize,
    /// When images are fetched. What an earlier step of the job has pushed is always fetched anew.
    pub pull: PullPolicy,
    /// The BuildKit image of builds that name none; that of `orchestra-image-build` where `None`.
    pub buildkit: Option<ImageRef>,
    /// Where caches are kept; where `None`, they live as long as their job.
    pub caches: Option<Caches>,
    /// The secrets of the [layer](orchestra_secrets::SecretsLayer) in the driver, which the run's own texts are redacted by
    /// too. A pipeline that refers to secrets is not run without.
    pub secrets: Option<Secrets>,
    /// Whether builds that say nothing of it run [without privileges](orchestra_image_build::ImageBuild::rootless).
    pub rootless: bool,
    /// What may be privileged. A pipeline with a step that may not is not run.
    pub privileges: PrivilegePolicy,
    /// The network of builds that name none.
    pub build_network: Option<NetworkMode>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            run_id: None,
            state: None,
            keep: false,
            job: None,
            cancel: CancellationToken::new(),
            events: None,
            grace: Duration::from_secs(5),
            capture: 1 << 20,
            pull: PullPolicy::default(),
            buildkit: None,
            caches: None,
            secrets: None,
            rootless: false,
            privileges: PrivilegePolicy::default(),
            build_network: None,
        }
    }
}

/// Runs a pipeline to its end and removes everything it made, however it ends, unless told to [keep](RunOptions::keep) it.
///
/// What goes wrong is in the report: a run has no other error.
pub async fn run(pipeline: &Pipeline, driver: SharedDriver, options: RunOptions) -> RunReport {
    let began = Instant::now();
    let run_id = options.run_id.clone().unwrap_or_else(JobId::unique);
    let teller = Teller(options.events.clone());
    let wanted = |job: &&JobPlan| options.job.as_ref().is_none_or(|name| *name == job.name);
    let jobs: Vec<&JobPlan> = pipeline.jobs.iter().filter(wanted).collect();
    let planned = jobs.iter().map(|job| PlannedJob::of(job)).collect();
    teller
        .tell(RunEventKind::RunStarted {
            run_id: run_id.clone(),
            jobs: planned,
        })
        .await;

    let mut report = RunReport {
        run_id,
        status: Status::Succeeded,
        steps: Vec::new(),
        warnings: Vec::new(),
        duration: Duration::ZERO,
    };
    let place = |of: &crate::Problem| of.line().map_or_else(String::new, |line| format!(":{line}"));
    let told = pipeline.warnings.iter();
    let mut told: Vec<String> = told.map(|of| format!("{}{}: {of}", pipeline.name, place(of))).collect();
    let alone = jobs.iter().filter(|_| options.job.is_some());
    told.extend(alone.filter(|job| !job.after.is_empty()).map(|job| {
        let after = job::listed(&job.after);
        let name = &job.name;
        format!(
            "`{name}` is run without {after}: its versions of resources are the newest, and need not have passed there"
        )
    }));
    let refused = match &options.job {
        Some(name) if jobs.is_empty() => Some(format!("{} has no job `{name}`", pipeline.name)),
        _ if options.secrets.is_none() && !pipeline.secrets.is_empty() => {
            Some(format!("{} refers to secrets, and is run without any", pipeline.name))
        }
        _ => pipeline
            .check_privileges(&options.privileges, options.rootless, options.buildkit.as_ref())
            .err()
            .map(|error| error.to_string()),
    };
    if refused.is_some() {
        report.status = Status::Failed;
    }
    for message in refused.into_iter().chain(told) {
        teller
            .tell(RunEventKind::Warning {
                job: None,
                message: message.clone(),
            })
            .await;
        report.warnings.push(message);
    }
    let (driver, cache_events, cache_use) = match &options.caches {
        Some(caches) => {
            let (driver, events, cache_use) = cache::wrap(driver, caches, &options, &teller);
            (driver, Some(events), cache_use)
        }
        None => (driver, None, CacheUse::default()),
    };
    let known = match &options.state {
        Some(state) => state.versions().await.unwrap_or_default(),
        None => HashMap::new(),
    };
    let schedule = Schedule {
        pipeline,
        jobs: &jobs,
        driver,
        options: &options,
        teller: &teller,
        cache_use,
        versions: Versions::known(known),
    };
    schedule.run(&mut report).await;
    if let Some(events) = cache_events {
        report.warnings.extend(events.finish().await);
    }
    report.duration = began.elapsed();
    teller
        .tell(RunEventKind::RunFinished {
            status: report.status,
            duration: report.duration,
        })
        .await;
    report
}

/// The job's own list, with what was fetched for the pipeline: none of it is fetched again.
fn job_secrets(pipeline: &Pipeline, id: &JobId, options: &RunOptions) -> orchestra::Result<Option<JobSecrets>> {
    let Some(secrets) = &options.secrets else {
        return Ok(None);
    };
    let job = secrets.job(id);
    for (reference, value) in &pipeline.secrets {
        job.provide(reference, value)?;
    }
    for (reference, value) in &pipeline.wholes {
        job.provide_whole(reference, value);
    }
    Ok(Some(job))
}

/// The id of a pipeline's job: the run's where it is the only one, else made of both names.
fn job_id(run: &JobId, job: &Name, only: bool) -> JobId {
    if only {
        return run.clone();
    }
    let joined = format!("{run}-{job}");
    JobId::new(joined.as_str()).unwrap_or_else(|_| {
        // Too long, or with a dot: what is cut or replaced must not make two jobs one.
        let digest = Sha256::digest(&joined);
        let hash: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let start: String = joined.replace('.', "-").chars().take(54).collect();
        JobId::new(format!("{start}-{hash}")).unwrap_or_else(|_| run.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_one_run_have_ids_of_their_own() {
        let run = JobId::new("r".repeat(60)).unwrap();
        let id = |job: &str| job_id(&run, &Name::new(job).unwrap(), false);
        assert_ne!(id("unit-tests"), id("unit-testing"));
        let short = JobId::new("42").unwrap();
        let id = |job: &str, only| job_id(&short, &Name::new(job).unwrap(), only);
        assert_eq!(id("test", false).as_str(), "42-test");
        assert_eq!(id("test", true).as_str(), "42");
        assert_ne!(id("a.b", false), id("a-b", false));
    }
}
