//! The JSON Schema of pipelines: what an editor completes, explains and marks while one is written.
//!
//! It says less than [reading](super) does: artifacts, names and images are only text to it. It says no to nothing that is
//! read: a test holds its keys against those that are.

#![expect(dead_code, reason = "the types are never made: their schema is what they are for")]

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// The JSON Schema of pipelines, as `pipelines/pipeline.schema.json` has it.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(PipelineFile);
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}

/// A text, or what YAML takes for something else and is text here: `1.20`, `true`.
struct Text;

impl JsonSchema for Text {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// A value, or a variable that stands for it: `((name))`.
struct Of<T>(T);

impl<T: JsonSchema> JsonSchema for Of<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("{}_or_variable", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [value, { "type": "string", "pattern": "\\(\\(.+\\)\\)" }] })
    }
}

type Any = serde_json::Value;
type Texts = Of<BTreeMap<String, Option<Text>>>;
type List<T> = Of<Vec<T>>;
type Flag = Of<bool>;
type Count = Of<u32>;

/// An Orchestra pipeline.
#[derive(JsonSchema)]
#[schemars(title = "Orchestra pipeline", deny_unknown_fields, transform = extensions)]
struct PipelineFile {
    /// The steps of the only job. Either this or `jobs`.
    plan: Option<List<Step>>,
    /// Jobs, in the order in which they run.
    jobs: Option<List<Job>>,
    /// What steps get from outside and put there.
    resources: Option<List<Resource>>,
    /// The images of types of resources that are not built in.
    resource_types: Option<List<ResourceType>>,
    /// What has to be true of the run.
    assert: Option<Execution>,
    /// Of Concourse; without meaning in a run of your own.
    groups: Option<Any>,
    /// Of Concourse; without meaning in a run of your own.
    display: Option<Any>,
}

/// Keys that start with `x-` hold anchors.
fn extensions(schema: &mut Schema) {
    schema.insert("patternProperties".to_owned(), serde_json::json!({ "^x-": true }));
}

/// Steps that share artifacts.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Job {
    /// Unique in the pipeline.
    name: Text,
    /// The steps, in order.
    plan: List<Step>,
    /// Jobs that have one in common do not run at the same time.
    serial_groups: Option<List<Text>>,
    /// Says nothing in a run of your own, which runs each job once.
    serial: Option<Flag>,
    /// Says nothing in a run of your own, which runs each job once.
    max_in_flight: Option<Count>,
    /// What has to be true of the job.
    assert: Option<Execution>,
    /// Follows success.
    on_success: Option<Box<Step>>,
    /// Follows failure.
    on_failure: Option<Box<Step>>,
    /// Follows a cancellation.
    on_abort: Option<Box<Step>>,
    /// Follows an error.
    on_error: Option<Box<Step>>,
    /// Follows any end.
    ensure: Option<Box<Step>>,
    public: Option<Any>,
    build_log_retention: Option<Any>,
    build_logs_to_retain: Option<Any>,
    disable_manual_trigger: Option<Any>,
    interruptible: Option<Any>,
    old_name: Option<Any>,
}

/// What has to have been run.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Execution {
    /// Names, in the order in which they began.
    execution: Option<List<Text>>,
}

/// Something outside that has versions.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Resource {
    /// What steps call it.
    name: Text,
    /// A built-in type, or one of `resource_types`.
    #[schemars(rename = "type")]
    kind: Text,
    /// For the programs of its type.
    source: Option<Any>,
    /// The version that is fetched; the newest where not given.
    version: Option<Any>,
    icon: Option<Any>,
    check_every: Option<Any>,
    check_timeout: Option<Any>,
    expose_build_created_by: Option<Any>,
    webhook_token: Option<Any>,
    public: Option<Any>,
    tags: Option<Any>,
    old_name: Option<Any>,
}

/// A type of resources: an image with `check`, `in` and `out` in `/opt/resource`.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ResourceType {
    /// What resources call it.
    name: Text,
    /// `registry-image`.
    #[schemars(rename = "type")]
    kind: Text,
    /// The image.
    source: ImageSource,
    /// Whether its programs run with all privileges.
    privileged: Option<Flag>,
    check_every: Option<Any>,
    tags: Option<Any>,
}

/// A step.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Step {
    Task(Box<Task>),
    BuildImage(Box<BuildImage>),
    Get(Box<Get>),
    Put(Box<Put>),
    LoadVar(Box<LoadVar>),
    Do(Box<Do>),
    InParallel(Box<InParallel>),
    Try(Box<Try>),
}

