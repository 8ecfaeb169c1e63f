//! Who has the tar that a tree was filled from gets the same tar of what it became, and most of it without reading.

#[path = "support/numbers.rs"]
mod numbers;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestra_helper::tree::{Known, Since, TreeError, fill, fingerprint, pack, pack_since};
use tempfile::TempDir;

use self::numbers::Numbers;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What a tree without its end is as a tar.
fn whole(root: &Path) -> Result<Vec<u8>> {
    let mut tar = Vec::new();
    pack(root, &[Path::new("")], &mut tar)?;
    tar.truncate(tar.len() - 1024);
    Ok(tar)
}

/// What comes of a tree by its changes, and which bytes of `before` were not read again.
fn by_changes(
    root: &Path,
    paths: &[&str],
    before: &[u8],
    known: &Known,
    cuts: &[u64],
) -> Result<(Vec<u8>, Vec<Range<u64>>)> {
    struct Output<'o>(&'o RefCell<Vec<u8>>);
    impl io::Write for Output<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let tar = RefCell::new(Vec::new());
    let mut same = Vec::new();
    let mut take = |range: Range<u64>| {
        let mut tar = tar.borrow_mut();
        tar.extend_from_slice(&before[range.start as usize..range.end as usize]);
        same.push(range);
        Ok(())
    };
    let comparison = known.compare(root)?;
    let since = Since {
        comparison: &comparison,
        cuts,
        same: &mut take,
    };
    let paths: Vec<&Path> = paths.iter().map(Path::new).collect();
    pack_since(root, &paths, Some(since), true, &mut Output(&tar))?;
    Ok((tar.into_inner(), same))
}

/// The kernel's clock for times of change ticks every few milliseconds.
fn tick() {
    std::thread::sleep(Duration::from_millis(20));
}

fn some_tree(numbers: &mut Numbers, root: &Path) -> Result<()> {
    let mut directories = vec![root.to_owned()];
    for at in 0..40 + numbers.below(60) {
        let directory = directories[numbers.below(directories.len() as u64) as usize].clone();
        let long = if numbers.below(8) == 0 {
            "l".repeat(120)
        } else {
            String::new()
        };
        let path = directory.join(format!("{}-{at}{long}", numbers.below(1000)));
        match numbers.below(12) {
            0 | 1 => {
                fs::create_dir(&path)?;
                directories.push(path);
            }
            2 => symlink("nowhere", &path)?,
            3 => {
                fs::write(&path, numbers.bytes(900))?;
                fs::hard_link(&path, directory.join(format!("{at}-link")))?;
            }
            4 => {
                let file = File::create(&path)?;
                file.set_len(300_000)?;
                file.write_all_at(&numbers.bytes(9000), 100_000)?;
            }
            5 => fs::write(&path, numbers.bytes(300_000))?,
            _ => fs::write(&path, numbers.bytes(3000))?,
        }
    }
    Ok(())
}

fn files_below(root: &Path, all: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() {
            files_below(&path, all)?;
        }
        all.push(path);
    }
    Ok(())
}

