//! Tars in and out of a directory of this machine, exactly. Packing and unpacking block, so each runs on a thread of its own,
//! and the pieces go through a short channel: who is slow slows the other, and who stops listening ends the work.
//!
//! Whoever else changes the directory meanwhile, a container that has it mounted included, leads nothing out of it: see
//! [`orchestra_helper::tree`].

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use orchestra::{ByteStream, Error, ErrorKind, Result, VolumePath};
use orchestra_helper::tree::{self, TreeError};
use rustix::fs::{Access, AtFlags, CWD};
use tokio::sync::mpsc;

use crate::parts::{Part, Parts, Since};

/// Pieces that may be under way.
const PIECES: usize = 4;

/// This process's user namespace, if it is the first of the machine: the number is the kernel's own (`PROC_USER_INIT_INO`).
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// The kernel capabilities that it takes to have files of all kinds and owners: `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`,
/// `SYS_ADMIN` (for `trusted.*` attributes), `MKNOD` and `SETFCAP`, by their numbers in capabilities(7).
const RIGHTS: [u32; 7] = [0, 1, 3, 4, 21, 27, 31];

/// Whether this process may have files of all kinds and owners.
#[must_use]
pub fn has_all_rights() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    let namespace = std::fs::read_link("/proc/self/ns/user");
    effective.is_some_and(|bits| RIGHTS.iter().all(|right| bits & (1 << right) != 0))
        && namespace.is_ok_and(|namespace| namespace == Path::new(FIRST_USER_NAMESPACE))
}

/// What the tree at `root` is, seen from what it was.
/// The directory is not held by what goes on when this call is dropped: that only looks.
pub(crate) async fn compare(root: &Path, known: Arc<tree::Known>) -> Result<tree::Comparison> {
    let root = root.to_owned();
    blocking(move || known.compare(&root).map_err(|error| failed(error, &root))).await
}

/// Whether this process may write to the directory: it may be on a file system that is read-only here.
pub(crate) async fn is_writable(root: &Path) -> bool {
    let root = root.to_owned();
    let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    tokio::task::spawn_blocking(move || rustix::fs::accessat(CWD, &root, wanted, AtFlags::EACCESS).is_ok())
        .await
        .unwrap_or(false)
}

/// Unpacks a tar into the directory `path` of the tree at `root`, which is held until all work in it has ended. That is soon
/// after the call is dropped: nothing more is read of the tar.
///
/// # Errors
/// [`PathNotFound`](ErrorKind::PathNotFound), [`InvalidInput`](ErrorKind::InvalidInput) for what is no tar, or leads out of the
/// tree; [`Io`](ErrorKind::Io), [`DiskFull`](ErrorKind::DiskFull); an error of `tar` itself.
pub async fn write(root: impl AsRef<Path> + Send + 'static, path: VolumePath, tar: ByteStream) -> Result<()> {
    unpacking(root, tar, move |root, input| tree::unpack(root, &inside(&path), input)).await
}

/// The same for a whole tree and a tar of [`tree::pack`], and what it is then.
pub(crate) async fn fill(root: impl AsRef<Path> + Send + 'static, tar: ByteStream) -> Result<tree::Known> {
    unpacking(root, tar, |root, input| tree::fill(root, input)).await
}

async fn unpacking<T: Send + 'static>(
    root: impl AsRef<Path> + Send + 'static,
    mut tar: ByteStream,
    unpack: impl FnOnce(&Path, &mut dyn Read) -> tree::Result<T> + Send + 'static,
) -> Result<T> {
    let (pieces, received) = mpsc::channel(PIECES);
    let given_up = GivenUp::default();
    let seen = given_up.0.clone();
    let feed = async move {
        while let Some(piece) = tar.next().await {
            let failed = piece.is_err();
            // The other side has ended, and says why.
            if pieces.send(piece.map(Some)).await.is_err() || failed {
                return;
            }
        }
        let _ = pieces.send(Ok(None)).await;
    };
    let unpack = blocking(move || {
        let mut input = Received {
            pieces: received,
            piece: Bytes::new(),
            ended: false,
            given_up: seen,
        };
        unpack(root.as_ref(), &mut input).map_err(|error| failed(error, root.as_ref()))
    });
    // Not `try_join`: what was begun is waited for.
    let ((), done) = tokio::join!(feed, unpack);
    done
}

