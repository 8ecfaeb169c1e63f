//! Runs on the in-memory engine: order, artifacts, failure, cancellation, keeping, carrying on.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use orchestra::{ExitStatus, JobId, Name, SharedDriver};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{Pipeline, RunEvent, RunEventKind, RunOptions, RunReport, Status, run};
use tokio::sync::mpsc;

fn engine() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    engine
}

fn pipeline(text: &str) -> Pipeline {
    Pipeline::parse("ci.yml", text).unwrap_or_else(|invalid| panic!("{invalid:?}"))
}

/// A plan of tasks that run shell scripts: `name: script`.
fn scripts(steps: &[(&str, &str)]) -> Pipeline {
    let mut text = "plan:\n".to_owned();
    for (name, script) in steps {
        text += &format!(
            "- {{ task: {name}, image: busybox, config: {{ run: {{ path: sh, args: [-c, '{script}'] }} }} }}\n"
        );
    }
    pipeline(&text)
}

fn options() -> (RunOptions, mpsc::UnboundedReceiver<RunEvent>) {
    let (events, mut received) = mpsc::channel(8);
    let (all, collected) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = received.recv().await {
            all.send(event).ok();
        }
    });
    let mut options = RunOptions::default();
    options.events = Some(events);
    (options, collected)
}

async fn collect(mut events: mpsc::UnboundedReceiver<RunEvent>) -> Vec<RunEventKind> {
    let mut all = Vec::new();
    while let Some(event) = events.recv().await {
        all.push(event.kind);
    }
    all
}

fn statuses(report: &RunReport) -> Vec<(&str, Status)> {
    report
        .steps
        .iter()
        .map(|step| (step.name.as_str(), step.status))
        .collect()
}

