//! The workspace's own tooling: provisioning of engines, tests, measurements. Nothing in here is shipped.
//!
//! Everything that needs a container engine runs in an [`environment`]: the user's own engine where there is
//! one, and otherwise a private daemon of a named generation with its registries, in namespaces of its own
//! ([`sandbox`] is the outside of these, [`guard`] the inside). What is slow to make is kept in an ignored folder
//! ([`fixtures`]). Run `cargo xtask help` for the commands.

mod bench;
mod cargo;
mod checks;
mod cli;
mod containerd;
mod daemon;
mod demo;
mod e2e;
mod engine;
mod enter;
mod environment;
mod fixtures;
mod folders;
mod guard;
mod http;
mod images;
mod matrix;
mod mounts;
mod packages;
mod podman;
mod process;
mod registry;
mod results;
mod rootfs;
mod runtime;
mod s3;
mod sandbox;
mod signals;
mod term;
mod throwaway;
mod typescript;
mod user;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            term::error(&error);
            ExitCode::FAILURE
        }
    }
}
