//! Builds that are ended, or end by themselves, in each of their phases.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{BoxFuture, pending, try_join_all};
use futures_util::{StreamExt, stream};
use orchestra::layer::{Hook, Layered, Method, Operation};
use orchestra::{ExitStatus, Job, PullPolicy, ResourceKind, SharedDriver, Signal, VolumeId};
use orchestra_image_build::{BuildCache, BuildInput, ImageBuild, SharedBuilders};
use tokio::sync::mpsc;

use crate::{Outcome, SLOW, Site, asleep, contains, failed, until_asleep};

/// Where a build comes to a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The builder's image is fetched.
    Pull,
    /// The context is sent.
    Context,
    /// The daemon starts.
    Daemon,
    /// A step runs.
    Step,
    /// The image is pushed.
    Push,
    /// The image is loaded into the engine.
    Load,
}

/// Calls of `method` tell that they came, and never return.
#[derive(Debug)]
struct Stuck {
    method: Method,
    reached: mpsc::Sender<()>,
}

#[async_trait]
impl Hook for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    async fn call<'a, T: Send + 'a>(
        &'a self,
        _driver: &'a SharedDriver,
        operation: &'a Operation,
        call: BoxFuture<'a, orchestra::Result<T>>,
    ) -> orchestra::Result<T> {
        if operation.method == self.method {
            self.reached.try_send(()).ok();
            pending::<()>().await;
        }
        call.await
    }
}

/// A server that takes connections and never answers. It tells when the first one came.
fn silent(reached: mpsc::Sender<()>) -> Result<String, libtest_mimic::Failed> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for client in listener.incoming().flatten() {
            open.push(client);
            if reached.blocking_send(()).is_err() {
                return;
            }
        }
    });
    Ok(address)
}

/// A volume for a place that comes first on the path, with a `buildkitd` that does what `script` says.
async fn daemon(site: &Site, script: &str) -> Result<BuildInput, libtest_mimic::Failed> {
    let script = format!("#!/bin/sh\n{script}\n");
    let volume = site
        .source_with(&script, "cp Dockerfile buildkitd && chmod 755 buildkitd && rm busybox")
        .await?;
    Ok(BuildInput {
        volume,
        path: "/usr/local/bin".parse()?,
    })
}

fn cached(build: &mut ImageBuild, state: &VolumeId) {
    build.caches.push(BuildCache {
        volume: state.clone(),
        path: "/var/lib/buildkit".parse().unwrap(),
    });
}

/// Whichever phase it is to be ended in, a build comes to it within this time.
const TIMEOUT: Duration = Duration::from_secs(20);

const QUICK: &str = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"touch\", \"/made\"]\n";

/// Builds, and ends the build in this phase.
async fn end_in(
    phase: Phase,
    exit: ExitStatus,
    site: &Site,
    [slow, quick]: [&VolumeId; 2],
    state: Option<&VolumeId>,
) -> Outcome {
    let (reached, mut came) = mpsc::channel(64);
    let mut driver = site.driver.clone();
    let stuck = |method, reached| Layered::wrap(site.driver.clone(), Stuck { method, reached });
    let mut build = site.local("ended", quick);
    match phase {
        Phase::Pull => {
            build.pull = PullPolicy::Always;
            driver = stuck(Method::PullImage, reached);
        }
        Phase::Context => {
            build.inputs.clear();
            let first = stream::once(async { Ok(Bytes::from_static(&[0; 512])) });
            let never = stream::once(async move {
                reached.try_send(()).ok();
                pending().await
            });
            build = build.context_from(first.chain(never).boxed());
        }
        Phase::Daemon => {
            let address = silent(reached)?;
            let (host, port) = address.rsplit_once(':').ok_or("no port")?;
            // It is asked to end before it can hear that.
            let buildkitd = "/usr/bin/buildkitd --addr=unix:///tmp/elsewhere.sock";
            let script = format!("nc {host} {port} & sleep 2; exec {buildkitd}");
            build.inputs.push(daemon(site, &script).await?);
        }
        Phase::Step => {
            build.inputs[0].volume = slow.clone();
            (build, came) = until_asleep(build);
        }
        Phase::Push => {
            build.tag = format!("{}/never:1", silent(reached)?).parse()?;
            build.push = true;
        }
        Phase::Load => driver = stuck(Method::ImportImage, reached),
    }
    if let Some(state) = state {
        cached(&mut build, state);
    }
    if exit == ExitStatus::TimedOut {
        build.timeout = Some(TIMEOUT);
    }
    let job = Job::builder(driver).grace(Duration::from_secs(60)).build();
    let running = tokio::spawn({
        let job = job.clone();
        async move { build.run(&job).await }
    });
    let what = format!("{phase:?}, {exit}");
    let came = tokio::time::timeout(Duration::from_secs(60), came.recv()).await;
    came.map_err(|_| format!("{what}: it was never reached"))?
        .ok_or_else(|| format!("{what}: it ended before"))?;
    let began = Instant::now();
    if exit == ExitStatus::Cancelled {
        job.cancel();
    }
    let error = running.await?.err().ok_or_else(|| format!("{what}: it succeeded"))?;
    let took = began.elapsed();
    assert_eq!(error.exit(), Some(exit), "{what}: {error:?}");
    // Before the grace period is over, and the loading has as long again as the build.
    assert!(took < Duration::from_secs(58), "{what}: it took {took:?}");
    let left = site.fixture.engine.leftovers_of(job.id().as_str())?;
    assert!(left.0.is_empty(), "{what}: {left:?}");
    job.end().await?;
    Ok(())
}

