//! Makes any image archive one that docker (and podman) loads under the name that the caller wants.
//!
//! docker before 25 loads docker archives only, and every version trusts the names inside. So the tar passes through
//! without what names images (`manifest.json`, `repositories`, `index.json`, `oci-layout`), and a new `manifest.json`
//! comes last: docker unpacks the whole tar before it reads that. An OCI layout needs no more than this, since docker
//! takes any paths for the config and the layers, and unpacks layers that are gzipped.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use serde::Deserialize;

use super::{END, Head, Member, Sink, TarReader, padded, pipe};
use crate::{ByteStream, Error, ErrorKind, ImageRef, Platform, Result};

/// Largest manifest or index that is read ([OCI distribution specification](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-manifests): registries take 4 MiB at least).
const MAX_DOCUMENT: u64 = 4 << 20;
/// Most that is kept in memory of all manifests and indices.
const MAX_DOCUMENTS: usize = 32 << 20;
/// Most members: an image has at most 127 layers, of which docker's oldest form makes four members each.
const MAX_MEMBERS: usize = 65_536;

/// `archive` as a docker archive of one image, called `image`, for an engine that can or can't unpack `zstd`. What does not hold one image fails with
/// [`ErrorKind::InvalidInput`] before docker has seen a manifest, so that nothing is loaded.
#[must_use]
pub fn docker_archive(archive: ByteStream, image: &ImageRef, platform: &Platform, zstd: bool) -> ByteStream {
    let (image, platform) = (image.canonical(), platform.clone());
    pipe(move |sink| async move {
        let found = pass_through(archive, &sink).await?;
        let (config, layers) = found.image(&platform, zstd)?;
        let manifest = serde_json::json!([{ "Config": config, "RepoTags": [image], "Layers": layers }]).to_string();
        sink.send_all(Head::file(manifest.len() as u64).blocks("manifest.json"))
            .await?;
        sink.send(padded(manifest.as_bytes())).await?;
        sink.send(END).await
    })
}

/// What an archive said of its images.
#[derive(Default)]
struct Found {
    /// `manifest.json`: a docker archive, maybe an OCI layout too.
    docker: Option<Bytes>,
    /// `index.json`: an OCI layout.
    index: Option<Bytes>,
    /// Blobs that may be an index or a manifest, by path.
    documents: HashMap<String, Document>,
    bytes: usize,
    /// All other members, by path.
    members: HashSet<String>,
}

async fn pass_through(archive: ByteStream, sink: &Sink) -> Result<Found> {
    let mut found = Found::default();
    let mut tar = TarReader::new(archive, ErrorKind::InvalidInput);
    while let Some(member) = tar.next().await? {
        let path = String::from_utf8_lossy(&member.path()).into_owned();
        match path.as_str() {
            "manifest.json" => found.docker = Some(document(&mut tar, &member).await?),
            "index.json" => found.index = Some(document(&mut tar, &member).await?),
            "oci-layout" | "repositories" => {}
            _ => {
                sink.send_all(member.head.iter().cloned()).await?;
                if member.is_file() && path.starts_with("blobs/") && member.size <= MAX_DOCUMENT {
                    found.blob(&path, &mut tar, &member, sink).await?;
                }
                sink.send_content(&mut tar).await?;
                found.members.insert(path);
                if found.members.len() > MAX_MEMBERS {
                    return Err(Error::invalid(format!(
                        "the archive has more than {MAX_MEMBERS} members: it is no image"
                    )));
                }
            }
        }
    }
    Ok(found)
}

/// The content of a small member.
async fn document(tar: &mut TarReader, member: &Member) -> Result<Bytes> {
    if member.size > MAX_DOCUMENT {
        let name = String::from_utf8_lossy(&member.name);
        return Err(Error::invalid(format!("{name} of the archive is larger than 4 MiB")));
    }
    let mut content = Vec::new();
    while let Some(piece) = tar.content().await? {
        content.extend_from_slice(&piece);
    }
    content.truncate(usize::try_from(member.size).unwrap_or(usize::MAX));
    Ok(content.into())
}

