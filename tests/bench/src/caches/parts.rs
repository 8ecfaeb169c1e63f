//! The two halves of a cache's way: a tar, and the store.

use std::path::Path;
use std::process::Stdio;

use futures_util::TryStreamExt;
use orchestra::ByteStream;
use orchestra::stream::from_reader;
use orchestra_caches::{CacheKey, Persist, Persisted, Store, StoreOptions};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

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

/// What `tar` reads of a directory.
pub(super) fn tar_of(tree: &Path) -> Outcome<(ByteStream, Child)> {
    let mut child = Command::new("tar")
        .args(EXACT)
        .args(["--sparse", "--sort=name", "-C"])
        .arg(tree)
        .args(["-cf", "-", "."])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or("tar has no output")?;
    Ok((from_reader(stdout, "read tar"), child))
}

/// From a directory to the store. Devices are kept: the state of BuildKit has them.
pub(super) async fn persist(store: &Store, tree: &Path) -> Outcome<Persisted> {
    let (content, mut child) = tar_of(tree)?;
    let persisted = persist_content(store, content).await?;
    succeeded(child.wait().await?)?;
    Ok(persisted)
}

pub(super) async fn persist_content(store: &Store, content: ByteStream) -> Outcome<Persisted> {
    let mut options = Persist::default();
    options.devices = true;
    Ok(store.persist(&key()?, content, options).await?)
}

pub(super) async fn content(store: &Store) -> Outcome<ByteStream> {
    let entry = store.get(&key()?).await?.ok_or("the cache is not there")?;
    Ok(store.restore(&entry).await?.content)
}

/// From the store to a directory.
pub(super) async fn restore(store: &Store, into: &Path) -> Outcome<()> {
    std::fs::create_dir_all(into)?;
    let mut content = content(store).await?;
    let mut child = Command::new("tar")
        .args(EXACT)
        .arg("-C")
        .arg(into)
        .args(["-xpf", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("tar has no input")?;
    while let Some(piece) = content.try_next().await? {
        stdin.write_all(&piece).await?;
    }
    drop(stdin);
    succeeded(child.wait().await?)
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
