//! From a tar to a cache: chunks, segments, packs, then the manifest, then the entry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt, TryFutureExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use orchestra::tar;
use orchestra::{ByteStream, Error, ErrorKind, Result};
use orchestra_volumes::{Part, Parts};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::chunker::{Known, Piece, chunk};
use super::error::missing;
use super::{
    AT_ONCE, CONDEMNED, ENTRIES, Loaded, MANIFESTS, PACKS, Store, blocking, manifest_path, name_of, pack_path,
};
use crate::CacheKey;
use crate::archive::{Checked, Devices};
use crate::format::{Base, Entry, Hash, Manifest};

/// Pieces of the tar that wait for the chunker.
const PIECES: usize = 4;
/// How many other caches are looked at for chunks that they share.
const RELATED: usize = 32;
/// Longest persist: what it relies on must not be pruned meanwhile, which a prune's grace is longer than.
pub(super) const LONGEST: Duration = Duration::from_secs(12 * 3600);

/// How a cache is persisted.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Persist {
    /// Most bytes of content that it may have; a larger one is kept out, and the old one stays.
    pub size_limit: Option<u64>,
    /// Whether devices are kept; else they are left out.
    pub devices: bool,
}

/// What a persist did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Persisted {
    /// Whether the cache is what it was.
    pub unchanged: bool,
    /// Bytes of the content.
    pub size: u64,
    /// Bytes of it that the store lacked.
    pub new: u64,
    /// Bytes that were sent.
    pub sent: u64,
    /// Devices that were left out.
    pub devices_left_out: u64,
    /// How long it took.
    pub duration: Duration,
    /// How much of that was waiting for the content.
    pub waited: Duration,
}

/// What a store has, before something is persisted in it.
struct Before {
    known: Known,
    /// The cache that is about to be replaced, if the store has all of it.
    old: Option<Same>,
    /// The manifest that changes of the one whose chunks are expected are told by.
    base: Option<Base>,
}

/// A cache that the new one may turn out to be.
struct Same {
    identity: Hash,
    /// Its manifest, and the one that this is changes of.
    names: [Hash; 2],
}

/// What was read of the tar.
struct Fed {
    left_out: u64,
    waited: Duration,
}

impl Store {
    /// Persists a tar under a key. What was there under the key stays until all of the new content is in the store.
    ///
    /// # Errors
    /// Those of `tar`; [`ErrorKind::InvalidInput`] if it is larger than allowed or no tar; whatever the store fails with.
    pub async fn persist(&self, key: &CacheKey, content: ByteStream, options: Persist) -> Result<Persisted> {
        self.persist_all(key, None, vec![Content::Tar(content)], options).await
    }

    /// The same for content that this process has packed itself, such as [`orchestra_volumes::Tree::read`] does: it is not
    /// checked as a tar of others is, and has devices or not.
    ///
    /// # Errors
    /// As [`persist`](Self::persist), and [`ErrorKind::Protocol`] if parts of an earlier tar are in it, which are not here.
    pub async fn persist_parts(&self, key: &CacheKey, parts: Parts, options: Persist) -> Result<Persisted> {
        let content = Content::Parts(Box::new(|_| parts));
        self.persist_all(key, None, vec![content], options).await
    }

