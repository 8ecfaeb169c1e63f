//! Where podman is, in the terms that podman's own remote client has: `CONTAINER_HOST`, else the socket of root's service
//! or of this user's.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestra::{Error, Result};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Longest that is waited for what a server says before it is asked.
const GREETING: Duration = Duration::from_millis(500);
const ROOT_SOCKET: &str = "/run/podman/podman.sock";

/// Where the engine is. The default asks the environment, as `podman --remote` does.
///
/// ```
/// let config = orchestra_podman::PodmanConfig { host: Some("unix:///run/podman/podman.sock".into()), ..Default::default() };
/// # let _ = config;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodmanConfig {
    /// `unix:///PATH` or `tcp://HOST:PORT`. Where `None`, the environment's `CONTAINER_HOST`, and without that
    /// `unix:///run/podman/podman.sock` for root and `unix://$XDG_RUNTIME_DIR/podman/podman.sock` for everybody else.
    pub host: Option<String>,
    /// How many bytes of a container's output the engine keeps. A log that reaches it is emptied and begun anew, so leave
    /// room. Output that is followed from the start is never cut.
    pub log_limit: u64,
}

impl Default for PodmanConfig {
    fn default() -> Self {
        Self {
            host: None,
            log_limit: 16 << 30,
        }
    }
}

/// An address that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl Endpoint {
    /// Whether the server says something before it is asked, as none does that speaks HTTP/1.1: containerd's does.
    pub(crate) async fn speaks_first(&self) -> bool {
        let Self::Unix(path) = self else { return false };
        let heard = async { UnixStream::connect(path).await?.read(&mut [0]).await };
        let heard = tokio::time::timeout(GREETING, heard).await;
        heard.is_ok_and(|read| read.is_ok_and(|bytes| bytes > 0))
    }
}

impl PodmanConfig {
    /// The endpoint that this config means for the user with this number, where the environment has these variables.
    pub(crate) fn endpoint(&self, uid: u32, variable: impl Fn(&str) -> Option<String>) -> Result<Endpoint> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let host = match self.host.clone().or_else(|| variable("CONTAINER_HOST")) {
            Some(host) => host,
            None if uid == 0 => return Ok(Endpoint::Unix(ROOT_SOCKET.into())),
            None => {
                let folder = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{uid}"));
                return Ok(Endpoint::Unix(Path::new(&folder).join("podman/podman.sock")));
            }
        };
        let (scheme, rest) = host.split_once("://").unwrap_or(("", &host));
        let refuse = |why: &str| {
            Err(Error::invalid(format!("podman host {host:?} {why}"))
                .with_hint("write unix:///PATH or tcp://HOST:PORT"))
        };
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Endpoint::Unix(rest.into())),
            "unix" => refuse("has no absolute path"),
            "tcp" => match address(rest) {
                Ok(address) => Ok(Endpoint::Tcp(address)),
                Err(why) => refuse(why),
            },
            "ssh" => Err(Error::invalid(format!(
                "podman host {host:?} is reached by ssh, which this driver does not speak"
            ))
            .with_hint("forward the socket (`ssh -L LOCAL.sock:REMOTE.sock HOST`) and write unix:///LOCAL.sock")),
            _ => refuse("is not one that this driver can reach"),
        }
    }
}

/// `HOST:PORT` of what follows the scheme; podman has no usual port.
fn address(rest: &str) -> Result<String, &'static str> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#', '@']) || rest.contains(char::is_whitespace) {
        return Err("has more than a host and a port");
    }
    match rest.rsplit_once(':') {
        // A colon inside brackets belongs to an IPv6 address.
        Some((host, digits)) if !rest.ends_with(']') => match (host, digits.parse::<u16>()) {
            ("", _) => Err("names no host"),
            (_, Ok(_)) => Ok(rest.to_owned()),
            (_, Err(_)) => Err("has a port that is no number up to 65535"),
        },
        _ => Err("names no port"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestra::ErrorKind;

    fn endpoint(host: Option<&str>, uid: u32, variables: &[(&str, &str)]) -> Result<String> {
        let config = PodmanConfig {
            host: host.map(str::to_owned),
            ..PodmanConfig::default()
        };
        let find = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        config.endpoint(uid, find).map(|endpoint| endpoint.to_string())
    }

    #[test]
    fn hosts_are_found_as_podmans_remote_client_finds_them() {
        let runtime = ("XDG_RUNTIME_DIR", "/x");
        for (host, uid, variables, expected) in [
            (None, 0, &[][..], "unix:///run/podman/podman.sock"),
            (None, 0, &[runtime], "unix:///run/podman/podman.sock"),
            (None, 7, &[runtime], "unix:///x/podman/podman.sock"),
            (None, 7, &[], "unix:///run/user/7/podman/podman.sock"),
            (None, 7, &[("CONTAINER_HOST", "unix:///a"), runtime], "unix:///a"),
            (None, 0, &[("CONTAINER_HOST", "")], "unix:///run/podman/podman.sock"),
            (Some("unix:///b"), 0, &[("CONTAINER_HOST", "unix:///a")], "unix:///b"),
            (Some("tcp://h:1/"), 0, &[], "tcp://h:1"),
            (Some("tcp://[::1]:1"), 0, &[], "tcp://[::1]:1"),
        ] {
            assert_eq!(
                endpoint(host, uid, variables).unwrap(),
                expected,
                "{host:?} {variables:?}"
            );
        }
    }

    #[test]
    fn hosts_that_can_not_be_reached_are_refused_with_the_forms_that_can() {
        for host in [
            "http://h:1",
            "fd://",
            "h:8080",
            "unix://relative",
            "",
            "tcp://",
            "tcp://h",
            "tcp://:1",
            "tcp://h:x",
            "tcp://h:1/path",
            "tcp://u@h:1",
            "tcp://h:99999",
            "tcp://[::1]",
            "ssh://root@h",
        ] {
            let error = endpoint(Some(host), 0, &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{host}");
            assert!(format!("{error:?}").contains("unix:///"), "{error:?}");
        }
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(serde_json::from_str::<PodmanConfig>(r#"{"hots":"unix:///a"}"#).is_err());
        let config: PodmanConfig = serde_json::from_str(r#"{"host":"unix:///a"}"#).unwrap();
        assert_eq!(config.log_limit, 16 << 30);
    }
}
