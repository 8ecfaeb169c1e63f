//! Tars to persist, and objects that fail when a test wants it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    reason = "each test program uses a part of it"
)]

pub mod world;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use orchestra::ByteStream;
use orchestra::tar::{END, Head, padded};
use orchestra_caches::{CacheKey, Entry, Persist, Persisted, Prune, Store, StoreOptions};

/// A tar of these files.
pub fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files {
        bytes.extend(Head::file(content.len() as u64).blocks(name).concat());
        bytes.extend_from_slice(&padded(content));
    }
    bytes.extend_from_slice(&END);
    bytes
}

/// The same bytes as a stream in pieces.
pub fn stream_of(bytes: Vec<u8>) -> ByteStream {
    let bytes = Bytes::from(bytes);
    let pieces: Vec<_> = (0..bytes.len())
        .step_by(100_000)
        .map(|at| Ok(bytes.slice(at..bytes.len().min(at + 100_000))))
        .collect();
    stream::iter(pieces).boxed()
}

/// Bytes that do not compress, and are the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

pub fn key(text: &str) -> CacheKey {
    text.parse().unwrap()
}

pub fn folder_store(folder: &std::path::Path) -> Store {
    let mut options = StoreOptions::default();
    options.url = format!("file://{}", folder.display());
    Store::open(&options).unwrap()
}

pub async fn persist(store: &Store, name: &str, tar: &[u8]) -> orchestra::Result<Persisted> {
    store
        .persist(&key(name), stream_of(tar.to_vec()), Persist::default())
        .await
}

pub async fn content(store: &Store, entry: &Entry) -> orchestra::Result<Vec<u8>> {
    let pieces: Vec<Bytes> = store.restore(entry).await?.content.try_collect().await?;
    Ok(pieces.concat())
}

/// What the key's cache holds; `None` on a miss.
pub async fn restore(store: &Store, name: &str) -> orchestra::Result<Option<Vec<u8>>> {
    match store.get(&key(name)).await? {
        Some(entry) => content(store, &entry).await.map(Some),
        None => Ok(None),
    }
}

/// A prune that keeps nothing a moment longer than it has to.
pub fn prune_at_once() -> Prune {
    let mut prune = Prune::default();
    prune.grace = Duration::ZERO;
    prune
}

/// Everything in a folder, with its content.
pub fn files(folder: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(folder).unwrap().display().to_string();
                found.push((name, std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// A folder's objects, counted, and failing from a chosen call on.
#[derive(Debug)]
pub struct Flaky {
    inner: Arc<dyn ObjectStore>,
    /// How many calls go well; below zero, all.
    pub calls: AtomicI64,
    pub puts: AtomicU64,
    pub gets: AtomicU64,
    /// Whether a failing call hangs instead.
    pub hangs: bool,
    gets_now: AtomicU64,
    most_gets: AtomicU64,
    /// How long each object is waited for.
    delay: Mutex<Duration>,
    /// How long what is put is waited for.
    put_delay: Mutex<Duration>,
    /// What begins like this comes to its half, and then nothing more; nothing where it is empty.
    stalls: Mutex<String>,
}

impl Flaky {
    pub fn new(folder: &std::path::Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        Self {
            inner: Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap()),
            calls: AtomicI64::new(-1),
            puts: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            hangs: false,
            gets_now: AtomicU64::new(0),
            most_gets: AtomicU64::new(0),
            delay: Mutex::default(),
            put_delay: Mutex::default(),
            stalls: Mutex::default(),
        }
    }

    pub fn fail_after(&self, calls: i64) {
        self.calls.store(calls, Ordering::SeqCst);
    }

    pub fn stall(&self, prefix: &str) {
        prefix.clone_into(&mut self.stalls.lock().unwrap());
    }

    pub fn delay_gets(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    pub fn delay_puts(&self, delay: Duration) {
        *self.put_delay.lock().unwrap() = delay;
    }

    pub fn most_gets_at_once(&self) -> u64 {
        self.most_gets.load(Ordering::SeqCst)
    }

    fn fails(&self) -> bool {
        let left = self.calls.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            (left > 0).then_some(left - 1)
        });
        left == Err(0)
    }

    async fn check(&self) -> Result<()> {
        if !self.fails() {
            return Ok(());
        }
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Err(refusal())
    }
}

fn refusal() -> object_store::Error {
    object_store::Error::Generic {
        store: "Flaky",
        source: "503 Slow Down".into(),
    }
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flaky({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.check().await?;
        self.puts.fetch_add(1, Ordering::SeqCst);
        let delay = *self.put_delay.lock().unwrap();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.check().await?;
        self.gets.fetch_add(1, Ordering::SeqCst);
        let now = self.gets_now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_gets.fetch_max(now, Ordering::SeqCst);
        let delay = *self.delay.lock().unwrap();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let found = self.inner.get_opts(location, options).await;
        self.gets_now.fetch_sub(1, Ordering::SeqCst);
        let stalls = self.stalls.lock().unwrap().clone();
        if stalls.is_empty() || !location.as_ref().starts_with(&stalls) {
            return found;
        }
        let found = found?;
        let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
        let bytes = found.bytes().await?;
        let half = stream::iter([Ok(bytes.slice(..bytes.len() / 2))]);
        Ok(GetResult {
            payload: GetResultPayload::Stream(half.chain(stream::pending()).boxed()),
            meta,
            range,
            attributes,
            extensions: Default::default(),
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.check().await?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if self.fails() {
            return stream::once(async { Err(refusal()) }).boxed();
        }
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.fails() {
            return stream::once(async { Err(refusal()) }).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
