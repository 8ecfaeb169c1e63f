//! `Job` where an engine misbehaves: on the in-memory driver with faults. What a job does on a well-behaved engine is in
//! the conformance suite.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use orchestra::layer::{Fault, Faults, Layered, Method};
use orchestra::{
    ContainerState, Error, ErrorKind, EventKind, ExitStatus, GcOptions, Job, JobId, LogChunk, Name, OutputSink,
    PullPolicy, Runner, SharedDriver, Task, VolumeSpec, collect_garbage, labels,
};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use tokio::sync::mpsc;
use tokio::time::Instant;

fn engine() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    engine
}

fn faulty(engine: &MemoryEngine, faults: Faults) -> SharedDriver {
    Layered::wrap(engine.driver(), faults)
}

fn task(script: &str) -> Task {
    Task::new("task", "busybox").unwrap().shell(script)
}

async fn leftovers(engine: &MemoryEngine) -> usize {
    engine.driver().list(None).await.unwrap().len()
}

/// Waits for what happens in the background.
async fn until_nothing_is_left(engine: &MemoryEngine) {
    let limit = Instant::now() + Duration::from_secs(60);
    while leftovers(engine).await > 0 {
        assert!(
            Instant::now() < limit,
            "something is left: {:?}",
            engine.driver().list(None).await
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_container_whose_creation_answered_with_an_error_is_removed() {
    let engine = engine();
    let faults = Faults::new().on(Method::CreateContainer, Fault::After(ErrorKind::Interrupted));
    let job = Job::builder(faulty(&engine, faults)).build();
    assert_eq!(job.run(task("true")).await.unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(leftovers(&engine).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_fails_for_a_passing_reason_is_tried_again() {
    let engine = engine();
    let faults = Faults::new().on_calls(Method::RemoveContainer, 0, 2, Fault::Before(ErrorKind::Interrupted));
    let job = Job::builder(faulty(&engine, faults)).build();
    assert!(job.run(task("true")).await.unwrap().exit.success());
    assert_eq!(leftovers(&engine).await, 0);
}

#[tokio::test]
async fn a_container_that_can_not_be_removed_is_told_and_does_not_fail_the_task() {
    let engine = engine();
    let faults = Faults::new().on_calls(Method::RemoveContainer, 0, 9, Fault::Before(ErrorKind::Engine));
    let (sender, mut events) = mpsc::channel(64);
    let job = Job::builder(faulty(&engine, faults)).events(sender).build();
    assert!(job.run(task("true")).await.unwrap().exit.success());
    let mut warned = false;
    while let Ok(event) = events.try_recv() {
        warned |= matches!(event.kind, EventKind::Warning { message } if message.contains("was not removed"));
    }
    assert!(warned);
    job.end().await.unwrap();
    assert_eq!(
        leftovers(&engine).await,
        0,
        "the job's end removes what a task could not"
    );
}

#[tokio::test]
async fn a_log_that_breaks_off_is_an_error_and_leaves_no_container() {
    let engine = engine();
    let faults = Faults::new().on(Method::Logs, Fault::CutStream(0, ErrorKind::Interrupted));
    let job = Job::builder(faulty(&engine, faults)).build();
    let error = job.run(task("sleep 1000")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(error.to_string().contains("task=task"), "{error}");
    assert_eq!(leftovers(&engine).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_task_does_not_wait_for_an_engine_that_hangs() {
    for method in [Method::CreateContainer, Method::StartContainer, Method::SignalContainer] {
        let engine = engine();
        let job = Job::builder(faulty(&engine, Faults::new().on_calls(method, 0, 99, Fault::Hang))).build();
        let mut running = job.start(task("sleep 100000"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        running.cancel();
        let began = Instant::now();
        assert_eq!(
            running.wait().await.unwrap_err().kind(),
            ErrorKind::DeadlineExceeded,
            "{method:?}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{method:?}: {:?}",
            began.elapsed()
        );
        assert_eq!(leftovers(&engine).await, 0, "{method:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn output_that_the_engine_never_closes_is_not_waited_for_for_ever() {
    let engine = engine();
    let job = Job::builder(faulty(&engine, Faults::new().on(Method::Logs, Fault::HangStream(1)))).build();
    let error = job.run(task("echo one; sleep 1; echo two")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(leftovers(&engine).await, 0);
}

#[tokio::test]
async fn a_dropped_task_and_a_dropped_job_leave_nothing() {
    let engine = engine();
    let job = Job::builder(engine.driver()).grace(Duration::from_millis(50)).build();
    job.create_volume("v").await.unwrap();
    let running = job.run(task("sleep 1000"));
    assert!(tokio::time::timeout(Duration::from_millis(200), running).await.is_err());
    drop(job);
    until_nothing_is_left(&engine).await;
}

#[tokio::test]
async fn a_job_that_ends_asks_its_tasks_to_end_and_waits_for_them() {
    let engine = engine();
    let job = Job::builder(engine.driver()).grace(Duration::from_secs(20)).build();
    let (sender, mut output) = mpsc::channel(8);
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while true; do sleep 0.01; done";
    let mut running = job.start(task(script).output(sender));
    output.recv().await.unwrap();
    let (ended, result) = tokio::join!(job.end(), running.wait());
    ended.unwrap();
    let result = result.unwrap();
    assert_eq!(
        (result.exit, result.stdout.to_string()),
        (ExitStatus::Cancelled, "ready\nbye\n".to_owned())
    );
    assert_eq!(leftovers(&engine).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_being_made_when_its_job_ends_is_gone_when_the_job_has_ended() {
    let engine = engine();
    let slow = Faults::new().on(Method::CreateContainer, Fault::Delay(Duration::from_secs(5)));
    let job = Job::builder(faulty(&engine, slow)).build();
    let mut running = job.start(task("true"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    job.end().await.unwrap();
    assert!(
        began.elapsed() >= Duration::from_secs(4),
        "the engine was still making it"
    );
    assert_eq!(running.wait().await.unwrap().exit, ExitStatus::Cancelled);
    assert_eq!(leftovers(&engine).await, 0);
}

#[tokio::test]
async fn a_task_is_asked_to_end_by_the_signal_that_it_names() {
    let engine = engine();
    let job = Job::builder(engine.driver()).grace(Duration::from_secs(20)).build();
    let (sender, mut output) = mpsc::channel(8);
    let script = "trap 'echo usr1; exit 0' USR1; echo ready; while true; do sleep 0.01; done";
    let mut named = task(script).output(sender);
    named.spec.stop_signal = Some("USR1".parse().unwrap());
    let mut running = job.start(named);
    output.recv().await.unwrap();
    running.cancel();
    assert_eq!(running.wait().await.unwrap().stdout.to_string(), "ready\nusr1\n");
}

#[tokio::test]
async fn an_image_that_must_not_be_pulled_is_an_error() {
    let engine = engine();
    let job = Job::builder(engine.driver()).build();
    let task = Task::new("t", "registry.test/none").unwrap().pull(PullPolicy::Never);
    assert_eq!(job.run(task).await.unwrap_err().kind(), ErrorKind::ImageNotFound);
}

#[tokio::test]
async fn a_run_id_with_another_task_under_the_same_name_is_refused_and_the_first_one_untouched() {
    let engine = engine();
    let job = || {
        Job::builder(engine.driver())
            .id(JobId::new("r").unwrap())
            .resumable(true)
            .build()
    };
    let first = job();
    first.run(task("echo first")).await.unwrap();
    first.keep();
    let second = job();
    let error = second.run(task("echo second")).await.unwrap_err();
    second.keep();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.hint().unwrap().contains("new run id"));
    let left = engine.driver().list(None).await.unwrap();
    assert!(
        left.iter()
            .any(|resource| resource.state == Some(ContainerState::Exited)),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_container_made_but_not_started_by_an_earlier_process_is_started() {
    let engine = engine();
    let job = |faults| {
        Job::builder(faulty(&engine, faults))
            .id(JobId::new("r").unwrap())
            .resumable(true)
            .build()
    };
    // The first process dies between making and starting: its removal does not happen either.
    let dying = Faults::new()
        .on(Method::StartContainer, Fault::Before(ErrorKind::Interrupted))
        .on_calls(Method::RemoveContainer, 0, 9, Fault::Before(ErrorKind::Engine));
    let first = job(dying);
    assert!(first.run(task("echo done")).await.is_err());
    first.keep();
    let second = job(Faults::new());
    assert_eq!(
        second.run(task("echo done")).await.unwrap().stdout.to_string(),
        "done\n"
    );
    second.end().await.unwrap();
    assert_eq!(leftovers(&engine).await, 0);
}

struct Broken;

#[async_trait::async_trait]
impl OutputSink for Broken {
    async fn write(&mut self, _chunk: LogChunk) -> orchestra::Result<()> {
        Err(Error::new(ErrorKind::Io, "the pipe is closed"))
    }
}

#[tokio::test]
async fn a_task_whose_output_nobody_takes_is_ended() {
    let engine = engine();
    let job = Job::builder(engine.driver()).grace(Duration::from_millis(10)).build();
    let error = job.run(task("echo hi; sleep 1000").output(Broken)).await.unwrap_err();
    assert!(error.to_string().contains("the pipe is closed"), "{error}");
    assert_eq!(leftovers(&engine).await, 0);
}

#[tokio::test]
async fn a_task_is_tried_again_until_it_succeeds_and_no_longer() {
    let engine = engine();
    let job = Job::builder(engine.driver()).build();
    let volume = job.create_volume("v").await.unwrap();
    let script = "if test -e v/tried; then exit 0; fi; echo x > v/tried; exit 1";
    let flaky = || task(script).mount(&volume, "v").unwrap().attempts(5);
    let result = job.run(flaky()).await.unwrap();
    assert_eq!((result.exit, result.attempt), (ExitStatus::Code(0), 2));
    let never = Task::new("never", "busybox").unwrap().shell("exit 7").attempts(3);
    let result = job.run(never).await.unwrap();
    assert_eq!((result.exit, result.attempt), (ExitStatus::Code(7), 3));
    let once = task("cat").stdin(orchestra::stream::once("x")).attempts(2);
    assert_eq!(job.run(once).await.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn garbage_is_what_dead_runners_left_and_nothing_else() {
    let engine = engine();
    let driver = engine.driver();
    let alive = Runner::current().to_string();
    let dead = alive.rsplit_once('/').unwrap().0.to_owned() + "/1";
    for (job, runner) in [("dead", &dead), ("alive", &alive)] {
        let job = JobId::new(job).unwrap();
        let pairs = [(labels::JOB, job.as_str()), (labels::RUNNER, runner)];
        let spec = VolumeSpec::new(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        driver
            .create_volume(&job.volume(&Name::new("v").unwrap()), &spec)
            .await
            .unwrap();
    }
    let mut dry = GcOptions::default();
    dry.dry_run = true;
    assert_eq!(collect_garbage(&*driver, dry).await.unwrap().len(), 1);
    assert_eq!(leftovers(&engine).await, 2, "a dry run removes nothing");
    let collected = collect_garbage(&*driver, GcOptions::default()).await.unwrap();
    assert_eq!(collected.len(), 1);
    assert_eq!(collected[0].job.as_str(), "dead");
    assert_eq!(leftovers(&engine).await, 1);
}

#[tokio::test]
async fn a_run_that_was_taken_over_by_a_living_process_is_not_garbage() {
    let engine = engine();
    let driver = engine.driver();
    let job = JobId::new("r").unwrap();
    let dead = Runner::current().to_string().rsplit_once('/').unwrap().0.to_owned() + "/1";
    let pairs = [(labels::JOB, job.as_str()), (labels::RUNNER, dead.as_str())];
    let spec = VolumeSpec::new(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    driver
        .create_volume(&job.volume(&Name::new("source").unwrap()), &spec)
        .await
        .unwrap();
    let second = Job::builder(driver.clone()).id(job).build();
    second.create_volume("source").await.unwrap();
    assert!(
        collect_garbage(&*driver, GcOptions::default())
            .await
            .unwrap()
            .is_empty()
    );
    second.end().await.unwrap();
    assert_eq!(leftovers(&engine).await, 0);
}

#[tokio::test]
async fn a_slow_receiver_of_events_loses_none() {
    let engine = engine();
    let (sender, mut events) = mpsc::channel(1);
    let job = Arc::new(Job::builder(engine.driver()).events(sender).build());
    let running = tokio::spawn({
        let job = job.clone();
        async move { job.run(task("true")).await }
    });
    let mut kinds = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(5), events.recv()).await {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let last = matches!(event.kind, EventKind::TaskFinished { .. });
        kinds.push(event.kind);
        if last {
            break;
        }
    }
    assert!(running.await.unwrap().unwrap().exit.success());
    assert!(
        matches!(
            kinds[..],
            [
                EventKind::ContainerReady { .. },
                EventKind::TaskStarted,
                EventKind::TaskFinished { .. }
            ]
        ),
        "{kinds:?}"
    );
}
