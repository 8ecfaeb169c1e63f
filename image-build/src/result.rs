//! What came of a build.

use std::time::Duration;

use orchestra::{Captured, ImageRef, Timings};
use serde::{Deserialize, Serialize, Serializer};

/// An image that was built. Serialised with the fields `ref`, `refs`, `digest`, `config_digest`, `platforms`,
/// `targets`, `size`, `code`, `stdout`, `stderr`, `warnings`, `steps`, `duration` and `timings`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BuildResult {
    /// The build's tag, as it was written.
    #[serde(rename = "ref")]
    pub reference: ImageRef,
    /// All of its names, the tag first.
    #[serde(rename = "refs")]
    pub references: Vec<ImageRef>,
    /// BuildKit's `containerimage.digest`, `sha256:…`: what the registry serves under the tag, the manifest of an image or,
    /// of several platforms, the index. Of an image that was loaded into the engine it is the manifest that was loaded;
    /// an engine need not show it anywhere, as some keep images without their manifests.
    pub digest: String,
    /// The digest of the image's config, which is what docker calls the image's id; `None` of several platforms.
    pub config_digest: Option<String>,
    /// The image's manifest for each platform; empty where the builder's store did not tell.
    pub platforms: Vec<PlatformImage>,
    /// The [additional targets](crate::ImageBuild::additional_targets) with their digests, in their order.
    pub targets: Vec<BuiltTarget>,
    /// Bytes of the image as it is transferred: its compressed layers, configurations and manifests, of all platforms.
    pub size: Option<u64>,
    /// The build container's exit code: 0.
    pub code: u8,
    /// The builder's standard output, mostly empty.
    #[serde(serialize_with = "text")]
    pub stdout: Captured,
    /// The build's progress and output, rendered as text.
    #[serde(serialize_with = "text")]
    pub stderr: Captured,
    /// What should be known though the build succeeded. It is in the output and among the events too.
    pub warnings: Vec<String>,
    /// How many steps there were.
    pub steps: Steps,
    /// How long the build took, from the call to the image in its place.
    pub duration: Duration,
    /// Where the build container's time went.
    pub timings: Timings,
}

/// What an image is on one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlatformImage {
    /// The platform, `linux/amd64`; `None` where the manifest does not say, as that of an image that is no index.
    pub platform: Option<String>,
    /// The manifest's digest.
    pub digest: String,
    /// Bytes of its layers, configuration and manifest.
    pub size: u64,
}

/// An additional target that was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BuiltTarget {
    /// The stage.
    pub target: String,
    /// The digest of its image; `None` of files alone.
    pub digest: Option<String>,
}

/// Steps of a build: BuildKit's vertexes, of which a Dockerfile's instruction is one, and the loading of the context too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Steps {
    /// Those that were run.
    pub run: u32,
    /// Those whose result was in the builder's cache.
    pub cached: u32,
}

fn text<S: Serializer>(captured: &Captured, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(captured)
}
