//! `build_image` steps on the in-memory engine, with a stand-in for BuildKit: what reaches it, and what comes back.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::{Arc, Mutex};

use orchestra::ExitStatus;
use orchestra_conformance::memory::{MemoryEngine, MemoryImage, Process};
use orchestra_image_build::DEFAULT_BUILDKIT_IMAGE;
use orchestra_pipelines::{Pipeline, RunOptions, RunReport, Status, run};

const DIGEST: &str = "sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";

type Calls = Arc<Mutex<Vec<Vec<String>>>>;

/// What the build's script does with a real BuildKit, as far as a caller sees: it finds the Dockerfile and tells a digest.
async fn buildkit(process: Process, calls: Calls) -> u8 {
    // `sh -c SCRIPT NAME BUILDCTL STAGES CONTEXT DOCKERFILE …`
    let arguments = process.args[6..].to_vec();
    let (context, dockerfile) = (&arguments[0], &arguments[1]);
    let found = process
        .read_file(&format!("{context}/{dockerfile}"))
        .or_else(|_| process.read_file(dockerfile));
    calls.lock().unwrap().push(arguments.clone());
    let Ok(dockerfile) = found else { return 92 };
    if dockerfile.starts_with(b"fail") {
        process.stderr.write("cc: error: no input files\n").await;
        return 1;
    }
    let metadata = format!("{{\"containerimage.digest\":\"{DIGEST}\"}}");
    let line = format!("{{\"orchestra\":\"metadata\",\"metadata\":{metadata}}}\n");
    process.stderr.write(line).await;
    0
}

fn engine() -> (MemoryEngine, Calls) {
    let engine = MemoryEngine::new().with_capabilities(|capabilities| {
        capabilities.privileged = true;
        capabilities.host_network = true;
    });
    let calls = Calls::default();
    let called = calls.clone();
    let builder = MemoryImage::busybox().with_program("/bin/sh", move |process| buildkit(process, called.clone()));
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    engine.add_image(DEFAULT_BUILDKIT_IMAGE, builder.clone()).unwrap();
    engine.add_image("mirror.test/buildkit:1", builder).unwrap();
    (engine, calls)
}

/// A task writes this Dockerfile, a build with these keys follows, then this step.
async fn built(engine: &MemoryEngine, dockerfile: &str, keys: &str, then: &str, options: RunOptions) -> RunReport {
    let text = format!(
        "
plan:
  - {{ task: write, image: busybox, config: {{ outputs: [{{ name: source }}], run: {{ path: sh, args: [-c, 'mkdir source/app && echo {dockerfile} > source/app/Dockerfile'] }} }} }}
  - build_image: {{ {keys} }}
{then}"
    );
    let pipeline = Pipeline::parse("ci.yml", &text).unwrap_or_else(|invalid| panic!("{invalid:?}"));
    let report = run(&pipeline, engine.driver(), options).await;
    let left = engine.driver().list(None).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    report
}

#[tokio::test]
async fn a_builds_keys_reach_buildkit_and_its_digest_comes_back() {
    let (engine, calls) = engine();
    let keys = "context: source/app, tag: 'registry.test/team/app:1', push: true, build_args: { VERSION: '1.20' }, target: final, platforms: [linux/amd64, linux/arm64], network: host, caches: [{ path: /var/lib/buildkit }]";
    let report = built(&engine, "FROM scratch", keys, "", RunOptions::default()).await;
    let step = &report.steps[1];
    assert_eq!(
        (step.name.as_str(), step.status, step.exit),
        ("build-app", Status::Succeeded, Some(ExitStatus::Code(0))),
        "{report:#?}"
    );
    let image = step.image.as_ref().unwrap();
    assert_eq!(
        (image.reference.as_str(), image.digest.as_str()),
        ("registry.test/team/app:1", DIGEST)
    );
    let call = calls.lock().unwrap()[0].join(" ");
    for part in [
        "source/app",
        "build-arg:VERSION=1.20",
        "target=final",
        "platform=linux/amd64,linux/arm64",
        "name=registry.test/team/app:1",
        "push=true",
    ] {
        assert!(call.contains(part), "{part}: {call}");
    }
}

