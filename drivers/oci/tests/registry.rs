//! Pulls into a [`DirectoryStore`]: from a registry that fails in ways that no real one does on demand, and from Debian's
//! `docker-registry` where this machine has it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends where it fails, and says what it skips"
)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use oci_spec::image::Digest;
use orchestra::{Credentials, Error, ErrorKind, ImageRef, Platform, PullEvent, PullImage, Result};
use orchestra_oci::content::{ContentStore, sha256};
use orchestra_oci::directory::DirectoryStore;
use orchestra_oci::image::Image;
use orchestra_oci::registry;
use serde_json::json;
use support::{Fault, Server, TestImage, descriptor, index, noise};
use tokio::sync::mpsc;

const SIZE: usize = 3_000_000;

async fn store(folder: &Path) -> Arc<DirectoryStore> {
    Arc::new(DirectoryStore::open(folder).await.unwrap())
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// Pulls to the end, in a task of its own as drivers do.
async fn pull(store: &Arc<DirectoryStore>, pull: &PullImage) -> Result<(Image, Vec<usize>, Vec<PullEvent>)> {
    let (progress, mut events) = mpsc::channel(1);
    let (store, pull): (Arc<dyn ContentStore>, _) = (store.clone(), pull.clone());
    let work = tokio::spawn(async move {
        let resolved = registry::resolve(store, &pull, &amd64(), progress).await?;
        let places: Vec<usize> = resolved.layers().try_collect().await?;
        Ok::<_, Error>((resolved.image, places))
    });
    let mut seen = Vec::new();
    while let Some(event) = events.recv().await {
        seen.push(event);
    }
    let (image, places) = work.await.unwrap()?;
    Ok((image, places, seen))
}

async fn kind_of(store: &Arc<DirectoryStore>, one: &PullImage) -> ErrorKind {
    pull(store, one).await.unwrap_err().kind()
}

/// Whether the store has exactly these bytes.
async fn has(store: &DirectoryStore, blob: &Bytes) -> bool {
    let path = store.blob(&sha256(blob)).unwrap();
    tokio::fs::read(path).await.is_ok_and(|found| found == *blob)
}

/// Files of blobs that are not whole.
fn halves(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("ingest")).unwrap().count()
}

