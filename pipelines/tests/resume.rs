//! A run that was killed is carried on with by its own file, even where the engine no longer knows what was done.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use orchestra::{JobId, Name};
use orchestra_caches::{CachesOptions, Store, StoreOptions};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{
    Caches, Ended, Pipeline, Program, RunEventKind, RunOptions, RunState, SingleStep, Status, run, run_program,
};
use orchestra_secrets::{SecretValue, Secrets};
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

/// Of a run that can be carried on.
fn options(id: &JobId, state: RunState) -> RunOptions {
    let mut options = RunOptions::default();
    options.run_id = Some(id.clone());
    options.state = Some(state);
    options
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
        let mut options = options(&id, state);
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
    let options = |state| options(&id, state);

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

#[test]
fn what_a_load_var_has_read_stays_what_it_was_though_the_file_has_changed() {
    let text = "
jobs:
- name: one
  plan:
  - { task: make, image: busybox, config: { outputs: [{ name: log }], run: { path: sh, args: [-c, 'echo first > log/value'] } } }
  - { load_var: value, file: log/value }
  - { task: change, image: busybox, config: { inputs: [{ name: log }], run: { path: sh, args: [-c, 'echo second > log/value'] } } }
  - { task: show, image: busybox, config: { run: { path: sh, args: [-c, 'test ((.:value)) = first'] } } }
- name: two
  plan:
  - { task: other, image: busybox, config: { run: { path: 'true' } } }
";
    for killed in ["show", "other"] {
        let engine = MemoryEngine::new();
        engine.add_image("busybox", MemoryImage::busybox()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.sqlite");
        let pipeline = Pipeline::parse("ci.yml", text).unwrap();
        let id = JobId::new("nightly").unwrap();
        let options = |state| options(&id, state);
        let state = RunState::create(&file, &id, pipeline.digest()).unwrap();
        killed_when(killed, &pipeline, &engine, options(state));
        runtime().block_on(async {
            let state = RunState::open(&file, &id, pipeline.digest()).unwrap();
            let report = run(&pipeline, engine.driver(), options(state)).await;
            assert_eq!(report.status, Status::Succeeded, "{killed}: {report:#?}");
        });
    }
}

#[test]
fn an_answer_that_holds_a_secret_is_not_noted() {
    runtime().block_on(async {
        let engine = MemoryEngine::new();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.sqlite");
        let id = JobId::new("nightly").unwrap();
        let mut options = options(&id, RunState::create(&file, &id, "digest").unwrap());
        options.secrets = Some(Secrets::new([]));
        let program = Program::new("p.ts", Name::new("p").unwrap());
        run_program(&program, engine.driver(), options, async |session| {
            let secrets = session.secrets().unwrap();
            secrets.mask(&SecretValue::new("correct-horse-battery")).unwrap();
            for answer in ["plain", "it is correct-horse-battery", "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5"] {
                let (deed, _) = session.deed("subject", "read");
                session.did(deed, answer.to_owned()).await;
            }
            Ended::well()
        })
        .await;
        let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
        assert!(text.contains("plain"));
        assert!(!text.contains("correct-horse") && !text.contains("Y29ycmVj"), "{text}");
    });
}

/// Sandboxes of a program that is broken off once they are closed: what is left of its run is as `leave` has it.
async fn executed_again(leave: impl AsyncFnOnce(&MemoryEngine, &JobId), unnoted: bool) -> Option<String> {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.sqlite");
    let id = JobId::new("nightly").unwrap();
    let run = |state| {
        let mut options = options(&id, state);
        options.keep = true;
        options.grace = std::time::Duration::from_millis(50);
        let engine = &engine;
        async move {
            let mut known = None;
            let program = Program::new("p.ts", Name::new("p").unwrap());
            let report = run_program(&program, engine.driver(), options, async |session| {
                session.volume(&Name::new("out").unwrap()).await.unwrap();
                let step = serde_json::json!({ "task": "box", "image": "busybox", "config": {
                    "inputs": [{ "name": "out" }], "run": { "path": "sleep", "args": ["1000"] } } });
                let single = SingleStep::read(&step, None).await.unwrap();
                let sandbox = session.sandbox(single).await.unwrap();
                let (deed, before) = session.deed(sandbox.subject(), "exec");
                known = before;
                if !unnoted {
                    session.did(deed, "answer".to_owned()).await;
                }
                let (deed, _) = session.deed(sandbox.subject(), "another");
                session.did(deed, "answer".to_owned()).await;
                session.close(&sandbox).await.unwrap();
                Ended::well()
            })
            .await;
            assert_eq!(report.status, Status::Succeeded, "{report:#?}");
            known
        }
    };
    assert_eq!(run(RunState::create(&file, &id, "digest").unwrap()).await, None);
    leave(&engine, &id).await;
    run(RunState::open(&file, &id, "digest").unwrap()).await
}

#[test]
fn what_was_executed_in_a_closed_sandbox_counts_as_long_as_its_volumes_are_there() {
    runtime().block_on(async {
        let known = executed_again(async |_, _| (), false).await;
        assert_eq!(known.as_deref(), Some("answer"));
        let gone = executed_again(
            async |engine, id| {
                let volume = id.volume(&Name::new("out").unwrap());
                engine.driver().remove_volume(&volume).await.unwrap();
            },
            false,
        );
        assert_eq!(gone.await, None);
        let unnoted = executed_again(async |_, _| (), true).await;
        assert_eq!(unnoted, None, "all of it is done again, or nothing");
    });
}

#[test]
fn what_a_program_did_to_a_volume_is_known_as_long_as_the_volume_is_there() {
    let engine = MemoryEngine::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.sqlite");
    let id = JobId::new("nightly").unwrap();
    let program = Program::new("p.ts", Name::new("p").unwrap());
    let volume = Name::new("work").unwrap();
    // What was answered before, of each of the two times that the same is done.
    let run = |state: RunState, removes: bool| {
        let (engine, program, volume, id) = (&engine, &program, &volume, &id);
        let mut options = options(id, state);
        options.keep = true;
        async move {
            let mut before = Vec::new();
            run_program(program, engine.driver(), options, async |session| {
                let made = session.volume(volume).await.unwrap();
                for (what, answer) in [("write", "one"), ("write", "two"), ("read", "three")] {
                    let (deed, known) = session.deed(made.as_str(), what);
                    before.push(known);
                    session.did(deed, answer.to_owned()).await;
                }
                let large = session.deed(made.as_str(), "large");
                before.push(large.1);
                session.did(large.0, "x".repeat((16 << 20) + 1)).await;
                Ended::well()
            })
            .await;
            if removes {
                let driver = engine.driver();
                driver.remove_volume(&id.volume(volume)).await.unwrap();
            }
            before
        }
    };
    runtime().block_on(async {
        let open = || RunState::open(&file, &id, "digest").unwrap();
        assert_eq!(
            run(RunState::create(&file, &id, "digest").unwrap(), false).await,
            [const { None::<String> }; 4]
        );
        let known = ["one", "two", "three"].map(|answer| Some(answer.to_owned()));
        let known = [&known[..], &[None]].concat();
        assert_eq!(run(open(), false).await, known);
        assert_eq!(run(open(), true).await, known);
        assert_eq!(run(open(), false).await, [const { None::<String> }; 4]);
        assert_eq!(run(open(), false).await, known);
    });
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "what is in it is its user's alone");
}
