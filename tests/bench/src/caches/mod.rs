//! Caches of volumes against `tar` and `zstd` of a directory on the same disk, and how much of the time is the volume's
//! transfer.

mod memory;
mod parts;
mod trees;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orchestra::{Job, Labels, Mount, NetworkMode, Task, VolumeId, VolumePath};
use orchestra_caches::{CacheEventKind, CachesLayer, CachesOptions, Persisted};
use orchestra_volumes::ExactVolumes;
use tokio::sync::mpsc;

use self::parts::{EXACT, fresh, key, label, persist_volume, shell, store_in, tar_of};
use crate::pairs::{median, time};
use crate::{Bench, Outcome};

pub(crate) use memory::part;

/// Measures on the directories that `--tree=DIR` names or, where none is named, on those that are made: `--only=NAME` is
/// one of them.
pub(crate) async fn all(bench: &mut Bench) -> Outcome<()> {
    let arguments = |flag: &str| -> Vec<String> {
        std::env::args()
            .filter_map(|arg| Some(arg.strip_prefix(flag)?.to_owned()))
            .collect()
    };
    let (named, only) = (arguments("--tree="), arguments("--only="));
    let work = Work::new()?;
    for tree in &named {
        one(bench, &work.0, Path::new(tree)).await?;
    }
    if !named.is_empty() {
        return Ok(());
    }
    for what in ["target", "node_modules", "buildkit"] {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == what) {
            continue;
        }
        let tree = work.0.join(what);
        match what {
            "target" => trees::cargo_target(&tree).await?,
            "node_modules" => trees::node_modules(&tree)?,
            _ => trees::buildkit_state(bench, &work.0, &tree).await?,
        };
        one(bench, &work.0, &tree).await?;
        fresh(&tree)?;
    }
    Ok(())
}

/// A directory that is removed at the end.
struct Work(PathBuf);

