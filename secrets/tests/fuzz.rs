//! What is fuzzed (see `fuzz/README.md`), on inputs of a fixed generator and on those that have found something.

#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

#[path = "../fuzz/case.rs"]
mod case;

#[test]
fn the_fuzzed_promises_hold_on_ten_thousand_inputs() {
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    for _ in 0..10_000 {
        let length = next() % 160;
        // Few letters make many near matches.
        let letters: &[u8] = if next() % 2 == 0 {
            b"ab\n {="
        } else {
            &[0, 1, 7, 9, b'a', b'*', b'+', 0xff, 23, 200]
        };
        let length_of = u64::try_from(letters.len()).expect("few letters");
        let letter = |at: u64| letters[usize::try_from(at % length_of).expect("few letters")];
        let input: Vec<u8> = (0..length).map(|_| letter(next())).collect();
        case::check(&input);
    }
}

#[test]
fn what_was_found_once_stays_right() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds");
    for seed in std::fs::read_dir(seeds).expect("the seeds") {
        case::check(&std::fs::read(seed.expect("a seed").path()).expect("it can be read"));
    }
}
