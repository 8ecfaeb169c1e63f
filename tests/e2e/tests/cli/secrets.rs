//! Secrets: resolved where they belong, and seen nowhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use orchestra_e2e::{Dir, Finished, Fixture, registry};
use serde_json::{Value, json};

use crate::building::base_image;
use crate::support::{assert_gone, assert_says, dead_runs, left_of, pipeline, plan, run_id, task, tests};

tests![
    the_example_shows_no_secret,
    a_task_that_prints_its_secret_in_every_form_shows_none_of_them,
    a_secret_of_many_lines_is_seen_in_none_of_them,
    a_script_and_what_it_executes_show_no_secret,
    a_pipeline_with_a_secret_where_others_see_it_is_refused,
    a_secret_that_is_missing_is_told_with_its_place_and_nothing_is_made,
    a_hidden_secret_is_not_in_what_the_engine_shows,
    a_hidden_secret_is_hidden_when_its_run_is_carried_on,
    a_value_that_a_task_announces_is_redacted,
    a_build_that_prints_its_secret_and_fails_shows_none_of_it,
    a_secret_of_a_build_is_not_in_its_image,
    a_registrys_credentials_may_be_secrets,
    all_registries_that_are_named_are_logged_in_to_as_the_users_clients_do,
    a_registry_is_logged_in_to_as_the_users_clients_do_only_if_asked,
    variables_and_secrets_are_given_in_every_way,
];

const VALUE: &str = "s3cr3t/Value+<42>&'q";

