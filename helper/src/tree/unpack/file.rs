//! One file: where it is made, what is in it, and all else that is its own.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, fchown};

use super::super::sys::{self, Node, Resolve};
use super::super::{Result, TreeError};
use super::member::{Input, Member, map_in_data, padding};

/// Makes an empty regular file, which nobody else may read yet.
pub(super) fn make(parent: &File, name: &[u8]) -> io::Result<File> {
    let flags = sys::NEW | sys::NOFOLLOW;
    instead(parent, name, || {
        sys::open(parent, name, flags, 0o600, Resolve::NoSymlinks)
    })
}

/// Makes something where something else may be.
pub(super) fn instead<T>(parent: &File, name: &[u8], make: impl Fn() -> io::Result<T>) -> io::Result<T> {
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
pub(super) fn finish(node: Node<'_>, member: &Member, path: &[u8]) -> Result<()> {
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
pub(super) fn content(mut file: &File, path: &[u8], member: &mut Member, input: &mut Input<'_>) -> Result<()> {
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
