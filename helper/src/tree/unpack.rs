//! From a tar to files.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, fchown};
use std::path::Path;

use super::format::{self, BLOCK, Header, MAX_EXTENSION, decimal};
use super::sys::{self, Node, Resolve};
use super::{PIECE, Result, TreeError, clean, open_directory, open_root, split};

/// Most pieces that a sparse file may be said to have.
const MAX_PIECES: u64 = 4 << 20;

/// Unpacks the tar that `input` yields, to its end, into the directory `path` of the tree at `root`.
///
/// What is there is replaced, but a directory by a directory: that keeps what is in it and takes the entry's owner, mode,
/// time and attributes. Directories that no entry names are made. An entry for the top itself (`./`) changes `path`.
/// Nothing is ever made or changed outside of `root`: a symlink on the way is followed inside of it, whatever it says.
///
/// # Errors
/// [`TreeError::NotFound`] if `path` is no directory of the tree, [`TreeError::Invalid`] for what is no tar or leads
/// upwards, [`TreeError::Io`] for what `input` says and for what can't be made as the tar has it, such as a device or an
/// attribute that this process may not make. What was unpacked until then stays.
pub fn unpack(root: &Path, path: &Path, input: &mut dyn Read) -> Result<()> {
    unpack_noting(root, path, input, &mut |_, _| {})
}

/// The same, which tells of each member its path in the tree and which bytes of the tar are its own, its headers included:
/// none for a hard link, which depends on another member, for one whose attributes or holes another file system may list in
/// another way, and for one of which something is said outside of it.
pub(super) fn unpack_noting(
    root: &Path,
    path: &Path,
    input: &mut dyn Read,
    note: &mut dyn FnMut(&[u8], Range<u64>),
) -> Result<()> {
    let missing = || TreeError::NotFound(path.to_owned());
    let base = clean(path.as_os_str().as_bytes()).ok_or_else(missing)?;
    let root = open_root(root)?;
    let top = open_directory(&root, &base).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => missing(),
        _ => TreeError::io("open", &base)(error),
    })?;
    let mut unpacker = Unpacker {
        root,
        last: (base.clone(), top),
        base,
        directories: BTreeMap::new(),
    };
    let mut input = Input::new(input);
    let mut global = Vec::new();
    let mut start = 0;
    while let Some(member) = Member::read(&mut input, &mut global)? {
        let path = unpacker.inside(&member.header.name)?;
        let depends = member.header.kind == b'1' || member.sparse.is_some() || !member.xattrs.is_empty();
        unpacker.member(member, &mut input)?;
        let end = input.position();
        note(
            &path,
            if depends || !global.is_empty() {
                end..end
            } else {
                start..end
            },
        );
        start = end;
    }
    // Who writes into a pipe must not be stopped by the filling after the end.
    while input.fill()? {
        input.start = input.end;
    }
    unpacker.finish()
}

/// The stream, in pieces.
struct Input<'a> {
    stream: &'a mut dyn Read,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of the stream that were read, those in the buffer included.
    read: u64,
}

impl<'a> Input<'a> {
    fn new(stream: &'a mut dyn Read) -> Self {
        Self {
            stream,
            buffer: vec![0; PIECE].into(),
            start: 0,
            end: 0,
            read: 0,
        }
    }

    /// Bytes of the stream that were taken.
    fn position(&self) -> u64 {
        self.read - (self.end - self.start) as u64
    }

    /// Whether there is anything more.
    fn fill(&mut self) -> Result<bool> {
        while self.start == self.end {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    (self.start, self.end) = (0, read);
                    self.read += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TreeError::io("read", b"the tar")(error)),
            }
        }
        Ok(true)
    }

    /// The next piece of at most `most` bytes.
    fn piece(&mut self, most: u64) -> Result<&[u8]> {
        if !self.fill()? {
            return Err(TreeError::invalid("it ends in the middle of a member"));
        }
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.end - self.start);
        self.start += length;
        Ok(&self.buffer[self.start - length..self.start])
    }

    fn exactly(&mut self, into: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            let piece = self.piece((into.len() - filled) as u64)?;
            into[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        }
        Ok(())
    }

    fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.exactly(&mut block)?;
        Ok(block)
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            left -= self.piece(left)?.len() as u64;
        }
        Ok(())
    }

    /// A small member's content.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(TreeError::invalid("an extended header is larger than 16 MiB"));
        }
        let mut bytes = vec![0; size as usize];
        self.exactly(&mut bytes)?;
        self.skip(padding(size))?;
        Ok(bytes)
    }
}

