//! A tar in parts, for one who has what it was before.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use orchestra::{Result, SharedDriver, VolumeDirectory, VolumeId, VolumePath};
use orchestra_helper::tree::{Comparison, Known};

use crate::directory;

/// Parts of a tar as they come.
pub type Parts = BoxStream<'static, Result<Part>>;

/// A part of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of it.
    Tar(Bytes),
    /// The next bytes are these bytes of the tar that the volume was filled from.
    Same(Range<u64>),
    /// All of it has come, but for the two blocks that end a tar: more members may follow.
    End {
        /// How many devices were left out.
        devices_left_out: u64,
    },
}

/// What of a volume's content need not be read again.
#[derive(Clone, Debug)]
pub struct Since {
    /// The volume, compared with what it was when it was filled. What changes after that may be missed.
    pub comparison: Arc<Comparison>,
    /// Where the tar that it was filled from may be cut, in order: what is said to be the [same](Part::Same) begins and ends
    /// there.
    pub cuts: Arc<Vec<u64>>,
}

/// A volume that is read as a directory of this machine. It is held as long as this lives.
#[derive(Clone)]
pub struct Tree {
    pub(crate) driver: SharedDriver,
    pub(crate) volume: VolumeId,
    pub(crate) directory: VolumeDirectory,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("volume", &self.volume)
            .finish_non_exhaustive()
    }
}

impl Tree {
    /// What the volume is, seen from what it was when it was filled. None of its files is opened.
    ///
    /// # Errors
    /// [`VolumeNotFound`](orchestra::ErrorKind::VolumeNotFound), and [`Io`](orchestra::ErrorKind::Io) for what can't be listed.
    pub async fn compare(&self, known: Arc<Known>) -> Result<Comparison> {
        directory::compare(self.directory.as_ref(), known).await
    }

    /// Files and directories of the volume as one tar, in parts; what has not changed since is not read. Paths that are not
    /// there are left out, and so are devices unless they are asked for. The stream fails with [`Io`](orchestra::ErrorKind::Io),
    /// and with [`Conflict`](orchestra::ErrorKind::Conflict) for what is not what it was in the tar though nothing of it changed,
    /// as on another kind of file system: without `since` it is read.
    #[must_use]
    pub fn read(&self, paths: &[VolumePath], since: Option<Since>, devices: bool) -> Parts {
        let directory = self.directory.clone();
        let parts = directory::read_parts(directory, VolumePath::outermost(paths), since, devices);
        self.while_there(parts)
    }

    /// A directory's tar. Its end comes when the volume is seen to be there still: nothing keeps others from removing it, and
    /// what they remove first would be missing in a tar that looks whole.
    pub(crate) fn while_there<T: Send + 'static>(
        &self,
        packed: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let held = (packed, None, Some(self.clone()));
        stream::try_unfold(held, async |(mut packed, mut last, tree)| {
            let Some(tree) = tree else {
                return Ok(None);
            };
            while let Some(piece) = packed.next().await {
                if let Some(before) = last.replace(piece?) {
                    return Ok(Some((before, (packed, last, Some(tree)))));
                }
            }
            tree.driver.volume_directory(&tree.volume).await?;
            Ok(last.map(|last| (last, (packed, None, None))))
        })
        .boxed()
    }
}
