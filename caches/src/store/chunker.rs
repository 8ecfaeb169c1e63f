//! Content cut into chunks where its bytes say so, and which of them are new.
//!
//! It computes all the time, so it runs in a thread of its own, between two channels that bound what is in memory.

use std::collections::HashMap;

use bytes::Bytes;
use fastcdc::v2020::FastCDC;
use tokio::sync::mpsc;

use crate::format::{Builder, ChunkId, Hash, MAX_CHUNK, MAX_SEGMENT, Manifest, Segment, number};

/// Shortest and usual chunk: one file that changed among thousands costs little more than itself.
const MIN_CHUNK: usize = 2 << 10;
const AVERAGE_CHUNK: usize = 8 << 10;
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

/// Where the segments of a [`Place`] are: those that were known before, then the new ones.
const NEW: u32 = 1 << 31;

/// The chunks that a store has.
#[derive(Debug, Default)]
pub(super) struct Known {
    places: HashMap<ChunkId, Place>,
    segments: Vec<((Hash, u64), Segment)>,
    /// The chunks of the cache as it was, in their order: most of them are likely to come again.
    expected: Vec<(ChunkId, u32)>,
}

impl Known {
    /// Takes up the chunks of the cache as it was; those that follow one another are expected to do so again.
    pub(super) fn expect(&mut self, manifest: &Manifest, usable: impl Fn(&Hash, u64) -> bool) {
        let chunks = manifest.chunks.iter().take(MAX_KNOWN);
        self.expected = chunks.map(|chunk| (chunk.id, chunk.length)).collect();
        self.add(manifest, usable);
        for (at, (id, _)) in self.expected.iter().enumerate().rev() {
            if let Some(place) = self.places.get_mut(id) {
                place.expected = number(at);
            }
        }
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

/// Cuts what comes from `pieces` until it ends, and sends on segments of what is new. `None` if nobody takes them any more.
pub(super) fn chunk(
    mut pieces: mpsc::Receiver<Bytes>,
    known: Known,
    segments: &mpsc::Sender<Vec<u8>>,
) -> Option<Chunked> {
    let mut work = Work {
        chunks: Vec::new(),
        known,
        next: 0,
        segment: Vec::with_capacity(MAX_SEGMENT),
        sent: 0,
        size: 0,
        new: 0,
    };
    let mut window: Vec<u8> = Vec::with_capacity(WINDOW + ROOM);
    loop {
        let piece = pieces.blocking_recv();
        if let Some(piece) = &piece {
            window.extend_from_slice(piece);
            if window.len() < WINDOW {
                continue;
            }
        }
        let cutter = FastCDC::new(&window, MIN_CHUNK, AVERAGE_CHUNK, MAX_CHUNK);
        let mut done = 0;
        loop {
            let left = window.len() - done;
            // Where the window ends is no place to cut, unless the content ends there.
            if left == 0 || (left < MAX_CHUNK && piece.is_some()) {
                break;
            }
            let end = match work.expected(&window[done..]) {
                Some(length) => done + length,
                None => {
                    let (_, end) = cutter.cut(done, left);
                    work.take(&window[done..end], segments)?;
                    end
                }
            };
            done = end;
        }
        window.drain(..done);
        if piece.is_none() {
            work.flush(segments)?;
            return Some(Chunked {
                chunks: work.chunks,
                known: work.known,
                size: work.size,
                new: work.new,
            });
        }
    }
}

struct Work {
    chunks: Vec<(ChunkId, Place)>,
    known: Known,
    /// Which of the expected chunks comes next, if it goes on as before.
    next: usize,
    segment: Vec<u8>,
    sent: u32,
    size: u64,
    new: u64,
}

impl Work {
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

    fn take(&mut self, chunk: &[u8], segments: &mpsc::Sender<Vec<u8>>) -> Option<()> {
        let (id, length) = (ChunkId::of(chunk), number(chunk.len()));
        self.size += u64::from(length);
        if let Some(place) = self.known.places.get(&id).filter(|place| place.length == length) {
            self.chunks.push((id, *place));
            self.next = (place.expected as usize).saturating_add(1);
            return Some(());
        }
        if self.segment.len() + chunk.len() > MAX_SEGMENT {
            self.flush(segments)?;
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
        Some(())
    }

    fn flush(&mut self, segments: &mpsc::Sender<Vec<u8>>) -> Option<()> {
        if self.segment.is_empty() {
            return Some(());
        }
        let segment = std::mem::replace(&mut self.segment, Vec::with_capacity(MAX_SEGMENT));
        self.sent += 1;
        segments.blocking_send(segment).ok()
    }
}
