//! Images from archives.

use std::sync::Arc;

use orchestra::{ContainerSpec, ErrorKind, ImageRef, VolumeId, VolumePath, import_archive, stream};
use serde_json::json;

use super::case;
use crate::check::{Outcome, fails, holds, same};
use crate::context::Context;
use crate::image::TestImage;
use crate::suite::Case;
use crate::tarball::{Entry, pack};

pub(super) const CASES: &[Case] = &[
    case!(an_oci_layout_is_imported_and_runs, "`import_image` takes an OCI image layout.", needs import_image),
    case!(a_docker_archive_is_imported_and_runs, "`import_image` takes a docker archive.", needs import_image),
    case!(the_names_in_an_archive_are_ignored, "An archive's own names are ignored.", needs import_image),
    case!(an_archive_of_two_images_is_refused, "An archive has to hold one image.", needs import_image),
    case!(an_archive_that_is_none_is_refused, "`import_image` fails with `InvalidInput` if the tar is neither form.", needs import_image),
    case!(an_error_of_the_archive_ends_the_import, "An import whose archive fails, fails.", needs import_image),
    case!(an_import_takes_the_name_from_the_image_that_had_it, "An image that had the name loses it.", needs import_image),
    case!(an_image_stays_under_its_other_name, "`remove_image` takes the name, and the image only with its last one.", needs import_image),
    case!(images_that_share_a_layer_come_and_go_at_once, "An import whose layers others remove meanwhile succeeds, or fails with an error that a retry helps against, as `import_archive` does.", needs import_image, deadlines 2),
    case!(
        an_image_that_is_not_there_does_not_exist,
        "`image_exists` is false, and removing is success."
    ),
    case!(an_image_in_use_is_not_removed, "`remove_image` fails with `Conflict` while a container uses it.", needs import_image),
    case!(a_container_has_what_its_image_says, "Command, environment, working directory and users are the image's where the spec says nothing.", needs import_image user),
    case!(an_images_entry_point_user_and_volumes_hold, "Entry point and user are the image's where the spec says nothing; a volume that the image declares begins with what the image has there, and is each container's own.", needs import_image),
];

async fn runs(cx: &Context, name: &str, image: &ImageRef, marker: &str) -> Outcome {
    let mut spec = cx.spec();
    spec.image = image.clone();
    same(
        format!("what {image} prints"),
        cx.output(name, &spec).await?,
        format!("{marker}\n"),
    )?;
    Ok(cx.driver.remove_container(&cx.id(name)).await?)
}

async fn an_oci_layout_is_imported_and_runs(cx: Arc<Context>) -> Outcome {
    let image = TestImage::make(&cx, "from a layout").await?;
    let name = cx.image("oci");
    same("image_exists before", cx.driver.image_exists(&name).await?, false)?;
    cx.driver
        .import_image(&name, stream::once(TestImage::layout(&[&image], "other.test/name:1")))
        .await?;
    same("image_exists after", cx.driver.image_exists(&name).await?, true)?;
    runs(&cx, "oci", &name, "from a layout").await
}

async fn a_docker_archive_is_imported_and_runs(cx: Arc<Context>) -> Outcome {
    let image = TestImage::make(&cx, "from an archive").await?;
    let name = cx.image("docker");
    cx.driver
        .import_image(
            &name,
            stream::once(TestImage::docker_archive(&[&image], "other.test/name:1")),
        )
        .await?;
    same("image_exists after", cx.driver.image_exists(&name).await?, true)?;
    runs(&cx, "docker", &name, "from an archive").await
}

async fn the_names_in_an_archive_are_ignored(cx: Arc<Context>) -> Outcome {
    let image = TestImage::make(&cx, "a").await?;
    let own = cx.image("own-name");
    for (tag, archive) in [
        ("layout", TestImage::layout(&[&image], own.as_str())),
        ("archive", TestImage::docker_archive(&[&image], own.as_str())),
    ] {
        cx.driver.import_image(&cx.image(tag), stream::once(archive)).await?;
        same(
            "whether the archive's own name exists",
            cx.driver.image_exists(&own).await?,
            false,
        )?;
    }
    Ok(())
}

async fn an_archive_of_two_images_is_refused(cx: Arc<Context>) -> Outcome {
    let a = TestImage::make(&cx, "a").await?;
    let b = TestImage::of(pack(&[Entry::file("b", "b")]), None);
    for (tag, archive) in [
        ("layout", TestImage::layout(&[&a, &b], "other.test/name:1")),
        ("archive", TestImage::docker_archive(&[&a, &b], "other.test/name:1")),
    ] {
        let name = cx.image(tag);
        let answer = cx.driver.import_image(&name, stream::once(archive)).await;
        fails(format!("a {tag} of two images"), answer, &[ErrorKind::InvalidInput])?;
        same("image_exists after", cx.driver.image_exists(&name).await?, false)?;
    }
    Ok(())
}

