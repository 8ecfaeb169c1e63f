//! Content cut into chunks where its bytes say so, and which of them are new.
//!
//! It computes all the time, so it runs in a thread of its own, between two channels that bound what is in memory.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use fastcdc::v2020::{FastCDC, Normalization};
use orchestra::{Error, ErrorKind, Result};
use tokio::sync::mpsc;

use crate::format::{Builder, Chunk, ChunkId, Hash, MAX_CHUNK, MAX_SEGMENT, Manifest, Segment, number};

/// Shortest and usual chunk: one file that changed among thousands costs little more than itself.
const MIN_CHUNK: usize = 4 << 10;
const AVERAGE_CHUNK: usize = 8 << 10;
/// How close chunks are to the usual length. Of the levels this one leaves the fewest long ones, by which a change costs most:
/// 1 % of 50,000 files changed sends half of what it does with the first, and takes no more time.
const EVENNESS: Normalization = Normalization::Level3;
/// How much is cut at once.
const WINDOW: usize = 1 << 20;
/// How much more than a window there is room for: what the last one left, and a piece.
const ROOM: usize = 1 << 20;

/// Most chunks that are looked up: 32 MiB of table. What is beyond is sent again.
pub(super) const MAX_KNOWN: usize = 1 << 19;

/// Where a chunk is.
#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u32,
    offset: u32,
    length: u32,
    /// Where it is among [`Known::expected`]; beyond its end if it is not.
    expected: u32,
}

impl Place {
    /// Whether it is that of a chunk of the manifest that was taken up first.
    fn is_of(&self, chunk: &Chunk) -> bool {
        (self.segment, self.offset, self.length) == (chunk.segment, chunk.offset, chunk.length)
    }
}

/// Where the segments of a [`Place`] are: those that were known before, then the new ones.
const NEW: u32 = 1 << 31;

/// The chunks that a store has.
#[derive(Debug, Default)]
pub(super) struct Known {
    places: HashMap<ChunkId, Place>,
    segments: Vec<((Hash, u64), Segment)>,
    /// The chunks of the cache as it was, in their order: most of them are likely to come again.
    expected: Vec<(ChunkId, u32)>,
    /// The manifest that has them, and where they begin and end there, as far as all of them can be relied on.
    cuts: Option<(Hash, Arc<Vec<u64>>)>,
}

/// What comes to be cut.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next bytes.
    Bytes(Bytes),
    /// The next bytes are these of the cache as it was; they begin and end at its [cuts](Known::cuts_of).
    Same(Range<u64>),
}

impl Known {
    /// Takes up the chunks of the cache as it was; those that follow one another are expected to do so again. False if others
    /// are expected already.
    pub(super) fn expect(&mut self, name: Hash, manifest: &Manifest, usable: impl Fn(&Hash, u64) -> bool) -> bool {
        if self.cuts.is_some() {
            return false;
        }
        let chunks = manifest.chunks.iter().take(MAX_KNOWN);
        self.expected = chunks.map(|chunk| (chunk.id, chunk.length)).collect();
        self.add(manifest, usable);
        for (at, chunk) in manifest.chunks.iter().take(MAX_KNOWN).enumerate().rev() {
            // Of two that are the same, one may be in a pack that is no longer usable.
            let place = self.places.get_mut(&chunk.id);
            if let Some(place) = place.filter(|place| place.is_of(chunk)) {
                place.expected = number(at);
            }
        }
        let lengths = self.expected.iter().map_while(|(id, length)| {
            let place = self.places.get(id);
            place.filter(|place| place.length == *length).map(|_| *length)
        });
        let ends = lengths.scan(0, |end, length| {
            *end += u64::from(length);
            Some(*end)
        });
        self.cuts = Some((name, Arc::new(std::iter::once(0).chain(ends).collect())));
        true
    }

    /// Where the content of a manifest may be cut, if its chunks are the expected ones: those between these are in the store.
    pub(super) fn cuts_of(&self, manifest: Option<&Hash>) -> Option<Arc<Vec<u64>>> {
        let (name, cuts) = self.cuts.as_ref()?;
        (Some(name) == manifest).then(|| cuts.clone())
    }

    /// Takes up the chunks of a manifest, those in packs that `usable` refuses excepted; false when it is full.
    pub(super) fn add(&mut self, manifest: &Manifest, usable: impl Fn(&Hash, u64) -> bool) -> bool {
        let usable: Vec<bool> = manifest.packs.iter().map(|(pack, size)| usable(pack, *size)).collect();
        let first = number(self.segments.len());
        let segments = manifest.segments.iter();
        self.segments
            .extend(segments.map(|segment| (manifest.packs[segment.pack as usize], *segment)));
        for chunk in &manifest.chunks {
            if self.places.len() >= MAX_KNOWN {
                return false;
            }
            let segment = &manifest.segments[chunk.segment as usize];
            if usable[segment.pack as usize] {
                self.places.entry(chunk.id).or_insert(Place {
                    segment: first + chunk.segment,
                    offset: chunk.offset,
                    length: chunk.length,
                    expected: u32::MAX,
                });
            }
        }
        true
    }
}

/// What the chunker found.
#[derive(Debug)]
pub(super) struct Chunked {
    chunks: Vec<(ChunkId, Place)>,
    known: Known,
    /// Bytes of all content.
    pub(super) size: u64,
    /// Bytes of what was not known.
    pub(super) new: u64,
}

impl Chunked {
    /// For each chunk, which of the [expected](Known::expect) ones it is.
    pub(super) fn expected(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        let expected = self.chunks.iter().map(|(_, place)| place.expected);
        expected.map(|at| (at != u32::MAX).then_some(at))
    }

