//! What only containerd leaves to its clients, and so what may be missing beside it. What all drivers promise is in the
//! conformance suite.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test may fail, and says so when it is skipped"
)]

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use orchestra::{
    ContainerId, ContainerSpec, Driver, Error, ErrorKind, ExitStatus, InjectedFile, JobId, Labels, NetworkMode, labels,
    tar_of_files,
};
use orchestra_containerd::{ContainerdConfig, ContainerdDriver};
use orchestra_oci::content::sha256;
use support::{Fault, Server, TestImage, noise};

/// Of that crate, which fetches images for this one.
#[path = "../../oci/tests/support/mod.rs"]
mod support;

/// Whether `cargo xtask` provides a containerd.
fn is_given() -> bool {
    let given = std::env::var("ORCHESTRA_TEST_DRIVER").is_ok_and(|driver| driver == "containerd");
    if !given {
        println!("skipped: ORCHESTRA_TEST_DRIVER is not containerd; run this by `cargo xtask e2e`");
    }
    given
}

async fn connect(config: ContainerdConfig) -> orchestra::Result<Arc<ContainerdDriver>> {
    ContainerdDriver::connect(config).await.map(Arc::new)
}

struct Case {
    job: JobId,
    id: ContainerId,
    spec: ContainerSpec,
}

fn case(network: NetworkMode) -> Case {
    let job = JobId::unique();
    let image = std::env::var("ORCHESTRA_TEST_IMAGE").unwrap();
    let mut spec = ContainerSpec::new(image.parse().unwrap());
    spec.labels = Labels::from([(labels::JOB.to_owned(), job.to_string())]);
    spec.entrypoint = Some(vec!["true".to_owned()]);
    spec.network = network;
    Case {
        id: job.container(&"task".parse().unwrap(), 1),
        job,
        spec,
    }
}

/// What the error says, what it is about and what to do.
fn told(error: &Error) -> String {
    format!("{error}\n{}", error.hint().unwrap_or_default())
}

