//! What steps of all kinds have: names, artifacts, mounts, limits on time and tries.

use std::collections::BTreeMap;
use std::time::Duration;

use orchestra::{ContainerPath, Credentials, Name, NetworkMode, Task, VolumePath};
use orchestra_secrets::SecretKey;

use super::fields::{Fields, Known};
use super::reader::{Reader, closest, list};
use super::tree::{At, Node, Spot, Value};
use crate::run::within;
use crate::{Artifact, CachePlan, KeyTemplate, Step, units};

/// A step as far as it could be read. What other steps need to know of it is kept even if the step itself is not valid,
/// so that one mistake is told once.
#[derive(Clone)]
pub(super) struct Read {
    /// `None` where the name defaults, or is not valid.
    pub(super) name: Option<At<Name>>,
    pub(super) spot: Spot,
    pub(super) inputs: Vec<At<Name>>,
    pub(super) outputs: Vec<At<Name>>,
    /// Whether `outputs` are all of them; not if a key could not be understood, or if they are known only later.
    pub(super) complete: bool,
    /// Whether its outputs may exist already.
    pub(super) replaces: bool,
    /// The variable that it sets.
    pub(super) loads: Option<String>,
    /// Variables in it that are known only when it runs.
    pub(super) variables: Vec<At<String>>,
    /// The resource that it is for.
    pub(super) resource: Option<Name>,
    /// Jobs that its version has to have passed.
    pub(super) passed: Vec<At<Name>>,
    /// The step, if all of it is valid.
    pub(super) step: Option<Step>,
}

impl Read {
    /// Of which nothing is known but where it stands.
    pub(super) fn new(spot: Spot) -> Self {
        Self {
            name: None,
            spot,
            inputs: Vec::new(),
            outputs: Vec::new(),
            complete: true,
            replaces: false,
            loads: None,
            variables: Vec::new(),
            resource: None,
            passed: Vec::new(),
            step: None,
        }
    }
}

/// Volumes of caches, of resources, of the core and of image builds have names too.
fn reserved(name: &str) -> Option<&'static str> {
    if name.ends_with("._build") {
        return Some("use a name that does not end with `._build`");
    }
    let taken = ["cache.", "runner-", "put.", "out."]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    taken.then_some("use a name that starts neither with `cache.`, `put.` or `out.` nor with `runner-`")
}

/// Upper bound of `attempts`: a task that fails a hundred times will not succeed.
const MAX_ATTEMPTS: u32 = 100;

/// `timeout` and `attempts`.
pub(super) fn modifiers(fields: &Fields<'_, '_>) -> (Option<Duration>, Option<u32>) {
    let attempts = |text: &str| match text.parse() {
        Ok(number @ 1..=MAX_ATTEMPTS) => Ok(number),
        _ => Err("write a whole number from 1 to 100"),
    };
    (
        fields.read("timeout", "duration", units::duration),
        fields.read("attempts", "number of attempts", attempts),
    )
}

/// `network`.
pub(super) fn network(fields: &Fields<'_, '_>) -> NetworkMode {
    fields.parse("network").map(|mode| mode.value).unwrap_or_default()
}

/// Inputs or outputs.
pub(super) fn artifacts(reader: &Reader<'_>, items: &[Node], what: &'static str) -> Vec<At<Artifact>> {
    const KEYS: Known = Known {
        misplaced: &["optional"],
        belongs: "in an input of a task",
        ..Known::of(&["name", "path"])
    };
    let read = |item| artifact(reader, item, what, KEYS).map(|(artifact, _)| artifact);
    items.iter().filter_map(read).collect()
}

/// Refuses outputs of one step that have one name.
pub(super) fn unique<'n>(reader: &Reader<'_>, outputs: impl Iterator<Item = (&'n Name, &'n Spot)>) {
    let mut known: BTreeMap<&Name, &Spot> = BTreeMap::new();
    for (name, spot) in outputs {
        if let Some(first) = known.insert(name, spot) {
            let places = [(spot, "again here"), (first, "first here")];
            let message = format!("two outputs of one step are called `{name}`");
            reader.conflict(places, message, "rename one of them (its `path` may stay)");
        }
    }
}

