//! Caches of pipelines, on the in-memory engine and a store in a folder.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use std::time::Duration;

use orchestra::layer::{Fault, Faults, Layered, Method};
use orchestra::{ResourceKind, SharedDriver};
use orchestra_caches::{CacheEventKind, CachesOptions, Store, StoreOptions};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{Caches, Pipeline, RunEvent, RunEventKind, RunOptions, RunReport, Status, run};
use tokio::sync::mpsc;

fn engine() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    engine
}

fn options(folder: &Path) -> RunOptions {
    let mut store = StoreOptions::default();
    store.url = format!("file://{}", folder.display());
    let mut options = RunOptions::default();
    options.caches = Some(Caches::new(Store::open(&store).unwrap(), CachesOptions::default()));
    options
}

/// Runs it, and tells what it printed, what became of its caches (`STEP WHAT`), and the report.
async fn run_with(text: &str, driver: SharedDriver, mut options: RunOptions) -> (String, Vec<String>, RunReport) {
    let (send, mut events) = mpsc::channel::<RunEvent>(64);
    options.events = Some(send);
    let pipeline = Pipeline::parse("ci.yml", text).unwrap_or_else(|invalid| panic!("{invalid:?}"));
    let watching = tokio::spawn(async move {
        let (mut output, mut caches) = (String::new(), Vec::new());
        while let Some(event) = events.recv().await {
            match event.kind {
                RunEventKind::Output { data, .. } => output += &String::from_utf8_lossy(&data.0),
                RunEventKind::StepStarted { step, .. } => caches.push(format!("{step} starts")),
                RunEventKind::StepFinished { report } if report.name.as_str() == "after" => {
                    caches.push("after ends".to_owned());
                }
                RunEventKind::Cache { step, detail, .. } => caches.push(match detail.kind {
                    CacheEventKind::Restored { from, exact, .. } => format!("{step} restored {from} {exact}"),
                    CacheEventKind::Missed { .. } => format!("{step} missed"),
                    CacheEventKind::Persisted(persisted) if persisted.unchanged => format!("{step} unchanged"),
                    CacheEventKind::Persisted(_) => format!("{step} persisted"),
                    other => format!("{step} {other:?}"),
                }),
                _ => {}
            }
        }
        (output, caches)
    });
    let report = run(&pipeline, driver, options).await;
    let (output, caches) = watching.await.unwrap();
    (output, caches, report)
}

const COUNT: &str = "
plan:
  - task: count
    image: busybox
    config:
      caches: [{ path: state }]
      run: { path: sh, args: [-c, 'echo x >> state/runs; cat state/runs'] }
  - task: after
    image: busybox
    config:
      run: { path: sleep, args: ['1'] }
";

#[tokio::test]
async fn a_cache_comes_back_on_another_engine_and_is_persisted_while_later_steps_run() {
    let folder = tempfile::tempdir().unwrap();
    let engines = [engine(), engine()];
    let (output, caches, report) = run_with(COUNT, engines[0].driver(), options(folder.path())).await;
    assert_eq!(
        (output.as_str(), report.status),
        ("x\n", Status::Succeeded),
        "{report:#?}"
    );
    assert_eq!(
        caches,
        [
            "count starts",
            "count missed",
            "after starts",
            "count persisted",
            "after ends"
        ]
    );
    let (output, caches, report) = run_with(COUNT, engines[1].driver(), options(folder.path())).await;
    assert_eq!(output, "x\nx\n", "{caches:?} {report:#?}");
    assert_eq!(caches[1], "count restored ci.yml/ci/-/workspace/state true");
    for engine in engines {
        assert!(engine.driver().list(None).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_run_that_is_kept_persists_its_caches_and_keeps_their_volumes() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), engine());
    let mut kept = options(folder.path());
    kept.keep = true;
    // Its last step is the one with the cache.
    let alone = COUNT.split("  - task: after").next().unwrap();
    let (_, caches, report) = run_with(alone, engine.driver(), kept).await;
    assert!(caches.contains(&"count persisted".to_owned()), "{caches:?} {report:#?}");
    let left = engine.driver().list(None).await.unwrap();
    let volumes = left.iter().filter(|left| left.kind == ResourceKind::Volume);
    assert!(volumes.count() > 0, "{left:?}");
    let (output, ..) = run_with(COUNT, self::engine().driver(), options(folder.path())).await;
    assert_eq!(output, "x\nx\n");
}

#[tokio::test]
async fn a_cache_that_is_being_restored_holds_up_no_step_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    run_with(COUNT, engine().driver(), options(folder.path())).await;
    let beside = COUNT.replace("plan:", "plan:\n- in_parallel:");
    let faults = Faults::new().on(Method::WriteVolume, Fault::Hang);
    let mut options = options(folder.path());
    options.caches.as_mut().unwrap().options.timeout = Duration::from_secs(3);
    let (output, caches, report) = run_with(&beside, Layered::wrap(engine().driver(), faults), options).await;
    assert_eq!(
        (output.as_str(), report.status),
        ("x\n", Status::Succeeded),
        "{report:#?}"
    );
    let at = |what: &str| caches.iter().position(|told| told.starts_with(what));
    assert!(at("after ends") < at("count NotRestored"), "{caches:?}");
    assert!(at("after ends").is_some(), "{caches:?}");
}

