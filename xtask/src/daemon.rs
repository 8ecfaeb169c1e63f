//! dockerd and its containerd, with roots, sockets and settings of their own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    folders::Folders,
    guard::{Daemon, Ready},
};

/// How a private docker engine is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Docker<'a> {
    pub(crate) folders: &'a Folders,
    /// Whether [`runc-bounded`](crate::runtime) stands in for runc.
    pub(crate) bounded: bool,
    /// Whether containers have a network besides none and the host's.
    pub(crate) bridge: bool,
}

impl Docker<'_> {
    /// The two daemons, in the order in which they are to be started.
    pub(crate) fn daemons(self) -> Result<Vec<Daemon>> {
        let run = &self.folders.run;
        let containerd_config = run.join("containerd.toml");
        let docker_config = run.join("daemon.json");
        fs::write(&containerd_config, self.containerd_toml())?;
        fs::write(&docker_config, serde_json::to_string_pretty(&self.docker_json())?)?;
        let argv = |program: &str, option: &str, config: &Path| {
            vec![program.into(), option.into(), config.display().to_string()]
        };
        Ok(vec![
            Daemon {
                name: "containerd".into(),
                argv: argv("containerd", "--config", &containerd_config),
                in_rootfs: true,
                ready: Ready::Socket(run.join("containerd.sock")),
            },
            Daemon {
                name: "dockerd".into(),
                argv: argv("dockerd", "--config-file", &docker_config),
                in_rootfs: true,
                ready: Ready::Engine(self.socket()),
            },
        ])
    }

    /// Where dockerd listens.
    pub(crate) fn socket(self) -> PathBuf {
        self.folders.run.join("docker.sock")
    }

    /// Where dockerd writes its number.
    pub(crate) fn pid_file(self) -> PathBuf {
        self.folders.run.join("docker.pid")
    }

    fn containerd_toml(self) -> String {
        let root = self.folders.data().join("containerd");
        let state = self.folders.run.join("containerd");
        let socket = self.folders.run.join("containerd.sock");
        // Kubernetes' plugin would want a network configuration.
        format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n"
        )
    }

    fn docker_json(self) -> Value {
        let run = &self.folders.run;
        let mut settings = json!({
            "hosts": [format!("unix://{}", self.socket().display())],
            "data-root": self.folders.data().join("docker"),
            "exec-root": run.join("docker"),
            "pidfile": self.pid_file(),
            "containerd": run.join("containerd.sock"),
            "storage-driver": "overlay2",
            // A cgroup of our own can be removed whole; systemd, if it runs, is out of the sandbox's sight.
            "cgroup-parent": format!("/{}", self.folders.name),
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
        });
        if self.bounded {
            settings["runtimes"] = json!({"bounded": {"path": self.folders.data().join("runc-bounded")}});
            settings["default-runtime"] = json!("bounded");
        }
        if !self.bridge {
            settings["bridge"] = json!("none");
            settings["iptables"] = json!(false);
        }
        settings
    }
}
