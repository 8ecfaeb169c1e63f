//! Containers that this driver has made, and what of them need not be asked: libpod's answer about a container costs it
//! some milliseconds, which a short task would wait for five times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orchestra::ContainerId;

/// What is known of containers from their making to the end of the first wait for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own(Arc<Mutex<HashMap<String, Phase>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New { stdin: bool },
    Started,
}

impl Own {
    fn phases(&self) -> MutexGuard<'_, HashMap<String, Phase>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container was made, with standard input or without.
    pub(crate) fn made(&self, id: &ContainerId, stdin: bool) {
        self.phases().insert(id.to_string(), Phase::New { stdin });
    }

    /// Whether it was made here, and nobody here has begun to start it.
    pub(crate) fn is_new(&self, id: &ContainerId) -> bool {
        matches!(self.phases().get(id.as_str()), Some(Phase::New { .. }))
    }

    /// The same for who starts it: whether it has standard input. It is known no more then, until it is
    /// [`started`](Self::started).
    pub(crate) fn starting(&self, id: &ContainerId) -> Option<bool> {
        match self.phases().remove(id.as_str()) {
            Some(Phase::New { stdin }) => Some(stdin),
            _ => None,
        }
    }

    /// It was started, by the only call that did it.
    pub(crate) fn started(&self, id: &ContainerId) {
        self.phases().insert(id.to_string(), Phase::Started);
    }

    /// Whether it is known to have been started.
    pub(crate) fn was_started(&self, id: &ContainerId) -> bool {
        self.phases().get(id.as_str()) == Some(&Phase::Started)
    }

    /// It has ended, or is gone.
    pub(crate) fn forget(&self, name: &str) {
        self.phases().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_known_until_it_has_ended_and_started_by_one_alone() {
        let own = Own::default();
        let id = ContainerId::new("a").unwrap();
        assert!(!own.is_new(&id) && own.starting(&id).is_none());
        own.made(&id, true);
        assert!(own.is_new(&id) && !own.was_started(&id));
        assert_eq!(own.starting(&id), Some(true));
        assert!(!own.is_new(&id), "nobody takes it for new while it is started");
        assert_eq!(own.starting(&id), None, "who comes second asks");
        own.started(&id);
        assert!(own.was_started(&id) && own.starting(&id).is_none() && !own.was_started(&id));
        own.made(&id, false);
        own.forget("a");
        assert!(!own.is_new(&id) && own.phases().is_empty());
    }
}
