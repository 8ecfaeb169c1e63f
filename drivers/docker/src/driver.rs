//! The driver: connection, what the engine is, and what it holds of ours.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, SystemInfo, SystemVersion};
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListVolumesOptionsBuilder, RemoveImageOptionsBuilder,
};
use bollard::{BollardRequest, Docker};
use futures_util::{StreamExt, stream};
use orchestra::{
    ByteStream, Capabilities, ContainerId, ContainerSpec, ContainerState, Created, Driver, DriverInfo, EndReport,
    Error, ErrorKind, ExecSpec, ExecStream, ExitStatus, HeldVolumes, ImageRef, InjectedFile, JobId, LogStream,
    Platform, PullImage, PullStream, Resource, ResourceKind, Result, Signal, VolumeDirectory, VolumeId, VolumePath,
    VolumeSpec, labels, root_shows,
};
use tokio_util::task::TaskTracker;

use crate::config::{DockerConfig, Endpoint};
use crate::error::{Subject, about, status_of};
use crate::volume::CREATION;

/// Longest that [`DockerDriver::connect`] takes.
const CONNECT: Duration = Duration::from_secs(20);

/// The API's versions (1.x) that this driver speaks: docker 20.10's, which is the oldest that has all it needs, to
/// docker 28.5's, the newest that it was tested with.
const API: std::ops::RangeInclusive<u32> = 41..=51;

/// Removals of one job that are under way at a time.
const REMOVALS: usize = 8;
/// Longest that a volume helper which is being made is waited for.
const MAKING: Duration = Duration::from_secs(30);

/// A docker engine. See the [crate](crate) for how it does what [`Driver`] promises.
#[derive(Clone, Debug)]
pub struct DockerDriver {
    pub(crate) docker: Docker,
    pub(crate) info: DriverInfo,
    pub(crate) log_limit: u64,
    /// Volume helpers that are being made: a job's end looks for what is left only after that.
    pub(crate) making: TaskTracker,
    pub(crate) held: HeldVolumes,
}

impl DockerDriver {
    /// Connects to the engine, agrees on a version of its API with it, and asks what it can do.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a host or certificate that makes no sense, [`ErrorKind::Unreachable`] and
    /// [`ErrorKind::PermissionDenied`] as the socket has it, [`ErrorKind::Unsupported`] for an engine that is older than
    /// docker 20.10 (API 1.41), [`ErrorKind::DeadlineExceeded`] if it says nothing for 20 seconds.
    pub async fn connect(config: DockerConfig) -> Result<Self> {
        let endpoint = config.endpoint(|name| std::env::var(name).ok())?;
        let connected = async {
            let docker = endpoint.client()?;
            let version = docker.version().await.map_err(about(Subject::Engine))?;
            let api = negotiate(&version)?;
            let docker = docker.with_request_modifier(move |request| amend(request, &api));
            let info = docker.info().await.map_err(about(Subject::Engine))?;
            let root = info
                .docker_root_dir
                .as_deref()
                .map(|root| Path::new(root).join("volumes"));
            let mut info = describe(endpoint.to_string(), &version, &info)?;
            info.capabilities.volume_directories &= match (&endpoint, root) {
                (Endpoint::Unix(socket), Some(root)) => root_shows(socket, &root).await,
                _ => false,
            };
            Ok(Self {
                docker,
                info,
                log_limit: config.log_limit,
                making: TaskTracker::new(),
                held: HeldVolumes::default(),
            })
        };
        let silent = || {
            Error::new(
                ErrorKind::DeadlineExceeded,
                format!("no answer within {} s", CONNECT.as_secs()),
            )
        };
        let connected = tokio::time::timeout(CONNECT, connected).await;
        let connected = match connected.unwrap_or_else(|_| Err(silent())) {
            Err(error) if error.kind() == ErrorKind::Interrupted && endpoint.speaks_first().await => {
                Err(no_http(error))
            }
            connected => connected,
        };
        connected.map_err(|error| error.with("endpoint", &endpoint))
    }

    /// The API's version 1.N that is spoken.
    pub(crate) fn api(&self) -> u32 {
        let minor = self.info.api_version.strip_prefix("1.");
        minor.and_then(|minor| minor.parse().ok()).unwrap_or(*API.start())
    }

