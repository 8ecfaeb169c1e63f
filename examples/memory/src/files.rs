//! File systems in memory: a [`Tree`] is one (an image's, a volume's), [`Files`] is what a process sees of several.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Follows at most this many symbolic links, as Linux does.
const MAX_LINKS: usize = 40;

/// What a file is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Directory,
    File(Bytes),
    Symlink(String),
    /// A fifo or a device, of a tar's type; nothing opens it.
    Special {
        kind: u8,
        major: u32,
        minor: u32,
    },
}

/// What `stat` tells, and the content.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: u64,
    /// What a tar's extended header said, as it was: attributes, parts of seconds, a sparse file's map.
    pub(super) records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Inode {
    pub(super) fn new(kind: Kind, mode: u32, uid: u64, gid: u64) -> Self {
        Self {
            kind,
            mode,
            uid,
            gid,
            mtime: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |age| age.as_secs()),
            records: BTreeMap::new(),
        }
    }
}

/// A hard link is a second name of the same cell.
pub(super) type Cell = Arc<Mutex<Inode>>;

/// A lock is never held across a panic that matters: the state behind it is whole after each statement.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One file system: names without a leading slash, `""` being the root.
#[derive(Debug)]
pub(super) struct Tree(Mutex<BTreeMap<String, Cell>>);

impl Default for Tree {
    fn default() -> Self {
        let root = Inode::new(Kind::Directory, 0o755, 0, 0);
        Self(Mutex::new(BTreeMap::from([(
            String::new(),
            Arc::new(Mutex::new(root)),
        )])))
    }
}

impl Tree {
    /// A copy that shares nothing but the bytes of files; hard links stay hard links.
    pub(super) fn copy(&self) -> Self {
        let mut copies: BTreeMap<usize, Cell> = BTreeMap::new();
        let entries = lock(&self.0);
        let copied = entries.iter().map(|(name, cell)| {
            let copy = copies
                .entry(Arc::as_ptr(cell) as usize)
                .or_insert_with(|| Arc::new(Mutex::new(lock(cell).clone())));
            (name.clone(), copy.clone())
        });
        Self(Mutex::new(copied.collect()))
    }

    fn get(&self, name: &str) -> Option<Cell> {
        lock(&self.0).get(name).cloned()
    }

    /// `name` and all below it, in the order of a tar: parents first.
    pub(super) fn walk(&self, name: &str) -> Vec<(String, Cell)> {
        let below = |other: &str| name.is_empty() || other == name || other.starts_with(&format!("{name}/"));
        lock(&self.0)
            .range(name.to_owned()..)
            .take_while(|(other, _)| other.starts_with(name))
            .filter(|(other, _)| below(other))
            .map(|(other, cell)| (other.clone(), cell.clone()))
            .collect()
    }
}

/// Why a file operation failed, in the C library's words.
pub(super) type Errno = &'static str;
pub(super) const NOT_FOUND: Errno = "No such file or directory";
const NOT_A_DIRECTORY: Errno = "Not a directory";
const IS_A_DIRECTORY: Errno = "Is a directory";
const READ_ONLY: Errno = "Read-only file system";
const EXISTS: Errno = "File exists";
const NOT_EMPTY: Errno = "Directory not empty";

#[derive(Clone, Debug)]
pub(super) struct MountPoint {
    /// Absolute; `/` for the root.
    pub(super) at: String,
    pub(super) tree: Arc<Tree>,
    pub(super) read_only: bool,
}

/// What a process sees: a root with other trees mounted on it.
#[derive(Clone, Debug)]
pub(super) struct Files(Vec<MountPoint>);

/// A resolved path: a name in one tree.
struct Place {
    tree: Arc<Tree>,
    name: String,
    read_only: bool,
}

impl Place {
    fn cell(&self) -> Option<Cell> {
        self.tree.get(&self.name)
    }
}

impl Files {
    /// One tree alone: nothing outside of it can be reached, whatever a path or a link says.
    pub(super) fn of(tree: Arc<Tree>) -> Self {
        Self(vec![MountPoint {
            at: "/".to_owned(),
            tree,
            read_only: false,
        }])
    }

