//! A store that is a directory, with the `blobs` of an [OCI image
//! layout](https://github.com/opencontainers/image-spec/blob/main/image-layout.md): for drivers without a daemon.
//!
//! A blob is written to `ingest/`, synced, and renamed to its place: a half-written one is never taken for a whole one,
//! and is taken up again by the next who wants it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use orchestra::{ByteStream, Error, ErrorKind, Result, stream};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::content::{ContentStore, Digester, Ingest, Labels, differs, sha256};

/// Bytes that are collected before they are hashed and written at once, off the threads that wait for others.
const BATCH: usize = 1 << 20;

/// Blobs in a directory. Several processes may use one.
#[derive(Clone, Debug)]
pub struct DirectoryStore {
    root: PathBuf,
}

impl DirectoryStore {
    /// The store at `root`, which is made if it is not there.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let ingests = root.join("ingest");
        blocking(&root, move || {
            fs::create_dir_all(&ingests)?;
            sweep(&ingests)
        })
        .await?;
        Ok(Self { root })
    }

    /// Where a blob of this digest is, or would be.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an algorithm that can't be verified.
    pub fn blob(&self, digest: &Digest) -> Result<PathBuf> {
        // What another algorithm's digest looks like is not checked, so it is no name for a file.
        Digester::new(digest.algorithm())?;
        Ok(self
            .root
            .join("blobs")
            .join(digest.algorithm().as_ref())
            .join(digest.digest()))
    }
}

/// Runs what blocks where it blocks nobody.
async fn blocking<T: Send + 'static>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    let done = spawn_blocking(work).await.map_err(io::Error::other).flatten();
    done.map_err(|error| Error::io(format!("the image store at {}", path.display()), error))
}

#[async_trait]
impl ContentStore for DirectoryStore {
    async fn read(&self, digest: &Digest, _size: u64) -> Result<ByteStream> {
        let path = self.blob(digest)?;
        match tokio::fs::File::open(&path).await {
            Ok(file) => Ok(stream::from_reader(file, "read a blob of the image store")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::new(
                ErrorKind::ImageNotFound,
                format!("the image store at {} lacks the blob {digest}", self.root.display()),
            )),
            Err(error) => Err(Error::io(path.display(), error)),
        }
    }

    async fn ingest(&self, reference: &str, expected: Option<(&Digest, u64)>) -> Result<Option<Box<dyn Ingest>>> {
        let blob = expected.map(|(digest, _)| self.blob(digest)).transpose()?;
        let algorithm = expected.map_or(DigestAlgorithm::Sha256, |(digest, _)| digest.algorithm().clone());
        let digester = Digester::new(&algorithm)?;
        let shared = self.root.join("ingest").join(sha256(reference.as_bytes()).digest());
        let opening = move || open(&shared, blob.as_deref(), digester);
        let Some((path, writer)) = blocking(&self.root, opening).await? else {
            return Ok(None);
        };
        let keep = path.extension().is_none();
        Ok(Some(Box::new(FileIngest {
            store: self.clone(),
            offset: writer.written,
            path,
            expected: expected.map(|(digest, size)| (digest.clone(), size)),
            batch: Vec::new(),
            batched: 0,
            writer: Some(writer),
            writing: None,
            keep,
        })))
    }

    fn links(&self, _children: &[Descriptor]) -> Labels {
        Labels::new()
    }
}

