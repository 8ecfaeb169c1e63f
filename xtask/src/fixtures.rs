//! The ignored folder `.fixtures`, which keeps what is slow to make.
//!
//! A fixture's name carries the versions of all that it is made from, so that one is never stale: a new
//! version is another fixture.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::term;

/// The root of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// `.fixtures` itself, made when missing. Its path has no symbolic links, so that it can be found in mount tables.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = repository().join(".fixtures");
    fs::create_dir_all(&folder)
        .and_then(|()| folder.canonicalize())
        .with_context(|| format!("cannot create {}", folder.display()))
}

/// The fixture of this name (a file or a folder), made by `make` at the path it is given when it is missing.
///
/// Two xtasks that need the same one at once make it once; one that is killed halfway leaves nothing that
/// a later one would take for whole.
pub(crate) fn get(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = folder()?;
    let fixture = folder.join(name);
    if fixture.exists() {
        return Ok(fixture);
    }
    let lock = File::create(folder.join(format!("{name}.lock")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if fixture.exists() {
        return Ok(fixture);
    }
    // Of our own name: what an xtask was making when it was killed may still be at work.
    let partial = folder.join(format!("{name}.partial-{}", std::process::id()));
    remove(&partial)?;
    let made = term::step(&format!("make {name}"), || make(&partial)).with_context(|| format!("cannot make {name}"));
    if let Err(error) = made {
        remove(&partial)?;
        return Err(error);
    }
    fs::rename(&partial, &fixture)?;
    Ok(fixture)
}

/// Removes a file or folder if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// A short key for content: the first 12 digits of its SHA-256.
pub(crate) fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())[..12].to_owned()
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_parts_apart() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_eq!(key(&[b"ab"]), key(&[b"ab"]));
        assert_eq!(key(&[b"ab"]).len(), 12);
    }
}
