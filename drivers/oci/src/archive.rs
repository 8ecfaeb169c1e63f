//! Images from archives: [OCI image layouts](https://github.com/opencontainers/image-spec/blob/main/image-layout.md) and
//! what `docker save` writes, old and new.
//!
//! An archive says at its end, or wherever it likes, what of it belongs to the image. So each member goes into the store
//! as it comes, and is looked up afterwards; only manifests are held back. What the image does not need is left to the
//! store's garbage collection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use oci_spec::image::{Descriptor, Digest, ImageManifest, ImageManifestBuilder, MediaType};
use orchestra::tar::{Member, TarReader, parts};
use orchestra::{ByteStream, Error, ErrorKind, Platform, Result};
use serde::Deserialize;

use crate::content::{self, ContentStore, Digester, Ingest, Labels, MAX_DOCUMENT};
use crate::image::{self, Document, Image, MAX_INDICES};

/// Most that is kept in memory of all manifests and indices.
const MAX_DOCUMENTS: usize = 32 << 20;
/// Most members: an image has at most 127 layers, of which docker's oldest form makes four members each.
const MAX_MEMBERS: usize = 65_536;
/// Links from one to the next; docker's oldest form has one from a layer to one that is the same.
const MAX_LINKS: usize = 8;

/// Brings the one image of an archive into `store`. The archive's own names are ignored. Of several platforms it is the
/// one for `platform`; an image for another platform is taken if it is the only one.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if the archive is neither form or does not hold one image, [`ErrorKind::Unsupported`] for
/// layers that can't be unpacked; the archive's own error, and the store's.
pub async fn import(store: &dyn ContentStore, archive: ByteStream, platform: &Platform) -> Result<Image> {
    let mut found = Found::default();
    let mut tar = TarReader::new(archive, ErrorKind::InvalidInput);
    while let Some(member) = tar.next().await? {
        found.take(store, &mut tar, &member).await?;
    }
    match (&found.docker, &found.index) {
        (Some(list), _) => found.docker_image(store, list).await,
        (None, Some(index)) => found.oci_image(store, index, platform).await,
        (None, None) => Err(Error::invalid(
            "the tar is no image: it has neither index.json (OCI layout) nor manifest.json (docker archive)",
        )),
    }
}

/// What an archive has, by path.
#[derive(Default)]
struct Found {
    /// `manifest.json`: a docker archive, maybe an OCI layout too.
    docker: Option<Bytes>,
    /// `index.json`: an OCI layout.
    index: Option<Bytes>,
    /// Indices and manifests, which are not in the store yet.
    documents: HashMap<String, (Bytes, Document)>,
    held: usize,
    blobs: HashMap<String, Blob>,
    /// Where links point.
    links: HashMap<String, String>,
}

/// A member that is in the store.
struct Blob {
    digest: Digest,
    size: u64,
    packing: Packing,
}

/// What a blob's first bytes say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
    Other(&'static str),
}

impl Packing {
    fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }
}

impl Found {
    async fn take(&mut self, store: &dyn ContentStore, tar: &mut TarReader, member: &Member) -> Result<()> {
        let path = String::from_utf8_lossy(&member.path()).into_owned();
        if self.blobs.len() + self.documents.len() + self.links.len() >= MAX_MEMBERS {
            return Err(Error::invalid(format!(
                "the archive has more than {MAX_MEMBERS} members: it is no image"
            )));
        }
        if let Some(link) = &member.link {
            let base = if member.is_hard_link() {
                ""
            } else {
                path.rsplit_once('/').map_or("", |(folder, _)| folder)
            };
            let target = normal(base, &String::from_utf8_lossy(link));
            self.links.insert(path, target);
            return Ok(());
        }
        if !member.is_file() {
            return Ok(());
        }
        match path.as_str() {
            "manifest.json" => self.docker = Some(Content::new(tar, member).whole().await?),
            "index.json" => self.index = Some(Content::new(tar, member).whole().await?),
            "oci-layout" | "repositories" => {}
            // Of docker's oldest form, where each layer was an image.
            old if old.ends_with("/json") || old.ends_with("/VERSION") => {}
            _ => self.blob(store, path, Content::new(tar, member)).await?,
        }
        Ok(())
    }

