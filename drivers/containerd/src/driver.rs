//! The driver: connection, what the engine is, and what it holds of ours.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1::{ListContainersRequest, ListTasksRequest, PluginsRequest};
use futures_util::{StreamExt, stream};
use orchestra::{
    ByteStream, Capabilities, ContainerId, ContainerSpec, Created, Driver, DriverInfo, EndReport, Error, ErrorKind,
    ExecSpec, ExecStream, ExitStatus, ImageRef, InjectedFile, JobId, LogStream, Platform, PullImage, PullStream,
    Resource, ResourceKind, Result, Signal, VolumeDirectory, VolumeId, VolumePath, VolumeSpec, labels,
};
use orchestra_oci::cni::{Cni, CniConfig};
use orchestra_oci::image::Image;
use orchestra_oci::logs::{LogStore, Watcher};
use orchestra_oci::spec::{CgroupVersion, Host};
use orchestra_oci::users::ResolvedUser;
use orchestra_oci::volumes::VolumeStore;
use tokio_util::task::TaskTracker;

use crate::client::{Client, recognise};
use crate::config::ContainerdConfig;
use crate::container::{identity, public_labels};
use crate::end::Turns;
use crate::error::{Subject, about};
use crate::known::{Made, Remembered};
use crate::lease;
use crate::programs;
use crate::snapshot::Snapshots;
use crate::state::State;
use crate::task::state_of;

/// Longest that [`ContainerdDriver::connect`] takes.
const CONNECT: Duration = Duration::from_secs(20);
/// Longest that a CNI plugin may take.
const PLUGIN: Duration = Duration::from_secs(30);
/// Between two tries to reach an engine that may just have died.
const AGAIN: Duration = Duration::from_millis(50);
/// The oldest version that has all that is needed, and that this driver was tested with.
const OLDEST: (u32, u32) = (1, 6);

/// Removals of one job that are under way at a time.
const REMOVALS: usize = 8;
/// Longest that containers which are being made are waited for.
const MAKING: Duration = Duration::from_secs(30);

/// A containerd. See the [crate](crate) for how it does what [`Driver`] promises.
#[derive(Clone)]
pub struct ContainerdDriver {
    pub(crate) client: Client,
    pub(crate) info: DriverInfo,
    pub(crate) namespace: String,
    pub(crate) snapshotter: String,
    pub(crate) runtime: Option<String>,
    pub(crate) state: State,
    pub(crate) volumes: VolumeStore,
    pub(crate) logs: LogStore,
    pub(crate) host: Arc<Host>,
    /// Whether the numbers that containerd tells of processes are those that they have here.
    pub(crate) sees_processes: bool,
    pub(crate) watcher: Watcher,
    pub(crate) turns: Turns,
    pub(crate) made: Made,
    /// What images are, by what names point at and by platform.
    pub(crate) images: Remembered<Image>,
    /// Who users of images are, by their manifests and by what the users are called.
    pub(crate) users: Remembered<ResolvedUser>,
    /// The default network, or why there is none.
    pub(crate) network: Result<Cni, Arc<Error>>,
    /// Containers that are being made or started, and leases that end: a job's end looks for what is left only after that.
    pub(crate) making: TaskTracker,
}

