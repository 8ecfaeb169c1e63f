//! Volumes as directories of this machine, with their labels beside them.
//!
//! A volume is a folder of its id, with its content in `data` and its labels in `volume.json`. It is made under another
//! name and gets its own when all of it is on the disk; it is removed by taking the name away first. So what has an id's name is
//! whole, whatever has crashed. Several processes may use one store: those that are at work hold a shared lock, and what
//! a dead one has left is cleaned away by who gets the lock alone.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use orchestra::{
    ByteStream, Created, Error, ErrorKind, HeldVolumes, Labels, Result, VolumeDirectory, VolumeId, VolumePath,
    VolumeSpec,
};
use orchestra_volumes::directory;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::blocking::blocking;

/// The directory that is the content.
const DATA: &str = "data";
/// The labels.
const METADATA: &str = "volume.json";
/// Begins the name of what is being made or removed; no id has a dot there.
const UNFINISHED: &str = ".unfinished-";
const LOCK: &str = ".lock";

/// A volume that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its labels.
    pub labels: Labels,
    /// The directory that is its content, to be mounted.
    pub path: PathBuf,
}

/// What is written beside a volume's content.
#[derive(Serialize, Deserialize)]
struct Metadata {
    labels: Labels,
}

/// Volumes below one root.
#[derive(Clone, Debug)]
pub struct VolumeStore {
    root: Arc<Path>,
    held: HeldVolumes,
}

impl VolumeStore {
    /// Volumes below `root`, which is made if it is missing. What a crash has left half made or half removed is cleaned
    /// away, unless another process is just making or removing something: then the next one does it.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub async fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root: Arc<Path> = root.as_ref().into();
        let store = Self {
            root: root.clone(),
            held: HeldVolumes::default(),
        };
        blocking(move || {
            clean(&root).map_err(|error| Error::io(format!("open the volumes in {}", root.display()), error))
        })
        .await?;
        Ok(store)
    }

    /// Makes an empty volume; one that is there stays as it is.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io), [`DiskFull`](ErrorKind::DiskFull); then there is none.
    pub async fn create(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        let (root, id) = (self.root.clone(), id.clone());
        let labels = spec.labels.clone();
        blocking(move || create(&root, &id, labels).map_err(|error| Error::io(format!("make the volume {id}"), error)))
            .await
    }

    /// A volume.
    ///
    /// # Errors
    /// [`VolumeNotFound`](ErrorKind::VolumeNotFound).
    pub async fn get(&self, id: &VolumeId) -> Result<Volume> {
        let (root, id) = (self.root.clone(), id.clone());
        blocking(move || read(&root, &id)?.ok_or_else(|| not_found(&id))).await
    }

    /// A volume's directory, held: [`released`](Self::released) waits until it is dropped.
    ///
    /// # Errors
    /// [`VolumeNotFound`](ErrorKind::VolumeNotFound).
    pub async fn directory(&self, id: &VolumeId) -> Result<VolumeDirectory> {
        let path = self.get(id).await?.path;
        Ok(self.held.hold(id, path))
    }

    /// Waits until nobody in this process is at work in a volume's directory, before it is removed.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if somebody still is after ten seconds.
    pub async fn released(&self, id: &VolumeId) -> Result<()> {
        self.held.released(id).await
    }

    /// All volumes that carry the label `key`, with the value `value` where one is given.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub async fn list(&self, key: &str, value: Option<&str>) -> Result<Vec<Volume>> {
        let (root, key, value) = (self.root.clone(), key.to_owned(), value.map(str::to_owned));
        blocking(move || {
            let mut volumes = all(&root)?;
            volumes.retain(|volume| {
                let has = volume.labels.get(&key);
                has.is_some_and(|has| value.as_ref().is_none_or(|value| has == value))
            });
            Ok(volumes)
        })
        .await
    }

    /// Removes a volume with its content; one that is not there is success. Whether a container uses it is the caller's to know.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io); then its id is free, and what is left is cleaned away when a store is opened.
    pub async fn remove(&self, id: &VolumeId) -> Result<()> {
        let (root, id) = (self.root.clone(), id.clone());
        blocking(move || remove(&root, &id).map_err(|error| Error::io(format!("remove the volume {id}"), error))).await
    }

    /// Unpacks a tar into the directory `path` of a volume, as [`Driver::write_volume`](orchestra::Driver::write_volume) says.
    ///
    /// # Errors
    /// [`VolumeNotFound`](ErrorKind::VolumeNotFound), [`PathNotFound`](ErrorKind::PathNotFound),
    /// [`InvalidInput`](ErrorKind::InvalidInput) for what is no tar, or leads out of the volume; an error of `tar` itself.
    pub async fn write(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        directory::write(self.directory(id).await?, path.clone(), tar).await
    }

    /// Packs paths of a volume, as [`Driver::read_volume`](orchestra::Driver::read_volume) says.
    ///
    /// # Errors
    /// [`VolumeNotFound`](ErrorKind::VolumeNotFound); from the stream [`PathNotFound`](ErrorKind::PathNotFound) and
    /// [`Io`](ErrorKind::Io).
    pub async fn read(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        Ok(directory::read(self.directory(id).await?, paths.to_vec()))
    }
}

