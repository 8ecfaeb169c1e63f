//! The inside of a [`sandbox`](crate::sandbox): the first process of its namespaces.
//!
//! It makes the mounts, starts the daemons one after the other and waits until each is ready, says `ready` on
//! its standard output, and then waits for its standard input to end; a line there says [`RESTART`], and is answered in the same
//! way. Whatever way its parent goes, by an error, a
//! panic, Ctrl-C or `kill -9`, that pipe closes. The guard then kills all that lives in the namespaces (it is
//! their process 1, so that is one call, and takes containers and their shims along), and removes the folders and
//! cgroups. Should the guard itself be killed, the kernel kills the rest of its process namespace, and undoes its mounts.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{self, Receiver, Sender, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::{engine, folders::Folders, mounts, process, term, user::Cover};

/// How long a daemon may take until it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The line that makes it kill the engine and start it again.
pub(crate) const RESTART: &str = "restart";

/// What a guard is to do; it is handed over as a JSON file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// A root file system to run the daemons in, in place of this machine's.
    pub(crate) rootfs: Option<PathBuf>,
    /// The folders that are the sandbox's own, and are removed at the end.
    pub(crate) folders: Folders,
    /// What the engine sees in place of the system's own files.
    pub(crate) covers: Vec<Cover>,
    pub(crate) daemons: Vec<Daemon>,
}

/// A program that runs as long as the sandbox does.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Daemon {
    pub(crate) name: String,
    pub(crate) argv: Vec<String>,
    /// Whether it belongs to the engine and runs in the plan's root file system, if there is one.
    pub(crate) in_rootfs: bool,
    pub(crate) ready: Ready,
}

/// How to see that a daemon is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ready {
    /// Something listens on this Unix socket.
    Socket(PathBuf),
    /// An engine answers on this Unix socket.
    Engine(PathBuf),
    /// Something listens on this TCP address.
    Tcp(String),
}

impl Ready {
    fn check(&self) -> bool {
        match self {
            Self::Socket(path) => UnixStream::connect(path).is_ok(),
            Self::Engine(path) => engine::answers(path),
            Self::Tcp(address) => std::net::TcpStream::connect(address).is_ok(),
        }
    }
}

/// Something that the guard reacts to.
enum Event {
    /// A child is gone: a daemon, or an orphan that the namespace's process 1 inherits.
    Exited(Pid, String),
    /// The parent wants the engine killed and started again.
    Restart,
    /// The parent is gone, or wants this to end.
    Stop,
}

