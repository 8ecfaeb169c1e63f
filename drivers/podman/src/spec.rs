//! A [`ContainerSpec`] in libpod's terms: podman's `SpecGenerator` (`pkg/specgen/specgen.go`), by the names that it has in
//! JSON. What is left out is as libpod has it.

use std::collections::BTreeMap;

use orchestra::{ContainerSpec, Error, Labels, NetworkMode, Profile, Result, Ulimit, labels};
use serde::Serialize;

/// Microseconds of the period that a processor quota counts in: the kernel's own default.
const PERIOD: u64 = 100_000;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Body {
    name: String,
    image: Option<String>,
    rootfs: Option<String>,
    pub(crate) entrypoint: Option<Vec<String>>,
    command: Option<Vec<String>>,
    labels: Labels,
    volumes: Vec<NamedVolume>,
    log_configuration: Option<LogConfig>,
    netns: Option<Namespace>,
    env: BTreeMap<String, String>,
    work_dir: Option<String>,
    /// Makes the working directory that the image lacks.
    create_working_dir: bool,
    user: Option<String>,
    stop_signal: Option<u8>,
    stdin: bool,
    mounts: Vec<FileSystem>,
    hostadd: Vec<String>,
    privileged: bool,
    cap_add: Vec<String>,
    cap_drop: Vec<String>,
    seccomp_profile_path: Option<&'static str>,
    apparmor_profile: Option<String>,
    no_new_privileges: bool,
    resource_limits: Resources,
    r_limits: Vec<Rlimit>,
    shm_size: Option<i64>,
    /// Never systemd's own ways, which libpod else chooses by the program's name.
    systemd: Option<&'static str>,
    healthconfig: Option<Health>,
}

/// No health checks: nobody asks for them here, and libpod starts a systemd timer for those of an image, which fails the
/// start where no systemd runs.
#[derive(Debug, Serialize)]
struct Health {
    #[serde(rename = "Test")]
    test: [&'static str; 1],
}

#[derive(Debug, Serialize)]
struct NamedVolume {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Dest")]
    target: String,
    #[serde(rename = "Options")]
    options: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct FileSystem {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Source")]
    source: &'static str,
    #[serde(rename = "Destination")]
    target: String,
    #[serde(rename = "Options")]
    options: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LogConfig {
    driver: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<i64>,
}

#[derive(Debug, Serialize)]
struct Namespace {
    nsmode: &'static str,
}

/// `LinuxResources` of the [OCI runtime specification](https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#control-groups).
#[derive(Debug, Default, Serialize)]
struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<Pids>,
}

#[derive(Debug, Serialize)]
struct Cpu {
    quota: i64,
    period: u64,
}

#[derive(Debug, Serialize)]
struct Memory {
    limit: i64,
    swap: i64,
}

#[derive(Debug, Serialize)]
struct Pids {
    limit: i64,
}

#[derive(Debug, Serialize)]
struct Rlimit {
    #[serde(rename = "type")]
    name: String,
    soft: u64,
    hard: u64,
}

/// The body of `POST /libpod/containers/create` for a container of `image`. `log_limit` is that of
/// [`PodmanConfig`](crate::PodmanConfig).
pub(crate) fn body(name: &str, spec: &ContainerSpec, image: String, log_limit: u64) -> Result<Body> {
    let security = &spec.security;
    Ok(Body {
        name: name.to_owned(),
        image: Some(image),
        rootfs: None,
        entrypoint: spec.entrypoint.clone(),
        command: spec.command.clone(),
        labels: spec.labels.clone(),
        volumes: volumes(spec)?,
        log_configuration: Some(LogConfig {
            driver: "k8s-file",
            size: Some(i64::try_from(log_limit.max(1)).unwrap_or(i64::MAX)),
        }),
        netns: match spec.network {
            NetworkMode::None => Some("none"),
            NetworkMode::Host => Some("host"),
            // A bridge for root; what stands in for it, by the engine's configuration, for everybody else.
            _ => None,
        }
        .map(|nsmode| Namespace { nsmode }),
        env: spec.env.0.clone(),
        work_dir: spec.working_dir.as_ref().map(ToString::to_string),
        create_working_dir: true,
        user: spec.user.as_ref().map(ToString::to_string),
        stop_signal: spec.stop_signal.map(|signal| signal.number()),
        stdin: spec.stdin,
        mounts: tmpfs(spec)?,
        hostadd: spec
            .extra_hosts
            .iter()
            .map(|host| format!("{}:{}", host.name, host.address))
            .collect(),
        privileged: spec.privileged,
        cap_add: spec.cap_add.iter().map(ToString::to_string).collect(),
        cap_drop: spec.cap_drop.iter().map(ToString::to_string).collect(),
        seccomp_profile_path: (security.seccomp == Profile::Unconfined).then_some("unconfined"),
        apparmor_profile: match &security.apparmor {
            Profile::Unconfined => Some("unconfined".to_owned()),
            Profile::Custom(profile) => Some(profile.clone()),
            _ => None,
        },
        no_new_privileges: security.no_new_privileges,
        resource_limits: resources(spec)?,
        r_limits: spec.limits.ulimits.iter().map(rlimit).collect(),
        shm_size: limit("shm_size", spec.limits.shm_size)?,
        systemd: Some("false"),
        healthconfig: Some(Health { test: ["NONE"] }),
    })
}

/// The body for a container that never runs, on the folder `rootfs` of the engine's host, in which `volume` stands at
/// `target`.
pub(crate) fn helper(name: &str, rootfs: &str, volume: &str, target: &str, labels: Labels) -> Body {
    Body {
        name: name.to_owned(),
        rootfs: Some(rootfs.to_owned()),
        // A program has to be there when the runtime prepares the container: this one is in all.
        command: Some(vec!["/proc/self/exe".to_owned()]),
        labels,
        volumes: vec![NamedVolume {
            name: volume.to_owned(),
            target: target.to_owned(),
            options: vec!["rw", "nocopy"],
        }],
        log_configuration: Some(LogConfig {
            driver: "none",
            size: None,
        }),
        netns: Some(Namespace { nsmode: "none" }),
        ..Body::default()
    }
}

/// libpod takes 0 for "unlimited", which is not what a limit of 0 says.
fn limit(name: &str, value: Option<u64>) -> Result<Option<i64>> {
    match value {
        None => Ok(None),
        Some(0) => Err(Error::invalid(format!(
            "a {name} limit of 0 leaves nothing; leave it out for no limit"
        ))),
        Some(value) => match i64::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Error::invalid(format!("a {name} limit of {value} is too large"))),
        },
    }
}

