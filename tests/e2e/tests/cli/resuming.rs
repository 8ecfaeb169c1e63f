//! Runs that die: carried on with the same id, or collected.

use std::time::Duration;

use orchestra_e2e::{Dir, Fixture, Running};
use serde_json::{Value, json};

use crate::support::{
    assert_gone, assert_says, dead_runs, left_of, pipeline, producer, run, run_id, task, tests, until,
};

tests![
    what_a_killed_run_left_is_collected_and_a_living_one_is_not,
    a_killed_build_is_collected,
    a_run_that_was_killed_is_carried_on,
    steps_across_loaded_values_are_carried_on,
    a_run_is_resumed_by_its_state_and_by_no_other,
    a_script_is_carried_on_with_what_it_had_done,
    what_is_kept_stays_until_it_is_collected,
];

/// Starts these steps, waits for a line and kills the process.
fn kill_at(fixture: &Fixture, steps: impl IntoIterator<Item = Value>, id: &str, line: &str) {
    let dir = pipeline(steps);
    let running: Running = fixture
        .orchestra(["run", "p.yml", "--run-id", id])
        .dir(dir.path())
        .start();
    let _ = running.line_with(line);
    running.signal("KILL");
    let finished = running.finish();
    assert_eq!(finished.code, 128 + 9, "{finished}");
}

fn what_a_killed_run_left_is_collected_and_a_living_one_is_not(fixture: &Fixture) {
    let _alone = dead_runs();
    let (dead, alive) = (run_id("dead"), run_id("alive"));
    let forever = |name: &str| {
        [
            producer(fixture, "words", "echo x > words/x"),
            task(fixture, name, "echo begun; sleep 4; echo ended"),
        ]
    };
    let dir = pipeline(forever("living"));
    let living = fixture
        .orchestra(["run", "p.yml", "--run-id", &alive])
        .dir(dir.path())
        .start();
    let _ = living.line_with("living | begun");
    kill_at(fixture, forever("dying"), &dead, "dying | begun");
    let left = left_of(fixture, &dead);
    assert!(left.0.len() >= 2, "a container and a volume: {left:?}");

    let told = fixture.orchestra(["gc", "--dry-run"]).run();
    assert_says(&told, &[&dead, "would remove"]);
    assert!(!told.all().contains(&alive), "{told}");
    assert_eq!(left_of(fixture, &dead), left, "a dry run removes nothing");

    let collected = fixture.orchestra(["gc"]).run();
    assert_eq!(collected.code, 0, "{collected}");
    assert_says(&collected, &[&dead, "removed"]);
    assert_gone(fixture, &dead, &collected);
    let finished = living.finish();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["living | ended"]);
    assert_gone(fixture, &alive, &finished);
}

fn a_killed_build_is_collected(fixture: &Fixture) {
    let _alone = dead_runs();
    let id = run_id("deadbuild");
    let script = format!(
        "printf 'FROM {}\\nRUN echo be''gun; sleep 300\\n' > source/Dockerfile",
        crate::building::base_image(fixture)
    );
    kill_at(
        fixture,
        crate::bad_input::build(fixture, &script, json!({})),
        &id,
        " begun",
    );
    let collected = fixture.orchestra(["gc", "--json"]).run();
    assert_eq!(collected.code, 0, "{collected}");
    assert_eq!(collected.events().expect("JSON")[0]["dry_run"], false, "{collected}");
    assert_gone(fixture, &id, &collected);
}

