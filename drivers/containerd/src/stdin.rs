//! Standard input of containers and of processes in them.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::CloseIoRequest;
use orchestra::{ByteStream, Error, Result, Signal};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use crate::driver::ContainerdDriver;
use crate::error::{Subject, about, is_away};

/// How often, and after what pause, what a process waits for is tried to be done: half an hour.
const INSISTING: u32 = 3600;
const AGAIN: Duration = Duration::from_millis(500);

impl ContainerdDriver {
    /// Feeds a container's standard input until it or the stream ends.
    pub(crate) async fn feed(&self, engine_id: &str, stdin: Option<ByteStream>) {
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
                Err(error) if is_away(&error) => {
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
