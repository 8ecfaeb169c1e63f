//! The program as an image.

use bytes::{Bytes, BytesMut};
use orchestra::tar::{END, Head};
use orchestra::{ByteStream, Labels, Platform};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Where the program is in it.
pub(crate) const PROGRAM: &str = "/orchestra-helper";

/// The program for a platform: `None` for another one than this process runs on, and where it could not be compiled.
pub(crate) fn program(platform: &Platform) -> Option<&'static [u8]> {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = platform.os == "linux" && platform.architecture == own;
    orchestra_helper::program(std::env::consts::ARCH).filter(|_| fits)
}

/// A docker archive of an image that holds the program and nothing else.
pub(crate) fn archive(program: &'static [u8], platform: &Platform, labels: &Labels) -> ByteStream {
    let mut layer = BytesMut::new();
    let head = Head {
        mode: 0o755,
        ..Head::file(program.len() as u64)
    };
    put(&mut layer, &head, PROGRAM.trim_start_matches('/'), program);
    layer.extend_from_slice(&END);
    let digest: String = Sha256::digest(&layer)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": { "Entrypoint": [PROGRAM], "Labels": labels },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [], "Layers": ["layer.tar"] }]);
    let mut archive = BytesMut::new();
    for (name, content) in [
        ("layer.tar", layer.freeze()),
        ("config.json", config.to_string().into()),
        ("manifest.json", manifest.to_string().into()),
    ] {
        let content: Bytes = content;
        put(&mut archive, &Head::file(content.len() as u64), name, &content);
    }
    archive.extend_from_slice(&END);
    orchestra::stream::once(archive.freeze())
}

fn put(tar: &mut BytesMut, head: &Head, name: &str, content: &[u8]) {
    for block in head.blocks(name) {
        tar.extend_from_slice(&block);
    }
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