fn image(layers: u64) -> TestImage {
    let layers: Vec<Bytes> = (1..=layers).map(|seed| noise(seed, SIZE)).collect();
    TestImage::new("amd64", &layers)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_whole_and_its_layers_are_told_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let mut image = image(6);
    // One layer twice: it comes once.
    image = TestImage::new("amd64", &[&image.layers[..], &image.layers[..1]].concat());
    server.push("v1", &image);
    let (found, places, events) = pull(&store, &server.pull("v1")).await.unwrap();
    assert_eq!(places, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(found.manifest.digest().to_string(), image.digest());
    assert_eq!(found.diff_ids.len(), 7);
    for blob in image.blobs().chain([image.manifest.clone()]) {
        assert!(has(&store, &blob).await);
    }
    assert_eq!(server.requests(sha256(&image.layers[0]).digest()).len(), 1);
    assert_eq!(halves(folder.path()), 0);
    let complete =
        |event: &&PullEvent| matches!(event, PullEvent::Layer { status, .. } if status == "Download complete");
    assert_eq!(events.iter().filter(complete).count(), 6);
    let loaded = Image::load(&*store, &found.manifest, &amd64()).await.unwrap();
    assert_eq!(loaded, found);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_is_not_fetched_again_but_the_name_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    server.push("v1", &image(2));
    pull(&store, &server.pull("v1")).await.unwrap();
    let before = server.requests("/blobs/").len();
    let (_, places, _) = pull(&store, &server.pull("v1")).await.unwrap();
    assert_eq!(
        (places.as_slice(), server.requests("/blobs/").len()),
        (&[0, 1][..], before)
    );
    assert_eq!(server.requests("/manifests/v1").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_it_is_the_platforms_own_image() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let platform = |architecture: &str, variant: Option<&str>| {
        let mut platform = json!({ "os": "linux", "architecture": architecture });
        if let Some(variant) = variant {
            platform["variant"] = variant.into();
        }
        Some(platform)
    };
    let image = |architecture: &str, seed| TestImage::new(architecture, &[noise(seed, 100)]);
    let (amd, arm, v6) = (image("amd64", 1), image("arm64", 2), image("arm", 3));
    for one in [&amd, &arm, &v6] {
        server.push("unused", one);
    }
    let mut provenance = descriptor(support::MANIFEST, b"{}");
    provenance["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    provenance["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let entries = [
        arm.entry(platform("arm64", Some("v8"))),
        v6.entry(platform("arm", Some("v6"))),
        provenance,
        amd.entry(platform("amd64", None)),
    ];
    let inner = index(&entries);
    server.tag("inner", &inner);
    let outer = index(&[{
        let mut entry = descriptor(support::INDEX, &inner);
        entry["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        entry
    }]);
    server.tag("multi", &inner);
    server.tag("nested", &outer);
    for (tag, wanted, expected) in [
        ("multi", None, &amd),
        ("nested", None, &amd),
        ("multi", Some("linux/arm64"), &arm),
        ("multi", Some("linux/arm64/v8"), &arm),
        ("multi", Some("linux/arm/v7"), &v6),
    ] {
        let mut one = server.pull(tag);
        one.platform = wanted.map(|wanted| wanted.parse().unwrap());
        let (found, _, _) = pull(&store, &one).await.unwrap();
        assert_eq!(
            found.manifest.digest().to_string(),
            expected.digest(),
            "{tag} {wanted:?}"
        );
    }
    for wanted in ["linux/s390x", "linux/arm/v5", "windows/amd64"] {
        let mut one = server.pull("multi");
        one.platform = Some(wanted.parse().unwrap());
        let error = pull(&store, &one).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageNotFound);
        assert!(
            error.message().contains("linux/arm64/v8, linux/arm/v6, linux/amd64"),
            "{error}"
        );
    }
    // Without an index the configuration says it.
    server.push("single", &arm);
    let mut one = server.pull("single");
    assert!(
        pull(&store, &one).await.is_ok(),
        "who asks for no platform gets what there is"
    );
    one.platform = Some(amd64());
    assert_eq!(kind_of(&store, &one).await, ErrorKind::ImageNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_breaks_off_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let image = image(1);
    server.push("v1", &image);
    let layer = sha256(&image.layers[0]);
    server.fault(
        layer.to_string(),
        &[Fault::Cut(1_000_000), Fault::Cut(1_000_000), Fault::Status(503)],
    );
    pull(&store, &server.pull("v1")).await.unwrap();
    assert!(has(&store, &image.layers[0]).await);
    let requests = server.requests(layer.digest());
    let from: Vec<usize> = requests
        .iter()
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!((from.len(), from[0]), (4, 0));
    assert!(
        from[1] > 900_000 && from[2] > 1_900_000 && from[3] == from[2],
        "{from:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_serves_no_parts_serves_the_whole_again() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let image = image(1);
    server.push("v1", &image);
    server.fault(
        sha256(&image.layers[0]).to_string(),
        &[Fault::Cut(1_500_000), Fault::Whole],
    );
    pull(&store, &server.pull("v1")).await.unwrap();
    assert!(has(&store, &image.layers[0]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_left_goes_on_in_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let image = image(1);
    server.push("v1", &image);
    let layer = sha256(&image.layers[0]);
    server.fault(layer.to_string(), &[Fault::Hang(2_500_000)]);
    let (progress, events) = mpsc::channel(100);
    let shared: Arc<dyn ContentStore> = store.clone();
    let resolved = registry::resolve(shared, &server.pull("v1"), &amd64(), progress)
        .await
        .unwrap();
    let mut layers = resolved.layers();
    let waiting = tokio::time::timeout(Duration::from_secs(2), layers.try_next()).await;
    assert!(waiting.is_err(), "it hangs");
    drop((layers, events));
    assert!(!has(&store, &image.layers[0]).await, "half a blob is none");
    // What was abandoned ends a moment later, and with it its hold on the file.
    tokio::time::sleep(Duration::from_millis(200)).await;
    pull(&store, &server.pull("v1")).await.unwrap();
    assert!(has(&store, &image.layers[0]).await);
    let second = server.requests(layer.digest()).pop().unwrap();
    let from: usize = second.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(from >= 1 << 20, "it went on from {from}");
    assert_eq!(halves(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_than_the_digests_are_refused_and_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let image = image(2);
    server.push("v1", &image);
    server.fault(sha256(&image.layers[1]).to_string(), &[Fault::Wrong; 9]);
    let error = pull(&store, &server.pull("v1")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::Registry, false),
        "{error:?}"
    );
    assert!(!has(&store, &image.layers[1]).await);
    // A first half that is wrong is no reason to fail for ever.
    server.fault(sha256(&image.layers[1]).to_string(), &[Fault::WrongCut(2_000_000)]);
    pull(&store, &server.pull("v1")).await.unwrap();
    assert!(has(&store, &image.layers[1]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_never_recovers_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let image = image(1);
    server.push("v1", &image);
    let layer = sha256(&image.layers[0]);
    server.fault(layer.to_string(), &[Fault::Status(503); 99]);
    let error = pull(&store, &server.pull("v1")).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Registry, true));
    assert!(server.requests(layer.digest()).len() < 10);
    // It failed once and is there again.
    server.fault(layer.to_string(), &[Fault::Status(503)]);
    server.fault("v1", &[Fault::Status(503)]);
    pull(&store, &server.pull("v1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_lacks_is_not_found_and_what_the_image_lacks_is_its_fault() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let image = image(1);
    let error = pull(&store, &server.pull("nowhere")).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::ImageNotFound, false));
    server.tag("hollow", &image.manifest);
    assert_eq!(kind_of(&store, &server.pull("hollow")).await, ErrorKind::Registry);
    let strange = Bytes::from_static(b"{\"schemaVersion\":1,\"fsLayers\":[]}");
    server.tag("old", &strange);
    assert_eq!(kind_of(&store, &server.pull("old")).await, ErrorKind::Registry);
    let packed = String::from_utf8(image.manifest.to_vec())
        .unwrap()
        .replace("layer.v1.tar", "layer.v1.tar+xz");
    server.tag("packed", &packed.into());
    assert_eq!(kind_of(&store, &server.pull("packed")).await, ErrorKind::Unsupported);
    // A registry that answers a digest with something else.
    let other = sha256(b"other");
    server.push("v1", &image);
    server.tag(other.as_ref(), &image.manifest);
    assert_eq!(kind_of(&store, &server.pull(other.as_ref())).await, ErrorKind::Registry);
    assert!(pull(&store, &server.pull(&image.digest())).await.is_ok());
    assert_eq!(halves(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_got_with_the_password_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    server.push("v1", &image(2));
    server.want_token("hunter2-token");
    let mut one = server.pull("v1");
    assert_eq!(kind_of(&store, &one).await, ErrorKind::Unauthorized);
    one.credentials = Some(Credentials::new("u", "wrong-hunter2"));
    let error = pull(&store, &one).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    one.credentials = Some(Credentials::new("u", "p"));
    pull(&store, &one).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_at_once_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let image = image(3);
    server.push("v1", &image);
    let one = server.pull("v1");
    let (a, b, c) = tokio::join!(pull(&store, &one), pull(&store, &one), pull(&store, &one));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    for layer in &image.layers {
        assert!(has(&store, layer).await);
    }
    assert_eq!(halves(folder.path()), 0);
}

/// Debian's registry, as long as this lives.
struct RealRegistry {
    address: String,
    _process: tokio::process::Child,
    _folder: tempfile::TempDir,
}

impl RealRegistry {
    /// `None` where this machine has none.
    async fn start(htpasswd: Option<&str>) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let address = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        let root = folder.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\nhttp: {{addr: {address}}}\n"
        );
        if let Some(line) = htpasswd {
            std::fs::write(folder.path().join("htpasswd"), line).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n");
        }
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let mut command = tokio::process::Command::new("docker-registry");
        command.arg("serve").arg(&path).kill_on_drop(true);
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let Ok(process) = command.spawn() else {
            println!("skipped: this machine has no docker-registry");
            return None;
        };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(&address).await.is_ok() {
                return Some(Self {
                    address,
                    _process: process,
                    _folder: folder,
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("docker-registry does not listen");
    }

    async fn push(&self, image: &TestImage, auth: oci_client::secrets::RegistryAuth) -> ImageRef {
        let config = oci_client::client::ClientConfig {
            protocol: oci_client::client::ClientProtocol::Http,
            ..Default::default()
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = oci_client::Client::new(config);
        let name = format!("{}/team/app:v1", self.address);
        let reference: oci_client::Reference = name.parse().unwrap();
        client.store_auth_if_needed(&self.address, &auth).await;
        for blob in image.blobs() {
            client
                .push_blob(&reference, blob.clone(), sha256(&blob).as_ref())
                .await
                .unwrap();
        }
        let kind = support::MANIFEST.parse().unwrap();
        client
            .push_manifest_raw(&reference, image.manifest.clone(), kind)
            .await
            .unwrap();
        name.parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_serves_an_image_of_ten_layers() {
    let Some(registry) = RealRegistry::start(None).await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let image = image(10);
    let name = registry
        .push(&image, oci_client::secrets::RegistryAuth::Anonymous)
        .await;
    let (found, places, _) = pull(&store, &PullImage::new(name)).await.unwrap();
    assert_eq!(places.len(), 10);
    assert_eq!(found.manifest.digest(), &Digest::try_from(image.digest()).unwrap());
    for layer in &image.layers {
        assert!(has(&store, layer).await);
    }
    let lacking = PullImage::new(format!("{}/team/app:v2", registry.address).parse().unwrap());
    assert_eq!(kind_of(&store, &lacking).await, ErrorKind::ImageNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_wants_the_right_password() {
    // `u:p`, by bcrypt of the lowest cost.
    let line = format!("u:{}\n", bcrypt::hash("p", 4).unwrap());
    let Some(registry) = RealRegistry::start(Some(&line)).await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let auth = oci_client::secrets::RegistryAuth::Basic("u".to_owned(), "p".to_owned());
    let mut one = PullImage::new(registry.push(&image(1), auth).await);
    assert_eq!(kind_of(&store, &one).await, ErrorKind::Unauthorized);
    one.credentials = Some(Credentials::new("u", "wrong"));
    assert_eq!(kind_of(&store, &one).await, ErrorKind::Unauthorized);
    one.credentials = Some(Credentials::new("u", "p"));
    pull(&store, &one).await.unwrap();
}

#[tokio::test]
async fn where_no_registry_listens_the_error_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let error = pull(&store, &PullImage::new("127.0.0.1:1/app:v1".parse().unwrap()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.message().contains("127.0.0.1:1 can't be reached"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_slow_keeps_no_other_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    let image = image(4);
    server.push("v1", &image);
    server.fault(sha256(&image.layers[0]).digest(), &[Fault::Hang(1000)]);
    let one = server.pull("v1");
    let pulling = tokio::spawn(async move { pull(&store, &one).await.map(drop) });
    let fetched = async {
        for layer in &image.layers {
            while server.requests(sha256(layer).digest()).is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let fetched = tokio::time::timeout(Duration::from_secs(20), fetched).await;
    assert!(fetched.is_ok(), "{:?}", server.requests("/blobs/"));
    assert!(!pulling.is_finished());
    pulling.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_plain_http_is_for_registries_that_are_said_to_be_insecure() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = (Server::start().await, store(folder.path()).await);
    server.push("v1", &image(1));
    // An old way to write 127.0.0.1, which is no address to those who look for one of loopback.
    let port = server.address.rsplit(':').next().unwrap();
    let mut one = PullImage::new(format!("127.1:{port}/app:v1").parse().unwrap());
    let refused = pull(&store, &one).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Registry, "{refused}");
    assert!(server.requests("/v2/").is_empty(), "{:?}", server.requests("/v2/"));
    one.insecure = true;
    let (_, places, _) = pull(&store, &one).await.unwrap();
    assert_eq!(places, [0]);
}
