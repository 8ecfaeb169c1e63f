//! From files to a tar.

mod since;

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::format::{self, BLOCK, Header, put_record};
use super::levels::{Kind, Levels};
use super::sys::{self, Node, Resolve};
use super::{PIECE, Result, TreeError, clean, open_directory, open_root, split};

pub use self::since::Since;
use self::since::{Clip, Run};

/// The kernel's most for a list of attributes, and for a value.
const MAX_XATTR: usize = 64 << 10;
/// Most bytes of an extended header that whoever checks a tar takes (`orchestra::tar`).
const MAX_CHECKED: usize = 1 << 20;
/// Most pieces of data that are told apart in one file: what comes after them is written with its holes as zeros.
const MAX_PIECES: usize = 1 << 20;

/// Packs `paths` of the tree at `root`, all below them included, into one tar. Names in it are relative to `root`,
/// without a leading `./`; the root itself, which an empty path means, has no entry. Entries of a directory come in the
/// order of their names. Sockets are left out: they mean nothing without their process.
///
/// A symlink on the way to a path is followed inside of `root`; one that is itself asked for is packed as a symlink.
///
/// # Errors
/// [`TreeError::NotFound`] for a path that is not there, [`TreeError::Io`] for what can't be read, a file that shrinks
/// meanwhile included, and for what `out` says.
pub fn pack(root: &Path, paths: &[&Path], out: &mut dyn Write) -> Result<()> {
    packing(root, out, None, |packer| {
        for path in paths {
            if !packer.path(path)? {
                return Err(TreeError::NotFound((*path).to_owned()));
            }
        }
        packer.put(&[0; 2 * BLOCK])
    })
}

/// The same for one who has the tar that the tree was filled from: of what has not changed since, only the surroundings of
/// changes are read and written. Paths that are not there are left out, and the tar's end is, so that more can follow.
/// Devices are kept where `devices` says so; how many were left out is returned.
///
/// # Errors
/// [`TreeError::NotFound`] if `root` is no directory; [`TreeError::Io`] as for [`pack`], and for what `same` says;
/// [`TreeError::Changed`] for what is no longer what the tar has, though nothing of it changed: without `since` it is read.
pub fn pack_since(
    root: &Path,
    paths: &[&Path],
    since: Option<Since<'_>>,
    devices: bool,
    out: &mut dyn Write,
) -> Result<u64> {
    packing(root, out, since, |packer| {
        packer.devices = devices;
        packer.most = MAX_CHECKED;
        for path in paths {
            packer.path(path)?;
        }
        Ok(packer.left_out)
    })
}

fn packing<'s, T>(
    root: &Path,
    out: &mut dyn Write,
    since: Option<Since<'s>>,
    work: impl FnOnce(&mut Packer<'_, 's>) -> Result<T>,
) -> Result<T> {
    let root = open_root(root)?;
    let harmless = sys::without_devices(&root);
    let mut packer = Packer::new(harmless.as_ref().unwrap_or(&root), harmless.is_some(), out);
    packer.since = since.filter(|since| since.cuts.len() > 1);
    let done = work(&mut packer)?;
    packer.flush()?;
    packer.out.flush().map_err(TreeError::io("write", b"the tar"))?;
    Ok(done)
}

struct Packer<'a, 's> {
    root: &'a File,
    /// Whether what was listed as a file may be opened as one: if it is a device by now, nothing happens.
    direct: bool,
    out: &'a mut dyn Write,
    /// What was not written yet.
    buffer: Box<[u8]>,
    filled: usize,
    /// Where files with several names were seen first, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    names: Box<[u8]>,
    value: Box<[u8]>,
    devices: bool,
    left_out: u64,
    /// Bytes of an extended header at most.
    most: usize,
    since: Option<Since<'s>>,
    run: Option<Run>,
    clip: Clip,
}

/// How a file is opened without a look before.
const DIRECT: std::ffi::c_int = sys::READ | sys::NONBLOCK;

