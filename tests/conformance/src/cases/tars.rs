//! The content of volumes, as tars in and out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream as streams};
use orchestra::{ByteStream, Error, ErrorKind, Result, VolumeId, VolumePath, file_from_tar, stream};

use super::case;
use crate::check::{Failure, Outcome, fails, holds, same};
use crate::context::Context;
use crate::suite::Case;
use crate::tarball::{self, Entry, Kind, pack, unpack};

pub(super) const CASES: &[Case] = &[
    case!(
        a_tar_comes_back_as_it_went_in,
        "Owners, permission bits, mtimes in seconds, symlinks and empty directories are kept."
    ),
    case!(hard_links_stay_links, "Hard links are kept."),
    case!(
        long_and_odd_names_are_kept,
        "Names up to the file system's limit are kept, whatever is in them."
    ),
    case!(
        files_that_exist_are_replaced_and_others_stay,
        "`write_volume` replaces files that exist; others stay."
    ),
    case!(
        a_tar_is_unpacked_at_the_path_that_is_named,
        "`write_volume` unpacks into the volume's directory `path`."
    ),
    case!(
        a_directory_that_is_not_there_is_not_made,
        "`write_volume` fails with `PathNotFound` if `path` does not exist."
    ),
    case!(
        chosen_paths_are_read_and_no_others,
        "`read_volume` packs what is asked for, with names relative to the volume's root."
    ),
    case!(
        a_path_that_is_not_there_is_not_found,
        "`read_volume` fails with `PathNotFound`, from the call or from the stream."
    ),
    case!(
        a_container_sees_what_a_tar_said,
        "What `write_volume` unpacks has its owner and mode in a container."
    ),
    case!(
        what_a_container_made_is_read,
        "What a container makes, `read_volume` tells with its owner and mode."
    ),
    case!(
        no_entry_is_written_outside_of_the_volume,
        "No entry is ever written outside of the volume."
    ),
    case!(
        an_error_of_the_tar_ends_the_call,
        "An error of `tar` ends `write_volume` with that error."
    ),
    case!(
        a_large_file_streams_in_and_out,
        "A file of 128 MiB passes in pieces, byte-exact."
    ),
];

/// Entries by name, without what tars may differ in.
async fn read(cx: &Context, volume: &VolumeId, paths: &[&str]) -> Outcome<BTreeMap<String, Entry>> {
    let paths = paths.iter().map(VolumePath::new).collect::<Result<Vec<_>>>()?;
    let mut entries = BTreeMap::new();
    for mut entry in unpack(cx.driver.read_volume(volume, &paths).await?).await? {
        // A directory's name may end in a slash.
        entry.path = entry.path.trim_end_matches('/').to_owned();
        if matches!(entry.kind, Kind::Symlink(_)) {
            // A link's own mode means nothing on Linux.
            entry.mode = 0o777;
        }
        entry.mode &= 0o7777;
        let name = entry.path.clone();
        holds(
            !name.is_empty() && name != "." && !name.starts_with("./"),
            format!("{name:?} is the name of an entry"),
        )?;
        holds(
            entries.insert(name.clone(), entry).is_none(),
            format!("{name:?} came twice"),
        )?;
    }
    Ok(entries)
}

async fn write(cx: &Context, volume: &VolumeId, path: &str, entries: &[Entry]) -> Result<()> {
    cx.driver
        .write_volume(volume, &VolumePath::new(path)?, stream::once(pack(entries)))
        .await
}

fn by_name(entries: &[Entry]) -> BTreeMap<String, Entry> {
    entries
        .iter()
        .map(|entry| (entry.path.clone(), entry.clone()))
        .collect()
}

/// Says which entry differs, not that two maps do.
fn same_entries(got: &BTreeMap<String, Entry>, wanted: &[Entry]) -> Outcome {
    let wanted = by_name(wanted);
    for (name, entry) in &wanted {
        same(format!("the entry {name:?}"), got.get(name), Some(entry))?;
    }
    let more: Vec<_> = got.keys().filter(|name| !wanted.contains_key(*name)).collect();
    holds(
        more.is_empty(),
        format!("there are more entries than were written: {more:?}"),
    )
}

