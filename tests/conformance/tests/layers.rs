//! Each layer on the in-memory driver, with faults below it where it has to meet some.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{join_all, pending};
use futures_util::{FutureExt, StreamExt, stream};
use orchestra::layer::{ConcurrencyLimit, Deadlines, ErrorContext, Fault, Faults, Layered, Method, Timeouts, Tracing};
use orchestra::{ContainerId, ContainerSpec, Driver, ErrorKind, JobId, SharedDriver, VolumeId, VolumePath, VolumeSpec};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use tokio::time::Instant;

fn memory() -> SharedDriver {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    engine.driver()
}

fn with_faults(faults: Faults) -> SharedDriver {
    Layered::wrap(memory(), faults)
}

fn short() -> Timeouts {
    let mut deadlines = Deadlines::default();
    deadlines.call = Duration::from_secs(1);
    deadlines.work = Duration::from_secs(2);
    deadlines.silence = Duration::from_secs(3);
    deadlines.heartbeat = Duration::from_secs(4);
    deadlines.ping = Duration::from_secs(1);
    Timeouts(deadlines)
}

fn id() -> ContainerId {
    ContainerId::new("c").unwrap()
}

fn volume() -> VolumeId {
    VolumeId::new("v").unwrap()
}

/// A started container that runs `script`.
async fn container(driver: &dyn Driver, script: &str) {
    let mut spec = ContainerSpec::new("busybox".parse().unwrap());
    spec.entrypoint = Some(["sh", "-c", script].map(str::to_owned).to_vec());
    driver.create_container(&id(), &spec).await.unwrap();
    driver.start_container(&id(), None).await.unwrap();
}

#[test]
fn a_stack_prints_itself() {
    assert_eq!(
        orchestra::layer::standard(memory()).to_string(),
        "tracing(context(timeout(memory)))"
    );
    let limited = Layered::wrap(Layered::wrap(memory(), Faults::new()), ConcurrencyLimit::new(3));
    assert_eq!(
        Layered::wrap(limited, Tracing).to_string(),
        "tracing(limit(faults(memory)))"
    );
}

