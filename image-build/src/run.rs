//! One build from its output volume to its image.
//!
//! All of it runs in a tokio task of its own, so that a caller who goes away leaves nothing behind: the container is stopped
//! and the volume removed all the same.

use std::future::{Future, pending};
use std::time::Duration;

use futures_util::StreamExt;
use orchestra::{
    Error, ErrorKind, ExitStatus, Job, Name, PullImage, Resource, ResourceKind, Result, TaskResult, VolumeId,
    VolumePath, file_from_tar, labels,
};
use tokio::task::JoinError;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::watch::Watched;
use crate::{BuildError, BuildResult, FailedBuild, ImageBuild, command, validate};

/// The largest metadata file that is read; attestations make it large, but not so large.
const METADATA_LIMIT: u64 = 16 << 20;

pub(crate) async fn build(
    mut build: ImageBuild,
    job: Job,
    cancel: CancellationToken,
) -> Result<BuildResult, BuildError> {
    let out = validate::out_name(&build.name)?;
    refuse(&build, &job, &job.id().volume(&out))?;
    let volume = job.create_volume(&out).await?;
    let watched = Watched::new(std::mem::take(build.live.get_mut()), build.capture);
    let name = build.name.clone();
    let result = Run {
        build,
        job: &job,
        volume: &volume,
        watched,
        cancel,
    }
    .image()
    .await;
    remove(&job, &volume, &name).await;
    result
}

/// A runtime that shuts down ends the build's own task before its caller.
pub(crate) fn ended_with_runtime(error: &JoinError) -> BuildError {
    BuildError::Job(Error::new(
        ErrorKind::Cancelled,
        format!("the build's runtime ended it: {error}"),
    ))
}

/// What the engine can't do is refused before the volume is made.
fn refuse(build: &ImageBuild, job: &Job, out: &VolumeId) -> Result<()> {
    let capabilities = &job.driver().info().capabilities;
    capabilities.check_container(&command::task(build, out)?.spec)?;
    if !build.push && !capabilities.import_image {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the engine lacks import_image, by which an image that is not pushed is loaded",
        )
        .with_hint("push the image to a registry that the engine can pull from"));
    }
    let inputs = build.inputs.iter().map(|input| &input.volume);
    if inputs
        .chain(build.caches.iter().map(|cache| &cache.volume))
        .any(|volume| volume == out)
    {
        return Err(Error::invalid(format!(
            "the volume {out} is the build's own; it can't be an input or a cache too"
        )));
    }
    Ok(())
}

/// Removes the output volume. In a job that is resumable the container stays, and uses it: then the job's end removes both.
/// Another user is a driver's own, by which the volume was read, and about to go.
async fn remove(job: &Job, volume: &VolumeId, name: &Name) {
    for (attempt, pause) in [20, 40, 80, 160, 320].into_iter().enumerate() {
        match job.driver().remove_volume(volume).await {
            Ok(()) => return,
            Err(error) if error.kind() != ErrorKind::Conflict => {
                return tracing::warn!(%volume, %error, "a build's volume is left to the job's end");
            }
            Err(_) if attempt > 0 && is_kept(job, name).await => return,
            Err(_) => sleep(Duration::from_millis(pause)).await,
        }
    }
    tracing::warn!(%volume, "a build's volume is still in use, and left to the job's end");
}

/// Whether the engine holds a container of the task `name`.
async fn is_kept(job: &Job, name: &Name) -> bool {
    let held = job.driver().list(Some(job.id())).await.unwrap_or_default();
    let is_ours = |resource: &Resource| resource.labels.get(labels::NAME).map(String::as_str) == Some(name.as_str());
    held.iter()
        .any(|resource| resource.kind == ResourceKind::Container && is_ours(resource))
}

struct Run<'a> {
    build: ImageBuild,
    job: &'a Job,
    volume: &'a VolumeId,
    watched: Watched,
    cancel: CancellationToken,
}

