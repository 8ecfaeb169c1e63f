//! Engines that die or hang, each on an engine of the case's own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream as streams};
use orchestra::layer::{Deadlines, Layered, Timeouts};
use orchestra::{ContainerId, ErrorKind, SharedDriver, VolumePath, VolumeSpec, stream};
use orchestra_volumes::ExactVolumes;

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same, within};
use crate::context::Context;
use crate::settings::{Settings, ThrowawayEngine};
use crate::suite::Case;
use crate::tarball::{END, Entry, file_header, pack};

pub(super) const CASES: &[Case] = &[
    case!(an_engine_that_dies_interrupts_whoever_waits, "A daemon that dies while it is waited for, read from or executed in ends each in an error.", requires throwaway),
    case!(an_engine_that_died_is_unreachable, "After an engine died, calls fail with `Unreachable` and `info` still tells.", requires throwaway),
    case!(an_engine_that_hangs_ends_in_a_deadline, "With deadlines, calls to an engine that does not answer end in `DeadlineExceeded`.", requires throwaway),
    case!(an_engine_that_hung_can_be_used_again, "A call that was abandoned on a hanging engine leaves the driver usable.", requires throwaway),
    case!(a_socket_that_never_answers_is_no_hang, "Where something listens and never answers, connecting ends in `DeadlineExceeded`.", requires silent),
    case!(a_full_disk_is_told, "Where an engine's disk is full, writing a volume ends in an error, `DiskFull` as far as it can tell, and what can't be removed then is told.", requires small_disk, deadlines 2),
];

fn throwaway(settings: &Settings) -> Option<String> {
    settings
        .throwaway
        .is_none()
        .then(|| "the settings have no engine that may be killed".to_owned())
}

/// After an engine's death everything has to end within this.
const SOON: Duration = Duration::from_secs(20);

/// What a lost connection is called: in the middle of an answer, and when the next one is asked for.
const LOST: &[ErrorKind] = &[ErrorKind::Interrupted, ErrorKind::Unreachable];

async fn engine(cx: &Context) -> Outcome<(Box<dyn ThrowawayEngine>, SharedDriver)> {
    let start = cx
        .settings
        .throwaway
        .clone()
        .ok_or_else(|| Failure::new("the settings have no such engine"))?;
    let engine = start().await?;
    let driver = engine.connect().await?;
    Ok((engine, driver))
}

async fn sleeper(cx: &Context, driver: &SharedDriver) -> Outcome<ContainerId> {
    let id = cx.id("sleeper");
    driver.create_container(&id, &cx.sleeper()).await?;
    driver.start_container(&id, None).await?;
    Ok(id)
}

