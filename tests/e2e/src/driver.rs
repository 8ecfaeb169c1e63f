//! The drivers that the tests know.

use std::env;
use std::sync::Arc;

use orchestra::{SharedDriver, layer};
use orchestra_docker::{DockerConfig, DockerDriver};
use orchestra_podman::{PodmanConfig, PodmanDriver};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownDriver {
    /// `docker`.
    Docker,
    /// `podman`.
    Podman,
}

impl KnownDriver {
    /// All of them, in the order in which the command tries them.
    pub const ALL: [Self; 2] = [Self::Docker, Self::Podman];

    /// Its name, as the command has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
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
        }
    }

    /// Where below `XDG_RUNTIME_DIR` an ordinary user's own engine listens, if its clients look for it there.
    #[must_use]
    pub fn users_socket(self) -> Option<&'static str> {
        match self {
            Self::Docker => None,
            Self::Podman => Some("podman/podman.sock"),
        }
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
        };
        Ok(layer::standard(driver))
    }
}
