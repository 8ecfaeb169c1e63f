//! What a build leaves in volumes besides the image in its registry or engine.

use std::fmt;
use std::str::FromStr;

use orchestra::{ContainerPath, Error, Result, VolumeId, VolumePath};

/// A volume that the build writes its result to, for the tasks after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildOutput {
    /// The volume.
    pub volume: VolumeId,
    /// Where it stands in the build container: absolute, or relative to the working directory.
    pub path: ContainerPath,
    /// What is written there.
    pub format: OutputFormat,
}

/// What a build writes to a volume, in the words of `docker buildx build --output` and of skopeo. A
/// [rootless](crate::ImageBuild::rootless) build is given the roots of the volumes that it writes a tree to, by a container of
/// its image that does nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputFormat {
    /// `oci`: the image as `image.tar`, an archive of an OCI layout.
    Oci,
    /// `oci-layout`: the image as an OCI layout, `index.json` and `blobs` in the volume's root.
    OciLayout,
    /// `docker`: the image as `image.tar`, as `docker save` writes it and any engine loads it.
    Loadable,
    /// `local`: the files of the image's last stage, in the volume's root, or for several platforms in a directory for each.
    Local,
    /// `rootfs`: the files of the image's last stage in `rootfs/`, and in `metadata.json` its environment and user, as
    /// Concourse's tasks take an image (`{"env": ["PATH=/bin"], "user": "root"}`). Owners, modes and attributes are the image's:
    /// it is unpacked by `orchestra-volumes` when the builder has ended, which needs an engine that imports images and executes
    /// programs, of this program's architecture.
    RootFs,
}

/// A stage that is built too, and what is written of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdditionalTarget {
    /// The Dockerfile's stage.
    pub target: String,
    /// What is written of it, and where. Not [`RootFs`](OutputFormat::RootFs).
    pub output: BuildOutput,
}

impl AdditionalTarget {
    /// The stage `target`, written to `output`.
    pub fn new(target: impl Into<String>, output: BuildOutput) -> Self {
        Self {
            target: target.into(),
            output,
        }
    }
}

/// The archive's name in its volume.
const ARCHIVE: &str = "image.tar";

impl OutputFormat {
    /// The archive's path in its volume, if it is one.
    #[must_use]
    pub fn archive(self) -> Option<VolumePath> {
        match self {
            Self::Oci | Self::Loadable => VolumePath::new(ARCHIVE).ok(),
            Self::OciLayout | Self::Local | Self::RootFs => None,
        }
    }

    fn word(self) -> &'static str {
        let field = match self {
            Self::Oci => "type=oci",
            Self::OciLayout => "type=oci-layout",
            Self::Loadable => "type=docker",
            Self::Local => "type=local",
            Self::RootFs => "type=rootfs",
        };
        field.trim_start_matches("type=")
    }

    /// Whether the builder writes more than one file of it.
    pub(crate) fn is_tree(self) -> bool {
        matches!(self, Self::OciLayout | Self::Local)
    }

    /// Whether it is an image, with a name and annotations.
    pub(crate) fn is_image(self) -> bool {
        !matches!(self, Self::Local | Self::RootFs)
    }

    /// The first fields of `buildctl`'s record.
    pub(crate) fn fields(self, path: &str) -> Vec<String> {
        let archive = format!("dest={path}/{ARCHIVE}");
        match self {
            Self::Oci => vec!["type=oci".into(), archive],
            Self::OciLayout => vec!["type=oci".into(), "tar=false".into(), format!("dest={path}")],
            Self::Loadable => vec!["type=docker".into(), archive],
            Self::Local => vec!["type=local".into(), format!("dest={path}")],
            // Of a volume of the build's: who unpacks it is no builder.
            Self::RootFs => vec!["type=tar".into(), format!("dest={path}")],
        }
    }
}

impl FromStr for OutputFormat {
    type Err = Error;

    /// From `oci`, `oci-layout`, `docker`, `local` or `rootfs`.
    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Oci, Self::OciLayout, Self::Loadable, Self::Local, Self::RootFs];
        all.into_iter().find(|format| format.word() == text).ok_or_else(|| {
            let known = all.map(Self::word).join(", ");
            Error::invalid(format!("a build has no output of type {text:?}")).with_hint(format!("write one of {known}"))
        })
    }
}

impl fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
