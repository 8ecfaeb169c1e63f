//! `task` steps.

use std::collections::BTreeMap;
use std::time::Duration;

use orchestra::{
    ContainerPath, Cpus, Env, ImageRef, Limits, Name, NetworkMode, Platform, Profile, Security, Task, User,
};

use super::fields::{Fields, Known, texts};
use super::reader::Reader;
use super::step::{self, Read};
use super::tree::{At, Node, Spot, Value};
use super::{late, load_var, resource};
use crate::{Action, Artifact, Assertion, Hooks, LatePlan, Step, StepKind, TaskImage, TaskPlan, units};

pub(super) const STEP: Known = Known {
    without_meaning: &["tags"],
    misplaced: &["run", "inputs", "outputs", "caches", "platform", "image_resource"],
    belongs: "under `config`",
    ..Known::of(&[
        "task",
        "config",
        "image",
        "file",
        "vars",
        "input_mapping",
        "output_mapping",
        "limits",
        "container_limits",
        "security",
        "parallelism",
        "assert",
        "privileged",
        "timeout",
        "attempts",
        "network",
        "hermetic",
        "params",
        "env",
        "secret_env",
        "secret_files",
        "on_success",
        "on_failure",
        "on_abort",
        "on_error",
        "ensure",
    ])
};

pub(super) const CONFIG: Known = Known {
    later: &["rootfs_uri"],
    misplaced: &[
        "privileged",
        "timeout",
        "attempts",
        "network",
        "secret_env",
        "secret_files",
    ],
    belongs: "beside `config`, in the step itself",
    ..Known::of(&[
        "platform",
        "image",
        "image_resource",
        "inputs",
        "outputs",
        "caches",
        "run",
        "params",
        "env",
        "limits",
        "container_limits",
    ])
};

const SECURITY: Known = Known::of(&["seccomp", "apparmor", "no_new_privileges"]);
const ASSERT: Known = Known::of(&["code", "stdout", "stderr"]);
const RUN: Known = Known::of(&["path", "args", "dir", "user"]);
const LIMITS: Known = Known::of(&["cpu", "cpus", "memory"]);
const IMAGE_RESOURCE: Known = Known {
    later: &["params", "version"],
    ..Known::of(&["type", "source", "name"])
};
const SOURCE: Known = Known {
    later: &[
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
        "aws_region",
        "aws_role_arn",
        "aws_role_arns",
        "aws_account_id",
        "platform",
        "registry_mirror",
        "content_trust",
        "ca_certs",
        "variant",
        "semver_constraint",
        "pre_releases",
        "tag_regex",
        "debug",
    ],
    ..Known::of(&["repository", "tag", "digest", "username", "password", "insecure"])
};

/// Reads a step that has the key `task`.
pub(super) fn read(reader: &Reader<'_>, node: &Node) -> Option<Read> {
    read_with(reader, node, None)
}

