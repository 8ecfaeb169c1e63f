//! What an engine holds of ours, and the labels that say so.

use std::collections::BTreeMap;

use crate::{Error, JobId};

/// Labels of a container, volume or image. Ours start with `dev.orchestra.`; a caller's own may be anything else.
pub type Labels = BTreeMap<String, String>;

/// The labels that `orchestra` puts on all it makes. They are the only state a run keeps.
pub mod labels {
    /// The job; every resource of ours has it.
    pub const JOB: &str = "dev.orchestra.job";
    /// The task or volume's name within the job.
    pub const NAME: &str = "dev.orchestra.name";
    /// What the task is another try of, where that is not its name: of several tries the last one counts.
    pub const STEP: &str = "dev.orchestra.step";
    /// Who runs the job: see [`Runner`](crate::Runner).
    pub const RUNNER: &str = "dev.orchestra.runner";
    /// When it was made, in seconds since 1970.
    pub const CREATED: &str = "dev.orchestra.created";
    /// The spec's fingerprint: a container that exists is taken over only by the same spec.
    pub const SPEC: &str = "dev.orchestra.spec";
    /// What a container writes, where a layer has to know: [`OUTPUT_RAWJSON`], [`OUTPUT_CONTENT`] or nothing.
    pub const OUTPUT: &str = "dev.orchestra.output";
    /// Standard error is BuildKit's progress as lines of JSON (`--progress=rawjson`).
    pub const OUTPUT_RAWJSON: &str = "buildkit.rawjson";
    /// What is executed in it writes a volume's content to standard output, which no layer may change.
    pub const OUTPUT_CONTENT: &str = "volume.content";
}

/// What sort of thing a [`Resource`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ResourceKind {
    /// A container.
    Container,
    /// A volume.
    Volume,
    /// An image that the driver made for its own use (never one that was pulled, imported or built).
    Image,
    /// A network.
    Network,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Started, not ended.
    Running,
    /// Ended; [`wait_container`](crate::Driver::wait_container) tells how.
    Exited,
}

/// A thing in an engine that carries our labels.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// Its id: a [`ContainerId`](crate::ContainerId)'s or [`VolumeId`](crate::VolumeId)'s text, or the engine's own id of an image or network.
    pub id: String,
    /// All of its labels.
    pub labels: Labels,
    /// A container's state; `None` for anything else.
    pub state: Option<ContainerState>,
}

impl Resource {
    /// A resource without labels.
    pub fn new(kind: ResourceKind, id: impl Into<String>) -> Self {
        Self {
            kind,
            id: id.into(),
            labels: Labels::new(),
            state: None,
        }
    }

    /// The job it belongs to, by its label.
    #[must_use]
    pub fn job(&self) -> Option<JobId> {
        self.labels
            .get(labels::JOB)
            .and_then(|job| JobId::new(job.as_str()).ok())
    }
}

/// Whether a create call made the resource or found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Created {
    /// It is new.
    New,
    /// One with this id was there; it is untouched.
    Existing,
}

/// What [`end_job`](crate::Driver::end_job) did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct EndReport {
    /// What was removed.
    pub removed: Vec<Resource>,
    /// What could not be removed, and why.
    pub remaining: Vec<(Resource, Error)>,
}
