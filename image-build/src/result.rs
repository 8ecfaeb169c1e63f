//! What came of a build.

use orchestra::{Captured, ImageRef, Timings};
use serde::{Serialize, Serializer};

/// An image that was built. Serialised with the fields `ref`, `refs`, `digest`, `config_digest`, `code`, `stdout`, `stderr`,
/// `warnings`, `steps` and `timings`.
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
    /// Where the build container's time went.
    pub timings: Timings,
}

/// Steps of a build: BuildKit's vertexes, of which a Dockerfile's instruction is one, and the loading of the context too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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
