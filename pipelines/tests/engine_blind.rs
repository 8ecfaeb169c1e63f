//! What is written against the trait names no engine: neither in its sources nor among what it depends on. And what drives an
//! engine talks to it: it starts no client program of one.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

const CRATES: [&str; 5] = ["pipelines", "typescript", "image-build", "caches", "secrets"];
const ENGINES: [&str; 4] = ["docker", "podman", "containerd", "bollard"];

/// What has an engine's name in it and means none: a file format and BuildKit's exporter of it, its scheme for
/// references and Concourse's type of resource, a file's and a registry's name.
const NAMES_OF_OTHER_THINGS: [&str; 12] = [
    "Dockerfile",
    "dockerfile",
    "DOCKERFILE",
    "docker archive",
    "type=docker",
    ".docker/config.json",
    "docker-image",
    "docker.io",
    "DOCKER_IO",
    "DOCKER_CONFIG",
    "docker-credential-",
    "use-docker-config",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else {
            found.push(entry);
        }
    }
}

/// A line without its comment and without what only looks like an engine's name.
fn code(line: &str) -> String {
    let code = if line.trim_start().starts_with("//") || line.trim_start().starts_with('#') {
        ""
    } else {
        line.split(" // ").next().unwrap_or(line)
    };
    NAMES_OF_OTHER_THINGS
        .iter()
        .fold(code.to_owned(), |code, name| code.replace(name, ""))
}

fn names(line: &str) -> bool {
    let code = code(line).to_ascii_lowercase();
    ENGINES.iter().any(|engine| code.contains(engine))
}

#[test]
fn caches_secrets_image_builds_and_pipelines_name_no_engine() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for folder in CRATES
        .iter()
        .map(|name| root.join(name))
        .filter(|folder| folder.exists())
    {
        files.push(folder.join("Cargo.toml"));
        sources(&folder.join("src"), &mut files);
    }
    assert!(files.len() > 20, "the sources were found: {files:?}");
    let mut found = Vec::new();
    for file in &files {
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        // Tests may name what they like.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = text.lines().enumerate().filter(|(_, line)| names(line));
        found.extend(lines.map(|(at, line)| format!("{}:{}: {}", file.display(), at + 1, line.trim())));
    }
    assert!(found.is_empty(), "an engine is named:\n{}", found.join("\n"));
}

/// What starts programs in the crates below the trait: CNI's plugins are programs by their specification, and a log's keeper
/// is one of ours.
const START_PROGRAMS: [&str; 2] = ["drivers/oci/src/cni/plugin.rs", "drivers/oci/src/logs/mod.rs"];

#[test]
fn drivers_start_no_client_of_an_engine() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for driver in ["docker", "podman", "containerd", "oci"] {
        sources(&root.join("drivers").join(driver).join("src"), &mut files);
    }
    let starts = |file: &&PathBuf| {
        let text = std::fs::read_to_string(file).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        text.lines().map(code).any(|line| line.contains("Command"))
    };
    let mut found: Vec<_> = files.iter().filter(starts).collect();
    found.sort();
    let known: Vec<_> = START_PROGRAMS.iter().map(|file| root.join(file)).collect();
    assert_eq!(found, known.iter().collect::<Vec<_>>());
}

#[test]
fn the_search_finds_an_engine_and_lets_other_things_be() {
    for line in [
        "bollard = \"1\"",
        "if driver == \"podman\" {",
        "let socket = \"/run/docker.sock\"; // a comment",
    ] {
        assert!(names(line), "{line}");
    }
    for line in [
        "/// like docker",
        "let file = \"Dockerfile\";",
        "\"/root/.docker/config.json\"",
        "host == \"docker.io\"",
        "x(); // as podman does",
    ] {
        assert!(!names(line), "{line}");
    }
}
