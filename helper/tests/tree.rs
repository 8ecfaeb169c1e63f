//! What goes into a tar comes out of it. Devices, owners and `trusted` attributes are root's: who is not sees those
//! cases pass without them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use orchestra_helper::tree::{TreeError, pack, unpack};
use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, Timespec, Timestamps, XattrFlags};
use tempfile::TempDir;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// All that is known of each file of a tree, as text, by its path.
fn described(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let (mut all, mut inodes, mut todo) = (BTreeMap::new(), BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = todo.pop() {
        let mut names: Vec<_> = fs::read_dir(&directory)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        names.sort();
        for path in names {
            let metadata = fs::symlink_metadata(&path)?;
            let kind = metadata.file_type();
            let short = path.strip_prefix(root)?.to_owned();
            let first = inodes.entry(metadata.ino()).or_insert_with(|| short.clone()).clone();
            let content = match kind {
                _ if kind.is_symlink() => fs::read_link(&path)?.display().to_string(),
                _ if kind.is_file() => format!(
                    "{} {:?}",
                    metadata.len(),
                    fs::read(&path)?.iter().take(80).collect::<Vec<_>>()
                ),
                _ if kind.is_dir() => String::new(),
                _ => format!("device {:x}", metadata.rdev()),
            };
            let mut list = vec![0; 65_536];
            let length = rustix::fs::llistxattr(&path, &mut list)?;
            let mut attributes = BTreeMap::new();
            for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let mut value = vec![0; 65_536];
                let length = rustix::fs::lgetxattr(&path, OsStr::from_bytes(name), &mut value)?;
                attributes.insert(String::from_utf8_lossy(name).into_owned(), value[..length].to_vec());
            }
            let said = format!(
                "{:o} {}:{} {}.{:09} {content} {attributes:?} is {}",
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                first.display()
            );
            if kind.is_dir() {
                todo.push(path.clone());
            }
            all.insert(short, said);
        }
    }
    Ok(all)
}

fn mtime(path: &Path, seconds: i64, nanoseconds: i64) -> Result<()> {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn attribute(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    Ok(rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())?)
}

/// A tree with one of everything.
fn everything(root: &Path) -> Result<()> {
    let at = |name: &str| root.join(name);
    fs::create_dir(at("d"))?;
    fs::write(at("d/file"), "content")?;
    fs::write(at("setuid"), "s")?;
    fs::set_permissions(at("setuid"), Permissions::from_mode(0o6755))?;
    fs::write(at("xattr"), "")?;
    attribute(&at("xattr"), "user.a=b%3D\n", b"\0=\n\xff")?;
    symlink("../../nowhere", at("symlink"))?;
    symlink("t".repeat(3000), at("long symlink"))?;
    mtime(&at("symlink"), -2, 500_000_000)?;
    fs::hard_link(at("d/file"), at("hard"))?;
    fs::hard_link(at("symlink"), at("d/hard symlink"))?;
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o620), 0)?;
    fs::write(root.join("n".repeat(255)), "long")?;
    fs::write(root.join(OsStr::from_bytes(&[0xff; 255])), "no text")?;
    fs::write(root.join(OsStr::from_bytes(b"\xfe\n")), "no text")?;
    let mut sparse = File::create(at("sparse"))?;
    sparse.write_all(b"start")?;
    sparse.seek(SeekFrom::Start(8 << 20))?;
    sparse.write_all(b"middle")?;
    sparse.set_len(16 << 20)?;
    File::create(at("hole"))?.set_len(1 << 20)?;
    fs::create_dir(at("closed"))?;
    fs::write(at("closed/f"), "x")?;
    if is_root() {
        lchown(at("d/file"), Some(70_000), Some(4_000_000_000))?;
        lchown(at("symlink"), Some(5), Some(6))?;
        attribute(&at("d"), "trusted.overlay.opaque", b"y")?;
        attribute(&at("symlink"), "trusted.x", b"y")?;
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        attribute(&at("setuid"), "security.capability", &capability)?;
        let device = |name: &str, kind, number: Dev| {
            rustix::fs::mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o600), number)
        };
        device("whiteout", FileType::CharacterDevice, 0)?;
        device("block", FileType::BlockDevice, rustix::fs::makedev(259, 300_000))?;
    }
    fs::set_permissions(at("closed"), Permissions::from_mode(0o500))?;
    mtime(&at("closed"), 1_234_567_890, 123_456_789)?;
    mtime(&at("d"), 9_999_999_999, 1)
}

fn packed(root: &Path, paths: &[&str]) -> std::result::Result<Vec<u8>, TreeError> {
    let paths: Vec<&Path> = paths.iter().map(Path::new).collect();
    let mut tar = Vec::new();
    pack(root, &paths, &mut tar).map(|()| tar)
}

