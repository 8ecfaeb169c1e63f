//! Helpers for the end-to-end tests of the `orchestra` binary on a real engine.
//!
//! `cargo xtask e2e` starts an engine and two registries and tells of them by environment variables; [`Fixture::from_env`]
//! reads these. [`Orchestra`] runs the binary as a user does, [`Engine`] looks at the engine past our own code, so that
//! what is left behind is seen as its other users see it, and [`registry`] asks a registry what it serves. A [`Stub`] stands
//! for an engine that is not there, and [`proxy`] puts the one that is in another place.
//!
//! ```no_run
//! # fn main() -> orchestra_e2e::Result<()> {
//! let Some(fixture) = orchestra_e2e::Fixture::from_env()? else { return Ok(()) };
//! let before = fixture.engine.contents()?;
//! let run = fixture.orchestra(["run", "hello.yml"]).run();
//! assert_eq!(run.code, 0, "{run}");
//! assert_eq!(before, fixture.engine.contents()?);
//! # Ok(())
//! # }
//! ```

mod containerd;
mod driver;
mod engine;
mod faults;
mod fixture;
mod http;
mod orchestra;
mod own_engine;
pub mod proxy;
pub mod registry;
mod stub;
pub mod tls;

pub use driver::KnownDriver;
pub use engine::{Contents, Engine, Inspected};
pub use faults::{Fault, FaultProxy};
pub use fixture::{Credentials, Fixture};
pub use http::{Endpoint, Response, until_listening};
pub use orchestra::{Dir, Finished, Orchestra, Running};
pub use own_engine::{OwnEngine, Purpose};
pub use stub::{Answer, Stub};

/// What helpers fail with: a test's own end.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