impl Found {
    /// Passes a small blob on; remembers it if it is an index or a manifest.
    async fn blob(&mut self, path: &str, tar: &mut TarReader, member: &Member, sink: &Sink) -> Result<()> {
        let Some(first) = tar.content().await? else {
            return Ok(());
        };
        let json = first.first() == Some(&b'{');
        let mut content = if json { first.to_vec() } else { Vec::new() };
        sink.send(first).await?;
        if !json {
            return Ok(());
        }
        while let Some(piece) = tar.content().await? {
            content.extend_from_slice(&piece);
            sink.send(piece).await?;
        }
        content.truncate(usize::try_from(member.size).unwrap_or(usize::MAX));
        // An image's configuration has a `config` too, but no descriptor in it.
        let Ok(document) = serde_json::from_slice::<Document>(&content) else {
            return Ok(());
        };
        if document.manifests.is_some() || document.layers.is_some() {
            self.bytes += content.len();
            if self.bytes > MAX_DOCUMENTS {
                return Err(Error::invalid(
                    "the archive's manifests are larger than 32 MiB together",
                ));
            }
            self.documents.insert(path.to_owned(), document);
        }
        Ok(())
    }

    /// The paths of the one image's config and layers.
    fn image(&self, platform: &Platform, zstd: bool) -> Result<(String, Vec<String>)> {
        let (config, layers) = match (&self.docker, &self.index) {
            (Some(manifest), _) => docker_image(manifest)?,
            (None, Some(index)) => self.oci_image(index, platform, zstd)?,
            (None, None) => {
                return Err(Error::invalid(
                    "the tar is no image: it has neither index.json (OCI layout) nor manifest.json (docker archive)",
                ));
            }
        };
        // Else docker would tell of a temporary file of its own.
        let missing = layers.iter().chain([&config]).find(|path| {
            let path: Vec<&[u8]> = crate::tar::parts(path.as_bytes()).collect();
            !self
                .members
                .contains(String::from_utf8_lossy(&path.join(&b'/')).as_ref())
        });
        match missing {
            Some(path) => Err(Error::invalid(format!(
                "the archive's manifest names {path}, which the archive lacks"
            ))),
            None => Ok((config, layers)),
        }
    }

    fn oci_image(&self, index: &[u8], platform: &Platform, zstd: bool) -> Result<(String, Vec<String>)> {
        let index: Document = serde_json::from_slice(index)
            .map_err(|error| Error::invalid(format!("index.json of the archive can't be read: {error}")))?;
        let mut candidates = index.manifests.as_deref().unwrap_or_default();
        // An index may name an index: one level is what builders write, and a bound keeps a circle from being followed.
        for _ in 0..4 {
            let chosen = choose(candidates, platform)?;
            let document = self
                .documents
                .get(&chosen.path())
                .ok_or_else(|| Error::invalid(format!("the archive lacks {}, or it is no manifest", chosen.path())))?;
            if let (Some(config), Some(layers)) = (&document.config, &document.layers) {
                if !zstd && layers.iter().any(|layer| layer.media_type.ends_with("+zstd")) {
                    let message = "docker before 23.0 can't unpack layers that are compressed by zstd";
                    return Err(Error::new(ErrorKind::Unsupported, message).with_hint("compress them by gzip"));
                }
                return Ok((config.path(), layers.iter().map(Descriptor::path).collect()));
            }
            candidates = document.manifests.as_deref().unwrap_or_default();
        }
        Err(Error::invalid("the archive's indices are nested too deeply"))
    }
}

/// The one manifest that is meant: the only one, or the only one for the platform.
fn choose<'a>(candidates: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor> {
    let mut images: Vec<&Descriptor> = candidates.iter().filter(|one| !one.is_attestation()).collect();
    // One image under several names is one image: BuildKit writes an entry for each name.
    let mut seen = HashSet::new();
    images.retain(|one| seen.insert(&one.digest));
    if images.len() > 1 && images.iter().all(|one| one.platform.is_some()) {
        images.retain(|one| one.platform.as_ref().is_some_and(|p| p.fits(platform)));
    }
    match images[..] {
        [one] => Ok(one),
        [] => Err(Error::invalid(format!("the archive holds no image for {platform}"))),
        _ => Err(Error::invalid(format!(
            "the archive holds {} images; it must hold one",
            images.len()
        ))),
    }
}

