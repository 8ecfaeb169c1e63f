//! `orchestra-image-build` on a real engine, with the real BuildKit and real registries.
//!
//! Base images come from nowhere: a Dockerfile begins with `FROM scratch` and copies the busybox of the test image, which a
//! task has put into the context. A registry on loopback is reached from containers by the host's network.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: a failed unwrap is a failed case"
)]

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use libtest_mimic::{Arguments, Failed, Trial};
use orchestra::tar::{END, EntryType, Head, padded};
use orchestra::{
    Credentials, Error, ErrorKind, ExitStatus, Job, JobId, LogChunk, NetworkMode, OutputStream, PullPolicy,
    SharedDriver, Task, VolumeId, sink,
};
use orchestra_e2e::{Fixture, KnownDriver, registry};
use orchestra_image_build::{
    BuildCache, BuildError, BuildEvent, BuildInput, BuildResult, FailedBuild, ImageBuild, RegistryAuth,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

#[path = "image_build/inputs.rs"]
mod inputs;
#[path = "image_build/options.rs"]
mod options;
#[path = "image_build/phases.rs"]
mod phases;
#[path = "image_build/results.rs"]
mod results;

use inputs::{
    a_context_is_fetched_from_its_repository, a_context_is_fetched_from_its_url,
    a_file_of_an_input_is_a_secret_of_the_build, a_key_is_used_by_a_step_and_seen_by_none,
    files_of_the_inputs_give_arguments_and_labels, images_of_the_inputs_need_no_registry,
    run_steps_have_the_network_that_was_asked_for, the_builder_has_its_environment_and_steps_do_not,
    what_a_step_prints_of_its_secret_is_not_shown_by_any_buildkit,
};
use phases::{
    a_build_that_is_ended_in_any_phase_leaves_nothing_and_its_cache_is_usable,
    a_build_whose_shared_builder_dies_builds_again_with_one_of_its_own,
    a_daemon_that_does_not_start_is_told_with_its_log,
};
use results::{
    a_cache_is_pruned_to_its_limit, a_failing_step_is_shown_with_its_lines_its_output_and_its_code,
    a_list_of_what_is_in_the_image_is_pushed_with_it, a_registry_of_ones_own_authority_wants_a_certificate,
    a_root_file_system_is_unpacked_with_its_metadata,
    a_step_for_a_platform_that_can_not_run_here_is_refused_before_the_build,
    builds_of_a_job_share_a_builder_and_do_without_one_that_died, further_stages_have_outputs_of_their_own,
    layers_are_shared_by_a_bucket, two_hundred_hostile_values_arrive_as_they_are,
    what_the_checks_of_the_dockerfile_find_is_listed, what_was_pushed_is_what_another_program_reads,
};

use options::{
    a_base_image_comes_from_a_mirror, a_base_image_is_fetched_with_the_credentials_of_its_registry,
    a_cache_is_left_aside_for_all_steps_or_those_of_a_stage, a_date_makes_the_same_context_the_same_image,
    a_frontend_is_an_image_that_reads_the_dockerfile, a_frontend_that_can_not_be_fetched_is_named,
    a_named_context_is_a_directory_of_the_inputs_and_nothing_else, a_named_context_is_an_image_of_a_registry,
    a_provenance_attestation_is_pushed_with_the_image, labels_annotations_and_further_tags_are_served,
    layers_are_shared_by_a_directory_of_a_cache, layers_are_shared_by_a_registry,
    layers_are_shared_by_the_image_itself, steps_run_with_the_hosts_limits_and_memory_that_were_asked_for,
    what_the_dockerignore_names_is_not_in_the_image, what_was_built_is_in_volumes_for_the_next_tasks,
};

const DOCKERFILE: &str = r#"
FROM scratch AS base
COPY busybox /bin/busybox
ARG GREETING=nobody
RUN ["/bin/busybox", "sh", "-c", "echo building for $GREETING; /bin/busybox printf %s \"$GREETING\" >/greeting"]
ENTRYPOINT ["/bin/busybox", "cat", "/greeting"]
FROM base AS other
RUN ["/bin/busybox", "false"]
"#;

const SLOW: &str = r#"
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "echo asleep; /bin/busybox sleep 600"]
"#;

