//! Options of a script as steps of a pipeline's file: the same keys in camel case, and so the same checks and the same
//! words for what is wrong.

use serde_json::{Map, Value, json};

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, Refused>;

/// What is wrong with options.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Refused {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A step as a file has it, and volumes that stand where it has caches.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) step: Value,
    /// Paths of caches, each with the volume that stands there.
    pub(super) volumes: Vec<(String, String)>,
}

const RUN: [&str; 20] = [
    "name",
    "image",
    "command",
    "env",
    "mounts",
    "inputs",
    "caches",
    "limits",
    "privileged",
    "network",
    "timeout",
    "attempts",
    "user",
    "workDir",
    "platform",
    "registryAuth",
    "secretEnv",
    "secretFiles",
    "security",
    "allowFailure",
];

/// A task of the options of `runtime.run`.
pub(super) fn task(name: &str, mut options: Object) -> Result<Written> {
    known(&options, "runtime.run", &RUN)?;
    options.remove("allowFailure");
    let mut volumes = Vec::new();
    let mut config = Object::new();
    let mut step = Object::new();
    step.insert("task".to_owned(), json!(name));
    config.insert("run".to_owned(), command(&mut options)?);
    let mut inputs = Vec::new();
    for key in ["mounts", "inputs"] {
        for (path, value) in taken(&mut options, key, "paths and volumes")? {
            inputs.push(json!({ "name": volume(&value, &format!("`{key}[{path:?}]`"))?, "path": path }));
        }
    }
    config.insert("inputs".to_owned(), Value::Array(inputs));
    config.insert("caches".to_owned(), caches(&mut options, &mut volumes)?);
    match (options.remove("image"), options.remove("registryAuth")) {
        (Some(image), Some(auth)) => {
            let mut source = object(auth, "`registryAuth`")?;
            known(&source, "`registryAuth`", &["username", "password", "insecure"])?;
            source.insert("repository".to_owned(), image);
            let resource = json!({ "type": "registry-image", "source": source });
            config.insert("image_resource".to_owned(), resource);
        }
        (Some(image), None) => {
            step.insert("image".to_owned(), image);
        }
        (None, _) => return Err(Refused::new("`image` is missing").hint("for example `image: \"busybox\"`")),
    }
    for key in ["limits", "platform"] {
        if let Some(value) = options.remove(key) {
            config.insert(key.to_owned(), snake_object(value));
        }
    }
    if let Some(security) = options.remove("security") {
        step.insert("security".to_owned(), snake_object(security));
    }
    for (key, value) in options {
        step.insert(snake(&key), value);
    }
    step.insert("config".to_owned(), Value::Object(config));
    let step = Value::Object(step);
    Ok(Written { step, volumes })
}

/// `command` as `{ path, args }` or as a list.
fn command(options: &mut Object) -> Result<Value> {
    let example = "for example `command: { path: \"sh\", args: [\"-c\", \"make\"] }`";
    let mut run = match options.remove("command") {
        Some(Value::Object(run)) => {
            known(&run, "`command`", &["path", "args", "dir", "user"])?;
            run
        }
        Some(Value::Array(words)) if !words.is_empty() => {
            let mut words = words.into_iter();
            let path = words.next().unwrap_or_default();
            [("path".to_owned(), path), ("args".to_owned(), words.collect())]
                .into_iter()
                .collect()
        }
        None => return Err(Refused::new("`command` is missing").hint(example)),
        Some(_) => return Err(Refused::new("`command` is `{ path, args }` or a list of words").hint(example)),
    };
    for (ours, theirs) in [("workDir", "dir"), ("user", "user")] {
        if let Some(value) = options.remove(ours) {
            run.insert(theirs.to_owned(), value);
        }
    }
    Ok(Value::Object(run))
}