#[tokio::test]
async fn without_a_store_a_cache_lives_as_long_as_its_job() {
    let engine = engine();
    for _ in 0..2 {
        let (output, caches, _) = run_with(COUNT, engine.driver(), RunOptions::default()).await;
        assert_eq!(output, "x\n");
        assert_eq!(caches, ["count starts", "after starts", "after ends"]);
    }
}

fn keyed(lock: &str) -> String {
    format!(
        "
plan:
  - task: source
    image: busybox
    config:
      outputs: [{{ name: source }}]
      run: {{ path: sh, args: [-c, 'mkdir source/app; echo {lock} > source/app/lock'] }}
  - task: build
    image: busybox
    config:
      inputs: [{{ name: source, path: src }}]
      caches:
        - path: deps
          key: deps-{{{{ checksum \"src/app/lock\" }}}}
          restore_keys: [deps-]
          scope: pipeline
      run: {{ path: sh, args: [-c, 'if test -e deps/who; then cat deps/who; fi; echo {lock} > deps/who'] }}
"
    )
}

#[tokio::test]
async fn a_key_changes_with_a_files_content_and_falls_back_to_the_newest_alike() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine();
    let mut seen = Vec::new();
    for lock in ["one", "two", "one"] {
        let (output, caches, report) = run_with(&keyed(lock), engine.driver(), options(folder.path())).await;
        assert_eq!(report.status, Status::Succeeded, "{report:#?}");
        let what = caches[2].rsplit_once(' ').unwrap().1.to_owned();
        seen.push((output.trim().to_owned(), what));
    }
    let expected = [("", "missed"), ("one", "false"), ("one", "true")];
    for ((output, what), (content, found)) in seen.iter().zip(expected) {
        assert!(output.ends_with(content) && what == found, "{seen:?}");
    }
}

#[tokio::test]
async fn a_key_that_needs_a_file_that_is_not_there_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let text = keyed("x").replace("source/app/lock'", "source/app/other'");
    let (_, caches, report) = run_with(&text, engine().driver(), options(folder.path())).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    assert_eq!(caches, ["source starts", "build starts"]);
    assert!(
        report.warnings[0].contains("build: the cache deps has no key"),
        "{:?}",
        report.warnings
    );
}

#[tokio::test]
async fn steps_share_a_cache_of_their_job_and_keep_one_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let step = |name: &str| {
        format!(
            "
  - task: {name}
    image: busybox
    config:
      caches: [{{ path: shared }}, {{ path: own, scope: task }}]
      run: {{ path: sh, args: [-c, 'echo {name} >> shared/who; echo {name} >> own/who; cat shared/who own/who'] }}"
        )
    };
    let text = format!("plan:{}{}", step("a"), step("b"));
    let (output, _, report) = run_with(&text, engine().driver(), options(folder.path())).await;
    assert_eq!(output.split_whitespace().collect::<String>(), "aaabb", "{report:#?}");
    let (output, _, _) = run_with(&text, engine().driver(), options(folder.path())).await;
    assert_eq!(output.split_whitespace().collect::<String>(), "abaaaababbb");
}

#[tokio::test]
async fn a_cache_that_two_steps_want_differently_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let step = |name: &str, settings: &str| {
        format!(
            "\n- {{ task: {name}, image: busybox, config: {{ caches: [{{ path: c, {settings} }}], run: {{ path: 'true' }} }} }}"
        )
    };
    let ran = async |second: &str| {
        let text = format!("plan:{}{}", step("a", "key: k, policy: pull"), step("b", second));
        let (_, _, report) = run_with(&text, engine().driver(), options(folder.path())).await;
        assert_eq!(report.status, Status::Succeeded, "{report:#?}");
        report.warnings
    };
    let warnings = ran("key: k").await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("b: the cache c has the key of a's, whose settings count"),
        "{warnings:?}"
    );
    assert!(ran("key: k, policy: pull").await.is_empty());
    assert!(ran("key: other").await.is_empty());
}

#[tokio::test]
async fn a_store_that_can_not_be_written_leaves_a_green_run_with_warnings() {
    let folder = tempfile::tempdir().unwrap();
    // A file where the folder should be.
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let (output, _, report) = run_with(COUNT, engine().driver(), options(&file)).await;
    assert_eq!(
        (output.as_str(), report.status),
        ("x\n", Status::Succeeded),
        "{report:#?}"
    );
    assert!(
        report.warnings.iter().any(|warning| warning.contains("not persisted")),
        "{:?}",
        report.warnings
    );
}

