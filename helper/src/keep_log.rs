//! Keeps what a process writes, beside an engine that has no one to do so.
//!
//! A container outlives who started it, and so must its log: the keeper is a process of its own, which reads the two pipes
//! and writes *frames* into *segments*, files in one folder. A frame is a header of 16 bytes (what it is, its
//! length, the time) and its bytes, and is written whole; frames stand in the order in which both streams arrived. A segment is named after the position of its
//! first byte in the log, counted over both streams.
//!
//! The oldest segments are dropped as soon as those after them hold the limit. Who reads a segment holds a shared lock
//! on it: a reader that falls back by more than the limit slows the writer down, and loses nothing. The file
//! [`KEEPER`] is locked as long as the keeper lives; the frame [`END`] is the last one of a log that is whole.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::shim::Exit;

/// A frame of standard output.
pub const STDOUT: u8 = 1;
/// A frame of standard error.
pub const STDERR: u8 = 2;
/// The last frame: both streams have ended.
pub const END: u8 = 3;
/// A frame whose 8 bytes are the number of bytes that could not be written at this place.
pub const GAP: u8 = 4;

/// Bytes of a header.
pub const HEADER: usize = 16;
/// Bytes of a frame at most, without its header: a pipe's.
pub const LARGEST: usize = 64 * 1024;
/// The file that the keeper holds locked.
pub const KEEPER: &str = "keeper";

/// The file that says how the container ended, if the keeper was told.
const EXIT: &str = "exit";

/// Parts that the limit is cut into: so much more than the limit may lie on the disk.
const PARTS: u64 = 8;
/// A segment is at least so large.
const SMALLEST_SEGMENT: u64 = 64 * 1024;

/// What stands before the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`STDOUT`], [`STDERR`], [`END`] or [`GAP`].
    pub kind: u8,
    /// Bytes that follow, at most [`LARGEST`].
    pub length: usize,
    /// Nanoseconds since 1970.
    pub time: u64,
}

impl Header {
    /// As it stands in a segment: kind, three zeros, length and time, least significant byte first.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "no frame is longer than LARGEST")]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.kind;
        bytes[4..8].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes[8..].copy_from_slice(&self.time.to_le_bytes());
        bytes
    }

    /// From the first bytes of a frame; `None` if it can't be one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Option<Self> {
        let [kind, 0, 0, 0, a, b, c, d, time @ ..] = *bytes else {
            return None;
        };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let right = match kind {
            STDOUT | STDERR => (1..=LARGEST).contains(&length),
            END => length == 0,
            GAP => length == 8,
            _ => false,
        };
        right.then(|| Self {
            kind,
            length,
            time: u64::from_le_bytes(time),
        })
    }
}

/// The name of the segment that starts at a position.
#[must_use]
pub fn segment_name(start: u64) -> String {
    format!("{start:020}")
}

/// Where the segment of this name starts, if it is one.
#[must_use]
pub fn segment_start(name: &OsStr) -> Option<u64> {
    let name = name.to_str()?;
    let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok())?
}

/// The starts of a log's segments, the oldest first.
///
/// # Errors
/// If the folder can't be read.
pub fn segments(folder: &Path) -> io::Result<Vec<u64>> {
    let mut starts = Vec::new();
    for entry in fs::read_dir(folder)? {
        starts.extend(segment_start(&entry?.file_name()));
    }
    starts.sort_unstable();
    Ok(starts)
}

