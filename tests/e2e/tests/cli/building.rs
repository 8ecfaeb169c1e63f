//! `orchestra build`.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::OnceLock;
use std::time::Duration;

use orchestra_e2e::{Dir, Fixture, registry};
use serde_json::json;

use crate::running::resident;
use crate::support::{assert_gone, assert_says, plan, run, run_id, task, tests, until};

tests![
    a_directory_is_built_and_pushed,
    an_image_that_is_not_pushed_can_be_run_by_its_tag,
    a_registry_with_a_password_is_pushed_to,
    a_context_is_sent_in_bounded_memory,
    what_a_build_ignores_is_not_sent,
    a_build_says_what_happens_as_json,
    a_builds_options_reach_the_image,
    an_interrupted_build_command_leaves_nothing,
    an_interrupted_context_leaves_nothing,
    a_build_that_fails_says_why,
    privileges_that_the_configuration_forbids_are_refused_before_anything_is_made,
    builds_are_rootless_by_themselves_where_the_host_can_do_that,
    a_further_target_of_a_build_with_a_cache_is_an_artifact,
    a_root_file_system_is_an_image_for_the_next_task,
    the_pages_pipelines_run_word_for_word,
];

/// The pipelines of the page on image builds.
const PAGE: &str = include_str!("../../../../examples/registry.yml");
const CACHED: &str = r#"
- build_image:
    context: source
    tag: registry.example.com/myapp:latest
    push: true
    caches:
      - path: /var/lib/buildkit
"#;

/// The engine's test image, pushed once to the registry, where BuildKit can pull it.
pub(crate) fn base_image(fixture: &Fixture) -> String {
    static PUSHED: OnceLock<()> = OnceLock::new();
    let image = format!("{}/e2e/base:1", fixture.registry);
    PUSHED.get_or_init(|| {
        fixture
            .engine
            .tag(&fixture.image, &format!("{}/e2e/base", fixture.registry), "1")
            .expect("a tag");
        fixture.engine.push_image(&image).expect("a push");
        fixture.engine.remove_image(&image).expect("the tag is removed");
    });
    image
}

/// Flags that every build in the tests has.
fn flags<'a>(fixture: &'a Fixture, tag: &'a str) -> (Vec<&'a str>, [(&'static str, &'a str); 1]) {
    (
        vec!["build", "-t", tag, "--network", "host", "--insecure"],
        [("ORCHESTRA_IMAGE_BUILD__IMAGE", fixture.buildkit_image.as_str())],
    )
}

pub(crate) fn build(fixture: &Fixture, dir: &Dir, tag: &str, more: &[&str]) -> orchestra_e2e::Orchestra {
    let (mut args, environment) = flags(fixture, tag);
    args.extend(more);
    environment
        .into_iter()
        .fold(fixture.orchestra(args).dir(dir.path()), |command, (name, value)| {
            command.env(name, value)
        })
}

fn a_directory_is_built_and_pushed(fixture: &Fixture) {
    let dockerfile = format!(
        "FROM {}\nARG WORD\nCOPY . /here\nRUN echo $WORD > /word && test -L /here/link && test ! -e /here/socket\n",
        base_image(fixture)
    );
    let dir = Dir::with([("docker/Special", dockerfile.as_str()), ("sub/file", "content")]);
    symlink("sub/file", dir.file("link")).expect("a link");
    let _socket = UnixListener::bind(dir.file("socket")).expect("a socket");
    let tag = format!("{}/e2e/pushed:1", fixture.registry);
    let finished = build(
        fixture,
        &dir,
        &tag,
        &["-f", "docker/Special", "--build-arg", "WORD=hello", "--push"],
    )
    .run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["warning: socket"]);
    let served = registry::digest(&fixture.registry, "e2e/pushed", "1", None).expect("it is served");
    assert_eq!(
        finished.stdout(),
        format!("ref: {tag}\ndigest: {served}\n"),
        "{finished}"
    );

    let mut smoke = task(fixture, "smoke", "cat /word /here/link");
    smoke["config"]["image"] = json!(tag);
    let ran = run(fixture, [smoke], &[]);
    fixture.engine.remove_image(&tag).expect("it is removed");
    assert_eq!(ran.code, 0, "{ran}");
    assert_says(&ran, &["smoke | hello", "smoke | content"]);
}

