//! Device files: which a container may use, and those of the machine, which a privileged one is given.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use orchestra::{Error, Result};
use rustix::fs::{major, minor};

/// What is mounted or made in each container's own `/dev`.
const OWN: [&str; 8] = ["pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"];
/// Directories within each other that are looked into.
const DEPTH: u32 = 8;

/// What the container's cgroup lets it do with device files. Runtimes add those that every container has.
pub(super) fn rules(privileged: bool) -> Vec<LinuxDeviceCgroup> {
    let mut all = LinuxDeviceCgroup::default();
    all.set_allow(privileged).set_access(Some("rwm".to_owned()));
    vec![all]
}

/// All device files of the machine.
pub(super) fn of_host(root: &Path) -> Result<Vec<LinuxDevice>> {
    let mut found = Vec::new();
    collect(&root.join("dev"), Path::new("/dev"), DEPTH, &mut found)?;
    Ok(found)
}

fn collect(dir: &Path, inside: &Path, depth: u32, found: &mut Vec<LinuxDevice>) -> Result<()> {
    let failed = |error| Error::io(format!("look for devices in {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        // It was there a moment ago.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if OWN.iter().any(|own| name == *own) {
            continue;
        }
        // Of the entry itself: a link is no device, whatever it leads to.
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let kind = metadata.file_type();
        let path = inside.join(&name);
        if kind.is_dir() {
            if depth > 0 {
                collect(&entry.path(), &path, depth - 1, found)?;
            }
            continue;
        }
        let typ = match () {
            () if kind.is_char_device() => LinuxDeviceType::C,
            () if kind.is_block_device() => LinuxDeviceType::B,
            () => continue,
        };
        let number = metadata.rdev();
        let mut device = LinuxDevice::default();
        device
            .set_path(path)
            .set_typ(typ)
            .set_major(i64::from(major(number)))
            .set_minor(i64::from(minor(number)))
            .set_file_mode(Some(metadata.mode() & 0o7777))
            .set_uid(Some(metadata.uid()))
            .set_gid(Some(metadata.gid()));
        found.push(device);
    }
    Ok(())
}
