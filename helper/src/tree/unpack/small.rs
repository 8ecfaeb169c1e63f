//! Small files, which several threads make: nearly all that they take is the kernel's work on one file after the other.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use super::super::sys::Node;
use super::super::{Result, TreeError, split};
use super::file::{finish, make};
use super::member::Member;

/// Most content of a small file, in bytes.
const SMALL: u64 = 64 << 10;
/// The kernel's longest path.
const PATH: usize = 4096;
/// Most files of a batch: each may hold another directory open, and a process often has 1024 descriptors.
const FILES: usize = if cfg!(test) { 2 } else { 32 };
/// Bytes of content that fill a batch.
const BYTES: usize = 256 << 10;
/// How many batches may wait.
const WAITING: usize = 2;
/// Most threads, the one that reads the tar included.
const THREADS: usize = 4;
/// Most files that may not be there yet.
const MOST: usize = if cfg!(test) { 64 } else { 4096 };

/// A file to be made.
pub(super) struct Small {
    /// Where its path leads to without a symlink.
    pub(super) parent: Arc<File>,
    pub(super) path: Vec<u8>,
    pub(super) member: Member,
    pub(super) content: Vec<u8>,
}

impl Small {
    /// Whether a regular file is one, with all that is said of it: what waits takes no more memory than its content.
    pub(super) fn is_one(path: &[u8], member: &Member) -> bool {
        let plain = member.sparse.is_none() && member.xattrs.is_empty();
        plain && member.header.size <= SMALL && path.len() <= PATH
    }

    fn make(&self) -> Result<()> {
        let failed = || TreeError::io("write", &self.path);
        let mut file = make(&self.parent, split(&self.path).1).map_err(failed())?;
        file.write_all(&self.content).map_err(failed())?;
        finish(Node::Open(&file), &self.member, &self.path)
    }
}

/// Makes files in any order, so that whoever does more with a path [settles](Self::settle_for) it first.
pub(super) struct Makers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    work: &'env Work,
    batch: Vec<Small>,
    bytes: usize,
    /// The paths of files that may not be there yet.
    pending: HashSet<Vec<u8>>,
    /// Those of the directories that they will be in.
    parents: HashSet<Vec<u8>>,
    has_threads: bool,
}

impl<'scope, 'env> Makers<'scope, 'env> {
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, work: &'env Work) -> Self {
        Self {
            scope,
            work,
            batch: Vec::new(),
            bytes: 0,
            pending: HashSet::new(),
            parents: HashSet::new(),
            has_threads: false,
        }
    }

    /// Takes a file of which [`settle_for`](Self::settle_for) was called. An error may be another one's.
    pub(super) fn add(&mut self, mut file: Small) -> Result<()> {
        // Nobody needs them any more, and they may be long.
        (file.member.header.name, file.member.header.link) = (Vec::new(), Vec::new());
        let parent = split(&file.path).0;
        if !self.parents.contains(parent) {
            self.parents.insert(parent.to_vec());
        }
        self.pending.insert(file.path.clone());
        self.bytes += file.content.len();
        self.batch.push(file);
        if self.pending.len() >= MOST {
            return self.settle();
        }
        if self.batch.len() < FILES && self.bytes < BYTES {
            return Ok(());
        }
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        self.begin();
        // All others have enough to do.
        if let Some(batch) = self.work.queue(batch) {
            self.work.make(&batch);
        }
        self.work.failure()
    }

    /// Waits for what was added, if a file of this path or one on the way to it was.
    pub(super) fn settle_for(&mut self, path: &[u8]) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut ends = slashes.map(|(at, _)| at).chain([path.len()]);
        match ends.any(|end| self.pending.contains(&path[..end])) {
            true => self.settle(),
            // What has failed ends the work soon.
            false => self.work.failure(),
        }
    }

    /// Waits for what was added, if a file in the directory of this path was: something else takes its place, if it is empty.
    pub(super) fn settle_in(&mut self, path: &[u8]) -> Result<()> {
        match self.parents.contains(path) {
            true => self.settle(),
            false => Ok(()),
        }
    }

    /// Waits for all that was added.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.bytes = 0;
        self.work.make(&std::mem::take(&mut self.batch));
        self.work.finish();
        self.pending.clear();
        self.parents.clear();
        self.work.failure()
    }

    fn begin(&mut self) {
        if std::mem::replace(&mut self.has_threads, true) {
            return;
        }
        let work = self.work;
        let threads = thread::available_parallelism().map_or(1, |cores| cores.get().min(THREADS));
        for _ in 1..threads {
            // Without it the one that reads makes the more.
            let _ = thread::Builder::new().spawn_scoped(self.scope, || work.run());
        }
    }
}

impl Drop for Makers<'_, '_> {
    fn drop(&mut self) {
        self.work.close();
    }
}

/// What the threads share.
#[derive(Default)]
pub(super) struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    batches: VecDeque<Vec<Small>>,
    /// How many batches are being made.
    busy: usize,
    /// The first one.
    failure: Option<TreeError>,
    closed: bool,
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the batch back if too many wait.
    fn queue(&self, batch: Vec<Small>) -> Option<Vec<Small>> {
        let mut state = self.lock();
        if state.batches.len() >= WAITING {
            return Some(batch);
        }
        state.batches.push_back(batch);
        self.changed.notify_all();
        None
    }

    /// Makes the files of a batch, unless one has failed.
    fn make(&self, batch: &[Small]) {
        if self.lock().failure.is_some() {
            return;
        }
        if let Err(error) = batch.iter().try_for_each(Small::make) {
            let mut state = self.lock();
            state.failure.get_or_insert(error);
            state.batches.clear();
        }
    }

    /// Makes what waits, and waits for the others.
    fn finish(&self) {
        let mut state = self.lock();
        loop {
            if let Some(batch) = state.batches.pop_front() {
                drop(state);
                self.make(&batch);
                state = self.lock();
            } else if state.busy > 0 {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                return;
            }
        }
    }

    fn failure(&self) -> Result<()> {
        match self.lock().failure.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What another thread does until the end.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            if state.closed {
                return;
            }
            if let Some(batch) = state.batches.pop_front() {
                state.busy += 1;
                drop(state);
                let busy = Busy(self);
                self.make(&batch);
                drop(busy);
                state = self.lock();
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Ends the threads; what still waits is not made.
    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// A batch that is being made, even by one who panics: nobody is to wait for that forever.
struct Busy<'a>(&'a Work);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.lock().busy -= 1;
        self.0.changed.notify_all();
    }
}
