//! What users may write, and what it means.

use std::time::Duration;

use orchestra::{ExposeSecret, ImageRef, NetworkMode};
use orchestra_pipelines::{Action, BuildPlan, Pipeline, Step, TaskPlan, Values};
use orchestra_secrets::{MemoryStore, Scope, SecretKey, Secrets};

fn steps(text: &str) -> Vec<Step> {
    let pipeline = Pipeline::parse("ci.yml", text).unwrap_or_else(|invalid| panic!("{invalid:?}"));
    pipeline.jobs.into_iter().flat_map(|job| job.plan).collect()
}

fn task(step: &Step) -> &TaskPlan {
    match &step.action {
        Action::Task(task) => task,
        other => panic!("{other:?}"),
    }
}

fn build(step: &Step) -> &BuildPlan {
    match &step.action {
        Action::BuildImage(build) => build,
        other => panic!("{other:?}"),
    }
}

/// The user's own page.
const PAGE: &str = include_str!("../../examples/registry.yml");

/// A task's environment.
fn env(task: &TaskPlan) -> Vec<(&str, &str)> {
    let entries = task.env.0.iter();
    entries.map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn the_page_of_image_build_runs_unchanged() {
    // But for its secrets.
    let page = PAGE
        .replace("secret:REGISTRY_USER", "robot")
        .replace("secret:REGISTRY_PASSWORD", "hunter2");
    let steps = steps(&page);
    assert_eq!(
        steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(),
        ["checkout", "build-app", "smoke-test"]
    );
    let checkout = task(&steps[0]);
    assert_eq!(checkout.image.reference.as_str(), "alpine");
    assert_eq!(checkout.command, ["sh", "-c", "git clone $REPO source"]);
    let build = build(&steps[1]);
    assert_eq!(
        (build.context.as_str(), build.dockerfile.as_deref()),
        ("source", Some("source/Dockerfile"))
    );
    assert_eq!(
        (build.tag.as_str(), build.push),
        ("registry.example.com/myapp:latest", true)
    );
    assert_eq!(build.build_args["GO_VERSION"], "1.26");
    assert_eq!(
        (build.target.as_deref(), build.platforms[0].to_string().as_str()),
        (Some("production"), "linux/amd64")
    );
    assert_eq!(build.caches[0].path.as_str(), "/var/lib/buildkit");
    let registry = build.registry.as_ref().unwrap();
    assert_eq!(registry.hostname.as_deref(), Some("registry.example.com"));
    assert_eq!(
        registry.credentials.as_ref().unwrap().password.expose_secret(),
        "hunter2"
    );
    assert_eq!(
        task(&steps[2]).image.reference.as_str(),
        "registry.example.com/myapp:latest"
    );
}

#[test]
fn a_build_without_name_and_inputs_mounts_what_its_context_is_of() {
    let steps = steps(
        "
plan:
  - task: checkout
    image: busybox
    config: { outputs: [{ name: source }], run: { path: 'true' } }
  - build_image:
      context: source
      tag: registry.example.com/team/myapp:latest
      push: true
      caches:
        - path: /var/lib/buildkit
  - build_image: { context: source/app, tag: myapp, timeout: 10m }
    attempts: 2
",
    );
    assert_eq!(
        steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(),
        ["checkout", "build-myapp", "build-myapp-2"]
    );
    for (step, context) in [(&steps[1], "source"), (&steps[2], "source/app")] {
        let build = build(step);
        assert_eq!(build.context.as_str(), context);
        assert_eq!(
            build
                .inputs
                .iter()
                .map(|input| (input.name.as_str(), input.path.as_str()))
                .collect::<Vec<_>>(),
            [("source", "source")]
        );
    }
    assert_eq!(
        (steps[2].timeout, steps[2].attempts),
        (Some(Duration::from_secs(600)), 2)
    );
}

#[test]
fn every_key_of_a_task_reaches_the_plan() {
    let steps = steps(
        r#"
plan:
  - task: make
    image: busybox:1
    config: { outputs: [{ name: source }], run: { path: 'true' } }
  - task: test
    privileged: true
    timeout: 1h30m
    attempts: 3
    network: none
    params: { LEVEL: step, EXTRA: 1.20 }
    config:
      platform: linux/arm64
      image_resource:
        type: registry-image
        source: { repository: registry.example.com/team/go, tag: 1.20, username: robot, password: hunter2, insecure: true }
      inputs: [{ name: source, path: src/app }]
      outputs: [{ name: report, path: /out }]
      caches: [{ path: .cache }]
      run: { path: make, args: [test, 8, -j], dir: src/app, user: "1000:1000" }
      params: { LEVEL: config, EMPTY: , FLAG: true }
      container_limits: { cpu: 1.5, memory: 512MB }
"#,
    );
    let (step, test) = (&steps[1], task(&steps[1]));
    assert_eq!((step.timeout, step.attempts), (Some(Duration::from_secs(5400)), 3));
    assert_eq!((test.privileged, test.network), (true, NetworkMode::None));
    assert_eq!(
        test.image.reference.as_str(),
        "registry.example.com/team/go:1.20",
        "a number is the text that was written"
    );
    assert!(test.image.insecure && test.image.credentials.is_some());
    assert_eq!(test.platform.as_ref().unwrap().to_string(), "linux/arm64");
    assert_eq!(
        (
            test.inputs[0].path.as_str(),
            test.outputs[0].path.as_str(),
            test.caches[0].path.as_str()
        ),
        ("src/app", "/out", ".cache")
    );
    assert_eq!(test.command, ["make", "test", "8", "-j"]);
    assert_eq!(
        (
            test.dir.as_ref().unwrap().as_str(),
            test.user.as_ref().unwrap().as_str()
        ),
        ("src/app", "1000:1000")
    );
    assert_eq!(
        env(test),
        [("EMPTY", ""), ("EXTRA", "1.20"), ("FLAG", "true"), ("LEVEL", "step")]
    );
    assert_eq!(
        (test.limits.cpus.unwrap().millis(), test.limits.memory),
        (1500, Some(512 << 20))
    );
}

#[test]
fn the_steps_image_wins_and_the_other_ones_credentials_stay_home() {
    let steps = steps(
        "
plan:
  - task: test
    image: mine:1
    config:
      image_resource: { type: registry-image, source: { repository: theirs, username: robot, password: hunter2 } }
      run: { path: 'true' }
",
    );
    let image = &task(&steps[0]).image;
    assert_eq!(image.reference.as_str(), "mine:1");
    assert!(image.credentials.is_none());
}

#[test]
fn an_image_is_pinned_by_its_digest() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let text = format!(
        "plan: [{{ task: t, config: {{ image_resource: {{ type: registry-image, source: {{ repository: app, tag: v1, digest: '{digest}' }} }}, run: {{ path: sh }} }} }}]"
    );
    assert_eq!(
        task(&steps(&text)[0]).image.reference.as_str(),
        format!("app:v1@{digest}")
    );
}

