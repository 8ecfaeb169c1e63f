//! The program: its first argument says which part is asked for.

#![deny(unsafe_code)]

mod init;

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let part = arguments.next().unwrap_or_default();
    match part.to_str() {
        Some("init") => init::run(arguments),
        _ => {
            eprintln!("orchestra-helper: there is no part {part:?}");
            ExitCode::from(2)
        }
    }
}
