//! Volumes as a whole: made, mounted, removed.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orchestra::{ContainerPath, Created, ErrorKind, VolumeDirectory, VolumePath, VolumeSpec, stream};

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same};
use crate::context::Context;
use crate::suite::Case;
use crate::tarball::{Entry, pack, unpack};

pub(super) const CASES: &[Case] = &[
    case!(a_new_volume_is_empty, "`create_volume` makes an empty volume."),
    case!(
        creating_a_volume_again_keeps_its_content,
        "`create_volume` with an id that exists answers `Existing` and leaves the content."
    ),
    case!(
        of_two_who_create_one_volume_one_makes_it,
        "Creating the same volume from two tasks at once makes one."
    ),
    case!(
        removing_a_volume_that_is_not_there_succeeds,
        "`remove_volume` of what does not exist is success."
    ),
    case!(
        a_volume_in_use_is_not_removed,
        "`remove_volume` fails with `Conflict` while a container uses it."
    ),
    case!(
        a_removed_volume_is_gone_with_its_content,
        "A volume that was removed and made again is empty."
    ),
    case!(
        a_volume_that_is_not_there_is_not_found,
        "Reading and writing fail with `VolumeNotFound`."
    ),
    case!(
        containers_share_a_volume,
        "What one container writes to a volume, another reads, wherever it is mounted."
    ),
    case!(
        a_relative_mount_stands_under_the_working_directory,
        "A relative mount is resolved against the working directory."
    ),
    case!(
        a_read_only_mount_cannot_be_written,
        "A container can't write to a read-only mount, and can read it."
    ),
    case!(
        volumes_stay_when_their_container_goes,
        "Volumes that were mounted by id stay after `remove_container`."
    ),
    case!(
        a_reader_that_is_dropped_frees_the_volume,
        "Dropping the stream of `read_volume` leaves the volume free to be removed."
    ),
    case!(
        a_volume_is_read_and_written_while_a_container_runs,
        "A volume's content is reached while a container uses it."
    ),
    case!(
        a_volume_has_a_directory_on_this_machine,
        "What is written to the directory that `volume_directory` tells is in the volume, and the other way round.",
        needs volume_directories
    ),
];

async fn names(cx: &Context, volume: &orchestra::VolumeId) -> Outcome<Vec<String>> {
    let entries = unpack(cx.driver.read_volume(volume, &[VolumePath::root()]).await?).await?;
    Ok(entries.into_iter().map(|entry| entry.path).collect())
}

async fn put(cx: &Context, volume: &orchestra::VolumeId, path: &str, content: &str) -> Outcome {
    let tar = pack(&[Entry::file(path, content.to_owned())]);
    Ok(cx
        .driver
        .write_volume(volume, &VolumePath::root(), stream::once(tar))
        .await?)
}

async fn a_new_volume_is_empty(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("new").await?;
    same(
        "the names in a new volume",
        names(&cx, &volume).await?,
        Vec::<String>::new(),
    )
}

async fn creating_a_volume_again_keeps_its_content(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("twice").await?;
    put(&cx, &volume, "kept", "content").await?;
    let again = cx.driver.create_volume(&volume, &VolumeSpec::new(cx.labels())).await?;
    same("create_volume, the second time", again, Created::Existing)?;
    let other = (cx.connect)().await?;
    let again = other.create_volume(&volume, &VolumeSpec::new(cx.labels())).await?;
    same("create_volume by a second driver", again, Created::Existing)?;
    same("the names in it", names(&cx, &volume).await?, vec!["kept"])
}

async fn of_two_who_create_one_volume_one_makes_it(cx: Arc<Context>) -> Outcome {
    let (id, spec) = (cx.volume_id("raced"), VolumeSpec::new(cx.labels()));
    let (a, b) = tokio::join!(cx.driver.create_volume(&id, &spec), cx.driver.create_volume(&id, &spec));
    let answers = [a?, b?];
    holds(
        answers.contains(&Created::New) || answers == [Created::Existing; 2],
        format!("both succeed: {answers:?}"),
    )?;
    same("the volumes that are there", cx.listed().await?.len(), 1)
}

