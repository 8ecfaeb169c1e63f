//! Volumes.

use crate::Labels;

/// What a volume is to be. Its content is the engine's own: a new one is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeSpec {
    /// Labels; [`Job`](crate::Job) puts the ownership ones here.
    pub labels: Labels,
}

impl VolumeSpec {
    /// An empty volume with these labels.
    #[must_use]
    pub fn new(labels: Labels) -> Self {
        Self { labels }
    }
}
