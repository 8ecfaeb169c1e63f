//! A GiB of output, or as many MiB as `--mib=N` says: how fast it is read, and in how much memory.

use std::path::Path;

use futures_util::StreamExt;
use orchestra::{Job, Task, sink};

use crate::{Bench, Outcome};

/// How many MiB are written.
fn mib() -> u64 {
    let told = std::env::args().find_map(|arg| arg.strip_prefix("--mib=")?.parse().ok());
    told.unwrap_or(1024)
}

/// With its line feed 64 bytes, so that a GiB ends with one: a log that is read late may add one that is missing.
const LINE: &str = "0123456789abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQ";

/// A figure of `/proc/self/status` in KiB.
fn status(key: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string(Path::new("/proc/self/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    value.ok_or_else(|| format!("/proc/self/status has no {key}").into())
}

/// Reads the log of an ended container, against the client doing the same; and follows one live.
pub(crate) async fn all(bench: &mut Bench) -> Outcome<()> {
    // A resumable job keeps the container of a finished task: its log is what is read.
    let job = Job::builder(bench.driver.clone()).resumable(true).build();
    let (mib, size) = (mib(), mib() << 20);
    let script = format!("yes {LINE} | head -c {size}");
    let idle = status("VmRSS")?;
    // Writing 5 to this file sets the peak back to what is used now (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5")?;
    let mut seen = 0u64;
    let (sender, mut pieces) = tokio::sync::mpsc::channel::<orchestra::LogChunk>(16);
    let task = Task::new("log", &bench.image)?.shell(script).output(sender);
    let began = std::time::Instant::now();
    let mut running = job.start(task);
    while let Some(piece) = pieces.recv().await {
        seen += piece.bytes.len() as u64;
    }
    let result = running.wait().await?.success()?;
    bench.table.figure(
        &format!("{mib} MiB followed live"),
        format!("{:.2} s", began.elapsed().as_secs_f64()),
    );
    let peak = status("VmHWM")?;
    bench.table.figure(
        &format!("memory over idle while {mib} MiB pass (target < 64 MiB)"),
        format!("{:.1} MiB", peak.saturating_sub(idle) as f64 / 1024.0),
    );
    if seen != size {
        return Err(format!("{seen} of {size} bytes arrived").into());
    }
    let (driver, client, id) = (&bench.driver, bench.client.clone(), result.container);
    let ours = || async {
        let mut logs = driver.logs(&id, false).await?;
        let mut bytes = 0;
        while let Some(piece) = logs.next().await {
            bytes += piece?.bytes.len() as u64;
        }
        if bytes == size {
            Ok(())
        } else {
            Err(format!("{bytes} of {size} bytes were read").into())
        }
    };
    let theirs = || client.run(["logs", id.as_str()]);
    let rounds = bench.rounds.div_ceil(5);
    if client.has_logs() {
        let what = format!("{mib} MiB of log, read late");
        let other = format!("{} logs", bench.known.name());
        bench.table.compare(&what, &other, "", rounds, ours, theirs).await?;
    }
    job.end().await?;
    // Keeps the sink module's simplest form measured too: no channel in between.
    let job = Job::builder(driver.clone()).build();
    let task = || {
        Ok::<_, orchestra::Error>(
            Task::new("live", &bench.image)?
                .shell(format!("yes 0123456789 | head -c {size}"))
                .output(sink::from_fn(|_| ())),
        )
    };
    let ours = || async {
        job.run(task()?).await?.success()?;
        Ok(())
    };
    let script = format!("yes 0123456789 | head -c {size}");
    let program = ["sh", "-c", &script];
    let theirs = || client.task(&bench.image, &[], &program);
    let what = format!("{mib} MiB of output, live");
    let other = client.run_name();
    bench.table.compare(&what, &other, "", rounds, ours, theirs).await?;
    job.end().await?;
    Ok(())
}
