//! How a build fails.

use std::fmt;
use std::time::Duration;

use orchestra::{Captured, ContainerPath, ExitStatus, ImageRef, Name, NetworkMode, Timings};

use crate::hint;

/// Why there is no image.
///
/// `Display` is for a terminal: what failed, in which step, its last output. `{:#}` and `Debug` add what to do about it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The build was refused, or the engine could not run it.
    #[error(transparent)]
    Job(#[from] orchestra::Error),
    /// The tar that the context was to come from failed.
    #[error("image build {build}: its context could not be sent: {source}")]
    Context {
        /// The build.
        build: Name,
        /// The tar's own error.
        source: orchestra::Error,
    },
    /// The context is no directory of the inputs.
    #[error("image build {build}: context {context} is not a directory of the build's inputs")]
    ContextMissing {
        /// The build.
        build: Name,
        /// What was looked for.
        context: ContainerPath,
    },
    /// There is no Dockerfile.
    #[error(
        "image build {build}: no Dockerfile: there is neither {context}/{dockerfile} nor {dockerfile} in the build's inputs"
    )]
    DockerfileMissing {
        /// The build.
        build: Name,
        /// Where it was looked for first; then in the working directory.
        context: ContainerPath,
        /// What was looked for.
        dockerfile: ContainerPath,
    },
    /// A symbolic link leads out of the build's inputs.
    #[error(
        "image build {build}: context {context} or the directory of {dockerfile} is a symbolic link that leads out of the build's inputs"
    )]
    Outside {
        /// The build.
        build: Name,
        /// The context.
        context: ContainerPath,
        /// The Dockerfile.
        dockerfile: ContainerPath,
    },
    /// The build ran and did not succeed, took too long or was cancelled.
    #[error(transparent)]
    Failed(Box<FailedBuild>),
    /// The build succeeded, but what BuildKit says of the image can't be used.
    #[error("image build {build}: BuildKit's metadata file {problem}")]
    Metadata {
        /// The build.
        build: Name,
        /// What is wrong with it: a fragment after "BuildKit's metadata file".
        problem: String,
    },
}

impl BuildError {
    /// How the build container ended, if it did.
    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        match self {
            Self::Failed(failed) => Some(failed.exit),
            Self::ContextMissing { .. } | Self::DockerfileMissing { .. } | Self::Outside { .. } => {
                Some(ExitStatus::Code(1))
            }
            _ => None,
        }
    }

    /// What a person can do about it, if that is known. For a failure inside of the build it is guessed from BuildKit's
    /// words, which may change from one version to the next: nothing but this text depends on them.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Job(error) | Self::Context { source: error, .. } => error.hint().map(ToOwned::to_owned),
            Self::ContextMissing { .. } => {
                Some("check that the task which makes the context writes it there, and that its volume is an input of the build".into())
            }
            Self::DockerfileMissing { .. } => {
                Some("write dockerfile relative to the context, or to the working directory, in which the inputs stand".into())
            }
            Self::Outside { .. } => Some("let the link lead to a directory of the inputs, or replace it by one".into()),
            Self::Failed(failed) => hint::of(failed),
            Self::Metadata { .. } => Some("use another version of the BuildKit image".into()),
        }
    }

    /// The engine's error, if it is one.
    #[must_use]
    pub fn engine_error(&self) -> Option<&orchestra::Error> {
        match self {
            Self::Job(error) => Some(error),
            _ => None,
        }
    }

    /// The build that ran and failed, if one did.
    #[must_use]
    pub fn failed(&self) -> Option<&FailedBuild> {
        match self {
            Self::Failed(failed) => Some(failed),
            _ => None,
        }
    }
}

impl fmt::Debug for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(error) => return fmt::Debug::fmt(error, f),
            error => write!(f, "{error}")?,
        }
        self.hint().map_or(Ok(()), |hint| write!(f, "\n  hint: {hint}"))
    }
}

