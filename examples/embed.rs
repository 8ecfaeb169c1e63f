//! Embeds orchestra: two tasks that share a volume, with live output.
//!
//! `cargo run -p orchestra-examples --bin embed`, with an engine at `DOCKER_HOST` or its default socket.

use std::sync::Arc;
use std::time::Duration;

use orchestra::{Job, Task, layer, sink};
use orchestra_docker::{DockerConfig, DockerDriver};

#[tokio::main]
async fn main() -> orchestra::Result<()> {
    let driver = layer::standard(Arc::new(DockerDriver::connect(DockerConfig::default()).await?));
    let job = Job::builder(driver).build();
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
    read.spec.limits.memory = Some(64 << 20);
    job.run(read).await?.success()?;
    Ok(())
}
