//! A run that was killed is carried on with by its own file, even where the engine no longer knows what was done.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use orchestra::{JobId, Name};
use orchestra_caches::{CachesOptions, Store, StoreOptions};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{Caches, Pipeline, RunEventKind, RunOptions, RunState, Status, run};
use tokio::sync::mpsc;

const TEXT: &str = "
plan:
- { task: count, image: busybox, config: { outputs: [{ name: log }], run: { path: sh, args: [-c, 'echo ran >> log/log; cat log/log > log/seen'] } } }
- { load_var: seen, file: log/seen }
- { task: show, image: busybox, config: { inputs: [{ name: log }], run: { path: sh, args: [-c, 'test \"$(cat log/log)\" = ((.:seen))'] } } }
";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Runs the pipeline until this step begins. From then on nothing of its process runs any more.
fn killed_when(begins: &str, pipeline: &Pipeline, engine: &MemoryEngine, mut options: RunOptions) {
    let process = runtime();
    process.block_on(async {
        let (events, mut received) = mpsc::channel(1);
        options.events = Some(events);
        let mut running = Box::pin(run(pipeline, engine.driver(), options));
        loop {
            tokio::select! {
                biased;
                Some(event) = received.recv() => {
                    if matches!(&event.kind, RunEventKind::StepStarted { step, .. } if step.as_str() == begins) {
                        break;
                    }
                }
                report = &mut running => panic!("the run ended: {report:#?}"),
            }
        }
    });
    std::mem::forget(process);
}

#[test]
fn a_cache_that_was_not_persisted_before_a_kill_is_persisted_by_who_carries_on() {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.sqlite");
    let text = TEXT.replace(
        "config: { outputs",
        "config: { caches: [{ path: state, key: kept }], outputs",
    );
    let text = text.replace("echo ran >> log/log;", "echo kept > state/file; echo ran >> log/log;");
    let pipeline = Pipeline::parse("ci.yml", &text).unwrap();
    let id = JobId::new("nightly").unwrap();
    let store = |url: &std::path::Path| {
        let mut options = StoreOptions::default();
        options.url = format!("file://{}", url.display());
        Store::open(&options).unwrap()
    };
    let options = |state, store| {
        let mut options = RunOptions::default();
        options.run_id = Some(id.clone());
        options.state = Some(state);
        options.caches = Some(Caches::new(store, CachesOptions::default()));
        options
    };
    // Nothing can be written where a folder should be and a file is.
    let state = RunState::create(&file, &id, pipeline.digest()).unwrap();
    killed_when("show", &pipeline, &engine, options(state, store(&file)));

    runtime().block_on(async {
        let container = id.container(&Name::new("count").unwrap(), 1);
        engine.driver().remove_container(&container).await.unwrap();
        let kept = store(&dir.path().join("store"));
        let state = RunState::open(&file, &id, pipeline.digest()).unwrap();
        let report = run(&pipeline, engine.driver(), options(state, kept.clone())).await;
        assert_eq!(report.status, Status::Succeeded, "{report:#?}");
        let entry = kept.get(&"ci.yml/ci/-/kept".parse().unwrap()).await.unwrap();
        assert!(entry.is_some_and(|entry| entry.size > 512), "{report:#?}");
        assert!(engine.driver().list(None).await.unwrap().is_empty());
    });
}

#[test]
fn a_step_that_has_succeeded_is_not_run_again_though_its_container_is_gone() {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.sqlite");
    let pipeline = Pipeline::parse("ci.yml", TEXT).unwrap();
    let id = JobId::new("nightly").unwrap();
    let options = |state| {
        let mut options = RunOptions::default();
        options.run_id = Some(id.clone());
        options.state = Some(state);
        options
    };

    killed_when(
        "show",
        &pipeline,
        &engine,
        options(RunState::create(&file, &id, pipeline.digest()).unwrap()),
    );

    runtime().block_on(async {
        let driver = engine.driver();
        let container = id.container(&Name::new("count").unwrap(), 1);
        driver.remove_container(&container).await.unwrap();

        let other = Pipeline::parse("ci.yml", &format!("{TEXT}\n# changed\n")).unwrap();
        let changed = RunState::open(&file, &id, other.digest()).unwrap_err();
        assert!(changed.to_string().contains("has changed since"), "{changed}");
        let none = RunState::open(&dir.path().join("none"), &id, pipeline.digest()).unwrap_err();
        assert!(none.to_string().contains("there is no run nightly"), "{none}");
        let strange = RunState::open(&file, &JobId::new("other").unwrap(), pipeline.digest()).unwrap_err();
        assert!(strange.to_string().contains("is not of the run other"), "{strange}");

        let state = RunState::open(&file, &id, pipeline.digest()).unwrap();
        let report = run(&pipeline, engine.driver(), options(state)).await;
        assert_eq!(report.status, Status::Succeeded, "{report:#?}");
        let names: Vec<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names, ["count", "seen", "show"]);
        assert!(engine.driver().list(None).await.unwrap().is_empty());
    });
}
