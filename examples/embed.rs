//! Embeds orchestra: two tasks that share a volume, with live output.
//!
//! `cargo run -p orchestra-examples --bin embed -- podman`, with that engine where its own client would find it; docker
//! where none is named.

use std::sync::Arc;
use std::time::Duration;

use orchestra::{Job, SharedDriver, Task, layer, sink};
use orchestra_containerd::{ContainerdConfig, ContainerdDriver};
use orchestra_docker::{DockerConfig, DockerDriver};
use orchestra_podman::{PodmanConfig, PodmanDriver};

#[tokio::main]
async fn main() -> orchestra::Result<()> {
    // The only place that knows which engine it is.
    let driver: SharedDriver = match std::env::args().nth(1).as_deref() {
        Some("podman") => Arc::new(PodmanDriver::connect(PodmanConfig::default()).await?),
        Some("containerd") => Arc::new(ContainerdDriver::connect(ContainerdConfig::default()).await?),
        _ => Arc::new(DockerDriver::connect(DockerConfig::default()).await?),
    };
    let job = Job::builder(layer::standard(driver)).build();
    let outcome = run(&job).await;
    // Whatever happened, nothing stays in the engine.
    job.end().await?;
    outcome
}

async fn run(job: &Job) -> orchestra::Result<()> {
    let source = job.create_volume("source").await?;
    let write = Task::new("write", "busybox:stable")?
        .shell("echo 'hello from another task' > source/greeting")
        .mount(&source, "source")?
        .timeout(Duration::from_secs(60));
    job.run(write).await?.success()?;

    let mut read = Task::new("read", "busybox:stable")?
        .shell("cat source/greeting")
        .mount_read_only(&source, "source")?
        .output(sink::to_writers(tokio::io::stdout(), tokio::io::stderr()));
    // What an engine can't do, it refuses: podman without root may have no limits.
    if job.driver().info().capabilities.memory_limit {
        read.spec.limits.memory = Some(64 << 20);
    }
    job.run(read).await?.success()?;
    Ok(())
}
