//! What a tree was when it was filled, so that only what has changed since needs to be read.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::levels::Levels;
use super::sys::{self, Seen};
use super::unpack::unpack_noting;
use super::{Result, TreeError, open_directory, open_root};

/// Most entries that are known one by one: 8 MiB, and twice that while a tree is filled. Those beyond are taken for changed.
const MOST: usize = 1 << 18;

/// Most threads that look at a tree: beyond that they wait for one another in the kernel.
const THREADS: usize = 4;

/// What a tree was after a tar was unpacked into it, and which part of that tar each entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    fingerprint: String,
    /// By their signatures, in order. Nothing is said of the part of one that depends on others.
    entries: Vec<(u128, Range<u64>)>,
    /// Whether that is all of them.
    complete: bool,
}

impl Known {
    /// Of a tree that had such a [`fingerprint`]; of its entries nothing is known.
    #[must_use]
    pub fn as_a_whole(fingerprint: impl Into<String>) -> Self {
        Self {
            fingerprint: fingerprint.into(),
            entries: Vec::new(),
            complete: false,
        }
    }

    /// The [`fingerprint`] that the tree had.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether the tree at `root` is what it was. Where all entries are known, several threads look, and the first entry that
    /// is not known ends it.
    ///
    /// # Errors
    /// Those of [`fingerprint`].
    pub fn is(&self, root: &Path) -> Result<bool> {
        if !self.complete {
            return Ok(fingerprint(root)? == self.fingerprint);
        }
        let root = open_root(root)?;
        let work = Work::default();
        let threads = thread::available_parallelism().map_or(1, |cores| cores.get().min(THREADS));
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| self.look(&root, &work))).collect();
            let mut done = self.look(&root, &work);
            for other in others {
                done = done.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            done
        })?;
        let state = work.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Each has its path in its signature, so that none is found twice.
        Ok(!state.stop && state.seen == self.entries.len())
    }

    /// Looks at directories as long as there are any.
    fn look(&self, root: &File, work: &Work) -> Result<()> {
        while let Some(path) = work.take() {
            let found = self.look_at(root, &path);
            let mut state = work.lock();
            state.busy -= 1;
            match &found {
                Ok(Some((seen, directories))) => {
                    state.seen += seen;
                    state.directories.extend_from_slice(directories);
                }
                _ => state.stop = true,
            }
            work.changed.notify_all();
            found?;
        }
        Ok(())
    }

    /// How many entries a directory has, and which of them are directories; `None` if it has one that is not known.
    fn look_at(&self, root: &File, path: &[u8]) -> Result<Option<(usize, Vec<Vec<u8>>)>> {
        let directory = open_directory(root, path).map_err(TreeError::io("open", path))?;
        let (mut seen, mut directories) = (0, Vec::new());
        for entry in fs::read_dir(sys::proc_path(&directory)).map_err(TreeError::io("list", path))? {
            let name = entry.map_err(TreeError::io("list", path))?.file_name();
            let name = name.as_bytes();
            let path = if path.is_empty() {
                name.to_vec()
            } else {
                [path, name].join(&b'/')
            };
            let found = sys::look(&directory, name).map_err(TreeError::io("look at", &path))?;
            if self.find(signature(&path, &found)).is_none() {
                return Ok(None);
            }
            seen += 1;
            if found.is_directory() {
                directories.push(path);
            }
        }
        Ok(Some((seen, directories)))
    }

    /// Which part of the tar an entry is, if it is what it was and that is known.
    pub(super) fn part(&self, path: &[u8], seen: &Seen) -> Option<Range<u64>> {
        self.find(signature(path, seen)).filter(|part| !part.is_empty())
    }

    /// Whether the part of any entry is known.
    pub(super) fn has_parts(&self) -> bool {
        self.entries.iter().any(|(_, part)| !part.is_empty())
    }

    fn find(&self, signature: u128) -> Option<Range<u64>> {
        let found = self.entries.binary_search_by_key(&signature, |(of, _)| *of);
        found.ok().map(|at| self.entries[at].1.clone())
    }
}

/// Directories that are to be looked at, by whoever has time.
struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    directories: Vec<Vec<u8>>,
    /// How many are being looked at.
    busy: usize,
    /// How many entries were seen.
    seen: usize,
    stop: bool,
}

