//! Runs that go as they should, and what is shown of them.

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use orchestra_e2e::{Dir, Fixture, registry};
use serde_json::json;

use crate::support::{assert_gone, assert_says, left_of, pipeline, plan, producer, run, run_id, task, tests, until};

tests![
    the_hello_example_runs,
    the_jobs_example_runs,
    the_example_of_steps_within_steps_runs,
    the_example_of_hooks_runs,
    an_image_is_loaded_anew_when_its_artifact_has_changed,
    the_example_of_late_steps_runs,
    the_example_of_resources_runs,
    the_example_of_an_image_that_is_an_artifact_runs,
    the_image_build_example_prints_the_digest_that_the_registry_serves,
    artifacts_go_from_step_to_step,
    a_step_that_fails_ends_the_run_with_code_1_and_shows_its_output,
    a_tasks_user_privileges_and_attempts_are_the_engines,
    a_step_that_takes_too_long_is_ended,
    a_terminal_shows_what_runs_what_failed_and_a_summary,
    output_in_a_pipe_is_plain_lines_in_order,
    json_is_one_event_a_line_and_nothing_else,
    much_output_goes_through_in_bounded_memory,
    a_reader_that_goes_away_ends_the_run,
    one_job_of_several_can_be_run,
    two_runs_at_once_do_not_disturb_each_other,
    the_configuration_is_read_and_flags_go_before_it,
    doctor_tells_what_the_engine_is,
    doctor_tells_what_is_wrong_with_an_engine_that_does_not_answer,
    validate_needs_no_engine,
];

fn the_hello_example_runs(fixture: &Fixture) {
    let finished = fixture.orchestra(["run", "examples/hello.yml"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["read | Hello from Orchestra\n", "succeeded"]);
}

fn the_jobs_example_runs(fixture: &Fixture) {
    let id = run_id("jobs");
    let finished = fixture.orchestra(["run", "examples/jobs.yml", "--run-id", &id]).run();
    // One of its steps has limits, which not every engine can set.
    let lacks: Vec<&str> = ["cpu_quota", "memory_limit"]
        .into_iter()
        .filter(|name| !can(fixture, name))
        .collect();
    if lacks.is_empty() {
        assert_eq!(finished.code, 0, "{finished}");
        assert_says(&finished, &["all tests passed"]);
    } else {
        assert_eq!(finished.code, 3, "{finished}");
        assert_says(
            &finished,
            &[&format!("the engine lacks {}", lacks.join(", ")), "hint: leave out"],
        );
    }
    assert_gone(fixture, &id, &finished);
}

fn the_example_of_steps_within_steps_runs(fixture: &Fixture) {
    let id = run_id("steps");
    let finished = fixture.orchestra(["run", "examples/steps.yml", "--run-id", &id]).run();
    assert_eq!(finished.code, 0, "{finished}");
    let said = [
        "both | left",
        "both | right",
        "good | both are there",
        "check-4 | 1.95 on debian",
        "clean-up | always",
    ];
    assert_says(&finished, &said);
    assert!(!finished.all().contains("one is missing"), "{finished}");
    assert_gone(fixture, &id, &finished);
}

fn the_example_of_hooks_runs(fixture: &Fixture) {
    let id = run_id("hooks");
    let finished = fixture.orchestra(["run", "examples/hooks.yml", "--run-id", &id]).run();
    assert_eq!(finished.code, 0, "{finished}");
    let said = ["show | more", "show | ***REDACTED***", "errored | it could not be run"];
    assert_says(&finished, &said);
    for unsaid in ["made-up-word", "its program failed", "it was interrupted"] {
        assert!(!finished.all().contains(unsaid), "{finished}");
    }
    assert_gone(fixture, &id, &finished);
}

fn the_example_of_late_steps_runs(fixture: &Fixture) {
    let id = run_id("late");
    let finished = fixture.orchestra(["run", "examples/late.yml", "--run-id", &id]).run();
    assert_eq!(finished.code, 0, "{finished}");
    let said = [
        "check | app 1.20 by rust 1.95",
        "test-3 | part 3 of 3",
        "release | app 1.20 by rust 1.95, for linux",
        "release.x2 | app 1.20 by rust 1.95, for windows",
    ];
    assert_says(&finished, &said);
    assert_gone(fixture, &id, &finished);
}

fn the_example_of_resources_runs(fixture: &Fixture) {
    let id = run_id("resources");
    let finished = fixture
        .orchestra(["run", "examples/resources.yml", "--run-id", &id])
        .run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["print | 14", "number | looking"]);
    assert_gone(fixture, &id, &finished);
    let image = "localhost/orchestra-numbers:1";
    fixture.engine.remove_image(image).expect("the type's image is removed");
}

