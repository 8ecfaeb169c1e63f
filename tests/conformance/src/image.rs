//! Small images that the suite makes itself: the test image's busybox and one more file.

use bytes::Bytes;
use orchestra::{ContainerPath, Mount, VolumePath, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::check::{Failure, Outcome, same};
use crate::context::Context;
use crate::tarball::{Entry, pack, unpack};

/// One layer and a configuration.
#[derive(Clone, Debug)]
pub(crate) struct TestImage {
    layer: Bytes,
    config: Bytes,
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl TestImage {
    /// An image whose `/marker` holds `marker`, and which prints it.
    pub(crate) async fn make(cx: &Context, marker: &str) -> Outcome<Self> {
        // The image is made of the engine's own: no other one can be had everywhere. What a busybox that is not static
        // needs comes along.
        let volume = cx.volume("rootfs").await?;
        let mut spec = cx.shell(
            "mkdir /out/bin && cp /bin/busybox /out/bin/busybox && cp /bin/busybox /out/bin/sh && cp /bin/busybox /out/bin/cat
             for dir in lib lib64; do if [ -d /$dir ]; then cp -a /$dir /out/; fi; done",
        );
        spec.mounts.push(Mount {
            volume: volume.clone(),
            target: ContainerPath::new("/out")?,
            read_only: false,
        });
        same(
            "the exit of making an image",
            cx.run("rootfs", &spec).await?.exit.code(),
            0,
        )?;
        let mut entries = unpack(cx.driver.read_volume(&volume, &[VolumePath::root()]).await?).await?;
        cx.driver.remove_container(&cx.id("rootfs")).await?;
        cx.driver.remove_volume(&volume).await?;
        entries.push(Entry::dir("etc"));
        entries.push(Entry::file(
            "etc/passwd",
            "root:x:0:0::/:/bin/sh\ntester:x:4321:8765::/:/bin/sh\n",
        ));
        entries.push(Entry::file("etc/group", "root:x:0:\ntesters:x:5678:\n"));
        entries.push(Entry::file("marker", format!("{marker}\n")));
        entries.push(Entry::dir("kept").mode(0o777));
        entries.push(Entry::file("kept/file", "kept\n").mode(0o666));
        Ok(Self::of(pack(&entries), None))
    }

    /// An image of this layer; `diff_id` is what the configuration says of it, where that is to be a lie.
    pub(crate) fn of(layer: Bytes, diff_id: Option<String>) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Cmd": ["/bin/cat", "/marker"],
                "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
                "WorkingDir": "/from-image",
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", diff_id.unwrap_or_else(|| digest(&layer)))] },
        });
        Self {
            layer,
            config: config.to_string().into(),
        }
    }

    /// The same with one more key in the part of its configuration that is for containers.
    pub(crate) fn with(self, key: &str, value: Value) -> Outcome<Self> {
        self.changed(|config| config["config"][key] = value)
    }

    /// The same for another processor, as far as its configuration says.
    pub(crate) fn on(self, architecture: &str) -> Outcome<Self> {
        self.changed(|config| config["architecture"] = architecture.into())
    }

    fn changed(mut self, change: impl FnOnce(&mut Value)) -> Outcome<Self> {
        let config = serde_json::from_slice(&self.config);
        let mut config: Value = config.map_err(|error| Failure::new(error.to_string()))?;
        change(&mut config);
        self.config = config.to_string().into();
        Ok(self)
    }

    fn architecture(&self) -> Value {
        let config: Value = serde_json::from_slice(&self.config).unwrap_or_default();
        config["architecture"].clone()
    }

    fn manifest(&self) -> String {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &self.config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &self.layer)],
        })
        .to_string()
    }

    /// The images as an OCI image layout, which says that the first is named `name`.
    pub(crate) fn layout(images: &[&Self], name: &str) -> Bytes {
        let mut entries = vec![Entry::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)];
        let mut manifests = Vec::new();
        let mut blob = |content: Bytes| {
            let file = Entry::file(format!("blobs/sha256/{}", digest(&content)), content);
            if !entries.contains(&file) {
                entries.push(file);
            }
        };
        for image in images {
            let manifest = image.manifest();
            let mut descriptor = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
            descriptor["platform"] = json!({ "os": "linux", "architecture": image.architecture() });
            manifests.push(descriptor);
            blob(image.layer.clone());
            blob(image.config.clone());
            blob(manifest.into());
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        entries.push(Entry::file("index.json", index.to_string()));
        pack(&entries)
    }

    /// The images as a docker archive (`docker save`), which says that the first is named `name`.
    pub(crate) fn docker_archive(images: &[&Self], name: &str) -> Bytes {
        let mut entries = Vec::new();
        let mut manifest = Vec::new();
        for (index, image) in images.iter().enumerate() {
            let (config, layer) = (
                format!("{}.json", digest(&image.config)),
                format!("{}/layer.tar", digest(&image.layer)),
            );
            let tags = if index == 0 { vec![name] } else { Vec::new() };
            manifest.push(json!({ "Config": config, "RepoTags": tags, "Layers": [layer] }));
            entries.push(Entry::file(config, image.config.clone()));
            entries.push(Entry::file(layer, image.layer.clone()));
        }
        entries.push(Entry::file("manifest.json", Value::Array(manifest).to_string()));
        pack(&entries)
    }

    /// Imports it under `name`, which the case removes at its end.
    pub(crate) async fn import(&self, cx: &Context, name: &str) -> Outcome<orchestra::ImageRef> {
        let image = cx.image(name);
        cx.driver
            .import_image(&image, stream::once(Self::layout(&[self], "other.test/name:1")))
            .await?;
        Ok(image)
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", digest(content)), "size": content.len() })
}
