//! What is podman's alone. What all drivers promise is tested by the conformance suite.
//!
//! Tests of a real engine run where `ORCHESTRA_TEST_DRIVER` is `podman` (`cargo xtask with --driver podman -- cargo test …`)
//! and else say why they do not.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends where it fails, and says what it skips"
)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use nix::sys::{ptrace, wait};
use orchestra::{ContainerId, ContainerSpec, Driver, ExitStatus, JobId, Labels, LogStream, NetworkMode, labels};
use orchestra_podman::{PodmanConfig, PodmanDriver};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

async fn driver() -> Option<PodmanDriver> {
    if std::env::var("ORCHESTRA_TEST_DRIVER").as_deref() != Ok("podman") {
        println!("skipped: ORCHESTRA_TEST_DRIVER is not podman");
        return None;
    }
    Some(PodmanDriver::connect(PodmanConfig::default()).await.unwrap())
}

/// What a process was called with, and its parent's number.
fn process(pid: u32) -> Option<(String, u32)> {
    let folder = Path::new("/proc").join(pid.to_string());
    let words = fs::read(folder.join("cmdline")).ok()?;
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
    Some((String::from_utf8_lossy(&words).replace('\0', " "), parent))
}

/// What a process calls itself, and its state as proc(5) has it.
fn itself(pid: u32) -> Option<(String, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once(" (")?.1.rsplit_once(") ")?;
    Some((name.to_owned(), rest.chars().next()?))
}

/// The processes of runc's that make the container of this name.
fn init_of(name: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let makes = |pid: &u32| {
        let (_, create) = process(*pid).filter(|(words, _)| words.starts_with("runc init"))?;
        let (creating, conmon) = process(create)?;
        Some(creating.contains(" create ") && process(conmon)?.0.contains(name))
    };
    pids.filter(|pid| makes(pid) == Some(true)).collect()
}

/// Kills a process of runc's before it is the container's own, as which it has another name. It is stopped first, so that
/// it can't become that meanwhile.
fn kill_early(pid: u32) -> bool {
    let Some(process) = Pid::from_raw(pid.cast_signed()) else {
        return false;
    };
    if kill_process(process, Signal::STOP).is_err() {
        return false;
    }
    while let Some((name, state)) = itself(pid) {
        if state == 'T' {
            let early = !name.contains("INIT");
            let signal = if early { Signal::KILL } else { Signal::CONT };
            return kill_process(process, signal).is_ok() && early;
        }
        if name.contains("INIT") || state == 'Z' {
            break;
        }
    }
    kill_process(process, Signal::CONT).ok();
    false
}

/// Kills one such process, unless it is told to stop before; whether it did.
fn kill_init(name: String, stop: Arc<AtomicBool>) -> JoinHandle<bool> {
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            if init_of(&name).into_iter().any(kill_early) {
                return true;
            }
        }
        false
    })
}

/// What an engine of a test's own runs; a user's own podman may have other programs, and what it runs is left alone.
async fn own_engine() -> Option<PodmanDriver> {
    if std::env::var("ORCHESTRA_TEST_ENGINE").as_deref() == Ok("host") {
        println!("skipped: it would stop a process of an engine that is not the test's");
        return None;
    }
    driver().await
}

/// A container of a job that is labelled.
fn spec_of(job: &JobId, words: &[&str]) -> ContainerSpec {
    let mut spec = ContainerSpec::new(std::env::var("ORCHESTRA_TEST_IMAGE").unwrap().parse().unwrap());
    spec.entrypoint = Some(words.iter().map(|word| (*word).to_owned()).collect());
    spec.labels = Labels::from([(labels::JOB.to_owned(), job.to_string())]);
    spec.network = NetworkMode::None;
    spec
}

/// All of a container's output, of both streams.
async fn output(logs: LogStream) -> orchestra::Result<Vec<u8>> {
    let pieces: Vec<Bytes> = logs.map_ok(|chunk| chunk.bytes).try_collect().await?;
    Ok(pieces.concat())
}

/// Has libpod prepare a container and not start it: its conmon waits then.
fn prepare(name: &str) {
    let host = std::env::var("CONTAINER_HOST").unwrap();
    let mut socket = UnixStream::connect(host.strip_prefix("unix://").unwrap()).unwrap();
    write!(socket, "POST /v4.0.0/libpod/containers/{name}/init HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 204"), "{answer}");
}