fn the_example_of_an_image_that_is_an_artifact_runs(fixture: &Fixture) {
    let id = run_id("artifact");
    let finished = fixture
        .orchestra(["run", "examples/image-artifact.yml", "--run-id", &id])
        .run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(
        &finished,
        &[
            "run-it | Hello from an artifact",
            "run-files | Hello from files as 1000",
        ],
    );
    assert_gone(fixture, &id, &finished);
    // What was loaded of the artifact is gone; under its tag the engine has the image by the build's own promise.
    let image = "localhost/orchestra-example:artifact";
    fixture.engine.remove_image(image).expect("the built image is removed");
}

fn an_image_is_loaded_anew_when_its_artifact_has_changed(fixture: &Fixture) {
    let id = run_id("changed");
    let mut change = task(fixture, "change", "echo of another day > files/rootfs/greeting");
    change["config"]["inputs"] = json!([{"name": "files"}]);
    change["config"]["outputs"] = json!([{"name": "files"}]);
    let show = |name: &str| json!({"task": name, "image": "files", "network": "none", "config": {"run": {"path": "/busybox", "args": ["cat", "/greeting"]}}});
    let make = "mkdir files/rootfs && cp /bin/busybox files/rootfs && echo of one day > files/rootfs/greeting";
    let steps = [producer(fixture, "files", make), show("one"), change, show("two")];
    let finished = run(fixture, steps, &["--run-id", &id]);
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["one | of one day", "two | of another day"]);
    assert_gone(fixture, &id, &finished);
}

/// Whether the engine has this capability, by its own account.
fn can(fixture: &Fixture, capability: &str) -> bool {
    let finished = fixture.orchestra(["doctor", "--json"]).run();
    let told = &finished.events().expect("JSON")[0]["engine"]["capabilities"][capability];
    told.as_bool()
        .unwrap_or_else(|| panic!("the doctor does not tell {capability}\n{finished}"))
}

fn the_image_build_example_prints_the_digest_that_the_registry_serves(fixture: &Fixture) {
    let finished = fixture.orchestra(["run", "examples/image-build.yml"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    let reference = finished.value("ref").expect("a reference");
    let (name, tag) = reference.rsplit_once(':').expect("a tag");
    let (address, repository) = name.split_once('/').expect("a registry");
    assert_eq!(address, fixture.registry, "{finished}");
    let served = registry::digest(address, repository, tag, None).expect("the registry serves the tag");
    assert_eq!(finished.value("digest"), Some(served), "{finished}");
    // A later step has run it: the engine has pulled it.
    fixture.engine.remove_image(&reference).expect("the image is removed");
}

fn artifacts_go_from_step_to_step(fixture: &Fixture) {
    let mut reader = task(fixture, "read", "cat words/file");
    reader["config"]["inputs"] = json!([{"name": "words"}]);
    let finished = run(
        fixture,
        [producer(fixture, "words", "echo from the first > words/file"), reader],
        &[],
    );
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["read | from the first\n"]);
}

fn a_step_that_fails_ends_the_run_with_code_1_and_shows_its_output(fixture: &Fixture) {
    let id = run_id("fails");
    let steps = [
        task(fixture, "bad", "echo the reason >&2; exit 7"),
        task(fixture, "never", "echo not run"),
    ];
    let finished = run(fixture, steps, &["--run-id", &id]);
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &["bad | the reason\n", "exit code 7", "skipped"]);
    assert!(!finished.all().contains("not run"), "{finished}");
    assert_gone(fixture, &id, &finished);
}

fn a_tasks_user_privileges_and_attempts_are_the_engines(fixture: &Fixture) {
    let mut user = task(fixture, "user", "id -u; grep CapEff /proc/self/status");
    user["config"]["run"]["user"] = json!("1234");
    let mut strong = task(
        fixture,
        "strong",
        "mkdir /m && mount -t tmpfs none /m && echo may mount",
    );
    strong["privileged"] = json!(true);
    let mut twice = producer(
        fixture,
        "twice",
        "if test -e twice/first; then echo second; else touch twice/first; exit 7; fi",
    );
    twice["attempts"] = json!(2);
    let finished = run(fixture, [user, strong, twice], &[]);
    assert_eq!(finished.code, 0, "{finished}");
    let said = [
        "user | 1234",
        "CapEff:\t0000000000000000",
        "strong | may mount",
        "twice | second",
    ];
    assert_says(&finished, &said);
}

