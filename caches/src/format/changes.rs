//! A manifest by its changes: which of its chunks are those of another one, and the others.
//!
//! ```text
//! "ocd1"  the other manifest's name  number of runs
//! for each run: new chunks before it, where it begins in the other manifest, its chunks
//! the new chunks, as a manifest
//! ```
//!
//! A cache of a million chunks of which a few have changed would else send sixteen million bytes of hashes.

use orchestra::{Error, Result};

use super::{Builder, Chunk, Hash, MAX_MANIFEST, Manifest, Reader, damaged, number, put_varint};

pub(super) const MAGIC: &[u8; 4] = b"ocd1";

/// Most chunks: no manifest that stands in a store as a whole has more.
const MAX_CHUNKS: usize = MAX_MANIFEST / (super::ID + 2);

/// Chunks that follow one another in a manifest and in another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where they begin.
    pub(crate) at: u32,
    /// Where they begin in the other one.
    pub(crate) base: u32,
    pub(crate) chunks: u32,
}

/// A manifest that stands in the store as a whole, and which chunks of it another one has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) name: Hash,
    /// In the order of the other one's chunks.
    pub(crate) runs: Vec<Run>,
}

impl Base {
    /// A manifest seen from itself.
    pub(crate) fn whole(name: Hash, manifest: &Manifest) -> Self {
        let runs = vec![Run {
            at: 0,
            base: 0,
            chunks: number(manifest.chunks.len()),
        }];
        Self { name, runs }
    }

    /// Which chunk of the base it is.
    fn chunk(&self, at: u32) -> Option<u32> {
        let run = self.runs[..self.runs.partition_point(|run| run.at <= at)].last()?;
        (at - run.at < run.chunks).then(|| run.base + (at - run.at))
    }

    /// For a manifest whose chunks are these of the one that this is the base of: what of the base it has.
    pub(crate) fn of(&self, chunks: impl Iterator<Item = Option<u32>>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (at, chunk) in chunks.enumerate() {
            let Some(base) = chunk.and_then(|chunk| self.chunk(chunk)) else {
                continue;
            };
            let at = number(at);
            match runs.last_mut() {
                Some(run) if (run.at + run.chunks, run.base + run.chunks) == (at, base) => run.chunks += 1,
                _ => runs.push(Run { at, base, chunks: 1 }),
            }
        }
        Self { name: self.name, runs }
    }
}

/// What stands in a store instead of a manifest.
#[derive(Debug)]
pub(crate) struct Changes {
    base: Base,
    new: Manifest,
}

impl Manifest {
    /// What it has that the base does not, in as many bytes as that takes.
    pub(super) fn changes(&self, base: &Base) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&base.name.0);
        bytes.extend_from_slice(&number(base.runs.len()).to_le_bytes());
        let (mut new, mut next) = (Builder::default(), 0);
        for run in &base.runs {
            for number in [run.at - next, run.base, run.chunks] {
                put_varint(&mut bytes, number);
            }
            self.chunks[next as usize..run.at as usize]
                .iter()
                .for_each(|chunk| new.add_from(self, chunk));
            next = run.at + run.chunks;
        }
        self.chunks[next as usize..]
            .iter()
            .for_each(|chunk| new.add_from(self, chunk));
        bytes.extend_from_slice(&new.finish().encode());
        bytes
    }
}

impl Changes {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader(bytes);
        let runs = reader.base().ok_or_else(wrong)?;
        let new = Manifest::decode(reader.0)?;
        Ok(Self { base: runs, new })
    }

    /// The manifest that they are changes of.
    pub(crate) fn of(&self) -> &Hash {
        &self.base.name
    }

    /// The manifest that they make of that one.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`](orchestra::ErrorKind::Protocol) if they are not changes of that one.
    pub(crate) fn apply(self, base: &Manifest) -> Result<(Manifest, Base)> {
        let (mut builder, mut new) = (Builder::default(), self.new.chunks.iter());
        let mut all = self.new.chunks.len();
        for run in &self.base.runs {
            let chunks = run.base as usize..run.base as usize + run.chunks as usize;
            all += chunks.len();
            let chunks = base.chunks.get(chunks).filter(|_| all <= MAX_CHUNKS);
            for _ in builder.len()..run.at as usize {
                builder.add_from(&self.new, new.next().ok_or_else(wrong)?);
            }
            chunks
                .ok_or_else(wrong)?
                .iter()
                .for_each(|chunk| builder.add_from(base, chunk));
        }
        new.for_each(|chunk| builder.add_from(&self.new, chunk));
        Ok((builder.finish(), self.base))
    }
}

