//! What nothing refers to any more goes: first it is condemned, and a grace period later, if still nothing refers to it,
//! deleted. Whoever read an entry before has as long to finish.

use std::collections::{HashMap, HashSet};
use std::path::Path as FilePath;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt};
use orchestra::{Error, ErrorKind, Result};

use super::{AT_ONCE, CONDEMNED, ENTRIES, Loaded, MANIFESTS, PACKS, Store, VERSION_OBJECT, name_of};
use crate::CacheKey;
use crate::format::Hash;

/// Its time is what the store's clock says: that of this machine may be another one.
const CLOCK: &str = "prune";

/// What is pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prune {
    /// Caches that were not persisted for so long go. `None` keeps them all.
    pub older_than: Option<Duration>,
    /// The caches that were persisted last stay as long as they take no more bytes than this together; others go.
    pub keep_bytes: Option<u64>,
    /// How long what nothing refers to is kept; it has to be longer than any restore or persist takes. One day where not given.
    pub grace: Duration,
    /// Only tell.
    pub dry_run: bool,
}

impl Default for Prune {
    fn default() -> Self {
        Self {
            older_than: None,
            keep_bytes: None,
            grace: Duration::from_secs(24 * 3600),
            dry_run: false,
        }
    }
}

/// What a prune did; in a dry run, what it would do now.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Pruned {
    /// Caches that went.
    pub caches: Vec<CacheKey>,
    /// Packs and manifests that went.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Packs and manifests that will go after the grace period.
    pub condemned: usize,
    /// Their bytes.
    pub condemned_bytes: u64,
}

