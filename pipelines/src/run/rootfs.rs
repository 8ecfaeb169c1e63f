//! An image of a root file system that an artifact holds: its files in `rootfs/`, and in `metadata.json` its environment and
//! user. Resource types of Concourse make it, its `oci-build-task` with `UNPACK_ROOTFS`, and a `build_image` output of the type
//! `rootfs`.

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use orchestra::tar::{END, Head, TarReader, padded, parts, pipe};
use orchestra::{ByteStream, Driver, Error, ErrorKind, Job, Result, VolumeId, VolumePath};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

const ROOT: &str = "rootfs";
const METADATA: &str = "metadata.json";
/// Larger than any environment.
const MAX_METADATA: u64 = 1 << 20;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    /// `null` of an image without any, as Go writes it.
    env: Option<Vec<String>>,
    user: Option<String>,
}

/// What is to be known of the image before its layer streams by: digests come before content.
pub(super) struct RootFs<'a> {
    driver: &'a dyn Driver,
    volume: &'a VolumeId,
    config: String,
    /// Bytes of the layer.
    size: u64,
}

impl<'a> RootFs<'a> {
    /// Reads the volume once, to know the layer's digest.
    ///
    /// # Errors
    /// [`ErrorKind::PathNotFound`] if there is no `rootfs/`; otherwise those of the volume.
    pub(super) async fn of(driver: &'a dyn Driver, job: &Job, volume: &'a VolumeId) -> Result<Self> {
        let mut layer = layer(driver.read_volume(volume, &[VolumePath::new(ROOT)?]).await?);
        let (mut digest, mut size) = (Sha256::new(), 0);
        while let Some(piece) = layer.try_next().await? {
            digest.update(&piece);
            size += piece.len() as u64;
        }
        let metadata = match job.read_file(volume, &VolumePath::new(METADATA)?, MAX_METADATA).await {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| Error::invalid(format!("{METADATA} is not what describes an image: {error}")))?,
            Err(error) if error.kind() == ErrorKind::PathNotFound => Metadata::default(),
            Err(error) => return Err(error),
        };
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let platform = &driver.info().platform;
        let config = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "config": { "Env": metadata.env.unwrap_or_default(), "User": metadata.user.unwrap_or_default() },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        });
        Ok(Self {
            driver,
            volume,
            config: config.to_string(),
            size,
        })
    }

    /// A docker archive of one layer.
    pub(super) async fn archive(&self) -> Result<ByteStream> {
        let layer = layer(self.driver.read_volume(self.volume, &[VolumePath::new(ROOT)?]).await?);
        let manifest = json!([{ "Config": "config.json", "RepoTags": [], "Layers": ["layer.tar"] }]).to_string();
        let mut before: Vec<Bytes> = Vec::new();
        for (name, content) in [("manifest.json", &manifest), ("config.json", &self.config)] {
            before.extend(Head::file(content.len() as u64).blocks(name));
            before.push(padded(content.as_bytes()));
        }
        // A tar is of whole blocks: nothing fills it up.
        before.extend(Head::file(self.size).blocks("layer.tar"));
        let before = stream::iter(before.into_iter().map(Ok));
        Ok(before.chain(layer).chain(stream::once(async { Ok(END) })).boxed())
    }
}

/// The members below `rootfs/`, with their names from there.
fn layer(tar: ByteStream) -> ByteStream {
    pipe(|sink| async move {
        let mut tar = TarReader::new(tar, ErrorKind::Interrupted);
        while let Some(member) = tar.next().await? {
            let Some(name) = below(&member.name)? else { continue };
            let link = match &member.link {
                Some(link) if member.is_hard_link() => below(link)?,
                other => other.clone(),
            };
            sink.send_all(member.renamed(&name, link.as_deref())).await?;
            sink.send_content(&mut tar).await?;
        }
        sink.send(END).await
    })
}

/// A name from the root file system's root; `None` for that itself.
fn below(name: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut parts = parts(name);
    let is_below = parts.next() == Some(ROOT.as_bytes());
    let rest: Vec<&[u8]> = parts.collect();
    if !is_below || rest.contains(&b"..".as_slice()) {
        let name = String::from_utf8_lossy(name);
        return Err(Error::new(
            ErrorKind::Protocol,
            format!("a tar of {ROOT} has the name {name:?}"),
        ));
    }
    Ok((!rest.is_empty()).then(|| rest.join(&b'/')))
}
