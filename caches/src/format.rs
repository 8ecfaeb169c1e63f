//! What stands in a store. Its version is [`VERSION`]; all numbers are little endian.
//!
//! ```text
//! orchestra-caches.json     {"version": 1}
//! entries/KEY=              JSON: a cache; the only object that is ever changed, by one atomic write
//! manifests/HASH            zstd: the chunks of a cache in their order, and where each is; or how they differ from another's
//! packs/HASH                zstd frames one behind the other, each a segment of chunks that were new together
//! condemned/KIND-HASH       a pack or manifest that nothing referred to, since when the object's time says
//! prune                     its time is the store's own clock
//! ```
//!
//! Packs and manifests are called after the BLAKE3 hash of what is in them, and never change: who has read an entry has
//! all of its cache, whatever is written meanwhile.

mod changes;

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::time::{Duration, SystemTime};

use orchestra::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

pub(crate) use self::changes::{Base, Changes};
use crate::CacheKey;

/// The version of the format that is written, and the newest that is read.
pub(crate) const VERSION: u32 = 1;

/// Longest chunk, a bound on what a manifest may claim.
pub(crate) const MAX_CHUNK: usize = 64 << 10;
/// Longest segment, before compression.
pub(crate) const MAX_SEGMENT: usize = 1 << 20;
/// Largest manifest, before compression: some 200 GiB of cache.
const MAX_MANIFEST: usize = 1 << 30;

const MAGIC: &[u8; 4] = b"ocm2";

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Hash(pub(crate) [u8; 32]);

impl Hash {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }
}

/// What a chunk is known by: the first half of its BLAKE3 hash, which is as good against damage and chance, and is most of a
/// manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChunkId(pub(crate) [u8; 16]);

impl ChunkId {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
        Self(half)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a hash"))
    }
}

/// A cache in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// What it is called.
    pub key: CacheKey,
    /// Bytes of its content, a tar.
    pub size: u64,
    /// Bytes that it takes in the store; chunks that other caches share are counted too.
    pub stored: u64,
    /// When this content was first persisted, in seconds since 1970.
    pub created: u64,
    /// How many chunks it is made of.
    pub chunks: u64,
    pub(crate) manifest: Hash,
    /// Whether all of it was written by [`orchestra_volumes::Tree`], whose members are the same whenever a file is: those of
    /// another archiver are not, and are never put together with them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) own: bool,
    /// When it was last persisted, by the store's clock: how long it is kept depends on it.
    #[serde(skip)]
    pub(crate) modified: Option<SystemTime>,
}

impl Entry {
    /// When it was last persisted, changed or not, by the store's clock.
    #[must_use]
    pub fn persisted(&self) -> SystemTime {
        self.modified
            .unwrap_or(SystemTime::UNIX_EPOCH + Duration::from_secs(self.created))
    }
}

/// The store's version object.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) version: u32,
}

/// Some chunks, compressed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Segment {
    /// Index into the manifest's packs.
    pub(crate) pack: u32,
    /// Where it begins in its pack.
    pub(crate) offset: u64,
    /// Its length there.
    pub(crate) stored: u32,
    /// Its length once decompressed.
    pub(crate) raw: u32,
}

/// A piece of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) id: ChunkId,
    /// Index into the manifest's segments.
    pub(crate) segment: u32,
    /// Where it begins in the decompressed segment.
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// The content of a cache: its chunks in their order, and where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Packs and their sizes.
    pub(crate) packs: Vec<(Hash, u64)>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) chunks: Vec<Chunk>,
}

