//! Promises that `Job` makes on top of a driver, seen in the engine: nothing stays, whatever ends a task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use orchestra::{ContainerState, ErrorKind, ExitStatus, Job, LogChunk, Task, TaskHandle};
use tokio::sync::mpsc;

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same, within};
use crate::context::Context;
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(
        a_task_runs_to_its_end_and_leaves_nothing,
        "A task's output and exit are told, and its container is removed."
    ),
    case!(
        tasks_share_the_volumes_of_their_job,
        "What a task writes to a volume, the next one reads."
    ),
    case!(
        a_task_that_is_cancelled_leaves_no_container,
        "Cancellation ends a task by SIGTERM, and leaves nothing."
    ),
    case!(
        a_task_that_ignores_the_request_is_killed,
        "After the grace period a task that goes on is killed."
    ),
    case!(
        a_task_is_asked_to_end_by_its_stop_signal,
        "`stop_signal` is what a task is asked to end by when it is cancelled."
    ),
    case!(
        what_is_kept_of_output_is_bounded,
        "Of a stream a result has a MiB from the start and one from the end, and says how much is cut; a sink has it all."
    ),
    case!(
        fifty_tasks_at_once_leave_nothing,
        "Fifty tasks of one job at once each have their own exit and output, and leave no container.",
        deadlines 3
    ),
    case!(
        a_task_over_its_timeout_leaves_no_container,
        "A timeout really ends a task, and leaves nothing."
    ),
    case!(
        dropping_a_task_leaves_no_container,
        "Dropping the future of a task leaks no container."
    ),
    case!(
        a_task_that_cannot_start_leaves_no_container,
        "A failed start leaves nothing."
    ),
    case!(a_job_carries_on_where_another_one_stopped, "A second job of the same id takes over a task that runs, and does not run a finished one again.", needs reattach),
];

fn job(cx: &Context) -> Job {
    let job = Job::builder(cx.driver.clone())
        .id(cx.job.clone())
        .grace(Duration::from_secs(2))
        .build();
    // The case's own end is what removes things here: a case that leaves something must not be mended by the handle.
    job.keep();
    job
}

fn task(cx: &Context, name: &str, script: &str) -> Outcome<Task> {
    let spec = cx.shell(script);
    let mut task = Task::new(name, cx.settings.image.as_str())?;
    task.spec = spec;
    Ok(task)
}

async fn containers(cx: &Context) -> Outcome<usize> {
    let listed = cx.listed().await?;
    Ok(listed.iter().filter(|resource| resource.state.is_some()).count())
}