fn not_found(id: &VolumeId) -> Error {
    Error::new(ErrorKind::VolumeNotFound, format!("there is no volume {id}"))
}

/// Held as long as something has an unfinished name.
fn lock(root: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(root.join(LOCK))
}

fn clean(root: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    let lock = lock(root)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A name that nothing has.
fn unfinished(root: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Processes of other namespaces may have this one's number: the time tells them apart.
    let time = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos());
    root.join(format!("{UNFINISHED}{}-{time}-{count}", std::process::id()))
}

fn create(root: &Path, id: &VolumeId, labels: Labels) -> io::Result<Created> {
    let lock = lock(root)?;
    flock(&lock, FlockOperation::LockShared)?;
    let place = root.join(id.as_str());
    if place.is_dir() {
        return Ok(Created::Existing);
    }
    let new = unfinished(root);
    let made = fill(&new, labels).and_then(
        |()| match renameat_with(CWD, &new, CWD, &place, RenameFlags::NOREPLACE) {
            Ok(()) => sync(root).map(|()| Created::New),
            Err(Errno::EXIST) => Ok(Created::Existing),
            Err(error) => Err(error.into()),
        },
    );
    if !matches!(made, Ok(Created::New)) {
        let _ = fs::remove_dir_all(&new);
    }
    made
}

fn fill(new: &Path, labels: Labels) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(new)?;
    let data = new.join(DATA);
    fs::create_dir(&data)?;
    // As other engines' new volumes are, whatever this process's umask is.
    fs::set_permissions(&data, Permissions::from_mode(0o755))?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(new.join(METADATA))?;
    file.write_all(&serde_json::to_vec(&Metadata { labels })?)?;
    file.sync_all()?;
    sync(new)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn read(root: &Path, id: &VolumeId) -> Result<Option<Volume>> {
    let place = root.join(id.as_str());
    let path = place.join(METADATA);
    let content = match fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
    };
    let metadata: Metadata = serde_json::from_slice(&content).map_err(|error| {
        Error::new(
            ErrorKind::Protocol,
            format!("{} is not what a volume has: {error}", path.display()),
        )
        .with_source(error)
    })?;
    Ok(Some(Volume {
        id: id.clone(),
        labels: metadata.labels,
        path: place.join(DATA),
    }))
}

fn all(root: &Path) -> Result<Vec<Volume>> {
    let failed = |error| Error::io(format!("list the volumes in {}", root.display()), error);
    let mut volumes = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(Ok(id)) = name.to_str().map(VolumeId::new) {
            volumes.extend(read(root, &id)?);
        }
    }
    Ok(volumes)
}

fn remove(root: &Path, id: &VolumeId) -> io::Result<()> {
    let lock = lock(root)?;
    flock(&lock, FlockOperation::LockShared)?;
    let old = unfinished(root);
    match fs::rename(root.join(id.as_str()), &old) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    sync(root)?;
    fs::remove_dir_all(old)
}
