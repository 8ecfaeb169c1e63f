//! The engine's own command-line client, the other side of most pairs.

use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};

use orchestra::ImageRef;
use orchestra_e2e::KnownDriver;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::Outcome;

/// A client program and what it calls itself.
#[derive(Clone)]
pub(crate) struct Client {
    driver: KnownDriver,
    words: Vec<String>,
    pub(crate) version: String,
}

impl Client {
    /// The client that `ORCHESTRA_TEST_CLIENT` tells, as a JSON list of words, which finds the engine that is measured; of a
    /// user's own engine the distribution's, rather than the first one on the PATH, which may be of another generation.
    pub(crate) fn find(driver: KnownDriver) -> Outcome<Self> {
        let words = match std::env::var("ORCHESTRA_TEST_CLIENT") {
            Ok(words) => serde_json::from_str(&words)?,
            Err(_) => {
                let name = match driver {
                    KnownDriver::Docker => "docker",
                    KnownDriver::Podman => "podman",
                    KnownDriver::Containerd => "ctr",
                };
                let own = format!("/usr/bin/{name}");
                let there = std::path::Path::new(&own).exists();
                vec![if there { own } else { name.to_owned() }]
            }
        };
        let mut client = Self {
            driver,
            words,
            version: String::new(),
        };
        let version = client.std(["--version"]).output()?;
        String::from_utf8_lossy(&version.stdout)
            .trim()
            .clone_into(&mut client.version);
        Ok(client)
    }

    fn std<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> std::process::Command {
        let mut words = self.words.iter();
        let mut command = std::process::Command::new(words.next().map_or("", String::as_str));
        command.args(words).args(args);
        command
    }

    /// What it is called in a table: `docker run --rm`.
    pub(crate) fn run_name(&self) -> String {
        let name = match self.driver {
            KnownDriver::Containerd => "ctr",
            driver => driver.name(),
        };
        format!("{name} run --rm")
    }

    /// What imports an archive.
    pub(crate) fn load_name(&self) -> &str {
        match self.driver {
            KnownDriver::Docker => "docker load",
            KnownDriver::Podman => "podman load",
            KnownDriver::Containerd => "ctr images import",
        }
    }

    /// Whether it knows this command, which docker's client has.
    pub(crate) fn has_logs(&self) -> bool {
        self.driver != KnownDriver::Containerd
    }

    /// The arguments that run a program in a container of its own and remove that. `options` are the client's own.
    pub(crate) fn run_args(&self, image: &str, options: &[&str], program: &[&str]) -> Outcome<Vec<String>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        Ok(match self.driver {
            KnownDriver::Docker | KnownDriver::Podman => {
                [words(&["run", "--rm"]), words(options), words(&[image]), words(program)].concat()
            }
            KnownDriver::Containerd => {
                let id = format!("bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
                let image = image.parse::<ImageRef>()?.canonical();
                [
                    words(&["run", "--rm"]),
                    words(options),
                    words(&[&image, &id]),
                    words(program),
                ]
                .concat()
            }
        })
    }

    /// Runs a program in a container of its own.
    pub(crate) async fn task(&self, image: &str, options: &[&str], program: &[&str]) -> Outcome<()> {
        self.run(self.run_args(image, options, program)?).await
    }

    /// Runs a program in so many containers of their own at once, as a shell script would.
    pub(crate) async fn tasks(&self, count: usize, image: &str, program: &[&str]) -> Outcome<()> {
        let mut run = self.run_args(image, &[], program)?;
        if self.driver == KnownDriver::Containerd {
            // Each container's id is the client's to choose; it stands before the program.
            if let Some(id) = run.iter_mut().rev().nth(program.len()) {
                id.push_str("-{}");
            }
        }
        let script = format!("seq {count} | xargs -P {count} -I {{}} \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).args(&self.words).args(run);
        succeed(&mut command).await
    }

    /// Runs it with these arguments, its output read and thrown away.
    pub(crate) async fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome<()> {
        succeed(&mut self.std(args).into()).await
    }
}

/// Runs a command that has to succeed, its output read and thrown away.
pub(crate) async fn succeed(command: &mut Command) -> Outcome<()> {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut told, mut sink) = (Vec::new(), tokio::io::sink());
    // A client may write a gigabyte.
    let output = async {
        match &mut stdout {
            Some(stdout) => tokio::io::copy(stdout, &mut sink).await,
            None => Ok(0),
        }
    };
    let errors = async {
        match &mut stderr {
            Some(stderr) => stderr.read_to_end(&mut told).await,
            None => Ok(0),
        }
    };
    let (output, errors, status) = tokio::join!(output, errors, child.wait());
    output?;
    errors?;
    let status = status?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{command:?} ended with {status}: {}", String::from_utf8_lossy(&told)).into())
}
