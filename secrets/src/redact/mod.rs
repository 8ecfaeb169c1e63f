//! Finding secrets in streams of bytes, and replacing them.
//!
//! [`forms`] lists the texts that a value may appear as; [`patterns`] finds all of them at once; a [`Redactor`] does so over
//! a stream, wherever it is cut; [`announce`] listens for values that a task announces itself.

mod announce;
mod forms;
mod patterns;
mod redactor;

pub(crate) use announce::Announcements;
pub(crate) use forms::{Form, forms};
pub(crate) use patterns::Patterns;
pub(crate) use redactor::{LONG_MOMENT, MOMENT, Redactor};

/// What stands where a secret stood.
pub const MARKER: &str = "***REDACTED***";

/// The shortest value that is looked for, without white space around it: what is shorter is in every log.
pub const SHORTEST: usize = 4;
/// The longest value that is looked for, and so the longest that a task can be given.
pub const LONGEST: usize = 64 << 10;
