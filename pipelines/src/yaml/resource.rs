//! `resources`, `resource_types`, and the steps `get` and `put`.

use std::collections::BTreeMap;
use std::sync::Arc;

use orchestra::{ImageRef, Name};

use super::fields::{Fields, Known};
use super::reader::{Reader, closest, list};
use super::step::{self, Read};
use super::task;
use super::tree::{At, Node, Spot, Value};
use crate::resource::Json;
use crate::{Action, GetPlan, Hooks, PutInputs, PutPlan, Resource, Step, TaskImage, Version};

pub(super) const RESOURCE: Known = Known {
    without_meaning: &[
        "icon",
        "check_every",
        "check_timeout",
        "expose_build_created_by",
        "webhook_token",
        "public",
        "tags",
        "old_name",
    ],
    ..Known::of(&["name", "type", "source", "version"])
};

pub(super) const TYPE: Known = Known {
    later: &["params", "defaults"],
    without_meaning: &["check_every", "tags"],
    ..Known::of(&["name", "type", "source", "privileged"])
};

pub(super) const GET: Known = Known {
    without_meaning: &["trigger", "tags"],
    ..Known::of(&[
        "get",
        "resource",
        "params",
        "version",
        "passed",
        "timeout",
        "attempts",
        "on_success",
        "on_failure",
        "on_abort",
        "on_error",
        "ensure",
    ])
};

pub(super) const PUT: Known = Known {
    without_meaning: &["tags"],
    ..Known::of(&[
        "put",
        "resource",
        "params",
        "inputs",
        "get_params",
        "no_get",
        "timeout",
        "attempts",
        "on_success",
        "on_failure",
        "on_abort",
        "on_error",
        "ensure",
    ])
};

/// Types that need no `resource_types`, as in Concourse; their images are those that Concourse itself is made with.
const BUILT_IN: [&str; 12] = [
    "bosh-io-release",
    "bosh-io-stemcell",
    "git",
    "github-release",
    "hg",
    "mock",
    "pool",
    "registry-image",
    "s3",
    "semver",
    "time",
    "tracker",
];

/// What the steps of a pipeline may get and put.
#[derive(Debug, Default)]
pub(super) struct Resources {
    all: BTreeMap<Name, Arc<Resource>>,
    /// Whether one could not be read: then nobody knows what a step refers to.
    broken: bool,
}

/// Reads both lists of a file.
pub(super) fn read(reader: &Reader<'_>, file: &Fields<'_, '_>) -> Resources {
    let before = reader.count();
    let mut types: BTreeMap<String, (TaskImage, bool)> = BTreeMap::new();
    for item in file.items("resource_types") {
        let Some(fields) = reader.fields(item, "a resource type", TYPE) else {
            continue;
        };
        let name = fields.required("name", "name: slack").and_then(|_| fields.text("name"));
        let image = task::registry_image(reader, &fields, "a resource type");
        let privileged = fields.flag("privileged").unwrap_or(false);
        if let (Some(name), Some(image)) = (name, image)
            && types.insert(name.value.clone(), (image, privileged)).is_some()
        {
            let message = format!("two resource types are called `{}`", name.value);
            reader.report(&name.spot, "again here", message, "rename one of them".to_owned());
        }
    }
    let mut all = BTreeMap::new();
    for item in file.items("resources") {
        let Some(fields) = reader.fields(item, "a resource", RESOURCE) else {
            continue;
        };
        if let Some((resource, spot)) = resource(reader, &fields, &types)
            && let Some(other) = all.insert(resource.name.clone(), Arc::new(resource))
        {
            let message = format!("two resources are called `{}`", other.name);
            reader.report(&spot, "again here", message, "rename one of them".to_owned());
        }
    }
    Resources {
        all,
        broken: reader.count() > before,
    }
}

