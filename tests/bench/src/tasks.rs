//! One task, and many at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use orchestra::{Job, NetworkMode, Task};
use orchestra_e2e::KnownDriver;

use crate::bare::{self, Bare};
use crate::{Bench, Outcome};

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A name that no other has.
fn unique() -> String {
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn run(job: &Job, image: &str, network: bool) -> Outcome<()> {
    let mut task = Task::new(unique(), image)?.command(["/bin/true"]);
    if !network {
        task.spec.network = NetworkMode::None;
    }
    job.run(task).await?.success()?;
    Ok(())
}

/// `/bin/true` through `Job` against the same calls made bare, and against the client, with a network and without.
pub(crate) async fn one(bench: &mut Bench) -> Outcome<()> {
    let job = Job::builder(bench.driver.clone()).build();
    let bare = Bare::connect(bench).await?;
    let (image, client) = (bench.image.clone(), bench.client.clone());
    // containerd's store knows whole names alone; podman keeps an image that was loaded under none of a registry's.
    let name_of_image = match bench.known {
        KnownDriver::Containerd => image.parse::<orchestra::ImageRef>()?.canonical(),
        KnownDriver::Docker | KnownDriver::Podman => image.clone(),
    };
    let target = match bench.known {
        KnownDriver::Docker => "< 1.0",
        KnownDriver::Podman => "≤ 0.85",
        KnownDriver::Containerd => "≤ 0.95",
    };
    // containerd has no network to give: its client makes none, and its API neither.
    for network in [true, false]
        .into_iter()
        .filter(|network| bare.has_network() || !network)
    {
        let what = match network {
            true => "one /bin/true through Job",
            false => "one /bin/true through Job, no network",
        };
        let ours = || run(&job, &image, network);
        let theirs = async |kept: bool| {
            let name = format!("orchestra-bench-{}-{}", std::process::id(), unique());
            let task = bare::Task {
                image: &name_of_image,
                name: &name,
                command: &["/bin/true"],
                network,
                kept,
            };
            bare.task(&task).await
        };
        let table = &mut bench.table;
        let mut calls = vec![("bare API calls", "≤ 1.03", true)];
        if bench.known == KnownDriver::Containerd {
            // It keeps output for who asks for that, by a process of its own for each task; ours is kept always.
            calls.push(("bare API calls, output in pipes", "", false));
        }
        for (other, target, kept) in calls {
            let theirs = || theirs(kept);
            table.compare(what, other, target, bench.rounds, ours, theirs).await?;
        }
        // containerd's client knows no other network than none, and filters system calls only if it is told to.
        let options: &[&[&str]] = match (bench.known, network) {
            (KnownDriver::Containerd, _) => &[&[], &["--seccomp"]],
            (_, true) => &[&[]],
            (_, false) => &[&["--network", "none"]],
        };
        for options in options {
            let theirs = || client.task(&image, options, &["/bin/true"]);
            let other = [&[client.run_name().as_str()], *options].concat().join(" ");
            table.compare(what, &other, target, bench.rounds, ours, theirs).await?;
        }
    }
    job.end().await?;
    Ok(())
}

/// Fifty tasks at once through one `Job`, against `xargs -P 50` with the client.
pub(crate) async fn fifty_at_once(bench: &mut Bench) -> Outcome<()> {
    let job = Job::builder(bench.driver.clone()).build();
    let (image, client) = (bench.image.clone(), bench.client.clone());
    let network = bench.known != KnownDriver::Containerd;
    let ours = || async {
        try_join_all((0..50).map(|_| run(&job, &image, network))).await?;
        Ok(())
    };
    let theirs = || client.tasks(50, &image, &["/bin/true"]);
    let rounds = bench.rounds.div_ceil(5);
    let other = format!("xargs -P 50 {}", client.run_name());
    bench
        .table
        .compare("50 tasks at once through Job", &other, "", rounds, ours, theirs)
        .await?;
    job.end().await?;
    Ok(())
}
