//! Further processes in running containers.

use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use futures_util::future::{Fuse, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use orchestra::{ByteStream, ContainerId, Error, ErrorKind, ExecEvent, ExecSpec, ExecStream, ExitStatus, Result};
use tokio::sync::oneshot;

use crate::container::pump;
use crate::driver::DockerDriver;
use crate::error::{Subject, about, meanwhile};
use crate::logs::chunk;
use crate::spec;

/// Bytes that are read at once.
const BUFFER: usize = 64 * 1024;
/// Between two looks at a process that has closed its output: the API has no wait for it. Doubled each time up to a limit.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

impl DockerDriver {
    pub(crate) async fn run_in(
        &self,
        id: &ContainerId,
        spec: &ExecSpec,
        stdin: Option<ByteStream>,
    ) -> Result<ExecStream> {
        if spec.command.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("the command is empty"));
        }
        self.named(id).await?;
        let config = ExecConfig {
            attach_stdin: Some(stdin.is_some()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(false),
            cmd: Some(spec.command.clone()),
            env: Some(spec::env(&spec.env)),
            working_dir: spec.working_dir.as_ref().map(ToString::to_string),
            user: spec.user.as_ref().map(ToString::to_string),
            ..ExecConfig::default()
        };
        let exec = self
            .docker
            .create_exec(id.as_str(), config)
            .await
            .map_err(about(Subject::Container))?
            .id;
        let options = StartExecOptions {
            detach: false,
            tty: false,
            output_capacity: Some(BUFFER),
        };
        let started = self
            .docker
            .start_exec(&exec, Some(options))
            .await
            .map_err(about(Subject::Container))?;
        let StartExecResults::Attached { output, input } = started else {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the engine did not attach to the process",
            ));
        };
        let (mut told, fed) = oneshot::channel();
        if let Some(stdin) = stdin {
            tokio::spawn(async move {
                tokio::select! {
                    // Nobody is left to be told where this fails.
                    result = pump(Some(stdin), input) => { let _ = told.send(result.err()); }
                    () = told.closed() => {}
                }
            });
        }
        let process = Process {
            docker: self.docker.clone(),
            exec,
            output,
            fed: fed.fuse(),
        };
        Ok(stream::try_unfold(Some(process), async |process| match process {
            Some(process) => process.next().await.map(Some),
            None => Ok(None),
        })
        .boxed())
    }
}

/// A process that has not ended yet, as far as was told.
struct Process {
    docker: Docker,
    exec: String,
    output: BoxStream<'static, Result<LogOutput, bollard::errors::Error>>,
    /// What became of its standard input.
    fed: Fuse<oneshot::Receiver<Option<Error>>>,
}

impl Process {
    async fn next(mut self) -> Result<(ExecEvent, Option<Self>)> {
        let item = tokio::select! {
            // It has not got all that it was to read: what it makes of that means nothing.
            Ok(Some(error)) = &mut self.fed => return Err(error),
            item = self.output.next() => item,
        };
        match item {
            Some(item) => Ok((ExecEvent::Output(chunk(item)?), Some(self))),
            None => Ok((ExecEvent::Exit(exit(&self.docker, &self.exec).await?), None)),
        }
    }
}

/// How the process ended. docker closes its output a moment before it knows.
async fn exit(docker: &Docker, exec: &str) -> Result<ExitStatus> {
    let (mut pause, longest) = LOOK;
    loop {
        let found = docker.inspect_exec(exec).await;
        let found = found.map_err(about(Subject::Container)).map_err(meanwhile)?;
        if let (Some(code), Some(false)) = (found.exit_code, found.running) {
            return Ok(ExitStatus::from_engine(code, false));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}
