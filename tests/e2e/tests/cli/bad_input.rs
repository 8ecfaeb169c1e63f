//! Everything a user can get wrong: each with its own words and exit code, and nothing that stays.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use orchestra_e2e::{Dir, Finished, Fixture, KnownDriver};
use serde_json::{Value, json};

use crate::support::{assert_gone, assert_says, pipeline, plan, producer, run, run_id, task, tests};

tests![
    an_engine_that_does_not_run,
    an_engine_that_is_not_permitted,
    an_image_that_does_not_exist,
    a_program_that_the_image_lacks,
    a_dockerfile_that_is_missing,
    a_run_instruction_that_fails,
    a_tag_that_is_not_valid,
    a_registry_that_is_down,
    a_registry_that_wants_a_password,
    a_registry_that_refuses_the_password,
    names_that_could_mean_something_else,
    an_input_that_no_step_makes,
    one_name_for_two_outputs,
    a_pipeline_that_is_no_file_or_no_text,
    arguments_that_do_not_exist,
];

fn hello(fixture: &Fixture) -> Dir {
    pipeline([task(fixture, "hello", "echo hello")])
}

fn an_engine_that_does_not_run(fixture: &Fixture) {
    let dir = hello(fixture);
    let socket = dir.file("engine.sock");
    let command = || fixture.orchestra(["run", "p.yml"]).dir(dir.path());
    let finished = command()
        .env(fixture.host_variable, format!("unix://{}", socket.display()))
        .run();
    assert_eq!(finished.code, 3, "{finished}");
    assert_says(&finished, &["engine.sock", "unreachable", "hint: start the engine"]);
    // A daemon that was killed leaves its socket.
    drop(UnixListener::bind(&socket).expect("a socket"));
    let finished = command()
        .env(fixture.host_variable, format!("unix://{}", socket.display()))
        .run();
    assert_eq!(finished.code, 3, "{finished}");
    assert_says(&finished, &["engine.sock", "unreachable", "hint: start the engine"]);
    if KnownDriver::chosen().is_some_and(KnownDriver::speaks_tcp) {
        let finished = command().env(fixture.host_variable, "tcp://127.0.0.1:1").run();
        assert_eq!(finished.code, 3, "{finished}");
        assert_says(&finished, &["127.0.0.1:1", "unreachable"]);
    }
    let finished = command().env(fixture.host_variable, "nonsense").run();
    assert_eq!(finished.code, 2, "{finished}");
    assert_says(&finished, &["nonsense", "unix:///PATH"]);
}

fn an_engine_that_is_not_permitted(fixture: &Fixture) {
    // What runs as another user is started by root alone.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = hello(fixture);
    let open = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions")
    };
    open(dir.path(), 0o755);
    let socket = dir.file("engine.sock");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    open(&socket, 0o000);
    // The binary itself may be where only root can reach it.
    let binary = dir.file("orchestra");
    fs::copy(fixture.binary(), &binary).expect("a copy");
    let nobody = 65534;
    let command = fixture
        .orchestra_at(&binary, ["run", "p.yml"])
        .dir(dir.path())
        .user(nobody, nobody);
    let finished = command
        .env(fixture.host_variable, format!("unix://{}", socket.display()))
        .run();
    assert_eq!(finished.code, 3, "{finished}");
    // containerd leaves to its clients what only root can do.
    let hint = match KnownDriver::chosen() {
        Some(KnownDriver::Containerd) => "hint: run orchestra as root",
        _ => "hint: give this user access",
    };
    assert_says(&finished, &["permission denied", "engine.sock", hint]);
}

fn an_image_that_does_not_exist(fixture: &Fixture) {
    let id = run_id("noimage");
    let image = format!("{}/not/there:1", fixture.registry);
    let mut step = task(fixture, "missing", "true");
    step["config"]["image"] = json!(image);
    let finished = run(fixture, [step], &["--run-id", &id]);
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &[&image, "image not found", "hint: check the image's name"]);
    assert_gone(fixture, &id, &finished);
}