/// The conmon that watches over the container of this name.
fn conmon_of(name: &str) -> u32 {
    let entries = fs::read_dir("/proc").unwrap();
    let mut pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let watches = |pid: &u32| process(*pid).is_some_and(|(words, _)| words.contains("conmon") && words.contains(name));
    pids.find(watches).unwrap()
}

/// Holds a process where it has just learned of a signal by poll(2) and of nothing else, as long as the answer is kept.
fn held_after_poll(pid: u32) -> mpsc::Sender<()> {
    let (held, is_held) = mpsc::channel();
    let (keep, dropped) = mpsc::channel::<()>();
    // The tracer of a process is a thread.
    std::thread::spawn(move || {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        let stops = || wait::waitpid(pid, None).unwrap();
        ptrace::attach(pid).unwrap();
        stops();
        // To where poll begins anew, and to where it ends.
        ptrace::syscall(pid, None).unwrap();
        stops();
        ptrace::syscall(pid, None).unwrap();
        kill_process(Pid::from_raw(pid.as_raw()).unwrap(), Signal::CHILD).unwrap();
        stops();
        held.send(()).unwrap();
        dropped.recv().unwrap_err();
        ptrace::detach(pid, None).unwrap();
    });
    is_held.recv().unwrap();
    keep
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_a_container_whose_conmon_had_no_turn_while_it_ran_is_read_from_its_log() {
    let Some(driver) = own_engine().await else {
        return;
    };
    let job = JobId::unique();
    let spec = spec_of(&job, &["sh", "-c", "echo out; exit 19"]);
    let id = ContainerId::new(format!("orchestra.{job}.unattached")).unwrap();
    driver.create_container(&id, &spec).await.unwrap();
    prepare(id.as_str());
    let pid = conmon_of(id.as_str());
    let held = held_after_poll(pid);
    let reading = tokio::spawn(output(driver.logs(&id, true).await.unwrap()));
    driver.start_container(&id, None).await.unwrap();
    // Its process has ended when conmon is the parent of one that is not reaped.
    let ended = || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children
            .split_whitespace()
            .any(|child| itself(child.parse().unwrap()).is_some_and(|(_, state)| state == 'Z'))
    };
    let ends = async {
        while !ended() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), ends).await.unwrap();
    drop(held);
    assert_eq!(String::from_utf8(reading.await.unwrap().unwrap()).unwrap(), "out\n");
    assert_eq!(driver.wait_container(&id).await.unwrap(), ExitStatus::Code(19));
    driver.end_job(&job).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_runtime_died_before_it_ran_is_started_and_read_all_the_same() {
    let Some(driver) = own_engine().await else {
        return;
    };
    let job = JobId::unique();
    let spec = spec_of(&job, &["seq", "50000"]);
    // As much as shows whether a reader who is slower gets all of it.
    let whole: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
    let mut killed = Vec::new();
    // It is at work for some tens of milliseconds: to look for it may come too late.
    for number in 0..50 {
        let id = ContainerId::new(format!("orchestra.{job}.{number}.whole")).unwrap();
        driver.create_container(&id, &spec).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let killing = kill_init(id.to_string(), stop.clone());
        // It is prepared to be attached to, or only to be started.
        let attaches = killed.is_empty();
        let reading = match attaches {
            true => Some(tokio::spawn(output(driver.logs(&id, true).await.unwrap()))),
            false => None,
        };
        stop.store(attaches, Ordering::Relaxed);
        driver.start_container(&id, None).await.unwrap();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(driver.wait_container(&id).await.unwrap(), ExitStatus::Code(0));
        let read = match reading {
            Some(reading) => reading.await.unwrap(),
            None => output(driver.logs(&id, false).await.unwrap()).await,
        };
        let read = read.unwrap();
        assert!(read == whole.as_bytes(), "{} bytes of {}", read.len(), whole.len());
        if killing.join().unwrap() {
            killed.push(attaches);
        }
        if killed.len() == 2 {
            break;
        }
    }
    driver.end_job(&job).await.unwrap();
    assert_eq!(killed, [true, false], "runc was not at work when it was looked for");
}