#[tokio::test]
async fn a_step_that_fails_leaves_the_cache_that_was_there() {
    let folder = tempfile::tempdir().unwrap();
    run_with(COUNT, engine().driver(), options(folder.path())).await;
    let fails = COUNT.replace("cat state/runs", "exit 1");
    let (_, caches, report) = run_with(&fails, engine().driver(), options(folder.path())).await;
    assert_eq!(report.status, Status::Failed);
    assert!(caches.last().unwrap().contains("Skipped"), "{caches:?}");
    let (output, _, _) = run_with(COUNT, engine().driver(), options(folder.path())).await;
    assert_eq!(output, "x\nx\n");
}

#[tokio::test]
async fn of_tries_of_a_sequence_the_last_one_decides_whether_its_cache_is_persisted() {
    let sequence = |attempts: u32| {
        let broken = "if test -e state/runs; then echo x >> state/runs; cat state/runs; else echo x > state/runs; cat state/runs; exit 1; fi";
        format!(
            "
plan:
  - attempts: {attempts}
    do:
      - task: count
        image: busybox
        config:
          caches: [{{ path: state }}]
          run: {{ path: sh, args: [-c, '{broken}'] }}
"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let (_, caches, report) = run_with(&sequence(1), engine().driver(), options(folder.path())).await;
    assert_eq!(report.status, Status::Failed);
    assert!(caches.last().unwrap().contains("Skipped"), "{caches:?}");
    let (output, caches, report) = run_with(&sequence(2), engine().driver(), options(folder.path())).await;
    assert_eq!(
        (output.as_str(), report.status),
        ("x\nx\nx\n", Status::Succeeded),
        "{report:#?}"
    );
    assert_eq!(caches.last().unwrap(), "count persisted", "{caches:?}");
}

/// A step with this cache at `state`: it lists what it finds, adds a line to `keep/who` there, shows it, and makes `drop`.
fn with_cache(settings: &str) -> String {
    format!(
        "
plan:
  - task: count
    image: busybox
    config:
      caches: [{{ path: state, {settings} }}]
      run: {{ path: sh, args: [-c, 'ls state; mkdir -p state/keep; echo x >> state/keep/who; echo y > state/drop; cat state/keep/who'] }}
"
    )
}

async fn run_in(folder: &Path, settings: &str) -> (String, Vec<String>, RunReport) {
    let (output, caches, report) = run_with(&with_cache(settings), engine().driver(), options(folder)).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    (output.split_whitespace().collect::<Vec<_>>().join(" "), caches, report)
}

#[tokio::test]
async fn a_policy_of_a_cache_restores_or_persists_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (output, caches, _) = run_in(folder.path(), "policy: pull").await;
    assert_eq!((output.as_str(), &caches[1..]), ("x", &["count missed".to_owned()][..]));
    run_in(folder.path(), "policy: push").await;
    let (output, caches, _) = run_in(folder.path(), "policy: push").await;
    assert_eq!(output, "x");
    assert!(caches[1..] == ["count unchanged"], "{caches:?}");
    for _ in 0..2 {
        let (output, caches, _) = run_in(folder.path(), "policy: pull").await;
        assert_eq!(output, "drop keep x x");
        assert_eq!(caches[1..], ["count restored ci.yml/ci/-/workspace/state true"]);
    }
}

#[tokio::test]
async fn a_run_that_is_not_trusted_restores_whatever_its_pipeline_says() {
    let folder = tempfile::tempdir().unwrap();
    run_in(folder.path(), "policy: pull-push").await;
    let mut options = options(folder.path());
    options.caches.as_mut().unwrap().options.policy = orchestra_caches::Policy::Pull;
    for policy in ["pull-push", "push"] {
        let text = with_cache(&format!("policy: {policy}"));
        let (_, caches, report) = run_with(&text, engine().driver(), options.clone()).await;
        assert_eq!(report.status, Status::Succeeded);
        assert!(
            !caches
                .iter()
                .any(|what| what.ends_with("persisted") || what.ends_with("unchanged")),
            "{caches:?}"
        );
    }
    let (output, ..) = run_in(folder.path(), "policy: pull").await;
    assert_eq!(output, "drop keep x x");
}

#[tokio::test]
async fn only_the_paths_of_a_cache_are_persisted_and_none_that_is_too_large() {
    let folder = tempfile::tempdir().unwrap();
    run_in(folder.path(), "paths: [keep]").await;
    let (output, _, report) = run_in(folder.path(), "policy: pull").await;
    assert_eq!(output, "keep x x", "{report:#?}");
    let (_, caches, report) = run_in(folder.path(), "size_limit: 1KB").await;
    assert!(caches.last().unwrap().contains("limit of 1024 bytes"), "{caches:?}");
    // The old one is too large as well.
    for what in ["was not restored", "was not persisted; what the store has of it stays"] {
        let warned = |warning: &String| warning.contains(&format!("count: the cache state {what}"));
        assert!(report.warnings.iter().any(warned), "{:?}", report.warnings);
    }
    // It is the old one still.
    let (output, ..) = run_in(folder.path(), "policy: pull").await;
    assert_eq!(output, "keep x x");
}
