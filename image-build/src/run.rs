//! One build from its start to its image.
//!
//! All of it runs in a tokio task of its own, so that a caller who goes away leaves nothing behind: the container is stopped
//! and the output volume removed all the same.

use std::future::{Future, pending};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use orchestra::tar::{self, EntryType, Head, padded};
use orchestra::{
    ByteStream, Error, ErrorKind, ExitStatus, ImageRef, Job, Name, PullImage, Resource, ResourceKind, Result,
    TaskResult, VolumeId, VolumePath, file_from_tar, import_archive, labels,
};
use orchestra_volumes::ExactVolumes;
use tokio::task::JoinError;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::arguments::Place;
use crate::build::Context;
use crate::error::without_stack;
use crate::shared::{Found, Shared};
use crate::watch::Watched;
use crate::{
    BuildError, BuildResult, BuiltTarget, FailedBuild, ImageBuild, OutputFormat, command, hint, manifest, pairs,
    validate,
};

/// The most that the configuration of an image may be.
const MAX_CONFIG: u64 = 8 << 20;
/// How long the roots of volumes may take to change their owner, the fetching of the image included, where the build itself
/// has no limit.
const ROOTS: Duration = Duration::from_secs(30 * 60);
/// What is left of a timeout when all of it went by before the build's container was made: enough to say so.
const AT_LEAST: Duration = Duration::from_millis(1);

pub(crate) async fn build(
    mut build: ImageBuild,
    job: Job,
    cancel: CancellationToken,
) -> Result<BuildResult, BuildError> {
    let began = Instant::now();
    let out = validate::out_name(&build.name)?;
    refuse(&build, &job, &job.id().volume(&out))?;
    pairs::take_in(&mut build, &job).await?;
    build.validate()?;
    let volume = match build.loads() || build.unpacks() {
        true => Some(job.create_volume(&out).await?),
        false => None,
    };
    let mut live = std::mem::take(build.live.get_mut());
    let context = live.context.take();
    let watched = Watched::new(live, build.capture);
    let name = build.name.clone();
    let result = Run {
        build,
        job: &job,
        volume: volume.as_ref(),
        watched,
        cancel,
        began,
    }
    .image(context)
    .await;
    if let Some(volume) = &volume {
        remove(&job, volume, &name).await;
    }
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
    let info = job.driver().info();
    info.check_container(&command::task(build, Some(out), Place::default())?.spec)?;
    if build.loads() && !info.capabilities.import_image {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the engine lacks import_image, by which an image that is not pushed is loaded",
        )
        .with_hint("push the image to a registry that the engine can pull from"));
    }
    if build.unpacks() {
        ExactVolumes::new(job.driver().clone(), job.id().clone())?;
    }
    let inputs = build.inputs.iter().map(|input| &input.volume);
    if inputs
        .chain(build.all_outputs().map(|output| &output.volume))
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

struct Digests {
    digest: String,
    config_digest: Option<String>,
}

struct Run<'a> {
    build: ImageBuild,
    job: &'a Job,
    /// Where an image that is loaded comes out, and a root file system.
    volume: Option<&'a VolumeId>,
    watched: Watched,
    cancel: CancellationToken,
    began: Instant,
}

