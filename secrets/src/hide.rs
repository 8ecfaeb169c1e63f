//! Secrets that reach a process without standing in the engine's records.
//!
//! A small static program of ours becomes the entry point. It reads names and values from its standard input, before
//! anybody else does; puts files with mode 0400 onto file systems in memory; and executes the real program with the
//! variables in its environment. Nothing of it is on a disk, in an argument, or in what the engine shows. The rest of the
//! input is the real program's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::{BufMut, Bytes};
use futures_util::StreamExt;
use orchestra::{
    ByteStream, ContainerPath, ContainerSpec, DriverInfo, Error, ErrorKind, InjectedFile, Result, Task, Tmpfs,
};

use crate::files::zeroed;
use crate::{SecretKey, SecretValue};

/// A container whose secret variables are hidden from the engine.
const ENV: &str = "dev.orchestra.secret-env";
const HIDDEN: &str = "hidden";
/// The paths of a container's secret files, one a line.
const FILES: &str = "dev.orchestra.secret-files";
/// Where the program stands in the container.
const PROGRAM: &str = "/.orchestra-init";

/// What a task says of its secrets.
pub trait TaskSecrets: Sized {
    /// Hides variables that are `secret:KEY`, or hold a secret of the job, from the engine: they reach the process alone, and
    /// `inspect` does not show them. The task has to say its command, since it is started by a program of ours; an image that lacks the program it
    /// names then exits with 127 instead of being refused.
    #[must_use]
    fn hide_secret_env(self) -> Self;

    /// Puts a secret at an absolute path, with mode 0400 for the task's user. Its directory becomes a file system in
    /// memory, where the engine can and the task says its command: it has to be one for secrets alone. Else the file is
    /// in the container's own layer, belongs to root or the number of the task's user, and goes with it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the path is not absolute, or its directory can't be one for secrets alone.
    fn secret_file(self, path: impl AsRef<str>, key: &SecretKey) -> Result<Self>;
}

impl TaskSecrets for Task {
    fn hide_secret_env(mut self) -> Self {
        self.spec.labels.insert(ENV.to_owned(), HIDDEN.to_owned());
        self
    }

    fn secret_file(mut self, path: impl AsRef<str>, key: &SecretKey) -> Result<Self> {
        let path = ContainerPath::new(path)?;
        check_path(&path)?;
        let paths = self.spec.labels.entry(FILES.to_owned()).or_default();
        paths.push_str(path.as_str());
        paths.push('\n');
        let mut file = InjectedFile::new(path, format!("secret:{key}"));
        file.mode = 0o400;
        Ok(self.file(file))
    }
}

/// Whether a secret can be put there.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] saying why not.
pub fn check_path(path: &ContainerPath) -> Result<()> {
    let hint = "choose a directory that holds secrets alone, for example /run/secrets/NAME";
    if !path.is_absolute() {
        return Err(Error::invalid(format!("the secret's path {path} is not absolute")).with_hint(hint));
    }
    let parent = parent(path.as_str());
    let own = [
        "/dev/shm",
        "/etc/ssl",
        "/run/lock",
        "/usr/bin",
        "/usr/lib",
        "/usr/lib64",
        "/usr/local",
        "/usr/sbin",
        "/usr/share",
        "/var/cache",
        "/var/lib",
        "/var/log",
        "/var/run",
        "/var/tmp",
        Task::WORKING_DIR,
    ];
    // A directory at the top, or of the system: a file system over it would hide what the image has there.
    if parent.matches('/').count() < 2
        || own.contains(&parent)
        || ["/proc/", "/sys/"].iter().any(|of| parent.starts_with(of))
    {
        return Err(Error::invalid(format!(
            "the secret's path {path} is in {parent}, which holds other files too"
        ))
        .with_hint(hint));
    }
    Ok(())
}

fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

/// User and group, where both are numbers.
pub(crate) fn numbers(user: &str) -> Option<(u32, u32)> {
    let (user, group) = user.split_once(':').unwrap_or((user, user));
    Some((user.parse().ok()?, group.parse().ok()?))
}

/// What a container is told at its start.
#[derive(Default)]
pub(crate) struct Hidden {
    paths: BTreeSet<String>,
    /// By kind and name: who writes a file again means the same one.
    entries: BTreeMap<(u8, String), SecretValue>,
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hidden({})", self.entries.len())
    }
}

impl Hidden {
    /// Whether the file goes by this way.
    pub(crate) fn takes(&self, path: &ContainerPath) -> bool {
        self.paths.contains(path.as_str())
    }

    /// A file that is made at the start.
    pub(crate) fn file(&mut self, path: &str, value: &SecretValue) {
        self.entries.insert((b'f', path.to_owned()), value.clone());
    }

    fn variable(&mut self, name: &str, value: String) {
        self.entries.insert((b'e', name.to_owned()), SecretValue::new(value));
    }