fn change(numbers: &mut Numbers, root: &Path) -> Result<()> {
    let mut all = Vec::new();
    files_below(root, &mut all)?;
    all.sort();
    for _ in 0..numbers.below(6) {
        let path = &all[numbers.below(all.len() as u64) as usize];
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        match numbers.below(6) {
            0 if metadata.is_dir() => fs::remove_dir_all(path)?,
            0 | 1 if !metadata.is_dir() => fs::remove_file(path)?,
            2 if metadata.is_file() => fs::write(path, numbers.bytes(5000))?,
            3 if !metadata.is_symlink() => fs::set_permissions(path, fs::Permissions::from_mode(0o750))?,
            4 if metadata.is_file() => {
                let mut name = path.as_os_str().to_owned();
                name.push("-moved");
                fs::rename(path, name)?;
            }
            _ if metadata.is_dir() => fs::write(path.join("new"), numbers.bytes(4000))?,
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn what_comes_by_changes_is_what_comes_of_the_whole() -> Result<()> {
    let mut numbers = Numbers(0x5eed_cafe);
    let (mut skipped, mut all) = (0, 0);
    for round in 0..40 {
        let (from, to) = (TempDir::new()?, TempDir::new()?);
        some_tree(&mut numbers, from.path())?;
        let mut before = whole(from.path())?;
        before.extend_from_slice(&[0; 1024]);
        let known = fill(to.path(), &mut before.as_slice())?;
        let mut cuts = BTreeSet::from([0, before.len() as u64]);
        let spacing = 1 + numbers.below(30_000);
        let mut at = 0;
        while at < before.len() as u64 {
            cuts.insert(at);
            at += 1 + numbers.below(spacing);
        }
        let cuts: Vec<u64> = cuts.into_iter().collect();
        tick();
        change(&mut numbers, to.path())?;
        let expected = whole(to.path())?;
        assert_eq!(
            known.compare(to.path())?.is_unchanged(),
            known.fingerprint() == fingerprint(to.path())?,
            "round {round}"
        );
        let (found, same) = by_changes(to.path(), &[""], &before, &known, &cuts)?;
        assert!(
            found == expected,
            "round {round}: {} bytes instead of {}",
            found.len(),
            expected.len()
        );
        assert!(
            same.iter()
                .all(|range| [range.start, range.end].iter().all(|at| cuts.binary_search(at).is_ok()))
        );
        skipped += same.iter().map(|range| range.end - range.start).sum::<u64>();
        all += expected.len() as u64;
    }
    // A few changes among a hundred files, and cuts that are up to 30 kB apart.
    assert!(skipped > all / 2, "{skipped} of {all} bytes were not read again");
    Ok(())
}

#[test]
fn paths_are_packed_one_after_another_and_those_that_are_missing_are_left_out() -> Result<()> {
    let (from, to) = (TempDir::new()?, TempDir::new()?);
    for directory in ["a", "b"] {
        fs::create_dir(from.path().join(directory))?;
        for at in 0..20 {
            fs::write(from.path().join(format!("{directory}/{at:02}")), vec![at; 3000])?;
        }
    }
    let before = {
        let mut tar = Vec::new();
        pack(from.path(), &[Path::new("b"), Path::new("a")], &mut tar)?;
        tar
    };
    let known = fill(to.path(), &mut before.as_slice())?;
    let cuts: Vec<u64> = (0..=before.len() as u64).step_by(1000).collect();
    let (found, same) = by_changes(to.path(), &["b", "missing", "missing/too", "a"], &before, &known, &cuts)?;
    assert!(found == before[..before.len() - 1024]);
    assert!(same.iter().map(|range| range.end - range.start).sum::<u64>() > before.len() as u64 * 4 / 5);
    Ok(())
}

#[test]
fn a_tar_that_writes_through_its_symlinks_tells_of_nothing() -> Result<()> {
    let (from, other, to) = (TempDir::new()?, TempDir::new()?, TempDir::new()?);
    fs::create_dir(from.path().join("d"))?;
    fs::write(from.path().join("d/file"), "first")?;
    symlink("d", from.path().join("link"))?;
    fs::create_dir(other.path().join("link"))?;
    fs::write(other.path().join("link/file"), "other")?;
    let mut tar = whole(from.path())?;
    let mut through = Vec::new();
    pack(other.path(), &[Path::new("link/file")], &mut through)?;
    tar.extend_from_slice(&through);
    let known = fill(to.path(), &mut tar.as_slice())?;
    assert_eq!(fs::read_to_string(to.path().join("d/file"))?, "other");
    let cuts: Vec<u64> = (0..=tar.len() as u64).step_by(512).collect();
    let (found, same) = by_changes(to.path(), &[""], &tar, &known, &cuts)?;
    assert!(same.is_empty(), "{same:?}");
    assert!(found == whole(to.path())?);
    Ok(())
}

#[test]
fn devices_are_left_out_and_counted() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let root = TempDir::new()?;
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.path().join("null"),
        kind,
        mode,
        rustix::fs::makedev(1, 3),
    )?;
    fs::write(root.path().join("file"), "content")?;
    let count = |devices| {
        let mut tar = Vec::new();
        pack_since(root.path(), &[Path::new("")], None, devices, &mut tar).map(|left_out| (left_out, tar.len()))
    };
    let (kept, with) = count(true)?;
    let (left_out, without) = count(false)?;
    assert_eq!((kept, left_out), (0, 1));
    assert!(with > without);
    Ok(())
}

#[test]
fn a_tar_of_another_archiver_is_not_put_together_with_ours() -> Result<()> {
    let (from, to) = (TempDir::new()?, TempDir::new()?);
    for at in 0..20 {
        fs::write(from.path().join(format!("{at:02}")), vec![at; 3000])?;
    }
    // Its members have a record that ours don't have, and so are longer.
    let tar = std::process::Command::new("tar")
        .args(["--format=posix", "--sort=name"])
        .arg(format!("--pax-option=comment:={}", "c".repeat(600)))
        .args(["-cf", "-", "-C"])
        .arg(from.path())
        .args((0..20).map(|at| format!("{at:02}")))
        .output()?
        .stdout;
    let known = fill(to.path(), &mut tar.as_slice())?;
    let cuts: Vec<u64> = (0..=tar.len() as u64).step_by(1000).collect();
    tick();
    fs::write(to.path().join("10"), "changed")?;
    let error = by_changes(to.path(), &[""], &tar, &known, &cuts).err();
    let error = error.ok_or("what differs was put together")?;
    assert!(matches!(error.downcast_ref(), Some(TreeError::Changed(_))), "{error}");
    Ok(())
}
