//! Images from registries.

use std::sync::Arc;

use futures_util::StreamExt;
use orchestra::{
    Credentials, Error, ErrorKind, EventKind, ImageRef, Job, Platform, PullEvent, PullImage, Result, Task,
};

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same};
use crate::context::{Context, Unlabelled};
use crate::image::TestImage;
use crate::settings::{Registry, Settings};
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(a_pulled_image_exists_and_runs, "When a pull ends without an error, the image exists; its progress is seen.", requires registry),
    case!(a_pull_asks_the_registry_even_for_an_image_that_is_there, "`pull_image` fetches, whether or not the engine has the image.", requires registry),
    case!(of_several_platforms_the_one_that_is_asked_for_is_pulled, "Of an image of several platforms comes the one of `PullImage::platform`, or the engine's own; one that it lacks is an error.", requires registry),
    case!(an_image_that_went_away_is_pulled_again_by_the_same_job, "A `Job` pulls what the engine lacks, as often as it does, and tells of it.", requires registry),
    case!(an_image_that_the_registry_lacks_is_not_found, "A pull of what is not there fails with `ImageNotFound`, and names it.", requires registry),
    case!(a_pull_that_fails_in_the_middle_is_an_error, "A failure in the middle of a pull is an error of the stream.", requires registry),
    case!(
        a_registry_that_is_not_there_is_an_error,
        "A pull from where no registry listens fails."
    ),
    case!(a_private_image_is_pulled_with_credentials_alone, "Credentials go to the image's registry, and are kept nowhere.", requires private_registry),
    case!(wrong_credentials_are_refused, "A pull with wrong credentials fails, and tells nobody the password.", requires private_registry),
];

fn registry(settings: &Settings) -> Option<String> {
    settings
        .registry
        .is_none()
        .then(|| "the settings have no registry".to_owned())
}

fn private_registry(settings: &Settings) -> Option<String> {
    settings
        .private_registry
        .is_none()
        .then(|| "the settings have no registry with credentials".to_owned())
}

/// As far as engines tell them apart.
const REFUSED: &[ErrorKind] = &[ErrorKind::Unauthorized, ErrorKind::ImageNotFound, ErrorKind::Registry];

fn open(cx: &Context) -> Outcome<&dyn Registry> {
    cx.settings
        .registry
        .as_deref()
        .ok_or_else(|| Failure::new("the settings have no registry"))
}

fn private(cx: &Context) -> Outcome<&dyn Registry> {
    cx.settings
        .private_registry
        .as_deref()
        .ok_or_else(|| Failure::new("the settings have no registry"))
}

fn image(cx: &Context, registry: &dyn Registry, tag: &str) -> Outcome<ImageRef> {
    let image = ImageRef::new(format!("{}/conformance/{}:{tag}", registry.address(), cx.job))?;
    cx.remove_later(Unlabelled::Image(image.clone()));
    Ok(image)
}

fn pull_of(cx: &Context, image: &ImageRef, credentials: Option<Credentials>) -> PullImage {
    let mut pull = PullImage::new(image.clone());
    pull.credentials = credentials;
    // The test registries speak plain HTTP; an engine without this capability has to be set up for them.
    pull.insecure = cx.driver.info().capabilities.insecure_pull;
    pull
}

/// Pulls to the end.
async fn pull(cx: &Context, pull: &PullImage) -> Result<Vec<PullEvent>> {
    let mut events = Vec::new();
    let mut stream = cx.driver.pull_image(pull).await?;
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => events.push(event),
            Err(error) => {
                let after = stream.next().await.is_some();
                let last = if after {
                    Error::new(ErrorKind::Protocol, "an error was not the last item")
                } else {
                    error
                };
                return Err(last);
            }
        }
    }
    Ok(events)
}

async fn publish(cx: &Context, registry: &dyn Registry, image: &ImageRef, marker: &str) -> Outcome {
    let made = TestImage::make(cx, marker).await?;
    Ok(registry
        .publish(image, TestImage::layout(&[&made], image.as_str()))
        .await?)
}

