//! A [`ContainerSpec`] in docker's terms.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, MountVolumeOptions, ResourcesUlimits,
};
use orchestra::{ContainerSpec, Env, Labels, NetworkMode, Profile, Result, Security, Ulimit, labels};

/// Microseconds of the period that a processor quota counts in: the kernel's own default.
const PERIOD: i64 = 100_000;

/// The body of `POST /containers/create`. `log_limit` is that of [`DockerConfig`](crate::DockerConfig).
pub(crate) fn body(spec: &ContainerSpec, log_limit: u64) -> Result<ContainerCreateBody> {
    Ok(ContainerCreateBody {
        image: Some(spec.image.canonical()),
        entrypoint: spec.entrypoint.clone(),
        cmd: spec.command.clone(),
        env: Some(env(&spec.env)),
        working_dir: spec.working_dir.as_ref().map(ToString::to_string),
        user: spec.user.as_ref().map(ToString::to_string),
        labels: Some(spec.labels.clone().into_iter().collect()),
        stop_signal: spec.stop_signal.map(|signal| signal.to_string()),
        open_stdin: Some(spec.stdin),
        // The process reads an end of file when the one stream that is attached ends.
        stdin_once: Some(spec.stdin),
        attach_stdin: Some(spec.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(false),
        host_config: Some(host(spec, log_limit)?),
        ..ContainerCreateBody::default()
    })
}

fn host(spec: &ContainerSpec, log_limit: u64) -> Result<HostConfig> {
    let limits = &spec.limits;
    let memory = limit(limits.memory);
    Ok(HostConfig {
        mounts: Some(mounts(spec)?),
        tmpfs: Some(tmpfs(spec)?),
        network_mode: Some(
            match spec.network {
                NetworkMode::None => "none",
                NetworkMode::Host => "host",
                _ => "default",
            }
            .to_owned(),
        ),
        extra_hosts: Some(
            spec.extra_hosts
                .iter()
                .map(|host| format!("{}:{}", host.name, host.address))
                .collect(),
        ),
        privileged: Some(spec.privileged),
        cap_add: Some(spec.cap_add.iter().map(ToString::to_string).collect()),
        cap_drop: Some(spec.cap_drop.iter().map(ToString::to_string).collect()),
        security_opt: Some(security(&spec.security)),
        // Not `NanoCPUs`, which is the same quota but refused over the number of this host's processors.
        cpu_period: limits.cpus.map(|_| PERIOD),
        cpu_quota: limits.cpus.map(|cpus| i64::from(cpus.millis()) * PERIOD / 1000),
        memory,
        // Both together, so that nothing is left for swap.
        memory_swap: memory,
        pids_limit: limit(limits.pids),
        shm_size: limit(limits.shm_size),
        ulimits: Some(limits.ulimits.iter().map(ulimit).collect()),
        log_config: Some(log(log_limit)),
        auto_remove: Some(false),
        init: Some(false),
        ..HostConfig::default()
    })
}

pub(crate) fn env(env: &Env) -> Vec<String> {
    env.0.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// A limit that [`ContainerSpec::validate`] has let through.
fn limit(value: Option<u64>) -> Option<i64> {
    value.map(|value| i64::try_from(value).unwrap_or(i64::MAX))
}

fn mounts(spec: &ContainerSpec) -> Result<Vec<Mount>> {
    let mount = |mount: &orchestra::Mount| {
        Ok(Mount {
            typ: Some(MountType::VOLUME),
            source: Some(mount.volume.to_string()),
            target: Some(spec.resolve(&mount.target)?),
            read_only: Some(mount.read_only),
            volume_options: Some(volume_options(&spec.labels)),
            ..Mount::default()
        })
    };
    spec.mounts.iter().map(mount).collect()
}

/// How a volume is mounted: never filled from the image. Should it vanish after it was looked for, docker makes a new one
/// of its name; that gets the owner's labels, so that it is found and removed.
pub(crate) fn volume_options(labels: &Labels) -> MountVolumeOptions {
    MountVolumeOptions {
        no_copy: Some(true),
        labels: Some(ownership(labels)),
        ..MountVolumeOptions::default()
    }
}

/// Of these labels, those that say whose a resource is.
pub(crate) fn ownership(all: &Labels) -> HashMap<String, String> {
    let keys = [labels::JOB, labels::RUNNER, labels::CREATED];
    keys.iter()
        .filter_map(|key| Some(((*key).to_owned(), all.get(*key)?.clone())))
        .collect()
}

/// docker's own defaults have `noexec`, which no other file system of a container has.
fn tmpfs(spec: &ContainerSpec) -> Result<HashMap<String, String>> {
    let tmpfs = |tmpfs: &orchestra::Tmpfs| {
        let mut options = "rw,exec,nosuid,nodev".to_owned();
        if let Some(size) = limit(tmpfs.size) {
            options.push_str(&format!(",size={size}"));
        }
        Ok((spec.resolve(&tmpfs.target)?, options))
    };
    spec.tmpfs.iter().map(tmpfs).collect()
}

fn security(security: &Security) -> Vec<String> {
    let mut options = Vec::new();
    for (name, profile) in [("seccomp", &security.seccomp), ("apparmor", &security.apparmor)] {
        match profile {
            Profile::Unconfined => options.push(format!("{name}=unconfined")),
            Profile::Custom(profile) => options.push(format!("{name}={profile}")),
            _ => {}
        }
    }
    if security.no_new_privileges {
        options.push("no-new-privileges:true".to_owned());
    }
    options
}

fn ulimit(limit: &Ulimit) -> ResourcesUlimits {
    // What is over docker's own range can only mean "unlimited", which it writes as -1.
    let value = |value: u64| Some(i64::try_from(value).unwrap_or(-1));
    ResourcesUlimits {
        name: Some(limit.name.clone()),
        soft: value(limit.soft),
        hard: value(limit.hard),
    }
}

/// The `local` driver keeps every byte; docker's default, `json-file`, replaces what is not UTF-8. When a file is full it
/// is kept until the next one is, so that nothing younger than the limit is lost.
fn log(limit: u64) -> HostConfigLogConfig {
    let options = [
        ("max-size", limit.max(1).to_string()),
        ("max-file", "2".to_owned()),
        ("compress", "false".to_owned()),
    ];
    HostConfigLogConfig {
        typ: Some("local".to_owned()),
        config: Some(
            options
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec::new("busybox".parse().unwrap())
    }

    #[test]
    fn limits_are_hard_ones() {
        let mut spec = spec();
        spec.limits.cpus = Some("1.5".parse().unwrap());
        spec.limits.memory = Some(64 << 20);
        let host = body(&spec, 1).unwrap().host_config.unwrap();
        assert_eq!((host.cpu_quota, host.cpu_period), (Some(150_000), Some(100_000)));
        assert_eq!((host.memory, host.memory_swap), (Some(64 << 20), Some(64 << 20)));
    }

    #[test]
    fn mounts_are_absolute_and_never_filled_from_the_image() {
        let mut spec = spec();
        spec.working_dir = Some("/work".parse().unwrap());
        spec.labels.insert(labels::JOB.to_owned(), "j".to_owned());
        let volume = orchestra::VolumeId::new("v").unwrap();
        spec.mounts.push(orchestra::Mount {
            volume,
            target: "src".parse().unwrap(),
            read_only: true,
        });
        let mounts = body(&spec, 1).unwrap().host_config.unwrap().mounts.unwrap();
        assert_eq!(mounts[0].target.as_deref(), Some("/work/src"));
        let options = mounts[0].volume_options.clone().unwrap();
        assert_eq!(options.no_copy, Some(true));
        assert_eq!(options.labels.unwrap()[labels::JOB], "j");
    }
}
