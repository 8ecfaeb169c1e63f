//! Tars that somebody made to deceive: whatever they hold, what is passed on has no device that was not asked for, and
//! the program that unpacks it touches nothing outside of the volume.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use orchestra::tar::{END, padded, record};
use orchestra_helper::tree;
use proptest::prelude::*;
use proptest::sample::select;

use super::checked;

const BLOCK: usize = 512;

/// A member, true or false.
#[derive(Clone, Debug)]
struct Lie {
    kind: u8,
    name: &'static str,
    link: &'static str,
    /// What its header says; `None` says the truth.
    size: Option<u64>,
    magic: &'static [u8],
    /// Whether a sparse map is said to go on.
    more: bool,
    records: Vec<(&'static str, &'static str)>,
    /// Whether the records are said to be for all that follows.
    global: bool,
    long_name: Option<&'static str>,
    long_link: Option<&'static str>,
    content: Vec<Content>,
}

/// A block of content.
#[derive(Clone, Copy, Debug)]
enum Content {
    Text,
    Zeros,
    /// What is a member to who takes it for no content: a device, and a file that is no place of the volume's.
    Device,
    Escape,
    Digits,
}

fn header(kind: u8, name: &str, link: &str, size: u64, magic: &[u8], more: bool) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(157, &link.as_bytes()[..link.len().min(100)]);
    put(257, magic);
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    if more {
        put(482, &[1]);
    }
    block[156] = kind;
    let sum: u32 = (0..BLOCK)
        .map(|at| {
            if (148..156).contains(&at) {
                32
            } else {
                u32::from(block[at])
            }
        })
        .sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

const USTAR: &[u8] = b"ustar\x0000";

impl Content {
    fn block(self) -> [u8; BLOCK] {
        match self {
            Self::Text => [b'x'; BLOCK],
            Self::Zeros => [0; BLOCK],
            Self::Device => header(b'3', "smuggled", "", 0, USTAR, false),
            Self::Escape => header(b'0', "../outside/new", "", 0, USTAR, false),
            Self::Digits => {
                let mut block = [b'\n'; BLOCK];
                block[..6].copy_from_slice(b"1\n0\n9\n");
                block
            }
        }
    }
}

impl Lie {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, long) in [(b'L', self.long_name), (b'K', self.long_link)] {
            if let Some(long) = long {
                bytes.extend(header(
                    kind,
                    "././@LongLink",
                    "",
                    long.len() as u64,
                    b"ustar  \0",
                    false,
                ));
                bytes.extend_from_slice(&padded(long.as_bytes()));
            }
        }
        if !self.records.is_empty() {
            let body: Vec<u8> = self
                .records
                .iter()
                .flat_map(|(key, value)| record(key.as_bytes(), value.as_bytes()))
                .collect();
            let kind = if self.global { b'g' } else { b'x' };
            bytes.extend(header(kind, "records", "", body.len() as u64, USTAR, false));
            bytes.extend_from_slice(&padded(&body));
        }
        let size = self.size.unwrap_or((self.content.len() * BLOCK) as u64);
        bytes.extend(header(self.kind, self.name, self.link, size, self.magic, self.more));
        for content in &self.content {
            bytes.extend(content.block());
        }
        bytes
    }
}

/// Mostly harmless parts: a tar that is refused at once shows little.
fn lie() -> impl Strategy<Value = Lie> {
    let evil_name = select(vec![
        "way/new",
        "way",
        "up/new",
        "up",
        "../outside/new",
        "a/../../outside/new",
        "/../outside/file",
        "..",
        "/",
        "",
    ]);
    let name = prop_oneof![3 => select(vec!["a", "a/b", "d/", "d/x", "d/./x", "hard"]), 2 => evil_name];
    let link = select(vec![
        "",
        "a",
        "..",
        "../outside",
        "../outside/file",
        "way/file",
        "up/file",
        "/",
        "d",
        "d/../../outside/file",
    ]);
    let kind = prop_oneof![3 => Just(b'0'), 1 => Just(b'S'), 4 => select(b"122334567\0DVgxLKZ".to_vec())];
    let size = prop_oneof![
        4 => Just(None),
        4 => select(vec![Some(0), Some(1), Some(512), Some(1024), Some(1536)]),
        1 => select(vec![Some(u64::MAX), Some(i64::MAX as u64)]),
    ];
    let records = select(vec![
        ("size", "0"),
        ("size", "512"),
        ("size", "1024"),
        ("size", "18446744073709551615"),
        ("size", "9223372036854775807"),
        ("size", "-1"),
        ("path", "../outside/new"),
        ("path", "way/file"),
        ("path", "renamed"),
        ("linkpath", "../outside/file"),
        ("linkpath", "way/file"),
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "../outside/new"),
        ("GNU.sparse.realsize", "9"),
        ("GNU.sparse.realsize", "18446744073709551615"),
        ("GNU.sparse.size", "512"),
        ("GNU.sparse.map", "0,512"),
        ("GNU.sparse.map", "0,18446744073709551615"),
        ("SCHILY.xattr.user.x", "y"),
        ("comment", "z"),
        ("mtime", "-1.5"),
    ]);
    let content = select(vec![
        Content::Text,
        Content::Zeros,
        Content::Device,
        Content::Device,
        Content::Escape,
        Content::Digits,
    ]);
    (
        (kind, name.clone(), link.clone(), size),
        (
            select(vec![USTAR, b"ustar  \0".as_slice(), b"\0\0\0\0\0\0\0\0".as_slice()]),
            any::<bool>(),
            proptest::collection::vec(records, 0..3),
            any::<bool>(),
        ),
        (
            proptest::option::weighted(0.1, name),
            proptest::option::weighted(0.1, link),
            proptest::collection::vec(content, 0..4),
        ),
    )
        .prop_map(
            |((kind, name, link, size), (magic, more, records, global), (long_name, long_link, content))| Lie {
                kind,
                name,
                link,
                size,
                magic,
                more,
                records,
                global,
                long_name,
                long_link,
                content,
            },
        )
}

