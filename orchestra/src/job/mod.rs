//! [`Job`] and [`Task`]: what front ends and `image-build` call, the same on every engine.
//!
//! A [`Task`] is a container spec with a name, a timeout and a place for its output. [`Job::run`] takes it from pull to
//! removal in a tokio task of its own ([`life`](self)), so that a caller who goes away, by dropping the future, leaves no
//! container behind: the task's life goes on to its end with the cancel signal set.

mod capture;
mod event;
mod handle;
mod life;
pub mod sink;
mod task;

pub use capture::Captured;
pub use event::{Event, EventKind};
pub use handle::{Job, JobBuilder, TaskHandle};
pub use sink::OutputSink;
pub use task::{Task, TaskResult, Timings};
