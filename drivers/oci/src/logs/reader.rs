//! Reads a log's segments one after the other, and waits for more.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use orchestra::{Error, ErrorKind, LogChunk, LogStream, OutputStream, Result};
use orchestra_helper::keep_log::{END, GAP, HEADER, Header, KEEPER, LARGEST, STDERR, STDOUT, segment_name, segments};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::time::timeout;

use super::watch::{Bell, Changes, not_found};
use crate::blocking::blocking;

/// Bytes that are read at once: a few frames of the largest size.
const PIECE: usize = 4 * (HEADER + LARGEST);
/// A keeper's death is told before its lock is free, so a reader that comes in between could miss it: then it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

pub(super) async fn read(folder: PathBuf, offset: u64, bell: Option<Bell>) -> Result<LogStream> {
    let cursor = blocking(move || Cursor::open(folder, offset)).await?;
    let reader = Reader {
        cursor: Some(cursor),
        chunks: VecDeque::new(),
        bell,
    };
    Ok(stream::try_unfold(reader, async |mut reader| {
        Ok(reader.next().await?.map(|chunk| (chunk, reader)))
    })
    .boxed())
}

struct Reader {
    /// Away while it reads, and for good after the end.
    cursor: Option<Cursor>,
    chunks: VecDeque<LogChunk>,
    bell: Option<Bell>,
}

/// What a look at the log gave.
enum Found {
    Chunks(VecDeque<LogChunk>),
    /// Nothing more is written now.
    Pause(Keeper),
    /// The log's end, or, with an error, the last that can be read of it.
    End(Option<Error>),
}

/// Whether somebody can still write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeper {
    NotYet,
    Alive,
    Gone,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<LogChunk>> {
        loop {
            if let Some(chunk) = self.chunks.pop_front() {
                return Ok(Some(chunk));
            }
            let Some(mut cursor) = self.cursor.take() else {
                return Ok(None);
            };
            // Before the look: what happens during it rings.
            let seen = self.bell.as_mut().map(Bell::seen);
            let (cursor, found) = blocking(move || {
                let found = cursor.look()?;
                Ok((cursor, found))
            })
            .await?;
            match found {
                Found::Chunks(chunks) => self.chunks = chunks,
                Found::End(None) => return Ok(None),
                Found::End(Some(error)) => return Err(error),
                Found::Pause(keeper) => {
                    let Some(seen) = seen else { return Ok(None) };
                    if keeper == Keeper::Gone {
                        return Err(died(&cursor.folder));
                    }
                    if !self.rings(&cursor, seen).await? {
                        // The folder is gone: one more look, and no more waiting.
                        self.bell = None;
                    }
                }
            }
            self.cursor = Some(cursor);
        }
    }

    /// Waits until there may be something new; false when nothing will.
    async fn rings(&mut self, cursor: &Cursor, seen: Changes) -> Result<bool> {
        let Some(bell) = &mut self.bell else {
            return Ok(false);
        };
        let Ok(there) = timeout(LOOK_AGAIN, bell.rings()).await else {
            return Ok(true);
        };
        if there && bell.seen().ends > seen.ends {
            // It has closed its file, and its lock is free within the same system call.
            let keeper = cursor.folder.join(KEEPER);
            blocking(move || {
                if let Ok(file) = File::open(keeper) {
                    let _ = flock(&file, FlockOperation::LockShared);
                }
                Ok(())
            })
            .await?;
        }
        Ok(there)
    }
}

fn died(folder: &Path) -> Error {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    Error::new(
        ErrorKind::Interrupted,
        format!("the keeper of the log of {name} was killed: what was written since is lost"),
    )
    .retryable(false)
}

/// A place in a log, held by a lock on the segment that it is in.
struct Cursor {
    folder: PathBuf,
    /// Bytes of both streams up to here.
    position: u64,
    /// What comes before is left out.
    offset: u64,
    segment: Segment,
    buffer: BytesMut,
    ended: bool,
    /// What comes next could not be kept.
    lost: bool,
}

struct Segment {
    start: u64,
    file: File,
    /// Bytes of the file that were read.
    read: u64,
}

/// What comes after a segment.
enum Next {
    Segment(Segment),
    None,
    /// Nothing ever: the log was removed.
    Removed,
}

impl Cursor {
    fn open(folder: PathBuf, offset: u64) -> Result<Self> {
        let segment = loop {
            let starts = segments(&folder).map_err(|error| failed(&folder, error))?;
            let start = starts.iter().rev().find(|start| **start <= offset).or(starts.first());
            // Without segments it is being made, or removed.
            let start = *start.ok_or_else(|| not_found(&folder))?;
            if let Some(segment) = Segment::open(&folder, start)? {
                break segment;
            }
        };
        Ok(Self {
            position: segment.start,
            folder,
            offset,
            segment,
            buffer: BytesMut::new(),
            ended: false,
            lost: false,
        })
    }

