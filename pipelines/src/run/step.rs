//! Steps on a [`Job`](orchestra::Job): what the plan says in the core's terms, and what came of it in the report's.

use orchestra::{
    ContainerPath, Error, ErrorKind, ExitStatus, Labels, Mount, Name, NetworkMode, PullPolicy, Result, Task,
    TaskResult, VolumeId, labels,
};
use orchestra_image_build::{BuildError, BuildResult, ImageBuild};
use orchestra_secrets::TaskSecrets;
use tokio::sync::mpsc;

use super::event::RunEventKind;
use super::job::{EVENTS, JobRun};
use super::output::{Output, Tail};
use super::tree::Scope;
use super::{Status, StepReport};
use crate::{Artifact, Assertion, BuildPlan, CachePlan, Step, TaskImage, TaskPlan};

impl JobRun<'_> {
    /// Runs a `task` step.
    pub(super) async fn task(
        &self,
        step: &Step,
        plan: &TaskPlan,
        name: Name,
        scope: &Scope,
        used: &mut Vec<Name>,
    ) -> StepReport {
        let tail = Tail::new();
        let mut report = StepReport::new(&self.plan.name, &step.name, step.kind(), Status::Errored);
        let mounts = self.mounts(step, &plan.inputs, &plan.outputs, &plan.caches, scope, used);
        let task = match mounts.await {
            Ok(mounts) => self.describe(step, plan, name, mounts, scope, &tail).await,
            Err(error) => Err(error),
        };
        let result = match task {
            Ok(task) => {
                let job = self.job.scope(&scope.cancel);
                self.watch(job.run(task)).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(result) => {
                self.keep(&step.name, &result.stdout, &result.stderr);
                finished(&mut report, &result, step);
                if report.status != Status::Aborted {
                    hold(&mut report, &plan.assert, &result);
                }
            }
            Err(error) => failed(&mut report, &error),
        }
        if report.status != Status::Succeeded {
            report.log_tail = tail.lines();
        }
        report
    }

    pub(super) async fn describe(
        &self,
        step: &Step,
        plan: &TaskPlan,
        name: Name,
        mounts: Vec<(VolumeId, ContainerPath)>,
        scope: &Scope,
        tail: &Tail,
    ) -> Result<Task> {
        let image = self.image(&plan.image, &scope.artifacts).await?;
        let mut task = Task::with_image(name, image.reference.clone())
            .command(plan.command.iter().cloned())
            .privileged(plan.privileged)
            .network(plan.network)
            .attempts(step.attempts)
            .pull(self.options.pull)
            .output(self.output(step, tail));
        task = self.registry(task, &image);
        if let Some(timeout) = step.timeout {
            task = task.timeout(timeout);
        }
        if plan.hide_secret_env {
            task = task.hide_secret_env();
        }
        for (path, key) in &plan.secret_files {
            task = task.secret_file(path.as_str(), key)?;
        }
        let spec = &mut task.spec;
        spec.labels.insert(labels::STEP.to_owned(), step.name.to_string());
        spec.platform.clone_from(&plan.platform);
        spec.env.clone_from(&plan.env);
        spec.user.clone_from(&plan.user);
        spec.limits.clone_from(&plan.limits);
        spec.security.clone_from(&plan.security);
        // Artifacts stand in the same place whatever directory the program starts in.
        let absolute = |path: &ContainerPath| ContainerPath::new(path.resolve(Task::WORKING_DIR));
        let dir = plan
            .dir
            .as_ref()
            .map_or_else(|| ContainerPath::new(Task::WORKING_DIR), absolute)?;
        spec.working_dir = Some(dir);
        for (volume, path) in mounts {
            spec.mounts.push(Mount {
                volume,
                target: absolute(&path)?,
                read_only: false,
            });
        }
        Ok(task)
    }

    /// How to get an image.
    pub(super) fn registry(&self, mut task: Task, image: &TaskImage) -> Task {
        task = task.insecure(image.insecure);
        let mut credentials = image.credentials.clone();
        if let Some(pushed) = self.pushed(&image.reference) {
            // The engine may have an older image of this tag. An engine that takes no word on how to speak to a registry has
            // its own configuration for that.
            let insecure = image.insecure || pushed.insecure && self.job.driver().info().capabilities.insecure_pull;
            task = task.pull(PullPolicy::Always).insecure(insecure);
            credentials = credentials.or(pushed.credentials);
        }
        match credentials {
            Some(credentials) => task.credentials(credentials),
            None => task,
        }
    }

    fn output(&self, step: &Step, tail: &Tail) -> Output {
        Output {
            job: self.plan.name.clone(),
            step: step.name.clone(),
            teller: self.teller.clone(),
            tail: tail.clone(),
            also: self.sink(&step.name),
            errors_only: false,
        }
    }

    /// As [`output`](Self::output), of a program whose standard output is for this one.
    pub(super) fn errors_of(&self, step: &Step, tail: &Tail) -> Output {
        Output {
            errors_only: true,
            ..self.output(step, tail)
        }
    }

    /// The volumes of artifacts and caches, each with its place.
    pub(super) async fn mounts<'p>(
        &self,
        step: &Step,
        inputs: &'p [Artifact],
        outputs: impl IntoIterator<Item = &'p Artifact>,
        caches: &[CachePlan],
        scope: &Scope,
        used: &mut Vec<Name>,
    ) -> Result<Vec<(VolumeId, ContainerPath)>> {
        let (mut artifacts, mut made) = (Vec::new(), Vec::new());
        for input in inputs {
            match scope.artifacts.volume(&input.name) {
                Ok(volume) => artifacts.push((input, volume)),
                Err(_) if input.optional => {}
                Err(error) => return Err(error),
            }
        }
        for output in outputs {
            let volume = match in_place(inputs, output, scope) {
                Some(volume) => volume,
                None => {
                    let volume = step.volume_of(&output.name);
                    artifacts.push((output, volume.clone()));
                    volume
                }
            };
            made.push((&output.name, volume));
        }
        let names: Vec<(Name, Labels)> = artifacts
            .iter()
            .map(|(_, volume)| (volume.clone(), Labels::new()))
            .collect();
        let mut volumes = self.volumes(&names).await?;
        let wanted = self.caches(step, &artifacts, caches).await?;
        used.extend(wanted.iter().map(|(name, _)| name.clone()));
        volumes.extend(self.volumes(&wanted).await?);
        made.iter()
            .for_each(|(artifact, volume)| scope.artifacts.make(artifact, volume));
        let paths = artifacts.iter().map(|(artifact, _)| &artifact.path);
        let paths = paths.chain(caches.iter().map(|cache| &cache.path)).cloned();
        Ok(volumes.into_iter().zip(paths).collect())
    }

    /// Runs a `build_image` step.
    pub(super) async fn build(
        &self,
        step: &Step,
        plan: &BuildPlan,
        name: &Name,
        scope: &Scope,
        used: &mut Vec<Name>,
    ) -> StepReport {
        let tail = Tail::new();
        let mut report = StepReport::new(&self.plan.name, &step.name, step.kind(), Status::Errored);
        let outputs = plan.outputs.iter().map(|(artifact, _)| artifact);
        let targets = plan.additional_targets.iter().map(|(_, artifact, _)| artifact);
        let outputs = outputs.chain(targets);
        let result = match self
            .mounts(step, &plan.inputs, outputs, &plan.caches, scope, used)
            .await
        {
            Ok(mounts) => {
                let volumes = mounts.into_iter().map(|(volume, _)| volume);
                let build = plan.image_build(name, volumes);
                self.run_build(step, plan, build, scope, &tail).await
            }
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(built) => {
                report.status = Status::Succeeded;
                report.exit = Some(ExitStatus::Code(built.code));
                report.timings = Some(built.timings);
                self.keep(&step.name, &built.stdout, &built.stderr);
                if plan.push {
                    self.push(plan);
                }
                for warning in &built.warnings {
                    self.warn(format!("{}: {warning}", step.name)).await;
                }
                report.image = Some((&built).into());
            }
            Err(error) => {
                if let Some(failed) = error.failed() {
                    self.keep(&step.name, &failed.stdout, &failed.stderr);
                }
                build_failed(&mut report, &error, &tail);
            }
        }
        report
    }

    async fn run_build(
        &self,
        step: &Step,
        plan: &BuildPlan,
        mut build: ImageBuild,
        scope: &Scope,
        tail: &Tail,
    ) -> Result<BuildResult, BuildError> {
        build.timeout = step.timeout;
        build.attempts = step.attempts;
        build.pull = self.options.pull;
        build.capture = self.options.capture;
        build.labels.insert(labels::STEP.to_owned(), step.name.to_string());
        if let (None, Some(image)) = (&plan.image, &self.options.buildkit) {
            build.image = image.clone();
        }
        if let (NetworkMode::Default, Some(network)) = (plan.network, self.options.build_network) {
            build.network = network;
        }
        if plan.rootless.unwrap_or(self.options.rootless) {
            build = build.rootless();
        }
        if plan.shared {
            build = build.shared(&self.builders);
        }
        if let Some(secrets) = &self.options.secrets {
            crate::log_in(&mut build, secrets).await?;
        }
        let (events, mut received) = mpsc::channel(EVENTS);
        let build = build.output(self.output(step, tail)).events(events);
        let (job, teller) = (self.job.scope(&scope.cancel), self.teller.clone());
        let tell = |detail| {
            let (job, step) = (self.plan.name.clone(), step.name.clone());
            teller.tell(RunEventKind::Build { job, step, detail })
        };
        let work = async {
            let mut running = std::pin::pin!(build.run(&job));
            loop {
                tokio::select! {
                    biased;
                    Some(event) = received.recv() => tell(event).await,
                    result = &mut running => {
                        while let Ok(event) = received.try_recv() {
                            tell(event).await;
                        }
                        return result;
                    }
                }
            }
        };
        self.watch(work).await
    }
}

