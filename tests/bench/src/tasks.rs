//! One task, and many at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use bollard::Docker;
use futures_util::future::try_join_all;
use orchestra::{Job, Task};
use tokio::process::Command;

use crate::client::succeed;
use crate::{Bench, Outcome, bare};

/// A task of a name that no other has.
fn task(image: &str) -> Outcome<Task> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
    Ok(Task::new(name, image)?.command(["/bin/true"]))
}

async fn run(job: &Job, image: &str) -> Outcome<()> {
    job.run(task(image)?).await?.success()?;
    Ok(())
}

/// `/bin/true` through `Job` against the same calls made bare, and against the client.
pub(crate) async fn one(bench: &mut Bench) -> Outcome<()> {
    let job = Job::builder(bench.driver.clone()).build();
    let docker = Docker::connect_with_host(&bench.driver.info().endpoint)?
        .negotiate_version()
        .await?;
    let (image, client) = (bench.image.clone(), bench.client.clone());
    let name = format!("orchestra-bench-{}", std::process::id());
    let ours = || run(&job, &image);
    let theirs = || bare::task(&docker, &image, &name, &["/bin/true"]);
    bench
        .table
        .compare(
            "one /bin/true through Job",
            "bare API calls",
            "≤ 1.03",
            bench.rounds,
            ours,
            theirs,
        )
        .await?;
    let theirs = || client.run(["run", "--rm", &image, "/bin/true"]);
    bench
        .table
        .compare(
            "one /bin/true through Job",
            "docker run --rm",
            "< 1.0",
            bench.rounds,
            ours,
            theirs,
        )
        .await?;
    job.end().await?;
    Ok(())
}

/// Fifty tasks at once through one `Job`, against fifty clients at once.
pub(crate) async fn fifty_at_once(bench: &mut Bench) -> Outcome<()> {
    let job = Job::builder(bench.driver.clone()).build();
    let (image, client) = (bench.image.clone(), bench.client.clone());
    let ours = || async {
        try_join_all((0..50).map(|_| run(&job, &image))).await?;
        Ok(())
    };
    let script = format!(
        "seq 50 | xargs -P 50 -I{{}} {} run --rm {image} /bin/true",
        client.path()
    );
    let theirs = || async { succeed(Command::new("sh").args(["-c", &script])).await };
    let rounds = bench.rounds.div_ceil(5);
    bench
        .table
        .compare(
            "50 tasks at once through Job",
            "xargs -P 50 docker run --rm",
            "",
            rounds,
            ours,
            theirs,
        )
        .await?;
    job.end().await?;
    Ok(())
}
