//! The layer: restores when a volume is created, persists when its last user has ended.
//!
//! A volume's way through it: [`create_volume`](Driver::create_volume) finds the [label](crate::LABEL), makes the volume, and
//! restores into it before it returns. [`create_container`](Driver::create_container) notes who writes to it and
//! [`wait_container`](Driver::wait_container) how they ended. [`remove_volume`](Driver::remove_volume), by which a caller
//! says that the last user has ended, or [`end_job`](Driver::end_job) persists it, before it is gone.
//!
//! A failure of the store is an event and never an error of a call.

mod transfer;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use orchestra::{
    ByteStream, ContainerId, ContainerSpec, Created, Driver, DriverInfo, EndReport, ErrorKind, ExecSpec, ExecStream,
    ExitStatus, ImageRef, InjectedFile, JobId, LogStream, PullImage, PullStream, Resource, ResourceKind, Result,
    Runner, SharedDriver, Signal, VolumeDirectory, VolumeId, VolumePath, VolumeSpec, labels,
};
use orchestra_volumes::Known;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{CacheEvent, CacheEventKind, CacheKey, CacheSpec, Found, LABEL, Policy, Store};

/// How a layer uses its store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CachesOptions {
    /// What all caches are held to, whatever they ask for: [`Policy::Pull`] for runs that are not trusted.
    pub policy: Policy,
    /// Most bytes of a cache that has no limit of its own.
    pub size_limit: Option<u64>,
    /// Longest that one restore or persist may take.
    pub timeout: Duration,
    /// Caches that were not persisted for so long are not restored.
    pub time_to_live: Option<Duration>,
}

impl Default for CachesOptions {
    fn default() -> Self {
        Self {
            policy: Policy::PullPush,
            size_limit: None,
            timeout: Duration::from_secs(15 * 60),
            time_to_live: None,
        }
    }
}

/// A driver whose labelled volumes are restored from a [`Store`] and persisted to it. It goes around all other layers, so
/// that these see its reads and writes of volumes.
#[derive(Debug)]
pub struct CachesLayer {
    inner: SharedDriver,
    store: Store,
    options: CachesOptions,
    events: Option<mpsc::Sender<CacheEvent>>,
    cancel: CancellationToken,
    volumes: Mutex<HashMap<VolumeId, Arc<Volume>>>,
    /// Who writes to which of the volumes.
    writers: Mutex<Writers>,
    /// One of a kind at a time uses all cores already, and memory once. A step that needs its cache does not wait for what an
    /// earlier one has left under another key.
    restores: Semaphore,
    persists: Semaphore,
    /// The keys that are being persisted, or wait for their turn.
    persisting: watch::Sender<Vec<CacheKey>>,
    /// Why the store is not asked any more: each cache would wait for it as long as the first one did.
    down: Mutex<Option<String>>,
}

/// The containers that write to cache volumes: each one's name, and its volumes.
type Writers = HashMap<ContainerId, (String, Vec<Arc<Volume>>)>;

