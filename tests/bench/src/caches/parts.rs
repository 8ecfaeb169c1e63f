//! The two halves of a cache's way: a tar, and the store.

use std::path::Path;

use orchestra::{ByteStream, VolumeId, VolumePath};
use orchestra_caches::{CacheKey, CacheSpec, Persist, Persisted, Store, StoreOptions};
use orchestra_volumes::{ExactVolumes, directory};
use tokio::process::Command;

use crate::Outcome;

/// What GNU tar needs to read and write all that a cache keeps.
pub(super) const EXACT: [&str; 5] = [
    "--format=posix",
    "--pax-option=delete=atime,delete=ctime",
    "--xattrs",
    "--xattrs-include=*",
    "--numeric-owner",
];

pub(super) fn key() -> Outcome<CacheKey> {
    Ok("bench/cache".parse()?)
}

/// What makes a volume the cache, devices included: the state of BuildKit has them.
pub(super) fn label() -> Outcome<(String, String)> {
    let mut spec = CacheSpec::new(key()?);
    spec.devices = true;
    Ok(spec.label())
}

pub(super) fn store_in(folder: &Path) -> Outcome<Store> {
    let mut options = StoreOptions::default();
    options.url = format!("file://{}", folder.display());
    Ok(Store::open(&options)?)
}

/// Removes a folder, if it is there.
pub(super) fn fresh(folder: &Path) -> Outcome<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
    tokio::task::spawn_blocking(work).await?
}

/// A directory as a tar.
pub(super) fn tar_of(tree: &Path) -> ByteStream {
    directory::read(tree.to_owned(), vec![VolumePath::root()])
}

/// From a volume to a store that has nothing of it, as the layer does it.
pub(super) async fn persist_volume(folder: &Path, volumes: &ExactVolumes, volume: &VolumeId) -> Outcome<Persisted> {
    let (store, root, mut options) = (store_in(folder)?, [VolumePath::root()], Persist::default());
    options.devices = true;
    Ok(match volumes.tree(volume).await? {
        Some(tree) => {
            store
                .persist_parts(&key()?, tree.read(&root, None, true), options)
                .await?
        }
        None => {
            store
                .persist(&key()?, volumes.read(volume, &root).await?, options)
                .await?
        }
    })
}

fn succeeded(status: std::process::ExitStatus) -> Outcome<()> {
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string().into())
    }
}

pub(super) async fn shell(script: String) -> Outcome<()> {
    succeeded(
        Command::new("bash")
            .args(["-o", "pipefail", "-ec", &script])
            .status()
            .await?,
    )
}
