//! The drivers there are. No other place chooses between them; each has a table of its name in the [configuration](crate::config).

use std::io::Write;
use std::sync::Arc;

use orchestra::layer::Privileges;
use orchestra::{ErrorKind, SharedDriver, layer};
pub(crate) use orchestra_containerd::ContainerdConfig;
use orchestra_containerd::{ContainerdDriver, is_containerd};
pub(crate) use orchestra_docker::DockerConfig;
use orchestra_docker::DockerDriver;
pub(crate) use orchestra_podman::PodmanConfig;
use orchestra_podman::PodmanDriver;
use orchestra_secrets::{Secrets, SecretsLayer};

use crate::config::Config;
use crate::console::Console;
use crate::exit::{Exit, Failure};

/// The one that is used where nothing is said.
pub(crate) const DEFAULT: &str = Known::Docker.name();
/// What stands for whichever engine answers.
const AUTO: &str = "auto";

/// A driver that this program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Docker,
    Podman,
    Containerd,
}

impl Known {
    /// All of them, in the order in which [`AUTO`] tries them.
    const ALL: [Self; 3] = [Self::Docker, Self::Podman, Self::Containerd];

    /// Its name, as configuration has it.
    const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
        }
    }

    /// The environment variable by which the engine's own client is told where the engine is.
    const fn variable(self) -> &'static str {
        match self {
            Self::Docker => "DOCKER_HOST",
            Self::Podman => "CONTAINER_HOST",
            Self::Containerd => "CONTAINERD_ADDRESS",
        }
    }

    /// The key of its table that says the same.
    const fn key(self) -> &'static str {
        match self {
            Self::Docker | Self::Podman => "host",
            Self::Containerd => "address",
        }
    }

    /// Whether someone has said where this engine is.
    fn is_placed(self, config: &Config, is_set: impl Fn(&str) -> bool) -> bool {
        let host = match self {
            Self::Docker => &config.docker.host,
            Self::Podman => &config.podman.host,
            Self::Containerd => &config.containerd.address,
        };
        host.is_some() || is_set(self.variable())
    }

    async fn connect(self, config: &Config) -> orchestra::Result<SharedDriver> {
        match self.try_to_connect(config).await {
            Ok(driver) => Ok(driver),
            Err(error) => Err(self.recognise(error).await.during("connect").on_driver(self.name())),
        }
    }

    async fn try_to_connect(self, config: &Config) -> orchestra::Result<SharedDriver> {
        Ok(match self {
            Self::Docker => Arc::new(DockerDriver::connect(config.docker.clone()).await?),
            Self::Podman => Arc::new(PodmanDriver::connect(config.podman.clone()).await?),
            Self::Containerd => Arc::new(ContainerdDriver::connect(config.containerd.clone()).await?),
        })
    }

    /// Names a containerd that was taken for another engine. Drivers that speak HTTP/1.1 see only that it does not; containerd's
    /// own recognises the others.
    async fn recognise(self, error: orchestra::Error) -> orchestra::Error {
        let endpoint = error.context().find(|(key, _)| *key == "endpoint");
        let socket = endpoint.and_then(|(_, endpoint)| endpoint.strip_prefix("unix://").map(str::to_owned));
        match socket {
            Some(socket)
                if self != Self::Containerd
                    && error.kind() == ErrorKind::Unsupported
                    && is_containerd(socket.as_ref()).await =>
            {
                let name = self.name();
                let message = format!("containerd answers here, not {name}");
                orchestra::Error::new(ErrorKind::Unsupported, message)
                    .with_hint(format!(
                        "use the driver of that engine (`--driver containerd`), or name {name}'s own socket"
                    ))
                    .with("endpoint", format!("unix://{socket}"))
            }
            _ => error,
        }
    }
}

