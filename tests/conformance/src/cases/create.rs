//! Making containers.

use std::sync::Arc;

use orchestra::{ContainerPath, Created, ErrorKind, ImageRef, VolumeSpec};

use super::case;
use crate::check::{Outcome, fails, holds, same};
use crate::context::Context;
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(
        creating_a_container_again_changes_nothing,
        "`create_container` with an id that exists answers `Existing` and changes nothing."
    ),
    case!(
        creating_a_container_that_has_ended_does_not_run_it_again,
        "A container that has ended is attached to, with its exit and its log."
    ),
    case!(
        of_two_who_create_one_container_both_succeed,
        "Creating the same container from two tasks at once makes one."
    ),
    case!(
        a_working_directory_that_the_image_lacks_is_made,
        "A working directory that the image lacks is made."
    ),
    case!(
        an_image_that_is_not_there_is_not_found,
        "`create_container` fails with `ImageNotFound`, and makes nothing."
    ),
    case!(
        no_volume_is_made_by_mounting_it,
        "`create_container` fails with `VolumeNotFound`: no volume is ever made by mounting it."
    ),
    case!(
        a_spec_that_contradicts_itself_is_refused,
        "`create_container` fails with `InvalidInput`, and makes nothing."
    ),
    case!(
        arguments_and_environment_pass_unchanged,
        "Command and environment reach the process byte for byte."
    ),
    case!(
        an_image_of_another_platform_is_not_taken,
        "`create_container` for a platform that the engine's image is not of, fails and makes nothing."
    ),
];

async fn nothing_is_there(cx: &Context) -> Outcome {
    same("what is there afterwards", cx.listed().await?, vec![])
}

async fn creating_a_container_again_changes_nothing(cx: Arc<Context>) -> Outcome {
    let id = cx.create("twice", &cx.shell("echo first")).await?;
    let again = cx.driver.create_container(&id, &cx.shell("echo second")).await?;
    same("create_container, the second time", again, Created::Existing)?;
    let other = (cx.connect)().await?;
    let again = other.create_container(&id, &cx.shell("echo third")).await?;
    same("create_container by a second driver", again, Created::Existing)?;
    same("what it prints", cx.finish(&id, None).await?.stdout, "first\n")?;
    same("the containers that are there", cx.listed().await?.len(), 1)
}

async fn creating_a_container_that_has_ended_does_not_run_it_again(cx: Arc<Context>) -> Outcome {
    let spec = cx.shell("echo once; exit 9");
    let ran = cx.run("ended", &spec).await?;
    same("its exit", ran.exit.code(), 9)?;
    let id = cx.id("ended");
    let other = (cx.connect)().await?;
    same(
        "create_container",
        other.create_container(&id, &spec).await?,
        Created::Existing,
    )?;
    same("its exit, asked again", other.wait_container(&id).await?.code(), 9)?;
    let log = crate::context::collect(other.logs(&id, true).await?).await?;
    same("its log, read again", crate::context::text(&log.stdout), "once\n")
}

async fn of_two_who_create_one_container_both_succeed(cx: Arc<Context>) -> Outcome {
    let (id, spec) = (cx.id("raced"), cx.shell("echo one"));
    let (a, b, c) = tokio::join!(
        cx.driver.create_container(&id, &spec),
        cx.driver.create_container(&id, &spec),
        cx.driver.create_container(&id, &spec)
    );
    let answers = [a?, b?, c?];
    let new = answers.iter().filter(|answer| **answer == Created::New).count();
    same(format!("how many made it: {answers:?}"), new, 1)?;
    same("what it prints", cx.finish(&id, None).await?.stdout, "one\n")
}

async fn a_working_directory_that_the_image_lacks_is_made(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("pwd; echo file > here && cat /made/for/me/here");
    spec.working_dir = Some(ContainerPath::new("/made/for/me")?);
    same("where it works", cx.output("dir", &spec).await?, "/made/for/me\nfile\n")
}

async fn an_image_that_is_not_there_is_not_found(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("true");
    spec.image = ImageRef::new("conformance.test/never-made:1")?;
    let answer = cx.driver.create_container(&cx.id("no-image"), &spec).await;
    fails("a container of no image", answer, &[ErrorKind::ImageNotFound])?;
    nothing_is_there(&cx).await
}

async fn no_volume_is_made_by_mounting_it(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume_id("never-made");
    let mut spec = cx.shell("true");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    let answer = cx.driver.create_container(&cx.id("no-volume"), &spec).await;
    fails("a container with no volume", answer, &[ErrorKind::VolumeNotFound])?;
    nothing_is_there(&cx).await?;
    let created = cx.driver.create_volume(&volume, &VolumeSpec::new(cx.labels())).await?;
    same("create_volume afterwards", created, Created::New)
}

async fn a_spec_that_contradicts_itself_is_refused(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("v").await?;
    let mut twice = cx.shell("true");
    twice.mounts = vec![cx.mount(&volume, "/v")?, cx.mount(&volume, "/v")?];
    let mut root = cx.shell("true");
    root.mounts = vec![cx.mount(&volume, "/")?];
    let mut empty = cx.shell("true");
    empty.entrypoint = Some(vec![String::new()]);
    let mut relative = cx.shell("true");
    relative.working_dir = Some(ContainerPath::new("relative")?);
    let mut name = cx.shell("true");
    name.env = [("A=B", "c")].into_iter().collect();
    for (what, spec) in [
        ("two mounts at one place", twice),
        ("a mount at the root", root),
        ("an empty program", empty),
        ("a relative working directory", relative),
        ("a variable with = in its name", name),
    ] {
        let answer = cx.driver.create_container(&cx.id("bad"), &spec).await;
        fails(what, answer, &[ErrorKind::InvalidInput])?;
    }
    cx.driver.remove_volume(&volume).await?;
    nothing_is_there(&cx).await
}

async fn arguments_and_environment_pass_unchanged(cx: Arc<Context>) -> Outcome {
    let odd = "two  blanks, 'quotes', \"more\", $HOME, `x`, \\, a\nline, ünï, *, -n ${A}";
    let mut spec = cx.spec();
    spec.entrypoint = Some(
        ["sh", "-c", "printf '%s|%s|%s' \"$1\" \"$2\" \"$ODD\"", "sh", odd, ""]
            .map(str::to_owned)
            .to_vec(),
    );
    spec.env = [("ODD", odd), ("EMPTY", "")].into_iter().collect();
    let printed = cx.output("odd", &spec).await?;
    same("what reaches the process", printed, format!("{odd}||{odd}"))?;
    let mut spec = cx.shell("env");
    spec.env = [("EMPTY", ""), ("SET", "a=b")].into_iter().collect();
    let environment = cx.output("env", &spec).await?;
    let lines: Vec<&str> = environment.lines().collect();
    holds(
        lines.contains(&"EMPTY=") && lines.contains(&"SET=a=b"),
        format!("both are in the environment: {lines:?}"),
    )?;
    holds(
        lines.iter().any(|line| line.starts_with("PATH=")),
        "the image's own variables stay",
    )
}

async fn an_image_of_another_platform_is_not_taken(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("true");
    let own = &cx.driver.info().platform.architecture;
    let other = if own == "s390x" { "linux/amd64" } else { "linux/s390x" };
    spec.platform = Some(other.parse()?);
    let answer = cx.driver.create_container(&cx.id("elsewhere"), &spec).await;
    fails(
        "an image of another platform",
        answer,
        &[ErrorKind::ImageNotFound, ErrorKind::Unsupported],
    )?;
    same("what is there afterwards", cx.listed().await?, vec![])
}
