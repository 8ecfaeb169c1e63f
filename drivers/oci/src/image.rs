//! An image in a store: one platform's manifest, with what it names.

use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use orchestra::{Error, ErrorKind, Platform, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::content::{self, ContentStore};

/// Most indices that are followed from one to the next: builders write one level, and a circle has to end.
pub(crate) const MAX_INDICES: usize = 4;
/// Most layers of one image; docker makes 127 at most, and overlay file systems stack 500.
const MAX_LAYERS: usize = 500;

/// One platform's image. Its name points at the manifest, whatever index that was chosen from: so the name stands for
/// the platform that was pulled.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The manifest's blob.
    pub manifest: Descriptor,
    /// The configuration's blob.
    pub config_descriptor: Descriptor,
    /// Layers, lowest first, as they are packed. One may be there twice.
    pub layers: Vec<Descriptor>,
    /// Digests of the layers' tars, unpacked; as many as layers.
    pub diff_ids: Vec<Digest>,
    /// The configuration.
    pub config: ImageConfiguration,
}

impl Image {
    /// The image that `target` is: a manifest, or an index, of which it is the one for `platform`. Layers need not be in
    /// the store.
    ///
    /// # Errors
    /// [`ErrorKind::ImageNotFound`] if the store lacks the manifest or the configuration, or no platform fits;
    /// [`ErrorKind::InvalidInput`] for what is no image of layers, [`ErrorKind::Unsupported`] for layers that can't be
    /// unpacked; otherwise the store's.
    pub async fn load(store: &dyn ContentStore, target: &Descriptor, platform: &Platform) -> Result<Self> {
        let mut manifest = target.clone();
        for _ in 0..=MAX_INDICES {
            let index = match Document::parse(&content::document(store, &manifest).await?)? {
                Document::Manifest(parsed) => {
                    check(&parsed)?;
                    let config = content::document(store, parsed.config()).await?;
                    return Self::new(manifest, &parsed, &config);
                }
                Document::Index(index) => index,
            };
            let images = images(index.manifests());
            manifest = fitting(&images, platform)
                .ok_or_else(|| lacks(target.digest(), platform, &images))?
                .clone();
        }
        Err(Error::invalid(format!(
            "the indices of {} are nested too deeply",
            target.digest()
        )))
    }

    pub(crate) fn new(manifest: Descriptor, parsed: &ImageManifest, config: &[u8]) -> Result<Self> {
        let unreadable = |error: &dyn std::fmt::Display| {
            let kind = parsed.config().media_type();
            Error::invalid(format!("the image's configuration, a {kind}, can't be read: {error}"))
        };
        let config: ImageConfiguration = serde_json::from_slice(config).map_err(|error| unreadable(&error))?;
        let diff_ids = config
            .rootfs()
            .diff_ids()
            .iter()
            .map(|id| Digest::try_from(id.as_str()));
        let diff_ids: Vec<Digest> = diff_ids.collect::<Result<_, _>>().map_err(|error| unreadable(&error))?;
        if diff_ids.len() != parsed.layers().len() {
            return Err(Error::invalid(format!(
                "the image's manifest has {} layers and its configuration {}",
                parsed.layers().len(),
                diff_ids.len()
            )));
        }
        Ok(Self {
            manifest,
            config_descriptor: parsed.config().clone(),
            layers: parsed.layers().clone(),
            diff_ids,
            config,
        })
    }

    /// For each layer the digest that names it together with all below it: what snapshots are called
    /// ([image specification](https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid)).
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.diff_ids.len());
        for diff_id in &self.diff_ids {
            chain.push(match chain.last() {
                Some(below) => content::sha256(format!("{below} {diff_id}").as_bytes()),
                None => diff_id.clone(),
            });
        }
        chain
    }

    /// Whether it runs on `platform`.
    #[must_use]
    pub fn fits(&self, platform: &Platform) -> bool {
        rank(&self.platform(), platform).is_some()
    }

    /// The platform that the configuration says.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.config.os().to_string(),
            architecture: self.config.architecture().to_string(),
            variant: self.config.variant().clone(),
        }
    }
}

/// What an image's name can point at.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

impl Document {
    /// Media types are not asked: archives' indices have none.
    pub(crate) fn parse(content: &Bytes) -> Result<Self> {
        #[derive(Deserialize)]
        struct Shape {
            manifests: Option<IgnoredAny>,
            layers: Option<IgnoredAny>,
        }
        let unreadable = |error| Error::invalid(format!("the image's manifest can't be read: {error}"));
        let shape: Shape = serde_json::from_slice(content).map_err(unreadable)?;
        match shape {
            Shape { manifests: Some(_), .. } => serde_json::from_slice(content)
                .map(|index| Self::Index(Box::new(index)))
                .map_err(unreadable),
            Shape { layers: Some(_), .. } => serde_json::from_slice(content)
                .map(|manifest| Self::Manifest(Box::new(manifest)))
                .map_err(unreadable),
            // Docker's first schema has `fsLayers`: registries have stopped to serve it.
            _ => Err(Error::invalid(
                "the image's manifest is neither an index nor a manifest of layers",
            )),
        }
    }
}

