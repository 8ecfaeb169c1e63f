//! Tars in and out of a directory. Packing and unpacking block, so each runs on a thread of its own, and the pieces go
//! through a short channel: who is slow slows the other, and who stops listening ends the work.

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream};
use orchestra::{ByteStream, Error, ErrorKind, Result, VolumePath};
use orchestra_helper::tree::{self, TreeError};
use tokio::sync::mpsc;

use crate::blocking::blocking;

/// Bytes of a piece of a tar that is read.
const PIECE: usize = 256 << 10;
/// Pieces that may be under way.
const PIECES: usize = 4;

pub(super) async fn write(root: PathBuf, path: VolumePath, mut tar: ByteStream) -> Result<()> {
    let (pieces, received) = mpsc::channel(PIECES);
    let feed = async move {
        while let Some(piece) = tar.next().await {
            let failed = piece.is_err();
            // The other side has ended, and says why.
            if pieces.send(piece.map(Some)).await.is_err() || failed {
                return;
            }
        }
        let _ = pieces.send(Ok(None)).await;
    };
    let unpack = blocking(move || {
        let mut input = Received {
            pieces: received,
            piece: Bytes::new(),
            ended: false,
        };
        tree::unpack(&root, &inside(&path), &mut input).map_err(failed)
    });
    // Not `try_join`: what was begun is waited for.
    let ((), done) = tokio::join!(feed, unpack);
    done
}

pub(super) fn read(root: PathBuf, paths: Vec<VolumePath>) -> ByteStream {
    let (pieces, received) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let paths: Vec<PathBuf> = paths.iter().map(inside).collect();
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let mut output = BufWriter::with_capacity(PIECE, Sent(&pieces));
        let packed = tree::pack(&root, &paths, &mut output).map_err(failed);
        let flushed = packed.and_then(|()| output.flush().map_err(|error| Error::io("write a tar", error)));
        // What is still in it would come after the error.
        let (_, _) = output.into_parts();
        if let Err(error) = flushed {
            let _ = pieces.blocking_send(Err(error));
        }
    });
    stream::unfold(received, async |mut received| {
        received.recv().await.map(|piece| (piece, received))
    })
    .boxed()
}

fn inside(path: &VolumePath) -> PathBuf {
    match path.as_str() {
        "." => PathBuf::new(),
        path => PathBuf::from(path),
    }
}

fn failed(error: TreeError) -> Error {
    match error {
        TreeError::Io { doing, source } => Error::io(doing, source),
        TreeError::NotFound(_) => Error::new(ErrorKind::PathNotFound, error.to_string()),
        other => Error::invalid(other.to_string()),
    }
}

/// What comes through a channel, as a reader. The end is told; a channel that ends without was given up.
struct Received {
    pieces: mpsc::Receiver<Result<Option<Bytes>>>,
    piece: Bytes,
    ended: bool,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Ok(Some(piece))) => self.piece = piece,
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Error::new(ErrorKind::Cancelled, "the tar was given up").into()),
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// A writer into a channel.
struct Sent<'a>(&'a mpsc::Sender<Result<Bytes>>);

impl Write for Sent<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
