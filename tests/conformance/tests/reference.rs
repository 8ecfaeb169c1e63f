//! The suite on the engine in memory: it must pass there, or a case is wrong.

mod support;

use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let engine = support::engine();
    let settings = support::settings(&engine, Arc::new(|driver| driver));
    orchestra_conformance::main(settings, move || {
        let driver = engine.driver();
        async move { Ok(driver) }
    })
}
