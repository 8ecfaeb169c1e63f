//! Artifacts that steps have made.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orchestra::{Error, Name, Result};

use super::job::listed;

/// The artifacts that a part of a plan can use, and what their volumes are called. What is made beside it, it does not see;
/// what it makes, those after it do.
#[derive(Debug, Default)]
pub(super) struct Artifacts {
    made: Mutex<BTreeMap<Name, Name>>,
    outer: Option<Arc<Self>>,
}

impl Artifacts {
    /// Those of a part of a plan that runs beside others.
    pub(super) fn within(outer: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self {
            made: Mutex::new(outer.made().clone()),
            outer: Some(outer.clone()),
        })
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<Name, Name>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that there is an artifact from now on.
    pub(super) fn make(&self, artifact: &Name, volume: &Name) {
        self.made().insert(artifact.clone(), volume.clone());
        if let Some(outer) = &self.outer {
            outer.make(artifact, volume);
        }
    }

    /// All of them, each with its volume.
    pub(super) fn all(&self) -> Vec<(Name, Name)> {
        let made = self.made();
        made.iter()
            .map(|(artifact, volume)| (artifact.clone(), volume.clone()))
            .collect()
    }

    /// What the volume of an artifact is called.
    pub(super) fn volume(&self, artifact: &Name) -> Result<Name> {
        let made = self.made();
        made.get(artifact).cloned().ok_or_else(|| {
            let known: Vec<Name> = made.keys().cloned().collect();
            Error::invalid(format!("no step has made the artifact `{artifact}`"))
                .with_hint(format!("the steps that were run have made {}", listed(&known)))
        })
    }
}
