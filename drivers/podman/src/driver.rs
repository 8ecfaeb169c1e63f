//! The driver: connection, what the engine is, and what it holds of ours.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use orchestra::{
    ByteStream, Capabilities, ContainerId, ContainerSpec, Created, Driver, DriverInfo, EndReport, Error, ErrorKind,
    ExecSpec, ExecStream, ExitStatus, HeldVolumes, ImageRef, InjectedFile, JobId, Labels, LogStream, Platform,
    PullImage, PullStream, Resource, ResourceKind, Result, Signal, VolumeDirectory, VolumeId, VolumePath, VolumeSpec,
    labels, root_shows,
};
use serde::Deserialize;
use serde_json::json;

use crate::client::{API, Client, major, too_old};
use crate::config::{Endpoint, PodmanConfig};
use crate::container::state_of;
use crate::error::{Subject, about};
use crate::own::Own;
use crate::volume;

/// Longest that [`PodmanDriver::connect`] takes.
const CONNECT: Duration = Duration::from_secs(20);

/// Removals of one job that are under way at a time.
const REMOVALS: usize = 8;

/// A podman engine. See the [crate](crate) for how it does what [`Driver`] promises.
#[derive(Clone, Debug)]
pub struct PodmanDriver {
    pub(crate) client: Client,
    pub(crate) info: DriverInfo,
    pub(crate) log_limit: u64,
    pub(crate) held: HeldVolumes,
    pub(crate) own: Own,
}

/// What `GET /libpod/version` says, as far as it is asked here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Version {
    version: String,
    os: String,
    arch: String,
    components: Vec<Component>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Component {
    name: String,
    details: Details,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    #[serde(rename = "APIVersion")]
    api: String,
    #[serde(rename = "MinAPIVersion")]
    oldest_api: String,
}

/// What `GET /libpod/info` says, as far as it is asked here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Info {
    host: Host,
    #[serde(default)]
    store: StoreInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StoreInfo {
    /// The directory of images and containers, which is there from the beginning; that of volumes comes with the first one.
    graph_root: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Host {
    cgroup_controllers: Vec<String>,
    security: SecurityInfo,
    /// The program that connects containers without root; told from 5.0 on.
    rootless_network_cmd: String,
    slirp4netns: Program,
    pasta: Program,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Program {
    /// Empty where the host does not have it.
    executable: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecurityInfo {
    #[serde(rename = "apparmorEnabled")]
    apparmor: bool,
    rootless: bool,
}

impl Host {
    fn has_rootless_network(&self) -> bool {
        let has = |program: &Program| !program.executable.is_empty();
        match self.rootless_network_cmd.as_str() {
            "pasta" => has(&self.pasta),
            _ => has(&self.slirp4netns),
        }
    }
}

/// One container of `GET /libpod/containers/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Summary {
    id: String,
    names: Vec<String>,
    labels: Option<Labels>,
    state: String,
}

impl Summary {
    pub(crate) fn name(&self) -> &str {
        self.names.first().unwrap_or(&self.id)
    }
}

/// The value of a list's `filters`.
pub(crate) fn filters(key: &str, value: &str) -> String {
    json!({ key: [value] }).to_string()
}

impl PodmanDriver {
    /// Connects to the engine and asks what it can do.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a host that makes no sense, [`ErrorKind::Unreachable`] and
    /// [`ErrorKind::PermissionDenied`] as the socket has it, [`ErrorKind::Unsupported`] for an engine that is older than
    /// podman 4.0 or is no podman, [`ErrorKind::DeadlineExceeded`] if it says nothing for 20 seconds.
    pub async fn connect(config: PodmanConfig) -> Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let endpoint = config.endpoint(uid, |name| std::env::var(name).ok())?;
        let connected = tokio::time::timeout(CONNECT, Self::reach(endpoint.clone(), config.log_limit)).await;
        let silent = |_| {
            let message = format!("no answer within {} s", CONNECT.as_secs());
            Err(Error::new(ErrorKind::DeadlineExceeded, message))
        };
        connected
            .unwrap_or_else(silent)
            .map_err(|error| error.with("endpoint", &endpoint))
    }

    async fn reach(endpoint: Endpoint, log_limit: u64) -> Result<Self> {
        let client = Client::new(endpoint.clone());
        client.identify().await?;
        let failed = about(Subject::Engine);
        let version: Version = client.get(&["version"]).value().await.map_err(failed)?;
        let info: Info = client.get(&["info"]).value().await.map_err(failed)?;
        let mut described = describe(endpoint.to_string(), &version, &info)?;
        described.capabilities.volume_directories &= match &endpoint {
            Endpoint::Unix(socket) => root_shows(socket, Path::new(&info.store.graph_root)).await,
            _ => false,
        };
        Ok(Self {
            client,
            info: described,
            held: HeldVolumes::default(),
            own: Own::default(),
            log_limit,
        })
    }

    async fn resources(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        let label = job.map_or_else(|| labels::JOB.to_owned(), |job| format!("{}={job}", labels::JOB));
        let label = filters("label", &label);
        let list = |noun| self.client.get(&[noun, "json"]).query("filters", &label);
        let (containers, volumes, images) = tokio::try_join!(
            list("containers").query("all", true).value::<Option<Vec<Summary>>>(),
            list("volumes").value::<Option<Vec<volume::Found>>>(),
            list("images").value::<Option<Vec<Summary>>>(),
        )
        .map_err(about(Subject::Engine))?;
        let resource = |kind, id: &str, labels: &Option<Labels>| {
            let mut resource = Resource::new(kind, id);
            resource.labels = labels.clone().unwrap_or_default();
            resource
        };
        let containers = containers.iter().flatten().map(|container| {
            let mut found = resource(ResourceKind::Container, container.name(), &container.labels);
            found.state = Some(state_of(&container.state));
            found
        });
        let volumes = volumes.iter().flatten();
        let volumes = volumes.map(|volume| resource(ResourceKind::Volume, &volume.name, &volume.labels));
        let images = images.iter().flatten();
        let images = images.map(|image| resource(ResourceKind::Image, &image.id, &image.labels));
        Ok(containers.chain(volumes).chain(images).collect())
    }

    async fn end(&self, job: &JobId) -> Result<EndReport> {
        let mut left = self.resources(Some(job)).await?;
        let mut report = EndReport::default();
        // A volume is free to go only when the last container that uses it has gone.
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
            _ => self
                .remove_image_named(&resource.id)
                .await
                .map_err(about(Subject::Image)),
        }
    }
}

