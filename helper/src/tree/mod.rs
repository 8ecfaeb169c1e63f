//! A tree of files as a tar, with everything that the kernel keeps of a file: owners, modes with setuid, setgid and
//! sticky bits, mtimes in nanoseconds, extended attributes of all kinds, symlinks, hard links, fifos, devices and holes.
//!
//! What is written is POSIX's `pax` interchange format, as GNU tar does it where `ustar` has no room: attributes as
//! `SCHILY.xattr.*` and sparse files as GNU's format 1.0, both of which Go's `archive/tar` reads too. What is read is that
//! and the old GNU format with its own sparse files. Data flows from file to stream and back in pieces of a fixed size;
//! what grows with the tree is one path for each directory that is unpacked, and for each file with several names that is
//! packed, and 32 bytes of each entry of a tree that is [filled](fill), and as much
//! again and its name when it is [compared](Known::compare), up to a bound.
//!
//! ```
//! use std::path::Path;
//! # let dir = tempfile::tempdir()?;
//! # let (from, to) = (dir.path().join("from"), dir.path().join("to"));
//! # std::fs::create_dir_all(&from)?;
//! # std::fs::create_dir_all(&to)?;
//! # std::fs::write(from.join("hello"), "world")?;
//! let mut tar = Vec::new();
//! orchestra_helper::tree::pack(&from, &[Path::new("hello")], &mut tar)?;
//! orchestra_helper::tree::unpack(&to, Path::new(""), &mut tar.as_slice())?;
//! assert_eq!(std::fs::read(to.join("hello"))?, b"world");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod format;
mod known;
mod levels;
mod pack;
mod sys;
mod unpack;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use known::{Comparison, Known, fill, fingerprint};
pub use pack::{Since, pack, pack_since};
pub use sys::widen_pipe;
pub use unpack::unpack;

/// How much goes to and from a file or stream at once.
const PIECE: usize = 256 << 10;

/// Why a tree could not be packed or unpacked.
#[derive(Debug)]
#[non_exhaustive]
pub enum TreeError {
    /// There is no such file or directory in the tree.
    NotFound(PathBuf),
    /// The stream is no tar, or names what no tree may hold.
    Invalid(String),
    /// What was the same when it was looked at is not what it was in the tar.
    Changed(PathBuf),
    /// A file or the stream could not be read or written. A full disk is [`io::ErrorKind::StorageFull`].
    Io {
        /// What was being done: `write a/b`.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl TreeError {
    fn io(doing: &str, path: &[u8]) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            doing: format!("{doing} {}", String::from_utf8_lossy(path)),
            source,
        }
    }

    fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(path) => write!(f, "no such file or directory: {}", path.display()),
            Self::Invalid(why) => write!(f, "the tar can't be read: {why}"),
            Self::Changed(path) => write!(f, "{} is not what it was in the tar", path.display()),
            Self::Io { doing, source } => write!(f, "{doing}: {source}"),
        }
    }
}

impl std::error::Error for TreeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// What comes of work on a tree.
pub type Result<T> = std::result::Result<T, TreeError>;

/// The tree's root, held open.
fn open_root(root: &Path) -> Result<File> {
    let file = File::open(root).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => TreeError::NotFound(root.to_owned()),
        _ => TreeError::io("open", root.as_os_str().as_bytes())(source),
    })?;
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(file),
        _ => Err(TreeError::NotFound(root.to_owned())),
    }
}

/// A path with one `/` between its parts and none around them, and no `.`; empty for the root. `None` for one that
/// leads upwards.
fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            _ => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    Some(clean)
}

/// The directory of a clean path, and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The directory at a clean `path`, if that leads there without a symlink.
fn open_directly(root: &File, path: &[u8]) -> io::Result<File> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    sys::open(root, path, sys::PATH | sys::DIRECTORY, 0, sys::Resolve::NoSymlinks)
}

/// The directory at a clean `path`, as it is seen from `root`: a symlink on the way is followed inside of it.
fn open_directory(root: &File, path: &[u8]) -> io::Result<File> {
    /// The kernel's most for one call is 4096 with the nul.
    const MOST: usize = 4000;
    let flags = sys::PATH | sys::DIRECTORY;
    if path.len() <= MOST {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        return sys::open(root, path, flags, 0, sys::Resolve::InRoot);
    }
    // Below a first piece, an absolute symlink would no longer be seen from the root: none is followed there.
    let (mut dir, mut rest, mut resolve) = (None, path, sys::Resolve::InRoot);
    while !rest.is_empty() {
        let end = if rest.len() <= MOST {
            rest.len()
        } else {
            let slash = rest[..MOST].iter().rposition(|byte| *byte == b'/');
            slash.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?
        };
        dir = Some(sys::open(
            dir.as_ref().unwrap_or(root),
            &rest[..end],
            flags,
            0,
            resolve,
        )?);
        rest = rest[end..].strip_prefix(b"/").unwrap_or_default();
        resolve = sys::Resolve::NoSymlinks;
    }
    dir.ok_or_else(|| io::ErrorKind::NotFound.into())
}
