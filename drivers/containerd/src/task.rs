//! Tasks: a container's process, and how it is started.

use std::path::Path;

use containerd_client::services::v1::{Container, CreateTaskRequest, GetRequest, KillRequest, StartRequest};
use containerd_client::tonic::Code;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use oci_spec::runtime::Spec;
use orchestra::{ByteStream, ContainerId, ContainerState, Error, ErrorKind, ExtraHost, NetworkMode, Result, Signal};
use orchestra_oci::etc;

use crate::container::{Extension, place};
use crate::driver::{ContainerdDriver, blocking, peer};
use crate::error::{Subject, about, is_lost};
use crate::known::Record;
use crate::state::Folder;
use crate::{programs, rootfs};

/// Where a container is in its life, by its task, if it has one.
pub(crate) fn state_of(folder: &Folder, task: Option<&Process>) -> ContainerState {
    match task.map(Process::status) {
        _ if folder.ended().is_some() => ContainerState::Exited,
        Some(TaskStatus::Created) => ContainerState::Created,
        Some(TaskStatus::Stopped) => ContainerState::Exited,
        Some(_) => ContainerState::Running,
        None if folder.was_started() => ContainerState::Exited,
        None => ContainerState::Created,
    }
}

impl ContainerdDriver {
    /// The task of a container, if it has one.
    pub(crate) async fn task(&self, engine_id: &str) -> Result<Option<Process>> {
        let request = GetRequest {
            container_id: engine_id.to_owned(),
            exec_id: String::new(),
        };
        match self.client.tasks().get(self.client.request(request)).await {
            Ok(answer) => Ok(answer.into_inner().process),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(about(Subject::Container)(status)),
        }
    }

