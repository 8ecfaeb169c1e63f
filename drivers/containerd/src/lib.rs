//! The containerd driver of [`orchestra`]: [`ContainerdDriver`] is a [`Driver`](orchestra::Driver) over containerd's own
//! gRPC API, of containerd 1.6 to 2.1, with no dockerd, nerdctl or CRI between. It runs no client program, and must run as
//! root on containerd's host: what other engines do for their clients (pulls, mounts, networks, logs) containerd leaves to
//! them.
//!
//! ```no_run
//! use std::sync::Arc;
//! use orchestra::{Job, Task};
//! use orchestra_containerd::{ContainerdConfig, ContainerdDriver};
//!
//! # async fn example() -> orchestra::Result<()> {
//! let driver = Arc::new(ContainerdDriver::connect(ContainerdConfig::default()).await?);
//! let job = Job::builder(driver).build();
//! let result = job.run(Task::new("greet", "busybox")?.shell("echo hello")).await?.success()?;
//! assert_eq!(result.stdout.to_string(), "hello\n");
//! job.end().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How data flows
//! `config` finds the engine, `client` speaks gRPC to it, and `driver` passes each call of the trait to the module of its
//! noun. What any engine would need that is no more than a runtime is in [`orchestra_oci`], and is fitted in here:
//!
//! - `image`: the registry client of [`orchestra_oci::registry`] pulls into `content`, containerd's content store, under a
//!   `lease`, and each layer is unpacked through the diff service into a `snapshot` while the next ones still come. The
//!   image's configuration refers to its snapshots, and the image's name to its content: containerd's garbage collector
//!   takes all of it when the last name goes, and nothing before.
//! - `container`: a record with an OCI runtime spec by [`orchestra_oci::spec`], and a writable snapshot. `rootfs` looks into
//!   that, for users by name and injected files, through a mount that one thread sees.
//! - `task`: its process and its start; `end` how it ends, and who waits for that; `exec` further ones; `stdin` what they
//!   read; `logs` what is written. The network is made by CNI plugins between the task's making and its start.
//! - `known`: what need not be asked, containers that were made just now above all.
//! - `state`: folders beside containerd with what it has no place for.
//! - `error` turns gRPC's codes into [`ErrorKind`](orchestra::ErrorKind)s.
//!
//! # What lies where
//! `state` of [`ContainerdConfig`] has a folder for each namespace, with `volumes` (directories with their metadata beside them),
//! `logs`, and `containers` (the files of `/etc`, the fifos of execs, and how each container ended), and for all of them `network`
//! (which addresses are in use) and `bin` (the helper program). Its path has to be the same for containerd and for this process.
//!
//! # What is containerd's own
//! - Output goes through the shim into a log keeper, a small process for each container, which outlives this process and
//!   containerd alike. It keeps up to [`ContainerdConfig::log_limit`].
//!   That of a container with standard input is started by this process, not by the shim, which gives such a container no
//!   logging URI: whoever kills this process' whole control group takes it along.
//! - How a task ended is recorded in its folder by whoever sees it first: containerd forgets that when it is restarted. Waits,
//!   logs, execs and what is fed to containers go on over each restart of up to 10 seconds; containers do not notice one. A
//!   task that ends while containerd is away is forgotten by 1.7 and later: the log's keeper, which the shim told, has noted
//!   its end then. A container with standard input, whose keeper is no child of the shim, is forgotten, and its wait says so.
//! - [`Profile::Default`](orchestra::Profile::Default) is the default seccomp profile, and no AppArmor profile: containerd has
//!   none that it would load.
//! - Ports are published nowhere, so the plugin `portmap` has no part: a
//!   [`ContainerSpec`](orchestra::ContainerSpec) has none, on any engine.
//! - The default network is a bridge of the driver's own, made by the CNI plugins `bridge`, `firewall`, `host-local` and
//!   `loopback`; no file of `/etc/cni` is read. Without them (package `containernetworking-plugins`) the driver lacks
//!   [`default_network`](orchestra::Capabilities::default_network), and says why; the networks `none` and `host` need none.
//! - Volumes carry everything that the file system does, and are directories of this machine: `exact_volumes`, `any_file` and
//!   `volume_directories`.
//! - All is made in one of containerd's namespaces, `orchestra`, which no other client of containerd looks into.
//! - Ids that containerd would refuse (longer than 76 bytes, or with two separators in a row) are stored under a digest.

mod client;
mod config;
mod container;
mod content;
mod driver;
mod end;
mod error;
mod exec;
mod image;
mod known;
mod lease;
mod logs;
mod programs;
mod rootfs;
mod snapshot;
mod state;
mod stdin;
mod task;

pub use client::is_containerd;
pub use config::ContainerdConfig;
pub use driver::ContainerdDriver;

#[cfg(test)]
mod testing {
    use crate::{ContainerdConfig, ContainerdDriver};

    /// A driver of the engine that `cargo xtask with` provides, or `None` where it is another one or none.
    pub(crate) async fn driver() -> Option<ContainerdDriver> {
        if std::env::var("ORCHESTRA_TEST_DRIVER").as_deref() != Ok("containerd") {
            println!("skipped: ORCHESTRA_TEST_DRIVER is not containerd");
            return None;
        }
        Some(ContainerdDriver::connect(ContainerdConfig::default()).await.unwrap())
    }
}
