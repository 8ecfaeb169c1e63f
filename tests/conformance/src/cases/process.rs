//! How containers end: exit codes, signals, memory; and waiting for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestra::{ContainerSpec, ErrorKind, ExitStatus, Signal};

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same, within};
use crate::context::Context;
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(an_exit_code_is_told, "`wait_container` tells the exit code."),
    case!(
        a_killed_container_tells_the_signal,
        "`wait_container` tells the signal that ended the process."
    ),
    case!(
        a_process_handles_a_signal_it_is_sent,
        "`signal_container` sends a signal to the main process."
    ),
    case!(
        signalling_what_has_ended_succeeds,
        "`signal_container` of a container that has ended is success."
    ),
    case!(out_of_memory_is_told_apart, "A process that is killed for its memory ends with `OutOfMemory`.", needs memory_limit out_of_memory),
    case!(a_child_out_of_memory_does_not_spoil_a_success, "An out-of-memory kill that the main process survives leaves its exit as it is.", needs memory_limit out_of_memory),
    case!(
        many_wait_for_one_container,
        "Many may wait for one container, and before it ends nobody is told."
    ),
    case!(
        waiting_for_what_was_never_started_is_a_conflict,
        "`wait_container` fails with `Conflict` if the container was never started."
    ),
    case!(
        waiting_ends_when_the_container_is_removed,
        "`wait_container` fails with `ContainerNotFound` if the container is removed meanwhile."
    ),
    case!(the_end_is_told_promptly, "`wait_container` returns soon after the end."),
    case!(
        an_abandoned_call_leaves_the_connection_usable,
        "Dropping a future or a stream abandons the call and leaves the driver usable."
    ),
];

async fn an_exit_code_is_told(cx: Arc<Context>) -> Outcome {
    for code in [0, 1, 3, 126, 127, 255] {
        let name = format!("exit-{code}");
        let ran = cx.run(&name, &cx.shell(&format!("exit {code}"))).await?;
        same("the exit", ran.exit, ExitStatus::Code(code))?;
        same(
            "the exit, asked again",
            cx.driver.wait_container(&cx.id(&name)).await?,
            ExitStatus::Code(code),
        )?;
    }
    Ok(())
}

async fn a_killed_container_tells_the_signal(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("killed", &cx.sleeper()).await?;
    cx.driver.signal_container(&id, Signal::KILL).await?;
    let exit = within(Duration::from_secs(20), "the end", cx.driver.wait_container(&id)).await??;
    same("the exit", exit, ExitStatus::Signal(Signal::KILL))
}

async fn a_process_handles_a_signal_it_is_sent(cx: Arc<Context>) -> Outcome {
    for (name, signal) in [("term", Signal::TERM), ("usr1", "USR1".parse()?)] {
        let script = "trap 'echo caught; exit 7' TERM USR1; echo up; while true; do sleep 0.1; done";
        let id = cx.start_and_see(name, &cx.shell(script)).await?;
        cx.driver.signal_container(&id, signal).await?;
        let exit = within(Duration::from_secs(20), "the end", cx.driver.wait_container(&id)).await??;
        same(format!("the exit after {signal}"), exit, ExitStatus::Code(7))?;
        let log = crate::context::collect(cx.driver.logs(&id, true).await?).await?;
        same("what it wrote", crate::context::text(&log.stdout), "up\ncaught\n")?;
    }
    Ok(())
}

async fn signalling_what_has_ended_succeeds(cx: Arc<Context>) -> Outcome {
    cx.output("ended", &cx.shell("true")).await?;
    cx.driver.signal_container(&cx.id("ended"), Signal::TERM).await?;
    cx.driver.signal_container(&cx.id("ended"), Signal::KILL).await?;
    same(
        "its exit",
        cx.driver.wait_container(&cx.id("ended")).await?,
        ExitStatus::Code(0),
    )
}

async fn out_of_memory_is_told_apart(cx: Arc<Context>) -> Outcome {
    // `tail` keeps what it has not seen the last line of: all of an endless line.
    let mut spec = cx.spec();
    spec.entrypoint = Some(["tail", "/dev/zero"].map(str::to_owned).to_vec());
    tells_of_memory(&cx, "itself", spec).await?;
    tells_of_memory(&cx, "child", cx.shell("tail /dev/zero; exit $?")).await
}