pub(crate) async fn a_build_that_is_ended_in_any_phase_leaves_nothing_and_its_cache_is_usable(site: &Site) -> Outcome {
    let state = site.job.create_volume("source-state").await?;
    let (slow, quick) = (site.source(SLOW).await?, site.source(QUICK).await?);
    let sources = [&slow, &quick];
    let phases = [
        Phase::Pull,
        Phase::Context,
        Phase::Daemon,
        Phase::Step,
        Phase::Push,
        Phase::Load,
    ];
    for phase in phases {
        end_in(phase, ExitStatus::Cancelled, site, sources, Some(&state)).await?;
    }
    // One daemon at a time may use the state.
    let late = phases.map(|phase| {
        let state = Some(&state).filter(|_| phase == Phase::Step);
        end_in(phase, ExitStatus::TimedOut, site, sources, state)
    });
    try_join_all(late).await?;
    for steps in [None, Some(2)] {
        let mut build = site.local("after", &quick);
        cached(&mut build, &state);
        let result = build.run(&site.job).await?;
        assert!(
            steps.is_none_or(|cached| result.steps.cached == cached),
            "{}",
            result.stderr
        );
        site.forget(&result).await?;
    }
    Ok(())
}

pub(crate) async fn a_daemon_that_does_not_start_is_told_with_its_log(site: &Site) -> Outcome {
    let source = site.source(QUICK).await?;
    let state = site.job.create_volume("source-state").await?;

    // What the daemon itself refuses.
    let mut build = site.local("unconfigured", &source);
    build.options.buildkitd_config =
        Some("[worker.oci]\n  enabled = false\n[worker.containerd]\n  enabled = false\n".into());
    let told = failed(build.run(&site.job).await);
    contains(&format!("{told:#}"), &["BuildKit said:", "buildkitd: no worker found"]);

    // Its state is in use.
    let builders = SharedBuilders::new(&site.job);
    let mut build = site.local("holder", &source).shared(&builders);
    cached(&mut build, &state);
    let result = build.run(&site.job).await?;
    site.forget(&result).await?;
    let mut build = site.local("second", &source);
    cached(&mut build, &state);
    let told = failed(build.run(&site.job).await);
    contains(
        &format!("{told:#}"),
        &[
            "BuildKit said:",
            "buildkitd.lock",
            "give each build that runs at once a cache of its own",
        ],
    );
    builders.stop().await;

    // It dies during the build.
    let slow = site.source(SLOW).await?;
    let running = asleep(&site.job, site.local("dying", &slow)).await?;
    let id = format!("orchestra.{}.1.dying", site.job.id());
    let daemons = crate::processes_named(site.fixture.engine.inspect(&id)?.pid, "buildkitd");
    for process in &daemons {
        Command::new("kill").args(["-9", &process.to_string()]).status()?;
    }
    // On a user's own engine they may be out of sight.
    if daemons.is_empty() {
        site.job.cancel();
        running.await?.err().ok_or("it succeeded")?;
    } else {
        let told = failed(running.await?);
        contains(
            &format!("{told:#}"),
            &[
                "BuildKit's daemon ended during the build",
                "running server on",
                "hint: ",
            ],
        );
    }

    // It ends at once.
    let mut build = site.local("ending", &source);
    build
        .inputs
        .push(daemon(site, "echo what went wrong >&2; exit 3").await?);
    let told = failed(build.run(&site.job).await);
    contains(
        &format!("{told:#}"),
        &["BuildKit said:", "what went wrong", "did not start"],
    );
    Ok(())
}

pub(crate) async fn a_build_whose_shared_builder_dies_builds_again_with_one_of_its_own(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo asleep; /bin/busybox sleep 4; echo x >/made\"]\n")
        .await?;
    let builders = SharedBuilders::new(&site.job);
    let running = asleep(&site.job, site.pushed("orphan", &source).shared(&builders)).await?;
    kill_builder(site).await?;
    let result = running.await??;
    assert_eq!(result.digest, site.served(&site.fixture.registry, "orphan", false)?);
    let warnings = result.warnings.join("\n");
    contains(
        &warnings,
        &[
            "shared builder has ended",
            "killed by SIGKILL",
            "the end of its log:\n  ",
        ],
    );
    // What was told of the first try is not told again.
    assert_eq!(
        result.stderr.to_string().matches(" asleep\n").count(),
        1,
        "{}",
        result.stderr
    );
    builders.stop().await;

    // A builder that ends because the job is cancelled is no reason to build again.
    let job = Job::builder(site.driver.clone()).grace(Duration::from_secs(60)).build();
    let builders = SharedBuilders::new(&job);
    let mut build = site.local("cancelled", &source).shared(&builders);
    build.inputs[0].volume = site.source(SLOW).await?;
    let running = asleep(&job, build).await?;
    let began = Instant::now();
    job.cancel();
    let failed = failed(running.await?);
    assert_eq!(failed.exit, ExitStatus::Cancelled, "{failed:?}");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "it took {:?}",
        began.elapsed()
    );
    builders.stop().await;
    job.end().await?;
    Ok(())
}

/// Kills the job's shared builder, and nobody is told.
pub(crate) async fn kill_builder(site: &Site) -> Outcome {
    let listed = site.driver.list(Some(site.job.id())).await?;
    let daemon = listed
        .iter()
        .find(|of| of.id.contains("builder._0") && of.kind == ResourceKind::Container);
    let id = daemon.ok_or("no builder")?.id.parse()?;
    Ok(site.driver.signal_container(&id, Signal::KILL).await?)
}
