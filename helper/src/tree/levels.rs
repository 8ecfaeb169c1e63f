//! The entries of a tree, in the order of their names.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;

use super::{Result, TreeError, open_directory, sys};

/// An entry of a directory, as it was when that was listed.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Which part of an earlier tar it is, where that is known and it is what it was; else nothing.
    pub(super) part: Range<u64>,
}

/// What an entry is, as far as it matters for opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    /// Something else, or nobody knows.
    Other,
}

/// The entries of directories, by their paths: each directory's in the order of their names.
pub(super) type Listings = HashMap<Vec<u8>, Vec<Listed>>;

/// A directory whose entries are being looked at.
struct Level<'l> {
    /// As long as it is among the innermost, and once it is needed.
    directory: Option<File>,
    entries: Cow<'l, [Listed]>,
    /// Which of them comes next.
    next: usize,
    /// How long its own path is.
    length: usize,
}

/// The directories that are being looked at, one in another. No recursion: a task can nest them deeper than a thread's
/// stack, and deeper than a process may have files open.
pub(super) struct Levels<'l> {
    root: &'l File,
    /// Of directories that are in here, nothing is asked any more.
    listings: Option<&'l Listings>,
    levels: Vec<Level<'l>>,
}

/// How many of the innermost directories are held open.
const OPEN: usize = 64;

impl<'l> Levels<'l> {
    /// Begins with the directory at `path` of the tree at `root`.
    pub(super) fn new(root: &'l File, directory: File, path: &[u8], listings: Option<&'l Listings>) -> Result<Self> {
        let mut levels = Self {
            root,
            listings,
            levels: Vec::new(),
        };
        levels.enter(Some(directory), path)?;
        Ok(levels)
    }

    /// Goes on with what is in this directory, which the last entry was.
    pub(super) fn enter(&mut self, mut directory: Option<File>, path: &[u8]) -> Result<()> {
        let entries = match self.listings.and_then(|listings| listings.get(path)) {
            Some(listing) => Cow::Borrowed(listing.as_slice()),
            None => {
                if directory.is_none() {
                    directory = open_if_there(self.root, path)?;
                }
                let entries = directory.as_ref().map(|directory| list(directory, path));
                Cow::Owned(entries.transpose()?.unwrap_or_default())
            }
        };
        self.levels.push(Level {
            directory,
            entries,
            next: 0,
            length: path.len(),
        });
        if let Some(outer) = self.levels.len().checked_sub(OPEN + 1) {
            self.levels[outer].directory = None;
        }
        Ok(())
    }

    /// The next entry's kind and [part](Listed::part); `path` becomes its own.
    pub(super) fn next(&mut self, path: &mut Vec<u8>) -> Option<(Kind, Range<u64>)> {
        while self
            .levels
            .last()
            .is_some_and(|level| level.next >= level.entries.len())
        {
            self.levels.pop();
        }
        let level = self.levels.last_mut()?;
        let entry = level.entries.get(level.next)?;
        level.next += 1;
        path.truncate(level.length);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        Some((entry.kind, entry.part.clone()))
    }

    /// The directory of the last entry, whose path is `path`. `None` if it was removed, or became something else, since it was
    /// listed: then nothing more comes of it.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Option<&File>> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(None);
        };
        if level.directory.is_none() {
            level.directory = open_if_there(self.root, &path[..level.length])?;
            if level.directory.is_none() {
                level.next = level.entries.len();
            }
        }
        Ok(level.directory.as_ref())
    }
}

/// `None` for a directory that was removed, or became something else, since it was listed.
pub(super) fn open_if_there(root: &File, path: &[u8]) -> Result<Option<File>> {
    match open_directory(root, path) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(TreeError::io("open", path)(error)),
    }
}

/// What is in the directory at `path`.
pub(super) fn list(directory: &File, path: &[u8]) -> Result<Vec<Listed>> {
    let failed = || TreeError::io("list", path);
    let mut entries = Vec::new();
    for entry in fs::read_dir(sys::proc_path(directory)).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        entries.push(Listed {
            kind: match entry.file_type() {
                Ok(kind) if kind.is_dir() => Kind::Directory,
                Ok(kind) if kind.is_file() => Kind::File,
                _ => Kind::Other,
            },
            name: entry.file_name().into_vec(),
            part: 0..0,
        });
    }
    entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(entries)
}
