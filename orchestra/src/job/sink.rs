//! Where live output goes.

use async_trait::async_trait;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::{Error, ErrorKind, LogChunk, OutputStream, Result};

/// Takes a task's output while it runs. A sink that is slow slows the task; one that fails ends it.
///
/// A `tokio::sync::mpsc::Sender<LogChunk>` is one; [`from_fn`] and [`to_writers`] make others.
#[async_trait]
pub trait OutputSink: Send {
    /// Takes one piece.
    ///
    /// # Errors
    /// Any error cancels the task and becomes the task's own.
    async fn write(&mut self, chunk: LogChunk) -> Result<()>;
}

#[async_trait]
impl OutputSink for mpsc::Sender<LogChunk> {
    async fn write(&mut self, chunk: LogChunk) -> Result<()> {
        self.send(chunk)
            .await
            .map_err(|_| Error::new(ErrorKind::Io, "nobody receives the task's output any more"))
    }
}

struct FromFn<F>(F);

#[async_trait]
impl<F: FnMut(LogChunk) + Send> OutputSink for FromFn<F> {
    async fn write(&mut self, chunk: LogChunk) -> Result<()> {
        (self.0)(chunk);
        Ok(())
    }
}

/// Calls `f` with each piece; it must not block.
pub fn from_fn(f: impl FnMut(LogChunk) + Send + 'static) -> impl OutputSink + 'static {
    FromFn(f)
}

struct Writers<O, E>(O, E);

#[async_trait]
impl<O: AsyncWrite + Send + Unpin, E: AsyncWrite + Send + Unpin> OutputSink for Writers<O, E> {
    async fn write(&mut self, chunk: LogChunk) -> Result<()> {
        let written = match chunk.stream {
            OutputStream::Stdout => write(&mut self.0, &chunk.bytes).await,
            OutputStream::Stderr => write(&mut self.1, &chunk.bytes).await,
        };
        written.map_err(|error| Error::io(format!("write the task's {:?}", chunk.stream).to_lowercase(), error))
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// Writes both streams as they come: `to_writers(tokio::io::stdout(), tokio::io::stderr())`.
pub fn to_writers(
    stdout: impl AsyncWrite + Send + Unpin + 'static,
    stderr: impl AsyncWrite + Send + Unpin + 'static,
) -> impl OutputSink + 'static {
    Writers(stdout, stderr)
}
