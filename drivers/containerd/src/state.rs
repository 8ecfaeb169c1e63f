//! What this driver keeps beside containerd: folders of containers with what must outlive their tasks.
//!
//! containerd forgets a task that ended when it is restarted, so how a container ended is a file, written once, by
//! whichever process sees it first.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use orchestra::{ContainerPath, Error, JobId, Result};
use orchestra_helper::tree;
use orchestra_oci::logs::{Exit, install_program};
use rustix::fs::{FileType, FlockOperation, Mode, flock};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: i128 = 0x6e73_6673;

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The exit code, 128 and its number for a signal.
    pub(crate) code: u32,
    /// Whether the kernel killed a process of it for its memory.
    pub(crate) out_of_memory: bool,
}

impl From<Exit> for Ended {
    fn from(exit: Exit) -> Self {
        Self {
            code: exit.code,
            out_of_memory: exit.out_of_memory,
        }
    }
}

/// The folders of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The state folder as a whole.
    root: PathBuf,
    /// This namespace's part of it.
    own: PathBuf,
}

impl State {
    /// The folders, made where they are missing. Blocking.
    pub(crate) fn open(root: &Path, namespace: &str) -> Result<Self> {
        let failed = |error| Error::io(format!("make the state folder {}", root.display()), error);
        make(root).map_err(failed)?;
        // The engine's processes are told these paths, and may see links elsewhere.
        let root = root.canonicalize().map_err(failed)?;
        let own = root.join(namespace);
        for folder in ["containers", "root"] {
            make(&own.join(folder)).map_err(failed)?;
        }
        Ok(Self { root, own })
    }

    /// An empty folder to mount on, for a thread with a mount namespace of its own.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.own.join("root")
    }

    /// Where logs are.
    pub(crate) fn logs(&self) -> PathBuf {
        self.own.join("logs")
    }

    /// Where volumes are.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.own.join("volumes")
    }

    /// Where the default network's addresses are; all namespaces share it.
    pub(crate) fn network(&self) -> PathBuf {
        self.root.join("network")
    }

    /// A name for the default network's bridge that another state folder's network does not have.
    pub(crate) fn bridge(&self) -> String {
        let digest = Sha256::digest(self.root.as_os_str().as_encoded_bytes());
        let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("orch{hex}")
    }

    /// Where the helper program lies, installed if it is missing. Its name has its digest, so that one of another version
    /// stays what running log keepers were started from. Blocking.
    pub(crate) fn helper(&self) -> Result<PathBuf> {
        let program = orchestra_helper::program(std::env::consts::ARCH).unwrap_or_default();
        let digest = Sha256::digest(program);
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let folder = self.root.join("bin");
        make(&folder).map_err(|error| Error::io(format!("make {}", folder.display()), error))?;
        let path = folder.join(format!("orchestra-helper-{hex}"));
        install_program(&path)?;
        Ok(path)
    }

    /// Keeps volumes from being removed (by the `shared` kind) or from being mounted meanwhile (by the other), in all
    /// processes, until the answer is dropped. Blocking.
    pub(crate) fn lock_volumes(&self, shared: bool) -> Result<fs::File> {
        let path = self.own.join("volumes.lock");
        let operation = match shared {
            true => FlockOperation::LockShared,
            false => FlockOperation::LockExclusive,
        };
        locked(&path, operation).map_err(|error| Error::io(format!("lock {}", path.display()), error))
    }

    /// The folder of a container.
    pub(crate) fn container(&self, id: &str) -> Folder {
        Folder(self.own.join("containers").join(id))
    }
}

fn make_fifo(path: &Path) -> io::Result<()> {
    match rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn locked(path: &Path, operation: FlockOperation) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    let lock = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    flock(&lock, operation)?;
    Ok(lock)
}

fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Fifos in a folder of theirs.
#[derive(Clone, Debug)]
pub(crate) struct Fifos {
    pub(crate) folder: PathBuf,
    pub(crate) stdin: Option<PathBuf>,
    pub(crate) stdout: PathBuf,
    pub(crate) stderr: PathBuf,
}

impl Fifos {
    fn make(folder: PathBuf, stdin: bool) -> io::Result<Self> {
        let path = |name: &str| folder.join(name);
        let fifos = Self {
            stdin: stdin.then(|| path("stdin")),
            stdout: path("stdout"),
            stderr: path("stderr"),
            folder,
        };
        for fifo in fifos.stdin.iter().chain([&fifos.stdout, &fifos.stderr]) {
            make_fifo(fifo)?;
        }
        Ok(fifos)
    }

