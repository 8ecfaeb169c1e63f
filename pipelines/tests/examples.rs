//! The folder of examples has each step, modifier and global, and the keys of tasks and jobs that a person looks for first. The
//! end-to-end tests run it.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

/// All files of a folder whose names end so, without their comments.
fn texts(folder: &str, end: &str, comment: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(folder);
    let mut all = String::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.to_string_lossy().ends_with(end) {
            for line in std::fs::read_to_string(path).unwrap().lines() {
                if !line.trim_start().starts_with(comment) {
                    let cut = line.find(&format!(" {comment}")).map_or(line, |at| &line[..at]);
                    all = all + cut + "\n";
                }
            }
        }
    }
    all
}

fn is_key_of(text: &str, key: &str) -> bool {
    text.match_indices(key).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        text[at + key.len()..].starts_with(':') && before.is_none_or(|c| c.is_whitespace() || "{[-".contains(c))
    })
}

#[test]
fn the_keys_of_a_pipeline_have_examples() {
    let text = texts("", ".yml", "#");
    let missing: Vec<&str> = "
        jobs name plan serial serial_groups resources resource_types
        task build_image do in_parallel steps limit fail_fast try across var values max_in_flight load_var file format reveal get put
        passed trigger version params get_params no_get resource
        timeout attempts on_success on_failure on_error on_abort ensure assert code stdout stderr execution
        config image image_resource source repository tag username password
        vars input_mapping output_mapping inputs outputs path optional run args dir user
        limits container_limits cpu memory privileged parallelism network hermetic security
        env secret_env secret_files caches key restore_keys scope size_limit policy paths platform
        context dockerfile push build_args target registry insecure platforms
    "
    .split_whitespace()
    .filter(|key| !is_key_of(&text, key))
    .collect();
    assert!(missing.is_empty(), "no example has {missing:?}");
}

#[test]
fn every_global_of_a_script_has_an_example() {
    let text = texts("typescript", ".ts", "//") + &texts("typescript/lib", ".ts", "//");
    let missing: Vec<&str> = "
        runtime.run( runtime.startSandbox( .exec( .close( volumes.create( .readFiles( .readFile( .writeFiles( image.build(
        caches.restore( caches.persist( pipeline.job( pipeline.stage( pipelineContext. assert.equal( assert.deepEqual(
        assert.rejects( assert.contains( yaml.parse( yaml.stringify( console.log( process.stdout.write( setTimeout( fetch(
        onOutput allowFailure: TaskError import export
    "
    .split_whitespace()
    .filter(|global| !text.contains(global))
    .collect();
    assert!(missing.is_empty(), "no example has {missing:?}");
}
