//! A local directory as a tar stream: how a build's context gets into a volume.

mod ignore;

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use orchestra::{ByteStream, Error, ErrorKind, Result};
use tokio::sync::mpsc;

pub(crate) use self::ignore::Ignore;
use self::ignore::Verdict;

/// Pieces that the tar is sent in, and how many may wait: what is read ahead of the engine.
const PIECE: usize = 256 * 1024;
const PIECES: usize = 4;

/// Packs a directory in a thread of its own, as fast as the stream is read.
///
/// Symbolic links are kept as they are, and permissions and times too; everything belongs to root, as `COPY` has it.
/// What the build does not want is left out. What is neither file, directory nor link has no place in a context: it is left out
/// too, and told to `skipped`.
pub(crate) fn tar(dir: PathBuf, ignore: Ignore, skipped: impl FnMut(&Path) + Send + 'static) -> ByteStream {
    let (sender, receiver) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        let writer = Pieces {
            piece: BytesMut::with_capacity(PIECE),
            sender,
        };
        let last = writer.sender.clone();
        if let Err(error) = pack(&dir, &ignore, writer, skipped) {
            // Nobody is left to tell if the receiver is gone.
            last.blocking_send(Err(error)).ok();
        }
    });
    stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    })
    .boxed()
}

/// A writer whose pieces are sent on.
struct Pieces {
    piece: BytesMut,
    sender: mpsc::Sender<Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE));
        self.sender
            .blocking_send(Ok(full.freeze()))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn pack(root: &Path, ignore: &Ignore, writer: Pieces, mut skipped: impl FnMut(&Path)) -> Result<()> {
    let mut builder = tar::Builder::new(writer);
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let failed = |error| Error::io(format!("read the directory {}", dir.display()), error);
        let mut entries = fs::read_dir(&dir)
            .map_err(failed)?
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap_or(&path).to_owned();
            let failed = |error| Error::io(format!("read {}", path.display()), error);
            let meta = fs::symlink_metadata(&path).map_err(failed)?;
            let verdict = ignore.verdict(&name, meta.is_dir());
            if verdict == Verdict::LeftOut {
                continue;
            }
            if special(&meta) {
                skipped(&name);
                continue;
            }
            append(&mut builder, &path, &name, &meta).map_err(failed)?;
            if meta.is_dir() {
                open.push(path);
            }
        }
    }
    let finish = |error| Error::io("pack the context", error);
    let mut writer = builder.into_inner().map_err(finish)?;
    writer.flush().map_err(finish)
}

fn special(meta: &Metadata) -> bool {
    let kind = meta.file_type();
    kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device()
}

fn append(builder: &mut tar::Builder<Pieces>, path: &Path, name: &Path, meta: &Metadata) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(meta.permissions().mode() & 0o7777);
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    if meta.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        return builder.append_link(&mut header, name, fs::read_link(path)?);
    }
    if meta.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        return builder.append_data(&mut header, name, io::empty());
    }
    let file = File::open(path)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(meta.len());
    builder.append_data(&mut header, name, Exactly { file, left: meta.len() })
}

/// Reads as many bytes as the header has promised: a file that is written to meanwhile would break the archive.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..wanted])?;
        self.left -= read as u64;
        if read == 0 && wanted > 0 {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        Ok(read)
    }
}

/// Checks, before anything is made, that the directory is one.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] with the reason.
pub(crate) fn check(dir: &Path) -> Result<()> {
    let refuse = |why: String| {
        Err(
            Error::new(ErrorKind::InvalidInput, format!("the context {} {why}", dir.display()))
                .with_hint("give the directory that the Dockerfile is in"),
        )
    };
    match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => refuse("is not a directory".to_owned()),
        Err(error) => refuse(format!("can't be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    async fn entries(dir: &Path) -> (BTreeMap<String, (tar::EntryType, u64, u32)>, Vec<PathBuf>) {
        let (told, skipped) = std::sync::mpsc::channel();
        let pieces: Vec<Bytes> = tar(dir.to_owned(), Ignore::of(dir, "Dockerfile"), move |name| {
            told.send(name.to_owned()).unwrap()
        })
        .try_collect()
        .await
        .unwrap();
        let bytes = pieces.concat();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let found = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            let name = entry.path().unwrap().display().to_string();
            (
                name,
                (header.entry_type(), header.size().unwrap(), header.mode().unwrap()),
            )
        });
        (found.collect(), skipped.iter().collect())
    }

    #[tokio::test]
    async fn files_directories_and_links_are_packed_and_sockets_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let deep = "d".repeat(120);
        fs::create_dir_all(root.join(&deep)).unwrap();
        fs::write(root.join(&deep).join("file"), vec![7; PIECE * 3]).unwrap();
        fs::write(root.join("run.sh"), "#!/bin/sh").unwrap();
        fs::set_permissions(root.join("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("/nowhere", root.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();

        let (found, skipped) = entries(root).await;
        assert_eq!(found["run.sh"], (tar::EntryType::Regular, 9, 0o750));
        assert_eq!(found["link"].0, tar::EntryType::Symlink);
        assert_eq!(found[&format!("{deep}/file")].1, 3 * PIECE as u64);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(skipped, [PathBuf::from("socket")]);
    }

    #[tokio::test]
    async fn what_the_build_does_not_want_is_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["node_modules/left", "kept/inner", "docs"] {
            fs::create_dir_all(root.join(folder)).unwrap();
            fs::write(root.join(folder).join("file"), "x").unwrap();
        }
        fs::write(root.join("Dockerfile"), "FROM scratch").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("node_modules/socket")).unwrap();
        let names = async || entries(root).await.0.into_keys().collect::<Vec<_>>();

        fs::write(root.join(".dockerignore"), "node_modules\nDockerfile\ndocs").unwrap();
        let all = [".dockerignore", "Dockerfile", "kept", "kept/inner", "kept/inner/file"];
        assert_eq!(names().await, all);
        assert!(entries(root).await.1.is_empty(), "of what is left out nothing is told");

        // The directories on the way to what is wanted are no more than that: BuildKit leaves out those that stay empty.
        fs::write(root.join(".dockerignore"), "*\n!kept/inner/file").unwrap();
        assert!(!names().await.iter().any(|name| name.starts_with("docs/file")));
        assert!(names().await.contains(&"kept/inner/file".to_owned()));
    }

    #[tokio::test]
    async fn a_file_that_shrinks_is_an_error_and_not_a_broken_archive() {
        let dir = tempfile::tempdir().unwrap();
        // Says it has 4096 bytes and has fewer.
        let size = fs::metadata("/sys/kernel/uevent_seqnum").unwrap().len();
        let mut file = Exactly {
            file: File::open("/sys/kernel/uevent_seqnum").unwrap(),
            left: size,
        };
        let error = file.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("shorter"), "{error}");
        assert!(check(&dir.path().join("missing")).is_err());
    }

    #[tokio::test]
    async fn a_stream_that_is_dropped_ends_the_packing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("large"), vec![0; PIECE * (PIECES + 4)]).unwrap();
        let (told, ended) = std::sync::mpsc::channel::<()>();
        let mut stream = tar(dir.path().to_owned(), Ignore::default(), move |_| {
            told.send(()).unwrap()
        });
        stream.next().await.unwrap().unwrap();
        drop(stream);
        assert_eq!(
            ended.recv_timeout(std::time::Duration::from_secs(5)),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
        );
    }
}
