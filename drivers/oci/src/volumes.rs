//! Volumes as directories.

use std::path::{Path, PathBuf};

use orchestra::{ByteStream, Created, Labels, Result, VolumeId, VolumePath, VolumeSpec};

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

/// Volumes below one root.
#[derive(Clone, Debug)]
pub struct VolumeStore {}

impl VolumeStore {
    /// Volumes below `root`, which is made if it is missing. What a crash has left half made or half removed is cleaned up.
    ///
    /// # Errors
    /// [`Io`](orchestra::ErrorKind::Io).
    pub async fn open(root: impl AsRef<Path>) -> Result<Self> {
        let _ = root.as_ref();
        todo!()
    }

    /// Makes an empty volume; one that is there stays as it is.
    ///
    /// # Errors
    /// [`Io`](orchestra::ErrorKind::Io).
    pub async fn create(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        let _ = (id, spec);
        todo!()
    }

    /// A volume.
    ///
    /// # Errors
    /// [`VolumeNotFound`](orchestra::ErrorKind::VolumeNotFound).
    pub async fn get(&self, id: &VolumeId) -> Result<Volume> {
        let _ = id;
        todo!()
    }

    /// All volumes that carry the label `key`, with this value where `value` is given.
    ///
    /// # Errors
    /// [`Io`](orchestra::ErrorKind::Io).
    pub async fn list(&self, key: &str, value: Option<&str>) -> Result<Vec<Volume>> {
        let _ = (key, value);
        todo!()
    }

    /// Removes a volume with its content; one that is not there is success. Whether a container uses it is the caller's to know.
    ///
    /// # Errors
    /// [`Io`](orchestra::ErrorKind::Io).
    pub async fn remove(&self, id: &VolumeId) -> Result<()> {
        let _ = id;
        todo!()
    }

    /// Unpacks a tar into the directory `path` of a volume, as [`Driver::write_volume`](orchestra::Driver::write_volume) says.
    ///
    /// # Errors
    /// [`VolumeNotFound`](orchestra::ErrorKind::VolumeNotFound), [`PathNotFound`](orchestra::ErrorKind::PathNotFound).
    pub async fn write(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        let _ = (id, path, tar);
        todo!()
    }

    /// Packs paths of a volume, as [`Driver::read_volume`](orchestra::Driver::read_volume) says.
    ///
    /// # Errors
    /// [`VolumeNotFound`](orchestra::ErrorKind::VolumeNotFound), [`PathNotFound`](orchestra::ErrorKind::PathNotFound).
    pub async fn read(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        let _ = (id, paths);
        todo!()
    }
}