/// As [`read`], with the config that the task's file holds, once it is known.
pub(super) fn read_with(reader: &Reader<'_>, node: &Node, file: Option<(&Reader<'_>, &Node)>) -> Option<Read> {
    let problems = || reader.count() + file.map_or(0, |(reader, _)| reader.count());
    let before = problems();
    let fields = reader.fields(node, "a task step", STEP)?;
    let spot = fields.key("task").unwrap_or(fields.spot).clone();
    let nothing = At {
        value: Value::Null,
        spot: spot.clone(),
    };
    let unknown = file.is_none() && fields.get("file").is_some();
    let has_config = match file {
        Some(_) => true,
        None if unknown => false,
        None => fields.required("config", "config: { run: { path: sh } }").is_some(),
    };
    let before_config = problems();
    let config = match file {
        Some((reader, node)) => reader.fields(node, "a task", CONFIG),
        None => reader.fields(fields.get("config").unwrap_or(&nothing), "a task's `config`", CONFIG),
    };
    let mut outputs = config.as_ref().map_or_else(Vec::new, |config| {
        step::artifacts(config.reader, config.items("outputs"), "an output")
    });
    // In the task's own text, which may be another file than what maps them.
    let places: Vec<Spot> = outputs.iter().map(|output| output.spot.clone()).collect();
    if has_config {
        step::mapped(&fields, "output_mapping", "output", &mut outputs);
    }
    let complete = has_config && problems() == before_config && fields.get("outputs").is_none();

    let name = fields
        .required("task", "task: unit-tests")
        .and_then(|_| fields.parse::<Name>("task"));
    let (timeout, attempts) = step::modifiers(&fields);
    let mut read = Read {
        name,
        outputs: step::names(&outputs),
        complete,
        ..Read::new(spot)
    };
    let Some(config) = config else { return Some(read) };
    let placed = outputs.iter().zip(&places);
    step::unique(
        config.reader,
        placed.clone().map(|(output, spot)| (&output.value.name, spot)),
    );
    let mut inputs = step::inputs(config.reader, config.items("inputs"));
    let caches = step::caches(&config, &inputs, false);
    // An output that stands where an input does is what the task makes of that.
    let place = |at: &At<Artifact>| at.value.path.resolve(Task::WORKING_DIR);
    let in_place = |output: &At<Artifact>| inputs.iter().any(|input| place(input) == place(output));
    let outside = placed.filter(|(output, _)| !in_place(output));
    let outside = outside.map(|(output, spot)| (&output.value.path, spot));
    let mounts = inputs.iter().map(|at| (&at.value.path, &at.spot)).chain(outside);
    step::mounts(
        config.reader,
        mounts.chain(caches.iter().map(|at| (&at.value.path, &at.spot))),
    );
    if has_config {
        step::mapped(&fields, "input_mapping", "input", &mut inputs);
    }
    let needed: Vec<At<Artifact>> = inputs.iter().filter(|input| !input.value.optional).cloned().collect();
    read.inputs = step::names(&needed);

    let image = image(&fields, &config, has_config);
    let run = has_config.then(|| run(&config)).flatten();
    // The step's values win, so that one config can serve several steps.
    let env: BTreeMap<_, _> = params(&config).into_iter().chain(params(&fields)).collect();
    let platform = platform(&config);
    let (mut limits, of_config) = (limits(&fields), limits(&config));
    limits.cpus = limits.cpus.or(of_config.cpus);
    limits.memory = limits.memory.or(of_config.memory);
    let security = security(&fields);
    let assert = assert(&fields);
    let privileged = fields.flag("privileged").unwrap_or(false);
    let network = network(&fields);
    let (secret_env, secret_files) = (step::secret_env(&fields), step::secret_files(&fields));
    if unknown {
        later(reader, node, &fields, &mut read, (timeout, attempts));
        return Some(read);
    }
    if let (None, Some(spot)) = (file, fields.key("vars")) {
        let help = "a `config` has the variables of its pipeline".to_owned();
        reader.report(spot, "", "`vars` are for a task's `file`", help);
    }
    if problems() > before {
        return Some(read);
    }
    if let (Some(image), Some(run), Some(name)) = (image, run, &read.name) {
        let task = TaskPlan {
            image,
            platform,
            command: run.command,
            dir: run.dir,
            user: run.user,
            env: Env(env),
            hide_secret_env: secret_env,
            secret_files,
            inputs: step::values(inputs),
            outputs: step::values(outputs),
            caches: step::values(caches),
            limits,
            privileged,
            network,
            security,
            assert,
        };
        let action = Action::Task(Box::new(task));
        read.step = Some(Step {
            name: name.value.clone(),
            action,
            timeout,
            attempts: attempts.unwrap_or(1),
            hooks: Hooks::default(),
            volumes: BTreeMap::new(),
            base: None,
        });
    }
    Some(read)
}

/// A task whose config is in a file: what can be known of it now.
fn later(
    reader: &Reader<'_>,
    node: &Node,
    fields: &Fields<'_, '_>,
    read: &mut Read,
    (timeout, attempts): (Option<Duration>, Option<u32>),
) {
    if let (Some(config), Some(file)) = (fields.key("config"), fields.key("file")) {
        let places = [(config, "this one"), (file, "and this one")];
        reader.conflict(
            places,
            "`file` and `config` both say what the task is",
            "keep one of the two",
        );
    }
    if let Some(vars) = fields.get("vars")
        && !matches!(vars.value, Value::Map(_))
    {
        reader.wrong(&vars.spot, "`vars`", "a map of names and values", &vars.value);
    }
    if let Some((artifact, _)) = load_var::artifact_file(fields) {
        read.inputs.push(artifact);
    }
    if let Some(name) = &read.name {
        let late = LatePlan::new(reader, StepKind::Task, late::without_hooks(node));
        read.step = Some(Step {
            name: name.value.clone(),
            action: Action::Late(Box::new(late)),
            timeout,
            attempts: attempts.unwrap_or(1),
            hooks: Hooks::default(),
            volumes: BTreeMap::new(),
            base: None,
        });
    }
}