/// What fills the last block of so many bytes.
fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// Start and length of each piece of data.
type Map = Vec<(u64, u64)>;

/// A member with all that its headers say.
struct Member {
    header: Header,
    nanoseconds: u32,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A sparse file's own size and, unless it comes with the data, where that belongs.
    sparse: Option<(u64, Option<Map>)>,
}

impl Member {
    /// The next member, its content not read yet.
    fn read(input: &mut Input<'_>, global: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<Option<Self>> {
        let (mut records, mut long_name, mut long_link) = (Vec::new(), None, None);
        let text = |mut bytes: Vec<u8>| {
            bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
            bytes
        };
        loop {
            if !input.fill()? {
                return Ok(None);
            }
            let block = input.block()?;
            let Some(mut header) = Header::parse(&block)? else {
                return Ok(None);
            };
            match header.kind {
                b'x' => records = format::parse_records(&input.extension(header.size)?)?,
                b'g' => global.extend(format::parse_records(&input.extension(header.size)?)?),
                b'L' => long_name = Some(text(input.extension(header.size)?)),
                b'K' => long_link = Some(text(input.extension(header.size)?)),
                // The volume's label. What was said of it ends with it.
                b'V' => {
                    let mut label = Self::of(header);
                    label.apply(std::mem::take(&mut records).into_iter())?;
                    input.skip(label.header.size.next_multiple_of(BLOCK as u64))?;
                    (long_name, long_link) = (None, None);
                }
                b'M' => return Err(TreeError::invalid("it goes on in another volume")),
                _ => {
                    header.name = long_name.unwrap_or(header.name);
                    header.link = long_link.unwrap_or(header.link);
                    let mut member = Self::of(header);
                    member.apply(global.iter().cloned().chain(records))?;
                    if member.header.kind == b'S' {
                        member.old_sparse(&block, input)?;
                    }
                    return member.settled().map(Some);
                }
            }
        }
    }

    /// One of which its header says all.
    fn of(header: Header) -> Self {
        Self {
            header,
            nanoseconds: 0,
            xattrs: Vec::new(),
            sparse: None,
        }
    }

