//! A store of caches: content-addressed packs of chunks in a folder or in a bucket, and what is done with them.
//!
//! Every operation is a file of this module: [`persist`], [`restore`], [`prune`], [`verify`]. What they have in common,
//! objects by name and errors that say what to do, is here and in [`open`].

#[cfg(test)]
mod changes;
mod chunker;
mod error;
mod open;
mod packs;
mod persist;
mod prune;
mod restore;
mod verify;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode};
use orchestra::{Error, ErrorKind, Result};

pub use self::open::{S3Options, StoreOptions};
pub(crate) use self::persist::Content;
pub use self::persist::{Persist, Persisted};
pub use self::prune::{Prune, Pruned};
pub use self::restore::Restoring;
pub use self::verify::{Damage, Verified};

use self::error::{failed, missing, no_bucket};
use crate::CacheKey;
use crate::format::{Base, Entry, Hash, Manifest, Stored, VERSION, Version, damaged};
use crate::key::folder_of;

const VERSION_OBJECT: &str = "orchestra-caches.json";
const ENTRIES: &str = "entries";
const MANIFESTS: &str = "manifests";
const PACKS: &str = "packs";
const CONDEMNED: &str = "condemned";

/// Largest entry that is read.
const MAX_ENTRY: u64 = 64 << 10;
/// Largest manifest that is fetched, compressed.
const MAX_PACKED_MANIFEST: u64 = 1 << 30;
/// How many small objects are asked for at once.
const AT_ONCE: usize = 8;

/// A store of caches. A clone is the same store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    objects: Arc<dyn ObjectStore>,
    /// Where it is, for people; without credentials.
    address: String,
    /// The folder, where it is one of this machine.
    folder: Option<PathBuf>,
    level: i32,
    /// Whether it is known to exist, in a version that this program reads.
    known: AtomicBool,
    /// Packs that are not what they were: nothing new relies on them.
    bad: Mutex<HashSet<Hash>>,
}

/// A manifest, and the one that it stands in the store as changes of: itself, if it stands there as a whole.
struct Loaded {
    manifest: Manifest,
    base: Base,
}

/// A cache that was found for a key.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Found {
    /// The cache.
    pub entry: Entry,
    /// Whether its key is the one that was asked for, and not one that begins with a restore key.
    pub exact: bool,
    /// Why it is not one that would have gone before it.
    pub damaged: Option<String>,
}

impl Found {
    fn exactly(entry: Entry) -> Self {
        Self {
            entry,
            exact: true,
            damaged: None,
        }
    }
}

