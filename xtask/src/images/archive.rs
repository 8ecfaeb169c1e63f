//! Writing an image of one layer as a docker archive, which every engine can load.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::fixtures;

/// A tar in which all is owned by root and has a fixed time, so that the same content is the same image.
struct Tar<W: Write>(Builder<W>);

impl<W: Write> Tar<W> {
    fn add(&mut self, kind: EntryType, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.add_owned(kind, path, mode, 0, content)
    }

    fn add_owned(&mut self, kind: EntryType, path: &str, mode: u32, owner: u64, content: &[u8]) -> Result<()> {
        let mut header = header(kind, mode, content.len() as u64);
        header.set_uid(owner);
        header.set_gid(owner);
        Ok(self.0.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, kind: EntryType, path: &str, target: &str) -> Result<()> {
        Ok(self.0.append_link(&mut header(kind, 0o777, 0), path, target)?)
    }
}

/// The layer of an image while it is put together.
pub(crate) struct Layer(Tar<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(Tar(Builder::new(Vec::new())))
    }

    pub(crate) fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        self.0.add(EntryType::Directory, path, mode, &[])
    }

    /// A folder of a user, and of the group of the same number.
    pub(crate) fn folder_of(&mut self, owner: u64, path: &str, mode: u32) -> Result<()> {
        self.0.add_owned(EntryType::Directory, path, mode, owner, &[])
    }

    /// A program that has one kernel capability whoever runs it, as by `setcap CAPABILITY+ep`.
    pub(crate) fn capable_file(&mut self, path: &str, capability: u32, content: &[u8]) -> Result<()> {
        // linux/capability.h: struct vfs_cap_data, revision 2, effective.
        let words = [0x0200_0001, 1 << capability, 0, 0, 0_u32];
        let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.0
            .0
            .append_pax_extensions([("SCHILY.xattr.security.capability", value.as_slice())])?;
        self.file(path, 0o755, content)
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.0.add(EntryType::Regular, path, mode, content)
    }

    /// A second name of a file that is in the layer already.
    pub(crate) fn hard_link(&mut self, path: &str, target: &str) -> Result<()> {
        self.0.link(EntryType::Link, path, target)
    }

    /// Writes the image; `config` is the `config` object of the image's JSON.
    pub(crate) fn write_image(self, tags: &[&str], config: &Value, to: &Path) -> Result<()> {
        let layer = self.0.0.into_inner()?;
        let image = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask"}],
        }))?;
        let image_name = format!("{}.json", sha256(&image));
        let manifest = json!([{"Config": image_name, "RepoTags": tags, "Layers": ["layer.tar"]}]);

        let mut archive = Tar(Builder::new(BufWriter::new(File::create(to)?)));
        archive.add(
            EntryType::Regular,
            "manifest.json",
            0o644,
            &serde_json::to_vec(&manifest)?,
        )?;
        archive.add(EntryType::Regular, &image_name, 0o644, &image)?;
        archive.add(EntryType::Regular, "layer.tar", 0o644, &layer)?;
        Ok(archive.0.into_inner()?.flush()?)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn sha256(bytes: &[u8]) -> String {
    fixtures::hex(&Sha256::digest(bytes))
}

/// This machine's architecture in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
