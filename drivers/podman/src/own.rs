//! Containers that this driver has made, and what of them need not be asked: libpod's answer about a container costs it
//! some milliseconds, which a short task would wait for five times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orchestra::ContainerId;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long nobody else is taken to have started a container that was made here.
const NEW: Duration = Duration::from_secs(1);

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
    /// Whether its output has ended, and it with that.
    over: watch::Sender<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Made at this time.
    New(Instant),
    /// Someone here starts it, or has tried to.
    Starting,
    Started,
}

impl Known {
    /// Somebody else may have started it since, and it may have ended, which is not to be run again.
    fn is_new(&self) -> bool {
        matches!(self.phase, Phase::New(made) if made.elapsed() < NEW)
    }
}

impl Own {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container was made, with standard input or without.
    pub(crate) fn made(&self, id: &ContainerId, stdin: bool) {
        let known = Known {
            stdin,
            phase: Phase::New(Instant::now()),
            attached: false,
            deprived: false,
            over: watch::Sender::default(),
        };
        self.known().insert(id.to_string(), known);
    }

    /// Whether it was made here just now, and nobody here has begun to start it.
    pub(crate) fn is_new(&self, id: &ContainerId) -> bool {
        self.known().get(id.as_str()).is_some_and(Known::is_new)
    }

    /// Its output is read from now on. Whoever sees it end with the container tells so.
    pub(crate) fn attached(&self, id: &ContainerId) -> Option<watch::Sender<bool>> {
        let mut known = self.known();
        let known = known.get_mut(id.as_str())?;
        known.attached = true;
        Some(known.over.clone())
    }

    /// Whether it has standard input, for who starts it: `None` if that has to be asked, and whether it runs.
    pub(crate) fn starting(&self, id: &ContainerId) -> Option<bool> {
        let mut known = self.known();
        let known = known.get_mut(id.as_str()).filter(|known| known.is_new())?;
        known.phase = Phase::Starting;
        Some(known.stdin)
    }

    /// It was started.
    pub(crate) fn started(&self, id: &ContainerId) {
        if let Some(known) = self.known().get_mut(id.as_str()) {
            known.phase = Phase::Started;
        }
    }

    /// Where the end of a container will be told that is known to have been started and is read; `None` of any other.
    pub(crate) fn over(&self, id: &ContainerId) -> Option<watch::Receiver<bool>> {
        let known = self.known();
        let known = known.get(id.as_str()).filter(|known| known.phase == Phase::Started)?;
        known.attached.then(|| known.over.subscribe())
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

    #[tokio::test(start_paused = true)]
    async fn a_container_is_known_until_it_has_ended_and_started_by_one_alone() {
        let own = Own::default();
        let id = ContainerId::new("a").unwrap();
        assert!(!own.is_new(&id) && own.starting(&id).is_none() && own.attached(&id).is_none());
        own.made(&id, true);
        assert!(own.is_new(&id) && own.over(&id).is_none());
        let over = own.attached(&id).unwrap();
        assert_eq!(own.starting(&id), Some(true));
        assert!(!own.is_new(&id), "nobody takes it for new while it is started");
        assert_eq!(own.starting(&id), None, "who comes second asks");
        assert!(own.over(&id).is_none(), "it may not have been started");
        own.started(&id);
        let mut told = own.over(&id).unwrap();
        assert!(!*told.borrow());
        over.send_replace(true);
        assert!(told.wait_for(|over| *over).await.is_ok());
        own.forget("a");
        drop(over);
        assert!(own.over(&id).is_none() && told.changed().await.is_err());
        own.made(&id, false);
        tokio::time::advance(NEW).await;
        assert!(
            !own.is_new(&id) && own.starting(&id).is_none(),
            "others had the time to start it"
        );
        own.made(&id, false);
        assert_eq!(own.starting(&id), Some(false));
        own.started(&id);
        assert!(own.over(&id).is_none(), "nobody reads it who could tell its end");
    }
}
