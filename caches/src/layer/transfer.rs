//! Restores and persists of one volume, in bounded time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use orchestra::{ByteStream, Error, ErrorKind, Result, SharedDriver, VolumeId, VolumePath, VolumeSpec};
use orchestra_volumes::{Comparison, ExactVolumes, Known, Since, Tree};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::{CachesLayer, Volume, lock};
use crate::archive::checked;
use crate::store::Content;
use crate::{CacheEventKind, CacheKey, Found, Persist};

/// How long a store may take to say what it has, and to begin to send it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many caches may be found to be damaged before none is restored.
const DAMAGED: usize = 3;
/// How long the last try to leave the engine as it should be may take.
const MENDING: Duration = Duration::from_secs(120);
/// Pause before a volume is tried to be removed again that something of the broken transfer still uses.
const AGAIN: Duration = Duration::from_millis(100);

impl CachesLayer {
    /// Fills a volume that is new. It is empty afterwards if that did not go well.
    pub(super) async fn restore(&self, volume: &Volume, spec: &VolumeSpec) -> Result<()> {
        if !self.options.policy.pulls() || !volume.spec.policy.pulls() {
            return Ok(());
        }
        let began = Instant::now();
        tokio::select! {
            biased;
            // The restore says so.
            () = self.cancel.cancelled() => {}
            () = self.handed_over(volume) => {}
        }
        let touched = AtomicBool::new(false);
        let restoring = self.try_restore(volume, spec, &touched);
        let restored = self.bounded(&self.restores, restoring).await;
        let kind = match restored {
            Ok(Some((found, fetched))) => CacheEventKind::Restored {
                from: found.entry.key,
                exact: found.exact,
                size: found.entry.size,
                fetched,
                duration: began.elapsed(),
                damaged: found.damaged,
            },
            Ok(None) => CacheEventKind::Missed {
                duration: began.elapsed(),
            },
            Err(error) => {
                if touched.load(Ordering::Relaxed) {
                    self.empty(volume, spec).await?;
                }
                CacheEventKind::NotRestored {
                    error: error.to_string(),
                    hint: error.hint().map(str::to_owned),
                }
            }
        };
        self.tell(volume, kind).await;
        Ok(())
    }

    /// Waits for what an earlier user of the same key has left, as long as that is on its way to the store.
    async fn handed_over(&self, volume: &Volume) {
        let mut persisting = self.persisting.subscribe();
        let there = persisting.wait_for(|keys| !keys.contains(&volume.spec.key));
        // Else it is what was there before.
        timeout(self.options.timeout, there).await.ok();
    }

    /// Restores the first cache that is not damaged.
    async fn try_restore(
        &self,
        volume: &Volume,
        spec: &VolumeSpec,
        touched: &AtomicBool,
    ) -> Result<Option<(Found, u64)>> {
        let (key, restore_keys) = (&volume.spec.key, &volume.spec.restore_keys);
        let limit = self.options.time_to_live;
        let (mut damaged, mut damage) = (Vec::new(), None);
        loop {
            let found = self.store.find_fresh(key, restore_keys, limit, &damaged);
            let Some(mut found) = self.ask(found).await? else {
                return damage.map_or(Ok(None), Err);
            };
            match self.restore_from(volume, &found, touched).await? {
                Restored::Whole { fetched } => {
                    let first = damage.map(|error: Error| error.to_string());
                    found.damaged = first.or(found.damaged);
                    return Ok(Some((found, fetched)));
                }
                Restored::Damaged(error) => {
                    if touched.load(Ordering::Relaxed) {
                        self.empty(volume, spec).await?;
                        touched.store(false, Ordering::Relaxed);
                    }
                    damaged.push(found.entry.key);
                    if damaged.len() == DAMAGED {
                        return Err(error);
                    }
                    damage.get_or_insert(error);
                }
            }
        }
    }