fn a_run_that_was_killed_is_carried_on(fixture: &Fixture) {
    let _alone = dead_runs();
    let id = run_id("resume");
    // Each leaves a mark when it runs.
    let mut long = task(
        fixture,
        "long",
        "echo x >> marks/long; for i in 1 2 3 4 5 6; do echo tick $i; sleep 1; done",
    );
    long["config"]["inputs"] = json!([{"name": "marks"}]);
    let mut count = task(
        fixture,
        "count",
        "echo first $(cat marks/first | wc -l), long $(cat marks/long | wc -l)",
    );
    count["config"]["inputs"] = json!([{"name": "marks"}]);
    let steps = || {
        [
            producer(fixture, "marks", "echo x >> marks/first; echo said once"),
            long.clone(),
            count.clone(),
        ]
    };
    kill_at(fixture, steps(), &id, "long | tick 2");
    let finished = run(fixture, steps(), &["--run-id", &id]);
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(
        &finished,
        &["count | first 1, long 1", "marks | said once", "carried on"],
    );
    let stdout = finished.stdout();
    let ticks: Vec<&str> = stdout.lines().filter_map(|line| line.strip_prefix("long | ")).collect();
    assert_eq!(
        ticks,
        ["tick 1", "tick 2", "tick 3", "tick 4", "tick 5", "tick 6"],
        "{finished}"
    );
    assert_gone(fixture, &id, &finished);
}

fn steps_across_loaded_values_are_carried_on(fixture: &Fixture) {
    let _alone = dead_runs();
    let id = run_id("across");
    let mut each = task(
        fixture,
        "each",
        "echo x >> marks/((.:value)); echo ((.:value)) 1; sleep 2; echo ((.:value)) $(cat marks/((.:value)) | wc -l)",
    );
    each["config"]["inputs"] = json!([{"name": "marks"}]);
    each["across"] = json!([{"var": "value", "values": "((.:values))"}]);
    let steps = || {
        [
            producer(fixture, "marks", "echo '[one, two, three]' > marks/values.yml"),
            json!({"load_var": "values", "file": "marks/values.yml"}),
            each.clone(),
        ]
    };
    kill_at(fixture, steps(), &id, "each.x2 | two 1");
    let finished = run(fixture, steps(), &["--run-id", &id]);
    assert_eq!(finished.code, 0, "{finished}");
    let stdout = finished.stdout();
    let said: Vec<&str> = stdout.lines().filter(|line| line.starts_with("each")).collect();
    let expected = ["each | one 1", "each.x2 | two 1", "each.x3 | three 1"].map(|line| [line, line]);
    assert_eq!(said, expected.concat(), "{finished}");
    assert_gone(fixture, &id, &finished);
}

