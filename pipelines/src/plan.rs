//! The plan: what a front end makes of a user's text and the executor runs. All values in it are valid by their types.
//!
//! A plan is a tree: a [`JobPlan`] holds [`Step`]s, and a step's [`Action`] is what it does. Names are unique within a
//! job: a step's name is its containers' name, an artifact's name is its volume's.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use orchestra::layer::PrivilegePolicy;
use orchestra::{
    ContainerPath, Credentials, Env, ImageRef, Limits, Name, NetworkMode, Platform, SecretString, Security, User,
    VolumePath,
};
use orchestra_image_build::{BuildOptions, OutputFormat, RegistryAuth};
use orchestra_secrets::{Reference, SecretKey, SecretValue};

use crate::run::cache::hashed;
use crate::yaml::{Node, Value};
use crate::{AcrossPlan, CachePlan, GetPlan, LatePlan, PutPlan};

/// A whole pipeline: jobs in the order they run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pipeline {
    /// The file's name, or what [`Pipeline::parse`] was told.
    pub name: String,
    /// At least one.
    pub jobs: Vec<JobPlan>,
    /// `assert.execution`: the jobs that have to have run at its end, in the order in which they began.
    pub execution: Option<Vec<Name>>,
    /// Whether versions of resources say which of its jobs come first, and not the order of the file.
    pub(crate) is_graph: bool,
    /// What tells its text from another one: whether it is the same pipeline that a run was begun with.
    pub(crate) digest: String,
    /// What is right, and yet should be known: keys that have no meaning in a run of one's own.
    pub(crate) notes: Vec<crate::Problem>,
    /// Those of them that each run tells: secrets that others may see.
    pub(crate) warnings: Vec<crate::Problem>,
    /// Every secret that the text refers to, as it was fetched.
    pub(crate) secrets: Vec<(Reference, SecretValue)>,
    /// The secrets as a whole that those are, or are fields of.
    pub(crate) wholes: Vec<(Reference, SecretValue)>,
}

impl Pipeline {
    /// What tells its text and its variables from others, in hexadecimal digits, for [`RunState`](crate::RunState).
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What is right in its text, and yet should be known, in the order of the file: keys of Concourse's that change nothing
    /// in a run of one's own.
    #[must_use]
    pub fn notes(&self) -> &[crate::Problem] {
        &self.notes
    }

    /// Compares what asks for privileges with a policy, before anything is made. `rootless` and `buildkit` are those of
    /// [`RunOptions`](crate::RunOptions), for builds that say nothing of it.
    ///
    /// # Errors
    /// [`InvalidInput`](orchestra::ErrorKind::InvalidInput) naming the first step that is not permitted, and its image.
    pub fn check_privileges(
        &self,
        policy: &PrivilegePolicy,
        rootless: bool,
        buildkit: Option<&ImageRef>,
    ) -> orchestra::Result<()> {
        let default = ImageRef::new(orchestra_image_build::DEFAULT_BUILDKIT_IMAGE)?;
        let default = buildkit.unwrap_or(&default);
        for step in self.jobs.iter().flat_map(JobPlan::leaves) {
            let image = match &step.action {
                Action::Task(plan) => Some(&plan.image.reference).filter(|_| plan.privileged),
                Action::BuildImage(plan) => {
                    let image = plan.image.as_ref().unwrap_or(default);
                    Some(image).filter(|_| !plan.rootless.unwrap_or(rootless))
                }
                // What is known only when it runs is refused when it is to be made.
                _ => None,
            };
            if let Some(image) = image {
                policy
                    .check_image(image)
                    .map_err(|error| error.with("step", &step.name))?;
            }
        }
        Ok(())
    }
}

/// Steps that share artifacts. An artifact lives as long as its job, and no other job sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobPlan {
    /// Unique in the pipeline.
    pub name: Name,
    /// At least one, in the order they run.
    pub plan: Vec<Step>,
    /// What follows the plan's end.
    pub hooks: Hooks,
    /// The jobs of which versions of resources have [`passed`](GetPlan::passed): it runs when all of them have succeeded.
    pub after: Vec<Name>,
    /// `serial_groups`: jobs that have one in common do not run at the same time.
    pub serial_groups: Vec<Name>,
    /// `assert.execution`: the steps that have to have run at its end, in the order in which they began.
    pub execution: Option<Vec<Name>>,
}

impl JobPlan {
    /// All steps that hold no others, in the order of the file, those of hooks behind what they follow.
    #[must_use]
    pub fn leaves(&self) -> Vec<&Step> {
        let mut leaves = Vec::new();
        self.plan.iter().for_each(|step| step.collect(&mut leaves));
        self.hooks.steps().for_each(|step| step.collect(&mut leaves));
        leaves
    }
}

