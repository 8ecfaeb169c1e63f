//! Streams: bytes in and out of an engine, always in pieces and never as a whole.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::{Error, ExitStatus, Result};

/// Bytes in pieces: a tar, an image, standard input. An error is its last item.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// A container's output in pieces, each stream in the order it was written. An error is its last item.
pub type LogStream = BoxStream<'static, Result<LogChunk>>;

/// What an exec yields: output, then [`ExecEvent::Exit`] as its last item.
pub type ExecStream = BoxStream<'static, Result<ExecEvent>>;

/// Pieces that a reader is cut into; large enough that a call for each is cheap.
const PIECE: usize = 64 * 1024;

/// Which of a process's output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of a container's output; pieces follow the engine's buffers, not lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// Where the process wrote it.
    pub stream: OutputStream,
    /// What it wrote.
    pub bytes: Bytes,
}

/// One item of an [`ExecStream`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecEvent {
    /// The process wrote something.
    Output(LogChunk),
    /// The process ended.
    Exit(ExitStatus),
}

/// A stream of one piece.
#[must_use]
pub fn once(bytes: impl Into<Bytes>) -> ByteStream {
    let bytes = bytes.into();
    stream::once(async move { Ok(bytes) }).boxed()
}

/// A reader as a stream; `doing` names it in errors ("read context.tar").
pub fn from_reader(reader: impl AsyncRead + Send + 'static, doing: &'static str) -> ByteStream {
    ReaderStream::with_capacity(reader, PIECE)
        .map_err(move |error| Error::io(doing, error))
        .boxed()
}

/// A stream as a reader. An [`Error`] comes out as [`std::io::Error`] and is found again by [`Error::io`].
pub fn into_reader(bytes: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Pin<Box<dyn AsyncRead + Send>> {
    Box::pin(StreamReader::new(bytes.map_err(std::io::Error::from)))
}
