//! Pipelines in TypeScript and JavaScript: the operations of [`orchestra_pipelines`] as globals of a script.
//!
//! ```ts
//! const pipeline = async () => {
//!   const source = await volumes.create({ name: "source" });
//!   await runtime.run({
//!     image: "busybox",
//!     command: { path: "sh", args: ["-c", "echo hello > source/greeting"] },
//!     mounts: { source },
//!   });
//!   const { greeting } = await source.readFiles(["greeting"]);
//!   assert.equal(greeting, "hello\n");
//! };
//! export { pipeline };
//! ```
//!
//! A file is read and checked by [`Script::read`] and run by [`Script::run`]. Its globals, with all options, are in
//! `orchestra.d.ts` ([`DECLARATIONS`]).
//!
//! # How data flows
//! 1. The entry and all that it imports, statically and by relative paths within its folder, are read before anything runs.
//!    `oxc` takes the types out, and keeps what place in the code is which in the user's text.
//! 2. The script runs in QuickJS, in a thread of its own which holds all its values. What it wants done goes out over a
//!    channel as JSON; a promise waits for the answer.
//! 3. The host makes a step of it, of the form and with the checks that it has in a YAML file, and runs it in the run's
//!    [`Session`](orchestra_pipelines::Session). Everything that was asked for is under way at the same time.
//! 4. Output goes to the run's events and, piece by piece, to the script's `onOutput`: a slow one slows the task.
//!
//! # What a script can't
//! It has no file system, no process, no environment and no other network than [`FetchPolicy`] allows. Its memory and
//! its time to compute are [limited](ScriptOptions). What it leaves behind, however it ends, is removed with the job.

mod depth;
mod engine;
mod graph;
mod host;
mod script;
mod source;
mod starter;
mod strip;

pub use host::FetchPolicy;
pub use script::{Script, ScriptOptions};
pub use starter::{STARTER, StarterFile};

/// The declarations of a script's globals, for editors and compilers.
pub const DECLARATIONS: &str = include_str!("../starter/orchestra.d.ts");