macro_rules! step {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(JsonSchema)]
        #[schemars(deny_unknown_fields)]
        struct $name {
            $($(#[$field_doc])* $field: $type,)*
            /// Ends each attempt that takes longer: `90s`, `1h30m`.
            timeout: Option<Text>,
            /// How often it is tried until it succeeds.
            attempts: Option<Count>,
            /// Runs the step for each value of `((.:var))`.
            across: Option<List<AcrossVar>>,
            /// Beside `across`: whether the first that does not succeed ends the others.
            fail_fast: Option<Flag>,
            /// Follows success.
            on_success: Option<Box<Step>>,
            /// Follows failure.
            on_failure: Option<Box<Step>>,
            /// Follows a cancellation.
            on_abort: Option<Box<Step>>,
            /// Follows an error.
            on_error: Option<Box<Step>>,
            /// Follows any end.
            ensure: Option<Box<Step>>,
        }
    };
}

/// One variable of an `across`.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct AcrossVar {
    /// Its name.
    var: Text,
    /// Its values, of any kind; or a variable of a `load_var` that is a list.
    values: List<Any>,
    /// How many run at once, or `all`.
    max_in_flight: Option<Text>,
}

step! {
    /// Runs a program in a container.
    Task {
        /// Its name, unique in the job.
        task: Text,
        /// What runs.
        config: Option<Config>,
        /// The `config` in a file of an artifact: `source/ci/task.yml`.
        file: Option<Text>,
        /// Variables of the `file`.
        vars: Option<Any>,
        /// What the pipeline calls an input.
        input_mapping: Option<Texts>,
        /// What the pipeline calls an output.
        output_mapping: Option<Texts>,
        /// The image, or an artifact that holds one; wins over the `config`'s.
        image: Option<Text>,
        /// What it may use; wins over the `config`'s.
        limits: Option<Limits>,
        /// Another name of `limits`.
        container_limits: Option<Limits>,
        /// How it is confined.
        security: Option<Security>,
        /// How many of it run at once.
        parallelism: Option<Count>,
        /// What has to be true of its end.
        assert: Option<Assertion>,
        /// Whether it has all privileges.
        privileged: Option<Flag>,
        /// `default`, `none` or `host`.
        network: Option<Text>,
        /// Whether it has no network, as `network: none`.
        hermetic: Option<Flag>,
        /// Its environment; wins over the `config`'s.
        params: Option<Texts>,
        /// Another name of `params`.
        env: Option<Texts>,
        /// `hidden` where the engine is not to know the variables that are secrets.
        secret_env: Option<Text>,
        /// Files with a secret each: `/path: secret:KEY`.
        secret_files: Option<Texts>,
        tags: Option<Any>,
    }
}

