//! Pipelines: a plan, the YAML front end that makes it, and the executor that runs it on any engine.
//!
//! ```
//! use orchestra::SharedDriver;
//! use orchestra_pipelines::{Pipeline, RunOptions, RunReport, Status, run};
//!
//! const TEXT: &str = "
//! plan:
//! - task: write
//!   image: busybox
//!   config:
//!     outputs: [{ name: greeting }]
//!     run: { path: sh, args: [-c, 'echo hello > greeting/text'] }
//! - task: read
//!   image: busybox
//!   config:
//!     inputs: [{ name: greeting }]
//!     run: { path: cat, args: [greeting/text] }
//! ";
//!
//! async fn greet(driver: SharedDriver) -> Result<RunReport, orchestra_pipelines::Invalid> {
//!     let pipeline = Pipeline::parse("greet.yml", TEXT)?;
//!     Ok(run(&pipeline, driver, RunOptions::default()).await)
//! }
//! # use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
//! # let engine = MemoryEngine::new();
//! # engine.add_image("busybox", MemoryImage::busybox()).unwrap();
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
//! # let report = runtime.block_on(greet(engine.driver())).unwrap();
//! # assert_eq!(report.status, Status::Succeeded);
//! ```
//!
//! # How data flows
//! [`Pipeline::read`] parses a file, checks it whole and either gives a [`Pipeline`], whose values are valid by their types,
//! or [`Invalid`] with everything that is wrong. [`run()`] makes one [`orchestra::Job`] of each [`JobPlan`] and a task or an image
//! build of each [`Step`]. What happens goes out as [`RunEvent`]s, with back-pressure; what came of it is the [`RunReport`].
//!
//! # The YAML
//! It is [Concourse](https://concourse-ci.org/docs.html)'s, as far as there is a key for it below. A file has a `plan`, or `jobs`
//! with a `name` and a `plan` each; keys that start with `x-` hold anchors. All steps may have `timeout` (`90s`, `1h30m`; of
//! each attempt) and `attempts`. Artifacts and caches stand in the working directory,
//! [`/workspace`](orchestra::Task::WORKING_DIR), and live as long as their job.
//!
//! Jobs run in the order of the file, up to the first that does not succeed. Where there are `resources` they are a graph
//! instead, in which a `get` says by `passed` which jobs a version has to have passed: each runs when those before it have
//! succeeded, beside all others but those of its `serial_groups`. What has no meaning in a run of one's own (`trigger`,
//! `serial`, `check_every` and others) is in [`Pipeline::notes`]; `set_pipeline` is refused. `assert: { execution: [NAME,
//! …] }` fails a job that ran other steps than these in this order and, at the top of a file, a run that ran other jobs.
//!
//! | a step that holds others | |
//! | --- | --- |
//! | `do: [STEP, …]` | one after the other |
//! | `in_parallel: [STEP, …]` | at the same time, at most 16; or a map: `steps`, `limit`, `fail_fast` (the first that does not succeed ends the others) |
//! | `try: STEP` | succeeds if its step fails or errors |
//! | `across: [{ var, values, max_in_flight }, …]` | beside the key of any step, which is run for each value of `((.:var))`; `fail_fast`. `values` may be a variable that a `load_var` sets, a list: [`AcrossPlan`] |
//!
//! All steps, and jobs, may have `on_success`, `on_failure`, `on_abort`, `on_error` and `ensure` with a step each: see
//! [`Hooks`]. A step may use what is made before it, and not what is made beside it or in another step's hook.
//!
//! | `task: NAME` | |
//! | --- | --- |
//! | `image` | wins over the `config`'s; the name of an artifact that was made stands for its `image.tar`, or for the files in its `rootfs/` with the `metadata.json` beside it |
//! | `file`, `vars` | the `config` is in a file of an artifact, `source/ci/task.yml`, and is read when the step runs; `((name))` in it is one of `vars`, or a secret |
//! | `input_mapping`, `output_mapping` | what the pipeline calls an artifact that the `config` calls otherwise |
//! | `privileged`, `network`, `hermetic` | `network` is `default`, `none` or `host`; `hermetic: true` is `none` |
//! | `security` | `seccomp` and `apparmor`: `default`, `unconfined` or a profile; `no_new_privileges` |
//! | `limits` | as the `config`'s, over which each of them wins |
//! | `parallelism` | how many of it run at once, called `NAME-1` and so on; `CI_TASK_INDEX` (from 1) and `CI_TASK_COUNT` tell them apart |
//! | `assert` | `code`, and texts that are in `stdout` and `stderr`: it fails if one does not hold. A code other than 0 is a failure also where it is what was expected |
//! | `params`, `env` | one by either name; wins over the `config`'s |
//! | `config.platform` | `linux`, or with a processor: `linux/arm64` |
//! | `config.image`, `config.image_resource` | one of them; `source` has `repository`, `tag`, `digest`, `username`, `password`, `insecure` |
//! | `config.inputs`, `config.outputs` | `name` and `path`, which is the name where not given. An output at an input's `path` is what the task makes of that; one that is made again is new, and the last is what later steps get. An `optional` input may be missing |
//! | `config.caches` | see below |
//! | `config.run` | `path`, `args`, `dir` (relative to the working directory), `user` |
//! | `config.params`, `config.env` | text; a number is passed on as it is written |
//! | `config.limits`, `config.container_limits` | `cpu` (or `cpus`): processors, a quota, where Concourse has shares; `memory`: `512MB`, in powers of 1024 |
//!
//! | `load_var: NAME` | `((.:NAME))`, and `((.:NAME.field))`, in later steps; it may stand for a value of any kind |
//! | --- | --- |
//! | `file` | a file of an artifact, of at most 1 MiB |
//! | `format` | `trim` (default), `raw`, `yaml` or `json`; as the file's name says where not given |
//! | `reveal` | `false` to redact what was read from then on |
//!
//! | `get: NAME`, `put: NAME` | |
//! | --- | --- |
//! | `resource` | one of the file's `resources`; `NAME` where not given |
//! | `params` | for the programs of its type |
//! | `version`, `passed` | of a `get`: a version, where not the newest; the jobs that it has to have passed. A run has one version of each resource |
//! | `inputs`, `no_get`, `get_params` | of a `put`: `all` (default), `detect` or a list of artifacts; whether and how the new version is fetched into `NAME` |
//!
//! `resources` have `name`, `type`, `source` and `version`, `resource_types` have `name`, `type: registry-image`, `source` and
//! `privileged`. Types that are not listed are Concourse's own, whose images are `concourse/TYPE-resource`. Their programs get JSON
//! on standard input, with secrets in their places, and speak
//! [Concourse's protocol](https://concourse-ci.org/implementing-resource-types.html). Of the build they are told `BUILD_ID` and
//! `BUILD_NAME`, which are the id of the run's job, `BUILD_JOB_NAME` and `BUILD_PIPELINE_NAME`.
//!
//! | `build_image:` | |
//! | --- | --- |
//! | `name` | `build-` and the image's name where not given |
//! | `tag`, `push`, `load` | where the image goes: into its registry, or without `push` into the engine; `load: true` does both, `load: false` without `push` neither |
//! | `context`, `inputs` | without `inputs`, the artifact that `context` starts with. A `context` that is a URL (git, https) is fetched by BuildKit: a private repository's token is the build secret `GIT_AUTH_TOKEN` |
//! | `outputs` | `name`, `path`, and a `type`: `oci` or `docker` for an `image.tar` in the artifact, `oci-layout`, `local` for the files of the last stage, or `rootfs` for `rootfs/` and `metadata.json` |
//! | `target`, `additional_targets` | the stage to build; a list of `target`, `name`, `path` and `type` as in `outputs` for further ones |
//! | `dockerfile`, `build_args`, `platforms` | `dockerfile` is relative to the context or to the working directory; several platforms are one index; `RUN` steps of one that is not the host's own need an emulator there |
//! | `build_args_file`, `labels_file` | a file of an input with lines of `KEY=VALUE`; `build_args` and `labels` win |
//! | `secrets`, `ssh` | what `RUN --mount=type=secret,id=ID` and `--mount=type=ssh,id=ID` give a step, by `ID`: in no layer, no history and no log. A secret may be `{file: source/token}`, text of an input, which who made that file knows: it is not redacted. A key is one in PEM, of `default` for a mount without an id |
//! | `registry` | `hostname`, `username`, `password`, `insecure`, `ca`, `client_cert` and `client_key` (text in PEM); a list of such where base images and caches have registries of their own |
//! | `image`, `env`, `caches`, `network` | BuildKit's own |
//! | `rootless` | whether it runs without privileges |
//! | `builder` | `shared`: a daemon that the job's builds use one after the other, with all that it has fetched and made; `own` where not given |
//! | `tags`, `labels`, `annotations`, `provenance`, `sbom` | what else the image is called and carries; `sbom` is `true`, or the image that makes it |
//! | `dockerfile_inline`, `build_contexts`, `frontend` | what it is built from: a context, called by a name of its own, a stage's or an image's, is a directory, `docker-image://IMAGE`, `oci-layout://PATH` or a URL |
//! | `image_args` | `NAME: PATH` of an archive or OCI layout in an input: with `ARG NAME`, `FROM $NAME` is that image, and no network is needed |
//! | `extra_hosts`, `ulimits`, `shm_size`, `run_network` | where `RUN` steps run; `run_network` is `none`, or `host` for that of the build container |
//! | `cache_from`, `cache_to` | where layers come from and go to, as `docker buildx` has it: `type=registry,ref=NAME,mode=max`, `type=inline`, `type=local,dest=PATH` in one of `caches`, `type=s3,bucket=NAME,region=NAME`, which `cache_credentials` (`access_key_id`, `secret_access_key`) opens |
//! | `cache_limit` | what layers in `/var/lib/buildkit` may take at the end, `size_limit` of that cache where not given: those that were used least lately go |
//! | `mirrors`, `buildkitd_config` | `docker.io: [mirror.example.com]`, and whatever else BuildKit's daemon is told |
//! | `no_cache`, `no_cache_filter`, `source_date_epoch` | what is done anew, and dated to when |
//!
//! | a cache, for example `- path: .cargo` | |
//! | --- | --- |
//! | `path` | where it stands |
//! | `key` | its name within its scope, which is `path` where not given; `{{ checksum "source/Cargo.lock" }}` stands for a file of an input |
//! | `restore_keys` | if there is no cache of the key: beginnings of keys, of which the newest is taken |
//! | `scope` | who shares it: `job` (default), `task` or `pipeline` |
//! | `policy` | `pull-push` (default), `pull` or `push` |
//! | `size_limit`, `paths` | largest cache that is persisted and restored; what of it, all where not given |
//! | `devices` | `true` to keep device files; of builds they always are |
//!
//! Without a store ([`RunOptions::caches`]) a cache lives as long as its job. A cache is persisted when the last step that
//! uses it has ended, if all of them succeeded; that it can't be restored or persisted is a warning, never a failure.
//!
//! A task whose image an earlier step of its job pushed gets what was pushed, with the credentials of the push, and not what
//! the engine may have had under that tag.

mod build;
mod cache;
mod graph;
mod plan;
mod problem;
mod resource;
mod run;
mod units;
mod values;
mod yaml;

pub use build::log_in;
pub use cache::{CachePlan, CacheScope, KeyTemplate};
pub use graph::Ran;
pub use plan::{
    Action, Artifact, Assertion, BuildPlan, Hooks, JobPlan, LoadVarPlan, Parallel, Pipeline, Step, StepKind, TaskImage,
    TaskPlan, VarFormat,
};
pub use problem::{Invalid, Place, Problem};
pub use resource::{GetPlan, PutInputs, PutPlan, Resource, Version};
pub use run::{
    BuiltImage, Caches, Data, Deed, Ended, Metadata, PlannedJob, PlannedStep, Program, RunEvent, RunEventKind,
    RunOptions, RunReport, RunState, Sandbox, Session, Status, StepOutcome, StepReport, run, run_program,
};
pub use units::{duration as parse_duration, size as parse_size};
pub use values::{Values, Variables};
pub use yaml::SingleStep;
pub use yaml::late::LatePlan;
pub use yaml::loaded::AcrossPlan;
pub use yaml::schema::schema;