fn main() {
    let arguments = Arguments::from_args();
    let fixture = match Fixture::from_env() {
        Ok(Some(fixture)) => fixture,
        Ok(None) => {
            println!("skipped: needs an engine, see `cargo xtask e2e`");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {
            [(Mode::Privileged, ""), (Mode::Rootless, "rootless_")].into_iter().flat_map(|(mode, prefix)| {
                [$(trial(&fixture, mode, &format!("{prefix}{}", stringify!($case)), |site| async move { $case(&site).await })),*]
            })
        };
    }
    // By a builder that has all privileges, and by one that may do nothing which a user may not.
    let cases = cases![
        a_pushed_image_has_the_digest_that_the_registry_serves,
        an_image_that_is_not_pushed_runs_by_its_tag,
        a_tag_that_was_pushed_again_is_not_run_as_it_was,
        a_private_registry_takes_the_image_with_the_right_password_only,
        a_registry_that_is_down_is_told_in_the_words_of_buildkit,
        plain_http_off_loopback_needs_insecure,
        a_step_that_fails_is_named_with_its_output,
        a_stage_that_does_not_exist_is_told,
        the_dockerfile_is_found_relative_to_the_context_and_to_the_working_directory,
        what_is_missing_is_named,
        a_context_that_comes_as_a_tar_needs_no_volume,
        a_context_that_breaks_off_is_told_and_leaves_nothing,
        a_link_out_of_the_inputs_is_refused,
        build_arguments_arrive_as_they_are,
        a_cache_volume_keeps_the_layers_of_the_last_build,
        output_and_events_tell_the_same,
        a_buildctl_without_rawjson_is_read_as_plain_text,
        a_build_that_takes_too_long_is_ended_and_leaves_nothing,
        a_build_whose_future_is_dropped_ends_at_once_and_leaves_nothing,
        a_cancelled_job_ends_its_build_before_the_grace_period_is_over,
        a_build_that_another_process_finished_is_not_run_again,
        a_second_attempt_is_told_as_one,
        the_password_is_nowhere,
        an_image_that_is_no_buildkit_is_told,
        labels_annotations_and_further_tags_are_served,
        steps_run_with_the_hosts_limits_and_memory_that_were_asked_for,
        a_named_context_is_a_directory_of_the_inputs_and_nothing_else,
        a_date_makes_the_same_context_the_same_image,
        a_cache_is_left_aside_for_all_steps_or_those_of_a_stage,
        a_provenance_attestation_is_pushed_with_the_image,
        a_frontend_that_can_not_be_fetched_is_named,
        layers_are_shared_by_a_registry,
        layers_are_shared_by_a_directory_of_a_cache,
        layers_are_shared_by_the_image_itself,
        a_base_image_comes_from_a_mirror,
        what_was_built_is_in_volumes_for_the_next_tasks,
        what_the_dockerignore_names_is_not_in_the_image,
        a_context_is_fetched_from_its_url,
        the_builder_has_its_environment_and_steps_do_not,
        files_of_the_inputs_give_arguments_and_labels,
        a_file_of_an_input_is_a_secret_of_the_build,
        images_of_the_inputs_need_no_registry,
        a_key_is_used_by_a_step_and_seen_by_none,
        what_a_step_prints_of_its_secret_is_not_shown_by_any_buildkit,
        run_steps_have_the_network_that_was_asked_for,
        a_failing_step_is_shown_with_its_lines_its_output_and_its_code,
        what_the_checks_of_the_dockerfile_find_is_listed,
        two_hundred_hostile_values_arrive_as_they_are,
        what_was_pushed_is_what_another_program_reads,
        a_step_for_a_platform_that_can_not_run_here_is_refused_before_the_build,
        a_list_of_what_is_in_the_image_is_pushed_with_it,
        layers_are_shared_by_a_bucket,
        a_registry_of_ones_own_authority_wants_a_certificate,
        builds_of_a_job_share_a_builder_and_do_without_one_that_died,
        further_stages_have_outputs_of_their_own,
        a_root_file_system_is_unpacked_with_its_metadata,
        a_cache_is_pruned_to_its_limit,
        a_base_image_is_fetched_with_the_credentials_of_its_registry,
        a_named_context_is_an_image_of_a_registry,
        a_frontend_is_an_image_that_reads_the_dockerfile,
        a_context_is_fetched_from_its_repository,
        a_build_that_is_ended_in_any_phase_leaves_nothing_and_its_cache_is_usable,
        a_daemon_that_does_not_start_is_told_with_its_log,
        a_build_whose_shared_builder_dies_builds_again_with_one_of_its_own,
        a_builder_has_the_privileges_of_its_mode,
    ];
    libtest_mimic::run(&arguments, cases.collect()).exit();
}

/// How a case's builders run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Privileged,
    Rootless,
}

fn trial<F>(fixture: &Fixture, mode: Mode, name: &str, case: impl FnOnce(Site) -> F + Send + 'static) -> Trial
where
    F: Future<Output = Outcome>,
{
    let fixture = fixture.clone();
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let site = Site::new(fixture, mode).await?;
            let (job, engine) = (site.job.clone(), site.fixture.engine.clone());
            let outcome = case(site).await;
            job.end().await?;
            outcome?;
            let left = engine.leftovers_of(job.id().as_str())?;
            assert_eq!(left.0.len(), 0, "left behind: {left:?}");
            Ok(())
        })
    })
}

type Outcome = Result<(), Failed>;

/// What a case works with.
struct Site {
    fixture: Fixture,
    driver: SharedDriver,
    job: Job,
    mode: Mode,
}