    fn apply(&mut self, records: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<()> {
        let broken = |key: &[u8]| {
            let key = String::from_utf8_lossy(key).into_owned();
            move || TreeError::invalid(format!("the record {key} makes no sense"))
        };
        let (mut real_name, mut real_size, mut map) = (None, None, Vec::new());
        let (mut is_sparse, mut in_data) = (false, false);
        for (key, value) in records {
            let number = || decimal::<u64>(&value).ok_or_else(broken(&key));
            let header = &mut self.header;
            match key.as_slice() {
                b"path" => header.name = value,
                b"linkpath" => header.link = value,
                b"size" => header.size = number()?,
                b"uid" => header.uid = decimal(&value).ok_or_else(broken(&key))?,
                b"gid" => header.gid = decimal(&value).ok_or_else(broken(&key))?,
                b"mtime" => (header.mtime, self.nanoseconds) = format::parse_time(&value).ok_or_else(broken(&key))?,
                b"GNU.sparse.major" => (is_sparse, in_data) = (true, value == b"1"),
                b"GNU.sparse.name" => real_name = Some(value),
                b"GNU.sparse.realsize" => real_size = Some(number()?),
                // Formats 0.0 and 0.1.
                b"GNU.sparse.size" => (is_sparse, real_size) = (true, Some(number()?)),
                b"GNU.sparse.offset" => map.push((number()?, 0)),
                b"GNU.sparse.numbytes" => map.last_mut().ok_or_else(broken(&key))?.1 = number()?,
                b"GNU.sparse.map" => {
                    let numbers: Option<Vec<u64>> = value.split(|byte| *byte == b',').map(decimal).collect();
                    let numbers = numbers.ok_or_else(broken(&key))?;
                    map = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
                }
                key => {
                    if let Some(name) = format::xattr_name(key) {
                        self.xattrs.push((name, value));
                    }
                }
            }
        }
        if i64::try_from(self.header.size).is_err() {
            return Err(TreeError::invalid("a member's size is none that a file can have"));
        }
        self.header.name = real_name.unwrap_or_else(|| std::mem::take(&mut self.header.name));
        if is_sparse {
            let size = real_size.ok_or_else(broken(b"GNU.sparse.realsize"))?;
            self.sparse = Some((size, (!in_data).then_some(map)));
        }
        Ok(())
    }

    /// GNU's own type: four pieces in the header, 21 in each block after it.
    fn old_sparse(&mut self, header: &[u8; BLOCK], input: &mut Input<'_>) -> Result<()> {
        let number = |field: &[u8]| {
            let number = format::number(field).and_then(|number| u64::try_from(number).ok());
            number.ok_or_else(|| TreeError::invalid("a sparse file's map makes no sense"))
        };
        let mut map = Vec::new();
        let mut pieces = |bytes: &[u8]| {
            for piece in bytes.chunks_exact(24).take_while(|piece| piece[12] != 0) {
                map.push((number(&piece[..12])?, number(&piece[12..])?));
            }
            Ok::<_, TreeError>(map.len() as u64)
        };
        pieces(&header[386..482])?;
        let mut more = header[482] != 0;
        while more {
            let block = input.block()?;
            if pieces(&block[..504])? > MAX_PIECES {
                return Err(TreeError::invalid("a sparse file has too many pieces"));
            }
            more = block[504] != 0;
        }
        self.sparse = Some((number(&header[483..495])?, Some(map)));
        self.header.kind = b'0';
        Ok(())
    }

    /// What old archivers mean by a kind or a name.
    fn settled(mut self) -> Result<Self> {
        let header = &mut self.header;
        header.kind = match header.kind {
            0 | b'0' | b'7' if header.name.ends_with(b"/") => b'5',
            0 | b'7' => b'0',
            // GNU's incremental archives list a directory's names as its content.
            b'D' => b'5',
            kind => kind,
        };
        Ok(self)
    }
}

struct Unpacker {
    root: File,
    base: Vec<u8>,
    /// The directory that was used last, which is the next entry's too most of the time.
    last: (Vec<u8>, File),
    /// By path, seen from the root. A directory's own time must not change after it was set, and its mode may forbid to write.
    directories: BTreeMap<Vec<u8>, Member>,
}

impl Unpacker {
    fn member(&mut self, mut member: Member, input: &mut Input<'_>) -> Result<()> {
        let kind = member.header.kind;
        // What has no content has none whatever the size says, but a directory of an incremental archive.
        let size = match kind {
            b'1'..=b'4' | b'6' => 0,
            _ => member.header.size,
        };
        let path = self.inside(&member.header.name)?;
        if kind == b'5' {
            input.skip(size.next_multiple_of(BLOCK as u64))?;
            return self.directory(path, member);
        }
        let (parent, name) = split(&path);
        if name.is_empty() || path.len() <= self.base.len() {
            return Err(TreeError::invalid("a member that is no directory has no name"));
        }
        let failed = || TreeError::io("write", &path);
        let link = if kind == b'1' {
            Some(self.inside(&member.header.link)?)
        } else {
            None
        };
        let link_parent = link.as_deref().map(|link| open_directory(&self.root, split(link).0));
        let parent = self.parent(parent)?;
        match kind {
            b'0' => {
                let flags = sys::NEW | sys::NOFOLLOW;
                let file = instead(parent, name, || {
                    sys::open(parent, name, flags, 0o600, Resolve::NoSymlinks)
                });
                let file = file.map_err(failed())?;
                content(&file, &path, &mut member, input)?;
                return finish(Node::Open(&file), &member, &path);
            }
            b'1' => {
                let (Some(link), Some(from)) = (link, link_parent) else {
                    return Ok(());
                };
                // Else the only name that there is would be removed.
                if link == path {
                    return Ok(());
                }
                let (_, target) = split(&link);
                let from = from.map_err(failed())?;
                return instead(parent, name, || sys::make_link(&from, target, parent, name)).map_err(failed());
            }
            b'2' => instead(parent, name, || sys::make_symlink(&member.header.link, parent, name)),
            b'3' | b'4' | b'6' => {
                let bits = match kind {
                    b'3' => 0o020_000,
                    b'4' => 0o060_000,
                    _ => 0o010_000,
                };
                instead(parent, name, || {
                    sys::make_node(parent, name, bits | 0o600, member.header.major, member.header.minor)
                })
            }
            kind => {
                let kind = char::from(kind);
                return Err(TreeError::invalid(format!("a member is of the unknown type {kind:?}")));
            }
        }
        .map_err(failed())?;
        let held = sys::open(parent, name, sys::PATH | sys::NOFOLLOW, 0, Resolve::NoSymlinks).map_err(failed())?;
        finish(Node::Held(&held), &member, &path)
    }