/// Removes what nobody writes any more and nobody will take up again: such files have an extension.
fn sweep(ingests: &Path) -> io::Result<()> {
    for entry in fs::read_dir(ingests)? {
        let path = entry?.path();
        if path.extension().is_none() {
            continue;
        }
        match File::open(&path) {
            Ok(file) if file.try_lock().is_ok() => fs::remove_file(&path)?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The file to write to, with what it has already; `None` if the blob is there.
fn open(shared: &Path, blob: Option<&Path>, digester: Digester) -> io::Result<Option<(PathBuf, Writer)>> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let own = || {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        shared.with_extension(format!("{}-{number}", std::process::id()))
    };
    // What is not known by its digest can't be taken up again.
    let mut path = if blob.is_some() { shared.to_path_buf() } else { own() };
    loop {
        if blob.is_some_and(Path::exists) {
            return Ok(None);
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            // Somebody else writes it now: whoever is later throws his away.
            Err(TryLockError::WouldBlock) => {
                path = own();
                continue;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Who held the lock until now may have put the file in its place, or removed it.
        match fs::metadata(&path) {
            Ok(now) if now.ino() == file.metadata()?.ino() => {}
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        if blob.is_some_and(Path::exists) {
            fs::remove_file(&path)?;
            return Ok(None);
        }
        let mut writer = Writer {
            file,
            digester,
            written: 0,
        };
        if blob.is_some() {
            writer.take_in()?;
        } else {
            writer.file.set_len(0)?;
        }
        return Ok(Some((path, writer)));
    }
}

struct Writer {
    file: File,
    digester: Digester,
    written: u64,
}

impl Writer {
    /// Reads what an earlier writer left.
    fn take_in(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(()),
                read => {
                    self.digester.update(&buffer[..read]);
                    self.written += read as u64;
                }
            }
        }
    }

    fn write(mut self, batch: Vec<Bytes>) -> io::Result<Self> {
        for piece in batch {
            self.digester.update(&piece);
            self.file.write_all(&piece)?;
            self.written += piece.len() as u64;
        }
        Ok(self)
    }
}

struct FileIngest {
    store: DirectoryStore,
    path: PathBuf,
    expected: Option<(Digest, u64)>,
    offset: u64,
    batch: Vec<Bytes>,
    batched: usize,
    writer: Option<Writer>,
    /// The batch before, on its way to the file.
    writing: Option<JoinHandle<io::Result<Writer>>>,
    /// Whether the file stays when this is dropped.
    keep: bool,
}

impl FileIngest {
    /// The writer, when it has written what it was given.
    async fn idle(&mut self) -> Result<Writer> {
        if let Some(writing) = &mut self.writing {
            let done = writing.await;
            self.writing = None;
            let done = done.map_err(io::Error::other).flatten();
            return done.map_err(|error| Error::io(self.path.display(), error));
        }
        let gone = || {
            Error::new(
                ErrorKind::Io,
                format!("writing to {} failed before", self.path.display()),
            )
        };
        self.writer.take().ok_or_else(gone)
    }

    async fn flush(&mut self) -> Result<()> {
        let writer = self.idle().await?;
        let batch = std::mem::take(&mut self.batch);
        self.batched = 0;
        self.writing = Some(spawn_blocking(move || writer.write(batch)));
        Ok(())
    }
}

#[async_trait]
impl Ingest for FileIngest {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, piece: Bytes) -> Result<()> {
        self.batched += piece.len();
        self.batch.push(piece);
        if self.batched >= BATCH {
            self.flush().await
        } else {
            Ok(())
        }
    }

    async fn commit(mut self: Box<Self>, _labels: Labels) -> Result<(Digest, u64)> {
        self.flush().await?;
        let Writer {
            file,
            digester,
            written,
        } = self.idle().await?;
        let digest = digester.finish();
        if let Some((expected, size)) = &self.expected
            && (*expected != digest || *size != written)
        {
            self.keep = false;
            return Err(differs(expected));
        }
        let (from, to) = (self.path.clone(), self.store.blob(&digest)?);
        blocking(&self.store.root, move || {
            file.sync_all()?;
            let folder = to.parent().unwrap_or(&to);
            fs::create_dir_all(folder)?;
            fs::rename(&from, &to)?;
            File::open(folder)?.sync_all()
        })
        .await?;
        self.keep = true;
        Ok((digest, written))
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.keep = false;
        Ok(())
    }
}

impl Drop for FileIngest {
    fn drop(&mut self) {
        if !self.keep {
            // The lock is still held, so it is nobody else's file. What can't be removed is overwritten by the next.
            let _ = fs::remove_file(&self.path);
        }
    }
}