/// Packs files and directories of the tree at `root` into one tar. The stream fails with
/// [`PathNotFound`](ErrorKind::PathNotFound) for one that is not there and with [`Io`](ErrorKind::Io).
pub fn read(root: impl AsRef<Path> + Send + 'static, paths: Vec<VolumePath>) -> ByteStream {
    packing(root, paths, |root, paths, pieces| {
        tree::pack(root, paths, &mut Sent(|bytes| pieces.blocking_send(Ok(bytes)).is_ok()))
    })
}

/// The same in parts, for one who has the tar that the tree was filled from. Paths that are not there are left out.
pub(crate) fn read_parts(
    root: impl AsRef<Path> + Send + 'static,
    paths: Vec<VolumePath>,
    since: Option<Since>,
    devices: bool,
) -> Parts {
    packing(root, paths, move |root, paths, parts| {
        let send = |part| parts.blocking_send(Ok(part)).is_ok();
        let mut same = |range| if_taken(send(Part::Same(range)));
        let since = since.as_ref().map(|since| tree::Since {
            comparison: &since.comparison,
            cuts: &since.cuts,
            same: &mut same,
        });
        let mut output = Sent(|bytes| send(Part::Tar(bytes)));
        let devices_left_out = tree::pack_since(root, paths, since, devices, &mut output)?;
        send(Part::End { devices_left_out });
        Ok(())
    })
}

/// What `pack` sends, and its error if that fails.
fn packing<T: Send + 'static>(
    root: impl AsRef<Path> + Send + 'static,
    paths: Vec<VolumePath>,
    pack: impl FnOnce(&Path, &[&Path], &mpsc::Sender<Result<T>>) -> tree::Result<()> + Send + 'static,
) -> BoxStream<'static, Result<T>> {
    let (pieces, received) = mpsc::channel(PIECES);
    let packing = tokio::task::spawn_blocking(move || {
        let paths: Vec<PathBuf> = paths.iter().map(inside).collect();
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        if let Err(error) = pack(root.as_ref(), &paths, &pieces) {
            let _ = pieces.blocking_send(Err(failed(error, root.as_ref())));
        }
    });
    stream::unfold((received, Some(packing)), async |(mut received, mut packing)| {
        if let Some(piece) = received.recv().await {
            return Some((piece, (received, packing)));
        }
        // It has ended; a tar that is cut off by a panic is not to look whole.
        let ended = packing.take()?.await;
        let error = Error::io("pack a tar", io::Error::other(ended.err()?));
        Some((Err(error), (received, None)))
    })
    .boxed()
}

/// What `work` answers, off the threads that drive futures.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Err(Error::io("work on files", io::Error::other(error))),
    }
}

fn inside(path: &VolumePath) -> PathBuf {
    match path.as_str() {
        "." => PathBuf::new(),
        path => PathBuf::from(path),
    }
}

fn failed(error: TreeError, root: &Path) -> Error {
    match error {
        TreeError::NotFound(path) if path == root => {
            Error::new(ErrorKind::VolumeNotFound, "the volume's directory is gone")
        }
        TreeError::Io { doing, source } => Error::io(doing, source),
        TreeError::NotFound(_) => Error::new(ErrorKind::PathNotFound, error.to_string()),
        TreeError::Changed(_) => Error::new(ErrorKind::Conflict, error.to_string()).retryable(true),
        other => Error::invalid(other.to_string()),
    }
}

/// What comes through a channel, as a reader. The end is told; a channel that ends without was given up.
struct Received {
    pieces: mpsc::Receiver<Result<Option<Bytes>>>,
    piece: Bytes,
    ended: bool,
    /// What waits in the channel is not to be written any more.
    given_up: Arc<AtomicBool>,
}

/// Tells when it is dropped.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let cancelled = || io::Error::from(Error::new(ErrorKind::Cancelled, "the tar was given up"));
        if self.given_up.load(Ordering::Relaxed) {
            return Err(cancelled());
        }
        while self.piece.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Ok(Some(piece))) => self.piece = piece,
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(cancelled()),
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// A writer into a channel. Whether it is taken is what the function says.
struct Sent<F>(F);

impl<F: FnMut(Bytes) -> bool> Write for Sent<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if_taken((self.0)(Bytes::copy_from_slice(bytes)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn if_taken(taken: bool) -> io::Result<()> {
    taken.then_some(()).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
}