    fn look(&mut self) -> Result<Found> {
        loop {
            if let Some(found) = self.frames()? {
                return Ok(found);
            }
            if self.fill()? {
                continue;
            }
            // In this order: who could write more is asked before the last look at what there is.
            let keeper = self.keeper()?;
            let next = self.next_segment()?;
            if self.fill()? {
                continue;
            }
            match next {
                Next::Segment(next) => {
                    self.position = next.start;
                    self.segment = next;
                    self.buffer.clear();
                    self.ended = false;
                }
                Next::None if !self.ended => return Ok(Found::Pause(keeper)),
                Next::None | Next::Removed => return Ok(Found::End(None)),
            }
        }
    }

    /// Reads more of the segment; false if there is no more.
    fn fill(&mut self) -> Result<bool> {
        let have = self.buffer.len();
        self.buffer.resize(have + PIECE, 0);
        let read = loop {
            match self.segment.file.read_at(&mut self.buffer[have..], self.segment.read) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let read = read.map_err(|error| failed(&self.folder, error))?;
        self.buffer.truncate(have + read);
        self.segment.read += read as u64;
        Ok(read > 0)
    }

    /// The whole frames that were read, as far as they are asked for.
    fn frames(&mut self) -> Result<Option<Found>> {
        if self.lost {
            return Ok(Some(Found::End(Some(lost(&self.folder)))));
        }
        let mut chunks = VecDeque::new();
        while let Some((header, mut bytes)) = self.frame()? {
            let stream = match header.kind {
                STDOUT => OutputStream::Stdout,
                STDERR => OutputStream::Stderr,
                GAP => {
                    self.position += bytes.get_u64_le();
                    if self.position <= self.offset {
                        continue;
                    }
                    self.lost = true;
                    break;
                }
                _ => {
                    debug_assert_eq!(header.kind, END);
                    self.ended = true;
                    continue;
                }
            };
            self.ended = false;
            let end = self.position + bytes.len() as u64;
            let old = self.offset.saturating_sub(self.position).min(bytes.len() as u64);
            self.position = end;
            bytes.advance(usize::try_from(old).unwrap_or(bytes.len()));
            if !bytes.is_empty() {
                chunks.push_back(LogChunk { stream, bytes });
            }
        }
        Ok((!chunks.is_empty() || self.lost).then_some(Found::Chunks(chunks)))
    }

    fn frame(&mut self) -> Result<Option<(Header, Bytes)>> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let header = Header::from_bytes(header).ok_or_else(|| {
            let at = self.segment.read - self.buffer.len() as u64;
            let segment = self.folder.join(segment_name(self.segment.start));
            Error::new(
                ErrorKind::Protocol,
                format!("{} is no segment of a log, at byte {at}", segment.display()),
            )
        })?;
        if self.buffer.len() < HEADER + header.length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        Ok(Some((header, self.buffer.split_to(header.length).freeze())))
    }

    fn keeper(&self) -> Result<Keeper> {
        let file = match File::open(self.folder.join(KEEPER)) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Keeper::NotYet),
            Err(error) => return Err(failed(&self.folder, error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Keeper::Gone),
            Err(Errno::WOULDBLOCK) => Ok(Keeper::Alive),
            Err(error) => Err(failed(&self.folder, error.into())),
        }
    }

    /// The segment after this one. This one is held until then, and the keeper drops none that is.
    fn next_segment(&self) -> Result<Next> {
        let starts = match segments(&self.folder) {
            Ok(starts) => starts,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Next::Removed),
            Err(error) => return Err(failed(&self.folder, error)),
        };
        if !starts.contains(&self.segment.start) {
            return Ok(Next::Removed);
        }
        match starts.into_iter().find(|start| *start > self.segment.start) {
            Some(start) => Ok(Segment::open(&self.folder, start)?.map_or(Next::Removed, Next::Segment)),
            None => Ok(Next::None),
        }
    }
}

impl Segment {
    /// `None` if it is gone by the time it is held.
    fn open(folder: &Path, start: u64) -> Result<Option<Self>> {
        let file = match File::open(folder.join(segment_name(start))) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(folder, error)),
        };
        // The other side holds it for no longer than it takes to remove it.
        flock(&file, FlockOperation::LockShared).map_err(|error| failed(folder, error.into()))?;
        let links = rustix::fs::fstat(&file)
            .map_err(|error| failed(folder, error.into()))?
            .st_nlink;
        Ok((links > 0).then_some(Self { start, file, read: 0 }))
    }
}

fn failed(folder: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => not_found(folder),
        _ => Error::io(format!("read the log {}", folder.display()), error),
    }
}

fn lost(folder: &Path) -> Error {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    Error::new(
        ErrorKind::DiskFull,
        format!("output of {name} could not be written to its log, and is lost from here on"),
    )
    .with_hint("free space where logs are kept")
}