/// Inputs of a task.
pub(super) fn inputs(reader: &Reader<'_>, items: &[Node]) -> Vec<At<Artifact>> {
    const KEYS: Known = Known::of(&["name", "path", "optional"]);
    let read = |item| {
        let (mut artifact, fields) = artifact(reader, item, INPUT, KEYS)?;
        artifact.value.optional = fields.flag("optional").unwrap_or(false);
        Some(artifact)
    };
    items.iter().filter_map(read).collect()
}

/// `input_mapping` or `output_mapping`: the artifacts get the pipeline's names, and stand where they stood.
pub(super) fn mapped(fields: &Fields<'_, '_>, key: &'static str, what: &str, artifacts: &mut [At<Artifact>]) {
    let Some(node) = fields.get(key) else { return };
    let reader = fields.reader;
    let Value::Map(entries) = &node.value else {
        if !matches!(node.value, Value::Null) {
            reader.wrong(&node.spot, &format!("`{key}`"), "a map of names", &node.value);
        }
        return;
    };
    let own: Vec<Name> = artifacts.iter().map(|artifact| artifact.value.name.clone()).collect();
    for (from, to) in entries {
        let from = reader.parse::<Name>(from, &format!("a name in `{key}`"));
        let to = reader
            .parse::<Name>(to, &format!("a name in `{key}`"))
            .and_then(|name| artifact_name(reader, name));
        let (Some(from), Some(to)) = (from, to) else { continue };
        match own.iter().position(|name| *name == from.value) {
            Some(at) => {
                artifacts[at].value.name = to.value;
                artifacts[at].spot = to.spot;
            }
            None => {
                let names: Vec<&str> = own.iter().map(|name| name.as_str()).collect();
                let help = match closest(from.value.as_str(), &names) {
                    Some(close) => format!("did you mean `{close}`?"),
                    None => format!("the task has {}", list(&names)),
                };
                reader.report(&from.spot, "", format!("the task has no {what} `{}`", from.value), help);
            }
        }
    }
}

/// What messages call an artifact that is used and not made.
pub(super) const INPUT: &str = "an input";

/// A name that an artifact may have.
pub(super) fn artifact_name(reader: &Reader<'_>, name: At<Name>) -> Option<At<Name>> {
    let Some(help) = reserved(name.value.as_str()) else {
        return Some(name);
    };
    let message = format!(
        "the artifact `{}` has a name that Orchestra keeps for itself",
        name.value
    );
    reader.report(&name.spot, "", message, help.to_owned());
    None
}

/// An input or output, and all its keys.
pub(super) fn artifact<'r, 'n>(
    reader: &'r Reader<'n>,
    item: &'n Node,
    what: &'static str,
    known: Known,
) -> Option<(At<Artifact>, Fields<'r, 'n>)> {
    if let Value::Text(name) = &item.value {
        let message = format!("{what} is a map of keys and values, not text");
        reader.report(&item.spot, "this is text", message, format!("write `- name: {name}`"));
        return None;
    }
    let fields = reader.fields(item, what, known)?;
    fields.required("name", "name: source")?;
    let (name, path) = (fields.parse::<Name>("name"), fields.parse("path"));
    // An input is what something makes, which is where its name is refused; a script may hand on a volume of Orchestra's own.
    let name = if what == INPUT {
        name?
    } else {
        artifact_name(reader, name?)?
    };
    // What is a valid name is a valid path.
    let default = ContainerPath::new(name.value.as_str()).ok()?;
    let path = path.map_or(default, |path| path.value);
    let artifact = At {
        value: Artifact {
            name: name.value,
            path,
            optional: false,
        },
        spot: name.spot,
    };
    Some((artifact, fields))
}

