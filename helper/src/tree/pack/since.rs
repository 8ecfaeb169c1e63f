//! What has not changed since a tree was filled from a tar, and so need not be read.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::super::known::Comparison;
use super::super::levels::{Kind, open_if_there};
use super::super::{Result, TreeError, split};
use super::Packer;

/// What [`pack_since`](super::pack_since) need not read again.
pub struct Since<'a> {
    /// The tree, compared with what it was when it was [filled](super::super::fill) from a tar. What has changed after it was
    /// compared may be taken for what it was before.
    pub comparison: &'a Comparison,
    /// Where that tar may be cut, in order. What is told to be the same begins and ends there.
    pub cuts: &'a [u64],
    /// Is told, between what is written, which bytes of that tar come next.
    pub same: &'a mut dyn FnMut(Range<u64>) -> io::Result<()>,
}

impl fmt::Debug for Since<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Since")
            .field("cuts", &self.cuts.len())
            .finish_non_exhaustive()
    }
}

/// Entries that are what they were, and stood one after another in the tar.
pub(super) struct Run {
    /// What it is of that tar.
    whole: Range<u64>,
    /// What of it needs no reading, once that is known.
    same: Option<Range<u64>>,
    /// The entries that are not within that, or not wholly.
    rest: VecDeque<(Vec<u8>, Range<u64>)>,
}

/// Which of the next bytes are written.
pub(super) struct Clip {
    /// So many are not.
    skip: u64,
    /// Then so many are.
    take: u64,
    /// How many there were in all.
    passed: u64,
}

impl Clip {
    pub(super) const NONE: Self = Self {
        skip: 0,
        take: u64::MAX,
        passed: 0,
    };

    /// How many of the next bytes are left out, and how many of those after them are written.
    pub(super) fn next(&mut self, bytes: u64) -> (u64, u64) {
        let skip = self.skip.min(bytes);
        let take = self.take.min(bytes - skip);
        self.skip -= skip;
        self.take -= take;
        self.passed += bytes;
        (skip, take)
    }
}

impl Packer<'_, '_> {
    /// Takes up an entry that is this part of the earlier tar; false if it is none that can be left out.
    pub(super) fn same(&mut self, path: &[u8], part: Range<u64>) -> Result<bool> {
        let last = self.since.as_ref().and_then(|since| since.cuts.last());
        // Behind the last cut, nothing can be left out any more.
        if part.is_empty() || last.is_none_or(|last| part.start >= *last) {
            self.end_run()?;
            return Ok(false);
        }
        if self.run.as_ref().is_some_and(|run| run.whole.end != part.start) {
            self.end_run()?;
        }
        self.go_on(path, part)?;
        Ok(true)
    }

    /// The run goes on with an entry, or begins with it.
    fn go_on(&mut self, path: &[u8], part: Range<u64>) -> Result<()> {
        let Some(since) = &self.since else {
            return Ok(());
        };
        let mut run = self.run.take().unwrap_or_else(|| Run {
            whole: part.start..part.start,
            same: None,
            rest: VecDeque::new(),
        });
        run.whole.end = part.end;
        run.rest.push_back((path.to_vec(), part));
        let after = since.cuts.partition_point(|cut| *cut <= run.whole.end);
        let last = after.checked_sub(1).map_or(0, |at| since.cuts[at]);
        match &mut run.same {
            Some(same) => same.end = last,
            None => {
                let first = since.cuts.partition_point(|cut| *cut < run.whole.start);
                if let Some(first) = since.cuts.get(first).filter(|first| **first < last) {
                    let first = *first;
                    for (path, part) in &run.rest {
                        self.again(path, part, part.start..first.min(part.end))?;
                    }
                    run.same = Some(first..last);
                }
            }
        }
        if let Some(same) = &run.same {
            while run.rest.front().is_some_and(|(_, part)| part.end <= same.end) {
                run.rest.pop_front();
            }
        }
        self.run = Some(run);
        Ok(())
    }

    /// What comes next did not stand here.
    pub(super) fn end_run(&mut self) -> Result<()> {
        let Some(run) = self.run.take() else {
            return Ok(());
        };
        let mut from = run.whole.start;
        if let Some(same) = run.same {
            from = same.end;
            self.flush()?;
            if let Some(since) = &mut self.since {
                (since.same)(same).map_err(TreeError::io("write", b"the tar"))?;
            }
        }
        for (path, part) in &run.rest {
            self.again(path, part, part.start.max(from)..part.end)?;
        }
        Ok(())
    }

    /// Packs what an entry was in the tar, or as much of it as is wanted.
    fn again(&mut self, path: &[u8], part: &Range<u64>, wanted: Range<u64>) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let (parent, name) = split(path);
        let changed = || TreeError::Changed(PathBuf::from(OsStr::from_bytes(path)));
        let parent = open_if_there(self.root, parent)?.ok_or_else(changed)?;
        self.clip = Clip {
            skip: wanted.start - part.start,
            take: wanted.end - wanted.start,
            passed: 0,
        };
        self.entry(&parent, name, path, Kind::Other)?;
        let clip = std::mem::replace(&mut self.clip, Clip::NONE);
        if clip.passed != part.end - part.start {
            return Err(changed());
        }
        Ok(())
    }
}
