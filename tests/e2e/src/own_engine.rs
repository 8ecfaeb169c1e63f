//! An engine of a test's own, beside the one under test.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{env, fs};

use orchestra::SharedDriver;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;

use crate::{KnownDriver, Result};

/// What a test wants one for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To kill it or to stop it: of the same kind as the one under test.
    Throwaway,
    /// To take something to it: of another kind, and able to build images.
    Other,
}

impl Purpose {
    fn variable(self) -> &'static str {
        match self {
            Self::Throwaway => "ORCHESTRA_TEST_THROWAWAY",
            Self::Other => "ORCHESTRA_TEST_OTHER",
        }
    }
}

/// What the variable holds, as JSON.
#[derive(Deserialize)]
struct Told {
    driver: String,
    command: Vec<String>,
}

/// An engine of its own, fresh, which reaches no network. It ends when this is dropped.
#[derive(Debug)]
pub struct OwnEngine {
    driver: KnownDriver,
    folder: TempDir,
    child: Child,
    said: Mutex<BufReader<ChildStdout>>,
}

impl OwnEngine {
    /// Whether `cargo xtask` said how one is started.
    #[must_use]
    pub fn is_given(purpose: Purpose) -> bool {
        env::var_os(purpose.variable()).is_some()
    }

    /// Starts it, and blocks until it is ready.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(purpose: Purpose) -> Result<Self> {
        let variable = purpose.variable();
        let told: Told = serde_json::from_str(&env::var(variable)?)?;
        let driver = KnownDriver::ALL.into_iter().find(|known| known.name() == told.driver);
        let driver = driver.ok_or(format!("the tests know no driver {:?}", told.driver))?;
        let (program, arguments) = told
            .command
            .split_first()
            .ok_or(format!("{variable} names no command"))?;
        let folder = TempDir::new()?;
        let mut child = Command::new(program)
            .args(arguments)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the engine has no output")?;
        let engine = Self {
            driver,
            folder,
            child,
            said: Mutex::new(BufReader::new(stdout)),
        };
        engine.ready()?;
        Ok(engine)
    }

    fn ready(&self) -> Result<()> {
        let mut said = String::new();
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read_line(&mut said)?;
        match said.trim() {
            "ready" => Ok(()),
            said => Err(format!("{} did not start: it said {said:?}", self.driver.name()).into()),
        }
    }

    /// Kills its daemon and starts it again; blocks until it is ready.
    ///
    /// # Errors
    /// If it does not start again.
    pub fn restart(&self) -> Result<()> {
        let mut stdin = self.child.stdin.as_ref().ok_or("the engine has ended")?;
        stdin.write_all(b"restart\n")?;
        self.ready()
    }

    /// Its daemon's process.
    ///
    /// # Errors
    /// If it has not told of it.
    pub fn pid(&self) -> Result<Pid> {
        let pid = fs::read_to_string(self.socket().with_extension("pid"))?;
        Ok(Pid::from_raw(pid.trim().parse()?).ok_or("the engine's process is 0")?)
    }

    /// Sends its daemon a signal.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid()?, signal)?)
    }

    /// Its driver.
    #[must_use]
    pub fn driver(&self) -> KnownDriver {
        self.driver
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("engine.sock")
    }

    /// Connects to it.
    ///
    /// # Errors
    /// Whatever its driver fails with.
    pub async fn connect(&self) -> orchestra::Result<SharedDriver> {
        self.driver
            .connect(Some(format!("unix://{}", self.socket().display())))
            .await
    }

    /// The variables that tell `orchestra` of it.
    ///
    /// # Errors
    /// If it has said too little of itself.
    pub fn variables(&self) -> Result<Vec<(String, String)>> {
        let address = match self.driver {
            KnownDriver::Containerd => self.socket().display().to_string(),
            KnownDriver::Docker | KnownDriver::Podman => format!("unix://{}", self.socket().display()),
        };
        let settings = fs::read_to_string(self.socket().with_extension("env"))?;
        let settings = settings.lines().filter_map(|line| line.split_once('='));
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok([
            ("ORCHESTRA_DRIVER".to_owned(), self.driver.name().to_owned()),
            (self.driver.host().0.to_owned(), address),
        ]
        .into_iter()
        .chain(settings)
        .collect())
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        // One that is stopped can't be asked to end, and one that was killed needs no resuming.
        let _ = self.signal(Signal::CONT);
        drop(self.child.stdin.take());
        // It removes what it made, which takes a moment; only one that hangs is left behind.
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
