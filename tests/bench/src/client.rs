//! The engine's own command-line client, the other side of most pairs.

use std::process::Stdio;

use tokio::process::Command;

use crate::Outcome;

/// A client program and what it calls itself.
#[derive(Clone)]
pub(crate) struct Client {
    path: String,
    pub(crate) version: String,
}

impl Client {
    /// The distribution's client rather than the first one on the PATH, which may be of another generation.
    pub(crate) fn find() -> Outcome<Self> {
        let path = ["/usr/bin/docker", "docker"]
            .into_iter()
            .find(|path| !path.starts_with('/') || std::path::Path::new(path).exists());
        let path = path.unwrap_or("docker").to_owned();
        let version = std::process::Command::new(&path).arg("--version").output()?;
        let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
        Ok(Self { path, version })
    }

    /// The program, for a shell.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Runs it with these arguments, its output read and thrown away.
    pub(crate) async fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome<()> {
        succeed(Command::new(&self.path).args(args)).await
    }
}

/// Runs a command that has to succeed, its output read and thrown away.
pub(crate) async fn succeed(command: &mut Command) -> Outcome<()> {
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}
