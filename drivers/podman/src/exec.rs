//! Further processes in running containers.

use std::time::Duration;

use futures_util::future::{Fuse, FutureExt};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use orchestra::{ByteStream, ContainerId, Error, ExecEvent, ExecSpec, ExecStream, ExitStatus, LogStream, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::io::ReaderStream;

use crate::client::Client;
use crate::container::pump;
use crate::driver::PodmanDriver;
use crate::error::{Subject, about, meanwhile};
use crate::frames::demultiplexed;
use crate::logs::{BUFFER, lost};

/// Between two looks at a process that has closed its output: the API has no wait for it. Doubled each time up to a limit.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Create<'a> {
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    cmd: &'a [String],
    env: Vec<String>,
    working_dir: Option<&'a str>,
    user: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Start {
    detach: bool,
    tty: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Session {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    running: bool,
    exit_code: i64,
}

impl PodmanDriver {
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
        let create = Create {
            attach_stdin: stdin.is_some(),
            attach_stdout: true,
            attach_stderr: true,
            cmd: &spec.command,
            env: spec.env.0.iter().map(|(key, value)| format!("{key}={value}")).collect(),
            working_dir: spec.working_dir.as_ref().map(|dir| dir.as_str()),
            user: spec.user.as_ref().map(|user| user.as_str()),
        };
        let failed = about(Subject::Container);
        let create = self.client.post(&["containers", id.as_str(), "exec"]).json(&create);
        let Session { id: exec } = create.map_err(failed)?.value().await.map_err(failed)?;
        let start = Start {
            detach: false,
            tty: false,
        };
        let start = self.client.post(&["exec", &exec, "start"]).json(&start);
        let attached = start.map_err(failed)?.hijack().await.map_err(failed)?;
        let (output, input) = tokio::io::split(attached);
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
        let output = ReaderStream::with_capacity(output, BUFFER).map_err(lost);
        let process = Process {
            client: self.client.clone(),
            exec,
            output: demultiplexed(output).boxed(),
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
    client: Client,
    exec: String,
    output: LogStream,
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
            Some(item) => Ok((ExecEvent::Output(item?), Some(self))),
            None => Ok((ExecEvent::Exit(exit(&self.client, &self.exec).await?), None)),
        }
    }
}

/// How the process ended. libpod closes its output a moment before it knows.
async fn exit(client: &Client, exec: &str) -> Result<ExitStatus> {
    let (mut pause, longest) = LOOK;
    loop {
        let found = client.get(&["exec", exec, "json"]).value().await;
        let found: Found = found.map_err(about(Subject::Container)).map_err(meanwhile)?;
        if !found.running {
            return Ok(ExitStatus::from_engine(found.exit_code, false));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}
