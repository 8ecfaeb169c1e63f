//! Caches of a run: which volumes they are, and what is told of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use orchestra::{
    ContainerPath, Error, ErrorKind, Labels, Name, Result, SharedDriver, Task, VolumeId, VolumePath, file_from_tar,
};
use orchestra_caches::{CacheEvent, CacheEventKind, CacheSpec, CachesLayer, CachesOptions, Store};
use orchestra_secrets::Secrets;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::RunOptions;
use super::event::{RunEventKind, Teller};
use super::job::EVENTS;
use super::tree::Scope;
use crate::cache::{CachePlan, checksum};
use crate::{Action, Artifact, Step};

/// Where caches are kept from run to run, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Caches {
    /// The store.
    pub store: Store,
    /// How it is used.
    pub options: CachesOptions,
}

impl Caches {
    /// Caches in this store.
    #[must_use]
    pub fn new(store: Store, options: CachesOptions) -> Self {
        Self { store, options }
    }
}

/// Which step a cache volume is of, for what is told of it.
type Places = Arc<Mutex<HashMap<VolumeId, Place>>>;

#[derive(Clone, Debug)]
struct Place {
    job: Name,
    step: Name,
    path: ContainerPath,
    /// The first of its steps, and as that one has it: that is the volume's.
    first: (Name, CacheSpec),
    /// The steps that were told that they want it differently.
    told: Vec<Name>,
}

/// The layer's events on their way to whoever watches the run.
#[derive(Debug)]
pub(super) struct CacheEvents {
    places: Places,
    ended: oneshot::Sender<()>,
    told: JoinHandle<Vec<String>>,
}

/// What steps need to know of the run's caches.
#[derive(Clone, Debug, Default)]
pub(super) struct CacheUse(Option<Places>);

impl CacheUse {
    /// Whether caches are kept from run to run.
    pub(super) fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

/// The driver with the layer around it.
pub(super) fn wrap(
    driver: SharedDriver,
    caches: &Caches,
    options: &RunOptions,
    teller: &Teller,
) -> (SharedDriver, CacheEvents, CacheUse) {
    let (send, events) = mpsc::channel(EVENTS);
    let layer = CachesLayer::new(driver, caches.store.clone(), caches.options.clone())
        .events(send)
        .cancel_with(&options.cancel);
    let places = Places::default();
    let (ended, end) = oneshot::channel();
    let (cancel, secrets) = (options.cancel.clone(), options.secrets.clone());
    let told = tokio::spawn(tell(events, end, places.clone(), teller.clone(), cancel, secrets));
    let in_use = CacheUse(Some(places.clone()));
    (Arc::new(layer), CacheEvents { places, ended, told }, in_use)
}

impl CacheEvents {
    /// Waits until all is told, and returns the warnings among it.
    pub(super) async fn finish(self) -> Vec<String> {
        self.ended.send(()).ok();
        let warnings = self.told.await.unwrap_or_default();
        self.places.lock().unwrap_or_else(PoisonError::into_inner).clear();
        warnings
    }
}

async fn tell(
    mut events: mpsc::Receiver<CacheEvent>,
    mut end: oneshot::Receiver<()>,
    places: Places,
    teller: Teller,
    cancel: CancellationToken,
    secrets: Option<Secrets>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            _ = &mut end => events.try_recv().ok(),
        };
        let Some(mut event) = event else { return warnings };
        // A store's complaint may have the credentials that it was asked with.
        if let Some(secrets) = &secrets {
            let texts = match &mut event.kind {
                CacheEventKind::NotRestored { error, hint } | CacheEventKind::NotPersisted { error, hint } => {
                    [Some(error), hint.as_mut()]
                }
                CacheEventKind::Restored { damaged, .. } => [damaged.as_mut(), None],
                _ => [None, None],
            };
            for text in texts.into_iter().flatten() {
                *text = secrets.redact(text);
            }
        }
        let place = places
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&event.volume)
            .cloned();
        let Some(Place { job, step, path, .. }) = place else {
            continue;
        };
        let warning = warning(&event.kind, &step, &path).filter(|_| !cancel.is_cancelled());
        teller
            .tell(RunEventKind::Cache {
                job: job.clone(),
                step,
                path,
                detail: Box::new(event),
            })
            .await;
        if let Some(message) = warning {
            warnings.push(message.clone());
            teller
                .tell(RunEventKind::Warning {
                    job: Some(job),
                    message,
                })
                .await;
        }
    }
}

