//! What is whose: `list` and `end_job`.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::{StreamExt, stream as streams};
use orchestra::{
    ContainerId, ContainerState, ErrorKind, GcOptions, Job, Resource, ResourceKind, SharedDriver, VolumeId, VolumeSpec,
    collect_garbage, labels,
};

use super::case;
use crate::check::{Failure, Outcome, holds, same};
use crate::context::{Context, Unlabelled, name};
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(
        a_container_is_listed_with_its_state,
        "`list` tells a container's state: created, running, exited."
    ),
    case!(
        what_is_listed_has_its_labels,
        "`list` tells kind, id and all labels of containers and volumes."
    ),
    case!(
        nothing_of_another_job_is_listed,
        "Nothing of another job is ever listed, and all jobs are where none is named."
    ),
    case!(
        what_is_not_ours_is_neither_listed_nor_touched,
        "Nothing that is not ours is ever listed or removed."
    ),
    case!(
        ending_a_job_removes_all_of_it,
        "`end_job` removes everything of a job, running containers too, and says what."
    ),
    case!(
        ending_a_job_leaves_other_jobs_alone,
        "`end_job` removes nothing of another job."
    ),
    case!(
        ending_a_job_that_is_unknown_succeeds,
        "A job that the engine does not know is success."
    ),
    case!(
        what_cannot_be_removed_is_told_and_stays_listed,
        "After `end_job`, what is listed is what the report names as remaining."
    ),
    case!(
        of_two_who_end_one_job_both_succeed,
        "Ending the same job from two drivers at once leaves nothing."
    ),
    case!(
        two_hundred_containers_are_listed_and_removed,
        "200 containers of a job are all listed, and all removed with it.",
        deadlines 4
    ),
    case!(
        two_runners_never_see_each_others_resources,
        "Of two runners in one engine, each lists, collects and ends what is its own."
    ),
];

async fn listed(cx: &Context) -> Outcome<BTreeSet<(ResourceKind, String)>> {
    let all = cx.listed().await?;
    Ok(all.into_iter().map(|resource| (resource.kind, resource.id)).collect())
}

fn find<'a>(resources: &'a [Resource], id: &str) -> Outcome<&'a Resource> {
    resources
        .iter()
        .find(|resource| resource.id == id)
        .ok_or_else(|| Failure::new(format!("{id} is not in {resources:?}")))
}

async fn a_container_is_listed_with_its_state(cx: Arc<Context>) -> Outcome {
    cx.create("created", &cx.shell("true")).await?;
    cx.start_and_see("running", &cx.sleeper()).await?;
    cx.output("exited", &cx.shell("true")).await?;
    let resources = cx.listed().await?;
    for (name, state) in [
        ("created", ContainerState::Created),
        ("running", ContainerState::Running),
        ("exited", ContainerState::Exited),
    ] {
        same(
            format!("the state of {name:?}"),
            find(&resources, cx.id(name).as_str())?.state,
            Some(state),
        )?;
    }
    same("how many are listed", resources.len(), 3)
}

async fn what_is_listed_has_its_labels(cx: Arc<Context>) -> Outcome {
    let mut wanted = cx.labels();
    wanted.insert(labels::NAME.to_owned(), "a-name".to_owned());
    wanted.insert("org.example.own".to_owned(), "a value with = and , and ünï".to_owned());
    let mut spec = cx.shell("true");
    spec.labels.clone_from(&wanted);
    let container = cx.create("labelled", &spec).await?;
    let volume = cx.volume_id("labelled");
    cx.driver
        .create_volume(&volume, &VolumeSpec::new(wanted.clone()))
        .await?;
    let resources = cx.listed().await?;
    for (kind, id) in [
        (ResourceKind::Container, container.as_str()),
        (ResourceKind::Volume, volume.as_str()),
    ] {
        let resource = find(&resources, id)?;
        same("the kind", resource.kind, kind)?;
        same("the job", resource.job().as_ref(), Some(&cx.job))?;
        for (key, value) in &wanted {
            same(
                format!("the label {key} of the {kind:?}"),
                resource.labels.get(key),
                Some(value),
            )?;
        }
    }
    same("how many are listed", resources.len(), 2)
}

/// Puts a container and a volume of another job beside this one's.
async fn neighbour(cx: &Context) -> Outcome<(ContainerId, VolumeId)> {
    let other = cx.other_job();
    let mut spec = cx.shell("true");
    spec.labels.insert(labels::JOB.to_owned(), other.to_string());
    let (container, volume) = (other.container(&name("theirs"), 1), other.volume(&name("theirs")));
    cx.driver.create_container(&container, &spec).await?;
    cx.driver.create_volume(&volume, &VolumeSpec::new(spec.labels)).await?;
    Ok((container, volume))
}

