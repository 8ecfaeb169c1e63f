//! What is docker's alone: how the engine is found and spoken to, and what the driver makes of its ways. What all drivers
//! promise is tested by the conformance suite.
//!
//! Tests of a real engine run where `ORCHESTRA_TEST_DRIVER` is `docker` (`cargo xtask with -- cargo test …`) and else
//! say why they do not.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends where it fails, and says what it skips"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bollard::Docker;
use bollard::query_parameters::{ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListVolumesOptions};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use orchestra::{
    ByteStream, ContainerId, ContainerSpec, Created, Credentials, Driver, Error, ErrorKind, ExitStatus, ImageRef,
    JobId, Labels, LogStream, NetworkMode, PullImage, ResourceKind, Result, VolumeId, VolumePath, VolumeSpec, labels,
};
use orchestra_docker::{DockerConfig, DockerDriver, TlsConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

/// The engine's socket, or `None` where none is there to test with.
fn socket() -> Option<String> {
    if std::env::var("ORCHESTRA_TEST_DRIVER").is_ok_and(|driver| driver == "docker") {
        let host = std::env::var("DOCKER_HOST").unwrap_or_default();
        return Some(
            host.strip_prefix("unix://")
                .unwrap_or("/var/run/docker.sock")
                .to_owned(),
        );
    }
    println!("skipped: ORCHESTRA_TEST_DRIVER is not docker");
    None
}

fn host(host: impl Into<String>) -> DockerConfig {
    DockerConfig {
        host: Some(host.into()),
        ..DockerConfig::default()
    }
}

async fn connect(config: DockerConfig) -> DockerDriver {
    DockerDriver::connect(config).await.unwrap()
}

async fn kind_of(config: DockerConfig) -> ErrorKind {
    DockerDriver::connect(config).await.unwrap_err().kind()
}

fn job() -> (JobId, Labels) {
    let job = JobId::unique();
    let labels = Labels::from([(labels::JOB.to_owned(), job.to_string())]);
    (job, labels)
}

fn spec(image: &str, labels: &Labels, script: &str) -> ContainerSpec {
    let mut spec = ContainerSpec::new(image.parse().unwrap());
    spec.entrypoint = Some(["sh", "-c", script].map(str::to_owned).to_vec());
    spec.labels = labels.clone();
    spec.network = NetworkMode::None;
    spec
}

fn image() -> String {
    std::env::var("ORCHESTRA_TEST_IMAGE").unwrap()
}

async fn text(logs: LogStream) -> String {
    let bytes: Vec<Bytes> = logs.map_ok(|chunk| chunk.bytes).try_collect().await.unwrap();
    String::from_utf8(bytes.concat()).unwrap()
}

/// Runs a container to its end; what it wrote and how it ended.
async fn run(driver: &DockerDriver, id: &str, spec: &ContainerSpec, stdin: Option<ByteStream>) -> (String, ExitStatus) {
    let id = ContainerId::new(id).unwrap();
    assert_eq!(driver.create_container(&id, spec).await.unwrap(), Created::New);
    let logs = driver.logs(&id, true).await.unwrap();
    driver.start_container(&id, stdin).await.unwrap();
    let (text, exit) = tokio::join!(text(logs), driver.wait_container(&id));
    driver.remove_container(&id).await.unwrap();
    (text, exit.unwrap())
}

/// An HTTP server on loopback that knows these answers. Its address, and the paths that it was asked for.
async fn fake(version: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(connection.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split(' ').nth(1).unwrap().to_owned();
            let body = if path.ends_with("/version") {
                version
            } else {
                r#"{"MemoryLimit":true}"#
            };
            seen.lock().unwrap().push(path);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            connection.write_all((head + body).as_bytes()).await.unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn an_engine_before_20_10_is_refused_with_what_is_needed() {
    let (address, _) = fake(r#"{"Version":"19.03.15","ApiVersion":"1.40","MinAPIVersion":"1.12"}"#).await;
    let error = DockerDriver::connect(host(format!("tcp://{address}")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.message().contains("19.03.15 speaks API 1.40; at least 1.41"),
        "{error}"
    );
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn an_engine_is_asked_in_the_version_that_was_agreed_on() {
    let version = r#"{"Version":"99","ApiVersion":"1.99","MinAPIVersion":"1.44","Os":"linux","Arch":"arm64"}"#;
    let (address, asked) = fake(version).await;
    let driver = connect(host(format!("http://{address}/"))).await;
    driver.ping().await.unwrap();
    assert_eq!(*asked.lock().unwrap(), ["/version", "/v1.51/info", "/v1.51/_ping"]);
    let info = driver.info();
    assert_eq!(
        (info.api_version.as_str(), info.platform.to_string().as_str()),
        ("1.51", "linux/arm64")
    );
    assert!(info.capabilities.memory_limit && !info.capabilities.pids_limit);
}

#[tokio::test]
async fn an_engine_without_linux_containers_is_refused() {
    let version = r#"{"ApiVersion":"1.45","Os":"windows","Arch":"amd64"}"#;
    let (address, _) = fake(version).await;
    assert_eq!(kind_of(host(format!("tcp://{address}"))).await, ErrorKind::Unsupported);
}

#[tokio::test]
async fn what_answers_but_is_no_engine_is_told_apart_from_what_does_not_answer() {
    let (address, _) = fake("<html>").await;
    assert_eq!(kind_of(host(format!("tcp://{address}"))).await, ErrorKind::Protocol);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(kind_of(host(format!("tcp://{closed}"))).await, ErrorKind::Unreachable);
    assert_eq!(
        kind_of(host("unix:///nowhere/docker.sock")).await,
        ErrorKind::Unreachable
    );
    let folder = tempfile::tempdir().unwrap();
    let abandoned = folder.path().join("docker.sock");
    drop(std::os::unix::net::UnixListener::bind(&abandoned).unwrap());
    assert_eq!(
        kind_of(host(format!("unix://{}", abandoned.display()))).await,
        ErrorKind::Unreachable
    );
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(
        kind_of(host(format!("tcp://{address}"))).await,
        ErrorKind::DeadlineExceeded
    );
}

/// Certificates of an authority that only this test knows, as files of a folder.
fn certificates(folder: &Path) -> tokio_rustls::TlsAcceptor {
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = key();
    let root = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let signed = |name: &str| {
        let key = key();
        let params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let (client, client_key) = signed("client");
    for (name, content) in [
        ("ca.pem", root.pem()),
        ("cert.pem", client.pem()),
        ("key.pem", client_key.serialize_pem()),
    ] {
        std::fs::write(folder.join(name), content).unwrap();
    }
    let (server, server_key) = signed("127.0.0.1");
    let mut roots = RootCertStore::empty();
    roots.add(root.der().clone()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![server.der().clone()],
            PrivateKeyDer::Pkcs8(server_key.serialize_der().into()),
        )
        .unwrap();
    Arc::new(config).into()
}

/// Makes the engine answer on a port of loopback too, by TLS if it is given an acceptor.
async fn proxy(socket: String, tls: Option<tokio_rustls::TlsAcceptor>) -> String {
    async fn pass(mut from: impl AsyncRead + AsyncWrite + Unpin, socket: String) {
        let mut engine = UnixStream::connect(socket).await.unwrap();
        // A client that hangs up is no failure of the proxy's.
        let _ = tokio::io::copy_bidirectional(&mut from, &mut engine).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (tls, socket) = (tls.clone(), socket.clone());
            tokio::spawn(async move {
                match tls {
                    None => pass(connection, socket).await,
                    Some(tls) => {
                        if let Ok(connection) = tls.accept(connection).await {
                            pass(connection, socket).await;
                        }
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_container_reads_and_writes_through_tcp_and_through_tls() {
    let Some(socket) = socket() else { return };
    let folder = tempfile::tempdir().unwrap();
    let acceptor = certificates(folder.path());
    let plain = host(format!("tcp://{}", proxy(socket.clone(), None).await));
    let mut secure = host(format!("tcp://{}", proxy(socket, Some(acceptor)).await));
    let file = |name: &str| folder.path().join(name);
    secure.tls = Some(TlsConfig {
        ca: file("ca.pem"),
        cert: file("cert.pem"),
        key: file("key.pem"),
    });
    for config in [plain, secure.clone()] {
        let driver = connect(config).await;
        let (job, labels) = job();
        let mut spec = spec(&image(), &labels, "md5sum; exit 5");
        spec.stdin = true;
        let pieces = (0..64u8).map(|piece| Ok(Bytes::from(vec![piece; 65_536])));
        let stdin = stream::iter(pieces.collect::<Vec<_>>()).boxed();
        let (text, exit) = run(&driver, &format!("orchestra.{job}.tcp"), &spec, Some(stdin)).await;
        assert_eq!(
            (text.as_str(), exit),
            ("b0ab79223c41464492767fa03cf7bf4a  -\n", ExitStatus::Code(5))
        );
    }
    // Without the client's certificate, and without the authority's, nobody gets in.
    let stranger = tempfile::tempdir().unwrap();
    certificates(stranger.path());
    let tls = secure.tls.as_mut().unwrap();
    tls.ca = stranger.path().join("ca.pem");
    assert_eq!(kind_of(secure).await, ErrorKind::Unreachable);
}

/// Names of all that the engine holds.
async fn holds(docker: &Docker) -> BTreeSet<String> {
    let all = ListContainersOptionsBuilder::new().all(true).build();
    let containers = docker
        .list_containers(Some(all))
        .await
        .unwrap()
        .into_iter()
        .filter_map(|found| found.id);
    let volumes = docker
        .list_volumes(None::<ListVolumesOptions>)
        .await
        .unwrap()
        .volumes
        .unwrap_or_default();
    let images = docker
        .list_images(Some(ListImagesOptionsBuilder::new().all(true).build()))
        .await
        .unwrap();
    let images = images
        .into_iter()
        .flat_map(|image| image.repo_tags.into_iter().chain([image.id]));
    containers
        .chain(volumes.into_iter().map(|volume| volume.name))
        .chain(images)
        .collect()
}

fn bollard() -> Docker {
    Docker::connect_with_unix(&socket().unwrap(), 60, bollard::API_DEFAULT_VERSION).unwrap()
}

fn files(names: &[&str]) -> Vec<orchestra::InjectedFile> {
    let file =
        |name: &&str| orchestra::InjectedFile::new(format!("/{name}").parse().unwrap(), format!("{name}'s content"));
    names.iter().map(file).collect()
}

async fn tar(names: &[&str]) -> ByteStream {
    orchestra::stream::once(orchestra::tar_of_files(&files(names)).await.unwrap())
}

#[tokio::test]
async fn reading_and_writing_volumes_leaves_nothing_in_the_engine() {
    if socket().is_none() {
        return;
    }
    let (driver, docker) = (connect(DockerConfig::default()).await, bollard());
    let before = holds(&docker).await;
    let (job, labels) = job();
    let root = [VolumePath::root()];
    for labels in [labels, Labels::new()] {
        let volume = VolumeId::new(format!("orchestra.{job}.v")).unwrap();
        assert_eq!(
            driver
                .create_volume(&volume, &VolumeSpec::new(labels.clone()))
                .await
                .unwrap(),
            Created::New
        );
        assert_eq!(
            driver.create_volume(&volume, &VolumeSpec::new(labels)).await.unwrap(),
            Created::Existing
        );
        let writes = ["a", "b", "c", "d"].map(|name| {
            let (driver, volume) = (&driver, &volume);
            async move {
                driver
                    .write_volume(volume, &VolumePath::root(), tar(&[name]).await)
                    .await
            }
        });
        futures_util::future::try_join_all(writes).await.unwrap();
        let read = driver.read_volume(&volume, &root).await.unwrap();
        let content = orchestra::file_from_tar(read, &"c".parse().unwrap()).await.unwrap();
        assert_eq!(content.try_collect::<Vec<_>>().await.unwrap().concat(), b"c's content");
        // Readers that give up at once and in the middle.
        drop(driver.read_volume(&volume, &root).await.unwrap());
        driver
            .read_volume(&volume, &root)
            .await
            .unwrap()
            .next()
            .await
            .unwrap()
            .unwrap();
        let refused = driver
            .write_volume(&volume, &VolumePath::root(), orchestra::stream::once("no tar"))
            .await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
        // The helpers of readers that gave up are not in the way.
        driver.remove_volume(&volume).await.unwrap();
        assert!(driver.list(Some(&job)).await.unwrap().is_empty());
        assert!(driver.end_job(&job).await.unwrap().remaining.is_empty());
    }
    let left: Vec<String> = holds(&docker).await.difference(&before).cloned().collect();
    assert!(left.iter().all(|name| !name.contains("orchestra")), "{left:?}");
    assert!(driver.list(Some(&job)).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_empty_image_of_volumes_is_listed_with_its_job_and_made_again_when_it_is_gone() {
    if socket().is_none() {
        return;
    }
    let driver = connect(DockerConfig::default()).await;
    let (job, labels) = job();
    let volume = VolumeId::new(format!("orchestra.{job}.v")).unwrap();
    driver
        .create_volume(&volume, &VolumeSpec::new(labels.clone()))
        .await
        .unwrap();
    for _ in 0..2 {
        driver
            .write_volume(&volume, &VolumePath::root(), tar(&["a"]).await)
            .await
            .unwrap();
        let resources = driver.list(Some(&job)).await.unwrap();
        let images: Vec<_> = resources
            .iter()
            .filter(|found| found.kind == ResourceKind::Image)
            .collect();
        assert_eq!(images.len(), 1, "{resources:?}");
        assert_eq!(images[0].labels, labels);
        assert_eq!(resources[0].labels, labels, "no label of the driver's own is shown");
        let force = bollard::query_parameters::RemoveImageOptionsBuilder::new()
            .force(true)
            .build();
        bollard().remove_image(&images[0].id, Some(force), None).await.unwrap();
    }
    driver.end_job(&job).await.unwrap();
}

#[tokio::test]
async fn an_id_that_abbreviates_the_engines_own_is_not_taken_for_it() {
    if socket().is_none() {
        return;
    }
    let driver = connect(DockerConfig::default()).await;
    let (job, labels) = job();
    let id = ContainerId::new(format!("orchestra.{job}.1.a")).unwrap();
    driver
        .create_container(&id, &spec(&image(), &labels, "true"))
        .await
        .unwrap();
    let own = bollard()
        .inspect_container(id.as_str(), None)
        .await
        .unwrap()
        .id
        .unwrap();
    let short = ContainerId::new(&own[..12]).unwrap();
    driver.remove_container(&short).await.unwrap();
    let error = driver.start_container(&short, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContainerNotFound);
    assert_eq!(
        driver.list(Some(&job)).await.unwrap().len(),
        1,
        "the container is still there"
    );
    driver.end_job(&job).await.unwrap();
}

async fn pull(driver: &DockerDriver, image: &str, credentials: Option<Credentials>) -> Result<()> {
    let mut pull = PullImage::new(image.parse()?);
    pull.credentials = credentials;
    driver.pull_image(&pull).await?.try_for_each(async |_| Ok(())).await
}

#[tokio::test]
async fn a_pull_that_fails_says_whether_image_registry_or_credentials_are_to_blame() {
    if socket().is_none() {
        return;
    }
    let driver = connect(DockerConfig::default()).await;
    let variable = |name: &str| std::env::var(format!("ORCHESTRA_TEST_REGISTRY{name}")).unwrap();
    let wrong = Credentials::new(variable("_USER"), "wrong");
    let right = Credentials::new(variable("_USER"), variable("_PASSWORD"));
    for (image, credentials, kind) in [
        (format!("{}/none/such:1", variable("")), None, ErrorKind::ImageNotFound),
        ("127.0.0.1:9/none/such:1".to_owned(), None, ErrorKind::Registry),
        (
            format!("{}/none/such:1", variable("_AUTH")),
            None,
            ErrorKind::Unauthorized,
        ),
        (
            format!("{}/none/such:1", variable("_AUTH")),
            Some(wrong),
            ErrorKind::Unauthorized,
        ),
        (
            format!("{}/none/such:1", variable("_AUTH")),
            Some(right),
            ErrorKind::ImageNotFound,
        ),
    ] {
        let error = pull(&driver, &image, credentials).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{image}: {error:?}");
    }
}

/// The members of a tar that fits into memory.
async fn members(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tokio_tar::Archive::new(tar);
    let mut entries = archive.entries().unwrap();
    let mut members = Vec::new();
    while let Some(entry) = entries.next().await {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).await.unwrap();
        members.push((name, content));
    }
    members
}

async fn pack(members: &[(String, Vec<u8>)]) -> ByteStream {
    let mut builder = tokio_tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tokio_tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, content.as_slice())
            .await
            .unwrap();
    }
    orchestra::stream::once(builder.into_inner().await.unwrap())
}

fn digest(content: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// An OCI layout of the same image, with nothing of docker's in it.
fn oci_layout(archive: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let content = |name: &str| &archive.iter().find(|(member, _)| member == name).unwrap().1;
    let manifest: serde_json::Value = serde_json::from_slice(content("manifest.json")).unwrap();
    let mut layout = Vec::new();
    let mut blob = |content: &[u8]| {
        let digest = digest(content);
        layout.push((format!("blobs/sha256/{digest}"), content.to_vec()));
        serde_json::json!({ "digest": format!("sha256:{digest}"), "size": content.len() })
    };
    let config = blob(content(manifest[0]["Config"].as_str().unwrap()));
    let layers = manifest[0]["Layers"].as_array().unwrap().iter();
    let layers: Vec<_> = layers.map(|layer| blob(content(layer.as_str().unwrap()))).collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string();
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [blob(manifest.as_bytes())] }).to_string();
    layout.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    layout.push(("index.json".to_owned(), index.into_bytes()));
    layout
}

#[tokio::test]
async fn docker_archives_and_oci_layouts_get_the_name_that_was_asked_for_and_no_other() {
    if socket().is_none() {
        return;
    }
    let (driver, docker) = (connect(DockerConfig::default()).await, bollard());
    let (job, labels) = job();
    let saved: Vec<Bytes> = docker.export_image(&image()).try_collect().await.unwrap();
    let archive = members(&saved.concat()).await;
    let before = holds(&docker).await;
    for (form, members) in [("docker", archive.clone()), ("oci", oci_layout(&archive))] {
        let name: ImageRef = format!("orchestra.test/{form}:{job}").parse().unwrap();
        driver.import_image(&name, pack(&members).await).await.unwrap();
        assert!(driver.image_exists(&name).await.unwrap());
        let (text, _) = run(
            &driver,
            &format!("orchestra.{job}.{form}"),
            &spec(name.as_str(), &labels, "echo in"),
            None,
        )
        .await;
        assert_eq!(text, "in\n");
        driver.remove_image(&name).await.unwrap();
        assert!(!driver.image_exists(&name).await.unwrap());
    }
    let half: Vec<_> = archive
        .iter()
        .filter(|(name, _)| !name.ends_with(".tar") && !name.starts_with("blobs/"))
        .cloned()
        .collect();
    let name: ImageRef = format!("orchestra.test/half:{job}").parse().unwrap();
    let error = driver.import_image(&name, pack(&half).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let broken = stream::iter([Err(Error::new(ErrorKind::Cancelled, "stop"))]).boxed();
    assert_eq!(
        driver.import_image(&name, broken).await.unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    let missing: Vec<String> = before.difference(&holds(&docker).await).cloned().collect();
    assert!(
        missing.iter().all(|name| !name.contains(&image())),
        "the archive's own name was not touched: {missing:?}"
    );
}

#[tokio::test]
async fn a_full_log_keeps_at_least_its_limit_of_the_newest_output() {
    if socket().is_none() {
        return;
    }
    let config = DockerConfig {
        log_limit: 100_000,
        ..DockerConfig::default()
    };
    let driver = connect(config).await;
    let (job, labels) = job();
    let id = ContainerId::new(format!("orchestra.{job}.1.log")).unwrap();
    driver
        .create_container(&id, &spec(&image(), &labels, "seq 1 100000"))
        .await
        .unwrap();
    let whole = driver.logs(&id, true).await.unwrap();
    driver.start_container(&id, None).await.unwrap();
    let (whole, exit) = tokio::join!(text(whole), driver.wait_container(&id));
    assert_eq!(
        (whole.lines().count(), exit.unwrap()),
        (100_000, ExitStatus::Code(0)),
        "what is followed is never cut"
    );
    let late = text(driver.logs(&id, true).await.unwrap()).await;
    let numbers: Vec<u32> = late.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&100_000));
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "nothing is missing in between"
    );
    assert!(late.len() < whole.len(), "the test is of a log that was full");
    driver.end_job(&job).await.unwrap();
}

#[tokio::test]
async fn lines_that_docker_cuts_into_pieces_come_back_whole() {
    if socket().is_none() {
        return;
    }
    let driver = connect(DockerConfig::default()).await;
    let (job, labels) = job();
    let id = ContainerId::new(format!("orchestra.{job}.1.lines")).unwrap();
    let lengths = [1, 16_383, 16_384, 16_385, 32_768, 0, 300_000];
    let script = "for n in 1 16383 16384 16385 32768 0 300000; do head -c $n /dev/zero | tr '\\0' x; echo; done";
    driver
        .create_container(&id, &spec(&image(), &labels, script))
        .await
        .unwrap();
    driver.start_container(&id, None).await.unwrap();
    driver.wait_container(&id).await.unwrap();
    let late = text(driver.logs(&id, true).await.unwrap()).await;
    assert_eq!(late.lines().map(str::len).collect::<Vec<_>>(), lengths);
    assert!(late.ends_with('\n'));
    driver.end_job(&job).await.unwrap();
}
