//! A whole container engine in memory, and its driver: an example of a driver, what the conformance suite is proven on, and
//! an engine for unit tests that need none.
//!
//! Who writes a driver begins with `driver.rs`, which is all of it that is a driver, and with `tests/conformance.rs`, which
//! runs the suite; `docs/writing-a-driver.md` tells the rest.
//!
//! Images, volumes and containers are trees of files; processes are programs in Rust. `/bin/sh` is a small shell
//! (lists, `&&`, `||`, `!`, pipes, `if`, `while`, `for`, subshells, background commands, quotes, `$NAME`, `$(…)`, `$((…))`, redirections,
//! `trap`, `wait`, `read`) with small forms of the usual programs; further ones are added by
//! [`MemoryImage::with_program`]. Registries are maps, see [`MemoryEngine::add_registry`].
//!
//! What needs a kernel it lacks and says so in its [`Capabilities`](orchestra::Capabilities): limits, confinement, host
//! network. As in a PID namespace, a main process that does not handle a signal ignores it, `SIGKILL` excepted. All is kept in
//! memory, logs too, and gone with the process.
//!
//! ```
//! use orchestra::{ContainerId, ContainerSpec};
//! use orchestra_memory::{MemoryEngine, MemoryImage};
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let engine = MemoryEngine::new();
//! engine.add_image("busybox", MemoryImage::busybox())?;
//! let driver = engine.driver();
//! let id = ContainerId::new("greeter")?;
//! let mut spec = ContainerSpec::new("busybox".parse()?);
//! spec.command = Some(["sh", "-c", "echo hello; exit 3"].map(str::to_owned).to_vec());
//! driver.create_container(&id, &spec).await?;
//! driver.start_container(&id, None).await?;
//! assert_eq!(driver.wait_container(&id).await?.code(), 3);
//! # Ok::<(), orchestra::Error>(())
//! # }).unwrap();
//! ```

mod container;
mod driver;
mod engine;
mod files;
mod image;
mod process;
mod programs;
mod shell;
mod syntax;
pub mod tarball;

pub use driver::MemoryDriver;
pub use engine::MemoryEngine;
pub use image::MemoryImage;
pub use process::{Input, Output, Process, Program};