    /// A member's name, as a path from the root.
    fn inside(&self, name: &[u8]) -> Result<Vec<u8>> {
        let inner = clean(name).ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            TreeError::invalid(format!("the name {name:?} leads out of the volume"))
        })?;
        Ok(match (self.base.as_slice(), inner.as_slice()) {
            (b"", _) => inner,
            (base, b"") => base.to_vec(),
            (base, inner) => [base, inner].join(&b'/'),
        })
    }

    /// Opens a directory, which is made if it is not there.
    fn parent(&mut self, path: &[u8]) -> Result<&File> {
        if self.last.0 != path {
            let directory = match open_directory(&self.root, path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_all(path),
                other => other,
            };
            self.last = (path.to_vec(), directory.map_err(TreeError::io("open", path))?);
        }
        Ok(&self.last.1)
    }

    fn make_all(&self, path: &[u8]) -> io::Result<File> {
        let ends = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let (parent, name) = split(&path[..end]);
            let parent = open_directory(&self.root, parent)?;
            match sys::make_directory(&parent, name, 0o755) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Err(_) => {}
                // Whatever this process's umask is.
                Ok(()) => {
                    let flags = sys::PATH | sys::DIRECTORY | sys::NOFOLLOW;
                    let made = sys::open(&parent, name, flags, 0, Resolve::NoSymlinks)?;
                    fs::set_permissions(sys::proc_path(&made), Permissions::from_mode(0o755))?;
                }
            }
        }
        open_directory(&self.root, path)
    }

    fn directory(&mut self, path: Vec<u8>, member: Member) -> Result<()> {
        if path.len() > self.base.len() {
            let (parent, name) = split(&path);
            let failed = || TreeError::io("make", &path);
            let parent = self.parent(parent)?;
            match sys::make_directory(parent, name, 0o700) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let flags = sys::PATH | sys::DIRECTORY | sys::NOFOLLOW;
                    if sys::open(parent, name, flags, 0, Resolve::NoSymlinks).is_err() {
                        sys::remove(parent, name, false).map_err(failed())?;
                        sys::make_directory(parent, name, 0o700).map_err(failed())?;
                    }
                }
                other => other.map_err(failed())?,
            }
        }
        self.directories.insert(path, member);
        Ok(())
    }

    /// Directories get what is theirs, the deepest first: from then on this process may not be able to enter them.
    fn finish(self) -> Result<()> {
        for (path, member) in self.directories.iter().rev() {
            let held = if *path == self.base {
                open_directory(&self.root, path)
            } else {
                let (parent, name) = split(path);
                let flags = sys::PATH | sys::DIRECTORY | sys::NOFOLLOW;
                open_directory(&self.root, parent)
                    .and_then(|parent| sys::open(&parent, name, flags, 0, Resolve::NoSymlinks))
            };
            match held {
                Ok(held) => finish(Node::Held(&held), member, path)?,
                // A later member took its place.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(TreeError::io("open", path)(error)),
            }
        }
        Ok(())
    }
}

