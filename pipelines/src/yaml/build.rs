//! `build_image` steps.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use orchestra::{ContainerPath, Credentials, Env, Error, ImageRef, Name, Platform, SecretString};
use orchestra_image_build::{BuildContext, BuildOptions, OutputFormat, RegistryAuth, Sbom, is_url};

use super::fields::{Fields, Known, texts};
use super::reader::{Reader, list};
use super::step::{self, Read};
use super::tree::{At, Node, Spot, Value};
use crate::{Action, Artifact, BuildPlan, Hooks, Step, units};

pub(super) const STEP: Known = Known {
    later: &["assert"],
    misplaced: BUILD.keys,
    belongs: "under `build_image`, indented by two more spaces",
    ..Known::of(&[
        "build_image",
        "timeout",
        "attempts",
        "on_success",
        "on_failure",
        "on_abort",
        "on_error",
        "ensure",
    ])
};

pub(super) const BUILD: Known = Known::of(&[
    "name",
    "context",
    "dockerfile",
    "tag",
    "push",
    "build_args",
    "secrets",
    "target",
    "platforms",
    "image",
    "inputs",
    "outputs",
    "caches",
    "env",
    "registry",
    "network",
    "tags",
    "labels",
    "annotations",
    "extra_hosts",
    "ulimits",
    "shm_size",
    "no_cache",
    "no_cache_filter",
    "build_contexts",
    "dockerfile_inline",
    "frontend",
    "source_date_epoch",
    "provenance",
    "rootless",
    "cache_from",
    "cache_to",
    "mirrors",
    "buildkitd_config",
    "load",
    "builder",
    "ssh",
    "build_args_file",
    "labels_file",
    "image_args",
    "run_network",
    "additional_targets",
    "sbom",
    "cache_credentials",
    "cache_limit",
    "timeout",
    "attempts",
]);

const REGISTRY: Known = Known::of(&[
    "hostname",
    "username",
    "password",
    "insecure",
    "ca",
    "client_cert",
    "client_key",
]);