fn a_program_that_the_image_lacks(fixture: &Fixture) {
    let id = run_id("noprogram");
    let mut step = task(fixture, "lacks", "true");
    step["config"]["run"] = json!({"path": "no-such-program"});
    let finished = run(fixture, [step], &["--run-id", &id]);
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &["no-such-program"]);
    assert_gone(fixture, &id, &finished);
}

/// A context, and a build of it that pushes.
pub(crate) fn build(fixture: &Fixture, script: &str, keys: Value) -> [Value; 2] {
    let mut build = json!({
        "name": "app", "context": "source", "tag": format!("{}/e2e/app:1", fixture.registry), "image": fixture.buildkit_image,
        "push": true, "network": "host", "inputs": [{"name": "source"}], "registry": {"insecure": true},
    });
    for (key, value) in keys.as_object().expect("an object") {
        build[key] = value.clone();
    }
    [producer(fixture, "source", script), json!({"build_image": build})]
}

fn failed_build(fixture: &Fixture, test: &str, script: &str, keys: Value) -> Finished {
    let id = run_id(test);
    let finished = run(fixture, build(fixture, script, keys), &["--run-id", &id]);
    assert_gone(fixture, &id, &finished);
    assert!(finished.value("digest").is_none(), "{finished}");
    finished
}

const FROM_SCRATCH: &str = "printf 'FROM scratch\\nCOPY Dockerfile /\\n' > source/Dockerfile";

fn a_dockerfile_that_is_missing(fixture: &Fixture) {
    let finished = failed_build(fixture, "nodockerfile", "echo x > source/other", json!({}));
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(
        &finished,
        &["there is neither source/Dockerfile nor Dockerfile", "hint: "],
    );
    let dir = Dir::with([("other", "x")]);
    let finished = fixture.orchestra(["build", "-t", "app:1"]).dir(dir.path()).run();
    assert_eq!(finished.code, 2, "{finished}");
    assert_says(&finished, &["there is no Dockerfile", "hint: "]);
    let finished = fixture
        .orchestra(["build", "-t", "app:1", "nowhere"])
        .dir(dir.path())
        .run();
    assert_eq!(finished.code, 2, "{finished}");
    assert_says(&finished, &["nowhere", "No such file"]);
}

fn a_run_instruction_that_fails(fixture: &Fixture) {
    let script = format!(
        "printf 'FROM {}\\nRUN echo the reason; exit 42\\n' > source/Dockerfile",
        base(fixture)
    );
    let finished = failed_build(fixture, "badrun", &script, json!({}));
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &["RUN echo the reason; exit 42", "the reason", "42"]);
}

/// An image that BuildKit can pull: the engine's own ones it does not see.
fn base(fixture: &Fixture) -> String {
    crate::building::base_image(fixture)
}

fn a_tag_that_is_not_valid(fixture: &Fixture) {
    for tag in ["UPPER:1", "app:ta g", "", "reg/../app", "app:1 --push"] {
        let finished = run(fixture, build(fixture, FROM_SCRATCH, json!({"tag": tag})), &[]);
        assert_eq!(finished.code, 2, "{finished}");
        assert_says(&finished, &["p.yml:1:"]);
        let dir = Dir::with([("Dockerfile", "FROM scratch")]);
        let finished = fixture.orchestra(["build", "-t", tag]).dir(dir.path()).run();
        assert_eq!(finished.code, 2, "{finished}");
    }
}

fn a_registry_that_is_down(fixture: &Fixture) {
    let finished = failed_build(fixture, "down", FROM_SCRATCH, json!({"tag": "127.0.0.1:1/e2e/app:1"}));
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &["127.0.0.1:1", "connection refused"]);
}

fn a_registry_that_wants_a_password(fixture: &Fixture) {
    let tag = format!("{}/e2e/app:1", fixture.registry_auth);
    let finished = failed_build(fixture, "nopassword", FROM_SCRATCH, json!({"tag": tag}));
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &["401", &fixture.registry_auth]);
}

