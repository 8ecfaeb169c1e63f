//! What a driver without a full engine behind it does itself. It names no engine.

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
