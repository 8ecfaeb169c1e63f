//! A tar in motion: read member by member and written on, in bounded memory, with every header field as it was. For
//! drivers and layers, between an engine and whoever asked.
//!
//! `tokio_tar`'s own reader and builder lose what they do not know of a header (its archive reader joins the extensions
//! into the entry, its builder writes them anew). Here a member keeps the blocks that it came in, so that passing one on
//! changes nothing, and [`Member::renamed`] changes nothing but names.

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{ByteStream, Error, ErrorKind, Result};

mod load;

pub use load::docker_archive;
pub use tokio_tar::{EntryType, Header};

const BLOCK: usize = 512;

/// The name of a sparse file in GNU's form 1.0, whose header and `path` have a name that only tells so.
const SPARSE_NAME: &[u8] = b"GNU.sparse.name";

/// Largest extension that is taken into memory; Go's `archive/tar`, with which docker reads tars, has the same bound.
const MAX_EXTENSION: u64 = 1 << 20;

/// Largest size that a file can have.
const MAX_SIZE: u64 = i64::MAX as u64;

/// Pieces that wait in a [`pipe`].
const PIECES: usize = 4;

/// The two blocks of zeros that end an archive (POSIX `pax`, "ustar Interchange Format").
pub const END: Bytes = Bytes::from_static(&[0; 2 * BLOCK]);

/// One member of an archive; its content is read from the [`TarReader`].
#[derive(Debug)]
pub struct Member {
    /// All blocks before the content, extensions included, as they came.
    pub head: Vec<Bytes>,
    /// As the tar has it.
    pub name: Vec<u8>,
    /// Where a hard or symbolic link points.
    pub link: Option<Vec<u8>>,
    /// Bytes of content.
    pub size: u64,
    /// The header's own block, without what records say in its place.
    pub header: Header,
    /// Records of extended headers, in their order.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Member {
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.header.entry_type().is_file()
    }

    /// Whether it is a hard link, to the member that [`link`](Self::link) names.
    #[must_use]
    pub fn is_hard_link(&self) -> bool {
        self.header.entry_type().is_hard_link()
    }

    /// Whether it is a character or block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.header.entry_type(), EntryType::Char | EntryType::Block)
    }

    /// The name without a leading `/` or `./` and without a closing slash; empty for the root.
    #[must_use]
    pub fn path(&self) -> Vec<u8> {
        let parts: Vec<&[u8]> = parts(&self.name).collect();
        parts.join(&b'/')
    }

    /// The member's blocks with these names instead of its own. Names of any length and bytes fit.
    #[must_use]
    pub fn renamed(&self, name: &[u8], link: Option<&[u8]>) -> Vec<Bytes> {
        let records = self
            .records
            .iter()
            .map(|(key, value)| (key.as_slice(), value.as_slice()));
        let renamed = |key: &[u8], value| if key == SPARSE_NAME { name } else { value };
        let records = records
            .filter(|(key, _)| !matches!(*key, b"path" | b"linkpath"))
            .map(|(key, value)| (key, renamed(key, value)))
            .collect();
        named(self.header.clone(), records, name, link)
    }
}

/// The parts of a name that mean something.
pub fn parts(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

/// What a member that is made here is like. Its time is the epoch.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// What it is.
    pub kind: EntryType,
    /// Permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Bytes of content, which follow, [padded].
    pub size: u64,
}

impl Head {
    /// A file of root's.
    #[must_use]
    pub fn file(size: u64) -> Self {
        Self {
            kind: EntryType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
        }
    }

    /// The blocks of the member `name`.
    #[must_use]
    pub fn blocks(&self, name: &str) -> Vec<Bytes> {
        let mut header = Header::new_ustar();
        header.set_entry_type(self.kind);
        header.set_size(self.size);
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_mtime(0);
        named(header, Vec::new(), name.as_bytes(), None)
    }
}