    async fn resources(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        let label = job.map_or_else(|| labels::JOB.to_owned(), |job| format!("{}={job}", labels::JOB));
        let filters = std::collections::HashMap::from([("label", vec![label.as_str()])]);
        let containers = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let volumes = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let images = ListImagesOptionsBuilder::new().filters(&filters).build();
        let (containers, volumes, images) = tokio::try_join!(
            self.docker.list_containers(Some(containers)),
            self.docker.list_volumes(Some(volumes)),
            self.docker.list_images(Some(images)),
        )
        .map_err(about(Subject::Engine))?;
        let resource = |kind, id, labels: std::collections::HashMap<String, String>| {
            let mut resource = Resource::new(kind, id);
            resource.labels = labels.into_iter().filter(|(key, _)| key != CREATION).collect();
            resource
        };
        let containers = containers.into_iter().filter_map(|container| {
            let mut found = resource(
                ResourceKind::Container,
                name_of(&container)?,
                container.labels.unwrap_or_default(),
            );
            found.state = container.state.map(state_of);
            Some(found)
        });
        let volumes = volumes.volumes.unwrap_or_default();
        let volumes = volumes
            .into_iter()
            .map(|volume| resource(ResourceKind::Volume, volume.name, volume.labels));
        let images = images
            .into_iter()
            .map(|image| resource(ResourceKind::Image, image.id, image.labels));
        Ok(containers.chain(volumes).chain(images).collect())
    }

    async fn end(&self, job: &JobId) -> Result<EndReport> {
        self.making.close();
        tokio::time::timeout(MAKING, self.making.wait()).await.ok();
        let mut left = self.resources(Some(job)).await?;
        let mut report = EndReport::default();
        // A volume or image is free to go only when the last container that uses it has gone.
        for kind in [ResourceKind::Container, ResourceKind::Volume, ResourceKind::Image] {
            let (now, later) = left.into_iter().partition(|resource| resource.kind == kind);
            left = later;
            let removals = stream::iter(now).map(async |resource: Resource| (self.remove(&resource).await, resource));
            let removals: Vec<_> = removals.buffer_unordered(REMOVALS).collect().await;
            for (result, resource) in removals {
                match result {
                    Ok(()) => report.removed.push(resource),
                    Err(error) => report.remaining.push((resource, error)),
                }
            }
        }
        Ok(report)
    }

    async fn remove(&self, resource: &Resource) -> Result<()> {
        match resource.kind {
            ResourceKind::Container => self.remove_named_container(&resource.id).await,
            ResourceKind::Volume => self.remove_named_volume(&resource.id).await,
            _ => {
                let force = RemoveImageOptionsBuilder::new().force(true).build();
                match self.docker.remove_image(&resource.id, Some(force), None).await {
                    Err(error) if status_of(&error) != Some(404) => Err(about(Subject::Image)(error)),
                    _ => Ok(()),
                }
            }
        }
    }
}

fn no_http(error: Error) -> Error {
    let message = "something that does not speak HTTP/1.1 answers here, not docker";
    Error::new(ErrorKind::Unsupported, message)
        .with_hint("name docker's own socket, or use the driver of the engine that answers here")
        .with_source(error)
}

/// The API version to speak, `1.N`.
fn negotiate(version: &SystemVersion) -> Result<String> {
    let components = version.components.iter().flatten();
    // podman's service speaks docker's API too, but not all of it.
    if components
        .into_iter()
        .any(|component| component.name == "Podman Engine")
    {
        return Err(Error::new(ErrorKind::Unsupported, "podman answers here, not docker")
            .with_hint("use the driver of that engine (`--driver podman`), or name docker's own socket"));
    }
    let minor = |text: &Option<String>| text.as_deref()?.strip_prefix("1.")?.parse::<u32>().ok();
    let Some(newest) = minor(&version.api_version) else {
        return Err(Error::new(
            ErrorKind::Protocol,
            "the engine does not say which version of docker's API it speaks",
        ));
    };
    let oldest = minor(&version.min_api_version).unwrap_or(0);
    let engine = version.version.as_deref().unwrap_or("of an unknown version");
    if newest < *API.start() {
        let message = format!(
            "docker {engine} speaks API 1.{newest}; at least 1.{} is needed",
            API.start()
        );
        return Err(Error::new(ErrorKind::Unsupported, message).with_hint("update docker to 20.10 or newer"));
    }
    if oldest > *API.end() {
        let message = format!(
            "docker {engine} speaks API 1.{oldest} and newer; this driver speaks up to 1.{}",
            API.end()
        );
        return Err(Error::new(ErrorKind::Unsupported, message).with_hint("update orchestra"));
    }
    Ok(format!("1.{}", newest.min(*API.end())))
}

