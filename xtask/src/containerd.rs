//! containerd, with roots and a socket of its own, and what its driver keeps beside it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    folders::Folders,
    guard::{Daemon, Ready},
    process,
};

/// Tells the driver its namespace, as it tells containerd's own clients.
pub(crate) const NAMESPACE: &str = "CONTAINERD_NAMESPACE";
/// Tells the driver its state folder.
pub(crate) const STATE: &str = "ORCHESTRA_CONTAINERD__STATE";

/// How a private containerd is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Containerd<'a> {
    pub(crate) folders: &'a Folders,
    /// Whether the driver runs outside of the sandbox, where no mount of the sandbox is seen, such as that of its disk.
    pub(crate) seen_from_outside: bool,
}

impl Containerd<'_> {
    /// The one daemon: it starts a shim for each container by itself.
    pub(crate) fn daemon(self) -> Result<Daemon> {
        let config = self.folders.run.join("containerd.toml");
        fs::write(&config, self.toml())?;
        Ok(Daemon {
            name: "containerd".into(),
            argv: ["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""]
                .map(str::to_owned)
                .into_iter()
                .chain([
                    self.pid_file().display().to_string(),
                    "containerd".into(),
                    "--config".into(),
                    config.display().to_string(),
                ])
                .collect(),
            in_rootfs: true,
            ready: Ready::Socket(self.socket()),
        })
    }

    /// The words that begin a command of its own client, whose oldest generation every containerd understands.
    pub(crate) fn client(self) -> Vec<String> {
        let socket = self.socket().display().to_string();
        ["ctr", "--address", &socket, "--namespace", &self.folders.name]
            .map(str::to_owned)
            .into()
    }

    /// Where it listens.
    pub(crate) fn socket(self) -> PathBuf {
        self.folders.run.join("containerd.sock")
    }

    /// Where its number is.
    pub(crate) fn pid_file(self) -> PathBuf {
        self.folders.run.join("containerd.pid")
    }

    /// Where the driver keeps volumes and logs: the same path for the driver and for the daemon in its root file system.
    pub(crate) fn state(self) -> PathBuf {
        self.disk().join("orchestra")
    }

    fn disk(self) -> PathBuf {
        if self.seen_from_outside {
            Self::disk_outside(self.folders)
        } else {
            self.folders.data()
        }
    }

    /// Where it is for a driver that runs outside of the sandbox.
    pub(crate) fn disk_outside(folders: &Folders) -> PathBuf {
        folders.run.join("disk")
    }

    /// The driver's namespace, which is also the name of the cgroup that its containers live in.
    pub(crate) fn namespace(self) -> String {
        self.folders.name.clone()
    }

    fn toml(self) -> String {
        let root = self.disk().join("containerd");
        let state = self.folders.run.join("containerd-state");
        let socket = self.socket();
        // Kubernetes' plugin would want a network configuration.
        format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n"
        )
    }
}

/// Makes `client` import a docker archive.
pub(crate) fn import(mut client: Command, archive: &Path) -> Result<()> {
    process::output(client.args(["images", "import"]).arg(archive)).map(drop)
}