/// A header's blocks with these names in it. Records of an extended header carry what does not fit.
fn named<'a>(
    mut header: Header,
    mut records: Vec<(&'a [u8], &'a [u8])>,
    name: &'a [u8],
    link: Option<&'a [u8]>,
) -> Vec<Bytes> {
    // A name's first part stands in a field of its own, which only this form has.
    let split = header.as_ustar().is_some();
    let bytes = header.as_mut_bytes();
    if split {
        bytes[345..500].fill(0);
    }
    for (key, field, value) in [(&b"path"[..], 0..100, Some(name)), (b"linkpath", 157..257, link)] {
        let Some(value) = value else { continue };
        if value.len() > 100 || !value.is_ascii() {
            records.push((key, value));
        }
        let fits = value.len().min(100);
        let field = &mut bytes[field];
        field.fill(0);
        field[..fits].copy_from_slice(&value[..fits]);
    }
    header.set_cksum();
    let mut blocks = Vec::new();
    if !records.is_empty() {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let extended = Head {
            kind: EntryType::XHeader,
            ..Head::file(body.len() as u64)
        };
        blocks.extend(extended.blocks("PaxHeaders.0/member"));
        blocks.push(padded(&body));
    }
    blocks.push(Bytes::copy_from_slice(header.as_bytes()));
    blocks
}

/// Content filled up to whole blocks.
#[must_use]
pub fn padded(content: &[u8]) -> Bytes {
    let mut bytes = content.to_vec();
    bytes.resize(content.len().next_multiple_of(BLOCK), 0);
    bytes.into()
}

/// A record of an extended header (POSIX `pax`, "pax Extended Header"), which begins with its own length, the digits of the length included.
#[must_use]
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn parse_records(mut body: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    while !body.is_empty() && body[0] != 0 {
        let space = body.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&body[..space]).ok()?.parse().ok()?;
        let text = body.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = text.iter().position(|byte| *byte == b'=')?;
        records.push((text[..equals].to_vec(), text[equals + 1..].to_vec()));
        body = &body[length..];
    }
    Some(records)
}

/// Reads the members of a tar that streams by.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct TarReader {
    source: ByteStream,
    piece: Bytes,
    /// Bytes of the current member that were not read yet, filling included.
    left: u64,
    ended: bool,
    broken: ErrorKind,
}

impl TarReader {
    /// A reader of `source`; a tar that makes no sense is an error of kind `broken`.
    #[must_use]
    pub fn new(source: ByteStream, broken: ErrorKind) -> Self {
        Self {
            source,
            piece: Bytes::new(),
            left: 0,
            ended: false,
            broken,
        }
    }

