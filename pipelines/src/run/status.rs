//! How a step ended, and whose matter it is.

use std::fmt;

use orchestra::{ErrorKind, ExitStatus};
use serde::{Deserialize, Serialize};

/// How a step, or a run, ended.
///
/// | what happened | status |
/// | --- | --- |
/// | exit code 0, image built | `Succeeded` |
/// | any other exit code, a signal, out of memory, timed out; a build that failed, for whatever reason BuildKit has; no Dockerfile; an image that does not exist or that the registry does not let us have; a program that the image lacks | `Failed`: the pipeline, or what it runs, has to change |
/// | the engine can't be reached, does not permit it, lacks a capability, breaks off, hangs or answers nonsense; the registry is down; the disk is full | `Errored`: the same pipeline may well succeed elsewhere or later |
/// | cancelled | `Aborted` |
/// | an earlier step did not succeed | `Skipped` |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It did what it was to do.
    Succeeded,
    /// It ran, or was refused, and the pipeline has to change.
    Failed,
    /// The engine, a registry or this machine kept it from running.
    Errored,
    /// The caller cancelled it.
    Aborted,
    /// It was never begun.
    Skipped,
}

impl Status {
    /// Of a process that ended so.
    #[must_use]
    pub fn of_exit(exit: ExitStatus) -> Self {
        match exit {
            ExitStatus::Cancelled => Self::Aborted,
            _ if exit.success() => Self::Succeeded,
            _ => Self::Failed,
        }
    }

    /// Of a step that met such an error.
    #[must_use]
    pub fn of_error(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Cancelled => Self::Aborted,
            ErrorKind::InvalidInput
            | ErrorKind::ImageNotFound
            | ErrorKind::Unauthorized
            | ErrorKind::PathNotFound
            | ErrorKind::TaskFailed => Self::Failed,
            _ => Self::Errored,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Errored => "errored",
            Self::Aborted => "aborted",
            Self::Skipped => "skipped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_mistake_is_told_from_the_engines_trouble() {
        assert_eq!(Status::of_error(ErrorKind::ImageNotFound), Status::Failed);
        assert_eq!(Status::of_error(ErrorKind::Unreachable), Status::Errored);
        assert_eq!(Status::of_error(ErrorKind::DiskFull), Status::Errored);
        assert_eq!(Status::of_exit(ExitStatus::TimedOut), Status::Failed);
        assert_eq!(Status::of_exit(ExitStatus::OutOfMemory), Status::Failed);
        assert_eq!(Status::of_exit(ExitStatus::Cancelled), Status::Aborted);
    }
}