fn a_registry_that_refuses_the_password(fixture: &Fixture) {
    let registry = json!({"username": fixture.credentials.user, "password": "wrong-password", "insecure": true});
    let tag = format!("{}/e2e/app:1", fixture.registry_auth);
    let finished = failed_build(
        fixture,
        "badpassword",
        FROM_SCRATCH,
        json!({"tag": tag, "registry": registry}),
    );
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &["401"]);
    assert!(!finished.all().contains("wrong-password"), "{finished}");
}

fn names_that_could_mean_something_else(fixture: &Fixture) {
    for name in ["..", "a/b", "a\nb", "a..b", "-rm", ""] {
        let finished = run(fixture, [task(fixture, name, "true")], &[]);
        assert_eq!(finished.code, 2, "{name:?}: {finished}");
        assert_says(&finished, &["p.yml:1:"]);
        let finished = run(
            fixture,
            [producer(fixture, "fine", "true"), {
                let mut step = task(fixture, "step", "true");
                step["config"]["outputs"] = json!([{"name": name}]);
                step
            }],
            &[],
        );
        assert_eq!(finished.code, 2, "{name:?}: {finished}");
        let finished = run(fixture, [task(fixture, "step", "true")], &["--run-id", name]);
        assert_eq!(finished.code, 2, "{name:?}: {finished}");
    }
}

fn an_input_that_no_step_makes(fixture: &Fixture) {
    let mut reader = task(fixture, "read", "true");
    reader["config"]["inputs"] = json!([{"name": "sauce"}]);
    let finished = run(fixture, [producer(fixture, "source", "true"), reader], &[]);
    assert_eq!(finished.code, 2, "{finished}");
    assert_says(&finished, &["sauce", "source"]);
}

fn one_name_for_two_outputs(fixture: &Fixture) {
    let mut second = task(fixture, "second", "true");
    second["config"]["outputs"] = json!([{"name": "words"}, {"name": "words", "path": "other"}]);
    let finished = run(fixture, [producer(fixture, "words", "echo not run"), second], &[]);
    assert_eq!(finished.code, 2, "{finished}");
    assert_says(&finished, &["p.yml:1:", "`words`"]);
    assert!(!finished.all().contains("starts"), "{finished}");
}

fn a_pipeline_that_is_no_file_or_no_text(fixture: &Fixture) {
    let dir = Dir::with([
        ("latin1.yml", &b"plan: \xe4\n"[..]),
        ("empty.yml", b""),
        ("list.yml", b"- a\n"),
        ("broken.yml", b"plan: [\n"),
    ]);
    fs::create_dir(dir.file("folder.yml")).expect("a directory");
    for (file, part) in [
        ("missing.yml", "missing.yml"),
        ("folder.yml", "directory"),
        ("latin1.yml", "UTF-8"),
        ("empty.yml", "empty.yml"),
        ("list.yml", "list.yml:1:1"),
        ("broken.yml", "broken.yml:"),
    ] {
        let finished = fixture.orchestra(["run", file]).dir(dir.path()).run();
        assert_eq!(finished.code, 2, "{finished}");
        assert_says(&finished, &[file, part]);
        assert!(!finished.all().contains("panicked"), "{finished}");
    }
}

fn arguments_that_do_not_exist(fixture: &Fixture) {
    let dir = Dir::with([("p.yml", plan([task(fixture, "a", "true")]))]);
    for args in [
        &["run"][..],
        &["run", "p.yml", "--kep"],
        &["rnu"],
        &["build", "--password-stdin", "-t", "a"],
        &["gc", "--older-than", "1"],
    ] {
        let finished = fixture.orchestra(args).dir(dir.path()).run();
        assert_eq!(finished.code, 2, "{finished}");
        assert!(finished.stdout.is_empty() && !finished.stderr.is_empty(), "{finished}");
    }
}