    async fn restore_from(&self, volume: &Volume, found: &Found, touched: &AtomicBool) -> Result<Restored> {
        let (limit, size) = (self.limit(volume), found.entry.size);
        if let Some(limit) = limit.filter(|limit| size > *limit) {
            let message = format!("it is {size} bytes long, over its limit of {limit} bytes, and is not restored");
            return Err(Error::invalid(message).with_hint("raise its `size_limit`"));
        }
        let restoring = match self.ask(self.store.restore(&found.entry)).await {
            Err(error) if error.kind() == ErrorKind::Protocol => return Ok(Restored::Damaged(error)),
            restoring => restoring?,
        };
        let (failed, damaged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        // Damage says nothing about the store.
        let content = noting(restoring.content, failed.clone(), |error| {
            error.kind() != ErrorKind::Protocol
        });
        let content = noting(checked(content, volume.spec.devices), damaged.clone(), |error| {
            error.kind() == ErrorKind::Protocol
        });
        let transfer = self.transfer(volume)?;
        touched.store(true, Ordering::Relaxed);
        let filled = transfer.fill(&volume.id, content).await;
        let filled = match filled {
            // An engine's answer that makes no sense is no damage of the cache.
            Err(error) if damaged.load(Ordering::Relaxed) => return Ok(Restored::Damaged(error)),
            filled => filled.inspect_err(|error| {
                if failed.load(Ordering::Relaxed) {
                    self.give_up(error);
                }
            })?,
        };
        *lock(&volume.filled) = filled.map(|known| {
            let known = match found.entry.own {
                true => known,
                false => Known::as_a_whole(known.fingerprint()),
            };
            (found.clone(), Arc::new(known))
        });
        Ok(Restored::Whole {
            fetched: restoring.fetched,
        })
    }

    /// Makes a volume that is half filled empty again.
    async fn empty(&self, volume: &Volume, spec: &VolumeSpec) -> Result<()> {
        let anew = async {
            // A transfer that was given up ends behind our back: its container holds the volume for a moment longer.
            while let Err(error) = self.inner.remove_volume(&volume.id).await {
                if error.kind() != ErrorKind::Conflict {
                    return Err(error);
                }
                tokio::time::sleep(AGAIN).await;
            }
            self.inner.create_volume(&volume.id, spec).await
        };
        let late = || {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                "a volume whose restore failed was not made anew",
            ))
        };
        timeout(MENDING, anew).await.unwrap_or_else(|_| late()).map(|_| ())
    }

    pub(super) async fn persist(&self, volume: &Volume) -> CacheEventKind {
        let _noted = Noted::in_list(&self.persisting, &volume.spec.key);
        match self.bounded(&self.persists, self.try_persist(volume)).await {
            Ok(persisted) => CacheEventKind::Persisted(persisted),
            Err(error) => CacheEventKind::NotPersisted {
                error: error.to_string(),
                hint: error.hint().map(str::to_owned),
            },
        }
    }

    async fn try_persist(&self, volume: &Volume) -> Result<crate::Persisted> {
        let (began, spec) = (Instant::now(), &volume.spec);
        // Before the engine is asked for anything.
        self.ask(self.store.check()).await?;
        let transfer = self.transfer(volume)?;
        let limit = self.limit(volume);
        let filled = lock(&volume.filled).clone();
        // A fallback is persisted under another key, changed or not.
        let exact = filled.as_ref().filter(|(found, _)| found.exact);
        let renew = async || {
            let Some((found, _)) = exact else {
                return Ok(None);
            };
            let renewed = self.ask(self.store.renew(&found.entry)).await?;
            Ok::<_, Error>(renewed.map(|renewed| crate::Persisted {
                duration: began.elapsed(),
                ..renewed
            }))
        };
        let paths = match spec.paths.as_slice() {
            [] => vec![VolumePath::root()],
            paths => VolumePath::outermost(paths),
        };
        let failed = Arc::new(AtomicBool::new(false));
        let mut contents = Vec::new();
        let tree = transfer.tree(&volume.id).await?;
        let parts = |tree: Tree, comparison: Option<Arc<Comparison>>| {
            let (paths, failed, devices) = (paths.clone(), failed.clone(), spec.devices);
            Content::Parts(Box::new(move |cuts| {
                let since = comparison.zip(cuts);
                let since = since.map(|(comparison, cuts)| Since { comparison, cuts });
                noting(tree.read(&paths, since, devices), failed, |_| true)
            }))
        };
        if let Some(tree) = &tree {
            let comparison = match &filled {
                // What can't be looked at is told by reading it; and of what is known as a whole nothing comes but that it is the same.
                Some((found, known)) if found.exact || found.entry.own => tree.compare(known.clone()).await.ok(),
                _ => None,
            };
            if comparison.as_ref().is_some_and(Comparison::is_unchanged)
                && let Some(same) = renew().await?
            {
                return Ok(same);
            }
            contents.push(parts(tree.clone(), comparison.map(Arc::new)));
        } else {
            for (at, path) in paths.iter().enumerate() {
                let mut content = None;
                // It is the volume that is unchanged, so the first path tells of all.
                if let Some((_, known)) = exact.filter(|_| at == 0) {
                    content = transfer.read_unless(&volume.id, path, known.clone()).await?;
                    if content.is_none()
                        && let Some(same) = renew().await?
                    {
                        return Ok(same);
                    }
                }
                let content = match content {
                    Some(content) => Ok(content),
                    None => transfer.read(&volume.id, path).await,
                };
                let content = if_there(content).await?;
                contents.extend(content.map(|content| Content::Tar(noting(content, failed.clone(), |_| true))));
            }
        }
        let options = Persist {
            size_limit: limit,
            devices: spec.devices,
        };
        let from = filled.as_ref().map(|(found, _)| &found.entry);
        let mut persisted = self.store.persist_all(&spec.key, from, contents, options).await;
        // What was taken for unchanged is not packed as it was, or what it relied on was pruned: then all of it is read.
        if let (Err(error), Some(tree)) = (&persisted, tree)
            && error.kind() == ErrorKind::Conflict
        {
            failed.store(false, Ordering::Relaxed);
            let contents = vec![parts(tree, None)];
            persisted = self.store.persist_all(&spec.key, None, contents, options).await;
        }
        persisted.inspect_err(|error| {
            // What the volume's content or the limit is to blame for says nothing about the store.
            let of_store = !failed.load(Ordering::Relaxed);
            if of_store && !matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Conflict) {
                self.give_up(error);
            }
        })
    }

    /// How many bytes its cache may have.
    fn limit(&self, volume: &Volume) -> Option<u64> {
        volume.spec.size_limit.or(self.options.size_limit)
    }

    /// How content gets into the volume and out of it. The ruin of BuildKit's state is not worth a cache of it: what has
    /// devices goes exactly, or not at all.
    fn transfer(&self, volume: &Volume) -> Result<Transfer> {
        let exact = volume
            .job
            .as_ref()
            .map(|job| ExactVolumes::new(self.inner.clone(), job.clone()));
        match exact {
            Some(Ok(exact)) => Ok(Transfer::Exact(exact)),
            Some(Err(error)) if volume.spec.devices => Err(error),
            None if volume.spec.devices => Err(Error::new(
                ErrorKind::Unsupported,
                "a volume of no job is not read exactly, which a cache with devices has to be",
            )),
            _ => Ok(Transfer::Plain(self.inner.clone())),
        }
    }

    /// A transfer: when it is its turn, as long as it may take, and until all is cancelled.
    async fn bounded<T>(&self, turns: &Semaphore, work: impl Future<Output = Result<T>>) -> Result<T> {
        let work = async {
            let _turn = turns.acquire().await;
            if let Some(why) = lock(&self.down).clone() {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("the cache store has failed before: {why}"),
                )
                .with_hint("the first failure says why"));
            }
            let limit = self.options.timeout;
            timeout(limit, work).await.unwrap_or_else(|_| {
                let late = Error::new(ErrorKind::DeadlineExceeded, format!("it took longer than {limit:?}"))
                    .with_hint("raise `timeout` under `[caches]`, or keep less in the cache with `paths`");
                self.give_up(&late);
                Err(late)
            })
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the run was cancelled")),
            done = work => done,
        }
    }

    /// A question to the store. One that is not answered is the last one.
    async fn ask<T>(&self, question: impl Future<Output = Result<T>>) -> Result<T> {
        let late = || {
            let message = format!(
                "the cache store {} did not answer within {PATIENCE:?}",
                self.store.address()
            );
            Err(Error::new(ErrorKind::DeadlineExceeded, message).with_hint("check whether it runs, and the way to it"))
        };
        let answer = timeout(PATIENCE, question).map(|answer| answer.unwrap_or_else(|_| late()));
        answer.await.inspect_err(|error| {
            // Damage is of one cache.
            if error.kind() != ErrorKind::Protocol {
                self.give_up(error);
            }
        })
    }

    fn give_up(&self, error: &Error) {
        lock(&self.down).get_or_insert_with(|| error.to_string());
    }
}