/// Waits until a task's container runs. A task that ends before that is a failure with the task's own reason.
async fn running(cx: &Context, handle: &mut TaskHandle) -> Outcome {
    let runs = async {
        let mut listed = Vec::new();
        for _ in 0..300 {
            listed = cx.listed().await?;
            if listed
                .iter()
                .any(|resource| resource.state == Some(ContainerState::Running))
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let message = format!("the task's container did not start within 30 s; the engine has {listed:?}");
        Err(Failure::new(message))
    };
    tokio::select! {
        runs = runs => runs,
        ended = handle.wait() => Err(Failure::new(format!("the task ended before it was seen to run: {:?}", ended?))),
    }
}

async fn a_task_runs_to_its_end_and_leaves_nothing(cx: Arc<Context>) -> Outcome {
    let result = job(&cx)
        .run(task(&cx, "whole", "echo out; echo err >&2; exit 3")?)
        .await?;
    same("the exit", result.exit, ExitStatus::Code(3))?;
    same("standard output", result.stdout.to_string(), "out\n")?;
    same("standard error", result.stderr.to_string(), "err\n")?;
    same("the containers that are there", containers(&cx).await?, 0)
}

async fn tasks_share_the_volumes_of_their_job(cx: Arc<Context>) -> Outcome {
    let job = job(&cx);
    let volume = job.create_volume("shared").await?;
    let write = task(&cx, "write", "echo hello > shared/text")?.mount(&volume, "shared")?;
    job.run(write).await?.success()?;
    let read = task(&cx, "read", "cat shared/text")?.mount(&volume, "shared")?;
    same(
        "what the second reads",
        job.run(read).await?.success()?.stdout.to_string(),
        "hello\n",
    )
}

async fn a_task_that_is_cancelled_leaves_no_container(cx: Arc<Context>) -> Outcome {
    let job = job(&cx);
    let script = "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done";
    let mut handle = job.start(task(&cx, "cancelled", script)?);
    running(&cx, &mut handle).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    handle.cancel();
    let result = within(Duration::from_secs(30), "the end of the task", handle.wait()).await??;
    same("the exit", result.exit, ExitStatus::Cancelled)?;
    same("what it wrote", result.stdout.to_string(), "up\nbye\n")?;
    same("the containers that are there", containers(&cx).await?, 0)
}

async fn a_task_that_ignores_the_request_is_killed(cx: Arc<Context>) -> Outcome {
    let job = job(&cx);
    let mut handle = job.start(task(
        &cx,
        "stubborn",
        "trap '' TERM; echo up; while true; do sleep 0.1; done",
    )?);
    running(&cx, &mut handle).await?;
    handle.cancel();
    let result = within(Duration::from_secs(30), "the end of the task", handle.wait()).await??;
    same("the exit", result.exit, ExitStatus::Cancelled)?;
    same("the containers that are there", containers(&cx).await?, 0)
}

async fn a_task_is_asked_to_end_by_its_stop_signal(cx: Arc<Context>) -> Outcome {
    let job = job(&cx);
    let script =
        "trap 'echo usr1; exit 0' USR1; trap 'echo term; exit 0' TERM; echo up; while true; do sleep 0.1; done";
    let mut asked = task(&cx, "asked", script)?;
    asked.spec.stop_signal = Some("USR1".parse()?);
    let mut handle = job.start(asked);
    running(&cx, &mut handle).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    handle.cancel();
    let result = within(Duration::from_secs(30), "the end of the task", handle.wait()).await??;
    same("what it wrote", result.stdout.to_string(), "up\nusr1\n")
}

async fn what_is_kept_of_output_is_bounded(cx: Arc<Context>) -> Outcome {
    const MIB: u64 = 1 << 20;
    const LINES: u64 = 450_000;
    let (sink, mut output) = mpsc::channel(8);
    let seen = tokio::spawn(async move {
        let mut bytes = 0;
        while let Some(LogChunk { bytes: piece, .. }) = output.recv().await {
            bytes += piece.len() as u64;
        }
        bytes
    });
    let loud = task(&cx, "loud", &format!("echo first; seq {LINES}; echo last"))?;
    let result = job(&cx).run(loud.output(sink)).await?;
    let numbers: usize = (1..=LINES).map(|number| number.to_string().len() + 1).sum();
    let whole = numbers as u64 + 11;
    let stdout = &result.stdout;
    same("the bytes in all", stdout.total(), whole)?;
    same("the bytes that are cut", stdout.cut(), whole - 2 * MIB)?;
    let text = stdout.to_string();
    holds(
        text.starts_with("first\n") && text.ends_with("last\n"),
        "both ends are kept",
    )?;
    holds(text.contains(&format!("{} bytes cut", stdout.cut())), "the cut is told")?;
    let seen = seen.await.map_err(|error| Failure::new(error.to_string()))?;
    same("the bytes that the sink has got", seen, whole)
}

async fn fifty_tasks_at_once_leave_nothing(cx: Arc<Context>) -> Outcome {
    let job = job(&cx);
    let tasks = (0..50u8).map(|number| {
        let script = format!("echo out {number}; echo err {number} >&2; exit {number}");
        let task = task(&cx, &format!("n{number}"), &script);
        let job = &job;
        async move {
            let result = job.run(task?).await?;
            same("the output", result.stdout.to_string(), format!("out {number}\n"))?;
            same("the error output", result.stderr.to_string(), format!("err {number}\n"))?;
            same("the exit", result.exit, ExitStatus::Code(number))
        }
    });
    try_join_all(tasks).await?;
    same("the containers that are there", containers(&cx).await?, 0)
}

async fn a_task_over_its_timeout_leaves_no_container(cx: Arc<Context>) -> Outcome {
    let began = Instant::now();
    let slow = task(&cx, "slow", "echo up; sleep 300")?.timeout(Duration::from_secs(3));
    let result = within(Duration::from_secs(60), "the end of the task", job(&cx).run(slow)).await??;
    same("the exit", result.exit, ExitStatus::TimedOut)?;
    holds(began.elapsed() >= Duration::from_secs(3), "it had its time")?;
    same("the containers that are there", containers(&cx).await?, 0)
}

async fn dropping_a_task_leaves_no_container(cx: Arc<Context>) -> Outcome {
    let job = job(&cx);
    let running_task = tokio::time::timeout(
        Duration::from_secs(3),
        job.run(task(&cx, "dropped", "echo up; sleep 300")?),
    );
    holds(running_task.await.is_err(), "the task takes longer")?;
    for _ in 0..300 {
        if containers(&cx).await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Failure::new(
        "the container of a dropped task is still there after 30 s",
    ))
}

async fn a_task_that_cannot_start_leaves_no_container(cx: Arc<Context>) -> Outcome {
    let mut bad = task(&cx, "bad", "")?;
    bad.spec.entrypoint = Some(vec!["/no/such/program".to_owned()]);
    fails(
        "a task without a program",
        job(&cx).run(bad).await,
        &[ErrorKind::InvalidInput],
    )?;
    same("the containers that are there", containers(&cx).await?, 0)
}

async fn a_job_carries_on_where_another_one_stopped(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("count").await?;
    let script = "echo run >> /v/runs; echo one; while [ ! -e /v/go ]; do sleep 0.1; done; echo two";
    let once = || -> Outcome<Task> { Ok(task(&cx, "once", script)?.mount(&volume, "/v")?) };
    let beside = async |name: &str, script: &str| {
        let mut spec = cx.shell(script);
        spec.mounts.push(cx.mount(&volume, "/v")?);
        cx.output(name, &spec).await
    };
    let start = || {
        let job = Job::builder(cx.driver.clone())
            .id(cx.job.clone())
            .resumable(true)
            .build();
        job.keep();
        job
    };
    // Two handles on one running task, as where a second process takes over from one that has lost touch with it.
    let first = start();
    let mut handle = first.start(once()?);
    running(&cx, &mut handle).await?;
    let (sink, mut output) = mpsc::channel(8);
    let second = start();
    let mut taken_over = second.start(once()?.output(sink));
    // Nothing comes where the second one has failed: its wait tells why.
    let delivers = output.recv().await.is_some();
    let drain = tokio::spawn(async move { while output.recv().await.is_some() {} });
    beside("go", "touch /v/go").await?;
    let result = taken_over.wait().await?.success()?;
    holds(
        delivers,
        "what had been written before is delivered while the task runs",
    )?;
    drain.await.map_err(|error| Failure::new(error.to_string()))?;
    same(
        "the log of the task that was taken over",
        result.stdout.to_string(),
        "one\ntwo\n",
    )?;
    let result = start().run(once()?).await?.success()?;
    same(
        "the log of the task that had ended",
        result.stdout.to_string(),
        "one\ntwo\n",
    )?;
    handle.wait().await?.success()?;
    same("how often it ran", beside("counter", "cat /v/runs").await?, "run\n")
}
