//! What the builder's store tells of an image: its manifests.

use serde::Deserialize;

use crate::PlatformImage;

/// A manifest, or an index of them, as far as it is used
/// (<https://github.com/opencontainers/image-spec/blob/main/image-index.md>).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Manifest {
    manifests: Vec<Descriptor>,
    layers: Vec<Descriptor>,
    config: Option<Descriptor>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Descriptor {
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// `None` of what is no image: an attestation has the platform `unknown/unknown`.
    fn name(&self) -> Option<String> {
        let mut name = format!("{}/{}", self.os, self.architecture);
        if !self.variant.is_empty() {
            name += &format!("/{}", self.variant);
        }
        (self.os != "unknown" && !self.os.is_empty()).then_some(name)
    }
}

/// The images of each platform, and the size of all of it, of blobs of which the first is the image's own.
pub(crate) fn read(blobs: &[(String, serde_json::Value)]) -> (Vec<PlatformImage>, Option<u64>) {
    let parse = |value: &serde_json::Value| Manifest::deserialize(value).ok();
    let Some((digest, root)) = blobs.first() else {
        return (Vec::new(), None);
    };
    let Some(root) = parse(root) else {
        return (Vec::new(), None);
    };
    let content = |manifest: &Manifest| -> u64 {
        let config = manifest.config.as_ref().map_or(0, |config| config.size);
        manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + config
    };
    if root.manifests.is_empty() {
        let Some(_) = &root.config else {
            return (Vec::new(), None);
        };
        let size = content(&root);
        let image = PlatformImage {
            platform: None,
            digest: digest.clone(),
            size,
        };
        return (vec![image], Some(size));
    }
    let mut images = Vec::new();
    let mut all = 0;
    for child in &root.manifests {
        let Some(manifest) = blobs
            .iter()
            .find(|(digest, _)| *digest == child.digest)
            .and_then(|(_, blob)| parse(blob))
        else {
            return (Vec::new(), None);
        };
        let size = content(&manifest) + child.size;
        all += size;
        if let Some(platform) = child.platform.as_ref().and_then(Platform::name) {
            images.push(PlatformImage {
                platform: Some(platform),
                digest: child.digest.clone(),
                size,
            });
        }
    }
    (images, Some(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_index_has_its_platforms_and_no_attestations() {
        let image =
            |size: u64| json!({"config": {"digest": "c", "size": 1}, "layers": [{"digest": "l", "size": size}]});
        let index = json!({"manifests": [
            {"digest": "a", "size": 10, "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": "b", "size": 10, "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}},
            {"digest": "x", "size": 10, "platform": {"os": "unknown", "architecture": "unknown"}},
        ]});
        let blobs = [("i", index), ("a", image(100)), ("b", image(200)), ("x", image(5))];
        let blobs = blobs.map(|(digest, blob)| (digest.to_owned(), blob));
        let (platforms, size) = read(&blobs);
        let told: Vec<_> = platforms
            .iter()
            .map(|of| (of.platform.as_deref().unwrap(), of.size))
            .collect();
        assert_eq!(told, [("linux/amd64", 111), ("linux/arm/v7", 211)]);
        assert_eq!(size, Some(338));
        let (platforms, size) = read(&blobs[1..2]);
        assert_eq!(
            (platforms[0].digest.as_str(), platforms[0].size, size),
            ("a", 101, Some(101))
        );
        assert_eq!(read(&[("a".into(), serde_json::Value::Null)]), (Vec::new(), None));
    }
}
