//! Who a process runs as, by the image's own files.
//!
//! An image is made by others: its `/etc/passwd` may be a link to anywhere. So the files are opened as if the image's
//! root were the machine's ([`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html), `RESOLVE_IN_ROOT`),
//! only if they are ordinary files, and no more of them is read than users can fill.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use orchestra::{Error, Result};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;

/// Bytes that are read of one of the files.
const MOST: u64 = 16 << 20;

/// A user by numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// All groups; the first one is `gid`.
    pub groups: Vec<u32>,
}

/// Looks up `user` (`USER[:GROUP]`, names or numbers; empty for root) in `/etc/passwd` and `/etc/group` of the directory
/// `rootfs`, as docker does: a number need not be there, and groups that list a user by name are its too, unless a group was given. Blocking.
///
/// # Errors
/// [`InvalidInput`](orchestra::ErrorKind::InvalidInput) if a name is not there; [`Io`](orchestra::ErrorKind::Io) if a file can't be read.
pub fn resolve_user(rootfs: &Path, user: &str) -> Result<ResolvedUser> {
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let uid = user.parse::<u32>().ok();
    let mut found = None;
    entries(rootfs, "etc/passwd", |fields| {
        let [name, _, its_uid, its_gid, ..] = fields else {
            return false;
        };
        let (Ok(its_uid), Ok(its_gid)) = (its_uid.parse::<u32>(), its_gid.parse::<u32>()) else {
            return false;
        };
        if uid.map_or(*name == user, |uid| uid == its_uid) {
            found = Some(((*name).to_owned(), its_uid, its_gid));
        }
        found.is_some()
    })?;
    let (name, uid, mut gid) = match (found, uid) {
        (Some((name, uid, gid)), _) => (Some(name), uid, gid),
        (None, Some(uid)) => (None, uid, 0),
        (None, None) => return Err(unknown("user", user, "/etc/passwd")),
    };
    let mut groups = Vec::new();
    if let Some(group) = group {
        gid = match group.parse() {
            Ok(number) => number,
            Err(_) => group_named(rootfs, group)?.ok_or_else(|| unknown("group", group, "/etc/group"))?,
        };
    } else if let Some(name) = name {
        entries(rootfs, "etc/group", |fields| {
            if let [_, _, number, members, ..] = fields
                && members.split(',').any(|member| member == name)
                && let Ok(number) = number.parse()
            {
                groups.push(number);
            }
            false
        })?;
    }
    groups.retain(|other| *other != gid);
    groups.insert(0, gid);
    Ok(ResolvedUser { uid, gid, groups })
}

fn group_named(rootfs: &Path, wanted: &str) -> Result<Option<u32>> {
    let mut found = None;
    entries(rootfs, "etc/group", |fields| {
        if let [name, _, number, ..] = fields
            && *name == wanted
        {
            found = number.parse().ok();
        }
        found.is_some()
    })?;
    Ok(found)
}

fn unknown(what: &str, name: &str, file: &str) -> Error {
    Error::invalid(format!(
        "the image has no {what} {name}: its {file} lists none of that name"
    ))
    .with_hint(format!("correct the name, or give the {what}'s number"))
}

/// Shows the fields of each line of a file to `see`, until it has seen enough. A file that is not there has no lines.
fn entries(rootfs: &Path, path: &str, mut see: impl FnMut(&[&str]) -> bool) -> Result<()> {
    let failed = |error| Error::io(format!("read /{path} of the image"), error);
    let Some(file) = open_inside(rootfs, path).map_err(|error| failed(error.into()))? else {
        return Ok(());
    };
    let mut lines = BufReader::new(file.take(MOST));
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        let fields: Vec<&str> = text.trim().split(':').collect();
        if see(&fields) {
            return Ok(());
        }
    }
}

/// An ordinary file below `rootfs`; whatever links are on the way, none leads out.
fn open_inside(rootfs: &Path, path: &str) -> rustix::io::Result<Option<File>> {
    let root = open(
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // Not blocking, as a fifo would be; whether it is a file is looked at on what was opened.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let kind = FileType::from_raw_mode(fstat(&file)?.st_mode);
    Ok((kind == FileType::RegularFile).then(|| File::from(file)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestra::ErrorKind;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken\nbuild:x:1000:1001::/home/build:\n42:x:7:7::/:\n";
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        let group = "root:x:0:\nwheel:x:10:root,build\nbuild:x:1001:build\nstaff:x:50:\nlast:x:60:root,build";
        fs::write(root.path().join("etc/group"), group).unwrap();
        root
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_by_number() {
        let root = image();
        for (asked, uid, groups) in [
            ("", 0, &[0, 10, 60][..]),
            ("root", 0, &[0, 10, 60]),
            ("0", 0, &[0, 10, 60]),
            ("build", 1000, &[1001, 10, 60]),
            ("1000", 1000, &[1001, 10, 60]),
            ("build:staff", 1000, &[50]),
            ("build:0", 1000, &[0]),
            ("1234", 1234, &[0]),
            ("1234:5678", 1234, &[5678]),
            (":staff", 0, &[50]),
            // A number is one, also where it is somebody's name.
            ("42", 42, &[0]),
        ] {
            let wanted = ResolvedUser {
                uid,
                gid: groups[0],
                groups: groups.to_vec(),
            };
            assert_eq!(resolve_user(root.path(), asked).unwrap(), wanted, "{asked:?}");
        }
    }

    #[test]
    fn who_is_not_there_is_named() {
        let root = image();
        for (asked, named) in [("nobody", "user nobody"), ("root:nobodies", "group nobodies")] {
            let error = resolve_user(root.path(), asked).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.message().contains(named), "{error}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(resolve_user(empty.path(), "").unwrap().uid, 0);
        assert!(resolve_user(empty.path(), "root").is_err());
    }

    #[test]
    fn links_are_followed_within_the_image_and_never_out_of_it() {
        let outside = image();
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/real")).unwrap();
        fs::write(root.path().join("etc/real/passwd"), "inside:x:5:5::/:\n").unwrap();
        symlink("/etc/real/passwd", root.path().join("etc/passwd")).unwrap();
        assert_eq!(resolve_user(root.path(), "inside").unwrap().uid, 5);

        for way_out in [
            outside.path().join("etc/passwd"),
            Path::new("../../../../../../../..")
                .join(outside.path().strip_prefix("/").unwrap())
                .join("etc/passwd"),
        ] {
            fs::remove_file(root.path().join("etc/passwd")).unwrap();
            symlink(way_out, root.path().join("etc/passwd")).unwrap();
            assert!(resolve_user(root.path(), "build").is_err());
        }
        fs::remove_dir_all(root.path().join("etc")).unwrap();
        symlink(outside.path().join("etc"), root.path().join("etc")).unwrap();
        assert!(resolve_user(root.path(), "build").is_err());
    }

    #[test]
    fn a_fifo_in_the_place_of_a_file_holds_nobody_up() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let path = root.path().join("etc/passwd");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(resolve_user(root.path(), "3").unwrap().uid, 3);
    }
}