    /// Mounts, making the mount point.
    pub(super) fn mount(&mut self, point: MountPoint) -> Result<(), Errno> {
        self.make_dirs("/", &point.at, 0o755, 0, 0)?;
        self.0.push(point);
        // The longest prefix is found first.
        self.0.sort_by_key(|point| std::cmp::Reverse(point.at.len()));
        Ok(())
    }

    fn place(&self, parts: &[String]) -> Place {
        let path = format!("/{}", parts.join("/"));
        for point in &self.0 {
            let rest = path.strip_prefix(point.at.trim_end_matches('/'));
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                return Place {
                    tree: point.tree.clone(),
                    name: rest.trim_start_matches('/').to_owned(),
                    read_only: point.read_only,
                };
            }
        }
        unreachable!("`/` is a prefix of every path")
    }

    /// Follows `path` from `cwd`, `..` and symbolic links included; the last link only if `follow`.
    fn resolve(&self, cwd: &str, path: &str, follow: bool) -> Result<Place, Errno> {
        let from = if path.starts_with('/') { "" } else { cwd };
        let split = |path: &str| {
            let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
            parts.map(str::to_owned).collect::<Vec<_>>()
        };
        let mut queue: VecDeque<String> = split(from).into_iter().chain(split(path)).collect();
        let (mut stack, mut links) = (Vec::<String>::new(), 0);
        while let Some(part) = queue.pop_front() {
            if part == ".." {
                stack.pop();
                continue;
            }
            stack.push(part);
            let Some(cell) = self.place(&stack).cell() else {
                continue;
            };
            match &lock(&cell).kind {
                Kind::Symlink(target) if follow || !queue.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err("Too many levels of symbolic links");
                    }
                    stack.pop();
                    if target.starts_with('/') {
                        stack.clear();
                    }
                    for part in split(target).into_iter().rev() {
                        queue.push_front(part);
                    }
                }
                Kind::File(_) if !queue.is_empty() => return Err(NOT_A_DIRECTORY),
                _ => {}
            }
        }
        Ok(self.place(&stack))
    }

    pub(super) fn stat(&self, cwd: &str, path: &str, follow: bool) -> Result<Inode, Errno> {
        let cell = self.resolve(cwd, path, follow)?.cell().ok_or(NOT_FOUND)?;
        let inode = lock(&cell).clone();
        Ok(inode)
    }

    pub(super) fn read(&self, cwd: &str, path: &str) -> Result<Bytes, Errno> {
        match self.stat(cwd, path, true)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Directory => Err(IS_A_DIRECTORY),
            Kind::Symlink(_) | Kind::Special { .. } => Err(NOT_FOUND),
        }
    }

    /// The names in a directory.
    pub(super) fn list(&self, cwd: &str, path: &str) -> Result<Vec<String>, Errno> {
        let place = self.resolve(cwd, path, true)?;
        match lock(&*place.cell().ok_or(NOT_FOUND)?).kind {
            Kind::Directory => {}
            _ => return Err(NOT_A_DIRECTORY),
        }
        let prefix = if place.name.is_empty() {
            String::new()
        } else {
            format!("{}/", place.name)
        };
        let names = place.tree.walk(&place.name).into_iter().filter_map(|(name, _)| {
            let rest = name.strip_prefix(&prefix)?;
            (!rest.is_empty() && !rest.contains('/')).then(|| rest.to_owned())
        });
        Ok(names.collect())
    }

    /// Checks that a name may be put there.
    fn writable(&self, cwd: &str, path: &str, follow: bool) -> Result<Place, Errno> {
        let place = self.resolve(cwd, path, follow)?;
        if place.read_only {
            return Err(READ_ONLY);
        }
        let parent = place.name.rsplit_once('/').map_or("", |(parent, _)| parent);
        match place.tree.get(parent).map(|cell| lock(&cell).kind.clone()) {
            Some(Kind::Directory) => Ok(place),
            Some(_) => Err(NOT_A_DIRECTORY),
            None => Err(NOT_FOUND),
        }
    }

    /// Writes into a file that exists, or makes one.
    pub(super) fn write(
        &self,
        cwd: &str,
        path: &str,
        content: Bytes,
        append: bool,
        owner: (u64, u64),
    ) -> Result<(), Errno> {
        let place = self.writable(cwd, path, true)?;
        let Some(cell) = place.cell() else {
            return self.put(cwd, path, Inode::new(Kind::File(content), 0o644, owner.0, owner.1));
        };
        let mut inode = lock(&cell);
        let Kind::File(old) = &inode.kind else {
            return Err(IS_A_DIRECTORY);
        };
        inode.kind = Kind::File(match append {
            true => [old.as_ref(), content.as_ref()].concat().into(),
            false => content,
        });
        Ok(())
    }

    /// Puts an inode under a name in place of what was there; a directory takes over what is in the old one.
    pub(super) fn put(&self, cwd: &str, path: &str, inode: Inode) -> Result<(), Errno> {
        let place = self.writable(cwd, path, false)?;
        if !matches!(inode.kind, Kind::Directory) {
            self.remove_place(&place, true)?;
        }
        lock(&place.tree.0).insert(place.name, Arc::new(Mutex::new(inode)));
        Ok(())
    }

    pub(super) fn link(&self, cwd: &str, from: &str, to: &str) -> Result<(), Errno> {
        let cell = self.resolve(cwd, from, false)?.cell().ok_or(NOT_FOUND)?;
        let place = self.writable(cwd, to, false)?;
        lock(&place.tree.0).insert(place.name, cell);
        Ok(())
    }

    pub(super) fn make_dir(&self, cwd: &str, path: &str, mode: u32, uid: u64, gid: u64) -> Result<(), Errno> {
        if self.resolve(cwd, path, true)?.cell().is_some() {
            return Err(EXISTS);
        }
        self.put(cwd, path, Inode::new(Kind::Directory, mode, uid, gid))
    }

    /// Makes a directory and those above it that are missing.
    pub(super) fn make_dirs(&self, cwd: &str, path: &str, mode: u32, uid: u64, gid: u64) -> Result<(), Errno> {
        let mut so_far = if path.starts_with('/') {
            String::new()
        } else {
            cwd.trim_end_matches('/').to_owned()
        };
        for part in path.split('/').filter(|part| !part.is_empty()) {
            so_far = format!("{so_far}/{part}");
            match self.stat("/", &so_far, true) {
                Ok(Inode {
                    kind: Kind::Directory, ..
                }) => {}
                Ok(_) => return Err(NOT_A_DIRECTORY),
                Err(_) => self.make_dir("/", &so_far, mode, uid, gid)?,
            }
        }
        Ok(())
    }

    pub(super) fn remove(&self, cwd: &str, path: &str, recursive: bool) -> Result<(), Errno> {
        let place = self.writable(cwd, path, false)?;
        place.cell().ok_or(NOT_FOUND)?;
        if place.name.is_empty() {
            return Err("Device or resource busy");
        }
        self.remove_place(&place, recursive)
    }

    fn remove_place(&self, place: &Place, recursive: bool) -> Result<(), Errno> {
        let names = place.tree.walk(&place.name);
        if names.len() > 1 && !recursive {
            return Err(NOT_EMPTY);
        }
        let mut entries = lock(&place.tree.0);
        for (name, _) in names {
            entries.remove(&name);
        }
        Ok(())
    }

    /// Changes what `stat` tells of a file.
    pub(super) fn change(&self, cwd: &str, path: &str, change: impl FnOnce(&mut Inode)) -> Result<(), Errno> {
        let place = self.resolve(cwd, path, true)?;
        if place.read_only {
            return Err(READ_ONLY);
        }
        change(&mut lock(&*place.cell().ok_or(NOT_FOUND)?));
        Ok(())
    }
}
