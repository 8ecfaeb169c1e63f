//! podman's service, with roots, socket and settings of its own.

use std::{fs, path::PathBuf};

use anyhow::Result;
use rustix::process::{Resource, getrlimit};

use crate::{
    folders::Folders,
    guard::{Daemon, Ready},
    user,
};

/// What podman asks for itself; a limit of this process may be lower.
const DEFAULT_LIMIT: u64 = 1 << 20;

/// How a private podman is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Podman<'a> {
    pub(crate) folders: &'a Folders,
    /// Whether [`runc-bounded`](crate::runtime) stands in for runc.
    pub(crate) bounded: bool,
    /// Whether the [ordinary user](user) of the sandbox runs it.
    pub(crate) rootless: bool,
}

impl Podman<'_> {
    /// The one daemon: podman starts a conmon for each container by itself.
    pub(crate) fn daemon(self) -> Result<Daemon> {
        let config = self.folders.run.join("containers.conf");
        fs::write(&config, self.containers_conf())?;
        fs::create_dir_all(self.folders.disk.join("tmp"))?;
        let mut argv: Vec<String> = ["sh", "-c", "echo $$ > \"$0\" && cd / && exec \"$@\""]
            .map(str::to_owned)
            .into();
        argv.push(self.pid_file().display().to_string());
        argv.extend(self.client());
        argv.extend([
            "system".into(),
            "service".into(),
            "--time=0".into(),
            format!("unix://{}", self.socket().display()),
        ]);
        Ok(Daemon {
            name: "podman".into(),
            argv,
            in_rootfs: true,
            ready: Ready::Engine(self.socket()),
        })
    }

    /// The words that begin a command of this podman's own, which needs no service.
    pub(crate) fn client(self) -> Vec<String> {
        let option = |name: &str, value: PathBuf| format!("--{name}={}", value.display());
        let config = self.folders.run.join("containers.conf");
        let mut words = Vec::new();
        if self.rootless {
            let (uid, gid) = (format!("--reuid={}", user::ID), format!("--regid={}", user::ID));
            words.extend(["setpriv".into(), uid, gid, "--clear-groups".into()]);
        }
        words.extend([
            "env".into(),
            // A podman that is told of a service takes itself for its client.
            "--unset=CONTAINER_HOST".into(),
            format!("CONTAINERS_CONF={}", config.display()),
            format!("TMPDIR={}", self.temporary().display()),
            // podman 5 says so with every command.
            "PODMAN_IGNORE_CGROUPSV1_WARNING=1".into(),
        ]);
        if self.rootless {
            words.extend([
                format!("HOME={}", user::home(self.folders).display()),
                format!("XDG_RUNTIME_DIR={}", user::runtime(self.folders).display()),
            ]);
        }
        words.extend([
            "podman".into(),
            option("root", self.data().join("podman")),
            option("runroot", self.state().join("podman")),
            option("tmpdir", self.state().join("libpod")),
            // systemd, if it runs, is out of the sandbox's sight.
            "--cgroup-manager=cgroupfs".into(),
            "--events-backend=file".into(),
        ]);
        words
    }

    /// Where it listens.
    pub(crate) fn socket(self) -> PathBuf {
        self.state().join("podman.sock")
    }

    /// Where its number is.
    pub(crate) fn pid_file(self) -> PathBuf {
        self.folders.run.join("podman.pid")
    }

    /// Where what is large lies.
    fn data(self) -> PathBuf {
        if self.rootless {
            user::home(self.folders)
        } else {
            self.folders.data()
        }
    }

    /// Where what lasts as long as the service lies.
    fn state(self) -> PathBuf {
        if self.rootless {
            user::runtime(self.folders)
        } else {
            self.folders.run.clone()
        }
    }

    /// Not this machine's, which may be small and held in memory.
    fn temporary(self) -> PathBuf {
        if self.rootless {
            user::home(self.folders)
        } else {
            self.folders.data().join("tmp")
        }
    }

    /// Its settings. crun, podman's own choice, refuses hybrid cgroups.
    fn containers_conf(self) -> String {
        let limit = |resource| {
            let hard = getrlimit(resource).maximum.unwrap_or(DEFAULT_LIMIT).min(DEFAULT_LIMIT);
            format!("{hard}:{hard}")
        };
        let networks = self.state().join("networks");
        let mut text = format!(
            "[containers]\ndefault_ulimits = [\"nofile={}\", \"nproc={}\"]\n\
             [network]\nnetwork_config_dir = {networks:?}\n[engine]\nruntime = \"runc\"\n",
            limit(Resource::Nofile),
            limit(Resource::Nproc),
        );
        if self.bounded {
            let runtime = self.folders.data().join("runc-bounded");
            text.push_str(&format!("[engine.runtimes]\nrunc = [{runtime:?}]\n"));
        }
        text
    }
}
