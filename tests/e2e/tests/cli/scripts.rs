//! Pipelines in TypeScript.

use std::time::Duration;

use orchestra_e2e::{Dir, Fixture, registry};

use crate::support::{assert_gone, assert_says, left_of, run_id, tests};

tests![
    the_examples_in_typescript_run,
    the_image_build_example_in_typescript_prints_the_digest_that_the_registry_serves,
    the_page_on_image_build_runs_word_for_word,
    a_build_that_fails_rejects_with_its_logs,
    a_script_that_fails_tells_the_users_line_and_exits_with_code_1,
    a_script_that_is_not_valid_is_refused_with_its_place,
    a_script_that_never_ends_is_ended_and_leaves_nothing,
    a_script_that_is_interrupted_leaves_nothing,
    a_script_reaches_allowed_hosts_alone,
    the_example_of_requests_runs,
    init_writes_a_starter_that_runs,
    one_job_of_a_script_can_be_run,
];

/// A directory with this pipeline's body, which begins in the file's second line.
fn script(fixture: &Fixture, body: &str) -> Dir {
    let body = body.replace("IMAGE", &format!("{:?}", fixture.image));
    Dir::with([(
        "p.ts",
        format!("const pipeline = async () => {{\n{body}\n}};\nexport {{ pipeline }};\n"),
    )])
}

fn the_examples_in_typescript_run(fixture: &Fixture) {
    for (example, said) in [
        ("hello", "read | Hello from Orchestra"),
        ("parallel", "clean-up.always | always"),
        ("sandbox", "sandbox | hello two"),
        ("caches", "install | fetched"),
    ] {
        let id = run_id(example);
        let file = format!("examples/typescript/{example}.ts");
        let finished = fixture.orchestra(["run", &file, "--run-id", &id]).run();
        assert_eq!(finished.code, 0, "{finished}");
        assert_says(&finished, &[said]);
        assert_gone(fixture, &id, &finished);
    }
}

fn the_image_build_example_in_typescript_prints_the_digest_that_the_registry_serves(fixture: &Fixture) {
    let finished = fixture
        .orchestra(["run", "examples/typescript/image-build.ts"])
        .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_image)
        .run();
    assert_eq!(finished.code, 0, "{finished}");
    let reference = finished.value("ref").expect("a reference");
    let served = registry::digest(&fixture.registry, "orchestra/demo-ts", "latest", None).expect("it is served");
    assert_eq!(finished.value("digest"), Some(served), "{finished}");
    fixture.engine.remove_image(&reference).expect("the image is removed");
}

/// The example as users know it.
const PAGE: &str = r#"
const result = await image.build({
  context: "source", // input volume mount name
  dockerfile: "Dockerfile", // path relative to context (default: "Dockerfile")
  tag: "registry.example.com/myapp:latest",
  push: true,
  buildArgs: { GO_VERSION: "1.26" },
  target: "production", // optional Dockerfile stage
  platforms: ["linux/amd64"], // optional; default host arch
  inputs: { source: sourceVolume }, // VolumeResult mounts
  caches: { "/var/lib/buildkit": cacheVolume }, // optional layer cache mount
  registryAuth: {
    registry: "registry.example.com", // optional; inferred from tag
    username: "user",
    password: "secret:REGISTRY_PASSWORD", // resolved by the secrets manager
    insecure: false, // permit plain-HTTP push
  },
  timeout: "10m",
  onOutput: (stream, data) => process.stdout.write(data),
});
console.log(result.ref); // "registry.example.com/myapp:latest"
console.log(result.digest); // "sha256:..."
// Use the built image in the next task:
await runtime.run({
  image: result.ref,
  command: { path: "/myapp", args: ["--version"] },
});
"#;

/// What the page does not show of the result.
const MORE: &str = r#"console.log(result.digest);
console.log(result.refs.length, result.refs[0] === result.ref, result.configDigest?.slice(0, 7), result.targets.length);
console.log(result.platforms.length, (result.size ?? 0) >= (result.platforms[0]?.size ?? 1), result.steps.run + result.steps.cached > 0);"#;

