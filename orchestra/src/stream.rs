//! Streams: bytes in and out of an engine, always in pieces and never as a whole.

use std::future::ready;
use std::pin::Pin;
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt, poll, stream};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::task::{JoinError, yield_now};
use tokio_util::io::{ReaderStream, StreamReader};
use tokio_util::task::AbortOnDropHandle;

use crate::{Error, ErrorKind, ExitStatus, Result};

/// Bytes in pieces: a tar, an image, standard input. An error is its last item.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// A container's output in pieces, each stream in the order it was written. An error is its last item.
pub type LogStream = BoxStream<'static, Result<LogChunk>>;

/// What an exec yields: output, then [`ExecEvent::Exit`] as its last item.
pub type ExecStream = BoxStream<'static, Result<ExecEvent>>;

/// Pieces that output is gathered in; large enough that a call for each is cheap.
const PIECE: usize = 64 * 1024;

/// Pieces that a reader is cut into: each one of a file is a turn of another thread.
const READ: usize = 256 * 1024;

/// Gathered pieces that wait for a slow reader.
const PIECES: usize = 4;

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

/// How far a log was read: bytes of each stream. Between the two there is no order that an engine keeps.
///
/// ```
/// # async fn carry_on(driver: &dyn orchestra::Driver, id: &orchestra::ContainerId) -> orchestra::Result<()> {
/// use futures_util::TryStreamExt;
/// use orchestra::LogOffset;
///
/// let mut offset = LogOffset::default();
/// // Until the connection breaks, say; then again from there on.
/// let mut logs = offset.rest_of(driver.logs(id, true).await?);
/// while let Some(chunk) = logs.try_next().await? {
///     offset.advance(&chunk);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct LogOffset {
    /// Bytes of standard output.
    pub stdout: u64,
    /// Bytes of standard error.
    pub stderr: u64,
}

impl LogOffset {
    fn of(&mut self, stream: OutputStream) -> &mut u64 {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }

    /// Counts a piece that was read.
    pub fn advance(&mut self, chunk: &LogChunk) {
        *self.of(chunk.stream) += chunk.bytes.len() as u64;
    }

    /// What a log has beyond this, of a stream that begins with the log's first byte, as [`Driver::logs`](crate::Driver::logs)
    /// has it. Engines read their logs from the first byte or from a time: what was read before passes unseen. It holds for
    /// logs below their driver's limit, and counts what the same driver gave: a layer that changes output has other lengths.
    #[must_use]
    pub fn rest_of(self, logs: LogStream) -> LogStream {
        let rest = self.passing(logs);
        rest.try_filter(|chunk| ready(!chunk.bytes.is_empty())).boxed()
    }

    /// The same, where pieces that pass unseen are empty ones: who waits sees that something comes.
    fn passing(self, logs: LogStream) -> LogStream {
        let mut left = self;
        logs.map_ok(move |mut chunk| {
            let left = left.of(chunk.stream);
            let skipped = chunk.bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= skipped as u64;
            chunk.bytes.advance(skipped);
            chunk
        })
        .boxed()
    }
}

/// The output, and once that has ended what a log has beyond it: the one that `rest` gives from its first byte on, if it gives
/// one. For drivers whose engine ends what is followed in ways that do not tell whether anything is missing. What passes of
/// the log as it has come already are empty pieces, so that who waits sees that something comes.
pub fn and_rest<F, R>(output: LogStream, rest: F) -> LogStream
where
    F: FnOnce() -> R + Send + 'static,
    R: Future<Output = Result<Option<LogStream>>> + Send,
{
    let state = (output, LogOffset::default(), Some(rest));
    stream::try_unfold(state, async |(mut output, mut read, mut rest)| {
        loop {
            if let Some(chunk) = output.next().await {
                let chunk = chunk?;
                read.advance(&chunk);
                return Ok(Some((chunk, (output, read, rest))));
            }
            let Some(rest) = rest.take() else { return Ok(None) };
            let Some(log) = rest().await? else {
                return Ok(None);
            };
            output = read.passing(log);
        }
    })
    .boxed()
}