    /// Whether the archive's end marker was seen.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The next member; what is left of the one before is skipped.
    ///
    /// # Errors
    /// The stream's own; of the kind that was given, what no tar has.
    pub async fn next(&mut self) -> Result<Option<Member>> {
        while self.content().await?.is_some() {}
        let mut head = Vec::new();
        let mut records = Vec::new();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let Some(block) = self.block(head.is_empty()).await? else {
                return Ok(None);
            };
            if block.iter().all(|byte| *byte == 0) {
                self.ended = true;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block).clone();
            if header.cksum().ok() != Some(sum(&block)) {
                return Err(self.broken("it holds a block that is no header"));
            }
            let size = header
                .raw_entry_size()
                .map_err(|_| self.broken("a member's size can't be read"))?;
            let kind = header.entry_type();
            head.push(block);
            if kind.is_pax_global_extensions() {
                let (body, blocks) = self.extension(size).await?;
                self.check_global(&body)?;
                head.extend(blocks);
                continue;
            }
            if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
                let (body, blocks) = self.extension(size).await?;
                head.extend(blocks);
                if kind.is_gnu_longname() {
                    long_name = Some(until_nul(&body));
                } else if kind.is_gnu_longlink() {
                    long_link = Some(until_nul(&body));
                } else {
                    records = parse_records(&body).ok_or_else(|| self.broken("an extended header can't be read"))?;
                }
                continue;
            }
            // Sparse maps of GNU's old form go on in further blocks, which no size counts.
            let mut more = kind.is_gnu_sparse()
                && header
                    .as_gnu()
                    .ok_or_else(|| self.broken("a sparse member is not of GNU's form"))?
                    .is_extended();
            while more {
                let block = self
                    .block(false)
                    .await?
                    .ok_or_else(|| self.broken("it ends in a sparse map"))?;
                more = block[504] != 0;
                head.push(block);
            }
            let last = |key: &[u8]| {
                records
                    .iter()
                    .rev()
                    .find(|(k, _): &&(Vec<u8>, _)| k == key)
                    .map(|(_, v)| v.clone())
            };
            let size = match last(b"size") {
                Some(text) => std::str::from_utf8(&text)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| self.broken("a member's size can't be read"))?,
                None => size,
            };
            if size > MAX_SIZE {
                return Err(self.broken("a member's size is none that a file can have"));
            }
            // As Go's `archive/tar` has it: these have no content, whatever their size says.
            let size = match kind {
                EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Directory
                | EntryType::Fifo => 0,
                _ => size,
            };
            self.left = size.next_multiple_of(BLOCK as u64);
            let name = last(SPARSE_NAME)
                .or(long_name)
                .or_else(|| last(b"path"))
                .unwrap_or_else(|| header.path_bytes().into_owned());
            let link = long_link
                .or_else(|| last(b"linkpath"))
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
            return Ok(Some(Member {
                head,
                name,
                link,
                size,
                header,
                records,
            }));
        }
    }

    /// The next piece of the current member's blocks: its content and then the filling.
    pub async fn content(&mut self) -> Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.piece.is_empty() && !self.fill().await? {
            return Err(self.broken("it ends in the middle of a member"));
        }
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.piece.len());
        self.left -= length as u64;
        Ok(Some(self.piece.split_to(length)))
    }

    /// Reads the source to its end, which is behind the archive's.
    ///
    /// # Errors
    /// The stream's own.
    pub async fn drain(&mut self) -> Result<()> {
        while self.fill().await? {
            self.piece.clear();
        }
        Ok(())
    }

    fn broken(&self, why: &str) -> Error {
        Error::new(self.broken, format!("the tar can't be read: {why}"))
    }

    async fn fill(&mut self) -> Result<bool> {
        while self.piece.is_empty() {
            match self.source.next().await {
                Some(piece) => self.piece = piece?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The next block, or `None` at the end of the stream where one `may_end`.
    async fn block(&mut self, may_end: bool) -> Result<Option<Bytes>> {
        if !self.fill().await? {
            return if may_end {
                Ok(None)
            } else {
                Err(self.broken("it ends in the middle of a member"))
            };
        }
        self.exactly(BLOCK).await.map(Some)
    }

    async fn exactly(&mut self, length: usize) -> Result<Bytes> {
        if self.piece.len() >= length {
            return Ok(self.piece.split_to(length));
        }
        let mut bytes = BytesMut::with_capacity(length);
        while bytes.len() < length {
            if !self.fill().await? {
                return Err(self.broken("it ends in the middle of a block"));
            }
            let part = self.piece.len().min(length - bytes.len());
            bytes.extend_from_slice(&self.piece.split_to(part));
        }
        Ok(bytes.freeze())
    }

    /// Refuses records for all members that change where one ends or what it is called: some readers heed them, Go's
    /// `archive/tar` does not, and what one takes for content is a member to the other.
    fn check_global(&self, body: &[u8]) -> Result<()> {
        let records = parse_records(body).ok_or_else(|| self.broken("an extended header can't be read"))?;
        let of_one_member =
            |key: &[u8]| matches!(key, b"size" | b"path" | b"linkpath") || key.starts_with(b"GNU.sparse.");
        if records.iter().any(|(key, _)| of_one_member(key)) {
            return Err(self.broken("a global header has a record that is of one member alone"));
        }
        Ok(())
    }

    /// An extension's body, and the blocks that it came in.
    async fn extension(&mut self, size: u64) -> Result<(Bytes, Option<Bytes>)> {
        if size > MAX_EXTENSION {
            return Err(self.broken("an extended header is larger than 1 MiB"));
        }
        let size = usize::try_from(size).unwrap_or(0);
        if size == 0 {
            return Ok((Bytes::new(), None));
        }
        let blocks = self.exactly(size.next_multiple_of(BLOCK)).await?;
        Ok((blocks.slice(..size), Some(blocks)))
    }
}

/// A header's checksum, for which its own field counts as spaces.
fn sum(block: &[u8]) -> u32 {
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) };
    block.iter().enumerate().map(byte).sum()
}