/// Steps that follow the end of another one, or of a job.
///
/// They apply from the inside out in the order of the fields: a step whose `on_success` fails has failed, and its
/// `on_failure` runs.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Hooks {
    /// After success; if it does not succeed, the whole has not.
    pub on_success: Option<Box<Step>>,
    /// After a failure, which it stays.
    pub on_failure: Option<Box<Step>>,
    /// After a cancellation; it is not cancelled itself.
    pub on_abort: Option<Box<Step>>,
    /// After an error, which it stays.
    pub on_error: Option<Box<Step>>,
    /// However it ended. What has cancelled that does not cancel it.
    pub ensure: Option<Box<Step>>,
}

impl Hooks {
    fn steps(&self) -> impl Iterator<Item = &Step> {
        let all = [
            &self.on_success,
            &self.on_failure,
            &self.on_abort,
            &self.on_error,
            &self.ensure,
        ];
        all.into_iter().flatten().map(AsRef::as_ref)
    }
}

/// One step with what applies to steps of all kinds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Step {
    /// Unique among the job's steps that hold no others; what holds other steps is called after its kind.
    pub name: Name,
    /// What it does.
    pub action: Action,
    /// Ends each attempt that takes longer.
    pub timeout: Option<Duration>,
    /// How often it is tried until it succeeds, from 1.
    pub attempts: u32,
    /// What follows its end.
    pub hooks: Hooks,
    /// The artifacts that the text says it makes, each with its volume's name.
    pub(crate) volumes: BTreeMap<Name, Name>,
    /// What the volumes of others are called after, of which is known when it runs: the step, or the first of those that are
    /// one step several times. `None` for a step of no plan.
    pub(crate) base: Option<Name>,
}

impl Step {
    /// The artifacts that it makes.
    pub(crate) fn outputs(&self) -> Vec<&Name> {
        match &self.action {
            Action::Task(plan) => plan.outputs.iter().map(|output| &output.name).collect(),
            Action::BuildImage(plan) => {
                let outputs = plan.outputs.iter().map(|(output, _)| output);
                let targets = plan.additional_targets.iter().map(|(_, output, _)| output);
                outputs.chain(targets).map(|output| &output.name).collect()
            }
            Action::Get(plan) => vec![&plan.artifact],
            Action::Put(plan) if !plan.no_get => vec![&plan.artifact],
            _ => Vec::new(),
        }
    }

    /// The name of the volume that an artifact is made in.
    pub(crate) fn volume_of(&self, artifact: &Name) -> Name {
        let known = self.volumes.get(artifact).cloned();
        let own = || hashed("out", format!("{}/{artifact}", self.base.as_ref()?)).ok();
        known.or_else(own).unwrap_or_else(|| artifact.clone())
    }

    /// Its steps that hold no others, in the order of the file: itself, if it is one, and those of its hooks.
    pub(crate) fn collect<'s>(&'s self, leaves: &mut Vec<&'s Self>) {
        match &self.action {
            Action::Task(_)
            | Action::BuildImage(_)
            | Action::LoadVar(_)
            | Action::Get(_)
            | Action::Put(_)
            | Action::Late(_) => leaves.push(self),
            Action::Do(steps) | Action::InParallel(Parallel { steps, .. }) => {
                steps.iter().for_each(|step| step.collect(leaves));
            }
            Action::Try(step) => step.collect(leaves),
            Action::Across(plan) => plan.step().collect(leaves),
        }
        self.hooks.steps().for_each(|step| step.collect(leaves));
    }

    /// Whether it is a build by a daemon that outlives it.
    pub(crate) fn shares_a_builder(&self) -> bool {
        matches!(&self.action, Action::BuildImage(plan) if plan.shared)
    }

    /// What kind of step it is, as users write it.
    #[must_use]
    pub fn kind(&self) -> StepKind {
        match &self.action {
            Action::Task(_) => StepKind::Task,
            Action::BuildImage(_) => StepKind::BuildImage,
            Action::LoadVar(_) => StepKind::LoadVar,
            Action::Get(_) => StepKind::Get,
            Action::Put(_) => StepKind::Put,
            Action::Late(plan) => plan.kind(),
            Action::Do(_) => StepKind::Do,
            Action::InParallel(_) => StepKind::InParallel,
            Action::Try(_) => StepKind::Try,
            Action::Across(_) => StepKind::Across,
        }
    }

    /// Its caches.
    #[must_use]
    pub fn caches(&self) -> &[CachePlan] {
        match &self.action {
            Action::Task(plan) => &plan.caches,
            Action::BuildImage(plan) => &plan.caches,
            _ => &[],
        }
    }
}

