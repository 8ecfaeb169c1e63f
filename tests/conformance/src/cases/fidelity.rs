//! What goes into a volume comes out of it, exactly: by the driver itself where it says so, and above it where it has what
//! that takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream as streams};
use orchestra::tar::TarReader;
use orchestra::{ByteStream, Capabilities, ErrorKind, VolumeId, VolumePath, stream};
use orchestra_volumes::{ExactVolumes, directory};

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same};
use crate::context::Context;
use crate::suite::Case;
use crate::tarball::{self, Entry, Kind, pack, unpack};

/// A case of this module: it needs exact transfers, whoever makes them.
macro_rules! exact {
    (any file: $run:ident, $promise:literal) => {
        Case {
            requires: |capabilities, _| missing_for_any_file(capabilities),
            ..case!($run, $promise)
        }
    };
    ($run:ident, $promise:literal $(, deadlines $deadlines:literal)?) => {
        Case {
            requires: |capabilities, _| ExactVolumes::missing(capabilities),
            ..case!($run, $promise $(, deadlines $deadlines)?)
        }
    };
}

/// What exact transfers of any file lack here.
fn missing_for_any_file(capabilities: &Capabilities) -> Option<String> {
    let own = (!capabilities.any_file).then(|| "the engine lacks any_file".to_owned());
    ExactVolumes::missing(capabilities).or(own)
}

pub(super) const CASES: &[Case] = &[
    exact!(
        any file: exact_owners_and_modes_are_kept,
        "Owners up to 32 bits and modes with setuid, setgid and sticky bit come out as they went in."
    ),
    exact!(
        parts_of_seconds_are_kept,
        "Mtimes are kept to the nanosecond, of files, directories and symlinks."
    ),
    exact!(
        user_attributes_are_kept,
        "`user.*` attributes are kept, whatever is in them."
    ),
    exact!(file_capabilities_are_kept, "`security.capability` is kept."),
    exact!(
        any file: an_opaque_directory_stays_opaque,
        "`trusted.overlay.*` attributes are kept: what an overlay hides stays hidden."
    ),
    exact!(
        any file: whiteouts_stay_whiteouts,
        "Character device 0/0, other devices and fifos are kept."
    ),
    exact!(
        links_are_kept_with_what_they_share,
        "Symlinks with their owner, and hard links, of symlinks too."
    ),
    exact!(
        holes_stay_holes,
        "A sparse file comes out sparse, with its data where it was."
    ),
    exact!(
        names_that_are_no_text_are_kept,
        "Names of 255 bytes and names that are not UTF-8 are kept."
    ),
    exact!(
        an_exact_tar_replaces_what_is_there,
        "A file replaces a symlink, and a directory keeps what is in it."
    ),
    exact!(
        an_exact_transfer_tells_errors_apart,
        "`VolumeNotFound`, `PathNotFound`, what is no tar, and the tar's own error."
    ),
    exact!(
        no_exact_entry_is_written_outside_of_the_volume,
        "No entry is ever written outside of the volume, by a name or through a symlink."
    ),
    exact!(
        an_exact_reader_that_is_dropped_frees_the_volume,
        "Dropping the stream of an exact read leaves the volume free to be removed."
    ),
    exact!(
        a_hundred_thousand_files_go_in_and_out,
        "A tree of 100,000 small files streams through.",
        deadlines 3
    ),
    exact!(
        one_large_file_goes_in_and_out_exactly,
        "A file of gigabytes streams through, byte for byte.",
        deadlines 8
    ),
];

fn exact(cx: &Context) -> Outcome<ExactVolumes> {
    Ok(ExactVolumes::new(cx.driver.clone(), cx.job.clone())?)
}

/// The ways that this process has into a volume: past the engine, where volumes are directories of this machine, and through it.
fn ways(cx: &Context) -> Outcome<Vec<(&'static str, ExactVolumes)>> {
    let mut ways = vec![("through", exact(cx)?.through_engine())];
    if cx.driver.info().capabilities.volume_directories && directory::has_all_rights() {
        ways.push(("past", exact(cx)?));
    }
    Ok(ways)
}

async fn write(cx: &Context, volume: &VolumeId, entries: &[Entry]) -> Outcome {
    let tar = stream::once(pack(entries));
    Ok(exact(cx)?.write(volume, &VolumePath::root(), tar).await?)
}