impl Site {
    async fn new(fixture: Fixture, mode: Mode) -> Result<Self, Failed> {
        let known = KnownDriver::chosen().ok_or("ORCHESTRA_TEST_DRIVER names no driver that is known here")?;
        let driver = known.connect(None).await?;
        let job = Job::builder(driver.clone()).build();
        Ok(Self {
            fixture,
            driver,
            job,
            mode,
        })
    }

    /// A volume with busybox and a Dockerfile, and whatever else `script` makes.
    async fn source_with(&self, dockerfile: &str, script: &str) -> Result<VolumeId, Failed> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("source-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let volume = self.job.create_volume(&name).await?;
        let script =
            format!("cp /bin/busybox source && printf %s \"$DOCKERFILE\" >source/Dockerfile && cd source && {script}");
        let task = Task::new(&name, &self.fixture.image)?
            .shell(script)
            .env("DOCKERFILE", dockerfile);
        self.job.run(task.mount(&volume, "source")?).await?.success()?;
        Ok(volume)
    }

    async fn source(&self, dockerfile: &str) -> Result<VolumeId, Failed> {
        self.source_with(dockerfile, "true").await
    }

    /// A volume with a `buildctl` that knows no `rawjson`, as before 0.13, for a place that comes first on the path.
    async fn old_buildctl(&self) -> Result<BuildInput, Failed> {
        let old = r#"#!/bin/sh
case $* in
*--help*) echo 'Set type of progress (auto, plain, tty)' ;;
*rawjson*) echo 'invalid progress mode rawjson' >&2; exit 1 ;;
*) exec /usr/bin/buildctl "$@" ;;
esac
"#;
        let script = "cp Dockerfile buildctl && chmod 755 buildctl && rm busybox";
        Ok(BuildInput {
            volume: self.source_with(old, script).await?,
            path: "/usr/local/bin".parse().unwrap(),
        })
    }

    /// A build of `source` that is reached by tags of `registry`.
    fn build(&self, name: &str, registry: &str, source: &VolumeId) -> ImageBuild {
        let tag = format!("{registry}/{}/{name}:1", self.job.id());
        let mut build = ImageBuild::new(name.parse().unwrap(), tag.parse().unwrap(), "source".parse().unwrap());
        build.inputs.push(BuildInput {
            volume: source.clone(),
            path: "source".parse().unwrap(),
        });
        build.image = match self.mode {
            Mode::Privileged => self.fixture.buildkit_image.parse().unwrap(),
            Mode::Rootless => {
                build = build.rootless();
                self.fixture.buildkit_rootless_image.parse().unwrap()
            }
        };
        build.network = NetworkMode::Host;
        build.target = Some("base".into());
        build
    }

    /// A build of one step that is pushed nowhere.
    fn local(&self, name: &str, source: &VolumeId) -> ImageBuild {
        let mut build = self.build(name, "localhost", source);
        build.target = None;
        build
    }

    async fn run_image(&self, name: &str, image: &str) -> Result<String, Failed> {
        let result = self.job.run(Task::new(name, image)?).await?.success()?;
        Ok(result.stdout.to_string())
    }

    fn served(&self, address: &str, build: &str, credentials: bool) -> Result<String, Failed> {
        let credentials = credentials.then_some(&self.fixture.credentials);
        Ok(registry::digest(
            address,
            &format!("{}/{build}", self.job.id()),
            "1",
            credentials,
        )?)
    }

    /// Names of our things in the engine that are not a volume of a source.
    fn left(&self) -> Vec<String> {
        let left = self.fixture.engine.leftovers_of(self.job.id().as_str()).unwrap();
        left.0
            .into_iter()
            .filter(|thing| !thing.contains(".v.source-"))
            .collect()
    }

    async fn forget(&self, result: &BuildResult) -> Outcome {
        Ok(self.driver.remove_image(&result.reference).await?)
    }
}

fn failed(result: Result<BuildResult, BuildError>) -> FailedBuild {
    match result {
        Err(BuildError::Failed(failed)) => *failed,
        other => panic!("no failed build: {other:?}"),
    }
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    parts
        .iter()
        .for_each(|part| assert!(text.contains(part), "{part:?} is not in:\n{text}"));
}

async fn a_pushed_image_has_the_digest_that_the_registry_serves(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let mut build = site.build("pushed", &site.fixture.registry, &source);
    build.push = true;
    build.build_args.insert("GREETING".into(), "the world".into());
    build.platforms = vec![site.driver.info().platform.clone()];
    let tag = build.tag.clone();
    let result = build.run(&site.job).await?;
    assert_eq!((&result.reference, result.code), (&tag, 0));
    assert_eq!(result.digest, site.served(&site.fixture.registry, "pushed", false)?);
    contains(
        &result.stderr.to_string(),
        &["building for the world", "DONE", "pushing manifest"],
    );
    assert_eq!(site.run_image("smoke-test", tag.as_str()).await?, "the world");
    assert!(site.left().is_empty(), "{:?}", site.left());
    let json = serde_json::to_value(&result)?;
    assert_eq!(
        (&json["ref"], &json["digest"], &json["code"]),
        (&tag.as_str().into(), &result.digest.into(), &0.into())
    );
    Ok(site.driver.remove_image(&tag).await?)
}