fn two() -> Result<(TempDir, TempDir)> {
    Ok((TempDir::new()?, TempDir::new()?))
}

fn gnu_tar(arguments: &[&str], root: &Path, input: &[u8]) -> Result<Vec<u8>> {
    use std::process::{Command, Stdio};
    let mut child = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-C"])
        .arg(root)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("no input")?;
    let mut stdout = child.stdout.take().ok_or("no output")?;
    let read = std::thread::spawn(move || {
        let mut all = Vec::new();
        stdout.read_to_end(&mut all).map(|_| all)
    });
    stdin.write_all(input)?;
    drop(stdin);
    assert!(child.wait()?.success());
    Ok(read.join().map_err(|_| "the reader panicked")??)
}

#[test]
fn everything_comes_out_as_it_went_in_also_onto_itself() -> Result<()> {
    let (from, to) = two()?;
    everything(from.path())?;
    let tar = packed(from.path(), &[""])?;
    for _ in 0..2 {
        unpack(to.path(), Path::new(""), &mut tar.as_slice())?;
        assert_eq!(described(to.path())?, described(from.path())?);
    }
    let blocks = |path: &Path| fs::metadata(path.join("sparse")).map(|metadata| metadata.blocks());
    assert_eq!(blocks(to.path())?, blocks(from.path())?);
    Ok(())
}

#[test]
fn gnu_tar_reads_it() -> Result<()> {
    let (from, to) = two()?;
    everything(from.path())?;
    gnu_tar(&["-xpf", "-"], to.path(), &packed(from.path(), &[""])?)?;
    assert_eq!(described(to.path())?, described(from.path())?);
    Ok(())
}

#[test]
fn what_gnu_tar_writes_is_read_in_all_its_formats() -> Result<()> {
    let (from, _) = two()?;
    everything(from.path())?;
    let mut wanted = described(from.path())?;
    for format in [
        &["--sparse-version=1.0"],
        &["--sparse-version=0.1"],
        &["--sparse-version=0.0"],
    ] {
        let to = TempDir::new()?;
        let tar = gnu_tar(&["--format=posix", "-S", format[0], "-cf", "-", "."], from.path(), &[])?;
        unpack(to.path(), Path::new("."), &mut tar.as_slice())?;
        assert_eq!(described(to.path())?, wanted, "{format:?}");
    }
    // The old format has neither attributes nor parts of seconds.
    for text in wanted.values_mut() {
        *text = text
            .split(' ')
            .take(2)
            .chain(text.split(" is ").nth(1))
            .collect::<Vec<_>>()
            .join(" ");
    }
    let to = TempDir::new()?;
    let arguments = ["-C", ".", "--no-xattrs", "--format=gnu", "-S", "-cf", "-", "."];
    let tar = gnu_tar(&arguments, from.path(), &[])?;
    unpack(to.path(), Path::new(""), &mut tar.as_slice())?;
    let mut found = described(to.path())?;
    for text in found.values_mut() {
        *text = text
            .split(' ')
            .take(2)
            .chain(text.split(" is ").nth(1))
            .collect::<Vec<_>>()
            .join(" ");
    }
    assert_eq!(found, wanted);
    assert_eq!(
        fs::read(to.path().join("sparse"))?,
        fs::read(from.path().join("sparse"))?
    );
    Ok(())
}

#[test]
fn names_are_relative_to_the_root_and_paths_are_chosen() -> Result<()> {
    let (from, to) = two()?;
    everything(from.path())?;
    let tar = packed(from.path(), &["d/file", "/closed/", "symlink"])?;
    unpack(to.path(), Path::new(""), &mut tar.as_slice())?;
    let found: Vec<_> = described(to.path())?.into_keys().collect();
    assert_eq!(
        found,
        ["closed", "closed/f", "d", "d/file", "symlink"].map(PathBuf::from)
    );
    for missing in ["nothing", "d/file/x", "../d", "symlink/x"] {
        assert!(
            matches!(packed(from.path(), &[missing]), Err(TreeError::NotFound(_))),
            "{missing}"
        );
    }
    Ok(())
}

#[test]
fn a_tar_is_unpacked_below_a_directory_that_exists() -> Result<()> {
    let (from, to) = two()?;
    fs::write(from.path().join("f"), "new")?;
    fs::create_dir(to.path().join("sub"))?;
    let tar = packed(from.path(), &["f"])?;
    unpack(to.path(), Path::new("sub"), &mut tar.as_slice())?;
    assert_eq!(fs::read(to.path().join("sub/f"))?, b"new");
    for missing in ["none", "sub/f", "../x"] {
        let error = unpack(to.path(), Path::new(missing), &mut tar.as_slice());
        assert!(matches!(error, Err(TreeError::NotFound(_))), "{missing}");
    }
    Ok(())
}

