//! Engines that die or hang, each on an engine of the case's own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future;
use futures_util::{StreamExt, stream as streams};
use orchestra::layer::{Deadlines, Layered, Timeouts};
use orchestra::{
    ContainerId, ErrorKind, ExitStatus, ImageRef, NetworkMode, PullImage, SharedDriver, VolumePath, VolumeSpec, stream,
};
use orchestra_volumes::ExactVolumes;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same, within};
use crate::context::{Context, collect, text};
use crate::image::TestImage;
use crate::settings::{Settings, ThrowawayEngine};
use crate::suite::Case;
use crate::tarball::{END, Entry, file_header, pack};

pub(super) const CASES: &[Case] = &[
    case!(an_engine_that_dies_interrupts_whoever_waits, "A daemon that dies while it is waited for, read from or executed in ends each in an error.", requires throwaway),
    case!(an_engine_that_died_is_unreachable, "After an engine died, calls fail with `Unreachable` and `info` still tells.", requires throwaway),
    case!(an_engine_that_is_restarted_is_gone_on_with, "A daemon that is restarted while it is waited for, read from, given an image, told to fetch one, and while a container reads its standard input: each goes on, or ends in `Interrupted`; asked again, a container's log and exit are told, none has taken half of its input for all of it, and the driver is as good as new.", requires throwaway, deadlines 2),
    case!(an_engine_that_hangs_ends_in_a_deadline, "With deadlines, calls to an engine that does not answer end in `DeadlineExceeded`.", requires throwaway),
    case!(an_engine_that_hung_can_be_used_again, "A call that was abandoned on a hanging engine leaves the driver usable.", requires throwaway),
    case!(a_socket_that_never_answers_is_no_hang, "Where something listens and never answers, connecting ends in `DeadlineExceeded`.", requires silent),
    case!(a_full_disk_is_told, "Where an engine's disk is full, writing a volume and importing an image end in an error, `DiskFull` as far as it can tell, and what can't be removed then is told.", requires small_disk, deadlines 2),
];

fn throwaway(settings: &Settings) -> Option<String> {
    settings
        .throwaway
        .is_none()
        .then(|| "the settings have no engine that may be killed".to_owned())
}

/// After an engine's death everything has to end within this.
const SOON: Duration = Duration::from_secs(20);

/// What a lost connection is called: in the middle of an answer, and when the next one is asked for.
const LOST: &[ErrorKind] = &[ErrorKind::Interrupted, ErrorKind::Unreachable];

async fn engine(cx: &Context) -> Outcome<(Box<dyn ThrowawayEngine>, SharedDriver)> {
    let start = cx
        .settings
        .throwaway
        .clone()
        .ok_or_else(|| Failure::new("the settings have no such engine"))?;
    let engine = start().await?;
    let driver = engine.connect().await?;
    Ok((engine, driver))
}

async fn sleeper(cx: &Context, driver: &SharedDriver) -> Outcome<ContainerId> {
    let id = cx.id("sleeper");
    driver.create_container(&id, &cx.sleeper()).await?;
    driver.start_container(&id, None).await?;
    Ok(id)
}

