//! `busybox:stable` and `busybox:stable-musl`, made from Debian's static busybox.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{BUSYBOX, BUSYBOX_ALSO, archive::Layer};
use crate::{fixtures, process};

/// Counts changes of what is below, which make another image of the same program.
const RECIPE: &[u8] = b"4";

const FOLDERS: [(&str, u32); 7] = [
    ("bin", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/guest", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("tmp", 0o1777),
];

/// Those users of the public image that tests name, to whom one of a usual number comes.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnobody:x:65534:\n";

/// The user 1000 of the image with nothing but busybox.
pub(crate) const GUEST: &str = "guest";

/// The image's docker archive.
pub(crate) fn archive() -> Result<PathBuf> {
    let program = program()?;
    let content = fs::read(&program)?;
    fixtures::get(
        &format!("busybox-{}.tar", fixtures::key(&[&content, RECIPE])),
        |archive| {
            let mut layer = Layer::new();
            add_base(&mut layer, &program, GUEST)?;
            let config = json!({
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["sh"],
            });
            layer.write_image(&[BUSYBOX, BUSYBOX_ALSO], &config, archive)
        },
    )
}

/// The path of a static busybox.
pub(crate) fn program() -> Result<PathBuf> {
    let program = process::find("busybox").context("there is no busybox: install the package busybox-static")?;
    if !is_static(&fs::read(&program)?) {
        bail!(
            "{} is not static: install the package busybox-static in its place",
            program.display()
        );
    }
    Ok(program)
}

/// Adds to a layer what an image needs for a shell: busybox under the names of all its applets, the usual folders, and
/// users, without whom engines take `/` for root's home; the one who is not root is called `user`.
pub(crate) fn add_base(layer: &mut Layer, program: &Path, user: &str) -> Result<()> {
    for (path, mode) in FOLDERS {
        layer.folder(path, mode)?;
    }
    let passwd = format!("{PASSWD}{user}:x:1000:1000:{user}:/home/{user}:/bin/sh\n");
    layer.file("etc/passwd", 0o644, passwd.as_bytes())?;
    layer.file("etc/group", 0o644, format!("{GROUP}{user}:x:1000:\n").as_bytes())?;
    layer.file("bin/busybox", 0o755, &fs::read(program)?)?;
    let applets = process::output(Command::new(program).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer.hard_link(&format!("bin/{applet}"), "bin/busybox")?;
    }
    Ok(())
}

/// Whether an ELF file names no dynamic linker. Its name would stand in the first page.
fn is_static(elf: &[u8]) -> bool {
    let head = &elf[..elf.len().min(4096)];
    !head
        .windows(7)
        .any(|window| window == b"/ld-lin" || window == b"/ld-mus")
}