/// Mends three things of bollard 0.21's requests: it drops the version from every path, so that each engine would answer as
/// its newest API has it; it writes credentials in the standard base64 alphabet where docker reads the URL-safe one, and
/// takes what it can't read for no credentials at all; and it has no `details` for logs, which [`logs`](crate::logs) needs.
fn amend(request: BollardRequest, api: &str) -> BollardRequest {
    let (mut parts, body) = request.into_parts();
    let mut uri = parts.uri.clone().into_parts();
    if let Some(path) = uri.path_and_query.as_ref().map(|path| path.as_str())
        && !path.starts_with("/v1.")
    {
        let details = if path.contains("/logs?") { "&details=1" } else { "" };
        uri.path_and_query = format!("/v{api}{path}{details}").parse().ok();
    }
    if let Ok(uri) = http::Uri::from_parts(uri) {
        parts.uri = uri;
    }
    if let Some(value) = parts.headers.get_mut("x-registry-auth")
        && let Ok(text) = value.to_str()
        && let Ok(mut safe) = http::HeaderValue::from_str(&text.replace('+', "-").replace('/', "_"))
    {
        safe.set_sensitive(true);
        *value = safe;
    }
    BollardRequest::from_parts(parts, body)
}

fn describe(endpoint: String, version: &SystemVersion, info: &SystemInfo) -> Result<DriverInfo> {
    let field = |value: &Option<String>| value.clone().unwrap_or_default();
    let platform: Platform = format!("{}/{}", field(&version.os), field(&version.arch))
        .parse()
        .map_err(|error: Error| Error::new(ErrorKind::Protocol, error.message().to_owned()))?;
    if platform.os != "linux" {
        let message = format!(
            "the engine runs {} containers; this driver runs Linux ones",
            platform.os
        );
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let api = negotiate(version)?;
    Ok(DriverInfo::new(
        "docker",
        endpoint,
        field(&version.version),
        api,
        platform,
        capabilities(info),
    ))
}

fn capabilities(info: &SystemInfo) -> Capabilities {
    let option = |name: &str| {
        let options = info.security_options.iter().flatten();
        options
            .flat_map(|option| option.split(','))
            .any(|part| part == format!("name={name}"))
    };
    let mut capabilities = Capabilities::ALL;
    // Its archive calls lose attributes, parts of seconds and holes.
    capabilities.exact_volumes = false;
    // In a user namespace an owner is another one than this machine has it.
    capabilities.any_file = !option("rootless") && !option("userns");
    capabilities.volume_directories = capabilities.any_file;
    capabilities.memory_limit = info.memory_limit.unwrap_or(false);
    capabilities.out_of_memory = capabilities.memory_limit;
    capabilities.cpu_quota = info.cpu_cfs_quota.unwrap_or(false) && info.cpu_cfs_period.unwrap_or(false);
    capabilities.pids_limit = info.pids_limit.unwrap_or(false);
    capabilities.seccomp = option("seccomp");
    capabilities.apparmor = option("apparmor");
    if option("userns") {
        // Neither goes with the user namespace that such a daemon puts every container in.
        capabilities.privileged = false;
        capabilities.host_network = false;
    }
    // It is the daemon's configuration that decides (`insecure-registries`), not the request.
    capabilities.insecure_pull = false;
    capabilities
}

/// A container's name without the slash that docker puts before it. Legacy links add names with a second slash.
pub(crate) fn name_of(container: &ContainerSummary) -> Option<String> {
    let names = container
        .names
        .iter()
        .flatten()
        .filter_map(|name| name.strip_prefix('/'));
    names
        .into_iter()
        .find(|name| !name.contains('/'))
        .map(str::to_owned)
        .or_else(|| container.id.clone())
}

fn state_of(state: ContainerSummaryStateEnum) -> ContainerState {
    match state {
        ContainerSummaryStateEnum::CREATED | ContainerSummaryStateEnum::EMPTY => ContainerState::Created,
        ContainerSummaryStateEnum::RUNNING
        | ContainerSummaryStateEnum::PAUSED
        | ContainerSummaryStateEnum::RESTARTING
        | ContainerSummaryStateEnum::STOPPING => ContainerState::Running,
        ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::REMOVING | ContainerSummaryStateEnum::DEAD => {
            ContainerState::Exited
        }
    }
}

impl fmt::Display for DockerDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("docker")
    }
}