async fn a_tar_comes_back_as_it_went_in(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("round").await?;
    let binary: Bytes = (0..=255u8).cycle().take(100_000).collect::<Vec<_>>().into();
    // In a user namespace there are only the ids that its user was given: 65,536 where useradd(8) gives them.
    let large = match cx.driver.info().capabilities.any_file {
        true => (70_000, 80_000),
        false => (60_000, 65_000),
    };
    let entries = [
        Entry::dir("dir").mode(0o750).owner(1000, 2000).mtime(1_000_000_000),
        Entry::file("dir/plain", "text")
            .mode(0o640)
            .owner(1, 2)
            .mtime(1_111_111_111),
        Entry::file("dir/binary", binary).mode(0o600).owner(large.0, large.1),
        Entry::file("empty", "").mode(0o444),
        Entry::file("setuid", "program").mode(0o4755).owner(1000, 1000),
        Entry::file("setgid", "program").mode(0o2755),
        Entry::dir("sticky").mode(0o1777),
        Entry::dir("nothing-in-it").mode(0o700).owner(5, 6).mtime(1_222_222_222),
        Entry::symlink("relative", "dir/plain"),
        Entry::symlink("dangling", "/nowhere/at/all"),
    ];
    write(&cx, &volume, ".", &entries).await?;
    same_entries(&read(&cx, &volume, &["."]).await?, &entries)
}

async fn hard_links_stay_links(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("links").await?;
    let entries = [
        Entry::dir("dir"),
        Entry::file("dir/a", "once"),
        Entry::hard_link("z", "dir/a"),
    ];
    write(&cx, &volume, ".", &entries).await?;
    let mut spec = cx.shell("echo more >> /v/z; cat /v/dir/a");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    same(
        "the file by its other name",
        cx.output("links", &spec).await?,
        "oncemore\n",
    )?;
    let got = read(&cx, &volume, &["."]).await?;
    // Which of the names comes first is the tar's own affair.
    let kinds: Vec<_> = ["dir/a", "z"]
        .iter()
        .filter_map(|name| got.get(*name).map(|entry| &entry.kind))
        .collect();
    let file = |kind: &Kind| *kind == Kind::File("oncemore\n".into());
    let link = |kind: &Kind, to: &str| matches!(kind, Kind::HardLink(target) if target.trim_start_matches("./") == to);
    let kept = match kinds[..] {
        [a, z] => (file(a) && link(z, "dir/a")) || (file(z) && link(a, "z")),
        _ => false,
    };
    holds(kept, format!("one is the file and the other a link to it: {kinds:?}"))
}

async fn long_and_odd_names_are_kept(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("names").await?;
    let long = |letter: &str, length| letter.repeat(length);
    let deep = format!("{}/{}/{}", long("d", 200), long("e", 200), long("f", 200));
    let entries = [
        Entry::file(long("a", 100), "100"),
        Entry::file(long("b", 101), "101"),
        Entry::file(long("c", 255), "255"),
        Entry::dir(long("d", 200)),
        Entry::dir(format!("{}/{}", long("d", 200), long("e", 200))),
        Entry::file(deep, "602"),
        Entry::symlink("long-link", long("t", 300)),
        Entry::file("with space and 'quotes' \"and\" $dollar", "odd"),
        Entry::file("ünïcödé-文件", "utf-8"),
        Entry::file("-rf", "an option"),
        Entry::file("..hidden", "two dots"),
    ];
    write(&cx, &volume, ".", &entries).await?;
    same_entries(&read(&cx, &volume, &["."]).await?, &entries)
}

async fn files_that_exist_are_replaced_and_others_stay(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("over").await?;
    let kept = Entry::file("dir/kept", "old").mode(0o600);
    write(
        &cx,
        &volume,
        ".",
        &[
            Entry::dir("dir"),
            kept.clone(),
            Entry::file("dir/replaced", "a longer old text"),
        ],
    )
    .await?;
    let new = Entry::file("dir/replaced", "new").mode(0o755).owner(7, 8);
    write(&cx, &volume, ".", std::slice::from_ref(&new)).await?;
    let mut got = read(&cx, &volume, &["."]).await?;
    got.remove("dir");
    same_entries(&got, &[kept, new])
}

async fn a_tar_is_unpacked_at_the_path_that_is_named(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("below").await?;
    write(&cx, &volume, ".", &[Entry::dir("a"), Entry::dir("a/b")]).await?;
    write(&cx, &volume, "a/b", &[Entry::file("c", "here")]).await?;
    same(
        "the names",
        read(&cx, &volume, &["."]).await?.into_keys().collect::<Vec<_>>(),
        vec!["a", "a/b", "a/b/c"],
    )
}

async fn a_directory_that_is_not_there_is_not_made(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("missing").await?;
    let answer = write(&cx, &volume, "no/such/dir", &[Entry::file("c", "here")]).await;
    fails("unpacking into nothing", answer, &[ErrorKind::PathNotFound])?;
    holds(read(&cx, &volume, &["."]).await?.is_empty(), "nothing was made")
}

