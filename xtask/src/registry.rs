//! The two registries that tests use: an open one and one that asks for a password.
//!
//! Their addresses are fixed, as examples name them. In a sandbox they are Debian's `docker-registry`. Beside a
//! user's own engine, which shares this machine's network, they are the test registry of the `orchestra-e2e`
//! package, so that nothing has to be installed.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    cargo,
    engine::Driver,
    folders::Folders,
    guard::{Daemon, Ready},
    images,
};

/// Where the open registry listens.
pub(crate) const OPEN: &str = "127.0.0.1:5055";
/// Where the registry with a password listens.
pub(crate) const AUTH: &str = "127.0.0.1:5056";
/// The user of the registry with a password.
pub(crate) const USER: &str = "orchestra";
/// Another one with the same password, whom the documentation's example has.
const PAGE_USER: &str = "user";

/// The registries as daemons of a sandbox.
pub(crate) fn daemons(folders: &Folders, password: &str) -> Result<Vec<Daemon>> {
    let users = folders.run.join("htpasswd");
    // The lowest cost that bcrypt has: each request to the registry pays it, and the password is random.
    let hash = bcrypt::hash(password, 4)?;
    fs::write(&users, format!("{USER}:{hash}\n{PAGE_USER}:{hash}\n"))?;
    let htpasswd = format!(
        "auth:\n  htpasswd:\n    realm: orchestra-tests\n    path: {}\n",
        users.display()
    );
    Ok(vec![
        daemon(folders, "registry", OPEN, "")?,
        daemon(folders, "registry-auth", AUTH, &htpasswd)?,
    ])
}

fn daemon(folders: &Folders, name: &str, address: &str, auth: &str) -> Result<Daemon> {
    let config = folders.run.join(format!("{name}.yml"));
    fs::write(&config, config_yaml(&folders.data().join(name), address, auth))?;
    Ok(Daemon {
        name: name.into(),
        argv: vec!["docker-registry".into(), "serve".into(), config.display().to_string()],
        // A registry is no part of the engine, and comes from this machine.
        in_rootfs: false,
        ready: Ready::Tcp(address.into()),
    })
}

fn config_yaml(storage: &Path, address: &str, auth: &str) -> String {
    format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
         enabled: true\nhttp:\n  addr: {address}\n{auth}",
        storage.display()
    )
}

/// The registries as processes on this machine's own network. They end when this is dropped, or this process dies.
#[derive(Debug)]
pub(crate) struct HostRegistries(Vec<Child>);

impl HostRegistries {
    /// Starts them on the driver's engine, which fetches the images that tests expect to be there.
    pub(crate) fn start(driver: Driver, password: &str) -> Result<Self> {
        let program = cargo::executable("build --package=orchestra-e2e --bin=orchestra-test-registry")?;
        let registry = || {
            let mut registry = Command::new(&program);
            registry.env("ORCHESTRA_TEST_DRIVER", driver.name());
            registry
        };
        let fetched = [images::BUSYBOX, images::BUILDKIT, images::BUILDKIT_ROOTLESS];
        let fetched = fetched.iter().flat_map(|image| ["--fetch", image]);
        let mut registries = Self(Vec::new());
        registries.add(registry().args(["--addr", OPEN]).args(fetched))?;
        let auth = ["--addr", AUTH, "--user", USER];
        registries.add(registry().args(auth).env("ORCHESTRA_TEST_REGISTRY_PASSWORD", password))?;
        Ok(registries)
    }

    fn add(&mut self, registry: &mut Command) -> Result<()> {
        let mut child = registry
            // A Ctrl-C is not for it: it ends with its standard input.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the test registry")?;
        let stdout = child.stdout.take();
        self.0.push(child);
        let mut answer = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut answer)?;
        }
        if answer.trim() != "ready" {
            bail!("the test registry did not start; above it says why");
        }
        Ok(())
    }
}

impl Drop for HostRegistries {
    fn drop(&mut self) {
        for mut child in self.0.drain(..) {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}