/// The kernel's notice of the kill races with the end of the main process, and there are engines that lose it now and then,
/// for good. What they must not do is never to tell, or to tell something else.
async fn tells_of_memory(cx: &Context, name: &str, mut spec: ContainerSpec) -> Outcome {
    spec.limits.memory = Some(32 << 20);
    for attempt in 0..10 {
        match cx.run(&format!("{name}-{attempt}"), &spec).await?.exit {
            ExitStatus::OutOfMemory => return Ok(()),
            exit => same(
                "the exit where the notice was lost",
                exit,
                ExitStatus::Signal(Signal::KILL),
            )?,
        }
    }
    Err(Failure::new(format!(
        "{name}: out of memory was not told once in ten times"
    )))
}

async fn a_child_out_of_memory_does_not_spoil_a_success(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("tail /dev/zero; echo went on; exit 0");
    spec.limits.memory = Some(32 << 20);
    let ran = cx.run("survivor", &spec).await?;
    same("what it wrote", ran.stdout, "went on\n")?;
    same("the exit", ran.exit, ExitStatus::Code(0))
}

async fn many_wait_for_one_container(cx: Arc<Context>) -> Outcome {
    let id = cx.create("awaited", &cx.shell("sleep 1.5; exit 5")).await?;
    cx.driver.start_container(&id, None).await?;
    let started = Instant::now();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (cx, id) = (cx.clone(), id.clone());
        waiting.spawn(async move { cx.driver.wait_container(&id).await });
    }
    while let Some(exit) = waiting.join_next().await {
        let exit = exit.map_err(|error| Failure::new(error.to_string()))??;
        same("the exit", exit, ExitStatus::Code(5))?;
        holds(
            started.elapsed() > Duration::from_millis(700),
            "nobody is told before the end",
        )?;
    }
    Ok(())
}

async fn waiting_for_what_was_never_started_is_a_conflict(cx: Arc<Context>) -> Outcome {
    let id = cx.create("idle", &cx.shell("true")).await?;
    let answer = within(Duration::from_secs(20), "the answer", cx.driver.wait_container(&id)).await?;
    fails("waiting for what was never started", answer, &[ErrorKind::Conflict])?;
    Ok(())
}

async fn waiting_ends_when_the_container_is_removed(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("removed", &cx.sleeper()).await?;
    let waiting = tokio::spawn({
        let (cx, id) = (cx.clone(), id.clone());
        async move { cx.driver.wait_container(&id).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    cx.driver.remove_container(&id).await?;
    let answer = within(Duration::from_secs(20), "the end of waiting", waiting).await?;
    let answer = answer.map_err(|error| Failure::new(error.to_string()))?;
    fails("waiting for what was removed", answer, &[ErrorKind::ContainerNotFound])?;
    Ok(())
}

async fn the_end_is_told_promptly(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("clock").await?;
    let mut spec = cx.shell("sleep 1; touch /v/end");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    let id = cx.start("prompt", &spec).await?;
    cx.driver.wait_container(&id).await?;
    let told = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let path = orchestra::VolumePath::new("end")?;
    let entries = crate::tarball::unpack(cx.driver.read_volume(&volume, &[path]).await?).await?;
    let ended = entries.first().map(|entry| entry.mtime).unwrap_or_default();
    // In whole seconds, and on engines that are busy with the other cases. It only holds where the clocks are one.
    holds(
        told.saturating_sub(ended) < 10,
        format!("it ended at {ended} and was told at {told}"),
    )
}

async fn an_abandoned_call_leaves_the_connection_usable(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("watched", &cx.sleeper()).await?;
    for _ in 0..20 {
        // A wait, a log and a listing, each dropped while it is under way.
        let _ = tokio::time::timeout(Duration::from_millis(5), cx.driver.wait_container(&id)).await;
        let logs = cx.driver.logs(&id, true).await?;
        drop(logs);
        let _ = tokio::time::timeout(Duration::from_millis(1), cx.driver.list(None)).await;
    }
    within(Duration::from_secs(20), "a ping afterwards", cx.driver.ping()).await??;
    same(
        "what another container prints",
        cx.output("after", &cx.shell("echo works")).await?,
        "works\n",
    )
}
