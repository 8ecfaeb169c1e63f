//! Volumes as directories of this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{Error, ErrorKind, Result, VolumeId};

/// Longest that a removal waits for who is at work in the directory: what was given up ends soon.
const SOON: Duration = Duration::from_secs(10);

/// Where a volume's files are on this machine. As long as one is held, its driver does not remove the volume.
#[derive(Clone, Debug)]
pub struct VolumeDirectory {
    path: PathBuf,
    _held: TaskTrackerToken,
}

impl AsRef<Path> for VolumeDirectory {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// Which volumes of a driver have a [`VolumeDirectory`] that is held. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct HeldVolumes(Arc<Mutex<HashMap<VolumeId, TaskTracker>>>);

impl HeldVolumes {
    fn held(&self) -> MutexGuard<'_, HashMap<VolumeId, TaskTracker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume's directory, held.
    #[must_use]
    pub fn hold(&self, id: &VolumeId, path: PathBuf) -> VolumeDirectory {
        let _held = self.held().entry(id.clone()).or_default().token();
        VolumeDirectory { path, _held }
    }

    /// Waits until nobody holds it, before it is removed.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if somebody still does after ten seconds.
    pub async fn released(&self, id: &VolumeId) -> Result<()> {
        let Some(holders) = self.held().get(id).cloned() else {
            return Ok(());
        };
        holders.close();
        if tokio::time::timeout(SOON, holders.wait()).await.is_err() {
            return Err(Error::new(
                ErrorKind::Conflict,
                "this process is reading or writing the volume",
            ));
        }
        let mut held = self.held();
        if held.get(id).is_some_and(TaskTracker::is_empty) {
            held.remove(id);
        }
        Ok(())
    }
}

/// Whether an engine's own directory `root` is one of this machine's, as far as can be seen before there is a volume: it is
/// there, and a process of root's listens at the engine's unix socket. What another one tells of this machine's directories
/// is not to be believed by root. Each volume's has still to be shown to be that volume's.
pub async fn root_shows(socket: &Path, root: &Path) -> bool {
    let stream = tokio::net::UnixStream::connect(socket).await;
    let peer = stream.and_then(|stream| stream.peer_cred());
    let believed = peer.is_ok_and(|peer| peer.uid() == 0) && root.is_absolute();
    believed && tokio::fs::metadata(root).await.is_ok_and(|found| found.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_volume_is_released_when_the_last_one_lets_go() {
        let (volumes, id) = (HeldVolumes::default(), VolumeId::new("v").unwrap());
        volumes.released(&id).await.unwrap();
        let held = volumes.hold(&id, "/v".into());
        let again = held.clone();
        assert_eq!(volumes.released(&id).await.unwrap_err().kind(), ErrorKind::Conflict);
        drop(held);
        let waiting = tokio::spawn({
            let (volumes, id) = (volumes.clone(), id.clone());
            async move { volumes.released(&id).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        drop(again);
        waiting.await.unwrap().unwrap();
        assert!(volumes.held().is_empty());
    }
}
