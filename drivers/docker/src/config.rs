//! Where docker is, in the terms that docker's own client has: `DOCKER_HOST`, `DOCKER_TLS_VERIFY`, `DOCKER_CERT_PATH`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::{ClientVersion, Docker};
use orchestra::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::error::{Subject, about};

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// Longest that is waited for what a server says before it is asked.
const GREETING: Duration = Duration::from_millis(500);
const PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// Where the engine is and how it is spoken to. The default asks the environment, as docker's client does.
///
/// ```
/// let config = orchestra_docker::DockerConfig { host: Some("unix:///run/docker.sock".into()), ..Default::default() };
/// # let _ = config;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DockerConfig {
    /// `unix:///PATH`, `tcp://HOST[:PORT]`, `http://HOST[:PORT]` or `https://HOST[:PORT]`. Where `None`, the environment's
    /// `DOCKER_HOST`, and without that `unix:///var/run/docker.sock`.
    pub host: Option<String>,
    /// The certificates to speak TLS with. Where `None`, those of the folder `DOCKER_CERT_PATH` (else `~/.docker`) for
    /// `https://`, and for `tcp://` if `DOCKER_TLS_VERIFY` is set and not empty.
    pub tls: Option<TlsConfig>,
    /// How many bytes of a container's output the engine keeps at least; from then on the oldest is dropped. The engine's
    /// disk may hold twice as much of each container. Output that is followed from the start is never cut.
    pub log_limit: u64,
}

impl Default for DockerConfig {
    fn default() -> Self {
        Self {
            host: None,
            tls: None,
            log_limit: 8 << 30,
        }
    }
}

/// The files that TLS needs, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Who signed the engine's certificate; the system's own authorities are trusted too.
    pub ca: PathBuf,
    /// This client's certificate.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
}

/// An address that was checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Http(String),
    Https(String, TlsConfig),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(address) | Self::Https(address, _) => write!(f, "tcp://{address}"),
        }
    }
}

impl DockerConfig {
    /// The endpoint that this config means, where the environment has these variables.
    pub(crate) fn endpoint(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Endpoint> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let host = match self.host.clone().or_else(|| variable("DOCKER_HOST")) {
            Some(host) => host,
            None => return Ok(Endpoint::Unix(DEFAULT_SOCKET.into())),
        };
        let (scheme, rest) = host.split_once("://").unwrap_or(("", &host));
        let tls = || {
            self.tls.clone().or_else(|| {
                let folder = variable("DOCKER_CERT_PATH")
                    .map(PathBuf::from)
                    .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".docker")))?;
                Some(TlsConfig {
                    ca: folder.join("ca.pem"),
                    cert: folder.join("cert.pem"),
                    key: folder.join("key.pem"),
                })
            })
        };
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Endpoint::Unix(rest.into())),
            "unix" => Err(Error::invalid(format!(
                "docker host {host:?} has no absolute path; write unix:///PATH"
            ))),
            "https" => secure(&host, rest, tls()),
            "tcp" if self.tls.is_some() || variable("DOCKER_TLS_VERIFY").is_some() => secure(&host, rest, tls()),
            "tcp" | "http" => Ok(Endpoint::Http(address(&host, rest, PORT)?)),
            _ => Err(
                Error::invalid(format!("docker host {host:?} is not one that this driver can reach"))
                    .with_hint("write unix:///PATH, tcp://HOST[:PORT], http://HOST[:PORT] or https://HOST[:PORT]"),
            ),
        }
    }
}

fn secure(host: &str, rest: &str, tls: Option<TlsConfig>) -> Result<Endpoint> {
    let Some(tls) = tls else {
        return Err(Error::invalid(format!(
            "docker host {host:?} is to be spoken to by TLS, but no certificates are named"
        ))
        .with_hint("name them by `tls` in the config, or their folder by DOCKER_CERT_PATH"));
    };
    Ok(Endpoint::Https(address(host, rest, TLS_PORT)?, tls))
}

