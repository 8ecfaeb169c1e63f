//! The [`Driver`] of the memory engine.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use orchestra::{
    ByteStream, Capabilities, ContainerId, ContainerSpec, Created, Driver, DriverInfo, EndReport, Error, ErrorKind,
    ExecSpec, ExecStream, ExitStatus, ImageRef, InjectedFile, JobId, LogStream, PullImage, PullStream, Resource,
    ResourceKind, Result, Signal, VolumeDirectory, VolumeId, VolumePath, VolumeSpec, labels,
};

use super::container::{Container, State};
use super::engine::{MemoryEngine, Volume};
use super::files::{Files, lock};
use super::image::{self, MemoryImage};
use crate::tarball;

/// A connection to a [`MemoryEngine`].
#[derive(Debug, Clone)]
pub struct MemoryDriver {
    engine: MemoryEngine,
    info: DriverInfo,
}

impl MemoryDriver {
    pub(super) fn new(engine: MemoryEngine, capabilities: Capabilities) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = orchestra::Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        };
        let version = env!("CARGO_PKG_VERSION");
        Self {
            engine,
            info: DriverInfo::new("memory", "memory:", version, "1", platform, capabilities),
        }
    }

    fn container(&self, id: &ContainerId) -> Result<Arc<Container>> {
        let found = lock(&self.engine.state).containers.get(id).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::ContainerNotFound, "no such container").with("container", id))
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        let found = lock(&self.engine.state).volumes.get(id).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::VolumeNotFound, "no such volume").with("volume", id))
    }
}

impl fmt::Display for MemoryDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

fn conflict(message: &str) -> Error {
    Error::new(ErrorKind::Conflict, message)
}

