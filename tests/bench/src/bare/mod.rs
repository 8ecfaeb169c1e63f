//! The calls of one task made bare: what the engine itself costs, with nothing of ours in between.

mod containerd;
mod docker;
mod podman;

use bollard::Docker;
use orchestra_e2e::{Endpoint, KnownDriver};

use crate::{Bench, Outcome};

/// An engine's own API.
#[derive(Clone)]
pub(crate) enum Bare {
    Docker(Docker),
    Podman(Endpoint),
    Containerd(containerd::Containerd),
}

/// One command in a container of its own.
pub(crate) struct Task<'a> {
    pub(crate) image: &'a str,
    /// A name that no other container has.
    pub(crate) name: &'a str,
    pub(crate) command: &'a [&'a str],
    /// Whether it has the engine's default network, or none.
    pub(crate) network: bool,
    /// Whether its output outlives who asks for it. docker and podman have it no other way.
    pub(crate) kept: bool,
}

impl Bare {
    /// The engine that is measured.
    pub(crate) async fn connect(bench: &Bench) -> Outcome<Self> {
        let info = bench.driver.info();
        Ok(match bench.known {
            KnownDriver::Docker => {
                let docker = Docker::connect_with_host(&info.endpoint)?;
                Self::Docker(docker.negotiate_version().await?)
            }
            KnownDriver::Podman => Self::Podman(Endpoint::parse(&info.endpoint)?),
            KnownDriver::Containerd => {
                let driver = bench.driver.as_ref();
                Self::Containerd(containerd::Containerd::connect(driver, &bench.image).await?)
            }
        })
    }

    /// Whether it can give a container the default network with no more than API calls.
    pub(crate) fn has_network(&self) -> bool {
        !matches!(self, Self::Containerd(_))
    }

    /// Asks for the image, makes, starts, waits for, reads and removes a container, as a careful caller would.
    pub(crate) async fn task(&self, task: &Task<'_>) -> Outcome<()> {
        match self {
            Self::Docker(docker) => docker::task(docker, task).await,
            Self::Podman(endpoint) => podman::task(endpoint, task).await,
            Self::Containerd(containerd) => containerd.task(task).await,
        }
    }
}
