//! The YAML front end: text in, a [`Pipeline`] or everything that is wrong with it out.
//!
//! Text becomes a [tree](tree) in which every node knows its place; a [reader] takes typed values out of it, by the [fields]
//! of its maps, and collects problems; [pipeline] reads jobs and follows artifacts from step to step, [task] and [build] read the steps.

pub(crate) mod across;
mod build;
mod fields;
mod flow;
pub(crate) mod late;
mod load_var;
pub(crate) mod loaded;
mod pipeline;
mod reader;
mod resource;
pub(crate) mod schema;
mod single;
mod step;
mod steps;
mod task;
mod tree;
pub(crate) mod variables;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use orchestra_secrets::Secrets;
use sha2::{Digest, Sha256};

use self::reader::Reader;
pub use self::single::SingleStep;
use self::tree::SyntaxError;
pub(crate) use self::tree::{Node, Value};
use self::variables::Interpolation;
use crate::values::{Fetched, Values, Variables};
use crate::{Invalid, Pipeline};

/// A thousand steps with scripts of their own are about half a megabyte.
const MAX_BYTES: usize = 4 << 20;

impl Pipeline {
    /// Reads and checks a pipeline's file that refers to no variables and no secrets.
    ///
    /// # Errors
    /// [`Invalid`] with all that is wrong with it; nothing has been run.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Invalid> {
        let (name, text) = read(path.as_ref())?;
        Self::parse(&name, &text)
    }

    /// Reads and checks a pipeline's file. Each secret it refers to is fetched, once.
    ///
    /// # Errors
    /// [`Invalid`] with all that is wrong with it, a missing secret included; nothing has been run.
    pub async fn read_with(path: impl AsRef<Path>, values: &Values) -> Result<Self, Invalid> {
        let (name, text) = read(path.as_ref())?;
        Self::parse_with(&name, &text, values).await
    }

    /// Reads and checks a pipeline's text that refers to no variables and no secrets. `name` stands in messages; a bare
    /// plan's job is called after it.
    ///
    /// # Errors
    /// [`Invalid`] with all that is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, Invalid> {
        let root = root(name, text)?;
        finish(name, text, root, &Variables::default(), &Fetched::default())
    }

    /// As [`parse`](Self::parse), with variables and secrets, each of which is fetched once.
    ///
    /// # Errors
    /// [`Invalid`] with all that is wrong with it, a missing secret included.
    pub async fn parse_with(name: &str, text: &str, values: &Values) -> Result<Self, Invalid> {
        let root = root(name, text)?;
        let mut wanted = BTreeSet::new();
        variables::references(&root, &values.variables, &mut wanted);
        let fetched = Fetched::new(values.secrets.as_ref(), wanted).await;
        finish(name, text, root, &values.variables, &fetched)
    }
}

/// A file's name and text.
fn read(path: &Path) -> Result<(String, String), Invalid> {
    let name = path.display().to_string();
    let refuse = |error: &std::io::Error| match error.kind() {
        ErrorKind::NotFound => Invalid::file(
            &name,
            "there is no such file",
            "check the path; it is relative to where you are",
        ),
        ErrorKind::PermissionDenied => {
            Invalid::file(&name, "you may not read this file", "check the file's permissions")
        }
        ErrorKind::IsADirectory => Invalid::file(&name, "it is a directory", "name a file in it"),
        _ => Invalid::file(&name, error.to_string(), "check that it is a file that can be read"),
    };
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| refuse(&error))?;
    if bytes.len() > MAX_BYTES {
        let message = format!("it is larger than {} MiB, which no pipeline is", MAX_BYTES >> 20);
        return Err(Invalid::file(
            &name,
            message,
            "check that it is the file you mean, or split it",
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = format!("line {line} is not UTF-8 text");
        Invalid::file(
            &name,
            message,
            "save it as UTF-8, and check that it is a pipeline and not something else",
        )
    })?;
    Ok((name, text))
}

fn root(name: &str, text: &str) -> Result<Node, Invalid> {
    let empty = || Invalid::file(name, "it is empty", "start with `plan:` and a list of steps");
    if text.trim().is_empty() {
        return Err(empty());
    }
    let root = tree::parse(text).map_err(|error| no_yaml(name, text, error))?;
    if matches!(root.value, Value::Null) {
        return Err(empty());
    }
    Ok(root)
}

fn no_yaml(name: &str, text: &str, error: SyntaxError) -> Invalid {
    let fetched = Fetched::default();
    let reader = Reader::new(name, text, &fetched);
    let (line, column) = error.at.unwrap_or((1, 1));
    let help = error.help.map(str::to_owned);
    reader.report(&reader.spot(line, column), "", error.message, help);
    Invalid::new(name, text, "yaml", reader.finish())
}

fn finish(name: &str, text: &str, root: Node, variables: &Variables, fetched: &Fetched) -> Result<Pipeline, Invalid> {
    let reader = Reader::new(name, text, fetched);
    let mut interpolation = Interpolation {
        reader: &reader,
        variables,
        fetched,
        used: BTreeMap::new(),
        local: false,
    };
    let root = interpolation.node(root);
    let used = interpolation.used;
    let pipeline = pipeline::read(&reader, name, &root);
    let [notes, warnings] = reader.notes();
    let mut problems = reader.finish();
    if !used.is_empty() {
        // What is wrong with a value is said with the value.
        let job = Secrets::new([]).job(name);
        let masked = used.values().try_for_each(|value| job.mask(value));
        let clean = |text: &str| {
            if masked.is_ok() {
                job.redact(text)
            } else {
                String::new()
            }
        };
        for problem in &mut problems {
            problem.message = clean(&problem.message);
            problem.help = problem.help.as_deref().map(&clean);
        }
    }
    match pipeline {
        Some(mut pipeline) if problems.is_empty() => {
            let mut digest = Sha256::new();
            digest.update(text);
            variables.digest(&mut digest);
            pipeline.digest = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            pipeline.notes = notes;
            pipeline.warnings = warnings;
            pipeline.secrets = fetched
                .values()
                .map(|(of, value)| (of.clone(), value.clone()))
                .collect();
            pipeline.wholes = fetched.wholes().to_vec();
            Ok(pipeline)
        }
        _ => Err(Invalid::new(name, text, "yaml", problems)),
    }
}

/// The entries of a file of variables.
pub(crate) fn variables_of(name: &str, text: &str) -> Result<BTreeMap<String, Value>, Invalid> {
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    let root = tree::parse(text).map_err(|error| no_yaml(name, text, error))?;
    let refuse = || {
        Invalid::file(
            name,
            "it is no map of names and values",
            "write `name: value`, one a line",
        )
    };
    let Value::Map(entries) = root.value else {
        return Err(refuse());
    };
    let entry = |(key, value): (Node, Node)| match key.value {
        Value::Text(key) => Ok((key, value.value)),
        _ => Err(refuse()),
    };
    entries.into_iter().map(entry).collect()
}