/// What a task runs.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Config {
    /// `linux`, or with a processor: `linux/arm64`.
    platform: Option<Text>,
    /// The image.
    image: Option<Text>,
    /// The image, with how to get it.
    image_resource: Option<ImageResource>,
    /// Artifacts of earlier steps.
    inputs: Option<List<Input>>,
    /// Artifacts that it makes.
    outputs: Option<List<Output>>,
    /// Directories that are kept.
    caches: Option<List<Cache>>,
    /// The program.
    run: Run,
    /// Its environment.
    params: Option<Texts>,
    /// Another name of `params`.
    env: Option<Texts>,
    /// What it may use.
    limits: Option<Limits>,
    /// Another name of `limits`.
    container_limits: Option<Limits>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Run {
    /// The program.
    path: Text,
    /// Its arguments.
    args: Option<List<Text>>,
    /// Where it works, relative to the working directory.
    dir: Option<Text>,
    /// `USER[:GROUP]`.
    user: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Input {
    /// The artifact.
    name: Text,
    /// Where it stands; the name where not given.
    path: Option<Text>,
    /// Whether it may be missing.
    optional: Option<Flag>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Output {
    /// The artifact.
    name: Text,
    /// Where it stands; the name where not given.
    path: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Cache {
    /// Where it stands.
    path: Text,
    /// Its name within its scope: `deps-{{ checksum "source/Cargo.lock" }}`.
    key: Option<Text>,
    /// Beginnings of keys of which the newest is taken.
    restore_keys: Option<List<Text>>,
    /// `job`, `task` or `pipeline`.
    scope: Option<Text>,
    /// Largest cache that is persisted or restored; `K`, `M` and `G` count by 1024.
    size_limit: Option<Text>,
    /// `pull-push`, `pull` or `push`.
    policy: Option<Text>,
    /// What of it is persisted.
    paths: Option<List<Text>>,
    /// Whether device files are kept.
    devices: Option<Flag>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Limits {
    /// Processors: `1.5`.
    cpu: Option<Text>,
    /// Another name of `cpu`.
    cpus: Option<Text>,
    /// `512MB`, in powers of 1024.
    memory: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Security {
    /// `default`, `unconfined` or a profile's JSON.
    seccomp: Option<Text>,
    /// `default`, `unconfined` or a profile's name.
    apparmor: Option<Text>,
    /// Whether it can't gain privileges by setuid programs.
    no_new_privileges: Option<Flag>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Assertion {
    /// The exit code.
    code: Option<Count>,
    /// A text that is in standard output.
    stdout: Option<Text>,
    /// A text that is in standard error.
    stderr: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ImageResource {
    /// `registry-image`.
    #[schemars(rename = "type")]
    kind: Text,
    /// The image.
    source: ImageSource,
    name: Option<Text>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ImageSource {
    /// The image's name without its tag.
    repository: Text,
    /// Its tag.
    tag: Option<Text>,
    /// Its digest: `sha256:…`.
    digest: Option<Text>,
    /// For its registry.
    username: Option<Text>,
    /// For its registry; may be `secret:KEY`.
    password: Option<Text>,
    /// Whether its registry may be spoken to by plain HTTP.
    insecure: Option<Flag>,
}

step! {
    /// Builds a container image.
    BuildImage {
        /// What is built. Its keys are those of `docker buildx build`.
        build_image: Build,
    }
}

/// An image build.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Build {
    /// The step's name.
    name: Option<Text>,
    /// An artifact, or a directory in one.
    context: Text,
    /// Relative to the context or to the working directory.
    dockerfile: Option<Text>,
    /// What the image is called.
    tag: Text,
    /// Whether it goes to its registry; if not, the engine gets it.
    push: Option<Flag>,
    /// Values of the Dockerfile's `ARG`s.
    build_args: Option<Texts>,
    /// What `RUN --mount=type=secret` gives, by id.
    secrets: Option<Of<BTreeMap<String, BuildSecret>>>,
    /// The stage to build.
    target: Option<Text>,
    /// What to build for.
    platforms: Option<List<Text>>,
    /// The BuildKit image.
    image: Option<Text>,
    /// Artifacts; the one that `context` starts with where not given.
    inputs: Option<List<Output>>,
    /// Artifacts that it makes.
    outputs: Option<List<BuildOutput>>,
    /// Where BuildKit keeps its layers.
    caches: Option<List<Cache>>,
    /// BuildKit's environment.
    env: Option<Texts>,
    /// How to log in to the registry, or to several.
    registry: Option<Registries>,
    /// `default`, `none` or `host`.
    network: Option<Text>,
    /// What else the image is called.
    tags: Option<List<Text>>,
    labels: Option<Texts>,
    annotations: Option<Texts>,
    /// Lines of `/etc/hosts` of `RUN` steps.
    extra_hosts: Option<List<Text>>,
    ulimits: Option<List<Text>>,
    shm_size: Option<Text>,
    /// Whether all is done anew.
    no_cache: Option<Flag>,
    /// Stages that are done anew.
    no_cache_filter: Option<List<Text>>,
    build_contexts: Option<Texts>,
    dockerfile_inline: Option<Text>,
    frontend: Option<Text>,
    /// Seconds since 1970 that the image is dated to.
    source_date_epoch: Option<Text>,
    /// `min` or `max`.
    provenance: Option<Text>,
    /// Whether it runs without privileges.
    rootless: Option<Flag>,
    cache_from: Option<List<Text>>,
    cache_to: Option<List<Text>>,
    mirrors: Option<Any>,
    buildkitd_config: Option<Text>,
    /// Whether the engine gets the image; where it is not pushed, it does.
    load: Option<Flag>,
    /// `shared` by the builds of the job, or `own`.
    builder: Option<Text>,
    /// What `RUN --mount=type=ssh` gives, by id: private keys.
    ssh: Option<Texts>,
    /// A file of lines `NAME=VALUE`.
    build_args_file: Option<Text>,
    /// A file of lines `NAME=VALUE`.
    labels_file: Option<Text>,
    /// Build arguments that stand for images in archives or layouts of the inputs.
    image_args: Option<Texts>,
    /// That of `RUN` steps: `default`, `none` or `host`.
    run_network: Option<Text>,
    /// Further stages, each with an output of its own.
    additional_targets: Option<List<AdditionalTarget>>,
    /// Whether a list of what is in the image goes with it, or the image that makes that list.
    sbom: Option<Text>,
    /// Of the bucket that layers are in.
    cache_credentials: Option<CacheCredentials>,
    /// Largest state of BuildKit's that is kept.
    cache_limit: Option<Text>,
    timeout: Option<Text>,
    attempts: Option<Count>,
}

/// A further stage of a build, and the artifact that it becomes.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct AdditionalTarget {
    /// What stands after `AS`.
    target: Text,
    name: Text,
    path: Option<Text>,
    /// `oci`, `docker`, `oci-layout` or `local`.
    #[schemars(rename = "type")]
    kind: Text,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct CacheCredentials {
    /// May be `secret:KEY`.
    access_key_id: Text,
    /// May be `secret:KEY`.
    secret_access_key: Text,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct BuildOutput {
    name: Text,
    path: Option<Text>,
    /// `oci`, `docker`, `oci-layout`, `local` or `rootfs`.
    #[schemars(rename = "type")]
    kind: Option<Text>,
}

/// A value, or a file of an input.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum BuildSecret {
    Value(Text),
    File(SecretFile),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct SecretFile {
    /// Relative to the working directory: it begins with an input's path.
    file: Text,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Registries {
    One(Registry),
    Many(Vec<Registry>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Registry {
    /// The tag's where not given.
    hostname: Option<Text>,
    username: Option<Text>,
    /// May be `secret:KEY`.
    password: Option<Text>,
    /// Whether it may be spoken to by plain HTTP.
    insecure: Option<Flag>,
    /// Certificates that its own is signed with, as PEM.
    ca: Option<Text>,
    /// A certificate that it asks for, as PEM.
    client_cert: Option<Text>,
    /// May be `secret:KEY`.
    client_key: Option<Text>,
}

step! {
    /// Fetches a version of a resource.
    Get {
        /// The artifact that it makes.
        get: Text,
        /// The resource; what the artifact is called where not given.
        resource: Option<Text>,
        /// For the programs of its type.
        params: Option<Any>,
        /// The version; the newest where not given.
        version: Option<Any>,
        /// The jobs that it has to have passed.
        passed: Option<List<Text>>,
        /// Without meaning in a run of your own.
        trigger: Option<Flag>,
        tags: Option<Any>,
    }
}

step! {
    /// Makes a version of a resource.
    Put {
        /// The artifact that it makes.
        put: Text,
        /// The resource; what the artifact is called where not given.
        resource: Option<Text>,
        /// For the programs of its type.
        params: Option<Any>,
        /// `all`, `detect` or a list of artifacts.
        inputs: Option<Any>,
        /// For fetching the new version.
        get_params: Option<Any>,
        /// Whether the new version is not fetched.
        no_get: Option<Flag>,
        tags: Option<Any>,
    }
}

step! {
    /// Reads a variable from a file.
    LoadVar {
        /// Its name: `((.:NAME))` in later steps.
        load_var: Text,
        /// A file of an artifact.
        file: Text,
        /// `trim`, `raw`, `yaml` or `json`.
        format: Option<Text>,
        /// `false` to redact what was read.
        reveal: Option<Flag>,
    }
}

step! {
    /// Runs steps one after the other.
    Do {
        #[schemars(rename = "do")]
        steps: List<Step>,
        tags: Option<Any>,
    }
}

step! {
    /// Runs steps at the same time.
    InParallel {
        in_parallel: ParallelSteps,
        tags: Option<Any>,
    }
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum ParallelSteps {
    List(Vec<Step>),
    Map(ParallelMap),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ParallelMap {
    steps: List<Step>,
    /// How many run at once.
    limit: Option<Count>,
    /// Whether the first that does not succeed ends the others.
    fail_fast: Option<Flag>,
}

step! {
    /// Succeeds whether its step does or not.
    Try {
        #[schemars(rename = "try")]
        step: Box<Step>,
        tags: Option<Any>,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::fields::Known;
    use super::super::{build, load_var, pipeline, resource, task};
    use super::*;

    fn keys(schema: &serde_json::Value) -> BTreeSet<&str> {
        let properties = schema["properties"].as_object().unwrap();
        properties.keys().map(String::as_str).collect()
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read() {
        let schema = serde_json::to_value(schemars::schema_for!(PipelineFile)).unwrap();
        let of = |name: &str| &schema["$defs"][name];
        let cases: [(&serde_json::Value, Known, bool); 11] = [
            (&schema, pipeline::TOP, false),
            (of("Job"), pipeline::JOB, false),
            (of("Task"), task::STEP, true),
            (of("Config"), task::CONFIG, false),
            (of("BuildImage"), build::STEP, true),
            (of("Build"), build::BUILD, false),
            (of("Get"), resource::GET, true),
            (of("Put"), resource::PUT, true),
            (of("LoadVar"), load_var::STEP, true),
            (of("Resource"), resource::RESOURCE, false),
            (of("ResourceType"), resource::TYPE, false),
        ];
        for (schema, known, is_step) in cases {
            let mut read: BTreeSet<&str> = known.keys.iter().chain(known.without_meaning).copied().collect();
            if is_step {
                read.extend(["across", "fail_fast"]);
            }
            assert_eq!(keys(schema), read);
        }
    }
}
