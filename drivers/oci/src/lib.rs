//! What a driver without a full engine behind it does itself: everything between a registry and an OCI runtime but the
//! running. It names no engine; a driver brings its content store, its snapshots and its way to start a process, and a driver
//! without any daemon could stand on it too.
//!
//! - [`registry`] pulls: manifest lists by platform, layers in parallel, digests verified, broken downloads resumed, into any
//!   [`content::ContentStore`]. [`directory`] is such a store in a plain folder, [`archive`] reads images from tars (OCI layouts
//!   and docker archives), [`mod@image`] is what they come to: manifest, configuration, layers and their chain.
//! - [`spec`] makes the [runtime spec](https://github.com/opencontainers/runtime-spec) of a
//!   [`ContainerSpec`](orchestra::ContainerSpec) and an image's configuration, with capabilities, masked paths, cgroups and
//!   limits; [`seccomp`] has the default profile, [`users`] finds users by name in a root file system, [`etc`] writes
//!   `resolv.conf`, `hosts` and `hostname`.
//! - [`cni`] makes networks by CNI plugins, the only programs that are run here beside the log keeper.
//! - [`logs`] keeps and reads what containers write, by a keeper that outlives the driver's process.
//! - [`volumes`] are directories with their metadata beside them; one that is half made is never taken for a whole one.

pub mod archive;
mod blocking;
pub mod cni;
pub mod content;
pub mod directory;
pub mod etc;
pub mod image;
pub mod logs;
pub mod registry;
pub mod seccomp;
pub mod spec;
pub mod users;
pub mod volumes;
