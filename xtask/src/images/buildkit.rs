//! `moby/buildkit` and its rootless twin, assembled from the real programs.
//!
//! BuildKit's own programs come from its Go module, at the version and checksums that `tests/buildkit/go.mod` and
//! `go.sum` pin, and rootlesskit with them; runc, git, uidmap and busybox are this distribution's. What differs from the real
//! image: no emulators for other architectures, no CNI plugins, no programs that git speaks to other hosts by than its own
//! protocol's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{BUILDKIT, BUILDKIT_ROOTLESS, archive::Layer, busybox};
use crate::{fixtures, process, term};

/// Counts changes of what is below, which make another image of the same programs.
const RECIPE: &[u8] = b"6";

/// The programs that the module's `tool` lines name.
const PROGRAMS: &[&str] = &["buildkitd", "buildctl", "rootlesskit"];

/// The one of them that is an image of its own: what `docker/dockerfile` has.
const FRONTEND: &str = "dockerfile-frontend";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the real image copies from the module's source.
const SCRIPTS: &[&str] = &[
    "examples/buildctl-daemonless/buildctl-daemonless.sh",
    "hack/buildkitd-entrypoint",
    "hack/with-cgroupfs-remount",
];

/// What git runs, of the folder of its own programs.
const GIT_SCRIPTS: &[&str] = &["git-submodule", "git-sh-setup", "git-sh-i18n"];

const MODULE: &str = "github.com/moby/buildkit";

/// The image's docker archive.
pub(crate) fn archive() -> Result<PathBuf> {
    let parts = Parts::find(&[])?;
    fixtures::get(&format!("buildkit-{}-{}.tar", version(), parts.key), |archive| {
        let config = json!({
            "Env": [PATH, "BUILDKIT_SETUP_CGROUPV2_ROOT=1"],
            "Entrypoint": ["/usr/bin/buildkitd-entrypoint"],
            "Volumes": {"/var/lib/buildkit": {}},
        });
        parts.layer(busybox::GUEST)?.write_image(&[BUILDKIT], &config, archive)
    })
}

/// The docker archive of the image whose user is not root.
pub(crate) fn rootless_archive() -> Result<PathBuf> {
    let parts = Parts::find(&["newuidmap", "newgidmap"])?;
    fixtures::get(
        &format!("buildkit-rootless-{}-{}.tar", version(), parts.key),
        |archive| {
            let mut layer = parts.layer("user")?;
            // Instead of the setuid bit, which an engine may not let through; capabilities(7).
            for (mapper, (name, capability)) in parts.mappers.iter().zip([("newuidmap", 7), ("newgidmap", 6)]) {
                layer.capable_file(&format!("usr/bin/{name}"), capability, &fs::read(mapper)?)?;
            }
            for file in ["etc/subuid", "etc/subgid"] {
                layer.file(file, 0o644, b"user:100000:65536\n")?;
            }
            layer.folder("run/user", 0o755)?;
            for folder in ["run/user/1000", "home/user", "home/user/.local", "home/user/.local/tmp"] {
                layer.folder_of(1000, folder, 0o755)?;
            }
            layer.folder_of(1000, "home/user/.local/share", 0o755)?;
            layer.folder_of(1000, "home/user/.local/share/buildkit", 0o755)?;
            let config = json!({
                "Env": [
                    PATH,
                    "HOME=/home/user",
                    "USER=user",
                    "XDG_RUNTIME_DIR=/run/user/1000",
                    "TMPDIR=/home/user/.local/tmp",
                    "BUILDKIT_HOST=unix:///run/user/1000/buildkit/buildkitd.sock",
                ],
                "User": "1000:1000",
                "Entrypoint": ["rootlesskit", "buildkitd"],
                "Volumes": {"/home/user/.local/share/buildkit": {}},
            });
            layer.write_image(&[BUILDKIT_ROOTLESS], &config, archive)
        },
    )
}

/// The program that reads Dockerfiles for a builder which fetches it.
pub(crate) fn frontend() -> Result<PathBuf> {
    Ok(go_programs()?.join(FRONTEND))
}

/// What the images are made of.
struct Parts {
    programs: PathBuf,
    runc: PathBuf,
    git: PathBuf,
    busybox: PathBuf,
    mappers: Vec<PathBuf>,
    key: String,
}

impl Parts {
    fn find(mappers: &[&str]) -> Result<Self> {
        let [runc, git] = ["runc", "git"]
            .map(|name| process::find(name).with_context(|| format!("there is no {name}: install the package {name}")));
        let (runc, git) = (runc?, git?);
        let (programs, busybox) = (go_programs()?, busybox::program()?);
        let mut key = vec![
            file_name(&programs).into_bytes(),
            fs::read(&runc)?,
            fs::read(&git)?,
            fs::read(&busybox)?,
            RECIPE.to_vec(),
        ];
        let mappers = mappers
            .iter()
            .map(|name| {
                let path =
                    process::find(name).with_context(|| format!("there is no {name}: install the package uidmap"))?;
                key.push(fs::read(&path)?);
                Ok(path)
            })
            .collect::<Result<Vec<_>>>()?;
        let key = fixtures::key(&key.iter().map(Vec::as_slice).collect::<Vec<_>>());
        Ok(Self {
            programs,
            runc,
            git,
            busybox,
            mappers,
            key,
        })
    }

    /// What both images have.
    fn layer(&self, user: &str) -> Result<Layer> {
        let mut layer = Layer::new();
        busybox::add_base(&mut layer, &self.busybox, user)?;
        layer.folder("usr", 0o755)?;
        layer.folder("usr/bin", 0o755)?;
        for program in PROGRAMS.iter().chain(SCRIPTS).map(|path| file_name(Path::new(path))) {
            let content = fs::read(self.programs.join(&program))?;
            layer.file(&format!("usr/bin/{program}"), 0o755, &content)?;
        }
        layer.file("usr/bin/buildkit-runc", 0o755, &fs::read(&self.runc)?)?;
        layer.file("usr/bin/git", 0o755, &fs::read(&self.git)?)?;
        let folder = PathBuf::from(process::output(Command::new(&self.git).arg("--exec-path"))?.trim());
        layer.folder("usr/lib", 0o755)?;
        layer.folder("usr/lib/git-core", 0o755)?;
        for script in GIT_SCRIPTS {
            layer.file(
                &format!("usr/lib/git-core/{script}"),
                0o755,
                &fs::read(folder.join(script))?,
            )?;
        }
        let mut libraries = libraries(&self.runc)?;
        for program in self.mappers.iter().chain([&self.git]) {
            libraries.extend(self::libraries(program)?);
        }
        libraries.sort();
        libraries.dedup();
        for library in libraries {
            let path = library.trim_start_matches('/');
            layer.file(path, 0o755, &fs::read(&library).with_context(|| library.clone())?)?;
        }
        // For registries that are not on loopback, where there are any.
        if let Ok(certificates) = fs::read("/etc/ssl/certs/ca-certificates.crt") {
            layer.file("etc/ssl/certs/ca-certificates.crt", 0o644, &certificates)?;
        }
        Ok(layer)
    }
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
