//! The drivers that the tests know.

use std::path::Path;
use std::sync::Arc;
use std::{env, fs};

use orchestra::{SharedDriver, layer};
use orchestra_containerd::{ContainerdConfig, ContainerdDriver};
use orchestra_docker::{DockerConfig, DockerDriver};
use orchestra_podman::{PodmanConfig, PodmanDriver};

use crate::{Endpoint, Engine, Result};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownDriver {
    /// `docker`.
    Docker,
    /// `podman`.
    Podman,
    /// `containerd`.
    Containerd,
}

impl KnownDriver {
    /// All of them, in the order in which the command tries them.
    pub const ALL: [Self; 3] = [Self::Docker, Self::Podman, Self::Containerd];

    /// Its name, as the command has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
        }
    }

    /// The one that `ORCHESTRA_TEST_DRIVER` names.
    #[must_use]
    pub fn chosen() -> Option<Self> {
        let chosen = env::var("ORCHESTRA_TEST_DRIVER").ok()?;
        Self::ALL.into_iter().find(|known| known.name() == chosen)
    }

    /// The environment variable that tells it where the engine is, and where that is if it is not set.
    #[must_use]
    pub fn host(self) -> (&'static str, &'static str) {
        match self {
            Self::Docker => ("DOCKER_HOST", "unix:///var/run/docker.sock"),
            Self::Podman => ("CONTAINER_HOST", "unix:///run/podman/podman.sock"),
            Self::Containerd => ("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock"),
        }
    }

    /// The setting of its table in the configuration that says the same.
    #[must_use]
    pub fn host_key(self) -> &'static str {
        match self {
            Self::Docker | Self::Podman => "host",
            Self::Containerd => "address",
        }
    }

    /// Where below `XDG_RUNTIME_DIR` an ordinary user's own engine listens, if its clients look for it there.
    #[must_use]
    pub fn users_socket(self) -> Option<&'static str> {
        match self {
            Self::Docker | Self::Containerd => None,
            Self::Podman => Some("podman/podman.sock"),
        }
    }

    /// The engine at `host`, past the driver.
    ///
    /// # Errors
    /// If it can't be there.
    pub fn look_at(self, host: &str) -> Result<Engine> {
        let endpoint = Endpoint::parse(host)?;
        match (self, endpoint) {
            (Self::Containerd, Endpoint::Unix(socket)) => {
                let config = containerd(Some(host.to_owned()));
                let namespace = config.namespace.unwrap_or_else(|| "orchestra".to_owned());
                let state = config.state.unwrap_or_else(|| "/var/lib/orchestra/containerd".into());
                Ok(Engine::containerd(socket, namespace, state))
            }
            // podman's service answers docker's API too, which is enough to look at what it holds.
            (_, endpoint) => Ok(Engine::new(endpoint)),
        }
    }

    /// Whether it can be reached over a network.
    #[must_use]
    pub fn speaks_tcp(self) -> bool {
        self != Self::Containerd
    }

    /// A driver, as every user has it, of the engine at `host` or at the one that the environment names.
    ///
    /// # Errors
    /// Whatever it fails to connect with.
    pub async fn connect(self, host: Option<String>) -> orchestra::Result<SharedDriver> {
        let driver: SharedDriver = match self {
            Self::Docker => {
                let config = DockerConfig {
                    host,
                    ..DockerConfig::default()
                };
                Arc::new(DockerDriver::connect(config).await?)
            }
            Self::Podman => {
                let config = PodmanConfig {
                    host,
                    ..PodmanConfig::default()
                };
                Arc::new(PodmanDriver::connect(config).await?)
            }
            Self::Containerd => Arc::new(ContainerdDriver::connect(containerd(host)).await?),
        };
        Ok(layer::standard(driver))
    }
}

/// Tells the driver of containerd its state folder.
pub(crate) const CONTAINERD_STATE: &str = "ORCHESTRA_CONTAINERD__STATE";

/// What a containerd's driver is told: by the environment, or beside the socket of an engine of a test's own.
fn containerd(address: Option<String>) -> ContainerdConfig {
    let mut config = ContainerdConfig::default();
    let socket = address
        .as_deref()
        .map(|address| address.strip_prefix("unix://").unwrap_or(address));
    let beside = socket.and_then(|socket| fs::read_to_string(Path::new(socket).with_extension("env")).ok());
    let told = |name: &str| match &beside {
        Some(lines) => lines
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}=")).map(str::to_owned)),
        None => env::var(name).ok(),
    };
    config.namespace = told("CONTAINERD_NAMESPACE");
    config.state = told(CONTAINERD_STATE).map(Into::into);
    config.address = address;
    config
}
