//! How much memory a run's caches take: in a process of its own, because what one has given back stays the process's.

use std::path::Path;
use std::sync::Arc;

use orchestra::{Job, VolumeId, VolumePath};
use orchestra_caches::{CacheEventKind, CachesLayer, CachesOptions};
use orchestra_e2e::KnownDriver;
use orchestra_volumes::ExactVolumes;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::parts::{label, store_in, tar_of};
use super::trees;
use crate::Outcome;

/// What makes this program such a process.
const PART: &str = "cache-memory";

/// Does it if this process is one.
pub(crate) async fn part() -> Option<Outcome<()>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, what, store, tree] = arguments.as_slice() else {
        return None;
    };
    if part != PART {
        return None;
    }
    Some(measure(what, Path::new(store), Path::new(tree)).await)
}

#[expect(clippy::print_stdout, reason = "it answers the process that started it")]
async fn measure(what: &str, store: &Path, tree: &Path) -> Outcome<()> {
    let driver = KnownDriver::chosen()
        .unwrap_or(KnownDriver::Docker)
        .connect(None)
        .await?;
    let (events, mut told) = mpsc::channel(64);
    let layer = CachesLayer::new(driver.clone(), store_in(store)?, CachesOptions::default()).events(events);
    let job = Job::builder(Arc::new(layer)).build();
    let idle = status("VmRSS")?;
    let work = async {
        let volume: VolumeId = job.create_volume_with("cache", [label()?].into()).await?;
        // Whoever asks for it may write to it, so that it is persisted.
        let directory = job.driver().volume_directory(&volume).await?;
        if what == "first" {
            drop(directory);
            let volumes = ExactVolumes::new(driver.clone(), job.id().clone())?;
            volumes.write(&volume, &VolumePath::root(), tar_of(tree)).await?;
        } else {
            let directory = directory.ok_or("the volume is no directory of this machine")?;
            trees::change(&trees::files_in(directory.as_ref())?, 1)?;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(job.driver().remove_volume(&volume).await?)
    };
    let worked = work.await;
    job.end().await?;
    worked?;
    let last = std::iter::from_fn(|| told.try_recv().ok())
        .last()
        .map(|event| event.kind);
    match last {
        Some(CacheEventKind::Persisted(persisted)) if persisted.sent > 0 => {}
        other => return Err(format!("nothing was persisted: {other:?}").into()),
    }
    println!("{}", status("VmHWM")?.saturating_sub(idle));
    Ok(())
}

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find(|line| line.starts_with(name))
        .ok_or("no such line")?;
    let kibibytes: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kibibytes << 10)
}

/// The peak of resident memory over the idle process, in bytes, of a run that persists for the `first` time, or of one that
/// restores, changes some files and persists.
pub(super) async fn peak(what: &str, store: &Path, tree: &Path) -> Outcome<u64> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args([PART, what]).arg(store).arg(tree).output().await?;
    if !output.status.success() {
        return Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
