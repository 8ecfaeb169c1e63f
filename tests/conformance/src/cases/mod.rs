//! The cases, one module a subject. Each is a function, and a line in its module's `CASES` that says the promise in a sentence
//! and what is needed to try it.

mod containers;
mod create;
mod engine;
mod exec;
mod failures;
mod fidelity;
mod files;
mod images;
mod isolation;
mod jobs;
mod limits;
mod logs;
mod ownership;
mod process;
mod pulls;
mod reattach;
mod stdin;
mod tars;
mod volumes;

use crate::suite::Case;

pub(crate) use reattach::{VARIABLE as FIRST_PROCESS, first_process};

/// A [`Case`] from a function's name and its promise; then the [`Capabilities`](orchestra::Capabilities) it needs, what it
/// needs of the [`Settings`](crate::Settings), and how many times their deadline it may take.
macro_rules! case {
    ($run:ident, $promise:literal
        $(, needs $($capability:ident)+)? $(, requires $requires:path)? $(, deadlines $deadlines:literal)?) => {
        $crate::suite::Case {
            name: stringify!($run),
            promise: $promise,
            requires: |capabilities, settings| {
                let _ = (capabilities, settings);
                $($(if !capabilities.$capability {
                    return Some(concat!("the engine lacks ", stringify!($capability)).to_owned());
                })+)?
                $(if let Some(reason) = $requires(settings) {
                    return Some(reason);
                })?
                None
            },
            deadlines: 1 $(- 1 + $deadlines)?,
            run: |cx| Box::pin($run(cx)),
        }
    };
}
use case;

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [
        engine::CASES,
        images::CASES,
        pulls::CASES,
        volumes::CASES,
        tars::CASES,
        fidelity::CASES,
        create::CASES,
        files::CASES,
        containers::CASES,
        process::CASES,
        stdin::CASES,
        logs::CASES,
        exec::CASES,
        isolation::CASES,
        limits::CASES,
        ownership::CASES,
        reattach::CASES,
        failures::CASES,
        jobs::CASES,
    ]
    .concat()
}
