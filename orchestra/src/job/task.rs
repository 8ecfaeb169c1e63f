//! A task: what runs, and what came of it.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::{Captured, OutputSink};
use crate::{
    ByteStream, ContainerId, ContainerPath, ContainerSpec, Credentials, Error, ErrorKind, ExitStatus, ImageRef,
    InjectedFile, Mount, Name, NetworkMode, PullPolicy, Result, VolumeId,
};

/// A container that runs to completion.
///
/// The setters cover what most tasks need; everything else an engine can be told is in [`spec`](Self::spec).
///
/// ```
/// use std::time::Duration;
/// use orchestra::Task;
/// let mut task = Task::new("test", "busybox:stable")?.shell("nproc && id").env("CI", "true").timeout(Duration::from_secs(60));
/// task.spec.limits.memory = Some(256 << 20);
/// # Ok::<(), orchestra::Error>(())
/// ```
pub struct Task {
    /// The task's name within its job.
    pub name: Name,
    /// The container. Relative mounts without a working directory get [`Task::WORKING_DIR`]; ownership labels are added when it runs.
    pub spec: ContainerSpec,
    pub(super) how: How,
    pub(super) io: Io,
}

/// How a task is run.
#[derive(Clone, Debug)]
pub(super) struct How {
    pub(super) pull: PullPolicy,
    pub(super) credentials: Option<Credentials>,
    pub(super) insecure: bool,
    pub(super) files: Vec<InjectedFile>,
    pub(super) timeout: Option<Duration>,
    pub(super) attempts: u32,
}

/// What a task's output and input are connected to; apart, as it can't be shared between threads.
#[derive(Default)]
pub(super) struct Io {
    pub(super) stdin: Option<Stdin>,
    pub(super) output: Option<Box<dyn OutputSink>>,
}

/// Where a task's standard input comes from.
pub(super) enum Stdin {
    /// What was not read yet.
    Once(Option<ByteStream>),
    /// Opened by each attempt.
    Anew(Box<dyn FnMut() -> ByteStream + Send>),
}

impl Stdin {
    /// An attempt's.
    pub(super) fn take(&mut self) -> Option<ByteStream> {
        match self {
            Self::Once(stream) => stream.take(),
            Self::Anew(open) => Some(open()),
        }
    }
}

impl Task {
    /// Where a task works that has relative mounts and says nothing else.
    pub const WORKING_DIR: &str = "/workspace";

    /// A task that runs the image's own command.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the name or the image's reference is not valid.
    pub fn new(name: impl AsRef<str>, image: impl AsRef<str>) -> Result<Self> {
        Ok(Self::with_image(
            Name::new(name.as_ref())?,
            ImageRef::new(image.as_ref())?,
        ))
    }

    /// A task of parts that are valid already.
    #[must_use]
    pub fn with_image(name: Name, image: ImageRef) -> Self {
        Self {
            name,
            spec: ContainerSpec::new(image),
            how: How {
                pull: PullPolicy::default(),
                credentials: None,
                insecure: false,
                files: Vec::new(),
                timeout: None,
                attempts: 1,
            },
            io: Io::default(),
        }
    }

