//! Artifacts that steps have made.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orchestra::{Error, Name, Result};

use super::job::listed;

/// The artifacts that a part of a plan can use, and what their volumes are called.
#[derive(Debug, Default)]
pub(super) struct Artifacts(Mutex<Made>);

#[derive(Debug, Default)]
struct Made {
    all: BTreeMap<Name, Name>,
    /// Those of this part.
    own: BTreeMap<Name, Name>,
}

impl Artifacts {
    /// Those of a part that runs beside others, or that is tried again: of what is made meanwhile it sees its own.
    pub(super) fn within(&self) -> Arc<Self> {
        let made = Made {
            all: self.made().all.clone(),
            own: BTreeMap::new(),
        };
        Arc::new(Self(Mutex::new(made)))
    }

    /// What a part has made that has ended. The order of joining is that of the plan, whichever part ended first: a run that
    /// is carried on has the same.
    pub(super) fn join(&self, part: &Self) {
        let own = part.made().own.clone();
        own.iter().for_each(|(artifact, volume)| self.make(artifact, volume));
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that there is an artifact from now on.
    pub(super) fn make(&self, artifact: &Name, volume: &Name) {
        let mut made = self.made();
        made.all.insert(artifact.clone(), volume.clone());
        made.own.insert(artifact.clone(), volume.clone());
    }

    /// All of them, each with its volume.
    pub(super) fn all(&self) -> Vec<(Name, Name)> {
        let made = self.made();
        let all = made.all.iter();
        all.map(|(artifact, volume)| (artifact.clone(), volume.clone()))
            .collect()
    }

    /// What the volume of an artifact is called.
    pub(super) fn volume(&self, artifact: &Name) -> Result<Name> {
        let made = self.made();
        made.all.get(artifact).cloned().ok_or_else(|| {
            let known: Vec<Name> = made.all.keys().cloned().collect();
            Error::invalid(format!("no step has made the artifact `{artifact}`"))
                .with_hint(format!("the steps that were run have made {}", listed(&known)))
        })
    }
}