async fn an_engine_that_dies_interrupts_whoever_waits(cx: Arc<Context>) -> Outcome {
    let (engine, driver) = engine(&cx).await?;
    let id = sleeper(&cx, &driver).await?;
    let mut logs = driver.logs(&id, true).await?;
    let first = within(SOON, "the container's first output", logs.next()).await?;
    first.ok_or_else(|| Failure::new("the log ended before the container wrote"))??;
    let mut exec = None;
    if driver.info().capabilities.exec {
        exec = Some(
            driver
                .exec(&id, &orchestra::ExecSpec::new(["sleep", "300"]), None)
                .await?,
        );
    }
    let waiting = tokio::spawn({
        let (driver, id) = (driver.clone(), id.clone());
        async move { driver.wait_container(&id).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    engine.kill().await?;
    let waited = within(SOON, "the end of waiting", waiting).await?;
    let waited = waited.map_err(|error| Failure::new(error.to_string()))?;
    fails("waiting on a dead engine", waited, LOST)?;
    match within(SOON, "the end of the log", logs.next()).await? {
        Some(answer) => fails("a log on a dead engine", answer, LOST).map(|_| ())?,
        None => return Err(Failure::new("a log that was cut off ended as if it were whole")),
    }
    same("what comes after the log's error", logs.next().await.is_none(), true)?;
    if let Some(mut exec) = exec {
        match within(SOON, "the end of the exec", exec.next()).await? {
            Some(answer) => fails("an exec on a dead engine", answer, LOST).map(|_| ())?,
            None => return Err(Failure::new("an exec that was cut off ended as if it were whole")),
        }
    }
    Ok(())
}

async fn an_engine_that_died_is_unreachable(cx: Arc<Context>) -> Outcome {
    let (engine, driver) = engine(&cx).await?;
    driver.ping().await?;
    let before = driver.info().clone();
    engine.kill().await?;
    let dead = &[ErrorKind::Unreachable];
    // A connection that was kept may be found dead first.
    let _ = within(SOON, "the first ping", driver.ping()).await?;
    fails("ping", within(SOON, "a ping", driver.ping()).await?, dead)?;
    fails("list", within(SOON, "a list", driver.list(None)).await?, dead)?;
    let created = within(
        SOON,
        "create_container",
        driver.create_container(&cx.id("late"), &cx.shell("true")),
    )
    .await?;
    let error = fails("create_container", created, dead)?;
    holds(error.hint().is_some(), "the error says what to do")?;
    let volume = cx.volume_id("late");
    let tar = stream::once(pack(&[Entry::file("a", "a")]));
    let written = within(
        SOON,
        "write_volume",
        driver.write_volume(&volume, &VolumePath::root(), tar),
    )
    .await?;
    fails("write_volume", written, LOST)?;
    same("what info tells", driver.info(), &before)
}

async fn an_engine_that_hangs_ends_in_a_deadline(cx: Arc<Context>) -> Outcome {
    let (engine, driver) = engine(&cx).await?;
    let id = sleeper(&cx, &driver).await?;
    let second = Duration::from_secs(1);
    let mut deadlines = Deadlines::default();
    (deadlines.call, deadlines.work, deadlines.silence) = (second, second, second);
    (deadlines.heartbeat, deadlines.ping) = (second, second);
    let driver = Layered::wrap(driver, Timeouts(deadlines));
    engine.pause().await?;
    let late = &[ErrorKind::DeadlineExceeded];
    fails("ping", within(SOON, "a ping", driver.ping()).await?, late)?;
    fails("list", within(SOON, "a list", driver.list(None)).await?, late)?;
    fails(
        "wait_container",
        within(SOON, "waiting", driver.wait_container(&id)).await?,
        late,
    )?;
    let created = within(
        SOON,
        "create_container",
        driver.create_container(&cx.id("late"), &cx.shell("true")),
    )
    .await?;
    fails("create_container", created, late)?;
    engine.resume().await?;
    Ok(())
}

async fn an_engine_that_hung_can_be_used_again(cx: Arc<Context>) -> Outcome {
    let (engine, driver) = engine(&cx).await?;
    driver.ping().await?;
    engine.pause().await?;
    for _ in 0..3 {
        let answer = tokio::time::timeout(Duration::from_millis(300), driver.ping()).await;
        holds(
            !matches!(answer, Ok(Ok(()))),
            "an engine that hangs does not answer a ping",
        )?;
    }
    engine.resume().await?;
    within(SOON, "a ping afterwards", driver.ping()).await??;
    let id = sleeper(&cx, &driver).await?;
    driver.remove_container(&id).await?;
    Ok(())
}

fn silent(settings: &Settings) -> Option<String> {
    let missing = settings.silent.is_none();
    missing.then(|| "the settings have no endpoint that never answers".to_owned())
}

async fn a_socket_that_never_answers_is_no_hang(cx: Arc<Context>) -> Outcome {
    let connect = cx.settings.silent.clone();
    let connect = connect.ok_or_else(|| Failure::new("the settings have no such endpoint"))?;
    let mut deadlines = Deadlines::default();
    deadlines.ping = Duration::from_secs(1);
    let answer = within(Duration::from_secs(60), "connecting", async {
        let driver = connect().await?;
        Layered::wrap(driver, Timeouts(deadlines)).ping().await
    });
    let error = fails(
        "an engine that never answers",
        answer.await?,
        &[ErrorKind::DeadlineExceeded],
    )?;
    holds(error.hint().is_some(), "the error says what to do")
}

fn small_disk(settings: &Settings) -> Option<String> {
    let missing = settings.throwaway.is_none() || settings.small_disk.is_none();
    missing.then(|| "the settings have no engine with a small disk".to_owned())
}

async fn a_full_disk_is_told(cx: Arc<Context>) -> Outcome {
    overfilled(&cx, false).await?;
    overfilled(&cx, true).await
}

async fn overfilled(cx: &Context, exactly: bool) -> Outcome {
    const PIECE: u64 = 1 << 20;
    let (_engine, driver) = engine(cx).await?;
    if exactly && ExactVolumes::missing(&driver.info().capabilities).is_some() {
        return Ok(());
    }
    let (volume, root) = (cx.volume_id("full"), VolumePath::root());
    driver.create_volume(&volume, &VolumeSpec::new(cx.labels())).await?;
    let size = cx.settings.small_disk.unwrap_or_default().next_multiple_of(PIECE);
    let content = Bytes::from(vec![1; PIECE as usize]);
    let content = streams::iter((0..size / PIECE).map(move |_| Ok(content.clone())));
    let tar = stream::once(file_header("large", size)).chain(content);
    let tar = tar.chain(stream::once(END)).boxed();
    if exactly {
        let volumes = ExactVolumes::new(driver.clone(), cx.job.clone())?;
        let answer = volumes.write(&volume, &root, tar).await;
        // `Engine` from one that has no room left to note how a process ended (podman 5.4.2).
        let kinds = &[ErrorKind::DiskFull, ErrorKind::Engine];
        fails("what does not fit, exactly", answer, kinds)?;
    } else {
        let answer = driver.write_volume(&volume, &root, tar).await;
        let kinds = &[ErrorKind::DiskFull, ErrorKind::Engine, ErrorKind::Interrupted];
        fails("what does not fit", answer, kinds)?;
    }
    // An engine that keeps its records on the same disk may be unable to remove a thing (5.4.2 of one is): that is told, then.
    let report = driver.end_job(&cx.job).await?;
    let left = driver.list(Some(&cx.job)).await?;
    same("what is left, beside what is told", left.len(), report.remaining.len())?;
    if left.is_empty() {
        driver.create_volume(&volume, &VolumeSpec::new(cx.labels())).await?;
        let small = stream::once(pack(&[Entry::file("small", "fits")]));
        driver.write_volume(&volume, &root, small).await?;
        driver.end_job(&cx.job).await?;
    }
    Ok(())
}