impl<'a> Packer<'a, '_> {
    fn new(root: &'a File, direct: bool, out: &'a mut dyn Write) -> Self {
        Self {
            root,
            direct,
            out,
            buffer: vec![0; PIECE].into(),
            filled: 0,
            links: HashMap::new(),
            names: vec![0; MAX_XATTR].into(),
            value: vec![0; MAX_XATTR].into(),
            devices: true,
            left_out: 0,
            most: format::MAX_EXTENSION as usize,
            since: None,
            run: None,
            clip: Clip::NONE,
        }
    }

    /// What is at a path, and all below it. Whether it is there.
    fn path(&mut self, path: &Path) -> Result<bool> {
        let asked = path.as_os_str().as_bytes();
        let Some(path) = clean(asked) else {
            return Ok(false);
        };
        let (parent, name) = split(&path);
        let found = |opened: io::Result<File>| match opened {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            opened => opened.map(Some).map_err(TreeError::io("open", asked)),
        };
        let Some(parent) = found(open_directory(self.root, parent))? else {
            return Ok(false);
        };
        if name.is_empty() {
            self.tree(&parent, path)?;
            return Ok(true);
        }
        // It is asked for by name: that it is not there is told, and of none below.
        let flags = sys::PATH | sys::NOFOLLOW;
        if found(sys::open(&parent, name, flags, 0, Resolve::InRoot))?.is_none() {
            return Ok(false);
        }
        if let Some(directory) = self.entry(&parent, name, &path, Kind::Other)? {
            self.tree(&directory, path)?;
        }
        Ok(true)
    }

    /// All that is below a directory.
    fn tree(&mut self, directory: &File, mut path: Vec<u8>) -> Result<()> {
        let directory = directory.try_clone().map_err(TreeError::io("open", &path))?;
        let listings = self.since.as_ref().map(|since| since.comparison.listings());
        let mut levels = Levels::new(self.root, directory, &path, listings)?;
        while let Some((kind, part)) = levels.next(&mut path) {
            if self.same(&path, part)? {
                if kind == Kind::Directory {
                    levels.enter(None, &path)?;
                }
                continue;
            }
            let Some(parent) = levels.directory(&path)? else {
                continue;
            };
            if let Some(directory) = self.entry(parent, split(&path).1, &path, kind)? {
                levels.enter(Some(directory), &path)?;
            }
        }
        self.end_run()
    }

    /// One file. A directory is handed back, open.
    fn entry(&mut self, parent: &File, name: &[u8], path: &[u8], kind: Kind) -> Result<Option<File>> {
        // A device must not be opened, which could do something, nor a fifo, which could wait. What was a file when the
        // directory was listed may be a device by now: only a directory is sure to be none, because it is asked for as one. Where
        // no device can be opened, and nothing is waited for, it may be tried.
        let mut flags = match kind {
            Kind::Directory => sys::READ | sys::DIRECTORY,
            Kind::File if self.direct => DIRECT,
            _ => sys::PATH,
        };
        let failed = || TreeError::io("read", path);
        let (mut file, metadata) = loop {
            match sys::open(parent, name, flags | sys::NOFOLLOW, 0, Resolve::NoSymlinks) {
                Ok(file) => {
                    let metadata = file.metadata().map_err(failed())?;
                    if flags != DIRECT || metadata.is_file() {
                        break (file, metadata);
                    }
                }
                // It was removed, or became something else, since the directory was listed.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
                        || (error.raw_os_error() == Some(sys::ELOOP) && flags != DIRECT) =>
                {
                    return Ok(None);
                }
                Err(error) if flags != DIRECT => return Err(failed()(error)),
                Err(_) => {}
            }
            flags = sys::PATH;
        };
        if flags == sys::PATH && (metadata.is_file() || metadata.is_dir()) {
            // The same file, whatever has its name now.
            file = File::open(sys::proc_path(&file)).map_err(failed())?;
        }
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(None);
        }
        if !self.devices && (kind.is_char_device() || kind.is_block_device()) {
            self.left_out += 1;
            return Ok(None);
        }
        let mut header = header(&metadata, path);
        if !kind.is_dir() && metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&key) {
                header.kind = b'1';
                header.link.clone_from(first);
                header.size = 0;
                let records = self.records(&header, &metadata);
                self.head(&header, &records)?;
                return Ok(None);
            }
            self.links.insert(key, path.to_vec());
        }
        if kind.is_symlink() {
            header.link = sys::read_link(&file).map_err(failed())?;
        }
        let map = holes(&file, &metadata).map_err(failed())?;
        let text = map.as_deref().map(map_text).unwrap_or_default();
        if let Some(map) = &map {
            header.size = text.len() as u64 + map.iter().map(|(start, end)| end - start).sum::<u64>();
        }
        let mut records = self.records(&header, &metadata);
        let node = if kind.is_file() || kind.is_dir() {
            Node::Open(&file)
        } else {
            Node::Held(&file)
        };
        self.attributes(node, path, &mut records)?;
        if map.is_some() {
            put_record(&mut records, b"GNU.sparse.major", b"1");
            put_record(&mut records, b"GNU.sparse.minor", b"0");
            put_record(&mut records, b"GNU.sparse.name", path);
            put_record(
                &mut records,
                b"GNU.sparse.realsize",
                metadata.len().to_string().as_bytes(),
            );
            let (parent, name) = split(path);
            header.name = [parent, b"GNUSparseFile.0", name].join(&b'/');
        }
        let size = header.size;
        self.head(&header, &records)?;
        if kind.is_file() {
            self.put(&text)?;
            for (start, end) in map.unwrap_or_else(|| vec![(0, size)]) {
                if start > 0 {
                    file.seek(SeekFrom::Start(start)).map_err(failed())?;
                }
                self.content(&file, path, end - start)?;
            }
            self.pad(size)?;
        }
        Ok(kind.is_dir().then_some(file))
    }

    /// The records that a header's fields have no room for.
    fn records(&self, header: &Header, metadata: &Metadata) -> Vec<u8> {
        let mut records = Vec::new();
        if header.name.len() > format::NAME {
            put_record(&mut records, b"path", &header.name);
        }
        if header.link.len() > format::NAME {
            put_record(&mut records, b"linkpath", &header.link);
        }
        for (key, id) in [(b"uid", header.uid), (b"gid", header.gid)] {
            if u64::from(id) > format::most(7) {
                put_record(&mut records, key, id.to_string().as_bytes());
            }
        }
        if header.size > format::most(11) {
            put_record(&mut records, b"size", header.size.to_string().as_bytes());
        }
        let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        if nanoseconds > 0 || !u64::try_from(header.mtime).is_ok_and(|time| time <= format::most(11)) {
            let time = format::time(header.mtime, nanoseconds);
            put_record(&mut records, b"mtime", time.as_bytes());
        }
        records
    }

    fn attributes(&mut self, node: Node<'_>, path: &[u8], records: &mut Vec<u8>) -> Result<()> {
        let failed = || TreeError::io("read the attributes of", path);
        let length = node.attributes(&mut self.names).map_err(failed())?;
        for name in self.names[..length].split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else {
                continue;
            };
            let bytes = name.to_bytes();
            // A label belongs to the policy of the host, and what else is in `system` to the file system.
            let foreign = bytes == b"security.selinux"
                || (bytes.starts_with(b"system.") && !bytes.starts_with(b"system.posix_acl_"));
            if foreign {
                continue;
            }
            if let Some(value) = node.attribute(name, &mut self.value).map_err(failed())? {
                put_record(records, &format::xattr_key(bytes), value);
            }
        }
        Ok(())
    }

    fn head(&mut self, header: &Header, records: &[u8]) -> Result<()> {
        if records.len() > self.most {
            let message = format!("its attributes have {} bytes, more than {}", records.len(), self.most);
            return Err(TreeError::io("pack", &header.name)(io::Error::other(message)));
        }
        if !records.is_empty() {
            let (_, name) = split(&header.name);
            let extended = Header {
                kind: b'x',
                name: [b"PaxHeaders/", name].concat(),
                mode: 0o644,
                size: records.len() as u64,
                mtime: header.mtime,
                ..Header::default()
            };
            self.put(&extended.block())?;
            self.put(records)?;
            self.pad(records.len() as u64)?;
        }
        self.put(&header.block())
    }

    fn content(&mut self, mut file: &File, path: &[u8], size: u64) -> Result<()> {
        let (skip, mut left) = self.clip.next(size);
        if skip > 0 {
            let skip =
                i64::try_from(skip).map_err(|_| TreeError::io("read", path)(io::ErrorKind::InvalidInput.into()))?;
            file.seek_relative(skip).map_err(TreeError::io("read", path))?;
        }
        while left > 0 {
            if self.filled == PIECE {
                self.flush()?;
            }
            let room = PIECE - self.filled;
            let most = usize::try_from(left).unwrap_or(room).min(room);
            let read = match file.read(&mut self.buffer[self.filled..self.filled + most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it became shorter while it was read",
                )),
                other => other,
            };
            let read = read.map_err(TreeError::io("read", path))?;
            self.filled += read;
            left -= read as u64;
        }
        Ok(())
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let over = (size % BLOCK as u64) as usize;
        self.put(&[0; BLOCK][..(BLOCK - over) % BLOCK])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let (skip, take) = self.clip.next(bytes.len() as u64);
        let bytes = &bytes[skip as usize..(skip + take) as usize];
        for piece in bytes.chunks(PIECE) {
            if self.filled + piece.len() > PIECE {
                self.flush()?;
            }
            self.buffer[self.filled..self.filled + piece.len()].copy_from_slice(piece);
            self.filled += piece.len();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let written = self.out.write_all(&self.buffer[..self.filled]);
        self.filled = 0;
        written.map_err(TreeError::io("write", b"the tar"))
    }
}

