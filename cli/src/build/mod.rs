//! `orchestra build`: a directory of this machine, built into an image by an engine that need not be on it.
//!
//! The directory goes to the builder as a tar that is read while it is sent; all else is the same `image.build` as a
//! pipeline's. Progress goes to standard error, so that standard output has the result alone.

mod describe;
mod event;
mod output;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use orchestra::{ByteStream, ErrorKind, Job, JobId, LogChunk, SharedDriver};
use orchestra_image_build::{BuildError, BuildResult, ImageBuild};
use orchestra_pipelines::{Data, Status, StepKind};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::describe::describe;
use self::event::{End, Kind, Teller};
pub(crate) use self::output::{AlsoTarget, Destination};
use crate::args::BuildArgs;
use crate::config::Config;
use crate::context::Ignore;
use crate::exit::{Exit, Failure};
use crate::progress::{Display, Log, WAITING};
use crate::run::{exit, tell_kept};
use crate::{context, drivers, interrupt, log, secrets};

/// Where the context stands, in the working directory.
const CONTEXT: &str = "context";
/// How often it is told how much has been sent.
const TOLD_EVERY: Duration = Duration::from_millis(100);

pub(crate) async fn run(args: BuildArgs) -> Result<Exit, Failure> {
    let config = Config::load(&args.engine)?;
    let id = JobId::unique();
    let secrets = secrets::open(&config.secrets, &args.secrets, "build")?;
    log::redact_by(&secrets);
    let mut build = describe(&args, &config)?;
    let ignore = match &build.dockerfile {
        Some(dockerfile) if !describe::is_read_by_others(&build) => Ignore::of(&args.dir, dockerfile),
        _ => Ignore::default(),
    };
    orchestra_pipelines::log_in(&mut build, &secrets).await?;
    let driver = drivers::connect(&config, Some(secrets.clone())).await?;
    if !build.rootless && config.image_build.is_rootless(&driver).await? {
        build = build.rootless();
    }
    if !build.rootless {
        config.privileges().check_image(&build.image)?;
    }

    let cancel = CancellationToken::new();
    let display = Display::start(args.show, Log::Stderr, cancel.clone());
    let interrupts = interrupt::listen(cancel.clone(), driver.clone(), display.jobs(), display.notes())?;
    let teller = Teller {
        events: display.events(),
        name: build.name.clone(),
        secrets: secrets.job(&id),
    };

    let (status, built) = in_job(driver, &config, id.clone(), &args, (build, ignore), &teller, &cancel).await;

    drop((interrupts, teller));
    display.finish().await;
    if args.keep {
        tell_kept(&id);
    }
    match built {
        Ok(built) if !args.show.json => {
            // Who does not read the answer has the exit code.
            writeln!(io::stdout(), "ref: {}\ndigest: {}", built.reference, built.digest).ok();
            Ok(Exit::Success)
        }
        Err(BuildError::Context { source, .. }) if source.kind() == ErrorKind::Io => Ok(Exit::BadInput),
        _ => Ok(exit(status)),
    }
}

/// The build as a job of its own, which is gone when this returns.
async fn in_job(
    driver: SharedDriver,
    config: &Config,
    id: JobId,
    args: &BuildArgs,
    build: (ImageBuild, Ignore),
    teller: &Teller,
    cancel: &CancellationToken,
) -> (Status, Result<BuildResult, BuildError>) {
    let began = Instant::now();
    teller.tell(Kind::RunStarted { run_id: id.clone() }).await;
    teller
        .tell(Kind::StepStarted {
            kind: StepKind::BuildImage,
        })
        .await;
    let (events, happened) = mpsc::channel(WAITING);
    let watching = tokio::spawn(watch(happened, |event| Kind::Engine(Box::new(event)), teller.clone()));
    let job = Job::builder(driver)
        .id(id)
        .resumable(args.keep)
        .grace(config.grace)
        .cancel_with(cancel)
        .events(events)
        .build();

    let outcome = send_and_build(&job, args, build, teller).await;
    for message in teller.secrets.warnings() {
        teller.tell(Kind::Warning { message }).await;
    }
    let end = End::of(&outcome, began.elapsed());
    let status = end.status;
    teller.tell(Kind::StepFinished { end: Box::new(end) }).await;
    if args.keep {
        job.keep();
    } else if let Err(error) = job.end().await {
        let message = format!("not everything was removed: {error}; `orchestra gc` does it later");
        teller.tell(Kind::Warning { message }).await;
    }
    drop(job);
    watching.await.ok();
    teller
        .tell(Kind::RunFinished {
            status,
            duration: began.elapsed(),
        })
        .await;
    (status, outcome)
}