/// Reads a step that has the key `build_image`.
pub(super) fn read(reader: &Reader<'_>, node: &Node) -> Option<Read> {
    let before = reader.count();
    let outer = reader.fields(node, "a `build_image` step", STEP)?;
    let spot = outer.key("build_image").unwrap_or(outer.spot).clone();
    let mut read = Read::new(spot);
    let Some(node) = outer.required("build_image", "build_image: { context: source, tag: team/app:1 }") else {
        return Some(read);
    };
    let Some(fields) = reader.fields(node, "`build_image`", BUILD) else {
        return Some(read);
    };

    read.name = fields.parse::<Name>("name");
    let (timeout, attempts) = modifiers(&outer, &fields);
    let url = fields
        .shown("context")
        .map(|text| text.value)
        .filter(|text| is_url(text));
    let context = fields
        .required("context", "context: source")
        .filter(|_| url.is_none())
        .and_then(|_| relative(&fields, "context"));
    let tag = fields
        .required("tag", "tag: registry.example.com/team/app:1")
        .and_then(|_| fields.parse::<ImageRef>("tag"));
    let dockerfile = relative(&fields, "dockerfile").map(|path| path.value.as_str().to_owned());
    let push = fields.flag("push").unwrap_or(false);
    let build_args = fields.shown_texts("build_args");
    let (secrets, secret_files) = secrets(&fields);
    let ssh = fields.texts("ssh").into_iter().map(hidden).collect();
    let target = fields.shown("target").map(|target| target.value);
    let platforms: Vec<At<Platform>> = fields
        .items("platforms")
        .iter()
        .filter_map(|node| reader.parse(node, "an item of `platforms`"))
        .collect();
    let image = fields.parse("image").map(|image| image.value);
    let inputs = inputs(&fields, context.as_ref());
    let outputs = outputs(&fields);
    let additional = additional_targets(&fields);
    let made = outputs.iter().map(|at| (&at.value.0, &at.spot));
    let made: Vec<_> = made
        .chain(additional.iter().map(|at| (&at.value.1, &at.spot)))
        .collect();
    read.outputs = made
        .iter()
        .map(|(artifact, spot)| At {
            value: artifact.name.clone(),
            spot: (*spot).clone(),
        })
        .collect();
    step::unique(reader, read.outputs.iter().map(|at| (&at.value, &at.spot)));
    read.complete = made.len() == fields.items("outputs").len() + fields.items("additional_targets").len();
    let caches = step::caches(&fields, &inputs, true);
    let mounts = inputs.iter().map(|at| (&at.value.path, &at.spot));
    let mounts = mounts.chain(made.iter().map(|(artifact, spot)| (&artifact.path, *spot)));
    step::mounts(reader, mounts.chain(caches.iter().map(|at| (&at.value.path, &at.spot))));
    read.inputs = step::names(&inputs);
    let env = Env(fields.shown_texts("env"));
    let (registry, registries) = registries(&fields, tag.as_ref().map(|tag| &tag.value));
    let network = step::network(&fields);
    let load = fields.flag("load");
    let shared = fields.read("builder", "builder", |text| match text {
        "shared" => Ok(true),
        "own" => Ok(false),
        _ => Err("write `shared`, for one that the job's builds use, or `own`"),
    });
    let shared = shared.unwrap_or(false);
    let cache_credentials = cache_credentials(&fields);
    let mut options = options(reader, &fields);
    options.secret_files = secret_files;
    // It stands for nothing where BuildKit fetches the context.
    let context = match &url {
        Some(_) => ContainerPath::new("context").ok(),
        None => context.map(|context| context.value),
    };
    options.context_url = url;
    if let (Some(context), Some(tag), true) = (context, tag, reader.count() == before) {
        // A name that is not valid was told, and the count has grown.
        let name = read
            .name
            .as_ref()
            .map_or_else(|| default_name(&tag.value), |name| Some(name.value.clone()))?;
        let plan = BuildPlan {
            tag: tag.value,
            context,
            dockerfile,
            push,
            load,
            build_args,
            secrets,
            ssh,
            target,
            additional_targets: step::values(additional),
            platforms: step::values(platforms),
            image,
            inputs: step::values(inputs),
            outputs: step::values(outputs),
            caches: step::values(caches),
            cache_credentials,
            env,
            registry,
            registries,
            network,
            rootless: fields.flag("rootless"),
            shared,
            options,
        };
        for (key, error) in plan.problems(&name) {
            let spot = fields.get(key).map_or(&read.spot, |value| &value.spot);
            reader.report(spot, "", error.message(), error.hint().map(str::to_owned));
        }
        read.step = Some(Step {
            name,
            action: Action::BuildImage(Box::new(plan)),
            timeout,
            attempts: attempts.unwrap_or(1),
            hooks: Hooks::default(),
            volumes: BTreeMap::new(),
            base: None,
        });
    }
    Some(read)
}