/// Directories that are kept. `builds` are those of BuildKit, whose layers have devices.
pub(super) fn caches(fields: &Fields<'_, '_>, inputs: &[At<Artifact>], builds: bool) -> Vec<At<CachePlan>> {
    const KEYS: Known = Known::of(&[
        "path",
        "key",
        "restore_keys",
        "scope",
        "size_limit",
        "policy",
        "paths",
        "devices",
    ]);
    let reader = fields.reader;
    let mut caches: Vec<At<CachePlan>> = Vec::new();
    for item in fields.items("caches") {
        let Some(cache) = reader.fields(item, "a cache", KEYS) else {
            continue;
        };
        if cache.required("path", "path: .cache").is_none() {
            continue;
        }
        let restore_keys: Vec<At<KeyTemplate>> = cache
            .items("restore_keys")
            .iter()
            .filter_map(|node| reader.parse(node, "an item of `restore_keys`"))
            .collect();
        let paths: Vec<At<VolumePath>> = cache
            .items("paths")
            .iter()
            .filter_map(|node| reader.parse(node, "an item of `paths`"))
            .collect();
        for path in paths.iter().filter(|path| path.value.as_str().contains('*')) {
            let message = format!("{} is a pattern, and `paths` are files and directories", path.value);
            reader.report(
                &path.spot,
                "",
                message,
                "name the directory that they are in".to_owned(),
            );
        }
        let key = cache.parse::<KeyTemplate>("key");
        for template in key.iter().chain(&restore_keys) {
            if let Some(file) = template.value.files().find(|file| !is_in_any(inputs, file)) {
                let message = format!("the key needs a checksum of {file}, which is in none of the step's inputs");
                let help =
                    "name a file of an input, as the step sees it: `{{ checksum \"source/Cargo.lock\" }}`".to_owned();
                reader.report(&template.spot, "", message, help);
            }
        }
        let scope = cache.parse("scope").map(|scope| scope.value).unwrap_or_default();
        let size_limit = cache.read("size_limit", "size", units::size);
        let policy = cache.parse("policy").map(|policy| policy.value).unwrap_or_default();
        // Without them, what a layer deletes is there again in the next build.
        let devices = builds || cache.flag("devices").unwrap_or(false);
        let Some(path) = cache.parse::<ContainerPath>("path") else {
            continue;
        };
        let mut plan = CachePlan::new(path.value);
        plan.key = key.map(|key| key.value);
        plan.restore_keys = values(restore_keys);
        plan.scope = scope;
        plan.size_limit = size_limit;
        plan.policy = policy;
        plan.paths = values(paths);
        plan.devices = devices;
        caches.push(At {
            value: plan,
            spot: path.spot,
        });
    }
    disjoint(reader, &caches);
    caches
}

fn is_in_any(inputs: &[At<Artifact>], file: &ContainerPath) -> bool {
    inputs.iter().any(|input| within(&input.value, file).is_some())
}

/// Refuses caches of one step that would be each other's content, or have each other's key.
fn disjoint(reader: &Reader<'_>, caches: &[At<CachePlan>]) {
    for (at, cache) in caches.iter().enumerate() {
        for earlier in &caches[..at] {
            let places = [(&cache.spot, "this one"), (&earlier.spot, "and this one")];
            let paths = [&cache.value, &earlier.value].map(|cache| cache.path.resolve(Task::WORKING_DIR));
            let is_in = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
            if is_in(&paths[0], &paths[1]) || is_in(&paths[1], &paths[0]) {
                reader.conflict(
                    places,
                    format!("the caches {} and {} overlap", paths[0], paths[1]),
                    "keep the outer one, with `paths` if not all of it is to be kept",
                );
            } else if paths[0] != paths[1]
                && cache.value.key.is_some()
                && (cache.value.scope, &cache.value.key) == (earlier.value.scope, &earlier.value.key)
            {
                reader.conflict(
                    places,
                    "two caches of one step have the same key",
                    "give each a key of its own",
                );
            }
        }
    }
}