fn the_page_on_image_build_runs_word_for_word(fixture: &Fixture) {
    let file = Fixture::repository().join("examples/typescript/registry.ts");
    let text = std::fs::read_to_string(file).expect("the example");
    let page: Vec<String> = PAGE.trim().lines().map(|line| format!("  {line}\n")).collect();
    assert!(text.contains(&page.concat()), "the example has the page's words");

    let host = &fixture.registry_auth;
    let text = text
        .replace("registry.example.com", host)
        .replace("busybox:stable-musl", &fixture.image)
        .replace("console.log(result.digest);", MORE);
    let text = match fixture.is_private {
        true => text,
        // The registry beside a user's own engine knows one user.
        false => text.replace(
            "username: \"user\"",
            &format!("username: {:?}", fixture.credentials.user),
        ),
    };
    let dir = Dir::with([("p.ts", text)]);
    let store = format!("file://{}", dir.file("caches").display());
    let run = || {
        fixture
            .orchestra(["run", "p.ts", "--secret", "REGISTRY_PASSWORD=-"])
            .dir(dir.path())
            .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_image)
            // A registry on loopback is reached from the host's network alone.
            .env("ORCHESTRA_IMAGE_BUILD__NETWORK", "host")
            .env("ORCHESTRA_CACHES__STORE", &store)
            .input(format!("{}\n", fixture.credentials.password))
            .run()
    };
    for cached in [false, true] {
        let finished = run();
        let tag = format!("{host}/myapp:latest");
        fixture.engine.remove_image(&tag).ok();
        assert_eq!(finished.code, 0, "{finished}");
        let served = registry::digest(host, "myapp", "latest", Some(&fixture.credentials)).expect("it is served");
        let said = [
            format!("p | {tag}\n"),
            format!("p | {served}\n"),
            "p | 1 true sha256: 0\n".to_owned(),
            "p | 1 true true\n".to_owned(),
            "myapp | myapp, go 1.26, called with --version".to_owned(),
        ];
        assert_says(&finished, &said.each_ref().map(String::as_str));
        assert!(!finished.all().contains(&fixture.credentials.password), "{finished}");
        assert_eq!(finished.all().contains("CACHED"), cached, "{finished}");
    }
}

/// The page: "A non-zero exit code rejects the promise with the build container's logs."
fn a_build_that_fails_rejects_with_its_logs(fixture: &Fixture) {
    let id = run_id("ts-build-fails");
    let dockerfile = format!(
        "FROM {}\\nRUN echo the reason; exit 42\\n",
        crate::building::base_image(fixture)
    );
    let dir = script(
        fixture,
        &format!(
            "const source = await volumes.create({{ name: 'source' }});\n\
             await source.writeFiles({{ 'Dockerfile': '{dockerfile}' }});\n\
             try {{\n\
               await image.build({{ name: 'app', context: 'source', tag: 'localhost/never:1', network: 'host', inputs: {{ source }} }});\n\
             }} catch (error) {{\n\
               console.log('rejected', error.code, error.stderr.includes('the reason'), error.message.includes('RUN echo the reason'), error.stdout === '');\n\
             }}"
        ),
    );
    let finished = fixture
        .orchestra(["run", "p.ts", "--run-id", &id])
        .dir(dir.path())
        .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_image)
        .run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["p | rejected 1 true true true"]);
    assert_gone(fixture, &id, &finished);
}

