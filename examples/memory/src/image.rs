//! Images in memory: a tree, a configuration and programs; made here or read from an archive.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use orchestra::{ByteStream, Error, ErrorKind, Platform, Result, stream};
use serde_json::Value;

use super::files::{Files, Inode, Kind, Tree};
use super::process::{MAGIC, Process, Program, Programs};
use super::programs::{APPLETS, busybox};
use crate::tarball::{self, Entry};

/// An image of the memory engine.
///
/// ```
/// use orchestra_memory::MemoryImage;
/// let image = MemoryImage::busybox().with_program("/usr/bin/greet", |process| async move {
///     process.stdout.write("hello\n").await;
///     0
/// });
/// ```
#[derive(Clone)]
pub struct MemoryImage {
    pub(super) tree: Arc<Tree>,
    pub(super) programs: Programs,
    pub(super) config: Config,
    /// Of the platform that its archive says; any where it says none.
    pub(super) platform: Option<Platform>,
}

/// What an image's configuration says of its containers.
#[derive(Clone, Debug, Default)]
pub(super) struct Config {
    pub(super) entrypoint: Vec<String>,
    pub(super) command: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) working_dir: Option<String>,
    pub(super) user: Option<String>,
}

impl fmt::Debug for MemoryImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryImage")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl MemoryImage {
    /// An image with a small shell and the usual small programs.
    #[must_use]
    pub fn busybox() -> Self {
        let mut image = Self::empty();
        image.config.command = vec!["sh".to_owned()];
        for (dir, mode) in [("/bin", 0o755), ("/etc", 0o755), ("/root", 0o700), ("/tmp", 0o1777)] {
            image.add(dir, Inode::new(Kind::Directory, mode, 0, 0));
        }
        image = image.with_program("/bin/busybox", busybox);
        let files = Files::of(image.tree.clone());
        for applet in APPLETS {
            // The names are new and their directory is there: nothing can fail.
            let _ = files.link("/", "/bin/busybox", &format!("/bin/{applet}"));
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n";
        image.add("/etc/passwd", Inode::new(Kind::File(passwd.into()), 0o644, 0, 0));
        image.add(
            "/etc/group",
            Inode::new(Kind::File("root:x:0:\nwww-data:x:33:\n".into()), 0o644, 0, 0),
        );
        image
    }

    /// Adds a program in Rust, as an executable file at `path`.
    #[must_use]
    pub fn with_program<F>(mut self, path: &str, program: impl Fn(Process) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = u8> + Send + 'static,
    {
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        let content: Bytes = [MAGIC, name.as_bytes(), b"\n"].concat().into();
        self.add(path, Inode::new(Kind::File(content), 0o755, 0, 0));
        let program: Program = Arc::new(move |process| Box::pin(program(process)));
        self.programs.insert(name, program);
        self
    }

    fn empty() -> Self {
        let env = BTreeMap::from([("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())]);
        // Busybox runs wherever its file is: an imported image may hold it too.
        let program: Program = Arc::new(|process| Box::pin(busybox(process)));
        Self {
            tree: Arc::default(),
            programs: BTreeMap::from([("busybox".to_owned(), program)]),
            config: Config {
                env,
                ..Config::default()
            },
            platform: None,
        }
    }

    fn add(&self, path: &str, inode: Inode) {
        let files = Files::of(self.tree.clone());
        let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
        // The tree is this image's own and has no links: nothing can fail.
        let _ = files
            .make_dirs("/", parent, 0o755, 0, 0)
            .and_then(|()| files.put("/", path, inode));
    }

    /// Reads an OCI image layout or a docker archive; of a layout of several images the one for `platform`, where it is given.
    pub(super) async fn from_archive(archive: ByteStream, platform: Option<&Platform>) -> Result<Self> {
        let mut parts = BTreeMap::new();
        for entry in tarball::unpack(archive).await? {
            if let tarball::Kind::File(content) = entry.kind {
                parts.insert(entry.path.trim_start_matches("./").to_owned(), content);
            }
        }
        let text = |value: &Value| {
            value
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| Error::invalid("the archive's manifest is not valid"))
        };
        let one = |list: &Value| match list.as_array().map(Vec::as_slice) {
            Some([one]) => Ok(one.clone()),
            Some(many) => Err(Error::invalid(format!(
                "the archive holds {} images; it has to hold one",
                many.len()
            ))),
            None => Err(Error::invalid("the archive's manifest is not valid")),
        };
        let (config, layers) = if parts.contains_key("index.json") {
            let blob = |descriptor: &Value| {
                Ok::<_, Error>(format!("blobs/{}", text(&descriptor["digest"])?.replace(':', "/")))
            };
            let mut index = json(&parts, "index.json")?;
            if let (Some(platform), Some(manifests)) = (platform, index["manifests"].as_array_mut())
                && manifests.len() > 1
            {
                manifests.retain(|manifest| platform_of(&manifest["platform"]).as_ref() == Some(platform));
                if manifests.is_empty() {
                    let message = format!("no image for {platform}");
                    return Err(Error::new(ErrorKind::ImageNotFound, message));
                }
            }
            let manifest = json(&parts, &blob(&one(&index["manifests"])?)?)?;
            let layers = manifest["layers"]
                .as_array()
                .into_iter()
                .flatten()
                .map(blob)
                .collect::<Result<Vec<_>>>()?;
            (json(&parts, &blob(&manifest["config"])?)?, layers)
        } else if parts.contains_key("manifest.json") {
            let manifest = one(&json(&parts, "manifest.json")?)?;
            let layers = manifest["Layers"]
                .as_array()
                .into_iter()
                .flatten()
                .map(text)
                .collect::<Result<Vec<_>>>()?;
            (json(&parts, &text(&manifest["Config"])?)?, layers)
        } else {
            return Err(Error::invalid(
                "the tar is neither an OCI image layout nor a docker archive",
            ));
        };
        let mut image = Self::empty();
        for layer in layers {
            let layer = part(&parts, &layer)?.clone();
            unpack(&Files::of(image.tree.clone()), "/", stream::once(layer)).await?;
        }
        image.platform = platform_of(&config);
        image.config = Config::read(&config["config"], image.config.env);
        Ok(image)
    }
}

impl Config {
    fn read(config: &Value, mut env: BTreeMap<String, String>) -> Self {
        let list = |name: &str| {
            let texts = config[name].as_array().into_iter().flatten().filter_map(Value::as_str);
            texts.map(str::to_owned).collect::<Vec<_>>()
        };
        let text = |name: &str| config[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let pairs = list("Env")
            .into_iter()
            .filter_map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())));
        env.extend(pairs);
        Self {
            entrypoint: list("Entrypoint"),
            command: list("Cmd"),
            env,
            working_dir: text("WorkingDir"),
            user: text("User"),
        }
    }
}

fn platform_of(of: &Value) -> Option<Platform> {
    Some(Platform {
        os: of["os"].as_str()?.to_owned(),
        architecture: of["architecture"].as_str()?.to_owned(),
        variant: of["variant"].as_str().map(str::to_owned),
    })
}

fn part<'a>(parts: &'a BTreeMap<String, Bytes>, name: &str) -> Result<&'a Bytes> {
    parts
        .get(name)
        .ok_or_else(|| Error::invalid(format!("the archive lacks {name}")))
}