async fn send_and_build(
    job: &Job,
    args: &BuildArgs,
    (mut build, ignore): (ImageBuild, Ignore),
    teller: &Teller,
) -> Result<BuildResult, BuildError> {
    output::add(job, &mut build, &args.outputs).await?;
    output::add_targets(job, &mut build, &args.additional_targets).await?;
    let additional = build.additional_targets.iter().map(|of| &of.output);
    let volumes: Vec<_> = build
        .outputs
        .iter()
        .chain(additional)
        .map(|output| output.volume.clone())
        .collect();
    let additional = args.additional_targets.iter().map(AlsoTarget::destination);
    let destinations: Vec<_> = args.outputs.iter().cloned().chain(additional).collect();
    let (output, written) = mpsc::channel(WAITING);
    let (events, happened) = mpsc::channel(WAITING);
    let as_output = |chunk: LogChunk| Kind::Output {
        stream: chunk.stream,
        data: Data(chunk.bytes),
    };
    let sending = TaskTracker::new();
    if build.options.context_url.is_none() {
        let (dir, teller, sending) = (args.dir.clone(), teller.clone(), sending.clone());
        build = build.context_of(move || {
            let (context, sent) = context(&dir, ignore.clone(), teller.clone());
            sending.spawn(sent);
            context
        });
    }
    let written = tokio::spawn(watch(written, as_output, teller.clone()));
    let happened = tokio::spawn(watch(happened, Kind::Build, teller.clone()));
    let built = build.output(output).events(events).run(job).await;
    // Everything that was said comes before the end.
    written.await.ok();
    happened.await.ok();
    sending.close();
    sending.wait().await;
    let built = built?;
    output::save(job, &volumes, &destinations).await?;
    Ok(built)
}

/// The context, which is never whole in memory, and what tells how much of it was sent until it was, or is dropped.
fn context(dir: &Path, ignore: Ignore, teller: Teller) -> (ByteStream, impl Future<Output = ()> + Send + 'static) {
    let (skip, mut skipped) = mpsc::unbounded_channel::<PathBuf>();
    let tar = context::tar(dir.to_owned(), ignore, move |path| {
        skip.send(path.to_owned()).ok();
    });
    let left_out = |path: PathBuf| Kind::Warning {
        message: format!(
            "{} is neither file, directory nor link; it is left out of the context",
            path.display()
        ),
    };
    let sent = Arc::new(AtomicU64::new(0));
    let (counter, (whole, mut ended)) = (sent.clone(), oneshot::channel());
    let counted = tar
        .inspect(move |piece| {
            let size = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            counter.fetch_add(size, Ordering::Relaxed);
        })
        .chain(stream::once(async move { whole.send(()).ok() }).filter_map(async |_| None));
    let sending = async move {
        let bytes = || sent.load(Ordering::Relaxed);
        let mut clock = tokio::time::interval(TOLD_EVERY);
        let whole = loop {
            tokio::select! {
                whole = &mut ended => break whole.is_ok(),
                Some(path) = skipped.recv() => teller.tell(left_out(path)).await,
                _ = clock.tick() => teller.tell(Kind::Sending { bytes: bytes() }).await,
            }
        };
        while let Ok(path) = skipped.try_recv() {
            teller.tell(left_out(path)).await;
        }
        if whole {
            teller.tell(Kind::Sent { bytes: bytes() }).await;
        }
    };
    (counted.boxed(), sending)
}

/// Passes on what comes from a channel.
async fn watch<T>(mut from: mpsc::Receiver<T>, as_kind: impl Fn(T) -> Kind, teller: Teller) {
    while let Some(item) = from.recv().await {
        teller.tell(as_kind(item)).await;
    }
}