/// Notes beside a log how its container ended.
///
/// # Errors
/// If it can't be written.
pub fn note_exit(folder: &Path, exit: Exit) -> io::Result<()> {
    let new = folder.join(format!("{EXIT}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    write!(file, "{} {}", exit.code, u8::from(exit.out_of_memory))?;
    fs::rename(new, folder.join(EXIT))
}

/// Takes away what was noted of an earlier start, which was taken back.
///
/// # Errors
/// If it can't be removed.
pub fn forget_exit(folder: &Path) -> io::Result<()> {
    match fs::remove_file(folder.join(EXIT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How a log's container ended, if that was [noted](note_exit).
#[must_use]
pub fn exit(folder: &Path) -> Option<Exit> {
    let text = fs::read_to_string(folder.join(EXIT)).ok()?;
    let (code, out_of_memory) = text.split_once(' ')?;
    Some(Exit {
        code: code.parse().ok()?,
        out_of_memory: out_of_memory == "1",
    })
}

/// Reads both streams to their ends into the log in `folder`, which must be there. `ready` is called as soon as it is kept.
///
/// # Errors
/// If the folder is no log's, or another keeper has it. What goes wrong later leaves a [`GAP`].
pub fn keep(
    folder: &Path,
    limit: u64,
    streams: [(u8, impl FnOnce() -> io::Result<File> + Send); 2],
    ready: impl FnOnce(),
) -> io::Result<()> {
    // Held until the process ends, whatever ends it.
    let _alive = alone(folder)?;
    let log = Mutex::new(Log::open(folder, limit)?);
    ready();
    thread::scope(|scope| {
        for (kind, open) in streams {
            let log = &log;
            scope.spawn(move || {
                if let Ok(stream) = open() {
                    copy(kind, stream, log);
                }
            });
        }
    });
    let mut log = log.into_inner().unwrap_or_else(PoisonError::into_inner);
    log.append(END, &mut [0; HEADER]);
    Ok(())
}

/// The lock that says that a log is kept. It has its place only when it is held: nobody can find it free before.
fn alone(folder: &Path) -> io::Result<File> {
    let path = folder.join(KEEPER);
    match File::open(&path) {
        // Shared, as readers ask whether somebody has it in the same way.
        Ok(other) => other.try_lock_shared()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let new = folder.join(format!("{KEEPER}.new"));
    let own = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    own.try_lock()?;
    fs::rename(new, path)?;
    Ok(own)
}

/// The frame's header goes before the bytes in one buffer, so that a frame is one write.
fn copy(kind: u8, mut stream: File, log: &Mutex<Log>) {
    let mut frame = vec![0; HEADER + LARGEST];
    loop {
        match stream.read(&mut frame[HEADER..]) {
            Ok(0) => return,
            Ok(length) => {
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                log.append(kind, &mut frame[..HEADER + length]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

struct Log {
    folder: PathBuf,
    limit: u64,
    /// Start and bytes on the disk of all segments; the last one is written to.
    segments: VecDeque<(u64, u64)>,
    file: File,
    /// Bytes of both streams so far.
    position: u64,
    /// Bytes that could not be written since the last ones that could.
    lost: u64,
}

impl Log {
    /// Goes on where an earlier keeper ended: a frame that it could not finish is cut off.
    fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        let mut segments = VecDeque::new();
        for start in self::segments(folder)? {
            segments.push_back((start, fs::metadata(folder.join(segment_name(start)))?.len()));
        }
        let (start, _) = segments.pop_back().unwrap_or((0, 0));
        let file = open_segment(folder, start)?;
        let (length, bytes) = whole(&file)?;
        file.set_len(length)?;
        segments.push_back((start, length));
        Ok(Self {
            folder: folder.to_owned(),
            limit,
            segments,
            file,
            position: start + bytes,
            lost: 0,
        })
    }

    /// `frame` has room for the header at its beginning. What can't be written is counted: a full disk must not stop the
    /// process whose log this is, and must not look like silence either.
    fn append(&mut self, kind: u8, frame: &mut [u8]) {
        let length = frame.len() - HEADER;
        if self.lost > 0 {
            let mut gap = [0; HEADER + 8];
            gap[HEADER..].copy_from_slice(&self.lost.to_le_bytes());
            if self.write(GAP, &mut gap).is_ok() {
                self.position += self.lost;
                self.lost = 0;
            }
        }
        if self.lost == 0 && self.write(kind, frame).is_ok() {
            self.position += length as u64;
        } else {
            self.lost += length as u64;
        }
    }

    fn write(&mut self, kind: u8, frame: &mut [u8]) -> io::Result<()> {
        let header = Header {
            kind,
            length: frame.len() - HEADER,
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|time| u64::try_from(time.as_nanos()).ok())
                .unwrap_or_default(),
        };
        frame[..HEADER].copy_from_slice(&header.to_bytes());
        self.make_room()?;
        let Some((_, length)) = self.segments.back_mut() else {
            return Ok(());
        };
        if let Err(error) = self.file.write_all(frame) {
            // Half a frame would spoil all that comes after it.
            self.file.set_len(*length)?;
            return Err(error);
        }
        *length += frame.len() as u64;
        Ok(())
    }

    /// A new segment where this one is full, and the oldest ones away where the others hold the limit.
    fn make_room(&mut self) -> io::Result<()> {
        let full = (self.limit / PARTS).max(SMALLEST_SEGMENT);
        if self.segments.back().is_none_or(|(_, length)| *length < full) {
            return Ok(());
        }
        self.file = open_segment(&self.folder, self.position)?;
        self.segments.push_back((self.position, 0));
        let mut all: u64 = self.segments.iter().map(|(_, length)| length).sum();
        while let Some((start, length)) = self.segments.front().copied()
            && self.segments.len() > 1
            && all - length >= self.limit
        {
            let path = self.folder.join(segment_name(start));
            if let Ok(oldest) = File::open(&path) {
                // As long as somebody reads it, the writer waits.
                oldest.lock()?;
                fs::remove_file(&path)?;
            }
            self.segments.pop_front();
            all -= length;
        }
        Ok(())
    }
}

fn open_segment(folder: &Path, start: u64) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(folder.join(segment_name(start)))
}

/// How much of a segment is whole frames, and how many bytes of the streams are in them.
fn whole(file: &File) -> io::Result<(u64, u64)> {
    let size = file.metadata()?.len();
    let (mut length, mut bytes) = (0, 0);
    loop {
        let mut header = [0; HEADER];
        match file.read_exact_at(&mut header, length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok((length, bytes)),
            Err(error) => return Err(error),
        }
        let Some(header) = Header::from_bytes(&header) else {
            return Ok((length, bytes));
        };
        let end = length + (HEADER + header.length) as u64;
        if end > size {
            return Ok((length, bytes));
        }
        bytes += match header.kind {
            STDOUT | STDERR => header.length as u64,
            GAP => {
                let mut lost = [0; 8];
                file.read_exact_at(&mut lost, length + HEADER as u64)?;
                u64::from_le_bytes(lost)
            }
            _ => 0,
        };
        length = end;
    }
}
