//! What the README shows is what the examples hold, and the examples run (the pipelines in `cli/`).

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The README's code block that follows the marker `<!-- path -->`.
fn shown(readme: &str, path: &str) -> String {
    let (_, after) = readme
        .split_once(&format!("<!-- {path} -->\n```"))
        .unwrap_or_else(|| panic!("the README does not show {path}"));
    let code = after.split_once('\n').and_then(|(_, rest)| rest.split_once("```\n"));
    code.unwrap_or_else(|| panic!("the code block of {path} does not end"))
        .0
        .to_owned()
}

/// An example without the comment that opens it.
fn without_header(text: &str) -> &str {
    let body = text
        .lines()
        .take_while(|line| line.starts_with("//") || line.starts_with('#') || line.is_empty());
    let skip: usize = body.map(|line| line.len() + 1).sum();
    &text[skip..]
}

#[test]
fn the_readme_shows_the_examples_as_they_are() {
    let readme = read("README.md");
    for path in [
        "examples/hello.yml",
        "examples/typescript/hello.ts",
        "examples/secrets.yml",
        "examples/embed.rs",
    ] {
        let file = read(path);
        assert_eq!(
            shown(&readme, path),
            without_header(&file),
            "{path} and the README differ"
        );
    }
}

#[test]
fn the_readme_counts_the_cases_of_the_conformance_suite() {
    let all = orchestra_conformance::Suite::cases().len();
    let readme = read("README.md");
    assert!(
        readme.contains(&format!("one conformance suite of {all} cases")),
        "{all}"
    );
    // What passed on an engine, and what it rules out with the number of cases in brackets. One case wants AppArmor.
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let mut rows = 0;
    for row in readme.lines() {
        let (before, after) = row.split_once(" passed").unwrap_or_default();
        let Some(passed) = before.rsplit(' ').next().and_then(number) else {
            continue;
        };
        let first = after.split('|').next().unwrap_or_default();
        let without = first
            .split('(')
            .skip(1)
            .filter_map(|part| number(part.split(')').next()?));
        assert_eq!(passed + without.sum::<usize>() + 1, all, "{row}");
        rows += 1;
    }
    assert_eq!(rows, 4, "the table of engines is found");
}

#[test]
fn the_embedding_examples_run_and_leave_nothing() {
    let Ok(driver) = std::env::var("ORCHESTRA_TEST_DRIVER") else {
        return println!("skipped: needs an engine, see `cargo xtask e2e`");
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for (example, said) in [
        ("embed", "hello from another task\n"),
        ("store", "as ***REDACTED*** with 23 bytes: ***REDACTED***\n23\n"),
    ] {
        let run = [
            "run",
            "--quiet",
            "--offline",
            "-p",
            "orchestra-examples",
            "--bin",
            example,
            "--",
            &driver,
        ];
        let output = Command::new(&cargo).args(run).current_dir(root()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{example}: {stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), said, "{example}: {stderr}");
    }
}
