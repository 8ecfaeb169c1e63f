//! What the program exits with when it fails.

/// There is no such part, or its arguments are wrong.
pub const USAGE: u8 = 2;
/// The file or directory that was asked for is not there.
pub const NOT_FOUND: u8 = 3;
/// The input is no tar, or one that leads out of the tree.
pub const INVALID: u8 = 4;
/// A file, the input or the output could not be read or written.
pub const IO: u8 = 5;
/// There is no space left.
pub const DISK_FULL: u8 = 6;
/// The tree is what it was, and nothing was packed.
pub const UNCHANGED: u8 = 7;
