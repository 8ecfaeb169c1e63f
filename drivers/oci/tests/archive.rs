//! Imports of archives into a [`DirectoryStore`].

#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::path::Path;

use bytes::Bytes;
use futures_util::StreamExt;
use oci_spec::image::MediaType;
use orchestra::tar::{END, Head, padded};
use orchestra::{ByteStream, Error, ErrorKind, Result};
use orchestra_oci::archive;
use orchestra_oci::content::{self, sha256};
use orchestra_oci::directory::DirectoryStore;
use orchestra_oci::image::Image;
use serde_json::{Value, json};
use support::{TestImage, descriptor, index, noise, tar};

async fn import(folder: &Path, archive: ByteStream) -> Result<Image> {
    let store = DirectoryStore::open(folder).await.unwrap();
    let image = archive::import(&store, archive, &"linux/amd64".parse().unwrap()).await;
    assert_eq!(
        std::fs::read_dir(folder.join("ingest")).unwrap().count(),
        0,
        "nothing half made stays"
    );
    image
}

async fn refusal(members: &[(&str, &[u8])]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let error = import(folder.path(), tar(members)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    error.message().to_owned()
}

fn path(content: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(content).digest())
}

/// The members of an OCI layout: blobs first, as builders write them.
fn layout(images: &[&TestImage], entries: &[Value]) -> Vec<(String, Bytes)> {
    let blobs = images
        .iter()
        .flat_map(|image| image.blobs().chain([image.manifest.clone()]));
    let mut members: Vec<_> = blobs.map(|blob| (path(&blob), blob)).collect();
    members.push(("index.json".to_owned(), index(entries)));
    members.push((
        "oci-layout".to_owned(),
        Bytes::from_static(br#"{"imageLayoutVersion":"1.0.0"}"#),
    ));
    members
}

fn archive_of(members: &[(String, Bytes)]) -> ByteStream {
    let members: Vec<(&str, &[u8])> = members
        .iter()
        .map(|(name, content)| (name.as_str(), &content[..]))
        .collect();
    tar(&members)
}

fn image(seed: u64) -> TestImage {
    TestImage::new("amd64", &[noise(seed, 200_000), noise(seed + 100, 10)])
}

fn docker_manifest(config: &str, layers: &[&str]) -> Vec<u8> {
    json!([{ "Config": config, "RepoTags": ["evil:latest"], "Layers": layers }])
        .to_string()
        .into_bytes()
}

#[tokio::test]
async fn an_oci_layout_keeps_its_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(1);
    let found = import(folder.path(), archive_of(&layout(&[&image], &[image.entry(None)])))
        .await
        .unwrap();
    assert_eq!(found.manifest.digest().to_string(), image.digest());
    let store = DirectoryStore::open(folder.path()).await.unwrap();
    let platform = "linux/amd64".parse().unwrap();
    assert_eq!(Image::load(&store, &found.manifest, &platform).await.unwrap(), found);
    for (layer, bytes) in found.layers.iter().zip(&image.layers) {
        assert_eq!(content::document(&store, layer).await.unwrap(), bytes);
    }
    // Once more: all is there.
    let again = import(folder.path(), archive_of(&layout(&[&image], &[image.entry(None)])))
        .await
        .unwrap();
    assert_eq!(again, found);
}