/// `network`, or `hermetic`, which is Concourse's word for none.
fn network(fields: &Fields<'_, '_>) -> NetworkMode {
    let network = step::network(fields);
    if !fields.flag("hermetic").unwrap_or(false) {
        return network;
    }
    if let (Some(key), Some(other)) = (fields.key("hermetic"), fields.key("network"))
        && network != NetworkMode::None
    {
        let places = [(key, "this one"), (other, "and this one")];
        let message = "a task that is `hermetic` has no network";
        fields
            .reader
            .conflict(places, message.to_owned(), "keep one of the two");
    }
    NetworkMode::None
}

fn security(fields: &Fields<'_, '_>) -> Security {
    let mut security = Security::default();
    let Some(fields) = fields
        .get("security")
        .and_then(|node| fields.reader.fields(node, "`security`", SECURITY))
    else {
        return security;
    };
    let profile = |key: &str| {
        let text = fields.text(key)?;
        Some(match text.value.as_str() {
            "default" => Profile::Default,
            "unconfined" => Profile::Unconfined,
            _ => Profile::Custom(text.value),
        })
    };
    security.seccomp = profile("seccomp").unwrap_or_default();
    security.apparmor = profile("apparmor").unwrap_or_default();
    security.no_new_privileges = fields.flag("no_new_privileges").unwrap_or(false);
    security
}

fn assert(fields: &Fields<'_, '_>) -> Assertion {
    let Some(fields) = fields
        .get("assert")
        .and_then(|node| fields.reader.fields(node, "`assert`", ASSERT))
    else {
        return Assertion::default();
    };
    let text = |key| fields.text(key).map(|text| text.value).filter(|text| !text.is_empty());
    Assertion {
        code: fields.read("code", "exit code", |text| {
            text.parse().map_err(|_| "write a whole number from 0 to 255")
        }),
        stdout: text("stdout"),
        stderr: text("stderr"),
    }
}

fn params(fields: &Fields<'_, '_>) -> BTreeMap<String, String> {
    let node = fields.either("params", "env");
    node.map(|node| texts(fields.reader, &of_any_kind(fields.reader, node), "params"))
        .unwrap_or_default()
}

/// Values of any kind as the texts that a program finds: lists and maps are JSON, as in Concourse.
fn of_any_kind(reader: &Reader<'_>, node: &Node) -> Node {
    let Value::Map(entries) = &node.value else {
        return node.clone();
    };
    let entry = |(key, value): &(Node, Node)| {
        let is_text = !matches!(value.value, Value::List(_) | Value::Map(_));
        let value = match is_text {
            true => value.clone(),
            false => At {
                value: Value::Text(resource::json_text(reader, value)),
                spot: value.spot.clone(),
            },
        };
        (key.clone(), value)
    };
    At {
        value: Value::Map(entries.iter().map(entry).collect()),
        spot: node.spot.clone(),
    }
}

/// The step's image wins over the config's; the credentials of an image that is not used go nowhere.
fn image(step: &Fields<'_, '_>, config: &Fields<'_, '_>, has_config: bool) -> Option<TaskImage> {
    let plain = |at: At<ImageRef>| TaskImage::new(at.value);
    let own = step.parse("image").map(|at| TaskImage {
        may_be_artifact: true,
        ..plain(at)
    });
    let named = config.parse("image").map(plain);
    let resource = config
        .get("image_resource")
        .and_then(|node| image_resource(config.reader, node));
    if let (Some(first), Some(second)) = (config.key("image"), config.key("image_resource")) {
        let places = [(second, "this one"), (first, "and this one")];
        config.reader.conflict(
            places,
            "`image` and `image_resource` both name the task's image",
            "keep one of the two",
        );
    }
    let asked = [step.get("image"), config.get("image"), config.get("image_resource")];
    if has_config && asked.iter().all(Option::is_none) {
        let help = "add `image: busybox` to the step, or an `image_resource` to its `config`".to_owned();
        step.reader.report(
            step.key("task").unwrap_or(step.spot),
            "has no image",
            "nothing says which image the task runs in",
            help,
        );
    }
    own.or(named).or(resource)
}

fn image_resource(reader: &Reader<'_>, node: &Node) -> Option<TaskImage> {
    let fields = reader.fields(node, "`image_resource`", IMAGE_RESOURCE)?;
    registry_image(reader, &fields, "an image")
}