/// Asserts that no form of the value is in what a run said.
fn assert_unseen(finished: &Finished) {
    let all = finished.all();
    let texts = [
        "s3cr3t", "Value+", "42>", "Value%2", "%3C42%3E", "%3c42%3e", "u003c42", "42&gt;",
    ];
    let mut forms: Vec<String> = texts.map(str::to_owned).to_vec();
    forms.push(VALUE.bytes().map(|byte| format!("{byte:02x}")).collect());
    forms.push(VALUE.bytes().map(|byte| format!("{byte:02X}")).collect());
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

/// Prints `$TOKEN` in each form on both streams, at once and byte by byte: 64 lines of its own.
const PRINTS: &str = r#"
whole() { s=$(cat); printf '%s\n' "$s"; }
slowly() { s=$(cat); i=0; while [ $i -lt ${#s} ]; do printf %s "${s:$i:1}"; i=$((i+1)); done; echo; }
hex() { od -An -v -tx1 | tr -d ' \n'; }
all() {
  printf %s "$TOKEN" | $1
  printf %s "$TOKEN" | base64 | $1
  printf %s "x$TOKEN" | base64 | $1
  printf %s "xy$TOKEN" | base64 | $1
  printf %s "user:$TOKEN" | base64 | tr -d = | $1
  printf '%s\n' "$TOKEN" | base64 | $1
  printf %s "$TOKEN" | base64 | tr '+/' '-_' | $1
  printf %s "x$TOKEN" | base64 | tr '+/' '-_' | tr -d = | $1
  printf %s "xy$TOKEN" | base64 | tr '+/' '-_' | $1
  printf %s "$TOKEN" | hex | $1
  printf %s "$TOKEN" | hex | tr a-f A-F | $1
  printf %s "$TOKEN" | sed "s:/:%2F:g; s:+:%2B:g; s:<:%3C:g; s:>:%3E:g; s:&:%26:g; s:':%27:g" | $1
  printf %s "$TOKEN" | sed "s:/:%2f:g; s:+:%2b:g; s:<:%3c:g; s:>:%3e:g; s:&:%26:g; s:':%27:g" | $1
  printf %s "$TOKEN" | sed 's:<:\\u003c:g; s:>:\\u003e:g; s:&:\\u0026:g' | $1
  printf %s "'$(printf %s "$TOKEN" | sed "s:':'\\\\'':g")'" | $1
  printf %s "user:$TOKEN" | $1
}
for out in 1 2; do
  all whole
  all slowly
  echo "plain $TOKEN"
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
        // A form that a line lacks was not printed, and shows nothing. The end's last lines are shown once more.
        let redacted = finished.all().matches("***REDACTED***").count();
        assert!(redacted >= 64, "{redacted} were redacted\n{finished}");
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

fn a_secret_of_many_lines_is_seen_in_none_of_them(fixture: &Fixture) {
    let body: Vec<String> = (0..6)
        .map(|line| format!("MIIJ{line}{}", "kQx7+/Zb".repeat(7)))
        .collect();
    let key = format!("-----BEGIN KEY-----\n{}\n{{\n-----END KEY-----\n", body.join("\n"));
    let script = r#"
echo "$KEY"; echo "$KEY" >&2; echo "$KEY" | base64; echo "$KEY" | tr -d '\n'; echo
printf '%s\n' "$KEY" | while read -r line; do printf 'a line: '; printf '%s\n' "$line" | cut -c1-61; done
cat /run/secrets/key; echo; echo '{'; echo ok
"#;
    let mut prints = task(fixture, "prints", script);
    prints["env"] = json!({"KEY": "secret:KEY"});
    prints["secret_files"] = json!({"/run/secrets/key": "secret:KEY"});
    let dir = Dir::with([("p.yml", plan([prints])), ("key.pem", key.clone())]);
    for more in [&["--json"][..], &[]] {
        let given = ["run", "p.yml", "--secret-file", "KEY=key.pem"];
        let finished = fixture.orchestra(given.iter().chain(more)).dir(dir.path()).run();
        assert_eq!(finished.code, 0, "{finished}");
        let all = finished.all();
        for line in &body {
            let encoded = STANDARD_NO_PAD.encode(line);
            for form in [line.as_str(), &line[..40], &encoded[4..40]] {
                assert!(!all.contains(form), "{form:?} is seen\n{finished}");
            }
        }
        assert_says(&finished, &["ok"]);
    }
    // A line such as `{` of a secret is a line of anybody's.
    let finished = fixture
        .orchestra(["run", "p.yml", "--secret-file", "KEY=-"])
        .dir(dir.path())
        .input(key.as_str())
        .run();
    assert!(finished.all().contains("prints | {\n"), "{finished}");
    assert!(!finished.all().contains(&body[0]), "{finished}");
}

fn a_script_and_what_it_executes_show_no_secret(fixture: &Fixture) {
    let body = r#"
const box = await runtime.startSandbox({ image: IMAGE, env: { TOKEN: "secret:TOKEN" } });
const pieces = [];
const slow = 'i=0; while [ $i -lt ${#TOKEN} ]; do printf %s "${TOKEN:$i:1}"; i=$((i+1)); done; echo; echo "$TOKEN" >&2';
const own = await box.exec({ command: ["sh", "-c", slow], onOutput: (_, data) => pieces.push(data) });
const given = await box.exec({ command: ["sh", "-c", "echo \"<$OTHER>\"; printf %s \"x$OTHER\" | base64"], env: { OTHER: "secret:TOKEN" } });
await box.close();
for (const text of [own.stdout, own.stderr, given.stdout, pieces.join("")]) {
    assert(!text.includes("s3cr3t") && text.includes("***REDACTED***"), "a secret came to the script");
}
try {
    await runtime.run({ image: IMAGE, command: ["sh", "-c", "echo why: $TOKEN >&2; exit 4"], env: { TOKEN: "secret:TOKEN" } });
} catch (error) {
    console.log("caught", error.code, error.stderr);
}
process.stdout.write("::add-mask::made-");
process.stdout.write("up-value\nit is made-up");
process.stdout.write("-value indeed\n");
throw new Error("it ends with made-up-value");
"#;
    let text = body.replace("IMAGE", &format!("{:?}", fixture.image));
    let script = format!("const pipeline = async () => {{\n{text}\n}};\nexport {{ pipeline }};\n");
    let dir = Dir::with([("p.ts", script), ("value", VALUE.to_owned())]);
    for more in [&["--json"][..], &[]] {
        let given = ["run", "p.ts", "--secret-file", "TOKEN=value"];
        let finished = fixture.orchestra(given.iter().chain(more)).dir(dir.path()).run();
        assert_eq!(finished.code, 1, "{finished}");
        assert_unseen(&finished);
        assert!(!finished.all().contains("made-up"), "{finished}");
        assert_says(
            &finished,
            &["caught 4 why: ***REDACTED***", "it ends with ***REDACTED***"],
        );
        // As JSON it comes in pieces.
        if more.is_empty() {
            assert_says(&finished, &["it is ***REDACTED*** indeed"]);
        }
    }
}

fn a_pipeline_with_a_secret_where_others_see_it_is_refused(fixture: &Fixture) {
    let text = "plan:\n- task: t\n  image: a/((TOKEN))\n  config: { outputs: [{ name: c }], run: { path: sh } }\n\
        - build_image:\n    context: c\n    tag: a\n    build_args: { A: x-((TOKEN)) }\n    env: { B: ((TOKEN)) }\n";
    let dir = Dir::with([("p.yml", text.to_owned()), ("value", VALUE.to_owned())]);
    for command in ["run", "validate"] {
        let given = [command, "p.yml", "--secret-file", "TOKEN=value"];
        let finished = fixture.orchestra(given).dir(dir.path()).run();
        assert_eq!(finished.code, 2, "{finished}");
        assert_says(
            &finished,
            &[
                "p.yml:3:10",
                "p.yml:8:22",
                "p.yml:9:15",
                "RUN --mount=type=secret",
                "--var NAME=VALUE",
            ],
        );
        assert!(!finished.all().contains("s3cr3t"), "{finished}");
    }
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
    let script = "[ \"$TOKEN\" = \"$(cat /run/secrets/token)\" ] && [ \"$TOKEN\" = \"$(cat /run/secrets/of/db/word)\" ] && [ \"$URL\" = \"https://ci:$TOKEN@git.test\" ] || exit 4; stat -c '%a %u' /run/secrets/token; \
        grep -c ' /run/secrets tmpfs ' /proc/mounts; cat; echo ready; sleep 60";
    let mut hidden = task(fixture, "hidden", script);
    hidden["env"] = json!({"TOKEN": "secret:TOKEN", "URL": "https://ci:((TOKEN))@git.test"});
    hidden["secret_env"] = json!("hidden");
    hidden["secret_files"] = json!({"/run/secrets/token": "secret:TOKEN", "/run/secrets/of/db/word": "secret:TOKEN"});
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

fn a_hidden_secret_is_hidden_when_its_run_is_carried_on(fixture: &Fixture) {
    let _alone = dead_runs();
    let id = run_id("hidden-on");
    let script = "echo begun as $TOKEN; sleep 4; echo ended as $TOKEN; [ \"$TOKEN\" = \"$(cat /run/secrets/token)\" ]";
    let mut hidden = task(fixture, "hidden", script);
    hidden["env"] = json!({"TOKEN": "secret:TOKEN"});
    hidden["secret_env"] = json!("hidden");
    hidden["secret_files"] = json!({"/run/secrets/token": "secret:TOKEN"});
    let mut later = task(fixture, "later", "echo later $TOKEN; [ -n \"$TOKEN\" ]");
    later["env"] = json!({"TOKEN": "secret:TOKEN"});
    later["secret_env"] = json!("hidden");
    let dir = Dir::with([("p.yml", plan([hidden, later])), ("value", VALUE.to_owned())]);
    let given = ["run", "p.yml", "--run-id", &id, "--secret-file", "TOKEN=value"];
    let running = fixture.orchestra(given).dir(dir.path()).start();
    _ = running.line_with("begun as");
    running.signal("KILL");
    let killed = running.finish();
    let carried = fixture
        .orchestra(given.iter().chain(&["--resume"]))
        .dir(dir.path())
        .run();
    assert_eq!(carried.code, 0, "{carried}");
    assert_says(&carried, &["carried on", "begun as ***", "ended as ***", "later ***"]);
    for finished in [killed, carried] {
        assert!(!finished.all().contains("s3cr3t"), "{finished}");
    }
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
         i=0; while [ $i -lt ${{#S}} ]; do printf %s \"${{S:$i:1}}\"; i=$((i+1)); done; echo; \
         i=0; while [ $i -lt ${{#S}} ]; do printf %s \"${{S:$i:1}}\" >&2; i=$((i+1)); done; echo >&2; {ends}\n",
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
    let mut searched = task(
        fixture,
        "searched",
        // What the build has made is found in the same way.
        "all=$(ls -d /* | grep -vE '^/(proc|sys|dev|workspace)$'); found=$(grep -rl s3cr3t $all); test -z \"$found\" && grep -rl made $all | grep -x /made",
    );
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
    let password = STANDARD_NO_PAD.encode(format!("{}:{}", credentials.user, credentials.password));
    let logged_in = json!({"auths": {fixture.registry_auth.clone(): {"auth": STANDARD.encode(format!("{}:{}", credentials.user, credentials.password))}}});
    // A helper for one registry, a store for all, and what `docker login` writes without one.
    for config in [config, json!({"credsStore": "e2e"}), logged_in] {
        dir.write("client/config.json", config.to_string());
        let finished = build(&["--use-docker-config"]);
        assert_eq!(finished.code, 0, "{config}\n{finished}");
        let all = finished.all();
        assert!(
            !all.contains(&credentials.password) && !all.contains(&password),
            "{finished}"
        );
    }
    // As config says it, instead of the flag.
    dir.write("orchestra.toml", "[secrets]\nuse_docker_config = true\n");
    let finished = build(&[]);
    assert_eq!(finished.code, 0, "{finished}");
}

fn all_registries_that_are_named_are_logged_in_to_as_the_users_clients_do(fixture: &Fixture) {
    let credentials = &fixture.credentials;
    let pair = STANDARD.encode(format!("{}:{}", credentials.user, credentials.password));
    // The host has other credentials, which are wrong: those of a path go before them.
    let host = &fixture.registry_auth;
    let auths =
        json!({"auths": {format!("{host}/e2e"): {"auth": pair}, host.clone(): {"auth": STANDARD.encode("no:body")}}});
    let dir = Dir::with([("client/auth.json", auths.to_string())]);
    let private = format!("{host}/e2e/as-client:1");
    let orchestra = |args: &[&str]| {
        fixture
            .orchestra(args)
            .dir(dir.path())
            .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_image)
            .env("REGISTRY_AUTH_FILE", dir.file("client/auth.json"))
            .run()
    };

    // A pipeline pushes an image there, and runs it from there.
    let script = format!("echo FROM {} > c/Dockerfile", base_image(fixture));
    let mut makes = task(fixture, "makes", &script);
    makes["config"]["outputs"] = json!([{"name": "c"}]);
    let build = json!({"build_image": {"name": "b", "tag": private, "push": true, "context": "c", "network": "host",
        "registry": {"insecure": true}}});
    let mut runs = task(fixture, "runs", "echo runs");
    runs["config"]["image"] = json!(private);
    dir.write("p.yml", plan([makes, build, runs]));
    let refused = orchestra(&["run", "p.yml"]);
    assert_eq!(refused.code, 1, "{refused}");
    let finished = orchestra(&["run", "p.yml", "--use-docker-config"]);
    fixture.engine.remove_image(&private).ok();
    assert_eq!(finished.code, 0, "{finished}");

    // A build for another registry begins from it, and is pushed under a second name there.
    dir.write("Dockerfile", format!("FROM {private}\nRUN true\n"));
    let tag = format!("{}/e2e/of-private:1", fixture.registry);
    let second = format!("{host}/e2e/of-private:1");
    let build = |more: &[&str]| {
        let args = [
            "build",
            "-t",
            &tag,
            "--push",
            "--network",
            "host",
            "--use-docker-config",
        ];
        orchestra(&[&args, more].concat())
    };
    let finished = build(&["-t", &second]);
    assert_eq!(finished.code, 0, "{finished}");
    let refused = build(&[]);
    assert_ne!(refused.code, 0, "it is in the Dockerfile alone: {refused}");
    // Of a host that is named no path is known.
    dir.write(
        "client/auth.json",
        json!({"auths": {host.clone(): {"auth": pair}}}).to_string(),
    );
    let finished = build(&["--registry", host]);
    assert_eq!(finished.code, 0, "{finished}");
    for shown in [&credentials.password, &pair] {
        assert!(!finished.all().contains(shown), "{finished}");
    }
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
