//! An engine of another kind than the one under test.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use orchestra::SharedDriver;
use serde_json::Value;
use tempfile::TempDir;

use crate::{KnownDriver, Result};

/// A list of words, and the driver's name, as JSON.
const VARIABLE: &str = "ORCHESTRA_TEST_OTHER";

/// An engine of its own, fresh, which can build images and reaches no network. It ends when this is dropped.
#[derive(Debug)]
pub struct Other {
    driver: KnownDriver,
    folder: TempDir,
    child: Child,
}

impl Other {
    /// Whether `cargo xtask` said how one is started.
    #[must_use]
    pub fn is_given() -> bool {
        env::var_os(VARIABLE).is_some()
    }

    /// Starts it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start() -> Result<Self> {
        let told: Value = serde_json::from_str(&env::var(VARIABLE)?)?;
        let name = told["driver"].as_str().unwrap_or_default();
        let driver = KnownDriver::ALL.into_iter().find(|known| known.name() == name);
        let words: Vec<&str> = told["command"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let (program, arguments) = words.split_first().ok_or(format!("{VARIABLE} names no command"))?;
        let folder = TempDir::new()?;
        let child = Command::new(program)
            .args(arguments)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut other = Self {
            driver: driver.ok_or(format!("the tests know no driver {name:?}"))?,
            folder,
            child,
        };
        let mut said = String::new();
        if let Some(stdout) = other.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        match said.trim() {
            "ready" => Ok(other),
            said => Err(format!("the {name} of its own did not start: it said {said:?}").into()),
        }
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
    pub async fn connect(&self) -> Result<SharedDriver> {
        Ok(self
            .driver
            .connect(Some(format!("unix://{}", self.socket().display())))
            .await?)
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

impl Drop for Other {
    fn drop(&mut self) {
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