async fn an_archive_that_is_none_is_refused(cx: Arc<Context>) -> Outcome {
    let name = cx.image("none");
    for (what, bytes) in [
        ("no tar", "certainly not a tar\n".repeat(100).into()),
        ("a tar of something else", pack(&[Entry::file("hello", "world")])),
        ("nothing at all", bytes::Bytes::new()),
    ] {
        let answer = cx.driver.import_image(&name, stream::once(bytes)).await;
        fails(what, answer, &[ErrorKind::InvalidInput])?;
        same("image_exists after", cx.driver.image_exists(&name).await?, false)?;
    }
    Ok(())
}

async fn an_error_of_the_archive_ends_the_import(cx: Arc<Context>) -> Outcome {
    let layout = TestImage::layout(&[&TestImage::make(&cx, "a").await?], "other.test/name:1");
    let half = layout.slice(..layout.len() / 2);
    let broken = orchestra::Error::new(ErrorKind::Cancelled, "the source broke");
    let archive = futures_util::stream::iter([Ok(half), Err(broken)]);
    let name = cx.image("broken");
    let answer = cx.driver.import_image(&name, Box::pin(archive)).await;
    fails("an archive that breaks", answer, &[ErrorKind::Cancelled])?;
    same("image_exists after", cx.driver.image_exists(&name).await?, false)
}

async fn an_import_takes_the_name_from_the_image_that_had_it(cx: Arc<Context>) -> Outcome {
    let first = TestImage::make(&cx, "first").await?.import(&cx, "moved").await?;
    runs(&cx, "first", &first, "first").await?;
    let second = TestImage::make(&cx, "second").await?.import(&cx, "moved").await?;
    runs(&cx, "second", &second, "second").await
}

async fn an_image_stays_under_its_other_name(cx: Arc<Context>) -> Outcome {
    let image = TestImage::make(&cx, "twice").await?;
    let (one, two) = (image.import(&cx, "one").await?, image.import(&cx, "two").await?);
    cx.driver.remove_image(&one).await?;
    same("the name that was removed", cx.driver.image_exists(&one).await?, false)?;
    same("the other name", cx.driver.image_exists(&two).await?, true)?;
    runs(&cx, "two", &two, "twice").await?;
    cx.driver.remove_image(&two).await?;
    same("the last name", cx.driver.image_exists(&two).await?, false)
}

async fn images_that_share_a_layer_come_and_go_at_once(cx: Arc<Context>) -> Outcome {
    const AT_ONCE: usize = 4;
    const ROUNDS: usize = 10;
    let image = TestImage::make(&cx, "shared").await?;
    let come_and_go = async |one: usize| -> Outcome {
        // As of processes that know nothing of each other.
        let driver = (cx.connect)().await?;
        let image = image.clone().with("Labels", json!({ "one": one.to_string() }))?;
        let archive = TestImage::layout(&[&image], "other.test/name:1");
        let name = cx.image(&format!("shared-{one}"));
        for _ in 0..ROUNDS {
            let open = || std::future::ready(Ok(stream::once(archive.clone())));
            import_archive(&*driver, &name, open).await?;
            same("image_exists", driver.image_exists(&name).await?, true)?;
            driver.remove_image(&name).await?;
        }
        Ok(())
    };
    futures_util::future::try_join_all((0..AT_ONCE).map(come_and_go)).await?;
    let last = image.import(&cx, "last").await?;
    runs(&cx, "last", &last, "shared").await
}

async fn an_image_that_is_not_there_does_not_exist(cx: Arc<Context>) -> Outcome {
    let name = cx.image("never-made");
    same("image_exists", cx.driver.image_exists(&name).await?, false)?;
    cx.driver.remove_image(&name).await?;
    same(
        "whether the test image exists",
        cx.driver.image_exists(&cx.settings.image).await?,
        true,
    )
}

async fn an_image_in_use_is_not_removed(cx: Arc<Context>) -> Outcome {
    let image = TestImage::make(&cx, "used").await?.import(&cx, "used").await?;
    let mut spec = cx.spec();
    spec.image = image.clone();
    let id = cx.create("user", &spec).await?;
    fails(
        "removing an image in use",
        cx.driver.remove_image(&image).await,
        &[ErrorKind::Conflict],
    )?;
    same("image_exists after", cx.driver.image_exists(&image).await?, true)?;
    cx.driver.remove_container(&id).await?;
    cx.driver.remove_image(&image).await?;
    same("image_exists at last", cx.driver.image_exists(&image).await?, false)
}

