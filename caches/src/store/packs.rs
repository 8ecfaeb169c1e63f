//! New content on its way to the store: segments are compressed, put together in packs, and sent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use orchestra::{Error, ErrorKind, Result};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Store, blocking, pack_path};
use crate::format::{Hash, Segment, number};

/// A pack is sent when it is this large: few requests, and few of it in memory.
const PACK: usize = 8 << 20;
/// How many packs are on their way at once.
const UPLOADS: usize = 2;
/// Most segments that are compressed at once.
const COMPRESSORS: usize = 8;

/// What was sent: for each new segment its pack and place, and the bytes of all packs.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) segments: Vec<((Hash, u64), Segment)>,
    pub(super) bytes: u64,
}

impl Store {
    /// Compresses segments and sends them in packs.
    pub(super) async fn send_packs(
        &self,
        segments: mpsc::Receiver<Vec<u8>>,
        packs: &HashMap<Hash, u64>,
    ) -> Result<Sent> {
        let compressors = Arc::new(Compressors::new(self.0.level));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let segments = futures_util::stream::unfold(segments, |mut segments| async {
            segments.recv().await.map(|segment| (segment, segments))
        });
        let mut compressed = segments
            .map(|segment| {
                let compressors = compressors.clone();
                async move {
                    let work = blocking(move || compressors.compress(&segment).map(|packed| (packed, segment.len())));
                    work.await?.map_err(|error| Error::io("compress a segment", error))
                }
            })
            .buffered(cores.clamp(2, COMPRESSORS))
            .boxed();
        let mut sent = Sent::default();
        let mut uploads: JoinSet<Result<()>> = JoinSet::new();
        let mut pack = BytesMut::with_capacity(PACK);
        let mut waiting = Vec::new();
        loop {
            let next = compressed.try_next().await?;
            let full = next.as_ref().is_none_or(|(packed, _)| pack.len() + packed.len() > PACK);
            if full && !pack.is_empty() {
                let bytes = std::mem::replace(&mut pack, BytesMut::with_capacity(PACK)).freeze();
                let name = self.upload(bytes.clone(), &mut uploads, packs).await?;
                let size = bytes.len() as u64;
                sent.bytes += size;
                sent.segments
                    .extend(waiting.drain(..).map(|segment| ((name, size), segment)));
            }
            let Some((packed, raw)) = next else { break };
            waiting.push(Segment {
                pack: 0,
                offset: pack.len() as u64,
                stored: number(packed.len()),
                raw: number(raw),
            });
            pack.extend_from_slice(&packed);
        }
        while let Some(done) = uploads.join_next().await {
            finished(done)?;
        }
        Ok(sent)
    }

    /// Begins to send a pack, once there is room; returns its name.
    async fn upload(
        &self,
        bytes: Bytes,
        uploads: &mut JoinSet<Result<()>>,
        packs: &HashMap<Hash, u64>,
    ) -> Result<Hash> {
        while uploads.len() >= UPLOADS {
            if let Some(done) = uploads.join_next().await {
                finished(done)?;
            }
        }
        let hashed = bytes.clone();
        let name = blocking(move || Hash::of(&hashed)).await?;
        // Someone else sent the same content at the same time.
        if packs.get(&name) != Some(&(bytes.len() as u64)) || self.bad_packs().contains(&name) {
            let store = self.clone();
            uploads.spawn(async move { store.put(&pack_path(&name), bytes).await });
        }
        Ok(name)
    }
}

/// The tables that a compressor needs take as long to make as a good part of a segment takes to compress: they are used again.
struct Compressors {
    level: i32,
    idle: Mutex<Vec<zstd::bulk::Compressor<'static>>>,
}

impl Compressors {
    fn new(level: i32) -> Self {
        Self {
            level,
            idle: Mutex::default(),
        }
    }

    fn compress(&self, segment: &[u8]) -> std::io::Result<Vec<u8>> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let mut compressor = match taken {
            Some(compressor) => compressor,
            None => zstd::bulk::Compressor::new(self.level)?,
        };
        let packed = compressor.compress(segment)?;
        idle().push(compressor);
        Ok(packed)
    }
}

fn finished(done: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.map_err(|error| Error::new(ErrorKind::Cancelled, format!("the runtime ended the upload: {error}")))?
}