fn a_script_that_fails_tells_the_users_line_and_exits_with_code_1(fixture: &Fixture) {
    let id = run_id("ts-fails");
    let dir = script(
        fixture,
        "await runtime.run({ name: 'good', image: IMAGE, command: ['true'] });\n\
         await runtime.run({ name: 'bad', image: IMAGE, command: ['sh', '-c', 'echo the reason >&2; exit 7'] });\n\
         console.log('not reached');",
    );
    let finished = fixture
        .orchestra(["run", "p.ts", "--run-id", &id])
        .dir(dir.path())
        .run();
    assert_eq!(finished.code, 1, "{finished}");
    let said = [
        "bad | the reason\n",
        "TaskError: task bad: exit code 7",
        "at pipeline (p.ts:3:",
    ];
    assert_says(&finished, &said);
    assert!(!finished.all().contains("not reached"), "{finished}");
    assert_gone(fixture, &id, &finished);

    let finished = fixture.orchestra(["run", "p.ts", "--json"]).dir(dir.path()).run();
    assert_eq!(finished.code, 1, "{finished}");
    let events = finished.events().expect("JSON alone");
    let ended = |step: &str| {
        events
            .iter()
            .find(|event| event["event"] == "step_finished" && event["step"] == step)
    };
    assert_eq!(ended("bad").expect("the task's end")["status"], "failed", "{finished}");
    assert_eq!(ended("p").expect("the script's end")["kind"], "script", "{finished}");
}

fn a_script_that_is_not_valid_is_refused_with_its_place(fixture: &Fixture) {
    let good = "const pipeline = async () => {};\nexport { pipeline };\n";
    for (text, told) in [
        (
            "const pipeline = async () => {\n  const = 1;\n};\nexport { pipeline };\n",
            &["p.ts:2:9"][..],
        ),
        (
            "import { a } from \"./none\";\nexport const pipeline = async () => a;\n",
            &["p.ts:1:19", "no file `./none`"],
        ),
        (
            "import { a } from \"../up\";\nexport const pipeline = async () => a;\n",
            &["p.ts:1:19", "outside"],
        ),
        (
            "import fs from \"fs\";\nexport const pipeline = async () => fs;\n",
            &["p.ts:1:16", "no packages"],
        ),
        ("const pipeline = 1;\n", &["exports no `pipeline`"]),
    ] {
        let id = run_id("ts-invalid");
        let dir = Dir::with([("in/p.ts", text), ("up.ts", good)]);
        for command in [&["run", "p.ts", "--run-id", &id][..], &["validate", "p.ts"]] {
            let finished = fixture.orchestra(command).dir(dir.file("in")).run();
            assert_eq!(finished.code, 2, "{text}: {finished}");
            assert_says(&finished, told);
        }
        assert_eq!(left_of(fixture, &id), Default::default());
    }
    let dir = Dir::with([("p.js", good)]);
    let finished = fixture.orchestra(["validate", "p.js"]).dir(dir.path()).run();
    assert_eq!(
        (finished.code, finished.stdout().as_str()),
        (0, "p.js is valid: 1 module\n"),
        "{finished}"
    );
}

fn a_script_that_never_ends_is_ended_and_leaves_nothing(fixture: &Fixture) {
    for (end, told) in [
        ("for (;;) {}", "computed for longer than its limit of 2s"),
        ("console.log('x'.repeat((1 << 30) - 100));", "out of memory"),
        ("await new Promise(() => {});", "waits for something that can't happen"),
    ] {
        let id = run_id("ts-endless");
        let body = format!(
            "const source = await volumes.create();\n\
             await runtime.run({{ image: IMAGE, command: ['true'], mounts: {{ source }} }});\n\
             const slow = runtime.run({{ name: 'slow', image: IMAGE, command: ['sleep', '1'] }});\n\
             await new Promise((resolve) => setTimeout(resolve, 300)); {}{end}",
            if end.starts_with("await") { "await slow; " } else { "" }
        );
        let dir = script(fixture, &body);
        let finished = fixture
            .orchestra(["run", "p.ts", "--run-id", &id])
            .dir(dir.path())
            .env("ORCHESTRA_SCRIPT__TIME", "2s")
            .run();
        assert_eq!(finished.code, 1, "{end}: {finished}");
        assert_says(&finished, &[told]);
        assert!(finished.duration < Duration::from_secs(60), "{finished}");
        assert_gone(fixture, &id, &finished);
    }
}

