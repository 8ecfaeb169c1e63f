//! The conformance suite on the engine that `cargo xtask e2e` started, through its own driver.
//!
//! `ORCHESTRA_TEST_DRIVER` names the driver; without it nothing is tried. `ORCHESTRA_TEST_THROWAWAY` is the command, as a
//! JSON list, that starts one more engine in a folder, which is its last argument; `ORCHESTRA_TEST_SMALL_DISK` is how
//! many bytes do not fit on that one's disk, if that is few.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "this is a test target's main function"
)]

use std::env;
use std::os::unix::net::UnixListener;
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use orchestra::{Error, ErrorKind, Result, SharedDriver};
use orchestra_conformance::{Settings, ThrowawayEngine};
use orchestra_e2e::KnownDriver;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex as AsyncMutex;

/// An engine that ends with its standard input.
struct Throwaway {
    driver: KnownDriver,
    folder: TempDir,
    pid: Mutex<Pid>,
    child: Child,
    /// Where it is told to start its engine again, and says that it has.
    talk: AsyncMutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Throwaway {
    async fn start(driver: KnownDriver, command: &[String]) -> Result<Self> {
        let failed = |error| Error::io("start an engine", error);
        let folder = TempDir::new().map_err(failed)?;
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| Error::invalid("ORCHESTRA_TEST_THROWAWAY is empty"))?;
        let mut child = Command::new(program)
            .args(arguments)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::invalid("an engine without pipes"));
        };
        let mut stdout = BufReader::new(stdout);
        let pid = Self::ready(&mut stdout, &folder).await?;
        Ok(Self {
            driver,
            folder,
            pid: Mutex::new(pid),
            child,
            talk: AsyncMutex::new(Some((stdin, stdout))),
        })
    }

    /// Waits until it says that it is ready; its process id.
    async fn ready(stdout: &mut BufReader<ChildStdout>, folder: &TempDir) -> Result<Pid> {
        let failed = |error| Error::io("start an engine", error);
        let mut said = String::new();
        stdout.read_line(&mut said).await.map_err(failed)?;
        let pid = std::fs::read_to_string(folder.path().join("engine.pid")).map_err(failed)?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.filter(|_| said.trim() == "ready");
        pid.ok_or_else(|| Error::new(ErrorKind::Engine, format!("the engine is not ready: it said {said:?}")))
    }

    fn pid(&self) -> Pid {
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid(), signal).map_err(|error| Error::io(format!("send {signal:?}"), error.into()))
    }
}

impl Throwaway {
    /// Whether all threads are in the state `T` of proc_pid_stat(5).
    fn stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid().as_raw_nonzero()))
            .into_iter()
            .flatten();
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')')
                .is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
        })
    }
}

#[async_trait]
impl ThrowawayEngine for Throwaway {
    async fn connect(&self) -> Result<SharedDriver> {
        let socket = self.folder.path().join("engine.sock");
        self.driver.connect(Some(format!("unix://{}", socket.display()))).await
    }

    async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    async fn restart(&self) -> Result<()> {
        let mut talk = self.talk.lock().await;
        let Some((stdin, stdout)) = talk.as_mut() else {
            return Err(Error::invalid("the engine has ended"));
        };
        let asked = stdin.write_all(b"restart\n").await;
        asked.map_err(|error| Error::io("start an engine again", error))?;
        let pid = Self::ready(stdout, &self.folder).await?;
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = pid;
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        // The signal's sender does not wait until the last thread has stopped.
        for _ in 0..500 {
            if self.stopped() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(Error::new(ErrorKind::Engine, "the engine does not stop"))
    }

    async fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        // One that is stopped can't be asked to end, and one that was killed needs no resuming.
        let _ = self.signal(Signal::CONT);
        drop(self.talk.get_mut().take());
        // It removes what it made, which takes a moment; only one that hangs is left behind.
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn main() -> ExitCode {
    let Some(driver) = KnownDriver::chosen() else {
        println!("skipped: ORCHESTRA_TEST_DRIVER names no driver that is known here; run this by `cargo xtask e2e`");
        return ExitCode::SUCCESS;
    };
    let mut settings = Settings::from_env().expect("settings in the environment");
    if let Ok(command) = env::var("ORCHESTRA_TEST_THROWAWAY") {
        let command: Vec<String> = serde_json::from_str(&command).expect("ORCHESTRA_TEST_THROWAWAY is a list");
        let command = Arc::new(command);
        settings.throwaway = Some(Arc::new(move || {
            let command = command.clone();
            Box::pin(async move { Ok(Box::new(Throwaway::start(driver, &command).await?) as Box<dyn ThrowawayEngine>) })
        }));
    }
    // docker's daemon takes its containers along, unless it is configured otherwise.
    settings.survives_restart = driver != KnownDriver::Docker;
    settings.small_disk = env::var("ORCHESTRA_TEST_SMALL_DISK")
        .ok()
        .and_then(|bytes| bytes.parse().ok());
    let nowhere = env::temp_dir().join(format!("no-engine-listens-here-{}.sock", std::process::id()));
    settings.unreachable = Some(Arc::new(move || {
        let host = format!("unix://{}", nowhere.display());
        Box::pin(driver.connect(Some(host)))
    }));
    // It takes connections, as many as the kernel keeps waiting, and nobody reads them.
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("silent.sock");
    let listener = Arc::new(UnixListener::bind(&path).expect("a socket"));
    settings.silent = Some(Arc::new(move || {
        let (host, listener) = (format!("unix://{}", path.display()), listener.clone());
        Box::pin(async move {
            let connected = driver.connect(Some(host)).await;
            drop(listener);
            connected
        })
    }));
    orchestra_conformance::main(settings, move || driver.connect(None))
}
