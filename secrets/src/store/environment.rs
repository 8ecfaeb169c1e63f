//! Variables of this process's environment, by chosen names only: the rest of it is nobody's secret by name.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStringExt;

use async_trait::async_trait;
use orchestra::Result;

use super::{Listed, SecretStore, read_only};
use crate::{Scope, SecretKey, SecretValue};

/// Reads environment variables of chosen names. They are global; one that is empty is not there.
#[derive(Debug)]
pub struct EnvironmentStore(BTreeSet<SecretKey>);

impl EnvironmentStore {
    /// With these names.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = SecretKey>) -> Self {
        Self(names.into_iter().collect())
    }
}

#[async_trait]
impl SecretStore for EnvironmentStore {
    async fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>> {
        let chosen = *scope == Scope::Global && self.0.contains(key);
        let value = chosen.then(|| std::env::var_os(key.as_str())).flatten();
        Ok(value
            .filter(|value| !value.is_empty())
            .map(|value| SecretValue::new(value.into_vec())))
    }

    async fn set(&self, _: &Scope, _: &SecretKey, _: &SecretValue) -> Result<()> {
        Err(read_only("the environment"))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let is_set = |key: &&SecretKey| std::env::var_os(key.as_str()).is_some_and(|value| !value.is_empty());
        let listed = self.0.iter().filter(is_set).map(|key| Listed {
            scope: Scope::Global,
            key: key.clone(),
            updated: None,
        });
        Ok(listed.collect())
    }

    async fn remove(&self, _: &Scope, _: &SecretKey) -> Result<bool> {
        Err(read_only("the environment"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_chosen_names_are_read() {
        let key = |key: &str| SecretKey::new(key).unwrap();
        let store = EnvironmentStore::new([key("PATH")]);
        assert!(store.get(&Scope::Global, &key("PATH")).await.unwrap().is_some());
        assert!(store.get(&Scope::Global, &key("HOME")).await.unwrap().is_none());
        assert_eq!(store.list().await.unwrap().len(), 1);
        assert!(store.remove(&Scope::Global, &key("PATH")).await.is_err());
    }
}