fn wrong() -> Error {
    damaged("a manifest's changes make no sense")
}

impl Builder {
    /// Adds a chunk of another manifest.
    fn add_from(&mut self, manifest: &Manifest, chunk: &Chunk) {
        let segment = manifest.segments[chunk.segment as usize];
        let pack = manifest.packs[segment.pack as usize];
        self.add(chunk.id, pack, segment, chunk.offset, chunk.length);
    }

    fn len(&self) -> usize {
        self.manifest.chunks.len()
    }
}

impl Reader<'_> {
    fn base(&mut self) -> Option<Base> {
        if self.take::<4>()? != *MAGIC {
            return None;
        }
        let name = Hash(self.take()?);
        let (count, mut next) = (self.u32()? as usize, 0u32);
        // Counts are believed only if as much follows: a run has three numbers of at least a byte, and a chunk at least.
        if count > MAX_CHUNKS || count * 3 > self.0.len() {
            return None;
        }
        let mut runs = Vec::with_capacity(count);
        for _ in 0..count {
            let at = next.checked_add(self.varint()?)?;
            let (base, chunks) = (self.varint()?, self.varint()?);
            base.checked_add(chunks).filter(|_| chunks > 0)?;
            next = at.checked_add(chunks)?;
            runs.push(Run { at, base, chunks });
        }
        Some(Base { name, runs })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ChunkId, Segment};
    use super::*;

    /// A manifest of these chunks, each in a segment of its own.
    fn of(chunks: &[u8]) -> Manifest {
        let mut builder = Builder::default();
        for chunk in chunks {
            let pack = (Hash::of(&[chunk % 3]), 1 << 20);
            let segment = Segment {
                pack: 0,
                offset: u64::from(*chunk) * 100,
                stored: 100,
                raw: 300,
            };
            builder.add(ChunkId::of(&[*chunk]), pack, segment, 5, 100 + u32::from(*chunk % 100));
        }
        builder.finish()
    }

    /// Where each of `chunks` is first in `old`.
    fn places<'a>(old: &'a [u8], chunks: &'a [u8]) -> impl Iterator<Item = Option<u32>> + 'a {
        let place = |chunk| old.iter().position(|of| of == chunk).map(number);
        chunks.iter().map(place)
    }

    fn unpack(bytes: &[u8], base: &Manifest) -> (Manifest, Base) {
        Changes::decode(bytes).unwrap().apply(base).unwrap()
    }

    proptest! {
        #[test]
        fn a_manifest_comes_back_from_its_changes_and_those_of_its_changes(
            first in proptest::collection::vec(any::<u8>(), 0..80),
            second in proptest::collection::vec(any::<u8>(), 0..80),
            third in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let name = Hash::of(b"first");
            let whole = Base::whole(name, &of(&first));
            let once = whole.of(places(&first, &second));
            let (found, base) = unpack(&of(&second).changes(&once), &of(&first));
            prop_assert_eq!(&found, &of(&second));
            prop_assert_eq!(&base, &once);
            // What has changed since the second is told by changes of the first.
            let twice = base.of(places(&second, &third));
            let (found, base) = unpack(&of(&third).changes(&twice), &of(&first));
            prop_assert_eq!(found, of(&third));
            prop_assert_eq!(base.name, name);
        }

        #[test]
        fn changes_with_any_byte_changed_are_refused_or_in_bounds(at in 0usize..400, value in any::<u8>()) {
            let (first, second): (Vec<u8>, Vec<u8>) = ((0..30).collect(), (10..40).collect());
            let whole = Base::whole(Hash::of(b"first"), &of(&first));
            let mut bytes = of(&second).changes(&whole.of(places(&first, &second)));
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok((manifest, _)) = Changes::decode(&bytes).and_then(|changes| changes.apply(&of(&first))) {
                prop_assert!(manifest.fits());
            }
        }

        #[test]
        fn bytes_that_are_no_changes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Changes::decode(&bytes).is_err());
        }
    }

    #[test]
    fn few_changes_take_few_bytes() {
        let first: Vec<u8> = (0..=255).collect();
        let mut second = first.clone();
        second.remove(100);
        let whole = Base::whole(Hash::of(b"first"), &of(&first));
        let bytes = of(&second).changes(&whole.of(places(&first, &second)));
        assert!(bytes.len() < 80, "{}", bytes.len());
    }
}