/// The same output in fewer and larger pieces, read ahead by a task of its own, which ends with the answer. For drivers
/// whose engine tells each line for itself: a reader on another thread would be woken for each, which costs more than
/// the line. What has come is never held back for more to come.
///
/// # Panics
/// Outside of a tokio runtime.
#[must_use]
pub fn gathered(logs: LogStream) -> LogStream {
    let (sender, pieces) = mpsc::channel(PIECES);
    let task = AbortOnDropHandle::new(tokio::spawn(gather(logs, sender)));
    stream::try_unfold((pieces, Some(task)), async |(mut pieces, mut task)| {
        if let Some(piece) = pieces.recv().await {
            return Ok(Some((piece?, (pieces, task))));
        }
        match task.take() {
            Some(task) => joined(task.await).map(|()| None),
            None => Ok(None),
        }
    })
    .boxed()
}

/// Output that nobody reads ahead any more has not ended: it broke off.
fn joined(task: Result<(), JoinError>) -> Result<()> {
    task.map_err(|error| Error::new(ErrorKind::Interrupted, format!("output is read no further: {error}")))
}

async fn gather(mut logs: LogStream, sender: mpsc::Sender<Result<LogChunk>>) {
    let mut held: Option<(OutputStream, BytesMut)> = None;
    loop {
        let mut next = poll!(logs.next());
        if next.is_pending() && held.is_some() {
            // Whoever supplies the next piece may have it at hand, and only wait to be run.
            yield_now().await;
            next = poll!(logs.next());
        }
        let item = match next {
            Poll::Ready(item) => item,
            Poll::Pending => {
                if !pass(&sender, held.take()).await {
                    return;
                }
                logs.next().await
            }
        };
        match item {
            Some(Ok(LogChunk { stream, bytes })) => match &mut held {
                Some((of, gathered)) if *of == stream && gathered.len() + bytes.len() <= PIECE => {
                    gathered.extend_from_slice(&bytes);
                }
                _ => {
                    if !pass(&sender, held.replace((stream, bytes.into()))).await {
                        return;
                    }
                }
            },
            end => {
                let passed = pass(&sender, held.take()).await;
                if let (true, Some(error)) = (passed, end) {
                    let _ = sender.send(error).await;
                }
                return;
            }
        }
    }
}

/// Whether there is still a reader.
async fn pass(sender: &mpsc::Sender<Result<LogChunk>>, held: Option<(OutputStream, BytesMut)>) -> bool {
    let Some((stream, bytes)) = held else { return true };
    let bytes = bytes.freeze();
    sender.send(Ok(LogChunk { stream, bytes })).await.is_ok()
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
    ReaderStream::with_capacity(reader, READ)
        .map_err(move |error| Error::io(doing, error))
        .boxed()
}