/// Refuses mounts that would hide each other.
pub(super) fn mounts<'m>(reader: &Reader<'_>, mounts: impl Iterator<Item = (&'m ContainerPath, &'m Spot)>) {
    let mut targets: BTreeMap<String, &Spot> = BTreeMap::new();
    for (path, spot) in mounts {
        let target = path.resolve(Task::WORKING_DIR);
        if target == "/" {
            reader.report(
                spot,
                "",
                "nothing can be mounted at `/`",
                "give it a directory of its own".to_owned(),
            );
        } else if let Some(first) = targets.get(&target) {
            let places = [(spot, "this one"), (*first, "and this one")];
            reader.conflict(
                places,
                format!("two mounts stand at {target}"),
                "give one of them another `path`",
            );
        } else {
            targets.insert(target, spot);
        }
    }
}

/// Secrets that stand in files of the container.
pub(super) fn secret_files(fields: &Fields<'_, '_>) -> Vec<(ContainerPath, SecretKey)> {
    let entries = match fields.get("secret_files").map(|node| (&node.value, &node.spot)) {
        None | Some((Value::Null, _)) => return Vec::new(),
        Some((Value::Map(entries), _)) => entries,
        Some((other, spot)) => {
            fields
                .reader
                .wrong(spot, "`secret_files`", "a map of paths and secrets", other);
            return Vec::new();
        }
    };
    let reader = fields.reader;
    let mut files: BTreeMap<String, (ContainerPath, SecretKey, Spot)> = BTreeMap::new();
    for (path, value) in entries {
        let path = reader.parse::<ContainerPath>(path, "a path in `secret_files`");
        let Some(value) = reader.text(value, "a secret in `secret_files`") else {
            continue;
        };
        let key = match SecretKey::of_reference(&value.value) {
            Ok(Some(key)) if reader.checked(&value) => key,
            Ok(None) => {
                let message = "a secret in `secret_files` is written `secret:KEY`";
                reader.report(
                    &value.spot,
                    "",
                    message,
                    "put what is no secret into an artifact".to_owned(),
                );
                continue;
            }
            Ok(_) => continue,
            Err(error) => {
                reader.report(&value.spot, "", error.message(), error.hint().map(str::to_owned));
                continue;
            }
        };
        let Some(path) = path else { continue };
        if let Err(error) = orchestra_secrets::check_path(&path.value) {
            reader.report(&path.spot, "", error.message(), error.hint().map(str::to_owned));
        } else if let Some((_, _, first)) = files.get(path.value.as_str()) {
            let places = [(&path.spot, "again here"), (first, "first here")];
            reader.conflict(
                places,
                format!("two secrets stand at {}", path.value),
                "keep one of the two",
            );
        } else {
            files.insert(path.value.as_str().to_owned(), (path.value, key, path.spot));
        }
    }
    files.into_values().map(|(path, key, _)| (path, key)).collect()
}

/// `secret_env`: whether variables that are secrets are hidden from the engine.
pub(super) fn secret_env(fields: &Fields<'_, '_>) -> bool {
    let read = |text: &str| match text {
        "hidden" => Ok(true),
        "engine" => Ok(false),
        _ => Err("write `hidden`, so that the engine does not know them, or `engine`"),
    };
    fields
        .read("secret_env", "way for secret variables to go", read)
        .unwrap_or(false)
}

/// A user name and a password: both or none.
pub(super) fn credentials(fields: &Fields<'_, '_>) -> Option<Credentials> {
    let checked = |key| fields.text(key).filter(|value| fields.reader.checked(value));
    let (username, password) = (checked("username"), checked("password"));
    for (there, missing) in [("username", "password"), ("password", "username")] {
        if let (Some(spot), None) = (fields.key(there), fields.key(missing)) {
            fields.reader.report(
                spot,
                "",
                format!("`{there}` without `{missing}`"),
                format!("add `{missing}`, or remove `{there}`"),
            );
        }
    }
    Some(Credentials::new(username?.value, password?.value))
}

pub(super) fn names(artifacts: &[At<Artifact>]) -> Vec<At<Name>> {
    artifacts
        .iter()
        .map(|artifact| At {
            value: artifact.value.name.clone(),
            spot: artifact.spot.clone(),
        })
        .collect()
}

pub(super) fn values<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}
