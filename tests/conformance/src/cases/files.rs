//! Files that are put into a container before it starts.

use std::sync::Arc;

use orchestra::{ContainerPath, ErrorKind, InjectedFile};

use super::case;
use crate::check::{Outcome, fails, same};
use crate::context::Context;
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(
        files_have_the_content_mode_and_owner_they_are_given,
        "`write_files`: content, permission bits and owners are as given."
    ),
    case!(
        missing_directories_are_made_with_the_files_owner,
        "Missing directories are made, with mode 0755 and the file's owner."
    ),
    case!(
        directories_that_exist_stay_as_they_are,
        "A directory that exists keeps its mode and owner."
    ),
    case!(
        a_file_of_the_image_is_replaced,
        "A file that the image has is replaced, in this container alone."
    ),
    case!(
        nothing_is_put_into_a_container_that_was_started,
        "`write_files` fails with `Conflict` if the container was started."
    ),
    case!(
        nothing_is_put_into_no_container,
        "`write_files` fails with `ContainerNotFound`."
    ),
    case!(
        a_file_may_hold_anything,
        "Content of a mebibyte of any bytes, and none, is kept."
    ),
];

fn file(path: &str, content: &str) -> Outcome<InjectedFile> {
    Ok(InjectedFile::new(ContainerPath::new(path)?, content.to_owned()))
}

async fn files_have_the_content_mode_and_owner_they_are_given(cx: Arc<Context>) -> Outcome {
    let script = "stat -c '%a %u %g' /etc/secret /etc/program; cat /etc/secret; /etc/program";
    let id = cx.create("files", &cx.shell(script)).await?;
    let secret = file("/etc/secret", "hunter2\n")?;
    let mut program = file("/etc/program", "#!/bin/sh\necho it runs\n")?;
    (program.mode, program.uid, program.gid) = (0o4755, 1234, 5678);
    cx.driver.write_files(&id, &[secret, program]).await?;
    let ran = cx.finish(&id, None).await?;
    same(
        "what the container sees",
        ran.stdout,
        "600 0 0\n4755 1234 5678\nhunter2\nit runs\n",
    )
}

async fn missing_directories_are_made_with_the_files_owner(cx: Arc<Context>) -> Outcome {
    let script = "stat -c '%a %u %g' /new /new/deep /new/deep/er /new/deep/er/file";
    let id = cx.create("dirs", &cx.shell(script)).await?;
    let mut deep = file("/new/deep/er/file", "x")?;
    (deep.uid, deep.gid) = (12, 34);
    cx.driver.write_files(&id, &[deep]).await?;
    let ran = cx.finish(&id, None).await?;
    same(
        "what the container sees",
        ran.stdout,
        "755 12 34\n755 12 34\n755 12 34\n600 12 34\n",
    )
}

async fn directories_that_exist_stay_as_they_are(cx: Arc<Context>) -> Outcome {
    let script = "stat -c '%a %u %g' / /tmp /root";
    let untouched = cx.output("untouched", &cx.shell(script)).await?;
    let id = cx.create("touched", &cx.shell(script)).await?;
    let mut files = Vec::new();
    for path in ["/file", "/tmp/file", "/root/.docker/config.json"] {
        let mut file = file(path, "x")?;
        (file.uid, file.gid) = (12, 34);
        files.push(file);
    }
    cx.driver.write_files(&id, &files).await?;
    same(
        "the directories afterwards",
        cx.finish(&id, None).await?.stdout,
        untouched,
    )
}

async fn a_file_of_the_image_is_replaced(cx: Arc<Context>) -> Outcome {
    let before = cx.output("before", &cx.shell("cat /etc/passwd")).await?;
    let id = cx.create("replaced", &cx.shell("cat /etc/passwd")).await?;
    cx.driver.write_files(&id, &[file("/etc/passwd", "mine\n")?]).await?;
    // And once more: the call may be made again.
    cx.driver
        .write_files(&id, &[file("/etc/passwd", "mine again\n")?])
        .await?;
    same(
        "the file in this container",
        cx.finish(&id, None).await?.stdout,
        "mine again\n",
    )?;
    same(
        "the file in another one",
        cx.output("after", &cx.shell("cat /etc/passwd")).await?,
        before,
    )
}

async fn nothing_is_put_into_a_container_that_was_started(cx: Arc<Context>) -> Outcome {
    let id = cx.start_and_see("started", &cx.sleeper()).await?;
    let answer = cx.driver.write_files(&id, &[file("/late", "x")?]).await;
    fails("writing into a running container", answer, &[ErrorKind::Conflict])?;
    cx.output("ended", &cx.shell("true")).await?;
    let answer = cx.driver.write_files(&cx.id("ended"), &[file("/late", "x")?]).await;
    fails(
        "writing into a container that has ended",
        answer,
        &[ErrorKind::Conflict],
    )?;
    Ok(())
}

async fn nothing_is_put_into_no_container(cx: Arc<Context>) -> Outcome {
    let answer = cx.driver.write_files(&cx.id("never-made"), &[file("/x", "x")?]).await;
    fails("writing into nothing", answer, &[ErrorKind::ContainerNotFound])?;
    Ok(())
}

async fn a_file_may_hold_anything(cx: Arc<Context>) -> Outcome {
    let content: Vec<u8> = (0..=255u8).cycle().take(1 << 20).collect();
    let id = cx.create("large", &cx.shell("cat /large; cat /empty >&2")).await?;
    let large = InjectedFile::new(ContainerPath::new("/large")?, content.clone());
    cx.driver.write_files(&id, &[large, file("/empty", "")?]).await?;
    let logs = cx.driver.logs(&id, true).await?;
    cx.driver.start_container(&id, None).await?;
    let written = crate::context::collect(logs).await?;
    same("the empty file", written.stderr, Vec::<u8>::new())?;
    same("whether the large file is as it was", written.stdout == content, true)
}
