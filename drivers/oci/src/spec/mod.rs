//! An OCI runtime spec of a [`ContainerSpec`], with docker's meanings: what is not asked for is as docker has it.
//!
//! What was asked for, the image's config and facts about the machine ([`Host`]) come together in a [`SpecInput`];
//! [`runtime_spec`] makes of it what an OCI runtime is given, and [`exec_process`] a further process of the same kind.

mod capabilities;
mod devices;
mod host;
mod mounts;
mod process;

pub(crate) use capabilities::bit as capability_bit;

pub use host::{CgroupVersion, Host};
pub use process::exec_process;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids, LinuxResources, Root, Spec,
};
use orchestra::{ContainerPath, ContainerSpec, Error, Limits, NetworkMode, Profile, Result, VolumeId};

use crate::seccomp;
use crate::users::ResolvedUser;

/// The runtime spec that is spoken: what every runtime since runc 1.0 knows.
const VERSION: &str = "1.0.2";
/// Microseconds of the period that a processor quota counts in: the kernel's own default.
const PERIOD: u64 = 100_000;
/// Under this docker refuses a container too, since its runtime could not set it up.
const LEAST_MEMORY: u64 = 6 << 20;

/// All that a runtime spec is made of.
#[derive(Clone, Debug)]
pub struct SpecInput<'a> {
    /// What was asked for; it is valid, and the engine's capabilities were checked.
    pub container: &'a ContainerSpec,
    /// The image's config.
    pub image: &'a ImageConfiguration,
    /// The root file system as the runtime is told it: absolute, or relative to the bundle.
    pub rootfs: &'a Path,
    /// Who runs: [`resolve_user`](crate::users::resolve_user) of [`user_of`].
    pub user: ResolvedUser,
    /// The directory of each volume that is mounted.
    pub volumes: BTreeMap<VolumeId, PathBuf>,
    /// Directories for the volumes that the image declares ([`image_volumes`]), by where they stand; one that has none is a part of
    /// the root file system.
    pub image_volumes: BTreeMap<ContainerPath, PathBuf>,
    /// The host's name inside. With [`NetworkMode::Host`] it is the machine's own instead.
    pub hostname: &'a str,
    /// A network namespace to join; `None` makes a new one. With [`NetworkMode::Host`] it is the machine's own instead.
    pub netns: Option<&'a Path>,
    /// The cgroup, from the hierarchy's root: `/orchestra/ID`.
    pub cgroup: &'a Path,
    /// Files that stand at `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`, by that path.
    pub etc: BTreeMap<ContainerPath, PathBuf>,
    /// The machine, and what the runtime may do on it.
    pub host: &'a Host,
}

/// The runtime spec. Blocking where the container is privileged: the machine's devices are looked for.
///
/// # Errors
/// [`InvalidInput`](orchestra::ErrorKind::InvalidInput) for what can't run: no command, a capability or resource limit that the runtime can't
/// give, a profile that is none; [`VolumeNotFound`](orchestra::ErrorKind::VolumeNotFound) for a mount of a volume that is not in
/// [`volumes`](SpecInput::volumes).
pub fn runtime_spec(input: &SpecInput<'_>) -> Result<Spec> {
    let SpecInput { container, host, .. } = *input;
    let granted = capabilities::granted(container, host)?;
    let mut spec = Spec::default();
    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned()).set_readonly(Some(false));
    spec.set_version(VERSION.to_owned())
        .set_root(Some(root))
        // A new namespace has the machine's own name until it is told another.
        .set_hostname((container.network != NetworkMode::Host).then(|| input.hostname.to_owned()))
        .set_process(Some(process::process(input, granted)?))
        .set_mounts(Some(mounts::mounts(input)?));

    let mut linux = Linux::default();
    linux
        .set_cgroups_path(Some(input.cgroup.to_owned()))
        .set_namespaces(Some(namespaces(input)))
        .set_sysctl(sysctls(container.network))
        .set_resources(Some(resources(container, host)?))
        .set_masked_paths(Some(mounts::masked(container.privileged)))
        .set_readonly_paths(Some(mounts::read_only(container.privileged)))
        .set_devices(if container.privileged {
            Some(devices::of_host(&host.root)?)
        } else {
            None
        })
        .set_seccomp(match (&container.security.seccomp, container.privileged) {
            (Profile::Default, true) => None,
            (profile, _) => seccomp::filter(profile, granted)?,
        });
    spec.set_linux(Some(linux));
    Ok(spec)
}

/// Who a container is to run as: the spec's user, else the image's.
#[must_use]
pub fn user_of<'a>(container: &'a ContainerSpec, image: &'a ImageConfiguration) -> &'a str {
    let of_image = || image.config().as_ref()?.user().as_deref();
    let of_spec = container.user.as_ref().map(orchestra::User::as_str);
    of_spec.or_else(of_image).unwrap_or_default()
}

