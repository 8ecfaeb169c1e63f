//! Output as attach, exec and logs have it: frames of eight bytes, of which the first is the stream and the last four the
//! length, and then the content ([docker's API](https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach),
//! "Stream format"; libpod has the same).

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt};
use orchestra::{Error, ErrorKind, LogChunk, OutputStream, Result};

const HEAD: usize = 8;
/// The stream by which the engine tells of its own trouble (docker's `stdcopy.Systemerr`, which libpod writes too).
const TROUBLE: u8 = 3;
/// Longest text of trouble that is kept.
const MAX_TROUBLE: usize = 64 << 10;

/// The frames' content in the pieces that it comes in: a frame may be larger than is to be kept in memory.
pub(crate) fn demultiplexed(
    pieces: impl Stream<Item = Result<Bytes>> + Send + Unpin + 'static,
) -> impl Stream<Item = Result<LogChunk>> + Send + Unpin + 'static {
    let state = Frames {
        pieces,
        piece: Bytes::new(),
        stream: 0,
        left: 0,
    };
    stream::try_unfold(state, async |mut frames| {
        Ok(frames.next().await?.map(|chunk| (chunk, frames)))
    })
    .boxed()
}

struct Frames<S> {
    pieces: S,
    piece: Bytes,
    /// Of the current frame.
    stream: u8,
    left: usize,
}

impl<S: Stream<Item = Result<Bytes>> + Unpin> Frames<S> {
    async fn next(&mut self) -> Result<Option<LogChunk>> {
        while self.left == 0 {
            let Some(head) = self.head().await? else {
                return Ok(None);
            };
            self.stream = head[0];
            let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
            self.left = usize::try_from(length).unwrap_or(usize::MAX);
        }
        if self.stream == TROUBLE {
            return Err(self.trouble().await);
        }
        let stream = match self.stream {
            1 => OutputStream::Stdout,
            2 => OutputStream::Stderr,
            other => {
                let message = format!("the output has a frame of the unknown stream {other}");
                return Err(Error::new(ErrorKind::Protocol, message));
            }
        };
        if !self.fill().await? {
            return Err(broken());
        }
        let bytes = self.take();
        Ok(Some(LogChunk { stream, bytes }))
    }

    /// The next frame's head; none at the end of the stream.
    async fn head(&mut self) -> Result<Option<[u8; HEAD]>> {
        let mut head = BytesMut::with_capacity(HEAD);
        while head.len() < HEAD {
            if !self.fill().await? {
                return if head.is_empty() { Ok(None) } else { Err(broken()) };
            }
            let part = self.piece.len().min(HEAD - head.len());
            head.extend_from_slice(&self.piece.split_to(part));
        }
        let mut bytes = [0; HEAD];
        head.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }

    /// What there is of the current frame.
    fn take(&mut self) -> Bytes {
        let part = self.piece.len().min(self.left);
        self.left -= part;
        self.piece.split_to(part)
    }

    async fn fill(&mut self) -> Result<bool> {
        while self.piece.is_empty() {
            match self.pieces.next().await {
                Some(piece) => self.piece = piece?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn trouble(&mut self) -> Error {
        let mut text = Vec::new();
        while self.left > 0 && text.len() < MAX_TROUBLE && matches!(self.fill().await, Ok(true)) {
            text.extend_from_slice(&self.take());
        }
        Error::new(ErrorKind::Engine, String::from_utf8_lossy(&text).trim().to_owned())
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Interrupted, "the output broke off in the middle of a piece")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: &[u8] = b"\x01\0\0\0\0\0\0\x05hello\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x02!\n";

    async fn read(bytes: &[u8], piece: usize) -> Vec<Result<LogChunk>> {
        let pieces: Vec<_> = bytes
            .chunks(piece)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        demultiplexed(stream::iter(pieces)).collect().await
    }

    #[tokio::test]
    async fn frames_are_told_apart_wherever_the_network_cuts_them() {
        for piece in 1..FRAMES.len() {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            for chunk in read(FRAMES, piece).await {
                let chunk = chunk.unwrap();
                match chunk.stream {
                    OutputStream::Stdout => out.extend_from_slice(&chunk.bytes),
                    OutputStream::Stderr => err.extend_from_slice(&chunk.bytes),
                }
            }
            assert_eq!(
                (out.as_slice(), err.as_slice()),
                (&b"hello"[..], &b"!\n"[..]),
                "pieces of {piece}"
            );
        }
    }

    #[tokio::test]
    async fn a_frame_that_is_cut_off_is_an_error_and_not_an_end() {
        for cut in [3, 10, FRAMES.len() - 1] {
            let last = read(&FRAMES[..cut], 100).await.pop().unwrap().unwrap_err();
            assert_eq!(last.kind(), ErrorKind::Interrupted, "at {cut}");
        }
    }

    #[tokio::test]
    async fn the_engines_own_trouble_is_an_error_and_not_output() {
        let last = read(b"\x03\0\0\0\0\0\0\x06broken", 5).await.pop().unwrap().unwrap_err();
        assert_eq!((last.kind(), last.message()), (ErrorKind::Engine, "broken"));
    }
}
