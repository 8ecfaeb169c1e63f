//! What became of a cache, for those who watch.

use std::time::Duration;

use orchestra::VolumeId;
use serde::Serialize;

use crate::{CacheKey, Persisted};

/// One thing that happened to a cache.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CacheEvent {
    /// The volume.
    pub volume: VolumeId,
    /// The key that was asked for.
    pub key: CacheKey,
    /// What.
    #[serde(flatten)]
    pub kind: CacheEventKind,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "cache", rename_all = "snake_case")]
#[non_exhaustive]
pub enum CacheEventKind {
    /// It was found and is in the volume.
    Restored {
        /// The key it was found under.
        from: CacheKey,
        /// Whether that is the key that was asked for; else it is a fallback by a restore key.
        exact: bool,
        /// Bytes of content.
        size: u64,
        /// Bytes that were fetched.
        fetched: u64,
        /// How long it took.
        duration: Duration,
        /// Why it is not another one that would have gone before it: that one is damaged.
        #[serde(skip_serializing_if = "Option::is_none")]
        damaged: Option<String>,
    },
    /// There is none.
    Missed {
        /// How long it took to know.
        duration: Duration,
    },
    /// It could not be restored: the volume is empty.
    NotRestored {
        /// Why.
        error: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The volume's content is in the store.
    Persisted(Persisted),
    /// It is not, and the store has what it had.
    NotPersisted {
        /// Why.
        error: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// It was not to be persisted, because a task that wrote to it did not succeed.
    Skipped {
        /// Which task.
        task: String,
    },
}