    /// The same for a content that comes in several tars, which become one. `filled` is the cache that a volume was filled
    /// from whose [parts](Content::Parts) come.
    pub(crate) async fn persist_all(
        &self,
        key: &CacheKey,
        filled: Option<&Entry>,
        contents: Vec<Content>,
        options: Persist,
    ) -> Result<Persisted> {
        let work = self.persist_now(key, filled, contents, options);
        let done = tokio::time::timeout(LONGEST, work).await;
        done.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("it took longer than {LONGEST:?}"),
            ))
        })
        .map_err(|error| error.with("key", key))
    }

    async fn persist_now(
        &self,
        key: &CacheKey,
        filled: Option<&Entry>,
        contents: Vec<Content>,
        options: Persist,
    ) -> Result<Persisted> {
        let began = Instant::now();
        self.claim().await?;
        let packs = self.packs().await?;
        let old = match self.get(key).await {
            // It is about to be replaced.
            Err(error) if error.kind() == ErrorKind::Protocol => None,
            old => old?,
        };
        let bad = self.bad_packs().clone();
        let Before { known, old: same, base } = self.known(key, old.as_ref(), filled, &packs).await?;
        let cuts = known.cuts_of(filled.map(|entry| &entry.manifest));

        let own = contents.iter().all(|content| matches!(content, Content::Parts(_)));
        let (piece, pieces) = mpsc::channel(PIECES);
        let (segment, segments) = mpsc::channel(1);
        let chunking = blocking(move || chunk(pieces, known, &segment)).and_then(std::future::ready);
        let (fed, sent, chunked) = tokio::try_join!(
            feed(contents, cuts, piece, options),
            self.send_packs(segments, &packs),
            chunking
        )?;

        let manifest = blocking(move || {
            let manifest = chunked.manifest(&sent.segments);
            let manifest = manifest.ok_or_else(|| Error::new(ErrorKind::Protocol, "the chunks make no manifest"))?;
            let base = base.map(|base| base.of(chunked.expected()));
            Ok::<_, Error>((manifest.pack(base.as_ref())?, manifest, chunked, sent.bytes))
        });
        let (packed, manifest, chunked, mut bytes) = manifest.await??;
        let same = same.filter(|same| same.identity == packed.identity);
        let unchanged = same.is_some();
        let names = match &same {
            Some(same) => same.names,
            None => [packed.name, packed.base.unwrap_or(packed.name)],
        };
        let rescued = self.rescue(&manifest, names, &packs).await?;
        if !unchanged {
            bytes += packed.bytes.len() as u64;
            self.put(&manifest_path(&packed.name), packed.bytes).await?;
        }
        let created = old.filter(|_| unchanged).map_or_else(now, |old| old.created);
        let entry = Entry {
            key: key.clone(),
            size: chunked.size,
            stored: manifest.stored(),
            created,
            chunks: manifest.chunks.len() as u64,
            manifest: names[0],
            own,
            modified: None,
        };
        self.put_entry(&entry).await?;
        self.check_rescued(key, &rescued).await?;
        // What was bad was sent anew; what was found to be so meanwhile was not.
        self.bad_packs()
            .retain(|pack| !bad.contains(pack) || !manifest.packs.iter().any(|(of, _)| of == pack));
        Ok(Persisted {
            unchanged,
            size: chunked.size,
            new: chunked.new,
            sent: bytes,
            devices_left_out: fed.left_out,
            duration: began.elapsed(),
            waited: fed.waited,
        })
    }

    /// Says of a cache that it is what it was: its time changes, and nothing else. `None` if the store does not have all of
    /// it any more, or has another one under its key.
    pub(crate) async fn renew(&self, entry: &Entry) -> Result<Option<Persisted>> {
        let began = Instant::now();
        let whole = async {
            let found = self.get(&entry.key).await?;
            if found.is_none_or(|found| found.manifest != entry.manifest) {
                return Ok(None);
            }
            self.load_manifest(&entry.manifest).await.map(Some)
        };
        let loaded = match whole.await {
            Err(error) if error.kind() == ErrorKind::Protocol => None,
            loaded => loaded?,
        };
        let packs = self.packs().await?;
        let usable = self.usable(&packs);
        let whole = |Loaded { manifest, .. }: &Loaded| manifest.packs.iter().all(|(pack, size)| usable(pack, *size));
        let Some(Loaded { manifest, base }) = loaded.filter(whole) else {
            return Ok(None);
        };
        let rescued = self.rescue(&manifest, [entry.manifest, base.name], &packs).await?;
        self.put_entry(entry).await?;
        self.check_rescued(&entry.key, &rescued).await?;
        Ok(Some(Persisted {
            unchanged: true,
            size: entry.size,
            new: 0,
            sent: 0,
            devices_left_out: 0,
            duration: began.elapsed(),
            waited: Duration::ZERO,
        }))
    }

    async fn put_entry(&self, entry: &Entry) -> Result<()> {
        let json = serde_json::to_vec(entry).unwrap_or_default();
        self.put(&entry.key.object(ENTRIES), json).await
    }

    /// All packs and their sizes. One that is not as long as it should be is not there.
    pub(super) async fn packs(&self) -> Result<HashMap<Hash, u64>> {
        let found = self.objects_in(&Path::from(PACKS)).await?;
        Ok(found
            .iter()
            .filter_map(|meta| Some((name_of(meta)?, meta.size)))
            .collect())
    }

    /// The chunks that the store is known to have: first those of the cache that the content comes from, or else of the cache
    /// itself, so that an unchanged one is found to be so, then of the newest others.
    async fn known(
        &self,
        key: &CacheKey,
        old: Option<&Entry>,
        filled: Option<&Entry>,
        packs: &HashMap<Hash, u64>,
    ) -> Result<Before> {
        let usable = self.usable(packs);
        let is_whole = |manifest: &Manifest| manifest.packs.iter().all(|(pack, size)| usable(pack, *size));
        let (mut known, mut old_is, mut expected) = (Known::default(), None, None);
        let mut seen: Vec<Hash> = Vec::new();
        for entry in filled.into_iter().chain(old) {
            if seen.contains(&entry.manifest) {
                continue;
            }
            seen.push(entry.manifest);
            let Loaded { manifest, base } = match self.load_manifest(&entry.manifest).await {
                Err(error) if error.kind() == ErrorKind::Protocol => continue,
                loaded => loaded?,
            };
            if is_whole(&manifest) && old.is_some_and(|old| old.manifest == entry.manifest) {
                let identity = if base.name == entry.manifest {
                    base.name
                } else {
                    let manifest = manifest.clone();
                    blocking(move || manifest.identity()).await?
                };
                old_is = Some(Same {
                    identity,
                    names: [entry.manifest, base.name],
                });
            }
            if known.expect(entry.manifest, &manifest, &usable) {
                expected = Some(base);
            } else {
                known.add(&manifest, &usable);
            }
        }
        // Keys that begin alike are likely to share most: those are looked at first.
        let alike = |other: &CacheKey| {
            let pairs = key.as_str().bytes().zip(other.as_str().bytes());
            std::cmp::Reverse(pairs.take_while(|(a, b)| a == b).count())
        };
        let mut others = self.objects_with("").await?;
        others.retain(|(other, _)| other != key);
        others.sort_by_key(|(other, _)| alike(other));
        let others = stream::iter(others.into_iter().take(RELATED));
        let entries = others.map(|(other, _)| async move { self.read_entry(&other).await.ok().flatten() });
        // Two keys may have the same content.
        let manifests = entries.buffered(AT_ONCE).filter_map(|entry| {
            let new = entry
                .map(|entry| entry.manifest)
                .filter(|manifest| !seen.contains(manifest));
            seen.extend(new);
            std::future::ready(new)
        });
        // One after the other: each may be large.
        let mut loaded = std::pin::pin!(manifests.filter_map(async |name| self.load_manifest(&name).await.ok()));
        while let Some(Loaded { manifest, .. }) = loaded.next().await {
            if !known.add(&manifest, &usable) {
                break;
            }
        }
        Ok(Before {
            known,
            old: old_is,
            base: expected,
        })
    }

    /// Whether a pack can be relied on: it is there, as long as it should be, and was not found to be damaged.
    fn usable<'p>(&self, packs: &'p HashMap<Hash, u64>) -> impl Fn(&Hash, u64) -> bool + use<'p> {
        let bad = self.bad_packs().clone();
        move |pack, size| packs.get(pack) == Some(&size) && !bad.contains(pack)
    }

    /// Takes back the condemnation of what this cache relies on, as long as nothing of it is gone. `names` are those of its
    /// manifest and of the one that this is changes of.
    async fn rescue(&self, manifest: &Manifest, names: [Hash; 2], before: &HashMap<Hash, u64>) -> Result<Vec<Path>> {
        let needed: HashMap<String, Path> = manifest
            .packs
            .iter()
            .map(|(pack, _)| (format!("{PACKS}-{pack}"), pack_path(pack)))
            .chain(names.map(|name| (format!("{MANIFESTS}-{name}"), manifest_path(&name))))
            .collect();
        let mut rescued = Vec::new();
        for condemned in self.objects_in(&Path::from(CONDEMNED)).await? {
            if let Some(object) = condemned.location.filename().and_then(|name| needed.get(name)) {
                self.delete(&condemned.location).await?;
                rescued.push(object.clone());
            }
        }
        let relied_on = manifest.packs.iter().any(|(pack, _)| before.contains_key(pack));
        if relied_on {
            let now = self.packs().await?;
            if let Some((pack, _)) = manifest.packs.iter().find(|(pack, size)| now.get(pack) != Some(size)) {
                return Err(gone(&pack_path(pack)));
            }
        }
        if names[0] != names[1] {
            self.check_there(&manifest_path(&names[1])).await?;
        }
        Ok(rescued)
    }

    /// A prune that had decided before the rescue may have been faster. Nearly always there is nothing to ask.
    async fn check_rescued(&self, key: &CacheKey, rescued: &[Path]) -> Result<()> {
        for object in rescued {
            if let Err(error) = self.check_there(object).await {
                self.remove(key).await?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// An error only if it is gone: one that can't be asked for is not.
    async fn check_there(&self, object: &Path) -> Result<()> {
        match self.0.objects.head(object).await {
            Err(error) if missing(&error) => Err(gone(object)),
            _ => Ok(()),
        }
    }
}

fn gone(object: &Path) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("{object} was pruned while the cache was persisted"),
    )
    .retryable(true)
    .with_hint("the next persist sends it again")
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}