/// Everything that is `docker buildx build`'s or Compose's own.
fn options(reader: &Reader<'_>, fields: &Fields<'_, '_>) -> BuildOptions {
    let mut options = BuildOptions::default();
    options.tags = parsed(reader, fields, "tags");
    options.labels = fields.shown_texts("labels");
    options.annotations = fields.shown_texts("annotations");
    options.extra_hosts = parsed(reader, fields, "extra_hosts");
    options.ulimits = parsed(reader, fields, "ulimits");
    options.shm_size = fields.read("shm_size", "size", units::size);
    options.no_cache = fields.flag("no_cache").unwrap_or(false);
    let stages = fields.items("no_cache_filter").iter();
    options.no_cache_filter = stages
        .filter_map(|node| reader.shown_text(node, "an item of `no_cache_filter`"))
        .map(|stage| stage.value)
        .collect();
    for (name, context) in fields.shown_texts("build_contexts") {
        match context.parse::<BuildContext>() {
            Ok(context) => {
                options.build_contexts.insert(name, context);
            }
            Err(error) => {
                let spot = fields.get("build_contexts").map_or(fields.spot, |node| &node.spot);
                let message = format!("`{name}` in `build_contexts`: {}", error.message());
                reader.report(spot, "", message, error.hint().map(str::to_owned));
            }
        }
    }
    let file = |key| fields.parse::<ContainerPath>(key).map(|path| path.value);
    options.build_args_files = file("build_args_file").into_iter().collect();
    options.labels_files = file("labels_file").into_iter().collect();
    for (name, path) in fields.shown_texts("image_args") {
        match ContainerPath::new(&path) {
            Ok(path) => {
                options.image_args.insert(name, path);
            }
            Err(error) => {
                let spot = fields.get("image_args").map_or(fields.spot, |node| &node.spot);
                reader.report(spot, "", format!("`{name}` in `image_args`: {}", error.message()), None);
            }
        }
    }
    options.run_network = fields
        .parse("run_network")
        .map(|network| network.value)
        .unwrap_or_default();
    options.sbom = match fields.get("sbom").map(|node| &node.value) {
        None | Some(Value::Bool(false)) => None,
        Some(Value::Bool(true)) => Some(Sbom::default()),
        Some(_) => fields.parse("sbom").map(|sbom| sbom.value),
    };
    options.cache_limit = fields.read("cache_limit", "size", units::size);
    options.dockerfile_inline = fields.shown("dockerfile_inline").map(|text| text.value);
    options.frontend = fields.parse("frontend").map(|image| image.value);
    options.source_date_epoch = fields.read("source_date_epoch", "number of seconds since 1970", |text| {
        text.parse()
            .map_err(|_| "write a number, for example `source_date_epoch: 1700000000`")
    });
    options.provenance = fields.parse("provenance").map(|mode| mode.value);
    options.cache_from = parsed(reader, fields, "cache_from");
    options.cache_to = parsed(reader, fields, "cache_to");
    if let Some(node) = fields.get("mirrors") {
        options.mirrors = mirrors(reader, node);
    }
    options.buildkitd_config = fields.shown("buildkitd_config").map(|text| text.value);
    options
}

fn parsed<T: FromStr<Err = Error>>(reader: &Reader<'_>, fields: &Fields<'_, '_>, key: &str) -> Vec<T> {
    let items = fields.items(key).iter();
    items
        .filter_map(|node| reader.parse(node, &format!("an item of `{key}`")))
        .map(|item| item.value)
        .collect()
}

/// `timeout` and `attempts`, which may stand with the other keys or beside `build_image`, as a task's do.
fn modifiers(outer: &Fields<'_, '_>, inner: &Fields<'_, '_>) -> (Option<Duration>, Option<u32>) {
    for key in ["timeout", "attempts"] {
        if let (Some(beside), Some(within)) = (outer.key(key), inner.key(key)) {
            let places = [(beside, "this one"), (within, "and this one")];
            inner.reader.conflict(
                places,
                format!("`{key}` stands both in `build_image` and beside it"),
                "keep one of the two",
            );
        }
    }
    let (beside, within) = (step::modifiers(outer), step::modifiers(inner));
    (within.0.or(beside.0), within.1.or(beside.1))
}

