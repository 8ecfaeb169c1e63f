//! Further processes in running containers.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::{DeleteProcessRequest, ExecProcessRequest, StartRequest};
use containerd_client::types::v1::{Process as Task, Status as TaskStatus};
use futures_util::{StreamExt, stream};
use orchestra::{
    ByteStream, ContainerId, Error, ErrorKind, ExecEvent, ExecSpec, ExecStream, ExitStatus, JobId, LogChunk,
    OutputStream, Result, Signal,
};
use orchestra_oci::spec::exec_process;
use orchestra_oci::users::{ResolvedUser, resolve_user};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::container::any;
use crate::driver::{ContainerdDriver, blocking};
use crate::end::Patience;
use crate::error::{Subject, about, is_lost};
use crate::known::Record;
use crate::state::Fifos;
use crate::stdin::pump;
use crate::task::{path_text, runtime_spec_of, unrunnable};

/// What containerd calls a process of a runtime spec.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Bytes that are read at once.
const BUFFER: usize = 64 * 1024;
/// Pieces that wait for a slow reader.
const PIECES: usize = 4;
/// How long output is waited for after a process' end: what it started in the background may hold its output open.
const DRAIN: Duration = Duration::from_secs(2);

fn has_ended() -> Error {
    Error::new(ErrorKind::Conflict, "the container has ended")
}

impl ContainerdDriver {
    pub(crate) async fn run_in(
        &self,
        id: &ContainerId,
        spec: &ExecSpec,
        stdin: Option<ByteStream>,
    ) -> Result<ExecStream> {
        if spec.command.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("the command is empty"));
        }
        let record = self.named(id).await?;
        let container = &record.container;
        let task = self.task(&container.id).await?;
        let Some(task) = task.filter(|task| task.status() == TaskStatus::Running) else {
            return Err(Error::new(ErrorKind::Conflict, "the container does not run"));
        };
        let user = match &spec.user {
            Some(user) => Some(self.user_in(&record, &task, user.to_string()).await?),
            None => None,
        };
        let process = exec_process(&runtime_spec_of(container)?, spec, user.as_ref())?;
        let exec_id = format!("exec-{}", JobId::unique());
        let (folder, name, with_input) = (self.state.container(&container.id), exec_id.clone(), stdin.is_some());
        let fifos = blocking(move || {
            let made = folder.exec(&name, with_input);
            made.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => has_ended(),
                _ => Error::io("make the fifos of an exec", error),
            })
        });
        let fifos = fifos.await?;
        let exec = Exec {
            driver: self.clone(),
            container: container.id.clone(),
            id: exec_id,
            fifos,
        };
        // Opened before the shim opens the other ends: it waits for that.
        let started = match exec.outputs() {
            Ok(outputs) => exec.start(any(PROCESS, &process)?).await.map(|()| outputs),
            Err(error) => Err(error),
        };
        match started {
            Ok(outputs) => Ok(exec.run(outputs, stdin)),
            Err(error) => {
                exec.forget().await;
                Err(error)
            }
        }
    }

    /// A user by the container's own files, as they are now where they can be reached.
    async fn user_in(&self, record: &Record, task: &Task, user: String) -> Result<ResolvedUser> {
        if self.sees_processes {
            let root = PathBuf::from(format!("/proc/{}/root", task.pid));
            return blocking(move || resolve_user(&root, &user)).await;
        }
        let mounts = self.layer_of(record).await?;
        crate::rootfs::with(mounts, self.state.mount_point(), move |root| resolve_user(root, &user)).await
    }
}

/// A process and its fifos.
#[derive(Debug)]
struct Exec {
    driver: ContainerdDriver,
    container: String,
    id: String,
    fifos: Fifos,
}

impl Exec {
    fn outputs(&self) -> Result<[pipe::Receiver; 2]> {
        let open = |path: &PathBuf| {
            let opened = pipe::OpenOptions::new().open_receiver(path);
            opened.map_err(|error| Error::io(format!("open {}", path.display()), error))
        };
        Ok([open(&self.fifos.stdout)?, open(&self.fifos.stderr)?])
    }

