//! Who waits for something in a folder is woken when the folder changes.
//!
//! All folders of a [`Watcher`] share one inotify instance, since an ordinary machine allows 128 of them.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use orchestra::{Error, ErrorKind, Result};
use orchestra_helper::keep_log::KEEPER;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What happened to a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Something was written.
    pub(super) writes: u64,
    /// A keeper let go of its file.
    pub(super) ends: u64,
}

type Bells = HashMap<WatchDescriptor, watch::Sender<Changes>>;

struct Shared {
    watches: Mutex<Watches>,
    bells: Arc<Mutex<Bells>>,
    task: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches folders.
#[derive(Clone)]
pub struct Watcher(Arc<Shared>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

/// Rings when a folder changes; the watch ends with the last bell of a folder.
pub struct Bell {
    changes: Option<watch::Receiver<Changes>>,
    descriptor: WatchDescriptor,
    shared: Arc<Shared>,
}

impl Watcher {
    /// A new inotify instance.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if the machine allows no more of them.
    pub fn new() -> Result<Self> {
        let failed = |error| {
            Error::io("watch logs", error).with_hint(
                "other programs may have used up the machine's inotify instances (fs.inotify.max_user_instances)",
            )
        };
        let inotify = Inotify::init().map_err(failed)?;
        let watches = inotify.watches();
        let mut events = inotify.into_event_stream(vec![0; 16 * 1024]).map_err(failed)?;
        let bells = Arc::new(Mutex::new(Bells::new()));
        let ringing = bells.clone();
        let task = tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                let mut bells = ringing.lock().unwrap_or_else(PoisonError::into_inner);
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    // Whose event was dropped is not told.
                    bells.values().for_each(|bell| ring(bell, true));
                } else if event.mask.contains(EventMask::IGNORED) {
                    // The folder is gone; those who listen see it by the bell's end.
                    bells.remove(&event.wd);
                } else if let Some(bell) = bells.get(&event.wd) {
                    let end = event.mask.contains(EventMask::CLOSE_WRITE)
                        && event.name.as_deref().is_some_and(|name| name == KEEPER);
                    ring(bell, end);
                }
            }
        });
        Ok(Self(Arc::new(Shared {
            watches: Mutex::new(watches),
            bells,
            task: task.abort_handle(),
        })))
    }

    /// Watches a folder: what changes in it from now on rings.
    ///
    /// # Errors
    /// [`ContainerNotFound`](ErrorKind::ContainerNotFound) if it is not there.
    pub fn watch(&self, folder: &Path) -> Result<Bell> {
        let mask = WatchMask::MODIFY
            | WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR;
        // Held over both: an event of the watch must find its bell.
        let mut bells = self.0.bells.lock().unwrap_or_else(PoisonError::into_inner);
        let mut watches = self.0.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = watches.add(folder, mask).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => not_found(folder),
            _ => Error::io(format!("watch the log {}", folder.display()), error),
        })?;
        let bell = bells.entry(descriptor.clone()).or_default();
        Ok(Bell {
            changes: Some(bell.subscribe()),
            descriptor,
            shared: self.0.clone(),
        })
    }
}

pub(super) fn not_found(folder: &Path) -> Error {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    Error::new(ErrorKind::ContainerNotFound, format!("there is no log of {name}"))
}

fn ring(bell: &watch::Sender<Changes>, end: bool) {
    bell.send_modify(|changes| {
        changes.writes += 1;
        changes.ends += u64::from(end);
    });
}

impl Bell {
    /// What has happened up to now; only what comes later rings.
    pub(super) fn seen(&mut self) -> Changes {
        self.changes
            .as_mut()
            .map(|changes| *changes.borrow_and_update())
            .unwrap_or_default()
    }

    /// Waits for a change since it last rang; false when the folder is gone.
    pub async fn rings(&mut self) -> bool {
        match &mut self.changes {
            Some(changes) => changes.changed().await.is_ok(),
            None => false,
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bell")
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let mut bells = self.shared.bells.lock().unwrap_or_else(PoisonError::into_inner);
        self.changes = None;
        if bells
            .get(&self.descriptor)
            .is_some_and(|bell| bell.receiver_count() == 0)
        {
            bells.remove(&self.descriptor);
            let mut watches = self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner);
            // It fails where the folder is gone, and the watch with it.
            let _ = watches.remove(self.descriptor.clone());
        }
    }
}