/// Makes something where something else may be.
fn instead<T>(parent: &File, name: &[u8], make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match sys::remove(parent, name, false) {
                Err(error) if error.kind() == io::ErrorKind::IsADirectory => sys::remove(parent, name, true)?,
                other => other?,
            }
            make()
        }
        other => other,
    }
}

/// Gives a file all but its content. A change of the owner takes setuid and `security.capability` away: it is first. The
/// mode may take the right to set attributes away: it is after them.
fn finish(node: Node<'_>, member: &Member, path: &[u8]) -> Result<()> {
    let header = &member.header;
    let failed = |doing: &'static str| TreeError::io(doing, path);
    let (uid, gid) = (Some(header.uid), Some(header.gid));
    match node {
        Node::Open(file) => fchown(file, uid, gid),
        Node::Held(file) => chown(sys::proc_path(file), uid, gid),
    }
    .map_err(failed("set the owner of"))?;
    for (name, value) in &member.xattrs {
        // The label of another host's policy; GNU tar writes it with another key, too.
        if name != b"security.selinux" {
            node.set_attribute(name, value).map_err(|source| {
                let doing = format!("set the attribute {} of", String::from_utf8_lossy(name));
                TreeError::io(&doing, path)(source)
            })?;
        }
    }
    let permissions = Permissions::from_mode(header.mode);
    match node {
        _ if header.kind == b'2' => Ok(()),
        Node::Open(file) => file.set_permissions(permissions),
        Node::Held(file) => fs::set_permissions(sys::proc_path(file), permissions),
    }
    .map_err(failed("set the mode of"))?;
    node.set_mtime(header.mtime, member.nanoseconds)
        .map_err(failed("set the time of"))
}

/// A file's data: all of it, or a sparse file's own size and its pieces.
fn content(mut file: &File, path: &[u8], member: &mut Member, input: &mut Input<'_>) -> Result<()> {
    let size = member.header.size;
    let failed = || TreeError::io("write", path);
    let mut left = size;
    match member.sparse.take() {
        None => {
            while left > 0 {
                let piece = input.piece(left)?;
                file.write_all(piece).map_err(failed())?;
                left -= piece.len() as u64;
            }
        }
        Some((real_size, map)) => {
            let map = match map {
                Some(map) => map,
                None => map_in_data(&mut left, input)?,
            };
            file.set_len(real_size).map_err(failed())?;
            for (start, length) in map {
                let end = start.checked_add(length).filter(|end| *end <= real_size);
                let fits = end.filter(|_| length <= left);
                let end = fits.ok_or_else(|| TreeError::invalid("a sparse file's map exceeds the file"))?;
                left -= length;
                let mut at = start;
                while at < end {
                    let piece = input.piece(end - at)?;
                    file.write_all_at(piece, at).map_err(failed())?;
                    at += piece.len() as u64;
                }
            }
            input.skip(left)?;
        }
    }
    input.skip(padding(size))
}

/// Format 1.0's map: before the data, numbers in lines, to the end of a block.
fn map_in_data(left: &mut u64, input: &mut Input<'_>) -> Result<Map> {
    let broken = || TreeError::invalid("a sparse file's map makes no sense");
    let (mut block, mut at) = ([0; BLOCK], BLOCK);
    let mut number = || {
        let mut number = 0_u64;
        loop {
            if at == BLOCK {
                *left = left.checked_sub(BLOCK as u64).ok_or_else(broken)?;
                (block, at) = (input.block()?, 0);
            }
            at += 1;
            match block[at - 1] {
                b'\n' => return Ok(number),
                digit @ b'0'..=b'9' => {
                    let more = number
                        .checked_mul(10)
                        .and_then(|n| n.checked_add(u64::from(digit - b'0')));
                    number = more.ok_or_else(broken)?;
                }
                _ => return Err(broken()),
            }
        }
    };
    let count = number()?;
    if count > MAX_PIECES {
        return Err(TreeError::invalid("a sparse file has too many pieces"));
    }
    (0..count).map(|_| Ok((number()?, number()?))).collect()
}