fn a_script_that_is_interrupted_leaves_nothing(fixture: &Fixture) {
    let id = run_id("ts-interrupted");
    let dir = script(
        fixture,
        "const source = await volumes.create();\n\
         const command = ['sh', '-c', 'echo begun; exec sleep 600'];\n\
         await runtime.startSandbox({ image: IMAGE });\n\
         for (;;) try { await runtime.run({ name: 'slow', image: IMAGE, command, mounts: { source } }); } catch {}",
    );
    let running = fixture
        .orchestra(["run", "p.ts", "--run-id", &id])
        .dir(dir.path())
        .start();
    let _ = running.line_with("slow | begun");
    running.signal("INT");
    let finished = running.finish();
    assert_eq!(finished.code, 130, "{finished}");
    assert_gone(fixture, &id, &finished);
}

fn a_script_reaches_allowed_hosts_alone(fixture: &Fixture) {
    let host = &fixture.registry;
    let body = format!(
        "const answer = await fetch('http://{host}/v2/');\n\
         assert.deepEqual([answer.status, answer.ok], [200, true]);\n\
         assert.deepEqual(await answer.json(), {{}});\n\
         await assert.rejects(fetch('http://127.0.0.2:1/'), /127\\.0\\.0\\.2 is not allowed/);\n\
         await assert.rejects(fetch('file:///etc/passwd'), /neither http nor https/);\n\
         console.log('reached');"
    );
    let dir = script(fixture, &body);
    dir.write("orchestra.toml", format!("[script]\nfetch_allow = [{host:?}]\n"));
    let finished = fixture.orchestra(["run", "p.ts"]).dir(dir.path()).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["p | reached"]);
}

fn the_example_of_requests_runs(fixture: &Fixture) {
    let host = &fixture.registry;
    let text =
        std::fs::read_to_string(Fixture::repository().join("examples/typescript/fetch.ts")).expect("the example");
    let dir = Dir::with([(
        "fetch.ts",
        text.replace("https://api.example.com", &format!("http://{host}")),
    )]);
    let refused = fixture.orchestra(["run", "fetch.ts"]).dir(dir.path()).run();
    assert_eq!(refused.code, 1, "{refused}");
    assert_says(&refused, &["is not allowed: none is", "fetch_allow"]);
    dir.write("orchestra.toml", format!("[script]\nfetch_allow = [{host:?}]\n"));
    let finished = fixture.orchestra(["run", "fetch.ts"]).dir(dir.path()).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["fetch | the server answers 200"]);
}

fn init_writes_a_starter_that_runs(fixture: &Fixture) {
    let dir = Dir::with::<&str>([]);
    let finished = fixture.orchestra(["init", "--ts", "ci"]).dir(dir.path()).run();
    assert_eq!(finished.code, 0, "{finished}");
    let text = std::fs::read_to_string(dir.file("ci/pipeline.ts")).expect("a pipeline");
    dir.write("ci/pipeline.ts", text.replace("busybox:stable", &fixture.image));
    assert!(dir.file("ci/orchestra.d.ts").exists() && dir.file("ci/tsconfig.json").exists());
    let finished = fixture.orchestra(["run", "ci/pipeline.ts"]).dir(dir.path()).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["read | Hello from a pipeline", "pipeline | done"]);
    let finished = fixture.orchestra(["init", "--ts", "ci"]).dir(dir.path()).run();
    assert_eq!(finished.code, 2, "{finished}");
    assert_says(&finished, &["is there already"]);
}

fn one_job_of_a_script_can_be_run(fixture: &Fixture) {
    let text = "async function main() {\n\
        await pipeline.job('first', () => console.log('one'));\n\
        await pipeline.job('second', ({ runtime }) => runtime.run({ image: IMAGE, command: ['echo', 'two'] }));\n\
        }\nexport { main as pipeline };\n";
    let dir = Dir::with([("p.ts", text.replace("IMAGE", &format!("{:?}", fixture.image)))]);
    let finished = fixture
        .orchestra(["run", "p.ts", "--job", "second"])
        .dir(dir.path())
        .run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["second.echo | two"]);
    assert!(!finished.all().contains("one\n"), "{finished}");
    let finished = fixture
        .orchestra(["run", "p.ts", "--job", "third"])
        .dir(dir.path())
        .run();
    assert_eq!(finished.code, 1, "{finished}");
    assert_says(&finished, &["there is no job \"third\""]);
}
