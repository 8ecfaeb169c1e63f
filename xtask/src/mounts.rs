//! The mounts of a sandbox. They are in its own mount namespace, so nobody else sees them.

use std::{
    ffi::CStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, unmount};

use crate::{folders::Folders, user::Cover};

/// The size of an engine's disk that a test fills.
const SMALL: &CStr = c"size=256m,mode=0755";
/// What does not fit there, in bytes.
pub(crate) const TOO_MUCH: u64 = 300 << 20;

/// Makes the mounts.
///
/// With a root file system, that one is made ready to be the root of daemons.
pub(crate) fn make(folders: &Folders, rootfs: Option<&Path>, covers: &[Cover]) -> Result<()> {
    mount_bind(&folders.disk, folders.data())?;
    if folders.small {
        for engine in ["docker", "podman"].map(|engine| folders.data().join(engine)) {
            make_small(&engine)?;
        }
    }
    if let Some(root) = rootfs {
        make_root(folders, root)?;
    } else {
        hide(Path::new("/"))?;
    }
    covers
        .iter()
        .try_for_each(|cover| lay_over(cover, rootfs.unwrap_or(Path::new("/"))))
}

/// Makes a small disk that a test may fill. One that is made outside of a sandbox goes with the folders of that sandbox:
/// to remove the folder that it lies on takes it away everywhere.
pub(crate) fn make_small(disk: &Path) -> Result<()> {
    fs::create_dir_all(disk)?;
    mount("tmpfs", disk, "tmpfs", MountFlags::empty(), SMALL)
        .with_context(|| format!("cannot mount on {}", disk.display()))
}

fn lay_over(Cover { file, target }: &Cover, root: &Path) -> Result<()> {
    let target = root.join(target);
    mount_bind(file, &target).with_context(|| format!("cannot lay {} over {}", file.display(), target.display()))
}

fn make_root(folders: &Folders, root: &Path) -> Result<()> {
    // Engines refuse to unpack layers unless their root is a mount point.
    mount_bind_recursive(root, root)?;
    for folder in ["/proc", "/sys", "/dev"] {
        mount_bind_recursive(folder, inside(root, Path::new(folder)))?;
    }
    fs::create_dir_all(root.join("etc/docker"))?;
    hide(root)?;
    // The same paths inside and outside spare everyone a translation.
    mount_empty(&root.join("tmp"))?;
    let run = inside(root, &folders.run);
    fs::create_dir_all(&run)?;
    Ok(mount_bind_recursive(&folders.run, run)?)
}

/// Hides other daemons' sockets, settings and keys of a docker that is not ours, and the locks that all podmans of a
/// machine share.
fn hide(root: &Path) -> Result<()> {
    for folder in ["run", "etc/docker", "dev/shm"].map(|folder| root.join(folder)) {
        if folder.is_dir() {
            mount_empty(&folder)?;
        }
    }
    Ok(())
}

fn mount_empty(folder: &Path) -> Result<()> {
    mount("tmpfs", folder, "tmpfs", MountFlags::empty(), None::<&CStr>)
        .with_context(|| format!("cannot mount on {}", folder.display()))
}

/// Where an absolute path lies under a root.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Undoes [`make`], so that the folders can be removed.
pub(crate) fn unmake(folders: &Folders, rootfs: Option<&Path>) -> Result<()> {
    rootfs.map_or(Ok(()), unmount_below)?;
    unmount_below(&folders.run)
}

/// Unmounts what lies in a folder, so that removing the folder cannot reach into what was mounted there.
fn unmount_below(folder: &Path) -> Result<()> {
    let mut mounts = mounts_below(folder)?;
    // Later mounts lie on or in earlier ones.
    mounts.reverse();
    for mount in mounts {
        unmount(&mount, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", mount.display()))?;
    }
    match mounts_below(folder)?.first() {
        Some(mount) => bail!("{} is still mounted: {} is left", mount.display(), folder.display()),
        None => Ok(()),
    }
}

fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    // The table writes a space, which would end the field, as its octal number.
    Ok(points
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(folder))
        .collect())
}
