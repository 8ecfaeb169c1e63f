//! Signals: what runs is ended and removed.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use orchestra_e2e::{Dir, Fixture, Running};
use serde_json::json;

use crate::bad_input::build;
use crate::building::{base_image, building};
use crate::support::{assert_gone, assert_says, left_of, pipeline, run_id, task, tests, until};

tests![
    an_interrupted_task_is_asked_to_end_and_is_removed,
    what_follows_an_abort_runs_after_an_interrupt,
    an_interrupted_build_is_removed,
    a_task_that_does_not_end_is_killed_after_the_grace_period,
    a_second_interrupt_kills_at_once,
    a_reader_that_does_not_read_does_not_hold_an_interrupted_run,
    a_try_whether_builds_do_without_privileges_is_interrupted,
];

/// Starts one task that says `begun`.
fn begin(fixture: &Fixture, script: &str, id: &str, grace: &str) -> Running {
    let dir = pipeline([task(fixture, "long", script), task(fixture, "never", "echo not run")]);
    let command = fixture
        .orchestra(["run", "p.yml", "--run-id", id])
        .dir(dir.path())
        .env("ORCHESTRA_GRACE", grace);
    let running = command.start();
    let _ = running.line_with("long | begun");
    running
}

fn an_interrupted_task_is_asked_to_end_and_is_removed(fixture: &Fixture) {
    for signal in ["INT", "TERM", "HUP"] {
        let id = run_id("interrupt");
        let script = "trap 'echo was asked; exit 9' TERM; echo begun; while :; do sleep 0.1; done";
        let running = begin(fixture, script, &id, "30s");
        let asked = Instant::now();
        running.signal(signal);
        let finished = running.finish();
        assert_eq!(finished.code, 130, "{finished}");
        assert!(asked.elapsed() < Duration::from_secs(20), "{finished}");
        assert_says(&finished, &["long | was asked", "interrupted", "aborted"]);
        assert!(!finished.all().contains("not run"), "{finished}");
        assert_gone(fixture, &id, &finished);
    }
}

fn what_follows_an_abort_runs_after_an_interrupt(fixture: &Fixture) {
    let id = run_id("onabort");
    let of = |name: &str, script: &str| task(fixture, name, script);
    let begun = "echo begun; while :; do sleep 0.1; done";
    let dir = pipeline([json!({
        "in_parallel": [of("long", begun), of("beside", begun)],
        "on_abort": of("sorry", "echo so''rry"),
        "on_failure": of("never", "echo not run"),
        "ensure": of("always", "echo al''ways"),
    })]);
    let command = fixture
        .orchestra(["run", "p.yml", "--run-id", &id])
        .dir(dir.path())
        .env("ORCHESTRA_GRACE", "1s");
    let running = command.start();
    let _ = running.line_with("long | begun");
    running.signal("INT");
    let finished = running.finish();
    assert_eq!(finished.code, 130, "{finished}");
    assert_says(&finished, &["sorry | sorry", "always | always", "aborted"]);
    assert!(!finished.all().contains("not run"), "{finished}");
    assert_gone(fixture, &id, &finished);
}

fn an_interrupted_build_is_removed(fixture: &Fixture) {
    let id = run_id("stopbuild");
    let script = format!(
        "printf 'FROM {}\\nRUN echo be''gun; sleep 300\\n' > source/Dockerfile",
        base_image(fixture)
    );
    let dir = pipeline(build(fixture, &script, json!({})));
    let running = fixture
        .orchestra(["run", "p.yml", "--run-id", &id])
        .dir(dir.path())
        .start();
    // The line that echo writes, not the one that shows the instruction.
    let _ = running.line_with(" begun");
    let asked = Instant::now();
    running.signal("INT");
    let finished = running.finish();
    assert_eq!(finished.code, 130, "{finished}");
    assert!(asked.elapsed() < Duration::from_secs(25), "{finished}");
    assert_gone(fixture, &id, &finished);
}