/// The volumes that the image declares and at which the spec mounts nothing. A declaration that is no path is no volume.
#[must_use]
pub fn image_volumes(container: &ContainerSpec, image: &ImageConfiguration) -> Vec<ContainerPath> {
    let declared = image.config().as_ref().and_then(|config| config.volumes().clone());
    let taken = |path: &ContainerPath| {
        let mounted = container.mounts.iter().map(|mount| &mount.target);
        let mut all = mounted.chain(container.tmpfs.iter().map(|tmpfs| &tmpfs.target));
        all.any(|target| {
            container
                .resolve(target)
                .is_ok_and(|target| target == path.resolve("/"))
        })
    };
    declared
        .into_iter()
        .flatten()
        .filter_map(|path| ContainerPath::new(path).ok())
        .filter(|path| path.is_absolute() && path.as_str() != "/" && !taken(path))
        .collect()
}

fn namespaces(input: &SpecInput<'_>) -> Vec<LinuxNamespace> {
    let namespace = |typ, path: Option<&Path>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ).set_path(path.map(Path::to_owned));
        namespace
    };
    let mut all = vec![
        namespace(LinuxNamespaceType::Mount, None),
        namespace(LinuxNamespaceType::Uts, None),
        namespace(LinuxNamespaceType::Pid, None),
        namespace(LinuxNamespaceType::Ipc, None),
    ];
    if input.container.network != NetworkMode::Host {
        all.push(namespace(LinuxNamespaceType::Network, input.netns));
    }
    // docker's defaults: `host` with the first generation of cgroups, `private` with the second.
    if input.host.cgroups == CgroupVersion::V2 {
        all.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    all
}

/// In a network namespace of its own, as docker has them since 20.10: every port, and `ping`, without a capability.
fn sysctls(network: NetworkMode) -> Option<HashMap<String, String>> {
    let own = [
        ("net.ipv4.ip_unprivileged_port_start", "0"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
    ];
    (network != NetworkMode::Host).then(|| {
        own.into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    })
}

fn resources(container: &ContainerSpec, host: &Host) -> Result<LinuxResources> {
    let Limits { cpus, memory, pids, .. } = &container.limits;
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(devices::rules(container.privileged)));
    if let Some(cpus) = cpus {
        let mut cpu = LinuxCpu::default();
        let quota = i64::from(cpus.millis()) * (PERIOD / 1000).cast_signed();
        cpu.set_quota(Some(quota)).set_period(Some(PERIOD));
        resources.set_cpu(Some(cpu));
    }
    if let Some(memory) = *memory {
        if memory < LEAST_MEMORY {
            return Err(Error::invalid(format!(
                "a memory limit of {memory} bytes is too small to start a container in; the least is {LEAST_MEMORY}"
            )));
        }
        let mut limits = LinuxMemory::default();
        limits.set_limit(Some(signed(memory)));
        if host.swap_limit {
            // Of memory and swap together, so that nothing is left for swap.
            limits.set_swap(Some(signed(memory)));
        }
        resources.set_memory(Some(limits));
    }
    if let Some(limit) = *pids {
        let mut pids = LinuxPids::default();
        pids.set_limit(signed(limit));
        resources.set_pids(Some(pids));
    }
    Ok(resources)
}

/// A limit that [`ContainerSpec::validate`] has let through.
fn signed(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_of_cgroups_has_the_namespaces_that_docker_gives_it() {
        let image = ImageConfiguration::default();
        let types = |cgroups, network| {
            let mut container = ContainerSpec::new("image".parse().unwrap());
            container.network = network;
            let host = Host {
                root: "/".into(),
                cgroups,
                swap_limit: false,
                bounding: 0,
                hard_limits: BTreeMap::new(),
                apparmor: false,
            };
            let all = namespaces(&SpecInput {
                container: &container,
                image: &image,
                rootfs: Path::new("rootfs"),
                user: ResolvedUser::default(),
                volumes: BTreeMap::new(),
                image_volumes: BTreeMap::new(),
                hostname: "inside",
                netns: None,
                cgroup: Path::new("/x"),
                etc: BTreeMap::new(),
                host: &host,
            });
            all.iter().map(LinuxNamespace::typ).collect::<Vec<_>>()
        };
        let of_v1 = types(CgroupVersion::V1, NetworkMode::None);
        assert!(!of_v1.contains(&LinuxNamespaceType::Cgroup) && of_v1.contains(&LinuxNamespaceType::Network));
        let of_v2 = types(CgroupVersion::V2, NetworkMode::Host);
        assert!(of_v2.contains(&LinuxNamespaceType::Cgroup) && !of_v2.contains(&LinuxNamespaceType::Network));
    }
}