    /// Standard input with all this before it.
    pub(crate) fn before(&self, stdin: Option<ByteStream>) -> ByteStream {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let sizes = self
            .entries
            .iter()
            .map(|((_, name), value)| name.len() + value.expose().len() + 9);
        // With room for all of it: a vector that grows leaves its bytes behind.
        let mut frame = Vec::with_capacity(sizes.sum::<usize>() + 4);
        frame.put_u32(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        for ((kind, name), value) in &self.entries {
            frame.put_u8(*kind);
            for text in [name.as_bytes(), value.expose()] {
                frame.put_u32(length(text));
                frame.extend_from_slice(text);
            }
        }
        let first = orchestra::stream::once(zeroed(frame));
        match stdin {
            Some(stdin) => first.chain(stdin).boxed(),
            None => first,
        }
    }
}

/// Whether variables that hold secrets are to be hidden.
pub(crate) fn hides_env(spec: &ContainerSpec) -> bool {
    spec.labels.get(ENV).is_some_and(|how| how == HIDDEN)
}

/// Makes the spec start by our program, if it says that it has something to hide; `secret` are the variables that hold
/// secrets.
pub(crate) fn prepare(spec: &mut ContainerSpec, secret: &[String], info: &DriverInfo) -> Result<Option<Hidden>> {
    let hides_env = hides_env(spec) && !secret.is_empty();
    let paths = spec
        .labels
        .get(FILES)
        .map(|paths| paths.lines().map(str::to_owned).collect::<BTreeSet<_>>());
    let paths = paths.unwrap_or_default();
    if !hides_env && paths.is_empty() {
        return Ok(None);
    }
    let lacks = match () {
        () if spec.entrypoint.is_none() => Some("the task says no command, and the image's own is not known"),
        () if !info.capabilities.stdin => Some("the engine lacks stdin"),
        () if binary(spec, info).is_none() => Some("there is no start program for the container's processor"),
        () => None,
    };
    if let Some(lacks) = lacks {
        if hides_env {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("secret variables can't be hidden: {lacks}"),
            )
            .with_hint("give the task a command, or leave out `secret_env: hidden`"));
        }
        return Ok(None);
    }
    let mut hidden = Hidden::default();
    if info.capabilities.tmpfs {
        add_tmpfs(spec, &paths)?;
        hidden.paths = paths;
    }
    if hides_env {
        for name in secret {
            if let Some(value) = spec.env.0.remove(name) {
                hidden.variable(name, value);
            }
        }
    }
    if !hides_env && hidden.paths.is_empty() {
        return Ok(None);
    }
    let own = [PROGRAM.to_owned(), "init".to_owned()].into_iter();
    let argv = spec.entrypoint.take().into_iter().chain(spec.command.take()).flatten();
    spec.entrypoint = Some(own.chain(argv).collect());
    spec.stdin = true;
    Ok(Some(hidden))
}

fn add_tmpfs(spec: &mut ContainerSpec, paths: &BTreeSet<String>) -> Result<()> {
    let parents: BTreeSet<&str> = paths.iter().map(|path| parent(path)).collect();
    for dir in parents {
        let covers = |target: &str| target == dir || dir.starts_with(&format!("{target}/"));
        let mut is_there = false;
        for tmpfs in &spec.tmpfs {
            is_there |= covers(&spec.resolve(&tmpfs.target)?);
        }
        for mount in &spec.mounts {
            let target = spec.resolve(&mount.target)?;
            if covers(&target) || target.starts_with(&format!("{dir}/")) {
                return Err(Error::invalid(format!(
                    "the secrets' directory {dir} and the mount at {target} hide each other"
                ))
                .with_hint("choose a directory that holds secrets alone, for example /run/secrets"));
            }
        }
        if !is_there {
            spec.tmpfs.push(Tmpfs {
                target: ContainerPath::new(dir)?,
                size: None,
            });
        }
    }
    Ok(())
}

/// The start program as a file of the container.
pub(crate) fn program(info: &DriverInfo) -> Result<InjectedFile> {
    let binary = orchestra_helper::program(architecture(&info.platform.architecture));
    let binary =
        binary.ok_or_else(|| Error::new(ErrorKind::Unsupported, "there is no start program for this processor"))?;
    let mut file = InjectedFile::new(ContainerPath::new(PROGRAM)?, Bytes::from_static(binary));
    file.mode = 0o555;
    Ok(file)
}

fn binary(spec: &ContainerSpec, info: &DriverInfo) -> Option<&'static [u8]> {
    let own = &info.platform.architecture;
    let asked = spec.platform.as_ref().map_or(own, |platform| &platform.architecture);
    (asked == own)
        .then(|| orchestra_helper::program(architecture(own)))
        .flatten()
}

/// From Go's name of a processor to Rust's.
fn architecture(go: &str) -> &str {
    match go {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "386" => "x86",
        "ppc64le" => "powerpc64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn a_file_that_is_written_twice_is_told_once() {
        let mut hidden = Hidden::default();
        hidden.file("/s/a", &"first".into());
        hidden.file("/s/a", &"second".into());
        hidden.variable("A", "x".to_owned());
        let told: Vec<Bytes> = hidden.before(None).try_collect().await.unwrap();
        let expected = [
            &[0, 0, 0, 2][..],
            b"e\0\0\0\x01A\0\0\0\x01x",
            b"f\0\0\0\x04/s/a\0\0\0\x06second",
        ];
        assert_eq!(told.concat(), expected.concat());
    }
}
