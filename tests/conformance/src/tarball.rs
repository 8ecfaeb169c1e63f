//! Tars as the suite makes and reads them: every name, owner, mode and link as it is told, nothing taken from this
//! machine.

use bytes::Bytes;
use futures_util::StreamExt;
use orchestra::{ByteStream, Error, Result, stream};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_tar::{Archive, EntryType, Header};

/// What a tar says of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File(Bytes),
    Symlink(String),
    /// Another name of an entry before it.
    HardLink(String),
}

impl Entry {
    fn new(path: impl Into<String>, kind: Kind, mode: u32) -> Self {
        let path = path.into();
        Self {
            path,
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
        }
    }

    /// A file of root's with mode 0644.
    pub(crate) fn file(path: impl Into<String>, content: impl Into<Bytes>) -> Self {
        Self::new(path, Kind::File(content.into()), 0o644)
    }

    pub(crate) fn dir(path: impl Into<String>) -> Self {
        Self::new(path, Kind::Directory, 0o755)
    }

    pub(crate) fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(path, Kind::Symlink(target.into()), 0o777)
    }

    pub(crate) fn hard_link(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(path, Kind::HardLink(target.into()), 0o644)
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    /// The entry's part of a tar, with GNU's form of names that are too long for a header.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let (entry_type, content, link) = match &self.kind {
            Kind::Directory => (EntryType::Directory, Bytes::new(), ""),
            Kind::File(content) => (EntryType::Regular, content.clone(), ""),
            Kind::Symlink(target) => (EntryType::Symlink, Bytes::new(), target.as_str()),
            Kind::HardLink(target) => (EntryType::Link, Bytes::new(), target.as_str()),
        };
        let mut tar = Vec::new();
        let mut header = Header::new_gnu();
        // Written as bytes: a tar that tries to escape is exactly what a tar library refuses to make.
        if let Some(gnu) = header.as_gnu_mut() {
            fill(&mut gnu.name, self.path.as_bytes(), b'L', &mut tar);
            fill(&mut gnu.linkname, link.as_bytes(), b'K', &mut tar);
        }
        header.set_entry_type(entry_type);
        header.set_size(content.len() as u64);
        header.set_mode(self.mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(self.mtime);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(&content);
        pad(&mut tar);
        tar
    }
}

/// The header of a file of `size` bytes, which follow it; `size` is a multiple of 512.
pub(crate) fn file_header(path: &str, size: u64) -> Bytes {
    let mut header = Header::new_gnu();
    header
        .as_mut_bytes()
        .copy_from_slice(&Entry::file(path, "").to_bytes()[..512]);
    header.set_size(size);
    header.set_cksum();
    Bytes::copy_from_slice(header.as_bytes())
}

/// Puts a name into its field of a header, or into an entry before it.
fn fill(field: &mut [u8; 100], name: &[u8], long: u8, tar: &mut Vec<u8>) {
    let short = name.len().min(field.len());
    field[..short].copy_from_slice(&name[..short]);
    if name.len() <= field.len() {
        return;
    }
    let mut header = Header::new_gnu();
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.name[..13].copy_from_slice(b"././@LongLink");
    }
    header.set_entry_type(EntryType::new(long));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(name.len() as u64 + 1);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(name);
    tar.push(0);
    pad(tar);
}

fn pad(tar: &mut Vec<u8>) {
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// What ends a tar.
pub(crate) const END: &[u8] = &[0; 1024];

/// A whole small tar.
pub(crate) fn pack(entries: &[Entry]) -> Bytes {
    let mut tar: Vec<u8> = entries.iter().flat_map(Entry::to_bytes).collect();
    tar.extend_from_slice(END);
    tar.into()
}

/// Reads a tar entry by entry; `each` may refuse one.
///
/// # Errors
/// The tar's own, as it was; [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) if it is not a tar or cut off.
pub(crate) async fn for_each(tar: ByteStream, mut each: impl FnMut(Entry) -> Result<()> + Send) -> Result<()> {
    // The tar library wraps what its reader fails with: the error itself is kept aside.
    let (failed, mut failure) = tokio::sync::mpsc::unbounded_channel();
    let tar = tar.map(move |piece| {
        piece.map_err(|error| {
            let again = Error::new(error.kind(), error.message());
            // Nobody listens any more only if nobody reads any more.
            let _ = failed.send(error);
            again
        })
    });
    let result = read(tar.boxed(), &mut each).await;
    match failure.try_recv() {
        Ok(error) => Err(error),
        Err(_) => result,
    }
}

async fn read(tar: ByteStream, each: &mut (impl FnMut(Entry) -> Result<()> + Send)) -> Result<()> {
    // Read to its very end, not only to the tar's: whoever sends it may do something after its last byte.
    let mut tar = stream::into_reader(tar);
    read_entries(&mut tar, each).await?;
    let rest = tokio::io::copy(&mut tar, &mut tokio::io::sink()).await;
    rest.map(|_| ())
        .map_err(|error| Error::io("read the end of the tar", error))
}

async fn read_entries(
    tar: &mut (impl AsyncRead + Send + Unpin),
    each: &mut (impl FnMut(Entry) -> Result<()> + Send),
) -> Result<()> {
    let invalid = |error: std::io::Error| Error::invalid(format!("the tar can't be read: {error}")).with_source(error);
    let mut archive = Archive::new(tar);
    let mut entries = archive.entries().map_err(invalid)?;
    while let Some(entry) = entries.next().await {
        let mut entry = entry.map_err(invalid)?;
        let link = entry
            .link_name_bytes()
            .map_err(invalid)?
            .map(|link| String::from_utf8_lossy(&link).into_owned());
        let link = link.unwrap_or_default();
        let header = entry.header();
        let mut read = Entry {
            path: String::from_utf8_lossy(&entry.path_bytes().map_err(invalid)?).into_owned(),
            kind: Kind::Directory,
            mode: header.mode().map_err(invalid)?,
            uid: header.uid().map_err(invalid)?,
            gid: header.gid().map_err(invalid)?,
            mtime: header.mtime().map_err(invalid)?,
        };
        read.kind = match header.entry_type() {
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Link => Kind::HardLink(link),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let (size, mut content) = (entry.effective_size(), Vec::new());
                entry.read_to_end(&mut content).await.map_err(invalid)?;
                if content.len() as u64 != size {
                    return Err(Error::invalid(format!("the tar ends in the middle of {}", read.path)));
                }
                Kind::File(content.into())
            }
            other => {
                return Err(Error::invalid(format!(
                    "{} is a {other:?}, which is not understood",
                    read.path
                )));
            }
        };
        each(read)?;
    }
    Ok(())
}

/// All entries of a small tar.
///
/// # Errors
/// Those of [`for_each`].
pub(crate) async fn unpack(tar: ByteStream) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for_each(tar, |entry| {
        entries.push(entry);
        Ok(())
    })
    .await?;
    Ok(entries)
}
