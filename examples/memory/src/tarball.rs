//! Tars whole in memory, for tests: every name, owner, mode and link as it is told, nothing taken from this machine.

use std::collections::BTreeMap;

use bytes::Bytes;
use orchestra::tar::{EntryType, Header, TarReader, padded, record};
use orchestra::{ByteStream, Error, ErrorKind, Result};

/// What a tar says of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Bytes that are no text stand for themselves: see [`text`].
    pub path: String,
    /// What it is, with its content.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u64,
    /// Its group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// What an extended header says besides names and sizes, ordered.
    pub records: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file with this content.
    File(Bytes),
    /// A symlink to this.
    Symlink(String),
    /// Another name of an entry before it.
    HardLink(String),
    /// A fifo or a device.
    Special {
        /// The tar's own byte for it.
        kind: u8,
        /// A device's major number.
        major: u32,
        /// A device's minor number.
        minor: u32,
    },
}

/// Where bytes that are no text are put: in a range that no standard gives a meaning to.
const BYTES: u32 = 0xf_7000;

/// A name as text from which its bytes can be told.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        let bytes = chunk.invalid().iter();
        text.extend(bytes.filter_map(|byte| char::from_u32(BYTES + u32::from(*byte))));
    }
    text
}

/// The bytes of a [`text`].
#[must_use]
pub fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in text.chars() {
        match u32::from(one)
            .checked_sub(BYTES)
            .and_then(|byte| u8::try_from(byte).ok())
        {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(one.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
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
            records: BTreeMap::new(),
        }
    }

    /// A file of root's with mode 0644.
    #[must_use]
    pub fn file(path: impl Into<String>, content: impl Into<Bytes>) -> Self {
        Self::new(path, Kind::File(content.into()), 0o644)
    }

    /// A directory of root's with mode 0755.
    #[must_use]
    pub fn dir(path: impl Into<String>) -> Self {
        Self::new(path, Kind::Directory, 0o755)
    }

    /// A symlink to `target`.
    #[must_use]
    pub fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(path, Kind::Symlink(target.into()), 0o777)
    }

    /// Another name of `target`.
    #[must_use]
    pub fn hard_link(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(path, Kind::HardLink(target.into()), 0o644)
    }

    /// A fifo or a device.
    #[must_use]
    pub fn special(path: impl Into<String>, kind: u8, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Special { kind, major, minor }, 0o640)
    }

    /// A file with holes in GNU's form 1.0: its size, and where it has which data.
    #[must_use]
    pub fn sparse(path: &str, size: u64, data: &[(u64, &str)]) -> Self {
        let mut content = format!("{}\n", data.len() + 1);
        for (start, data) in data {
            content.push_str(&format!("{start}\n{}\n", data.len()));
        }
        content.push_str(&format!("{size}\n0\n"));
        let mut content = padded(content.as_bytes()).to_vec();
        for (_, data) in data {
            content.extend_from_slice(data.as_bytes());
        }
        Self::file(path, content)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.name", path)
            .record("GNU.sparse.realsize", size.to_string())
    }

    /// With a record of an extended header.
    #[must_use]
    pub fn record(mut self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        self.records.insert(key.as_bytes().to_vec(), value.into());
        self
    }

    /// With an extended attribute.
    #[must_use]
    pub fn attribute(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.record(&format!("{XATTR}{name}"), value)
    }

    /// How much data a [`sparse`](Self::sparse) file came with, and its whole content; `None` for a file that is none.
    #[must_use]
    pub fn expanded(&self) -> Option<(usize, Vec<u8>)> {
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<usize>().ok();
        let size = number(self.records.get(b"GNU.sparse.realsize".as_slice())?)?;
        let Kind::File(stored) = &self.kind else {
            return None;
        };
        let mut numbers = stored.split(|byte| *byte == b'\n');
        let pieces = number(numbers.next()?)?;
        let (mut map, mut text) = (Vec::new(), pieces.to_string().len() + 1);
        for _ in 0..pieces {
            let (start, length) = (numbers.next()?, numbers.next()?);
            text += start.len() + length.len() + 2;
            map.push((number(start)?, number(length)?));
        }
        let mut data = stored.get(text.next_multiple_of(512)..)?;
        let (mut content, carried) = (vec![0; size], data.len());
        for (start, length) in map {
            let (piece, rest) = data.split_at_checked(length)?;
            content.get_mut(start..start + length)?.copy_from_slice(piece);
            data = rest;
        }
        Some((carried, content))
    }

    /// Its extended attributes.
    #[must_use]
    pub fn attributes(&self) -> BTreeMap<String, Vec<u8>> {
        let named = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            let key = String::from_utf8_lossy(key);
            Some((key.strip_prefix(XATTR)?.to_owned(), value.clone()))
        };
        self.records.iter().filter_map(named).collect()
    }

    /// Its time with the part of a second, as text; `0` where that is nothing.
    #[must_use]
    pub fn time(&self) -> String {
        let fine = self.records.get(b"mtime".as_slice()).map(|time| text(time));
        let fine = fine.unwrap_or_else(|| self.mtime.to_string());
        match fine.split_once('.') {
            Some((seconds, part)) => format!("{seconds}.{}", part.trim_end_matches('0')),
            None => format!("{fine}."),
        }
    }

    /// With these permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// With this owner and group.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// With this time, in seconds since 1970.
    #[must_use]
    pub fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    /// The entry's part of a tar, with GNU's form of names that are too long for a header.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (entry_type, content, link) = match &self.kind {
            Kind::Directory => (EntryType::Directory, Bytes::new(), ""),
            Kind::File(content) => (EntryType::Regular, content.clone(), ""),
            Kind::Symlink(target) => (EntryType::Symlink, Bytes::new(), target.as_str()),
            Kind::HardLink(target) => (EntryType::Link, Bytes::new(), target.as_str()),
            Kind::Special { kind, .. } => (EntryType::new(*kind), Bytes::new(), ""),
        };
        let mut tar = Vec::new();
        if !self.records.is_empty() {
            let records: Vec<u8> = self
                .records
                .iter()
                .flat_map(|(key, value)| record(key, value))
                .collect();
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_size(records.len() as u64);
            header.set_cksum();
            tar.extend_from_slice(header.as_bytes());
            tar.extend_from_slice(&padded(&records));
        }
        let mut header = Header::new_gnu();
        // Written as bytes: a tar that tries to escape is exactly what a tar library refuses to make.
        if let Some(gnu) = header.as_gnu_mut() {
            fill(&mut gnu.name, &bytes(&self.path), b'L', &mut tar);
            fill(&mut gnu.linkname, link.as_bytes(), b'K', &mut tar);
        }
        header.set_entry_type(entry_type);
        header.set_size(content.len() as u64);
        header.set_mode(self.mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(self.mtime);
        if let (Kind::Special { major, minor, .. }, Some(gnu)) = (&self.kind, header.as_gnu_mut()) {
            gnu.set_device_major(*major);
            gnu.set_device_minor(*minor);
        }
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(&content);
        pad(&mut tar);
        tar
    }
}