fn until_nul(text: &[u8]) -> Vec<u8> {
    text.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Where the work of a [`pipe`] puts its pieces.
#[derive(Clone, Debug)]
pub struct Sink(mpsc::Sender<Result<Bytes>>);

impl Sink {
    /// Waits until there is room.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] when nobody reads any more, for which [`pipe`] ends the work anyway.
    pub async fn send(&self, piece: Bytes) -> Result<()> {
        let sent = self.0.send(Ok(piece)).await;
        sent.map_err(|_| Error::new(ErrorKind::Cancelled, "nobody reads the stream any more"))
    }

    /// Sends one piece after the other.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_all(&self, pieces: impl IntoIterator<Item = Bytes>) -> Result<()> {
        for piece in pieces {
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Sends what is left of the current member.
    ///
    /// # Errors
    /// As [`send`](Self::send), and the tar's own.
    pub async fn send_content(&self, tar: &mut TarReader) -> Result<()> {
        while let Some(piece) = tar.content().await? {
            self.send(piece).await?;
        }
        Ok(())
    }
}

/// A stream of what `work` sends. Its error is the stream's last item; it is dropped where it stands when the stream is.
pub fn pipe<F, Work>(work: F) -> ByteStream
where
    F: FnOnce(Sink) -> Work,
    Work: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(PIECES);
    let work = work(Sink(sender.clone()));
    tokio::spawn(async move {
        let done = tokio::select! {
            done = work => done,
            () = sender.closed() => return,
        };
        if let Err(error) = done {
            // Nobody is left to be told if this fails.
            let _ = sender.send(Err(error)).await;
        }
    });
    ReceiverStream::new(receiver).boxed()
}

/// Passes a tar on as it is, as long as no name leads upwards.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a name that does, and for what is no tar; otherwise as [`Sink::send`].
pub async fn pass_contained(tar: ByteStream, sink: &Sink) -> Result<()> {
    let mut tar = TarReader::new(tar, ErrorKind::InvalidInput);
    while let Some(member) = tar.next().await? {
        let target = member.link.as_deref().filter(|_| member.is_hard_link());
        for name in [Some(member.name.as_slice()), target].into_iter().flatten() {
            if parts(name).any(|part| part == b"..") {
                let name = String::from_utf8_lossy(name).into_owned();
                return Err(Error::invalid(format!(
                    "the tar has the name {name:?}, which leads out of the volume"
                )));
            }
        }
        sink.send_all(member.head).await?;
        sink.send_content(&mut tar).await?;
    }
    sink.send(END).await
}

/// Takes a stream apart for an HTTP body, which can carry only [`std::io::Error`]: what it failed with is kept aside.
pub fn tracked(stream: ByteStream) -> (impl Stream<Item = std::io::Result<Bytes>> + Send + 'static, Failure) {
    let failure = Failure::default();
    let slot = failure.clone();
    let body = stream.map(move |item| {
        item.map_err(|error| {
            let again = std::io::Error::other(error.message().to_owned());
            slot.0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .get_or_insert(error);
            again
        })
    });
    (body, failure)
}

/// The error that a [`tracked`] stream ended with, if it did.
#[derive(Clone, Debug, Default)]
pub struct Failure(std::sync::Arc<std::sync::Mutex<Option<Error>>>);

impl Failure {
    /// The stream's own error where it has one, which is why the request failed; else the request's result.
    ///
    /// # Errors
    /// The one or the other.
    pub fn or<T>(self, result: Result<T>) -> Result<T> {
        match self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{TryStreamExt, stream};

    /// A stream of `bytes` in pieces that end nowhere near a block's end.
    fn trickle(bytes: &[u8]) -> ByteStream {
        let pieces: Vec<_> = bytes
            .chunks(77)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        stream::iter(pieces).boxed()
    }

    async fn members(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>> {
        let mut tar = TarReader::new(trickle(bytes), ErrorKind::InvalidInput);
        let mut members = Vec::new();
        while let Some(member) = tar.next().await? {
            let mut content = Vec::new();
            while let Some(piece) = tar.content().await? {
                content.extend_from_slice(&piece);
            }
            members.push((member, content));
        }
        Ok(members)
    }

    /// An archive as another program writes it: long names in GNU's way, an attribute in an extended header.
    async fn foreign() -> Vec<u8> {
        let mut builder = tokio_tar::Builder::new(Vec::new());
        let long = format!("d/{}", "n".repeat(150));
        let mut header = Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o4755);
        header.set_uid(70_000);
        builder.append_data(&mut header, &long, &b"abc"[..]).await.unwrap();
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Link);
        header.set_size(0);
        header.set_path("d/hard").unwrap();
        header.set_cksum();
        let target = [long.as_bytes(), b"\0"].concat();
        let mut extended = Header::new_gnu();
        extended.set_entry_type(EntryType::GNULongLink);
        extended.set_size(target.len() as u64);
        extended.set_cksum();
        builder.append(&extended, target.as_slice()).await.unwrap();
        builder.append(&header, tokio::io::empty()).await.unwrap();
        let mut bytes = builder.into_inner().await.unwrap();
        bytes.truncate(bytes.len() - 1024);
        let record = record(b"SCHILY.xattr.security.capability", b"\x01\0\0\x02=\n");
        bytes.extend(
            Head {
                kind: EntryType::XHeader,
                ..Head::file(record.len() as u64)
            }
            .blocks("x")
            .concat(),
        );
        bytes.extend(padded(&record));
        bytes.extend(Head::file(0).blocks("d/capable").concat());
        bytes.extend(END);
        bytes
    }

    #[tokio::test]
    async fn members_that_pass_through_are_the_bytes_that_came() {
        let bytes = foreign().await;
        let mut again: Vec<u8> = Vec::new();
        for (member, content) in members(&bytes).await.unwrap() {
            again.extend(member.head.concat());
            again.extend(content);
        }
        again.extend(END);
        assert_eq!(again, bytes);
    }

    #[tokio::test]
    async fn renaming_changes_names_and_link_targets_and_nothing_else() {
        let mut again: Vec<u8> = Vec::new();
        for (member, content) in members(&foreign().await).await.unwrap() {
            let put = |name: &[u8]| [b"very/deep/", name].concat();
            let link = member.link.as_deref().map(put);
            again.extend(member.renamed(&put(&member.name), link.as_deref()).concat());
            again.extend(content);
        }
        again.extend(END);
        let found = members(&again).await.unwrap();
        let long = format!("very/deep/d/{}", "n".repeat(150)).into_bytes();
        assert_eq!(found[0].0.name, long);
        assert_eq!(
            (found[0].0.header.mode().unwrap(), found[0].0.header.uid().unwrap()),
            (0o4755, 70_000)
        );
        assert_eq!(&found[0].1[..3], b"abc");
        assert_eq!(
            (found[1].0.name.as_slice(), found[1].0.link.as_ref()),
            (&b"very/deep/d/hard"[..], Some(&long))
        );
        assert!(found[1].0.is_hard_link());
        assert_eq!(found[2].0.name, b"very/deep/d/capable");
        assert_eq!(found[2].0.records[0].1, b"\x01\0\0\x02=\n");
        // Another reader agrees.
        let mut archive = tokio_tar::Archive::new(again.as_slice());
        let mut entries = archive.entries().unwrap();
        let first = entries.next().await.unwrap().unwrap();
        assert_eq!(first.path_bytes().unwrap().to_vec(), long);
    }

    #[tokio::test]
    async fn a_record_that_grows_by_its_own_length_is_read_back() {
        for size in [1, 80, 88, 89, 90, 91, 980, 990] {
            let value = vec![b'v'; size];
            let bytes = record(b"key", &value);
            assert_eq!(parse_records(&bytes).unwrap(), [(b"key".to_vec(), value)]);
        }
        for bad in ["9", "x y=z\n", "99 a=b\n", "4 =\nx"] {
            assert!(parse_records(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_tar_that_makes_no_sense_is_refused() {
        let good = foreign().await;
        for (bytes, why) in [
            (&good[..600], "middle"),
            (&[7; 600][..], "no header"),
            (&good[..1024 + 100], "middle"),
        ] {
            let error = members(bytes).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.message().contains(why), "{error}");
        }
        let global = |key: &[u8]| {
            let body = record(key, b"0");
            let head = Head {
                kind: EntryType::XGlobalHeader,
                ..Head::file(body.len() as u64)
            };
            [
                head.blocks("g"),
                vec![padded(&body)],
                Head::file(0).blocks("f"),
                vec![END],
            ]
            .concat()
            .concat()
        };
        assert_eq!(members(&global(b"comment")).await.unwrap().len(), 1);
        for key in [&b"size"[..], b"path", b"linkpath", b"GNU.sparse.name"] {
            let error = members(&global(key)).await.unwrap_err();
            assert!(error.message().contains("of one member alone"), "{error}");
        }
        let endless = [Head::file(u64::MAX).blocks("endless"), vec![END]].concat().concat();
        assert!(
            members(&endless)
                .await
                .unwrap_err()
                .message()
                .contains("none that a file can have")
        );
        let mut huge = Head {
            kind: EntryType::XHeader,
            ..Head::file(2 << 20)
        }
        .blocks("x")
        .concat();
        huge.extend([0; 2048]);
        assert!(
            members(&huge)
                .await
                .unwrap_err()
                .message()
                .contains("larger than 1 MiB")
        );
    }

    #[tokio::test]
    async fn a_pipe_ends_with_its_works_error_and_its_work_ends_with_its_reader() {
        let failing = pipe(|sink| async move {
            sink.send(Bytes::from_static(b"a")).await?;
            Err(Error::invalid("no"))
        });
        let items: Vec<_> = failing.map_err(|error| error.kind()).collect().await;
        assert_eq!(items, [Ok(Bytes::from_static(b"a")), Err(ErrorKind::InvalidInput)]);

        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        let endless = pipe(|_| async move {
            let _alive = alive;
            std::future::pending().await
        });
        drop(endless);
        assert!(ended.await.is_err(), "the work is dropped");
    }

    #[tokio::test]
    async fn the_streams_own_error_is_the_one_that_is_told() {
        let broken = stream::iter([Err(Error::new(ErrorKind::Io, "disk gone"))]).boxed();
        let (body, failure) = tracked(broken);
        assert!(body.try_collect::<Vec<_>>().await.is_err());
        let error = failure
            .or::<()>(Err(Error::new(ErrorKind::Interrupted, "broken pipe")))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        let (_, failure) = tracked(stream::empty().boxed());
        assert!(failure.or(Ok(1)).is_ok());
    }
}