async fn a_container_has_what_its_image_says(cx: Arc<Context>) -> Outcome {
    let image = TestImage::make(&cx, "configured")
        .await?
        .import(&cx, "configured")
        .await?;
    let mut spec = cx.spec();
    spec.image = image;
    spec.command = Some(
        ["/bin/sh", "-c", "echo $FROM_IMAGE $ADDED; pwd"]
            .map(str::to_owned)
            .to_vec(),
    );
    spec.env = [("ADDED", "too")].into_iter().collect();
    same(
        "a container with a command",
        cx.output("command", &spec).await?,
        "yes too\n/from-image\n",
    )?;

    spec.entrypoint = Some(["/bin/sh", "-c"].map(str::to_owned).to_vec());
    spec.command = Some(vec!["echo $FROM_IMAGE".to_owned()]);
    spec.env = [("FROM_IMAGE", "replaced")].into_iter().collect();
    same(
        "a container with an entry point and a command",
        cx.output("both", &spec).await?,
        "replaced\n",
    )?;

    // An entry point alone drops the image's command: `cat` of nothing prints nothing.
    spec.entrypoint = Some(vec!["/bin/cat".to_owned()]);
    spec.command = None;
    same(
        "a container with an entry point alone",
        cx.output("entrypoint", &spec).await?,
        "",
    )?;

    // Named in the image's own files and nowhere else.
    let volume = open_volume(&cx, &mut spec).await?;
    spec.entrypoint = Some(["/bin/sh", "-c", "echo me > /who/open/me"].map(str::to_owned).to_vec());
    for (name, user, owner) in [
        ("by-name", "tester", (4321, 8765)),
        ("by-names", "tester:testers", (4321, 5678)),
    ] {
        spec.user = Some(user.parse()?);
        cx.output(name, &spec).await?;
        owned_by(&cx, &volume, user, owner).await?;
        let mut clean = cx.shell("rm /who/open/me");
        clean.mounts.clone_from(&spec.mounts);
        cx.output(&format!("clean-{name}"), &clean).await?;
    }
    Ok(())
}

/// Mounts a new volume at `/who`, in whose `open` everybody may write.
async fn open_volume(cx: &Context, spec: &mut ContainerSpec) -> Outcome<VolumeId> {
    let volume = cx.volume("who").await?;
    spec.mounts.push(cx.mount(&volume, "/who")?);
    let open = Entry::dir("open").mode(0o777);
    cx.driver
        .write_volume(&volume, &VolumePath::root(), stream::once(pack(&[open])))
        .await?;
    Ok(volume)
}

/// Checks whose `open/me` is.
async fn owned_by(cx: &Context, volume: &VolumeId, user: &str, owner: (u64, u64)) -> Outcome {
    let path = VolumePath::new("open/me")?;
    let entries = crate::tarball::unpack(cx.driver.read_volume(volume, &[path]).await?).await?;
    let owners: Vec<_> = entries.iter().map(|entry| (entry.uid, entry.gid)).collect();
    holds(
        owners == [owner],
        format!("a file of {user} belongs to {owner:?}: {owners:?}"),
    )
}

async fn an_images_entry_point_user_and_volumes_hold(cx: Arc<Context>) -> Outcome {
    let image = TestImage::make(&cx, "declared")
        .await?
        .with("Entrypoint", json!(["/bin/sh", "-c"]))?
        .with(
            "Cmd",
            json!(["echo me > /who/open/me; echo more >> /kept/file; cat /kept/file"]),
        )?
        .with("User", json!("tester:testers"))?
        .with("Volumes", json!({"/kept": {}}))?
        .import(&cx, "declared")
        .await?;
    let mut spec = cx.spec();
    spec.image = image;
    let volume = open_volume(&cx, &mut spec).await?;
    same("the first", cx.output("first", &spec).await?, "kept\nmore\n")?;
    owned_by(&cx, &volume, "tester:testers", (4321, 5678)).await?;
    same("the second", cx.output("second", &spec).await?, "kept\nmore\n")?;
    // What stands after the image's entry point.
    spec.command = Some(vec!["echo $FROM_IMAGE".to_owned()]);
    same(
        "a container with a command",
        cx.output("command", &spec).await?,
        "yes\n",
    )
}
