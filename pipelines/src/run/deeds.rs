//! What a run has done beside its steps' containers: a run that is carried on does not do it again.
//!
//! A step's container says how the step ended. What a script executes in a sandbox, or writes to a volume, leaves no such trace,
//! nor does what a `load_var` has read: of that, the answer stands in the [run's state](crate::RunState), as long as the
//! sandbox or volume is there. A step that is not run again may have changed since what is in it.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use orchestra::{JobId, Result, SharedDriver};

use super::job::locked;
use crate::RunState;

/// Most bytes of one answer, and of all of a run. What is more is done again.
pub(super) const MAX_ANSWER: usize = 16 << 20;
const MAX_ALL: usize = 64 << 20;
/// What is done last to a sandbox; the answer is the ids of the volumes that it had, a line each.
const CLOSED: &str = "closed";

/// Something that is about to be done.
#[derive(Clone, Debug)]
pub struct Deed {
    subject: String,
    what: String,
}

#[derive(Default)]
pub(super) struct Deeds {
    state: Option<RunState>,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    /// What an earlier process was answered.
    before: HashMap<(String, String), String>,
    /// How often each was begun by this process.
    begun: HashMap<(String, String), u32>,
    /// How much of what was begun on each subject is not noted.
    open: HashMap<String, usize>,
    bytes: usize,
    full: bool,
}

impl Deeds {
    /// What an earlier process of the run has done to what is still there.
    pub(super) async fn recall(state: Option<&RunState>, driver: &SharedDriver, job: &JobId) -> Result<Self> {
        let Some(state) = state else { return Ok(Self::default()) };
        // Those of other jobs of the run are theirs: their ids begin with the job's.
        let own = format!("orchestra.{job}.");
        let all = state.deeds().await?.into_iter();
        let mut before: HashMap<_, _> = all.filter(|((subject, _), _)| subject.starts_with(&own)).collect();
        if !before.is_empty() {
            let left = driver.list(Some(job)).await?;
            let mut left: HashSet<String> = left.into_iter().map(|resource| resource.id).collect();
            // Of one that was closed nothing is left but what it did to its volumes. Without any, the run has nothing at all.
            let closed = before.iter().filter(|((_, what), volumes)| {
                what == CLOSED && !left.is_empty() && volumes.lines().all(|volume| left.contains(volume))
            });
            let closed: Vec<String> = closed.map(|((subject, _), _)| subject.clone()).collect();
            left.extend(closed);
            let all: HashSet<String> = before.keys().map(|(subject, _)| subject.clone()).collect();
            for gone in all.difference(&left) {
                state.undo(gone.clone()).await?;
            }
            before.retain(|(subject, _), _| left.contains(subject));
        }
        let all = All {
            bytes: before.values().map(String::len).sum(),
            before,
            ..All::default()
        };
        Ok(Self {
            state: Some(state.clone()),
            all: Mutex::new(all),
        })
    }

    /// Begins something, and says what came of it before.
    pub(super) fn begin(&self, subject: &str, what: &str) -> (Deed, Option<String>) {
        let mut all = locked(&self.all);
        let number = all.begun.entry((subject.to_owned(), what.to_owned())).or_default();
        *number += 1;
        let key = (subject.to_owned(), format!("{what}.{number}"));
        let before = all.before.get(&key).cloned();
        if before.is_none() {
            *all.open.entry(subject.to_owned()).or_default() += 1;
        }
        let (subject, what) = key;
        (Deed { subject, what }, before)
    }

    /// Notes what came of it. Returns whether there was no room for it, for the first time.
    pub(super) async fn end(&self, deed: Deed, answer: String) -> Result<bool> {
        let Some(state) = &self.state else { return Ok(false) };
        {
            let mut all = locked(&self.all);
            let bytes = all.bytes.saturating_add(answer.len());
            if bytes > MAX_ALL {
                // Smaller ones may still have room.
                return Ok(!std::mem::replace(&mut all.full, true));
            }
            all.bytes = bytes;
            if let Some(open) = all.open.get_mut(&deed.subject) {
                *open -= 1;
            }
        }
        state.did(deed.subject, deed.what, answer).await?;
        Ok(false)
    }

    /// Notes that a sandbox is closed, if all is noted that was done in it: nothing of it will be there to do it again in.
    pub(super) async fn close(&self, sandbox: &str, volumes: &[&str]) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        if locked(&self.all).open.get(sandbox).is_none_or(|open| *open == 0) {
            state
                .did(sandbox.to_owned(), CLOSED.to_owned(), volumes.join("\n"))
                .await?;
        }
        Ok(())
    }

    /// Whether an earlier process has closed it.
    pub(super) fn is_closed(&self, sandbox: &str) -> bool {
        let key = (sandbox.to_owned(), CLOSED.to_owned());
        locked(&self.all).before.contains_key(&key)
    }

    /// Forgets what was done to something that is gone now, and may be made again.
    pub(super) async fn forget(&self, subject: &str) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        {
            let mut all = locked(&self.all);
            all.before.retain(|(of, _), _| of != subject);
            all.begun.retain(|(of, _), _| of != subject);
            all.open.remove(subject);
        }
        state.undo(subject.to_owned()).await
    }

    pub(super) fn are_noted(&self) -> bool {
        self.state.is_some()
    }
}