fn a_step_that_takes_too_long_is_ended(fixture: &Fixture) {
    let id = run_id("late");
    let mut slow = task(fixture, "slow", "echo begun; exec sleep 60");
    slow["timeout"] = json!("1s");
    let finished = run(fixture, [slow], &["--run-id", &id]);
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &["slow | begun\n", "timed out"]);
    assert!(finished.duration < Duration::from_secs(20), "{finished}");
    assert_gone(fixture, &id, &finished);
}

fn a_terminal_shows_what_runs_what_failed_and_a_summary(fixture: &Fixture) {
    let dir = pipeline([
        task(fixture, "good", "true"),
        task(fixture, "bad", "sleep 1; echo the re''ason; exit 9"),
    ]);
    let binary = fixture.binary().display().to_string();
    let command = format!("{binary} run p.yml --driver {}", fixture.driver);
    let output = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .current_dir(dir.path())
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .output()
        .expect("`script` of util-linux");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    // Drawn in place while it runs, then left as it ended.
    for part in ["bad", "\u{1b}[", "the reason", "exit code 9", "failed"] {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    let summary = shown.rfind("exit code 9").map(|at| &shown[at..]).unwrap_or_default();
    assert!(
        shown.find("the reason") < shown.rfind("exit code 9") && !summary.contains("the reason"),
        "{shown}"
    );
}

fn output_in_a_pipe_is_plain_lines_in_order(fixture: &Fixture) {
    let script = "for i in 1 2 3 4 5; do echo line $i; done; printf 'no line feed'";
    let finished = run(fixture, [task(fixture, "count", script)], &[]);
    assert_eq!(finished.code, 0, "{finished}");
    let stdout = finished.stdout();
    let lines: Vec<&str> = stdout
        .lines()
        .filter_map(|line| line.strip_prefix("count | "))
        .collect();
    assert_eq!(
        lines,
        ["line 1", "line 2", "line 3", "line 4", "line 5", "no line feed"]
    );
    assert!(!finished.all().contains('\x1b'), "{finished:?}");
    assert!(
        stdout.find("count starts") < stdout.find("count | line 1"),
        "{finished}"
    );
    assert!(
        stdout.find("no line feed") < stdout.find("count succeeded"),
        "{finished}"
    );
}

fn json_is_one_event_a_line_and_nothing_else(fixture: &Fixture) {
    let steps = [
        task(fixture, "text", "echo text; printf '\\377'"),
        task(fixture, "fail", "exit 3"),
    ];
    let finished = run(fixture, steps, &["--json"]);
    assert_eq!(finished.code, 1, "{finished}");
    let events = finished.events().expect("every line is an event");
    let of = |name: &str| {
        events
            .iter()
            .filter(|event| event["event"] == name)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert!(events.iter().all(|event| event["time"].is_string()), "{finished}");
    assert_eq!(of("run_started").len(), 1, "{finished}");
    let written = of("output")
        .iter()
        .map(|event| event["data"].as_str().unwrap_or_default().to_owned())
        .collect::<String>();
    assert_eq!(written, "text\n\u{fffd}", "{finished}");
    let ends: Vec<_> = of("step_finished")
        .iter()
        .map(|event| event["status"].clone())
        .collect();
    assert_eq!(ends, ["succeeded", "failed"], "{finished}");
    assert_eq!(events.last().expect("events")["status"], "failed", "{finished}");

    let refused = fixture.orchestra(["run", "nowhere.yml", "--json"]).run();
    assert_eq!(refused.code, 2, "{refused}");
    assert_eq!(refused.events().expect("an event")[0]["exit_code"], 2, "{refused}");
}

fn much_output_goes_through_in_bounded_memory(fixture: &Fixture) {
    let dir = pipeline([task(
        fixture,
        "much",
        "yes 0123456789abcdefghijklmnopqrstuvwxyz | head -c 300000000",
    )]);
    let mut command = fixture.orchestra(["run", "p.yml"]).dir(dir.path()).into_command();
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let (mut stdout, mut total, mut piece) = (child.stdout.take().expect("a pipe"), 0, vec![0; 1 << 16]);
    let mut peak = 0;
    loop {
        match stdout.read(&mut piece).expect("it is read") {
            0 => break,
            read => total += read,
        }
        // Early on nothing is read for a while: all that may wait on the way then does.
        if peak == 0 && total > 1 << 20 {
            thread::sleep(Duration::from_secs(1));
            peak = resident(child.id());
        }
        peak = peak.max(resident(child.id()));
    }
    assert!(child.wait().expect("it ends").success());
    // Each line has 36 bytes, a line feed, and "much | " before it.
    assert!(total > 300_000_000 / 37 * 44, "{total} bytes came through");
    // About 35 MiB of that are the program itself, as it is built for tests.
    assert!(peak < 64 << 10, "{peak} KiB were resident");
}

/// The most that a process has had resident, in KiB.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

fn a_reader_that_goes_away_ends_the_run(fixture: &Fixture) {
    let id = run_id("reader");
    let dir = pipeline([task(fixture, "endless", "while :; do echo y; sleep 0.1; done")]);
    let command = fixture
        .orchestra(["run", "p.yml", "--run-id", &id])
        .dir(dir.path())
        .into_command();
    let mut command = command;
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 40]).expect("it says something");
    drop(stdout);
    let mut ended = None;
    until("it ends", Duration::from_secs(30), || {
        ended = child.try_wait().expect("it can be waited for");
        ended.is_some()
    });
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .expect("a pipe")
        .read_to_string(&mut stderr)
        .expect("text");
    assert_eq!(ended.and_then(|status| status.code()), Some(130), "{stderr}");
    assert!(!stderr.contains("panic"), "{stderr}");
    assert_eq!(left_of(fixture, &id).0.len(), 0);
}