impl Run<'_> {
    async fn image(self) -> Result<BuildResult, BuildError> {
        let task = command::task(&self.build, self.volume)?.output(self.watched.clone());
        let mut running = self.job.start(task);
        let ended = tokio::select! {
            ended = running.wait() => Some(ended),
            () = self.cancel.cancelled() => None,
        };
        let mut ended = match ended {
            Some(ended) => ended,
            None => {
                running.cancel();
                running.wait().await
            }
        }?;
        self.watched.finish().await?;
        if !ended.exit.success() {
            return Err(self.failure(ended).await);
        }
        let (digest, warnings) = if self.build.push {
            let (digest, warning) = tokio::join!(self.digest(), self.refresh());
            (digest?, Vec::from_iter(warning))
        } else {
            let digest = self.digest().await?;
            if let Some(exit) = self.load().await? {
                ended.exit = exit;
                return Err(self.failure(ended).await);
            }
            (digest, Vec::new())
        };
        for warning in &warnings {
            self.watched.warn(warning).await?;
        }
        Ok(BuildResult {
            reference: self.build.tag.clone(),
            digest,
            code: ended.exit.code(),
            stdout: ended.stdout,
            stderr: self.watched.stderr().await,
            warnings,
            timings: ended.timings,
        })
    }

    /// What BuildKit says that the image's digest is.
    async fn digest(&self) -> Result<String, BuildError> {
        let wrong = |problem: String| BuildError::Metadata {
            build: self.build.name.clone(),
            problem,
        };
        let path = VolumePath::new(command::METADATA)?;
        let content = match self.job.read_file(self.volume, &path, METADATA_LIMIT).await {
            Err(error) if error.kind() == ErrorKind::PathNotFound => return Err(wrong("is missing".into())),
            content => content?,
        };
        let metadata: serde_json::Value =
            serde_json::from_slice(&content).map_err(|error| wrong(format!("is not JSON: {error}")))?;
        match metadata
            .get("containerimage.digest")
            .and_then(serde_json::Value::as_str)
        {
            Some(digest) if digest.contains(':') => Ok(digest.to_owned()),
            _ => Err(wrong("has no containerimage.digest".into())),
        }
    }

    /// Loads the image into the engine; how it ended if it did not.
    async fn load(&self) -> Result<Option<ExitStatus>> {
        let path = VolumePath::new(command::IMAGE)?;
        let load = async {
            let tar = self
                .job
                .driver()
                .read_volume(self.volume, std::slice::from_ref(&path))
                .await?;
            let archive = file_from_tar(tar, &path).await?;
            self.job.driver().import_image(&self.build.tag, archive).await
        };
        let late = async {
            match self.build.timeout {
                Some(timeout) => sleep(timeout).await,
                None => pending().await,
            }
        };
        tokio::select! {
            loaded = load => loaded.map(|()| None),
            () = late => Ok(Some(ExitStatus::TimedOut)),
            () = self.cancel.cancelled() => Ok(Some(ExitStatus::Cancelled)),
        }
    }

    /// Where the engine holds an older image under the tag, a task that follows would run that one: the new one is fetched.
    /// That it can't be is told, and no failure: the image is where it was to be.
    async fn refresh(&self) -> Option<String> {
        let (driver, tag) = (self.job.driver(), &self.build.tag);
        let mut pull = PullImage::new(tag.clone());
        pull.job = Some(self.job.id().clone());
        let registry = self
            .build
            .registry
            .as_ref()
            .filter(|registry| registry.host(tag) == tag.registry());
        pull.credentials = registry.and_then(|registry| registry.credentials.clone());
        pull.insecure = driver.info().capabilities.insecure_pull && registry.is_some_and(|registry| registry.insecure);
        let refreshed = async {
            if driver.image_exists(tag).await? {
                let mut progress = driver.pull_image(&pull).await?;
                while let Some(step) = progress.next().await {
                    step?;
                }
            }
            Ok::<_, Error>(())
        };
        let refreshed = unless(&self.cancel, refreshed).await?;
        let error = refreshed.err()?;
        Some(format!(
            "the engine may still hold an older image under {tag}, and the new one was not fetched: {error}"
        ))
    }

    async fn failure(&self, ended: TaskResult) -> BuildError {
        let (build, name) = (&self.build, self.build.name.clone());
        let dockerfile = match (ended.exit, command::dockerfile(build)) {
            (ExitStatus::Code(command::CONTEXT_MISSING), _) => {
                return BuildError::ContextMissing {
                    build: name,
                    context: build.context.clone(),
                };
            }
            (ExitStatus::Code(command::DOCKERFILE_MISSING | command::OUTSIDE), Ok(dockerfile)) => Some(dockerfile),
            _ => None,
        };
        if let Some(dockerfile) = dockerfile {
            let context = build.context.clone();
            return match ended.exit {
                ExitStatus::Code(command::OUTSIDE) => BuildError::Outside {
                    build: name,
                    context,
                    dockerfile,
                },
                _ => BuildError::DockerfileMissing {
                    build: name,
                    context,
                    dockerfile,
                },
            };
        }
        let outcome = self.watched.outcome().await;
        BuildError::Failed(Box::new(FailedBuild {
            name,
            tag: build.tag.clone(),
            timeout: build.timeout,
            exit: ended.exit,
            code: ended.exit.code(),
            step: outcome.step,
            error: outcome.error,
            log: outcome.log,
            said: outcome.said,
            stdout: ended.stdout,
            stderr: self.watched.stderr().await,
            timings: ended.timings,
            network: build.network,
            has_credentials: build
                .registry
                .as_ref()
                .is_some_and(|registry| registry.credentials.is_some()),
            image: build.image.clone(),
        }))
    }
}

async fn unless<T>(cancel: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = cancel.cancelled() => None,
    }
}