/// A cache volume.
#[derive(Debug)]
struct Volume {
    id: VolumeId,
    job: Option<JobId>,
    spec: CacheSpec,
    /// Whether its content is whole. Who restores or persists holds the lock.
    ready: tokio::sync::Mutex<bool>,
    /// Whether anything may have been written since it was persisted.
    used: AtomicBool,
    /// Whether an earlier process of the job made it: what was written to it then, and whether that was persisted, is not known.
    attached: AtomicBool,
    /// The cache that it was filled with, and what it then was.
    filled: Mutex<Option<(Found, Arc<Known>)>>,
    /// Each task that wrote to it, and whether its last attempt succeeded.
    tasks: Mutex<HashMap<String, bool>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CachesLayer {
    /// A layer around `inner`.
    #[must_use]
    pub fn new(inner: SharedDriver, store: Store, options: CachesOptions) -> Self {
        Self {
            inner,
            store,
            options,
            events: None,
            cancel: CancellationToken::new(),
            volumes: Mutex::default(),
            writers: Mutex::default(),
            restores: Semaphore::new(1),
            persists: Semaphore::new(1),
            persisting: watch::Sender::default(),
            down: Mutex::default(),
        }
    }

    /// Tells what happens. The channel is waited for: receive from it, or drop the receiver.
    #[must_use]
    pub fn events(mut self, events: mpsc::Sender<CacheEvent>) -> Self {
        self.events = Some(events);
        self
    }

    /// Restores and persists no more when `token` is cancelled.
    #[must_use]
    pub fn cancel_with(mut self, token: &CancellationToken) -> Self {
        self.cancel = token.child_token();
        self
    }

    fn known(&self, id: &VolumeId) -> Option<Arc<Volume>> {
        lock(&self.volumes).get(id).cloned()
    }

    fn volume(&self, id: &VolumeId, labelled: &VolumeSpec, spec: CacheSpec) -> Arc<Volume> {
        let make = || {
            let job = labelled.labels.get(labels::JOB);
            Arc::new(Volume {
                id: id.clone(),
                job: job.and_then(|job| JobId::new(job.as_str()).ok()),
                spec,
                ready: tokio::sync::Mutex::new(false),
                used: AtomicBool::new(false),
                attached: AtomicBool::new(false),
                filled: Mutex::default(),
                tasks: Mutex::default(),
            })
        };
        lock(&self.volumes).entry(id.clone()).or_insert_with(make).clone()
    }

    /// Makes the volume and fills it. A volume whose restore an earlier process did not finish is made anew: a second,
    /// empty volume tells that one is whole, because a volume's labels can't be changed.
    async fn fill(&self, volume: &Volume, spec: &VolumeSpec) -> Result<Created> {
        let created = self.inner.create_volume(&volume.id, spec).await?;
        let Some(job) = &volume.job else {
            if created == Created::New {
                self.restore(volume, spec).await?;
            }
            return Ok(created);
        };
        let mark = mark(&volume.id)?;
        if created == Created::Existing {
            let held = self.inner.list(Some(job)).await?;
            if held.iter().any(|resource| resource.id == mark.as_str()) {
                volume.attached.store(true, Ordering::Relaxed);
                return Ok(created);
            }
            // What the process that is gone was restoring by.
            let own = Runner::current().to_string();
            for left in held.iter().filter(|left| left.kind == ResourceKind::Container) {
                let of = left.labels.get(labels::OUTPUT);
                if of.is_some_and(|of| of == labels::OUTPUT_CONTENT) && left.labels.get(labels::RUNNER) != Some(&own) {
                    self.inner
                        .remove_container(&ContainerId::new(left.id.as_str())?)
                        .await?;
                }
            }
            match self.inner.remove_volume(&volume.id).await {
                // Someone uses it: it was made without this layer.
                Err(error) if error.kind() == ErrorKind::Conflict => return Ok(created),
                removed => removed?,
            }
            self.inner.create_volume(&volume.id, spec).await?;
        }
        self.restore(volume, spec).await?;
        let mut marked = spec.clone();
        marked.labels.remove(LABEL);
        self.inner.create_volume(&mark, &marked).await?;
        Ok(created)
    }

    /// Persists the volume if someone wrote to it and all of them succeeded. Of one that an earlier process made, only who says
    /// that its last user has ended knows that nobody was in the middle of it.
    async fn persist_used(&self, volume: &Volume, last_user_has_ended: bool) {
        if !self.options.policy.pushes() || !volume.spec.policy.pushes() {
            return;
        }
        let used = volume.used.swap(false, Ordering::Relaxed);
        let taken_up = last_user_has_ended && volume.attached.swap(false, Ordering::Relaxed);
        if !used && !taken_up {
            return;
        }
        let failed = lock(&volume.tasks)
            .iter()
            .find(|(_, succeeded)| !**succeeded)
            .map(|(task, _)| task.clone());
        let kind = match failed {
            Some(task) => CacheEventKind::Skipped { task },
            None => self.persist(volume).await,
        };
        self.tell(volume, kind).await;
    }

    async fn tell(&self, volume: &Volume, kind: CacheEventKind) {
        if let Some(events) = &self.events {
            let event = CacheEvent {
                volume: volume.id.clone(),
                key: volume.spec.key.clone(),
                kind,
            };
            // A receiver that was dropped does not want to know.
            events.send(event).await.ok();
        }
    }
}

fn mark(id: &VolumeId) -> Result<VolumeId> {
    VolumeId::new(format!("{id}.restored"))
}

impl fmt::Display for CachesLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "caches({})", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Driver for CachesLayer {
    fn info(&self) -> &DriverInfo {
        self.inner.info()
    }

    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }

