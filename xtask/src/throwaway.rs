//! One more docker daemon, for a test that kills or stops it.
//!
//! It has a sandbox of its own and no network, holds the busybox image, listens on `docker.sock` in the folder that
//! it is given, and writes dockerd's process id to `docker.pid` there. It says `ready` on its standard output,
//! and ends when its standard input does.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{fs::symlink, net::UnixStream},
    path::Path,
};

use anyhow::{Context, Result};
use rustix::net::sockopt::socket_peercred;

use crate::{engine::Engine, environment, fixtures};

/// Runs the daemon until standard input ends.
pub(crate) fn run(engine: Engine, folder: &Path) -> Result<()> {
    let (sandbox, folders) = environment::private_docker(engine, None)?;
    let socket = folders.run.join("docker.sock");
    let (link, pid_file) = (folder.join("docker.sock"), folder.join("docker.pid"));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    symlink(&socket, &link).with_context(|| format!("cannot create {}", link.display()))?;
    // dockerd's own file has its number in the sandbox; the socket tells the one that it has for us and our caller.
    let pid = socket_peercred(UnixStream::connect(&socket)?)?.pid;
    fs::write(&pid_file, pid.as_raw_nonzero().to_string())?;

    writeln!(io::stdout(), "ready")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(sandbox);
    fixtures::remove(&link)?;
    fixtures::remove(&pid_file)
}
