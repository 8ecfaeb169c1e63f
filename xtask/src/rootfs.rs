//! Root file systems of newer Debian releases, from which newer engines are run.
//!
//! One that is there is kept. To have a newer state of an unstable release, remove its folder in `.fixtures`.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    engine::{Driver, Engine},
    fixtures, packages, process, term,
};

/// What an engine's generation is made of. Recommendations (a git, a compressor) are of no use here.
fn packages(driver: Driver) -> &'static str {
    match driver {
        // The network's plugins are run by the driver, outside.
        Driver::Docker | Driver::Containerd => "docker.io,containerd,runc,iptables",
        Driver::Podman | Driver::PodmanRootless => "podman,conmon,runc,netavark,iptables,nftables,uidmap,passt",
    }
}

/// The root file system that an engine runs from, made when missing; none for an engine of this distribution.
pub(crate) fn of(driver: Driver, engine: Engine) -> Result<Option<PathBuf>> {
    let (release, options): (_, &[&str]) = match engine {
        Engine::Bookworm | Engine::Host => return Ok(None),
        Engine::Trixie => ("trixie", &[]),
        // Unstable's lists are valid for a week, and a clock that is off must not matter.
        Engine::Sid => ("sid", &["--aptopt=Acquire::Check-Valid-Until \"false\""]),
    };
    let include = packages(driver);
    let key = fixtures::key(&[include.as_bytes()]);
    fixtures::get(&format!("rootfs-{release}-{key}"), |folder| {
        packages::ensure(packages::ROOTFS)?;
        term::note(&format!(
            "making a root file system of Debian {release} with {driver}, which takes a minute"
        ));
        process::output(
            Command::new("mmdebstrap")
                .args(["--variant=minbase", &format!("--include={include}")])
                .args(options)
                .arg(release)
                .arg(folder),
        )
        .map(drop)
    })
    .map(Some)
}
