//! An image of 500 MB in ten layers from the registry on loopback.

use std::io::Write;
use std::process::{Command, Stdio};

use bytes::Bytes;
use futures_util::TryStreamExt;
use orchestra::{ImageRef, PullImage};
use orchestra_conformance::Settings;
use orchestra_e2e::KnownDriver;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Bench, Outcome};

const LAYERS: usize = 10;
/// Bytes of a layer, unpacked: files of a MiB, half of each of them text.
const LAYER: usize = 50 << 20;

/// One pull against the client's, each from nothing.
pub(crate) async fn ten_layers(bench: &mut Bench) -> Outcome<()> {
    let registry = Settings::from_env()?.registry.ok_or("no registry is given")?;
    let image: ImageRef = format!("{}/bench/ten-layers:1", registry.address()).parse()?;
    let architecture = &bench.driver.info().platform.architecture;
    registry.publish(&image, layout(&image, architecture)?).await?;
    let (driver, client) = (bench.driver.clone(), bench.client.clone());
    let mut pull = PullImage::new(image.clone());
    pull.insecure = driver.info().capabilities.insecure_pull;
    let reset = || async { Ok(driver.remove_image(&image).await?) };
    let ours = || async {
        let mut progress = driver.pull_image(&pull).await?;
        while progress.try_next().await?.is_some() {}
        Ok(())
    };
    let name = image.canonical();
    let args: &[&str] = match bench.known {
        KnownDriver::Docker => &["pull", "--quiet", &name],
        KnownDriver::Podman => &["pull", "--quiet", "--tls-verify=false", &name],
        KnownDriver::Containerd => &["images", "pull", "--plain-http", &name],
    };
    let theirs = || client.run(args);
    let (other, target) = match bench.known {
        KnownDriver::Docker => ("docker pull", ""),
        KnownDriver::Podman => ("podman pull", ""),
        KnownDriver::Containerd => ("ctr images pull", "≤ 0.9"),
    };
    let rounds = bench.rounds.div_ceil(3);
    bench
        .table
        .compare_anew(
            "pull of 500 MB in 10 layers",
            other,
            target,
            rounds,
            reset,
            ours,
            theirs,
        )
        .await?;
    Ok(driver.remove_image(&image).await?)
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Half of it compresses as code does, half not at all.
fn content(state: &mut u64) -> Vec<u8> {
    let words = [
        "function ",
        "return ",
        "const ",
        "module ",
        "if ",
        "else ",
        "{ ",
        "} ",
        "; ",
    ];
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *state >> 33
    };
    let mut bytes = Vec::with_capacity(1 << 20);
    while bytes.len() < 1 << 19 {
        let word = usize::try_from(next()).unwrap_or(0) % words.len();
        bytes.extend_from_slice(words[word].as_bytes());
    }
    while bytes.len() < 1 << 20 {
        bytes.extend_from_slice(&next().to_le_bytes()[..3]);
    }
    bytes
}

fn header(size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn layer(number: usize) -> Outcome<Vec<u8>> {
    let mut state = number as u64 + 1;
    let mut tar = tar::Builder::new(Vec::with_capacity(LAYER + (1 << 20)));
    for file in 0..LAYER >> 20 {
        let bytes = content(&mut state);
        let mut header = header(bytes.len());
        tar.append_data(&mut header, format!("layer{number}/file{file}"), bytes.as_slice())?;
    }
    Ok(tar.into_inner()?)
}

fn compressed(bytes: &[u8]) -> Outcome<Vec<u8>> {
    let mut gzip = Command::new("gzip")
        .arg("-1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = gzip.stdin.take().ok_or("gzip has no input")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes));
        gzip.wait_with_output()
    })?;
    Ok(output.stdout)
}

/// The image as an OCI layout in a tar.
fn layout(image: &ImageRef, architecture: &str) -> Outcome<Bytes> {
    let (mut blobs, mut layers, mut diff_ids) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..LAYERS {
        let tar = layer(number)?;
        diff_ids.push(format!("sha256:{}", digest(&tar)));
        let blob = compressed(&tar)?;
        layers.push(descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &blob));
        blobs.push(blob);
    }
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [descriptor("application/vnd.oci.image.manifest.v1+json", &manifest)],
    });
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = header(bytes.len());
        tar.append_data(&mut header, path, bytes)
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", index.to_string().as_bytes())?;
    for blob in blobs.iter().chain([&config, &manifest]) {
        add(&format!("blobs/sha256/{}", digest(blob)), blob)?;
    }
    tar.into_inner()
        .map(Bytes::from)
        .map_err(|error| format!("{image}: {error}").into())
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", digest(blob)), "size": blob.len()})
}