async fn removing_a_volume_that_is_not_there_succeeds(cx: Arc<Context>) -> Outcome {
    cx.driver.remove_volume(&cx.volume_id("never-made")).await?;
    let volume = cx.volume("made").await?;
    cx.driver.remove_volume(&volume).await?;
    Ok(cx.driver.remove_volume(&volume).await?)
}

async fn a_volume_in_use_is_not_removed(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("used").await?;
    put(&cx, &volume, "kept", "content").await?;
    let mut spec = cx.shell("true");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    let container = cx.create("user", &spec).await?;
    fails(
        "removing a volume in use",
        cx.driver.remove_volume(&volume).await,
        &[ErrorKind::Conflict],
    )?;
    same("the names in it", names(&cx, &volume).await?, vec!["kept"])?;
    cx.driver.remove_container(&container).await?;
    Ok(cx.driver.remove_volume(&volume).await?)
}

async fn a_removed_volume_is_gone_with_its_content(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("gone").await?;
    put(&cx, &volume, "old", "content").await?;
    cx.driver.remove_volume(&volume).await?;
    same("what is listed", cx.listed().await?, vec![])?;
    let volume = cx.volume("gone").await?;
    same("the names in it", names(&cx, &volume).await?, Vec::<String>::new())
}

async fn a_volume_that_is_not_there_is_not_found(cx: Arc<Context>) -> Outcome {
    let (id, root) = (cx.volume_id("never-made"), VolumePath::root());
    let kinds = &[ErrorKind::VolumeNotFound];
    let written = cx
        .driver
        .write_volume(&id, &root, stream::once(pack(&[Entry::file("a", "a")])))
        .await;
    fails("write_volume", written, kinds)?;
    let read = match cx.driver.read_volume(&id, &[root]).await {
        Ok(tar) => unpack(tar).await.map(|_| ()),
        Err(error) => Err(error),
    };
    fails("read_volume", read, kinds)?;
    fails("volume_directory", cx.driver.volume_directory(&id).await, kinds)?;
    same("what is there afterwards", cx.listed().await?, vec![])
}

async fn a_volume_has_a_directory_on_this_machine(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("here").await?;
    let root = [VolumePath::root()];
    let file = Entry::file("in", "by the engine").owner(70_000, 70_001);
    let tar = stream::once(pack(&[file]));
    cx.driver.write_volume(&volume, &root[0], tar).await?;
    let directory = cx.driver.volume_directory(&volume).await?;
    let directory = directory.ok_or_else(|| Failure::new("the driver tells no directory of a volume"))?;
    let failed = |doing: &'static str| move |error| Failure::new(format!("{doing} in the volume's directory: {error}"));

    let at = |name: &str| directory.as_ref().join(name);
    let found = std::fs::metadata(at("in")).map_err(failed("what was written by the engine"))?;
    same(
        "the file's owner in the directory",
        (found.uid(), found.gid()),
        (70_000, 70_001),
    )?;
    let content = std::fs::read_to_string(at("in")).map_err(failed("read"))?;
    same("its content", content.as_str(), "by the engine")?;

    std::fs::write(at("out"), "past the engine").map_err(failed("write"))?;
    std::os::unix::fs::chown(at("out"), Some(5), Some(6)).map_err(failed("give a file away"))?;
    let mut spec = cx.shell("stat -c '%u %g' /v/out && cat /v/out");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    same(
        "what a container sees",
        cx.output("reader", &spec).await?.as_str(),
        "5 6\npast the engine",
    )?;
    // What a container has changed moves no volume.
    let again = cx.driver.volume_directory(&volume).await?;
    let path = |directory: &VolumeDirectory| directory.as_ref().to_owned();
    same(
        "the directory afterwards",
        again.as_ref().map(path),
        Some(path(&directory)),
    )?;
    drop(again);

    cx.driver.remove_container(&cx.id("reader")).await?;
    let removal = cx.driver.remove_volume(&volume);
    let release = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let there = directory.as_ref().join("out").exists();
        drop(directory);
        there
    };
    let (removed, there) = tokio::join!(removal, release);
    holds(there, "a volume is there as long as its directory is held")?;
    Ok(removed?)
}

