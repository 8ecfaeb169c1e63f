//! What a case works with: a driver, a job of its own, and short ways to do what most cases do.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use orchestra::{
    ByteStream, ContainerId, ContainerPath, ContainerSpec, Created, ExecEvent, ExecStream, ExitStatus, ImageRef, JobId,
    Labels, LogStream, Mount, Name, NetworkMode, OutputStream, Resource, ResourceKind, SharedDriver, VolumeId,
    VolumeSpec, labels,
};

use crate::check::{Failure, Outcome, holds, same, within};
use crate::settings::{Connect, Settings};

/// What `collect` keeps at most: output of this size is a case's mistake.
const MAX_OUTPUT: usize = 16 << 20;

/// One case's surroundings.
pub struct Context {
    /// A driver of the case's own.
    pub driver: SharedDriver,
    /// The job that all it makes is labelled with.
    pub job: JobId,
    /// What the suite was told.
    pub settings: Settings,
    /// Makes further drivers.
    pub connect: Connect,
    /// What carries no label of the job and is to be removed at the end.
    pub(crate) unlabelled: Mutex<Vec<Unlabelled>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("driver", &self.driver)
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

/// What ending a job does not remove.
#[derive(Debug)]
pub(crate) enum Unlabelled {
    Image(ImageRef),
    Container(ContainerId),
    Volume(VolumeId),
}

/// How a container ended and what it wrote.
#[derive(Debug, PartialEq)]
pub(crate) struct Ran {
    pub(crate) exit: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The two streams, apart.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Written {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Written {
    pub(crate) fn add(&mut self, stream: OutputStream, bytes: &[u8]) -> Outcome {
        let to = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        to.extend_from_slice(bytes);
        holds(to.len() <= MAX_OUTPUT, "more output than was written")
    }
}

/// Reads a log to its end.
pub(crate) async fn collect(mut logs: LogStream) -> Outcome<Written> {
    let mut written = Written::default();
    while let Some(chunk) = logs.next().await {
        let chunk = chunk?;
        written.add(chunk.stream, &chunk.bytes)?;
    }
    Ok(written)
}

/// Reads an exec to its end: its output and its exit, which has to be its last item.
pub(crate) async fn collect_exec(mut events: ExecStream) -> Outcome<(Written, ExitStatus)> {
    let (mut written, mut exit) = (Written::default(), None);
    while let Some(event) = events.next().await {
        let event = event?;
        holds(exit.is_none(), format!("{event:?} came after the exit"))?;
        match event {
            ExecEvent::Output(chunk) => written.add(chunk.stream, &chunk.bytes)?,
            ExecEvent::Exit(status) => exit = Some(status),
            other => return Err(Failure::new(format!("{other:?} is not known to the suite"))),
        }
    }
    Ok((
        written,
        exit.ok_or_else(|| Failure::new("the exec ended without an exit"))?,
    ))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn name(name: &str) -> Name {
    Name::new(name).unwrap_or_else(|error| unreachable!("the suite's own names are valid: {error}"))
}

impl Context {
    /// The id of this case's container `name`.
    pub(crate) fn id(&self, task: &str) -> ContainerId {
        self.job.container(&name(task), 1)
    }

    /// The id of this case's volume `name`.
    pub(crate) fn volume_id(&self, volume: &str) -> VolumeId {
        self.job.volume(&name(volume))
    }

    pub(crate) fn labels(&self) -> Labels {
        Labels::from([(labels::JOB.to_owned(), self.job.to_string())])
    }

    /// A name for an image that only this case has; it is removed at the end.
    pub(crate) fn image(&self, tag: &str) -> ImageRef {
        let image = ImageRef::new(format!("conformance.test/{}:{tag}", self.job))
            .unwrap_or_else(|error| unreachable!("the suite's own names are valid: {error}"));
        self.remove_later(Unlabelled::Image(image.clone()));
        image
    }

    /// Has something removed at the end that ending the job does not.
    pub(crate) fn remove_later(&self, what: Unlabelled) {
        self.unlabelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
    }

    /// Another job, whose name starts as this one's does; it is ended at the end, too.
    pub(crate) fn other_job(&self) -> JobId {
        JobId::new(format!("{}-other", self.job)).unwrap_or_else(|error| unreachable!("it is short: {error}"))
    }

    /// A new volume.
    pub(crate) async fn volume(&self, name: &str) -> Outcome<VolumeId> {
        let id = self.volume_id(name);
        let created = self.driver.create_volume(&id, &VolumeSpec::new(self.labels())).await?;
        same("create_volume", created, Created::New)?;
        Ok(id)
    }

    /// What is listed of this case's job, without what the driver made for its own use.
    pub(crate) async fn listed(&self) -> Outcome<Vec<Resource>> {
        let mut listed = self.driver.list(Some(&self.job)).await?;
        listed.retain(|resource| matches!(resource.kind, ResourceKind::Container | ResourceKind::Volume));
        Ok(listed)
    }

    /// A container of the test image with nothing said but its labels, and without a network where that can be had: it is
    /// what starts fastest.
    pub(crate) fn spec(&self) -> ContainerSpec {
        let mut spec = ContainerSpec::new(self.settings.image.clone());
        spec.labels = self.labels();
        if self.driver.info().capabilities.no_network {
            spec.network = NetworkMode::None;
        }
        spec
    }

    /// A container that runs a script.
    pub(crate) fn shell(&self, script: &str) -> ContainerSpec {
        let mut spec = self.spec();
        spec.entrypoint = Some(["sh", "-c", script].map(str::to_owned).to_vec());
        spec
    }

    /// A container that runs until it is killed or its time is over.
    pub(crate) fn sleeper(&self) -> ContainerSpec {
        self.shell("echo up; sleep 300")
    }

    /// Where a volume stands.
    pub(crate) fn mount(&self, volume: &VolumeId, target: &str) -> Outcome<Mount> {
        Ok(Mount {
            volume: volume.clone(),
            target: ContainerPath::new(target)?,
            read_only: false,
        })
    }

    /// Makes a container.
    pub(crate) async fn create(&self, name: &str, spec: &ContainerSpec) -> Outcome<ContainerId> {
        let id = self.id(name);
        same(
            "create_container",
            self.driver.create_container(&id, spec).await?,
            Created::New,
        )?;
        Ok(id)
    }

    /// Makes and starts a container.
    pub(crate) async fn start(&self, name: &str, spec: &ContainerSpec) -> Outcome<ContainerId> {
        let id = self.create(name, spec).await?;
        self.driver.start_container(&id, None).await?;
        Ok(id)
    }

    /// Makes and starts a container, and waits until it has written a line.
    pub(crate) async fn start_and_see(&self, name: &str, spec: &ContainerSpec) -> Outcome<ContainerId> {
        let id = self.create(name, spec).await?;
        let mut logs = self.driver.logs(&id, true).await?;
        self.driver.start_container(&id, None).await?;
        let first = within(Duration::from_secs(30), "the container's first output", logs.next()).await?;
        first.ok_or_else(|| Failure::new("the log ended before the container wrote"))??;
        Ok(id)
    }

    /// Takes a container from creation to its end.
    pub(crate) async fn run(&self, name: &str, spec: &ContainerSpec) -> Outcome<Ran> {
        self.run_with(name, spec, None).await
    }

    /// The same with standard input.
    pub(crate) async fn run_with(&self, name: &str, spec: &ContainerSpec, stdin: Option<ByteStream>) -> Outcome<Ran> {
        let id = self.create(name, spec).await?;
        self.finish(&id, stdin).await
    }

    /// Takes a container that was made to its end.
    pub(crate) async fn finish(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Outcome<Ran> {
        let logs = self.driver.logs(id, true).await?;
        self.driver.start_container(id, stdin).await?;
        let written = collect(logs).await?;
        let exit = self.driver.wait_container(id).await?;
        Ok(Ran {
            exit,
            stdout: text(&written.stdout),
            stderr: text(&written.stderr),
        })
    }

    /// Runs a script and returns what it printed; anything but success is a failure.
    pub(crate) async fn output(&self, name: &str, spec: &ContainerSpec) -> Outcome<String> {
        let ran = self.run(name, spec).await?;
        same(
            format!("the exit of {name:?}, which wrote {:?}", ran.stderr),
            ran.exit,
            ExitStatus::Code(0),
        )?;
        Ok(ran.stdout)
    }
}