fn an_image_that_is_not_pushed_can_be_run_by_its_tag(fixture: &Fixture) {
    let dir = Dir::with([(
        "Dockerfile",
        format!("FROM {}\nRUN echo loaded > /word\n", base_image(fixture)),
    )]);
    let tag = "orchestra-e2e/loaded:1";
    let finished = build(fixture, &dir, tag, &[]).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert!(
        finished
            .value("digest")
            .is_some_and(|digest| digest.starts_with("sha256:")),
        "{finished}"
    );
    let mut smoke = task(fixture, "smoke", "cat /word");
    smoke["config"]["image"] = json!(tag);
    let ran = run(fixture, [smoke], &[]);
    fixture.engine.remove_image(tag).expect("it is removed");
    assert_eq!(ran.code, 0, "{ran}");
    assert_says(&ran, &["smoke | loaded"]);
}

fn a_builds_options_reach_the_image(fixture: &Fixture) {
    let dir = Dir::with([(
        "Dockerfile",
        format!(
            "FROM {}\nRUN grep db.test /etc/hosts && ulimit -Sn\n",
            base_image(fixture)
        ),
    )]);
    let tag = |tag: &str| format!("{}/e2e/options:{tag}", fixture.registry);
    let options = [
        "--push",
        "--tag",
        &tag("2"),
        "--label",
        "team=a, b",
        "--annotation",
        "note=x=y",
        "--add-host",
        "db.test:10.9.8.7",
        "--ulimit",
        "nofile=256",
        "--source-date-epoch",
        "0",
    ];
    let finished = build(fixture, &dir, &tag("1"), &options).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["10.9.8.7\tdb.test", " 256"]);
    let json = |path: &str| registry::json(&fixture.registry, "e2e/options", path).expect("it is served");
    let manifest = json("manifests/2");
    assert_eq!(manifest["annotations"]["note"], "x=y");
    let config = json(&format!(
        "blobs/{}",
        manifest["config"]["digest"].as_str().expect("a digest")
    ));
    assert_eq!(
        (&config["config"]["Labels"]["team"], &config["created"]),
        (&json!("a, b"), &json!("1970-01-01T00:00:00Z"))
    );
    let rootless = build(fixture, &dir, &tag("3"), &[&options[..], &["--rootless"]].concat())
        .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_rootless_image)
        .run();
    assert_eq!(rootless.code, 0, "{rootless}");
    assert_eq!(rootless.value("digest"), finished.value("digest"), "{rootless}");
    let refused = build(fixture, &dir, &tag("1"), &["--build-context", "more=./more"]).run();
    assert_eq!(refused.code, 2, "{refused}");
}