fn warning(kind: &CacheEventKind, step: &Name, path: &ContainerPath) -> Option<String> {
    let (what, error, hint) = match kind {
        CacheEventKind::NotRestored { error, hint } => ("restored; the step runs without it", error, hint),
        CacheEventKind::NotPersisted { error, hint } => ("persisted; what the store has of it stays", error, hint),
        CacheEventKind::Restored {
            from,
            damaged: Some(damaged),
            ..
        } => {
            return Some(format!(
                "{step}: the cache {path} comes from {from}, because another is damaged: {damaged}"
            ));
        }
        CacheEventKind::Persisted(persisted) if persisted.devices_left_out > 0 => {
            let number = persisted.devices_left_out;
            return Some(format!(
                "{step}: {number} devices were left out of the cache {path}; set `devices: true` on it to keep them"
            ));
        }
        _ => return None,
    };
    let hint = hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
    Some(format!("{step}: the cache {path} was not {what}: {error}{hint}"))
}

/// What the names of caches' volumes begin with.
const CACHE: &str = "cache.";

/// A cache's volume, told by the step and the path it stands at. A path is no valid name, and two of them may be hard to
/// tell apart when made one: hence the hash. No artifact can be called `cache.…`.
fn volume_name(told_by: impl AsRef<[u8]>) -> Result<Name> {
    hashed(CACHE.trim_end_matches('.'), told_by)
}

/// A name of Orchestra's own, which no artifact has.
pub(crate) fn hashed(kind: &str, told_by: impl AsRef<[u8]>) -> Result<Name> {
    let digest = Sha256::digest(told_by);
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Name::new(format!("{kind}.{hash}"))
}

