//! What is fuzzed is in `secrets/fuzz/case.rs`, where the crate's own tests have it too.

#![no_main]

#[path = "../case.rs"]
mod case;

libfuzzer_sys::fuzz_target!(|input: &[u8]| case::check(input));