async fn an_engine_that_dies_interrupts_whoever_waits(cx: Arc<Context>) -> Outcome {
    let (engine, driver) = engine(&cx).await?;
    let id = sleeper(&cx, &driver).await?;
    let mut logs = driver.logs(&id, true).await?;
    let first = within(SOON, "the container's first output", logs.next()).await?;
    first.ok_or_else(|| Failure::new("the log ended before the container wrote"))??;
    let mut exec = None;
    if driver.info().capabilities.exec {
        exec = Some(
            driver
                .exec(&id, &orchestra::ExecSpec::new(["sleep", "300"]), None)
                .await?,
        );
    }
    let waiting = tokio::spawn({
        let (driver, id) = (driver.clone(), id.clone());
        async move { driver.wait_container(&id).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    engine.kill().await?;
    let waited = within(SOON, "the end of waiting", waiting).await?;
    let waited = waited.map_err(|error| Failure::new(error.to_string()))?;
    fails("waiting on a dead engine", waited, LOST)?;
    match within(SOON, "the end of the log", logs.next()).await? {
        Some(answer) => fails("a log on a dead engine", answer, LOST).map(|_| ())?,
        None => return Err(Failure::new("a log that was cut off ended as if it were whole")),
    }
    same("what comes after the log's error", logs.next().await.is_none(), true)?;
    if let Some(mut exec) = exec {
        match within(SOON, "the end of the exec", exec.next()).await? {
            Some(answer) => fails("an exec on a dead engine", answer, LOST).map(|_| ())?,
            None => return Err(Failure::new("an exec that was cut off ended as if it were whole")),
        }
    }
    Ok(())
}

async fn an_engine_that_died_is_unreachable(cx: Arc<Context>) -> Outcome {
    let (engine, driver) = engine(&cx).await?;
    driver.ping().await?;
    let before = driver.info().clone();
    engine.kill().await?;
    let dead = &[ErrorKind::Unreachable];
    // A connection that was kept may be found dead first.
    let _ = within(SOON, "the first ping", driver.ping()).await?;
    fails("ping", within(SOON, "a ping", driver.ping()).await?, dead)?;
    fails("list", within(SOON, "a list", driver.list(None)).await?, dead)?;
    let created = within(
        SOON,
        "create_container",
        driver.create_container(&cx.id("late"), &cx.shell("true")),
    )
    .await?;
    let error = fails("create_container", created, dead)?;
    holds(error.hint().is_some(), "the error says what to do")?;
    let volume = cx.volume_id("late");
    let tar = stream::once(pack(&[Entry::file("a", "a")]));
    let written = within(
        SOON,
        "write_volume",
        driver.write_volume(&volume, &VolumePath::root(), tar),
    )
    .await?;
    fails("write_volume", written, LOST)?;
    same("what info tells", driver.info(), &before)
}

async fn an_engine_that_is_restarted_is_gone_on_with(cx: Arc<Context>) -> Outcome {
    let (engine, driver) = engine(&cx).await?;
    let id = cx.id("survivor");
    // Long enough to be seen running by an engine that starts again.
    let spec = cx.shell("echo one; sleep 9; echo two; exit 6");
    driver.create_container(&id, &spec).await?;
    let mut logs = driver.logs(&id, true).await?;
    driver.start_container(&id, None).await?;
    let first = within(SOON, "the container's first output", logs.next()).await?;
    first.ok_or_else(|| Failure::new("the log ended before the container wrote"))??;
    let waiting = tokio::spawn({
        let (driver, id) = (driver.clone(), id.clone());
        async move { driver.wait_container(&id).await }
    });
    let (importing, half, go_on) = import_that_stops_half_way(&cx, &driver).await?;
    within(SOON, "half of an import", half).await?.ok();
    let pull = StalledPull::begin(&cx, &driver).await?;
    let reader = Reader::begin(&cx, &driver).await?;
    let unseen = cx.id("unseen");
    if cx.settings.survives_restart {
        driver
            .create_container(&unseen, &cx.shell("sleep 1; echo end; exit 7"))
            .await?;
        driver.start_container(&unseen, None).await?;
        engine.kill().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    engine.restart().await?;
    drop(go_on);
    pull.ends(&driver).await?;
    reader.ends(&driver).await?;

    let ends_or_breaks = |what: &str, answer: orchestra::Result<()>| match answer {
        Ok(()) => Ok(()),
        Err(error) => fails(format!("{what} over a restart"), Err::<(), _>(error), LOST).map(drop),
    };
    let waited = within(2 * SOON, "the end of waiting", waiting).await?;
    let waited = waited.map_err(|error| Failure::new(error.to_string()))?;
    ends_or_breaks("waiting", waited.map(drop))?;
    let rest = async {
        while let Some(chunk) = logs.next().await {
            chunk?;
        }
        Ok(())
    };
    ends_or_breaks("a log", within(2 * SOON, "the end of the log", rest).await?)?;
    let imported = within(2 * SOON, "the end of the import", importing).await?;
    ends_or_breaks("an import", imported.map_err(|error| Failure::new(error.to_string()))?)?;

    // An engine that keeps its containers alive tells how this one ended; another one, that it was ended.
    let exit = within(SOON, "waiting again", driver.wait_container(&id)).await??;
    let late = within(SOON, "the log, read late", collect(driver.logs(&id, true).await?)).await??;
    let late = text(&late.stdout);
    if cx.settings.survives_restart {
        same(
            "the exit of a container that outlives its daemon",
            exit,
            ExitStatus::Code(6),
        )?;
    }
    if cx.settings.survives_restart {
        let exit = within(SOON, "waiting for what has ended", driver.wait_container(&unseen)).await??;
        same("the exit of a container that nobody saw end", exit, ExitStatus::Code(7))?;
        let log = within(SOON, "its log", collect(driver.logs(&unseen, true).await?)).await??;
        same(
            "the log of a container that nobody saw end",
            text(&log.stdout).as_str(),
            "end\n",
        )?;
        driver.remove_container(&unseen).await?;
    }
    match exit {
        ExitStatus::Code(6) => same("the log of a container that lived on", late.as_str(), "one\ntwo\n")?,
        _ => holds(
            late.starts_with("one\n"),
            format!("the log is there: {late:?}, {exit:?}"),
        )?,
    }
    let again = sleeper(&cx, &driver).await?;
    driver.remove_container(&again).await?;
    driver.remove_container(&id).await?;
    driver.remove_image(&cx.image("half")).await?;
    let report = driver.end_job(&cx.job).await?;
    holds(report.remaining.is_empty(), format!("nothing stays: {report:?}"))?;
    same("what is listed", driver.list(Some(&cx.job)).await?, vec![])
}

/// A container that has read one half of its input.
struct Reader {
    id: ContainerId,
    input: tokio::sync::mpsc::Sender<orchestra::Result<Bytes>>,
}

impl Reader {
    async fn begin(cx: &Context, driver: &SharedDriver) -> Outcome<Self> {
        let id = cx.id("reader");
        let mut spec = cx.shell("read half; echo $half; read half || exit 3; read more && exit 4; exit 0");
        spec.stdin = true;
        driver.create_container(&id, &spec).await?;
        let mut logs = driver.logs(&id, true).await?;
        let (input, taken) = tokio::sync::mpsc::channel(1);
        let stdin = tokio_stream::wrappers::ReceiverStream::new(taken).boxed();
        driver.start_container(&id, Some(stdin)).await?;
        input.send(Ok(Bytes::from_static(b"one\n"))).await.ok();
        let answer = within(SOON, "a container's answer to its input", logs.next()).await?;
        let answer = answer.ok_or_else(|| Failure::new("the log ended before the answer"))??;
        same("what it has read", &answer.bytes[..], &b"one\n"[..])?;
        Ok(Self { id, input })
    }

    /// The other half comes. Whoever does not get it has to be ended: it would wait for ever, or take the half for all.
    async fn ends(self, driver: &SharedDriver) -> Outcome {
        let Self { id, input } = self;
        input.send(Ok(Bytes::from_static(b"two\n"))).await.ok();
        drop(input);
        let ended = async {
            let mut ended = driver.wait_container(&id).await;
            // The engine is back by now: who still says that something broke means the input.
            for _ in 0..20 {
                match &ended {
                    Err(error) if LOST.contains(&error.kind()) => tokio::time::sleep(Duration::from_millis(100)).await,
                    _ => break,
                }
                ended = driver.wait_container(&id).await;
            }
            ended
        };
        match within(2 * SOON, "the end of a container that reads its input", ended).await? {
            Ok(exit) => holds(
                !matches!(exit, ExitStatus::Code(1..)),
                format!("a container got all of its input, or was ended, or its exit is not told: {exit:?}"),
            )?,
            Err(error) => fails(
                "waiting for a container whose input broke off",
                Err::<(), _>(error),
                LOST,
            )
            .map(drop)?,
        }
        driver.remove_container(&id).await?;
        Ok(())
    }
}

/// A pull from a registry that says nothing to the first question it is asked.
struct StalledPull {
    image: ImageRef,
    pulled: JoinHandle<orchestra::Result<()>>,
    registry: AbortOnDropHandle<()>,
    container: ContainerId,
}

/// A registry for an engine that has a loopback of its own. Where it is this process's, the port is taken, and this process
/// is who is asked.
const SILENT_REGISTRY: &str = r#"
nc -l -p PORT -e /bin/sh -c 'echo asked >&2; exec sleep 120' &
while ! grep -q ":HEX 0*:0000 0A" /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done
echo listening
wait"#;

impl StalledPull {
    /// Returns when the registry was asked: in this process, or in a container beside the engine.
    async fn begin(cx: &Context, driver: &SharedDriver) -> Outcome<Self> {
        let broken = |error: std::io::Error| Failure::new(format!("a listener on loopback: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(broken)?;
        let address = listener.local_addr().map_err(broken)?;
        let port = address.port();
        let container = cx.id("silent-registry");
        let mut spec = cx.shell(
            &SILENT_REGISTRY
                .replace("PORT", &port.to_string())
                .replace("HEX", &format!("{port:04X}")),
        );
        spec.network = NetworkMode::Host;
        let mut beside = None;
        if driver.info().capabilities.host_network {
            driver.create_container(&container, &spec).await?;
            let mut lines = driver.logs(&container, true).await?;
            driver.start_container(&container, None).await?;
            within(SOON, "a registry beside the engine", lines.next()).await?;
            beside = Some(lines);
        }
        let listens = beside.is_some();
        let asked_beside = async {
            match &mut beside {
                // The first line was that it listens.
                Some(lines) => drop(lines.next().await),
                None => future::pending().await,
            }
        };
        let image: ImageRef = format!("{address}/stalled/{}:1", cx.job).parse()?;
        let (asked, was_asked) = oneshot::channel();
        let registry = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut held: Vec<_> = listener.accept().await.into_iter().collect();
            asked.send(()).ok();
            while let Ok(connection) = listener.accept().await {
                held.push(connection);
            }
        }));
        let (driver, mut pull) = (driver.clone(), PullImage::new(image.clone()));
        pull.insecure = driver.info().capabilities.insecure_pull;
        let pulled = tokio::spawn(async move {
            let mut progress = driver.pull_image(&pull).await?;
            while let Some(event) = progress.next().await {
                event?;
            }
            Ok(())
        });
        let begun = async {
            tokio::select! {
                _ = was_asked => {}
                () = asked_beside => {}
                // An engine without a network asks nobody.
                () = tokio::time::sleep(Duration::from_secs(1)), if !listens => {}
            }
        };
        within(SOON, "the first question to a registry", begun).await?;
        holds(
            pulled.is_finished() != listens,
            "a pull whose registry says nothing is under way",
        )?;
        Ok(Self {
            image,
            pulled,
            registry,
            container,
        })
    }

    /// The registry goes away, and with it the pull.
    async fn ends(self, driver: &SharedDriver) -> Outcome {
        drop(self.registry);
        driver.remove_container(&self.container).await?;
        let pulled = within(2 * SOON, "the end of the pull", self.pulled).await?;
        let pulled = pulled.map_err(|error| Failure::new(error.to_string()))?;
        let kinds = [LOST, &[ErrorKind::Registry, ErrorKind::ImageNotFound]].concat();
        fails("a pull over a restart", pulled, &kinds)?;
        let exists = within(SOON, "image_exists", driver.image_exists(&self.image)).await??;
        same("whether an image that did not come is there", exists, false)
    }
}

/// An import of which one half has come; the other comes when the last of the answer is dropped.
async fn import_that_stops_half_way(
    cx: &Arc<Context>,
    driver: &SharedDriver,
) -> Outcome<(
    JoinHandle<orchestra::Result<()>>,
    oneshot::Receiver<()>,
    oneshot::Sender<()>,
)> {
    let (seen, half) = oneshot::channel();
    let (go_on, rest_may_come) = oneshot::channel::<()>();
    let image = TestImage::make(cx, "half").await?;
    let mut first = TestImage::layout(&[&image], "half.test/name:1");
    let second = first.split_off(first.len() / 2);
    let second = async move {
        seen.send(()).ok();
        rest_may_come.await.ok();
        Ok(second)
    };
    let archive = streams::once(async { Ok(first) }).chain(streams::once(second)).boxed();
    let (driver, name) = (driver.clone(), cx.image("half"));
    let importing = tokio::spawn(async move {
        if driver.info().capabilities.import_image {
            return driver.import_image(&name, archive).await;
        }
        Ok(())
    });
    Ok((importing, half, go_on))
}

async fn an_engine_that_hangs_ends_in_a_deadline(cx: Arc<Context>) -> Outcome {
    let (engine, driver) = engine(&cx).await?;
    let id = sleeper(&cx, &driver).await?;
    let second = Duration::from_secs(1);
    let mut deadlines = Deadlines::default();
    (deadlines.call, deadlines.work, deadlines.silence) = (second, second, second);
    (deadlines.heartbeat, deadlines.ping) = (second, second);
    let driver = Layered::wrap(driver, Timeouts(deadlines));
    engine.pause().await?;
    let late = &[ErrorKind::DeadlineExceeded];
    fails("ping", within(SOON, "a ping", driver.ping()).await?, late)?;
    fails("list", within(SOON, "a list", driver.list(None)).await?, late)?;
    fails(
        "wait_container",
        within(SOON, "waiting", driver.wait_container(&id)).await?,
        late,
    )?;
    let created = within(
        SOON,
        "create_container",
        driver.create_container(&cx.id("late"), &cx.shell("true")),
    )
    .await?;
    fails("create_container", created, late)?;
    engine.resume().await?;
    Ok(())
}

async fn an_engine_that_hung_can_be_used_again(cx: Arc<Context>) -> Outcome {
    let (engine, driver) = engine(&cx).await?;
    driver.ping().await?;
    engine.pause().await?;
    for _ in 0..3 {
        let answer = tokio::time::timeout(Duration::from_millis(300), driver.ping()).await;
        holds(
            !matches!(answer, Ok(Ok(()))),
            "an engine that hangs does not answer a ping",
        )?;
    }
    engine.resume().await?;
    within(SOON, "a ping afterwards", driver.ping()).await??;
    let id = sleeper(&cx, &driver).await?;
    driver.remove_container(&id).await?;
    Ok(())
}

fn silent(settings: &Settings) -> Option<String> {
    let missing = settings.silent.is_none();
    missing.then(|| "the settings have no endpoint that never answers".to_owned())
}

async fn a_socket_that_never_answers_is_no_hang(cx: Arc<Context>) -> Outcome {
    let connect = cx.settings.silent.clone();
    let connect = connect.ok_or_else(|| Failure::new("the settings have no such endpoint"))?;
    let mut deadlines = Deadlines::default();
    deadlines.ping = Duration::from_secs(1);
    let answer = within(Duration::from_secs(60), "connecting", async {
        let driver = connect().await?;
        Layered::wrap(driver, Timeouts(deadlines)).ping().await
    });
    let error = fails(
        "an engine that never answers",
        answer.await?,
        &[ErrorKind::DeadlineExceeded],
    )?;
    holds(error.hint().is_some(), "the error says what to do")
}

fn small_disk(settings: &Settings) -> Option<String> {
    let missing = settings.throwaway.is_none() || settings.small_disk.is_none();
    missing.then(|| "the settings have no engine with a small disk".to_owned())
}

async fn a_full_disk_is_told(cx: Arc<Context>) -> Outcome {
    overfilled(&cx, None).await?;
    overfilled(&cx, Some(false)).await?;
    overfilled(&cx, Some(true)).await?;
    overfilled_by_an_image(&cx).await
}

async fn overfilled_by_an_image(cx: &Context) -> Outcome {
    let (_engine, driver) = engine(cx).await?;
    if !driver.info().capabilities.import_image {
        return Ok(());
    }
    let layer = |size: u64| {
        let content = Bytes::from(vec![1; usize::try_from(size).unwrap_or(usize::MAX)]);
        pack(&[Entry::file("content", content)])
    };
    let name = cx.image("large");
    let import = async |size: u64| {
        let archive = TestImage::layout(&[&TestImage::of(layer(size), None)], "large.test/name:1");
        driver.import_image(&name, stream::once(archive)).await
    };
    let answer = import(cx.settings.small_disk.unwrap_or_default()).await;
    // `Interrupted` from one whose words are lost with the stream that it ends.
    let kinds = &[ErrorKind::DiskFull, ErrorKind::Engine, ErrorKind::Interrupted];
    let error = fails("an image that does not fit", answer, kinds)?;
    holds(
        error.kind() != ErrorKind::Engine || error.to_string().contains("space"),
        format!("the error says that the disk is full: {error}"),
    )?;
    let exists = driver.image_exists(&name).await?;
    same("whether an image that did not fit is there", exists, false)?;
    import(1 << 10).await?;
    driver.remove_image(&name).await?;
    Ok(())
}

/// By the driver's own calls, or exactly: past the engine where there is a way, or through it.
async fn overfilled(cx: &Context, exactly: Option<bool>) -> Outcome {
    const PIECE: u64 = 1 << 20;
    let (_engine, driver) = engine(cx).await?;
    if exactly.is_some() && ExactVolumes::missing(&driver.info().capabilities).is_some() {
        return Ok(());
    }
    let (volume, root) = (cx.volume_id("full"), VolumePath::root());
    driver.create_volume(&volume, &VolumeSpec::new(cx.labels())).await?;
    let size = cx.settings.small_disk.unwrap_or_default().next_multiple_of(PIECE);
    let content = Bytes::from(vec![1; PIECE as usize]);
    let content = streams::iter((0..size / PIECE).map(move |_| Ok(content.clone())));
    let tar = stream::once(file_header("large", size)).chain(content);
    let tar = tar.chain(stream::once(END)).boxed();
    if let Some(past) = exactly {
        let mut volumes = ExactVolumes::new(driver.clone(), cx.job.clone())?;
        if !past {
            volumes = volumes.through_engine();
        }
        let answer = volumes.write(&volume, &root, tar).await;
        // `Engine` from one that has no room left to note how a process ended (podman 5.4.2).
        let kinds = &[ErrorKind::DiskFull, ErrorKind::Engine];
        fails("what does not fit, exactly", answer, kinds)?;
    } else {
        let answer = driver.write_volume(&volume, &root, tar).await;
        let kinds = &[ErrorKind::DiskFull, ErrorKind::Engine, ErrorKind::Interrupted];
        fails("what does not fit", answer, kinds)?;
    }
    // An engine that keeps its records on the same disk may be unable to remove a thing (5.4.2 of one is): that is told, then.
    let report = driver.end_job(&cx.job).await?;
    let left = driver.list(Some(&cx.job)).await?;
    same("what is left, beside what is told", left.len(), report.remaining.len())?;
    if left.is_empty() {
        driver.create_volume(&volume, &VolumeSpec::new(cx.labels())).await?;
        let small = stream::once(pack(&[Entry::file("small", "fits")]));
        driver.write_volume(&volume, &root, small).await?;
        driver.end_job(&cx.job).await?;
    }
    Ok(())
}