async fn containers_share_a_volume(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("shared").await?;
    let mut writer = cx.shell("mkdir -p /here/deep && echo shared > /here/deep/file");
    writer.mounts.push(cx.mount(&volume, "/here")?);
    cx.output("writer", &writer).await?;
    let mut reader = cx.shell("cat /some/where/else/deep/file");
    reader.mounts.push(cx.mount(&volume, "/some/where/else")?);
    same("what the reader sees", cx.output("reader", &reader).await?, "shared\n")
}

async fn a_relative_mount_stands_under_the_working_directory(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("relative").await?;
    put(&cx, &volume, "file", "found").await?;
    let mut spec = cx.shell("cat data/in/file /work/data/in/file");
    spec.working_dir = Some(ContainerPath::new("/work")?);
    spec.mounts.push(cx.mount(&volume, "data/in")?);
    same(
        "what is in the mount",
        cx.output("relative", &spec).await?,
        "foundfound",
    )?;
    spec.working_dir = None;
    let refused = cx.driver.create_container(&cx.id("no-dir"), &spec).await;
    fails(
        "a relative mount without a working directory",
        refused,
        &[ErrorKind::InvalidInput],
    )?;
    Ok(())
}

async fn a_read_only_mount_cannot_be_written(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("locked").await?;
    put(&cx, &volume, "file", "old").await?;
    let mut spec =
        cx.shell("cat /v/file; if echo new > /v/file; then echo written; fi; if mkdir /v/dir; then echo made; fi");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    spec.mounts[0].read_only = true;
    same("what the container could do", cx.output("reader", &spec).await?, "old")?;
    same("the names in it", names(&cx, &volume).await?, vec!["file"])
}

async fn volumes_stay_when_their_container_goes(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("stays").await?;
    let mut spec = cx.shell("echo kept > /v/file");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    cx.output("writer", &spec).await?;
    cx.driver.remove_container(&cx.id("writer")).await?;
    same("the names in it", names(&cx, &volume).await?, vec!["file"])
}

async fn a_volume_is_read_and_written_while_a_container_runs(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("live").await?;
    let mut spec = cx.shell("echo here > /v/from-container; echo up; while [ ! -e /v/from-outside ]; do sleep 0.1; done; cat /v/from-outside");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    let id = cx.start_and_see("runs", &spec).await?;
    same("the names in it", names(&cx, &volume).await?, vec!["from-container"])?;
    put(&cx, &volume, "from-outside", "there").await?;
    same("its exit", cx.driver.wait_container(&id).await?.code(), 0)
}

async fn a_reader_that_is_dropped_frees_the_volume(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("left").await?;
    put(&cx, &volume, "large", &"x".repeat(4 << 20)).await?;
    let mut tar = cx.driver.read_volume(&volume, &[VolumePath::root()]).await?;
    holds(tar.next().await.is_some_and(|piece| piece.is_ok()), "the tar begins")?;
    drop(tar);
    // The driver may need a moment, as nobody waits for it.
    for _ in 0..100 {
        match cx.driver.remove_volume(&volume).await {
            Err(error) if error.kind() == ErrorKind::Conflict => tokio::time::sleep(Duration::from_millis(100)).await,
            answer => return Ok(answer?),
        }
    }
    Err(Failure::new(
        "the volume is still in use 10 s after its reader was dropped",
    ))
}
