//! The docker driver of [`orchestra`]: [`DockerDriver`] is a [`Driver`](orchestra::Driver) over the engine's own
//! HTTP API. It needs docker 20.10 (API 1.41) or newer, spawns no program, and keeps nothing in memory that the engine's
//! labels do not say.
//!
//! ```no_run
//! use std::sync::Arc;
//! use orchestra::{Job, Task};
//! use orchestra_docker::{DockerConfig, DockerDriver};
//!
//! # async fn example() -> orchestra::Result<()> {
//! let driver = Arc::new(DockerDriver::connect(DockerConfig::default()).await?);
//! let job = Job::builder(driver).build();
//! let result = job.run(Task::new("greet", "busybox")?.shell("echo hello")).await?.success()?;
//! assert_eq!(result.stdout.to_string(), "hello\n");
//! job.end().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How data flows
//! `config` finds the engine, `driver` agrees on a version with it and passes each call of the trait to the module of its
//! noun:
//!
//! - `container`, with the spec's translation in `spec`; `logs` and `exec` for what processes write. A container that has
//!   not been started is attached to; a later reader gets the engine's own log.
//! - `image`, with `load` for archives: the engine trusts the names inside, so they are replaced as the tar streams by.
//! - `volume`: a volume's content goes in and out through a container that mounts it and is never started. Its image is
//!   empty and made by the engine itself, so that nothing is pulled for it.
//! - `tar` reads and renames the members of tars in motion; `error` turns codes into [`ErrorKind`](orchestra::ErrorKind)s.
//!
//! # What is docker's own
//! - [`Limits::memory`](orchestra::Limits::memory) counts swap too, where the engine's kernel accounts for swap (`docker
//!   info` says so where it does not).
//! - Output is kept by docker's `local` log driver, up to [`DockerConfig::log_limit`]. Following a container that somebody
//!   else started reads this log; docker before 28 can lose lines of it at the moment that the limit is reached.
//! - docker sometimes misses that memory was the reason of a kill, the more so the busier it is (20.10 and 26.1 on cgroups
//!   v1, six such containers at once on two processors: one in ten). Then nothing tells it from any other `SIGKILL`.
//! - A container whose standard input's stream fails is killed: it would take what it got for all there is.
//! - Whether a registry may be spoken to without TLS is the daemon's configuration (`insecure-registries`): the driver
//!   lacks [`insecure_pull`](orchestra::Capabilities::insecure_pull).
//! - The engine sees each container's environment, and `bollard`, the client beneath, writes request bodies to `log` at
//!   debug level, environments included. Leave its target out of logs that others can read.

mod config;
mod container;
mod driver;
mod error;
mod exec;
mod image;
mod logs;
mod spec;
mod volume;

pub use config::{DockerConfig, TlsConfig};
pub use driver::DockerDriver;