async fn nothing_is_left(engine: &MemoryEngine) {
    let left = engine.driver().list(None).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_artifact_passes_from_one_task_to_another_and_nothing_is_left() {
    let engine = engine();
    let pipeline = Pipeline::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello.yml")).unwrap();
    engine.add_image("busybox:stable", MemoryImage::busybox()).unwrap();
    let (options, events) = options();
    let report = run(&pipeline, engine.driver(), options).await;
    assert_eq!(
        statuses(&report),
        [("write", Status::Succeeded), ("read", Status::Succeeded)],
        "{report:#?}"
    );
    assert_eq!(report.status, Status::Succeeded);
    let output: Vec<u8> = collect(events)
        .await
        .into_iter()
        .filter_map(|kind| match kind {
            RunEventKind::Output { step, data, .. } if step.as_str() == "read" => Some(data.0),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(String::from_utf8_lossy(&output), "Hello from Orchestra\n");
    nothing_is_left(&engine).await;
}

#[tokio::test]
async fn events_tell_a_run_from_its_start_to_its_end_in_order() {
    let (options, events) = options();
    let report = run(
        &scripts(&[("a", "echo hi"), ("b", "exit 3"), ("c", "true")]),
        engine().driver(),
        options,
    )
    .await;
    let kinds: Vec<String> = collect(events)
        .await
        .iter()
        .filter_map(|kind| {
            Some(match kind {
                RunEventKind::RunStarted { run_id, jobs } => {
                    format!("run {} {}", *run_id == report.run_id, jobs[0].steps.len())
                }
                RunEventKind::JobStarted { job, .. } => format!("job {job}"),
                RunEventKind::StepStarted { step, kind, .. } => format!("{kind} {step}"),
                RunEventKind::Output { step, data, .. } => format!("{step}: {:?}", data.0),
                RunEventKind::StepFinished { report } => format!("{} {}", report.name, report.status),
                RunEventKind::RunFinished { status, .. } => format!("end {status}"),
                _ => return None,
            })
        })
        .collect();
    let expected = [
        "run true 3",
        "job ci",
        "task a",
        "a: b\"hi\\n\"",
        "a succeeded",
        "task b",
        "b failed",
        "c skipped",
        "end failed",
    ];
    assert_eq!(kinds, expected);
}

#[tokio::test]
async fn the_engines_events_of_a_step_come_before_its_end() {
    let (options, events) = options();
    run(&scripts(&[("a", "true"), ("b", "true")]), engine().driver(), options).await;
    let mut current = None;
    let mut seen = 0;
    for kind in collect(events).await {
        match kind {
            RunEventKind::StepStarted { step, .. } => current = Some(step),
            RunEventKind::StepFinished { .. } => current = None,
            RunEventKind::Engine { step: Some(step), .. } => {
                assert_eq!(Some(step), current);
                seen += 1;
            }
            _ => {}
        }
    }
    assert!(seen >= 6, "container ready, started and finished for two tasks: {seen}");
}

#[tokio::test]
async fn a_step_that_fails_skips_the_rest_and_shows_its_last_lines() {
    let engine = engine();
    let report = run(
        &scripts(&[("a", "echo out; echo err >&2; exit 3"), ("b", "true")]),
        engine.driver(),
        RunOptions::default(),
    )
    .await;
    assert_eq!(statuses(&report), [("a", Status::Failed), ("b", Status::Skipped)]);
    assert_eq!(report.status, Status::Failed);
    let step = &report.steps[0];
    assert_eq!(
        (step.exit, step.error.as_deref()),
        (Some(ExitStatus::Code(3)), Some("exit code 3"))
    );
    assert!(
        step.log_tail.contains("out\n") && step.log_tail.contains("err\n"),
        "{:?}",
        step.log_tail
    );
    nothing_is_left(&engine).await;
}

#[tokio::test]
async fn a_step_is_tried_as_often_as_it_says() {
    let text = "
plan:
  - task: flaky
    image: busybox
    attempts: 3
    config:
      caches: [{ path: state }]
      run: { path: sh, args: [-c, 'if test -f state/second; then exit 0; fi; if test -f state/first; then touch state/second; else touch state/first; fi; exit 1'] }
";
    let engine = engine();
    let report = run(&pipeline(text), engine.driver(), RunOptions::default()).await;
    assert_eq!(
        (report.status, report.steps[0].attempt),
        (Status::Succeeded, Some(3)),
        "{report:#?}"
    );
    nothing_is_left(&engine).await;
}

#[tokio::test]
async fn a_step_that_exceeds_its_timeout_has_failed() {
    let text = "plan: [{ task: slow, image: busybox, timeout: 300ms, config: { run: { path: sleep, args: [60] } } }]";
    let engine = engine();
    let mut options = RunOptions::default();
    options.grace = Duration::from_millis(100);
    let report = run(&pipeline(text), engine.driver(), options).await;
    let step = &report.steps[0];
    assert_eq!((step.status, step.exit), (Status::Failed, Some(ExitStatus::TimedOut)));
    assert_eq!(
        step.error.as_deref(),
        Some("it did not end within its timeout of 300ms")
    );
    assert!(step.hint.as_ref().unwrap().contains("timeout"));
    nothing_is_left(&engine).await;
}

#[tokio::test]
async fn a_run_that_is_cancelled_is_aborted_and_leaves_nothing() {
    let engine = engine();
    let (mut options, mut events) = options();
    options.grace = Duration::from_millis(100);
    let cancel = options.cancel.clone();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if matches!(event.kind, RunEventKind::Output { .. }) {
                cancel.cancel();
            }
        }
    });
    let report = run(
        &scripts(&[("long", "echo begun; sleep 60"), ("after", "true")]),
        engine.driver(),
        options,
    )
    .await;
    assert_eq!(
        statuses(&report),
        [("long", Status::Aborted), ("after", Status::Skipped)]
    );
    assert_eq!(
        (report.status, report.steps[0].exit),
        (Status::Aborted, Some(ExitStatus::Cancelled))
    );
    assert!(report.duration < Duration::from_secs(20));
    nothing_is_left(&engine).await;
}

#[tokio::test]
async fn a_run_that_is_cancelled_before_its_first_step_is_aborted_too() {
    let options = RunOptions::default();
    options.cancel.cancel();
    let report = run(&scripts(&[("a", "true")]), engine().driver(), options).await;
    assert_eq!(
        (report.status, statuses(&report)),
        (Status::Aborted, vec![("a", Status::Skipped)])
    );
}

