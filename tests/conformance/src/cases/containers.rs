//! Starting and removing containers.

use std::sync::Arc;
use std::time::Duration;

use orchestra::{ContainerId, ContainerState, Created, ErrorKind, ExitStatus, InjectedFile, Signal};

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same, within};
use crate::context::{Context, Ran};
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(
        starting_what_runs_already_succeeds,
        "`start_container` of a container that runs already is success."
    ),
    case!(
        what_has_ended_is_not_started_again,
        "`start_container` fails with `Conflict` if the container has ended."
    ),
    case!(
        nothing_cannot_be_started,
        "What was never made, or was removed by somebody else just after it was made, is `ContainerNotFound`."
    ),
    case!(
        a_program_that_the_image_lacks_is_invalid_input,
        "`start_container` fails with `InvalidInput` if the image lacks the program, and says which."
    ),
    case!(
        a_program_that_cannot_be_executed_is_invalid_input,
        "`start_container` fails with `InvalidInput` if the program can't be executed."
    ),
    case!(
        a_container_whose_start_failed_is_removed_like_any_other,
        "A failed start leaves nothing that can't be removed."
    ),
    case!(
        a_running_container_is_killed_and_removed,
        "`remove_container` kills a container that runs; when it returns it is gone."
    ),
    case!(
        removing_a_container_that_is_not_there_succeeds,
        "`remove_container` of what does not exist is success."
    ),
    case!(
        of_two_who_remove_one_container_both_succeed,
        "Removing the same container from two tasks at once is success for both."
    ),
    case!(
        an_id_is_free_again_when_its_container_is_removed,
        "A container's writable layer goes with it."
    ),
    case!(fifty_containers_run_at_once, "Fifty containers at once each have their own exit and output.", deadlines 3),
];

async fn state(cx: &Context, name: &str) -> Outcome<Option<ContainerState>> {
    let listed = cx.listed().await?;
    Ok(listed
        .into_iter()
        .find(|resource| resource.id == cx.id(name).as_str())
        .and_then(|resource| resource.state))
}

async fn starting_what_runs_already_succeeds(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("runs", &cx.sleeper()).await?;
    cx.driver.start_container(&id, None).await?;
    same("its state", state(&cx, "runs").await?, Some(ContainerState::Running))
}

async fn what_has_ended_is_not_started_again(cx: Arc<Context>) -> Outcome {
    cx.output("ended", &cx.shell("echo once")).await?;
    let answer = cx.driver.start_container(&cx.id("ended"), None).await;
    fails("starting what has ended", answer, &[ErrorKind::Conflict])?;
    let log = crate::context::collect(cx.driver.logs(&cx.id("ended"), false).await?).await?;
    same("what it wrote in all", crate::context::text(&log.stdout), "once\n")
}

/// Fails if the log of what is not there can be read.
async fn has_no_log(cx: &Context, id: &ContainerId) -> Outcome {
    match cx.driver.logs(id, false).await {
        Ok(logs) => holds(crate::context::collect(logs).await.is_err(), "logs of nothing fail"),
        Err(error) => fails("logs", Err::<(), _>(error), &[ErrorKind::ContainerNotFound]).map(drop),
    }
}

