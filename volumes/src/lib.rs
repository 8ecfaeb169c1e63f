//! What is in a volume, exactly: owners, modes with setuid, mtimes in nanoseconds, symlinks, hard links, fifos, devices,
//! extended attributes of all kinds, holes.
//!
//! The engines' own archive calls lose some of it ([`Capabilities::exact_volumes`](orchestra::Capabilities::exact_volumes)):
//! good for source files, and the ruin of an overlay file system's state, whose opaque directories become see-through. Who
//! keeps such a tree asks [`ExactVolumes`] instead of [`Driver::write_volume`](orchestra::Driver::write_volume) and
//! [`Driver::read_volume`](orchestra::Driver::read_volume), and has what goes in come out on every engine.
//!
//! # How data flows
//! Where the driver tells of a volume's [directory](orchestra::Driver::volume_directory) and this process may have any file
//! (root beside the engine), files go to it and come from it without the engine. Who [filled](ExactVolumes::fill) such a volume
//! and has the tar still reads only what has [changed](Tree::read) since.
//!
//! Else, where the driver's own calls are not exact, the static program of [`orchestra_helper`] is imported as an image, once
//! a job. For each transfer a container of it is made, without a network and with the few kernel capabilities that files
//! need, with the volume mounted; and in that the program is executed with the tar as its standard input or output. It costs
//! the container's start (0.2 to 0.5 s) and the engine's way with streams. It all has the job's label, and goes with the
//! transfer or with the job.
//!
//! ```
//! use orchestra::{JobId, SharedDriver, VolumeId, VolumePath};
//! use orchestra_volumes::ExactVolumes;
//!
//! async fn copy(driver: SharedDriver, job: JobId, from: &VolumeId, to: &VolumeId) -> orchestra::Result<()> {
//!     let volumes = ExactVolumes::new(driver, job)?;
//!     let tar = volumes.read(from, &[VolumePath::root()]).await?;
//!     volumes.write(to, &VolumePath::root(), tar).await
//! }
//! ```

pub mod directory;
mod image;
mod parts;
mod transfer;

pub use orchestra_helper::tree::{Comparison, Known};
pub use parts::{Part, Parts, Since, Tree};
pub use transfer::ExactVolumes;
