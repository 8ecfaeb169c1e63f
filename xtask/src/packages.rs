//! The distribution's packages that building and testing needs.
//!
//! Whether one is missing is judged by its program, so that on distributions with other package names, or with
//! docker from elsewhere, what is there is used. Installing is done only as root on Debian or Ubuntu.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    engine::{Driver, Engine},
    images, process, term,
};

/// A package and the program that shows that it is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    name: &'static str,
    program: &'static str,
    purpose: &'static str,
}

impl Package {
    fn is_missing(&self) -> bool {
        match process::find(self.program) {
            // Debian has a busybox that is not static, too, and many machines have that one.
            Some(_) if self.program == "busybox" => images::static_busybox().is_err(),
            found => found.is_none(),
        }
    }
}

const fn package(name: &'static str, program: &'static str, purpose: &'static str) -> Package {
    Package { name, program, purpose }
}

/// What `cargo build` needs.
pub(crate) const BUILD: &[Package] = &[package(
    "protobuf-compiler",
    "protoc",
    "compiles containerd's API at build time",
)];

/// What a private docker engine of this distribution needs besides [`ENVIRONMENT`].
const DOCKER: &[Package] = &[
    package("docker.io", "dockerd", "the engine"),
    package("containerd", "containerd", "runs the engine's containers"),
];

/// What a private podman of this distribution needs besides [`ENVIRONMENT`].
const PODMAN: &[Package] = &[
    package("podman", "podman", "the engine"),
    package("conmon", "conmon", "watches over the engine's containers"),
    package("netavark", "/usr/lib/podman/netavark", "the engine's default network"),
];

/// What a private containerd of this distribution needs besides [`ENVIRONMENT`].
const CONTAINERD: &[Package] = &[
    package("containerd", "containerd", "the engine"),
    package(
        "containernetworking-plugins",
        "/usr/lib/cni/bridge",
        "the driver's default network",
    ),
];

/// What a private podman without root needs besides [`PODMAN`].
const ROOTLESS: &[Package] = &[
    package(
        "uidmap",
        "newuidmap",
        "gives ids to the user namespace of podman without root",
    ),
    package("slirp4netns", "slirp4netns", "the network of podman without root"),
];

/// What a private engine of any kind needs, with its registries and images.
const ENVIRONMENT: &[Package] = &[
    package(
        "runc",
        "runc",
        "runs the engine's containers; part of the BuildKit image",
    ),
    package("git", "git", "fetches contexts of builds; part of the BuildKit image"),
    package("iptables", "iptables", "the engine's default network"),
    package("iproute2", "ip", "brings up the private network's loopback"),
    package("util-linux", "unshare", "makes the private engine's namespaces"),
    package("busybox-static", "busybox", "the programs of the test image"),
    package(
        "uidmap",
        "newuidmap",
        "gives ids to user namespaces; part of the rootless BuildKit image",
    ),
    package("docker-registry", "docker-registry", "the registry that tests push to"),
];

/// What tests look at results with, on whichever engine.
const TOOLS: &[Package] = &[
    package(
        "chromium-headless-shell",
        "chromium-headless-shell",
        "the browser that tests open reports in",
    ),
    package("skopeo", "skopeo", "reads what builds have pushed"),
    package("openssh-client", "ssh-add", "asks a build's agent for its keys"),
    package("nodejs", "node", "runs the compiler of TypeScript"),
    package("npm", "npm", "fetches the compiler of TypeScript"),
];

/// What makes the root file systems of newer generations.
pub(crate) const ROOTFS: &[Package] = &[package(
    "mmdebstrap",
    "mmdebstrap",
    "makes the root file systems of newer engines",
)];

/// Installs all that building and testing needs: for those who have an engine, that is what building needs.
pub(crate) fn setup() -> Result<()> {
    match Engine::default_here(Driver::Docker) {
        Engine::Host => ensure(BUILD),
        Engine::Bookworm | Engine::Trixie | Engine::Sid => {
            ensure(&[BUILD, DOCKER, PODMAN, CONTAINERD, ROOTLESS, ENVIRONMENT, TOOLS, ROOTFS].concat())
        }
    }
}

