//! Secrets: resolved where they belong, and seen nowhere.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use orchestra_e2e::{Dir, Finished, Fixture, registry};
use serde_json::{Value, json};

use crate::building::base_image;
use crate::support::{assert_gone, assert_says, left_of, pipeline, plan, run_id, task, tests, until};

tests![
    the_example_shows_no_secret,
    a_task_that_prints_its_secret_in_every_form_shows_none_of_them,
    a_secret_that_is_missing_is_told_with_its_place_and_nothing_is_made,
    a_hidden_secret_is_not_in_what_the_engine_shows,
    a_value_that_a_task_announces_is_redacted,
    a_build_that_prints_its_secret_and_fails_shows_none_of_it,
    a_secret_of_a_build_is_not_in_its_image,
    a_registrys_credentials_may_be_secrets,
    a_registry_is_logged_in_to_as_the_users_clients_do_only_if_asked,
    variables_and_secrets_are_given_in_every_way,
    secrets_are_kept_in_an_encrypted_file_from_run_to_run,
    a_process_that_is_killed_while_it_writes_leaves_the_old_or_the_new,
    the_program_can_not_be_dumped_and_a_file_that_is_read_only_is_told,
];

const VALUE: &str = "s3cr3t/Value+<42>&'q";

/// Asserts that no form of the value is in what a run said.
fn assert_unseen(finished: &Finished) {
    let all = finished.all();
    let mut forms = vec![VALUE.to_owned(), "s3cr3t".to_owned(), "Value+".to_owned()];
    forms.push(VALUE.bytes().map(|byte| format!("{byte:02x}")).collect());
    for before in ["", "x", "xy", "user:"] {
        let text = format!("{before}{VALUE}");
        // Without the digits that hold bits of the neighbours.
        for encoded in [STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
            let skipped = (before.len() * 8).div_ceil(6);
            forms.push(encoded[skipped..encoded.len() - 1].to_owned());
        }
    }
    for form in forms {
        assert!(!all.contains(&form), "{form:?} is seen\n{finished}");
    }
    assert!(all.contains("***REDACTED***"), "nothing was redacted\n{finished}");
}

/// A run with the secret given by a file.
fn secret_run(fixture: &Fixture, steps: impl IntoIterator<Item = Value>, args: &[&str]) -> Finished {
    let dir = Dir::with([("p.yml", plan(steps)), ("value", VALUE.to_owned())]);
    let given = ["run", "p.yml", "--secret-file", "TOKEN=value"];
    let finished = fixture.orchestra(given.iter().chain(args)).dir(dir.path()).run();
    let mut left: Vec<_> = fs::read_dir(dir.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["p.yml", "value"], "it leaves no file");
    finished
}

