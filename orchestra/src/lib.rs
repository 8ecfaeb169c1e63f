//! CI jobs on container engines: one [`Driver`] trait, [`Job`] and [`Task`] on top of it, and [layers](layer) around it.
//!
//! A job is a set of tasks (containers) that share volumes. Make a driver from one of the driver crates, start a
//! [`Job`], run [`Task`]s. Nothing here knows which engine it is.
//!
//! ```
//! use std::sync::Arc;
//! use orchestra::{Driver, Job, Task};
//!
//! async fn greet(driver: Arc<dyn Driver>) -> orchestra::Result<()> {
//!     let job = Job::builder(driver).build();
//!     let volume = job.create_volume("greeting").await?;
//!     let write = Task::new("write", "busybox")?.shell("echo hello > greeting/text").mount(&volume, "greeting")?;
//!     job.run(write).await?.success()?;
//!     let read = Task::new("read", "busybox")?.shell("cat greeting/text").mount(&volume, "greeting")?;
//!     let result = job.run(read).await?.success()?;
//!     assert_eq!(result.stdout.to_string(), "hello\n");
//!     job.end().await?;
//!     Ok(())
//! }
//! ```
//!
//! # How data flows
//! A front end makes [`Task`]s; [`Job`] names and labels them, checks them against the stack's [`Capabilities`] and takes
//! each from pull to removal by calls of [`Driver`]; the layers around the driver add deadlines, tracing and error
//! context; the driver translates each call to its engine. Output comes back as a [`LogStream`], through [`Job`] to an
//! [`OutputSink`], to bounded [`Captured`] text, and to whoever observes the job's [`Event`]s.

mod archive;
mod capability;
mod container;
mod directory;
mod driver;
mod error;
mod exit;
mod gc;
mod id;
mod image;
mod job;
pub mod layer;
mod path;
mod reference;
mod resource;
mod runner;
pub mod stream;
pub mod tar;
mod volume;

pub use archive::{file_from_tar, import_archive, tar_of_files};
pub use capability::Capabilities;
pub use container::{
    ContainerSpec, Cpus, Env, ExecSpec, ExtraHost, InjectedFile, KernelCapability, Limits, Mount, NetworkMode, Profile,
    Security, Tmpfs, Ulimit, User,
};
pub use directory::{HeldVolumes, VolumeDirectory, root_shows};
pub use driver::{Driver, DriverInfo, SharedDriver};
pub use error::{Error, ErrorKind, Result};
pub use exit::{ExitStatus, Signal};
pub use gc::{Collected, GcOptions, collect_garbage};
pub use id::{ContainerId, JobId, Name, VolumeId};
pub use image::{Credentials, Platform, PullEvent, PullImage, PullPolicy, PullStream};
pub use job::{Captured, Event, EventKind, Job, JobBuilder, OutputSink, Task, TaskHandle, TaskResult, Timings, sink};
pub use path::{ContainerPath, VolumePath};
pub use reference::ImageRef;
pub use resource::{ContainerState, Created, EndReport, Labels, Resource, ResourceKind, labels};
pub use runner::{Liveness, Runner};
pub use secrecy::{ExposeSecret, SecretString};
pub use stream::{ByteStream, ExecEvent, ExecStream, LogChunk, LogOffset, LogStream, OutputStream};
pub use volume::VolumeSpec;
