//! A tree of 1 GiB into a volume and out of it, exactly, against GNU tar through a pipe in the same file system.

use std::path::Path;
use std::process::Stdio;

use futures_util::StreamExt;
use orchestra::{JobId, Labels, VolumePath, VolumeSpec, labels, stream};
use orchestra_volumes::ExactVolumes;
use tokio::process::Command;

use crate::{Bench, Outcome};

/// What GNU tar needs for the same.
const EXACT: &str = "--format=posix --xattrs --xattrs-include='*' --sparse --numeric-owner";

/// Sources and artifacts: 960 MiB in 64 files, and 64 MiB in 16,384.
fn make_tree(root: &Path) -> Outcome<()> {
    let mut content = vec![0_u8; 15 << 20];
    for (index, byte) in content.iter_mut().enumerate() {
        *byte = (index % 251) as u8;
    }
    for index in 0..64_usize {
        content[..8].copy_from_slice(&index.to_le_bytes());
        std::fs::write(root.join(format!("large{index}")), &content)?;
        let folder = root.join(format!("d{index}"));
        std::fs::create_dir(&folder)?;
        for small in 0..256 {
            std::fs::write(folder.join(format!("f{small}")), &content[..4096])?;
        }
    }
    Ok(())
}

async fn shell(script: &str) -> Outcome<()> {
    let status = Command::new("sh").args(["-c", script]).status().await?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| format!("{script} failed: {status}").into())
}

/// Writes and reads.
pub(crate) async fn one_gib(bench: &mut Bench) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let (tree, copy) = (folder.path().join("tree"), folder.path().join("copy"));
    std::fs::create_dir(&tree)?;
    std::fs::create_dir(&copy)?;
    make_tree(&tree)?;
    let (tree, copy) = (tree.display().to_string(), copy.display().to_string());
    let job = JobId::unique();
    let volume = job.volume(&"bench".parse()?);
    let own = Labels::from([(labels::JOB.to_owned(), job.to_string())]);
    bench.driver.create_volume(&volume, &VolumeSpec::new(own)).await?;
    let volumes = ExactVolumes::new(bench.driver.clone(), job.clone())?;
    let root = VolumePath::root();
    let pack = format!("tar -C {tree} {EXACT} -cf - .");
    let rounds = bench.rounds.div_ceil(3);

    let write = || async {
        let mut packing = Command::new("sh").args(["-c", &pack]).stdout(Stdio::piped()).spawn()?;
        let output = packing.stdout.take().ok_or("tar has no output")?;
        volumes
            .write(&volume, &root, stream::from_reader(output, "read tar"))
            .await?;
        packing.wait().await?.success().then_some(()).ok_or("tar failed")?;
        Ok(())
    };
    let theirs = format!("{pack} | tar -C {copy} --xattrs --xattrs-include='*' --numeric-owner -xpf -");
    let other = || shell(&theirs);
    let table = &mut bench.table;
    table
        .compare(
            "1 GiB of files into a volume",
            "tar | tar",
            "≤ 1.1",
            rounds,
            write,
            other,
        )
        .await?;

    let read = || async {
        let mut tar = volumes.read(&volume, std::slice::from_ref(&root)).await?;
        let mut bytes = 0;
        while let Some(piece) = tar.next().await {
            bytes += piece?.len();
        }
        if bytes > 1 << 30 {
            Ok(())
        } else {
            Err(format!("{bytes} bytes of 1 GiB were read").into())
        }
    };
    // Not to /dev/null, for which GNU tar reads nothing.
    let theirs = format!("tar -C {copy} {EXACT} -cf - . | cat > /dev/null");
    let other = || shell(&theirs);
    table
        .compare(
            "1 GiB of files out of a volume",
            "tar | cat",
            "≤ 1.1",
            rounds,
            read,
            other,
        )
        .await?;
    bench.driver.end_job(&job).await?;
    Ok(())
}