impl ContainerdDriver {
    /// Connects to containerd, on whose host it must run as root, and finds out what can be done there.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an address or namespace that makes no sense, and for a snapshotter that containerd
    /// lacks, [`ErrorKind::Unreachable`] and [`ErrorKind::PermissionDenied`] as the socket has it, and the latter if this is not
    /// root, [`ErrorKind::Unsupported`] where another engine answers and for a containerd that is older than 1.6, [`ErrorKind::DeadlineExceeded`] if it says nothing for 20 seconds.
    pub async fn connect(config: ContainerdConfig) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let state = config.state(variable);
        config.validate(&state)?;
        let socket = config.socket(variable)?;
        let namespace = config.namespace(variable)?;
        let connected = tokio::time::timeout(CONNECT, Self::open(&config, &socket, namespace, state)).await;
        let silent = || {
            let message = format!("no answer within {} s", CONNECT.as_secs());
            Error::new(ErrorKind::DeadlineExceeded, message)
        };
        connected
            .unwrap_or_else(|_| Err(silent()))
            .map_err(|error| error.with("endpoint", format!("unix://{}", socket.display())))
    }

    async fn open(config: &ContainerdConfig, socket: &Path, namespace: String, root: PathBuf) -> Result<Self> {
        let client = Client::new(socket, &namespace)?;
        let version = match client.engine_version().await {
            Ok(version) => version,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(error.with_hint(AS_ROOT)),
            Err(error) => return Err(recognise(socket).await.unwrap_or(error)),
        };
        check_version(&version)?;
        if !rustix::process::geteuid().is_root() {
            let message = "containerd leaves mounts and networks to its clients, which only root can make";
            return Err(Error::new(ErrorKind::PermissionDenied, message).with_hint(AS_ROOT));
        }
        check_snapshotter(&client, &config.snapshotter).await?;
        let pid = peer(socket);
        let ours = namespace.clone();
        let (state, helper, host) = blocking(move || {
            let state = State::open(&root, &ours)?;
            let helper = state.helper()?;
            Ok((state, helper, Host::of_process(pid)?))
        })
        .await?;
        let sees_processes = sees_its_processes(pid);
        let network = match sees_processes {
            true => network(config, &state).await.map_err(Arc::new),
            false => {
                let message = "containerd runs in another process namespace: its containers' networks can't be reached";
                let hint = "run orchestra in containerd's, or use the networks `none` and `host`";
                Err(Arc::new(Error::new(ErrorKind::Unsupported, message).with_hint(hint)))
            }
        };
        let capabilities = capabilities(&host, network.is_ok());
        let platform: Platform = format!("linux/{}", architecture()).parse()?;
        let endpoint = format!("unix://{}", socket.display());
        let mut info = DriverInfo::new("containerd", endpoint, version, "v1", platform, capabilities);
        if let Err(why) = &network {
            let hint = why.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            info = info.because("default_network", format!("{}{hint}", why.message()));
        }
        let runtime = config.runtime.clone();
        let missing = blocking(move || Ok(programs::missing(pid, runtime.as_deref())));
        for program in missing.await? {
            info = info.problem(format!("containerd's host lacks {program}"));
        }
        Ok(Self {
            info,
            client,
            namespace,
            snapshotter: config.snapshotter.clone(),
            runtime: config.runtime.clone(),
            volumes: VolumeStore::open(state.volumes()).await?,
            logs: LogStore::open(state.logs(), helper, config.log_limit).await?,
            state,
            host: Arc::new(host),
            sees_processes,
            watcher: Watcher::new()?,
            turns: Turns::default(),
            made: Made::default(),
            images: Remembered::default(),
            users: Remembered::default(),
            network,
            making: TaskTracker::new(),
        })
    }

    /// Where containerd listens.
    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(self.info.endpoint.trim_start_matches("unix://"))
    }

    pub(crate) fn snapshots(&self, client: &Client) -> Snapshots {
        Snapshots {
            client: client.clone(),
            snapshotter: self.snapshotter.clone(),
        }
    }

    /// Asks anything. A connection that was kept may be found dead first, and the next one be refused only when the engine's
    /// process has gone as a whole.
    async fn alive(&self) -> Result<()> {
        for _ in 0..3 {
            match self.client.engine_version().await {
                Err(error) if error.kind() == ErrorKind::Interrupted => tokio::time::sleep(AGAIN).await,
                answer => return answer.map(drop),
            }
        }
        self.client.engine_version().await.map(drop)
    }

    async fn resources(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        let label = format!("labels.{:?}", labels::JOB);
        let filter = job.map_or_else(|| label.clone(), |job| format!("{label}=={:?}", job.as_str()));
        let request = ListContainersRequest { filters: vec![filter] };
        let containers = self.client.containers().list(self.client.request(request)).await;
        let containers = containers.map_err(about(Subject::Engine))?.into_inner().containers;
        let mut resources = Vec::new();
        if !containers.is_empty() {
            let request = ListTasksRequest::default();
            let tasks = self.client.tasks().list(self.client.request(request)).await;
            let tasks = tasks.map_err(about(Subject::Engine))?.into_inner().tasks;
            for container in containers {
                let mut resource = Resource::new(ResourceKind::Container, identity(&container));
                // A task of a list has its container's id in the field that a single one has in another.
                let task = tasks.iter().find(|task| task.id == container.id);
                resource.state = Some(state_of(&self.state.container(&container.id), task));
                resource.labels = public_labels(container.labels);
                resources.push(resource);
            }
        }
        for volume in self.volumes.list(labels::JOB, job.map(JobId::as_str)).await? {
            let mut resource = Resource::new(ResourceKind::Volume, volume.id.as_str());
            resource.labels = volume.labels;
            resources.push(resource);
        }
        Ok(resources)
    }

    async fn end(&self, job: &JobId) -> Result<EndReport> {
        self.making.close();
        tokio::time::timeout(MAKING, self.making.wait()).await.ok();
        self.making.reopen();
        let mut left = self.resources(Some(job)).await?;
        let mut report = EndReport::default();
        // A volume is free to go only when the last container that uses it has gone.
        for kind in [ResourceKind::Container, ResourceKind::Volume] {
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
        lease::delete_of(&self.client, job).await?;
        Ok(report)
    }

    async fn remove(&self, resource: &Resource) -> Result<()> {
        match resource.kind {
            ResourceKind::Container => self.discard(&ContainerId::new(resource.id.as_str())?).await,
            _ => self.discard_volume(&VolumeId::new(resource.id.as_str())?).await,
        }
    }
}

const AS_ROOT: &str =
    "run orchestra as root on containerd's host, or use docker or podman, which may be used by others";

/// Does blocking work.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let message = format!("the runtime ended during a call: {error}");
        Err(Error::new(ErrorKind::Cancelled, message))
    })
}

