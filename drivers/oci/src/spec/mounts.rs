//! What stands where in a container's file system.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, get_default_maskedpaths, get_default_readonly_paths};
use orchestra::{Error, ErrorKind, Result};

use super::SpecInput;

/// Bytes of `/dev/shm` where nothing else is said.
const SHM: u64 = 64 << 20;

/// The kernel's file systems first, then all others from the root on, so that none hides another.
pub(super) fn mounts(input: &SpecInput<'_>) -> Result<Vec<Mount>> {
    // One for each place: what the caller asks for replaces what would be there.
    let mut asked = BTreeMap::new();
    for (path, source) in input.etc.iter().chain(&input.image_volumes) {
        let target = path.resolve("/");
        asked.insert(target.clone(), bind(&target, source, false));
    }
    let container = input.container;
    for mount in &container.mounts {
        let target = container.resolve(&mount.target)?;
        let source = input.volumes.get(&mount.volume).ok_or_else(|| {
            Error::new(
                ErrorKind::VolumeNotFound,
                format!("there is no volume {} to mount at {target}", mount.volume),
            )
        })?;
        asked.insert(target.clone(), bind(&target, source, mount.read_only));
    }
    for tmpfs in &container.tmpfs {
        let target = container.resolve(&tmpfs.target)?;
        // Not `noexec`, which no other file system of a container has.
        let mut options = vec![
            "rw".to_owned(),
            "exec".to_owned(),
            "nosuid".to_owned(),
            "nodev".to_owned(),
        ];
        options.extend(tmpfs.size.map(|size| format!("size={size}")));
        asked.insert(target.clone(), mount(&target, "tmpfs", "tmpfs", options));
    }
    let mut all = kernels(input);
    let dev = asked.contains_key("/dev");
    all.retain(|mount| {
        let target = mount.destination();
        let replaced = target.to_str().is_some_and(|target| asked.contains_key(target));
        let hidden = dev && target.starts_with("/dev");
        !replaced && !hidden
    });
    let mut asked: Vec<Mount> = asked.into_values().collect();
    asked.sort_by_key(|mount| mount.destination().components().count());
    all.extend(asked);
    Ok(all)
}

/// The kernel's own file systems, and `/dev`.
fn kernels(input: &SpecInput<'_>) -> Vec<Mount> {
    let options = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let access = if input.container.privileged { "rw" } else { "ro" };
    let shm = input.container.limits.shm_size.unwrap_or(SHM);
    vec![
        mount("/proc", "proc", "proc", options("nosuid,noexec,nodev")),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            options("nosuid,strictatime,mode=755,size=65536k"),
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            options("nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            options(&format!("nosuid,noexec,nodev,{access}")),
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            options(&format!("nosuid,noexec,nodev,{access}")),
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", options("nosuid,noexec,nodev")),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            options(&format!("nosuid,noexec,nodev,mode=1777,size={shm}")),
        ),
    ]
}

fn mount(target: &str, typ: &str, source: &str, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(target))
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options));
    mount
}

fn bind(target: &str, source: &Path, read_only: bool) -> Mount {
    let mut options = vec!["rbind".to_owned(), "rprivate".to_owned()];
    options.push(if read_only { "ro" } else { "rw" }.to_owned());
    let mut mount = mount(target, "bind", "", options);
    mount.set_source(Some(source.to_owned()));
    mount
}

/// Paths that look empty: they tell of the machine, or let it be changed.
pub(super) fn masked(privileged: bool) -> Vec<String> {
    if privileged {
        return Vec::new();
    }
    let newer = ["/proc/interrupts", "/sys/devices/virtual/powercap"];
    let mut paths = get_default_maskedpaths();
    paths.extend(newer.map(str::to_owned));
    paths
}

/// Paths that can't be written to.
pub(super) fn read_only(privileged: bool) -> Vec<String> {
    if privileged {
        Vec::new()
    } else {
        get_default_readonly_paths()
    }
}