fn header(metadata: &Metadata, path: &[u8]) -> Header {
    let kind = metadata.file_type();
    let device = kind.is_char_device() || kind.is_block_device();
    let (major, minor) = if device {
        sys::device_numbers(metadata.rdev())
    } else {
        (0, 0)
    };
    Header {
        kind: match kind {
            _ if kind.is_dir() => b'5',
            _ if kind.is_symlink() => b'2',
            _ if kind.is_char_device() => b'3',
            _ if kind.is_block_device() => b'4',
            _ if kind.is_fifo() => b'6',
            _ => b'0',
        },
        name: if kind.is_dir() {
            [path, b"/"].concat()
        } else {
            path.to_vec()
        },
        link: Vec::new(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: if kind.is_file() { metadata.len() } else { 0 },
        mtime: metadata.mtime(),
        major,
        minor,
    }
}

/// Where a file with holes has data: `None` for one without, which its blocks tell without a further look.
fn holes(file: &File, metadata: &Metadata) -> io::Result<Option<Vec<(u64, u64)>>> {
    let end = metadata.len();
    if !metadata.is_file() || metadata.blocks() >= end.div_ceil(512) {
        return Ok(None);
    }
    let (mut map, mut at) = (Vec::new(), 0);
    while let Some((start, stop)) = sys::data_from(file, at, end)? {
        if map.len() == MAX_PIECES {
            map.push((start, end));
            break;
        }
        map.push((start, stop));
        at = stop;
    }
    let mut from_start = file;
    from_start.rewind()?;
    // GNU tar takes the end of the last piece for the end of the file.
    if map.last().is_none_or(|(_, last)| *last < end) {
        map.push((end, end));
    }
    // A file system that compresses, or keeps small files in their inode, has few blocks for what is no hole.
    Ok((map != [(0, end)]).then_some(map))
}

/// The map as format 1.0 has it before the data: numbers in lines, the last block filled.
fn map_text(map: &[(u64, u64)]) -> Vec<u8> {
    let mut text = format!("{}\n", map.len()).into_bytes();
    for (start, end) in map {
        text.extend_from_slice(format!("{start}\n{}\n", end - start).as_bytes());
    }
    text.resize(text.len().next_multiple_of(BLOCK), 0);
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_has_taken_a_files_place_is_packed_as_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "content").unwrap();
        fs::create_dir(at("directory")).unwrap();
        symlink("file", at("symlink")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let root = File::open(folder.path()).unwrap();
        sys::make_node(&root, b"fifo", 0o010_600, 0, 0).unwrap();
        for direct in [false, true] {
            let packed = |name: &[u8]| {
                let mut out = Vec::new();
                let mut packer = Packer::new(&root, direct, &mut out);
                let entered = packer.entry(&root, name, name, Kind::File).unwrap();
                packer.flush().unwrap();
                // An extended header, if there is one, and its records come before.
                let kind = match out.get(156) {
                    Some(b'x') => out.get(2 * BLOCK + 156).copied(),
                    kind => kind.copied(),
                };
                (kind, entered.is_some())
            };
            assert_eq!(packed(b"file"), (Some(b'0'), false), "{direct}");
            assert_eq!(packed(b"directory"), (Some(b'5'), true), "{direct}");
            assert_eq!(packed(b"symlink"), (Some(b'2'), false), "{direct}");
            assert_eq!(packed(b"fifo"), (Some(b'6'), false), "{direct}");
            assert_eq!(packed(b"socket"), (None, false), "{direct}");
            assert_eq!(packed(b"removed"), (None, false), "{direct}");
        }
    }
}
