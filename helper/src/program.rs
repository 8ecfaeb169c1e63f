//! The program: its first argument says which part is asked for.

#![deny(unsafe_code)]

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let part = arguments.next().unwrap_or_default();
    eprintln!("orchestra-helper: there is no part {part:?}");
    ExitCode::from(2)
}
