//! What need not be asked: containers that this driver has made just now, and what never changes. An answer of containerd's
//! takes about half a millisecond, and a short task would wait for ten of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::Container;
use containerd_client::types::Mount;
use orchestra::ContainerId;
use tokio::time::Instant;

use crate::container::Extension;

/// How long nobody else is taken to have removed a container that was made here.
const NEW: Duration = Duration::from_secs(1);
/// How many things of one kind are remembered.
const MOST: usize = 64;

/// A container of ours, as it was made: nothing of it changes.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) container: Container,
    pub(crate) extension: Extension,
    /// Its writable layer, where that is known.
    pub(crate) layer: Option<Vec<Mount>>,
}

/// Containers that were made within the last second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made(Arc<Mutex<HashMap<String, New>>>);

#[derive(Debug)]
struct New {
    made: Instant,
    record: Arc<Record>,
}

impl New {
    fn is_new(&self) -> bool {
        self.made.elapsed() < NEW
    }
}

impl Made {
    /// This one was made.
    pub(crate) fn add(&self, record: Record) {
        let mut all = lock(&self.0);
        all.retain(|_, one| one.is_new());
        let (id, made) = (record.extension.id.clone(), Instant::now());
        let record = Arc::new(record);
        all.insert(id, New { made, record });
    }

    /// Its record, if it is new.
    pub(crate) fn get(&self, id: &ContainerId) -> Option<Arc<Record>> {
        let mut all = lock(&self.0);
        all.retain(|_, one| one.is_new());
        let new = all.get(id.as_str())?;
        Some(new.record.clone())
    }

    /// It is new no more: somebody changes it.
    pub(crate) fn forget(&self, id: &str) {
        lock(&self.0).remove(id);
    }
}

/// What a digest stands for, together with what else it depends on.
#[derive(Clone, Debug)]
pub(crate) struct Remembered<V>(Arc<Mutex<HashMap<(String, String), V>>>);

impl<V> Default for Remembered<V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<V: Clone> Remembered<V> {
    pub(crate) fn get(&self, key: &(String, String)) -> Option<V> {
        lock(&self.0).get(key).cloned()
    }

    pub(crate) fn add(&self, key: (String, String), value: V) {
        let mut remembered = lock(&self.0);
        if remembered.len() >= MOST {
            remembered.clear();
        }
        remembered.insert(key, value);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            container: Container::default(),
            extension: Extension {
                id: id.to_owned(),
                ..Extension::default()
            },
            layer: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_is_new_for_a_second_or_until_somebody_changes_it() {
        let made = Made::default();
        let [first, second] = ["first", "second"].map(|id| ContainerId::new(id).unwrap());
        assert!(made.get(&first).is_none());
        made.add(record("first"));
        assert!(made.get(&first).is_some());
        made.forget("first");
        assert!(made.get(&first).is_none());
        made.add(record("first"));
        tokio::time::advance(NEW).await;
        assert!(made.get(&first).is_none(), "others had the time to remove it");
        made.add(record("second"));
        assert!(made.get(&second).is_some());
        assert_eq!(lock(&made.0).len(), 1, "what is old is not kept");
    }

    #[test]
    fn no_more_is_remembered_than_a_few() {
        let remembered = Remembered::default();
        for number in 0..MOST * 3 {
            remembered.add((number.to_string(), String::new()), number);
            assert_eq!(remembered.get(&(number.to_string(), String::new())), Some(number));
        }
        assert!(lock(&remembered.0).len() <= MOST);
    }
}