#[tokio::test]
async fn a_dockerfile_is_given_relative_to_the_context_or_to_the_working_directory() {
    let (engine, _) = engine();
    for dockerfile in ["Dockerfile", "source/app/Dockerfile"] {
        let keys = format!("context: source/app, dockerfile: {dockerfile}, tag: registry.test/app, push: true");
        let report = built(&engine, "FROM scratch", &keys, "", RunOptions::default()).await;
        assert_eq!(report.status, Status::Succeeded, "{dockerfile}: {report:#?}");
    }
}

#[tokio::test]
async fn a_missing_dockerfile_fails_the_step_and_skips_the_rest() {
    let (engine, _) = engine();
    let keys = "context: source, tag: registry.test/app, push: true, dockerfile: Containerfile";
    let then = "  - { task: after, image: busybox, config: { run: { path: 'true' } } }\n";
    let report = built(&engine, "FROM scratch", keys, then, RunOptions::default()).await;
    assert_eq!(
        report.steps.iter().map(|step| step.status).collect::<Vec<_>>(),
        [Status::Succeeded, Status::Failed, Status::Skipped]
    );
    let step = &report.steps[1];
    assert!(
        step.error.as_ref().unwrap().contains("source/Containerfile") && step.hint.is_some(),
        "{step:#?}"
    );
}

#[tokio::test]
async fn a_build_that_fails_is_told_with_its_last_lines() {
    let (engine, _) = engine();
    let report = built(
        &engine,
        "fail",
        "context: source/app, tag: registry.test/app, push: true",
        "",
        RunOptions::default(),
    )
    .await;
    let step = &report.steps[1];
    assert_eq!(
        (step.status, step.exit),
        (Status::Failed, Some(ExitStatus::Code(1))),
        "{step:#?}"
    );
    assert!(step.error.as_ref().unwrap().starts_with("exit code 1"), "{step:#?}");
    assert!(step.log_tail.contains("cc: error: no input files"), "{step:#?}");
}

#[tokio::test]
async fn a_configured_buildkit_image_is_for_builds_that_name_none() {
    let (engine, calls) = engine();
    engine
        .driver()
        .remove_image(&DEFAULT_BUILDKIT_IMAGE.parse().unwrap())
        .await
        .unwrap();
    let mut options = RunOptions::default();
    options.buildkit = Some("mirror.test/buildkit:1".parse().unwrap());
    let report = built(
        &engine,
        "FROM scratch",
        "context: source/app, tag: registry.test/app, push: true",
        "",
        options,
    )
    .await;
    assert_eq!(
        (report.status, calls.lock().unwrap().len()),
        (Status::Succeeded, 1),
        "{report:#?}"
    );
}

#[tokio::test]
async fn what_was_pushed_is_fetched_anew_with_the_credentials_of_the_push() {
    let (engine, _) = engine();
    engine.add_registry("registry.test", Some(("robot", "hunter2")));
    // The engine has an image of this tag from an earlier day: it must not be run.
    engine.add_image("registry.test/app:1", MemoryImage::busybox()).unwrap();
    let keys = |password: &str| {
        format!(
            "context: source/app, tag: 'registry.test/app:1', push: true, registry: {{ username: robot, password: {password} }}"
        )
    };
    let then = "  - { task: smoke, image: 'registry.test/app:1', config: { run: { path: 'true' } } }\n";
    for (password, words) in [("hunter2", "image not found"), ("wrong", "unauthorized")] {
        let report = built(&engine, "FROM scratch", &keys(password), then, RunOptions::default()).await;
        let step = &report.steps[2];
        assert_eq!(step.status, Status::Failed, "{step:#?}");
        assert!(step.error.as_ref().unwrap().contains(words), "{step:#?}");
        assert!(!format!("{report:?}").contains("hunter2"));
    }
}