async fn nothing_of_another_job_is_listed(cx: Arc<Context>) -> Outcome {
    let (theirs, their_volume) = neighbour(&cx).await?;
    let ours = cx.create("ours", &cx.shell("true")).await?;
    let volume = cx.volume("ours").await?;
    let wanted = BTreeSet::from([
        (ResourceKind::Container, ours.to_string()),
        (ResourceKind::Volume, volume.to_string()),
    ]);
    same("what is listed of this job", listed(&cx).await?, wanted)?;
    let all = cx.driver.list(None).await?;
    for id in [theirs.as_str(), their_volume.as_str(), ours.as_str(), volume.as_str()] {
        find(&all, id)?;
    }
    Ok(())
}

async fn what_is_not_ours_is_neither_listed_nor_touched(cx: Arc<Context>) -> Outcome {
    // Their names look like ours; only the label says whose a thing is.
    let mut spec = cx.shell("echo mine");
    spec.labels.clear();
    spec.labels.insert("org.example.job".to_owned(), cx.job.to_string());
    let container = cx.id("not-ours");
    let volume = cx.volume_id("not-ours");
    cx.remove_later(Unlabelled::Volume(volume.clone()));
    cx.driver
        .create_volume(&volume, &VolumeSpec::new(spec.labels.clone()))
        .await?;
    cx.remove_later(Unlabelled::Container(container.clone()));
    cx.driver.create_container(&container, &spec).await?;
    cx.volume("ours").await?;
    for job in [Some(&cx.job), None] {
        let all = cx.driver.list(job).await?;
        let found = all
            .iter()
            .find(|resource| resource.id == container.as_str() || resource.id == volume.as_str());
        holds(
            found.is_none(),
            format!("what has no label of ours is listed: {found:?}"),
        )?;
    }
    cx.driver.end_job(&cx.job).await?;
    let log = cx.finish(&container, None).await?;
    same("what the container prints after the job's end", log.stdout, "mine\n")?;
    let again = cx.driver.create_volume(&volume, &VolumeSpec::default()).await?;
    same("the volume after the job's end", again, orchestra::Created::Existing)
}

async fn ending_a_job_removes_all_of_it(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("mounted").await?;
    cx.volume("idle").await?;
    let mut running = cx.shell("trap '' TERM; echo up; while true; do sleep 0.2; done");
    running.mounts.push(cx.mount(&volume, "/v")?);
    cx.start_and_see("running", &running).await?;
    cx.create("created", &running).await?;
    cx.output("exited", &cx.shell("true")).await?;
    let there = listed(&cx).await?;
    same("how many are listed before", there.len(), 5)?;
    let report = cx.driver.end_job(&cx.job).await?;
    holds(report.remaining.is_empty(), format!("nothing remains: {report:?}"))?;
    let removed: BTreeSet<_> = report
        .removed
        .iter()
        .map(|resource| (resource.kind, resource.id.clone()))
        .collect();
    same("what the report says was removed", removed, there)?;
    same("what is listed after", listed(&cx).await?, BTreeSet::new())
}

async fn ending_a_job_leaves_other_jobs_alone(cx: Arc<Context>) -> Outcome {
    let (theirs, volume) = neighbour(&cx).await?;
    cx.create("ours", &cx.shell("true")).await?;
    cx.driver.end_job(&cx.job).await?;
    let left = cx.driver.list(Some(&cx.other_job())).await?;
    find(&left, theirs.as_str())?;
    find(&left, volume.as_str())?;
    same("what is listed of this job", listed(&cx).await?, BTreeSet::new())
}

async fn ending_a_job_that_is_unknown_succeeds(cx: Arc<Context>) -> Outcome {
    let report = cx.driver.end_job(&cx.other_job()).await?;
    holds(
        report.removed.is_empty() && report.remaining.is_empty(),
        format!("there was nothing to do: {report:?}"),
    )?;
    cx.volume("once").await?;
    cx.driver.end_job(&cx.job).await?;
    let again = cx.driver.end_job(&cx.job).await?;
    holds(
        again.removed.is_empty() && again.remaining.is_empty(),
        format!("all was done: {again:?}"),
    )
}