fn one_job_of_several_can_be_run(fixture: &Fixture) {
    let job = |name: &str| json!({"name": name, "plan": [task(fixture, "say", &format!("echo this is {name}"))]});
    let dir = Dir::with([("p.yml", json!({"jobs": [job("one"), job("two")]}).to_string())]);
    let finished = fixture
        .orchestra(["run", "p.yml", "--job", "two"])
        .dir(dir.path())
        .run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["this is two"]);
    assert!(!finished.all().contains("this is one"), "{finished}");
    let both = fixture.orchestra(["run", "p.yml"]).dir(dir.path()).run();
    assert_says(&both, &["one/say | this is one", "two/say | this is two"]);
    let none = fixture
        .orchestra(["run", "p.yml", "--job", "three"])
        .dir(dir.path())
        .run();
    assert_eq!(none.code, 2, "{none}");
    assert_says(&none, &["no job \"three\"", "one, two"]);
}

fn two_runs_at_once_do_not_disturb_each_other(fixture: &Fixture) {
    let text = |word: &str| {
        let mut reader = task(fixture, "read", "sleep 1; cat words/file");
        reader["config"]["inputs"] = json!([{"name": "words"}]);
        plan([producer(fixture, "words", &format!("echo {word} > words/file")), reader])
    };
    let dir = Dir::with([("a.yml", text("apple")), ("b.yml", text("pear"))]);
    let start = |file: &str| fixture.orchestra(["run", file]).dir(dir.path()).start();
    let (a, b) = (start("a.yml"), start("b.yml"));
    let (a, b) = (a.finish(), b.finish());
    assert_eq!((a.code, b.code), (0, 0), "{a}\n{b}");
    assert_says(&a, &["read | apple\n"]);
    assert_says(&b, &["read | pear\n"]);
}

