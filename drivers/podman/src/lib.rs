//! The podman driver of [`orchestra`]: [`PodmanDriver`] is a [`Driver`](orchestra::Driver) over libpod's own HTTP
//! API, as podman 4.3 to 5.8 have it. It spawns no program, and what it keeps in memory of the engine's resources
//! only saves questions: another process carries on by the engine's labels alone. The service has to run: `systemctl --user
//! start podman.socket`, or `podman system service --time=0`.
//!
//! ```no_run
//! use std::sync::Arc;
//! use orchestra::{Job, Task};
//! use orchestra_podman::{PodmanConfig, PodmanDriver};
//!
//! # async fn example() -> orchestra::Result<()> {
//! let driver = Arc::new(PodmanDriver::connect(PodmanConfig::default()).await?);
//! let job = Job::builder(driver).build();
//! let result = job.run(Task::new("greet", "busybox")?.shell("echo hello")).await?.success()?;
//! assert_eq!(result.stdout.to_string(), "hello\n");
//! job.end().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How data flows
//! `config` finds the engine, `client` speaks HTTP to it, and `driver` passes each call of the trait to the module of its
//! noun:
//!
//! - `container`, with the spec's translation in `spec`; `logs` and `exec` for what processes write, which comes in
//!   `frames`; `own` is what need not be asked of containers that were made here. A container that has not been started is
//!   attached to; a later reader gets the engine's own log.
//! - `image`: the engine trusts the names inside an archive, so they are replaced as the tar streams by.
//! - `volume`: a volume's content goes in and out through a container that mounts it and never runs.
//! - `error` turns codes into [`ErrorKind`](orchestra::ErrorKind)s.
//!
//! # What is podman's own
//! - Limits whose cgroup controllers the engine does not have are missing among the capabilities.
//! - An image without a registry in its name is looked for under `localhost/` too, where podman puts what is built or
//!   loaded without one.
//! - A registry on the engine's own host is spoken to without TLS, as all engines do but podman.
//! - Output is kept in podman's `k8s-file` form, whatever its configuration says, up to [`PodmanConfig::log_limit`].
//! - That a container was out of memory is told by podman 5.0 and newer.
//! - A container loses its standard input with the service. Who has started one and waits for it is told `Interrupted` if
//!   that was before its input had ended, and not what it made of a part.
//! - A seccomp profile of the caller's own can't be sent: libpod reads profiles from files of its host.
//! - What reads a volume leaves folders beside the volume's directory in podman's store, which go with the volume.
//!
//! # Without root
//! An ordinary user's own service is found below `XDG_RUNTIME_DIR`, and all of this works there too, image builds
//! included: a privileged container has all capabilities in the user's namespace, which is what BuildKit needs. What differs
//! is what the kernel gives to a user:
//! - Limits need cgroups v2 with controllers that systemd has delegated to the user; on v1 and hybrid hierarchies there
//!   are none, and so no limits and no news of being out of memory.
//! - A file's owner has to be among the ids that the user may give away (subuid(5)), 65,536 as a rule: a volume refuses others.
//! - The default network is slirp4netns' (podman 4) or pasta's (podman 5): it reaches outside, and containers on it don't
//!   see each other. Where the host lacks that program, there is none but `none` and `host`.

mod client;
mod config;
mod container;
mod driver;
mod error;
mod exec;
mod frames;
mod image;
mod logs;
mod own;
mod spec;
mod volume;

pub use config::PodmanConfig;
pub use driver::PodmanDriver;