impl Default for Work {
    /// The root is to be looked at.
    fn default() -> Self {
        let state = Mutex::new(State {
            directories: vec![Vec::new()],
            busy: 0,
            seen: 0,
            stop: false,
        });
        let changed = Condvar::new();
        Self { state, changed }
    }
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next directory, once there is one; `None` at the end.
    fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(path) = state.directories.pop() {
                state.busy += 1;
                return Some(path);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// [Unpacks](super::unpack) a tar that [`pack`](super::pack) or [`pack_since`](super::pack_since) has written into the whole
/// tree at `root`, and says what the tree is then. For a tar of another archiver see [`Known::as_a_whole`].
///
/// # Errors
/// Those of [`unpack`](super::unpack) and of [`fingerprint`].
pub fn fill(root: &Path, input: &mut dyn Read) -> Result<Known> {
    let mut parts = HashMap::new();
    unpack_noting(root, Path::new(""), input, &mut |path, part| {
        let key = hash(|hasher| hasher.write(path));
        // The last one of several is what the tree has.
        if parts.len() < MOST || parts.contains_key(&key) {
            parts.insert(key, part);
        }
    })?;
    let mut entries = Vec::with_capacity(parts.len());
    let mut complete = true;
    let fingerprint = walk(root, |path, seen, signature| {
        let part = parts.remove(&hash(|hasher| hasher.write(path)));
        // What a tar has of a file with several names depends on which of them it has first.
        let alone = seen.is_directory() || seen.links == 1;
        complete &= entries.len() < MOST;
        if complete {
            entries.push((signature, part.filter(|_| alone).unwrap_or(0..0)));
        }
    })?;
    // Some member went to another place than its name says, through a symlink, and may have changed what is there.
    if !parts.is_empty() {
        entries.iter_mut().for_each(|(_, part)| *part = 0..0);
    }
    entries.sort_unstable_by_key(|(signature, _)| *signature);
    Ok(Known {
        fingerprint,
        entries,
        complete,
    })
}

/// What a tree is, without a look at what is in its files: 32 hexadecimal digits, for this program to compare with.
///
/// It is made of each file's name, inode, kind, mode, size and time of change (`ctime`), which the kernel sets whenever
/// anything of a file changes and which no one can set. Two of one tree are the same if nothing in it was made, removed,
/// renamed or changed between them. The root's own owner, mode and time don't count: they are no part of what
/// [`pack`](super::pack) writes, and engines change them when they mount a volume.
///
/// # Errors
/// [`TreeError::NotFound`] if `root` is no directory, [`TreeError::Io`] for what can't be listed, and for what is removed
/// meanwhile.
pub fn fingerprint(root: &Path) -> Result<String> {
    walk(root, |_, _, _| {})
}

/// Shows all entries with their signatures, and makes one of them all.
fn walk(root: &Path, mut show: impl FnMut(&[u8], &Seen, u128)) -> Result<String> {
    let root = open_root(root)?;
    let top = root.try_clone().map_err(TreeError::io("open", b"the tree"))?;
    let mut levels = Levels::new(&root, top, b"")?;
    let mut path = Vec::new();
    let mut all = Hash::default();
    while let Some((parent, name, _)) = levels.next(&mut path)? {
        let failed = || TreeError::io("look at", &path);
        let seen = sys::look(parent, &name).map_err(failed())?;
        let signature = signature(&path, &seen);
        all.write(&signature.to_le_bytes());
        show(&path, &seen, signature);
        if seen.is_directory() {
            let directory = sys::open_below(parent, &name).map_err(failed())?;
            levels.enter(directory, &path)?;
        }
    }
    Ok(format!("{:032x}", all.done()))
}

fn signature(path: &[u8], seen: &Seen) -> u128 {
    hash(|hasher| {
        hasher.write(path);
        let (seconds, nanoseconds) = seen.changed;
        let numbers = [seen.inode, u64::from(seen.mode), seen.size, u64::from(nanoseconds)];
        hasher.write(&seconds.to_le_bytes());
        numbers.iter().for_each(|number| hasher.write(&number.to_le_bytes()));
    })
}

fn hash(write: impl FnOnce(&mut Hash)) -> u128 {
    let mut hash = Hash::default();
    write(&mut hash);
    hash.done()
}

/// 128 bits: one hasher has 64.
struct Hash([DefaultHasher; 2]);

impl Default for Hash {
    fn default() -> Self {
        let mut hashers = [DefaultHasher::new(), DefaultHasher::new()];
        hashers[1].write_u8(1);
        Self(hashers)
    }
}

impl Hash {
    fn write(&mut self, bytes: &[u8]) {
        self.0.iter_mut().for_each(|hasher| hasher.write(bytes));
    }

    fn done(&self) -> u128 {
        let [high, low] = &self.0;
        (u128::from(high.finish()) << 64) | u128::from(low.finish())
    }
}