async fn nothing_cannot_be_started(cx: Arc<Context>) -> Outcome {
    let id = cx.id("never-made");
    let kinds = &[ErrorKind::ContainerNotFound];
    fails("start_container", cx.driver.start_container(&id, None).await, kinds)?;
    fails("wait_container", cx.driver.wait_container(&id).await, kinds)?;
    fails(
        "signal_container",
        cx.driver.signal_container(&id, Signal::TERM).await,
        kinds,
    )?;
    has_no_log(&cx, &id).await?;
    // Just after it was made here, a driver may take it for known; whoever reads it must not be left waiting.
    let other = (cx.connect)().await?;
    let gone = async |name: &str| {
        let id = cx.create(name, &cx.sleeper()).await?;
        other.remove_container(&id).await?;
        Ok::<_, Failure>(id)
    };
    let id = gone("not-started").await?;
    fails("starting it", cx.driver.start_container(&id, None).await, kinds)?;
    let id = gone("not-waited").await?;
    fails("waiting for it", cx.driver.wait_container(&id).await, kinds)?;
    let id = gone("not-signalled").await?;
    let signalled = cx.driver.signal_container(&id, Signal::TERM).await;
    fails("signalling it", signalled, kinds)?;
    let id = gone("not-written").await?;
    let file = InjectedFile::new("/file".parse()?, "content");
    fails("writing to it", cx.driver.write_files(&id, &[file]).await, kinds)?;
    let id = gone("not-read").await?;
    has_no_log(&cx, &id).await?;
    let id = gone("made-again").await?;
    let again = cx.driver.create_container(&id, &cx.sleeper()).await?;
    same("making it again", again, Created::New)?;
    cx.driver.remove_container(&id).await?;
    for pause in [0, 1500] {
        let id = cx.create(&format!("followed-{pause}"), &cx.sleeper()).await?;
        let log = tokio::spawn(crate::context::collect(cx.driver.logs(&id, true).await?));
        tokio::time::sleep(Duration::from_millis(pause)).await;
        other.remove_container(&id).await?;
        let log = within(Duration::from_secs(20), "following what is removed", log).await?;
        log.map_err(|error| Failure::new(error.to_string()))?.ok();
    }
    // Whoever makes a stream need not read it at once.
    for pause in [0, 1500] {
        let id = gone(&format!("read-after-{pause}")).await?;
        let Ok(logs) = cx.driver.logs(&id, true).await else {
            continue;
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let log = crate::context::collect(logs);
        let log = within(Duration::from_secs(20), "reading the log of what was removed", log).await?;
        let wrote = log.map(|log| log.stdout).unwrap_or_default();
        same("what it wrote", crate::context::text(&wrote), "")?;
    }
    same("what is left", cx.listed().await?, vec![])
}

async fn a_program_that_the_image_lacks_is_invalid_input(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.spec();
    spec.entrypoint = Some(vec!["no-such-program-at-all".to_owned()]);
    let id = cx.create("missing", &spec).await?;
    let error = fails(
        "starting a missing program",
        cx.driver.start_container(&id, None).await,
        &[ErrorKind::InvalidInput],
    )?;
    holds(
        error.to_string().contains("no-such-program-at-all"),
        format!("the error names the program: {error}"),
    )
}

async fn a_program_that_cannot_be_executed_is_invalid_input(cx: Arc<Context>) -> Outcome {
    for (name, program) in [("directory", "/etc"), ("text", "/etc/passwd")] {
        let mut spec = cx.spec();
        spec.entrypoint = Some(vec![program.to_owned()]);
        let id = cx.create(name, &spec).await?;
        fails(
            format!("starting {program}"),
            cx.driver.start_container(&id, None).await,
            &[ErrorKind::InvalidInput],
        )?;
    }
    Ok(())
}

async fn a_container_whose_start_failed_is_removed_like_any_other(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.spec();
    spec.entrypoint = Some(vec!["/no/such/program".to_owned()]);
    let id = cx.create("failed", &spec).await?;
    // Whoever reads the log before the start must not be left waiting when it fails.
    let logs = cx.driver.logs(&id, true).await?;
    fails(
        "starting a missing program",
        cx.driver.start_container(&id, None).await,
        &[ErrorKind::InvalidInput],
    )?;
    cx.driver.remove_container(&id).await?;
    let _ = within(
        Duration::from_secs(20),
        "the end of its log",
        crate::context::collect(logs),
    )
    .await?;
    same("what is there afterwards", cx.listed().await?, vec![])
}

async fn a_running_container_is_killed_and_removed(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("beat").await?;
    let mut spec = cx.shell("trap '' TERM; echo up; while true; do echo x >> /v/beat; sleep 0.1; done");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    let id = cx.start_and_see("runs", &spec).await?;
    within(
        Duration::from_secs(30),
        "removing a running container",
        cx.driver.remove_container(&id),
    )
    .await??;
    same("its state", state(&cx, "runs").await?, None)?;
    fails(
        "waiting for it",
        cx.driver.wait_container(&id).await,
        &[ErrorKind::ContainerNotFound],
    )?;
    // Nothing of it lives on, and what it used is free.
    cx.driver.remove_volume(&volume).await?;
    Ok(())
}

async fn removing_a_container_that_is_not_there_succeeds(cx: Arc<Context>) -> Outcome {
    cx.driver.remove_container(&cx.id("never-made")).await?;
    let id = cx.create("made", &cx.shell("true")).await?;
    cx.driver.remove_container(&id).await?;
    Ok(cx.driver.remove_container(&id).await?)
}

async fn of_two_who_remove_one_container_both_succeed(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("runs", &cx.sleeper()).await?;
    let other = (cx.connect)().await?;
    let (a, b) = tokio::join!(
        async {
            cx.driver.remove_container(&id).await?;
            Ok::<_, orchestra::Error>(state(&cx, "runs").await)
        },
        async {
            other.remove_container(&id).await?;
            Ok::<_, orchestra::Error>(state(&cx, "runs").await)
        }
    );
    for seen in [a?, b?] {
        same("its state when the call has returned", seen?, None)?;
    }
    Ok(())
}

async fn an_id_is_free_again_when_its_container_is_removed(cx: Arc<Context>) -> Outcome {
    same(
        "the first container",
        cx.output("reused", &cx.shell("echo old > /file; echo 1")).await?,
        "1\n",
    )?;
    cx.driver.remove_container(&cx.id("reused")).await?;
    same(
        "the second",
        cx.output("reused", &cx.shell("if [ -e /file ]; then cat /file; fi; echo 2"))
            .await?,
        "2\n",
    )
}

async fn fifty_containers_run_at_once(cx: Arc<Context>) -> Outcome {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50u8 {
        let cx = cx.clone();
        tasks.spawn(async move {
            let name = format!("n{number}");
            let ran = cx
                .run(
                    &name,
                    &cx.shell(&format!("echo out {number}; echo err {number} >&2; exit {number}")),
                )
                .await?;
            // Together: what one of them lacks, the others explain.
            let (stdout, stderr) = (format!("out {number}\n"), format!("err {number}\n"));
            let exit = ExitStatus::Code(number);
            same("what it wrote and its exit", ran, Ran { exit, stdout, stderr })
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| crate::check::Failure::new(error.to_string()))??;
    }
    same("the containers that are there", cx.listed().await?.len(), 50)
}
