//! The plan: what a front end makes of a user's text and the executor runs. All values in it are valid by their types.
//!
//! A plan is a tree: a [`JobPlan`] holds [`Step`]s, and a step's [`Action`] is what it does. Names are unique within a
//! job: a step's name is its containers' name, an artifact's name is its volume's.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use orchestra::{ContainerPath, Credentials, Env, ImageRef, Limits, Name, NetworkMode, Platform, SecretString, User};
use orchestra_image_build::{BuildOptions, OutputFormat, RegistryAuth};
use orchestra_secrets::{Reference, SecretKey, SecretValue};

use crate::CachePlan;

/// A whole pipeline: jobs in the order they run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pipeline {
    /// The file's name, or what [`Pipeline::parse`] was told.
    pub name: String,
    /// At least one.
    pub jobs: Vec<JobPlan>,
    /// Every secret that the text refers to, as it was fetched.
    pub(crate) secrets: Vec<(Reference, SecretValue)>,
}

/// Steps that share artifacts. An artifact lives as long as its job, and no other job sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobPlan {
    /// Unique in the pipeline.
    pub name: Name,
    /// At least one, in the order they run.
    pub plan: Vec<Step>,
}

/// One step with what applies to steps of all kinds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Step {
    /// Unique in the job.
    pub name: Name,
    /// What it does.
    pub action: Action,
    /// Ends each attempt that takes longer.
    pub timeout: Option<Duration>,
    /// How often it is tried until it succeeds, from 1.
    pub attempts: u32,
}

impl Step {
    /// What kind of step it is, as users write it.
    #[must_use]
    pub fn kind(&self) -> StepKind {
        match self.action {
            Action::Task(_) => StepKind::Task,
            Action::BuildImage(_) => StepKind::BuildImage,
        }
    }

    /// Its caches.
    #[must_use]
    pub fn caches(&self) -> &[CachePlan] {
        match &self.action {
            Action::Task(plan) => &plan.caches,
            Action::BuildImage(plan) => &plan.caches,
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
}

impl std::fmt::Display for StepKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Task => "task",
            Self::BuildImage => "build_image",
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
}

/// An artifact and where it stands: relative to the [working directory](orchestra::Task::WORKING_DIR), or absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Artifact {
    /// The artifact.
    pub name: Name,
    /// Where.
    pub path: ContainerPath,
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
    /// Values of the Dockerfile's `ARG`s.
    pub build_args: BTreeMap<String, String>,
    /// What `RUN --mount=type=secret` gives steps of the Dockerfile, by id. A value may be `secret:KEY`.
    pub secrets: BTreeMap<String, SecretString>,
    /// The stage to build.
    pub target: Option<String>,
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