/// Refuses, before anything of it is fetched, an image that no engine can unpack.
pub(crate) fn check(manifest: &ImageManifest) -> Result<()> {
    if manifest.layers().len() > MAX_LAYERS {
        return Err(Error::invalid(format!("the image has more than {MAX_LAYERS} layers")));
    }
    match manifest.layers().iter().find(|layer| !is_layer(layer.media_type())) {
        Some(layer) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the image has a layer of type {}, which can't be unpacked",
                layer.media_type()
            ),
        )
        .with_hint("only tars can be, as they are or compressed by gzip or zstd")),
        None => Ok(()),
    }
}

fn is_layer(media_type: &MediaType) -> bool {
    let name = media_type.to_string();
    let oci = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ];
    let docker = [
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let of = |known: &[&str], packed: &[&str]| {
        let rest = known.iter().find_map(|known| name.strip_prefix(known));
        rest.is_some_and(|rest| rest.is_empty() || packed.contains(&rest))
    };
    of(&oci, &["+gzip", "+zstd"]) || of(&docker, &[".gzip", ".zstd"])
}

/// The descriptors of images among `candidates`, each once. BuildKit's provenance stands beside the images in their
/// index; and it writes one image under two names as two entries.
pub(crate) fn images(candidates: &[Descriptor]) -> Vec<&Descriptor> {
    let mut images: Vec<&Descriptor> = Vec::new();
    for one in candidates {
        let kind = one
            .annotations()
            .as_ref()
            .and_then(|all| all.get("vnd.docker.reference.type"));
        let provenance = kind.is_some_and(|kind| kind == "attestation-manifest");
        if !provenance && !images.iter().any(|seen| seen.digest() == one.digest()) {
            images.push(one);
        }
    }
    images
}

/// The first of `images` for `platform`, the nearest variant where none is asked for.
pub(crate) fn fitting<'a>(images: &[&'a Descriptor], platform: &Platform) -> Option<&'a Descriptor> {
    nearest(images, platform).first().copied()
}

/// Those of `images` for `platform`, of the nearest variant that is there: of one that was built right, one.
pub(crate) fn nearest<'a>(images: &[&'a Descriptor], platform: &Platform) -> Vec<&'a Descriptor> {
    let fits = |one: &&'a Descriptor| rank(&platform_of(one)?, platform).map(|rank| (rank, *one));
    let mut fitting: Vec<_> = images.iter().filter_map(fits).collect();
    let best = fitting.iter().map(|(rank, _)| *rank).min();
    fitting.retain(|(rank, _)| Some(*rank) == best);
    fitting.into_iter().map(|(_, one)| one).collect()
}

fn platform_of(one: &Descriptor) -> Option<Platform> {
    one.platform().as_ref().map(|platform| Platform {
        os: platform.os().to_string(),
        architecture: platform.architecture().to_string(),
        variant: platform.variant().clone(),
    })
}

/// How far the variant of a platform is from the one that is wanted, if the rest fits.
fn rank(platform: &Platform, wanted: &Platform) -> Option<usize> {
    if platform.os != wanted.os || platform.architecture != wanted.architecture {
        return None;
    }
    // The first is what each processor of the kind runs; on arm a later one runs what is for an earlier one.
    let ladder: &[&str] = match wanted.architecture.as_str() {
        "amd64" => &["v1"],
        "arm64" => &["v8"],
        "arm" => &["v7", "v6", "v5"],
        _ => &[],
    };
    let usual = ladder.first().copied().unwrap_or_default();
    let has = platform
        .variant
        .as_deref()
        .filter(|variant| !variant.is_empty())
        .unwrap_or(usual);
    let wants = wanted.variant.as_deref().unwrap_or(usual);
    if has == wants {
        return Some(0);
    }
    let place = |variant: &str| ladder.iter().position(|one| *one == variant);
    match (place(wants), place(has)) {
        (Some(wants), Some(has)) => has.checked_sub(wants),
        _ => None,
    }
}

/// That none of `images` is for `platform`.
pub(crate) fn lacks(name: impl std::fmt::Display, platform: &Platform, images: &[&Descriptor]) -> Error {
    let message = format!("{name} is not there for {platform}, but for: {}", platforms(images));
    Error::new(ErrorKind::ImageNotFound, message).with_hint("ask for a platform that the image is made for")
}

/// The platforms of `images`, for an error.
pub(crate) fn platforms(images: &[&Descriptor]) -> String {
    let names: Vec<String> = images
        .iter()
        .filter_map(|one| platform_of(one))
        .map(|one| one.to_string())
        .collect();
    names.join(", ")
}
