//! The folders and the cgroup of a sandbox, and their removal.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock, statvfs};
use serde::{Deserialize, Serialize};

use crate::{fixtures, term};

/// Where the folders for sockets are made.
const TEMPORARY: &str = "/tmp";

/// The file that is locked while the sandbox is in use.
const LOCK: &str = "lock";

/// What a sandbox has on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Folders {
    /// A name that no other sandbox has; also that of the cgroup that its containers live in.
    pub(crate) name: String,
    /// For sockets, whose paths may have some 100 characters only, and for settings and logs.
    pub(crate) run: PathBuf,
    /// For everything large. It lies in the repository, because a temporary folder may be held in memory.
    pub(crate) disk: PathBuf,
    /// Whether the engine has no more than a small disk of its own, in memory, which a test may fill.
    pub(crate) small: bool,
}

impl Folders {
    /// Makes the folders of a new sandbox and [locks](Self::lock) them; removes those that dead ones left.
    pub(crate) fn make() -> Result<(Self, File)> {
        sweep()?;
        let folders = Self::named(&format!("orch-{}", random_hex(4)?))?;
        fs::create_dir_all(&folders.disk)
            .and_then(|()| fs::create_dir_all(folders.data()))
            .with_context(|| format!("cannot create {} or {}", folders.run.display(), folders.disk.display()))?;
        // It gets its name when it is locked already, so that nobody finds it unlocked.
        let unnamed = folders.disk.join("lock.new");
        let lock = File::create(&unnamed)?;
        flock(&lock, FlockOperation::LockShared)?;
        fs::rename(unnamed, folders.disk.join(LOCK))?;
        fs::copy("/proc/self/exe", folders.program())?;
        Ok((folders, lock))
    }

    fn named(name: &str) -> Result<Self> {
        let disk = all_disks()?.join(name);
        Ok(Self {
            name: name.to_owned(),
            run: Path::new(TEMPORARY).join(name),
            disk,
            small: false,
        })
    }

    /// Whether there are so many bytes for the large files of sandboxes.
    ///
    /// # Errors
    /// Where there are not: a disk that fills up in the middle of a test fails it in ways that name no disk.
    pub(crate) fn check_room(wanted: u64) -> Result<()> {
        let disks = all_disks()?;
        let disk = disks.ancestors().find(|folder| folder.exists()).unwrap_or(&disks);
        let found = statvfs(disk).with_context(|| format!("cannot look at the disk of {}", disk.display()))?;
        let free = found.f_bavail * found.f_frsize;
        if free < wanted {
            bail!(
                "{} GiB are free where {} is, and the tests want {} GiB: make room (`cargo clean` gives back what builds have left)",
                free >> 30,
                disk.display(),
                wanted >> 30
            );
        }
        Ok(())
    }

    /// Where [`disk`](Self::disk) is seen from within the sandbox.
    pub(crate) fn data(&self) -> PathBuf {
        self.run.join("data")
    }

    /// The sandbox's own copy of this program. The original may be built anew at any time, by the very tests that run
    /// in the sandbox, and is then gone from where it was.
    pub(crate) fn program(&self) -> PathBuf {
        self.disk.join("xtask")
    }

    /// Says that the sandbox is in use, as long as what is returned lives; several processes can say so.
    pub(crate) fn lock(&self) -> Result<File> {
        let lock = File::open(self.disk.join(LOCK))?;
        flock(&lock, FlockOperation::LockShared)?;
        Ok(lock)
    }

    /// Whether nobody uses the sandbox any more.
    fn are_dead(&self) -> bool {
        match File::open(self.disk.join(LOCK)) {
            Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            // It is being made at this moment, or its maker was killed at that one.
            Err(_) => {
                let made = fs::metadata(&self.disk).and_then(|metadata| metadata.modified());
                made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > Duration::from_secs(60)))
            }
        }
    }

    /// Removes the folders and the cgroups. The kernel lets go of a dead process' cgroup with some delay, which is
    /// waited for until the deadline. Nothing may be mounted in the folders any more.
    pub(crate) fn remove(&self, deadline: Instant) -> Result<()> {
        for group in self.cgroups() {
            while let Err(error) = remove_cgroup(&group) {
                if Instant::now() > deadline {
                    return Err(error).with_context(|| format!("cannot remove {}", group.display()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        fixtures::remove(&self.run)?;
        fixtures::remove(&self.disk)
    }

    /// The cgroup of the sandbox's name in each hierarchy: the only one, or those of each controller. podman, which can't
    /// be told a name, has one for each container.
    fn cgroups(&self) -> Vec<PathBuf> {
        let containers = fs::read_dir(self.disk.join("podman/overlay-containers"));
        let containers = containers.into_iter().flatten().filter_map(Result::ok);
        let names: Vec<PathBuf> = containers
            .map(|entry| format!("libpod_parent/libpod-{}", entry.file_name().display()).into())
            .chain([PathBuf::from(&self.name)])
            .collect();
        let hierarchies = Path::new("/sys/fs/cgroup");
        let children = fs::read_dir(hierarchies).into_iter().flatten().filter_map(Result::ok);
        std::iter::once(hierarchies.to_owned())
            .chain(children.map(|entry| entry.path()))
            .flat_map(|hierarchy| names.iter().map(move |name| hierarchy.join(name)))
            .filter(|group| group.is_dir())
            .collect()
    }
}

/// Random bytes in hexadecimal.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    File::open("/dev/urandom")?.read_exact(&mut buffer)?;
    Ok(fixtures::hex(&buffer))
}

/// The folder with the disks of all sandboxes.
fn all_disks() -> Result<PathBuf> {
    Ok(fixtures::folder()?.join("engines"))
}

/// Removes what is left of sandboxes that nobody uses: their guard was killed, or the machine went down.
fn sweep() -> Result<()> {
    let Ok(entries) = fs::read_dir(all_disks()?) else {
        return Ok(());
    };
    for name in entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        let folders = Folders::named(&name)?;
        if folders.are_dead()
            && let Err(error) = folders.remove(Instant::now())
        {
            term::note(&format!("the remains of {name} stay: {error:#}"));
        }
    }
    Ok(())
}

/// Removes a cgroup and its children; the files in it cannot be removed and need not be.
fn remove_cgroup(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