/// How it went with one of the caches that a volume may be filled from.
enum Restored {
    /// So many bytes were fetched.
    Whole { fetched: u64 },
    /// The cache is to blame, and no one else.
    Damaged(Error),
}

/// A key in a list, for as long as this lives.
struct Noted<'l> {
    list: &'l watch::Sender<Vec<CacheKey>>,
    key: CacheKey,
}

impl<'l> Noted<'l> {
    fn in_list(list: &'l watch::Sender<Vec<CacheKey>>, key: &CacheKey) -> Self {
        list.send_modify(|keys| keys.push(key.clone()));
        let key = key.clone();
        Self { list, key }
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.list.send_modify(|keys| {
            if let Some(at) = keys.iter().position(|key| *key == self.key) {
                keys.swap_remove(at);
            }
        });
    }
}

/// The same stream; whether it ended with such an error is noted.
fn noting<T: Send + 'static>(
    content: BoxStream<'static, Result<T>>,
    failed: Arc<AtomicBool>,
    counts: fn(&Error) -> bool,
) -> BoxStream<'static, Result<T>> {
    let note = move |error: &Error| {
        if counts(error) {
            failed.store(true, Ordering::Relaxed);
        }
    };
    content.inspect_err(note).boxed()
}

/// A way into a volume and out of it.
enum Transfer {
    /// With everything that there is to a file.
    Exact(ExactVolumes),
    /// As the engine's own calls do it.
    Plain(SharedDriver),
}