impl Manifest {
    /// Bytes of the content.
    pub(crate) fn size(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.length)).sum()
    }

    /// Bytes of all segments as they are stored.
    pub(crate) fn stored(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.stored)).sum()
    }

    /// What is hard to compress stands together: the ids. Of a chunk's place there is mostly nothing to say.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let length = 16 + self.packs.len() * PACK + self.segments.len() * SEGMENT + self.chunks.len() * (ID + 4);
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(MAGIC);
        for count in [self.packs.len(), self.segments.len(), self.chunks.len()] {
            bytes.extend_from_slice(&number(count).to_le_bytes());
        }
        for (hash, size) in &self.packs {
            bytes.extend_from_slice(&hash.0);
            bytes.extend_from_slice(&size.to_le_bytes());
        }
        for segment in &self.segments {
            bytes.extend_from_slice(&segment.pack.to_le_bytes());
            bytes.extend_from_slice(&segment.offset.to_le_bytes());
            bytes.extend_from_slice(&segment.stored.to_le_bytes());
            bytes.extend_from_slice(&segment.raw.to_le_bytes());
        }
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.id.0);
        }
        let mut next = Next::default();
        for chunk in &self.chunks {
            match next.place(chunk) {
                place @ (Place::Follows | Place::Begins) => put_varint(&mut bytes, place as u32),
                Place::Elsewhere => {
                    let numbers = [Place::Elsewhere as u32, chunk.segment, chunk.offset];
                    numbers.iter().for_each(|number| put_varint(&mut bytes, *number));
                }
            }
            put_varint(&mut bytes, chunk.length);
            next.after(chunk);
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote. Nothing that it says is believed: whoever uses the result finds every
    /// index in range and every size bounded.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader(bytes);
        let manifest = reader
            .manifest()
            .filter(|manifest| reader.0.is_empty() && manifest.fits());
        manifest.ok_or_else(|| damaged("a manifest makes no sense"))
    }

    fn fits(&self) -> bool {
        let segments = self.segments.iter().all(|segment| {
            let pack = self.packs.get(segment.pack as usize);
            let end = segment.offset.checked_add(u64::from(segment.stored));
            pack.zip(end).is_some_and(|((_, size), end)| end <= *size) && segment.raw as usize <= MAX_SEGMENT
        });
        segments
            && self.chunks.iter().all(|chunk| {
                let segment = self.segments.get(chunk.segment as usize);
                let end = u64::from(chunk.offset) + u64::from(chunk.length);
                let fits = segment.is_some_and(|segment| end <= u64::from(segment.raw));
                fits && chunk.length > 0 && chunk.length as usize <= MAX_CHUNK
            })
    }

    /// What tells it from all others, however it stands in a store.
    pub(crate) fn identity(&self) -> Hash {
        Hash::of(&self.encode())
    }

    /// As it is stored: by its changes, where these take less than half of it.
    pub(crate) fn pack(&self, base: Option<&Base>) -> Result<Packed> {
        let whole = self.encode();
        let identity = Hash::of(&whole);
        let changes = base.map(|base| (base.name, self.changes(base)));
        let changes = changes.filter(|(_, changes)| changes.len() < whole.len() / 2);
        let (base, bytes) = changes.map_or((None, whole), |(base, bytes)| (Some(base), bytes));
        let packed = zstd::bulk::compress(&bytes, 3).map_err(|error| Error::io("compress a manifest", error))?;
        Ok(Packed {
            identity,
            name: Hash::of(&bytes),
            base,
            bytes: packed,
        })
    }

    pub(crate) fn unpack(name: &Hash, packed: &[u8]) -> Result<Stored> {
        let mut bytes = Vec::new();
        // A few bytes can decompress to more than there is memory.
        let read = zstd::stream::Decoder::new(packed)
            .and_then(|decoder| decoder.take(MAX_MANIFEST as u64 + 1).read_to_end(&mut bytes));
        read.map_err(|_| damaged("a manifest can't be decompressed"))?;
        if bytes.len() > MAX_MANIFEST || Hash::of(&bytes) != *name {
            return Err(damaged("a manifest is not what it was"));
        }
        if bytes.starts_with(changes::MAGIC) {
            return Changes::decode(&bytes).map(Stored::Changes);
        }
        Self::decode(&bytes).map(Stored::Whole)
    }
}

/// A manifest on its way to a store.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) identity: Hash,
    pub(crate) name: Hash,
    /// The manifest that it is changes of.
    pub(crate) base: Option<Hash>,
    pub(crate) bytes: Vec<u8>,
}

/// What stands in a store for a manifest.
#[derive(Debug)]
pub(crate) enum Stored {
    Whole(Manifest),
    Changes(Changes),
}

/// An error that says that the store does not have what was once put there.
pub(crate) fn damaged(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, format!("the cache is damaged: {}", what.into()))
        .with_hint("the next persist mends it; `orchestra caches verify` finds all damage")
}

/// Bytes of a pack, a segment and a chunk's id in a manifest.
const PACK: usize = 40;
const SEGMENT: usize = 20;
const ID: usize = 16;

/// Where a chunk is, seen from the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Behind that one.
    Follows = 0,
    /// At the beginning of the next segment.
    Begins = 1,
    /// What comes next says where.
    Elsewhere = 2,
}

/// Where the next chunk is likely to be.
#[derive(Default)]
struct Next {
    segment: u32,
    offset: u32,
}

impl Next {
    fn place(&self, chunk: &Chunk) -> Place {
        match (chunk.segment, chunk.offset) {
            at if at == (self.segment, self.offset) => Place::Follows,
            at if at == (self.segment.wrapping_add(1), 0) => Place::Begins,
            _ => Place::Elsewhere,
        }
    }

    fn after(&mut self, chunk: &Chunk) {
        self.segment = chunk.segment;
        self.offset = chunk.offset.wrapping_add(chunk.length);
    }
}

