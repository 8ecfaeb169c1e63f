//! The engines that commands can be run against.

use std::{env, fmt, os::unix::net::UnixStream, path::Path, time::Duration};

use clap::ValueEnum;

use crate::http;

/// Where docker listens unless it was told otherwise.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// A driver of the workspace; decides which kind of engine is provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Driver {
    /// dockerd, over its HTTP API.
    Docker,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker => f.write_str("docker"),
        }
    }
}

/// A generation of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// A private daemon from this distribution's packages (docker 20.10 on Debian 12).
    Bookworm,
    /// A private daemon of Debian 13, run from a root file system of its own (docker 26.1).
    Trixie,
    /// A private daemon of Debian unstable, run from a root file system of its own (docker 28.5).
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
    /// The user's own engine where one runs, else a private one of this distribution's packages.
    pub(crate) fn default_here() -> Self {
        if env::var_os("DOCKER_HOST").is_some() || answers(Path::new(DEFAULT_SOCKET)) {
            Self::Host
        } else {
            Self::Bookworm
        }
    }
}

/// Whether a docker daemon answers on this socket.
pub(crate) fn answers(socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(socket) else {
        return false;
    };
    // A daemon that accepts and says nothing must not hang us.
    let bounded = stream.set_read_timeout(Some(Duration::from_secs(2)));
    bounded.is_ok() && http::get(stream, "/_ping").is_ok_and(|response| response.status == 200)
}
