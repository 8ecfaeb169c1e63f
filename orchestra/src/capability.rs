//! What an engine can do, as data that is compared with a spec before anything is made.

use std::collections::BTreeMap;

use crate::{ContainerSpec, Error, ErrorKind, NetworkMode, Profile, PullImage, Result};

/// What a driver's engine can do. Each field says "the engine does what the spec's field of that name asks"; a layer may
/// change it, so ask the stack that is used: [`Driver::info`](crate::Driver::info).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent fact, named as the spec's field is"
)]
#[non_exhaustive]
pub struct Capabilities {
    /// [`NetworkMode::Default`]: a network of the engine's that reaches outside.
    pub default_network: bool,
    /// [`NetworkMode::None`].
    pub no_network: bool,
    /// [`NetworkMode::Host`].
    pub host_network: bool,
    /// [`ContainerSpec::privileged`].
    pub privileged: bool,
    /// [`ContainerSpec::cap_add`] and [`ContainerSpec::cap_drop`].
    pub kernel_capabilities: bool,
    /// [`Security::seccomp`](crate::Security::seccomp).
    pub seccomp: bool,
    /// [`Security::apparmor`](crate::Security::apparmor): profiles other than "unconfined", which any engine can give.
    pub apparmor: bool,
    /// [`Security::no_new_privileges`](crate::Security::no_new_privileges).
    pub no_new_privileges: bool,
    /// [`Limits::cpus`](crate::Limits::cpus), as a quota.
    pub cpu_quota: bool,
    /// [`Limits::memory`](crate::Limits::memory).
    pub memory_limit: bool,
    /// [`Limits::pids`](crate::Limits::pids).
    pub pids_limit: bool,
    /// [`Limits::shm_size`](crate::Limits::shm_size).
    pub shm_size: bool,
    /// [`Limits::ulimits`](crate::Limits::ulimits).
    pub ulimits: bool,
    /// [`ContainerSpec::tmpfs`].
    pub tmpfs: bool,
    /// [`ContainerSpec::extra_hosts`].
    pub extra_hosts: bool,
    /// [`ContainerSpec::stdin`].
    pub stdin: bool,
    /// [`ContainerSpec::user`].
    pub user: bool,
    /// [`Driver::exec`](crate::Driver::exec).
    pub exec: bool,
    /// [`Driver::import_image`](crate::Driver::import_image).
    pub import_image: bool,
    /// [`Driver::write_volume`](crate::Driver::write_volume) and [`Driver::read_volume`](crate::Driver::read_volume) keep
    /// everything that the kernel keeps of a file. Where it lacks, `orchestra-volumes` does it above the driver.
    pub exact_volumes: bool,
    /// [`Driver::volume_directory`](crate::Driver::volume_directory) tells where a volume's files are on this machine: they
    /// need not go through the engine.
    pub volume_directories: bool,
    /// A volume takes any file: owners of all numbers, devices, `trusted.*` attributes. An engine without root takes what the
    /// kernel lets its user namespace have.
    pub any_file: bool,
    /// [`PullImage::insecure`]. Registries on loopback may be reachable by plain HTTP without it.
    pub insecure_pull: bool,
    /// [`ExitStatus::OutOfMemory`](crate::ExitStatus::OutOfMemory) is told apart from `SIGKILL`, as far as
    /// the engine is told itself: docker 20.10 and 26.1 lose the kernel's notice now and then under load.
    pub out_of_memory: bool,
    /// Containers outlive this process: [`Job`](crate::Job) can re-attach to them.
    pub reattach: bool,
}

impl Capabilities {
    /// All of them: what a complete engine has.
    pub const ALL: Self = Self {
        default_network: true,
        no_network: true,
        host_network: true,
        privileged: true,
        kernel_capabilities: true,
        seccomp: true,
        apparmor: true,
        no_new_privileges: true,
        cpu_quota: true,
        memory_limit: true,
        pids_limit: true,
        shm_size: true,
        ulimits: true,
        tmpfs: true,
        extra_hosts: true,
        stdin: true,
        user: true,
        exec: true,
        import_image: true,
        exact_volumes: true,
        volume_directories: true,
        any_file: true,
        insecure_pull: true,
        out_of_memory: true,
        reattach: true,
    };