async fn an_image_that_is_not_pushed_runs_by_its_tag(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let mut build = site.build("loaded", "localhost", &source);
    build.network = NetworkMode::Default;
    build.build_args.insert("GREETING".into(), "loaded".into());
    let result = build.run(&site.job).await?;
    assert!(
        result.digest.starts_with("sha256:") && result.digest.len() == 71,
        "{}",
        result.digest
    );
    let task = Task::new("smoke-test", result.reference.as_str())?.pull(PullPolicy::Never);
    assert_eq!(site.job.run(task).await?.success()?.stdout.to_string(), "loaded");
    assert!(site.left().is_empty(), "{:?}", site.left());
    site.forget(&result).await
}

async fn a_tag_that_was_pushed_again_is_not_run_as_it_was(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    for (count, greeting) in ["first", "second"].into_iter().enumerate() {
        let mut build = site.build("again", &site.fixture.registry, &source);
        build.push = true;
        build.build_args.insert("GREETING".into(), greeting.into());
        let result = build.run(&site.job).await?;
        assert!(result.warnings.is_empty(), "{:?}", result.warnings);
        assert_eq!(
            site.run_image(&format!("run-{count}"), result.reference.as_str())
                .await?,
            greeting
        );
    }
    let image = format!("{}/{}/again:1", site.fixture.registry, site.job.id());
    Ok(site.driver.remove_image(&image.parse()?).await?)
}

async fn a_private_registry_takes_the_image_with_the_right_password_only(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let (right, user) = (
        site.fixture.credentials.password.as_str(),
        site.fixture.credentials.user.as_str(),
    );
    for (name, password) in [
        ("nobody", None),
        ("wrong", Some("wr0ng-password")),
        ("right", Some(right)),
    ] {
        let mut build = site.build(name, &site.fixture.registry_auth, &source);
        build.push = true;
        build.registry = password.map(|password| RegistryAuth::new(Credentials::new(user, password)));
        let result = build.run(&site.job).await;
        if name == "right" {
            assert_eq!(result?.digest, site.served(&site.fixture.registry_auth, name, true)?);
            continue;
        }
        let error = result.unwrap_err();
        let advice = if password.is_some() {
            "check user name"
        } else {
            "wants credentials"
        };
        contains(
            &format!("{error:?}"),
            &["step: exporting to image", "401 Unauthorized", advice],
        );
        assert!(!format!("{error:?}").contains("wr0ng"), "{error:?}");
        assert_eq!(error.exit(), Some(ExitStatus::Code(1)));
        assert!(site.served(&site.fixture.registry_auth, name, true).is_err());
    }
    Ok(())
}

async fn a_registry_that_is_down_is_told_in_the_words_of_buildkit(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let mut build = site.build("down", "127.0.0.1:9", &source);
    build.push = true;
    let error = build.run(&site.job).await.unwrap_err();
    contains(
        &format!("{error:?}"),
        &["127.0.0.1:9", "connection refused", "check that the registry runs"],
    );
    // In a network of its own, the build container's loopback is not the host's.
    let mut build = site.build("loopback", &site.fixture.registry, &source);
    (build.push, build.network) = (true, NetworkMode::Default);
    let error = build.run(&site.job).await.unwrap_err();
    contains(&format!("{error:?}"), &["connection refused", "network: host"]);
    Ok(())
}

async fn plain_http_off_loopback_needs_insecure(site: &Site) -> Outcome {
    // A forwarder gives the registry on loopback an address that no client takes for loopback: the engine's host as its
    // containers see it.
    // It stays: podman takes the bridge away with the last container that is on it.
    let (told, mut address) = mpsc::channel(1);
    let route = Task::new("route", &site.fixture.image)?
        .shell("ip route | sed -n 's/default via \\([0-9.]*\\) .*/\\1/p'; exec sleep 600")
        .output(sink::from_fn(move |chunk| {
            told.try_send(String::from_utf8_lossy(&chunk.bytes).trim().to_owned())
                .ok();
        }));
    let holder = site.job.start(route);
    let address = tokio::time::timeout(Duration::from_secs(60), address.recv()).await?;
    let address = address.ok_or("it has no route")?;
    let Ok(listener) = TcpListener::bind((address.as_str(), 0)).await else {
        println!("skipped: the engine's host is not this machine, or its containers have no way to it");
        return Ok(());
    };
    let address = listener.local_addr()?.to_string();
    let forwarder = tokio::spawn(forward(listener, site.fixture.registry.clone()));
    let source = site.source(DOCKERFILE).await?;
    let build = |name: &str| {
        let mut build = site.build(name, &address, &source);
        build.push = true;
        build
    };
    let error = build("https").run(&site.job).await.unwrap_err();
    contains(
        &format!("{error:?}"),
        &["server gave HTTP response to HTTPS client", "set registry.insecure"],
    );
    let mut insecure = build("http");
    insecure.registry = Some(RegistryAuth {
        insecure: true,
        ..RegistryAuth::default()
    });
    assert_eq!(
        insecure.run(&site.job).await?.digest,
        site.served(&site.fixture.registry, "http", false)?
    );
    forwarder.abort();
    holder.cancel();
    Ok(())
}