/// Connects to the engine that is configured, with the layers that every user wants around it, and that of secrets.
///
/// # Errors
/// Bad input for a driver that does not exist; whatever the driver fails to connect with.
pub(crate) async fn connect(config: &Config, secrets: Option<Secrets>) -> Result<SharedDriver, Failure> {
    let driver = match Known::ALL.iter().find(|known| known.name() == config.driver) {
        Some(known) => known.connect(config).await?,
        None if config.driver == AUTO => first_that_answers(config).await?,
        None => {
            let names = Known::ALL.map(Known::name).join(", ");
            return Err(
                Failure::bad_input(format!("there is no driver {:?}", config.driver)).with_hint(format!(
                    "write one of those there are: {names}, or {AUTO} for the first of them that answers"
                )),
            );
        }
    };
    // Below the others, so that what these say is redacted too.
    let driver = match secrets {
        Some(secrets) => SecretsLayer::wrap(driver, secrets),
        None => driver,
    };
    let driver = Privileges::wrap(driver, config.privileges());
    Ok(layer::standard(driver))
}

/// Those that someone has placed come first: to say where an engine is, is to want it.
fn in_order(config: &Config, is_set: impl Fn(&str) -> bool) -> Vec<Known> {
    let (placed, others): (Vec<_>, Vec<_>) = Known::ALL
        .into_iter()
        .partition(|known| known.is_placed(config, &is_set));
    [placed, others].concat()
}

async fn first_that_answers(config: &Config) -> Result<SharedDriver, Failure> {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let mut tried = Vec::new();
    for known in in_order(config, is_set) {
        let error = match known.connect(config).await {
            Ok(driver) => {
                let info = driver.info();
                tell(&format!(
                    "{AUTO} took {} {} at {}",
                    info.driver, info.engine_version, info.endpoint
                ));
                return Ok(driver);
            }
            // A place that makes no sense is no engine that does not answer.
            Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error.into()),
            Err(error) => error,
        };
        if known.is_placed(config, is_set) {
            tell(&format!("{AUTO} passes over {error}"));
        }
        tried.push(error);
    }
    let tried: String = tried.iter().map(told).collect();
    let places: Vec<String> = Known::ALL
        .iter()
        .map(|known| format!("{} or `{}` in [{}]", known.variable(), known.key(), known.name()))
        .collect();
    let hint = format!("start one, or say where it is: {}", places.join(", "));
    Err(Failure::text(
        Exit::Engine,
        format!("no engine answers; tried were:{tried}"),
        Some(hint),
    ))
}

/// Of one that was tried: why it was not taken, and what to do about that where it is not simply absent.
fn told(error: &orchestra::Error) -> String {
    match error.hint().filter(|_| error.kind() != ErrorKind::Unreachable) {
        Some(hint) => format!("\n  {error}\n    {hint}"),
        None => format!("\n  {error}"),
    }
}

/// Which engine it is, is said beside the answer and not in it.
fn tell(note: &str) {
    let label = Console::detect().stderr.note("note");
    // Nobody is left to tell if standard error is closed.
    writeln!(std::io::stderr(), "{label}: {note}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    use figment::Figment;
    use figment::providers::{Format, Toml};

    #[test]
    fn what_was_tried_is_told_with_what_to_do_where_it_is_not_simply_absent() {
        let error = |kind| orchestra::Error::new(kind, "why").on_driver("podman");
        assert_eq!(told(&error(ErrorKind::Unreachable)), "\n  podman: unreachable: why");
        let denied = told(&error(ErrorKind::PermissionDenied));
        assert!(
            denied.starts_with("\n  podman: permission denied: why\n    give this user access"),
            "{denied}"
        );
    }

    #[test]
    fn an_engine_that_someone_has_placed_is_tried_before_the_others() {
        let order = |text: &str, variables: &[&str]| {
            let config: Config = Figment::from(Toml::string(text)).extract().unwrap();
            let order = in_order(&config, |name| variables.contains(&name));
            order.into_iter().map(Known::name).collect::<Vec<_>>()
        };
        assert_eq!(order("", &[]), ["docker", "podman", "containerd"]);
        assert_eq!(order("", &["CONTAINER_HOST"]), ["podman", "docker", "containerd"]);
        let placed = "[podman]\nhost = 'unix:///p'";
        assert_eq!(order(placed, &[]), ["podman", "docker", "containerd"]);
        assert_eq!(order(placed, &["DOCKER_HOST"]), ["docker", "podman", "containerd"]);
        assert_eq!(
            order("[containerd]\naddress = '/c'", &[]),
            ["containerd", "docker", "podman"]
        );
    }
}