    async fn start(&self, process: prost_types::Any) -> Result<()> {
        let client = &self.driver.client;
        let stdin = self.fifos.stdin.as_deref().map(path_text).transpose()?;
        let request = ExecProcessRequest {
            container_id: self.container.clone(),
            stdin: stdin.unwrap_or_default(),
            stdout: path_text(&self.fifos.stdout)?,
            stderr: path_text(&self.fifos.stderr)?,
            terminal: false,
            spec: Some(process),
            exec_id: self.id.clone(),
        };
        let made = client.tasks().exec(client.request(request)).await;
        made.map_err(about(Subject::Container))?;
        let request = StartRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
        };
        match client.tasks().start(client.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if is_lost(&status) => Err(about(Subject::Container)(status)),
            Err(status) => {
                let error = about(Subject::Container)(status);
                // All else was checked: what is left to fail is executing the program, unless the container has ended.
                match self.driver.task(&self.container).await? {
                    Some(task) if task.status() == TaskStatus::Running => Err(unrunnable(error)),
                    _ => Err(has_ended()),
                }
            }
        }
    }

    fn run(self, outputs: [pipe::Receiver; 2], stdin: Option<ByteStream>) -> ExecStream {
        let (events, mut told) = mpsc::channel(PIECES);
        // It goes on when nobody listens any more: a process whose output nobody takes would stop.
        tokio::spawn(async move { self.see_through(outputs, stdin, events).await });
        let mut last = false;
        stream::poll_fn(move |cx| {
            if last {
                return std::task::Poll::Ready(None);
            }
            let item = std::task::ready!(told.poll_recv(cx));
            last = !matches!(item, Some(Ok(ExecEvent::Output(_))));
            std::task::Poll::Ready(item)
        })
        .boxed()
    }

    async fn see_through(
        self,
        [stdout, stderr]: [pipe::Receiver; 2],
        stdin: Option<ByteStream>,
        events: mpsc::Sender<Result<ExecEvent>>,
    ) {
        let mut feeding = tokio::task::JoinSet::new();
        if let Some(fifo) = self.fifos.stdin.clone() {
            let (driver, container, id) = (self.driver.clone(), self.container.clone(), self.id.clone());
            let events = events.clone();
            feeding.spawn(async move {
                if let Err(error) = pump(stdin, &fifo).await {
                    // It has not got all that it was to read: what it makes of that means nothing.
                    let _ = events.send(Err(error)).await;
                    driver.kill(&container, &id, Signal::KILL).await.ok();
                }
                driver.close_input(&container, &id).await;
            });
        }
        let mut copying = tokio::task::JoinSet::new();
        copying.spawn(copy(stdout, OutputStream::Stdout, events.clone()));
        copying.spawn(copy(stderr, OutputStream::Stderr, events.clone()));
        let exit = self.exit().await;
        feeding.shutdown().await;
        if exit.is_ok() {
            let drained = tokio::time::timeout(DRAIN, async { while copying.join_next().await.is_some() {} });
            drained.await.ok();
        }
        let _ = events.send(exit.map(ExecEvent::Exit)).await;
        drop(events);
        self.forget().await;
        // As long as anything of it writes.
        while copying.join_next().await.is_some() {}
    }

    async fn exit(&self) -> Result<ExitStatus> {
        let mut patience = Patience::new();
        loop {
            match self.driver.wait_for(&self.container, &self.id).await {
                Ok(code) => return Ok(ExitStatus::from_engine(i64::from(code), false)),
                Err(error) => {
                    patience.bear(error).await?;
                    if self.driver.task(&self.container).await.is_ok() {
                        patience.restore();
                    }
                }
            }
        }
    }

    /// Removes the process, which has ended, from containerd, and its fifos.
    async fn forget(&self) {
        let client = &self.driver.client;
        let request = DeleteProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
        };
        // Gone with its container, perhaps.
        if let Err(error) = client.tasks().delete_process(client.request(request)).await {
            tracing::debug!(%error, "an exec is left to its container's end");
        }
        let fifos = self.fifos.clone();
        let removed = blocking(move || {
            fifos.remove();
            Ok(())
        });
        removed.await.ok();
    }
}

/// Passes output on to its end; where nobody listens, it is read all the same.
async fn copy(mut output: pipe::Receiver, stream: OutputStream, events: mpsc::Sender<Result<ExecEvent>>) {
    let mut buffer = bytes::BytesMut::with_capacity(BUFFER);
    loop {
        buffer.reserve(BUFFER);
        match output.read_buf(&mut buffer).await {
            Ok(0) => return,
            Ok(_) => {
                let bytes = buffer.split().freeze();
                let _ = events.send(Ok(ExecEvent::Output(LogChunk { stream, bytes }))).await;
            }
            Err(error) => {
                let _ = events.send(Err(Error::io("read an exec's output", error))).await;
                return;
            }
        }
    }
}
