//! Tasks: a container's process, from its start to its end.
//!
//! How a task ended is recorded beside containerd by whoever sees it first, who then deletes the task: only that ends the
//! container's log (the shim keeps its pipes open until then), and a restarted containerd would forget the task anyway.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, Container, CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, StartRequest, WaitRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use oci_spec::runtime::Spec;
use orchestra::{
    ByteStream, ContainerId, ContainerState, Error, ErrorKind, ExitStatus, ExtraHost, NetworkMode, Result, Signal,
};
use orchestra_oci::etc;
use orchestra_oci::spec::CgroupVersion;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::container::{Extension, place};
use crate::driver::{ContainerdDriver, blocking, peer};
use crate::error::{Subject, about, is_lost, meanwhile};
use crate::state::{Ended, Folder};
use crate::{programs, rootfs};

/// How long containerd may be away while something is waited for: it is restarted within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between tries to reach it again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How often, and after what pause, what a process waits for is tried to be done: half an hour.
const INSISTING: u32 = 3600;
const AGAIN: Duration = Duration::from_millis(500);
/// Longest that a process which was killed is waited for.
const DEATH: Duration = Duration::from_secs(60);

/// Tries to reach an engine that went away while something was waited for, as often as it does.
#[derive(Debug)]
pub(crate) struct Patience {
    /// When it was first found away this time.
    since: Option<Instant>,
    /// When it was asked last.
    asked: Instant,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self {
            since: None,
            asked: Instant::now(),
            pause: PAUSE.0,
        }
    }

    /// It answered.
    pub(crate) fn restore(&mut self) {
        *self = Self::new();
    }

    /// Waits a little, or gives up with the error if it was away for too long. An error of the engine's own ends it at once.
    pub(crate) async fn bear(&mut self, error: Error) -> Result<()> {
        // A wait that went on for so long was answered to: it is another time that the engine goes away.
        if self.asked.elapsed() > PATIENCE {
            self.restore();
        }
        let lost = matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Unreachable);
        if !lost || self.since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(meanwhile(error));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
        self.asked = Instant::now();
        Ok(())
    }
}

/// Whose turn it is to wait for a container's end, by its id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<String, Arc<AsyncMutex<Turn>>>>>);

/// What those who wait for one container hand on.
#[derive(Debug)]
struct Turn {
    /// Whether its task was deleted after its end.
    cleared: bool,
    patience: Patience,
}