fn a_task_that_does_not_end_is_killed_after_the_grace_period(fixture: &Fixture) {
    let id = run_id("stubborn");
    let running = begin(
        fixture,
        "trap '' TERM; echo begun; while :; do sleep 0.1; done",
        &id,
        "1s",
    );
    let asked = Instant::now();
    running.signal("INT");
    let finished = running.finish();
    assert_eq!(finished.code, 130, "{finished}");
    let took = asked.elapsed();
    assert!(
        took > Duration::from_millis(900) && took < Duration::from_secs(15),
        "{took:?}\n{finished}"
    );
    assert_gone(fixture, &id, &finished);
}

fn a_second_interrupt_kills_at_once(fixture: &Fixture) {
    let id = run_id("twice");
    let running = begin(
        fixture,
        "trap '' TERM; echo begun; while :; do sleep 0.1; done",
        &id,
        "100s",
    );
    running.signal("INT");
    std::thread::sleep(Duration::from_secs(1));
    running.signal("INT");
    let asked = Instant::now();
    let finished = running.finish();
    assert_eq!(finished.code, 130, "{finished}");
    assert!(asked.elapsed() < Duration::from_secs(20), "{finished}");
    assert_says(&finished, &["interrupted again"]);
    assert_gone(fixture, &id, &finished);
}

fn a_reader_that_does_not_read_does_not_hold_an_interrupted_run(fixture: &Fixture) {
    let id = run_id("unread");
    let dir = pipeline([task(
        fixture,
        "endless",
        "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done",
    )]);
    let mut command = fixture
        .orchestra(["run", "p.yml", "--run-id", &id])
        .dir(dir.path())
        .env("ORCHESTRA_GRACE", "1s")
        .into_command();
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    until("it runs", Duration::from_secs(20), || {
        fixture
            .engine
            .leftovers()
            .is_ok_and(|left| left.0.iter().any(|thing| thing.contains(&id)))
    });
    // Until every buffer on the way is full.
    std::thread::sleep(Duration::from_secs(2));
    let killed = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.is_ok_and(|status| status.success()));
    let mut ended = None;
    until("it ends", Duration::from_secs(30), || {
        ended = child.try_wait().expect("it can be waited for");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(130));
    assert_eq!(left_of(fixture, &id).0.len(), 0, "{:?}", left_of(fixture, &id));
}

fn a_try_whether_builds_do_without_privileges_is_interrupted(fixture: &Fixture) {
    // An image of BuildKit's in which that takes for ever.
    let tag = "orchestra-e2e/slow-try:1";
    let dockerfile = format!(
        "FROM {}\nRUN printf '#!/bin/sh\\nexec sleep 300\\n' > /bin/rootlesskit && chmod 755 /bin/rootlesskit\n",
        base_image(fixture)
    );
    let config = "[image_build]\nrootless = 'auto'\n";
    let dir = Dir::with([
        ("Dockerfile", dockerfile.as_str()),
        ("orchestra.toml", config),
        ("p.yml", &building(fixture, "orchestra-e2e/never:1")),
    ]);
    std::fs::write(dir.file("none.toml"), "").expect("a file");
    let built = crate::building::build(fixture, &dir, tag, &["--config", "none.toml"]).run();
    assert_eq!(built.code, 0, "{built}");

    let running = fixture
        .orchestra(["run", "p.yml"])
        .dir(dir.path())
        .env("ORCHESTRA_IMAGE_BUILD__IMAGE", tag)
        .start();
    let tries = || {
        let all = fixture.engine.leftovers().expect("the engine answers").0;
        all.into_iter()
            .filter(|thing| thing.ends_with(".probe"))
            .collect::<Vec<_>>()
    };
    // Other tests try it too, which is over at once.
    let (mut seen, mut ours) = (BTreeMap::new(), None);
    until("the try is under way", Duration::from_secs(90), || {
        let now = tries();
        seen.retain(|name, _| now.contains(name));
        for name in now {
            seen.entry(name).or_insert_with(Instant::now);
        }
        ours = seen
            .iter()
            .find(|(_, since)| since.elapsed() > Duration::from_secs(4))
            .map(|(name, _)| name.clone());
        ours.is_some()
    });
    running.signal("INT");
    let finished = running.finish();
    fixture.engine.remove_image(tag).expect("it is removed");
    assert_eq!(finished.code, 130, "{finished}");
    assert!(
        ours.is_some_and(|ours| !tries().contains(&ours)),
        "the try is left\n{finished}"
    );
}
