//! Whether an engine's host lets builders do what they have to.

use std::time::Duration;

use orchestra::{Error, ErrorKind, ExitStatus, ImageRef, Job, Name, PullImage, PullPolicy, Result, SharedDriver, Task};
use tokio_util::sync::CancellationToken;

use crate::{ImageBuild, command};

/// What each daemon does first: mounts, without privileges in namespaces that it has made.
const PRIVILEGED: &str = "mkdir -p /tmp/probe && mount -t tmpfs none /tmp/probe";
const ROOTLESS: &str = "rootlesskit sh -c 'mkdir -p /tmp/probe && mount -t tmpfs none /tmp/probe'";
/// How long it may take when the image is there.
const LIMIT: Duration = Duration::from_secs(60);

/// Tries, in a container of this BuildKit image, what builders with or without privileges need. `None` if it works, else
/// what was said. The container is gone when this returns.
///
/// # Errors
/// Whatever the engine fails with; that it does not permit such a container is one. [`ErrorKind::Cancelled`] if `cancel`
/// was.
pub async fn probe(
    driver: &SharedDriver,
    image: &ImageRef,
    rootless: bool,
    pull: PullPolicy,
    cancel: &CancellationToken,
) -> Result<Option<String>> {
    let job = Job::builder(driver.clone()).cancel_with(cancel).build();
    let ended = run(&job, image, rootless, pull).await;
    let removed = job.end().await;
    let ended = ended?;
    removed?;
    Ok(ended)
}

async fn run(job: &Job, image: &ImageRef, rootless: bool, pull: PullPolicy) -> Result<Option<String>> {
    let name = Name::new("probe")?;
    let mut build = ImageBuild::new(name.clone(), image.clone(), Task::WORKING_DIR.parse()?);
    build.image = image.clone();
    build.rootless = rootless;
    // First, since a limit of a task's is one of its fetching too.
    if pull == PullPolicy::Always || (pull == PullPolicy::IfNotPresent && !job.driver().image_exists(image).await?) {
        job.pull(&PullImage::new(image.clone())).await?;
    }
    build.pull = PullPolicy::Never;
    let script = if rootless { ROOTLESS } else { PRIVILEGED };
    let task = command::confined(Task::with_image(name, image.clone()).shell(script), &build);
    let ended = job.run(task.timeout(LIMIT)).await?;
    match ended.exit {
        ExitStatus::Code(0) => return Ok(None),
        ExitStatus::Cancelled => return Err(Error::new(ErrorKind::Cancelled, "it was cancelled")),
        _ => {}
    }
    let said = [ended.stderr.to_string(), ended.stdout.to_string()].concat();
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Ok(Some(match (ended.exit, last) {
        (ExitStatus::Code(_), Some(line)) => line.trim().to_owned(),
        (exit, _) => exit.to_string(),
    }))
}