fn a_run_is_resumed_by_its_state_and_by_no_other(fixture: &Fixture) {
    let _alone = dead_runs();
    let id = run_id("state");
    let state = Dir::with([("x", "")]);
    let mut long = task(
        fixture,
        "long",
        "echo x >> marks/long; echo begun; sleep 3; echo ended $(cat marks/first)",
    );
    long["config"]["inputs"] = json!([{"name": "marks"}]);
    let dir = pipeline([producer(fixture, "marks", "echo once >> marks/first"), long]);
    let run = |more: &[&str]| {
        let args = ["run", "p.yml", "--run-id", &id];
        fixture
            .orchestra(args.iter().chain(more))
            .dir(dir.path())
            .env("XDG_STATE_HOME", state.path())
    };
    let unknown = run(&["--resume"]).run();
    assert_eq!(unknown.code, 2, "{unknown}");
    assert_says(&unknown, &["there is no run", "hint: "]);

    let running = run(&[]).start();
    let _ = running.line_with("long | begun");
    running.signal("KILL");
    let _ = running.finish();
    let file = state.file(&format!("orchestra/runs/{id}.sqlite"));
    assert!(file.exists());

    let text = std::fs::read(dir.file("p.yml")).expect("the pipeline");
    dir.write("p.yml", [text.as_slice(), b" "].concat());
    let changed = run(&["--resume"]).run();
    assert_eq!(changed.code, 2, "{changed}");
    assert_says(&changed, &["the pipeline has changed since the run"]);
    dir.write("p.yml", text);

    let finished = run(&["--resume"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["long | begun", "long | ended once"]);
    assert_gone(fixture, &id, &finished);
    assert!(!file.exists(), "a run that has ended can't be carried on with");
}

fn a_script_is_carried_on_with_what_it_had_done(fixture: &Fixture) {
    let _alone = dead_runs();
    let id = run_id("script");
    let state = Dir::with([("x", "")]);
    // What has ended is not run again, what runs is waited for, and a sandbox is the one that it was. What was executed in it, or
    // in one that was closed, is not executed again, nor is a file written again that was changed since.
    let script = r#"
const pipeline = async () => {
    const marks = await volumes.create({ name: "marks" });
    const sh = (script: string) => ["sh", "-c", script];
    await marks.writeFiles({ state: "written" });
    const state = await marks.readFile("state");
    const first = await runtime.run({ name: "first", image: IMAGE, command: sh("echo x >> marks/n; printf changed > marks/state; echo said once"), mounts: { marks } });
    assert.equal(first.stdout, "said once\n");
    const early = await runtime.startSandbox({ name: "early", image: IMAGE, mounts: { marks } });
    await early.exec({ command: sh("echo early >> marks/early; echo early > /tmp/early") });
    const failed = await early.exec({ command: sh("echo told; exit 3"), allowFailure: true });
    await early.close();
    const box = await runtime.startSandbox({ image: IMAGE });
    let said = "";
    const beats = await box.exec({ command: sh("echo x >> /tmp/beats; wc -l < /tmp/beats"), onOutput: (stream: string, data: string) => { said += data; } });
    assert.equal(said, beats.stdout);
    await assert.rejects(box.exec({ command: sh("echo why >&2; exit 4") }), { code: 4, stderr: "why\n" });
    const long = runtime.run({ name: "long", image: IMAGE, command: sh("echo begun; sleep 4; echo ended"), mounts: { marks } });
    console.log("beats", beats.stdout.trim());
    assert.equal((await long).stdout, "begun\nended\n");
    await box.close();
    const marked = await marks.readFiles(["n", "state", "early"]);
    assert.deepEqual(marked, { n: "x\n", state: "changed", early: "early\n" });
    console.log("it was", state, failed.code);
};
export { pipeline };
"#;
    let dir = Dir::with([("p.ts", script.replace("IMAGE", &format!("{:?}", fixture.image)))]);
    let run = |more: &[&str]| {
        let args = ["run", "p.ts", "--run-id", &id];
        let command = fixture.orchestra(args.iter().chain(more)).dir(dir.path());
        command.env("XDG_STATE_HOME", state.path())
    };
    let unknown = run(&["--resume"]).run();
    assert_eq!(unknown.code, 2, "{unknown}");
    assert_says(&unknown, &["there is no run", "hint: "]);
    let running = run(&[]).start();
    let _ = running.line_with("long | begun");
    running.signal("KILL");
    assert_says(&running.finish(), &["beats 1"]);

    let text = std::fs::read(dir.file("p.ts")).expect("the script");
    dir.write("p.ts", [text.as_slice(), b"console.log('new');"].concat());
    let changed = run(&["--resume"]).run();
    assert_eq!(changed.code, 2, "{changed}");
    assert_says(&changed, &["the pipeline has changed since the run"]);
    dir.write("p.ts", text);

    let finished = run(&["--resume"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(
        &finished,
        &[
            "beats 1",
            "early | told",
            "sandbox | 1",
            "long | ended",
            "it was written 3",
        ],
    );
    assert_gone(fixture, &id, &finished);
    assert!(!state.file(&format!("orchestra/runs/{id}.sqlite")).exists());
}

fn what_is_kept_stays_until_it_is_collected(fixture: &Fixture) {
    let _alone = dead_runs();
    let id = run_id("kept");
    let finished = run(
        fixture,
        [producer(fixture, "words", "echo x > words/x; exit 1")],
        &["--run-id", &id, "--keep"],
    );
    assert_eq!(finished.code, 1, "{finished}");
    let left = left_of(fixture, &id);
    assert!(
        left.0.iter().any(|thing| thing.starts_with("container"))
            && left.0.iter().any(|thing| thing.starts_with("volume")),
        "{left:?}"
    );
    until("the kept run is collected", Duration::from_secs(20), || {
        assert_eq!(fixture.orchestra(["gc"]).run().code, 0);
        left_of(fixture, &id).0.is_empty()
    });
}