impl Turns {
    fn turns(&self) -> MutexGuard<'_, HashMap<String, Arc<AsyncMutex<Turn>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, engine_id: &str) -> Arc<AsyncMutex<Turn>> {
        let new = || {
            Arc::new(AsyncMutex::new(Turn {
                cleared: false,
                patience: Patience::new(),
            }))
        };
        self.turns().entry(engine_id.to_owned()).or_insert_with(new).clone()
    }

    /// The container is gone.
    pub(crate) fn forget(&self, engine_id: &str) {
        self.turns().remove(engine_id);
    }
}

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
        let (container, extension) = self.named(id).await?;
        if stdin.is_some() && !extension.stdin {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the container was created without standard input",
            ));
        }
        let driver = self.clone();
        // Not dropped half-way with its caller.
        let starting = self
            .making
            .spawn(async move { driver.begin(container, extension, stdin).await });
        starting.await.unwrap_or_else(|error| {
            let message = format!("the runtime ended while a container was started: {error}");
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }

    async fn begin(&self, container: Container, extension: Extension, stdin: Option<ByteStream>) -> Result<()> {
        let engine_id = container.id.clone();
        let folder = self.state.container(&engine_id);
        let locked = folder.clone();
        let _lock = blocking(move || locked.lock()).await?;
        self.still_there(&container).await?;
        let task = self.task(&engine_id).await?;
        match state_of(&folder, task.as_ref()) {
            ContainerState::Running => return folder.mark_started(),
            ContainerState::Created => {}
            _ => return Err(Error::new(ErrorKind::Conflict, "the container has ended; it runs once")),
        }
        if task.is_some() {
            // Somebody was killed between making it and starting it.
            self.take_back(&folder, &engine_id).await;
        }
        if let Err(error) = self.launch(&container, &extension, &folder).await {
            self.take_back(&folder, &engine_id).await;
            return Err(error);
        }
        folder.mark_started()?;
        if extension.stdin {
            let driver = self.clone();
            tokio::spawn(async move { driver.feed(&engine_id, stdin).await });
        }
        Ok(())
    }

    /// Makes the task, connects it, and starts it.
    async fn launch(&self, container: &Container, extension: &Extension, folder: &Folder) -> Result<()> {
        let engine_id = &container.id;
        self.write_etc(extension, folder).await?;
        self.logs.create(engine_id).await?;
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
            rootfs: self.snapshots(&self.client).mounts(&container.snapshot_key).await?,
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
            Err(status) => return Err(self.explain(container, extension, about(Subject::Engine)(status)).await),
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
    async fn explain(&self, container: &Container, extension: &Extension, error: Error) -> Error {
        if let Ok(false) = self.can_execute(container, extension).await {
            return unrunnable(error);
        }
        let (socket, runtime) = (self.socket(), self.runtime.clone());
        let missing = blocking(move || {
            let containerd = peer(&socket);
            Ok(containerd.map_or_else(Vec::new, |pid| programs::missing(pid, runtime.as_deref())))
        });
        match missing.await {
            Ok(missing) if !missing.is_empty() => {
                error.with_hint(format!("containerd's host lacks {}", missing.join(" and ")))
            }
            _ => error,
        }
    }

    async fn can_execute(&self, container: &Container, extension: &Extension) -> Result<bool> {
        let spec = runtime_spec_of(container)?;
        let Some(process) = spec.process().clone() else {
            return Ok(true);
        };
        let mounts = self.snapshots(&self.client).mounts(&container.snapshot_key).await?;
        let volumes = self.places(extension).await?;
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

    /// Waits until a task has ended, and records how. `None` if it was not started.
    ///
    /// One at a time in this process: what one has waited for, the next finds recorded. By a task of its own, as whoever has
    /// the turn has to go on though nobody polls what waits for it, such as a log that nobody reads.
    pub(crate) async fn reap(&self, engine_id: &str) -> Result<Option<Ended>> {
        let (driver, engine_id) = (self.clone(), engine_id.to_owned());
        let reaping = tokio::spawn(async move { driver.reap_in_turn(&engine_id).await });
        AbortOnDropHandle::new(reaping).await.unwrap_or_else(|error| {
            let message = format!("the runtime ended while a container was waited for: {error}");
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }

    async fn reap_in_turn(&self, engine_id: &str) -> Result<Option<Ended>> {
        let folder = self.state.container(engine_id);
        let turn = self.turns.of(engine_id);
        let mut turn = turn.lock().await;
        loop {
            match self.try_reap(engine_id, &folder, &mut turn.cleared).await {
                Ok(Some(reaped)) => return Ok(reaped),
                Ok(None) => turn.patience.restore(),
                Err(error) => {
                    turn.patience.bear(error).await?;
                    // What goes away after an answer goes away another time.
                    if self.task(engine_id).await.is_ok() {
                        turn.patience.restore();
                    }
                }
            }
        }
    }

    /// One try; `None` if the task has changed meanwhile.
    async fn try_reap(&self, engine_id: &str, folder: &Folder, cleared: &mut bool) -> Result<Option<Option<Ended>>> {
        if let Some(ended) = folder.ended() {
            if !*cleared {
                self.clear(engine_id, folder).await?;
                *cleared = true;
            }
            return Ok(Some(Some(ended)));
        }
        *cleared = false;
        // One that was started: its task is there until its end was recorded.
        if folder.is_started()
            && let Some(code) = self.exit_of(engine_id, folder).await?
        {
            let ended = self.record(engine_id, folder, code).await?;
            *cleared = true;
            return Ok(Some(Some(ended)));
        }
        if folder.ended().is_some() {
            return Ok(None);
        }
        let Some(task) = self.task(engine_id).await? else {
            // Between the two looks somebody else may have seen its end.
            if let Some(ended) = folder.ended() {
                return Ok(Some(Some(ended)));
            }
            if !folder.was_started() {
                return Ok(Some(None));
            }
            // A start that is under way has a mark and no task, too.
            let starting = folder.clone();
            drop(blocking(move || starting.lock_if_there()).await?);
            let gone = self.task(engine_id).await?.is_none() && folder.was_started() && folder.ended().is_none();
            return if gone { Err(forgotten()) } else { Ok(None) };
        };
        match task.status() {
            TaskStatus::Created => Ok(Some(None)),
            status => {
                let code = match status {
                    TaskStatus::Stopped => Some(task.exit_status),
                    _ => self.exit_of(engine_id, folder).await?,
                };
                let Some(code) = code else { return Ok(None) };
                let ended = self.record(engine_id, folder, code).await?;
                *cleared = true;
                Ok(Some(Some(ended)))
            }
        }
    }

    /// Waits for a task; `None` if there is none any more. While somebody else deletes it, containerd says that in many ways
    /// (1.6: `ttrpc: closed`); that one has recorded its end before.
    async fn exit_of(&self, engine_id: &str, folder: &Folder) -> Result<Option<u32>> {
        match self.wait_for(engine_id, "").await {
            Err(error) if error.kind() == ErrorKind::ContainerNotFound || folder.ended().is_some() => Ok(None),
            waited => waited.map(Some),
        }
    }

    /// One wait for a process, without tries to reach a containerd that went away.
    pub(crate) async fn wait_for(&self, engine_id: &str, exec_id: &str) -> Result<u32> {
        let request = WaitRequest {
            container_id: engine_id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let answer = self.client.tasks().wait(self.client.request(request)).await;
        Ok(answer.map_err(about(Subject::Container))?.into_inner().exit_status)
    }

    async fn record(&self, engine_id: &str, folder: &Folder, code: u32) -> Result<Ended> {
        let cgroup = format!("{}/{engine_id}", self.namespace);
        let (version, recorded) = (self.host.cgroups, folder.clone());
        let ended = blocking(move || {
            recorded.record(Ended {
                code,
                out_of_memory: out_of_memory(version, &cgroup),
            })
        });
        let ended = ended.await?;
        self.clear(engine_id, folder).await?;
        Ok(ended)
    }

    /// Deletes a task whose end was recorded. Of many who see an end one does it: containerd answers those who come second
    /// while it is at it with errors of any kind (1.7: `ttrpc: closed`).
    async fn clear(&self, engine_id: &str, folder: &Folder) -> Result<()> {
        let (driver, engine_id, folder) = (self.clone(), engine_id.to_owned(), folder.clone());
        // Not dropped half-way with its caller, such as a log that has been read to its end: from when its shim has gone until
        // it is deleted, containerd says that there is no such task, and refuses another one of that name.
        let clearing = tokio::spawn(async move {
            let _lock = blocking(move || folder.lock_if_there()).await?;
            driver.delete_task(&engine_id).await
        });
        clearing.await.unwrap_or_else(|error| {
            let message = format!("the runtime ended while a task was deleted: {error}");
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }

    /// Deletes a task that has ended; one that is not there is success.
    async fn delete_task(&self, engine_id: &str) -> Result<()> {
        let request = DeleteTaskRequest {
            container_id: engine_id.to_owned(),
        };
        match self.client.tasks().delete(self.client.request(request)).await {
            Err(status) if status.code() != Code::NotFound => Err(about(Subject::Container)(status)),
            _ => Ok(()),
        }
    }

    /// Kills a task if it runs, and deletes it.
    pub(crate) async fn end_task(&self, engine_id: &str) -> Result<()> {
        if self.task(engine_id).await?.is_none() {
            return Ok(());
        }
        self.kill(engine_id, "", Signal::KILL).await?;
        let waited = tokio::time::timeout(DEATH, self.wait_for(engine_id, "")).await;
        match waited {
            Ok(Err(error)) if error.kind() == ErrorKind::ContainerNotFound => Ok(()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) => self.delete_task(engine_id).await,
            Err(_) => {
                let message = format!("the container's process lives {} s after SIGKILL", DEATH.as_secs());
                Err(Error::new(ErrorKind::Engine, message)
                    .with_hint("it hangs in the kernel, as in a network file system that does not answer"))
            }
        }
    }

    pub(crate) async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        let (container, _) = self.named(id).await?;
        let folder = self.state.container(&container.id);
        let reaped = self.reap(&container.id).await;
        // A removal kills first: that is no end to be told.
        if let Ok(Some(Ended { code: 0, .. })) = &reaped {
            return Ok(ExitStatus::Code(0));
        }
        if folder.is_going() || self.find(id).await?.is_none() {
            return Err(Error::new(
                ErrorKind::ContainerNotFound,
                "the container is being removed",
            ));
        }
        match reaped? {
            Some(ended) => Ok(ExitStatus::from_engine(i64::from(ended.code), ended.out_of_memory)),
            None => Err(Error::new(ErrorKind::Conflict, "the container was never started")),
        }
    }

    pub(crate) async fn signal(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        let (container, _) = self.named(id).await?;
        self.kill(&container.id, "", signal).await
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

    /// Feeds a container's standard input until it or the stream ends.
    async fn feed(&self, engine_id: &str, stdin: Option<ByteStream>) {
        let fifo = self.state.container(engine_id).path("stdin");
        let fed: Result<()> = tokio::select! {
            fed = pump(stdin, &fifo) => fed,
            // Seen through a restart of containerd, over which the container lives on.
            ended = self.reap(engine_id) => ended.map(drop),
        };
        if let Err(error) = &fed {
            // The process would take what it got for all there is.
            tracing::warn!(%error, "standard input broke: the container is killed");
            if !self.insist(|| self.kill(engine_id, "", Signal::KILL)).await {
                return;
            }
        }
        self.close_input(engine_id, "").await;
    }

    /// Makes the shim, which keeps it open too, close a process' standard input.
    pub(crate) async fn close_input(&self, engine_id: &str, exec_id: &str) {
        let close = || {
            let request = CloseIoRequest {
                container_id: engine_id.to_owned(),
                exec_id: exec_id.to_owned(),
                stdin: true,
            };
            let (request, mut tasks) = (self.client.request(request), self.client.tasks());
            async move {
                tasks
                    .close_io(request)
                    .await
                    .map(drop)
                    .map_err(about(Subject::Container))
            }
        };
        self.insist(close).await;
    }

    /// Does something that a process would wait for for ever if it was not done, as soon as containerd can be reached. Whether
    /// containerd has answered; an error of its own is one, as where the process has ended.
    async fn insist<F>(&self, mut done: impl FnMut() -> F) -> bool
    where
        F: Future<Output = Result<()>>,
    {
        for _ in 0..INSISTING {
            match done().await {
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Unreachable) => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a container's input is left as it is");
                    return true;
                }
                Ok(()) => return true,
            }
        }
        tracing::warn!("containerd was away for too long: a container may wait for its input");
        false
    }
}

/// Writes a stream into a fifo, and closes it.
pub(crate) async fn pump(stdin: Option<ByteStream>, fifo: &Path) -> Result<()> {
    let Some(mut stdin) = stdin else {
        return Ok(());
    };
    let failed = |error| Error::io(format!("write to {}", fifo.display()), error);
    // For both: the shim may not have opened it yet.
    let mut fifo = pipe::OpenOptions::new()
        .read_write(true)
        .open_sender(fifo)
        .map_err(failed)?;
    while let Some(bytes) = futures_util::TryStreamExt::try_next(&mut stdin).await? {
        fifo.write_all(&bytes).await.map_err(failed)?;
    }
    Ok(())
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

fn forgotten() -> Error {
    let message = "containerd has forgotten how the container ended: it was restarted after that, and nobody had asked";
    Error::new(ErrorKind::Engine, message).with_hint("run the task again")
}

/// Whether the kernel has killed a process of the cgroup for its memory. The cgroup is there until its task is deleted.
fn out_of_memory(version: CgroupVersion, cgroup: &str) -> bool {
    let file = match version {
        CgroupVersion::V1 => format!("/sys/fs/cgroup/memory/{cgroup}/memory.oom_control"),
        CgroupVersion::V2 => format!("/sys/fs/cgroup/{cgroup}/memory.events"),
    };
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.is_some_and(|kills| kills.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Error {
        Error::new(ErrorKind::Interrupted, "the connection broke")
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_may_go_away_more_than_once_while_one_wait_lasts_but_not_for_long() {
        let mut patience = Patience::new();
        for _ in 0..3 {
            patience.bear(lost()).await.unwrap();
            patience.bear(lost()).await.unwrap();
            // It was back, and answered when the next one came.
            tokio::time::advance(Duration::from_secs(3600)).await;
        }
        let began = Instant::now();
        let error = loop {
            if let Err(error) = patience.bear(lost()).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        assert!(
            (PATIENCE..PATIENCE * 2).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
        assert!(patience.bear(Error::new(ErrorKind::Engine, "no")).await.is_err());
    }
}