async fn prints(cx: &Context, name: &str, image: &ImageRef, marker: &str) -> Outcome {
    let mut spec = cx.spec();
    spec.image = image.clone();
    same(
        "what the pulled image prints",
        cx.output(name, &spec).await?,
        format!("{marker}\n"),
    )
}

async fn a_pulled_image_exists_and_runs(cx: Arc<Context>) -> Outcome {
    let registry = open(&cx)?;
    let image = image(&cx, registry, "pulled")?;
    publish(&cx, registry, &image, "pulled").await?;
    same("image_exists before", cx.driver.image_exists(&image).await?, false)?;
    let events = pull(&cx, &pull_of(&cx, &image, None)).await?;
    holds(!events.is_empty(), "a pull's progress is seen")?;
    same("image_exists after", cx.driver.image_exists(&image).await?, true)?;
    prints(&cx, "pulled", &image, "pulled").await
}

async fn a_pull_asks_the_registry_even_for_an_image_that_is_there(cx: Arc<Context>) -> Outcome {
    let registry = open(&cx)?;
    let image = image(&cx, registry, "moving")?;
    for marker in ["before", "after"] {
        publish(&cx, registry, &image, marker).await?;
        pull(&cx, &pull_of(&cx, &image, None)).await?;
        prints(&cx, marker, &image, marker).await?;
        cx.driver.remove_container(&cx.id(marker)).await?;
    }
    Ok(())
}

async fn of_several_platforms_the_one_that_is_asked_for_is_pulled(cx: Arc<Context>) -> Outcome {
    let registry = open(&cx)?;
    let image = image(&cx, registry, "several")?;
    let own = &cx.driver.info().platform;
    // What is in it runs on this host all the same: only its configuration says otherwise.
    let other: Platform = if own.architecture == "s390x" {
        "linux/ppc64le"
    } else {
        "linux/s390x"
    }
    .parse()?;
    let (mine, foreign) = (
        TestImage::make(&cx, "mine").await?,
        TestImage::make(&cx, "foreign").await?,
    );
    let foreign = foreign.on(&other.architecture)?;
    let layout = TestImage::layout(&[&foreign, &mine], image.as_str());
    registry.publish(&image, layout).await?;
    for (name, marker, platform) in [
        ("nothing-said", "mine", None),
        ("other", "foreign", Some(&other)),
        ("own", "mine", Some(own)),
    ] {
        let mut asked = pull_of(&cx, &image, None);
        asked.platform = platform.cloned();
        pull(&cx, &asked).await?;
        let mut spec = cx.spec();
        (spec.image, spec.platform) = (image.clone(), platform.cloned());
        let printed = cx.output(name, &spec).await?;
        same(
            format!("what the image for {platform:?} prints"),
            printed,
            format!("{marker}\n"),
        )?;
        cx.driver.remove_container(&cx.id(name)).await?;
    }
    let mut asked = pull_of(&cx, &image, None);
    asked.platform = Some("linux/mips64le".parse()?);
    let kinds = &[ErrorKind::ImageNotFound, ErrorKind::Registry];
    fails(
        "a pull for a platform that the image lacks",
        pull(&cx, &asked).await,
        kinds,
    )
    .map(drop)
}

async fn an_image_that_went_away_is_pulled_again_by_the_same_job(cx: Arc<Context>) -> Outcome {
    let registry = open(&cx)?;
    let image = image(&cx, registry, "again")?;
    publish(&cx, registry, &image, "again").await?;
    let (events, mut told) = tokio::sync::mpsc::channel(1024);
    let job = Job::builder(cx.driver.clone())
        .id(cx.job.clone())
        .events(events)
        .build();
    job.keep();
    for name in ["first", "second"] {
        let mut task = Task::new(name, image.as_str())?.insecure(pull_of(&cx, &image, None).insecure);
        task.spec.network = cx.spec().network;
        let result = job.run(task).await?.success()?;
        same("what it prints", result.stdout.to_string(), "again\n".to_owned())?;
        cx.driver.remove_image(&image).await?;
    }
    drop(job);
    let mut pulls = Vec::new();
    while let Some(event) = told.recv().await {
        match event.kind {
            EventKind::PullStarted { .. } => pulls.push("started"),
            EventKind::PullFinished { .. } => pulls.push("finished"),
            _ => {}
        }
    }
    same("the pulls that are told", pulls, ["started", "finished"].repeat(2))
}

