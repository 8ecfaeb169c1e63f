//! Tars in and out of a directory that is held meanwhile.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use orchestra::tar::{self, Head};
use orchestra::{ErrorKind, HeldVolumes, VolumeId, VolumePath};
use orchestra_volumes::directory::{read, write};

fn count(root: &Path) -> usize {
    std::fs::read_dir(root).unwrap().count()
}

#[tokio::test]
async fn a_write_that_is_given_up_ends_soon_and_lets_the_directory_go() {
    let folder = tempfile::tempdir().unwrap();
    let (held, id) = (HeldVolumes::default(), VolumeId::new("v").unwrap());
    // Some hundred small files a piece, without an end.
    let pieces = (0_u64..).map(|piece| {
        let file = |file| Head::file(0).blocks(&format!("{piece}-{file}"));
        Ok(Bytes::from((0..400).flat_map(file).collect::<Vec<_>>().concat()))
    });
    let directory = held.hold(&id, folder.path().to_owned());
    let writing = write(directory, VolumePath::root(), stream::iter(pieces).boxed());
    assert!(tokio::time::timeout(Duration::from_millis(300), writing).await.is_err());
    held.released(&id).await.unwrap();
    let there = count(folder.path());
    assert!(there > 0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count(folder.path()), there);
    std::fs::remove_dir_all(folder.path()).unwrap();
}

#[tokio::test]
async fn a_directory_that_is_gone_is_no_volume() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    let first = read(gone.clone(), vec![VolumePath::root()]).next().await.unwrap();
    assert_eq!(first.unwrap_err().kind(), ErrorKind::VolumeNotFound);
    let tar = orchestra::stream::once(tar::END);
    let error = write(gone, VolumePath::root(), tar).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VolumeNotFound);
}