impl Store {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Whether it can be used: it answers, lets us in, and is of a version that this program reads. A store that is empty can.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] and [`ErrorKind::PermissionDenied`] for credentials that are refused,
    /// [`ErrorKind::PathNotFound`] for a bucket that does not exist, [`ErrorKind::Unsupported`] for a store that a newer
    /// version of this program has written, [`ErrorKind::Unreachable`].
    pub async fn check(&self) -> Result<()> {
        self.exists().await.map(|_| ())
    }

    /// Whether anything was ever persisted in it.
    async fn exists(&self) -> Result<bool> {
        if self.0.known.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let exists = self.read_version().await?;
        self.0.known.store(exists, Ordering::Relaxed);
        Ok(exists)
    }

    async fn read_version(&self) -> Result<bool> {
        let Some((bytes, _)) = self.get_small(&Path::from(VERSION_OBJECT), MAX_ENTRY).await? else {
            // An absent object and an absent bucket have the same code; a listing tells them apart.
            let mut listing = self.0.objects.list(None);
            return match listing.next().await {
                Some(Err(error)) if self.0.folder.is_none() && no_bucket(&error) => Err(Error::new(
                    ErrorKind::PathNotFound,
                    format!("there is no bucket at {}", self.0.address),
                )
                .with_source(error)
                .with_hint("make the bucket, or correct its name under `[caches]`")),
                Some(Err(error)) if !missing(&error) => Err(self.failed("list the store", error)),
                _ => Ok(false),
            };
        };
        let Ok(Version { version }) = serde_json::from_slice(&bytes) else {
            return Err(damaged(format!("{VERSION_OBJECT} can't be read"))
                .with("store", &self.0.address)
                .with_hint("delete that object, unless a newer orchestra has written to this store"));
        };
        if version > VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the cache store {} is of version {version}, this program knows versions up to {VERSION}",
                    self.0.address
                ),
            )
            .with_hint("use a newer orchestra, or another store; nothing was changed in this one"));
        }
        Ok(true)
    }

    /// Makes the store one of our version. Concurrent first persists do it once.
    async fn claim(&self) -> Result<()> {
        if self.exists().await? {
            return Ok(());
        }
        if let Some(folder) = &self.0.folder {
            tokio::fs::create_dir_all(folder)
                .await
                .map_err(|error| Error::io(format!("make the folder {}", folder.display()), error))?;
        }
        let version = serde_json::to_vec(&Version { version: VERSION }).unwrap_or_default();
        let path = Path::from(VERSION_OBJECT);
        match self
            .0
            .objects
            .put_opts(&path, version.into(), PutMode::Create.into())
            .await
        {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                self.read_version().await.map(|_| ())
            }
            Err(error) => Err(self.failed("begin the store", error)),
        }
    }

    /// All caches whose keys begin with `prefix`, the one that was persisted last first.
    ///
    /// # Errors
    /// As [`check`](Self::check). What is damaged is left out; [`verify`](Self::verify) finds it.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let objects = self.objects_with(prefix).await?;
        let entries = futures_util::stream::iter(objects)
            .map(|(key, _)| async move { self.read_entry(&key).await })
            .buffered(AT_ONCE)
            .filter_map(|entry| async {
                match entry {
                    Err(error) if error.kind() == ErrorKind::Protocol => None,
                    entry => entry.transpose(),
                }
            });
        entries.try_collect().await
    }

    /// Objects of entries whose keys begin with `prefix`, newest first.
    async fn objects_with(&self, prefix: &str) -> Result<Vec<(CacheKey, ObjectMeta)>> {
        if !self.exists().await? {
            return Ok(Vec::new());
        }
        let folder = folder_of(ENTRIES, prefix);
        let mut found = Vec::new();
        for meta in self.objects_in(&folder).await? {
            if let Some(key) =
                CacheKey::of_object(ENTRIES, &meta.location).filter(|key| key.as_str().starts_with(prefix))
            {
                found.push((key, meta));
            }
        }
        found.sort_by(|(key, a), (other, b)| b.last_modified.cmp(&a.last_modified).then_with(|| key.cmp(other)));
        Ok(found)
    }

    /// The cache of this key.
    ///
    /// # Errors
    /// As [`check`](Self::check); [`ErrorKind::Protocol`] if it is damaged.
    pub async fn get(&self, key: &CacheKey) -> Result<Option<Entry>> {
        if !self.exists().await? {
            return Ok(None);
        }
        self.read_entry(key).await
    }

    /// The cache of this key or, if there is none, the newest of the first of `restore_keys` that any key begins with.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn find(&self, key: &CacheKey, restore_keys: &[String]) -> Result<Option<Found>> {
        self.find_fresh(key, restore_keys, None, &[]).await
    }

    /// The same, of those alone that are no older than `limit`, and not known to be damaged. A damaged one of this key is told
    /// where there is no other.
    pub(crate) async fn find_fresh(
        &self,
        key: &CacheKey,
        restore_keys: &[String],
        limit: Option<Duration>,
        known_damaged: &[CacheKey],
    ) -> Result<Option<Found>> {
        let is_fresh = |time: SystemTime| limit.is_none_or(|limit| time.elapsed().unwrap_or_default() <= limit);
        let damaged = match self.get(key).await {
            _ if known_damaged.contains(key) => None,
            Ok(Some(entry)) if is_fresh(entry.persisted()) => return Ok(Some(Found::exactly(entry))),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::Protocol => Some(error),
            Err(error) => return Err(error),
        };
        for prefix in restore_keys {
            for (key, meta) in self.objects_with(prefix).await? {
                // The newest is the first.
                if !is_fresh(meta.last_modified.into()) {
                    break;
                }
                if known_damaged.contains(&key) {
                    continue;
                }
                match self.read_entry(&key).await {
                    Ok(Some(entry)) => {
                        return Ok(Some(Found {
                            entry,
                            exact: false,
                            damaged: damaged.map(|error| error.to_string()),
                        }));
                    }
                    // Removed meanwhile, or damaged: the next one may do.
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::Protocol => {}
                    Err(error) => return Err(error),
                }
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    /// Removes a cache; what only it used goes by a later [`prune`](Self::prune). Says whether there was one.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn remove(&self, key: &CacheKey) -> Result<bool> {
        if !self.exists().await? {
            return Ok(false);
        }
        let object = key.object(ENTRIES);
        match self.0.objects.head(&object).await {
            Ok(_) => self.delete(&object).await.map(|()| true),
            Err(error) if missing(&error) => Ok(false),
            Err(error) => Err(self.failed(&format!("look for the cache {key}"), error)),
        }
    }

    async fn read_entry(&self, key: &CacheKey) -> Result<Option<Entry>> {
        let Some((bytes, modified)) = self.get_small(&key.object(ENTRIES), MAX_ENTRY).await? else {
            return Ok(None);
        };
        let entry: Entry =
            serde_json::from_slice(&bytes).map_err(|_| damaged("its entry can't be read").with("key", key))?;
        if entry.key != *key {
            return Err(damaged("its entry is that of another key").with("key", key));
        }
        let modified = Some(modified);
        Ok(Some(Entry { modified, ..entry }))
    }

    async fn load_manifest(&self, name: &Hash) -> Result<Loaded> {
        let changes = match self.stored_manifest(name).await? {
            Stored::Whole(manifest) => {
                let base = Base::whole(*name, &manifest);
                return Ok(Loaded { manifest, base });
            }
            Stored::Changes(changes) => changes,
        };
        let Stored::Whole(base) = self.stored_manifest(changes.of()).await? else {
            return Err(damaged(format!(
                "the manifest {} is itself changes of another",
                changes.of()
            )));
        };
        let applied = blocking(move || changes.apply(&base)).await?;
        applied.map(|(manifest, base)| Loaded { manifest, base })
    }

    async fn stored_manifest(&self, name: &Hash) -> Result<Stored> {
        let path = manifest_path(name);
        let packed = self.get_small(&path, MAX_PACKED_MANIFEST).await?;
        let (packed, _) = packed.ok_or_else(|| damaged(format!("its manifest {name} is missing")))?;
        let name = *name;
        blocking(move || Manifest::unpack(&name, &packed)).await?
    }

    /// An object that is small enough to be held, and when it was written; `None` if there is none.
    async fn get_small(&self, path: &Path, limit: u64) -> Result<Option<(Bytes, SystemTime)>> {
        let doing = || format!("read {path}");
        match self.0.objects.get(path).await {
            Ok(found) if found.meta.size > limit => Err(damaged(format!("{path} is {} bytes long", found.meta.size))),
            Ok(found) => {
                let written = found.meta.last_modified.into();
                let bytes = found.bytes().await;
                bytes
                    .map(|bytes| Some((bytes, written)))
                    .map_err(|error| self.failed(&doing(), error))
            }
            Err(error) if missing(&error) => Ok(None),
            Err(error) => Err(self.failed(&doing(), error)),
        }
    }

    async fn put(&self, path: &Path, bytes: impl Into<Bytes>) -> Result<()> {
        let put = self.0.objects.put(path, bytes.into().into()).await;
        put.map(|_| ())
            .map_err(|error| self.failed(&format!("write {path}"), error))
    }

    async fn delete(&self, path: &Path) -> Result<()> {
        match self.0.objects.delete(path).await {
            Err(error) if !missing(&error) => Err(self.failed(&format!("delete {path}"), error)),
            _ => Ok(()),
        }
    }

    /// Everything in a folder. One that does not exist is empty.
    async fn objects_in(&self, folder: &Path) -> Result<Vec<ObjectMeta>> {
        let mut listing = self.0.objects.list(Some(folder));
        let mut found = Vec::new();
        while let Some(meta) = listing.next().await {
            match meta {
                Ok(meta) => found.push(meta),
                // Gone while the listing went on.
                Err(error) if missing(&error) => {}
                Err(error) => return Err(self.failed(&format!("list {folder}"), error)),
            }
        }
        Ok(found)
    }

    fn failed(&self, doing: &str, error: object_store::Error) -> Error {
        failed(doing, &self.0.address, error)
    }

    fn distrust(&self, pack: Hash) {
        self.bad_packs().insert(pack);
    }

    fn bad_packs(&self) -> std::sync::MutexGuard<'_, HashSet<Hash>> {
        self.0.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn manifest_path(name: &Hash) -> Path {
    Path::from(format!("{MANIFESTS}/{name}"))
}

fn pack_path(name: &Hash) -> Path {
    Path::from(format!("{PACKS}/{name}"))
}

/// The hash that an object of a folder is called after.
fn name_of(meta: &ObjectMeta) -> Option<Hash> {
    Hash::parse(meta.location.filename()?)
}

/// Work that would keep the runtime from its other work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::new(ErrorKind::Cancelled, format!("the runtime ended the work: {error}")))
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.0.address)
    }
}