/// A build that ran and failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub struct FailedBuild {
    /// The build.
    pub name: Name,
    /// Its tag.
    pub tag: ImageRef,
    /// Its timeout, if it had one.
    pub timeout: Option<Duration>,
    /// How the build container ended.
    pub exit: ExitStatus,
    /// The same as a code: [`ExitStatus::code`].
    pub code: u8,
    /// The step that failed, or that was under way when the build was ended: `[2/3] RUN make`. `None` if it came to no step.
    pub step: Option<String>,
    /// BuildKit's words for the failure.
    pub error: Option<String>,
    /// The exit code of the step's process, if it was one that failed.
    pub step_code: Option<u32>,
    /// The Dockerfile's lines around the one that failed, which `>>>` marks, below the file's name and the line's number.
    pub excerpt: Option<String>,
    /// The last output of the step, at most 16 KiB.
    pub log: String,
    /// What was written last that is no progress, at most 16 KiB: BuildKit's excerpt of the Dockerfile and closing words, or
    /// those of the daemon.
    pub said: String,
    /// All of the builder's standard output, as far as it was kept.
    pub stdout: Captured,
    /// All of the build's progress and output as text, as far as it was kept.
    pub stderr: Captured,
    /// Where the build container's time went.
    pub timings: Timings,
    pub(crate) network: NetworkMode,
    pub(crate) has_credentials: bool,
    pub(crate) image: ImageRef,
    pub(crate) rootless: bool,
}

/// How many lines of a step's output, and of the closing words, are shown.
const SHOWN: usize = 25;

impl fmt::Display for FailedBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image build {} ", self.name)?;
        match (self.exit, self.timeout) {
            (ExitStatus::TimedOut, Some(timeout)) => write!(f, "took longer than {timeout:?}")?,
            (ExitStatus::TimedOut | ExitStatus::Cancelled, _) => write!(
                f,
                "was {}",
                self.exit.to_string().replace("timed out", "ended: timed out")
            )?,
            (exit, _) => write!(f, "failed: {exit}")?,
        }
        if let Some(step) = &self.step {
            write!(f, "\nstep: {step}")?;
        }
        if let Some(error) = &self.error {
            write!(f, "\nerror: {error}")?;
        }
        block(f, "in the Dockerfile:", self.excerpt.as_deref().unwrap_or_default())?;
        block(f, "the step's last output:", &self.log)?;
        // The last of these words is the error that stands above already.
        let said = self.said.trim_end();
        let last = said
            .rfind("\nerror: ")
            .map(|at| at + 1)
            .or_else(|| said.starts_with("error: ").then_some(0));
        let shown = match last {
            Some(at) if self.error.is_some() => &said[..at],
            _ => said,
        };
        if self.step.is_none() || !shown.contains("------\n > ") {
            block(f, "BuildKit said:", shown)?;
        }
        if f.alternate()
            && let Some(hint) = hint::of(self)
        {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// What the daemon said before it ended, without its stack: Go programs write that below the reason, and the reason out of
/// sight.
pub(crate) fn without_stack(said: &str) -> String {
    let lines = said.lines().filter(|line| !is_frame(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// A function's name, or a file and a line behind a tab.
fn is_frame(line: &str) -> bool {
    let is_place = line.starts_with('\t') && [".go:", ".s:"].iter().any(|of| line.contains(of));
    is_place || line.contains('.') && !line.contains([' ', '\t', '=', ':', ','])
}

fn block(f: &mut fmt::Formatter<'_>, title: &str, text: &str) -> fmt::Result {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    if lines.is_empty() {
        return Ok(());
    }
    write!(f, "\n{title}")?;
    let shown = &lines[lines.len().saturating_sub(SHOWN)..];
    shown.iter().try_for_each(|line| write!(f, "\n  {line}"))
}

#[cfg(test)]
mod tests {
    use super::{is_frame, without_stack};

    #[test]
    fn a_stack_is_left_out_of_what_the_daemon_said_and_nothing_else_is() {
        for frame in [
            "main.newWorkerController",
            "github.com/urfave/cli/v3.(*Command).Run",
            "runtime.goexit",
            "\tgithub.com/moby/buildkit@v0.34.2/cmd/buildkitd/main.go:1013",
            "\truntime/asm_amd64.s:1771",
        ] {
            assert!(is_frame(frame), "{frame}");
        }
        for said in [
            "buildkitd: no worker found, rebuild the buildkit daemon?",
            "time=\"2026-11-30T15:20:23Z\" level=info",
            "Dockerfile:4",
            "--------------------",
            "   4 | >>> RUN make all.go:1",
            "========== log ==========",
        ] {
            assert!(!is_frame(said), "{said}");
        }
        let daemon = "buildkitd: no worker found\nmain.main\n\tgithub.com/moby/buildkit/main.go:495\nexited\n";
        assert_eq!(without_stack(daemon), "buildkitd: no worker found\nexited\n");
    }
}