fn the_configuration_is_read_and_flags_go_before_it(fixture: &Fixture) {
    let dir = pipeline([task(fixture, "hello", "echo hello")]);
    let refused = |content: &str, parts: &[&str]| {
        dir.write("orchestra.toml", content);
        let command = fixture.orchestra(["run", "p.yml"]).any_driver();
        let finished = command.dir(dir.path()).run();
        assert_eq!(finished.code, 2, "{finished}");
        assert_says(&finished, parts);
    };
    refused(
        "driver = 'podmann'",
        &["no driver \"podmann\"", "docker, podman", "containerd"],
    );
    refused("\ndrivr = 'docker'", &["orchestra.toml:2", "`drivr`", "driver"]);
    refused("[docker]\nhots = 'x'", &["orchestra.toml:2", "`docker.hots`", "host"]);
    refused("grace = 'soon'", &["orchestra.toml:1", "`grace`"]);
    refused("driver =", &["orchestra.toml"]);

    dir.write("orchestra.toml", "driver = 'podmann'");
    let flag = fixture
        .orchestra(["run", "p.yml", "--driver", fixture.driver.as_str()])
        .any_driver()
        .dir(dir.path())
        .run();
    assert_eq!(flag.code, 0, "{flag}");
    let variable = fixture
        .orchestra(["run", "p.yml"])
        .env("ORCHESTRA_DRIVER", &fixture.driver)
        .dir(dir.path())
        .run();
    assert_eq!(variable.code, 0, "{variable}");
    let both = fixture
        .orchestra(["run", "p.yml", "--driver", fixture.driver.as_str()])
        .any_driver()
        .env("ORCHESTRA_DRIVER", "podmann")
        .dir(dir.path())
        .run();
    assert_eq!(both.code, 0, "{both}");
    let missing = fixture
        .orchestra(["run", "p.yml", "--config", "other.toml"])
        .dir(dir.path())
        .run();
    assert_eq!(missing.code, 2, "{missing}");
    assert_says(&missing, &["other.toml"]);
    let misspelt = fixture
        .orchestra(["run", "p.yml"])
        .env("ORCHESTRA_DIRVER", "docker")
        .dir(dir.path())
        .run();
    assert_eq!(misspelt.code, 2, "{misspelt}");
    assert_says(&misspelt, &["ORCHESTRA_DIRVER", "ORCHESTRA_DRIVER"]);
}

fn doctor_tells_what_the_engine_is(fixture: &Fixture) {
    let finished = fixture.orchestra(["doctor"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(
        &finished,
        &[&fixture.driver, "API", "linux/", "privileged", "The engine is ready"],
    );
    let finished = fixture.orchestra(["doctor", "--json"]).run();
    let told = &finished.events().expect("JSON")[0];
    let version = fixture.engine.version().expect("a version");
    assert_eq!(told["engine"]["engine_version"], version, "{finished}");
    assert_eq!(told["buildkit"]["present"], true, "{finished}");
    // Each capability is there or has a reason why it is not.
    let capabilities = told["engine"]["capabilities"].as_object().expect("capabilities");
    for (name, has) in capabilities {
        assert_eq!(told["missing"][name].is_string(), has == false, "{name}: {finished}");
    }
}

fn doctor_tells_what_is_wrong_with_an_engine_that_does_not_answer(fixture: &Fixture) {
    let dir = Dir::with([("x", "")]);
    let socket = format!("unix://{}", dir.file("engine.sock").display());
    let finished = fixture.orchestra(["doctor"]).env(fixture.host_variable, &socket).run();
    assert_eq!(finished.code, 3, "{finished}");
    assert_says(&finished, &["engine.sock", "hint: "]);
    let finished = fixture
        .orchestra(["doctor", "--json"])
        .env(fixture.host_variable, &socket)
        .run();
    assert_eq!(finished.events().expect("JSON")[0]["exit_code"], 3, "{finished}");
}

fn validate_needs_no_engine(fixture: &Fixture) {
    let dir = Dir::with([
        (
            "good.yml",
            plan([task(fixture, "a", "true"), task(fixture, "b", "true")]),
        ),
        ("bad.yml", "plan:\n- tsk: a\n".to_owned()),
    ]);
    let validate = |args: &[&str]| {
        let args = ["validate"].iter().chain(args);
        fixture
            .orchestra(args)
            .dir(dir.path())
            .env(fixture.host_variable, "unix:///nowhere")
            .run()
    };
    let good = validate(&["good.yml"]);
    assert_eq!(good.code, 0, "{good}");
    assert_says(&good, &["good.yml is valid: 1 job, 2 steps"]);
    let bad = validate(&["bad.yml"]);
    assert_eq!(bad.code, 2, "{bad}");
    assert_says(&bad, &["bad.yml:2:3", "task"]);
    let bad = validate(&["bad.yml", "--json"]);
    assert_eq!(bad.code, 2, "{bad}");
    let answer = &bad.events().expect("JSON")[0];
    assert_eq!(
        (
            answer["valid"].as_bool(),
            answer["problems"][0]["places"][0]["line"].as_u64()
        ),
        (Some(false), Some(2)),
        "{bad}"
    );
}
