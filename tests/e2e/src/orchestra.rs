//! The binary, run as a user runs it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::driver::CONTAINERD_STATE;
use crate::{Fixture, Result};

/// How long any run in the tests may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A command line that has not been started.
#[derive(Debug)]
pub struct Orchestra {
    command: Command,
    input: Vec<u8>,
    shown: String,
}

impl Orchestra {
    pub(crate) fn new<S: AsRef<OsStr>>(binary: &Path, args: impl IntoIterator<Item = S>) -> Self {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let mut command = Command::new(binary);
        // A test means what it says: nothing of the tester's own settings but the engine's address, its driver, and where
        // that keeps what is the engine's.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ORCHESTRA_") && name != CONTAINERD_STATE {
                command.env_remove(name);
            }
        }
        if let Some(driver) = std::env::var_os("ORCHESTRA_TEST_DRIVER") {
            command.env("ORCHESTRA_DRIVER", driver);
        }
        command
            .args(&args)
            .current_dir(Fixture::repository())
            .stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        Self {
            command,
            input: Vec::new(),
            shown: format!("orchestra {}", words.join(" ")),
        }
    }

    /// Runs it in this directory instead of the repository.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Leaves the choice of the driver to files and flags.
    #[must_use]
    pub fn any_driver(mut self) -> Self {
        self.command.env_remove("ORCHESTRA_DRIVER");
        self
    }

    /// Runs it as this user and group.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        use std::os::unix::process::CommandExt;
        self.command.uid(uid).gid(gid);
        self
    }

    /// What it reads.
    #[must_use]
    pub fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = text.into();
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it can't be started or takes longer than two minutes.
    #[must_use]
    pub fn run(self) -> Finished {
        self.start().finish()
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it can't be started.
    #[must_use]
    pub fn start(mut self) -> Running {
        let shown = self.shown;
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            // One that does not read its input may have closed it.
            stdin.write_all(&self.input).ok();
        }
        drop(stdin);
        let (line, lines) = channel();
        let stdout = child.stdout.take().map(|stdout| {
            std::thread::spawn(move || {
                let (mut stdout, mut all) = (BufReader::new(stdout), Vec::new());
                loop {
                    let start = all.len();
                    match stdout.read_until(b'\n', &mut all) {
                        Ok(0) | Err(_) => return all,
                        Ok(_) => line.send(String::from_utf8_lossy(&all[start..]).into_owned()).ok(),
                    };
                }
            })
        });
        let stderr = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                stderr.read_to_end(&mut all).ok();
                all
            })
        });
        Running {
            child,
            shown,
            lines,
            stdout,
            stderr,
            began: Instant::now(),
        }
    }

    /// The plain command, for a test that connects it to something else.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }
}

/// A process that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    lines: Receiver<String>,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    began: Instant,
}

impl Running {
    /// Its process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of standard output that holds `text`, and returns it.
    ///
    /// # Panics
    /// If it ends or a minute passes without one.
    #[must_use]
    pub fn line_with(&self, text: &str) -> String {
        let mut seen = String::new();
        let limit = Instant::now() + LIMIT / 2;
        loop {
            match self.lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push_str(&line),
                Err(why) => {
                    let why = if why == RecvTimeoutError::Timeout {
                        "said"
                    } else {
                        "ended without saying"
                    };
                    panic!("{}: never {why} {text:?}; it said:\n{seen}", self.shown)
                }
            }
        }
    }

    /// Sends a signal by its name: `INT`.
    ///
    /// # Panics
    /// If there is no `kill` command.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it takes longer than two minutes.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        let limit = self.began + LIMIT;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < limit => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) => {
                    self.child.kill().ok();
                    let text =
                        |reader: Option<JoinHandle<Vec<u8>>>| String::from_utf8_lossy(&join(reader)).into_owned();
                    panic!(
                        "{} did not end\n{}\n{}",
                        self.shown,
                        text(self.stdout.take()),
                        text(self.stderr.take())
                    );
                }
                Err(error) => panic!("{}: {error}", self.shown),
            }
        };
        Finished {
            shown: self.shown,
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            stdout: join(self.stdout),
            stderr: String::from_utf8_lossy(&join(self.stderr)).into_owned(),
            duration: self.began.elapsed(),
        }
    }
}

fn join(reader: Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
}

/// A process that has ended. Its `Display` is all that is known of it, for a failed test.
#[derive(Clone)]
pub struct Finished {
    shown: String,
    /// The exit code; 128 and its number for a signal, as a shell has it.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
    /// How long it ran.
    pub duration: Duration,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Both outputs.
    #[must_use]
    pub fn all(&self) -> String {
        self.stdout() + &self.stderr
    }

    /// The events of a run with `--json`.
    ///
    /// # Errors
    /// If a line is no JSON object.
    pub fn events(&self) -> Result<Vec<Value>> {
        let parse = |line: &str| match serde_json::from_str(line) {
            Ok(event @ Value::Object(_)) => Ok(event),
            Ok(other) => Err(format!("no object: {other}").into()),
            Err(error) => Err(format!("{error} in the line {line:?}").into()),
        };
        self.stdout().lines().map(parse).collect()
    }

    /// The value after `key: ` at the end of a line: what a build prints of `ref` and `digest`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<String> {
        let stdout = self.stdout();
        let found = stdout.lines().find_map(|line| line.split_once(&format!("{key}: ")));
        found.map(|(_, value)| value.trim().to_owned())
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            shown,
            code,
            duration,
            stderr,
            ..
        } = self;
        write!(
            f,
            "{shown}: exit code {code} after {duration:.1?}\nstdout:\n{}\nstderr:\n{stderr}",
            self.stdout()
        )
    }
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A directory with files, which is removed with it.
#[derive(Debug)]
pub struct Dir(tempfile::TempDir);

impl Dir {
    /// A directory with these files.
    ///
    /// # Panics
    /// If it can't be made.
    #[must_use]
    pub fn with<T: AsRef<[u8]>>(files: impl IntoIterator<Item = (&'static str, T)>) -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("make a directory: {error}"));
        let made = Self(dir);
        for (name, content) in files {
            made.write(name, content);
        }
        made
    }

    /// Adds a file.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        let parent = path.parent().unwrap_or(self.path());
        let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, content));
        written.unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where a file of it is.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}
