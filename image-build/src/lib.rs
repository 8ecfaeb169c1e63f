//! Container image builds as an ordinary [`Task`](orchestra::Task): a privileged container of the BuildKit image, on any
//! engine that can run one.
//!
//! An [`ImageBuild`] says what to build, [`ImageBuild::run`] builds it in a [`Job`](orchestra::Job):
//!
//! ```
//! use orchestra::{Job, Task, VolumeId};
//! use orchestra_image_build::{BuildError, BuildInput, ImageBuild};
//!
//! async fn build_and_run(job: &Job, source: VolumeId) -> Result<(), BuildError> {
//!     let mut build = ImageBuild::new("app".parse()?, "app:latest".parse()?, "source".parse()?);
//!     build.inputs.push(BuildInput { volume: source, path: "source".parse()? });
//!     let built = build.output(orchestra::sink::to_writers(tokio::io::stdout(), tokio::io::stderr())).run(job).await?;
//!     println!("{} {}", built.reference, built.digest);
//!     job.run(Task::new("smoke-test", built.reference.as_str())?).await?.success()?;
//!     Ok(())
//! }
//! ```
//!
//! # How data flows
//! 1. What can't work is refused before anything is made.
//! 2. The build becomes a task: a fixed script with everything a user wrote as its positional parameters; inputs and caches
//!    as mounts; credentials as a file that only root can read. The context is in an input, or comes as a tar on standard
//!    input ([`ImageBuild::context_from`]).
//! 3. The script finds the Dockerfile and runs `buildctl-daemonless.sh`, which starts a BuildKit daemon for this build.
//!    Builds that [share](ImageBuild::shared) one find it running.
//! 4. `buildctl` reports progress as lines of JSON. They become [`BuildEvent`]s, and text in the form of BuildKit's plain
//!    progress for the output sink and the result; an older `buildctl` writes that text itself.
//! 5. The image goes from the builder to its registry; or, without [`push`](ImageBuild::push), by way of an output volume
//!    into the engine. A root file system goes the same way, as a tar, into the volume that is to have it. The digest is
//!    BuildKit's own word for it: the script's last line is the metadata file, which `buildctl` writes when all is done.
//!
//! # Privileges
//! The container is privileged: BuildKit's worker mounts file systems and makes containers of its own. Who may run a build
//! can do on the engine's host what root can. A [rootless](ImageBuild::rootless) build asks for none of it: it runs as a
//! user, in a user namespace of its own, where the engine's host allows that.
//!
//! Fewer privileges were tried in 2026, with `BuildKit` 0.34.2: docker's default capabilities, `SYS_ADMIN` and `NET_ADMIN`,
//! neither seccomp nor `AppArmor`, and control groups that the container's script mounts writable again. Every build of the
//! end-to-end tests passes so on docker 20.10 and 26.1, podman 4.3 and 5.4, and containerd 1.6. It is not what builds get:
//! `SYS_ADMIN` and writable control groups are as good as root on the host, so that only the host's devices were out of
//! reach; and `SELinux`, which none of those hosts has, confines such a container and not a privileged one.

mod arguments;
mod build;
mod command;
mod error;
mod event;
mod hint;
mod layers;
mod manifest;
mod options;
mod outputs;
mod pairs;
mod probe;
mod progress;
mod registry;
mod result;
mod run;
mod shared;
mod validate;
mod watch;

pub use build::{BuildCache, BuildInput, DEFAULT_BUILDKIT_IMAGE, DEFAULT_ROOTLESS_IMAGE, ImageBuild};
pub use error::{BuildError, FailedBuild};
pub use event::BuildEvent;
pub use layers::{Bucket, CacheFrom, CacheMode, CacheTo};
pub use options::{BuildContext, BuildOptions, Provenance, Sbom, is_url};
pub use outputs::{AdditionalTarget, BuildOutput, OutputFormat};
pub use pairs::parse_pairs;
pub use probe::probe;
pub use registry::RegistryAuth;
pub use result::{BuildResult, BuiltTarget, PlatformImage, Steps};
pub use shared::SharedBuilders;
