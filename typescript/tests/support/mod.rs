//! Scripts on an engine in memory.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fmt;
use std::path::Path;

use orchestra::SharedDriver;
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{RunEvent, RunEventKind, RunOptions, RunReport, Status};
use orchestra_secrets::{Secrets, SecretsLayer};
use orchestra_typescript::{Script, ScriptOptions};
use tokio::sync::mpsc;

/// What came of a script.
pub(crate) struct Ran {
    pub(crate) report: RunReport,
    pub(crate) events: Vec<RunEvent>,
}

impl Ran {
    /// All that a step wrote.
    pub(crate) fn output(&self, of: &str) -> String {
        let pieces = self.events.iter().filter_map(|event| match &event.kind {
            RunEventKind::Output { step, data, .. } if step.as_str() == of => Some(data.0.clone()),
            _ => None,
        });
        String::from_utf8_lossy(&pieces.collect::<Vec<_>>().concat()).into_owned()
    }

    /// What the script itself ended with.
    pub(crate) fn error(&self) -> &str {
        let last = self.report.steps.last().unwrap();
        last.error.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report.fmt(f)
    }
}

pub(crate) fn statuses(ran: &Ran) -> Vec<(&str, Status)> {
    let steps = ran.report.steps.iter();
    steps.map(|step| (step.name.as_str(), step.status)).collect()
}

pub(crate) fn engine() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    engine
}

/// Runs the body of a pipeline; its first line is the file's second.
pub(crate) async fn run(body: &str) -> Ran {
    run_with(&wrapped(body), |_| ()).await
}

pub(crate) fn wrapped(body: &str) -> String {
    format!("const pipeline = async () => {{\n{body}\n}};\nexport {{ pipeline }};\n")
}

/// Runs a whole file, with changed options.
pub(crate) async fn run_with(text: &str, change: impl FnOnce(&mut RunOptions)) -> Ran {
    run_on(&engine(), text, ScriptOptions::default(), change).await
}

pub(crate) async fn run_on(
    engine: &MemoryEngine,
    text: &str,
    script: ScriptOptions,
    change: impl FnOnce(&mut RunOptions),
) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ci.ts");
    std::fs::write(&file, text).unwrap();
    run_file(engine, &file, script, change).await
}

/// Runs a whole file with the layer of secrets.
pub(crate) async fn run_with_secrets(text: &str, secrets: Secrets) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ci.ts");
    std::fs::write(&file, text).unwrap();
    let driver = SecretsLayer::wrap(engine().driver(), secrets.clone());
    let change = |options: &mut RunOptions| options.secrets = Some(secrets);
    run_by(driver, &file, ScriptOptions::default(), change).await
}

pub(crate) async fn run_file(
    engine: &MemoryEngine,
    file: &Path,
    script: ScriptOptions,
    change: impl FnOnce(&mut RunOptions),
) -> Ran {
    run_by(engine.driver(), file, script, change).await
}

async fn run_by(driver: SharedDriver, file: &Path, script: ScriptOptions, change: impl FnOnce(&mut RunOptions)) -> Ran {
    let read = Script::read(file).unwrap_or_else(|invalid| panic!("{invalid:?}"));
    let (events, mut received) = mpsc::channel(8);
    let collected = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(event) = received.recv().await {
            all.push(event);
        }
        all
    });
    let mut options = RunOptions::default();
    options.events = Some(events);
    change(&mut options);
    let report = read.run(driver.clone(), options, script).await;
    let left = driver.list(None).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    let events = collected.await.unwrap();
    let mut ran = Ran { report, events };
    // Files stand in a directory of the test's own.
    let parent = file.parent().unwrap().display().to_string();
    for step in &mut ran.report.steps {
        step.error = step.error.take().map(|text| text.replace(&format!("{parent}/"), ""));
    }
    ran
}
