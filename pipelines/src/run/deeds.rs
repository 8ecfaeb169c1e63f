//! What a program has done beside its steps: a run that is carried on does not do it again.
//!
//! A step's container says how the step ended. What is executed in a sandbox, or written to a volume, leaves no such trace: of
//! that, the answer stands in the [run's state](crate::RunState), as long as the sandbox or volume is there.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use orchestra::{Result, SharedDriver};

use super::job::locked;
use crate::RunState;

/// Most bytes of one answer, and of all of a run. What is longer is done again.
const MAX_ANSWER: usize = 16 << 20;
const MAX_ALL: u64 = 64 << 20;
/// What is done last to a sandbox: of one that was closed nothing is left, and all counts that was done in it.
const CLOSED: &str = "closed";

/// Something that a program is about to do.
#[derive(Clone, Debug)]
pub struct Deed {
    subject: String,
    what: String,
}

#[derive(Default)]
pub(super) struct Deeds {
    state: Option<RunState>,
    before: HashMap<(String, String), String>,
    /// How often each was begun by this process.
    begun: Mutex<HashMap<(String, String), u32>>,
    bytes: AtomicU64,
}

impl Deeds {
    /// What an earlier process of the run has done to what is still there.
    pub(super) async fn recall(
        state: Option<&RunState>,
        driver: &SharedDriver,
        job: &orchestra::JobId,
    ) -> Result<Self> {
        let Some(state) = state else { return Ok(Self::default()) };
        let mut before: HashMap<_, _> = state.deeds().await?.into_iter().collect();
        if !before.is_empty() {
            let left = driver.list(Some(job)).await?;
            let mut left: HashSet<String> = left.into_iter().map(|resource| resource.id).collect();
            left.insert(job.to_string());
            let closed = before.keys().filter(|(_, what)| what == CLOSED);
            left.extend(closed.map(|(subject, _)| subject.clone()).collect::<Vec<_>>());
            let all: HashSet<String> = before.keys().map(|(subject, _)| subject.clone()).collect();
            for gone in all.difference(&left) {
                state.undo(gone.clone()).await?;
            }
            before.retain(|(subject, _), _| left.contains(subject));
        }
        let bytes = before.values().map(|answer| answer.len() as u64).sum();
        Ok(Self {
            state: Some(state.clone()),
            before,
            begun: Mutex::default(),
            bytes: AtomicU64::new(bytes),
        })
    }

    /// Begins something, and says what came of it before.
    pub(super) fn begin(&self, subject: &str, what: &str) -> (Deed, Option<&str>) {
        let mut begun = locked(&self.begun);
        let number = begun.entry((subject.to_owned(), what.to_owned())).or_default();
        *number += 1;
        let key = (subject.to_owned(), format!("{what}.{number}"));
        let before = self.before.get(&key).map(String::as_str);
        let (subject, what) = key;
        (Deed { subject, what }, before)
    }

    /// Notes what came of it.
    pub(super) async fn end(&self, deed: Deed, answer: String) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        let size = answer.len() as u64;
        if answer.len() > MAX_ANSWER || self.bytes.fetch_add(size, Ordering::Relaxed) + size > MAX_ALL {
            return Ok(());
        }
        state.did(deed.subject, deed.what, answer).await
    }

    /// The closing of a sandbox.
    pub(super) fn closing(&self, sandbox: &str) -> Deed {
        let (subject, what) = (sandbox.to_owned(), CLOSED.to_owned());
        Deed { subject, what }
    }

    /// Whether an earlier process has closed it.
    pub(super) fn is_closed(&self, sandbox: &str) -> bool {
        self.before.contains_key(&(sandbox.to_owned(), CLOSED.to_owned()))
    }

    pub(super) fn are_noted(&self) -> bool {
        self.state.is_some()
    }
}