impl Transfer {
    async fn fill(&self, volume: &VolumeId, tar: ByteStream) -> Result<Option<Known>> {
        match self {
            Self::Exact(volumes) => volumes.fill(volume, tar).await,
            Self::Plain(driver) => driver
                .write_volume(volume, &VolumePath::root(), tar)
                .await
                .map(|()| None),
        }
    }

    async fn tree(&self, volume: &VolumeId) -> Result<Option<Tree>> {
        match self {
            Self::Exact(volumes) => volumes.tree(volume).await,
            Self::Plain(_) => Ok(None),
        }
    }

    async fn read(&self, volume: &VolumeId, path: &VolumePath) -> Result<ByteStream> {
        match self {
            Self::Exact(volumes) => volumes.read(volume, std::slice::from_ref(path)).await,
            Self::Plain(driver) => driver.read_volume(volume, std::slice::from_ref(path)).await,
        }
    }

    /// Nothing if the volume is what it was when it was filled.
    async fn read_unless(
        &self,
        volume: &VolumeId,
        path: &VolumePath,
        filled: Arc<Known>,
    ) -> Result<Option<ByteStream>> {
        match self {
            Self::Exact(volumes) => volumes.read_unless(volume, std::slice::from_ref(path), filled).await,
            Self::Plain(_) => self.read(volume, path).await.map(Some),
        }
    }
}

/// The content of a path, if the volume has it.
async fn if_there(content: Result<ByteStream>) -> Result<Option<ByteStream>> {
    let content = match content {
        Err(error) if error.kind() == ErrorKind::PathNotFound => return Ok(None),
        content => content?,
    };
    let mut content = content.peekable();
    let first = std::pin::Pin::new(&mut content).peek().await;
    if let Some(Err(error)) = first
        && error.kind() == ErrorKind::PathNotFound
    {
        return Ok(None);
    }
    Ok(Some(content.boxed()))
}