fn resource(
    reader: &Reader<'_>,
    fields: &Fields<'_, '_>,
    types: &BTreeMap<String, (TaskImage, bool)>,
) -> Option<(Resource, Spot)> {
    let name = fields
        .required("name", "name: source")
        .and_then(|_| fields.parse::<Name>("name"));
    let kind = fields.required("type", "type: git").and_then(|_| fields.text("type"));
    let version = version(reader, fields);
    let source = fields.get("source").map(|node| json(reader, node)).unwrap_or_default();
    let (name, kind) = (name?, kind?);
    let (image, privileged) = match types.get(&kind.value) {
        Some((image, privileged)) => (image.clone(), *privileged),
        None if BUILT_IN.contains(&kind.value.as_str()) => {
            let image = ImageRef::new(format!("concourse/{}-resource", kind.value)).ok()?;
            (TaskImage::new(image), false)
        }
        None => {
            let known: Vec<&str> = types.keys().map(String::as_str).chain(BUILT_IN).collect();
            let help = match closest(&kind.value, &known) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("add it to `resource_types`, with its image; known are {}", list(&known)),
            };
            let message = format!("there is no resource type `{}`", kind.value);
            reader.report(&kind.spot, "", message, help);
            return None;
        }
    };
    let resource = Resource {
        name: name.value,
        kind: kind.value,
        image,
        privileged,
        version: version.map(|at| at.value),
        source: Json(source),
    };
    Some((resource, name.spot))
}

/// `version`, where it is one and not a word for which one to take.
fn version(reader: &Reader<'_>, fields: &Fields<'_, '_>) -> Option<At<Version>> {
    let node = fields.get("version")?;
    if let Value::Text(word) = &node.value {
        match word.as_str() {
            "latest" => {}
            "every" => reader.remark(
                &node.spot,
                "`version: every` takes the newest one, as a run has one version of each resource",
            ),
            _ => reader.report(
                &node.spot,
                "",
                format!("`{word}` is not a version"),
                "write `latest`, or the version itself: `version: { ref: 61cbef }`".to_owned(),
            ),
        }
        return None;
    }
    let value = fields.shown_texts("version");
    (!value.is_empty()).then(|| At {
        value,
        spot: node.spot.clone(),
    })
}

/// The resource that a step is for, and the artifact that it makes.
fn of_step(
    reader: &Reader<'_>,
    fields: &Fields<'_, '_>,
    kind: &'static str,
) -> Option<(At<Name>, Option<Arc<Resource>>)> {
    fields.required(kind, &format!("{kind}: source"))?;
    let artifact = step::artifact_name(reader, fields.parse::<Name>(kind)?)?;
    let named = match fields.get("resource") {
        Some(_) => fields.parse::<Name>("resource")?,
        None => artifact.clone(),
    };
    let resources = reader.resources();
    let found = resources.all.get(&named.value).cloned();
    if found.is_none() && !resources.broken {
        let known: Vec<&str> = resources.all.keys().map(|name| name.as_str()).collect();
        let help = match closest(named.value.as_str(), &known) {
            Some(close) => format!("did you mean `{close}`?"),
            None if known.is_empty() => {
                format!(
                    "add it under `resources`: `- {{ name: {}, type: git, source: {{ … }} }}`",
                    named.value
                )
            }
            None => format!("there are {}", list(&known)),
        };
        let message = format!("there is no resource `{}`", named.value);
        reader.report(&named.spot, "", message, help);
    }
    Some((artifact, found))
}

fn unread(fields: &Fields<'_, '_>, kind: &str) -> Read {
    Read::new(fields.key(kind).unwrap_or(fields.spot).clone())
}

/// Reads a step that has the key `get`.
pub(super) fn get(reader: &Reader<'_>, node: &Node) -> Option<Read> {
    let fields = reader.fields(node, "a `get` step", GET)?;
    let mut read = unread(&fields, "get");
    let (timeout, attempts) = step::modifiers(&fields);
    fields.flag("trigger");
    let passed: Vec<At<Name>> = fields
        .items("passed")
        .iter()
        .filter_map(|node| reader.parse(node, "an item of `passed`"))
        .collect();
    let version = version(reader, &fields);
    let params = fields.get("params").map(|node| json(reader, node)).unwrap_or_default();
    let Some((artifact, resource)) = of_step(reader, &fields, "get") else {
        read.complete = false;
        return Some(read);
    };
    read.outputs = vec![artifact.clone()];
    read.passed.clone_from(&passed);
    let resource = resource?;
    read.resource = Some(resource.name.clone());
    let plan = GetPlan {
        artifact: artifact.value.clone(),
        resource,
        version: version.map(|at| at.value),
        passed: step::values(passed),
        params: Json(params),
    };
    read.step = Some(Step {
        name: artifact.value,
        action: Action::Get(Box::new(plan)),
        timeout,
        attempts: attempts.unwrap_or(1),
        hooks: Hooks::default(),
        volumes: BTreeMap::new(),
        base: None,
    });
    Some(read)
}