impl super::job::JobRun<'_> {
    /// The caches of a step, each with its volume's name and labels. The volumes of `artifacts` are there, under these names.
    pub(super) async fn caches(
        &self,
        step: &Step,
        artifacts: &[(&Artifact, Name)],
        caches: &[CachePlan],
    ) -> Result<Vec<(Name, Labels)>> {
        let mut found = Vec::new();
        for cache in caches {
            if let Some(volume) = &cache.volume {
                found.push((volume.clone(), Labels::new()));
                continue;
            }
            let own = volume_name(format!("{}\0{}", step.name, cache.path))?;
            if !self.cache_use.is_on() {
                found.push((own, Labels::new()));
                continue;
            }
            match self.cache_spec(step, artifacts, cache).await {
                Ok(spec) => {
                    // Steps whose keys are the same share one.
                    let name = volume_name(spec.key.as_str())?;
                    if let Some(first) = self.place(step, cache, &name, &spec) {
                        let message = format!(
                            "{}: the cache {} has the key of {first}'s, whose settings count for both; give it another \
                             `key`, or the same settings",
                            step.name, cache.path
                        );
                        self.warn(message).await;
                    }
                    found.push((name, Labels::from([spec.label()])));
                }
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => {
                    let message = format!(
                        "{}: the cache {} has no key, and is not kept after this run: {error}",
                        step.name, cache.path
                    );
                    self.warn(message).await;
                    found.push((own, Labels::new()));
                }
            }
        }
        Ok(found)
    }

    /// The inputs of a task that there are, each with its volume's name.
    pub(super) fn inputs_of<'p>(&self, step: &'p Step, scope: &Scope) -> Vec<(&'p Artifact, Name)> {
        let Action::Task(plan) = &step.action else {
            return Vec::new();
        };
        let there = |input: &'p Artifact| Some((input, scope.artifacts.volume(&input.name).ok()?));
        plan.inputs.iter().filter_map(there).collect()
    }

    /// Takes up the caches of a step that an earlier process of the run has seen the end of. What it wrote to them may not
    /// have been persisted: that is made up for when their last user has ended.
    pub(super) async fn caches_of_ended(&self, step: &Step, inputs: &[(&Artifact, Name)], used: &mut Vec<Name>) {
        if !self.cache_use.is_on() {
            return;
        }
        let took_up = async {
            let wanted = self.caches(step, inputs, step.caches()).await?;
            used.extend(wanted.iter().map(|(name, _)| name.clone()));
            let there = wanted.into_iter().filter(|(name, _)| self.is_left(name));
            self.volumes(&there.collect::<Vec<_>>()).await
        };
        if let Err(error) = took_up.await {
            tracing::debug!(step = %step.name, %error, "the caches of a step that has ended are left as they are");
        }
    }

    /// Notes which step a cache volume is of now. The first of its steps, if that one has it with other settings and this one
    /// was not told so before.
    fn place(&self, step: &Step, cache: &CachePlan, volume: &Name, spec: &CacheSpec) -> Option<Name> {
        let mut places = self
            .cache_use
            .0
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(self.job.id().volume(volume)).or_insert_with(|| Place {
            job: self.plan.name.clone(),
            step: step.name.clone(),
            path: cache.path.clone(),
            first: (step.name.clone(), spec.clone()),
            told: Vec::new(),
        });
        place.step.clone_from(&step.name);
        place.path.clone_from(&cache.path);
        if place.first.1 == *spec || place.told.contains(&step.name) {
            return None;
        }
        place.told.push(step.name.clone());
        Some(place.first.0.clone())
    }

    async fn cache_spec(&self, step: &Step, artifacts: &[(&Artifact, Name)], cache: &CachePlan) -> Result<CacheSpec> {
        let mut checksums = HashMap::new();
        for file in cache.files() {
            if !checksums.contains_key(file) {
                checksums.insert(file.clone(), self.checksum(artifacts, file).await?);
            }
        }
        let of = |file: &ContainerPath| checksums.get(file).cloned().unwrap_or_default();
        let (key, restore_keys) = cache.keys(self.pipeline, &self.plan.name, &step.name, of)?;
        let mut spec = CacheSpec::new(key);
        spec.restore_keys = restore_keys;
        spec.policy = cache.policy;
        spec.size_limit = cache.size_limit;
        spec.paths.clone_from(&cache.paths);
        spec.devices = cache.devices;
        Ok(spec)
    }

    /// The checksum of a file of an artifact.
    async fn checksum(&self, artifacts: &[(&Artifact, Name)], file: &ContainerPath) -> Result<String> {
        let (volume, path) = artifacts
            .iter()
            .find_map(|(artifact, volume)| Some((volume.clone(), within(artifact, file)?)))
            .ok_or_else(|| Error::invalid(format!("{file} is in none of the step's inputs")))?;
        let volumes = self.volumes(&[(volume, Labels::new())]).await?;
        let Some(volume) = volumes.first().cloned() else {
            return Err(Error::invalid(format!("{file} is in none of the step's inputs")));
        };
        let driver = self.driver.clone();
        let work = async move {
            let tar = driver.read_volume(&volume, std::slice::from_ref(&path)).await?;
            let mut content = file_from_tar(tar, &path).await?;
            let mut hash = Sha256::new();
            while let Some(piece) = content.next().await {
                hash.update(&piece?);
            }
            Ok::<_, Error>(checksum(&hash))
        };
        self.watch(work).await.map_err(|error| match error.kind() {
            ErrorKind::PathNotFound => Error::new(ErrorKind::PathNotFound, format!("{file} is not there")),
            _ => error.with("file", file),
        })
    }

    /// Lets caches go whose last user in this job was this step. They are persisted while later steps run.
    pub(super) fn release(&self, step: &Step, names: &[Name]) {
        let leaves = self.plan.leaves();
        // A shared builder writes to its caches until the job's end, of a step too that was only now known to have it.
        if step.shares_a_builder() {
            return;
        }
        // Which caches such a step has is known when it runs.
        let is_late = |other: &&Step| matches!(other.action, Action::Late(_)) && self.is_pending(other);
        if leaves.iter().any(is_late) {
            return;
        }
        for (cache, name) in step.caches().iter().zip(names) {
            let identity = cache.identity(&step.name);
            let shares = |other: &&Step| {
                other
                    .caches()
                    .iter()
                    .any(|cache| cache.identity(&other.name) == identity)
            };
            // A shared builder writes to it until the job's end.
            let in_use = |other: &&&Step| self.is_pending(other) || other.shares_a_builder();
            if leaves.iter().filter(|other| shares(other)).any(|other| in_use(&other)) {
                continue;
            }
            self.let_go(name);
        }
    }

    /// Lets all caches go: all steps of the job have ended.
    pub(super) fn release_all(&self) {
        for name in self
            .volume_names()
            .iter()
            .filter(|name| name.as_str().starts_with(CACHE))
        {
            self.let_go(name);
        }
    }

    fn let_go(&self, name: &Name) {
        let Some(volume) = self.forget(name) else { return };
        let driver = self.driver.clone();
        self.releasing.spawn(async move {
            // In a run that is kept or can be carried on with, a container of the step uses it: it is persisted, and stays
            // until the job's end.
            if let Err(error) = driver.remove_volume(&volume).await
                && error.kind() != ErrorKind::Conflict
            {
                tracing::debug!(%volume, %error, "a cache's volume is left to the job's end");
            }
        });
    }
}

/// Where a file is in an artifact, if it is in it.
pub(crate) fn within(artifact: &Artifact, file: &ContainerPath) -> Option<VolumePath> {
    let (mount, file) = (
        artifact.path.resolve(Task::WORKING_DIR),
        file.resolve(Task::WORKING_DIR),
    );
    let rest = file.strip_prefix(&mount)?.strip_prefix('/')?;
    VolumePath::new(rest).ok()
}
