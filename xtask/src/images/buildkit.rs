//! `moby/buildkit`, assembled from the real programs.
//!
//! BuildKit's own programs come from its Go module, at the version and checksums that `tests/buildkit/go.mod` and
//! `go.sum` pin; runc and busybox are this distribution's. What differs from the real image: no emulators for other
//! architectures, no CNI plugins, no git.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{BUILDKIT, archive::Layer, busybox};
use crate::{fixtures, process, term};

/// Counts changes of what is below, which make another image of the same programs.
const RECIPE: &[u8] = b"3";

/// The programs that the module's `tool` lines name.
const PROGRAMS: &[&str] = &["buildkitd", "buildctl"];

/// What the real image copies from the module's source.
const SCRIPTS: &[&str] = &[
    "examples/buildctl-daemonless/buildctl-daemonless.sh",
    "hack/buildkitd-entrypoint",
    "hack/with-cgroupfs-remount",
];

const MODULE: &str = "github.com/moby/buildkit";

/// The image's docker archive.
pub(crate) fn archive() -> Result<PathBuf> {
    let runc = process::find("runc").context("there is no runc: install the package runc")?;
    let programs = go_programs()?;
    let busybox = busybox::program()?;
    let key = fixtures::key(&[
        file_name(&programs).as_bytes(),
        &fs::read(&runc)?,
        &fs::read(&busybox)?,
        RECIPE,
    ]);
    fixtures::get(&format!("buildkit-{}-{key}.tar", version()), |archive| {
        let mut layer = Layer::new();
        busybox::add_base(&mut layer, &busybox)?;
        layer.folder("usr", 0o755)?;
        layer.folder("usr/bin", 0o755)?;
        for program in PROGRAMS.iter().chain(SCRIPTS).map(|path| file_name(Path::new(path))) {
            layer.file(
                &format!("usr/bin/{program}"),
                0o755,
                &fs::read(programs.join(&program))?,
            )?;
        }
        layer.file("usr/bin/buildkit-runc", 0o755, &fs::read(&runc)?)?;
        for library in libraries(&runc)? {
            let path = library.trim_start_matches('/');
            layer.file(path, 0o755, &fs::read(&library).with_context(|| library.clone())?)?;
        }
        // For registries that are not on loopback, where there are any.
        if let Ok(certificates) = fs::read("/etc/ssl/certs/ca-certificates.crt") {
            layer.file("etc/ssl/certs/ca-certificates.crt", 0o644, &certificates)?;
        }
        let config = json!({
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "BUILDKIT_SETUP_CGROUPV2_ROOT=1",
            ],
            "Entrypoint": ["/usr/bin/buildkitd-entrypoint"],
            "Volumes": {"/var/lib/buildkit": {}},
        });
        layer.write_image(BUILDKIT, &config, archive)
    })
}

/// The version in the image's tag.
fn version() -> &'static str {
    BUILDKIT.rsplit(':').next().unwrap_or_default()
}

/// A folder with BuildKit's programs. They are a fixture apart from the image, as they take minutes to build
/// and change less often.
fn go_programs() -> Result<PathBuf> {
    let module = fixtures::repository().join("tests/buildkit");
    let scripts = SCRIPTS.concat();
    let key = fixtures::key(&[
        &fs::read(module.join("go.mod"))?,
        &fs::read(module.join("go.sum"))?,
        scripts.as_bytes(),
    ]);
    fixtures::get(&format!("buildkit-programs-{}-{key}", version()), |folder| {
        if process::find("go").is_none() {
            bail!("there is no go: install Go, of the version in tests/buildkit/go.mod or newer");
        }
        fs::create_dir_all(folder)?;
        let flags = format!("-s -w -X {MODULE}/version.Version={}", version());
        term::note("building BuildKit from its Go module, which takes some minutes the first time");
        process::output(
            go(&module)
                .args(["install", "-trimpath", "-ldflags", &flags, "tool"])
                .env("GOBIN", folder),
        )?;
        let source = process::output(go(&module).args(["list", "-m", "-f", "{{.Dir}}", MODULE]))?;
        for script in SCRIPTS.iter().map(|script| Path::new(&source).join(script)) {
            let copy = folder.join(file_name(&script));
            fs::copy(&script, copy).with_context(|| format!("cannot copy {}", script.display()))?;
        }
        Ok(())
    })
}

/// The `go` command in a module of ours.
pub(crate) fn go(module: &Path) -> Command {
    let mut command = Command::new("go");
    // The module proxy has the checksums of all modules, go.sum those of ours: nothing is resolved anew.
    command
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly");
    command
}

/// The shared libraries of a program, its dynamic linker among them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    Ok(parse_ldd(&process::output(Command::new("ldd").arg(program))?))
}

fn parse_ldd(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(String::from)
        .collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_go_module_pins_the_version_of_the_tag() {
        let module = fs::read_to_string(fixtures::repository().join("tests/buildkit/go.mod")).unwrap();
        assert!(module.contains(&format!("{MODULE} {} ", version())), "{module}");
    }

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        let output = "\tlinux-vdso.so.1 (0x0)\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n\t/lib64/ld.so.2 (0x2)\n";
        assert_eq!(parse_ldd(output), ["/lib/libc.so.6", "/lib64/ld.so.2"]);
    }
}
