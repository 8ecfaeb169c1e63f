//! Volumes that are directories.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::fs;
use std::os::unix::fs::symlink;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use orchestra::{Created, Error, ErrorKind, Labels, VolumeId, VolumePath, VolumeSpec};
use orchestra_oci::volumes::VolumeStore;

fn id(name: &str) -> VolumeId {
    VolumeId::new(name).unwrap()
}

fn spec(job: &str) -> VolumeSpec {
    VolumeSpec::new(Labels::from([("job".to_owned(), job.to_owned())]))
}

async fn tar_of(store: &VolumeStore, name: &str) -> Vec<u8> {
    let tar = store.read(&id(name), &[VolumePath::root()]).await.unwrap();
    let pieces: Vec<Bytes> = tar.try_collect().await.unwrap();
    pieces.concat()
}

#[tokio::test]
async fn a_volume_is_made_once_and_found_by_its_labels() {
    let dir = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(dir.path().join("volumes")).await.unwrap();
    let (one, two, spec_a) = (id("one"), id("two"), spec("a"));
    let made = tokio::join!(store.create(&one, &spec_a), store.create(&one, &spec_a));
    let mut made = [made.0.unwrap(), made.1.unwrap()];
    made.sort_by_key(|made| *made == Created::Existing);
    assert_eq!(made, [Created::New, Created::Existing]);
    store.create(&two, &spec("b")).await.unwrap();
    let found = store.list("job", Some("a")).await.unwrap();
    assert_eq!(
        found.iter().map(|volume| volume.id.as_str()).collect::<Vec<_>>(),
        ["one"]
    );
    assert_eq!(store.list("job", None).await.unwrap().len(), 2);
    assert!(store.list("other", None).await.unwrap().is_empty());
    store.remove(&one).await.unwrap();
    store.remove(&one).await.unwrap();
    assert_eq!(store.get(&one).await.unwrap_err().kind(), ErrorKind::VolumeNotFound);
}

#[tokio::test]
async fn what_a_crash_left_half_made_is_no_volume_and_is_cleaned_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(dir.path()).await.unwrap();
    store.create(&id("whole"), &spec("a")).await.unwrap();
    fs::create_dir_all(dir.path().join(".unfinished-1-2-3/data/deep")).unwrap();
    assert_eq!(store.list("job", None).await.unwrap().len(), 1);
    // As long as somebody is at work, it is left alone.
    let lock = fs::File::open(dir.path().join(".lock")).unwrap();
    lock.lock_shared().unwrap();
    VolumeStore::open(dir.path()).await.unwrap();
    assert!(dir.path().join(".unfinished-1-2-3").exists());
    drop(lock);
    VolumeStore::open(dir.path()).await.unwrap();
    assert!(!dir.path().join(".unfinished-1-2-3").exists());
    assert!(store.get(&id("whole")).await.is_ok());
}

#[tokio::test]
async fn content_goes_from_one_volume_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(dir.path()).await.unwrap();
    for name in ["from", "to"] {
        store.create(&id(name), &spec("a")).await.unwrap();
    }
    let from = store.get(&id("from")).await.unwrap().path;
    fs::create_dir(from.join("deep")).unwrap();
    fs::write(from.join("deep/file"), vec![b'x'; 3 << 20]).unwrap();
    let tar = store.read(&id("from"), &[VolumePath::root()]).await.unwrap();
    store.write(&id("to"), &VolumePath::root(), tar).await.unwrap();
    let to = store.get(&id("to")).await.unwrap().path;
    assert_eq!(fs::read(to.join("deep/file")).unwrap().len(), 3 << 20);
    let missing = store
        .read(&id("from"), &[VolumePath::new("nowhere").unwrap()])
        .await
        .unwrap();
    let error = missing.try_collect::<Vec<Bytes>>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PathNotFound);
    let error = store.read(&id("none"), &[VolumePath::root()]).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::VolumeNotFound);
}

#[tokio::test]
async fn an_error_of_the_tar_is_the_calls_and_nothing_is_written_outside() {
    let dir = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(dir.path().join("volumes")).await.unwrap();
    for name in ["from", "to"] {
        store.create(&id(name), &spec("a")).await.unwrap();
    }
    let path = store.get(&id("from")).await.unwrap().path;
    fs::create_dir(path.join("way")).unwrap();
    fs::write(path.join("way/out"), "escaped").unwrap();
    let tar = tar_of(&store, "from").await;

    let broken = stream::iter([
        Ok(Bytes::copy_from_slice(&tar[..700])),
        Err(Error::new(ErrorKind::Interrupted, "the line was cut")),
    ]);
    let error = store
        .write(&id("to"), &VolumePath::root(), broken.boxed())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");

    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let to = store.get(&id("to")).await.unwrap().path;
    fs::remove_dir_all(to.join("way")).ok();
    symlink(&outside, to.join("way")).unwrap();
    let _ = store
        .write(
            &id("to"),
            &VolumePath::root(),
            stream::iter([Ok(Bytes::from(tar))]).boxed(),
        )
        .await;
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}