/// What kind of step: the key that it starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepKind {
    /// `task`
    Task,
    /// `build_image`
    BuildImage,
    /// `load_var`
    LoadVar,
    /// `get`
    Get,
    /// `put`
    Put,
    /// `do`
    Do,
    /// `in_parallel`
    InParallel,
    /// `try`
    Try,
    /// `across`, of values that are loaded.
    Across,
    /// The program itself, of a front end that is one.
    Script,
}

impl std::fmt::Display for StepKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Task => "task",
            Self::BuildImage => "build_image",
            Self::LoadVar => "load_var",
            Self::Get => "get",
            Self::Put => "put",
            Self::Do => "do",
            Self::InParallel => "in_parallel",
            Self::Try => "try",
            Self::Across => "across",
            Self::Script => "script",
        })
    }
}

/// What a step does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Runs a program in a container.
    Task(Box<TaskPlan>),
    /// Builds a container image.
    BuildImage(Box<BuildPlan>),
    /// Reads a variable from a file.
    LoadVar(LoadVarPlan),
    /// Fetches a version of a resource.
    Get(Box<GetPlan>),
    /// Makes a version of a resource.
    Put(Box<PutPlan>),
    /// A step that can be read whole only when it runs.
    Late(Box<LatePlan>),
    /// Runs steps one after the other, up to the first that does not succeed.
    Do(Vec<Step>),
    /// Runs steps at the same time.
    InParallel(Parallel),
    /// Succeeds whether its step fails or not; it is aborted with it.
    Try(Box<Step>),
    /// Runs a step for each of some values that are known when it runs.
    Across(Box<AcrossPlan>),
}

/// Steps that run at the same time. It errors if one does, else fails if one does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Parallel {
    /// At least one.
    pub steps: Vec<Step>,
    /// How many run at once, from 1.
    pub limit: usize,
    /// Whether the first that does not succeed ends the others.
    pub fail_fast: bool,
    /// Where it is an `across`: the variable, and its value in each of the steps. What variables a step loads are seen by that
    /// step alone then.
    pub(crate) across: Option<AcrossValues>,
}

/// A variable with a value for each step. `Debug` shows none, as a secret may stand in one.
#[derive(Clone)]
pub(crate) struct AcrossValues {
    pub(crate) name: String,
    pub(crate) values: Vec<Value>,
}

impl AcrossValues {
    pub(crate) fn of(name: &Node, values: &Node) -> Option<Self> {
        match (&name.value, &values.value) {
            (Value::Text(name), Value::List(values)) => Some(Self {
                name: name.clone(),
                values: values.iter().map(|value| value.value.clone()).collect(),
            }),
            _ => None,
        }
    }
}

impl fmt::Debug for AcrossValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcrossValues")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Reads a variable from a file of an artifact. Steps after it have it as `((.:NAME))`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadVarPlan {
    /// The variable.
    pub variable: String,
    /// The artifact that the file is in.
    pub artifact: Name,
    /// The file.
    pub file: VolumePath,
    /// How it is read.
    pub format: VarFormat,
    /// Whether what it holds is redacted from then on: `reveal: false`.
    pub hidden: bool,
}

/// How a variable's file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VarFormat {
    /// The text without white space around it.
    Trim,
    /// The text as it is.
    Raw,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
}

/// What has to be true of a task's end. It fails if it is not; its own status stays where it is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Assertion {
    /// The exit code.
    pub code: Option<u8>,
    /// A text that is in its standard output, as far as that is [captured](crate::RunOptions::capture).
    pub stdout: Option<String>,
    /// A text that is in its standard error, likewise.
    pub stderr: Option<String>,
}

/// A program in a container. `Debug` shows no arguments, as a secret may stand in one.
#[derive(Clone)]
#[non_exhaustive]
pub struct TaskPlan {
    /// The image.
    pub image: TaskImage,
    /// Which of a multi-platform image; the engine's own where `None`.
    pub platform: Option<Platform>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where it works, relative to the [working directory](orchestra::Task::WORKING_DIR) that artifacts stand in.
    pub dir: Option<ContainerPath>,
    /// As whom it runs.
    pub user: Option<User>,
    /// Added to the image's environment. A value may be `secret:KEY`.
    pub env: Env,
    /// Whether the engine is not to know the variables that are secrets.
    pub hide_secret_env: bool,
    /// Secrets that stand in files of the container.
    pub secret_files: Vec<(ContainerPath, SecretKey)>,
    /// Artifacts of earlier steps.
    pub inputs: Vec<Artifact>,
    /// Artifacts that it makes.
    pub outputs: Vec<Artifact>,
    /// Directories that are kept.
    pub caches: Vec<CachePlan>,
    /// What it may use.
    pub limits: Limits,
    /// Whether it has all privileges.
    pub privileged: bool,
    /// How it is connected.
    pub network: NetworkMode,
    /// How it is confined.
    pub security: Security,
    /// What has to be true of its end.
    pub assert: Assertion,
}