    async fn pull_image(&self, pull: &PullImage) -> Result<PullStream> {
        self.inner.pull_image(pull).await
    }

    async fn import_image(&self, image: &ImageRef, archive: ByteStream) -> Result<()> {
        self.inner.import_image(image, archive).await
    }

    async fn image_exists(&self, image: &ImageRef) -> Result<bool> {
        self.inner.image_exists(image).await
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<()> {
        self.inner.remove_image(image).await
    }

    async fn create_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        let Some(cache) = CacheSpec::of(&spec.labels)? else {
            return self.inner.create_volume(id, spec).await;
        };
        let volume = self.volume(id, spec, cache);
        let mut ready = volume.ready.lock().await;
        if *ready {
            return self.inner.create_volume(id, spec).await;
        }
        let created = self.fill(&volume, spec).await?;
        *ready = true;
        Ok(created)
    }

    async fn write_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        if let Some(volume) = self.known(id) {
            volume.used.store(true, Ordering::Relaxed);
        }
        self.inner.write_volume(id, path, tar).await
    }

    async fn read_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        self.inner.read_volume(id, paths).await
    }

    async fn volume_directory(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        if let Some(volume) = self.known(id) {
            // What is written there, nobody is told.
            volume.used.store(true, Ordering::Relaxed);
        }
        self.inner.volume_directory(id).await
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<()> {
        let Some(volume) = self.known(id) else {
            return self.inner.remove_volume(id).await;
        };
        let mut ready = volume.ready.lock().await;
        if *ready {
            self.persist_used(&volume, true).await;
        }
        self.inner.remove_volume(id).await?;
        *ready = false;
        if volume.job.is_some() {
            self.inner.remove_volume(&mark(id)?).await?;
        }
        // Who waits for the lock makes it anew.
        lock(&volume.tasks).clear();
        lock(&volume.filled).take();
        Ok(())
    }

    async fn create_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        let written = spec.mounts.iter().filter(|mount| !mount.read_only);
        let volumes: Vec<_> = written.filter_map(|mount| self.known(&mount.volume)).collect();
        let named = [labels::STEP, labels::NAME]
            .into_iter()
            .find_map(|label| spec.labels.get(label));
        let task = named.map_or_else(|| id.to_string(), Clone::clone);
        let created = self.inner.create_container(id, spec).await?;
        for volume in &volumes {
            volume.used.store(true, Ordering::Relaxed);
            lock(&volume.tasks).insert(task.clone(), false);
        }
        if !volumes.is_empty() {
            lock(&self.writers).insert(id.clone(), (task, volumes));
        }
        Ok(created)
    }

    async fn write_files(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()> {
        self.inner.write_files(id, files).await
    }

    async fn start_container(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        self.inner.start_container(id, stdin).await
    }

    async fn logs(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        self.inner.logs(id, follow).await
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<ExitStatus> {
        let exit = self.inner.wait_container(id).await?;
        if let Some((task, volumes)) = lock(&self.writers).get(id) {
            for volume in volumes {
                lock(&volume.tasks).insert(task.clone(), exit.success());
            }
        }
        Ok(exit)
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec, stdin: Option<ByteStream>) -> Result<ExecStream> {
        self.inner.exec(id, spec, stdin).await
    }

    async fn signal_container(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        self.inner.signal_container(id, signal).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.inner.remove_container(id).await?;
        lock(&self.writers).remove(id);
        Ok(())
    }

    async fn list(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        self.inner.list(job).await
    }

    async fn end_job(&self, job: &JobId) -> Result<EndReport> {
        let of_job = |volume: &&Arc<Volume>| volume.job.as_ref() == Some(job);
        let volumes: Vec<_> = lock(&self.volumes).values().filter(of_job).cloned().collect();
        for volume in &volumes {
            let ready = volume.ready.lock().await;
            if *ready {
                self.persist_used(volume, false).await;
            }
        }
        let report = self.inner.end_job(job).await?;
        lock(&self.volumes).retain(|_, volume| volume.job.as_ref() != Some(job));
        lock(&self.writers).retain(|_, (_, volumes)| volumes.iter().all(|volume| volume.job.as_ref() != Some(job)));
        Ok(report)
    }
}
