//! The entries of a tree, in the order of their names.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;

use super::{Result, TreeError, open_directory, sys};

/// A directory whose entries are being looked at.
struct Level {
    /// As long as it is among the innermost.
    directory: Option<File>,
    entries: std::vec::IntoIter<(OsString, Option<fs::FileType>)>,
    /// How long its own path is.
    length: usize,
}

/// The directories that are being looked at, one in another. No recursion: a task can nest them deeper than a thread's
/// stack, and deeper than a process may have files open.
pub(super) struct Levels<'r> {
    root: &'r File,
    levels: Vec<Level>,
}

/// An entry of a directory: that directory, the entry's name, and what it was when the directory was listed.
type Listed<'d> = (&'d File, Vec<u8>, Option<fs::FileType>);

/// How many of the innermost directories are held open.
const OPEN: usize = 64;

impl<'r> Levels<'r> {
    /// Begins with the directory at `path` of the tree at `root`.
    pub(super) fn new(root: &'r File, directory: File, path: &[u8]) -> Result<Self> {
        let levels = vec![Level::new(directory, path)?];
        Ok(Self { root, levels })
    }

    /// Goes on with what is in this directory, which the last entry was.
    pub(super) fn enter(&mut self, directory: File, path: &[u8]) -> Result<()> {
        self.levels.push(Level::new(directory, path)?);
        if let Some(outer) = self.levels.len().checked_sub(OPEN + 1) {
            self.levels[outer].directory = None;
        }
        Ok(())
    }

    /// The next entry; `path` becomes its own.
    pub(super) fn next(&mut self, path: &mut Vec<u8>) -> Result<Option<Listed<'_>>> {
        while let Some(level) = self.levels.last_mut() {
            path.truncate(level.length);
            if !level.entries.as_slice().is_empty() && level.directory.is_none() {
                match open_directory(self.root, path) {
                    Ok(directory) => level.directory = Some(directory),
                    // It was removed, or became something else, since it was listed.
                    Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                        level.entries = Vec::new().into_iter();
                    }
                    Err(error) => return Err(TreeError::io("open", path)(error)),
                }
            }
            if !level.entries.as_slice().is_empty() {
                break;
            }
            self.levels.pop();
        }
        let Some(level) = self.levels.last_mut() else {
            return Ok(None);
        };
        let (Some(directory), Some((name, kind))) = (&level.directory, level.entries.next()) else {
            return Ok(None);
        };
        let name = name.into_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        Ok(Some((directory, name, kind)))
    }
}

impl Level {
    fn new(directory: File, path: &[u8]) -> Result<Self> {
        let failed = || TreeError::io("list", path);
        let mut entries = Vec::new();
        for entry in fs::read_dir(sys::proc_path(&directory)).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            entries.push((entry.file_name(), entry.file_type().ok()));
        }
        entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        Ok(Self {
            directory: Some(directory),
            entries: entries.into_iter(),
            length: path.len(),
        })
    }
}