/// Reads a step that has the key `put`.
pub(super) fn put(reader: &Reader<'_>, node: &Node) -> Option<Read> {
    let fields = reader.fields(node, "a `put` step", PUT)?;
    let mut read = unread(&fields, "put");
    let (timeout, attempts) = step::modifiers(&fields);
    let of = |key| fields.get(key).map(|node| json(reader, node)).unwrap_or_default();
    let (params, get_params) = (of("params"), of("get_params"));
    let no_get = fields.flag("no_get").unwrap_or(false);
    let inputs = inputs(reader, &fields);
    if let PutInputs::These(names) = &inputs {
        let spot = fields.get("inputs").map_or(fields.spot, |node| &node.spot);
        let at = |name: &Name| At {
            value: name.clone(),
            spot: spot.clone(),
        };
        read.inputs = names.iter().map(at).collect();
    }
    let Some((artifact, resource)) = of_step(reader, &fields, "put") else {
        read.complete = false;
        return Some(read);
    };
    if !no_get {
        // The version that a job has put may take the place of the one it got.
        read.outputs = vec![artifact.clone()];
        read.replaces = true;
    }
    let resource = resource?;
    read.resource = Some(resource.name.clone());
    let plan = PutPlan {
        artifact: artifact.value.clone(),
        resource,
        inputs,
        no_get,
        params: Json(params),
        get_params: Json(get_params),
    };
    read.step = Some(Step {
        name: artifact.value,
        action: Action::Put(Box::new(plan)),
        timeout,
        attempts: attempts.unwrap_or(1),
        hooks: Hooks::default(),
        volumes: BTreeMap::new(),
        base: None,
    });
    Some(read)
}

fn inputs(reader: &Reader<'_>, fields: &Fields<'_, '_>) -> PutInputs {
    match fields.get("inputs") {
        None => PutInputs::All,
        Some(node) => match &node.value {
            Value::Text(word) if word == "all" => PutInputs::All,
            Value::Text(word) if word == "detect" => PutInputs::Detect,
            Value::List(items) => {
                let names = items
                    .iter()
                    .filter_map(|node| reader.parse(node, "an item of `inputs`"));
                PutInputs::These(names.map(|name| name.value).collect())
            }
            other => {
                reader.wrong(&node.spot, "`inputs`", "`all`, `detect` or a list of artifacts", other);
                PutInputs::All
            }
        },
    }
}

/// A value as JSON text, in which no reference to a secret is resolved: one is refused.
pub(super) fn json_text(reader: &Reader<'_>, node: &Node) -> String {
    let before = reader.count();
    literal(reader, node);
    if reader.count() > before {
        return String::new();
    }
    reader.put_secret_of(&node.spot);
    json(reader, node).to_string()
}

fn literal(reader: &Reader<'_>, node: &Node) {
    match &node.value {
        Value::Text(text) if text.starts_with("secret:") => {
            let message = format!("`{text}` can't stand within a list or a map");
            let help = "let the secret be the whole value of a variable, or write it as `((KEY))`";
            reader.report(&node.spot, "a secret", message, help.to_owned());
        }
        Value::List(items) => items.iter().for_each(|item| literal(reader, item)),
        Value::Map(entries) => entries.iter().for_each(|(_, value)| literal(reader, value)),
        _ => {}
    }
}

/// A value as JSON. A number that JSON does not have is a text.
fn json(reader: &Reader<'_>, node: &Node) -> serde_json::Value {
    use serde_json::Value as Out;
    match &node.value {
        Value::Null => Out::Null,
        Value::Bool(value) => Out::Bool(*value),
        Value::Number(text) => match serde_json::from_str::<serde_json::Number>(text) {
            Ok(number) => Out::Number(number),
            Err(_) => Out::String(text.clone()),
        },
        Value::Text(text) => {
            let at = At {
                value: text.clone(),
                spot: node.spot.clone(),
            };
            // Tells where it refers to a secret that there is not.
            reader.checked(&at);
            Out::String(text.clone())
        }
        Value::List(items) => Out::Array(items.iter().map(|item| json(reader, item)).collect()),
        Value::Map(entries) => {
            let entry = |(key, value): &(Node, Node)| Some((reader.text(key, "a key")?.value, json(reader, value)));
            Out::Object(entries.iter().filter_map(entry).collect())
        }
    }
}