#[tokio::test]
async fn a_run_whose_future_is_dropped_leaves_nothing() {
    let engine = engine();
    let (driver, pipeline) = (engine.driver(), scripts(&[("long", "sleep 60")]));
    let mut options = RunOptions::default();
    options.grace = Duration::from_millis(100);
    tokio::time::timeout(Duration::from_millis(500), run(&pipeline, driver.clone(), options))
        .await
        .unwrap_err();
    for _ in 0..100 {
        if driver.list(None).await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    nothing_is_left(&engine).await;
}

#[tokio::test]
async fn what_is_kept_stays_where_it_is() {
    let engine = engine();
    let text = "plan: [{ task: make, image: busybox, config: { outputs: [{ name: out }], run: { path: touch, args: [out/file] } } }]";
    let mut options = RunOptions::default();
    options.keep = true;
    let report = run(&pipeline(text), engine.driver(), options).await;
    let kept: Vec<_> = engine
        .driver()
        .list(Some(&report.run_id))
        .await
        .unwrap()
        .into_iter()
        .map(|resource| resource.id)
        .collect();
    let volume = report.run_id.volume(&Name::new("out").unwrap()).to_string();
    let container = report.run_id.container(&Name::new("make").unwrap(), 1).to_string();
    assert!(kept.contains(&volume) && kept.contains(&container), "{kept:?}");
}

/// Runs until `until`, and then nothing of that process runs any more: as little as after a `kill -9`.
fn run_and_die(
    driver: SharedDriver,
    pipeline: &Pipeline,
    mut options: RunOptions,
    until: impl Fn(&RunEventKind) -> bool,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (events, mut received) = mpsc::channel(1);
        options.events = Some(events);
        let mut running = Box::pin(run(pipeline, driver, options));
        loop {
            tokio::select! {
                biased;
                Some(event) = received.recv() => if until(&event.kind) { break },
                report = &mut running => panic!("the run ended: {report:#?}"),
            }
        }
    });
    std::mem::forget(runtime);
}

#[test]
fn a_run_that_was_broken_off_is_carried_on_with_under_its_id() {
    let engine = engine();
    let count = "{ task: count, image: busybox, config: { outputs: [{ name: log }], run: { path: sh, args: [-c, 'echo ran >> log/log; echo counted'] } } }";
    let pipeline = pipeline(&format!(
        "
jobs:
  - name: first
    plan: [{count}]
  - name: second
    plan:
      - {count}
      - {{ task: show, image: busybox, config: {{ inputs: [{{ name: log }}], run: {{ path: cat, args: [log/log] }} }} }}
"
    ));
    let options = || {
        let mut options = RunOptions::default();
        options.run_id = Some(JobId::new("nightly").unwrap());
        options
    };
    let shown = |kind: &RunEventKind| matches!(kind, RunEventKind::StepStarted { step, .. } if step.as_str() == "show");
    run_and_die(engine.driver(), &pipeline, options(), shown);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        assert!(
            !engine.driver().list(None).await.unwrap().is_empty(),
            "the first process left its work"
        );
        let (with_events, events) = self::options();
        let mut options = options();
        options.events = with_events.events;
        let report = run(&pipeline, engine.driver(), options).await;
        let succeeded = Status::Succeeded;
        assert_eq!(
            statuses(&report),
            [("count", succeeded), ("count", succeeded), ("show", succeeded)],
            "{report:#?}"
        );
        let output = |wanted: &str, events: &[RunEventKind]| {
            let text = events.iter().filter_map(|kind| match kind {
                RunEventKind::Output { step, data, .. } if step.as_str() == wanted => {
                    Some(String::from_utf8_lossy(&data.0).into_owned())
                }
                _ => None,
            });
            text.collect::<String>()
        };
        let events = collect(events).await;
        assert_eq!(output("show", &events), "ran\n", "the finished task was not run twice");
        assert_eq!(
            output("count", &events),
            "counted\ncounted\n",
            "the log of what is finished is told again, whole"
        );
        nothing_is_left(&engine).await;
    });
}

