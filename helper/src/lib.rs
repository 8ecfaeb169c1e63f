//! One small static program of ours, which runs where nothing else is sure to be: inside of a container whose image
//! holds no shell, or beside an engine that has no one to keep a log. It needs no C library, no loader and no file but
//! itself.
//!
//! ```
//! if let Some(program) = orchestra_helper::program(std::env::consts::ARCH) {
//!     assert_eq!(&program[..4], b"\x7fELF");
//! }
//! ```
//!
//! Its parts are modules of this library too, so that what runs on this host can call them without a program.

pub mod exit;
pub mod init;
pub mod keep_log;
pub mod shim;
pub mod tree;

/// The program, an ELF file without any dependency, for an `architecture` as [`std::env::consts::ARCH`] names it:
/// `None` for others than this library was built for, or where the compiler had no static C library.
#[must_use]
pub fn program(architecture: &str) -> Option<&'static [u8]> {
    PROGRAM.filter(|_| architecture == std::env::consts::ARCH)
}

#[cfg(has_program)]
const PROGRAM: Option<&[u8]> = Some(include_bytes!(env!("ORCHESTRA_HELPER")));
#[cfg(not(has_program))]
const PROGRAM: Option<&[u8]> = None;