async fn read(cx: &Context, volume: &VolumeId) -> Outcome<BTreeMap<String, Entry>> {
    let tar = exact(cx)?.read(volume, &[VolumePath::root()]).await?;
    let entries = unpack(tar).await?.into_iter();
    Ok(entries
        .map(|entry| (entry.path.trim_end_matches('/').to_owned(), entry))
        .collect())
}

/// What the entries are after they went into one volume, out of it, into another and out of that: once past the engine, where
/// there is such a way, and once through it.
async fn carried(cx: &Context, entries: &[Entry]) -> Outcome<BTreeMap<String, Entry>> {
    let (first, second) = (cx.volume("first").await?, cx.volume("second").await?);
    write(cx, &first, entries).await?;
    let volumes = exact(cx)?.through_engine();
    let tar = volumes.read(&first, &[VolumePath::root()]).await?;
    volumes.write(&second, &VolumePath::root(), tar).await?;
    read(cx, &second).await
}

/// The entry of that name, of what came out.
fn found<'a>(all: &'a BTreeMap<String, Entry>, path: &str) -> Outcome<&'a Entry> {
    let missing = || Failure::new(format!("{path} is not among {:?}", all.keys().collect::<Vec<_>>()));
    all.get(path).ok_or_else(missing)
}

async fn exact_owners_and_modes_are_kept(cx: Arc<Context>) -> Outcome {
    let entries = [
        Entry::dir("d").mode(0o1777).owner(5, 6),
        Entry::file("d/setuid", "x").mode(0o4755).owner(1000, 1001),
        Entry::file("setgid", "x").mode(0o2711).owner(70_000, 0),
        // More than a header's field has room for.
        Entry::file("far", "x").mode(0o600).owner(3_000_000, 60_000),
        Entry::dir("closed").mode(0o000).owner(7, 8),
        Entry::file("closed/in", "x").mode(0o000),
    ];
    let all = carried(&cx, &entries).await?;
    for entry in &entries {
        let read = found(&all, &entry.path)?;
        same(
            format!("mode and owner of {}", entry.path),
            (read.mode & 0o7777, read.uid, read.gid),
            (entry.mode, entry.uid, entry.gid),
        )?;
    }
    Ok(())
}

async fn parts_of_seconds_are_kept(cx: Arc<Context>) -> Outcome {
    let time = "1234567890.123456789";
    let entries = [
        Entry::dir("d").record("mtime", time),
        // After it: what is put into a directory changes its time.
        Entry::file("d/file", "x").record("mtime", "1700000000.000000001"),
        Entry::symlink("link", "d").record("mtime", time),
        Entry::file("whole", "x").record("mtime", "1700000000"),
    ];
    let all = carried(&cx, &entries).await?;
    for entry in &entries {
        same(
            format!("the time of {}", entry.path),
            found(&all, &entry.path)?.time(),
            entry.time(),
        )?;
    }
    Ok(())
}

async fn attributes_are_kept(cx: &Context, entries: &[Entry]) -> Outcome {
    let all = carried(cx, entries).await?;
    for entry in entries {
        let mut read = found(&all, &entry.path)?.attributes();
        // An engine may put a label on all files.
        read.remove("security.selinux");
        same(format!("the attributes of {}", entry.path), read, entry.attributes())?;
    }
    Ok(())
}

async fn user_attributes_are_kept(cx: Arc<Context>) -> Outcome {
    let entries = [
        Entry::file("file", "x")
            .attribute("user.text", "value")
            .attribute("user.bytes", *b"\0=\n\xff"),
        Entry::file("empty", "").attribute("user.empty", ""),
        Entry::dir("dir").attribute("user.large", vec![b'v'; 2000]),
        Entry::file("none", "x"),
    ];
    attributes_are_kept(&cx, &entries).await
}

/// `cap_net_bind_service+ep`, version 2 ([capabilities(7)](https://man7.org/linux/man-pages/man7/capabilities.7.html)).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

async fn file_capabilities_are_kept(cx: Arc<Context>) -> Outcome {
    let program = Entry::file("program", "x").mode(0o755).owner(5, 5);
    attributes_are_kept(&cx, &[program.attribute("security.capability", CAPABILITY)]).await
}