/// Seven bits a byte, the lowest first; the eighth says that more follow (LEB128).
fn put_varint(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn varint(&mut self) -> Option<u32> {
        let mut number = 0u32;
        for shift in (0..35).step_by(7) {
            let [byte] = self.take()?;
            let bits = u32::from(byte & 0x7f);
            let shifted = bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
            number |= shifted;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn chunk(&mut self, id: ChunkId, next: &mut Next) -> Option<Chunk> {
        let (segment, offset) = match self.varint()? {
            0 => (next.segment, next.offset),
            1 => (next.segment.checked_add(1)?, 0),
            2 => (self.varint()?, self.varint()?),
            _ => return None,
        };
        let chunk = Chunk {
            id,
            segment,
            offset,
            length: self.varint()?,
        };
        next.after(&chunk);
        Some(chunk)
    }

    fn manifest(&mut self) -> Option<Manifest> {
        if self.take::<4>()? != *MAGIC {
            return None;
        }
        let [packs, segments, chunks] = [self.u32()?, self.u32()?, self.u32()?].map(|count| count as usize);
        // Counts are believed only if as much follows; a chunk has two numbers of at least a byte.
        if packs * PACK + segments * SEGMENT + chunks * (ID + 2) > self.0.len() {
            return None;
        }
        let packs = (0..packs)
            .map(|_| Some((Hash(self.take()?), self.u64()?)))
            .collect::<Option<_>>()?;
        let segments = (0..segments)
            .map(|_| {
                Some(Segment {
                    pack: self.u32()?,
                    offset: self.u64()?,
                    stored: self.u32()?,
                    raw: self.u32()?,
                })
            })
            .collect::<Option<_>>()?;
        let ids: Vec<ChunkId> = (0..chunks).map(|_| self.take().map(ChunkId)).collect::<Option<_>>()?;
        let mut next = Next::default();
        let chunks = ids
            .into_iter()
            .map(|id| self.chunk(id, &mut next))
            .collect::<Option<_>>()?;
        Some(Manifest {
            packs,
            segments,
            chunks,
        })
    }
}

/// Makes a manifest out of chunks that stand in segments of several others.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    manifest: Manifest,
    packs: HashMap<Hash, u32>,
    segments: HashMap<Segment, u32>,
}

impl Builder {
    pub(crate) fn add(&mut self, id: ChunkId, pack: (Hash, u64), segment: Segment, offset: u32, length: u32) {
        let manifest = &mut self.manifest;
        let pack = *self.packs.entry(pack.0).or_insert_with(|| {
            manifest.packs.push(pack);
            number(manifest.packs.len() - 1)
        });
        let segment = Segment { pack, ..segment };
        let segment = *self.segments.entry(segment).or_insert_with(|| {
            manifest.segments.push(segment);
            number(manifest.segments.len() - 1)
        });
        manifest.chunks.push(Chunk {
            id,
            segment,
            offset,
            length,
        });
    }

    pub(crate) fn finish(self) -> Manifest {
        self.manifest
    }
}

/// An index. More than 4 billion of anything is beyond the largest manifest that is read.
pub(crate) fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest() -> Manifest {
        let mut builder = Builder::default();
        for at in 0..3u32 {
            let pack = (Hash::of(&[u8::try_from(at / 2).unwrap()]), 1000);
            let segment = Segment {
                pack: 9,
                offset: 10 * u64::from(at),
                stored: 10,
                raw: 300,
            };
            builder.add(ChunkId::of(b"a"), pack, segment, 0, 100);
            builder.add(ChunkId::of(b"b"), pack, segment, 100, 200);
        }
        builder.finish()
    }

    #[test]
    fn a_manifest_comes_back_from_its_bytes() {
        let manifest = manifest();
        assert_eq!(
            (manifest.packs.len(), manifest.segments.len(), manifest.size()),
            (2, 3, 900)
        );
        let packed = manifest.pack(None).unwrap();
        assert_eq!((packed.name, packed.base), (manifest.identity(), None));
        let back = Manifest::unpack(&packed.name, &packed.bytes).unwrap();
        assert!(matches!(back, Stored::Whole(back) if back == manifest));
        assert!(Manifest::unpack(&Hash::of(b"another"), &packed.bytes).is_err());
    }

    proptest! {
        #[test]
        fn chunks_anywhere_come_back(places in proptest::collection::vec((0u32..4, 0u32..3000, 1u32..70_000), 0..50)) {
            let mut manifest = manifest();
            let chunk = |(segment, offset, length)| Chunk { id: ChunkId::of(&[1]), segment, offset, length };
            manifest.chunks = places.into_iter().map(chunk).collect();
            let bytes = manifest.encode();
            let mut reader = Reader(&bytes);
            prop_assert_eq!(reader.manifest(), Some(manifest));
            prop_assert!(reader.0.is_empty());
        }

        #[test]
        fn numbers_of_any_length_come_back(numbers in proptest::collection::vec(any::<u32>(), 1..20)) {
            let mut bytes = Vec::new();
            numbers.iter().for_each(|number| put_varint(&mut bytes, *number));
            let mut reader = Reader(&bytes);
            let back: Option<Vec<u32>> = numbers.iter().map(|_| reader.varint()).collect();
            prop_assert_eq!(back, Some(numbers));
        }

        #[test]
        fn a_manifest_with_any_byte_changed_is_refused_or_in_bounds(at in 0usize..400, value in any::<u8>()) {
            let mut bytes = manifest().encode();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert!(manifest.fits());
            }
        }

        #[test]
        fn bytes_that_are_no_manifest_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let manifest = Manifest::decode(&bytes);
            prop_assert!(manifest.is_err() || bytes.len() == 16);
        }
    }
}