async fn forward(listener: TcpListener, to: String) -> std::io::Result<()> {
    loop {
        let (mut client, _) = listener.accept().await?;
        let mut server = TcpStream::connect(&to).await?;
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
    }
}

async fn a_step_that_fails_is_named_with_its_output(site: &Site) -> Outcome {
    let source = site
        .source(
            "FROM scratch\nCOPY busybox /\nRUN [\"/busybox\", \"sh\", \"-c\", \"echo so far; echo oh no >&2; exit 3\"]",
        )
        .await?;
    let error = site.local("fails", &source).run(&site.job).await.unwrap_err();
    contains(
        &error.to_string(),
        &[
            "image build fails failed: exit code 1",
            "step: [2/2] RUN [\"/busybox\", \"sh\",",
            "exit code: 3",
            "\n  so far\n",
            "\n  oh no\n",
            "Dockerfile:3",
        ],
    );
    let failed = error.failed().unwrap();
    // The order of two streams is not kept by BuildKit.
    assert_eq!((failed.code, failed.log.len()), (1, "so far\noh no\n".len()));
    contains(&failed.stderr.to_string(), &["so far", "ERROR: process"]);
    assert!(site.left().is_empty(), "{:?}", site.left());
    Ok(())
}

async fn a_stage_that_does_not_exist_is_told(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let mut build = site.build("stage", "localhost", &source);
    build.target = Some("nosuch".into());
    let failed = failed(build.run(&site.job).await);
    assert_eq!(
        failed.error.as_deref(),
        Some("target stage \"nosuch\" could not be found")
    );
    Ok(())
}

async fn the_dockerfile_is_found_relative_to_the_context_and_to_the_working_directory(site: &Site) -> Outcome {
    let dockerfile = "FROM scratch\nCOPY which /which\nCOPY busybox /\nENTRYPOINT [\"/busybox\", \"cat\", \"/which\"]";
    let script = "mkdir -p app/docker && cp Dockerfile app/docker/Other && echo app >app/which && cp busybox app && echo top >which";
    let source = site.source_with(dockerfile, script).await?;
    for (name, context, dockerfile, which) in [
        ("default", "source", None, "top\n"),
        ("in-context", "source", Some("Dockerfile"), "top\n"),
        ("in-workdir", "source", Some("source/Dockerfile"), "top\n"),
        ("below-context", "source/app", Some("docker/Other"), "app\n"),
        ("beside-context", "source/app", Some("source/Dockerfile"), "app\n"),
    ] {
        let mut build = site.local(name, &source);
        build.context = context.parse()?;
        build.dockerfile = dockerfile.map(Into::into);
        let result = build.run(&site.job).await?;
        assert_eq!(
            site.run_image(&format!("run-{name}"), result.reference.as_str())
                .await?,
            which,
            "{name}"
        );
        site.forget(&result).await?;
    }
    Ok(())
}

async fn what_is_missing_is_named(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let mut build = site.local("dockerfile", &source);
    build.dockerfile = Some("docker/Nosuch".into());
    let error = build.run(&site.job).await.unwrap_err();
    assert!(matches!(error, BuildError::DockerfileMissing { .. }), "{error:?}");
    contains(&error.to_string(), &["neither source/docker/Nosuch nor docker/Nosuch"]);
    let mut build = site.local("context", &source);
    build.context = "source/nosuch".parse()?;
    let error = build.run(&site.job).await.unwrap_err();
    assert!(matches!(error, BuildError::ContextMissing { .. }), "{error:?}");
    contains(&error.to_string(), &["context source/nosuch"]);
    Ok(())
}

fn dockerfile_in_a_tar() -> Bytes {
    let content = "FROM scratch\nCOPY sub /here\n";
    let sub = Head {
        kind: EntryType::Directory,
        mode: 0o755,
        ..Head::file(0)
    };
    let mut tar = Head::file(content.len() as u64).blocks("Dockerfile");
    tar.push(padded(content.as_bytes()));
    tar.extend(sub.blocks("sub/"));
    tar.concat().into()
}

async fn a_context_that_comes_as_a_tar_needs_no_volume(site: &Site) -> Outcome {
    let mut build = site.local("streamed", &site.job.id().volume(&"none".parse()?));
    build.inputs.clear();
    build.context = "deep/context".parse()?;
    let pieces = [dockerfile_in_a_tar(), END].map(Ok);
    let result = build.context_from(stream::iter(pieces).boxed()).run(&site.job).await?;
    contains(&result.stderr.to_string(), &["COPY sub /here"]);
    site.forget(&result).await
}