#[test]
fn anchors_and_merge_keys_work() {
    let steps = steps(
        "
x-task: &task
  image: busybox:stable
  timeout: 1m
  config: &config
    run: &run { path: sh, args: [-c, 'exit 0'] }
    params: { A: one }
plan:
  - <<: *task
    task: first
  - <<: *task
    task: second
    timeout: 2m
    config:
      <<: *config
      run: { <<: *run, dir: sub }
",
    );
    assert_eq!(
        (steps[0].timeout, steps[1].timeout),
        (Some(Duration::from_secs(60)), Some(Duration::from_secs(120)))
    );
    let second = task(&steps[1]);
    assert_eq!(
        (
            second.command.len(),
            second.dir.as_ref().unwrap().as_str(),
            second.env.0["A"].as_str()
        ),
        (3, "sub", "one")
    );
}

#[test]
fn several_jobs_keep_their_order_and_their_own_names() {
    let text = "
jobs:
  - name: unit
    plan: [{ task: test, image: a, config: { outputs: [{ name: o }], run: { path: sh } } }]
  - name: lint
    plan: [{ task: test, image: a, config: { outputs: [{ name: o }], run: { path: sh } } }]
";
    let pipeline = Pipeline::parse("ci.yml", text).unwrap();
    assert_eq!(
        pipeline.jobs.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(),
        ["unit", "lint"]
    );
}

#[test]
fn a_bare_plans_job_is_called_after_its_file() {
    let text = "plan: [{ task: t, image: a, config: { run: { path: sh } } }]";
    for (file, job) in [
        ("ci/release v1.yml", "release-v1"),
        ("-", "main"),
        ("ci.test.yaml", "ci-test"),
    ] {
        assert_eq!(Pipeline::parse(file, text).unwrap().jobs[0].name.as_str(), job);
    }
}

#[test]
fn a_shells_arithmetic_is_no_variable() {
    let text = "plan: [{ task: t, image: a, config: { run: { path: sh, args: [-c, 'echo $((i)) $((1 + 2))'] } } }]";
    assert_eq!(task(&steps(text)[0]).command[2], "echo $((i)) $((1 + 2))");
}

