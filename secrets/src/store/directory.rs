//! A directory with a file for each secret, as an orchestrator mounts one.

use std::io::{ErrorKind as Io, Read};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use orchestra::{Error, ErrorKind, Result};

use super::{Listed, SecretStore, read_only};
use crate::{Scope, SecretKey, SecretValue};

/// Reads secrets from files: the key is the path in the directory. They are global, and byte-exact.
#[derive(Clone, Debug)]
pub struct DirectoryStore(PathBuf);

impl DirectoryStore {
    /// Of this directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }
}

/// Reads a file of at most [`SecretValue::MAX`] bytes.
pub(crate) fn read(path: &Path) -> Result<Option<SecretValue>> {
    let failed = |error: std::io::Error| match error.kind() {
        Io::PermissionDenied => Error::new(
            ErrorKind::PermissionDenied,
            format!("the secret's file {} may not be read", path.display()),
        )
        .with_hint("check the permissions of the file and of the directories above it"),
        _ => Error::io(format!("read the secret's file {}", path.display()), error),
    };
    let file = match std::fs::File::open(path) {
        Err(error) if matches!(error.kind(), Io::NotFound | Io::NotADirectory) => return Ok(None),
        file => file.map_err(failed)?,
    };
    if file.metadata().map_err(failed)?.is_dir() {
        return Ok(None);
    }
    // Read to one byte more than allowed, and never into memory that grows: what a growing vector leaves is not zeroed.
    let mut bytes = Vec::with_capacity(SecretValue::MAX + 1);
    file.take(SecretValue::MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let value = SecretValue::new(bytes);
    if value.expose().is_empty() {
        return Ok(None);
    }
    value.check(path.display())?;
    Ok(Some(value))
}

fn list(root: &Path, below: &Path, listed: &mut Vec<Listed>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        // Through links: an orchestrator mounts secrets as links into a directory of the current version.
        let Ok(meta) = std::fs::metadata(entry.path()) else {
            continue;
        };
        let Some(Ok(key)) = path.to_str().map(SecretKey::new) else {
            continue;
        };
        if meta.is_dir() {
            list(root, &path, listed)?;
        } else {
            listed.push(Listed {
                scope: Scope::Global,
                key,
                updated: meta.modified().ok(),
            });
        }
    }
    Ok(())
}

#[async_trait]
impl SecretStore for DirectoryStore {
    async fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>> {
        if *scope != Scope::Global {
            return Ok(None);
        }
        let path = self.0.join(key.as_str());
        super::sqlite::blocking(move || read(&path)).await
    }

    async fn set(&self, _: &Scope, _: &SecretKey, _: &SecretValue) -> Result<()> {
        Err(read_only(&format!("the directory {}", self.0.display())))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let root = self.0.clone();
        super::sqlite::blocking(move || {
            let mut listed = Vec::new();
            list(&root, Path::new(""), &mut listed)
                .map_err(|error| Error::io(format!("list the secrets in {}", root.display()), error))?;
            listed.sort();
            Ok(listed)
        })
        .await
    }

    async fn remove(&self, _: &Scope, _: &SecretKey) -> Result<bool> {
        Err(read_only(&format!("the directory {}", self.0.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_a_secret_to_the_byte_and_links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("..data/team")).unwrap();
        std::fs::write(dir.path().join("..data/team/key"), b"a\nb\n\0").unwrap();
        std::os::unix::fs::symlink("..data/team", dir.path().join("team")).unwrap();
        std::fs::write(dir.path().join("large"), vec![b'x'; SecretValue::MAX + 1]).unwrap();
        let store = DirectoryStore::new(dir.path());
        let get = async |key: &str| store.get(&Scope::Global, &SecretKey::new(key).unwrap()).await;
        assert_eq!(get("team/key").await.unwrap().unwrap().expose(), b"a\nb\n\0");
        assert!(get("team").await.unwrap().is_none(), "a directory is no secret");
        assert!(get("team/key/deeper").await.unwrap().is_none());
        assert!(get("large").await.unwrap_err().message().contains("1048577 bytes"));
        let keys: Vec<String> = store
            .list()
            .await
            .unwrap()
            .iter()
            .map(|listed| listed.key.to_string())
            .collect();
        assert_eq!(keys, ["large", "team/key"]);
    }
}