/// Type, number of names, mode, time and content of a file.
type Seen = (fs::FileType, u64, u32, i64, i64, Option<Vec<u8>>);

/// All that is to be seen of a tree, by path.
fn seen(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut all, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = meta.is_file().then(|| fs::read(&path).ok()).flatten();
        let what = (
            meta.file_type(),
            meta.nlink(),
            meta.mode(),
            meta.mtime(),
            meta.mtime_nsec(),
            content,
        );
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()));
        }
        all.insert(path, what);
    }
    all
}

/// What is passed on until the end, or until it is refused.
fn passed_on(bytes: &[u8]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let pieces: Vec<_> = bytes
            .chunks(700)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        let mut tar = checked(stream::iter(pieces).boxed(), false);
        let mut all = Vec::new();
        while let Some(Ok(piece)) = tar.next().await {
            all.extend_from_slice(&piece);
        }
        all
    })
}

/// Unpacks into a volume that already has ways out of it, and looks.
fn unpacked_harmlessly(bytes: &[u8]) {
    let place = tempfile::tempdir().unwrap();
    let (volume, outside) = (place.path().join("volume"), place.path().join("outside"));
    for folder in [&volume, &outside, &volume.join("d")] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(outside.join("file"), "mine").unwrap();
    symlink(&outside, volume.join("way")).unwrap();
    symlink("../outside", volume.join("up")).unwrap();
    let before = seen(&outside);
    // It may well be refused, at any point.
    let _ = tree::unpack(&volume, Path::new(""), &mut &*bytes);
    assert!(before == seen(&outside), "something outside of the volume was touched");
    assert_eq!(
        fs::read_dir(place.path()).unwrap().count(),
        2,
        "something stands beside the volume"
    );
    for (path, (kind, ..)) in seen(&volume) {
        assert!(
            !kind.is_char_device() && !kind.is_block_device(),
            "the device {} came through",
            path.display()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn a_tar_that_lies_brings_no_device_and_leaves_the_volume_nowhere(
        lies in proptest::collection::vec(lie(), 1..5),
        ends in any::<bool>(),
    ) {
        let mut bytes: Vec<u8> = lies.iter().flat_map(Lie::bytes).collect();
        if ends {
            bytes.extend_from_slice(&END);
        }
        unpacked_harmlessly(&passed_on(&bytes));
    }
}

/// One lie of each kind that two readers of tars were seen to take differently.
#[test]
fn what_one_reader_takes_for_content_is_no_member_to_another() {
    let plain = Lie {
        kind: b'0',
        name: "a",
        link: "",
        size: None,
        magic: USTAR,
        more: false,
        records: Vec::new(),
        global: false,
        long_name: None,
        long_link: None,
        content: vec![Content::Device],
    };
    let global = Lie {
        records: vec![("size", "0")],
        global: true,
        ..plain.clone()
    };
    let sparse = Lie {
        kind: b'S',
        size: Some(0),
        more: true,
        content: Vec::new(),
        ..plain.clone()
    };
    let label = Lie {
        kind: b'V',
        records: vec![("size", "512")],
        size: Some(0),
        ..plain.clone()
    };
    for (lies, refused) in [(vec![global], true), (vec![sparse, plain], true), (vec![label], false)] {
        let mut bytes: Vec<u8> = lies.iter().flat_map(Lie::bytes).collect();
        bytes.extend_from_slice(&END);
        unpacked_harmlessly(&passed_on(&bytes));
        assert_eq!(passed_on(&bytes).is_empty(), refused, "{lies:?}");
    }
}
