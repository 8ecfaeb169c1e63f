//! Root file systems that no container runs on yet: looked into, and written to, through a mount that only one thread
//! sees. It goes with the thread, however that ends, so nothing of it can be left behind.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use containerd_client::types::Mount;
use orchestra::{ContainerPath, Error, InjectedFile, Result};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;
use tokio::sync::oneshot;

/// Longest text of a mount's options (mount(2): one page).
const MAX_OPTIONS: usize = 4000;

/// Does blocking `work` with the file system of `mounts` mounted on the empty directory `on`, for its own thread alone.
///
/// # Errors
/// What mounting fails with, and what `work` does.
pub(crate) async fn with<T: Send + 'static>(
    mounts: Vec<Mount>,
    on: PathBuf,
    work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, result) = oneshot::channel();
    // Of its own: a thread of a pool would take the mount namespace along to its next work.
    let thread = std::thread::Builder::new().name("rootfs".to_owned()).spawn(move || {
        let result = mount_all(&mounts, &on)
            .map_err(|error| Error::io(format!("mount a snapshot on {}", on.display()), error))
            .and_then(|held| {
                let result = work(&on);
                // Now, and not by the kernel at some time after the thread's end: a container may be started next.
                for _ in &mounts {
                    let _ = rustix::mount::unmount(&on, UnmountFlags::DETACH);
                }
                drop(held);
                result
            });
        // Nobody listens any more: the call was dropped.
        let _ = done.send(result);
    });
    thread.map_err(|error| Error::io("start a thread", error))?;
    result.await.unwrap_or_else(|_| {
        Err(Error::io(
            "look into a root file system",
            io::Error::other("its thread ended"),
        ))
    })
}

fn mount_all(mounts: &[Mount], on: &Path) -> io::Result<Vec<OwnedFd>> {
    #[expect(
        unsafe_code,
        reason = "a mount namespace of this thread's own is no danger: only FILES would be one"
    )]
    // SAFETY: the flags do not have `FILES`.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)?;
    }
    // What is mounted here is not to be seen elsewhere.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let mut held = Vec::new();
    for mount in mounts {
        mount_one(mount, on, &mut held)?;
    }
    Ok(held)
}

fn mount_one(mount: &Mount, on: &Path, held: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut flags = MountFlags::empty();
    let mut recursive = false;
    let mut options: Vec<&str> = Vec::new();
    for option in &mount.options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "nodev" => flags |= MountFlags::NODEV,
            "nosuid" => flags |= MountFlags::NOSUID,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "rbind" => recursive = true,
            "rw" | "bind" => {}
            other => options.push(other),
        }
    }
    if mount.r#type == "bind" {
        if recursive {
            rustix::mount::mount_bind_recursive(mount.source.as_str(), on)?;
        } else {
            rustix::mount::mount_bind(mount.source.as_str(), on)?;
        }
        return Ok(());
    }
    let mut text = options.join(",");
    if text.len() > MAX_OPTIONS {
        // Many layers: their paths are replaced by short ones, of descriptors that are open meanwhile.
        let short: io::Result<Vec<String>> = options.iter().map(|option| shorten(option, held)).collect();
        text = short?.join(",");
    }
    let text = CString::new(text)?;
    rustix::mount::mount(mount.source.as_str(), on, mount.r#type.as_str(), flags, &*text)?;
    Ok(())
}

fn shorten(option: &str, held: &mut Vec<OwnedFd>) -> io::Result<String> {
    let Some(layers) = option.strip_prefix("lowerdir=") else {
        return Ok(option.to_owned());
    };
    let mut short = Vec::new();
    for layer in layers.split(':') {
        let fd = rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        short.push(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        held.push(fd);
    }
    Ok(format!("lowerdir={}", short.join(":")))
}

/// Puts files into `root`; those of a mount go where `place` says.
pub(crate) fn write_files(files: &[InjectedFile], place: impl Fn(&ContainerPath) -> (PathBuf, PathBuf)) -> Result<()> {
    for file in files {
        let (root, path) = place(&file.path);
        write_file(&root, &path, file)
            .map_err(|error| Error::io(format!("write {} into the container", file.path), error))?;
    }
    Ok(())
}

fn write_file(root: &Path, path: &Path, file: &InjectedFile) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it has no name"))?;
    let owner = (file.uid, file.gid);
    let parent = directory(root, path.parent().unwrap_or(Path::new("")), owner)?;
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut written = File::from(fd);
    written.write_all(&file.content)?;
    rustix::fs::fchown(&written, Some(Uid::from_raw(file.uid)), Some(Gid::from_raw(file.gid)))?;
    // After the owner, which takes setuid away.
    rustix::fs::fchmod(&written, Mode::from_raw_mode(file.mode))?;
    Ok(())
}