    /// None of them: what a driver adds its own to.
    pub const NONE: Self = Self {
        default_network: false,
        no_network: false,
        host_network: false,
        privileged: false,
        kernel_capabilities: false,
        seccomp: false,
        apparmor: false,
        no_new_privileges: false,
        cpu_quota: false,
        memory_limit: false,
        pids_limit: false,
        shm_size: false,
        ulimits: false,
        tmpfs: false,
        extra_hosts: false,
        stdin: false,
        user: false,
        exec: false,
        import_image: false,
        exact_volumes: false,
        volume_directories: false,
        any_file: false,
        insecure_pull: false,
        out_of_memory: false,
        reattach: false,
    };

    /// Compares `spec` with these capabilities.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] naming every capability that is asked for and missing.
    pub fn check_container(&self, spec: &ContainerSpec) -> Result<()> {
        refuse(&self.missing_for(spec), &BTreeMap::new())
    }

    /// The names of those that `spec` asks for and that are missing.
    pub(crate) fn missing_for(&self, spec: &ContainerSpec) -> Vec<&'static str> {
        let limits = &spec.limits;
        let network = match spec.network {
            NetworkMode::Default => ("default_network", self.default_network),
            NetworkMode::None => ("no_network", self.no_network),
            NetworkMode::Host => ("host_network", self.host_network),
        };
        missing(&[
            (true, network.0, network.1),
            (spec.privileged, "privileged", self.privileged),
            (
                !spec.cap_add.is_empty() || !spec.cap_drop.is_empty(),
                "kernel_capabilities",
                self.kernel_capabilities,
            ),
            // An engine that filters nothing leaves a process as unconfined as it asked to be.
            (
                matches!(spec.security.seccomp, Profile::Custom(_)),
                "seccomp",
                self.seccomp,
            ),
            (
                matches!(spec.security.apparmor, Profile::Custom(_)),
                "apparmor",
                self.apparmor,
            ),
            (
                spec.security.no_new_privileges,
                "no_new_privileges",
                self.no_new_privileges,
            ),
            (limits.cpus.is_some(), "cpu_quota", self.cpu_quota),
            (limits.memory.is_some(), "memory_limit", self.memory_limit),
            (limits.pids.is_some(), "pids_limit", self.pids_limit),
            (limits.shm_size.is_some(), "shm_size", self.shm_size),
            (!limits.ulimits.is_empty(), "ulimits", self.ulimits),
            (!spec.tmpfs.is_empty(), "tmpfs", self.tmpfs),
            (!spec.extra_hosts.is_empty(), "extra_hosts", self.extra_hosts),
            (spec.stdin, "stdin", self.stdin),
            (spec.user.is_some(), "user", self.user),
        ])
    }

    /// Compares a pull with these capabilities.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] naming what is asked for and missing.
    pub fn check_pull(&self, pull: &PullImage) -> Result<()> {
        let missing = missing(&[(pull.insecure, "insecure_pull", self.insecure_pull)]);
        refuse(&missing, &BTreeMap::new())
    }

    /// Each capability by name, in the order of the fields.
    #[must_use]
    pub fn list(&self) -> Vec<(String, bool)> {
        // The struct's own serialisation is the list of names: a second one could differ from it.
        let value = serde_json::to_value(self).unwrap_or_default();
        value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, has)| (name.clone(), has.as_bool().unwrap_or(false)))
            .collect()
    }
}

fn missing(asked: &[(bool, &'static str, bool)]) -> Vec<&'static str> {
    asked
        .iter()
        .filter(|(asked, _, has)| *asked && !*has)
        .map(|(_, name, _)| *name)
        .collect()
}

/// Refuses what asks for capabilities that are missing, with the reasons that are known.
pub(crate) fn refuse(missing: &[&str], reasons: &BTreeMap<String, String>) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let mut message = format!("the engine lacks {}", missing.join(", "));
    for reason in missing.iter().filter_map(|name| reasons.get(*name)) {
        message.push_str(": ");
        message.push_str(reason);
    }
    Err(Error::new(ErrorKind::Unsupported, message)
        .with_hint("leave out what asks for it, or use another engine; `orchestra doctor` lists what this one can do"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_capability_is_named_at_once() {
        let mut spec = ContainerSpec::new("busybox".parse().unwrap());
        spec.privileged = true;
        spec.limits.memory = Some(1 << 20);
        let error = Capabilities {
            default_network: true,
            ..Capabilities::NONE
        }
        .check_container(&spec)
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.message(), "the engine lacks privileged, memory_limit");
        assert!(Capabilities::ALL.check_container(&spec).is_ok());
    }

    #[test]
    fn the_list_has_every_field() {
        assert!(Capabilities::ALL.list().iter().all(|(_, has)| *has));
        assert_eq!(Capabilities::NONE.list().len(), 25);
    }
}