    pub(crate) async fn start(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        let record = self.known(id).await?;
        if stdin.is_some() && !record.extension.stdin {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the container was created without standard input",
            ));
        }
        let driver = self.clone();
        // Not dropped half-way with its caller.
        let starting = self.making.spawn(async move { driver.begin(&record, stdin).await });
        starting.await.unwrap_or_else(|error| {
            let message = format!("the runtime ended while a container was started: {error}");
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }

    async fn begin(&self, record: &Record, stdin: Option<ByteStream>) -> Result<()> {
        let engine_id = record.container.id.clone();
        let folder = self.state.container(&engine_id);
        let locked = folder.clone();
        let _lock = blocking(move || locked.lock()).await?;
        self.still_there(record).await?;
        // A mark comes before a task; only where a start could not be undone there may be one without it.
        let is_new = record.layer.is_some() && !folder.was_started();
        let task = if is_new { None } else { self.task(&engine_id).await? };
        match state_of(&folder, task.as_ref()) {
            ContainerState::Running => return folder.mark_started(),
            ContainerState::Created => {}
            _ => return Err(Error::new(ErrorKind::Conflict, "the container has ended; it runs once")),
        }
        if task.is_some() {
            // Somebody was killed between making it and starting it.
            self.take_back(&folder, &engine_id).await;
        }
        let launched = self.launch(record, &folder).await;
        self.made.forget(&record.extension.id);
        if let Err(error) = launched {
            self.take_back(&folder, &engine_id).await;
            return Err(self.or_gone(record, error).await);
        }
        folder.mark_started()?;
        if record.extension.stdin {
            let driver = self.clone();
            tokio::spawn(async move { driver.feed(&engine_id, stdin).await });
        }
        Ok(())
    }

    /// Makes the task, connects it, and starts it.
    async fn launch(&self, record: &Record, folder: &Folder) -> Result<()> {
        let (engine_id, extension) = (&record.container.id, &record.extension);
        tokio::try_join!(self.write_etc(extension, folder), self.logs.create(engine_id))?;
        let (stdin, stdout, stderr) = if extension.stdin {
            // The shim takes no standard input beside a logging URI.
            let stdin = folder.stdin()?;
            let (stdout, stderr) = self.logs.fifos(engine_id).await?;
            (path_text(&stdin)?, path_text(&stdout)?, path_text(&stderr)?)
        } else {
            let uri = self.logs.uri(engine_id)?;
            (String::new(), uri.clone(), uri)
        };
        let request = CreateTaskRequest {
            container_id: engine_id.clone(),
            rootfs: self.layer_of(record).await?,
            stdin,
            stdout,
            stderr,
            ..CreateTaskRequest::default()
        };
        folder.mark_starting()?;
        let made = self.client.tasks().create(self.client.request(request)).await;
        let pid = match made {
            Ok(made) => made.into_inner().pid,
            Err(status) if is_lost(&status) => return Err(about(Subject::Container)(status)),
            Err(status) => return Err(self.explain(record, about(Subject::Engine)(status)).await),
        };
        if extension.network == NetworkMode::Default {
            self.connect_task(extension, folder, engine_id, pid).await?;
        }
        let request = StartRequest {
            container_id: engine_id.clone(),
            exec_id: String::new(),
        };
        match self.client.tasks().start(self.client.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if is_lost(&status) => Err(about(Subject::Container)(status)),
            // All is set up: what is left to fail is executing the program.
            Err(status) => Err(unrunnable(about(Subject::Engine)(status))),
        }
    }

    async fn write_etc(&self, extension: &Extension, folder: &Folder) -> Result<()> {
        let (extension, folder) = (extension.clone(), folder.clone());
        blocking(move || {
            let hostname = etc::hostname(&extension.id);
            let hosts: Vec<ExtraHost> = extension.hosts();
            folder.make()?;
            folder.write("resolv.conf", &etc::resolv_conf(extension.network))?;
            folder.write("hosts", &etc::hosts(extension.network, &hostname, &[], &hosts))?;
            folder.write("hostname", &format!("{hostname}\n"))
        })
        .await
    }

    async fn connect_task(&self, extension: &Extension, folder: &Folder, engine_id: &str, pid: u32) -> Result<()> {
        let network = self.network.as_ref().map_err(|why| {
            let message = format!("there is no default network any more: {}", why.message());
            Error::new(ErrorKind::Unsupported, message)
        })?;
        let pinned = folder.clone();
        let netns = blocking(move || pinned.pin_network(pid)).await?;
        let attached = network.attach(engine_id, &netns).await?;
        let (extension, folder) = (extension.clone(), folder.clone());
        blocking(move || {
            let hostname = etc::hostname(&extension.id);
            let hosts = etc::hosts(extension.network, &hostname, &attached.addresses, &extension.hosts());
            folder.write("hosts", &hosts)
        })
        .await
    }

    /// Takes a container from the network, if it was connected.
    pub(crate) async fn disconnect(&self, engine_id: &str) -> Result<()> {
        let folder = self.state.container(engine_id);
        let Some(netns) = folder.network() else {
            return Ok(());
        };
        if let Ok(network) = &self.network {
            network.detach(engine_id, netns.as_deref()).await?;
        }
        blocking(move || {
            folder.unpin_network();
            Ok(())
        })
        .await
    }

    /// Undoes a start that failed, so that the container is as it was before.
    async fn take_back(&self, folder: &Folder, engine_id: &str) {
        for undone in [self.end_task(engine_id).await, self.disconnect(engine_id).await] {
            if let Err(error) = undone {
                tracing::debug!(%error, "a failed start is undone by the container's removal only");
            }
        }
        folder.unmark_starting();
    }

    /// What kept a task from being made: the program itself, if the container has none such, or one of containerd's.
    async fn explain(&self, record: &Record, error: Error) -> Error {
        if let Ok(false) = self.can_execute(record).await {
            return unrunnable(error);
        }
        let (socket, runtime) = (self.socket(), self.runtime.clone());
        let missing = blocking(move || Ok(programs::missing(peer(&socket), runtime.as_deref())));
        match missing.await {
            Ok(missing) if !missing.is_empty() => {
                error.with_hint(format!("containerd's host lacks {}", missing.join(" and ")))
            }
            _ => error,
        }
    }

    async fn can_execute(&self, record: &Record) -> Result<bool> {
        let spec = runtime_spec_of(&record.container)?;
        let Some(process) = spec.process().clone() else {
            return Ok(true);
        };
        let mounts = self.layer_of(record).await?;
        let volumes = self.places(&record.extension).await?;
        rootfs::with(mounts, self.state.mount_point(), move |root| {
            let program = process.args().iter().flatten().next().cloned().unwrap_or_default();
            let path = process
                .env()
                .iter()
                .flatten()
                .find_map(|variable| variable.strip_prefix("PATH="));
            let cwd = process.cwd().to_string_lossy();
            let place = |path: &Path| place(root, &volumes, path);
            Ok(rootfs::can_execute(&program, path.unwrap_or_default(), &cwd, place))
        })
        .await
    }

    pub(crate) async fn signal(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        let record = self.named(id).await?;
        self.kill(&record.container.id, "", signal).await
    }

    /// Sends a signal to a process; one that has ended is success.
    pub(crate) async fn kill(&self, engine_id: &str, exec_id: &str, signal: Signal) -> Result<()> {
        let request = KillRequest {
            container_id: engine_id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal: u32::from(signal.number()),
            all: false,
        };
        match self.client.tasks().kill(self.client.request(request)).await {
            Err(status) if !matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                Err(about(Subject::Container)(status))
            }
            _ => Ok(()),
        }
    }
}

/// The runtime spec that a container was made with.
pub(crate) fn runtime_spec_of(container: &Container) -> Result<Spec> {
    let spec = container.spec.as_ref().map(|spec| spec.value.as_slice());
    serde_json::from_slice(spec.unwrap_or_default()).map_err(|error| {
        let message = format!("the runtime spec of container {} can't be read: {error}", container.id);
        Error::new(ErrorKind::Protocol, message)
    })
}

pub(crate) fn path_text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::invalid(format!("{} can't be told to containerd", path.display())))
}

pub(crate) fn unrunnable(error: Error) -> Error {
    Error::invalid(error.message().to_owned())
        .with_hint("check that the image has the program, and that it may be executed")
        .with_source(error)
}
