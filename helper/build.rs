//! Compiles `src/program.rs` into one static file, which the library carries.
//!
//! Cargo has no stable way to depend on a program, so this calls the compiler itself: the program needs nothing but the
//! standard library. musl is taken where its target is installed; else the C library's static archive, which every
//! distribution's development package for it has.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rustc-check-cfg=cfg(has_program)");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("orchestra-helper");
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut said = String::new();
    for libc in ["musl", "gnu"] {
        let target = format!("{architecture}-unknown-linux-{libc}");
        if !is_installed(&rustc, &target) {
            said.push_str(&format!("the target {target} is not installed; "));
            continue;
        }
        match compile(&rustc, &target, &out) {
            Ok(()) => {
                println!("cargo::rustc-env=ORCHESTRA_HELPER={}", out.display());
                println!("cargo::rustc-cfg=has_program");
                return;
            }
            Err(error) => said.push_str(&format!("for {target}: {error}; ")),
        }
    }
    println!(
        "cargo::warning=orchestra-helper is built without its program, and what needs it is refused: {}",
        said.replace('\n', " ")
    );
}

fn is_installed(rustc: &OsString, target: &str) -> bool {
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", target])
        .output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

fn compile(rustc: &OsString, target: &str, out: &Path) -> Result<(), String> {
    let output = Command::new(rustc)
        .args([
            "src/program.rs",
            "--crate-name=orchestra_helper",
            "--crate-type=bin",
            "--edition=2024",
        ])
        .arg(format!("--target={target}"))
        .args([
            "-Ctarget-feature=+crt-static",
            "-Crelocation-model=static",
            "-Copt-level=3",
            "-Cpanic=abort",
        ])
        .args(["-Cstrip=symbols", "-Ccodegen-units=1"])
        .arg("-o")
        .arg(out)
        .output()
        .map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
