//! The suite for drivers on the layer: it keeps every promise of the driver it is around.

#![expect(clippy::expect_used, reason = "a test may fail")]

use std::process::ExitCode;

use orchestra_conformance::Settings;
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_secrets::{MemoryStore, Scope, SecretKey, Secrets, SecretsLayer};

fn main() -> ExitCode {
    let settings = Settings::new("busybox:stable".parse().expect("a valid name"));
    let engine = MemoryEngine::new();
    engine
        .add_image("busybox:stable", MemoryImage::busybox())
        .expect("a valid name");
    let key = SecretKey::new("TOKEN").expect("a valid key");
    let store = MemoryStore::new().with(Scope::Global, key, "hunter2-token".into());
    let secrets = Secrets::new([Scope::Global]).store("memory", store);
    orchestra_conformance::main(settings, move || {
        let driver = SecretsLayer::wrap(engine.driver(), secrets.clone());
        async move { Ok(driver) }
    })
}