async fn an_opaque_directory_stays_opaque(cx: Arc<Context>) -> Outcome {
    let entries = [
        Entry::dir("upper").attribute("trusted.overlay.opaque", "y"),
        Entry::file("upper/file", "x")
            .attribute("trusted.overlay.origin", *b"\0\xfb\x1d\0")
            .attribute("user.also", "this"),
        Entry::dir("lower"),
    ];
    attributes_are_kept(&cx, &entries).await
}

async fn whiteouts_stay_whiteouts(cx: Arc<Context>) -> Outcome {
    let entries = [
        Entry::special("whiteout", b'3', 0, 0),
        Entry::special("null", b'3', 1, 3).owner(5, 6),
        Entry::special("block", b'4', 259, 70_000),
        Entry::special("fifo", b'6', 0, 0),
    ];
    let all = carried(&cx, &entries).await?;
    for entry in &entries {
        let read = found(&all, &entry.path)?;
        same(
            format!("what {} is", entry.path),
            (&read.kind, read.mode & 0o7777, read.uid),
            (&entry.kind, entry.mode, entry.uid),
        )?;
    }
    Ok(())
}

async fn links_are_kept_with_what_they_share(cx: Arc<Context>) -> Outcome {
    let entries = [
        Entry::file("a", "shared").owner(5, 6),
        Entry::hard_link("b", "a"),
        Entry::symlink("link", "/nowhere/../at all").owner(7, 8),
        Entry::hard_link("link again", "link"),
        Entry::symlink("long", "t".repeat(3000)),
    ];
    let all = carried(&cx, &entries).await?;
    same(
        "the second name",
        &found(&all, "b")?.kind,
        &Kind::HardLink("a".to_owned()),
    )?;
    let link = found(&all, "link")?;
    same(
        "the symlink",
        (&link.kind, link.uid, link.gid),
        (&entries[2].kind, 7, 8),
    )?;
    let again = &found(&all, "link again")?.kind;
    same("the symlink's second name", again, &Kind::HardLink("link".to_owned()))?;
    same("the long symlink", &found(&all, "long")?.kind, &entries[4].kind)
}

async fn holes_stay_holes(cx: Arc<Context>) -> Outcome {
    const SIZE: u64 = 64 << 20;
    let entries = [
        Entry::sparse("sparse", SIZE, &[(8 << 20, "in the middle"), (SIZE - 3, "end")]),
        Entry::sparse("hole", SIZE, &[]),
    ];
    let all = carried(&cx, &entries).await?;
    for (path, wanted) in [
        (
            "sparse",
            &[(8_usize << 20, "in the middle"), (SIZE as usize - 3, "end")][..],
        ),
        ("hole", &[]),
    ] {
        let entry = found(&all, path)?;
        let (carried, content) = entry
            .expanded()
            .ok_or_else(|| Failure::new(format!("{path} came out without its holes: {:?}", entry.records)))?;
        holds(carried < 1 << 20, format!("{path} has {carried} bytes of data"))?;
        let mut expected = vec![0; SIZE as usize];
        for (at, data) in wanted {
            expected[*at..*at + data.len()].copy_from_slice(data.as_bytes());
        }
        holds(content == expected, format!("{path} has its data where it was"))?;
    }
    Ok(())
}

async fn names_that_are_no_text_are_kept(cx: Arc<Context>) -> Outcome {
    let names = [
        "n".repeat(255),
        tarball::text(&[0xff; 255]),
        tarball::text(b"\xfe\xff a\tb\\c"),
        "ümläut".to_owned(),
        " leading".to_owned(),
    ];
    let mut entries: Vec<Entry> = names.iter().map(|name| Entry::file(name, "x")).collect();
    let deep = names[1].clone();
    entries.push(Entry::dir("d"));
    entries.push(Entry::file(format!("d/{deep}"), "deep").attribute("user.a", "b"));
    let all = carried(&cx, &entries).await?;
    same(
        "the names",
        all.keys().collect::<Vec<_>>(),
        entries
            .iter()
            .map(|entry| &entry.path)
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>(),
    )
}

async fn an_exact_tar_replaces_what_is_there(cx: Arc<Context>) -> Outcome {
    for (way, volumes) in ways(&cx)? {
        let volume = cx.volume(way).await?;
        replaces_what_is_there(&cx, &volume, &volumes).await?;
    }
    Ok(())
}