/// `HOST:PORT` of what follows the scheme.
fn address(host: &str, rest: &str, port: u16) -> Result<String> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let refuse = |why| Err(Error::invalid(format!("docker host {host:?} {why}")).with_hint("write tcp://HOST[:PORT]"));
    if rest.is_empty() || rest.starts_with(':') {
        return refuse("names no host");
    }
    if rest.contains(['/', '?', '#', '@']) || rest.contains(char::is_whitespace) {
        return refuse("has more than a host and a port");
    }
    // A colon inside brackets belongs to an IPv6 address.
    match rest.rsplit_once(':') {
        Some((_, digits)) if !rest.ends_with(']') => match digits.parse::<u16>() {
            Ok(_) => Ok(rest.to_owned()),
            Err(_) => refuse("has a port that is no number up to 65535"),
        },
        _ => Ok(format!("{rest}:{port}")),
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

    /// A client of it. Nothing is sent yet.
    pub(crate) fn client(&self) -> Result<Docker> {
        // bollard counts the time until an answer begins, which is minutes for a pull or the load of a large image; the
        // deadlines are a layer's.
        let forever = u64::MAX;
        let version = ClientVersion {
            major_version: 1,
            minor_version: 41,
        };
        let client = match self {
            Self::Unix(path) => {
                // bollard takes a socket in a folder that may not be entered for one that does not exist.
                if let Err(error) = path.metadata() {
                    let kind = match error.kind() {
                        std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                        _ => ErrorKind::Unreachable,
                    };
                    return Err(Error::new(kind, error.to_string()).with_source(error));
                }
                let path = path
                    .to_str()
                    .ok_or_else(|| Error::invalid(format!("the socket's path {path:?} is not UTF-8")))?;
                Docker::connect_with_unix(path, forever, &version)
            }
            Self::Http(address) => Docker::connect_with_http(address, forever, &version),
            Self::Https(address, tls) => {
                // bollard would speak without a certificate that it can't read, and leave the engine to complain.
                for path in [&tls.ca, &tls.cert, &tls.key] {
                    if let Err(error) = std::fs::File::open(path) {
                        return Err(Error::invalid(format!("cannot read {}: {error}", path.display()))
                            .with_hint("TLS needs ca.pem, cert.pem and key.pem"));
                    }
                }
                // rustls panics where a program links two providers and has chosen none; one that has, keeps its own.
                let _ = rustls::crypto::ring::default_provider().install_default();
                Docker::connect_with_ssl(address, &tls.key, &tls.cert, &tls.ca, forever, &version)
            }
        };
        client.map_err(about(Subject::Engine))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: Option<&str>, variables: &[(&str, &str)]) -> Result<String> {
        let config = DockerConfig {
            host: host.map(str::to_owned),
            ..DockerConfig::default()
        };
        let find = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        config.endpoint(find).map(|endpoint| match endpoint {
            Endpoint::Https(address, tls) => format!("tls {address} {}", tls.ca.display()),
            other => other.to_string(),
        })
    }

    #[test]
    fn hosts_are_read_as_dockers_client_reads_them() {
        for (host, variables, expected) in [
            (None, &[][..], "unix:///var/run/docker.sock"),
            (None, &[("DOCKER_HOST", "")], "unix:///var/run/docker.sock"),
            (None, &[("DOCKER_HOST", "unix:///a")], "unix:///a"),
            (Some("unix:///b"), &[("DOCKER_HOST", "unix:///a")], "unix:///b"),
            (Some("tcp://h"), &[], "tcp://h:2375"),
            (Some("tcp://h:1/"), &[], "tcp://h:1"),
            (Some("tcp://[::1]"), &[], "tcp://[::1]:2375"),
            (Some("http://h"), &[("DOCKER_TLS_VERIFY", "1")], "tcp://h:2375"),
            (
                Some("tcp://h"),
                &[("DOCKER_TLS_VERIFY", ""), ("HOME", "/h")],
                "tcp://h:2375",
            ),
            (
                Some("tcp://h"),
                &[("DOCKER_TLS_VERIFY", "1"), ("HOME", "/h")],
                "tls h:2376 /h/.docker/ca.pem",
            ),
            (
                Some("https://h:5"),
                &[("DOCKER_CERT_PATH", "/c"), ("HOME", "/h")],
                "tls h:5 /c/ca.pem",
            ),
        ] {
            assert_eq!(endpoint(host, variables).unwrap(), expected, "{host:?} {variables:?}");
        }
    }

    #[test]
    fn hosts_that_can_not_be_reached_are_refused_with_the_forms_that_can() {
        for host in [
            "ssh://h",
            "npipe:////./pipe/docker_engine",
            "fd://",
            "h:2375",
            "unix://relative",
            "",
        ] {
            let error = endpoint(Some(host), &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{host}");
            let text = format!("{error:?}");
            assert!(text.contains("unix:///PATH"), "{text}");
        }
        for host in [
            "tcp://",
            "tcp://:1",
            "tcp://h:x",
            "tcp://h/path",
            "tcp://u@h",
            "tcp://h:99999",
        ] {
            assert_eq!(
                endpoint(Some(host), &[]).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{host}"
            );
        }
        assert!(
            endpoint(Some("https://h"), &[])
                .unwrap_err()
                .message()
                .contains("no certificates")
        );
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(serde_json::from_str::<DockerConfig>(r#"{"hots":"unix:///a"}"#).is_err());
        let config: DockerConfig = serde_json::from_str(r#"{"host":"unix:///a"}"#).unwrap();
        assert_eq!(config.log_limit, 8 << 30);
    }

    #[test]
    fn a_certificate_that_can_not_be_read_is_named() {
        let missing = PathBuf::from("/nowhere/ca.pem");
        let tls = TlsConfig {
            ca: missing.clone(),
            cert: missing.clone(),
            key: missing,
        };
        let error = Endpoint::Https("h:1".to_owned(), tls).client().unwrap_err();
        assert!(error.message().contains("/nowhere/ca.pem"), "{error}");
    }
}
