//! What happens in a job, for those who watch.

use std::time::{Duration, SystemTime};

use crate::{ContainerId, ExitStatus, ImageRef, JobId, Name, PullEvent, VolumeId};

/// One thing that happened. Output is not among them: it goes to the task's [`OutputSink`](crate::OutputSink).
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Event {
    /// When.
    pub time: SystemTime,
    /// In which job.
    pub job: JobId,
    /// To which task; `None` for what concerns the job.
    pub task: Option<Name>,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A volume of the job is there.
    VolumeReady {
        /// Its id.
        volume: VolumeId,
        /// Whether an earlier process of this run had made it.
        existed: bool,
    },
    /// An image is being fetched.
    PullStarted {
        /// The image.
        image: ImageRef,
    },
    /// A pull goes on.
    PullProgress {
        /// The image.
        image: ImageRef,
        /// The step.
        #[serde(flatten)]
        progress: PullEvent,
    },
    /// An image is there.
    PullFinished {
        /// The image.
        image: ImageRef,
        /// How long it took.
        duration: Duration,
    },
    /// The task's container is there.
    ContainerReady {
        /// Its id.
        container: ContainerId,
        /// Which try it is, from 1.
        attempt: u32,
        /// Whether an earlier process of this run had made it.
        existed: bool,
    },
    /// The task's process runs: it was started, or an earlier process of this run had started it.
    TaskStarted,
    /// The task is being ended: SIGTERM now, SIGKILL after the grace period.
    TaskStopping {
        /// [`ExitStatus::Cancelled`] or [`ExitStatus::TimedOut`].
        why: ExitStatus,
    },
    /// The task has ended.
    TaskFinished {
        /// How.
        #[serde(flatten)]
        exit: ExitStatus,
        /// How long it took, pull included.
        duration: Duration,
    },
    /// The task could not be run.
    TaskErrored {
        /// The error's text.
        error: String,
    },
    /// Something that does not change the result but should be known.
    Warning {
        /// What.
        message: String,
    },
    /// The job has ended and all of it is removed, but what the warnings before this say.
    JobEnded {
        /// How many resources were removed at the end.
        removed: usize,
    },
}