#[tokio::test]
async fn of_several_platforms_it_is_the_engines_and_of_one_it_is_that() {
    let folder = tempfile::tempdir().unwrap();
    let (amd, arm) = (image(1), TestImage::new("arm64", &[noise(9, 1000)]));
    let platform = |architecture: &str| Some(json!({ "os": "linux", "architecture": architecture }));
    let mut provenance = descriptor(support::MANIFEST, b"{}");
    provenance["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let nested = index(&[arm.entry(platform("arm64")), provenance, amd.entry(platform("amd64"))]);
    let mut members = layout(&[&amd, &arm], &[descriptor(support::INDEX, &nested)]);
    members.insert(0, (path(&nested), nested));
    let found = import(folder.path(), archive_of(&members)).await.unwrap();
    assert_eq!(found.manifest.digest().to_string(), amd.digest());

    let entry = arm.entry(platform("arm64"));
    // One image under two names is one image.
    let members = layout(&[&arm], &[entry.clone(), entry.clone()]);
    let found = import(folder.path(), archive_of(&members)).await.unwrap();
    assert_eq!(found.platform().to_string(), "linux/arm64");
}

#[tokio::test]
async fn of_two_images_none_is_taken() {
    let (one, two) = (image(1), image(2));
    let amd64 = || Some(json!({ "os": "linux", "architecture": "amd64" }));
    for entries in [
        [one.entry(amd64()), two.entry(amd64())],
        [one.entry(None), two.entry(None)],
        [one.entry(None), two.entry(amd64())],
    ] {
        let members = layout(&[&one, &two], &entries);
        let members: Vec<(&str, &[u8])> = members
            .iter()
            .map(|(name, bytes)| (name.as_str(), &bytes[..]))
            .collect();
        assert_eq!(refusal(&members).await, "the archive holds 2 images; it must hold one");
    }
}

#[tokio::test]
async fn a_docker_archive_gets_a_manifest_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(1);
    let config = format!("{}.json", sha256(&image.config).digest());
    // Names that are written in more than one way, and what docker's oldest form has besides.
    let list = docker_manifest(&config, &["a/layer.tar", "./b/layer.tar"]);
    let members: [(&str, &[u8]); 8] = [
        ("manifest.json", &list),
        ("repositories", b"{}"),
        (&config, &image.config),
        ("./a/layer.tar", &image.layers[0]),
        ("a/json", b"{}"),
        ("a/VERSION", b"1.0"),
        ("b/layer.tar", &image.layers[1]),
        ("b/json", b"{}"),
    ];
    let found = import(folder.path(), tar(&members)).await.unwrap();
    let digests: Vec<_> = found.layers.iter().map(|layer| layer.digest().clone()).collect();
    assert_eq!(digests, found.diff_ids);
    assert_eq!(found.config_descriptor.digest(), &sha256(&image.config));
    assert!(
        found
            .layers
            .iter()
            .all(|layer| *layer.media_type() == MediaType::ImageLayer)
    );
    let again = import(folder.path(), tar(&members)).await.unwrap();
    assert_eq!(again, found, "the same archive is the same image");
}

#[tokio::test]
async fn a_hybrid_of_both_forms_is_one_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(1);
    let mut members = layout(&[&image], &[image.entry(None)]);
    let (config, layers) = (path(&image.config), image.layers.iter().map(|layer| path(layer)));
    let layers: Vec<String> = layers.collect();
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    members.push(("manifest.json".to_owned(), docker_manifest(&config, &layers).into()));
    let found = import(folder.path(), archive_of(&members)).await.unwrap();
    assert_eq!(found.layers.len(), 2);
    assert_eq!(found.config_descriptor.digest(), &sha256(&image.config));
}

#[tokio::test]
async fn a_layer_may_be_a_link_to_another_ones() {
    let image = TestImage::new("amd64", &[noise(1, 5000), noise(1, 5000), noise(1, 5000)]);
    let mut pieces = Vec::new();
    let mut file = |name: &str, content: &[u8]| {
        pieces.extend(Head::file(content.len() as u64).blocks(name));
        pieces.push(padded(content));
    };
    file("c.json", &image.config);
    file("a/layer.tar", &image.layers[0]);
    file(
        "manifest.json",
        &docker_manifest("c.json", &["a/layer.tar", "b/layer.tar", "c/layer.tar"]),
    );
    for (name, kind, target) in [
        ("b/layer.tar", b'2', "../a/layer.tar"),
        ("c/layer.tar", b'1', "b/layer.tar"),
    ] {
        let mut block = Head::file(0).blocks(name)[0].to_vec();
        block[156] = kind;
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        pieces.push(block.into());
    }
    pieces.push(END);
    let folder = tempfile::tempdir().unwrap();
    let stream = futures_util::stream::iter(pieces.into_iter().map(Ok)).boxed();
    let found = import(folder.path(), stream).await.unwrap();
    assert!(found.layers.iter().all(|layer| *layer.digest() == found.diff_ids[0]));
    // The specification's own formula: each digest is taken of the one below and the layer's own.
    let chain = found.chain_ids();
    assert_eq!((chain.len(), &chain[0]), (3, &found.diff_ids[0]));
    assert_eq!(
        chain[2],
        sha256(format!("{} {}", chain[1], found.diff_ids[2]).as_bytes())
    );
}