async fn replaces_what_is_there(cx: &Context, volume: &VolumeId, volumes: &ExactVolumes) -> Outcome {
    let old = [
        Entry::dir("d").mode(0o700),
        Entry::file("d/old", "old"),
        Entry::file("target", "untouched"),
        Entry::symlink("link", "target"),
        Entry::file("file", "old").attribute("user.old", "x"),
    ];
    let new = [
        Entry::dir("d").mode(0o755).attribute("user.new", "x"),
        Entry::file("d/new", "new"),
        Entry::file("link", "a file now"),
        Entry::file("file", "new"),
    ];
    for entries in [&old[..], &new] {
        let tar = stream::once(pack(entries));
        volumes.write(volume, &VolumePath::root(), tar).await?;
    }
    let all = read(cx, volume).await?;
    let file = |content: &str| Kind::File(Bytes::copy_from_slice(content.as_bytes()));
    for (path, content) in [
        ("d/old", "old"),
        ("d/new", "new"),
        ("target", "untouched"),
        ("link", "a file now"),
        ("file", "new"),
    ] {
        same(path, &found(&all, path)?.kind, &file(content))?;
    }
    same(
        "the attributes of a new file",
        found(&all, "file")?.attributes().len(),
        0,
    )?;
    let directory = found(&all, "d")?;
    same(
        "the directory's mode and attributes",
        (directory.mode & 0o7777, directory.attributes().len()),
        (0o755, 1),
    )
}

async fn an_exact_transfer_tells_errors_apart(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("volume").await?;
    for (_, volumes) in ways(&cx)? {
        tells_errors_apart(&cx, &volume, &volumes).await?;
    }
    Ok(())
}

async fn tells_errors_apart(cx: &Context, volume: &VolumeId, volumes: &ExactVolumes) -> Outcome {
    let root = VolumePath::root();
    let tar = || stream::once(pack(&[Entry::file("a", "a")]));
    let read = async |id: &VolumeId, path: &VolumePath| match volumes.read(id, std::slice::from_ref(path)).await {
        Ok(tar) => unpack(tar).await.map(|_| ()),
        Err(error) => Err(error),
    };
    let (nowhere, missing) = (cx.volume_id("never-made"), VolumePath::new("not/there")?);
    let answer = volumes.write(&nowhere, &root, tar()).await;
    fails("a write to no volume", answer, &[ErrorKind::VolumeNotFound])?;
    fails(
        "a read of no volume",
        read(&nowhere, &root).await,
        &[ErrorKind::VolumeNotFound],
    )?;
    let answer = volumes.write(volume, &missing, tar()).await;
    fails("a write to no directory", answer, &[ErrorKind::PathNotFound])?;
    fails(
        "a read of no file",
        read(volume, &missing).await,
        &[ErrorKind::PathNotFound],
    )?;
    let answer = volumes.write(volume, &root, stream::once(vec![7; 5000])).await;
    fails("what is no tar", answer, &[ErrorKind::InvalidInput])?;
    let pieces = [
        Ok(tarball::file_header("cut", 1 << 20)),
        Err(orchestra::Error::new(ErrorKind::Cancelled, "the source broke")),
    ];
    let broken: ByteStream = streams::iter(pieces).boxed();
    let answer = volumes.write(volume, &root, broken).await;
    let error = fails("a tar that breaks", answer, &[ErrorKind::Cancelled])?;
    same("its message", error.message(), "the source broke")?;
    let left = cx.listed().await?;
    same("what is left besides the volume", left.len(), 1)
}

async fn no_exact_entry_is_written_outside_of_the_volume(cx: Arc<Context>) -> Outcome {
    for (way, volumes) in ways(&cx)? {
        let (volume, root) = (cx.volume(way).await?, VolumePath::root());
        for bad in ["../escaped", "d/../../escaped"] {
            let tar = stream::once(pack(&[Entry::file(bad, "x")]));
            let answer = volumes.write(&volume, &root, tar).await;
            holds(answer.is_err(), format!("{bad} is refused"))?;
        }
        let through = [
            Entry::symlink("out", "/tmp"),
            Entry::dir("tmp"),
            Entry::file("out/file", "x"),
        ];
        volumes.write(&volume, &root, stream::once(pack(&through))).await?;
        found(&read(&cx, &volume).await?, "tmp/file")?;
    }
    Ok(())
}

