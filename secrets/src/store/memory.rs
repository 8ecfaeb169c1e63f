//! Secrets of this process alone: those of a command line, or of a test.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use async_trait::async_trait;
use orchestra::Result;

use super::{Listed, SecretStore};
use crate::{Scope, SecretKey, SecretValue};

/// Keeps secrets in memory.
#[derive(Debug, Default)]
pub struct MemoryStore(RwLock<BTreeMap<(Scope, SecretKey), (SecretValue, SystemTime)>>);

impl MemoryStore {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a secret, replacing one that is there.
    #[must_use]
    pub fn with(self, scope: Scope, key: SecretKey, value: SecretValue) -> Self {
        self.insert(scope, key, value);
        self
    }

    fn insert(&self, scope: Scope, key: SecretKey, value: SecretValue) {
        let mut secrets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        secrets.insert((scope, key), (value, SystemTime::now()));
    }
}

#[async_trait]
impl SecretStore for MemoryStore {
    async fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>> {
        let secrets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(secrets
            .get(&(scope.clone(), key.clone()))
            .map(|(value, _)| value.clone()))
    }

    async fn set(&self, scope: &Scope, key: &SecretKey, value: &SecretValue) -> Result<()> {
        value.check(key)?;
        self.insert(scope.clone(), key.clone(), value.clone());
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let secrets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let listed = secrets.iter().map(|((scope, key), (_, updated))| Listed {
            scope: scope.clone(),
            key: key.clone(),
            updated: Some(*updated),
        });
        Ok(listed.collect())
    }

    async fn remove(&self, scope: &Scope, key: &SecretKey) -> Result<bool> {
        let mut secrets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Ok(secrets.remove(&(scope.clone(), key.clone())).is_some())
    }
}
