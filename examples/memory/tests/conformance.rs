//! The suite on this driver: a third party's whole test target. What a driver of a real engine has shorter still is in
//! `docs/writing-a-driver.md`.

use std::process::ExitCode;

use orchestra_conformance::{Settings, main as conformance};
use orchestra_memory::{MemoryEngine, MemoryImage};

fn main() -> ExitCode {
    let engine = MemoryEngine::new();
    let image = "busybox:stable";
    let (Ok(mut settings), Ok(())) = (Settings::from_env(), engine.add_image(image, MemoryImage::busybox())) else {
        return ExitCode::FAILURE;
    };
    // It is all in memory; a driver of a real engine leaves the sizes as they are.
    (settings.log_bytes, settings.volume_bytes) = (16 << 20, 16 << 20);
    conformance(settings, move || {
        let driver = engine.driver();
        async move { Ok(driver) }
    })
}