#[tokio::test]
async fn without_cni_plugins_there_is_no_default_network_and_the_package_is_named() {
    if !is_given() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = ContainerdConfig {
        cni: vec![folder.path().to_owned()],
        ..ContainerdConfig::default()
    };
    let driver = connect(config).await.unwrap();
    let info = driver.info();
    assert!(!info.capabilities.default_network);
    assert!(info.capabilities.host_network && info.capabilities.no_network);
    let needed = [
        "bridge",
        "containernetworking-plugins",
        &folder.path().display().to_string(),
    ]
    .map(str::to_owned);
    let reason = &info.reasons["default_network"];
    let asked = case(NetworkMode::Default);
    let error = driver.create_container(&asked.id, &asked.spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for needed in needed {
        assert!(reason.contains(&needed), "{reason}");
        assert!(told(&error).contains(&needed), "{}", told(&error));
    }
    for network in [NetworkMode::None, NetworkMode::Host] {
        let works = case(network);
        driver.create_container(&works.id, &works.spec).await.unwrap();
        driver.start_container(&works.id, None).await.unwrap();
        let ended = driver.wait_container(&works.id).await.unwrap();
        driver.end_job(&works.job).await.unwrap();
        assert_eq!(ended, ExitStatus::Code(0), "{network:?}");
    }
}

#[tokio::test]
async fn a_snapshotter_that_is_not_there_is_named_with_those_that_are() {
    if !is_given() {
        return;
    }
    for (name, needed) in [
        ("stargazer", &["no snapshotter \"stargazer\"", "overlayfs"][..]),
        ("stargz", &["containerd-stargz-grpc", "overlayfs"][..]),
        ("devmapper", &["dmsetup", "overlayfs"][..]),
    ] {
        let config = ContainerdConfig {
            snapshotter: name.to_owned(),
            ..ContainerdConfig::default()
        };
        let error = connect(config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        for needed in needed {
            assert!(told(&error).contains(needed), "{}", told(&error));
        }
    }
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_named_with_its_package() {
    if !is_given() {
        return;
    }
    let config = ContainerdConfig {
        runtime: Some("/nonexistent/runc".to_owned()),
        ..ContainerdConfig::default()
    };
    let driver = connect(config).await.unwrap();
    let asked = case(NetworkMode::None);
    driver.create_container(&asked.id, &asked.spec).await.unwrap();
    let error = driver.start_container(&asked.id, None).await.unwrap_err();
    driver.end_job(&asked.job).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Engine, "{error:?}");
    let said = told(&error);
    assert!(
        said.contains("lacks the runtime /nonexistent/runc") && said.contains("package runc"),
        "{said}"
    );
    let hint = error.hint().unwrap_or_default();
    assert!(!hint.contains("shim"), "what is there is not named: {hint}");
}

#[tokio::test]
async fn a_name_is_free_again_as_soon_as_its_container_is_removed() {
    if !is_given() {
        return;
    }
    let driver = connect(ContainerdConfig::default()).await.unwrap();
    let Case { job, id, spec } = case(NetworkMode::None);
    for _ in 0..25 {
        driver.create_container(&id, &spec).await.unwrap();
        let logs = driver.logs(&id, true).await.unwrap();
        driver.start_container(&id, None).await.unwrap();
        // Its end is told while the task is being deleted, and with the stream goes who does that.
        logs.try_for_each(async |_| Ok(())).await.unwrap();
        driver.remove_container(&id).await.unwrap();
    }
    driver.end_job(&job).await.unwrap();
}

/// A registry whose image breaks off half-way, once, and is not there for a while then.
struct Outage {
    server: Server,
    layer: String,
}

impl Outage {
    const HALF: usize = 3 << 20;

    async fn new() -> Self {
        let file = InjectedFile::new("/content".parse().unwrap(), noise(5, 2 * Self::HALF));
        let layer = tar_of_files(&[file]).await.unwrap();
        let architecture = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        let server = Server::start().await;
        server.push("v1", &TestImage::new(architecture, std::slice::from_ref(&layer)));
        let layer = sha256(&layer).digest().to_owned();
        Self { server, layer }
    }

    fn fault(&self, faults: &[Fault]) {
        self.server.fault(format!("sha256:{}", self.layer), faults);
    }

    async fn pull(&self, driver: &ContainerdDriver, job: &JobId) -> orchestra::Result<()> {
        let mut pull = self.server.pull("v1");
        pull.job = Some(job.clone());
        let mut progress = driver.pull_image(&pull).await?;
        while let Some(event) = progress.next().await {
            event?;
        }
        Ok(())
    }

    /// A pull that fails, and what is left of it, told by where the next one goes on, for the same job or after its end.
    async fn goes_on_from(&self, driver: &ContainerdDriver, ends: bool) -> usize {
        let job = JobId::unique();
        self.fault(&[&[Fault::Cut(Self::HALF)][..], &[Fault::Status(503); 99]].concat());
        let error = self.pull(driver, &job).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (ErrorKind::Registry, true),
            "{error:?}"
        );
        if ends {
            driver.end_job(&job).await.unwrap();
        }
        self.fault(&[]);
        let tries = self.server.requests(&self.layer).len();
        self.pull(driver, &job).await.unwrap();
        driver.remove_image(&self.server.pull("v1").image).await.unwrap();
        driver.end_job(&job).await.unwrap();
        let next = self.server.requests(&self.layer).swap_remove(tries);
        next.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_pull_has_fetched_is_there_for_its_job_and_gone_with_it() {
    if !is_given() {
        return;
    }
    let driver = connect(ContainerdConfig::default()).await.unwrap();
    let outage = Outage::new().await;
    let from = outage.goes_on_from(&driver, false).await;
    assert!(from > Outage::HALF / 2, "it went on from {from}");
    assert_eq!(outage.goes_on_from(&driver, true).await, 0);
}