impl Store {
    /// Removes caches by age and size, and what no cache refers to. Safe beside persists, restores and other prunes, and
    /// when it is killed at any moment: the next one carries on.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn prune(&self, options: Prune) -> Result<Pruned> {
        if !self.exists().await? {
            return Ok(Pruned::default());
        }
        let now = self.clock(options.dry_run).await?;
        // Read before the entries: what was condemned after this is not old enough to go.
        let condemned = self.condemned().await?;
        let mut pruned = Pruned::default();
        let used = self.sweep_entries(options, now, &mut pruned).await?;
        for kind in [PACKS, MANIFESTS] {
            for meta in self.objects_in(&Path::from(kind)).await? {
                let Some(name) = name_of(&meta) else { continue };
                let mark = format!("{kind}-{name}");
                let since = condemned.get(&mark).copied();
                if used.contains(&name) {
                    if since.is_some() && !options.dry_run {
                        self.delete(&condemned_path(&mark)).await?;
                    }
                    continue;
                }
                self.condemn(options, now, &meta, &mark, since, &mut pruned).await?;
            }
        }
        if !options.dry_run {
            self.remove_stale_marks(&condemned).await?;
            if let Some(folder) = self.0.folder.clone() {
                let grace = options.grace;
                super::blocking(move || remove_half_written(&folder, grace)).await?;
            }
        }
        Ok(pruned)
    }

    async fn clock(&self, dry_run: bool) -> Result<SystemTime> {
        if dry_run {
            return Ok(SystemTime::now());
        }
        let path = Path::from(CLOCK);
        self.put(&path, Bytes::new()).await?;
        let meta = self
            .0
            .objects
            .head(&path)
            .await
            .map_err(|error| self.failed("read the store's clock", error))?;
        Ok(meta.last_modified.into())
    }

    async fn condemned(&self) -> Result<HashMap<String, SystemTime>> {
        let marks = self.objects_in(&Path::from(CONDEMNED)).await?;
        let mark = |meta: ObjectMeta| Some((meta.location.filename()?.to_owned(), meta.last_modified.into()));
        Ok(marks.into_iter().filter_map(mark).collect())
    }

    /// Removes entries that are too old or too many, and returns the packs and manifests that the others use.
    async fn sweep_entries(&self, options: Prune, now: SystemTime, pruned: &mut Pruned) -> Result<HashSet<Hash>> {
        let mut bytes = 0u64;
        let mut kept = Vec::new();
        let objects = self.objects_with("").await?;
        let entries = futures_util::stream::iter(objects)
            .map(|(key, meta)| async move {
                let entry = self.read_entry(&key).await;
                (key, SystemTime::from(meta.last_modified), entry)
            })
            .buffered(AT_ONCE);
        let mut entries = std::pin::pin!(entries);
        while let Some((key, modified, entry)) = entries.next().await {
            let entry = match entry {
                Ok(Some(entry)) => entry,
                Ok(None) => continue,
                // Nobody can restore it, and the next persist makes it anew.
                Err(error) if error.kind() == ErrorKind::Protocol => {
                    self.drop_entry(options, &key, pruned).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let age = now.duration_since(modified).unwrap_or_default();
            bytes += entry.stored;
            let too_old = options.older_than.is_some_and(|limit| age > limit);
            let too_many = options.keep_bytes.is_some_and(|limit| bytes > limit);
            if too_old || too_many {
                self.drop_entry(options, &key, pruned).await?;
            } else {
                kept.push(entry);
            }
        }
        let used = futures_util::stream::iter(kept)
            .map(|entry| async move {
                match self.load_manifest(&entry.manifest).await {
                    Ok(Loaded { manifest, base }) => Ok(([entry.manifest, base.name], manifest.packs)),
                    // What it used can't be known, nor be used.
                    Err(error) if error.kind() == ErrorKind::Protocol => Ok(([entry.manifest; 2], Vec::new())),
                    Err(error) => Err(error),
                }
            })
            .buffered(2)
            .try_fold(HashSet::new(), |mut used, (manifests, packs)| async move {
                used.extend(manifests);
                used.extend(packs.into_iter().map(|(pack, _)| pack));
                Ok(used)
            });
        used.await
    }

    async fn drop_entry(&self, options: Prune, key: &CacheKey, pruned: &mut Pruned) -> Result<()> {
        if !options.dry_run {
            self.delete(&key.object(ENTRIES)).await?;
        }
        pruned.caches.push(key.clone());
        Ok(())
    }

    async fn condemn(
        &self,
        options: Prune,
        now: SystemTime,
        meta: &ObjectMeta,
        mark: &str,
        since: Option<SystemTime>,
        pruned: &mut Pruned,
    ) -> Result<()> {
        let path = condemned_path(mark);
        let overdue = since.is_some_and(|since| now.duration_since(since).is_ok_and(|age| age >= options.grace));
        if !overdue {
            if since.is_none() && !options.dry_run {
                self.put(&path, Bytes::new()).await?;
            }
            pruned.condemned += 1;
            pruned.condemned_bytes += meta.size;
            return Ok(());
        }
        if !options.dry_run {
            // A persist that needs it has taken the mark away meanwhile.
            match self.0.objects.head(&path).await {
                Ok(_) => {}
                Err(object_store::Error::NotFound { .. }) => return Ok(()),
                Err(error) => return Err(self.failed(&format!("look for {path}"), error)),
            }
            self.delete(&meta.location).await?;
            self.delete(&path).await?;
        }
        pruned.objects += 1;
        pruned.bytes += meta.size;
        Ok(())
    }

    /// Marks of what is gone: their prune was killed before it removed them.
    async fn remove_stale_marks(&self, condemned: &HashMap<String, SystemTime>) -> Result<()> {
        for mark in condemned.keys() {
            let object = mark
                .split_once('-')
                .map(|(kind, name)| Path::from(format!("{kind}/{name}")));
            let Some(object) = object else { continue };
            if let Err(object_store::Error::NotFound { .. }) = self.0.objects.head(&object).await {
                self.delete(&condemned_path(mark)).await?;
            }
        }
        Ok(())
    }
}

fn condemned_path(mark: &str) -> Path {
    Path::from(format!("{CONDEMNED}/{mark}"))
}

/// In a folder, an object is written beside its place as `NAME#NUMBER` and moved there: who is killed leaves that.
fn remove_half_written(folder: &FilePath, grace: Duration) {
    let own = [ENTRIES, MANIFESTS, PACKS, CONDEMNED, VERSION_OBJECT, CLOCK];
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for file in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            // The folder may have more in it than the store.
            let is = |name: &str| name.split('#').next().is_some_and(|name| own.contains(&name));
            if next == folder && !file.file_name().to_str().is_some_and(is) {
                continue;
            }
            let Ok(meta) = file.metadata() else { continue };
            if meta.is_dir() {
                open.push(file.path());
                continue;
            }
            let name = file.file_name();
            let staged = name.to_str().and_then(|name| name.rsplit_once('#'));
            let staged = staged.is_some_and(|(_, number)| number.parse::<u64>().is_ok());
            let old = meta.modified().ok().and_then(|time| time.elapsed().ok());
            if staged
                && old.is_some_and(|age| age >= grace)
                && let Err(error) = std::fs::remove_file(file.path())
            {
                let error = Error::io("remove what a killed process left", error);
                tracing::warn!(file = %file.path().display(), %error, "it stays");
            }
        }
    }
}