    /// Removes them. Blocking.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A container's own volumes, one for each that its image declares: as other engines have them, what the image has there is
/// copied in, and they go with the container. All of it blocks.
#[derive(Clone, Debug)]
pub(crate) struct OwnVolumes(PathBuf);

impl OwnVolumes {
    /// Makes them, and says where they lie.
    pub(crate) fn fill(&self, root: &Path, declared: &[ContainerPath]) -> Result<BTreeMap<ContainerPath, PathBuf>> {
        let fill = |(number, path): (usize, &ContainerPath)| {
            let volume = self.0.join(number.to_string());
            let place = path.resolve("/");
            let inside = Path::new(place.trim_start_matches('/'));
            make(&volume)
                .and_then(|()| copy(root, inside, &volume))
                .map_err(|error| Error::io(format!("copy the image's {path} to {}", volume.display()), error))?;
            Ok((path.clone(), volume.join(inside)))
        };
        declared.iter().enumerate().map(fill).collect()
    }

    /// Removes them.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies a directory of one tree to the same place in another; an image that has none there gets an empty one.
fn copy(from: &Path, inside: &Path, to: &Path) -> io::Result<()> {
    // No link is followed: on this host it may lead anywhere.
    let is_folder = |part: &Path| from.join(part).symlink_metadata().is_ok_and(|found| found.is_dir());
    if inside.ancestors().all(is_folder) {
        let (mut output, input) = io::pipe()?;
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || tree::pack(from, &[inside], &mut BufWriter::new(input)));
            let unpacked = tree::unpack(to, Path::new(""), &mut output);
            if unpacked.is_ok() {
                // What fills up a tar's last block is written too.
                io::copy(&mut output, &mut io::sink())?;
            }
            // One that is not read to its end is told so by the pipe.
            drop(output);
            let packed = packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            unpacked.and(packed).map_err(io::Error::other)
        })?;
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(to.join(inside))
}