fn resources(spec: &ContainerSpec) -> Result<Resources> {
    let limits = &spec.limits;
    Ok(Resources {
        cpu: limits.cpus.map(|cpus| Cpu {
            quota: i64::from(cpus.millis()) * 100,
            period: PERIOD,
        }),
        // Both together, so that nothing is left for swap.
        memory: limit("memory", limits.memory)?.map(|limit| Memory { limit, swap: limit }),
        pids: limit("pids", limits.pids)?.map(|limit| Pids { limit }),
    })
}

/// Never filled from the image, and with what libpod takes from volumes by itself (`nosuid`, `nodev`): no other engine
/// does, and a program that is setuid is to work in all.
fn volumes(spec: &ContainerSpec) -> Result<Vec<NamedVolume>> {
    let volume = |mount: &orchestra::Mount| {
        Ok(NamedVolume {
            name: mount.volume.to_string(),
            target: spec.resolve(&mount.target)?,
            options: vec![
                if mount.read_only { "ro" } else { "rw" },
                "nocopy",
                "exec",
                "suid",
                "dev",
            ],
        })
    };
    spec.mounts.iter().map(volume).collect()
}

fn tmpfs(spec: &ContainerSpec) -> Result<Vec<FileSystem>> {
    let tmpfs = |tmpfs: &orchestra::Tmpfs| {
        let mut options: Vec<String> = ["rw", "exec", "nosuid", "nodev", "notmpcopyup", "mode=1777"]
            .map(str::to_owned)
            .into();
        if let Some(size) = limit("tmpfs size", tmpfs.size)? {
            options.push(format!("size={size}"));
        }
        Ok(FileSystem {
            kind: "tmpfs",
            source: "tmpfs",
            target: spec.resolve(&tmpfs.target)?,
            options,
        })
    };
    spec.tmpfs.iter().map(tmpfs).collect()
}

fn rlimit(limit: &Ulimit) -> Rlimit {
    Rlimit {
        name: limit.name.clone(),
        soft: limit.soft,
        hard: limit.hard,
    }
}

/// Of these labels, those that say whose a resource is.
pub(crate) fn ownership(all: &Labels) -> Labels {
    let keys = [labels::JOB, labels::RUNNER, labels::CREATED];
    keys.iter()
        .filter_map(|key| Some(((*key).to_owned(), all.get(*key)?.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec() -> ContainerSpec {
        ContainerSpec::new("busybox".parse().unwrap())
    }

    fn written(spec: &ContainerSpec) -> Value {
        serde_json::to_value(body("c", spec, "i".to_owned(), 1).unwrap()).unwrap()
    }

    #[test]
    fn a_limit_of_nothing_is_refused_since_libpod_takes_it_for_no_limit() {
        let mut none = spec();
        none.limits.memory = Some(0);
        let error = body("c", &none, "i".to_owned(), 1).unwrap_err();
        assert!(error.message().contains("memory limit of 0"), "{error}");
        let mut none = spec();
        none.tmpfs.push(orchestra::Tmpfs {
            target: "/t".parse().unwrap(),
            size: Some(0),
        });
        assert!(body("c", &none, "i".to_owned(), 1).is_err());
    }

    #[test]
    fn limits_are_hard_ones() {
        let mut spec = spec();
        spec.limits.cpus = Some("1.5".parse().unwrap());
        spec.limits.memory = Some(64 << 20);
        let written = written(&spec);
        assert_eq!(
            written["resource_limits"],
            json!({"cpu": {"quota": 150_000, "period": 100_000}, "memory": {"limit": 64 << 20, "swap": 64 << 20}})
        );
    }

    #[test]
    fn mounts_are_absolute_and_never_filled_from_the_image() {
        let mut spec = spec();
        spec.working_dir = Some("/work".parse().unwrap());
        spec.mounts.push(orchestra::Mount {
            volume: orchestra::VolumeId::new("v").unwrap(),
            target: "src".parse().unwrap(),
            read_only: true,
        });
        assert_eq!(
            written(&spec)["volumes"],
            json!([{"Name": "v", "Dest": "/work/src", "Options": ["ro", "nocopy", "exec", "suid", "dev"]}])
        );
    }

    #[test]
    fn the_network_is_the_engines_choice_unless_it_is_asked_for() {
        let mut spec = spec();
        assert_eq!(written(&spec)["netns"], Value::Null);
        spec.network = NetworkMode::None;
        assert_eq!(written(&spec)["netns"], json!({"nsmode": "none"}));
    }
}