async fn an_exact_reader_that_is_dropped_frees_the_volume(cx: Arc<Context>) -> Outcome {
    for (way, volumes) in ways(&cx)? {
        let volume = cx.volume(way).await?;
        dropped_reader_frees(&cx, &volume, &volumes).await?;
    }
    Ok(())
}

async fn dropped_reader_frees(cx: &Context, volume: &VolumeId, volumes: &ExactVolumes) -> Outcome {
    write(cx, volume, &[Entry::file("large", "x".repeat(8 << 20))]).await?;
    let mut tar = volumes.read(volume, &[VolumePath::root()]).await?;
    holds(tar.next().await.is_some_and(|piece| piece.is_ok()), "the tar begins")?;
    drop(tar);
    for _ in 0..100 {
        match cx.driver.remove_volume(volume).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            answer => return Ok(answer?),
        }
    }
    Err(Failure::new(
        "the volume is still in use 10 s after its reader was dropped",
    ))
}

async fn a_hundred_thousand_files_go_in_and_out(cx: Arc<Context>) -> Outcome {
    const FILES: u32 = 100_000;
    let volume = cx.volume("volume").await?;
    let name = |index: u32| format!("d{}/f{index}", index / 1000);
    let files = streams::iter(0..FILES / 1000).map(move |group| {
        let mut bytes = Entry::dir(format!("d{group}")).to_bytes();
        for index in group * 1000..(group + 1) * 1000 {
            bytes.extend(Entry::file(name(index), index.to_string()).to_bytes());
        }
        Ok(Bytes::from(bytes))
    });
    let tar = files.chain(stream::once(tarball::END)).boxed();
    let volumes = exact(&cx)?;
    volumes
        .clone()
        .through_engine()
        .write(&volume, &VolumePath::root(), tar)
        .await?;
    let (mut files, mut directories) = (0, 0);
    let tar = volumes.read(&volume, &[VolumePath::root()]).await?;
    tarball::for_each(tar, |entry| {
        match &entry.kind {
            Kind::Directory => directories += 1,
            Kind::File(content) if entry.path.ends_with(&format!("/f{}", String::from_utf8_lossy(content))) => {
                files += 1;
            }
            other => return Err(orchestra::Error::invalid(format!("{} is {other:?}", entry.path))),
        }
        Ok(())
    })
    .await?;
    same("files and directories", (files, directories), (FILES, FILES / 1000))?;
    // An engine may need longer for it than a case's clean-up has.
    Ok(cx.driver.remove_volume(&volume).await?)
}

async fn one_large_file_goes_in_and_out_exactly(cx: Arc<Context>) -> Outcome {
    const PIECE: u64 = 256 << 10;
    let size = cx.settings.volume_bytes.next_multiple_of(PIECE);
    let piece = |index: u64| {
        let mut bytes = vec![(index % 251) as u8 + 1; PIECE as usize];
        bytes[..8].copy_from_slice(&index.to_le_bytes());
        Bytes::from(bytes)
    };
    let volume = cx.volume("volume").await?;
    let tar = stream::once(tarball::file_header("large", size))
        .chain(streams::iter(0..size / PIECE).map(move |index| Ok(piece(index))))
        .chain(stream::once(tarball::END));
    let volumes = exact(&cx)?;
    volumes.write(&volume, &VolumePath::root(), tar.boxed()).await?;
    let mut tar = TarReader::new(
        volumes
            .through_engine()
            .read(&volume, &[VolumePath::new("large")?])
            .await?,
        ErrorKind::InvalidInput,
    );
    let member = tar.next().await?.ok_or_else(|| Failure::new("the tar is empty"))?;
    same("the size of the file", member.size, size)?;
    let (mut at, mut wanted) = (0, Bytes::new());
    while let Some(mut bytes) = tar.content().await? {
        while !bytes.is_empty() {
            if wanted.is_empty() {
                wanted = piece(at / PIECE);
            }
            let length = bytes.len().min(wanted.len());
            if bytes.split_to(length) != wanted.split_to(length) {
                return Err(Failure::new(format!("the file differs after {at} bytes")));
            }
            at += length as u64;
        }
    }
    same("the bytes that came", at, size)?;
    Ok(tar.drain().await?)
}
