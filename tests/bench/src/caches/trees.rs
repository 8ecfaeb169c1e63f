//! What is measured on: directories as caches have them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use orchestra::{Job, NetworkMode, VolumePath};
use orchestra_image_build::{BuildCache, BuildInput, ImageBuild};
use orchestra_volumes::{ExactVolumes, directory};
use tokio::process::Command;

use super::parts::{blocking, tar_of};
use crate::client::succeed;
use crate::{Bench, Outcome};

/// As many as a `node_modules` has.
const FILES: usize = 50_000;
/// Bytes of a Cargo `target` folder.
const TARGET: u64 = 1 << 30;

/// A copy of the beginning of this repository's own `target` folder, of about 1 GiB, hard links included.
pub(super) async fn cargo_target(into: &Path) -> Outcome<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug");
    let list = into.with_extension("list");
    std::fs::write(&list, first_files(&own, TARGET)?)?;
    std::fs::create_dir_all(into)?;
    let copy = "tar -C \"$0\" --null --files-from=\"$1\" -cf - | tar -C \"$2\" -xf -";
    succeed(Command::new("sh").args(["-c", copy]).arg(&own).arg(&list).arg(into)).await?;
    std::fs::remove_file(&list)?;
    Ok(into.to_owned())
}

/// Names of files in their order, each with a nul, until together they have so many bytes.
fn first_files(root: &Path, limit: u64) -> Outcome<Vec<u8>> {
    let (mut names, mut bytes, mut seen) = (Vec::new(), 0, std::collections::HashSet::new());
    for file in files_in(root)? {
        let meta = std::fs::symlink_metadata(&file)?;
        if seen.insert(meta.ino()) {
            bytes += meta.len();
        }
        if bytes > limit {
            break;
        }
        names.extend_from_slice(file.strip_prefix(root)?.as_os_str().as_encoded_bytes());
        names.push(0);
    }
    if bytes < limit / 2 {
        return Err(format!("{} has only {bytes} bytes: build the workspace first", root.display()).into());
    }
    Ok(names)
}

/// All regular files of a tree, in the order of their paths.
pub(super) fn files_in(root: &Path) -> Outcome<Vec<PathBuf>> {
    let (mut files, mut open) = (Vec::new(), vec![root.to_owned()]);
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
    Ok(files)
}

/// Many small files of text that compresses as code does.
pub(super) fn node_modules(into: &Path) -> Outcome<PathBuf> {
    many_files(into, FILES)?;
    Ok(into.to_owned())
}

fn many_files(tree: &Path, number: usize) -> Outcome<()> {
    let words = [
        "function", "return", "const", "module", "exports", "require", "if", "else", "=>", "{", "}", "(", ")", ";",
    ];
    let mut state = 1u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap_or(0)
    };
    for file in 0..number {
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

/// The state of BuildKit after a build of an image with 10,000 small files and 200 MiB of a compiler's output, whose later
/// layers copy, replace and remove some of it.
pub(super) async fn buildkit_state(bench: &Bench, work: &Path, into: &Path) -> Outcome<PathBuf> {
    let context = work.join("context");
    many_files(&context.join("modules"), 10_000)?;
    cargo_part(&context.join("objects"), 200 << 20).await?;
    std::fs::copy("/bin/busybox", context.join("busybox"))
        .map_err(|error| format!("the build needs /bin/busybox (package busybox-static): {error}"))?;
    let dockerfile = "FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n\
                      COPY modules /modules\nCOPY objects /objects\nRUN busybox cp -r /modules /installed\n\
                      RUN busybox rm -r /modules/package-1 && busybox cp -r /installed/package-2 /modules/package-1\n\
                      RUN --mount=type=cache,target=/c busybox cp -r /modules/package-3 /c/ && busybox touch /last\n";
    std::fs::write(context.join("Dockerfile"), dockerfile)?;

    let job = Job::builder(bench.driver.clone()).build();
    let (source, layers) = (job.create_volume("source").await?, job.create_volume("layers").await?);
    let volumes = ExactVolumes::new(bench.driver.clone(), job.id().clone())?;
    volumes.write(&source, &VolumePath::root(), tar_of(&context)).await?;
    let tag = format!("localhost/bench/layers-{}:1", job.id());
    let mut build = ImageBuild::new("app".parse()?, tag.parse()?, "source".parse()?);
    if let Ok(image) = std::env::var("ORCHESTRA_TEST_BUILDKIT_IMAGE") {
        build.image = image.parse()?;
    }
    build.network = NetworkMode::Host;
    build.inputs.push(BuildInput {
        volume: source,
        path: "source".parse()?,
    });
    build.caches.push(BuildCache {
        volume: layers.clone(),
        path: "/var/lib/buildkit".parse()?,
    });
    let built = build.run(&job).await;
    let unpacked = async {
        bench.driver.remove_image(&built?.reference).await?;
        std::fs::create_dir_all(into)?;
        let tar = volumes.read(&layers, &[VolumePath::root()]).await?;
        Outcome::Ok(directory::write(into.to_owned(), VolumePath::root(), tar).await?)
    };
    let unpacked = unpacked.await;
    job.end().await?;
    unpacked?;
    blocking(move || Ok(std::fs::remove_dir_all(context)?)).await?;
    Ok(into.to_owned())
}

async fn cargo_part(into: &Path, bytes: u64) -> Outcome<()> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug/deps");
    std::fs::create_dir_all(into)?;
    let mut left = bytes;
    for file in files_in(&own)? {
        let length = std::fs::metadata(&file)?.len();
        let Some(rest) = left.checked_sub(length) else {
            continue;
        };
        left = rest;
        std::fs::copy(&file, into.join(file.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Changes one file of a hundred, each time other ones, and says how many.
pub(super) fn change(files: &[PathBuf], round: usize) -> Outcome<usize> {
    let changed: Vec<_> = files.iter().skip(round % 100).step_by(100).collect();
    for file in &changed {
        use std::io::Write;
        let mut open = std::fs::OpenOptions::new().append(true).open(file)?;
        write!(open, "// {:?}", std::time::SystemTime::now())?;
    }
    Ok(changed.len())
}