fn json(parts: &BTreeMap<String, Bytes>, name: &str) -> Result<Value> {
    serde_json::from_slice(part(parts, name)?)
        .map_err(|error| Error::invalid(format!("the archive's {name} is not valid: {error}")))
}

/// Unpacks a tar at `base`, which must be a directory; nothing outside of `files` can be reached.
pub(super) async fn unpack(files: &Files, base: &str, tar: ByteStream) -> Result<()> {
    match files.stat("/", base, true).map(|inode| inode.kind) {
        Ok(Kind::Directory) => {}
        _ => return Err(Error::new(ErrorKind::PathNotFound, "no such directory").with("path", base)),
    }
    tarball::for_each(tar, |entry| {
        let path = entry.path.clone();
        place(files, base, entry).map_err(|why| Error::invalid(format!("{path} can't be unpacked: {why}")))
    })
    .await
}

fn place(files: &Files, base: &str, entry: Entry) -> Result<(), &'static str> {
    let path = entry.path.trim_start_matches('/');
    if path.split('/').any(|part| part == "..") {
        return Err("it points out of where it is unpacked");
    }
    let path = path.trim_end_matches('/');
    let kind = match entry.kind {
        tarball::Kind::Directory => Kind::Directory,
        tarball::Kind::File(content) => Kind::File(content),
        tarball::Kind::Symlink(target) => Kind::Symlink(target),
        tarball::Kind::Special { kind, major, minor } => Kind::Special { kind, major, minor },
        tarball::Kind::HardLink(target) => return files.link(base, target.trim_start_matches('/'), path),
    };
    if let Some((parent, _)) = path.rsplit_once('/') {
        files.make_dirs(base, parent, 0o755, 0, 0)?;
    }
    let (mode, uid, gid, mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
    if path.is_empty() || path == "." {
        return Ok(());
    }
    files.put(
        base,
        path,
        Inode {
            kind,
            mode,
            uid,
            gid,
            mtime,
            records: entry.records,
        },
    )
}

/// A path and all below it as a tar's entries, named from the root of the tree.
pub(super) fn pack(tree: &Tree, path: &str) -> Vec<Entry> {
    let mut seen: BTreeMap<usize, String> = BTreeMap::new();
    let mut entries = Vec::new();
    for (name, cell) in tree.walk(path).into_iter().filter(|(name, _)| !name.is_empty()) {
        let inode = super::files::lock(&cell).clone();
        let first = seen.entry(Arc::as_ptr(&cell) as usize).or_insert_with(|| name.clone());
        let kind = match inode.kind {
            _ if *first != name => tarball::Kind::HardLink(first.clone()),
            Kind::Directory => tarball::Kind::Directory,
            Kind::File(content) => tarball::Kind::File(content),
            Kind::Symlink(target) => tarball::Kind::Symlink(target),
            Kind::Special { kind, major, minor } => tarball::Kind::Special { kind, major, minor },
        };
        entries.push(Entry {
            path: name,
            kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            records: inode.records,
        });
    }
    entries
}