#[test]
fn what_is_there_is_replaced_but_a_directory_keeps_what_is_in_it() -> Result<()> {
    let (from, to) = two()?;
    fs::create_dir(from.path().join("d"))?;
    for name in ["d/new", "file", "link", "empty"] {
        fs::write(from.path().join(name), "new")?;
    }
    fs::create_dir_all(to.path().join("d"))?;
    fs::create_dir_all(to.path().join("empty"))?;
    fs::write(to.path().join("d/old"), "old")?;
    fs::write(to.path().join("target"), "untouched")?;
    fs::hard_link(to.path().join("target"), to.path().join("file"))?;
    symlink("target", to.path().join("link"))?;
    unpack(to.path(), Path::new(""), &mut packed(from.path(), &[""])?.as_slice())?;
    let read = |name: &str| fs::read_to_string(to.path().join(name));
    assert_eq!((read("d/old")?, read("d/new")?), ("old".to_owned(), "new".to_owned()));
    assert_eq!((read("file")?, read("link")?), ("new".to_owned(), "new".to_owned()));
    assert_eq!(
        (read("target")?, read("empty")?),
        ("untouched".to_owned(), "new".to_owned())
    );

    // And a directory takes the place of a symlink, which is not followed.
    fs::remove_dir_all(to.path().join("d"))?;
    fs::create_dir(to.path().join("elsewhere"))?;
    symlink("elsewhere", to.path().join("d"))?;
    unpack(to.path(), Path::new(""), &mut packed(from.path(), &[""])?.as_slice())?;
    assert!(fs::symlink_metadata(to.path().join("d"))?.is_dir());
    assert_eq!(fs::read_dir(to.path().join("elsewhere"))?.count(), 0);
    Ok(())
}

#[test]
fn no_entry_leaves_the_root() -> Result<()> {
    let (outside, from) = two()?;
    let (up, _) = two()?;
    fs::create_dir(from.path().join("way"))?;
    fs::write(from.path().join("way/f"), "x")?;
    fs::hard_link(from.path().join("way/f"), from.path().join("way/g"))?;
    let tar = packed(from.path(), &["way/f", "way/g"])?;
    for target in [outside.path(), Path::new("../../../../../../../tmp")] {
        let to = TempDir::new()?;
        symlink(target, to.path().join("way"))?;
        // It leads nowhere inside of the root.
        assert!(matches!(
            unpack(to.path(), Path::new(""), &mut tar.as_slice()),
            Err(TreeError::Io { .. })
        ));
        assert_eq!(fs::read_dir(outside.path())?.count(), 0);
        // And if it does, that is where things go.
        fs::create_dir_all(to.path().join(target.strip_prefix("/").unwrap_or(Path::new("tmp"))))?;
        unpack(to.path(), Path::new(""), &mut tar.as_slice())?;
        assert_eq!(
            fs::read(to.path().join("way/f")).ok(),
            None,
            "seen from outside it leads elsewhere"
        );
        assert_eq!(fs::read_dir(outside.path())?.count(), 0);
    }
    for (from, to) in [("way/f", "../ay/f"), ("way/f", "w/../.")] {
        let mut bad = tar.clone();
        let mut at = 0;
        while let Some(found) = bad[at..]
            .windows(from.len())
            .position(|window| window == from.as_bytes())
        {
            at += found;
            bad[at..at + to.len().min(6)].copy_from_slice(&to.as_bytes()[..6]);
        }
        fix_checksums(&mut bad);
        let error = unpack(up.path(), Path::new(""), &mut bad.as_slice());
        assert!(matches!(error, Err(TreeError::Invalid(_))), "{error:?}");
    }
    Ok(())
}

/// A header that was changed needs its sum again.
fn fix_checksums(tar: &mut [u8]) {
    for block in tar.chunks_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[test]
fn what_is_no_tar_or_is_cut_off_is_refused() -> Result<()> {
    let (from, to) = two()?;
    fs::write(from.path().join("f"), vec![1; 5000])?;
    let tar = packed(from.path(), &["f"])?;
    for bad in [&[7_u8; 600][..], &tar[..700], &tar[..3000]] {
        let error = unpack(to.path(), Path::new(""), &mut &*bad);
        assert!(matches!(error, Err(TreeError::Invalid(_))), "{error:?}");
    }
    Ok(())
}

#[test]
fn the_streams_own_error_comes_through() -> Result<()> {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the engine went away"))
        }
    }
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let root = TempDir::new()?;
    let error = unpack(root.path(), Path::new(""), &mut Broken)
        .err()
        .ok_or("no error")?;
    assert_eq!(error.to_string(), "read the tar: the engine went away");
    match pack(root.path(), &[Path::new("")], &mut Broken) {
        Err(TreeError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::StorageFull),
        other => return Err(format!("{other:?}").into()),
    }
    Ok(())
}