async fn a_context_that_breaks_off_is_told_and_leaves_nothing(site: &Site) -> Outcome {
    let streamed = |name: &str, last: orchestra::Result<Bytes>| {
        let mut build = site.local(name, &site.job.id().volume(&"none".parse()?));
        build.inputs.clear();
        let pieces = [Ok(dockerfile_in_a_tar()), last];
        Ok::<_, Failed>(build.context_from(stream::iter(pieces).boxed()))
    };
    let unreadable = Error::new(ErrorKind::Io, "read secret.txt: permission denied");
    let error = streamed("unreadable", Err(unreadable))?
        .run(&site.job)
        .await
        .unwrap_err();
    contains(
        &error.to_string(),
        &["image build unreadable: its context", "read secret.txt"],
    );
    assert!(
        matches!(&error, BuildError::Context { source, .. } if source.kind() == ErrorKind::Io),
        "{error:?}"
    );
    let broken = streamed("broken", Ok(Bytes::from_static(&[7; 512])))?
        .run(&site.job)
        .await;
    contains(
        &failed(broken).to_string(),
        &["tar of the context could not be unpacked"],
    );
    let left = site.left();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

async fn a_link_out_of_the_inputs_is_refused(site: &Site) -> Outcome {
    let source = site
        .source_with(DOCKERFILE, "ln -s /root app && ln -s /bin docker && ln -s . here")
        .await?;
    for (name, context, dockerfile) in [
        ("context", "source/app", "source/Dockerfile"),
        ("dockerfile", "source", "docker/sh"),
    ] {
        let mut build = site.local(name, &source);
        build.context = context.parse()?;
        build.dockerfile = Some(dockerfile.into());
        let error = build.run(&site.job).await.unwrap_err();
        assert!(matches!(error, BuildError::Outside { .. }), "{error:?}");
    }
    let mut build = site.build("inside", "localhost", &source);
    build.context = "source/here".parse()?;
    let result = build.run(&site.job).await?;
    site.forget(&result).await
}

async fn build_arguments_arrive_as_they_are(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    for (count, value) in ["a,b=c", " both ends ", "quo\"te'd `x` $HOME", "", "--output=x", "ä\tb"]
        .into_iter()
        .enumerate()
    {
        let mut build = site.build(&format!("arg-{count}"), "localhost", &source);
        build.build_args.insert("GREETING".into(), value.into());
        let result = build.run(&site.job).await?;
        assert_eq!(
            site.run_image(&format!("run-{count}"), result.reference.as_str())
                .await?,
            value
        );
        site.forget(&result).await?;
    }
    Ok(())
}

async fn a_cache_volume_keeps_the_layers_of_the_last_build(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let cache = site.job.create_volume("source-cache").await?;
    let mut digests = Vec::new();
    for name in ["cold", "warm"] {
        let mut build = site.build(name, &site.fixture.registry, &source);
        build.push = true;
        build.caches.push(BuildCache {
            volume: cache.clone(),
            path: "/var/lib/buildkit".parse()?,
        });
        let result = build.run(&site.job).await?;
        let cached = result.stderr.to_string().matches(" CACHED\n").count();
        assert_eq!(cached, if name == "warm" { 2 } else { 0 }, "{}", result.stderr);
        digests.push(result.digest);
    }
    assert_eq!(digests[0], digests[1]);
    Ok(())
}

async fn output_and_events_tell_the_same(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let (output, mut chunks) = mpsc::channel::<LogChunk>(4096);
    let (sender, mut receiver) = mpsc::channel(4096);
    let result = site
        .build("told", "localhost", &source)
        .output(output)
        .events(sender)
        .run(&site.job)
        .await?;
    let (mut text, mut events) = (Vec::new(), Vec::new());
    while let Some(chunk) = chunks.recv().await {
        assert_eq!(chunk.stream, OutputStream::Stderr);
        text.extend_from_slice(&chunk.bytes);
    }
    while let Some(event) = receiver.recv().await {
        events.push(event);
    }
    assert_eq!(String::from_utf8_lossy(&text), result.stderr.to_string());
    assert!(!result.stderr.to_string().contains("{\""), "{}", result.stderr);
    let started = events
        .iter()
        .filter(|event| matches!(event, BuildEvent::Started { .. }))
        .count();
    assert_eq!(started, result.stderr.to_string().split("\n\n").count());
    let run = |event: &&BuildEvent| matches!(event, BuildEvent::Completed { name, cached: false, .. } if name.contains("RUN"));
    assert!(events.iter().any(|event| run(&event)), "{events:?}");
    let log: Vec<u8> = events
        .iter()
        .filter_map(|event| {
            if let BuildEvent::Log { data, .. } = event {
                Some(data.to_vec())
            } else {
                None
            }
        })
        .flatten()
        .collect();
    assert_eq!(String::from_utf8_lossy(&log), "building for nobody\n");
    site.forget(&result).await
}

async fn a_buildctl_without_rawjson_is_read_as_plain_text(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let programs = site.old_buildctl().await?;
    let build = |name: &str, target: &str| {
        let mut build = site.build(name, "localhost", &source);
        build.inputs.push(programs.clone());
        build.target = Some(target.into());
        build
    };
    let result = build("plain", "base").run(&site.job).await?;
    contains(
        &result.stderr.to_string(),
        &["RUN [\"/bin/busybox\"", "building for nobody", "DONE"],
    );
    site.forget(&result).await?;
    let error = build("plain-fails", "other").run(&site.job).await.unwrap_err();
    assert_eq!(
        error.failed().unwrap().step.as_deref(),
        Some("[other 1/1] RUN [\"/bin/busybox\", \"false\"]"),
        "{error:?}"
    );
    Ok(())
}

/// A build that sleeps, with what tells that it does.
fn slow(site: &Site, source: &VolumeId) -> (ImageBuild, mpsc::Receiver<()>) {
    until_asleep(site.local("slow", source))
}

/// The build, with what tells that a step of it sleeps.
fn until_asleep(build: ImageBuild) -> (ImageBuild, mpsc::Receiver<()>) {
    let (asleep, awake) = mpsc::channel(1);
    let output = sink::from_fn(move |chunk| {
        if String::from_utf8_lossy(&chunk.bytes).contains(" asleep\n") {
            asleep.try_send(()).ok();
        }
    });
    (build.output(output), awake)
}

/// The build under way, when a step of it sleeps.
async fn asleep(job: &Job, build: ImageBuild) -> Result<JoinHandle<Result<BuildResult, BuildError>>, Failed> {
    let (build, mut asleep) = until_asleep(build);
    let job = job.clone();
    let running = tokio::spawn(async move { build.run(&job).await });
    let came = tokio::time::timeout(Duration::from_secs(120), asleep.recv()).await?;
    came.ok_or("the build never slept")?;
    Ok(running)
}

async fn a_build_that_takes_too_long_is_ended_and_leaves_nothing(site: &Site) -> Outcome {
    let source = site.source(SLOW).await?;
    let (mut build, _asleep) = slow(site, &source);
    build.timeout = Some(Duration::from_secs(5));
    let error = build.run(&site.job).await.unwrap_err();
    contains(
        &error.to_string(),
        &["image build slow took longer than 5s", "step: [2/2] RUN", "\n  asleep"],
    );
    assert_eq!(
        (error.exit(), error.failed().unwrap().code),
        (Some(ExitStatus::TimedOut), 124)
    );
    assert!(site.left().is_empty(), "{:?}", site.left());
    Ok(())
}

async fn a_build_whose_future_is_dropped_ends_at_once_and_leaves_nothing(site: &Site) -> Outcome {
    let source = site.source(SLOW).await?;
    let (build, mut asleep) = slow(site, &source);
    tokio::select! {
        result = build.run(&site.job) => panic!("it ended: {result:?}"),
        _ = asleep.recv() => {}
    }
    let began = Instant::now();
    while !site.left().is_empty() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "left behind: {:?}",
            site.left()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn a_cancelled_job_ends_its_build_before_the_grace_period_is_over(site: &Site) -> Outcome {
    let source = site.source(SLOW).await?;
    let grace = Duration::from_secs(60);
    let job = Job::builder(site.driver.clone())
        .id(JobId::unique())
        .grace(grace)
        .build();
    let running = asleep(&job, site.local("slow", &source)).await?;
    let began = Instant::now();
    job.cancel();
    let failed = failed(running.await?);
    assert_eq!(
        (failed.exit, failed.step.is_some()),
        (ExitStatus::Cancelled, true),
        "{failed:?}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "it took {:?}",
        began.elapsed()
    );
    contains(&failed.to_string(), &["image build slow was cancelled"]);
    let left = site.fixture.engine.leftovers_of(job.id().as_str())?;
    assert!(left.0.is_empty(), "{left:?}");
    job.end().await?;
    Ok(())
}

async fn a_build_that_another_process_finished_is_not_run_again(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nCOPY busybox /\nRUN [\"/busybox\", \"sh\", \"-c\", \"/busybox date +%N >/when\"]")
        .await?;
    let id = JobId::unique();
    let mut digests = Vec::new();
    for turn in 0..2 {
        let job = Job::builder(site.driver.clone()).id(id.clone()).resumable(true).build();
        let result = site.local("resumed", &source).run(&job).await?;
        contains(&result.stderr.to_string(), &["RUN [\"/busybox\"", "DONE"]);
        digests.push(result.digest.clone());
        match turn {
            0 => job.keep(),
            _ => {
                site.forget(&result).await?;
                job.end().await?;
            }
        }
    }
    assert_eq!(digests[0], digests[1], "it was built again");
    let left = site.fixture.engine.leftovers_of(id.as_str())?;
    assert!(left.0.is_empty(), "{left:?}");
    Ok(())
}

async fn a_second_attempt_is_told_as_one(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nCOPY busybox /\nRUN [\"/busybox\", \"false\"]")
        .await?;
    let mut build = site.local("attempts", &source);
    build.attempts = 2;
    let failed = failed(build.run(&site.job).await);
    assert_eq!(
        failed.stderr.to_string().matches("ERROR: ").count(),
        1,
        "{}",
        failed.stderr
    );
    assert!(site.left().is_empty(), "{:?}", site.left());
    Ok(())
}

/// All processes of a container: its first one and what descends from that. The engine's own list of them needs a `ps` beside
/// the engine, which not every host has.
fn processes(first: u64) -> Vec<u64> {
    let parent = |process: u64| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))?
            .trim()
            .parse()
            .ok()
    };
    let descends = |process: &u64| {
        std::iter::successors(Some(*process), |process| parent(*process)).any(|ancestor| ancestor == first)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.filter(descends).collect()
}

