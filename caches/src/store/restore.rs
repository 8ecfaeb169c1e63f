//! From a cache to its tar: segments are fetched ahead, each chunk is verified, then passed on.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use orchestra::tar::pipe;
use orchestra::{ByteStream, ErrorKind, Result};

use super::error::missing;
use super::{Store, blocking, pack_path};
use crate::format::{Chunk, ChunkId, Entry, Hash, MAX_SEGMENT, Manifest, damaged, number};

/// Most that one request asks for, and what it may decompress to.
const FETCH: u64 = 2 << 20;
const FETCHED: u64 = 4 << 20;
/// How many requests are made ahead.
const AHEAD: usize = 3;
/// Decompressed segments that are kept because chunks further on may be in them, too.
const KEPT: usize = 12;

/// A cache that is being restored.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct Restoring {
    /// Its content. What is damaged is an error of the stream, and never in it.
    pub content: ByteStream,
    /// Bytes that are fetched for it.
    pub fetched: u64,
}

impl Store {
    /// Restores a cache.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] for a cache that is damaged, from the call or from the stream; whatever the store fails with.
    pub async fn restore(&self, entry: &Entry) -> Result<Restoring> {
        let plan = self.plan(entry).await?;
        let loads = plan.loads();
        let fetched = loads.iter().map(|load| load.range.end - load.range.start).sum();
        let (store, of_store, key) = (self.clone(), self.clone(), entry.key.clone());
        let packs: Vec<Hash> = plan.manifest.packs.iter().map(|(pack, _)| *pack).collect();
        let content = pipe(move |sink| async move {
            let mut loaded = futures_util::stream::iter(loads)
                .map(|load| store.load(plan.clone(), load))
                .buffered(AHEAD)
                .boxed();
            let mut waiting = VecDeque::new();
            let mut kept = Kept::default();
            for (segment, range) in plan.pieces() {
                while !kept.has(segment) {
                    while waiting.is_empty() {
                        let next = loaded.try_next().await.map_err(|error| {
                            if error.kind() == ErrorKind::Protocol {
                                // What else is damaged is not looked for: the next persist relies on none of it.
                                packs.iter().for_each(|pack| of_store.distrust(*pack));
                            }
                            error.with("key", &key)
                        })?;
                        waiting.extend(next.ok_or_else(|| damaged("a segment was not fetched"))?);
                    }
                    if let Some((segment, bytes)) = waiting.pop_front() {
                        kept.keep(segment, bytes);
                    }
                }
                if let Some(bytes) = kept.use_again(segment) {
                    sink.send(bytes.slice(range)).await?;
                }
            }
            Ok(())
        });
        Ok(Restoring { content, fetched })
    }

    /// What is to be done to restore a cache.
    pub(super) async fn plan(&self, entry: &Entry) -> Result<Arc<Plan>> {
        let manifest = self.load_manifest(&entry.manifest).await?.manifest;
        if manifest.size() != entry.size {
            return Err(damaged("its entry and its manifest differ").with("key", &entry.key));
        }
        Ok(Arc::new(Plan::new(manifest)))
    }

    /// Fetches segments that are neighbours, decompresses them, and verifies all chunks in them that the cache is made of.
    pub(super) async fn load(&self, plan: Arc<Plan>, load: Load) -> Result<Vec<(u32, Bytes)>> {
        let path = pack_path(&load.pack);
        let bytes = match self.0.objects.get_range(&path, load.range.clone()).await {
            Ok(bytes) if bytes.len() as u64 == load.range.end - load.range.start => bytes,
            Ok(_) => {
                self.distrust(load.pack);
                return Err(damaged(format!("the pack {} is too short", load.pack)));
            }
            Err(error) if missing(&error) => {
                self.distrust(load.pack);
                return Err(damaged(format!("the pack {} is missing", load.pack)));
            }
            Err(error) => {
                // A store says in many ways that a range is not there; a pack of another size is damaged.
                let packs = &plan.manifest.packs;
                let whole = packs.iter().find(|(pack, _)| *pack == load.pack).map(|(_, size)| *size);
                return match self.0.objects.head(&path).await {
                    Ok(meta) if Some(meta.size) != whole => {
                        self.distrust(load.pack);
                        Err(damaged(format!("the pack {} is not as long as it was", load.pack)))
                    }
                    _ => Err(self.failed(&format!("read {path}"), error)),
                };
            }
        };
        let pack = load.pack;
        let segments = blocking(move || plan.unpack(&load, &bytes)).await?;
        segments.inspect_err(|error| {
            if error.kind() == ErrorKind::Protocol {
                self.distrust(pack);
            }
        })
    }
}

/// Segments that stand one behind the other in a pack.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) pack: Hash,
    pub(super) range: Range<u64>,
    pub(super) segments: Vec<u32>,
    raw: u64,
}

/// A manifest, and which of its chunks are in which segment.
pub(super) struct Plan {
    pub(super) manifest: Manifest,
    /// Chunks by segment and place.
    sorted: Vec<u32>,
    buffers: Buffers,
}

