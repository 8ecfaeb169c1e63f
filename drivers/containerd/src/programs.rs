//! The programs that containerd runs: looked for where it would find them, when a container can't be made.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The program that containerd starts for each container.
pub(crate) const SHIM: &str = "containerd-shim-runc-v2";

/// Which of the programs that make containers the containerd of this process lacks, each with the package that has it.
/// Nothing where that can't be seen. Blocking.
pub(crate) fn missing(containerd: Option<u32>, runtime: Option<&str>) -> Vec<String> {
    let Some(containerd) = containerd else {
        return Vec::new();
    };
    let Ok(environment) = std::fs::read(format!("/proc/{containerd}/environ")) else {
        return Vec::new();
    };
    let path = environment
        .split(|byte| *byte == 0)
        .find_map(|one| one.strip_prefix(b"PATH="));
    let folders = std::env::split_paths(OsStr::from_bytes(path.unwrap_or_default()));
    let folders: Vec<PathBuf> = folders.collect();
    // Shims are looked for beside it, too.
    let program = std::fs::read_link(format!("/proc/{containerd}/exe"));
    let beside = program.ok().and_then(|program| Some(program.parent()?.to_owned()));
    let root = PathBuf::from(format!("/proc/{containerd}/root"));
    missing_in(&root, &folders, beside.as_deref(), runtime)
}

fn missing_in(root: &Path, folders: &[PathBuf], beside: Option<&Path>, runtime: Option<&str>) -> Vec<String> {
    let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let is_there = |program: &str| match Path::new(program) {
        path if path.is_absolute() => std::fs::symlink_metadata(below(path)).is_ok(),
        // A link leads within containerd's root: that it is there has to do.
        name => folders
            .iter()
            .any(|folder| std::fs::symlink_metadata(below(&folder.join(name))).is_ok()),
    };
    let runtime = runtime.unwrap_or("runc");
    let mut missing = Vec::new();
    let beside = beside.and_then(|folder| folder.join(SHIM).to_str().map(str::to_owned));
    if !is_there(SHIM) && !beside.is_some_and(|shim| is_there(&shim)) {
        missing.push(format!("{SHIM} (package containerd)"));
    }
    if !is_there(runtime) {
        missing.push(match runtime {
            "runc" => "runc (package runc)".to_owned(),
            other => format!("the runtime {other} of the driver's configuration (runc comes with the package runc)"),
        });
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package_and_what_is_there_is_not() {
        let root = tempfile::tempdir().unwrap();
        let folders = [PathBuf::from("/usr/bin"), PathBuf::from("/usr/local/bin")];
        std::fs::create_dir_all(root.path().join("usr/local/bin")).unwrap();
        let told = |runtime| missing_in(root.path(), &folders, None, runtime).join(", ");
        let neither = "containerd-shim-runc-v2 (package containerd), runc (package runc)";
        assert_eq!(told(None), neither);
        std::fs::write(root.path().join("usr/local/bin/runc"), "").unwrap();
        assert_eq!(told(None), "containerd-shim-runc-v2 (package containerd)");
        std::fs::write(root.path().join("usr/local/bin").join(SHIM), "").unwrap();
        assert_eq!(told(None), "");
        assert_eq!(told(Some("/usr/local/bin/runc")), "");
        let beside = missing_in(root.path(), &[], Some(Path::new("/usr/local/bin")), None);
        assert_eq!(beside, ["runc (package runc)"], "only shims are looked for beside it");
        assert!(told(Some("/opt/runc")).contains("/opt/runc"));
        assert!(
            missing(Some(u32::MAX), None).is_empty(),
            "nothing is said of what can't be seen"
        );
    }
}