impl Run<'_> {
    async fn image(self, context: Option<Context>) -> Result<BuildResult, BuildError> {
        let mut noticed = Vec::new();
        for (volume, tar) in command::prepared(&self.build, self.volume) {
            let tar = stream::iter([Ok(tar)]).boxed();
            self.job.driver().write_volume(volume, &VolumePath::root(), tar).await?;
        }
        let waiting = Instant::now();
        if let Some(task) = command::roots(&self.build)?
            && let Some(given) = self
                .unless(self.job.run(task.timeout(self.build.timeout.unwrap_or(ROOTS))))
                .await
        {
            given?.success()?;
        }
        let info = self.job.driver().info();
        let shared = match &self.build.shared {
            Some(builders) => {
                let ready = builders.ready(&self.build);
                let ready = timeout(self.build.timeout.unwrap_or(Duration::MAX), ready);
                self.unless(async { ready.await.unwrap_or(Ok(Found::None)) }).await
            }
            None => None,
        };
        // Without it the build has a daemon to itself.
        let (shared, mut alone) = match shared {
            Some(Ok(Found::Ready(shared))) => (Some(shared), None),
            Some(Ok(Found::Ended(why))) => (None, Some(why)),
            Some(Err(error)) => (None, Some(error.to_string())),
            Some(Ok(Found::None)) | None => (None, None),
        };
        let place = Place {
            shared: shared.as_ref(),
            native: Some(&info.platform),
        };
        let mut task = command::task(&self.build, self.volume, place)?.output(self.watched.clone());
        if let Some(limit) = self.build.timeout {
            // Waiting for a builder, or for its volumes, is a part of the build.
            task = task.timeout(limit.saturating_sub(waiting.elapsed()).max(AT_LEAST));
        }
        let unsent = Arc::new(Mutex::new(None));
        if let Some(context) = context {
            let unsent = unsent.clone();
            task = match context {
                Context::Once(tar) => task.stdin(telling(tar, unsent)),
                Context::Anew(mut open) => task.stdin_of(move || telling(open(), unsent.clone())),
            };
        }
        let mut running = self.job.start(task);
        let ended = tokio::select! {
            ended = running.wait() => Some(ended),
            () = self.cancelled() => None,
        };
        let mut ended = match ended {
            Some(ended) => ended,
            None => {
                running.cancel();
                running.wait().await
            }
        }?;
        self.watched.finish().await?;
        alone = alone.or_else(|| shared.as_ref().and_then(Shared::ended));
        if let Some(why) = &alone {
            let warning = format!("the job's shared builder has ended, and the build had one of its own: {why}");
            self.watched.warn(&warning).await?;
            noticed.push(warning);
        }
        if !ended.exit.success() {
            let unsent = unsent.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(match unsent {
                Some(source) => BuildError::Context {
                    build: self.build.name.clone(),
                    source,
                },
                None => self.failure(ended).await,
            });
        }
        let Digests { digest, config_digest } = self.digests().await?;
        if let Some(volume) = self.volume
            && let Some(exit) = self.deliver(volume).await?
        {
            ended.exit = exit;
            return Err(self.failure(ended).await);
        }
        if !self.build.loads() {
            for tag in self.build.tags().filter(|_| self.build.push) {
                if let Some(warning) = self.refresh(tag).await {
                    self.watched.warn(&warning).await?;
                    noticed.push(warning);
                }
            }
        }
        let mut warnings = self.watched.warnings().await;
        warnings.extend(noticed);
        let (platforms, size) = manifest::read(&self.watched.manifests().await);
        let additional = self.build.additional_targets.iter().zip(self.watched.targets().await);
        let targets = additional.map(|(additional, digest)| BuiltTarget {
            target: additional.target.clone(),
            digest: Some(digest).filter(|digest| !digest.is_empty()),
        });
        Ok(BuildResult {
            targets: targets.collect(),
            platforms,
            size,
            duration: self.began.elapsed(),
            reference: self.build.tag.clone(),
            references: self.build.tags().cloned().collect(),
            digest,
            config_digest,
            steps: self.watched.steps().await,
            code: ended.exit.code(),
            stdout: ended.stdout,
            stderr: self.watched.stderr().await,
            warnings,
            timings: ended.timings,
        })
    }

    /// Waits until the build is given up, or the job is cancelled.
    async fn cancelled(&self) {
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = self.job.cancelled() => {}
        }
    }

    /// What comes of it, unless it is cancelled before.
    async fn unless<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.cancelled() => None,
        }
    }

    /// What BuildKit says that the image's digests are.
    async fn digests(&self) -> Result<Digests, BuildError> {
        let wrong = |problem: String| BuildError::Metadata {
            build: self.build.name.clone(),
            problem,
        };
        let metadata = self
            .watched
            .metadata()
            .await
            .ok_or_else(|| wrong("is missing".into()))?;
        let digest = |key: &str| {
            let text = metadata.get(key).and_then(serde_json::Value::as_str);
            text.filter(|digest| digest.contains(':')).map(ToOwned::to_owned)
        };
        Ok(Digests {
            digest: digest("containerimage.digest").ok_or_else(|| wrong("has no containerimage.digest".into()))?,
            config_digest: digest("containerimage.config.digest"),
        })
    }

    /// Brings what the builder wrote to the output volume to where it belongs; how that ended if it was ended.
    async fn deliver(&self, from: &VolumeId) -> Result<Option<ExitStatus>, BuildError> {
        let delivered = async {
            for output in &self.build.outputs {
                if output.format == OutputFormat::RootFs {
                    self.unpack(from, &output.volume).await?;
                }
            }
            if self.build.loads() {
                self.load(from).await?;
            }
            Ok(())
        };
        let late = async {
            match self.build.timeout {
                Some(timeout) => sleep(timeout).await,
                None => pending().await,
            }
        };
        tokio::select! {
            delivered = delivered => delivered.map(|()| None),
            () = late => Ok(Some(ExitStatus::TimedOut)),
            () = self.cancelled() => Ok(Some(ExitStatus::Cancelled)),
        }
    }

    /// A file that the builder wrote to the output volume.
    async fn written(&self, from: &VolumeId, file: &str) -> Result<ByteStream> {
        let path = command::in_out(&self.build, file)?;
        let tar = self.job.driver().read_volume(from, std::slice::from_ref(&path)).await?;
        file_from_tar(tar, &path).await
    }

    /// Unpacks the image's root file system, with what Concourse's tasks look for beside it.
    async fn unpack(&self, from: &VolumeId, to: &VolumeId) -> Result<(), BuildError> {
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        struct Image {
            config: Config,
        }
        #[derive(serde::Deserialize, Default)]
        #[serde(default, rename_all = "PascalCase")]
        struct Config {
            env: Option<Vec<String>>,
            user: String,
        }
        let image = self
            .job
            .read_file(from, &command::in_out(&self.build, command::CONFIG)?, MAX_CONFIG)
            .await?;
        let Ok(Some(Image { config })) = serde_json::from_slice::<Option<Image>>(&image) else {
            return Err(BuildError::Metadata {
                build: self.build.name.clone(),
                problem: "names a configuration that the builder's store does not have".to_owned(),
            });
        };
        let metadata = serde_json::json!({ "env": config.env.unwrap_or_default(), "user": config.user }).to_string();
        let folder = Head {
            kind: EntryType::Directory,
            mode: 0o755,
            ..Head::file(0)
        };
        let mut tar = folder.blocks("rootfs/");
        tar.extend(Head::file(metadata.len() as u64).blocks("metadata.json"));
        tar.extend([padded(metadata.as_bytes()), tar::END]);
        let driver = self.job.driver();
        let tar = stream::iter(tar.into_iter().map(Ok)).boxed();
        driver.write_volume(to, &VolumePath::root(), tar).await?;
        let files = self.written(from, command::ROOTFS).await?;
        // Setuid programs with hard links, capabilities and other attributes: not all engines' own calls keep them.
        let volumes = ExactVolumes::new(driver.clone(), self.job.id().clone())?;
        let written = volumes.write(to, &VolumePath::new("rootfs")?, files).await;
        Ok(written?)
    }

    /// Loads the image into the engine under all its names.
    async fn load(&self, from: &VolumeId) -> Result<()> {
        let driver = self.job.driver();
        for tag in self.build.tags() {
            import_archive(&**driver, tag, async || self.written(from, command::IMAGE).await).await?;
        }
        Ok(())
    }

    /// Where the engine holds an older image under the tag, a task that follows would run that one: the new one is fetched.
    /// That it can't be is told, and no failure: the image is where it was to be.
    async fn refresh(&self, tag: &ImageRef) -> Option<String> {
        let driver = self.job.driver();
        let mut pull = PullImage::new(tag.clone());
        pull.job = Some(self.job.id().clone());
        let mut registries = self.build.registry.iter().chain(&self.build.base_registries);
        let registry = registries.find(|registry| registry.host(&self.build.tag) == tag.registry());
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
        let refreshed = self.unless(refreshed).await?;
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
        let mut failed = FailedBuild {
            name,
            tag: build.tag.clone(),
            timeout: build.timeout,
            exit: ended.exit,
            code: ended.exit.code(),
            excerpt: outcome.excerpt(),
            step_code: outcome.step_code(),
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
            rootless: build.rootless,
        };
        if hint::is_of_daemon(&failed) {
            failed.said = without_stack(&failed.said);
        }
        BuildError::Failed(Box::new(failed))
    }
}

/// The stream, whose error is kept too: the engine is told nothing but that its input failed.
fn telling(stream: ByteStream, kept: Arc<Mutex<Option<Error>>>) -> ByteStream {
    // Of a former attempt.
    *kept.lock().unwrap_or_else(PoisonError::into_inner) = None;
    stream
        .map(move |piece| {
            piece.map_err(|error| {
                let again = Error::new(error.kind(), error.message().to_owned());
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                again
            })
        })
        .boxed()
}
