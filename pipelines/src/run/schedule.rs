//! Which job is run when.
//!
//! Where there are resources, the jobs are a graph, in which a step says by `passed` which jobs come first, and all that wait
//! for nothing run at the same time. Else they run one after the other, in the order of the file. A job is skipped if one that it comes after has not
//! succeeded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use orchestra::{Name, SharedDriver};
use tokio::sync::Semaphore;

use super::cache::CacheUse;
use super::event::{RunEventKind, Teller};
use super::job::{Begin, JobOutcome, JobRun, listed};
use super::resource::Versions;
use super::{RunOptions, RunReport, Status, job_id, job_secrets};
use crate::{JobPlan, Pipeline};

/// How many jobs run at once: each has its steps in parallel too.
const AT_ONCE: usize = 8;

/// The jobs of a run.
pub(super) struct Schedule<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) jobs: &'a [&'a JobPlan],
    pub(super) driver: SharedDriver,
    pub(super) options: &'a RunOptions,
    pub(super) teller: &'a Teller,
    pub(super) cache_use: CacheUse,
    pub(super) versions: Versions,
}

/// What jobs that run at the same time have in common.
struct Shared<'a> {
    places: Semaphore,
    /// `serial_groups`.
    groups: BTreeMap<&'a Name, tokio::sync::Mutex<()>>,
    began: Mutex<Vec<Name>>,
}

/// A job that has ended.
struct Ended<'a> {
    outcome: JobOutcome,
    /// While what it made is there: in a run that can be carried on with, that says that it is finished.
    job: Option<JobRun<'a>>,
    warnings: Vec<String>,
}

impl Schedule<'_> {
    /// Runs all jobs and removes what they made.
    pub(super) async fn run(&self, report: &mut RunReport) {
        let after = self.after();
        let groups = self.jobs.iter().flat_map(|job| &job.serial_groups);
        let shared = Shared {
            places: Semaphore::new(AT_ONCE),
            groups: groups.map(|group| (group, tokio::sync::Mutex::default())).collect(),
            began: Mutex::default(),
        };
        let refused = report.status != Status::Succeeded;
        let mut started = vec![false; self.jobs.len()];
        let mut ended: Vec<Option<Ended<'_>>> = self.jobs.iter().map(|_| None).collect();
        let mut running = FuturesUnordered::new();
        loop {
            for (at, plan) in self.jobs.iter().enumerate() {
                let before = after[at].iter().map(|at| Some(ended[*at].as_ref()?.outcome.status));
                let before: Option<Vec<Status>> = before.collect();
                let (Some(before), false) = (before, started[at]) else {
                    continue;
                };
                started[at] = true;
                let begin = match before.iter().all(|status| *status == Status::Succeeded) {
                    _ if refused => Begin::Refused,
                    true => Begin::Yes,
                    false => Begin::No,
                };
                let one = self.one(plan, begin, &report.run_id, &shared);
                running.push(async move { (at, one.await) });
            }
            match running.next().await {
                Some((at, job)) => ended[at] = Some(job),
                None => break,
            }
        }
        drop(running);
        for job in ended.iter_mut().rev().flatten() {
            if let Some(mut run) = job.job.take() {
                job.warnings.append(&mut run.end().await);
            }
        }
        let statuses = ended.iter().flatten().map(|job| job.outcome.status);
        if let (Status::Succeeded, Some(status)) = (
            report.status,
            statuses
                .into_iter()
                .find(|status| !matches!(status, Status::Succeeded | Status::Skipped)),
        ) {
            report.status = status;
        }
        for job in ended.into_iter().flatten() {
            report.steps.extend(job.outcome.steps);
            report.warnings.extend(job.warnings);
        }
        let began = shared.began.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.hold(&began, report).await;
    }

    /// The jobs that each job comes after, as numbers.
    fn after(&self) -> Vec<Vec<usize>> {
        let is_graph = self.pipeline.is_graph;
        let number = |name: &Name| self.jobs.iter().position(|job| job.name == *name);
        let jobs = self.jobs.iter().enumerate();
        jobs.map(|(at, job)| match (is_graph, at.checked_sub(1)) {
            (true, _) => job.after.iter().filter_map(number).collect(),
            (false, before) => before.into_iter().collect(),
        })
        .collect()
    }

    async fn one<'s>(
        &'s self,
        plan: &'s JobPlan,
        begin: Begin,
        run: &orchestra::JobId,
        shared: &Shared<'_>,
    ) -> Ended<'s> {
        let (mut begin, mut warnings) = (begin, Vec::new());
        let id = job_id(run, &plan.name, self.pipeline.jobs.len() == 1);
        let secrets = job_secrets(self.pipeline, &id, self.options).unwrap_or_else(|error| {
            begin = Begin::Refused;
            warnings.push(error.to_string());
            None
        });
        for message in &warnings {
            let (job, message) = (Some(plan.name.clone()), message.clone());
            self.teller.tell(RunEventKind::Warning { job, message }).await;
        }
        let (mut held, mut place) = (Vec::new(), None);
        if begin == Begin::Yes {
            // In the order of their names: two jobs never wait for each other.
            let mut wanted: Vec<&Name> = plan.serial_groups.iter().collect();
            wanted.sort();
            wanted.dedup();
            for group in wanted.into_iter().filter_map(|group| shared.groups.get(group)) {
                held.push(group.lock().await);
            }
            place = shared.places.acquire().await.ok();
            let mut began = shared.began.lock().unwrap_or_else(PoisonError::into_inner);
            began.push(plan.name.clone());
        }
        let mut job = JobRun::new(
            plan,
            id,
            self.driver.clone(),
            self.options,
            secrets,
            self.teller,
            &self.versions,
        );
        job.pipeline = &self.pipeline.name;
        job.known = &self.pipeline.secrets;
        job.cache_use = self.cache_use.clone();
        let outcome = job.run(begin).await;
        job.succeeded = outcome.status == Status::Succeeded;
        let mut job = Some(job);
        // While a run can be carried on with, what a finished job left says that it is finished.
        if self.options.run_id.is_none()
            && let Some(mut job) = job.take()
        {
            warnings.append(&mut job.end().await);
        }
        drop((held, place));
        Ended { outcome, job, warnings }
    }

    /// Compares the jobs that were run with those that have to have been.
    async fn hold(&self, began: &[Name], report: &mut RunReport) {
        let Some(expected) = &self.pipeline.execution else {
            return;
        };
        if expected == began || self.options.job.is_some() || report.status == Status::Aborted {
            return;
        }
        let message = format!(
            "the assertion of {} does not hold: it ran the jobs {}, not {}",
            self.pipeline.name,
            listed(began),
            listed(expected)
        );
        report.warnings.push(message.clone());
        report.status = Status::Failed;
        self.teller.tell(RunEventKind::Warning { job: None, message }).await;
    }
}