#[async_trait]
impl Driver for DockerDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    async fn ping(&self) -> Result<()> {
        self.docker.ping().await.map(drop).map_err(about(Subject::Engine))
    }

    async fn pull_image(&self, pull: &PullImage) -> Result<PullStream> {
        self.pull(pull).await
    }

    async fn import_image(&self, image: &ImageRef, archive: ByteStream) -> Result<()> {
        self.import(image, archive).await
    }

    async fn image_exists(&self, image: &ImageRef) -> Result<bool> {
        self.has_image(image).await
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<()> {
        self.untag(image).await
    }

    async fn create_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        self.make_volume(id, spec).await
    }

    async fn write_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        self.unpack_into_volume(id, path, tar).await
    }

    async fn read_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        self.pack_volume(id, paths).await
    }

    async fn volume_directory(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        self.directory_of(id).await
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<()> {
        self.discard_volume(id).await
    }

    async fn create_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        self.make_container(id, spec).await
    }

    async fn write_files(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()> {
        self.inject(id, files).await
    }

    async fn start_container(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        self.start(id, stdin).await
    }

    async fn logs(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        self.output(id, follow).await
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.wait(id).await
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec, stdin: Option<ByteStream>) -> Result<ExecStream> {
        self.run_in(id, spec, stdin).await
    }

    async fn signal_container(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        self.signal(id, signal).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        match self.named(id).await {
            Err(error) if error.kind() == ErrorKind::ContainerNotFound => Ok(()),
            named => {
                named?;
                self.remove_named_container(id.as_str()).await
            }
        }
    }

    async fn list(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        self.resources(job).await
    }

    async fn end_job(&self, job: &JobId) -> Result<EndReport> {
        self.end(job).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(api: &str, oldest: &str) -> SystemVersion {
        SystemVersion {
            version: Some("x".to_owned()),
            api_version: Some(api.to_owned()),
            min_api_version: Some(oldest.to_owned()),
            ..SystemVersion::default()
        }
    }

    #[test]
    fn the_newest_version_that_both_speak_is_agreed_on() {
        for (api, oldest, agreed) in [
            ("1.41", "1.12", "1.41"),
            ("1.45", "1.24", "1.45"),
            ("1.60", "1.44", "1.51"),
        ] {
            assert_eq!(negotiate(&version(api, oldest)).unwrap(), agreed);
        }
        let old = negotiate(&version("1.40", "1.12")).unwrap_err();
        assert_eq!(old.kind(), ErrorKind::Unsupported);
        assert!(old.message().contains("API 1.40; at least 1.41"), "{old}");
        assert_eq!(
            negotiate(&version("1.70", "1.52")).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        assert_eq!(
            negotiate(&SystemVersion::default()).unwrap_err().kind(),
            ErrorKind::Protocol
        );
    }

    #[test]
    fn requests_carry_the_version_and_credentials_that_docker_can_read() {
        let request = http::Request::builder()
            .uri("unix://2f61/images/create?fromImage=x")
            .header("X-Registry-Auth", "ab+/c=")
            .body(bollard::body_full(bytes::Bytes::new()))
            .unwrap();
        let amended = amend(amend(request, "1.41"), "1.41");
        assert_eq!(amended.uri().to_string(), "unix://2f61/v1.41/images/create?fromImage=x");
        let logs = http::Request::builder().uri("http://h/containers/a/logs?follow=true");
        let logs = amend(logs.body(bollard::body_full(bytes::Bytes::new())).unwrap(), "1.41");
        assert_eq!(
            logs.uri().path_and_query().unwrap(),
            "/v1.41/containers/a/logs?follow=true&details=1"
        );
        let auth = &amended.headers()["x-registry-auth"];
        assert_eq!(auth, "ab-_c=");
        assert!(auth.is_sensitive());
    }

    #[test]
    fn what_the_kernel_or_daemon_lacks_is_no_capability() {
        let info = SystemInfo {
            memory_limit: Some(true),
            pids_limit: Some(false),
            security_options: Some(vec!["name=seccomp,profile=default".to_owned()]),
            ..SystemInfo::default()
        };
        let capabilities = capabilities(&info);
        assert!(capabilities.memory_limit && capabilities.seccomp && capabilities.exec);
        assert!(!capabilities.pids_limit && !capabilities.cpu_quota && !capabilities.apparmor);
        assert!(!capabilities.insecure_pull);
    }
}