async fn chosen_paths_are_read_and_no_others(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("chosen").await?;
    let entries = [
        Entry::dir("a"),
        Entry::file("a/1", "1"),
        Entry::file("a/2", "2"),
        Entry::dir("a/sub"),
        Entry::file("a/sub/3", "3"),
        Entry::file("ab", "a name that starts like another"),
        Entry::dir("b"),
        Entry::file("b/4", "4"),
        Entry::file("c", "5"),
    ];
    write(&cx, &volume, ".", &entries).await?;
    for (paths, wanted) in [
        (&["c"][..], vec!["c"]),
        (&["a/2"], vec!["a/2"]),
        (&["a"], vec!["a", "a/1", "a/2", "a/sub", "a/sub/3"]),
        (&["a/sub", "c"], vec!["a/sub", "a/sub/3", "c"]),
        (&["b/4", "ab"], vec!["ab", "b/4"]),
    ] {
        let got = read(&cx, &volume, paths).await?;
        same(
            format!("the names under {paths:?}"),
            got.keys().map(String::as_str).collect::<Vec<_>>(),
            wanted.clone(),
        )?;
        for name in wanted {
            same(
                format!("the entry {name:?}"),
                got.get(name),
                entries.iter().find(|entry| entry.path == name),
            )?;
        }
    }
    Ok(())
}

async fn a_path_that_is_not_there_is_not_found(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("paths").await?;
    write(&cx, &volume, ".", &[Entry::file("there", "1")]).await?;
    for paths in [&["nope"][..], &["no/such"], &["there", "nope"]] {
        let paths = paths.iter().map(VolumePath::new).collect::<Result<Vec<_>>>()?;
        let read = match cx.driver.read_volume(&volume, &paths).await {
            Ok(tar) => drain(tar).await.map(|_| ()),
            Err(error) => Err(error),
        };
        fails(format!("reading {paths:?}"), read, &[ErrorKind::PathNotFound])?;
    }
    Ok(())
}

async fn drain(mut bytes: ByteStream) -> Result<u64> {
    let mut total = 0;
    while let Some(piece) = bytes.next().await {
        total += piece?.len() as u64;
    }
    Ok(total)
}

async fn a_container_sees_what_a_tar_said(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("seen").await?;
    let entries = [
        Entry::dir("dir").mode(0o750).owner(11, 22),
        Entry::file("dir/file", "content")
            .mode(0o4711)
            .owner(33, 44)
            .mtime(1_234_567_890),
    ];
    write(&cx, &volume, ".", &entries).await?;
    let mut spec = cx.shell("stat -c '%a %u %g' /v/dir; stat -c '%a %u %g %s %Y' /v/dir/file; cat /v/dir/file");
    spec.mounts.push(cx.mount(&volume, "/v")?);
    let wanted = "750 11 22\n4711 33 44 7 1234567890\ncontent";
    same("what the container sees", cx.output("stat", &spec).await?, wanted)
}

async fn what_a_container_made_is_read(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("made").await?;
    let mut spec = cx.shell(
        "mkdir /v/dir && chmod 711 /v/dir && echo content > /v/dir/file && chown 12:34 /v/dir/file && chmod 4750 /v/dir/file && ln -s file /v/dir/link",
    );
    spec.mounts.push(cx.mount(&volume, "/v")?);
    cx.output("maker", &spec).await?;
    let got = read(&cx, &volume, &["dir"]).await?;
    let told: Vec<_> = got
        .values()
        .map(|entry| (entry.path.as_str(), entry.mode, entry.uid, entry.gid))
        .collect();
    let wanted = [
        ("dir", 0o711, 0, 0),
        ("dir/file", 0o4750, 12, 34),
        ("dir/link", 0o777, 0, 0),
    ];
    same("what is told", told, wanted)?;
    same(
        "the file",
        got.get("dir/file").map(|entry| &entry.kind),
        Some(&Kind::File("content\n".into())),
    )?;
    same(
        "the link",
        got.get("dir/link").map(|entry| &entry.kind),
        Some(&Kind::Symlink("file".to_owned())),
    )
}

