//! From a tar to files.

mod file;
mod member;
#[cfg(test)]
mod order;
mod small;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use self::file::{content, finish, instead, make};
use self::member::{Input, Member};
use self::small::{Makers, Small, Work};
use super::format::BLOCK;
use super::sys::{self, Node, Resolve};
use super::{Result, TreeError, clean, open_directly, open_directory, open_root, split};

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
    open_directory(&root, &base).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => missing(),
        _ => TreeError::io("open", &base)(error),
    })?;
    let work = Work::default();
    thread::scope(|scope| {
        let mut unpacker = Unpacker {
            root,
            base,
            last: None,
            directories: BTreeMap::new(),
            makers: Makers::new(scope, &work),
        };
        let members = unpacker.members(&mut Input::new(input), note);
        // What was read before an error is made, and its own errors are earlier ones.
        unpacker.makers.settle().and(members)?;
        unpacker.finish()
    })
}

struct Unpacker<'scope, 'env> {
    root: File,
    base: Vec<u8>,
    /// The directory that was used last, which is the next entry's too most of the time.
    last: Option<Parent>,
    /// By path, seen from the root. A directory's own time must not change after it was set, and its mode may forbid to write.
    directories: BTreeMap<Vec<u8>, Member>,
    makers: Makers<'scope, 'env>,
}

#[derive(Clone)]
struct Parent {
    path: Vec<u8>,
    directory: Arc<File>,
    /// Whether its path leads there without a symlink, so that nothing in it has another path.
    direct: bool,
}

impl Unpacker<'_, '_> {
    fn members(&mut self, input: &mut Input<'_>, note: &mut dyn FnMut(&[u8], Range<u64>)) -> Result<()> {
        let mut global = Vec::new();
        let mut start = 0;
        while let Some(member) = Member::read(input, &mut global)? {
            let path = self.inside(&member.header.name)?;
            let depends = member.header.kind == b'1' || member.sparse.is_some() || !member.xattrs.is_empty();
            self.member(path.clone(), member, input)?;
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
        input.drain()
    }

    fn member(&mut self, path: Vec<u8>, mut member: Member, input: &mut Input<'_>) -> Result<()> {
        let kind = member.header.kind;
        // What has no content has none whatever the size says, but a directory of an incremental archive.
        let size = match kind {
            b'1'..=b'4' | b'6' => 0,
            _ => member.header.size,
        };
        self.makers.settle_for(&path)?;
        if kind == b'5' {
            input.skip(size.next_multiple_of(BLOCK as u64))?;
            return self.directory(path, member);
        }
        let (parent, name) = split(&path);
        if name.is_empty() || path.len() <= self.base.len() {
            return Err(TreeError::invalid("a member that is no directory has no name"));
        }
        self.makers.settle_in(&path)?;
        let failed = || TreeError::io("write", &path);
        let Parent { directory, direct, .. } = self.parent(parent)?;
        let parent = &*directory;
        match kind {
            b'0' if direct && Small::is_one(&path, &member) => {
                let content = input.content(size)?;
                return self.makers.add(Small {
                    parent: directory,
                    path,
                    member,
                    content,
                });
            }
            b'0' => {
                let file = make(parent, name).map_err(failed())?;
                content(&file, &path, &mut member, input)?;
                return finish(Node::Open(&file), &member, &path);
            }
            b'1' => {
                let link = self.inside(&member.header.link)?;
                // Else the only name that there is would be removed.
                if link == path {
                    return Ok(());
                }
                self.makers.settle_for(&link)?;
                let (from, target) = split(&link);
                let from = match open_directly(&self.root, from) {
                    Ok(from) => from,
                    Err(_) => {
                        self.makers.settle()?;
                        open_directory(&self.root, from).map_err(failed())?
                    }
                };
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
    fn parent(&mut self, path: &[u8]) -> Result<Parent> {
        let parent = match self.last.take().filter(|last| last.path == path) {
            Some(last) => last,
            None => self.open(path)?,
        };
        Ok(self.last.insert(parent).clone())
    }

    fn open(&mut self, path: &[u8]) -> Result<Parent> {
        let parent = |directory, direct| Parent {
            path: path.to_vec(),
            directory: Arc::new(directory),
            direct,
        };
        if let Ok(directory) = open_directly(&self.root, path) {
            return Ok(parent(directory, true));
        }
        // What is in it may have another path, too. Until another directory is opened, nothing is added.
        self.makers.settle()?;
        let directory = match open_directory(&self.root, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_all(path),
            other => other,
        };
        let directory = directory.map_err(TreeError::io("open", path))?;
        // What was only missing leads there directly now.
        Ok(match open_directly(&self.root, path) {
            Ok(directory) => parent(directory, true),
            Err(_) => parent(directory, false),
        })
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
            let parent = &*self.parent(parent)?.directory;
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
