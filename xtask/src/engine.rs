//! The engines that commands can be run against.

use std::{
    env, fmt,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;

use crate::{http, process};

/// A driver of the workspace; decides which kind of engine is provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Driver {
    /// dockerd, over its HTTP API.
    Docker,
    /// podman's service, over libpod's HTTP API.
    Podman,
    /// containerd, over its gRPC API.
    Containerd,
    /// The same of an ordinary user.
    PodmanRootless,
}

impl Driver {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Docker, Self::Podman, Self::PodmanRootless, Self::Containerd];

    /// The driver's own name, whoever runs its engine.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman | Self::PodmanRootless => "podman",
            Self::Containerd => "containerd",
        }
    }

    /// The driver of an engine of another kind: what is taken from each to the other one makes a round.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Docker => Self::Podman,
            Self::Podman => Self::Containerd,
            Self::Containerd | Self::PodmanRootless => Self::Docker,
        }
    }

    /// Where the engine listens, as its own clients are told.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Docker => "DOCKER_HOST",
            Self::Podman | Self::PodmanRootless => "CONTAINER_HOST",
            Self::Containerd => "CONTAINERD_ADDRESS",
        }
    }

    /// Where the engine listens unless it was told otherwise.
    fn default_socket(self) -> PathBuf {
        let user = || env::var_os("XDG_RUNTIME_DIR").filter(|_| !process::is_root());
        match self {
            Self::Docker => "/var/run/docker.sock".into(),
            Self::Podman | Self::PodmanRootless => {
                Path::new(&user().unwrap_or_else(|| "/run".into())).join("podman/podman.sock")
            }
            Self::Containerd => "/run/containerd/containerd.sock".into(),
        }
    }

    /// Whether such an engine listens on this socket.
    fn answers(self, socket: &Path) -> bool {
        match self {
            Self::Docker | Self::Podman | Self::PodmanRootless => answers(socket),
            // It speaks gRPC, and says nothing that would tell it from others before it is spoken to. Its socket is
            // there wherever docker is, and nobody but root may use it.
            Self::Containerd => process::is_root() && UnixStream::connect(socket).is_ok(),
        }
    }

    /// The package with the driver, which has tests of its own that need an engine.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Docker => "orchestra-docker",
            Self::Podman | Self::PodmanRootless => "orchestra-podman",
            Self::Containerd => "orchestra-containerd",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker => f.write_str("docker"),
            Self::Podman => f.write_str("podman"),
            Self::Containerd => f.write_str("containerd"),
            Self::PodmanRootless => f.write_str("podman-rootless"),
        }
    }
}

/// A generation of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// A private daemon from this distribution's packages (docker 20.10, podman 4.3 and containerd 1.6 on Debian 12).
    Bookworm,
    /// A private daemon of Debian 13, run from a root file system of its own (docker 26.1, podman 5.4,
    /// containerd 1.7).
    Trixie,
    /// A private daemon of Debian unstable, run from a root file system of its own (docker 28.5, podman
    /// 5.8, containerd 2.1).
    Sid,
    /// The engine that runs on this machine already; nothing is installed or started.
    Host,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
            Self::Host => "host",
        })
    }
}

impl Engine {
    /// Those that are started here, the oldest first.
    pub(crate) const PRIVATE: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Sid];

    /// The user's own engine where one runs, else a private one of this distribution's packages.
    pub(crate) fn default_here(driver: Driver) -> Self {
        if env::var_os(driver.variable()).is_some() || driver.answers(&driver.default_socket()) {
            Self::Host
        } else {
            Self::Bookworm
        }
    }
}

/// Whether a docker daemon, or podman's service, which knows this call too, answers on this socket.
pub(crate) fn answers(socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(socket) else {
        return false;
    };
    // A daemon that accepts and says nothing must not hang us.
    let bounded = stream.set_read_timeout(Some(Duration::from_secs(2)));
    bounded.is_ok() && http::get(stream, "/_ping").is_ok_and(|response| response.status == 200)
}
