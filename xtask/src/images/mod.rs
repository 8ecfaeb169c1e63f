//! The images that tests and examples use, made where no registry can be asked for them.
//!
//! They carry the tags of the real ones, so that examples run unchanged on machines that pull those.

mod archive;
pub(crate) mod buildkit;
mod busybox;

use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http;

/// A general image with a shell, whose busybox is static: builds copy it into images that have nothing else. On the
/// registry that is true of this tag, and not of `busybox:stable`, which the examples use otherwise.
pub(crate) const BUSYBOX: &str = "busybox:stable-musl";
/// The same, where it is made here.
const BUSYBOX_ALSO: &str = "busybox:stable";
/// The image that builds images.
pub(crate) const BUILDKIT: &str = "moby/buildkit:v0.34.2";

/// The one that does it without privileges.
pub(crate) const BUILDKIT_ROOTLESS: &str = "moby/buildkit:v0.34.2-rootless";

/// The archives of all images, made when missing.
pub(crate) fn all() -> Result<Vec<PathBuf>> {
    Ok(vec![busybox()?, buildkit::archive()?, buildkit::rootless_archive()?])
}

/// The archive of the general image.
pub(crate) fn busybox() -> Result<PathBuf> {
    busybox::archive()
}

/// The path of a busybox that is static, so that an image needs nothing else.
pub(crate) fn static_busybox() -> Result<PathBuf> {
    busybox::program()
}

/// Loads a docker archive into the engine that listens on `socket`.
pub(crate) fn load(socket: &Path, archive: &Path) -> Result<()> {
    let file = File::open(archive)?;
    let length = file.metadata()?.len();
    let stream = UnixStream::connect(socket)?;
    let response = http::post_tar(stream, "/images/load?quiet=1", file, length)
        .with_context(|| format!("cannot load {}", archive.display()))?;
    // Failures that come late are a line of an answer that began with 200.
    let text = response.text();
    let failed = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .any(|line| line.get("error").is_some());
    if response.status != 200 || failed {
        bail!("cannot load {}: {text}", archive.display());
    }
    Ok(())
}
