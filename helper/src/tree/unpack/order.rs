//! Several threads unpack a tar, and what comes of it is what its members, one after the other, come to.

#[path = "../../../tests/support/members.rs"]
mod members;
#[path = "../../../tests/support/numbers.rs"]
mod numbers;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use self::members::member;
use self::numbers::Numbers;
use super::super::TreeError;
use super::unpack;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What each path is. A directory's own time is not told: whoever unpacks in pieces changes it with every piece.
fn described(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let (mut all, mut first, mut todo) = (BTreeMap::new(), BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = todo.pop() {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&directory)? {
            paths.push(entry?.path());
        }
        paths.sort();
        for path in paths {
            let metadata = fs::symlink_metadata(&path)?;
            let name = path.strip_prefix(root)?.to_owned();
            let said = if metadata.is_dir() {
                todo.push(path.clone());
                "a directory".to_owned()
            } else if metadata.is_symlink() {
                format!("a symlink to {}", fs::read_link(&path)?.display())
            } else {
                let same = first.entry(metadata.ino()).or_insert_with(|| name.clone());
                let content = fs::read(&path)?;
                format!(
                    "{} bytes of {:?}, of {}, {:o}, the same as {}",
                    content.len(),
                    content.first(),
                    metadata.mtime(),
                    metadata.mode(),
                    same.display()
                )
            };
            all.insert(name, said);
        }
    }
    Ok(all)
}

fn unpacked(root: &Path, tar: &[u8]) -> std::result::Result<(), TreeError> {
    unpack(root, Path::new(""), &mut &*tar)
}

/// Any few names, so that most members meet what another one made: in its way, or on their way.
fn path(numbers: &mut Numbers) -> String {
    let depth = 1 + numbers.below(3);
    let names: Vec<&str> = (0..depth)
        .map(|_| ["a", "b", "c", "d", "e"][numbers.below(5) as usize])
        .collect();
    names.join("/")
}

/// What of these many members can be made one after the other, and what comes of it.
fn one_by_one(numbers: &mut Numbers, kinds: &mut BTreeMap<u8, u32>) -> Result<(TempDir, Vec<Vec<u8>>)> {
    let (mut root, mut members, mut paths) = (TempDir::new()?, Vec::new(), vec!["a".to_owned()]);
    for at in 0..150 {
        let mut path = path(numbers);
        let kind = b"000000001125"[numbers.below(12) as usize];
        let link = match kind {
            b'1' => paths[numbers.below(paths.len() as u64) as usize].clone(),
            // From the directory it is in, or from the root.
            b'2' => ["..", "a", "../b", "/c", "/a/b"][numbers.below(5) as usize].to_owned(),
            _ => String::new(),
        };
        // Most files get in nobody's way, so that many are made at once.
        if kind == b'0' && numbers.below(8) > 0 {
            path = format!("{path}-{at}");
        }
        let content = match (kind, numbers.below(20)) {
            // One that is not small.
            (b'0', 0) => vec![at as u8; 70_000],
            (b'0', _) => numbers.bytes(300),
            _ => Vec::new(),
        };
        let member = member(&path, kind, &link, 1_000_000 + at, &content);
        if unpacked(root.path(), &member).is_ok() {
            *kinds.entry(kind).or_default() += 1;
            members.push(member);
            paths.push(path);
            continue;
        }
        // What it did before it failed is not to be there.
        root = TempDir::new()?;
        for member in &members {
            unpacked(root.path(), member)?;
        }
    }
    Ok((root, members))
}

#[test]
fn members_that_get_in_each_others_way_come_out_in_their_order() -> Result<()> {
    let mut kinds = BTreeMap::new();
    for seed in 1..=4 {
        let (one_by_one, members) = one_by_one(&mut Numbers(seed), &mut kinds)?;
        let at_once = TempDir::new()?;
        unpacked(at_once.path(), &members.concat())?;
        assert_eq!(described(at_once.path())?, described(one_by_one.path())?, "seed {seed}");
    }
    // All kinds are among them, and not a few.
    assert!(kinds.len() == 4 && kinds.values().all(|count| *count > 15), "{kinds:?}");
    Ok(())
}

#[test]
fn a_file_with_two_paths_is_what_the_last_one_says() -> Result<()> {
    let to = TempDir::new()?;
    let mut tar = [member("a", b'5', "", 0, b""), member("s", b'2', "a", 0, b"")].concat();
    for at in 0..50 {
        tar.extend(member(&format!("a/{at}"), b'0', "", 0, b"first"));
        tar.extend(member(&format!("s/{at}"), b'0', "", 0, b"last"));
        tar.extend(member(&format!("a/{at}-linked"), b'0', "", 0, b"linked"));
        tar.extend(member(&format!("{at}"), b'1', &format!("s/{at}-linked"), 0, b""));
    }
    unpacked(to.path(), &tar)?;
    for at in 0..50 {
        assert_eq!(fs::read_to_string(to.path().join(format!("a/{at}")))?, "last");
        assert_eq!(fs::read_to_string(to.path().join(at.to_string()))?, "linked");
    }
    Ok(())
}

#[test]
fn a_file_that_cant_be_made_is_told_and_those_read_before_an_error_are_made() -> Result<()> {
    let to = TempDir::new()?;
    fs::create_dir_all(to.path().join("d/7/in the way"))?;
    let files: Vec<u8> = (0..500)
        .flat_map(|at| member(&format!("d/{at}"), b'0', "", 0, b"content"))
        .collect();
    let error = unpacked(to.path(), &files).unwrap_err();
    assert!(error.to_string().starts_with("write d/7: "), "{error}");

    let to = TempDir::new()?;
    let cut = &files[..files.len() - 512];
    assert!(matches!(unpacked(to.path(), cut), Err(TreeError::Invalid(_))));
    assert_eq!(fs::read_dir(to.path().join("d"))?.count(), 499);
    Ok(())
}

#[test]
fn a_directory_that_files_are_on_their_way_to_is_not_taken_for_empty() -> Result<()> {
    for at in 0..50 {
        let to = TempDir::new()?;
        let (directory, file) = (member("d", b'5', "", 0, b""), member("d/x", b'0', "", 0, b"content"));
        let more = (0..at % 4).flat_map(|at| member(&at.to_string(), b'0', "", 0, b""));
        let more: Vec<u8> = more.collect();
        let error = unpacked(
            to.path(),
            &[directory, file, more, member("d", b'2', "x", 0, b"")].concat(),
        )
        .unwrap_err();
        assert!(error.to_string().starts_with("write d: "), "{error}");
        assert_eq!(fs::read_to_string(to.path().join("d/x"))?, "content");
    }
    Ok(())
}

#[test]
fn a_link_waits_for_a_file_that_another_thread_makes() -> Result<()> {
    let to = TempDir::new()?;
    let content = vec![b'x'; 60_000];
    let mut tar = Vec::new();
    for at in 0..200 {
        let files = (0..6).map(|file| member(&format!("{at}-{file}"), b'0', "", 0, &content));
        tar.extend(files.flatten());
        tar.extend(member(
            &format!("{at}-linked"),
            b'1',
            &format!("{at}-{}", at % 6),
            0,
            b"",
        ));
    }
    unpacked(to.path(), &tar)?;
    assert_eq!(fs::read_dir(to.path())?.count(), 200 * 7);
    Ok(())
}