/// What a private engine for the driver needs.
pub(crate) fn of_engine(driver: Driver) -> Vec<Package> {
    match driver {
        Driver::Docker => [DOCKER, ENVIRONMENT].concat(),
        Driver::Podman => [PODMAN, ENVIRONMENT].concat(),
        Driver::Containerd => [CONTAINERD, ENVIRONMENT].concat(),
        Driver::PodmanRootless => [PODMAN, ROOTLESS, ENVIRONMENT].concat(),
    }
}

/// Installs what building and testing on one engine needs; for the user's own, nothing is installed unasked.
pub(crate) fn prepare(driver: Driver, engine: Engine) -> Result<()> {
    match engine {
        Engine::Host => Ok(()),
        Engine::Bookworm => ensure(&[BUILD, &of_engine(driver)].concat()),
        Engine::Trixie | Engine::Sid => ensure(&[BUILD, &of_engine(driver), ROOTFS].concat()),
    }
}

/// The same, what the engine of another kind needs that some tests start, and what they look at results with. Beside a
/// user's own engine, what is missing is told before anything is built.
pub(crate) fn prepare_tests(driver: Driver, engine: Engine) -> Result<()> {
    prepare(driver, engine)?;
    match engine {
        Engine::Host => match missing(&[BUILD, TOOLS].concat()).as_slice() {
            [] => Ok(()),
            missing => bail!("{}", advice(missing)),
        },
        Engine::Bookworm | Engine::Trixie | Engine::Sid => ensure(&[&of_engine(driver.other()), TOOLS].concat()),
    }
}

fn missing(packages: &[Package]) -> Vec<Package> {
    packages.iter().copied().filter(Package::is_missing).collect()
}

/// Makes sure that the packages are there: installs the missing ones where that is possible, else says which
/// ones to install by hand.
pub(crate) fn ensure(packages: &[Package]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    if !process::is_root() || !is_debian() {
        bail!("{}", advice(&missing));
    }
    install(&missing)?;
    match missing.iter().find(|package| package.is_missing()) {
        Some(package) => bail!(
            "{} was installed, but {} is still not to be found",
            package.name,
            package.program
        ),
        None => Ok(()),
    }
}

fn install(packages: &[Package]) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    // A third-party source that does not answer fails the update, and is of no concern here: when the lists of
    // the distribution itself are missing, the install fails and says so.
    if let Err(error) = term::step("apt-get update", || apt(&["update"])) {
        term::note(&format!(
            "going on with the package lists that are there, although {error:#}"
        ));
    }
    term::step(&format!("apt-get install {}", names.join(" ")), || {
        apt(&[&["install", "--yes", "--no-install-recommends"], names.as_slice()].concat())
    })
    .with_context(|| format!("cannot install {}; do it by hand, then try again", names.join(" ")))
}

fn apt(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    process::output(&mut command).map(drop)
}

/// Whether this is Debian, Ubuntu or a child of theirs.
fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    descends_from_debian(&release)
}

fn descends_from_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .flat_map(|value| value.trim_matches('"').split(' '))
        .any(|id| id == "debian" || id == "ubuntu")
}

/// What to tell someone whose machine we do not install on.
fn advice(missing: &[Package]) -> String {
    let width = missing
        .iter()
        .map(|package| package.name.len())
        .max()
        .unwrap_or_default();
    let list: String = missing
        .iter()
        .map(|package| {
            format!(
                "\n  {:width$}  {} (program {})",
                package.name, package.purpose, package.program
            )
        })
        .collect();
    format!(
        "these are missing, and are installed only as root on Debian or Ubuntu:{list}\n\
         install them by hand (the names are Debian's), then try again"
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_names_what_is_to_be_installed_by_hand() {
        let readme = include_str!("../../README.md");
        let (_, block) = readme.split_once("<!-- packages -->").unwrap();
        let (block, _) = block.split_once("\n```\n").unwrap();
        let words: Vec<&str> = block.split_whitespace().collect();
        for package in [BUILD, TOOLS].concat() {
            assert!(words.contains(&package.name), "{}", package.name);
        }
    }

    use super::*;

    #[test]
    fn children_of_debian_are_known() {
        assert!(descends_from_debian("NAME=x\nID=debian\n"));
        assert!(descends_from_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!descends_from_debian("ID=fedora\nNAME=debian\n"));
    }

    #[test]
    fn advice_names_each_package_with_its_program() {
        let advice = advice(BUILD);
        assert!(
            advice.contains("protobuf-compiler") && advice.contains("protoc"),
            "{advice}"
        );
    }
}
