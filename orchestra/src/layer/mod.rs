//! Layers: decorators that take a driver and are one.
//!
//! A layer is a [`Hook`] around every call; [`Layered`] is the driver that calls it, written once, so that a layer cannot
//! forget a method. What a layer prints is the stack: `tracing(context(timeout(docker)))`.
//!
//! ```
//! use orchestra::layer::{ConcurrencyLimit, Layered};
//! # fn stack(driver: orchestra::SharedDriver) -> orchestra::SharedDriver {
//! let driver = orchestra::layer::standard(driver);
//! Layered::wrap(driver, ConcurrencyLimit::new(8))
//! # }
//! ```

mod concurrency;
mod context;
mod fault;
mod hook;
mod privileges;
mod timeout;
mod trace;

pub use concurrency::ConcurrencyLimit;
pub use context::ErrorContext;
pub use fault::{Fault, Faults};
pub use hook::{Hook, Layered, Method, Operation};
pub use privileges::{PrivilegePolicy, Privileges};
pub use timeout::{Deadlines, Timeouts};
pub use trace::Tracing;

use crate::SharedDriver;

/// The layers every user wants: deadlines, error context and tracing.
#[must_use]
pub fn standard(driver: SharedDriver) -> SharedDriver {
    let driver = Layered::wrap(driver, Timeouts::default());
    let driver = Layered::wrap(driver, ErrorContext);
    Layered::wrap(driver, Tracing)
}