/// `{ path: volume, path: key, path: { key, … } }` as a list.
fn caches(options: &mut Object, volumes: &mut Vec<(String, String)>) -> Result<Value> {
    let mut list = Vec::new();
    for (path, value) in taken(options, "caches", "paths and volumes or keys")? {
        if is_volume(&value) {
            volumes.push((path.clone(), volume(&value, "a cache")?));
            list.push(json!({ "path": path }));
            continue;
        }
        let mut cache = match value {
            Value::String(key) => [("key".to_owned(), Value::String(key))].into_iter().collect(),
            Value::Object(cache) => snake_keys(cache),
            _ => {
                let message = format!("`caches[{path:?}]` is neither a volume, nor a key, nor options of a cache");
                return Err(Refused::new(message));
            }
        };
        cache.insert("path".to_owned(), Value::String(path));
        list.push(Value::Object(cache));
    }
    Ok(Value::Array(list))
}

/// A build of the options of `image.build`.
pub(super) fn build(name: Option<&str>, mut options: Object) -> Result<Written> {
    let mut volumes = Vec::new();
    let mut inputs = Vec::new();
    for (path, value) in taken(&mut options, "inputs", "names and volumes")? {
        inputs.push(json!({ "name": volume(&value, &format!("`inputs[{path:?}]`"))?, "path": path }));
    }
    let context = options.get("context").and_then(Value::as_str).unwrap_or_default();
    if inputs.is_empty() && options.contains_key("context") && !orchestra_image_build::is_url(context) {
        let message = format!("nothing is mounted that the context {context:?} could be in");
        return Err(Refused::new(message).hint(format!("add `inputs: {{ {context}: volume }}`")));
    }
    let outputs = made(&mut options, "outputs", &["volume", "type"])?;
    let targets = made(&mut options, "additionalTargets", &["volume", "type", "target"])?;
    let caches = caches(&mut options, &mut volumes)?;
    let registry = match options.remove("registryAuth") {
        None => None,
        Some(Value::Array(all)) => Some(all.into_iter().map(registry).collect::<Result<Vec<_>>>()?.into()),
        Some(one) => Some(registry(one)?),
    };
    let mut build = Object::new();
    if let Some(credentials) = options.remove("cacheCredentials") {
        build.insert("cache_credentials".to_owned(), snake_object(credentials));
    }
    for (key, value) in options {
        build.insert(snake(&key), value);
    }
    build.extend(registry.map(|registry| ("registry".to_owned(), registry)));
    for (key, value) in [
        ("inputs", inputs.into()),
        ("outputs", outputs.into()),
        ("additional_targets", targets.into()),
        ("caches", caches),
    ] {
        build.insert(key.to_owned(), value);
    }
    build.extend(name.map(|name| ("name".to_owned(), json!(name))));
    let step = json!({ "build_image": build });
    Ok(Written { step, volumes })
}

/// What a build makes in volumes, by their paths: `{ path: { volume, type, … } }` as a list.
fn made(options: &mut Object, key: &str, keys: &[&str]) -> Result<Vec<Value>> {
    let read = |(path, value): (String, Value)| {
        let mut output = object(value, &format!("`{key}[{path:?}]`"))?;
        known(&output, &format!("`{key}`"), keys)?;
        let into = output.remove("volume").unwrap_or_default();
        let name = volume(&into, &format!("`{key}[{path:?}].volume`"))?;
        output.insert("name".to_owned(), json!(name));
        output.insert("path".to_owned(), json!(path));
        Ok(Value::Object(output))
    };
    taken(options, key, "paths and outputs")?
        .into_iter()
        .map(read)
        .collect()
}

fn registry(auth: Value) -> Result<Value> {
    let mut auth = object(auth, "`registryAuth`")?;
    let keys = [
        "registry",
        "username",
        "password",
        "insecure",
        "ca",
        "clientCert",
        "clientKey",
    ];
    known(&auth, "`registryAuth`", &keys)?;
    if let Some(host) = auth.remove("registry") {
        auth.insert("hostname".to_owned(), host);
    }
    Ok(Value::Object(snake_keys(auth)))
}

