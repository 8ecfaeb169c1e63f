//! Where secrets are kept.

mod command;
mod directory;
mod environment;
mod memory;
mod sqlite;

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use orchestra::{Error, ErrorKind, Result};

use crate::{Scope, SecretKey, SecretValue};

pub use command::CommandStore;
pub use directory::DirectoryStore;
pub use environment::EnvironmentStore;
pub use memory::MemoryStore;
pub use sqlite::{SqliteKey, SqliteStore};

/// A place that holds secrets: what a product implements for its own vault.
///
/// A store that knows no scopes has all it has in [`Scope::Global`]. One that can't be written to answers
/// [`set`](Self::set) and [`remove`](Self::remove) with [`read_only`]. Errors never hold a value.
#[async_trait]
pub trait SecretStore: fmt::Debug + Send + Sync + 'static {
    /// The value, or `None` if the store has none under this key.
    ///
    /// # Errors
    /// Whatever keeps the store from knowing; never that there is no such secret.
    async fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>>;

    /// Keeps a value, replacing one that is there. A failure, or a crash in the middle, leaves the old or the new one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a value that [`SecretValue::check`] refuses; [`ErrorKind::Unsupported`] by a store
    /// that is only read.
    async fn set(&self, scope: &Scope, key: &SecretKey, value: &SecretValue) -> Result<()>;

    /// What there is, without any value, in the order of scope and key.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] by a store that can only be asked.
    async fn list(&self) -> Result<Vec<Listed>>;

    /// Removes a secret; whether there was one.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    async fn remove(&self, scope: &Scope, key: &SecretKey) -> Result<bool>;
}

/// A secret without its value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Who it is for.
    pub scope: Scope,
    /// Its name.
    pub key: SecretKey,
    /// When it was set last, where the store knows.
    pub updated: Option<SystemTime>,
}

/// What a store answers that can't be written to; `what` names it ("the environment").
#[must_use]
pub fn read_only(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} can only be read"))
        .with_hint("set `file` under [secrets] in the configuration, and keep the secret there")
}
