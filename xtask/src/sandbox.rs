//! A set of daemons in namespaces of their own: network, mounts and processes.
//!
//! The network namespace keeps two dockerds from fighting over `docker0` and tests' traffic off the host; the mount
//! namespace undoes all mounts; the process namespace lets nothing outlive its first process, the
//! [`guard`](crate::guard). This module is the outside: it starts the guard, runs commands beside the
//! daemons, and ends it all by closing a pipe.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    folders::Folders,
    guard::{Daemon, Plan, RESTART},
    process, term,
    user::Cover,
};

/// All sandboxes that run, so that a signal can end them. See [`stop_all`].
static RUNNING: Mutex<Vec<Guard>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Guard {
    folders: Folders,
    process: Child,
    stop: Option<ChildStdin>,
}

impl Guard {
    /// Ends everything in the sandbox and waits until it is gone.
    fn stop(&mut self) {
        drop(self.stop.take());
        let cleaned = self.process.wait().is_ok_and(|status| status.success());
        // A guard that was killed could not do it; the kernel has killed all that lived in its namespaces.
        if !cleaned && let Err(error) = self.folders.remove(Instant::now() + Duration::from_secs(5)) {
            term::note(&format!("some of {} is left: {error:#}", self.folders.name));
        }
    }
}

/// A running sandbox; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    name: String,
    /// The process that owns the namespaces, outside of the process namespace.
    owner: u32,
    /// See [`Folders::program`].
    program: PathBuf,
    /// What the guard says.
    answers: Option<BufReader<ChildStdout>>,
}

impl Sandbox {
    /// Starts the daemons, each when the one before is ready.
    pub(crate) fn start(
        folders: Folders,
        rootfs: Option<PathBuf>,
        covers: Vec<Cover>,
        daemons: Vec<Daemon>,
    ) -> Result<Self> {
        let (name, program) = (folders.name.clone(), folders.program());
        let plan_file = folders.run.join("plan.json");
        let plan = Plan {
            folders: folders.clone(),
            rootfs,
            covers,
            daemons,
        };
        fs::write(&plan_file, serde_json::to_string_pretty(&plan)?)?;
        let mut process = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "--",
            ])
            .arg(&program)
            .arg("guard")
            .arg(&plan_file)
            // A Ctrl-C is for the command in the foreground, and for us to act upon.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start `unshare`")?;
        let owner = process.id();
        let answers = process.stdout.take().map(BufReader::new);
        let stop = process.stdin.take();
        running().push(Guard { folders, process, stop });
        let mut sandbox = Self {
            name,
            owner,
            program,
            answers,
        };
        if !sandbox.is_ready()? {
            bail!("the private daemons did not start");
        }
        Ok(sandbox)
    }

    /// Waits until the guard says that all is up, or ends.
    fn is_ready(&mut self) -> Result<bool> {
        let mut answer = String::new();
        if let Some(answers) = &mut self.answers {
            answers.read_line(&mut answer)?;
        }
        Ok(answer.trim() == "ready")
    }

    /// Kills the engine, and starts it again with all that it kept.
    pub(crate) fn restart_engine(&mut self) -> Result<()> {
        if let Some(guard) = running().iter_mut().find(|guard| guard.folders.name == self.name)
            && let Some(input) = &mut guard.stop
        {
            writeln!(input, "{RESTART}")?;
        }
        if !self.is_ready()? {
            bail!("the private engine did not start again");
        }
        Ok(())
    }

    /// A command that runs beside the daemons: it shares their network, sees their processes, and ends when they do.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = process::command(&self.program);
        command.args(["enter", &self.owner.to_string(), "--", program]);
        command
    }

    /// Does `work` on the sandbox's network.
    pub(crate) fn on_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.owner))?;
        thread::scope(|scope| {
            // Only this thread moves.
            let worker = scope.spawn(|| {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let mut guards = running();
        if let Some(index) = guards.iter().position(|guard| guard.folders.name == self.name) {
            guards.swap_remove(index).stop();
        }
    }
}

/// Ends all sandboxes, for when this process is about to be ended by a signal.
pub(crate) fn stop_all() {
    for mut guard in running().drain(..) {
        guard.stop();
    }
}

fn running() -> MutexGuard<'static, Vec<Guard>> {
    // A panic elsewhere does not make the list wrong.
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
