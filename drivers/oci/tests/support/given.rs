//! Where tests run that need root, runc and the network's plugins.

#![expect(
    clippy::print_stdout,
    unreachable_pub,
    reason = "a module of several test programs, which says when a test is skipped"
)]

/// Whether `cargo xtask e2e --driver containerd` runs this, beside an engine and in a network namespace of its own.
pub fn is_given() -> bool {
    let given = std::env::var("ORCHESTRA_TEST_DRIVER").is_ok_and(|driver| driver == "containerd");
    if !given {
        println!("skipped: ORCHESTRA_TEST_DRIVER is not containerd; run this by `cargo xtask e2e`");
    }
    given
}
