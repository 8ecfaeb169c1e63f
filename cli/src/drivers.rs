//! The drivers there are. No other place chooses between them; each has a table of its name in the [configuration](crate::config).

use std::sync::Arc;

use orchestra::{SharedDriver, layer};
pub(crate) use orchestra_containerd::ContainerdConfig;
use orchestra_containerd::ContainerdDriver;
pub(crate) use orchestra_docker::DockerConfig;
use orchestra_docker::DockerDriver;
pub(crate) use orchestra_podman::PodmanConfig;
use orchestra_podman::PodmanDriver;

use crate::config::Config;
use crate::exit::Failure;

/// The one that is used where nothing is said.
pub(crate) const DEFAULT: &str = "docker";
/// Their names, as configuration has them.
const KNOWN: [&str; 3] = ["docker", "podman", "containerd"];

/// Connects to the engine that is configured, with the layers that every user wants around it.
///
/// # Errors
/// Bad input for a driver that does not exist; whatever the driver fails to connect with.
pub(crate) async fn connect(config: &Config) -> Result<SharedDriver, Failure> {
    let driver: SharedDriver = match config.driver.as_str() {
        "docker" => {
            let connected = DockerDriver::connect(config.docker.clone()).await;
            Arc::new(connected.map_err(|error| error.during("connect").on_driver("docker"))?)
        }
        "podman" => {
            let connected = PodmanDriver::connect(config.podman.clone()).await;
            Arc::new(connected.map_err(|error| error.during("connect").on_driver("podman"))?)
        }
        "containerd" => {
            let connected = ContainerdDriver::connect(config.containerd.clone()).await;
            Arc::new(connected.map_err(|error| error.during("connect").on_driver("containerd"))?)
        }
        other => {
            let there_are = format!("write one of those there are: {}", KNOWN.join(", "));
            return Err(Failure::bad_input(format!("there is no driver {other:?}")).with_hint(there_are));
        }
    };
    Ok(layer::standard(driver))
}
