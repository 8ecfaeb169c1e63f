//! The YAML front end: text in, a [`Pipeline`] or everything that is wrong with it out.
//!
//! Text becomes a [tree](tree) in which every node knows its place; a [reader] takes typed values out of it, by the [fields]
//! of its maps, and collects problems; [pipeline] reads jobs and follows artifacts from step to step, [task] and [build] read the steps.

mod build;
mod fields;
mod pipeline;
mod reader;
mod step;
mod task;
mod tree;
mod variables;

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use self::reader::Reader;
use self::tree::Value;
use crate::{Invalid, Pipeline};

/// A thousand steps with scripts of their own are about half a megabyte.
const MAX_BYTES: usize = 4 << 20;

impl Pipeline {
    /// Reads and checks a pipeline's file.
    ///
    /// # Errors
    /// [`Invalid`] with all that is wrong with it; nothing has been run.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Invalid> {
        let path = path.as_ref();
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
        Self::parse(&name, &text)
    }

    /// Reads and checks a pipeline's text. `name` stands in messages; a bare plan's job is called after it.
    ///
    /// # Errors
    /// [`Invalid`] with all that is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, Invalid> {
        let empty = || Invalid::file(name, "it is empty", "start with `plan:` and a list of steps");
        if text.trim().is_empty() {
            return Err(empty());
        }
        let reader = Reader::new(text);
        let root = match tree::parse(text) {
            Ok(root) => root,
            Err(error) => {
                let (line, column) = error.at.unwrap_or((1, 1));
                reader.report(
                    &reader.spot(line, column),
                    "",
                    error.message,
                    error.help.map(str::to_owned),
                );
                return Err(Invalid::new(name, text, reader.finish()));
            }
        };
        if matches!(root.value, Value::Null) {
            return Err(empty());
        }
        variables::refuse(&reader, &root);
        let pipeline = pipeline::read(&reader, name, &root);
        let problems = reader.finish();
        match pipeline {
            Some(pipeline) if problems.is_empty() => Ok(pipeline),
            _ => Err(Invalid::new(name, text, problems)),
        }
    }
}