#[tokio::test]
async fn jobs_run_in_order_and_share_no_artifacts() {
    let engine = engine();
    let text = "
jobs:
  - name: one
    plan: [{ task: t, image: busybox, config: { outputs: [{ name: out }], run: { path: sh, args: [-c, 'echo one > out/file'] } } }]
  - name: two
    plan: [{ task: t, image: busybox, config: { outputs: [{ name: out }], run: { path: sh, args: [-c, '! test -e out/file'] } } }]
";
    let report = run(&pipeline(text), engine.driver(), RunOptions::default()).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    let mut options = RunOptions::default();
    options.job = Some(Name::new("two").unwrap());
    let report = run(&pipeline(text), engine.driver(), options.clone()).await;
    assert_eq!(
        report.steps.iter().map(|step| step.job.as_str()).collect::<Vec<_>>(),
        ["two"]
    );
    options.job = Some(Name::new("three").unwrap());
    let report = run(&pipeline(text), engine.driver(), options).await;
    assert_eq!(
        (report.status, report.warnings.as_slice()),
        (Status::Failed, &["ci.yml has no job `three`".to_owned()][..])
    );
}

#[tokio::test]
async fn a_job_that_fails_keeps_later_jobs_from_running() {
    let job = |name: &str, script: &str| {
        format!(
            "  - {{ name: {name}, plan: [{{ task: t, image: busybox, config: {{ run: {{ path: sh, args: [-c, '{script}'] }} }} }}] }}\n"
        )
    };
    let text = format!("jobs:\n{}{}", job("one", "exit 1"), job("two", "true"));
    let report = run(&pipeline(&text), engine().driver(), RunOptions::default()).await;
    assert_eq!(statuses(&report), [("t", Status::Failed), ("t", Status::Skipped)]);
}

#[tokio::test]
async fn a_directory_changes_where_the_program_starts_and_not_where_artifacts_stand() {
    let text = "
plan:
  - { task: make, image: busybox, config: { outputs: [{ name: src }], run: { path: sh, args: [-c, 'mkdir src/app && echo x > src/app/file'] } } }
  - task: look
    image: busybox
    config:
      inputs: [{ name: src }, ]
      outputs: [{ name: out, path: deep/out }]
      run: { path: sh, dir: src/app, args: [-c, 'test $(pwd) = /workspace/src/app && cat file && cp file /workspace/deep/out/'] }
";
    let report = run(&pipeline(text), engine().driver(), RunOptions::default()).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
}

#[tokio::test]
async fn a_missing_image_fails_the_step_and_a_dead_engine_errs() {
    let engine = engine();
    engine.add_registry("registry.test", None);
    let missing = pipeline("plan: [{ task: t, image: 'registry.test/none:1', config: { run: { path: sh } } }]");
    let report = run(&missing, engine.driver(), RunOptions::default()).await;
    let step = &report.steps[0];
    assert_eq!(step.status, Status::Failed, "{step:#?}");
    assert!(
        step.error.as_ref().unwrap().contains("image not found") && step.hint.is_some(),
        "{step:#?}"
    );
    nothing_is_left(&engine).await;

    let driver = engine.driver();
    engine.kill();
    let report = run(&scripts(&[("a", "true"), ("b", "true")]), driver, RunOptions::default()).await;
    assert_eq!(statuses(&report), [("a", Status::Errored), ("b", Status::Skipped)]);
    assert!(
        report.steps[0].error.as_ref().unwrap().contains("unreachable"),
        "{report:#?}"
    );
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.contains("could not be removed")),
        "{report:#?}"
    );
}

#[tokio::test]
async fn what_the_engine_lacks_is_refused_before_anything_is_made() {
    let engine = engine();
    let text = "plan: [{ task: t, image: busybox, config: { limits: { memory: 64MB }, run: { path: sh } } }]";
    let report = run(&pipeline(text), engine.driver(), RunOptions::default()).await;
    assert_eq!(report.steps[0].status, Status::Errored);
    assert!(
        report.steps[0].error.as_ref().unwrap().contains("memory_limit"),
        "{report:#?}"
    );
    nothing_is_left(&engine).await;
}

#[tokio::test]
async fn a_report_is_plain_data() {
    let report = run(&scripts(&[("a", "exit 3")]), engine().driver(), RunOptions::default()).await;
    let json = serde_json::to_value(&report).unwrap();
    let step = &json["steps"][0];
    assert_eq!(
        (json["status"].as_str(), step["step"].as_str(), step["status"].as_str()),
        (Some("failed"), Some("a"), Some("failed"))
    );
    assert_eq!(step["exit"], serde_json::json!({ "exit": "code", "value": 3 }));
}