/// What is kept of one container. All of it blocks.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The files of `/etc` that are made for a container, by where they stand in it.
    pub(crate) fn etc(&self) -> Result<BTreeMap<ContainerPath, PathBuf>> {
        let files = ["resolv.conf", "hosts", "hostname"].map(|name| {
            let path = ContainerPath::new(format!("/etc/{name}"))?;
            Ok((path, self.path(name)))
        });
        files.into_iter().collect()
    }

    /// Where the volumes are that its image declares. `key` tells apart those who make one container at once.
    pub(crate) fn own_volumes(&self, key: &str) -> OwnVolumes {
        OwnVolumes(self.path("volumes").join(key))
    }

    /// Makes it.
    pub(crate) fn make(&self) -> Result<()> {
        make(&self.0).map_err(|error| self.failed("make", error))
    }

    /// Waits until nobody else starts, ends or removes this container, and keeps them from it until the answer is dropped.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        self.make()?;
        locked(&self.path("lock"), FlockOperation::LockExclusive).map_err(|error| self.failed("lock", error))
    }

    /// The same lock, where there is one: a container that was never started has none, nor has one that is gone.
    pub(crate) fn lock_if_there(&self) -> Result<Option<fs::File>> {
        let locked = match fs::File::open(self.path("lock")) {
            Ok(lock) => flock(&lock, FlockOperation::LockExclusive)
                .map(|()| Some(lock))
                .map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        locked.map_err(|error| self.failed("lock", error))
    }

    /// Writes a file that everybody in the container can read.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
            .map_err(|error| self.failed("write", error))
    }

    /// A new folder with the fifos of an exec: it goes with the container, if whoever made it died before. That of a
    /// container which is gone is not made again.
    pub(crate) fn exec(&self, id: &str, stdin: bool) -> io::Result<Fifos> {
        let folder = self.path(id);
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        Fifos::make(folder, stdin)
    }

    /// Makes the fifo of its standard input.
    pub(crate) fn stdin(&self) -> Result<PathBuf> {
        let fifo = self.path("stdin");
        make_fifo(&fifo).map_err(|error| self.failed("make a fifo in", error))?;
        Ok(fifo)
    }

    /// Says that its process is about to be started: from now on nobody starts it again.
    pub(crate) fn mark_starting(&self) -> Result<()> {
        self.write("starting", "")
    }

    /// Takes that back: the process could not be started.
    pub(crate) fn unmark_starting(&self) {
        let _ = fs::remove_file(self.path("starting"));
    }

    /// Whether its process was started, or may have been, whatever became of it.
    pub(crate) fn was_started(&self) -> bool {
        self.path("starting").exists()
    }

    /// Wakes those who wait for the start.
    pub(crate) fn mark_started(&self) -> Result<()> {
        self.write("started", "")
    }

    /// Whether the start was told.
    pub(crate) fn is_started(&self) -> bool {
        self.path("started").exists()
    }

    /// Says that it is about to be removed, so that who waits for its end is not told of that one.
    pub(crate) fn mark_going(&self) {
        // Without a folder there is nobody to be told.
        let _ = fs::write(self.path("going"), "");
    }

    /// Whether it is about to be removed.
    pub(crate) fn is_going(&self) -> bool {
        self.path("going").exists()
    }

    /// How it ended, if that was recorded.
    pub(crate) fn ended(&self) -> Option<Ended> {
        serde_json::from_slice(&fs::read(self.path("exit")).ok()?).ok()
    }

    /// Records how it ended; whoever came first is right, and is what is answered.
    pub(crate) fn record(&self, ended: Ended) -> Result<Ended> {
        let partial = self.path(&format!("exit-{}", JobId::unique()));
        let recorded = || -> io::Result<()> {
            fs::write(&partial, serde_json::to_vec(&ended)?)?;
            match fs::hard_link(&partial, self.path("exit")) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            }
        };
        let result = recorded();
        let _ = fs::remove_file(&partial);
        result.map_err(|error| self.failed("record an exit in", error))?;
        Ok(self.ended().unwrap_or(ended))
    }

    /// Keeps a process' network namespace alive, so that it can be taken from the network after the process' end.
    pub(crate) fn pin_network(&self, pid: u32) -> Result<PathBuf> {
        let pin = self.path("netns");
        fs::write(&pin, "")
            .and_then(|()| Ok(rustix::mount::mount_bind(format!("/proc/{pid}/ns/net"), &pin)?))
            .map_err(|error| self.failed("pin a network namespace in", error))?;
        Ok(pin)
    }

    /// Whether it was connected, and the namespace that [`pin_network`](Self::pin_network) keeps: the machine may have been
    /// started anew since.
    pub(crate) fn network(&self) -> Option<Option<PathBuf>> {
        let pin = self.path("netns");
        pin.exists().then(|| {
            let pinned = rustix::fs::statfs(&pin).is_ok_and(|found| i128::from(found.f_type) == NSFS);
            pinned.then_some(pin)
        })
    }

    /// Lets go of it.
    pub(crate) fn unpin_network(&self) {
        let pin = self.path("netns");
        let _ = unmount(&pin, UnmountFlags::DETACH);
        let _ = fs::remove_file(&pin);
    }

    /// Removes all of it.
    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, doing: &str, error: io::Error) -> Error {
        Error::io(format!("{doing} {}", self.0.display()), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_who_records_an_end_is_right() {
        let root = tempfile::tempdir().unwrap();
        let folder = State::open(root.path(), "test").unwrap().container("a");
        folder.make().unwrap();
        assert_eq!(folder.ended(), None);
        let first = Ended {
            code: 137,
            out_of_memory: true,
        };
        let late = Ended {
            code: 137,
            out_of_memory: false,
        };
        assert_eq!(folder.record(first).unwrap(), first);
        assert_eq!(folder.record(late).unwrap(), first);
        assert_eq!(
            fs::read_dir(folder.path(".")).unwrap().count(),
            1,
            "no partial file stays"
        );
    }

    #[test]
    fn a_volume_that_an_image_declares_begins_with_what_the_image_has() {
        let (root, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let data = image.path().join("var/data");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("file"), "from the image").unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(image.path().join("var/other"), "").unwrap();
        let folder = State::open(root.path(), "test").unwrap().container("a");
        let declared = ["/var/data", "/not/there"].map(|path| ContainerPath::new(path).unwrap());
        let own = folder.own_volumes("first");
        let filled = own.fill(image.path(), &declared).unwrap();
        let data = &filled[&declared[0]];
        assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "from the image");
        assert_eq!(data.metadata().unwrap().permissions().mode() & 0o7777, 0o1777);
        assert!(!data.parent().unwrap().join("other").exists());
        assert_eq!(fs::read_dir(&filled[&declared[1]]).unwrap().count(), 0);
        own.remove();
        assert!(!data.exists());
    }

    #[test]
    fn the_helper_is_written_once_and_can_be_executed() {
        let root = tempfile::tempdir().unwrap();
        let state = State::open(root.path(), "test").unwrap();
        let path = state.helper().unwrap();
        assert_eq!(state.helper().unwrap(), path);
        assert_ne!(path.metadata().unwrap().permissions().mode() & 0o100, 0);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
