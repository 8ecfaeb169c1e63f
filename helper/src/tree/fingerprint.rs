//! Whether a tree is what it was.

use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::pack::Levels;
use super::sys::{self, Resolve};
use super::{Result, TreeError, open_root};

/// What a tree is, without a look at what is in its files: 32 hexadecimal digits, for this program to compare with.
///
/// It is made of each file's name, inode, kind, mode, size and time of change (`ctime`), which the kernel sets whenever
/// anything of a file changes and which no one can set. Two of one tree are the same if nothing in it was made, removed,
/// renamed or changed between them. The root's own owner, mode and time don't count: they are no part of what
/// [`pack`](super::pack) writes, and engines change them when they mount a volume.
///
/// # Errors
/// [`TreeError::NotFound`] if `root` is no directory, [`TreeError::Io`] for what can't be listed, and for what is removed
/// meanwhile.
pub fn fingerprint(root: &Path) -> Result<String> {
    let mut hashers = [DefaultHasher::new(), DefaultHasher::new()];
    // One has 64 bits.
    hashers[1].write_u8(1);
    let root = open_root(root)?;
    let top = root.try_clone().map_err(TreeError::io("open", b"the tree"))?;
    let mut levels = Levels::new(&root, top, b"")?;
    let mut path = Vec::new();
    while let Some((parent, name, _)) = levels.next(&mut path)? {
        let failed = || TreeError::io("look at", &path);
        let (flags, resolve) = (sys::PATH | sys::NOFOLLOW, Resolve::NoSymlinks);
        let file: File = sys::open(parent, &name, flags, 0, resolve).map_err(failed())?;
        let metadata = file.metadata().map_err(failed())?;
        hashers.iter_mut().for_each(|hasher| note(hasher, &path, &metadata));
        if metadata.is_dir() {
            levels.enter(file, &path)?;
        }
    }
    Ok(hashers.map(|hasher| format!("{:016x}", hasher.finish())).concat())
}

fn note(hasher: &mut DefaultHasher, path: &[u8], metadata: &Metadata) {
    hasher.write_usize(path.len());
    hasher.write(path);
    hasher.write_u64(metadata.ino());
    hasher.write_u32(metadata.mode());
    hasher.write_u64(metadata.len());
    hasher.write_i64(metadata.ctime());
    hasher.write_i64(metadata.ctime_nsec());
}