fn the_example_shows_no_secret(fixture: &Fixture) {
    let dir = Dir::with([("git.json", r#"{"user": "ci", "password": "hunter2-git"}"#)]);
    let git = format!("git={}", dir.file("git.json").display());
    let given = [
        "run",
        "examples/secrets.yml",
        "--secret-file",
        &git,
        "--var",
        "region=eu",
    ];
    let finished = fixture.orchestra(given).run();
    assert_eq!(finished.code, 2, "{finished}");
    assert_says(&finished, &["no secret DEPLOY_TOKEN", "examples/secrets.yml:"]);
    let token = ["--secret", "DEPLOY_TOKEN=hunter2-token"];
    let finished = fixture.orchestra(given.iter().chain(&token)).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(
        &finished,
        &[
            "deploy | https://ci:***REDACTED***@git.example.com in eu, 13 bytes: ***REDACTED***\n",
            "deploy | 13\n",
        ],
    );
    assert!(!finished.all().contains("hunter2"), "{finished}");
}

const PRINTS: &str = r#"
for out in 1 2; do
  echo "plain $TOKEN"
  printf %s "$TOKEN" | base64
  printf %s "x$TOKEN" | base64
  printf %s "xy$TOKEN" | base64
  printf %s "user:$TOKEN" | base64
  echo "$TOKEN" | base64
  printf %s "$TOKEN" | od -An -tx1 | tr -d ' \n'; echo
  i=0; while [ $i -lt ${#TOKEN} ]; do printf %s "${TOKEN:$i:1}"; i=$((i+1)); done; echo
  set -x; : "$TOKEN"; set +x
  [ $out = 1 ] && exec >&2
done
exit 3
"#;

fn a_task_that_prints_its_secret_in_every_form_shows_none_of_them(fixture: &Fixture) {
    for args in [&[][..], &["--json"]] {
        let mut prints = task(fixture, "prints", PRINTS);
        prints["env"] = json!({"TOKEN": "secret:TOKEN"});
        let finished = secret_run(fixture, [prints], args);
        assert_eq!(finished.code, 1, "{finished}");
        assert_unseen(&finished);
        assert_says(&finished, &["plain ***REDACTED***"]);
    }
    // The log of the program itself.
    let mut fails = task(fixture, "fails", "true");
    fails["config"]["run"] = json!({"path": "/no/such/((TOKEN))"});
    let dir = Dir::with([("p.yml", plan([fails])), ("value", VALUE.to_owned())]);
    let finished = fixture
        .orchestra(["run", "p.yml", "--secret-file", "TOKEN=value"])
        .dir(dir.path())
        .env("ORCHESTRA_LOG", "trace")
        .run();
    assert_eq!(finished.code, 1, "{finished}");
    assert_unseen(&finished);
}

fn a_secret_that_is_missing_is_told_with_its_place_and_nothing_is_made(fixture: &Fixture) {
    let id = run_id("missing");
    let text = format!(
        "plan:\n- task: t\n  image: {}\n  env:\n    A: secret:NONE\n    B: ((other))\n  config: {{ run: {{ path: 'true' }} }}\n",
        fixture.image
    );
    let dir = Dir::with([("p.yml", text)]);
    for command in [&["run", "p.yml", "--run-id", &id][..], &["validate", "p.yml"]] {
        let finished = fixture.orchestra(command).dir(dir.path()).run();
        assert_eq!(finished.code, 2, "{finished}");
        assert_says(
            &finished,
            &[
                "p.yml:5:8",
                "no secret NONE",
                "pipeline p and global",
                "6 │",
                "--var other",
            ],
        );
        assert_gone(fixture, &id, &finished);
    }
}

fn a_hidden_secret_is_not_in_what_the_engine_shows(fixture: &Fixture) {
    let id = run_id("hidden");
    let script = "[ \"$TOKEN\" = \"$(cat /run/secrets/token)\" ] && [ \"$URL\" = \"https://ci:$TOKEN@git.test\" ] || exit 4; stat -c '%a %u' /run/secrets/token; \
        grep -c ' /run/secrets tmpfs ' /proc/mounts; cat; echo ready; sleep 60";
    let mut hidden = task(fixture, "hidden", script);
    hidden["env"] = json!({"TOKEN": "secret:TOKEN", "URL": "https://ci:((TOKEN))@git.test"});
    hidden["secret_env"] = json!("hidden");
    hidden["secret_files"] = json!({"/run/secrets/token": "secret:TOKEN"});
    hidden["config"]["run"]["user"] = json!("1000:1000");
    let dir = Dir::with([("p.yml", plan([hidden])), ("value", VALUE.to_owned())]);
    let running = fixture
        .orchestra(["run", "p.yml", "--run-id", &id, "--secret-file", "TOKEN=value"])
        .dir(dir.path())
        .start();
    _ = running.line_with("ready");
    let told = fixture.engine.inspect(&format!("orchestra.{id}.1.hidden"));
    let shown = told.expect("the engine answers").texts.join("\n");
    assert!(shown.contains("orchestra-init") && !shown.contains("s3cr3t"), "{shown}");
    running.signal("INT");
    let finished = running.finish();
    assert_says(&finished, &["400 1000", "hidden | 1"]);
    assert!(!finished.all().contains("s3cr3t"), "{finished}");
    assert_gone(fixture, &id, &finished);
    assert!(left_of(fixture, &id).0.is_empty());
}

fn a_value_that_a_task_announces_is_redacted(fixture: &Fixture) {
    let script = "echo ::add-mask::made-up-value; echo it is made-up-value; printf made-up-value | base64";
    let finished = secret_run(
        fixture,
        [
            task(fixture, "announces", script),
            task(fixture, "later", "echo made-up-value"),
        ],
        &[],
    );
    assert_eq!(finished.code, 0, "{finished}");
    assert!(
        !finished.all().contains("made-up") && !finished.all().contains("bWFkZS11cC12YWx1Z"),
        "{finished}"
    );
    assert_says(&finished, &["it is ***REDACTED***", "later | ***REDACTED***"]);
}

/// A context whose build writes its secret in many ways and then fails or not.
fn secret_context(fixture: &Fixture, ends: &str) -> Dir {
    let dockerfile = format!(
        "FROM {}\nARG WORD\nRUN --mount=type=secret,id=TOKEN S=\"$(cat /run/secrets/TOKEN)\"; \
         echo \"plain $S\"; echo \"plain $S\" >&2; printf %s \"x$S\" | base64; echo word $WORD; \
         i=0; while [ $i -lt ${{#S}} ]; do printf %s \"${{S:$i:1}}\"; i=$((i+1)); done; echo; {ends}\n",
        base_image(fixture)
    );
    Dir::with([("Dockerfile", dockerfile), ("value", VALUE.to_owned())])
}

fn secret_build(fixture: &Fixture, dir: &Dir, tag: &str, more: &[&str]) -> Finished {
    let args = [
        "build",
        "-t",
        tag,
        "--network",
        "host",
        "--insecure",
        "--secret-file",
        "TOKEN=value",
    ];
    fixture
        .orchestra(args.iter().chain(more))
        .dir(dir.path())
        .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_image)
        .run()
}

fn a_build_that_prints_its_secret_and_fails_shows_none_of_it(fixture: &Fixture) {
    let dir = secret_context(fixture, "exit 5");
    fs::write(dir.file(".dockerignore"), "value").expect("a file");
    for args in [&["--no-cache"][..], &["--no-cache", "--json"]] {
        let finished = secret_build(fixture, &dir, "orchestra-e2e/fails:1", args);
        assert_eq!(finished.code, 1, "{finished}");
        assert_unseen(&finished);
        assert_says(&finished, &["plain ***REDACTED***"]);
    }
    // A build argument that a secret was put into, in a pipeline.
    let build = json!({"build_image": {"name": "b", "tag": "orchestra-e2e/argument:1", "context": "c", "network": "host",
        "image": fixture.buildkit_image, "registry": {"insecure": true, "hostname": fixture.registry},
        "build_args": {"WORD": "((TOKEN))"}}});
    let dockerfile = format!(
        "FROM {}\\nARG WORD\\nRUN echo \\\"$WORD\\\"; exit 6\\n",
        base_image(fixture)
    );
    let mut makes = task(
        fixture,
        "makes",
        &format!("printf \"{dockerfile}\" > c/Dockerfile").replace("$WORD", "\\$WORD"),
    );
    makes["config"]["outputs"] = json!([{"name": "c"}]);
    let finished = secret_run(fixture, [makes, build], &[]);
    assert_eq!(finished.code, 1, "{finished}");
    assert_unseen(&finished);
}

fn a_secret_of_a_build_is_not_in_its_image(fixture: &Fixture) {
    let dir = secret_context(fixture, "test \"$S\" = \"s3cr3t/Value+<42>&'q\" && echo made > /made");
    let tag = format!("{}/e2e/secret:1", fixture.registry);
    let finished = secret_build(fixture, &dir, &tag, &["--push"]);
    assert_eq!(finished.code, 0, "{finished}");
    let manifest = registry::json(&fixture.registry, "e2e/secret", "manifests/1").expect("it is served");
    let config = manifest["config"]["digest"].as_str().expect("a digest");
    let config = registry::json(&fixture.registry, "e2e/secret", &format!("blobs/{config}")).expect("it is served");
    // The Dockerfile itself names the value here, to compare with.
    let history = config.to_string().replace("= \\\"s3cr3t/Value+<42>&'q\\\"", "");
    assert!(!history.contains("s3cr3t"), "{history}");
    let mut searched = task(fixture, "searched", "! grep -rl s3cr3t /run /root /tmp /etc");
    searched["config"]["image"] = json!(tag);
    let ran = crate::support::run(fixture, [searched], &[]);
    fixture.engine.remove_image(&tag).expect("it is removed");
    assert_eq!(ran.code, 0, "{ran}");
}

fn a_registrys_credentials_may_be_secrets(fixture: &Fixture) {
    let credentials = &fixture.credentials;
    let tag = format!("{}/e2e/by-secret:1", fixture.registry_auth);
    let mut makes = task(
        fixture,
        "makes",
        &format!("echo FROM {} > c/Dockerfile", base_image(fixture)),
    );
    makes["config"]["outputs"] = json!([{"name": "c"}]);
    let registry_keys =
        json!({"username": "secret:REGISTRY_USER", "password": "secret:REGISTRY_PASSWORD", "insecure": true});
    let build = json!({"build_image": {"name": "b", "tag": tag, "push": true, "context": "c", "network": "host",
        "image": fixture.buildkit_image, "registry": registry_keys}});
    // It is pulled from there, with the same credentials.
    let mut runs = task(fixture, "runs", "echo runs");
    runs["config"]["image"] = json!(tag);
    let dir = pipeline([makes, build, runs]);
    let user = format!("REGISTRY_USER={}", credentials.user);
    let finished = fixture
        .orchestra([
            "run",
            "p.yml",
            "--json",
            "--secret",
            &user,
            "--secret",
            "REGISTRY_PASSWORD=-",
        ])
        .dir(dir.path())
        .input(format!("{}\n", credentials.password))
        .run();
    fixture.engine.remove_image(&tag).ok();
    assert_eq!(finished.code, 0, "{finished}");
    registry::digest(&fixture.registry_auth, "e2e/by-secret", "1", Some(credentials)).expect("it is served");
    let pair = format!("{}:{}", credentials.user, credentials.password);
    assert!(
        !finished.all().contains(&credentials.password) && !finished.all().contains(&STANDARD_NO_PAD.encode(pair)),
        "{finished}"
    );
}

fn a_registry_is_logged_in_to_as_the_users_clients_do_only_if_asked(fixture: &Fixture) {
    let dir = Dir::with([("Dockerfile", format!("FROM {}\nRUN true\n", base_image(fixture)))]);
    let credentials = &fixture.credentials;
    let answer =
        json!({"Username": credentials.user, "Secret": credentials.password, "ServerURL": fixture.registry_auth});
    // A credential helper, found on the path as clients find it.
    dir.write(
        "docker-credential-e2e",
        format!(
            "#!/bin/sh\nread server\n[ \"$1 $server\" = 'get {}' ] && cat <<'END'\n{answer}\nEND\n",
            fixture.registry_auth
        ),
    );
    fs::set_permissions(dir.file("docker-credential-e2e"), fs::Permissions::from_mode(0o755)).expect("permissions");
    let config = json!({"credHelpers": {fixture.registry_auth.clone(): "e2e"}});
    dir.write("client/config.json", config.to_string());
    let tag = format!("{}/e2e/by-client:1", fixture.registry_auth);
    let build = |more: &[&str]| {
        let args = ["build", "-t", &tag, "--network", "host", "--insecure", "--push"];
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
        fixture
            .orchestra(args.iter().chain(more))
            .dir(dir.path())
            .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_image)
            .env("DOCKER_CONFIG", dir.file("client"))
            .env("PATH", path)
            .run()
    };
    let refused = build(&[]);
    assert_ne!(refused.code, 0, "{refused}");
    let finished = build(&["--use-docker-config"]);
    assert_eq!(finished.code, 0, "{finished}");
    assert!(!finished.all().contains(&credentials.password), "{finished}");
}

fn variables_and_secrets_are_given_in_every_way(fixture: &Fixture) {
    let mut shows = task(
        fixture,
        "shows",
        "echo \"$A|$B|$C\"; [ \"$E\" = env-value ] && [ \"$D\" = dir-value ] && [ \"$O\" = op-x-O ]",
    );
    shows["env"] = json!({"A": "((plain))", "B": "((from.file))", "C": "((plain2))-((COMMAND))",
        "D": "secret:DIR", "E": "((environment:ENV))", "O": "((op:O))"});
    let config = "[secrets]\nenvironment = ['ENV']\ndirectory = 'd'\n[secrets.command.op]\nargv = ['sh', '-c', 'echo op-x-$0', '{key}']\nmissing = [1]\n";
    let dir = Dir::with([
        ("p.yml", plan([shows])),
        ("orchestra.toml", config.to_owned()),
        ("d/DIR", "dir-value".to_owned()),
        ("vars.yml", "from: { file: 17 }\nplain: overridden\n".to_owned()),
    ]);
    let finished = fixture
        .orchestra([
            "run",
            "p.yml",
            "--var",
            "plain=one",
            "--load-vars-from",
            "vars.yml",
            "-v",
            "plain2=two",
            "--secret",
            "COMMAND=command-value",
        ])
        .dir(dir.path())
        .env("ENV", "env-value")
        .run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["one|17|two-***REDACTED***"]);
}

fn keyed(files: impl IntoIterator<Item = (&'static str, String)>) -> Dir {
    let dir = Dir::with(files);
    for (name, byte) in [("key", 7), ("other", 8)] {
        fs::write(dir.file(name), [byte; 32]).expect("a key");
        fs::set_permissions(dir.file(name), fs::Permissions::from_mode(0o600)).expect("permissions");
    }
    dir.write("orchestra.toml", "[secrets]\nfile = 'secrets.db'\nkey_file = 'key'\n");
    dir
}

fn secrets_are_kept_in_an_encrypted_file_from_run_to_run(fixture: &Fixture) {
    let mut prints = task(fixture, "prints", "echo \"<$TOKEN>\"; [ \"$TOKEN\" = \"$WANTED\" ]");
    prints["env"] = json!({"TOKEN": "secret:TOKEN", "WANTED": "((WANTED))"});
    let dir = keyed([("p.yml", plan([prints]))]);
    let secrets = |args: &[&str], input: &str| {
        let args = ["secrets"].iter().chain(args);
        fixture.orchestra(args).dir(dir.path()).input(input).run()
    };
    let good = |args: &[&str], input: &str| {
        let finished = secrets(args, input);
        assert_eq!(finished.code, 0, "{finished}");
        finished
    };
    good(&["set", "TOKEN"], "global-value\n");
    good(&["set", "TOKEN", "--pipeline", "p"], "pipeline-value\n");
    good(&["set", "WANTED", "--pipeline", "p"], "pipeline-value\n");
    let listed = good(&["list"], "");
    assert_says(&listed, &["TOKEN", "global", "pipeline p"]);
    assert!(!listed.all().contains("-value"), "{listed}");
    let json: Value = serde_json::from_str(&good(&["list", "--json"], "").stdout()).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(3));
    let ran = fixture.orchestra(["run", "p.yml"]).dir(dir.path()).run();
    assert_eq!(ran.code, 0, "{ran}");
    assert!(!ran.all().contains("-value"), "{ran}");
    let refused = secrets(&["get", "TOKEN"], "");
    assert_eq!(refused.code, 2, "{refused}");
    assert_says(&refused, &["--reveal"]);
    assert_eq!(good(&["get", "TOKEN", "--reveal"], "").stdout(), "global-value");
    good(&["rm", "TOKEN"], "");
    assert_says(
        &secrets(&["get", "TOKEN", "--reveal"], ""),
        &["there is no secret TOKEN (global)"],
    );
    good(&["rekey", "--new-key-file", "other"], "");
    let stale = secrets(&["get", "TOKEN", "--pipeline", "p", "--reveal"], "");
    assert_eq!(stale.code, 2, "{stale}");
    assert_says(&stale, &["key does not open the secrets' file secrets.db", "hint:"]);
    good(
        &["get", "TOKEN", "--pipeline", "p", "--reveal", "--key-file", "other"],
        "",
    );
    for (args, input, says) in [
        (&["set", "odd key"][..], "x", "contains ' '"),
        (&["set", "EMPTY", "--key-file", "other"], "", "is empty"),
        (
            &["set", "LARGE", "--key-file", "other"],
            &*"x".repeat((1 << 20) + 1),
            "at most 1048576 are kept",
        ),
        (&["set", "K", "--key-file", "none"], "x", "there is no key file none"),
    ] {
        let refused = secrets(args, input);
        assert_eq!(refused.code, 2, "{refused}");
        assert_says(&refused, &[says]);
    }
    fs::set_permissions(dir.file("key"), fs::Permissions::from_mode(0o644)).expect("permissions");
    assert_says(
        &secrets(&["set", "K"], "x"),
        &["can be read or written by others (mode 644)", "chmod 600 key"],
    );
}

fn a_process_that_is_killed_while_it_writes_leaves_the_old_or_the_new(fixture: &Fixture) {
    let dir = keyed([]);
    let run = |args: &[&str], input: &str| {
        fixture
            .orchestra(["secrets"].iter().chain(args))
            .dir(dir.path())
            .input(input)
            .run()
    };
    assert_eq!(run(&["set", "A"], "value-0").code, 0);
    for round in 1..12_u64 {
        let started = |args: &[&str]| {
            let mut command = fixture
                .orchestra(["secrets"].iter().chain(args))
                .dir(dir.path())
                .into_command();
            let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
            let mut stdin = child.stdin.take().expect("a pipe");
            write!(stdin, "value-{round}").expect("it reads");
            drop(stdin);
            std::thread::sleep(Duration::from_millis(round * 17 % 190));
            child.kill().ok();
            child.wait().expect("it ends");
        };
        started(&["set", "A"]);
        let value = run(&["get", "A", "--reveal"], "");
        assert_eq!(value.code, 0, "{value}");
        assert!(value.stdout().starts_with("value-"), "{value}");
        started(&["rekey", "--new-key-file", "other"]);
        let by_old = run(&["get", "A", "--reveal"], "");
        let by_new = run(&["get", "A", "--reveal", "--key-file", "other"], "");
        assert_eq!(
            [by_old.code, by_new.code].iter().filter(|code| **code == 0).count(),
            1,
            "{by_old}{by_new}"
        );
        if by_new.code == 0 {
            assert_eq!(
                run(&["rekey", "--key-file", "other", "--new-key-file", "key"], "").code,
                0
            );
        }
    }
}

fn the_program_can_not_be_dumped_and_a_file_that_is_read_only_is_told(fixture: &Fixture) {
    let dir = keyed([]);
    let set = |input: &str| fixture.orchestra(["secrets", "set", "A"]).dir(dir.path()).input(input);
    assert_eq!(set("value-0").run().code, 0);
    if !rustix::process::getuid().is_root() {
        return;
    }
    // Of a process that can't be dumped, /proc belongs to root, whoever it is.
    for name in ["key", "secrets.db"] {
        std::os::unix::fs::chown(dir.file(name), Some(65534), Some(65534)).expect("chown");
    }
    fs::set_permissions(dir.file("secrets.db"), fs::Permissions::from_mode(0o444)).expect("permissions");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut command = set("").user(65534, 65534).into_command();
    let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
    let environ = format!("/proc/{}/environ", child.id());
    until("it can't be dumped", Duration::from_secs(10), || {
        fs::metadata(&environ).is_ok_and(|meta| meta.uid() == 0)
    });
    write!(child.stdin.take().expect("a pipe"), "value-1").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("can't be written to"),
        "{said}"
    );
    let value = fixture
        .orchestra(["secrets", "get", "A", "--reveal"])
        .dir(dir.path())
        .run();
    assert_eq!(value.stdout(), "value-0", "{value}");
}