async fn no_entry_is_written_outside_of_the_volume(cx: Arc<Context>) -> Outcome {
    let (volume, neighbour) = (cx.volume("trap").await?, cx.volume("neighbour").await?);
    // Where a driver whose volumes are directories would write, if it trusted a tar: on this machine, in another
    // container, in the volume beside this one. The name tells whose it is.
    let name = format!("escaped-{}", cx.job);
    let absolute = std::env::temp_dir().join(&name);
    let absolute = absolute.to_string_lossy();
    let attempts: Vec<Vec<Entry>> = vec![
        vec![Entry::file(format!("../{neighbour}/{name}"), "!")],
        vec![Entry::file(format!("../../{neighbour}/_data/{name}"), "!")],
        vec![Entry::file(format!("dir/../../{neighbour}/{name}"), "!")],
        vec![Entry::file(absolute.clone(), "!")],
        vec![Entry::file(format!("../../../../../../../../{absolute}"), "!")],
        vec![
            Entry::symlink("to-tmp", std::env::temp_dir().to_string_lossy()),
            Entry::file(format!("to-tmp/{name}"), "!"),
        ],
        vec![
            Entry::symlink("up", ".."),
            Entry::file(format!("up/{neighbour}/{name}"), "!"),
        ],
        vec![
            Entry::symlink("up2", "../.."),
            Entry::file(format!("up2/{neighbour}/_data/{name}"), "!"),
        ],
        vec![Entry::hard_link("stolen", "/etc/passwd")],
        vec![
            Entry::hard_link("stolen2", "../../../../../../../etc/passwd"),
            Entry::file("stolen2", "!"),
        ],
    ];
    for attempt in attempts {
        // Refusing it, leaving it out or keeping it inside are all right.
        match write(&cx, &volume, ".", &attempt).await {
            Ok(()) => {}
            Err(error) => holds(
                !error.is_retryable(),
                format!("a bad tar is no reason to try again: {error}"),
            )?,
        }
    }
    holds(
        !Path::new(absolute.as_ref()).exists(),
        format!("{absolute} was written on this machine"),
    )?;
    holds(
        read(&cx, &neighbour, &["."]).await?.is_empty(),
        "the volume beside it is empty",
    )?;
    let seen = cx
        .output(
            "looker",
            &cx.shell(&format!("if [ -e {absolute} ]; then echo escaped; fi")),
        )
        .await?;
    same("what another container sees", seen, "")?;
    for (path, entry) in read(&cx, &volume, &["."]).await? {
        holds(!path.split('/').any(|part| part == ".."), format!("{path} is inside"))?;
        let content = if let Kind::File(content) = entry.kind {
            content
        } else {
            Bytes::new()
        };
        holds(
            !content.starts_with(b"root:"),
            format!("{path} is not somebody else's file"),
        )?;
    }
    Ok(())
}

async fn an_error_of_the_tar_ends_the_call(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("broken").await?;
    let first = Bytes::from(Entry::file("first", "complete").to_bytes());
    let half = Bytes::from(Entry::file("second", "x".repeat(100_000)).to_bytes()).slice(..50_000);
    let error = Error::new(ErrorKind::Cancelled, "the source broke").with("source", "test");
    let tar = streams::iter([Ok(first), Ok(half), Err(error)]).boxed();
    let answer = cx.driver.write_volume(&volume, &VolumePath::root(), tar).await;
    let error = fails("a tar that breaks", answer, &[ErrorKind::Cancelled])?;
    same("its message", error.message(), "the source broke")?;
    write(&cx, &volume, ".", &[Entry::file("after", "the volume still works")]).await?;
    holds(
        read(&cx, &volume, &["."]).await?.contains_key("after"),
        "the volume can be written afterwards",
    )
}

/// 128 MiB in which every 64 KiB differ.
const LARGE: u64 = 128 << 20;
const PIECE: u64 = 64 << 10;

fn piece(index: u64) -> Bytes {
    let mut bytes = vec![(index % 251) as u8; PIECE as usize];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    bytes.into()
}

async fn a_large_file_streams_in_and_out(cx: Arc<Context>) -> Outcome {
    let volume = cx.volume("large").await?;
    // A header for a file of the whole size, and then the file, made as it is asked for.
    let header = tarball::file_header("large", LARGE);
    let pieces = streams::iter(0..LARGE / PIECE).map(|index| Ok(piece(index)));
    let tar = streams::iter([Ok(header)])
        .chain(pieces)
        .chain(streams::iter([Ok(Bytes::from_static(tarball::END))]));
    cx.driver
        .write_volume(&volume, &VolumePath::root(), tar.boxed())
        .await?;
    let path = VolumePath::new("large")?;
    let mut file = file_from_tar(
        cx.driver.read_volume(&volume, std::slice::from_ref(&path)).await?,
        &path,
    )
    .await?;
    let (mut position, mut wanted) = (0, Bytes::new());
    while let Some(bytes) = file.next().await {
        let mut bytes = bytes?;
        while !bytes.is_empty() {
            if wanted.is_empty() {
                wanted = piece(position / PIECE);
            }
            let length = bytes.len().min(wanted.len());
            if bytes.split_to(length) != wanted.split_to(length) {
                return Err(Failure::new(format!("the file differs after {position} bytes")));
            }
            position += length as u64;
        }
    }
    same("the size of the file", position, LARGE)
}