/// A task that has a cache, and the inputs that its key names: the options of `caches.restore`.
pub(super) fn cache(path: &str, mut options: Object) -> Result<Value> {
    let known_keys = [
        "key",
        "restoreKeys",
        "scope",
        "policy",
        "sizeLimit",
        "paths",
        "devices",
        "inputs",
    ];
    known(&options, "caches.restore", &known_keys)?;
    if !options.contains_key("key") {
        return Err(Refused::new("`key` is missing").hint("for example `caches.restore({ key: \"cargo\" })`"));
    }
    let mut inputs = Vec::new();
    for (path, value) in taken(&mut options, "inputs", "names and volumes")? {
        inputs.push(json!({ "name": volume(&value, &format!("`inputs[{path:?}]`"))?, "path": path }));
    }
    let mut cache = snake_keys(options);
    cache.insert("path".to_owned(), json!(path));
    let config = json!({ "inputs": inputs, "caches": [cache], "run": { "path": "true" } });
    Ok(json!({ "task": "cache", "image": "none", "config": config }))
}

/// A message of the YAML front end in a script's words.
pub(super) fn camel_words(message: &str) -> String {
    let mut parts = message.split('`');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for (at, part) in parts.enumerate() {
        out.push('`');
        let is_key = at % 2 == 0 && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        if is_key {
            let mut words = part.split('_');
            out.push_str(words.next().unwrap_or_default());
            for word in words {
                let mut letters = word.chars();
                out.extend(letters.next().map(|first| first.to_ascii_uppercase()));
                out.push_str(letters.as_str());
            }
        } else {
            out.push_str(part);
        }
    }
    out.replace("`registry`", "`registryAuth`")
        .replace("`hostname`", "`registry`")
}

/// Refuses keys that are none.
pub(super) fn known(options: &Object, what: &str, known: &[&str]) -> Result<()> {
    let Some(unknown) = options.keys().find(|key| !known.contains(&key.as_str())) else {
        return Ok(());
    };
    let score = |name: &&&str| strsim::damerau_levenshtein(&unknown.to_ascii_lowercase(), &name.to_ascii_lowercase());
    let closest = known
        .iter()
        .min_by_key(score)
        .filter(|name| score(name) <= 2.max(unknown.len() / 3));
    let hint = match closest {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("known are {}", known.join(", ")),
    };
    Err(Refused::new(format!("unknown option `{unknown}` in {what}")).hint(hint))
}

pub(super) fn object(value: Value, what: &str) -> Result<Object> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(Refused::new(format!("{what} is no object"))),
    }
}

/// The entries of an option that is an object, which is taken out.
fn taken(options: &mut Object, key: &str, of: &str) -> Result<Object> {
    match options.remove(key) {
        None | Some(Value::Null) => Ok(Object::new()),
        Some(Value::Object(entries)) => Ok(entries),
        Some(_) => Err(Refused::new(format!("`{key}` is an object of {of}"))),
    }
}

fn is_volume(value: &Value) -> bool {
    value.get("$volume").is_some()
}

/// The name of a volume.
pub(super) fn volume(value: &Value, what: &str) -> Result<String> {
    let name = value.get("$volume").and_then(Value::as_str);
    name.map(str::to_owned)
        .ok_or_else(|| Refused::new(format!("{what} is no volume")).hint("make one with `await volumes.create()`"))
}