fn describe(endpoint: String, version: &Version, info: &Info) -> Result<DriverInfo> {
    let protocol = |message: String| Error::new(ErrorKind::Protocol, message);
    let engine = version.components.iter().find(|part| part.name == "Podman Engine");
    let engine = engine.ok_or_else(|| protocol("the engine does not say that it is podman".to_owned()))?;
    let wanted = major(API);
    if major(&engine.details.api) < wanted {
        return Err(too_old(&version.version));
    }
    if major(&engine.details.oldest_api) > wanted {
        let message = format!(
            "podman {} speaks API {} and newer; this driver speaks {API}",
            version.version, engine.details.oldest_api
        );
        return Err(Error::new(ErrorKind::Unsupported, message).with_hint("update orchestra"));
    }
    let platform: Platform = format!("{}/{}", version.os, version.arch)
        .parse()
        .map_err(|error: Error| protocol(error.message().to_owned()))?;
    Ok(DriverInfo::new(
        "podman",
        endpoint,
        version.version.clone(),
        API,
        platform,
        capabilities(major(&version.version), info),
    ))
}

fn capabilities(podman: Option<u32>, info: &Info) -> Capabilities {
    let controller = |name: &str| info.host.cgroup_controllers.iter().any(|found| found == name);
    let mut capabilities = Capabilities::ALL;
    // In a user namespace an owner is another one than this machine has it.
    capabilities.any_file = !info.host.security.rootless;
    capabilities.volume_directories = capabilities.any_file;
    // Its archive calls lose attributes, parts of seconds and holes.
    capabilities.exact_volumes = false;
    // Those that were delegated to the user, where podman runs without root.
    capabilities.memory_limit = controller("memory");
    // Until 5.0 libpod looked for the notice elsewhere than conmon leaves it (containers/podman#21523).
    capabilities.out_of_memory = capabilities.memory_limit && podman >= Some(5);
    capabilities.cpu_quota = controller("cpu");
    capabilities.pids_limit = controller("pids");
    capabilities.apparmor = info.host.security.apparmor;
    capabilities.default_network = !info.host.security.rootless || info.host.has_rootless_network();
    // libpod takes a profile's path on its own host, and none that comes with the request.
    capabilities.seccomp = false;
    capabilities
}

impl fmt::Display for PodmanDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("podman")
    }
}

#[async_trait]
impl Driver for PodmanDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    async fn ping(&self) -> Result<()> {
        self.client.identify().await
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
        self.remove_named_volume(id.as_str()).await
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

    fn version(newest: &str, oldest: &str) -> Version {
        let text = json!({
            "Version": "x", "Os": "linux", "Arch": "amd64",
            "Components": [
                {"Name": "Podman Engine", "Details": {"APIVersion": newest, "MinAPIVersion": oldest}},
                {"Name": "Conmon", "Details": {"Package": "conmon"}}
            ]
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn an_engine_that_can_not_speak_this_drivers_version_is_refused() {
        let described = |newest, oldest| describe(String::new(), &version(newest, oldest), &Info::default());
        for (newest, oldest) in [("4.3.1", "4.0.0"), ("5.8.6", "4.0.0")] {
            assert_eq!(described(newest, oldest).unwrap().api_version, API);
        }
        let old = described("3.4.4", "3.1.0").unwrap_err();
        assert_eq!(old.kind(), ErrorKind::Unsupported);
        assert!(format!("{old:?}").contains("update podman to 4.0"), "{old:?}");
        assert_eq!(described("6.0.0", "5.0.0").unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn what_was_not_delegated_is_no_capability() {
        let info: Info = serde_json::from_value(json!({
            "host": {"cgroupControllers": ["memory", "pids"], "security": {"apparmorEnabled": false}}
        }))
        .unwrap();
        let old = capabilities(Some(4), &info);
        let capabilities = capabilities(Some(5), &info);
        assert!(capabilities.out_of_memory && !old.out_of_memory);
        assert!(capabilities.memory_limit && capabilities.pids_limit && capabilities.exec);
        assert!(!capabilities.cpu_quota && !capabilities.apparmor && !capabilities.seccomp);
    }

    #[test]
    fn without_root_the_default_network_needs_its_program() {
        let network = |command: &str, program: &str| {
            let info = json!({"host": {
                "security": {"rootless": true}, "rootlessNetworkCmd": command, program: {"executable": "/usr/bin/x"},
            }});
            let capabilities = capabilities(Some(5), &serde_json::from_value(info).unwrap());
            assert!(!capabilities.any_file);
            capabilities.default_network
        };
        assert!(network("pasta", "pasta") && network("slirp4netns", "slirp4netns") && network("", "slirp4netns"));
        assert!(!network("pasta", "slirp4netns") && !network("", "pasta"));
        assert!(
            capabilities(Some(5), &Info::default()).default_network,
            "root has a bridge"
        );
    }
}
