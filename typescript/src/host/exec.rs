//! Sandboxes: a container that waits, and processes that are run in it one after the other or at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use orchestra::{
    Captured, ContainerPath, Env, Error, ErrorKind, ExecEvent, ExecSpec, ExitStatus, LogChunk, Name, OutputSink,
    OutputStream,
};
use orchestra_pipelines::{Sandbox, Status, parse_duration};
use serde_json::{Value, json};

use super::options::{self, Refused, Written};
use super::tap::Tap;
use super::{Answer, Failure, Host, Kind, Object, Reason, locked};

/// What a sandbox does that says nothing else: it waits, and ends when it is told to.
pub(super) const IDLE: &str = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";
const EXEC: [&str; 7] = ["command", "env", "workDir", "user", "timeout", "allowFailure", "name"];

impl Host<'_, '_> {
    pub(super) async fn start_sandbox(&self, id: u64, name: &orchestra::Name, written: Written) -> Answer {
        let single = self.read(written).await?;
        let sandbox = self.session.sandbox(single).await?;
        locked(&self.sandboxes).insert(id, Arc::new(sandbox));
        Ok(json!({ "sandbox": id, "name": name }))
    }

    pub(super) async fn exec(&self, args: &Object, tap: Option<Tap>) -> Answer {
        let id = args.get("sandbox").and_then(Value::as_u64).unwrap_or_default();
        let Some(sandbox) = locked(&self.sandboxes).get(&id).cloned() else {
            return Err(Refused::new("the sandbox is closed").into());
        };
        let given = options::object(args.get("options").cloned().unwrap_or_default(), "exec")?;
        options::known(&given, "exec", &EXEC)?;
        let spec = spec(&given)?;
        let timeout = match given.get("timeout").and_then(Value::as_str) {
            Some(text) => Some(
                parse_duration(text)
                    .map_err(|help| Refused::new(format!("`timeout: {text}` is not valid")).hint(help))?,
            ),
            None => None,
        };
        let allow_failure = given.get("allowFailure") == Some(&Value::Bool(true));
        let work = self.executed(&sandbox, spec, timeout, allow_failure, tap.clone());
        let (answer, was_before) = self.once(sandbox.subject(), "exec", &Value::Object(given), work).await;
        if was_before {
            self.say_again(sandbox.name(), &answer, tap.clone()).await;
        }
        if let Some(tap) = &tap {
            tap.finish().await;
        }
        answer
    }

    /// Tells what a process wrote that ended before this run was carried on.
    async fn say_again(&self, step: &Name, answer: &Answer, mut tap: Option<Tap>) {
        let text = |name: &str| match answer {
            Ok(value) => value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned(),
            Err(Failure(reason)) if name == "stdout" => reason.stdout.clone(),
            Err(Failure(reason)) => reason.stderr.clone(),
        };
        for (stream, name) in [(OutputStream::Stdout, "stdout"), (OutputStream::Stderr, "stderr")] {
            let bytes = Bytes::from(text(name));
            if bytes.is_empty() {
                continue;
            }
            self.session.say_for(step, stream, bytes.clone()).await;
            if let Some(tap) = &mut tap {
                // A script that has ended does not listen.
                tap.write(LogChunk { stream, bytes }).await.ok();
            }
        }
    }

