//! A real S3 server for the tests of caches: `versitygw`, which serves a folder, from its Go module at the version and
//! checksums that `tests/versitygw/go.mod` and `go.sum` pin.

use std::{fs, path::PathBuf};

use anyhow::{Result, bail};

use crate::{
    fixtures,
    folders::Folders,
    guard::{Daemon, Ready},
    images::buildkit::go,
    process, term,
};

/// Where it listens.
pub(crate) const ADDRESS: &str = "127.0.0.1:5057";
/// Who may use it.
pub(crate) const USER: &str = "orchestra";
/// The bucket that it has.
pub(crate) const BUCKET: &str = "caches";

/// The program.
pub(crate) fn program() -> Result<PathBuf> {
    let module = fixtures::repository().join("tests/versitygw");
    let key = fixtures::key(&[&fs::read(module.join("go.mod"))?, &fs::read(module.join("go.sum"))?]);
    let folder = fixtures::get(&format!("versitygw-{key}"), |folder| {
        if process::find("go").is_none() {
            bail!("there is no go: install Go, of the version in tests/versitygw/go.mod or newer");
        }
        fs::create_dir_all(folder)?;
        term::note("building versitygw from its Go module, which takes a minute the first time");
        process::output(
            go(&module)
                .args(["install", "-trimpath", "-ldflags", "-s -w", "tool"])
                .env("GOBIN", folder),
        )?;
        Ok(())
    })?;
    Ok(folder.join("versitygw"))
}

/// The server as a daemon of a sandbox.
pub(crate) fn daemon(folders: &Folders, password: &str) -> Result<Daemon> {
    let data = folders.data().join("s3");
    fs::create_dir_all(folders.disk.join("s3").join(BUCKET))?;
    let program = program()?;
    let argv = [
        "env".into(),
        format!("ROOT_ACCESS_KEY={USER}"),
        format!("ROOT_SECRET_KEY={password}"),
        program.display().to_string(),
        "--quiet".into(),
        "--port".into(),
        ADDRESS.into(),
        "posix".into(),
        data.display().to_string(),
    ];
    Ok(Daemon {
        name: "s3".into(),
        argv: argv.into(),
        // As the registries, it is no part of the engine.
        in_rootfs: false,
        ready: Ready::Tcp(ADDRESS.into()),
    })
}
