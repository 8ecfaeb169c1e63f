//! The two halves of a cache's way: a tar, and the store.

use std::path::Path;

use orchestra::{ByteStream, VolumePath};
use orchestra_caches::{CacheKey, Persist, Persisted, Store, StoreOptions};
use orchestra_volumes::directory;
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

/// From a tar to the store. Devices are kept: the state of BuildKit has them.
pub(super) async fn persist_content(store: &Store, content: ByteStream) -> Outcome<Persisted> {
    let mut options = Persist::default();
    options.devices = true;
    Ok(store.persist(&key()?, content, options).await?)
}

pub(super) async fn content(store: &Store) -> Outcome<ByteStream> {
    let entry = store.get(&key()?).await?.ok_or("the cache is not there")?;
    Ok(store.restore(&entry).await?.content)
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