fn snake(key: &str) -> String {
    let mut out = String::new();
    for letter in key.chars() {
        if letter.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

fn snake_keys(object: Object) -> Object {
    object.into_iter().map(|(key, value)| (snake(&key), value)).collect()
}

fn snake_object(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(snake_keys(object)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn options_of_a_task_are_a_step() {
        let options = json!({
            "image": "busybox", "command": { "path": "sh", "args": ["-c", "make"] }, "env": { "aB": "1" },
            "mounts": { "src": { "$volume": "source" } }, "secretEnv": "hidden", "workDir": "src",
            "caches": { "/c": { "$volume": "kept" }, "/d": { "key": "k", "restoreKeys": ["a"] } },
        });
        let written = task("test", object(options)).unwrap();
        assert_eq!(
            written.step,
            json!({
                "task": "test", "image": "busybox", "env": { "aB": "1" }, "secret_env": "hidden",
                "config": {
                    "run": { "path": "sh", "args": ["-c", "make"], "dir": "src" },
                    "inputs": [{ "name": "source", "path": "src" }],
                    "caches": [{ "path": "/c" }, { "path": "/d", "key": "k", "restore_keys": ["a"] }],
                },
            })
        );
        assert_eq!(written.volumes, [("/c".to_owned(), "kept".to_owned())]);
    }

    #[test]
    fn what_is_misspelt_is_told_with_what_was_meant() {
        let options = json!({ "image": "a", "command": ["true"], "timout": "1s" });
        let refused = task("t", object(options)).unwrap_err();
        assert_eq!(refused.message, "unknown option `timout` in runtime.run");
        assert_eq!(refused.hint.as_deref(), Some("did you mean `timeout`?"));
        let options = json!({ "context": "src", "tag": "a" });
        assert!(
            build(None, object(options))
                .unwrap_err()
                .hint
                .unwrap()
                .contains("inputs: { src: volume }")
        );
    }

    /// What `build_image` has in a file, a script has under the same names, but for two.
    #[test]
    fn the_declarations_have_every_option_of_a_build() {
        let schema: Value = serde_json::from_str(&orchestra_pipelines::schema()).unwrap();
        let keys = schema["$defs"]["Build"]["properties"].as_object().unwrap().keys();
        let options: Vec<String> = keys.map(|key| camel_words(&format!("`{key}`"))).collect();
        assert!(options.len() > 40, "{options:?}");
        let declarations = include_str!("../../starter/orchestra.d.ts");
        let (_, rest) = declarations.split_once("type BuildOptions").unwrap();
        let (build, _) = rest.split_once("interface BuildResult").unwrap();
        for option in options {
            let name = option.trim_matches('`');
            assert!(
                build.contains(&format!(" {name}?: ")) || build.contains(&format!(" {name}: ")),
                "{name}"
            );
        }
    }

    #[test]
    fn a_build_of_the_newer_options_is_a_step() {
        let made = json!({ "volume": { "$volume": "made" }, "type": "local" });
        let mut target = made.clone();
        target["target"] = json!("test");
        let options = json!({
            "context": "https://example.com/app.git", "tag": "a", "outputs": { "out": made }, "cacheLimit": "1GB",
            "additionalTargets": { "tested": target },
            "registryAuth": { "registry": "example.com", "clientCert": "c", "clientKey": "secret:K" },
            "cacheCredentials": { "accessKeyId": "secret:ID", "secretAccessKey": "secret:KEY" },
        });
        let written = build(Some("b"), object(options)).unwrap();
        let step = json!({ "build_image": {
            "name": "b", "context": "https://example.com/app.git", "tag": "a", "cache_limit": "1GB",
            "inputs": [], "caches": [], "outputs": [{ "name": "made", "path": "out", "type": "local" }],
            "additional_targets": [{ "name": "made", "path": "tested", "type": "local", "target": "test" }],
            "registry": { "hostname": "example.com", "client_cert": "c", "client_key": "secret:K" },
            "cache_credentials": { "access_key_id": "secret:ID", "secret_access_key": "secret:KEY" },
        }});
        assert_eq!(written.step, step);
    }

    #[test]
    fn messages_are_in_the_words_of_a_script() {
        assert_eq!(
            camel_words("unknown key `buildargs` in `build_image`: did you mean `build_args`? `registry` is a map"),
            "unknown key `buildargs` in `buildImage`: did you mean `buildArgs`? `registryAuth` is a map"
        );
    }
}