#[test]
fn a_thousand_steps_that_merge_one_anchor_are_read_in_no_time() {
    let mut text =
        "x-t: &t { image: busybox, config: { run: { path: sh, args: [-c, 'exit 0'] } } }\nplan:\n".to_owned();
    for step in 0..1000 {
        text += &format!("  - {{ <<: *t, task: step-{step} }}\n");
    }
    let began = std::time::Instant::now();
    assert_eq!(steps(&text).len(), 1000);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn every_example_is_valid() {
    // What the examples refer to.
    let values = [
        ("DEPLOY_TOKEN", "hunter2-token"),
        ("REGISTRY_USER", "hunter2-user"),
        ("REGISTRY_PASSWORD", "hunter2-password"),
        ("git", r#"{"user": "ci", "password": "hunter2-git"}"#),
    ];
    let store = values.into_iter().fold(MemoryStore::new(), |store, (key, value)| {
        store.with(Scope::Global, SecretKey::new(key).unwrap(), value.into())
    });
    let mut values = Values::default();
    values.secrets = Some(Secrets::new([Scope::Global]).store("example", store));
    values.variables.set("region", "eu");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "yml") {
            Pipeline::read_with(&file, &values)
                .await
                .unwrap_or_else(|invalid| panic!("{invalid:?}"));
            names.push(file.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    assert!(names.len() >= 3, "{names:?}");
}

#[test]
fn every_option_of_a_build_reaches_the_plan() {
    let steps = steps(
        "plan:
- task: t
  config: { image: alpine, outputs: [{ name: source }], run: { path: 'true' } }
- build_image:
    context: source
    tag: app:1
    push: true
    tags: [app:2, registry.test/app]
    labels: { a.b: 'x=y', n: 1 }
    annotations: { a: b }
    extra_hosts: ['db:10.0.0.7']
    ulimits: [nofile=1024, 'nproc=5:6']
    shm_size: 1GB
    no_cache: true
    no_cache_filter: [deps]
    build_contexts: { base: 'docker-image://alpine:3', docs: source/docs, code: 'https://example.test/code.git' }
    dockerfile_inline: |
      FROM base
    frontend: docker/dockerfile:1
    source_date_epoch: 1700000000
    provenance: max
    caches: [{ path: layers }]
    outputs: [{ name: archive, type: docker }, { name: files, path: out, type: local }]
    cache_from: [app:cache, 'type=local,src=layers/of']
    cache_to: [type=inline, 'type=local,dest=layers/of,mode=max']
    mirrors: { docker.io: [mirror.test, 'other.test:5000/hub'] }
    buildkitd_config: |
      debug = true
    registry:
    - { username: a, password: b }
    - { hostname: base.test, insecure: true }
",
    );
    let options = &build(&steps[1]).options;
    assert_eq!(
        options.tags.iter().map(ImageRef::as_str).collect::<Vec<_>>(),
        ["app:2", "registry.test/app"]
    );
    assert_eq!(
        (options.labels["a.b"].as_str(), options.labels["n"].as_str()),
        ("x=y", "1")
    );
    assert_eq!(options.annotations["a"], "b");
    assert_eq!(options.extra_hosts[0].address.to_string(), "10.0.0.7");
    let ulimits: Vec<_> = options.ulimits.iter().map(|limit| (limit.soft, limit.hard)).collect();
    assert_eq!(ulimits, [(1024, 1024), (5, 6)]);
    assert_eq!((options.shm_size, options.no_cache), (Some(1 << 30), true));
    assert_eq!(options.no_cache_filter, ["deps"]);
    let contexts: Vec<_> = options.build_contexts.values().map(ToString::to_string).collect();
    assert_eq!(
        contexts,
        [
            "docker-image://docker.io/library/alpine:3",
            "https://example.test/code.git",
            "source/docs"
        ]
    );
    assert_eq!(options.dockerfile_inline.as_deref(), Some("FROM base\n"));
    assert_eq!(options.frontend.as_ref().unwrap().as_str(), "docker/dockerfile:1");
    assert_eq!(options.source_date_epoch, Some(1_700_000_000));
    assert_eq!(options.provenance.unwrap().to_string(), "max");
    assert_eq!((options.cache_from.len(), options.cache_to.len()), (2, 2));
    assert_eq!(
        options.cache_to[1],
        "type=local,dest=layers/of,mode=max".parse().unwrap()
    );
    assert_eq!(options.mirrors["docker.io"], ["mirror.test", "other.test:5000/hub"]);
    assert_eq!(options.buildkitd_config.as_deref(), Some("debug = true\n"));
    let plan = build(&steps[1]);
    let outputs = plan
        .outputs
        .iter()
        .map(|(artifact, format)| format!("{} {} {format}", artifact.name, artifact.path));
    assert_eq!(
        outputs.collect::<Vec<_>>(),
        ["archive archive docker", "files out local"]
    );
    assert!(plan.registry.as_ref().unwrap().credentials.is_some());
    assert_eq!(plan.registries[0].hostname.as_deref(), Some("base.test"));
    assert!(plan.registries[0].insecure);
}

#[test]
fn every_further_key_of_a_build_reaches_the_plan() {
    let steps = steps(
        "
plan:
  - task: checkout
    image: busybox
    config: { outputs: [{ name: source }, { name: packed }], run: { path: 'true' } }
  - build_image:
      context: source
      tag: r.test/app:1
      push: true
      load: true
      builder: shared
      inputs: [{ name: source }, { name: packed }]
      build_args_file: source/args
      secrets: { npmrc: hunter2, token: { file: source/token } }
      labels_file: source/labels
      image_args: { BASE: packed/image.tar }
      build_contexts: { more: oci-layout://packed/layout }
      ssh: { default: '-----BEGIN PRIVATE KEY-----' }
      run_network: none
      additional_targets: [{ target: test, name: report, type: local }]
      outputs: [{ name: rootfs, type: rootfs }]
      cache_from: ['type=s3,bucket=b,region=r']
      cache_to: ['type=s3,bucket=b,region=r,mode=max']
      cache_credentials: { access_key_id: id, secret_access_key: hunter2 }
      caches: [{ path: /var/lib/buildkit, size_limit: 1GB }]
      registry:
        ca: '-----BEGIN CERTIFICATE-----'
        client_cert: '-----BEGIN CERTIFICATE-----'
        client_key: '-----BEGIN PRIVATE KEY-----'
  - task: look
    image: busybox
    config: { inputs: [{ name: report }, { name: rootfs }], run: { path: 'true' } }
  - build_image: { context: 'https://git.test/app.git#main:docker', tag: r.test/other:1, push: true, sbom: true }
",
    );
    let plan = build(&steps[1]);
    assert_eq!((plan.load, plan.shared), (Some(true), true));
    let options = &plan.options;
    assert_eq!(options.build_args_files[0].as_str(), "source/args");
    assert_eq!(options.labels_files[0].as_str(), "source/labels");
    assert_eq!(options.secret_files["token"].as_str(), "source/token");
    assert_eq!(plan.secrets.keys().collect::<Vec<_>>(), ["npmrc"]);
    assert_eq!(options.image_args["BASE"].as_str(), "packed/image.tar");
    assert_eq!(options.build_contexts["more"].to_string(), "oci-layout://packed/layout");
    assert_eq!(options.run_network, orchestra::NetworkMode::None);
    assert!(plan.ssh.contains_key("default") && plan.cache_credentials.is_some());
    let (target, artifact, format) = &plan.additional_targets[0];
    assert_eq!(
        (target.as_str(), artifact.name.as_str(), format.to_string().as_str()),
        ("test", "report", "local")
    );
    assert_eq!(plan.outputs[0].1.to_string(), "rootfs");
    let registry = plan.registry.as_ref().unwrap();
    assert!(registry.ca.is_some() && registry.client.is_some());
    let fetched = build(&steps[3]);
    assert_eq!(
        fetched.options.context_url.as_deref(),
        Some("https://git.test/app.git#main:docker")
    );
    assert!(fetched.inputs.is_empty() && fetched.options.sbom.is_some());
}

#[test]
fn values_of_any_kind_are_texts_of_a_tasks_environment() {
    let text = "
plan:
- task: t
  image: busybox
  params: { LIST: [1, two, null], MAP: { deep: [true] }, PLAIN: 1.20 }
  config: { run: { path: env } }
";
    let steps = steps(text);
    let Action::Task(task) = &steps[0].action else {
        panic!("{steps:?}")
    };
    assert_eq!(
        env(task),
        [
            ("LIST", r#"[1,"two",null]"#),
            ("MAP", r#"{"deep":[true]}"#),
            ("PLAIN", "1.20")
        ]
    );
}

#[test]
fn what_registry_images_were_called_before_is_one() {
    let text = "
plan:
- task: t
  config: { image_resource: { type: docker-image, source: { repository: golang, tag: '1.26' } }, run: { path: go } }
";
    let steps = steps(text);
    let Action::Task(task) = &steps[0].action else {
        panic!("{steps:?}")
    };
    assert_eq!(task.image.reference.as_str(), "golang:1.26");
}