/// The header of a file of `size` bytes, which follow it; `size` is a multiple of 512.
#[must_use]
pub fn file_header(path: &str, size: u64) -> Bytes {
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

/// Before an attribute's name, in a record's key.
const XATTR: &str = "SCHILY.xattr.";

/// What ends a tar.
pub const END: &[u8] = &[0; 1024];

/// A whole small tar.
#[must_use]
pub fn pack(entries: &[Entry]) -> Bytes {
    let mut tar: Vec<u8> = entries.iter().flat_map(Entry::to_bytes).collect();
    tar.extend_from_slice(END);
    tar.into()
}

/// Reads a tar entry by entry; `each` may refuse one.
///
/// # Errors
/// The tar's own, as it was; [`ErrorKind::InvalidInput`] if it is not a tar or cut off.
pub async fn for_each(tar: ByteStream, mut each: impl FnMut(Entry) -> Result<()> + Send) -> Result<()> {
    let mut tar = TarReader::new(tar, ErrorKind::InvalidInput);
    while let Some(member) = tar.next().await? {
        let path = text(&member.name);
        let invalid = |error: std::io::Error| Error::invalid(format!("the tar's {path} can't be read: {error}"));
        let header = &member.header;
        let link = text(member.link.as_deref().unwrap_or_default());
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Link => Kind::HardLink(link),
            EntryType::Fifo | EntryType::Char | EntryType::Block => Kind::Special {
                kind: header.entry_type().as_byte(),
                major: header.device_major().map_err(invalid)?.unwrap_or(0),
                minor: header.device_minor().map_err(invalid)?.unwrap_or(0),
            },
            EntryType::Regular | EntryType::Continuous => {
                let mut content = Vec::new();
                while let Some(piece) = tar.content().await? {
                    content.extend_from_slice(&piece);
                }
                content.truncate(usize::try_from(member.size).unwrap_or(usize::MAX));
                Kind::File(content.into())
            }
            other => {
                return Err(Error::invalid(format!(
                    "{path} is a {other:?}, which is not understood"
                )));
            }
        };
        let number = |key: &str| {
            let (_, value) = member.records.iter().rev().find(|(name, _)| name == key.as_bytes())?;
            std::str::from_utf8(value).ok()?.parse().ok()
        };
        let (mode, mtime) = (header.mode().map_err(invalid)?, header.mtime().map_err(invalid)?);
        let uid = number("uid").map_or_else(|| header.uid(), Ok).map_err(invalid)?;
        let gid = number("gid").map_or_else(|| header.gid(), Ok).map_err(invalid)?;
        let mut records: BTreeMap<_, _> = member.records.into_iter().collect();
        for told in ["path", "linkpath", "size", "uid", "gid"] {
            records.remove(told.as_bytes());
        }
        each(Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            records,
        })?;
    }
    // To its very end, not only to the tar's: whoever sends it may do something after its last byte.
    tar.drain().await
}

/// All entries of a small tar.
///
/// # Errors
/// Those of [`for_each`].
pub async fn unpack(tar: ByteStream) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for_each(tar, |entry| {
        entries.push(entry);
        Ok(())
    })
    .await?;
    Ok(entries)
}