    async fn blob(&mut self, store: &dyn ContentStore, path: String, mut content: Content<'_>) -> Result<()> {
        let known = digest_of(&path);
        let mut first = content.next().await?.unwrap_or_default();
        if known.is_some() && content.size <= MAX_DOCUMENT && first.first() == Some(&b'{') {
            first = content.rest(first).await?;
            // An image's configuration is none; nor are a builder's other records.
            if let Ok(document) = Document::parse(&first) {
                self.held += first.len();
                if self.held > MAX_DOCUMENTS {
                    return Err(Error::invalid(
                        "the archive's manifests are larger than 32 MiB together",
                    ));
                }
                self.documents.insert(path, (first, document));
                return Ok(());
            }
        }
        let (size, packing) = (content.size, Packing::of(&first));
        let (reference, expected) = match &known {
            Some(digest) => (content::reference(digest), Some((digest, size))),
            None => (unique(), None),
        };
        let digest = match (store.ingest(&reference, expected).await?, known) {
            (None, Some(digest)) => digest,
            (None, None) => {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    "the store knows a blob that it was not told of",
                ));
            }
            (Some(ingest), _) => write(ingest, first, &mut content).await?,
        };
        self.blobs.insert(path, Blob { digest, size, packing });
        Ok(())
    }

    async fn oci_image(&self, store: &dyn ContentStore, index: &Bytes, platform: &Platform) -> Result<Image> {
        let unreadable = |error: Error| Error::invalid(format!("index.json of the archive: {}", error.message()));
        let Document::Index(index) = Document::parse(index).map_err(unreadable)? else {
            return Err(Error::invalid("index.json of the archive is no index"));
        };
        let mut candidates = index.manifests();
        for _ in 0..=MAX_INDICES {
            let chosen = choose(candidates, platform)?;
            let path = path_of(chosen.digest());
            let Some((content, document)) = self.documents.get(&path) else {
                return Err(Error::invalid(format!(
                    "the archive lacks {path}, or it is no manifest"
                )));
            };
            match document {
                Document::Index(index) => candidates = index.manifests(),
                Document::Manifest(manifest) => {
                    let mut digester = Digester::new(chosen.digest().algorithm())?;
                    digester.update(content);
                    if digester.finish() != *chosen.digest() {
                        return Err(content::differs(chosen.digest()));
                    }
                    for part in manifest.layers().iter().chain([manifest.config()]) {
                        let path = path_of(part.digest());
                        let size = self.blobs.get(&path).map(|blob| blob.size);
                        if size.ok_or_else(|| lacks(&path))? != part.size() {
                            return Err(Error::invalid(format!(
                                "{path} of the archive is not as long as its manifest says"
                            )));
                        }
                    }
                    let kind = manifest.media_type().clone().unwrap_or(MediaType::ImageManifest);
                    let descriptor = Descriptor::new(kind, content.len() as u64, chosen.digest().clone());
                    return keep(store, descriptor, content.clone(), manifest).await;
                }
            }
        }
        Err(Error::invalid("the archive's indices are nested too deeply"))
    }

    /// A docker archive has no manifest: one is made for it.
    async fn docker_image(&self, store: &dyn ContentStore, list: &[u8]) -> Result<Image> {
        let images: Vec<DockerImage> = serde_json::from_slice(list)
            .map_err(|error| Error::invalid(format!("manifest.json of the archive can't be read: {error}")))?;
        let [image] = &images[..] else {
            return Err(several(images.len()));
        };
        let part = |path: &str| self.find(path).ok_or_else(|| lacks(path));
        let config = part(&image.config)?;
        let config = Descriptor::new(MediaType::ImageConfig, config.size, config.digest.clone());
        let mut layers = Vec::new();
        for path in image.layers.iter().flatten() {
            let layer = part(path)?;
            let kind = match layer.packing {
                Packing::None => MediaType::ImageLayer,
                Packing::Gzip => MediaType::ImageLayerGzip,
                Packing::Zstd => MediaType::ImageLayerZstd,
                Packing::Other(name) => {
                    let message = format!("the layer {path} of the archive is compressed by {name}");
                    let hint = "only gzip and zstd can be unpacked";
                    return Err(Error::new(ErrorKind::Unsupported, message).with_hint(hint));
                }
            };
            layers.push(Descriptor::new(kind, layer.size, layer.digest.clone()));
        }
        let unmade =
            |error: &dyn std::fmt::Display| Error::invalid(format!("the image's manifest can't be made: {error}"));
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .build()
            .map_err(|error| unmade(&error))?;
        let content = Bytes::from(serde_json::to_vec(&manifest).map_err(|error| unmade(&error))?);
        let digest = content::sha256(&content);
        let descriptor = Descriptor::new(MediaType::ImageManifest, content.len() as u64, digest);
        keep(store, descriptor, content, &manifest).await
    }

    /// The blob at a path, or where the links from there lead.
    fn find(&self, path: &str) -> Option<&Blob> {
        let mut path = normal("", path);
        for _ in 0..MAX_LINKS {
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => break,
            }
        }
        self.blobs.get(&path)
    }
}