impl Work {
    fn new() -> Outcome<Self> {
        let folder = std::env::temp_dir().join(format!("orchestra-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

async fn one(bench: &mut Bench, work: &Path, tree: &Path) -> Outcome<()> {
    let job = Job::builder(bench.driver.clone()).build();
    let measured = of_a_volume(bench, &job, work, tree).await;
    job.end().await?;
    measured
}

async fn of_a_volume(bench: &mut Bench, job: &Job, work: &Path, tree: &Path) -> Outcome<()> {
    let what = tree.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (folder, anew) = (work.join("store"), work.join("store-anew"));
    let archive = work.join("archive.tar.zst");
    let theirs_out = work.join("their-out");
    let exact = EXACT.join("' '");
    let pack = format!(
        "tar '{exact}' --sparse --sort=name -C '{}' -cf - . | zstd -q -T0 -3 -f -o '{}'",
        tree.display(),
        archive.display()
    );
    let rounds = bench.rounds.clamp(3, 7);
    let volumes = ExactVolumes::new(bench.driver.clone(), job.id().clone())?;
    let root = VolumePath::root();
    let volume = job.create_volume("content").await?;
    volumes.write(&volume, &root, tar_of(tree)).await?;
    let persist = async |folder: &Path| persist_volume(folder, &volumes, &volume).await;

    let reset = || async { fresh(&folder) };
    let ours = || async { persist(&folder).await.map(drop) };
    let theirs = || shell(pack.clone());
    let row = format!("{what}: first persist of a volume");
    let table = &mut bench.table;
    table
        .compare_anew(&row, "tar | zstd -T0 -3", "≤ 1.0", rounds, reset, ours, theirs)
        .await?;
    fresh(&folder)?;
    let Persisted {
        sent: all,
        duration,
        waited,
        ..
    } = persist(&folder).await?;
    let first = store_in(&folder)?.get(&key()?).await?.ok_or("the cache is not there")?;
    let bytes = std::fs::metadata(&archive)?.len();
    table.figure(
        &format!("{what}: bytes of the first persist against `zstd -3` (target ≤ 1.05)"),
        format!(
            "{:.3} of {} MiB, from {} files and {} MiB of tar",
            all as f64 / bytes as f64,
            bytes >> 20,
            trees::files_in(tree)?.len(),
            first.size >> 20
        ),
    );

    table.figure(
        &format!("{what}: the library's share of a first persist"),
        format!(
            "{:.0} ms of {:.0} ms; for the rest it waits for the volume's transfer",
            milliseconds(duration.saturating_sub(waited)),
            milliseconds(duration)
        ),
    );

    fresh(&anew)?;
    persist(&anew).await?;

    // As a run does it: by the layer, which checks what it unpacks and looks at what became of it.
    let (events, mut told) = mpsc::channel(64);
    let layer = CachesLayer::new(bench.driver.clone(), store_in(&anew)?, CachesOptions::default()).events(events);
    let restoring = Job::builder(Arc::new(layer)).build();
    let label = Labels::from([label()?]);
    let number = Cell::new(0);
    let reset = || async {
        number.set(number.get() + 1);
        std::fs::create_dir_all(theirs_out.join(number.get().to_string()))?;
        // What the other side has left to be written is not to be paid for by this one. Nothing is removed before the end: ext4
        // makes files far more slowly where many were just removed, and which side meets that is chance.
        shell("sync".to_owned()).await
    };
    let ours = || async {
        let name = format!("out-{}", number.get());
        Ok(restoring.create_volume_with(&name, label.clone()).await.map(|_| ())?)
    };
    let theirs = || async {
        let out = theirs_out.join(number.get().to_string());
        let unpack = format!(
            "zstd -q -dc '{}' | tar '{exact}' -C '{}' -xpf -",
            archive.display(),
            out.display()
        );
        shell(unpack).await
    };
    let row = format!("{what}: restore of a volume");
    let table = &mut bench.table;
    table
        .compare_anew(&row, "zstd -d | tar x", "≤ 1.1", rounds, reset, ours, theirs)
        .await?;
    bench.driver.end_job(restoring.id()).await?;
    let restored = std::iter::from_fn(|| told.try_recv().ok())
        .filter(|event| matches!(event.kind, CacheEventKind::Restored { .. }))
        .count();
    if restored != rounds + 1 {
        return Err(format!("{restored} of {} volumes were restored", rounds + 1).into());
    }
    fresh(&theirs_out)?;
    std::fs::remove_file(&archive)?;

    let transfers = transfers(job, &volumes, &volume).await?.map(milliseconds);
    bench.table.figure(
        &format!("{what}: the volume's transfer alone"),
        format!("{:.0} ms out of it, {:.0} ms into it", transfers[0], transfers[1]),
    );
    fresh(&anew)?;
    let peaks = [
        memory::peak("first", &anew, tree).await?,
        memory::peak("again", &anew, tree).await?,
    ]
    .map(|peak| peak >> 20);
    bench.table.figure(
        &format!("{what}: peak memory of a run over idle (target ≤ 128 MiB)"),
        format!(
            "{} MiB to persist it for the first time, {} MiB to restore it and to persist changes",
            peaks[0], peaks[1]
        ),
    );
    let done = async {
        let content = (&volumes, &volume);
        by_runs(bench, &what, false, content, [&folder, &anew]).await?;
        let sent = by_runs(bench, &what, true, content, [&folder, &anew]).await?;
        bench.table.figure(
            &format!("{what}: bytes that 1 % of files changed sent, against the first persist (target ≤ 0.1)"),
            format!("{:.3}", sent as f64 / all as f64),
        );
        bench.driver.remove_volume(&volume).await?;
        Ok(())
    };
    let done = done.await;
    fresh(&folder)?;
    fresh(&anew)?;
    done
}

/// How long the volume's content takes out of it and into another one, without a store: medians of three.
async fn transfers(job: &Job, volumes: &ExactVolumes, volume: &VolumeId) -> Outcome<[Duration; 2]> {
    let root = VolumePath::root();
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..3 {
        let reading = time(async {
            let mut content = volumes.read(volume, std::slice::from_ref(&root)).await?;
            while let Some(piece) = content.next().await {
                piece?;
            }
            Ok(())
        });
        times[0].push(reading.await?);
        let copy = job.create_volume(&format!("copy-{round}")).await?;
        shell("sync".to_owned()).await?;
        let content = volumes.read(volume, std::slice::from_ref(&root)).await?;
        times[1].push(time(async { Ok(volumes.write(&copy, &root, content).await?) }).await?);
        job.driver().remove_volume(&copy).await?;
    }
    Ok(times.map(|times| median(&times).unwrap_or_default()))
}

/// Runs that restore the cache, and change one in a hundred of its files or none: what persisting costs then, against the
/// library's first persist of the same. How many bytes they sent: the median.
async fn by_runs(
    bench: &mut Bench,
    what: &str,
    changes: bool,
    content: (&ExactVolumes, &VolumeId),
    stores: [&Path; 2],
) -> Outcome<u64> {
    let [folder, anew] = stores;
    let (events, mut told) = mpsc::channel(256);
    let layer = CachesLayer::new(bench.driver.clone(), store_in(folder)?, CachesOptions::default()).events(events);
    let job = Job::builder(Arc::new(layer)).build();
    let label = Labels::from([label()?]);
    let (round, image) = (Cell::new(0), bench.image.clone());
    let current = RefCell::new(None);
    let reset = || async {
        // Before the first side of each pair.
        if current.borrow().is_some() {
            return Ok(());
        }
        round.set(round.get() + 1);
        let volume = job
            .create_volume_with(&format!("by-run-{}", round.get()), label.clone())
            .await?;
        let mut task = Task::new(format!("use-{}", round.get()), image.as_str())?.command(["/bin/true"]);
        task.spec.network = NetworkMode::None;
        task.spec.mounts.push(Mount {
            volume: volume.clone(),
            target: "/cache".parse()?,
            read_only: false,
        });
        job.run(task).await?.success()?;
        if changes {
            let directory = job.driver().volume_directory(&volume).await?;
            let directory = directory.ok_or("the volume is no directory of this machine")?;
            trees::change(&trees::files_in(directory.as_ref())?, round.get())?;
        }
        current.replace(Some(volume));
        Ok(())
    };
    let ours = || async {
        let volume = current.take().ok_or("there is no volume")?;
        Ok(job.driver().remove_volume(&volume).await?)
    };
    let first = RefCell::new(Vec::new());
    let theirs = || async {
        fresh(anew)?;
        let persisted = persist_volume(anew, content.0, content.1).await?;
        first.borrow_mut().push(persisted.duration);
        Ok(())
    };
    let (kind, target) = match changes {
        true => ("1 % of files changed by a run", "0.33"),
        false => ("unchanged by a run", "0.2"),
    };
    let row = format!("{what}: {kind}, its volume's removal included");
    let rounds = bench.rounds.clamp(3, 5);
    let table = &mut bench.table;
    let measured = table
        .compare_anew(&row, "the library's first persist", "", rounds, reset, ours, theirs)
        .await;
    job.end().await?;
    measured?;
    let (mut sent, mut times) = (Vec::new(), Vec::new());
    while let Ok(event) = told.try_recv() {
        match event.kind {
            CacheEventKind::Persisted(persisted)
                if persisted.unchanged != changes && (persisted.sent > 0) == changes =>
            {
                sent.push(persisted.sent);
                times.push(persisted.duration);
            }
            CacheEventKind::Restored { .. } => {}
            other => return Err(format!("{kind}: {other:?}").into()),
        }
    }
    let [takes, first_takes] = [&times, &*first.borrow()].map(|times| milliseconds(median(times).unwrap_or_default()));
    bench.table.figure(
        &format!("{what}: what persisting takes of that, against the first persist (target ≤ {target})"),
        format!("{:.3}: {takes:.1} ms of {first_takes:.1} ms", takes / first_takes),
    );
    // One of each pair, and of the pair that warms up.
    match times.len() == rounds + 1 {
        true => {
            sent.sort_unstable();
            Ok(sent[sent.len() / 2])
        }
        false => Err(format!("{} volumes were persisted", times.len()).into()),
    }
}
