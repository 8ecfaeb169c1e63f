//! A run that was killed is carried on with by its own file, even where the engine no longer knows what was done.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use orchestra::{JobId, Name};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{Pipeline, RunEventKind, RunOptions, RunState, Status, run};
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

    // Of the first process nothing runs any more when `show` begins.
    let first = runtime();
    first.block_on(async {
        let (events, mut received) = mpsc::channel(1);
        let mut options = options(RunState::create(&file, &id, pipeline.digest()).unwrap());
        options.events = Some(events);
        let driver = engine.driver();
        let mut running = Box::pin(run(&pipeline, driver, options));
        loop {
            tokio::select! {
                biased;
                Some(event) = received.recv() => {
                    if matches!(&event.kind, RunEventKind::StepStarted { step, .. } if step.as_str() == "show") {
                        break;
                    }
                }
                report = &mut running => panic!("the run ended: {report:#?}"),
            }
        }
    });
    std::mem::forget(first);

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