#[test]
fn paths_longer_than_the_kernel_takes_at_once_go_both_ways() -> Result<()> {
    let (from, to) = two()?;
    let name = "n".repeat(250);
    let descend = |root: &Path, make: bool| -> Result<File> {
        let mut directory = File::open(root)?;
        for _ in 0..40 {
            if make {
                rustix::fs::mkdirat(&directory, name.as_str(), Mode::from_raw_mode(0o755))?;
            }
            let flags = rustix::fs::OFlags::RDONLY;
            directory = rustix::fs::openat(&directory, name.as_str(), flags, Mode::empty())?.into();
        }
        Ok(directory)
    };
    let bottom = descend(from.path(), true)?;
    rustix::fs::symlinkat("here", &bottom, "bottom")?;
    unpack(to.path(), Path::new(""), &mut packed(from.path(), &[""])?.as_slice())?;
    let bottom = descend(to.path(), false)?;
    assert_eq!(
        rustix::fs::readlinkat(&bottom, "bottom", Vec::new())?.to_bytes(),
        b"here"
    );
    Ok(())
}

#[test]
fn a_directory_nested_deeper_than_a_threads_stack_is_packed() -> Result<()> {
    let (from, _) = two()?;
    let mut directory = File::open(from.path())?;
    for _ in 0..900 {
        rustix::fs::mkdirat(&directory, "d", Mode::from_raw_mode(0o755))?;
        directory = rustix::fs::openat(&directory, "d", rustix::fs::OFlags::RDONLY, Mode::empty())?.into();
    }
    let path = from.path().to_owned();
    let small = std::thread::Builder::new().stack_size(128 << 10);
    let tar = small
        .spawn(move || packed(&path, &[""]))?
        .join()
        .map_err(|_| "it panicked")??;
    assert!(tar.len() > 900 * 512);
    Ok(())
}

#[test]
fn what_comes_after_a_deep_directory_is_packed_too() -> Result<()> {
    const DEEP: usize = 200;
    let (from, to) = two()?;
    // More directories than are held open, each with a file that comes after the one that is in it.
    let place = |root: &Path, depth: usize| root.join("d/".repeat(depth)).join("z");
    std::fs::create_dir_all(from.path().join("d/".repeat(DEEP)))?;
    for depth in 0..DEEP {
        std::fs::write(place(from.path(), depth), depth.to_string())?;
    }
    let tar = packed(from.path(), &[""])?;
    unpack(to.path(), Path::new(""), &mut tar.as_slice())?;
    for depth in 0..DEEP {
        assert_eq!(std::fs::read_to_string(place(to.path(), depth))?, depth.to_string());
    }
    let before = orchestra_helper::tree::fingerprint(from.path())?;
    std::fs::write(place(from.path(), 3), "changed")?;
    assert_ne!(orchestra_helper::tree::fingerprint(from.path())?, before);
    Ok(())
}

#[test]
fn a_tree_has_the_same_fingerprint_until_anything_of_it_changes() -> Result<()> {
    use orchestra_helper::tree::fingerprint;
    let (tree, _) = two()?;
    let (file, folder) = (tree.path().join("a"), tree.path().join("d"));
    std::fs::create_dir(&folder)?;
    std::fs::write(&file, "one")?;
    std::os::unix::fs::symlink("nowhere", tree.path().join("l"))?;
    let mut last = fingerprint(tree.path())?;
    assert_eq!(last.len(), 32);
    // Reading changes nothing of it, nor does what an engine does to a volume's root.
    std::fs::read(&file)?;
    packed(tree.path(), &[""])?;
    std::fs::set_permissions(tree.path(), std::fs::Permissions::from_mode(0o711))?;
    assert_eq!(fingerprint(tree.path())?, last);

    let mtime = std::fs::metadata(&file)?.modified()?;
    type Change<'a> = &'a dyn Fn() -> std::io::Result<()>;
    let changes: [(&str, Change<'_>); 6] = [
        // As long as before, and its time set back.
        ("content", &|| {
            std::fs::write(&file, "two")?;
            File::options().write(true).open(&file)?.set_modified(mtime)
        }),
        ("mode", &|| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))
        }),
        ("a further name", &|| std::fs::hard_link(&file, folder.join("b"))),
        ("a name", &|| std::fs::rename(folder.join("b"), folder.join("c"))),
        ("a directory", &|| std::fs::create_dir(tree.path().join("e"))),
        ("a removal", &|| std::fs::remove_file(folder.join("c"))),
    ];
    for (what, change) in changes {
        // The kernel's clock for times of change ticks every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        change()?;
        let now = fingerprint(tree.path())?;
        assert_ne!(now, last, "{what}");
        last = now;
    }
    Ok(())
}