impl Plan {
    pub(super) fn new(manifest: Manifest) -> Self {
        let place = |at: &u32| {
            let chunk = &manifest.chunks[*at as usize];
            (chunk.segment, chunk.offset, chunk.length)
        };
        let mut sorted: Vec<u32> = (0..number(manifest.chunks.len())).collect();
        sorted.sort_unstable_by_key(place);
        // A chunk that comes more than once is verified once; two that claim the same place are told apart by their id.
        sorted.dedup_by(|a, b| manifest.chunks[*a as usize] == manifest.chunks[*b as usize]);
        Self {
            manifest,
            sorted,
            buffers: Buffers::default(),
        }
    }

    /// What has to be fetched, in the order in which chunks need it. What [`Kept`] will have dropped by then is fetched again.
    pub(super) fn loads(&self) -> Vec<Load> {
        let mut loads: Vec<Load> = Vec::new();
        let mut kept = Kept::default();
        for (number, _) in self.pieces() {
            if kept.use_again(number).is_some() {
                continue;
            }
            kept.keep(number, Bytes::new());
            let segment = &self.manifest.segments[number as usize];
            let (pack, _) = self.manifest.packs[segment.pack as usize];
            let range = segment.offset..segment.offset + u64::from(segment.stored);
            match loads.last_mut() {
                Some(last)
                    if last.pack == pack
                        && last.range.end == range.start
                        && range.end - last.range.start <= FETCH
                        && last.raw + u64::from(segment.raw) <= FETCHED =>
                {
                    last.range.end = range.end;
                    last.raw += u64::from(segment.raw);
                    last.segments.push(number);
                }
                _ => loads.push(Load {
                    pack,
                    range,
                    segments: vec![number],
                    raw: segment.raw.into(),
                }),
            }
        }
        loads
    }

    /// The content in its order: segments, and what of them. Chunks that are neighbours there are one piece.
    fn pieces(&self) -> impl Iterator<Item = (u32, Range<usize>)> {
        let mut chunks = self.manifest.chunks.iter().peekable();
        std::iter::from_fn(move || {
            let first = chunks.next()?;
            let mut end = first.offset + first.length;
            while let Some(next) = chunks.next_if(|next| next.segment == first.segment && next.offset == end) {
                end += next.length;
            }
            Some((first.segment, first.offset as usize..end as usize))
        })
    }

    fn unpack(&self, load: &Load, bytes: &Bytes) -> Result<Vec<(u32, Bytes)>> {
        let wrong = || damaged(format!("the pack {} is not what it was", load.pack));
        let mut unpacked = Vec::new();
        for number in &load.segments {
            let segment = &self.manifest.segments[*number as usize];
            let start = usize::try_from(segment.offset - load.range.start).map_err(|_| wrong())?;
            let frame = bytes.get(start..start + segment.stored as usize).ok_or_else(wrong)?;
            let mut raw = self.buffers.lend(segment.raw as usize);
            // A frame that decompresses to more than this fails.
            let length = zstd::bulk::decompress_to_buffer(frame, &mut raw.bytes).map_err(|_| wrong())?;
            if length != raw.bytes.len() {
                return Err(wrong());
            }
            let raw = Bytes::from_owner(raw);
            for chunk in self.chunks_in(*number) {
                let content = &raw[chunk.offset as usize..(chunk.offset + chunk.length) as usize];
                if ChunkId::of(content) != chunk.id {
                    return Err(wrong());
                }
            }
            unpacked.push((*number, raw));
        }
        Ok(unpacked)
    }

    fn chunks_in(&self, segment: u32) -> impl Iterator<Item = &Chunk> {
        let chunk = |at: &u32| &self.manifest.chunks[*at as usize];
        let first = self.sorted.partition_point(|at| chunk(at).segment < segment);
        self.sorted[first..]
            .iter()
            .map(chunk)
            .take_while(move |chunk| chunk.segment == segment)
    }
}

/// Buffers for segments, which are used again when nobody has a piece of them any more: an allocator keeps what was freed
/// for each of the threads that decompress.
#[derive(Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

struct Lent {
    bytes: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    fn idle(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of this length, with anything in it.
    fn lend(&self, length: usize) -> Lent {
        let idle = self.idle().pop();
        let mut bytes = idle.unwrap_or_else(|| Vec::with_capacity(MAX_SEGMENT));
        bytes.resize(length, 0);
        Lent {
            bytes,
            home: self.clone(),
        }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.home.idle().push(bytes);
    }
}

/// The segments that were used last.
#[derive(Default)]
struct Kept {
    segments: HashMap<u32, (Bytes, u64)>,
    uses: u64,
}

impl Kept {
    fn has(&self, segment: u32) -> bool {
        self.segments.contains_key(&segment)
    }

    fn use_again(&mut self, segment: u32) -> Option<Bytes> {
        let (bytes, used) = self.segments.get_mut(&segment)?;
        self.uses += 1;
        *used = self.uses;
        Some(bytes.clone())
    }

    fn keep(&mut self, segment: u32, bytes: Bytes) {
        if self.segments.len() >= KEPT
            && let Some(oldest) = self
                .segments
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(segment, _)| *segment)
        {
            self.segments.remove(&oldest);
        }
        self.uses += 1;
        self.segments.insert(segment, (bytes, self.uses));
    }
}
