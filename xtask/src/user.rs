//! The ordinary user that an engine without root runs as.
//!
//! They exist in the sandbox alone: files of our own lie over those of the system that tell of users, and of the ids that
//! they may give to others in a user namespace (subuid(5)).

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde::{Deserialize, Serialize};

use crate::folders::Folders;

/// Their name.
const NAME: &str = "orchestra-test";
/// Their number, and that of their group: of those that Debian keeps back and gives to nobody.
pub(crate) const ID: u32 = 65_055;
/// The first of the ids that they may give away, and how many there are: as many as useradd(8) gives.
const SUBORDINATE: (u32, u32) = (500_000, 65_536);
/// The device of networks in user space (slirp4netns, pasta): everybody may use it where udev has made it, and only
/// root in many a container.
const TUN: (&str, u32, u32) = ("dev/net/tun", 10, 200);

/// A file of ours in place of one of the system's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cover {
    /// Where ours is, outside of the sandbox's root file system.
    pub(crate) file: PathBuf,
    /// What it covers, relative to the root.
    pub(crate) target: PathBuf,
}

/// Writes the files, for an engine that runs in this root file system, and makes the user's home.
pub(crate) fn provide(folders: &Folders, rootfs: Option<&Path>) -> Result<Vec<Cover>> {
    let etc = rootfs.unwrap_or(Path::new("/")).join("etc");
    let known = |name: &str| fs::read_to_string(etc.join(name)).with_context(|| format!("cannot read /etc/{name}"));
    let (home, (first, count)) = (home(folders), SUBORDINATE);
    let subordinate = format!("{NAME}:{first}:{count}\n");
    let files = [
        (
            "passwd",
            format!("{}{NAME}:x:{ID}:{ID}::{}:/bin/sh\n", known("passwd")?, home.display()),
        ),
        ("group", format!("{}{NAME}:x:{ID}:\n", known("group")?)),
        ("subuid", subordinate.clone()),
        ("subgid", subordinate),
    ];
    let mut covers = Vec::new();
    for (name, content) in files {
        let file = folders.run.join(name);
        fs::write(&file, content)?;
        let target = Path::new("etc").join(name);
        covers.push(Cover { file, target });
    }
    // Not among the sockets: the temporary folder's file system may allow no devices.
    let (target, major, minor) = TUN;
    let tun = folders.disk.join("tun");
    mknodat(
        CWD,
        &tun,
        FileType::CharacterDevice,
        Mode::empty(),
        makedev(major, minor),
    )
    .with_context(|| format!("cannot make the device {}", tun.display()))?;
    fs::set_permissions(&tun, fs::Permissions::from_mode(0o666))?;
    covers.push(Cover {
        file: folders.data().join("tun"),
        target: target.into(),
    });
    for (folder, mode) in [(folders.disk.join("home"), 0o755), (runtime(folders), 0o700)] {
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?;
        chown(&folder, Some(ID), Some(ID))?;
    }
    Ok(covers)
}

/// Their home, as it is seen in the sandbox.
pub(crate) fn home(folders: &Folders) -> PathBuf {
    folders.data().join("home")
}

/// Their `XDG_RUNTIME_DIR`.
pub(crate) fn runtime(folders: &Folders) -> PathBuf {
    folders.run.join("user")
}