fn finished(report: &mut StepReport, result: &TaskResult, step: &Step) {
    report.status = Status::of_exit(result.exit);
    report.exit = Some(result.exit);
    report.attempt = Some(result.attempt);
    report.timings = Some(result.timings);
    if result.exit.success() {
        return;
    }
    let timeout = step.timeout.unwrap_or_default();
    report.error = Some(match result.exit {
        ExitStatus::TimedOut => format!("it did not end within its timeout of {timeout:?}"),
        exit => exit.to_string(),
    });
    report.hint = hint(result.exit).map(str::to_owned);
}

/// What to do about an exit that says something by itself.
fn hint(exit: ExitStatus) -> Option<&'static str> {
    match exit {
        ExitStatus::OutOfMemory => Some("raise `limits.memory`, or let the program use less"),
        ExitStatus::TimedOut => Some("raise the step's `timeout`, or find out what it waited for"),
        ExitStatus::Code(126) => {
            Some("the program is there but can't be executed: check its permissions and what it was built for")
        }
        ExitStatus::Code(127) => Some("a program was not found: check that the image has it"),
        _ => None,
    }
}

/// Compares a task's end with what has to be true of it.
fn hold(report: &mut StepReport, assert: &Assertion, result: &TaskResult) {
    let mut wrong = Vec::new();
    if let Some(expected) = assert.code
        && result.exit != ExitStatus::Code(expected)
    {
        wrong.push(format!("the exit code is not {expected}: {}", result.exit));
    }
    let streams = [
        ("standard output", &assert.stdout, &result.stdout),
        ("standard error", &assert.stderr, &result.stderr),
    ];
    for (what, expected, captured) in streams {
        if let Some(expected) = expected
            && !captured.to_string().contains(expected)
        {
            let cut = match captured.cut() {
                0 => String::new(),
                bytes => format!(" ({bytes} bytes in its middle were not kept)"),
            };
            wrong.push(format!("{what} does not contain {expected:?}{cut}"));
        }
    }
    if !wrong.is_empty() {
        report.status = Status::Failed;
        report.error = Some(format!("an assertion does not hold: {}", wrong.join("; ")));
        report.hint = None;
    }
}