    /// Runs this program with these arguments, whatever the image's entry point is.
    #[must_use]
    pub fn command<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.spec.entrypoint = Some(argv.into_iter().map(Into::into).collect());
        self.spec.command = None;
        self
    }

    /// Runs this script with the image's `sh`.
    #[must_use]
    pub fn shell(self, script: impl Into<String>) -> Self {
        self.command(["sh".to_owned(), "-c".to_owned(), script.into()])
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.env.0.insert(name.into(), value.into());
        self
    }

    /// Works in this directory, which must be absolute.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the path is not valid.
    pub fn working_dir(mut self, path: impl AsRef<str>) -> Result<Self> {
        self.spec.working_dir = Some(ContainerPath::new(path)?);
        Ok(self)
    }

    /// Runs as `USER[:GROUP]`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is not of that form.
    pub fn user(mut self, user: impl AsRef<str>) -> Result<Self> {
        self.spec.user = Some(user.as_ref().parse()?);
        Ok(self)
    }

    /// Mounts a volume, absolute or relative to the working directory.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the path is not valid.
    pub fn mount(self, volume: &VolumeId, target: impl AsRef<str>) -> Result<Self> {
        self.mount_with(volume, target, false)
    }

    /// Mounts a volume that the task can't write to.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the path is not valid.
    pub fn mount_read_only(self, volume: &VolumeId, target: impl AsRef<str>) -> Result<Self> {
        self.mount_with(volume, target, true)
    }

    fn mount_with(mut self, volume: &VolumeId, target: impl AsRef<str>, read_only: bool) -> Result<Self> {
        self.spec.mounts.push(Mount {
            volume: volume.clone(),
            target: ContainerPath::new(target)?,
            read_only,
        });
        Ok(self)
    }

    /// Runs with all privileges.
    #[must_use]
    pub fn privileged(mut self, privileged: bool) -> Self {
        self.spec.privileged = privileged;
        self
    }

    /// Connects it so.
    #[must_use]
    pub fn network(mut self, network: NetworkMode) -> Self {
        self.spec.network = network;
        self
    }

    /// Fetches the image by this policy.
    #[must_use]
    pub fn pull(mut self, policy: PullPolicy) -> Self {
        self.how.pull = policy;
        self
    }

    /// Pulls with these credentials.
    #[must_use]
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.how.credentials = Some(credentials);
        self
    }

    /// Permits plain HTTP and unverified TLS when pulling. Requires [`insecure_pull`](crate::Capabilities::insecure_pull).
    #[must_use]
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.how.insecure = insecure;
        self
    }

    /// Puts a small file into the container before it starts.
    #[must_use]
    pub fn file(mut self, file: InjectedFile) -> Self {
        self.how.files.push(file);
        self
    }

    /// Feeds standard input. Such a task has one attempt, as a stream can be read once.
    #[must_use]
    pub fn stdin(mut self, stdin: ByteStream) -> Self {
        self.io.stdin = Some(Stdin::Once(Some(stdin)));
        self.spec.stdin = true;
        self
    }

    /// Feeds standard input, which each attempt opens for itself.
    #[must_use]
    pub fn stdin_of(mut self, open: impl FnMut() -> ByteStream + Send + 'static) -> Self {
        self.io.stdin = Some(Stdin::Anew(Box::new(open)));
        self.spec.stdin = true;
        self
    }

    /// Ends each attempt that takes longer, pull included.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.how.timeout = Some(timeout);
        self
    }

    /// Tries up to so many times until it succeeds; at least once.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.how.attempts = attempts.max(1);
        self
    }

    /// Sends live output there.
    #[must_use]
    pub fn output(mut self, sink: impl OutputSink + 'static) -> Self {
        self.io.output = Some(Box::new(sink));
        self
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("name", &self.name)
            .field("spec", &self.spec)
            .field("how", &self.how)
            .finish_non_exhaustive()
    }
}

/// Where a task's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// Fetching the image.
    pub pull: Duration,
    /// Making the container and its files.
    pub create: Duration,
    /// From start to end.
    pub run: Duration,
    /// All of it, removal included.
    pub total: Duration,
}

/// How a task ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskResult {
    /// The task.
    pub name: Name,
    /// Its container; removed by now, unless the job is resumable.
    pub container: ContainerId,
    /// Which try this was, from 1.
    pub attempt: u32,
    /// How it ended.
    pub exit: ExitStatus,
    /// Its standard output.
    pub stdout: Captured,
    /// Its standard error.
    pub stderr: Captured,
    /// When it began.
    pub started: SystemTime,
    /// Where its time went.
    pub timings: Timings,
}

impl TaskResult {
    /// The result, if the task exited with code 0.
    ///
    /// # Errors
    /// [`ErrorKind::TaskFailed`] with the exit and the last lines of its output otherwise.
    pub fn success(self) -> Result<Self> {
        if self.exit.success() {
            return Ok(self);
        }
        let shown = if self.stderr.total() > 0 {
            &self.stderr
        } else {
            &self.stdout
        };
        let tail = shown.last_lines(20);
        let message = match tail.trim_end() {
            "" => self.exit.to_string(),
            tail => format!("{}; its last output:\n{tail}", self.exit),
        };
        Err(Error::new(ErrorKind::TaskFailed, message).with("task", &self.name))
    }
}