fn docker_image(manifest: &[u8]) -> Result<(String, Vec<String>)> {
    let images: Vec<DockerImage> = serde_json::from_slice(manifest)
        .map_err(|error| Error::invalid(format!("manifest.json of the archive can't be read: {error}")))?;
    match <[DockerImage; 1]>::try_from(images) {
        Ok([image]) => Ok((image.config, image.layers)),
        Err(images) => Err(Error::invalid(format!(
            "the archive holds {} images; it must hold one",
            images.len()
        ))),
    }
}

/// An entry of a docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

/// An [index](https://github.com/opencontainers/image-spec/blob/main/image-index.md) or a
/// [manifest](https://github.com/opencontainers/image-spec/blob/main/manifest.md).
#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default, rename = "mediaType")]
    media_type: String,
    platform: Option<OciPlatform>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
struct OciPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl Descriptor {
    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replacen(':', "/", 1))
    }

    /// BuildKit's provenance stands beside the images in their index.
    fn is_attestation(&self) -> bool {
        self.annotations
            .get("vnd.docker.reference.type")
            .is_some_and(|kind| kind == "attestation-manifest")
    }
}

impl OciPlatform {
    fn fits(&self, wanted: &Platform) -> bool {
        let variant = wanted.variant.is_none() || wanted.variant == self.variant;
        self.os == wanted.os && self.architecture == wanted.architecture && variant
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream;
    use futures_util::{StreamExt, TryStreamExt};

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn tar(members: &[(&str, &str)]) -> ByteStream {
        let mut pieces = Vec::new();
        for (name, content) in members {
            pieces.extend(Head::file(content.len() as u64).blocks(name));
            pieces.push(padded(content.as_bytes()));
        }
        pieces.push(END);
        // Pieces of an odd size, so that no block comes in one.
        let bytes = pieces.concat();
        let pieces: Vec<_> = bytes
            .chunks(301)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        futures_util::stream::iter(pieces).boxed()
    }

    /// The members that docker would see.
    async fn load(members: &[(&str, &str)]) -> Result<Vec<(String, String)>> {
        let image = "app:1".parse().unwrap();
        let platform = "linux/amd64".parse().unwrap();
        let mut tar = TarReader::new(docker_archive(tar(members), &image, &platform, false), ErrorKind::Io);
        let mut seen = Vec::new();
        while let Some(member) = tar.next().await? {
            let content = document(&mut tar, &member).await?;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            seen.push((text(&member.name), text(&content)));
        }
        assert!(tar.ended());
        Ok(seen)
    }

    async fn refusal(members: &[(&str, &str)]) -> String {
        let error = load(members).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.message().to_owned()
    }

    fn manifest(config: &str) -> String {
        format!(r#"{{"config":{{"digest":"sha256:{config}"}},"layers":[{{"digest":"sha256:layer"}}]}}"#)
    }

    #[tokio::test]
    async fn a_docker_archive_keeps_its_members_and_gets_the_callers_name() {
        let manifest = r#"[{"Config":"c.json","RepoTags":["evil:latest"],"Layers":["l/layer.tar"]}]"#;
        let seen = load(&[
            ("manifest.json", manifest),
            ("repositories", "{}"),
            ("./c.json", "{}"),
            ("l/layer.tar", &"x".repeat(2000)),
        ])
        .await
        .unwrap();
        let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["./c.json", "l/layer.tar", "manifest.json"]);
        assert_eq!(seen[1].1, "x".repeat(2000));
        let made: serde_json::Value = serde_json::from_str(&seen[2].1).unwrap();
        assert_eq!(made[0]["RepoTags"], serde_json::json!(["docker.io/library/app:1"]));
        assert_eq!(
            (&made[0]["Config"], &made[0]["Layers"][0]),
            (&"c.json".into(), &"l/layer.tar".into())
        );
    }

    #[tokio::test]
    async fn an_oci_layout_is_found_through_nested_indices_by_platform() {
        let index = format!(r#"{{"manifests":[{{"digest":"sha256:{HEX}"}}]}}"#);
        let nested = r#"{"manifests":[
            {"digest":"sha256:arm","platform":{"os":"linux","architecture":"arm64"}},
            {"digest":"sha256:amd","platform":{"os":"linux","architecture":"amd64"}},
            {"digest":"sha256:att","platform":{"os":"unknown","architecture":"unknown"},
             "annotations":{"vnd.docker.reference.type":"attestation-manifest"}}]}"#;
        let seen = load(&[
            ("blobs/sha256/config", r#"{"config":{"Env":[]}}"#),
            ("blobs/sha256/layer", "bytes"),
            ("blobs/sha256/amd", &manifest("config")),
            ("blobs/sha256/arm", &manifest("other")),
            (&format!("blobs/sha256/{HEX}"), nested),
            ("oci-layout", "{}"),
            ("index.json", &index),
        ])
        .await
        .unwrap();
        let (name, made) = seen.last().unwrap();
        assert_eq!(name, "manifest.json");
        let made: serde_json::Value = serde_json::from_str(made).unwrap();
        assert_eq!(made[0]["Config"], "blobs/sha256/config");
        assert_eq!(made[0]["Layers"], serde_json::json!(["blobs/sha256/layer"]));
        assert!(
            seen.iter()
                .all(|(name, _)| name != "index.json" && name != "oci-layout")
        );
    }

    #[tokio::test]
    async fn what_is_not_one_image_is_refused_with_the_reason() {
        assert!(refusal(&[("hello", "world")]).await.contains("neither index.json"));
        let two = r#"[{"Config":"a"},{"Config":"b"}]"#;
        assert!(refusal(&[("manifest.json", two)]).await.contains("2 images"));
        assert!(refusal(&[("manifest.json", "[]")]).await.contains("0 images"));
        let lacking = r#"[{"Config":"a"}]"#;
        assert!(
            refusal(&[("manifest.json", lacking)])
                .await
                .contains("names a, which the archive lacks")
        );
        let index = r#"{"manifests":[{"digest":"sha256:a"},{"digest":"sha256:b"}]}"#;
        assert!(refusal(&[("index.json", index)]).await.contains("2 images"));
        assert!(refusal(&[("manifest.json", "no json")]).await.contains("can't be read"));
    }

    #[tokio::test]
    async fn one_image_under_two_names_is_one_image() {
        let index = r#"{"manifests":[{"digest":"sha256:m"},{"digest":"sha256:m"}]}"#;
        let manifest = manifest("config");
        let members = [
            ("index.json", index),
            ("blobs/sha256/m", manifest.as_str()),
            ("blobs/sha256/config", "{}"),
            ("blobs/sha256/layer", "x"),
        ];
        assert!(load(&members).await.is_ok());
    }

    #[tokio::test]
    async fn a_circle_of_indices_ends() {
        let circle = r#"{"manifests":[{"digest":"sha256:a"}]}"#;
        assert!(
            refusal(&[("index.json", circle), ("blobs/sha256/a", circle)])
                .await
                .contains("too deeply")
        );
    }

    #[tokio::test]
    async fn layers_that_the_engine_can_not_unpack_are_refused_before_it_tries() {
        let manifest = r#"{"config":{"digest":"sha256:c"},
            "layers":[{"digest":"sha256:l","mediaType":"application/vnd.oci.image.layer.v1.tar+zstd"}]}"#;
        let index = r#"{"manifests":[{"digest":"sha256:m"}]}"#;
        let error = load(&[("blobs/sha256/m", manifest), ("index.json", index)])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[tokio::test]
    async fn bytes_that_are_no_tar_are_refused() {
        let image = "app:1".parse().unwrap();
        let platform = "linux/amd64".parse().unwrap();
        let garbage = stream::once(vec![7u8; 4096]);
        let error = docker_archive(garbage, &image, &platform, false)
            .try_collect::<Vec<_>>()
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
