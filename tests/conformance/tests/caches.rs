//! The suite on the engine in memory with the layer of caches around it, which must change nothing for volumes that are no caches.

mod support;

use std::process::ExitCode;
use std::sync::Arc;

use orchestra::SharedDriver;
use orchestra_caches::{CachesLayer, CachesOptions, Store, StoreOptions};

fn wrap(driver: SharedDriver) -> SharedDriver {
    let mut options = StoreOptions::default();
    // It is never made: nothing is persisted.
    options.url = "file:///nowhere/orchestra-caches".to_owned();
    let store = Store::open(&options).unwrap_or_else(|error| panic!("{error}"));
    Arc::new(CachesLayer::new(driver, store, CachesOptions::default()))
}

fn main() -> ExitCode {
    let engine = support::engine();
    let settings = support::settings(&engine, Arc::new(wrap));
    orchestra_conformance::main(settings, move || {
        let driver = wrap(engine.driver());
        async move { Ok(driver) }
    })
}