pub(super) fn failed(report: &mut StepReport, error: &Error) {
    report.status = Status::of_error(error.kind());
    report.error = Some(error.to_string());
    report.hint = error.hint().map(str::to_owned);
    if error.kind() == ErrorKind::Cancelled {
        report.exit = Some(ExitStatus::Cancelled);
    }
}

fn build_failed(report: &mut StepReport, error: &BuildError, tail: &Tail) {
    if let Some(error) = error.engine_error() {
        failed(report, error);
        report.log_tail = tail.lines();
        return;
    }
    report.exit = error.exit();
    report.hint = error.hint();
    let Some(build) = error.failed() else {
        // The metadata is BuildKit's matter; a missing context or Dockerfile is the pipeline's.
        report.status = if matches!(error, BuildError::Metadata { .. }) {
            Status::Errored
        } else {
            Status::Failed
        };
        report.error = Some(error.to_string());
        return;
    };
    report.status = Status::of_exit(build.exit);
    report.timings = Some(build.timings);
    let mut lines = vec![match (build.exit, build.timeout) {
        (ExitStatus::TimedOut, Some(timeout)) => format!("it did not end within its timeout of {timeout:?}"),
        (exit, _) => exit.to_string(),
    }];
    lines.extend(build.step.iter().map(|step| format!("step: {step}")));
    lines.extend(build.error.iter().map(|error| format!("error: {error}")));
    lines.extend(build.excerpt.clone());
    report.error = Some(lines.join("\n"));
    // What the step itself wrote says more than the progress of its neighbours.
    let said = [&build.log, &build.said]
        .into_iter()
        .find(|text| !text.trim().is_empty());
    report.log_tail = said.cloned().unwrap_or_else(|| tail.lines());
}

/// The volume of the input that stands where an output does, which then is what the step makes of that.
pub(super) fn in_place(inputs: &[Artifact], output: &Artifact, scope: &Scope) -> Option<Name> {
    let place = |artifact: &Artifact| artifact.path.resolve(Task::WORKING_DIR);
    let input = inputs.iter().find(|input| place(input) == place(output))?;
    scope.artifacts.volume(&input.name).ok()
}