/// Opens a directory of `root`, made where it is missing. Links lead nowhere out of `root`.
fn directory(root: &Path, path: &Path, (uid, gid): (u32, u32)) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        rustix::fs::openat2(
            &root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let mut whole = PathBuf::new();
    let mut parent = open(&whole)?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        whole.push(name);
        parent = match open(&whole) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => {
                let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
                rustix::fs::mkdirat(&parent, name, mode)?;
                let made = open(&whole)?;
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                rustix::fs::chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                // Whatever the umask took.
                rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
                made
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(parent)
}

/// Whether a container could execute `program`: a file with an executable bit, found by `path` (as in `PATH`) unless it
/// has a slash. `place` says where a path of the container lies on this host.
pub(crate) fn can_execute(program: &str, path: &str, cwd: &str, place: impl Fn(&Path) -> (PathBuf, PathBuf)) -> bool {
    let is_program = |file: &Path| {
        let (root, inside) = place(file);
        executable(&root, &inside).unwrap_or(false)
    };
    if program.contains('/') {
        return is_program(&Path::new(cwd).join(program));
    }
    path.split(':')
        .any(|folder| is_program(&Path::new(cwd).join(folder).join(program)))
}

fn executable(root: &Path, path: &Path) -> io::Result<bool> {
    let root = rustix::fs::openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = path.strip_prefix("/").unwrap_or(path);
    let file = rustix::fs::openat2(
        root.as_fd(),
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?;
    let stat = rustix::fs::fstat(&file)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn file(path: &str) -> InjectedFile {
        InjectedFile::new(ContainerPath::new(path).unwrap(), "new")
    }

    #[test]
    fn a_link_of_the_image_leads_nowhere_out_of_it() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("file"), "old").unwrap();
        symlink(outside.path(), root.path().join("dir")).unwrap();
        symlink(outside.path().join("file"), root.path().join("link")).unwrap();
        let place = |path: &ContainerPath| (root.path().to_owned(), PathBuf::from(path.as_str()));
        write_files(&[file("/link")], place).unwrap();
        // The link's target is taken as a path of the image, which lacks it.
        let _ = write_files(&[file("/dir/file")], place);
        assert_eq!(std::fs::read_to_string(outside.path().join("file")).unwrap(), "old");
        assert_eq!(std::fs::read_to_string(root.path().join("link")).unwrap(), "new");
        assert!(!root.path().join("link").is_symlink());
    }

    #[test]
    fn a_file_has_the_mode_that_it_is_given_and_its_folders_are_made() {
        let root = tempfile::tempdir().unwrap();
        let mut file = file("/a/b/c");
        file.mode = 0o4755;
        write_files(&[file], |path| (root.path().to_owned(), PathBuf::from(path.as_str()))).unwrap();
        assert_eq!(root.path().join("a/b/c").metadata().unwrap().mode() & 0o7777, 0o4755);
        assert_eq!(root.path().join("a/b").metadata().unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("bin")).unwrap();
        let place = |path: &Path| (root.path().to_owned(), path.to_owned());
        write_files(&[file("/bin/text")], |path| {
            (root.path().to_owned(), PathBuf::from(path.as_str()))
        })
        .unwrap();
        let mut program = file("/bin/program");
        program.mode = 0o755;
        write_files(&[program], |path| {
            (root.path().to_owned(), PathBuf::from(path.as_str()))
        })
        .unwrap();
        // Absolute, as images have them: it stands for a path of the image.
        symlink("/bin/program", root.path().join("bin/link")).unwrap();
        let can = |program: &str| can_execute(program, "/sbin:/bin", "/", place);
        assert!(can("program") && can("/bin/program") && can("bin/program") && can("link"));
        assert!(!can("text") && !can("/bin") && !can("nothing"));
    }
}