/// What a cache is made of.
pub(crate) enum Content {
    /// A tar, which is not trusted.
    Tar(ByteStream),
    /// What this process packs itself, once it is known where the cache may be cut that the volume was filled from.
    Parts(ReadParts),
}

/// Begins to pack, where the old tar may be cut at these places.
type ReadParts = Box<dyn FnOnce(Option<Arc<Vec<u64>>>) -> Parts + Send>;

/// Reads the content, as fast as the chunker takes it. `cuts` are those of the cache that the volume was filled from.
async fn feed(
    contents: Vec<Content>,
    cuts: Option<Arc<Vec<u64>>>,
    pieces: mpsc::Sender<Piece>,
    options: Persist,
) -> Result<Fed> {
    let mut fed = Fed {
        left_out: 0,
        waited: Duration::ZERO,
    };
    let mut size = 0;
    for content in contents {
        let mut parts = match content {
            Content::Tar(tar) => checked_parts(tar, options.devices),
            Content::Parts(read) => read(cuts.clone()),
        };
        loop {
            let began = Instant::now();
            let part = parts.next().await;
            fed.waited += began.elapsed();
            let piece = match part.transpose()? {
                Some(Part::Tar(bytes)) => {
                    size += bytes.len() as u64;
                    Piece::Bytes(bytes)
                }
                Some(Part::Same(range)) => {
                    if cuts.is_none() || range.is_empty() {
                        let message = "a part of an earlier tar came where none was told of";
                        return Err(Error::new(ErrorKind::Protocol, message));
                    }
                    size += range.end - range.start;
                    Piece::Same(range)
                }
                Some(Part::End { devices_left_out }) => {
                    fed.left_out += devices_left_out;
                    break;
                }
                None => return Err(Error::new(ErrorKind::Interrupted, "the tar broke off")),
            };
            if let Some(limit) = options.size_limit.filter(|limit| size > *limit) {
                return Err(Error::invalid(format!(
                    "it is larger than its limit of {limit} bytes, and is not persisted"
                ))
                .with_hint("raise its `size_limit`, or keep less in it with `paths`"));
            }
            send(&pieces, piece).await;
        }
    }
    send(&pieces, Piece::Bytes(tar::END)).await;
    Ok(fed)
}

/// A chunker that takes no more says why.
async fn send(pieces: &mpsc::Sender<Piece>, piece: Piece) {
    if pieces.send(piece).await.is_err() {
        std::future::pending().await
    }
}

/// A tar that is checked on its way. Reading goes on while the chunker is busy, and ends when this is dropped.
fn checked_parts(tar: ByteStream, devices: bool) -> Parts {
    let devices = if devices { Devices::Keep } else { Devices::LeaveOut };
    let mut tar = Checked::new(tar, devices);
    let (sender, receiver) = mpsc::channel(1);
    let reading = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let (part, last) = match tar.next().await {
                Ok(Some(piece)) => (Ok(Part::Tar(piece)), false),
                Ok(None) => {
                    let devices_left_out = tar.left_out;
                    (Ok(Part::End { devices_left_out }), true)
                }
                Err(error) => (Err(error), true),
            };
            if sender.send(part).await.is_err() || last {
                return;
            }
        }
    }));
    stream::unfold((receiver, reading), async |(mut receiver, reading)| {
        let part = receiver.recv().await?;
        Some((part, (receiver, reading)))
    })
    .boxed()
}
