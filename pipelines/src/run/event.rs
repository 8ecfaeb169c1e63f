//! What happens in a run, for those who watch.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use orchestra::{ContainerPath, JobId, Name, OutputStream};
use orchestra_caches::CacheEvent;
use orchestra_image_build::BuildEvent;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tokio::sync::mpsc;

use super::{Status, StepReport};
use crate::{JobPlan, Step, StepKind};

/// One thing that happened.
///
/// As JSON it is one flat object: `time` (RFC 3339), `event` and the event's own fields.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RunEvent {
    /// When.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// What.
    #[serde(flatten)]
    pub kind: RunEventKind,
}

/// What happened. Events of one step come in order, but output is told as it is written and may overtake the engine's
/// events ([`Engine`](Self::Engine)) of the same moment.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunEventKind {
    /// The run begins.
    RunStarted {
        /// Give it to another run to carry on with this one.
        run_id: JobId,
        /// What will be run.
        jobs: Vec<PlannedJob>,
    },
    /// A job begins.
    JobStarted {
        /// The job.
        job: Name,
        /// What its containers and volumes are labelled with.
        id: JobId,
    },
    /// A step begins.
    StepStarted {
        /// Its job.
        job: Name,
        /// The step.
        step: Name,
        /// What it is.
        kind: StepKind,
    },
    /// A step's process wrote something.
    Output {
        /// Its job.
        job: Name,
        /// The step.
        step: Name,
        /// Where it was written.
        stream: OutputStream,
        /// What was written.
        #[serde(flatten)]
        data: Data,
    },
    /// The engine did something for a job: pulls, containers, volumes.
    Engine {
        /// The job.
        job: Name,
        /// The step, where it was for one.
        step: Option<Name>,
        /// What.
        detail: Box<orchestra::Event>,
    },
    /// A build went on.
    Build {
        /// Its job.
        job: Name,
        /// The step.
        step: Name,
        /// How.
        detail: BuildEvent,
    },
    /// A cache was restored, persisted, or not. The latter may come after its step's end.
    Cache {
        /// Its job.
        job: Name,
        /// The first step that used it.
        step: Name,
        /// Where it stands there.
        path: ContainerPath,
        /// What became of it.
        detail: Box<CacheEvent>,
    },
    /// A step has ended, or was skipped.
    StepFinished {
        /// All that is known of it.
        #[serde(flatten)]
        report: Box<StepReport>,
    },
    /// Something that does not change the result but should be known.
    Warning {
        /// The job, where it concerns one.
        job: Option<Name>,
        /// What.
        message: String,
    },
    /// The run has ended.
    RunFinished {
        /// How.
        status: Status,
        /// How long it took.
        duration: Duration,
    },
}

/// A job that will be run.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PlannedJob {
    /// Its name.
    pub name: Name,
    /// Its steps.
    pub steps: Vec<PlannedStep>,
}

impl PlannedJob {
    pub(super) fn of(job: &JobPlan) -> Self {
        let step = |step: &Step| PlannedStep {
            name: step.name.clone(),
            kind: step.kind(),
        };
        Self {
            name: job.name.clone(),
            steps: job.leaves().into_iter().map(step).collect(),
        }
    }
}

/// A step that will be run.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PlannedStep {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: StepKind,
}

/// Bytes that were written, byte-exact.
///
/// As JSON, `data` is the text; if it is not UTF-8 (a character may also be cut in two by the end of a piece), `base64`
/// has the bytes beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data(pub Bytes);

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match std::str::from_utf8(&self.0) {
            Ok(text) => map.serialize_entry("data", text)?,
            Err(_) => {
                map.serialize_entry("data", &String::from_utf8_lossy(&self.0))?;
                map.serialize_entry("base64", &BASE64_STANDARD.encode(&self.0))?;
            }
        }
        map.end()
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = jiff::Timestamp::try_from(*time).map_err(serde::ser::Error::custom)?;
    serializer.collect_str(&time)
}

/// Where a run's events go.
#[derive(Clone, Debug)]
pub(super) struct Teller(pub(super) Option<mpsc::Sender<RunEvent>>);

impl Teller {
    /// Waits for the receiver: one that is slow slows the run, and one that was dropped does not want to know.
    pub(super) async fn tell(&self, kind: RunEventKind) {
        if let Some(events) = &self.0 {
            events
                .send(RunEvent {
                    time: SystemTime::now(),
                    kind,
                })
                .await
                .ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(bytes: &'static [u8]) -> serde_json::Value {
        let kind = RunEventKind::Output {
            job: Name::new("main").unwrap(),
            step: Name::new("greet").unwrap(),
            stream: OutputStream::Stdout,
            data: Data(Bytes::from_static(bytes)),
        };
        serde_json::to_value(RunEvent {
            time: SystemTime::UNIX_EPOCH,
            kind,
        })
        .unwrap()
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00Z", "event": "output", "job": "main", "step": "greet", "stream": "stdout", "data": "hi\n",
        });
        assert_eq!(output(b"hi\n"), expected);
    }

    #[test]
    fn bytes_that_are_no_text_are_not_lost() {
        let event = output(b"\xff\x00");
        assert_eq!(
            (event["data"].as_str(), event["base64"].as_str()),
            (Some("\u{fffd}\0"), Some("/wA="))
        );
    }
}
