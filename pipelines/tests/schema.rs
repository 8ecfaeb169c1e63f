//! The JSON Schema that is checked in is the one of this code, and says yes to all examples.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_schema_that_is_checked_in_is_current() {
    let file = root().join("pipeline.schema.json");
    let current = format!("{}\n", orchestra_pipelines::schema());
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&file, &current).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == current,
        "run the test again with UPDATE_SCHEMA=1, and look at what has changed"
    );
}

fn examples() -> Vec<PathBuf> {
    let files = std::fs::read_dir(root().join("../examples")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    files
        .filter(|file| file.extension().is_some_and(|end| end == "yml"))
        .collect()
}

fn value(text: &str) -> serde_json::Value {
    serde_saphyr::from_str(text).unwrap()
}

#[test]
fn the_schema_accepts_every_example_and_refuses_what_is_misspelt() {
    let schema: serde_json::Value = serde_json::from_str(&orchestra_pipelines::schema()).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let examples = examples();
    assert!(examples.len() >= 4, "{examples:?}");
    for file in examples {
        let text = std::fs::read_to_string(&file).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&value(&text))
            .map(|error| format!("{} at {}", error, error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", file.display());
    }
    for (text, valid) in [
        ("plan: [{ task: t, image: b, config: { run: { path: sh } } }]", true),
        (
            "plan: [{ task: t, image: b, attempts: ((n)), config: { run: { path: sh } } }]",
            true,
        ),
        ("plan: ((steps))", true),
        ("x-any: 1\nplan: []", true),
        ("plan: [{ tsak: t }]", false),
        ("plan: [{ task: t, config: { rnu: { path: sh } } }]", false),
        ("plan: [{ task: t, timeuot: 1m, config: { run: { path: sh } } }]", false),
        ("paln: []", false),
        ("plan: [{ in_parallel: { steps: [], limit: many } }]", false),
    ] {
        assert_eq!(validator.is_valid(&value(text)), valid, "{text}");
    }
}
