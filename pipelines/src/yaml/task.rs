//! `task` steps.

use std::collections::BTreeMap;

use orchestra::{ContainerPath, Cpus, Env, ImageRef, Limits, Name, Platform, User};

use super::fields::{Fields, Known, texts};
use super::reader::Reader;
use super::step::{self, Read};
use super::tree::{At, Node, Value};
use crate::{Action, Hooks, Step, TaskImage, TaskPlan, units};

const STEP: Known = Known {
    later: &[
        "file",
        "vars",
        "input_mapping",
        "output_mapping",
        "hermetic",
        "tags",
        "container_limits",
        "limits",
        "assert",
        "parallelism",
        "security",
    ],
    misplaced: &["run", "inputs", "outputs", "caches", "platform", "image_resource"],
    belongs: "under `config`",
    ..Known::of(&[
        "task",
        "config",
        "image",
        "privileged",
        "timeout",
        "attempts",
        "network",
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

const CONFIG: Known = Known {
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
    let before = reader.count();
    let fields = reader.fields(node, "a task step", STEP)?;
    let spot = fields.key("task").unwrap_or(fields.spot).clone();
    let nothing = At {
        value: Value::Null,
        spot: spot.clone(),
    };
    let has_config = fields.required("config", "config: { run: { path: sh } }").is_some();
    let config = fields.get("config").unwrap_or(&nothing);
    let before_config = reader.count();
    let config = reader.fields(config, "a task's `config`", CONFIG);
    let outputs = config.as_ref().map_or(&[][..], |config| config.items("outputs"));
    let outputs = step::artifacts(reader, outputs, "an output");
    let complete = has_config && reader.count() == before_config && fields.get("outputs").is_none();

    let name = fields
        .required("task", "task: unit-tests")
        .and_then(|_| fields.parse::<Name>("task"));
    let (timeout, attempts) = step::modifiers(&fields);
    let outputs_named = step::names(&outputs);
    let mut read = Read {
        name,
        spot,
        inputs: Vec::new(),
        outputs: outputs_named,
        complete,
        step: None,
    };
    let Some(config) = config else { return Some(read) };
    let inputs = step::artifacts(reader, config.items("inputs"), "an input");
    let caches = step::caches(&config, &inputs, false);
    let mounts = inputs.iter().chain(&outputs).map(|at| (&at.value.path, &at.spot));
    step::mounts(reader, mounts.chain(caches.iter().map(|at| (&at.value.path, &at.spot))));
    read.inputs = step::names(&inputs);

    let image = image(&fields, &config, has_config);
    let run = has_config.then(|| run(&config)).flatten();
    // The step's values win, so that one config can serve several steps.
    let env: BTreeMap<_, _> = params(&config).into_iter().chain(params(&fields)).collect();
    let platform = platform(&config);
    let limits = limits(&config);
    let privileged = fields.flag("privileged").unwrap_or(false);
    let network = step::network(&fields);
    let (secret_env, secret_files) = (step::secret_env(&fields), step::secret_files(&fields));
    if reader.count() > before {
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
        };
        let action = Action::Task(Box::new(task));
        read.step = Some(Step {
            name: name.value.clone(),
            action,
            timeout,
            attempts: attempts.unwrap_or(1),
            hooks: Hooks::default(),
        });
    }
    Some(read)
}

fn params(fields: &Fields<'_, '_>) -> BTreeMap<String, String> {
    fields
        .either("params", "env")
        .map(|node| texts(fields.reader, node, "params"))
        .unwrap_or_default()
}

/// The step's image wins over the config's; the credentials of an image that is not used go nowhere.
fn image(step: &Fields<'_, '_>, config: &Fields<'_, '_>, has_config: bool) -> Option<TaskImage> {
    let plain = |at: At<ImageRef>| TaskImage {
        reference: at.value,
        credentials: None,
        insecure: false,
    };
    let own = step.parse("image").map(plain);
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
    if let Some(kind) = fields.text("type").filter(|kind| kind.value != "registry-image") {
        let help = "write `type: registry-image`".to_owned();
        reader.report(
            &kind.spot,
            "",
            format!("image resources of type `{}` are not supported", kind.value),
            help,
        );
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
    let (tag, digest) = (source.text("tag"), source.text("digest"));
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
        reference: image,
        credentials,
        insecure,
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
    let Some(node) = config.either("limits", "container_limits") else {
        return limits;
    };
    let Some(fields) = config.reader.fields(node, "`limits`", LIMITS) else {
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
