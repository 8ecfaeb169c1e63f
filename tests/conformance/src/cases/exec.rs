//! Further processes in a running container.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orchestra::{ContainerId, ContainerPath, ErrorKind, ExecSpec, ExitStatus, stream};

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same, within};
use crate::context::{Context, collect_exec, text};
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(an_exec_tells_output_and_then_its_exit, "`exec` yields output of both streams, then the exit as its last item.", needs exec),
    case!(an_exec_is_inside_of_its_container, "An exec's process sees the container's files and processes, and no others.", needs exec),
    case!(an_exec_is_fed_its_standard_input, "`stdin` is fed to an exec's process and closed at its end.", needs exec),
    case!(an_exec_without_input_reads_an_end, "An exec without `stdin` does not wait for any.", needs exec),
    case!(an_exec_has_its_own_user_directory_and_environment, "`ExecSpec` says user, directory and environment; the container's hold where it does not.", needs exec user),
    case!(an_exec_needs_a_container_that_runs, "`exec` fails with `ContainerNotFound`, and with `Conflict` if the container does not run.", needs exec),
    case!(an_exec_goes_on_when_its_stream_is_dropped, "Dropping the stream leaves the process running.", needs exec),
    case!(an_exec_ends_with_its_container, "An exec of a container that is removed ends.", needs exec),
    case!(an_exec_of_no_program_is_no_success, "An exec of a program that the image lacks fails, and leaves the container running.", needs exec),
    case!(execs_run_side_by_side, "Many execs in one container each have their own output.", needs exec),
];

fn script(text: &str) -> ExecSpec {
    ExecSpec::new(["sh", "-c", text])
}

async fn run(cx: &Context, id: &ContainerId, spec: &ExecSpec) -> Outcome<(String, String, ExitStatus)> {
    let events = cx.driver.exec(id, spec, None).await?;
    let (written, exit) = within(Duration::from_secs(60), "the exec", collect_exec(events)).await??;
    Ok((text(&written.stdout), text(&written.stderr), exit))
}

async fn an_exec_tells_output_and_then_its_exit(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("host", &cx.sleeper()).await?;
    let (out, err, exit) = run(&cx, &id, &script("echo out; echo err >&2; printf end; exit 9")).await?;
    same("standard output", out, "out\nend")?;
    same("standard error", err, "err\n")?;
    same("the exit", exit, ExitStatus::Code(9))?;
    let (_, _, exit) = run(&cx, &id, &script("true")).await?;
    same("the exit of another", exit, ExitStatus::Code(0))?;
    let log = cx.driver.logs(&id, false).await?;
    let log = crate::context::collect(log).await?;
    same("the container's own log", text(&log.stdout), "up\n")
}

async fn an_exec_is_fed_its_standard_input(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("host", &cx.sleeper()).await?;
    let content: Vec<u8> = (0..1u64 << 17).flat_map(u64::to_le_bytes).collect();
    let events = cx
        .driver
        .exec(&id, &script("cat; echo end >&2"), Some(stream::once(content.clone())))
        .await?;
    let (written, exit) = within(Duration::from_secs(60), "the exec", collect_exec(events)).await??;
    same("how much came back", written.stdout.len(), content.len())?;
    holds(written.stdout == content, "what came back is what went in")?;
    same("standard error", text(&written.stderr), "end\n")?;
    same("the exit", exit, ExitStatus::Code(0))
}

async fn an_exec_without_input_reads_an_end(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("host", &cx.sleeper()).await?;
    let (out, _, _) = run(&cx, &id, &script("cat; echo end")).await?;
    same("standard output", out, "end\n")
}

async fn an_exec_has_its_own_user_directory_and_environment(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.sleeper();
    spec.env = [("A", "container"), ("B", "container")].into_iter().collect();
    spec.working_dir = Some(ContainerPath::new("/work")?);
    spec.user = Some("11:22".parse()?);
    let id = cx.start_and_see("host", &spec).await?;
    let mut exec = script("echo $A $B $(pwd) $(id -u) $(id -g)");
    let (out, err, _) = run(&cx, &id, &exec).await?;
    same(
        format!("the container's own ({err})"),
        out,
        "container container /work 11 22\n",
    )?;
    exec.env = [("B", "exec")].into_iter().collect();
    exec.working_dir = Some(ContainerPath::new("/tmp")?);
    exec.user = Some("33:44".parse()?);
    let (out, err, _) = run(&cx, &id, &exec).await?;
    same(format!("the exec's own ({err})"), out, "container exec /tmp 33 44\n")?;
    exec.user = Some("root".parse()?);
    let (out, err, _) = run(&cx, &id, &exec).await?;
    same(format!("a user by name ({err})"), out, "container exec /tmp 0 0\n")
}

