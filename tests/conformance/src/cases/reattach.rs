//! A run that goes on in another process. The first one is this test target again, told what to do by a variable; it is
//! killed, as a build host that loses power is.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;

use orchestra::{Created, ExitStatus, JobId, SharedDriver};

use super::case;
use crate::check::{Failure, Outcome, holds, same};
use crate::context::{Context, collect, text};
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(a_second_process_attaches_to_what_a_killed_one_left, "A container outlives the process that started it; another one finds it by its id, with its whole log and its exit.", needs reattach),
    case!(a_second_process_finds_what_has_ended, "What ended while nobody looked is told to another process.", needs reattach),
];

/// Names the job that a first process works for.
pub(crate) const VARIABLE: &str = "ORCHESTRA_CONFORMANCE_FIRST_PROCESS";

const SLOW: &str = "echo one; echo err >&2; sleep 2; echo two; exit 6";
const FAST: &str = "echo one; echo two; exit 6";

fn script(name: &str) -> &'static str {
    if name == "slow" { SLOW } else { FAST }
}

/// What the first process does: makes a volume, starts a container, says so, and then nothing until it is killed.
pub(crate) async fn first_process(context: Context, name: &str) -> Outcome {
    context.volume("kept").await?;
    context.start(name, &context.shell(script(name))).await?;
    announce();
    std::future::pending().await
}

#[expect(clippy::print_stdout, reason = "the process that started this one reads it")]
fn announce() {
    println!("started");
}

/// Starts a first process, waits until it has started its container, and kills it.
async fn run_and_kill(job: &JobId, name: &str) -> Outcome {
    let (job, name) = (job.to_string(), name.to_owned());
    let done = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(VARIABLE, format!("{job} {name}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut first = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut first)?;
        }
        child.kill()?;
        let mut errors = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut errors)?;
        }
        child.wait()?;
        Ok(first + &errors)
    });
    let said = done.await.map_err(|error| Failure::new(error.to_string()))?;
    let said = said.map_err(|error| Failure::new(format!("the first process can't be run: {error}")))?;
    holds(
        said.starts_with("started\n"),
        format!("the first process started its container: it said {said:?}"),
    )
}

async fn attach(cx: &Context, driver: &SharedDriver, name: &str) -> Outcome {
    let id = cx.id(name);
    same(
        "create_container",
        driver.create_container(&id, &cx.shell(script(name))).await?,
        Created::Existing,
    )?;
    let volume = orchestra::VolumeSpec::new(cx.labels());
    same(
        "create_volume",
        driver.create_volume(&cx.volume_id("kept"), &volume).await?,
        Created::Existing,
    )?;
    let logs = driver.logs(&id, true).await?;
    let written = collect(logs).await?;
    same(
        "standard output, from its first byte",
        text(&written.stdout),
        "one\ntwo\n",
    )?;
    same(
        "standard error",
        text(&written.stderr),
        if name == "slow" { "err\n" } else { "" },
    )?;
    same("the exit", driver.wait_container(&id).await?, ExitStatus::Code(6))
}

async fn a_second_process_attaches_to_what_a_killed_one_left(cx: Arc<Context>) -> Outcome {
    run_and_kill(&cx.job, "slow").await?;
    attach(&cx, &cx.driver, "slow").await
}

async fn a_second_process_finds_what_has_ended(cx: Arc<Context>) -> Outcome {
    run_and_kill(&cx.job, "fast").await?;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    attach(&cx, &cx.driver, "fast").await
}