/// `type: registry-image` and its `source`.
pub(super) fn registry_image(reader: &Reader<'_>, fields: &Fields<'_, '_>, what: &str) -> Option<TaskImage> {
    // What `registry-image` was called before: its `source` is the same.
    let known = ["registry-image", "docker-image"];
    if let Some(kind) = fields.text("type").filter(|kind| !known.contains(&kind.value.as_str())) {
        let help = "write `type: registry-image`".to_owned();
        let message = match what {
            "an image" => format!("image resources of type `{}` are not supported", kind.value),
            _ => format!("{what} of type `{}` is not supported", kind.value),
        };
        reader.report(&kind.spot, "", message, help);
    } else if fields.key("type").is_none() {
        fields.required("type", "type: registry-image");
    }
    let source = reader.fields(
        fields.required("source", "source: { repository: busybox }")?,
        "an image's `source`",
        SOURCE,
    )?;
    let credentials = step::credentials(&source);
    let insecure = source.flag("insecure").unwrap_or(false);
    let (tag, digest) = (source.shown("tag"), source.shown("digest"));
    source.required("repository", "repository: busybox")?;
    let mut image = source.parse::<ImageRef>("repository")?.value;
    for (sign, part) in [(':', tag), ('@', digest)] {
        let Some(part) = part else { continue };
        match ImageRef::new(format!("{image}{sign}{}", part.value)) {
            Ok(with) => image = with,
            Err(error) => {
                reader.report(&part.spot, "", error.message(), error.hint().map(str::to_owned));
                return None;
            }
        }
    }
    Some(TaskImage {
        credentials,
        insecure,
        ..TaskImage::new(image)
    })
}

struct Run {
    command: Vec<String>,
    dir: Option<ContainerPath>,
    user: Option<User>,
}

fn run(config: &Fields<'_, '_>) -> Option<Run> {
    let reader = config.reader;
    let fields = reader.fields(
        config.required("run", "run: { path: sh, args: [-c, make] }")?,
        "`run`",
        RUN,
    )?;
    let dir = fields.parse("dir").map(|dir| dir.value);
    let user = fields.parse("user").map(|user| user.value);
    let args: Vec<_> = fields
        .items("args")
        .iter()
        .filter_map(|node| reader.text(node, "an item of `args`"))
        .collect();
    fields.required("path", "path: sh")?;
    let path = fields.text("path")?;
    if path.value.is_empty() {
        reader.report(
            &path.spot,
            "",
            "`path` is empty",
            "name the program to run, for example `sh`".to_owned(),
        );
    }
    for text in std::iter::once(&path)
        .chain(&args)
        .filter(|text| text.value.contains('\0'))
    {
        reader.report(&text.spot, "", "a command can't have a NUL byte", None);
    }
    for text in std::iter::once(&path).chain(&args) {
        reader.remark_secret(&text.spot, "a command");
    }
    let command = std::iter::once(path.value).chain(step::values(args)).collect();
    Some(Run { command, dir, user })
}

/// `linux`, as Concourse has it, is the engine's own; a processor can be named too.
fn platform(config: &Fields<'_, '_>) -> Option<Platform> {
    let text = config.text("platform")?;
    if text.value == "linux" {
        return None;
    }
    let platform = text
        .value
        .contains('/')
        .then(|| config.parse::<Platform>("platform"))
        .flatten();
    if !text.value.contains('/') || platform.as_ref().is_some_and(|platform| platform.value.os != "linux") {
        let help = "write `linux`, or with a processor `linux/arm64`".to_owned();
        config.reader.report(
            &text.spot,
            "",
            format!("tasks run on linux, not on `{}`", text.value),
            help,
        );
    }
    platform.map(|platform| platform.value)
}

fn limits(config: &Fields<'_, '_>) -> Limits {
    let mut limits = Limits::default();
    let node = config.either("limits", "container_limits");
    let Some(fields) = node.and_then(|node| config.reader.fields(node, "`limits`", LIMITS)) else {
        return limits;
    };
    if let Some(cpu) = fields.either("cpu", "cpus") {
        let shares =
            matches!(&cpu.value, Value::Number(text) if text.parse::<f64>().is_ok_and(|number| number >= 128.0));
        if shares {
            let help =
                "write the number of processors, for example `cpu: 1.5`: it is a quota, where Concourse takes shares"
                    .to_owned();
            config
                .reader
                .report(&cpu.spot, "", "that many processors there are not", help);
        } else {
            limits.cpus = config.reader.parse::<Cpus>(cpu, "`cpu`").map(|cpus| cpus.value);
        }
    }
    limits.memory = fields.read("memory", "size", units::size);
    limits
}