/// A stream as a reader. An [`Error`] comes out as [`std::io::Error`] and is found again by [`Error::io`].
pub fn into_reader(bytes: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Pin<Box<dyn AsyncRead + Send>> {
    Box::pin(StreamReader::new(bytes.map_err(std::io::Error::from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gathered_output_is_whole_and_nothing_waits_for_more() {
        let (lines, logs) = mpsc::channel::<Result<LogChunk>>(100);
        let logs = stream::unfold(logs, async |mut logs| Some((logs.recv().await?, logs)));
        let mut gathered = gathered(logs.boxed());
        let chunk = |stream, text: &str| LogChunk {
            stream,
            bytes: Bytes::copy_from_slice(text.as_bytes()),
        };
        let (out, err) = (OutputStream::Stdout, OutputStream::Stderr);
        for (stream, text) in [(out, "a\n"), (out, "b\n"), (err, "c\n"), (out, "d\n")] {
            lines.send(Ok(chunk(stream, text))).await.unwrap();
        }
        for expected in [chunk(out, "a\nb\n"), chunk(err, "c\n"), chunk(out, "d\n")] {
            assert_eq!(gathered.next().await.unwrap().unwrap(), expected);
        }
        let large = "x".repeat(PIECE);
        for text in ["e", &large] {
            lines.send(Ok(chunk(out, text))).await.unwrap();
        }
        lines.send(Err(Error::invalid("broken"))).await.unwrap();
        assert_eq!(gathered.next().await.unwrap().unwrap(), chunk(out, "e"));
        assert_eq!(gathered.next().await.unwrap().unwrap(), chunk(out, &large));
        assert_eq!(gathered.next().await.unwrap().unwrap_err().message(), "broken");
        assert!(gathered.next().await.is_none());
    }

    #[tokio::test]
    async fn the_rest_follows_what_was_read_and_no_error() {
        let out = |text: &'static str| LogChunk {
            stream: OutputStream::Stdout,
            bytes: Bytes::from_static(text.as_bytes()),
        };
        let logs = |items: Vec<Result<LogChunk>>| stream::iter(items).boxed();
        let cut = || logs(vec![Ok(out("one ")), Ok(out("two "))]);
        let log = async move || Ok(Some(logs(vec![Ok(out("one")), Ok(out(" two three"))])));
        let whole: Vec<LogChunk> = and_rest(cut(), log).try_collect().await.unwrap();
        assert_eq!(whole, [out("one "), out("two "), out(""), out("three")]);
        let nothing: Vec<LogChunk> = and_rest(cut(), async || Ok(None)).try_collect().await.unwrap();
        assert_eq!(nothing.len(), 2);
        let broken = logs(vec![Err(Error::invalid("broken"))]);
        let mut broken = and_rest(broken, async || Err(Error::invalid("asked though it broke")));
        assert_eq!(broken.next().await.unwrap().unwrap_err().message(), "broken");
        assert!(broken.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_reader_nothing_is_read() {
        let (lines, logs) = mpsc::channel::<Result<LogChunk>>(1);
        let logs = stream::unfold(logs, async |mut logs| Some((logs.recv().await?, logs)));
        let mut gathered = gathered(logs.boxed());
        assert!(poll!(gathered.next()).is_pending());
        yield_now().await;
        assert!(!lines.is_closed());
        drop(gathered);
        let closed = tokio::time::timeout(std::time::Duration::from_secs(10), lines.closed()).await;
        assert!(closed.is_ok(), "the task goes on without a reader");
    }

    #[tokio::test]
    async fn output_that_broke_off_is_no_end() {
        let broken = stream::poll_fn(|_| -> Poll<Option<Result<LogChunk>>> { panic!("as a bug would") });
        let end = gathered(broken.boxed()).next().await;
        assert_eq!(end.unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    }

    #[tokio::test]
    async fn what_was_read_of_each_stream_passes_unseen() {
        let chunk = |stream, bytes: &'static str| LogChunk {
            stream,
            bytes: bytes.into(),
        };
        let (out, err) = (OutputStream::Stdout, OutputStream::Stderr);
        let all = [chunk(out, "one"), chunk(err, "oh"), chunk(out, "two"), chunk(err, "no")];
        let rest = async |stdout, stderr| {
            let logs = stream::iter(all.clone()).map(Ok).boxed();
            let rest = LogOffset { stdout, stderr }.rest_of(logs);
            rest.try_collect::<Vec<_>>().await.unwrap()
        };
        assert_eq!(rest(0, 0).await, all);
        assert_eq!(rest(4, 0).await, [chunk(err, "oh"), chunk(out, "wo"), chunk(err, "no")]);
        assert_eq!(rest(3, 2).await, [chunk(out, "two"), chunk(err, "no")]);
        assert_eq!(rest(99, 3).await, [chunk(err, "o")]);
        let mut read = LogOffset::default();
        all.iter().for_each(|chunk| read.advance(chunk));
        assert_eq!(read, LogOffset { stdout: 6, stderr: 4 });
    }
}