fn check_version(version: &str) -> Result<()> {
    let mut numbers = version
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => {
            let message = format!(
                "this is containerd {version}; at least {}.{} is needed",
                OLDEST.0, OLDEST.1
            );
            Err(Error::new(ErrorKind::Unsupported, message).with_hint("update containerd"))
        }
        // A build without a version may be anything.
        _ => Ok(()),
    }
}

/// Names what there is where the configured snapshotter is not, or does not work.
async fn check_snapshotter(client: &Client, wanted: &str) -> Result<()> {
    let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
    let request = client.request(PluginsRequest { filters });
    let plugins = client.introspection().plugins(request).await;
    let plugins = plugins.map_err(about(Subject::Engine))?.into_inner().plugins;
    let why = match plugins.iter().find(|plugin| plugin.id == wanted) {
        Some(plugin) => match &plugin.init_err {
            None => return Ok(()),
            Some(error) => format!("containerd's snapshotter {wanted:?} does not work: {}", error.message),
        },
        None => format!("containerd has no snapshotter {wanted:?}"),
    };
    let there: Vec<&str> = plugins
        .iter()
        .filter(|plugin| plugin.init_err.is_none())
        .map(|plugin| plugin.id.as_str())
        .collect();
    let package = match wanted {
        "fuse-overlayfs" => Some("containerd-fuse-overlayfs, of the project of that name"),
        "stargz" => Some("containerd-stargz-grpc, of stargz-snapshotter"),
        "nydus" => Some("containerd-nydus-grpc, of nydus-snapshotter"),
        "soci" => Some("soci-snapshotter-grpc, of soci-snapshotter"),
        "zfs" => Some("containerd's own, which needs zfsutils-linux and its state on a zfs file system"),
        "btrfs" => Some("containerd's own, which needs its state on a btrfs file system"),
        "devmapper" => Some("containerd's own, which needs dmsetup and a thin pool in its configuration"),
        _ => None,
    };
    let package = package
        .map(|package| format!("; {wanted} is {package}"))
        .unwrap_or_default();
    let others = format!("set `snapshotter` to one that works ({}){package}", there.join(", "));
    Err(Error::invalid(why).with_hint(others))
}

/// The number of the process that listens, if it has one here.
pub(crate) fn peer(socket: &Path) -> Option<u32> {
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
}

/// Whether a process' numbers for others are those of this process.
fn sees_its_processes(pid: Option<u32>) -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    pid.is_some_and(|pid| namespace("self").is_some_and(|own| namespace(&pid.to_string()) == Some(own)))
}

async fn network(config: &ContainerdConfig, state: &State) -> Result<Cni> {
    Cni::open(CniConfig {
        plugin_dirs: config.cni.clone(),
        name: "orchestra".to_owned(),
        bridge: state.bridge(),
        subnet: config.subnet.clone(),
        state_dir: state.network(),
        deadline: PLUGIN,
    })
    .await
}

fn capabilities(host: &Host, network: bool) -> Capabilities {
    let controllers = std::fs::read_to_string(PathBuf::from("/sys/fs/cgroup/cgroup.controllers")).unwrap_or_default();
    let controlled = |name: &str| match host.cgroups {
        CgroupVersion::V1 => Path::new("/sys/fs/cgroup").join(name).is_dir(),
        CgroupVersion::V2 => controllers.split_whitespace().any(|has| has == name),
    };
    let mut capabilities = Capabilities::ALL;
    capabilities.default_network = network;
    capabilities.apparmor = host.apparmor;
    capabilities.memory_limit = controlled("memory");
    capabilities.out_of_memory = capabilities.memory_limit;
    capabilities.cpu_quota = controlled("cpu");
    capabilities.pids_limit = controlled("pids");
    capabilities.seccomp = Path::new("/proc/sys/kernel/seccomp").is_dir();
    capabilities
}

/// This machine's architecture in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
}

impl fmt::Debug for ContainerdDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerdDriver")
            .field("info", &self.info)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ContainerdDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("containerd")
    }
}

#[async_trait]
impl Driver for ContainerdDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    async fn ping(&self) -> Result<()> {
        self.alive().await
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

    // Volumes are folders here, but an engine that is dead is to be noticed as with any other call.

    async fn create_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        self.alive().await?;
        self.volumes.create(id, spec).await
    }

    async fn write_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        self.alive().await?;
        self.volumes.write(id, path, tar).await
    }

    async fn read_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        self.alive().await?;
        self.volumes.read(id, paths).await
    }

    async fn volume_directory(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        self.alive().await?;
        Ok(Some(self.volumes.directory(id).await?))
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
        self.discard(id).await
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

    #[test]
    fn too_old_a_containerd_is_told_what_is_needed() {
        for fine in ["1.6.20~ds1", "2.1.9+unknown", "v1.7.0", "unknown"] {
            assert!(check_version(fine).is_ok(), "{fine}");
        }
        let error = check_version("1.4.13").unwrap_err();
        assert!(error.message().contains("at least 1.6"), "{error}");
    }
}