async fn an_image_that_the_registry_lacks_is_not_found(cx: Arc<Context>) -> Outcome {
    let image = image(&cx, open(&cx)?, "never-published")?;
    let error = fails(
        "a pull of nothing",
        pull(&cx, &pull_of(&cx, &image, None)).await,
        &[ErrorKind::ImageNotFound],
    )?;
    holds(!error.is_retryable(), "trying again does not help")?;
    same("image_exists", cx.driver.image_exists(&image).await?, false)
}

async fn a_pull_that_fails_in_the_middle_is_an_error(cx: Arc<Context>) -> Outcome {
    let registry = open(&cx)?;
    let image = image(&cx, registry, "broken")?;
    // The registry has all of it, and it is what the manifest says; only that the layer is no tar shows when it is unpacked.
    let broken = TestImage::of("this is not a layer\n".repeat(1000).into(), None);
    registry
        .publish(&image, TestImage::layout(&[&broken], image.as_str()))
        .await?;
    let answer = pull(&cx, &pull_of(&cx, &image, None)).await;
    fails(
        "a pull of a broken image",
        answer,
        &[ErrorKind::Registry, ErrorKind::Engine, ErrorKind::InvalidInput],
    )?;
    same("image_exists", cx.driver.image_exists(&image).await?, false)
}

async fn a_registry_that_is_not_there_is_an_error(cx: Arc<Context>) -> Outcome {
    // Port 1 of the engine's own loopback: nobody listens, and the answer comes at once.
    let image: ImageRef = "127.0.0.1:1/conformance/none:1".parse()?;
    let kinds = &[ErrorKind::Registry, ErrorKind::ImageNotFound];
    fails(
        "a pull from nowhere",
        pull(&cx, &pull_of(&cx, &image, None)).await,
        kinds,
    )?;
    same("image_exists", cx.driver.image_exists(&image).await?, false)
}

async fn a_private_image_is_pulled_with_credentials_alone(cx: Arc<Context>) -> Outcome {
    let registry = private(&cx)?;
    let image = image(&cx, registry, "private")?;
    publish(&cx, registry, &image, "private").await?;
    fails(
        "a pull without credentials",
        pull(&cx, &pull_of(&cx, &image, None)).await,
        REFUSED,
    )?;
    same("image_exists before", cx.driver.image_exists(&image).await?, false)?;
    pull(&cx, &pull_of(&cx, &image, registry.credentials().cloned())).await?;
    prints(&cx, "private", &image, "private").await?;
    cx.driver.remove_container(&cx.id("private")).await?;
    cx.driver.remove_image(&image).await?;
    let again = pull(&cx, &pull_of(&cx, &image, None)).await;
    fails("a pull without credentials after one with them", again, REFUSED)?;
    same("image_exists at last", cx.driver.image_exists(&image).await?, false)
}

async fn wrong_credentials_are_refused(cx: Arc<Context>) -> Outcome {
    let registry = private(&cx)?;
    let image = image(&cx, registry, "secret")?;
    publish(&cx, registry, &image, "secret").await?;
    let wrong = Credentials::new("nobody-at-all", "wrong-hunter2");
    let error = fails(
        "a pull with wrong credentials",
        pull(&cx, &pull_of(&cx, &image, Some(wrong))).await,
        REFUSED,
    )?;
    let shown = format!("{error:?}");
    holds(
        !shown.contains("hunter2"),
        format!("the password is not in the error: {shown}"),
    )?;
    same("image_exists", cx.driver.image_exists(&image).await?, false)
}