    async fn executed(
        &self,
        sandbox: &Sandbox,
        spec: ExecSpec,
        timeout: Option<Duration>,
        allow_failure: bool,
        tap: Option<Tap>,
    ) -> Answer {
        let (container, step) = (self.session.container(sandbox).await?, sandbox.name().clone());
        let program = spec.command.first().cloned().unwrap_or_default();
        let (mut stdout, mut stderr) = (Captured::new(self.options.capture), Captured::new(self.options.capture));
        let work = async {
            let mut events = self.session.job().driver().exec(&container, &spec, None).await?;
            let mut tap = tap.clone();
            while let Some(event) = events.next().await {
                match event? {
                    ExecEvent::Output(chunk) => {
                        let captured = if chunk.stream == OutputStream::Stdout {
                            &mut stdout
                        } else {
                            &mut stderr
                        };
                        captured.push(&chunk.bytes);
                        self.session.say_for(&step, chunk.stream, chunk.bytes.clone()).await;
                        if let Some(tap) = &mut tap {
                            tap.write(chunk).await?;
                        }
                    }
                    ExecEvent::Exit(exit) => return Ok(exit),
                    _ => {}
                }
            }
            Err(Error::new(
                ErrorKind::Interrupted,
                "the engine told no end of the process",
            ))
        };
        let limited = async {
            match timeout {
                Some(timeout) => tokio::time::timeout(timeout, work)
                    .await
                    .unwrap_or(Ok(ExitStatus::TimedOut)),
                None => work.await,
            }
        };
        let exit = tokio::select! {
            exit = limited => exit?,
            () = self.session.cancel().cancelled() => ExitStatus::Cancelled,
        };
        let status = Status::of_exit(exit);
        let allowed = allow_failure && status == Status::Failed;
        if status != Status::Succeeded && !allowed {
            return Err(Reason {
                kind: Kind::Task,
                message: self.session.redact(format!("{program} in the sandbox {step}: {exit}")),
                status: Some(status),
                step: Some(step.to_string()),
                code: Some(exit.code()),
                stdout: stdout.to_string(),
                stderr: stderr.to_string(),
                hint: None,
            }
            .into());
        }
        Ok(json!({ "name": step, "code": exit.code(), "stdout": stdout.to_string(), "stderr": stderr.to_string() }))
    }

    pub(super) async fn close(&self, args: &Object) -> Answer {
        let id = args.get("sandbox").and_then(Value::as_u64).unwrap_or_default();
        let sandbox = locked(&self.sandboxes).remove(&id);
        if let Some(sandbox) = sandbox {
            self.session.close(&sandbox).await?;
        }
        Ok(Value::Null)
    }
}

fn spec(given: &Object) -> Result<ExecSpec, Failure> {
    let words = |value: &Value| {
        let words = value.as_array()?.iter().map(|word| word.as_str().map(str::to_owned));
        words.collect::<Option<Vec<String>>>()
    };
    let command = match given.get("command") {
        Some(Value::Object(command)) => {
            options::known(command, "`command`", &["path", "args"])?;
            let path = command.get("path").and_then(Value::as_str).map(str::to_owned);
            let args = command.get("args").map_or_else(|| Some(Vec::new()), words);
            path.zip(args)
                .map(|(path, args)| std::iter::once(path).chain(args).collect())
        }
        Some(list) => words(list),
        None => None,
    };
    let Some(command) = command.filter(|command| !command.is_empty()) else {
        let example = "for example `command: { path: \"sh\", args: [\"-c\", \"make\"] }`";
        return Err(Refused::new("`command` is `{ path, args }` or a list of words")
            .hint(example)
            .into());
    };
    let mut spec = ExecSpec::new(command);
    if let Some(env) = given.get("env") {
        let entries = env
            .as_object()
            .ok_or_else(|| Refused::new("`env` is an object of names and values"))?;
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
            _ => None,
        };
        let entry = |(name, value): (&String, &Value)| text(value).map(|value| (name.clone(), value));
        let entries: Option<_> = entries.iter().map(entry).collect();
        spec.env = Env(entries.ok_or_else(|| Refused::new("a value in `env` is text"))?);
    }
    if let Some(dir) = given.get("workDir").and_then(Value::as_str) {
        let dir: ContainerPath = dir.parse()?;
        spec.working_dir = Some(ContainerPath::new(dir.resolve(orchestra::Task::WORKING_DIR))?);
    }
    if let Some(user) = given.get("user").and_then(Value::as_str) {
        spec.user = Some(user.parse()?);
    }
    Ok(spec)
}