#[tokio::test]
async fn how_a_layer_is_packed_is_seen_from_its_first_bytes() {
    let packed = |magic: &[u8]| Bytes::from([magic, &noise(5, 100)[..]].concat());
    let layers = [packed(b"\x1f\x8b\x08"), packed(b"\x28\xb5\x2f\xfd"), packed(b"plain")];
    let image = TestImage::new("amd64", &layers);
    let list = docker_manifest("sha256:c", &["a", "b", "c"]);
    let members: [(&str, &[u8]); 5] = [
        ("a", &layers[0]),
        ("b", &layers[1]),
        ("c", &layers[2]),
        ("sha256:c", &image.config),
        ("manifest.json", &list),
    ];
    let folder = tempfile::tempdir().unwrap();
    let found = import(folder.path(), tar(&members)).await.unwrap();
    let kinds: Vec<_> = found.layers.iter().map(|layer| layer.media_type().clone()).collect();
    assert_eq!(
        kinds,
        [
            MediaType::ImageLayerGzip,
            MediaType::ImageLayerZstd,
            MediaType::ImageLayer
        ]
    );

    let xz = packed(b"\xfd7zXZ\0");
    let image = TestImage::new("amd64", std::slice::from_ref(&xz));
    let list = docker_manifest("c", &["l"]);
    let error = import(
        folder.path(),
        tar(&[("l", &xz), ("c", &image.config), ("manifest.json", &list)]),
    )
    .await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("xz"), "{error}");
}

#[tokio::test]
async fn what_is_not_one_image_is_refused_with_the_reason() {
    let (a, b) = (image(1), image(2));
    assert!(refusal(&[("hello", b"world")]).await.contains("neither index.json"));
    assert!(refusal(&[]).await.contains("neither index.json"));
    assert!(
        refusal(&[("manifest.json", b"no json")])
            .await
            .contains("can't be read")
    );
    assert!(refusal(&[("index.json", b"no json")]).await.contains("can't be read"));
    assert!(refusal(&[("manifest.json", b"[]")]).await.contains("0 images"));
    let two = br#"[{"Config":"a","Layers":null},{"Config":"b"}]"#;
    assert!(refusal(&[("manifest.json", two)]).await.contains("2 images"));
    let lacking = docker_manifest("c", &["l"]);
    assert!(
        refusal(&[("c", &a.config), ("manifest.json", &lacking)])
            .await
            .contains("names l, which the archive lacks")
    );
    let circle = br#"[{"Config":"c","Layers":null}]"#;
    assert!(refusal(&[("manifest.json", circle)]).await.contains("names c"));

    let of = |members: Vec<(String, Bytes)>| async move {
        let members: Vec<(&str, &[u8])> = members
            .iter()
            .map(|(name, bytes)| (name.as_str(), &bytes[..]))
            .collect();
        refusal(&members).await
    };
    assert!(
        of(layout(&[&a, &b], &[a.entry(None), b.entry(None)]))
            .await
            .contains("2 images")
    );
    assert!(of(layout(&[&a], &[b.entry(None)])).await.contains("the archive lacks"));
    let mut members = layout(&[&a], &[a.entry(None)]);
    members.remove(0);
    assert!(of(members).await.contains("the archive lacks"));
    let mut members = layout(&[&a], &[a.entry(None)]);
    members[0].1 = noise(77, members[0].1.len());
    assert!(of(members).await.contains("not that of its digest"));
    let mut members = layout(&[&a], &[a.entry(None)]);
    members[3].1 = b.manifest.clone();
    assert!(
        of(members).await.contains("not that of its digest"),
        "a manifest is checked too"
    );
    // An index that names itself.
    let entry = json!({ "mediaType": support::INDEX, "digest": sha256(b"x").to_string(), "size": 1 });
    let inner = index(std::slice::from_ref(&entry));
    let name = path(b"x");
    assert!(
        refusal(&[(&name, &inner), ("index.json", &index(&[entry]))])
            .await
            .contains("too deeply")
    );
}

#[tokio::test]
async fn an_archive_that_breaks_ends_with_its_own_error() {
    let image = image(1);
    let folder = tempfile::tempdir().unwrap();
    let list = docker_manifest("c", &["l"]);
    let whole = tar(&[("l", &image.layers[0]), ("c", &image.config), ("manifest.json", &list)]);
    let broken = futures_util::stream::iter([Err(Error::new(ErrorKind::Cancelled, "the source broke"))]);
    let error = import(folder.path(), whole.take(3).chain(broken).boxed())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let whole = tar(&[("l", &image.layers[0]), ("c", &image.config), ("manifest.json", &list)]);
    let error = import(folder.path(), whole.take(3).boxed()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "cut off");
}
