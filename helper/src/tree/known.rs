//! What a tree was when it was filled, so that only what has changed since needs to be read.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::levels::{Kind, Levels, Listed, Listings, list, open_if_there};
use super::sys::{self, Seen};
use super::unpack::unpack_noting;
use super::{Result, TreeError, open_root, split};

/// Most entries that are known one by one: 8 MiB, twice that while a tree is filled, and 16 MiB and their names while it is
/// compared. Those beyond are taken for changed.
const MOST: usize = 1 << 18;

/// Most bytes of paths and names that are held while a tree is compared: a tree can be deeper than it is large.
const MOST_BYTES: usize = 32 << 20;

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

    /// Looks, by several threads, at what the tree at `root` is now.
    ///
    /// # Errors
    /// Those of [`fingerprint`].
    pub fn compare(&self, root: &Path) -> Result<Comparison> {
        let mut unchanged = false;
        if !self.complete {
            unchanged = fingerprint(root)? == self.fingerprint;
            if unchanged || !self.has_parts() {
                let listings = Listings::new();
                return Ok(Comparison { unchanged, listings });
            }
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
        if self.complete {
            // Each has its path in its signature, so that none is found twice.
            unchanged = !state.changed && state.listed == self.entries.len();
        }
        let listings = state.listings;
        Ok(Comparison { unchanged, listings })
    }

    /// Looks at directories as long as there are any.
    fn look(&self, root: &File, work: &Work) -> Result<()> {
        while let Some(path) = work.take() {
            let looked = self.look_at(root, &path);
            let mut state = work.lock();
            state.busy -= 1;
            work.changed.notify_all();
            match looked {
                Ok(looked) => state.take_up(path, looked),
                Err(error) => {
                    state.stop = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// What is in a directory, and whether any of it is not what it was.
    fn look_at(&self, root: &File, path: &[u8]) -> Result<Looked> {
        // Who goes through the tree afterwards sees what has become of it.
        let Some(directory) = open_if_there(root, path)? else {
            return Ok(None);
        };
        let mut entries = list(&directory, path)?;
        let mut changed = false;
        let mut full = Vec::new();
        for entry in &mut entries {
            full.clear();
            full.extend_from_slice(path);
            if !path.is_empty() {
                full.push(b'/');
            }
            full.extend_from_slice(&entry.name);
            let known = match sys::look(&directory, &entry.name) {
                Ok(seen) => {
                    if seen.is_directory() {
                        entry.kind = Kind::Directory;
                    }
                    self.find(signature(&full, &seen))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(TreeError::io("look at", &full)(error)),
            };
            changed |= known.is_none();
            entry.part = known.unwrap_or(0..0);
        }
        Ok(Some((entries, changed)))
    }

    /// Whether the part of any entry is known.
    fn has_parts(&self) -> bool {
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

/// What a directory has, and whether any of it is not what it was; `None` if there is no such directory any more.
type Looked = Option<(Vec<Listed>, bool)>;

struct State {
    directories: Vec<Vec<u8>>,
    /// How many are being looked at.
    busy: usize,
    listings: Listings,
    /// How many entries are in these.
    listed: usize,
    /// How long all paths and names are that are held.
    bytes: usize,
    /// Whether anything is not what it was.
    changed: bool,
    stop: bool,
}

impl Default for Work {
    /// The root is to be looked at.
    fn default() -> Self {
        let state = Mutex::new(State {
            directories: vec![Vec::new()],
            busy: 0,
            listings: Listings::new(),
            listed: 0,
            bytes: 0,
            changed: false,
            stop: false,
        });
        let changed = Condvar::new();
        Self { state, changed }
    }
}

impl State {
    /// Notes what is in the directory at `path`, as long as there is room: what is beyond is listed by who needs it.
    fn take_up(&mut self, path: Vec<u8>, looked: Looked) {
        let Some((entries, changed)) = looked else {
            self.changed = true;
            return;
        };
        let inner = entries.iter().filter(|entry| entry.kind == Kind::Directory);
        // Those of directories that are still to be looked at are there, too.
        let names: usize = entries.iter().map(|entry| entry.name.len()).sum();
        let paths: usize = inner.clone().map(|entry| path.len() + 1 + entry.name.len()).sum();
        if self.listed + entries.len() > MOST || self.bytes + names + paths > MOST_BYTES {
            self.changed = true;
            return;
        }
        self.bytes += names + paths;
        self.changed |= changed;
        self.listed += entries.len();
        self.directories.extend(inner.map(|entry| match path.is_empty() {
            true => entry.name.clone(),
            false => [&path[..], &entry.name].join(&b'/'),
        }));
        self.listings.insert(path, entries);
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

/// What a tree is, seen from what was [known](Known) of it.
#[derive(Debug)]
pub struct Comparison {
    unchanged: bool,
    listings: Listings,
}

impl Comparison {
    /// Whether all of it is what it was.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.unchanged
    }

    /// What is in its directories, as far as it was looked at.
    pub(super) fn listings(&self) -> &Listings {
        &self.listings
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
    let mut levels = Levels::new(&root, top, b"", None)?;
    let mut path = Vec::new();
    let mut all = Hash::default();
    while levels.next(&mut path).is_some() {
        let Some(parent) = levels.directory(&path)? else {
            continue;
        };
        let failed = || TreeError::io("look at", &path);
        let name = split(&path).1;
        let seen = sys::look(parent, name).map_err(failed())?;
        let signature = signature(&path, &seen);
        all.write(&signature.to_le_bytes());
        show(&path, &seen, signature);
        if seen.is_directory() {
            let directory = sys::open_below(parent, name).map_err(failed())?;
            levels.enter(Some(directory), &path)?;
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Since, pack, pack_since};
    use super::*;

    #[test]
    fn a_directory_that_found_no_room_is_listed_by_who_packs_it_and_read() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for directory in ["a", "b", "b/c"] {
            fs::create_dir(from.path().join(directory)).unwrap();
            for at in 0..10 {
                fs::write(from.path().join(format!("{directory}/{at}")), vec![at; 3000]).unwrap();
            }
        }
        let mut before = Vec::new();
        pack(from.path(), &[Path::new("")], &mut before).unwrap();
        let known = fill(to.path(), &mut before.as_slice()).unwrap();
        let mut comparison = known.compare(to.path()).unwrap();
        assert!(comparison.is_unchanged());
        comparison.listings.remove(b"b".as_slice()).unwrap();
        let cuts: Vec<u64> = (0..=before.len() as u64).step_by(512).collect();
        let mut same = Vec::new();
        let since = Since {
            comparison: &comparison,
            cuts: &cuts,
            same: &mut |part| {
                same.push(part);
                Ok(())
            },
        };
        let mut read = Vec::new();
        pack_since(to.path(), &[Path::new("")], Some(since), true, &mut read).unwrap();
        let at = |name: &[u8]| (before.windows(name.len()).position(|found| found == name).unwrap() / 512 * 512) as u64;
        // `b` itself is what it was, and so is what is in `b/c`, which was listed.
        let (first, inner) = (at(b"b/0"), at(b"b/c/0"));
        let inner_end = before.len() as u64 - 1024;
        assert_eq!(same[0].start, 0);
        assert!(same[0].end <= first && same[0].end + 2048 > first, "{same:?}, {first}");
        let begins = inner.saturating_sub(2048)..=inner;
        assert!(
            same.len() == 2 && begins.contains(&same[1].start) && same[1].end == inner_end,
            "{same:?}, {inner}"
        );
        assert_eq!(
            read.len() as u64,
            inner_end - same.iter().map(|part| part.end - part.start).sum::<u64>()
        );
    }
}
