//! How much memory one persist or restore takes: in a process of its own, because what one has given back stays the
//! process's.

use std::path::Path;

use orchestra::VolumePath;
use orchestra_volumes::directory;
use tokio::process::Command;

use super::parts::{content, persist_content, store_in, tar_of};
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
    let idle = status("VmRSS")?;
    let store = store_in(store)?;
    if what == "persist" {
        persist_content(&store, tar_of(tree)).await?;
    } else {
        let out = tree.with_extension("out");
        std::fs::create_dir_all(&out)?;
        let restored = directory::write(out.clone(), VolumePath::root(), content(&store).await?).await;
        std::fs::remove_dir_all(out)?;
        restored?;
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

/// The peak of resident memory over the idle process, in bytes.
pub(super) async fn peak(what: &str, store: &Path, tree: &Path) -> Outcome<u64> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args([PART, what]).arg(store).arg(tree).output().await?;
    if !output.status.success() {
        return Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