#[async_trait]
impl Driver for MemoryDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    async fn ping(&self) -> Result<()> {
        self.engine.answer().await
    }

    async fn pull_image(&self, pull: &PullImage) -> Result<PullStream> {
        self.engine.answer().await?;
        self.info.capabilities.check_pull(pull)?;
        self.engine.pull(pull, &self.info.platform)
    }

    async fn import_image(&self, image: &ImageRef, archive: ByteStream) -> Result<()> {
        self.engine.answer().await?;
        if !self.info.capabilities.import_image {
            return Err(Error::new(ErrorKind::Unsupported, "the engine lacks import_image"));
        }
        let imported = Arc::new(MemoryImage::from_archive(archive, None).await?);
        lock(&self.engine.state).images.insert(image.canonical(), imported);
        Ok(())
    }

    async fn image_exists(&self, image: &ImageRef) -> Result<bool> {
        self.engine.answer().await?;
        Ok(lock(&self.engine.state).images.contains_key(&image.canonical()))
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<()> {
        self.engine.answer().await?;
        let mut state = lock(&self.engine.state);
        let name = image.canonical();
        let Some(found) = state.images.get(&name).cloned() else {
            return Ok(());
        };
        let names = state.images.values().filter(|other| Arc::ptr_eq(other, &found)).count();
        if names == 1
            && state
                .containers
                .values()
                .any(|container| Arc::ptr_eq(&container.image, &found))
        {
            return Err(conflict("a container uses the image").with("image", image));
        }
        state.images.remove(&name);
        Ok(())
    }

    async fn create_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        self.engine.answer().await?;
        let mut state = lock(&self.engine.state);
        if state.volumes.contains_key(id) {
            return Ok(Created::Existing);
        }
        let volume = Volume {
            tree: Arc::default(),
            labels: spec.labels.clone(),
        };
        state.volumes.insert(id.clone(), volume);
        Ok(Created::New)
    }

    async fn write_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        self.engine.answer().await?;
        let files = Files::of(self.volume(id)?.tree);
        image::unpack(&files, &format!("/{path}"), tar)
            .await
            .map_err(|error| error.with("volume", id))
    }

    async fn read_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        self.engine.answer().await?;
        let tree = self.volume(id)?.tree;
        let mut entries = Vec::new();
        for path in paths {
            let name = if path.is_root() { "" } else { path.as_str() };
            if Files::of(tree.clone()).stat("/", name, false).is_err() {
                return Err(Error::new(ErrorKind::PathNotFound, "no such file or directory")
                    .with("volume", id)
                    .with("path", path));
            }
            entries.extend(image::pack(&tree, name));
        }
        let packed = stream::iter(entries).map(|entry| Ok(entry.to_bytes().into()));
        Ok(packed.chain(orchestra::stream::once(tarball::END)).boxed())
    }

    async fn volume_directory(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        self.engine.answer().await?;
        self.volume(id).map(|_| None)
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<()> {
        self.engine.answer().await?;
        let mut state = lock(&self.engine.state);
        let mounts = state.containers.values().flat_map(|container| &container.spec.mounts);
        if mounts.map(|mount| &mount.volume).any(|used| used == id) {
            return Err(conflict("a container uses the volume").with("volume", id));
        }
        state.volumes.remove(id);
        Ok(())
    }

    async fn create_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        self.engine.answer().await?;
        spec.validate()?;
        self.info.check_container(spec)?;
        let mut state = lock(&self.engine.state);
        if state.containers.contains_key(id) {
            return Ok(Created::Existing);
        }
        let Some(image) = state.images.get(&spec.image.canonical()).cloned() else {
            return Err(Error::new(ErrorKind::ImageNotFound, "no such image").with("image", &spec.image));
        };
        if spec
            .platform
            .as_ref()
            .is_some_and(|platform| platform != image.platform.as_ref().unwrap_or(&self.info.platform))
        {
            let message = "the image is of another platform";
            return Err(Error::new(ErrorKind::ImageNotFound, message).with("image", &spec.image));
        }
        let volumes = state
            .volumes
            .iter()
            .map(|(id, volume)| (id.clone(), volume.tree.clone()))
            .collect();
        let container = Container::new(spec.clone(), image, &volumes)?;
        state.containers.insert(id.clone(), Arc::new(container));
        Ok(Created::New)
    }

    async fn write_files(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()> {
        self.engine.answer().await?;
        let container = self.container(id)?;
        if *container.state.borrow() != State::Created {
            return Err(conflict("the container was started").with("container", id));
        }
        files.iter().try_for_each(|file| container.inject(file))
    }

    async fn start_container(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        self.engine.answer().await?;
        let container = self.container(id)?;
        let state = *container.state.borrow();
        match state {
            State::Running => Ok(()),
            State::Exited(_) | State::Removed => Err(conflict("the container has ended").with("container", id)),
            State::Created if stdin.is_some() && !container.spec.stdin => {
                Err(conflict("the container was made without standard input").with("container", id))
            }
            State::Created => container.start(stdin).map_err(|error| error.with("container", id)),
        }
    }

    async fn logs(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        self.engine.answer().await?;
        let log = self.container(id)?.log.clone();
        let engine = self.engine.clone();
        let chunks = stream::unfold(Some(0), move |index| {
            let (log, engine) = (log.clone(), engine.clone());
            async move {
                // An error was the last item.
                let index = index?;
                if log.get(index).is_none() && follow {
                    tokio::select! {
                        _ = log.wait_for(index) => {}
                        error = engine.death() => return Some((Err(error), None)),
                    }
                }
                log.get(index).map(|chunk| (Ok(chunk), Some(index + 1)))
            }
        });
        Ok(chunks.boxed())
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.engine.answer().await?;
        let container = self.container(id)?;
        let mut state = container.state.subscribe();
        if *state.borrow() == State::Created {
            return Err(conflict("the container was never started").with("container", id));
        }
        let ended = tokio::select! {
            ended = state.wait_for(|state| *state != State::Running) => ended.map(|state| *state),
            error = self.engine.death() => return Err(error),
        };
        match ended {
            Ok(State::Exited(status)) => Ok(status),
            _ => Err(Error::new(ErrorKind::ContainerNotFound, "the container was removed").with("container", id)),
        }
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec, stdin: Option<ByteStream>) -> Result<ExecStream> {
        self.engine.answer().await?;
        let container = self.container(id)?;
        if *container.state.borrow() != State::Running {
            return Err(conflict("the container does not run").with("container", id));
        }
        let engine = self.engine.clone();
        let died = stream::once(async move { Err(engine.death().await) });
        let events = container.exec(spec, stdin)?;
        // The end of the events ends the stream; the engine's end, never.
        let events = events.map(Some).chain(stream::iter([None]));
        let both = stream::select(events, died.map(Some));
        Ok(both
            .take_while(|event| std::future::ready(event.is_some()))
            .filter_map(std::future::ready)
            .boxed())
    }

    async fn signal_container(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        self.engine.answer().await?;
        self.container(id)?.signal(signal);
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.engine.answer().await?;
        if let Some(container) = lock(&self.engine.state).containers.remove(id) {
            container.remove();
        }
        Ok(())
    }

    async fn list(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        self.engine.answer().await?;
        let state = lock(&self.engine.state);
        let containers = state.containers.iter().map(|(id, container)| {
            let mut resource = Resource::new(ResourceKind::Container, id.as_str());
            resource.labels.clone_from(&container.spec.labels);
            resource.state = Some(container.state.borrow().shown());
            resource
        });
        let volumes = state.volumes.iter().map(|(id, volume)| {
            let mut resource = Resource::new(ResourceKind::Volume, id.as_str());
            resource.labels.clone_from(&volume.labels);
            resource
        });
        let ours = |resource: &Resource| match (resource.labels.get(labels::JOB), job) {
            (Some(label), Some(job)) => label == job.as_str(),
            (label, _) => label.is_some(),
        };
        Ok(containers.chain(volumes).filter(ours).collect())
    }

    async fn end_job(&self, job: &JobId) -> Result<EndReport> {
        let mut report = EndReport::default();
        // Containers are listed first: what they mount can go after them.
        for resource in self.list(Some(job)).await? {
            let removed = match resource.kind {
                ResourceKind::Container => self.remove_container(&ContainerId::new(resource.id.as_str())?).await,
                _ => self.remove_volume(&VolumeId::new(resource.id.as_str())?).await,
            };
            match removed {
                Ok(()) => report.removed.push(resource),
                Err(error) => report.remaining.push((resource, error)),
            }
        }
        Ok(report)
    }
}
