//! Any text is either a pipeline or refused: no panic, no endless loop, and every problem has a place in the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orchestra_pipelines::Pipeline;

fuzz_target!(|text: &str| match Pipeline::parse("fuzz.yml", text) {
    Ok(pipeline) => {
        pipeline.mermaid();
        pipeline.svg();
    }
    Err(invalid) => {
        assert!(!invalid.problems().is_empty());
        for place in invalid.problems().iter().flat_map(|problem| &problem.places) {
            assert!(text.get(place.span.clone()).is_some(), "{place:?}");
        }
    }
});
