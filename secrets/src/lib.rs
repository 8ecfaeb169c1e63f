//! Secrets: where they are kept, how they are referred to, and how they are kept from being seen.
//!
//! ```
//! use orchestra::{Job, SharedDriver, Task};
//! use orchestra_secrets::{DirectoryStore, EnvironmentStore, Scope, SecretKey, Secrets, SecretsLayer};
//!
//! async fn deploy(driver: SharedDriver) -> orchestra::Result<()> {
//!     let secrets = Secrets::new([Scope::pipeline("deploy")?, Scope::Global])
//!         .store("environment", EnvironmentStore::new([SecretKey::new("DEPLOY_TOKEN")?]))
//!         .store("mounted", DirectoryStore::new("/run/secrets"));
//!     let driver = orchestra::layer::standard(SecretsLayer::wrap(driver, secrets));
//!     let job = Job::builder(driver).build();
//!     let task = Task::new("deploy", "busybox")?.env("TOKEN", "secret:DEPLOY_TOKEN").shell("deploy");
//!     job.run(task).await?.success()?;
//!     job.end().await?;
//!     Ok(())
//! }
//! ```
//!
//! # How data flows
//! A [`SecretStore`] gives a [`SecretValue`] for a [`Scope`] and a [`SecretKey`]; [`Secrets`] asks several in a stated
//! order. [`SecretsLayer`] is a driver around a driver: it resolves `secret:KEY` in what goes to the engine and redacts
//! what comes back, by a list for each job ([`JobSecrets`]): what the job has fetched, registry credentials, and what its
//! tasks announce (`::add-mask::VALUE` on a line of output).
//!
//! # What is redacted
//! A value of 4 bytes (without the white space around it) to 64 KiB, wherever a stream is cut, and its forms: base64
//! (both alphabets, padded or not, within longer texts, in lines of 48 digits or more), hexadecimal, percent encoding, JSON strings,
//! and quoted for a shell; a registry's `user:password` too. Of a value of many lines also each line, as a whole line; one
//! that is long and has no white space anywhere. Shorter values would shred every log: they are not redacted, and a
//! warning says so. Held back is only what may be the beginning of a value, and for a moment: up to three bytes for 250 ms,
//! more for a second, after which it is taken for the value.
//!
//! # Who can see what
//! | who | sees |
//! | --- | --- |
//! | who listens to [`tracing`] | none in what the layers above [`SecretsLayer`] tell; a driver below it tells the engine's own words, and docker's client, `bollard`, what it sends: write events through [`Secrets::redact`], and leave out those of that client, as the command `orchestra` does |
//! | the task | its secrets; what it writes to volumes and over the network is its own matter |
//! | who reads output, events, errors, reports | none |
//! | who may ask the engine | the environment of a container while it exists, unless it is [hidden](TaskSecrets::hide_secret_env); arguments that a pipeline puts a secret into; what the task prints, in the engine's own log |
//! | root on the engine's host | everything in a container's memory and files |
//!
//! Values are held in [`secrecy`] types and zeroed; what finds them (an automaton) is made of their first bytes, and is freed
//! at the job's end, not zeroed.

mod channel;
mod client;
mod files;
mod hide;
mod job;
mod key;
mod layer;
mod live;
mod progress;
mod redact;
mod secrets;
mod store;
mod stream;
mod value;

pub use client::ClientConfig;
pub use hide::{TaskSecrets, check_path};
pub use job::JobSecrets;
pub use key::{Reference, Scope, SecretKey};
pub use layer::SecretsLayer;
pub use live::StreamRedactor;
pub use redact::{LONGEST, MARKER, SHORTEST};
pub use secrets::Secrets;
pub use store::{
    CommandStore, DirectoryStore, EnvironmentStore, Listed, MemoryStore, SecretStore, SqliteKey, SqliteStore, read_only,
};
pub use value::SecretValue;