fn a_registry_with_a_password_is_pushed_to(fixture: &Fixture) {
    let dir = Dir::with([("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let tag = format!("{}/e2e/private:1", fixture.registry_auth);
    let credentials = &fixture.credentials;
    let command = build(
        fixture,
        &dir,
        &tag,
        &["--push", "--username", &credentials.user, "--password-stdin"],
    );
    let finished = command.input(format!("{}\n", credentials.password)).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert!(!finished.all().contains(&credentials.password), "the password is shown");
    let served = registry::digest(&fixture.registry_auth, "e2e/private", "1", Some(credentials)).expect("it is served");
    assert_eq!(finished.value("digest"), Some(served), "{finished}");
}

fn a_context_is_sent_in_bounded_memory(fixture: &Fixture) {
    let dir = Dir::with([("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    File::create(dir.file("large"))
        .and_then(|file| file.set_len(512 << 20))
        .expect("a large file");
    let tag = format!("{}/e2e/large:1", fixture.registry);
    let running = build(fixture, &dir, &tag, &["--push"]).start();
    let (pid, mut peak) = (running.pid(), 0);
    until("it ends", Duration::from_secs(90), || {
        let now = resident(pid);
        peak = peak.max(now);
        // A process that has ended and was not waited for has no memory.
        peak > 0 && now == 0
    });
    let finished = running.finish();
    assert_eq!(finished.code, 0, "{finished}");
    assert!(peak < 96 << 10, "{peak} KiB were resident");
}

fn what_a_build_ignores_is_not_sent(fixture: &Fixture) {
    let dockerfile = format!(
        "FROM {}\nCOPY . /all/\nRUN test \"$(ls -A /all | sort | tr '\\n' ' ')\" = '.dockerignore kept.log '\n",
        base_image(fixture)
    );
    let dir = Dir::with([
        ("Dockerfile", dockerfile.as_str()),
        (".dockerignore", "large\nDockerfile\n*.log\n!kept.log\n"),
        ("kept.log", "kept"),
        ("left.log", "left"),
    ]);
    File::create(dir.file("large"))
        .and_then(|file| file.set_len(64 << 20))
        .expect("a large file");
    let tag = format!("{}/e2e/ignored:1", fixture.registry);
    let finished = build(fixture, &dir, &tag, &["--push", "--json"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    let events = finished.events().expect("every line is an event");
    let sent = events
        .iter()
        .find(|event| event["event"] == "sent")
        .expect("it was sent");
    assert!(sent["bytes"].as_u64() < Some(100_000), "{sent}");
}

fn a_build_says_what_happens_as_json(fixture: &Fixture) {
    let dir = Dir::with([("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let tag = format!("{}/e2e/json:1", fixture.registry);
    let finished = build(fixture, &dir, &tag, &["--push", "--json"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    let events = finished.events().expect("every line is an event");
    let end = events
        .iter()
        .find(|event| event["event"] == "step_finished")
        .expect("an end");
    let served = registry::digest(&fixture.registry, "e2e/json", "1", None).expect("it is served");
    assert_eq!(
        (end["image"]["ref"].as_str(), end["image"]["digest"].as_str()),
        (Some(tag.as_str()), Some(served.as_str()))
    );
    let image = &end["image"];
    assert_eq!(image["refs"], json!([tag]), "{image}");
    assert_eq!(image["platforms"][0]["digest"], served.as_str(), "{image}");
    assert!(
        image["config_digest"]
            .as_str()
            .is_some_and(|digest| digest.starts_with("sha256:")),
        "{image}"
    );
    let sizes = [&image["size"], &image["platforms"][0]["size"]].map(serde_json::Value::as_u64);
    assert!(sizes[1] > Some(0) && sizes[0] >= sizes[1], "{image}");
    assert!(image["steps"]["run"].as_u64() > Some(0), "{image}");
    assert!(
        events
            .iter()
            .any(|event| event["event"] == "build" && event["detail"]["build"] == "completed"),
        "{finished}"
    );
}

fn an_interrupted_build_command_leaves_nothing(fixture: &Fixture) {
    let dir = Dir::with([(
        "Dockerfile",
        format!("FROM {}\nRUN echo be''gun; sleep 300\n", base_image(fixture)),
    )]);
    let running = build(fixture, &dir, "orchestra-e2e/stopped:1", &["--json"]).start();
    let first: serde_json::Value = serde_json::from_str(&running.line_with("run_started")).expect("JSON");
    let id = first["run_id"].as_str().expect("an id").to_owned();
    let _ = running.line_with("begun\\n");
    running.signal("INT");
    let finished = running.finish();
    assert_eq!(finished.code, 130, "{finished}");
    crate::support::assert_gone(fixture, &id, &finished);
}

fn an_interrupted_context_leaves_nothing(fixture: &Fixture) {
    let dir = Dir::with([("Dockerfile", "FROM scratch\n")]);
    File::create(dir.file("large"))
        .and_then(|file| file.set_len(1 << 40))
        .expect("an endless file");
    let running = build(fixture, &dir, "orchestra-e2e/stopped:2", &["--json"]).start();
    let first: serde_json::Value = serde_json::from_str(&running.line_with("run_started")).expect("JSON");
    let id = first["run_id"].as_str().expect("an id").to_owned();
    let _ = running.line_with("sending");
    let _ = running.line_with("sending");
    running.signal("INT");
    let finished = running.finish();
    assert_eq!(finished.code, 130, "{finished}");
    crate::support::assert_gone(fixture, &id, &finished);
}

fn a_build_that_fails_says_why(fixture: &Fixture) {
    let dir = Dir::with([(
        "Dockerfile",
        format!("FROM {}\nRUN echo the reason; exit 42\n", base_image(fixture)),
    )]);
    let finished = build(fixture, &dir, "orchestra-e2e/failing:1", &[]).run();
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &["step: [2/2] RUN echo the reason; exit 42", "the reason\n"]);
    assert!(finished.stdout.is_empty(), "{finished}");

    let dir = Dir::with([("Dockerfile", "FROM scratch\n")]);
    let missing = build(fixture, &dir, "orchestra-e2e/failing:2", &["--target", "nowhere"]).run();
    assert_eq!(missing.code, 1, "{missing}");
    assert_says(&missing, &["nowhere"]);
}

/// A pipeline whose one build loads an image, and names no image of BuildKit.
pub(crate) fn building(fixture: &Fixture, tag: &str) -> String {
    let script = format!(
        "printf 'FROM {}\\nRUN true\\n' > source/Dockerfile",
        base_image(fixture)
    );
    let mut steps = crate::bad_input::build(fixture, &script, json!({"tag": tag, "push": false}));
    if let Some(build) = steps[1]["build_image"].as_object_mut() {
        build.remove("image");
    }
    plan(steps)
}

fn privileges_that_the_configuration_forbids_are_refused_before_anything_is_made(fixture: &Fixture) {
    let mut privileged = task(fixture, "strong", "echo not run");
    privileged["privileged"] = json!(true);
    let dir = Dir::with([
        ("orchestra.toml", "allow_privileged = false\n".to_owned()),
        ("task.yml", plan([task(fixture, "first", "echo not run"), privileged])),
        ("build.yml", building(fixture, "orchestra-e2e/forbidden:1")),
        ("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n".to_owned()),
    ]);
    for args in [
        &["run", "task.yml"][..],
        &["validate", "task.yml"],
        &["run", "build.yml"],
        &["validate", "build.yml"],
        &["build", "-t", "orchestra-e2e/forbidden:1"],
    ] {
        let finished = fixture.orchestra(args).dir(dir.path()).run();
        assert_eq!(finished.code, 2, "{finished}");
        assert_says(&finished, &["is not permitted here", "hint: "]);
        assert!(!finished.all().contains("not run"), "{finished}");
    }
    let finished = fixture
        .orchestra(["validate", "--json", "task.yml"])
        .dir(dir.path())
        .run();
    assert_eq!(finished.code, 2, "{finished}");
    let told = finished.events().expect("JSON");
    assert_eq!(told[0]["valid"], false, "{finished}");
    assert_says(&finished, &["step=strong", "is not permitted here"]);
    // One image's builds may be permitted.
    dir.write(
        "orchestra.toml",
        "allow_privileged = false\nprivileged_images = ['moby/buildkit']\n",
    );
    for (file, code) in [("task.yml", 2), ("build.yml", 0)] {
        let finished = fixture.orchestra(["validate", file]).dir(dir.path()).run();
        assert_eq!(finished.code, code, "{finished}");
    }
}

fn builds_are_rootless_by_themselves_where_the_host_can_do_that(fixture: &Fixture) {
    let tag = "orchestra-e2e/rootless-auto:1";
    let dir = Dir::with([
        (
            "orchestra.toml",
            "allow_privileged = false\n[image_build]\nrootless = 'auto'\n".to_owned(),
        ),
        ("p.yml", building(fixture, tag)),
    ]);
    let doctor = fixture.orchestra(["doctor", "--json"]).dir(dir.path()).run();
    let told = doctor.events().expect("JSON");
    let modes = told[0]["builds"].as_array().expect("a list");
    let rootless = modes.iter().find(|mode| mode["mode"] == "rootless");
    let can = rootless.and_then(|mode| mode["works"].as_bool()).expect("it is told");
    let finished = fixture.orchestra(["run", "p.yml"]).dir(dir.path()).run();
    fixture.engine.remove_image(tag).expect("it is removed");
    match can {
        true => assert_eq!(finished.code, 0, "{finished}"),
        false => {
            assert_eq!(finished.code, 2, "{finished}");
            assert_says(&finished, &["is not permitted here"]);
        }
    }
}

fn a_further_target_of_a_build_with_a_cache_is_an_artifact(fixture: &Fixture) {
    let script = format!(
        "printf 'FROM {} AS made\\nRUN echo of it > /part\\nFROM made\\nRUN echo all > /whole\\n' > source/Dockerfile",
        base_image(fixture)
    );
    let keys = json!({
        "additional_targets": [{"target": "made", "name": "made", "type": "local"}],
        "caches": [{"path": "/var/lib/buildkit"}],
    });
    let mut look = task(fixture, "look", "cat made/part; test ! -e made/whole");
    look["config"]["inputs"] = json!([{"name": "made"}]);
    let steps = crate::bad_input::build(fixture, &script, keys)
        .into_iter()
        .chain([look]);
    let dir = Dir::with([("p.yml", plan(steps))]);
    let store = format!("file://{}", dir.file("store").display());
    // The second one begins with what the first one's cache was.
    for what in ["missed", "restored"] {
        let id = run_id("targets");
        let finished = fixture
            .orchestra(["run", "p.yml", "--run-id", &id, "--json"])
            .dir(dir.path())
            .env("ORCHESTRA_CACHES__STORE", &store)
            .run();
        assert_eq!(finished.code, 0, "{finished}");
        assert_says(&finished, &["of it", what]);
        assert_gone(fixture, &id, &finished);
    }
}

fn a_root_file_system_is_an_image_for_the_next_task(fixture: &Fixture) {
    let script = format!(
        "printf 'FROM {}\\nENV WHO=nobody\\nRUN echo made > /made\\nUSER 1234\\n' > source/Dockerfile",
        base_image(fixture)
    );
    let mut look = task(fixture, "look", "echo $(cat /made) as $(id -u), $WHO");
    look["image"] = json!("fs");
    if let Some(config) = look["config"].as_object_mut() {
        config.remove("image_resource");
        config.remove("image");
    }
    // Neither is pushed or loaded, and nobody may be privileged in the second one.
    let policies = ["", "allow_privileged = false\n"];
    for (policy, image) in policies
        .into_iter()
        .zip([&fixture.buildkit_image, &fixture.buildkit_rootless_image])
    {
        let keys = json!({
            "outputs": [{"name": "fs", "type": "rootfs"}], "push": false, "load": false,
            "image": image, "rootless": !policy.is_empty(),
        });
        let steps = crate::bad_input::build(fixture, &script, keys);
        let dir = Dir::with([
            ("orchestra.toml", policy.to_owned()),
            ("p.yml", plan(steps.into_iter().chain([look.clone()]))),
        ]);
        let id = run_id("rootfs");
        let finished = fixture
            .orchestra(["run", "p.yml", "--run-id", &id])
            .dir(dir.path())
            .run();
        assert_eq!(finished.code, 0, "{finished}");
        assert_says(&finished, &["look | made as 1234, nobody"]);
        assert_gone(fixture, &id, &finished);
    }
}

fn the_pages_pipelines_run_word_for_word(fixture: &Fixture) {
    // In the place of a repository that is cloned.
    let dockerfile = r#"FROM scratch AS production
COPY busybox /bin/busybox
ARG GO_VERSION=none
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin && echo '#!/bin/sh' > /myapp && echo echo myapp, go $GO_VERSION, called with '$1' >> /myapp && chmod +x /myapp"]
FROM production AS unwanted
RUN ["/bin/busybox", "false"]
FROM production
"#;
    let dir = Dir::with([("x", "")]);
    let clone = format!("cp /bin/busybox source && cat > source/Dockerfile <<'END'\n{dockerfile}END\n");
    let (repository, tag) = fixture.image.rsplit_once(':').expect("a tag");
    let page = PAGE
        .replace("repository: alpine", &format!("repository: {repository}, tag: {tag}"))
        .replace(r#""git clone $REPO source""#, &json!(clone).to_string());
    let checkout = page.split("  - build_image").next().expect("its first step");
    let cached = format!(
        "{checkout}{}",
        CACHED
            .trim()
            .lines()
            .map(|line| format!("  {line}\n"))
            .collect::<String>()
    );
    let store = format!("file://{}", dir.file("caches").display());
    let run = |text: &str, host: &str, said: &[&str]| {
        dir.write("p.yml", text.replace("registry.example.com", host));
        let user = format!("REGISTRY_USER={}", fixture.credentials.user);
        let finished = fixture
            .orchestra(["run", "p.yml", "--secret", &user, "--secret", "REGISTRY_PASSWORD=-"])
            .dir(dir.path())
            .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_image)
            // A registry on loopback is reached from the host's network alone.
            .env("ORCHESTRA_IMAGE_BUILD__NETWORK", "host")
            .env("ORCHESTRA_CACHES__STORE", &store)
            .input(format!("{}\n", fixture.credentials.password))
            .run();
        fixture.engine.remove_image(&format!("{host}/myapp:latest")).ok();
        assert_eq!(finished.code, 0, "{finished}");
        assert_says(&finished, said);
        assert!(!finished.all().contains(&fixture.credentials.password), "{finished}");
        finished
    };
    run(
        &page,
        &fixture.registry_auth,
        &["smoke-test | myapp, go 1.26, called with --version"],
    );
    for is_cached in [false, true] {
        let finished = run(&cached, &fixture.registry, &["build-myapp"]);
        // One step of the two is as in the build of the first page.
        let steps = finished.all().matches(" CACHED").count();
        assert_eq!(steps, if is_cached { 2 } else { 1 }, "{finished}");
        registry::digest(&fixture.registry, "myapp", "latest", None).expect("it is served");
    }
}