async fn an_exec_needs_a_container_that_runs(cx: Arc<Context>) -> Outcome {
    let spec = script("true");
    let answer = cx.driver.exec(&cx.id("never-made"), &spec, None).await.map(|_| ());
    fails("an exec in nothing", answer, &[ErrorKind::ContainerNotFound])?;
    let id = cx.create("host", &cx.shell("true")).await?;
    let answer = cx.driver.exec(&id, &spec, None).await.map(|_| ());
    fails("an exec before the start", answer, &[ErrorKind::Conflict])?;
    cx.finish(&id, None).await?;
    let answer = cx.driver.exec(&id, &spec, None).await.map(|_| ());
    fails("an exec after the end", answer, &[ErrorKind::Conflict])?;
    Ok(())
}

async fn an_exec_goes_on_when_its_stream_is_dropped(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("host", &cx.sleeper()).await?;
    let mut events = cx
        .driver
        .exec(&id, &script("echo up; sleep 1; echo done > /tmp/flag"), None)
        .await?;
    let first = within(Duration::from_secs(20), "the exec's first output", events.next()).await?;
    first.ok_or_else(|| Failure::new("the exec ended before it wrote"))??;
    drop(events);
    for _ in 0..50 {
        let (out, _, _) = run(&cx, &id, &script("if [ -e /tmp/flag ]; then cat /tmp/flag; fi")).await?;
        if out == "done\n" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Failure::new("the process ended with its stream"))
}

async fn an_exec_ends_with_its_container(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("host", &cx.sleeper()).await?;
    let mut events = cx.driver.exec(&id, &script("echo up; sleep 300"), None).await?;
    let first = within(Duration::from_secs(20), "the exec's first output", events.next()).await?;
    first.ok_or_else(|| Failure::new("the exec ended before it wrote"))??;
    cx.driver.remove_container(&id).await?;
    // An error or an exit that is no success: only going on, and success, are wrong.
    match within(Duration::from_secs(20), "the end of the exec", collect_exec(events)).await? {
        Ok((_, exit)) => holds(!exit.success(), format!("a killed process is no success: {exit}")),
        Err(_) => Ok(()),
    }
}

async fn an_exec_of_no_program_is_no_success(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("host", &cx.sleeper()).await?;
    match cx.driver.exec(&id, &ExecSpec::new(["no-such-program"]), None).await {
        Ok(events) => {
            // An error of the stream is as good.
            let ended = within(Duration::from_secs(20), "the exec", collect_exec(events)).await?;
            if let Ok((_, exit)) = ended {
                holds(!exit.success(), format!("there is no such program: {exit}"))?;
            }
        }
        Err(error) => holds(!error.is_retryable(), format!("trying again does not help: {error}"))?,
    }
    let (out, _, _) = run(&cx, &id, &script("echo still there")).await?;
    same("what another exec prints", out, "still there\n")
}

async fn execs_run_side_by_side(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("host", &cx.sleeper()).await?;
    let mut execs = tokio::task::JoinSet::new();
    for number in 0..8u8 {
        let (cx, id) = (cx.clone(), id.clone());
        execs.spawn(async move {
            let (out, _, exit) = run(&cx, &id, &script(&format!("echo {number}; sleep 0.3; exit {number}"))).await?;
            same("standard output", out, format!("{number}\n"))?;
            same("the exit", exit, ExitStatus::Code(number))
        });
    }
    while let Some(done) = execs.join_next().await {
        done.map_err(|error| Failure::new(error.to_string()))??;
    }
    Ok(())
}

async fn an_exec_is_inside_of_its_container(cx: Arc<Context>) -> Outcome {
    let id = cx
        .start_and_see("host", &cx.shell("echo inside > /marker; echo up; sleep 300"))
        .await?;
    let (out, _, _) = run(&cx, &id, &script("cat /marker; ls -d /marker")).await?;
    same("the container's own file", out, "inside\n/marker\n")?;
    run(&cx, &id, &script("echo from an exec > /made")).await?;
    let mut volumes = cx.shell("test ! -e /made && echo apart");
    volumes.labels = cx.labels();
    same(
        "another container of the image",
        cx.output("other", &volumes).await?,
        "apart\n",
    )
}
