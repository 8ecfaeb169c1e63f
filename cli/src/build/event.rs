//! What happens in a build, of the same form as the events of a run.

use std::time::{Duration, SystemTime};

use orchestra::{ErrorKind, ExitStatus, JobId, Name, OutputStream};
use orchestra_image_build::{BuildError, BuildEvent, BuildResult};
use orchestra_secrets::JobSecrets;

use orchestra_pipelines::{BuiltImage, Data, Status, StepKind};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::progress::{Activity, Shown, StepEnd, StepId, Update, building, engine};

/// Tells what happens.
#[derive(Clone)]
pub(super) struct Teller {
    /// The job's.
    pub(super) secrets: JobSecrets,
    pub(super) events: mpsc::Sender<Event>,
    /// The build's.
    pub(super) name: Name,
}

impl Teller {
    pub(super) async fn tell(&self, kind: Kind) {
        // A display that has ended does not want to know.
        self.events
            .send(Event {
                time: SystemTime::now(),
                job: "build",
                step: self.name.clone(),
                kind,
            })
            .await
            .ok();
    }
}

/// What happens in a build, of the same form as the events of a run.
#[derive(Serialize)]
pub(super) struct Event {
    #[serde(serialize_with = "rfc3339")]
    time: SystemTime,
    job: &'static str,
    step: Name,
    #[serde(flatten)]
    kind: Kind,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Kind {
    RunStarted {
        run_id: JobId,
    },
    StepStarted {
        kind: StepKind,
    },
    /// The context goes to the engine; it is so long as a tar by now.
    Sending {
        bytes: u64,
    },
    /// The context is there.
    Sent {
        bytes: u64,
    },
    Output {
        stream: OutputStream,
        #[serde(flatten)]
        data: Data,
    },
    #[serde(serialize_with = "detail")]
    Engine(Box<orchestra::Event>),
    #[serde(serialize_with = "detail")]
    Build(BuildEvent),
    StepFinished {
        #[serde(flatten)]
        end: Box<End>,
    },
    Warning {
        message: String,
    },
    RunFinished {
        status: Status,
        duration: Duration,
    },
}

#[derive(Serialize)]
pub(super) struct End {
    pub(super) status: Status,
    duration: Duration,
    exit: Option<ExitStatus>,
    #[serde(rename = "image")]
    built: Option<BuiltImage>,
    error: Option<String>,
    hint: Option<String>,
    log_tail: String,
}

impl End {
    /// What came of a build that took so long.
    pub(super) fn of(outcome: &Result<BuildResult, BuildError>, duration: Duration) -> Self {
        let status = status(outcome);
        let mut end = Self {
            status,
            duration,
            exit: None,
            built: None,
            error: None,
            hint: None,
            log_tail: String::new(),
        };
        match outcome {
            Ok(built) => {
                end.exit = Some(ExitStatus::Code(built.code));
                end.built = Some(built.into());
            }
            Err(error) => {
                end.exit = error.exit();
                end.hint = error.hint();
                let Some(failed) = error.failed() else {
                    end.error = Some(error.to_string());
                    return end;
                };
                let mut lines = vec![failed.exit.to_string()];
                lines.extend(failed.step.iter().map(|step| format!("step: {step}")));
                lines.extend(failed.error.iter().map(|error| format!("error: {error}")));
                lines.extend(failed.excerpt.clone());
                end.error = Some(lines.join("\n"));
                // What the step wrote says more than BuildKit's closing words.
                let said = if failed.log.trim().is_empty() {
                    &failed.said
                } else {
                    &failed.log
                };
                end.log_tail = said.clone();
            }
        }
        end
    }
}

fn status(outcome: &Result<BuildResult, BuildError>) -> Status {
    match outcome {
        Ok(_) => Status::Succeeded,
        // A file of this side that can't be read is not the engine's matter.
        Err(BuildError::Context { source, .. }) if source.kind() == ErrorKind::Io => Status::Failed,
        Err(BuildError::Context { source, .. }) => Status::of_error(source.kind()),
        Err(error) => match (error.exit(), error.engine_error()) {
            (Some(exit), _) => Status::of_exit(exit),
            (None, Some(error)) => Status::of_error(error.kind()),
            (None, None) => Status::Errored,
        },
    }
}

fn detail<T: Serialize, S: serde::Serializer>(detail: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map([("detail", detail)])
}

fn rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = jiff::Timestamp::try_from(*time).map_err(serde::ser::Error::custom)?;
    serializer.collect_str(&time)
}

impl Shown for Event {
    fn update(self) -> Option<Update> {
        let step = StepId {
            job: self.job.to_owned(),
            step: self.step.to_string(),
        };
        Some(match self.kind {
            Kind::RunStarted { run_id } => Update::Started {
                run_id,
                steps: vec![step],
            },
            Kind::StepStarted { kind } => Update::StepStarted { step, kind },
            Kind::Sending { bytes } => Update::Doing {
                step,
                what: Activity::Sending { bytes },
            },
            Kind::Sent { bytes } => Update::Doing {
                step,
                what: Activity::Sent { bytes },
            },
            Kind::Output { stream, data } => Update::Output {
                step,
                stream,
                bytes: data.0,
            },
            Kind::Engine(event) => engine(Some(step), event.kind)?,
            Kind::Build(event) => building(step, event)?,
            // The image is what the command prints at its end.
            Kind::StepFinished { end } => Update::StepFinished(Box::new(StepEnd {
                step,
                status: end.status,
                exit: end.exit,
                duration: end.duration,
                image: None,
                error: end.error,
                hint: end.hint,
                log: end.log_tail,
            })),
            Kind::Warning { message } => Update::Warning { message },
            // There is one step, and its end has been shown.
            Kind::RunFinished { .. } => return None,
        })
    }

    fn job(&self) -> Option<&JobId> {
        match &self.kind {
            Kind::RunStarted { run_id } => Some(run_id),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_form_of_a_runs() {
        let event = |kind| {
            serde_json::to_value(Event {
                time: SystemTime::UNIX_EPOCH,
                job: "build",
                step: Name::new("app").unwrap(),
                kind,
            })
            .unwrap()
        };
        let output = event(Kind::Output {
            stream: OutputStream::Stderr,
            data: Data("x".into()),
        });
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00Z", "job": "build", "step": "app", "event": "output", "stream": "stderr", "data": "x",
        });
        assert_eq!(output, expected);
    }
}
