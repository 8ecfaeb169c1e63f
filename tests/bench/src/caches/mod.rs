//! A store of caches against `tar` and `zstd` on the same disk, and how much of a run's time is the engine's transfer.
//!
//! The content is read from a directory by `tar` on both sides, so that the ratio is the library's; what the engine's volumes
//! add is a figure of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use orchestra::stream::from_reader;
use orchestra::{ByteStream, Job, VolumePath};
use orchestra_caches::{CacheKey, Persist, Persisted, Store, StoreOptions};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::pairs::time;
use crate::{Bench, Outcome};

/// Files of the content that is measured where no directory is named: as many as a `node_modules` has.
const FILES: usize = 50_000;

/// Measures on the directories that `--tree=DIR` names, or on one that is made.
pub(crate) async fn all(bench: &mut Bench) -> Outcome<()> {
    let named: Vec<PathBuf> = std::env::args()
        .filter_map(|arg| arg.strip_prefix("--tree=").map(PathBuf::from))
        .collect();
    let work = Work::new()?;
    if named.is_empty() {
        let tree = work.0.join("node_modules");
        make_tree(&tree)?;
        return one(bench, &work, &tree).await;
    }
    for tree in named {
        one(bench, &work, &tree).await?;
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

/// Many small files of text that compresses as code does.
fn make_tree(tree: &Path) -> Outcome<()> {
    let words = [
        "function", "return", "const", "module", "exports", "require", "if", "else", "=>", "{", "}", "(", ")", ";",
    ];
    let mut state = 1u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap_or(0)
    };
    for file in 0..FILES {
        let folder = tree.join(format!("package-{}/lib", file / 50));
        if file % 50 == 0 {
            std::fs::create_dir_all(&folder)?;
        }
        let mut text = String::new();
        while text.len() < 500 + next() % 8000 {
            text.push_str(words[next() % words.len()]);
            text.push_str(&format!(" v{} ", next() % 5000));
        }
        std::fs::write(folder.join(format!("file-{file}.js")), text)?;
    }
    Ok(())
}

/// Changes one file of a hundred.
fn change(tree: &Path) -> Outcome<usize> {
    let mut files = Vec::new();
    let mut open = vec![tree.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    let changed: Vec<_> = files.iter().step_by(100).collect();
    for file in &changed {
        let mut content = std::fs::read(file)?;
        content.extend_from_slice(format!("// {:?}", std::time::SystemTime::now()).as_bytes());
        std::fs::write(file, content)?;
    }
    Ok(changed.len())
}

/// What `tar` reads of a directory.
fn tar_of(tree: &Path) -> Outcome<(ByteStream, Child)> {
    let mut child = Command::new("tar")
        .args([
            "--sort=name",
            "--format=pax",
            "--pax-option=delete=atime,delete=ctime",
            "-C",
        ])
        .arg(tree)
        .args(["-cf", "-", "."])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or("tar has no output")?;
    Ok((from_reader(stdout, "read tar"), child))
}

async fn persist(store: &Store, tree: &Path) -> Outcome<Persisted> {
    let (content, mut child) = tar_of(tree)?;
    let persisted = store.persist(&key()?, content, Persist::default()).await?;
    child.wait().await?;
    Ok(persisted)
}

async fn restore(store: &Store, into: &Path) -> Outcome<()> {
    std::fs::create_dir_all(into)?;
    let entry = store.get(&key()?).await?.ok_or("the cache is not there")?;
    let mut content = store.restore(&entry).await?.content;
    let mut child = Command::new("tar")
        .arg("-C")
        .arg(into)
        .args(["-xf", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("tar has no input")?;
    while let Some(piece) = content.try_next().await? {
        stdin.write_all(&piece).await?;
    }
    drop(stdin);
    succeeded(child.wait().await?)
}

fn succeeded(status: std::process::ExitStatus) -> Outcome<()> {
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string().into())
    }
}

async fn shell(script: String) -> Outcome<()> {
    succeeded(
        Command::new("bash")
            .args(["-o", "pipefail", "-ec", &script])
            .status()
            .await?,
    )
}

fn key() -> Outcome<CacheKey> {
    Ok("bench/cache".parse()?)
}

fn store_in(folder: &Path) -> Outcome<Store> {
    let mut options = StoreOptions::default();
    options.url = format!("file://{}", folder.display());
    Ok(Store::open(&options)?)
}

fn fresh(folder: &Path) -> Outcome<()> {
    std::fs::remove_dir_all(folder).ok();
    Ok(())
}

async fn one(bench: &mut Bench, work: &Work, tree: &Path) -> Outcome<()> {
    let what = tree.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = work.0.join("store");
    let archive = work.0.join("archive.tar.zst");
    let (out, theirs_out) = (work.0.join("out"), work.0.join("their-out"));
    let pack = format!(
        "tar --sort=name -C '{}' -cf - . | zstd -q -T0 -3 -f -o '{}'",
        tree.display(),
        archive.display()
    );
    let rounds = bench.rounds.clamp(3, 7);

    let ours = || async {
        fresh(&folder)?;
        persist(&store_in(&folder)?, tree).await.map(drop)
    };
    let theirs = || shell(pack.clone());
    bench
        .table
        .compare(
            &format!("{what}: first persist"),
            "tar | zstd -T0 -3",
            "≤ 1.0",
            rounds,
            ours,
            theirs,
        )
        .await?;
    let first = time(async { ours().await }).await?;
    let entry = store_in(&folder)?.get(&key()?).await?.ok_or("the cache is not there")?;
    let bytes = std::fs::metadata(&archive)?.len();
    bench.table.figure(
        &format!("{what}: bytes of the first persist against `zstd -3` (target ≤ 1.05)"),
        format!("{:.3} of {} MiB", entry.stored as f64 / bytes as f64, bytes >> 20),
    );

    let ours = || async { persist(&store_in(&folder)?, tree).await.map(drop) };
    bench
        .table
        .compare(
            &format!("{what}: unchanged"),
            "tar | zstd -T0 -3",
            "≤ 0.2",
            rounds,
            ours,
            theirs,
        )
        .await?;

    let ours = || async {
        fresh(&out)?;
        restore(&store_in(&folder)?, &out).await
    };
    let theirs = || async {
        fresh(&theirs_out)?;
        std::fs::create_dir_all(&theirs_out)?;
        shell(format!(
            "zstd -q -dc '{}' | tar -C '{}' -xf -",
            archive.display(),
            theirs_out.display()
        ))
        .await
    };
    bench
        .table
        .compare(
            &format!("{what}: restore"),
            "zstd -d | tar x",
            "≤ 1.1",
            rounds,
            ours,
            theirs,
        )
        .await?;
    fresh(&out)?;
    fresh(&theirs_out)?;

    let files = change(tree)?;
    let began = std::time::Instant::now();
    let changed = persist(&store_in(&folder)?, tree).await?;
    let ratio = |part: Duration| part.as_secs_f64() / first.as_secs_f64();
    bench.table.figure(
        &format!("{what}: {files} files changed, against the first persist (targets ≤ 0.33 and ≤ 0.1)"),
        format!(
            "{:.2} of the time, {:.3} of the bytes, {:.2} waiting for tar",
            ratio(began.elapsed()),
            changed.sent as f64 / entry.stored as f64,
            ratio(changed.waited)
        ),
    );
    through_the_engine(bench, &what, tree).await
}

/// The same content into a volume and out of it: what a run pays beside the library's part.
async fn through_the_engine(bench: &mut Bench, what: &str, tree: &Path) -> Outcome<()> {
    let job = Job::builder(Arc::clone(&bench.driver)).build();
    let volume = job.create_volume("bench").await?;
    let written = time(async {
        let (content, mut child) = tar_of(tree)?;
        job.driver().write_volume(&volume, &VolumePath::root(), content).await?;
        child.wait().await?;
        Ok(())
    })
    .await?;
    let read = time(async {
        let mut content = job.driver().read_volume(&volume, &[VolumePath::root()]).await?;
        while let Some(piece) = content.next().await {
            piece?;
        }
        Ok(())
    })
    .await?;
    job.end().await?;
    bench.table.figure(
        &format!("{what}: the engine's own transfer"),
        format!(
            "{:.0} ms in, {:.0} ms out",
            written.as_secs_f64() * 1e3,
            read.as_secs_f64() * 1e3
        ),
    );
    Ok(())
}
