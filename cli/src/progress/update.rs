//! What progress is made of: the little that people want to see of everything that happens.

use std::time::Duration;

use bytes::Bytes;
use indicatif::DecimalBytes;
use orchestra::{ContainerPath, EventKind, ExitStatus, JobId, OutputStream, PullEvent};
use orchestra_caches::{CacheEventKind, CacheKey};
use orchestra_image_build::BuildEvent;
use orchestra_pipelines::{RunEvent, RunEventKind, Status, StepKind};

use crate::duration;

/// An event source's item: as JSON it is itself, for people it is an [`Update`].
pub(crate) trait Shown: serde::Serialize + Send + 'static {
    /// What people see of it; most of what an engine does is not worth a look.
    fn update(self) -> Option<Update>;

    /// The job that begins with it: what its containers are labelled with.
    fn job(&self) -> Option<&JobId> {
        None
    }
}

/// A step, by its job's name and its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StepId {
    pub(crate) job: String,
    pub(crate) step: String,
}

/// One thing worth showing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Update {
    /// Everything begins; these are all steps there will be.
    Started {
        run_id: JobId,
        steps: Vec<StepId>,
    },
    StepStarted {
        step: StepId,
        kind: StepKind,
    },
    Output {
        step: StepId,
        stream: OutputStream,
        bytes: Bytes,
    },
    /// What a step does that takes time.
    Doing {
        step: StepId,
        what: Activity,
    },
    StepFinished(Box<StepEnd>),
    Warning {
        message: String,
    },
    Finished {
        status: Status,
        duration: Duration,
    },
}

/// What takes time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Activity {
    Pulling {
        image: String,
    },
    Layer {
        id: String,
        current: u64,
        total: u64,
    },
    Pulled {
        image: String,
        duration: Duration,
    },
    /// The container was there: an earlier process of this run had made it.
    TakenOver,
    Stopping {
        why: ExitStatus,
    },
    /// A build does this now: `[2/3] RUN make`.
    Building {
        vertex: u32,
        name: String,
    },
    /// A part of that goes on: a layer that is fetched, a context that is transferred.
    Transfer {
        vertex: u32,
        id: String,
        current: u64,
        total: Option<u64>,
    },
    /// A build has done this.
    Built {
        vertex: u32,
        name: String,
        cached: bool,
        duration: Duration,
    },
    /// A build begins again, with new numbers.
    BuildingAgain,
    /// A build could not do this.
    NotBuilt {
        vertex: u32,
        name: String,
        canceled: bool,
    },
    /// So many bytes of a build's context have gone to the engine.
    Sending {
        bytes: u64,
    },
    /// So long was the context, as a tar.
    Sent {
        bytes: u64,
    },
    /// A cache was restored or persisted; maybe after its step has ended.
    Cache {
        text: String,
    },
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepEnd {
    pub(crate) step: StepId,
    pub(crate) status: Status,
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) duration: Duration,
    /// Reference and digest of an image that was built.
    pub(crate) image: Option<(String, String)>,
    pub(crate) error: Option<String>,
    pub(crate) hint: Option<String>,
    /// The output that says why it failed, where that is not simply the last of it.
    pub(crate) log: String,
}

impl Shown for RunEvent {
    fn update(self) -> Option<Update> {
        let id = |job: &orchestra::Name, step: &orchestra::Name| StepId {
            job: job.to_string(),
            step: step.to_string(),
        };
        Some(match self.kind {
            RunEventKind::RunStarted { run_id, jobs } => {
                let steps = jobs
                    .iter()
                    .flat_map(|job| job.steps.iter().map(|step| id(&job.name, &step.name)));
                Update::Started {
                    run_id,
                    steps: steps.collect(),
                }
            }
            RunEventKind::StepStarted { job, step, kind } => Update::StepStarted {
                step: id(&job, &step),
                kind,
            },
            RunEventKind::Output {
                job,
                step,
                stream,
                data,
            } => Update::Output {
                step: id(&job, &step),
                stream,
                bytes: data.0,
            },
            RunEventKind::Engine { job, step, detail } => engine(step.map(|step| id(&job, &step)), detail.kind)?,
            RunEventKind::Build { job, step, detail } => building(id(&job, &step), detail)?,
            RunEventKind::StepFinished { report } => Update::StepFinished(Box::new(StepEnd {
                step: id(&report.job, &report.name),
                status: report.status,
                exit: report.exit,
                duration: report.duration,
                image: report.image.map(|image| (image.reference.to_string(), image.digest)),
                error: report.error,
                hint: report.hint,
                log: report.log_tail,
            })),
            RunEventKind::Cache {
                job,
                step,
                path,
                detail,
                ..
            } => Update::Doing {
                step: id(&job, &step),
                what: Activity::Cache {
                    text: cache(&path, &detail.key, detail.kind)?,
                },
            },
            RunEventKind::Warning { message, .. } => Update::Warning { message },
            RunEventKind::RunFinished { status, duration } => Update::Finished { status, duration },
            _ => return None,
        })
    }