/// Their arguments and environments.
fn processes_of(first: u64) -> String {
    let read = |process: u64| {
        ["cmdline", "environ"]
            .map(|file| std::fs::read(format!("/proc/{process}/{file}")).unwrap_or_default())
            .concat()
    };
    let told: Vec<Vec<u8>> = processes(first).into_iter().map(read).collect();
    String::from_utf8_lossy(&told.concat()).into_owned()
}

/// Those that run this program.
fn processes_named(first: u64, program: &str) -> Vec<u64> {
    let runs = |process: &u64| {
        let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
        name.is_ok_and(|name| name.trim() == program)
    };
    processes(first).into_iter().filter(runs).collect()
}

async fn the_password_is_nowhere(site: &Site) -> Outcome {
    // It reads its own environment and arguments, and so does the engine while it sleeps.
    let dockerfile = "FROM scratch\nCOPY busybox /\nRUN [\"/busybox\", \"sh\", \"-c\", \"/busybox env; /busybox cat /proc/1/cmdline; echo; echo asleep; /busybox sleep 600\"]";
    let source = site.source(dockerfile).await?;
    let credentials = &site.fixture.credentials;
    let mut build = site.local("slow", &source);
    build.registry = Some(RegistryAuth::new(Credentials::new(
        credentials.user.as_str(),
        credentials.password.as_str(),
    )));
    build.base_registries.push(RegistryAuth {
        hostname: Some(site.fixture.registry_auth.clone()),
        credentials: build.registry.as_ref().unwrap().credentials.clone(),
        ..RegistryAuth::default()
    });
    let mut seen = vec![format!("{build:?}")];
    let running = asleep(&site.job, build).await?;
    let id = format!("orchestra.{}.1.slow", site.job.id());
    let inspected = site.fixture.engine.inspect(&id)?;
    seen.extend(inspected.texts);
    let told = processes_of(inspected.pid);
    // On a user's own engine they may be out of sight.
    if std::env::var("ORCHESTRA_TEST_ENGINE").is_ok_and(|engine| engine != "host") {
        contains(&told, &["buildctl", "BUILDCTL_CONNECT_RETRIES_MAX"]);
    }
    seen.push(told);
    site.job.cancel();
    let error = running.await?.unwrap_err();
    seen.push(format!(
        "{error}\n{error:?}\n{:?}\n{}",
        error.failed(),
        error.failed().unwrap().stderr
    ));
    let encoded = credentials.basic().replace("Basic ", "");
    for text in seen {
        assert!(
            !text.contains(&credentials.password) && !text.contains(encoded.trim_end_matches('=')),
            "{text}"
        );
    }
    Ok(())
}