/// A task's image and how to get it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskImage {
    /// The image.
    pub reference: ImageRef,
    /// For its registry.
    pub credentials: Option<Credentials>,
    /// Whether its registry may be spoken to by plain HTTP.
    pub insecure: bool,
    /// Whether an artifact of that name, if an earlier step made one, is meant: the image is its `image.tar`, or its files in
    /// `rootfs/`.
    pub may_be_artifact: bool,
}

impl TaskImage {
    /// An image that anybody may pull.
    #[must_use]
    pub fn new(reference: ImageRef) -> Self {
        Self {
            reference,
            credentials: None,
            insecure: false,
            may_be_artifact: false,
        }
    }
}

/// An artifact and where it stands: relative to the [working directory](orchestra::Task::WORKING_DIR), or absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Artifact {
    /// The artifact.
    pub name: Name,
    /// Where.
    pub path: ContainerPath,
    /// Whether the step runs without it, if no earlier step made it.
    pub optional: bool,
}

/// An image build; the fields are those of [`ImageBuild`](orchestra_image_build::ImageBuild). `Debug` shows few of them, as
/// a secret may stand in any text.
#[derive(Clone)]
#[non_exhaustive]
pub struct BuildPlan {
    /// What the image is called, and where it is pushed.
    pub tag: ImageRef,
    /// The build context, relative to the working directory: an artifact or a directory in one.
    pub context: ContainerPath,
    /// The Dockerfile, relative to the context or to the working directory.
    pub dockerfile: Option<String>,
    /// Whether it is pushed to its registry; if not, the engine gets it.
    pub push: bool,
    /// Whether the engine gets it; where `None`, if it is not pushed.
    pub load: Option<bool>,
    /// Values of the Dockerfile's `ARG`s.
    pub build_args: BTreeMap<String, String>,
    /// What `RUN --mount=type=secret` gives steps of the Dockerfile, by id. A value may be `secret:KEY`.
    pub secrets: BTreeMap<String, SecretString>,
    /// Keys for `RUN --mount=type=ssh`, by id. A value may be `secret:KEY`.
    pub ssh: BTreeMap<String, SecretString>,
    /// The stage to build.
    pub target: Option<String>,
    /// Further stages, each with the artifact that it makes and what is written there.
    pub additional_targets: Vec<(String, Artifact, OutputFormat)>,
    /// What to build for; the engine's own platform where empty.
    pub platforms: Vec<Platform>,
    /// The BuildKit image; the default one where `None`.
    pub image: Option<ImageRef>,
    /// Artifacts of earlier steps.
    pub inputs: Vec<Artifact>,
    /// Artifacts that the build makes, and what is written to each.
    pub outputs: Vec<(Artifact, OutputFormat)>,
    /// Directories that BuildKit keeps its layers in.
    pub caches: Vec<CachePlan>,
    /// Access key id and secret access key of caches in a bucket.
    pub cache_credentials: Option<Credentials>,
    /// BuildKit's environment.
    pub env: Env,
    /// How to log in to the registry.
    pub registry: Option<RegistryAuth>,
    /// How to log in to other registries, of base images and caches.
    pub registries: Vec<RegistryAuth>,
    /// How the build container is connected.
    pub network: NetworkMode,
    /// Whether the builder runs without privileges; as the run says where `None`.
    pub rootless: Option<bool>,
    /// Whether it uses a daemon of the job's, which the next such build finds as this one leaves it.
    pub shared: bool,
    /// What else BuildKit is told.
    pub options: BuildOptions,
}

impl fmt::Debug for TaskPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskPlan")
            .field("image", &self.image)
            .field("platform", &self.platform)
            .field("arguments", &self.command.len())
            .field("dir", &self.dir)
            .field("user", &self.user)
            .field("env", &self.env)
            .field("hide_secret_env", &self.hide_secret_env)
            .field("secret_files", &self.secret_files)
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .field("caches", &self.caches)
            .field("limits", &self.limits)
            .field("privileged", &self.privileged)
            .field("network", &self.network)
            .field("security", &self.security)
            .field("assert", &self.assert)
            .finish()
    }
}

impl fmt::Debug for BuildPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildPlan")
            .field("tag", &self.tag)
            .field("context", &self.context)
            .field("push", &self.push)
            .field("build_args", &self.build_args.keys())
            .field("secrets", &self.secrets.keys())
            .field("env", &self.env)
            .field("inputs", &self.inputs)
            .field("caches", &self.caches)
            .finish_non_exhaustive()
    }
}
