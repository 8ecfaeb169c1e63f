//! What came of a run.

use std::time::Duration;

use orchestra::{ExitStatus, ImageRef, JobId, Name, Timings};
use orchestra_image_build::{BuildResult, BuiltTarget, PlatformImage, Steps};
use serde::Serialize;

use super::Status;
use crate::{StepKind, Version};

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RunReport {
    /// The run.
    pub run_id: JobId,
    /// That of the first step that did not succeed.
    pub status: Status,
    /// Every step of the jobs that were asked for, in the order of the file.
    pub steps: Vec<StepReport>,
    /// What should be known beside the result: what could not be removed.
    pub warnings: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

/// What came of a step.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// Its job.
    pub job: Name,
    /// Its name.
    #[serde(rename = "step")]
    pub name: Name,
    /// What it is.
    pub kind: StepKind,
    /// How it ended.
    pub status: Status,
    /// Whether it did not succeed and was allowed to: in a `try`, or by `allowFailure` of a script.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tolerated: bool,
    /// How its process ended, if there was one.
    pub exit: Option<ExitStatus>,
    /// Which try that was, from 1; `None` where it is not known.
    pub attempt: Option<u32>,
    /// How long it took.
    pub duration: Duration,
    /// Where the time of a task went.
    pub timings: Option<Timings>,
    /// What a build built.
    pub image: Option<BuiltImage>,
    /// The version of a resource that it got or put.
    pub version: Option<Version>,
    /// What the resource's type tells of the version.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<Metadata>,
    /// What went wrong, in one or a few lines.
    pub error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The last lines it wrote, where it did not succeed.
    pub log_tail: String,
}

impl StepReport {
    pub(super) fn new(job: &Name, name: &Name, kind: StepKind, status: Status) -> Self {
        Self {
            job: job.clone(),
            name: name.clone(),
            kind,
            status,
            tolerated: false,
            exit: None,
            attempt: None,
            duration: Duration::ZERO,
            timings: None,
            image: None,
            version: None,
            metadata: Vec::new(),
            error: None,
            hint: None,
            log_tail: String::new(),
        }
    }
}

/// An image that was built: what a [`BuildResult`] says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct BuiltImage {
    /// Its tag.
    #[serde(rename = "ref")]
    pub reference: ImageRef,
    /// All of its names, the tag first.
    #[serde(rename = "refs")]
    pub references: Vec<ImageRef>,
    /// Its digest: `sha256:…`.
    pub digest: String,
    /// The digest of its config; `None` of several platforms.
    pub config_digest: Option<String>,
    /// Its manifest for each platform; empty where the builder did not tell.
    pub platforms: Vec<PlatformImage>,
    /// The additional targets that were built before it.
    pub targets: Vec<BuiltTarget>,
    /// Bytes of it as it is transferred.
    pub size: Option<u64>,
    /// How many steps of the build were run, and how many were in the builder's cache.
    pub steps: Steps,
}

impl From<&BuildResult> for BuiltImage {
    fn from(built: &BuildResult) -> Self {
        Self {
            reference: built.reference.clone(),
            references: built.references.clone(),
            digest: built.digest.clone(),
            config_digest: built.config_digest.clone(),
            platforms: built.platforms.clone(),
            targets: built.targets.clone(),
            size: built.size,
            steps: built.steps,
        }
    }
}

/// One thing that a resource's type tells of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Metadata {
    /// What it is.
    pub name: String,
    /// What it says.
    pub value: String,
}