/// The artifacts that are mounted: those that are named, or else the one that the context is of.
fn inputs(fields: &Fields<'_, '_>, context: Option<&At<ContainerPath>>) -> Vec<At<Artifact>> {
    let named = fields.items("inputs");
    let Some(context) = context else {
        return step::artifacts(fields.reader, named, step::INPUT);
    };
    let path = context.value.as_str();
    if named.is_empty() {
        let first = path.split('/').next().unwrap_or(path);
        let found = Name::new(first).and_then(|name| {
            Ok(Artifact {
                path: ContainerPath::new(first)?,
                name,
                optional: false,
            })
        });
        if found.is_err() {
            let help = "name an artifact (`context: source`), or list what to mount under `inputs`".to_owned();
            fields.reader.report(
                &context.spot,
                "",
                format!("the context `{path}` starts with no artifact's name"),
                help,
            );
        }
        return found
            .into_iter()
            .map(|value| At {
                value,
                spot: context.spot.clone(),
            })
            .collect();
    }
    let before = fields.reader.count();
    let inputs = step::artifacts(fields.reader, named, step::INPUT);
    let holds = |outer: &str, inner: &str| {
        outer == "."
            || inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let fits = |input: &At<Artifact>| {
        let mount = input.value.path.as_str();
        holds(mount, path) || holds(path, mount)
    };
    if !inputs.iter().any(fits) && fields.reader.count() == before {
        let mounts = list(inputs.iter().map(|input| input.value.path.as_str()));
        let help =
            format!("mounted are {mounts}; let the context start with one of them, or add its artifact to `inputs`");
        fields.reader.report(
            &context.spot,
            "",
            format!("the context `{path}` is in none of the build's inputs"),
            help,
        );
    }
    inputs
}

/// The secrets of its steps: values, and files of its inputs.
fn secrets(fields: &Fields<'_, '_>) -> (BTreeMap<String, SecretString>, BTreeMap<String, ContainerPath>) {
    const KEYS: Known = Known::of(&["file"]);
    let Some(node) = fields.get("secrets") else {
        return Default::default();
    };
    let reader = fields.reader;
    let twice = |spot: &Spot, id: &str| {
        let help = "keep one of the two".to_owned();
        reader.report(spot, "", format!("`{id}` stands twice in `secrets`"), help);
    };
    let mut values = node.clone();
    let mut files = BTreeMap::new();
    if let Value::Map(entries) = &mut values.value {
        for (key, value) in entries.extract_if(.., |(_, value)| matches!(value.value, Value::Map(_))) {
            let id = reader.shown_text(&key, "a name in `secrets`");
            let file = reader.fields(&value, "a secret", KEYS).and_then(|file| {
                file.required("file", "file: source/token")?;
                relative(&file, "file")
            });
            let (Some(id), Some(file)) = (id, file) else { continue };
            if files.insert(id.value.clone(), file.value).is_some() {
                twice(&key.spot, &id.value);
            }
        }
    }
    let values = texts(reader, &values, "secrets");
    if let Some(id) = files.keys().find(|id| values.contains_key(*id)) {
        twice(&node.spot, id);
    }
    (values.into_iter().map(hidden).collect(), files)
}

fn hidden((id, value): (String, String)) -> (String, SecretString) {
    (id, SecretString::from(value))
}

/// A path that stays where artifacts are.
fn relative(fields: &Fields<'_, '_>, key: &str) -> Option<At<ContainerPath>> {
    let path = fields.parse::<ContainerPath>(key)?;
    if path.value.is_absolute() {
        let help = format!("write it relative to the working directory, which artifacts stand in: `{key}: source`");
        fields
            .reader
            .report(&path.spot, "", format!("`{key}` is an absolute path"), help);
        return None;
    }
    Some(path)
}

/// The artifacts that the build makes.
fn outputs(fields: &Fields<'_, '_>) -> Vec<At<(Artifact, OutputFormat)>> {
    const KEYS: Known = Known::of(&["name", "path", "type"]);
    let read = |node: &Node| {
        let (artifact, output) = step::artifact(fields.reader, node, "an output", KEYS)?;
        output.required("type", "type: oci")?;
        let format = output.parse::<OutputFormat>("type")?.value;
        Some(At {
            value: (artifact.value, format),
            spot: artifact.spot,
        })
    };
    fields.items("outputs").iter().filter_map(read).collect()
}

/// Further stages, and what each makes.
fn additional_targets(fields: &Fields<'_, '_>) -> Vec<At<(String, Artifact, OutputFormat)>> {
    const KEYS: Known = Known::of(&["target", "name", "path", "type"]);
    let read = |node: &Node| {
        let (artifact, output) = step::artifact(fields.reader, node, "an additional target", KEYS)?;
        output.required("target", "target: test")?;
        output.required("type", "type: local")?;
        let target = output.shown("target")?.value;
        let format = output.parse::<OutputFormat>("type")?.value;
        Some(At {
            value: (target, artifact.value, format),
            spot: artifact.spot,
        })
    };
    fields.items("additional_targets").iter().filter_map(read).collect()
}

/// What opens a bucket.
fn cache_credentials(fields: &Fields<'_, '_>) -> Option<Credentials> {
    const KEYS: Known = Known::of(&["access_key_id", "secret_access_key"]);
    let fields = fields
        .reader
        .fields(fields.get("cache_credentials")?, "`cache_credentials`", KEYS)?;
    fields.required("access_key_id", "access_key_id: secret:CACHE_ID")?;
    fields.required("secret_access_key", "secret_access_key: secret:CACHE_KEY")?;
    Some(Credentials::new(
        secret(&fields, "access_key_id")?,
        secret(&fields, "secret_access_key")?,
    ))
}

/// For each registry a list of hosts.
fn mirrors(reader: &Reader<'_>, node: &Node) -> BTreeMap<String, Vec<String>> {
    let Value::Map(entries) = &node.value else {
        reader.wrong(
            &node.spot,
            "`mirrors`",
            "a map of registries and lists of hosts",
            &node.value,
        );
        return BTreeMap::new();
    };
    let read = |(key, value): &(Node, Node)| {
        let host = reader.shown_text(key, "a registry in `mirrors`")?;
        let items = reader.items(value, "a registry's mirrors").iter();
        let mirrors = items.filter_map(|node| reader.shown_text(node, "an item of a registry's mirrors"));
        Some((host.value, mirrors.map(|mirror| mirror.value).collect()))
    };
    entries.iter().filter_map(read).collect()
}

/// The tag's registry, and all others: one alone, or a list.
fn registries(fields: &Fields<'_, '_>, tag: Option<&ImageRef>) -> (Option<RegistryAuth>, Vec<RegistryAuth>) {
    let Some(node) = fields.get("registry") else {
        return (None, Vec::new());
    };
    let Value::List(nodes) = &node.value else {
        return (registry(fields.reader, node), Vec::new());
    };
    let (mut own, mut others) = (None, Vec::new());
    let mut seen = BTreeSet::new();
    for node in nodes {
        let Some(registry) = registry(fields.reader, node) else {
            continue;
        };
        let host = registry.hostname.as_deref().or(tag.map(ImageRef::registry));
        if !seen.insert(host.map(str::to_owned)) {
            let message = format!("the registry {} is given twice", host.unwrap_or("of the tag"));
            fields
                .reader
                .report(&node.spot, "", message, "keep one of the two".to_owned());
        }
        if host == tag.map(ImageRef::registry) {
            own = Some(registry);
        } else {
            others.push(registry);
        }
    }
    (own, others)
}

fn registry(reader: &Reader<'_>, node: &Node) -> Option<RegistryAuth> {
    let fields = reader.fields(node, "`registry`", REGISTRY)?;
    Some(RegistryAuth {
        hostname: fields.shown("hostname").map(|hostname| hostname.value),
        credentials: step::credentials(&fields),
        insecure: fields.flag("insecure").unwrap_or(false),
        ca: secret(&fields, "ca"),
        client: client(&fields),
    })
}

/// A client's certificate and its key, which come together.
fn client(fields: &Fields<'_, '_>) -> Option<(String, SecretString)> {
    let given = |key: &str| fields.get(key).is_some();
    if !given("client_cert") && !given("client_key") {
        return None;
    }
    fields.required("client_cert", "client_cert: |")?;
    fields.required("client_key", "client_key: secret:REGISTRY_KEY")?;
    let certificate = secret(fields, "client_cert")?;
    Some((certificate, secret(fields, "client_key")?.into()))
}

/// A text that may be a secret, which is there.
fn secret(fields: &Fields<'_, '_>, key: &str) -> Option<String> {
    let text = fields.text(key).filter(|text| fields.reader.checked(text));
    text.map(|text| text.value)
}

/// A build is called after what it builds: `build-app` for `registry.example.com/team/app:1`.
fn default_name(tag: &ImageRef) -> Option<Name> {
    let last = tag.repository().rsplit('/').next().unwrap_or_default();
    let name: String = format!("build-{last}").chars().take(50).collect();
    Name::new(name.replace("..", "."))
        .or_else(|_| Name::new("build-image"))
        .ok()
}