async fn a_builder_has_the_privileges_of_its_mode(site: &Site) -> Outcome {
    let status = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"cat\", \"/proc/self/uid_map\"]\n";
    let source = site.source(status).await?;
    let result = site.local("privileges", &source).run(&site.job).await?;
    // Root of the step is the builder's user, outside of the namespaces; or as much as root is in any container of the engine.
    let own = Task::new("own", &site.fixture.image)?.command(["cat", "/proc/self/uid_map"]);
    let map = match site.mode {
        Mode::Privileged => site.job.run(own).await?.success()?.stdout.to_string(),
        Mode::Rootless => "         0       1000          1".to_owned(),
    };
    contains(&result.stderr.to_string(), &[map.lines().next().unwrap_or("no map")]);
    site.forget(&result).await
}

async fn an_image_that_is_no_buildkit_is_told(site: &Site) -> Outcome {
    let source = site.source(DOCKERFILE).await?;
    let mut build = site.local("wrong-image", &source);
    build.image = site.fixture.image.parse()?;
    let error = build.run(&site.job).await.unwrap_err();
    contains(
        &format!("{error:?}"),
        &["buildctl-daemonless.sh", "not found", "has to be a BuildKit image"],
    );
    let mut build = site.local("no-image", &source);
    build.image = "localhost/no/such:image".parse()?;
    build.pull = PullPolicy::Never;
    let error = build.run(&site.job).await.unwrap_err();
    assert_eq!(
        error.engine_error().map(orchestra::Error::kind),
        Some(ErrorKind::ImageNotFound),
        "{error:?}"
    );
    assert!(site.left().is_empty(), "{:?}", site.left());
    Ok(())
}