#[tokio::test]
async fn each_call_is_traced_with_its_subject_its_time_and_its_end() {
    let written = Arc::new(Mutex::new(Vec::new()));
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_ansi(false)
        .with_writer(move || Log(writer.clone()))
        .finish();
    let traced = tracing_subscriber::util::SubscriberInitExt::set_default(subscriber);
    let driver = Layered::wrap(memory(), Tracing);
    driver.create_volume(&volume(), &VolumeSpec::default()).await.unwrap();
    driver.wait_container(&id()).await.unwrap_err();
    drop(traced);
    let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for (line, parts) in lines.into_iter().zip([
        ["method=\"create_volume\"", "subject=\"v\"", "done", "elapsed="],
        [
            "method=\"wait_container\"",
            "subject=\"c\"",
            "failed",
            "no such container",
        ],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
}

/// What a subscriber writes to.
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_error_names_method_driver_and_resource() {
    let driver = Layered::wrap(memory(), ErrorContext);
    let error = driver.wait_container(&id()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContainerNotFound);
    assert_eq!(
        error.to_string(),
        "memory: wait_container: container not found: no such container (container=c)"
    );
}

#[tokio::test]
async fn an_error_in_a_stream_has_its_context_too() {
    let cut = Faults::new().on(Method::Logs, Fault::CutStream(0, ErrorKind::Interrupted));
    let driver = Layered::wrap(with_faults(cut), ErrorContext);
    container(&*driver, "echo hi").await;
    let error = driver
        .logs(&id(), true)
        .await
        .unwrap()
        .next()
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory: logs: interrupted: injected fault (container=c)"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_at_its_deadline() {
    let driver = Layered::wrap(
        with_faults(Faults::new().on(Method::CreateVolume, Fault::Hang)),
        short(),
    );
    let began = Instant::now();
    let error = driver
        .create_volume(&volume(), &VolumeSpec::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), began.elapsed()),
        (ErrorKind::DeadlineExceeded, Duration::from_secs(1))
    );
    assert!(
        driver.create_volume(&volume(), &VolumeSpec::default()).await.is_ok(),
        "the next call works"
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_has_no_deadline_while_the_engine_lives() {
    let driver = Layered::wrap(memory(), short());
    container(&*driver, "sleep 3600; exit 5").await;
    assert_eq!(driver.wait_container(&id()).await.unwrap().code(), 5);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_when_the_engine_stops_to_answer() {
    let faults = Faults::new().on_calls(Method::Ping, 2, 1, Fault::Hang);
    let driver = Layered::wrap(with_faults(faults), short());
    container(&*driver, "sleep 3600").await;
    let began = Instant::now();
    let error = driver.wait_container(&id()).await.unwrap_err();
    // Two heartbeats are answered, the third is not.
    assert_eq!(
        (error.kind(), began.elapsed()),
        (ErrorKind::DeadlineExceeded, Duration::from_secs(13))
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_log_goes_on_while_the_engine_lives_and_ends_when_it_does_not() {
    let driver = Layered::wrap(
        with_faults(Faults::new().on_calls(Method::Ping, 1, 1, Fault::Hang)),
        short(),
    );
    container(&*driver, "sleep 6; echo late; sleep 3600").await;
    let mut logs = driver.logs(&id(), true).await.unwrap();
    assert_eq!(logs.next().await.unwrap().unwrap().bytes, "late\n");
    assert_eq!(
        logs.next().await.unwrap().unwrap_err().kind(),
        ErrorKind::DeadlineExceeded
    );
    assert!(logs.next().await.is_none(), "an error is a stream's last item");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_stops_moving_ends_and_one_that_moves_slowly_does_not() {
    let driver = Layered::wrap(
        with_faults(Faults::new().on(Method::ReadVolume, Fault::HangStream(0))),
        short(),
    );
    driver.create_volume(&volume(), &VolumeSpec::default()).await.unwrap();
    let stalled = stream::once(pending()).boxed();
    let error = driver
        .write_volume(&volume(), &VolumePath::root(), stalled)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let file = orchestra::InjectedFile::new("/a".parse().unwrap(), vec![0; 4096]);
    let tar = orchestra::tar_of_files(&[file]).await.unwrap();
    let pieces: Vec<_> = tar
        .chunks(512)
        .map(|piece| Ok(bytes::Bytes::copy_from_slice(piece)))
        .collect();
    let slow = stream::iter(pieces)
        .then(|piece| tokio::time::sleep(Duration::from_secs(2)).map(|()| piece))
        .boxed();
    driver.write_volume(&volume(), &VolumePath::root(), slow).await.unwrap();
    let mut read = driver.read_volume(&volume(), &[VolumePath::root()]).await.unwrap();
    assert_eq!(
        read.next().await.unwrap().unwrap_err().kind(),
        ErrorKind::DeadlineExceeded
    );
}

/// Counts how many calls are under way at once.
#[derive(Debug, Default, Clone)]
struct Busy {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl orchestra::layer::Hook for Busy {
    fn name(&self) -> &'static str {
        "busy"
    }

    async fn call<'a, T: Send + 'a>(
        &'a self,
        _driver: &'a SharedDriver,
        operation: &'a orchestra::layer::Operation,
        call: futures_util::future::BoxFuture<'a, orchestra::Result<T>>,
    ) -> orchestra::Result<T> {
        if operation.method != Method::List {
            return call.await;
        }
        self.most
            .fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        call.await
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_calls_than_the_limit_are_under_way_and_none_is_lost() {
    let busy = Busy::default();
    let driver = Layered::wrap(Layered::wrap(memory(), busy.clone()), ConcurrencyLimit::new(4));
    let results = join_all((0..50).map(|_| driver.list(None))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(busy.most.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_container_takes_no_place_from_others() {
    let driver = Layered::wrap(memory(), ConcurrencyLimit::new(1));
    container(&*driver, "sleep 60").await;
    let waiting = tokio::spawn({
        let driver = driver.clone();
        async move { driver.wait_container(&id()).await }
    });
    tokio::task::yield_now().await;
    driver.list(None).await.unwrap();
    assert!(waiting.await.unwrap().unwrap().success());
}

#[tokio::test]
async fn faults_come_when_they_are_planned_and_only_then() {
    let faults = Faults::new().on_calls(Method::Ping, 1, 2, Fault::Before(ErrorKind::Unreachable));
    let driver = with_faults(faults);
    let answers: Vec<bool> = stream::iter(0..4)
        .then(|_| driver.ping())
        .map(|answer| answer.is_ok())
        .collect()
        .await;
    assert_eq!(answers, [true, false, false, true]);
}

#[tokio::test]
async fn a_lost_answer_is_one_whose_effect_took_place() {
    let driver = with_faults(Faults::new().on(Method::CreateVolume, Fault::After(ErrorKind::Interrupted)));
    let job = JobId::new("j").unwrap();
    let labels = [(orchestra::labels::JOB.to_owned(), job.to_string())].into();
    assert!(driver.create_volume(&volume(), &VolumeSpec::new(labels)).await.is_err());
    assert_eq!(driver.list(Some(&job)).await.unwrap().len(), 1);
}