    fn job(&self) -> Option<&JobId> {
        match &self.kind {
            RunEventKind::JobStarted { id, .. } => Some(id),
            _ => None,
        }
    }
}

/// What is to be seen of something that the engine did.
pub(crate) fn engine(step: Option<StepId>, kind: EventKind) -> Option<Update> {
    let what = match kind {
        EventKind::Warning { message } => return Some(Update::Warning { message }),
        EventKind::PullStarted { image } => Activity::Pulling {
            image: image.to_string(),
        },
        EventKind::PullProgress {
            progress:
                PullEvent::Layer {
                    id,
                    current: Some(current),
                    total: Some(total),
                    ..
                },
            ..
        } => Activity::Layer { id, current, total },
        EventKind::PullFinished { image, duration } => Activity::Pulled {
            image: image.to_string(),
            duration,
        },
        EventKind::ContainerReady { existed: true, .. } => Activity::TakenOver,
        EventKind::TaskStopping { why } => Activity::Stopping { why },
        _ => return None,
    };
    Some(Update::Doing { step: step?, what })
}

/// What is to be seen of what became of a cache. Failures are warnings of their own.
fn cache(path: &ContainerPath, key: &CacheKey, kind: CacheEventKind) -> Option<String> {
    Some(match kind {
        CacheEventKind::Restored {
            from,
            exact,
            size,
            fetched,
            duration,
            ..
        } => format!(
            "cache {path}: {}, {} ({} fetched) in {}",
            match exact {
                true => format!("hit {from}"),
                false => format!("fallback to {from} for {key}"),
            },
            DecimalBytes(size),
            DecimalBytes(fetched),
            duration::show(duration)
        ),
        CacheEventKind::Missed { duration } => format!("cache {path}: miss {key} in {}", duration::show(duration)),
        CacheEventKind::Persisted(persisted) if persisted.unchanged => format!(
            "cache {path}: unchanged, {} in {}",
            DecimalBytes(persisted.size),
            duration::show(persisted.duration)
        ),
        CacheEventKind::Persisted(persisted) => format!(
            "cache {path}: persisted {}, {}% reused, {} sent in {}",
            DecimalBytes(persisted.size),
            (persisted.size - persisted.new) * 100 / persisted.size.max(1),
            DecimalBytes(persisted.sent),
            duration::show(persisted.duration)
        ),
        CacheEventKind::Skipped { task } => format!("cache {path}: not persisted, because {task} did not succeed"),
        _ => return None,
    })
}

/// What is to be seen of a build's progress.
pub(crate) fn building(step: StepId, event: BuildEvent) -> Option<Update> {
    let what = match event {
        BuildEvent::Started { vertex, name, .. } => Activity::Building { vertex, name },
        BuildEvent::Progress {
            vertex,
            id,
            current,
            total,
            ..
        } => Activity::Transfer {
            vertex,
            id,
            current,
            total,
        },
        BuildEvent::Completed {
            vertex,
            name,
            cached,
            duration,
        } => Activity::Built {
            vertex,
            name,
            cached,
            duration,
        },
        BuildEvent::Failed {
            vertex, name, canceled, ..
        } => Activity::NotBuilt { vertex, name, canceled },
        BuildEvent::Restarted => Activity::BuildingAgain,
        BuildEvent::Warning { message, .. } => return Some(Update::Warning { message }),
        _ => return None,
    };
    Some(Update::Doing { step, what })
}