/// Runs as the first process of a sandbox until its standard input ends.
pub(crate) fn main(plan: &Path) -> Result<ExitCode> {
    let plan: Plan = serde_json::from_slice(&fs::read(plan)?).context("the guard's plan is not readable")?;
    let (events, inbox) = mpsc::channel();
    watch_stdin(events.clone());
    // Held until the end of this process, see `Folders::lock`.
    let _lock = plan.folders.lock()?;
    let result = serve(&plan, events, &inbox);
    if let Err(error) = &result {
        term::error(error);
    }
    let cleaned = clean(&plan);
    if let Err(error) = &cleaned {
        term::error(error);
    }
    Ok(if result.is_ok() && cleaned.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Sets up and waits for the end.
fn serve(plan: &Plan, events: Sender<Event>, inbox: &Receiver<Event>) -> Result<()> {
    process::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    mounts::make(&plan.folders, plan.rootfs.as_deref(), &plan.covers).context("cannot make the sandbox's mounts")?;

    let mut running = HashMap::new();
    let mut reaper = None;
    for daemon in &plan.daemons {
        running.insert(start(plan, daemon, &running)?, daemon);
        // Waits for children of any kind, so it must not run before there is one, nor beside `Command::output`.
        reaper.get_or_insert_with(|| reap(events.clone()));
        if !await_ready(plan, daemon, &mut running, inbox)? {
            return Ok(());
        }
    }
    // The parent may be gone by now; that it is shows on standard input.
    let ready = || io::stdout().write_all(b"ready\n").and_then(|()| io::stdout().flush());
    let _ = ready();

    while let Ok(event) = inbox.recv() {
        match event {
            Event::Stop => break,
            Event::Restart => {
                // The last one of them is the engine, the others are what it stands on.
                let Some(engine) = plan.daemons.iter().rfind(|daemon| daemon.in_rootfs) else {
                    bail!("there is no engine to start again");
                };
                if !end(engine, &mut running, inbox)? {
                    break;
                }
                running.insert(start(plan, engine, &running)?, engine);
                if !await_ready(plan, engine, &mut running, inbox)? {
                    break;
                }
                let _ = ready();
            }
            Event::Exited(pid, how) => {
                if let Some(daemon) = running.remove(&pid) {
                    term::note(&format!("{} {how} while it was needed", daemon.name));
                }
            }
        }
    }
    Ok(())
}

/// Kills a daemon, if it runs; false when the sandbox is to stop before its end.
fn end(daemon: &Daemon, running: &mut HashMap<Pid, &Daemon>, inbox: &Receiver<Event>) -> Result<bool> {
    let is_it = |(pid, other): (&Pid, &&Daemon)| (other.name == daemon.name).then_some(*pid);
    while let Some(pid) = running.iter().find_map(is_it) {
        // Its end may be on its way to us already.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        match inbox.recv().context("nobody collects exits")? {
            Event::Exited(ended, _) => {
                running.remove(&ended);
            }
            Event::Stop => return Ok(false),
            Event::Restart => {}
        }
    }
    Ok(true)
}

/// Starts a command in the root file system that is its first argument. A `chroot` would not do: the containers' mount
/// namespaces would keep this machine's root as theirs, and whoever enters one later, as `runc exec` does, would be there
/// and not in the container; and who is in a chroot can make no user namespace (clone(2), `EPERM`).
const PIVOT: &str = r#"cd "$0" && pivot_root . mnt && cd / && umount -l /mnt && exec "$@""#;

fn start(plan: &Plan, daemon: &Daemon, running: &HashMap<Pid, &Daemon>) -> Result<Pid> {
    // Those that share the root file system share the mounts that they make in it.
    let neighbour = running.iter().find(|(_, other)| other.in_rootfs);
    let neighbour = neighbour.map(|(pid, _)| pid.as_raw_nonzero().to_string());
    let log = File::create(log_file(plan, daemon))?;
    let mut argv: Vec<&str> = daemon.argv.iter().map(String::as_str).collect();
    let rootfs = plan.rootfs.as_ref().map(|rootfs| rootfs.to_string_lossy());
    if let Some(rootfs) = rootfs.as_ref().filter(|_| daemon.in_rootfs) {
        let prefix: &[&str] = match &neighbour {
            Some(pid) => &["nsenter", "--target", pid, "--mount", "--"],
            None => &["unshare", "--mount", "sh", "-c", PIVOT, rootfs],
        };
        argv.splice(0..0, prefix.iter().copied());
    }
    let child = Command::new(argv[0])
        .args(&argv[1..])
        .env("PATH", process::path_with_sbin())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", daemon.name))?;
    Ok(Pid::from_child(&child))
}

/// Waits until a daemon is ready; false when the sandbox is to stop before that.
fn await_ready(
    plan: &Plan,
    daemon: &Daemon,
    running: &mut HashMap<Pid, &Daemon>,
    inbox: &Receiver<Event>,
) -> Result<bool> {
    let start = Instant::now();
    while !daemon.ready.check() {
        match inbox.try_recv() {
            Ok(Event::Stop) | Err(TryRecvError::Disconnected) => return Ok(false),
            Ok(Event::Exited(pid, how)) => {
                if let Some(dead) = running.remove(&pid) {
                    bail!(
                        "{} {how} while starting; the end of its log:\n{}",
                        dead.name,
                        tail(plan, dead)
                    );
                }
            }
            Ok(Event::Restart) | Err(TryRecvError::Empty) => {}
        }
        if start.elapsed() > START_TIMEOUT {
            let log = tail(plan, daemon);
            bail!(
                "{} was not ready after {START_TIMEOUT:?}; the end of its log:\n{log}",
                daemon.name
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(true)
}

fn log_file(plan: &Plan, daemon: &Daemon) -> PathBuf {
    plan.folders.run.join(format!("{}.log", daemon.name))
}

/// The last lines of a daemon's log.
fn tail(plan: &Plan, daemon: &Daemon) -> String {
    let log = fs::read(log_file(plan, daemon)).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

fn watch_stdin(events: Sender<Event>) {
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if line == RESTART {
                let _ = events.send(Event::Restart);
            }
        }
        let _ = events.send(Event::Stop);
    });
}

/// Collects the exits of all children: daemons, and the orphans that fall to process 1 (containers' shims).
fn reap(events: Sender<Event>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        // Ends when there are no children, which is after everything was killed.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::empty()) {
            let how = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exited with code {code}"),
                (None, Some(signal)) => format!("was killed by signal {signal}"),
                (None, None) => "ended".to_owned(),
            };
            let _ = events.send(Event::Exited(pid, how));
        }
    })
}

/// Leaves nothing behind: no process, no mount, no folder, no cgroup.
fn clean(plan: &Plan) -> Result<()> {
    // As process 1 of a process namespace, this reaches all of the namespace but ourselves.
    let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !alone()? && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    mounts::unmake(&plan.folders, plan.rootfs.as_deref())?;
    plan.folders.remove(deadline)
}

/// Whether this is the only process that is left in the process namespace.
fn alone() -> Result<bool> {
    let processes = fs::read_dir("/proc")?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .count();
    Ok(processes <= 1)
}