    /// The manifest, where `new` are the packs and segments of what was sent on, in that order.
    pub(super) fn manifest(&self, new: &[((Hash, u64), Segment)]) -> Option<Manifest> {
        let mut builder = Builder::default();
        for (id, place) in &self.chunks {
            let (pack, segment) = match place.segment & NEW {
                0 => self.known.segments.get(place.segment as usize),
                _ => new.get((place.segment & !NEW) as usize),
            }?;
            builder.add(*id, *pack, *segment, place.offset, place.length);
        }
        Some(builder.finish())
    }
}

/// Cuts what comes from `pieces` until it ends, and sends on segments of what is new.
///
/// # Errors
/// [`ErrorKind::Cancelled`] if nobody takes them any more, [`ErrorKind::Protocol`] for what is said to be the same and was not.
pub(super) fn chunk(
    mut pieces: mpsc::Receiver<Piece>,
    known: Known,
    segments: &mpsc::Sender<Vec<u8>>,
) -> Result<Chunked> {
    let mut work = Work {
        chunks: Vec::new(),
        known,
        next: 0,
        segment: Vec::with_capacity(MAX_SEGMENT),
        sent: 0,
        size: 0,
        new: 0,
        segments,
    };
    let mut window: Vec<u8> = Vec::with_capacity(WINDOW + ROOM);
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(piece)) => {
                window.extend_from_slice(&piece);
                if window.len() >= WINDOW {
                    work.cut(&mut window, false)?;
                }
            }
            Some(Piece::Same(part)) => {
                work.cut(&mut window, true)?;
                work.same(&part)?;
            }
            None => break,
        }
    }
    work.cut(&mut window, true)?;
    work.flush()?;
    Ok(Chunked {
        chunks: work.chunks,
        known: work.known,
        size: work.size,
        new: work.new,
    })
}

struct Work<'s> {
    chunks: Vec<(ChunkId, Place)>,
    known: Known,
    /// Which of the expected chunks comes next, if it goes on as before.
    next: usize,
    segment: Vec<u8>,
    sent: u32,
    size: u64,
    new: u64,
    segments: &'s mpsc::Sender<Vec<u8>>,
}

impl Work<'_> {
    /// Cuts what there is: all of it if it is `whole`, else as far as what comes next can't change it.
    fn cut(&mut self, window: &mut Vec<u8>, whole: bool) -> Result<()> {
        let cutter = FastCDC::with_level(window, MIN_CHUNK, AVERAGE_CHUNK, MAX_CHUNK, EVENNESS);
        let mut done = 0;
        loop {
            let left = window.len() - done;
            // Where the window ends is no place to cut, unless the content ends there.
            if left == 0 || (left < MAX_CHUNK && !whole) {
                break;
            }
            done = match self.expected(&window[done..]) {
                Some(length) => done + length,
                None => {
                    let (_, end) = cutter.cut(done, left);
                    self.take(&window[done..end])?;
                    end
                }
            };
        }
        window.drain(..done);
        Ok(())
    }

    /// Takes chunks of the cache as it was.
    fn same(&mut self, part: &Range<u64>) -> Result<()> {
        let cut = |at: &u64| {
            let found = self
                .known
                .cuts
                .as_ref()
                .and_then(|(_, cuts)| cuts.binary_search(at).ok());
            found.ok_or_else(|| {
                Error::new(
                    ErrorKind::Protocol,
                    "a part that is the same was cut where no chunk ends",
                )
            })
        };
        let chunks = cut(&part.start)?..cut(&part.end)?;
        self.next = chunks.end;
        for (id, length) in &self.known.expected[chunks] {
            let place = self.known.places.get(id);
            let place =
                *place.ok_or_else(|| Error::new(ErrorKind::Protocol, "a chunk that is the same is not known"))?;
            self.chunks.push((*id, place));
            self.size += u64::from(*length);
        }
        Ok(())
    }

    /// Takes the chunk that came at this place before, if it is there again, and says how long it is: where its end is
    /// need not be looked for, which is most of the work.
    fn expected(&mut self, content: &[u8]) -> Option<usize> {
        let (id, length) = *self.known.expected.get(self.next)?;
        let chunk = content.get(..length as usize)?;
        let place = self.known.places.get(&id).filter(|place| place.length == length);
        let Some(place) = place.filter(|_| ChunkId::of(chunk) == id) else {
            // Until a chunk comes that was there before.
            self.next = usize::MAX;
            return None;
        };
        self.chunks.push((id, *place));
        self.size += u64::from(length);
        self.next += 1;
        Some(chunk.len())
    }

    fn take(&mut self, chunk: &[u8]) -> Result<()> {
        let (id, length) = (ChunkId::of(chunk), number(chunk.len()));
        self.size += u64::from(length);
        if let Some(place) = self.known.places.get(&id).filter(|place| place.length == length) {
            self.chunks.push((id, *place));
            self.next = (place.expected as usize).saturating_add(1);
            return Ok(());
        }
        if self.segment.len() + chunk.len() > MAX_SEGMENT {
            self.flush()?;
        }
        let place = Place {
            segment: NEW | self.sent,
            offset: number(self.segment.len()),
            length,
            expected: u32::MAX,
        };
        self.segment.extend_from_slice(chunk);
        self.new += u64::from(length);
        self.chunks.push((id, place));
        if self.known.places.len() < 2 * MAX_KNOWN {
            self.known.places.insert(id, place);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.segment.is_empty() {
            return Ok(());
        }
        let segment = std::mem::replace(&mut self.segment, Vec::with_capacity(MAX_SEGMENT));
        self.sent += 1;
        let sent = self.segments.blocking_send(segment);
        sent.map_err(|_| Error::new(ErrorKind::Cancelled, "nobody took the chunks"))
    }
}