async fn what_cannot_be_removed_is_told_and_stays_listed(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("shared").await?;
    cx.volume("free").await?;
    let mut spec = cx.shell("true");
    spec.labels.insert(labels::JOB.to_owned(), cx.other_job().to_string());
    spec.mounts.push(cx.mount(&volume, "/v")?);
    let theirs = cx.other_job().container(&name("theirs"), 1);
    cx.driver.create_container(&theirs, &spec).await?;
    let report = cx.driver.end_job(&cx.job).await?;
    let remaining: Vec<_> = report
        .remaining
        .iter()
        .map(|(resource, error)| (resource.id.as_str(), error.kind()))
        .collect();
    same("what remains", remaining, vec![(volume.as_str(), ErrorKind::Conflict)])?;
    same(
        "what is listed",
        listed(&cx).await?,
        BTreeSet::from([(ResourceKind::Volume, volume.to_string())]),
    )?;
    cx.driver.end_job(&cx.other_job()).await?;
    let report = cx.driver.end_job(&cx.job).await?;
    holds(
        report.remaining.is_empty(),
        format!("nothing remains when nobody uses it: {report:?}"),
    )
}

async fn of_two_who_end_one_job_both_succeed(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("v").await?;
    let mut spec = cx.sleeper();
    spec.mounts.push(cx.mount(&volume, "/v")?);
    for name in ["a", "b", "c"] {
        cx.start(name, &spec).await?;
    }
    let other = (cx.connect)().await?;
    let (a, b) = tokio::join!(cx.driver.end_job(&cx.job), other.end_job(&cx.job));
    for report in [a?, b?] {
        // One may find in use what the other is about to free, but nothing else.
        let bad = report
            .remaining
            .iter()
            .find(|(_, error)| error.kind() != ErrorKind::Conflict);
        holds(bad.is_none(), format!("nothing remains: {bad:?}"))?;
    }
    cx.driver.end_job(&cx.job).await?;
    same("what is listed after", listed(&cx).await?, BTreeSet::new())
}

async fn two_hundred_containers_are_listed_and_removed(cx: Arc<Context>) -> Outcome {
    const MANY: usize = 200;
    let spec = cx.shell("true");
    // No more at once than an engine is glad to take.
    let mut made = streams::iter(0..MANY)
        .map(|number| {
            let (cx, spec) = (&cx, &spec);
            async move { cx.create(&format!("many-{number}"), spec).await }
        })
        .buffer_unordered(8);
    let mut wanted = BTreeSet::new();
    while let Some(id) = made.next().await {
        wanted.insert((ResourceKind::Container, id?.to_string()));
    }
    drop(made);
    same("what is listed", listed(&cx).await?, wanted)?;
    let report = cx.driver.end_job(&cx.job).await?;
    same("what could not be removed", report.remaining.len(), 0)?;
    let removed = report
        .removed
        .iter()
        .filter(|resource| resource.kind == ResourceKind::Container);
    same("how many containers were removed", removed.count(), MANY)?;
    same("what is listed afterwards", listed(&cx).await?, BTreeSet::new())
}

async fn two_runners_never_see_each_others_resources(cx: Arc<Context>) -> Outcome {
    let other = (cx.connect)().await?;
    let mine = Job::builder(cx.driver.clone()).id(cx.job.clone()).build();
    let theirs = Job::builder(other.clone()).id(cx.other_job()).build();
    // The same name in both.
    let (volume, their_volume) = (
        mine.create_volume("shared").await?,
        theirs.create_volume("shared").await?,
    );
    let ids = async |driver: &SharedDriver, job: &Job| {
        let listed = driver.list(Some(job.id())).await?;
        let volumes = listed
            .into_iter()
            .filter(|resource| resource.kind == ResourceKind::Volume);
        Ok::<_, Failure>(volumes.map(|resource| resource.id).collect::<Vec<_>>())
    };
    same("mine", ids(&cx.driver, &mine).await?, vec![volume.to_string()])?;
    same("theirs", ids(&other, &theirs).await?, vec![their_volume.to_string()])?;
    let mut dry = GcOptions::default();
    dry.dry_run = true;
    let collected = collect_garbage(cx.driver.as_ref(), dry).await?;
    let living = |job: &orchestra::JobId| job == mine.id() || job == theirs.id();
    same(
        "what of both counts as garbage",
        collected.iter().filter(|one| living(&one.job)).count(),
        0,
    )?;
    mine.end().await?;
    same(
        "theirs, after mine ended",
        ids(&cx.driver, &theirs).await?,
        vec![their_volume.to_string()],
    )?;
    theirs.end().await?;
    same(
        "theirs, after it ended",
        ids(&cx.driver, &theirs).await?,
        Vec::<String>::new(),
    )
}
