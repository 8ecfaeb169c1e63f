//! The containerd driver.

mod client;
mod config;
mod container;
mod content;
mod driver;
mod error;
mod exec;
mod image;
mod lease;
mod logs;
mod rootfs;
mod snapshot;
mod state;
mod task;

pub use config::ContainerdConfig;
pub use driver::ContainerdDriver;
