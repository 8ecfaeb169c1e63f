//! `load_var` steps.

use std::collections::BTreeMap;

use orchestra::{Name, VolumePath};

use super::fields::{Fields, Known};
use super::reader::Reader;
use super::step::{self, Read};
use super::tree::{At, Node};
use crate::{Action, Hooks, LoadVarPlan, Step, VarFormat};

pub(super) const STEP: Known = Known::of(&[
    "load_var",
    "file",
    "format",
    "reveal",
    "timeout",
    "attempts",
    "on_success",
    "on_failure",
    "on_abort",
    "on_error",
    "ensure",
]);

/// Reads a step that has the key `load_var`.
pub(super) fn read(reader: &Reader<'_>, node: &Node) -> Option<Read> {
    let fields = reader.fields(node, "a `load_var` step", STEP)?;
    let mut read = Read::new(fields.key("load_var").unwrap_or(fields.spot).clone());
    let (timeout, attempts) = step::modifiers(&fields);
    let variable = fields
        .required("load_var", "load_var: version")
        .and_then(|_| fields.parse::<Name>("load_var"));
    if let Some(name) = &variable
        && name.value.as_str().contains('.')
    {
        let help = "the dot in `((.:name.field))` takes a field of what the file holds".to_owned();
        reader.report(&name.spot, "", "the name of a variable has no dot", help);
    }
    let file = fields
        .required("file", "file: version/number")
        .and_then(|_| artifact_file(&fields));
    let hidden = !fields.flag("reveal").unwrap_or(true);
    let format = format(&fields, file.as_ref().map(|(_, path)| path));
    read.inputs = file.iter().map(|(artifact, _)| artifact.clone()).collect();
    read.loads = variable.as_ref().map(|at| at.value.to_string());
    let (variable, (artifact, file), format) = (variable?, file?, format?);
    read.step = Some(Step {
        name: variable.value.clone(),
        action: Action::LoadVar(LoadVarPlan {
            variable: variable.value.to_string(),
            artifact: artifact.value,
            file,
            format,
            hidden,
        }),
        timeout,
        attempts: attempts.unwrap_or(1),
        hooks: Hooks::default(),
        volumes: BTreeMap::new(),
        base: None,
    });
    Some(read)
}

/// `file`: an artifact and a path in it.
pub(super) fn artifact_file(fields: &Fields<'_, '_>) -> Option<(At<Name>, VolumePath)> {
    let At { value, spot } = fields.text("file")?;
    let parts = value.trim_start_matches("./").split_once('/');
    let parsed =
        parts.map(|(artifact, path)| Ok::<_, orchestra::Error>((Name::new(artifact)?, VolumePath::new(path)?)));
    match parsed {
        Some(Ok((name, path))) => Some((At { value: name, spot }, path)),
        Some(Err(error)) => {
            fields
                .reader
                .report(&spot, "", error.message(), error.hint().map(str::to_owned));
            None
        }
        None => {
            let help = "write ARTIFACT/PATH, for example `source/ci/task.yml`".to_owned();
            let message = format!("`file: {value}` names no file in an artifact");
            fields.reader.report(&spot, "", message, help);
            None
        }
    }
}

/// `format`, or what the file's name says.
fn format(fields: &Fields<'_, '_>, file: Option<&VolumePath>) -> Option<VarFormat> {
    if fields.get("format").is_some() {
        return fields.read("format", "format of a variable", |text| match text {
            "trim" => Ok(VarFormat::Trim),
            "raw" => Ok(VarFormat::Raw),
            "yaml" | "yml" => Ok(VarFormat::Yaml),
            "json" => Ok(VarFormat::Json),
            _ => Err("write `trim`, `raw`, `yaml` or `json`"),
        });
    }
    let name = file?.as_str();
    let ends = |end: &str| name.to_ascii_lowercase().ends_with(end);
    Some(match name {
        _ if ends(".json") => VarFormat::Json,
        _ if ends(".yml") || ends(".yaml") => VarFormat::Yaml,
        _ => VarFormat::Trim,
    })
}
