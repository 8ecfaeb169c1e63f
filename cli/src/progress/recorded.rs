//! Updates as they come, for the renderers' tests.

use std::time::Duration;

use orchestra::{ExitStatus, JobId, OutputStream};
use orchestra_pipelines::{Status, StepKind};

use super::update::{Activity, StepEnd, StepId, Update};

fn id(step: &str) -> StepId {
    StepId {
        job: "main".into(),
        step: step.into(),
    }
}

fn output(step: &str, stream: OutputStream, text: &'static str) -> Update {
    Update::Output {
        step: id(step),
        stream,
        bytes: text.into(),
    }
}

fn end(step: &str, status: Status, exit: Option<ExitStatus>, millis: u64) -> StepEnd {
    let duration = Duration::from_millis(millis);
    StepEnd {
        step: id(step),
        status,
        exit,
        duration,
        image: None,
        error: None,
        hint: None,
        log: String::new(),
    }
}

/// Two that succeed, one that fails and one that is skipped for it.
pub(crate) fn run_of_four_steps() -> Vec<Update> {
    use OutputStream::{Stderr, Stdout};
    let started = |step: &str, kind| Update::StepStarted { step: id(step), kind };
    let built = StepEnd {
        image: Some(("localhost/app:1".into(), "sha256:abc".into())),
        ..end("app", Status::Succeeded, Some(ExitStatus::Code(0)), 12_300)
    };
    let failed = StepEnd {
        hint: Some("look at it".into()),
        ..end("test", Status::Failed, Some(ExitStatus::Code(2)), 3000)
    };
    vec![
        Update::Started {
            run_id: JobId::new("run").unwrap(),
            steps: ["write", "app", "test", "late"].map(id).to_vec(),
        },
        started("write", StepKind::Task),
        output("write", Stdout, "hel"),
        output("write", Stderr, "a war"),
        output("write", Stdout, "lo\n"),
        output("write", Stderr, "ning\n"),
        output("write", Stdout, "no line feed"),
        Update::StepFinished(Box::new(end(
            "write",
            Status::Succeeded,
            Some(ExitStatus::Code(0)),
            430,
        ))),
        started("app", StepKind::BuildImage),
        Update::Doing {
            step: id("app"),
            what: Activity::Building {
                vertex: 1,
                name: "[1/2] FROM busybox".into(),
            },
        },
        Update::StepFinished(Box::new(built)),
        started("test", StepKind::Task),
        output("test", Stderr, "oh no\n"),
        Update::StepFinished(Box::new(failed)),
        Update::StepFinished(Box::new(end("late", Status::Skipped, None, 0))),
        Update::Finished {
            status: Status::Failed,
            duration: Duration::from_millis(16_230),
        },
    ]
}

/// An image that is fetched in two layers.
pub(crate) fn pull() -> Vec<Update> {
    let doing = |what| Update::Doing {
        step: id("write"),
        what,
    };
    let layer = |id: &str, current| {
        doing(Activity::Layer {
            id: id.into(),
            current,
            total: 2_000_000,
        })
    };
    vec![
        doing(Activity::Pulling {
            image: "busybox".into(),
        }),
        layer("a", 1_000_000),
        layer("b", 500_000),
        layer("a", 2_000_000),
        doing(Activity::Pulled {
            image: "busybox".into(),
            duration: Duration::from_secs(2),
        }),
    ]
}