/// Puts the manifest into the store, when all that it names is there, and loads the image.
async fn keep(
    store: &dyn ContentStore,
    descriptor: Descriptor,
    content: Bytes,
    manifest: &ImageManifest,
) -> Result<Image> {
    image::check(manifest)?;
    let config = content::document(store, manifest.config()).await?;
    let image = Image::new(descriptor, manifest, &config)?;
    let mut children = vec![image.config_descriptor.clone()];
    children.extend(image.layers.iter().cloned());
    content::put(store, &image.manifest, content, &children).await?;
    Ok(image)
}

async fn write(mut ingest: Box<dyn Ingest>, first: Bytes, content: &mut Content<'_>) -> Result<Digest> {
    let mut known = ingest.offset();
    let mut next = Some(first);
    while let Some(mut piece) = next {
        let skip = usize::try_from(known).unwrap_or(usize::MAX).min(piece.len());
        known -= skip as u64;
        let piece = piece.split_off(skip);
        if !piece.is_empty() {
            ingest.write(piece).await?;
        }
        next = content.next().await?;
    }
    Ok(ingest.commit(Labels::new()).await?.0)
}

/// The one manifest that is meant: the only one, or the only one for the platform.
fn choose<'a>(candidates: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor> {
    let images = image::images(candidates);
    let all_say = images.iter().all(|one| one.platform().is_some());
    let meant = if images.len() > 1 && all_say {
        image::nearest(&images, platform)
    } else {
        images.clone()
    };
    match meant[..] {
        [one] => Ok(one),
        [] if images.is_empty() => Err(Error::invalid(format!("the archive holds no image for {platform}"))),
        [] => {
            let others = image::platforms(&images);
            Err(Error::invalid(format!(
                "the archive holds no image for {platform}, but for: {others}"
            )))
        }
        _ => Err(several(meant.len())),
    }
}

fn several(count: usize) -> Error {
    Error::invalid(format!("the archive holds {count} images; it must hold one"))
}

fn lacks(path: &str) -> Error {
    Error::invalid(format!("the archive's manifest names {path}, which the archive lacks"))
}

/// The content of a member, without the filling after it.
struct Content<'a> {
    tar: &'a mut TarReader,
    name: String,
    size: u64,
    left: u64,
}

impl<'a> Content<'a> {
    fn new(tar: &'a mut TarReader, member: &Member) -> Self {
        let name = String::from_utf8_lossy(&member.name).into_owned();
        Self {
            tar,
            name,
            size: member.size,
            left: member.size,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(mut piece) = self.tar.content().await? else {
            return Ok(None);
        };
        piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= piece.len() as u64;
        Ok(Some(piece))
    }

    /// What is left of a small member, after `first`.
    async fn rest(&mut self, first: Bytes) -> Result<Bytes> {
        if self.left == 0 {
            return Ok(first);
        }
        let mut whole = BytesMut::from(first);
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    async fn whole(&mut self) -> Result<Bytes> {
        if self.size > MAX_DOCUMENT {
            return Err(Error::invalid(format!(
                "{} of the archive is larger than 4 MiB",
                self.name
            )));
        }
        self.rest(Bytes::new()).await
    }
}

/// An entry of a docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    /// Go writes a list that is empty as `null`.
    layers: Option<Vec<String>>,
}

/// A path in the archive, from its root: `target`, seen from the folder `base`.
fn normal(base: &str, target: &str) -> String {
    let base = if target.starts_with('/') { "" } else { base };
    let mut path: Vec<&[u8]> = Vec::new();
    for part in parts(base.as_bytes()).chain(parts(target.as_bytes())) {
        if part == b".." {
            path.pop();
        } else {
            path.push(part);
        }
    }
    String::from_utf8_lossy(&path.join(&b'/')).into_owned()
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// The digest that a layout's path says, if it can be verified.
fn digest_of(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    let digest = Digest::try_from(format!("{algorithm}:{hex}")).ok()?;
    Digester::new(digest.algorithm()).is_ok().then_some(digest)
}

/// A name for a blob that has none yet.
fn unique() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos());
    format!("orchestra-import-{}-{time}-{number}", std::process::id())
}
