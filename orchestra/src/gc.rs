//! Removal of what dead runs left.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Driver, EndReport, JobId, Liveness, Resource, Result, Runner, labels};

/// Which jobs count as left behind.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct GcOptions {
    /// Jobs of runners that can't be seen from here (another machine, another process namespace) count if their newest
    /// resource is at least this old. Where `None`, they never do.
    pub older_than: Option<Duration>,
    /// Only tell.
    pub dry_run: bool,
}

/// One job that was left behind.
#[derive(Debug)]
#[non_exhaustive]
pub struct Collected {
    /// The job.
    pub job: JobId,
    /// What the engine held of it.
    pub resources: Vec<Resource>,
    /// What became of it; `None` in a dry run.
    pub report: Option<EndReport>,
}

/// Ends every job whose runners are all dead, and so removes what it left. Jobs with a living runner are not touched.
///
/// # Errors
/// Whatever [`Driver::list`] and [`Driver::end_job`] fail with. What a job's removal could not remove is in its report.
pub async fn collect_garbage(driver: &dyn Driver, options: GcOptions) -> Result<Vec<Collected>> {
    let mut jobs: BTreeMap<JobId, Vec<Resource>> = BTreeMap::new();
    for resource in driver.list(None).await? {
        if let Some(job) = resource.job() {
            jobs.entry(job).or_default().push(resource);
        }
    }
    let mut collected = Vec::new();
    for (job, resources) in jobs {
        if !left_behind(&resources, options) {
            continue;
        }
        let report = if options.dry_run {
            None
        } else {
            Some(driver.end_job(&job).await?)
        };
        collected.push(Collected { job, resources, report });
    }
    if !options.dry_run {
        // What a dead process had begun for no job goes with the end of any, be it of one that never was.
        driver.end_job(&JobId::unique()).await?;
    }
    Ok(collected)
}

fn left_behind(resources: &[Resource], options: GcOptions) -> bool {
    let old = |limit: Duration| {
        let newest = resources
            .iter()
            .filter_map(|r| r.labels.get(labels::CREATED)?.parse().ok())
            .max();
        let newest = UNIX_EPOCH + Duration::from_secs(newest.unwrap_or(0));
        SystemTime::now().duration_since(newest).is_ok_and(|age| age >= limit)
    };
    let runners: Vec<Liveness> = resources
        .iter()
        .filter_map(|resource| resource.labels.get(labels::RUNNER))
        .map(|label| {
            label
                .parse::<Runner>()
                .map_or(Liveness::Unknown, |runner| runner.liveness())
        })
        .collect();
    if runners.contains(&Liveness::Alive) {
        return false;
    }
    let all_dead = !runners.is_empty() && runners.iter().all(|liveness| *liveness == Liveness::Dead);
    all_dead || options.older_than.is_some_and(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ResourceKind;

    fn of(runner: &str, created: u64) -> Resource {
        let mut resource = Resource::new(ResourceKind::Volume, "v");
        resource.labels.insert(labels::RUNNER.to_owned(), runner.to_owned());
        resource.labels.insert(labels::CREATED.to_owned(), created.to_string());
        resource
    }

    #[test]
    fn only_what_no_living_process_owns_is_left_behind() {
        let alive = Runner::current().to_string();
        let dead = alive.rsplit_once('/').unwrap().0.to_owned() + "/1";
        let elsewhere = "other/boot/1/2/3";
        let any_age = GcOptions {
            older_than: Some(Duration::ZERO),
            ..GcOptions::default()
        };
        assert!(left_behind(&[of(&dead, 1)], GcOptions::default()));
        assert!(
            !left_behind(&[of(&dead, 1), of(&alive, 1)], any_age),
            "a living process carried on"
        );
        assert!(!left_behind(&[of(elsewhere, 1)], GcOptions::default()));
        assert!(left_behind(&[of(elsewhere, 1)], any_age));
        let hour = GcOptions {
            older_than: Some(Duration::from_secs(3600)),
            ..GcOptions::default()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(!left_behind(&[of(elsewhere, now)], hour));
    }
}
