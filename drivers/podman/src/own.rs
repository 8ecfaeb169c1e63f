//! Containers that this driver has made, and what of them need not be asked: libpod's answer about a container costs it
//! some milliseconds, which a short task would wait for five times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orchestra::ContainerId;
use tokio::sync::watch;

/// What is known of containers from their making to the end of the first wait for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own(Arc<Mutex<HashMap<String, Known>>>);

#[derive(Debug)]
struct Known {
    stdin: bool,
    phase: Phase,
    /// Whether its output is read here, from its beginning.
    attached: bool,
    /// Whether it has not got all of its input.
    deprived: bool,
    exit: watch::Sender<Option<i64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    /// Someone here starts it, or has tried to.
    Starting,
    Started,
}

impl Own {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container was made, with standard input or without.
    pub(crate) fn made(&self, id: &ContainerId, stdin: bool) {
        let known = Known {
            stdin,
            phase: Phase::New,
            attached: false,
            deprived: false,
            exit: watch::Sender::default(),
        };
        self.known().insert(id.to_string(), known);
    }

    /// Whether it was made here, and nobody here has begun to start it.
    pub(crate) fn is_new(&self, id: &ContainerId) -> bool {
        self.known()
            .get(id.as_str())
            .is_some_and(|known| known.phase == Phase::New)
    }

    /// Its output is read from now on. Whoever sees its end then tells with what code it exited.
    pub(crate) fn attached(&self, id: &ContainerId) -> Option<watch::Sender<Option<i64>>> {
        let mut known = self.known();
        let known = known.get_mut(id.as_str())?;
        known.attached = true;
        Some(known.exit.clone())
    }

    /// Whether it has standard input, for who starts it: `None` if that has to be asked, and whether it runs.
    pub(crate) fn starting(&self, id: &ContainerId) -> Option<bool> {
        let mut known = self.known();
        let known = known.get_mut(id.as_str()).filter(|known| known.phase == Phase::New)?;
        known.phase = Phase::Starting;
        Some(known.stdin)
    }

    /// It was started, by the only call that did it.
    pub(crate) fn started(&self, id: &ContainerId) {
        if let Some(known) = self.known().get_mut(id.as_str()) {
            known.phase = Phase::Started;
        }
    }

    /// Where the exit code of a container will be told that is known to have been started and is read; `None` of any other.
    pub(crate) fn exit(&self, id: &ContainerId) -> Option<watch::Receiver<Option<i64>>> {
        let known = self.known();
        let known = known.get(id.as_str()).filter(|known| known.phase == Phase::Started)?;
        known.attached.then(|| known.exit.subscribe())
    }

    /// Its input broke off: what it makes of that means nothing.
    pub(crate) fn deprive(&self, name: &str) {
        if let Some(known) = self.known().get_mut(name) {
            known.deprived = true;
        }
    }

    pub(crate) fn is_deprived(&self, id: &ContainerId) -> bool {
        self.known().get(id.as_str()).is_some_and(|known| known.deprived)
    }

    /// It has ended.
    pub(crate) fn ended(&self, id: &ContainerId) {
        self.known().retain(|name, known| name != id.as_str() || known.stdin);
    }

    /// It is gone.
    pub(crate) fn forget(&self, name: &str) {
        self.known().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_container_is_known_until_it_has_ended_and_started_by_one_alone() {
        let own = Own::default();
        let id = ContainerId::new("a").unwrap();
        assert!(!own.is_new(&id) && own.starting(&id).is_none() && own.attached(&id).is_none());
        own.made(&id, true);
        assert!(own.is_new(&id) && own.exit(&id).is_none());
        let exit = own.attached(&id).unwrap();
        assert_eq!(own.starting(&id), Some(true));
        assert!(!own.is_new(&id), "nobody takes it for new while it is started");
        assert_eq!(own.starting(&id), None, "who comes second asks");
        assert!(own.exit(&id).is_none(), "it may not have been started");
        own.started(&id);
        let mut told = own.exit(&id).unwrap();
        assert_eq!(*told.borrow(), None);
        exit.send_replace(Some(3));
        assert_eq!(*told.wait_for(Option::is_some).await.unwrap(), Some(3));
        own.forget("a");
        drop(exit);
        assert!(own.exit(&id).is_none() && told.changed().await.is_err());
        own.made(&id, false);
        assert_eq!(own.starting(&id), Some(false));
        own.started(&id);
        assert!(own.exit(&id).is_none(), "nobody reads it who could tell its end");
    }
}
