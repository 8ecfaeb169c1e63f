//! What a script asks for, done on the run's job: many things at once, each answered when it is done.

mod exec;
mod fetch;
mod files;
mod once;
mod options;
mod tap;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered};
use orchestra::{Error, ErrorKind, LogChunk, LogStream, Name, OutputStream};
use orchestra_pipelines::{
    Action, KeyTemplate, Problem, RunOptions, Sandbox, Session, SingleStep, Status, StepOutcome,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::fetch::FetchPolicy;
use self::options::{Refused, Written};
use self::tap::Tap;
use crate::engine::{Ask, Finish, Told};

type Object = Map<String, Value>;

/// Why something that a script asked for was not done.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Failure(Box<Reason>);

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self(Box::new(reason))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Input,
    #[default]
    Task,
}

/// As the prelude makes an error of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Reason {
    /// `input` for what can't be, `task` for what was tried.
    kind: Kind,
    message: String,
    hint: Option<String>,
    status: Option<Status>,
    step: Option<String>,
    code: Option<u8>,
    stdout: String,
    stderr: String,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Reason {
            kind: Kind::Input,
            message: options::camel_words(&refused.message),
            hint: refused.hint.as_deref().map(options::camel_words),
            ..Reason::default()
        }
        .into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.kind() == ErrorKind::InvalidInput {
            let refused = Refused {
                message: error.message().to_owned(),
                hint: error.hint().map(str::to_owned),
            };
            return refused.into();
        }
        Reason {
            kind: Kind::Task,
            message: error.to_string(),
            hint: error.hint().map(str::to_owned),
            status: Some(Status::of_error(error.kind())),
            ..Reason::default()
        }
        .into()
    }
}

impl From<Vec<Problem>> for Failure {
    fn from(problems: Vec<Problem>) -> Self {
        let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
        let message = if messages.is_empty() {
            "the options are not valid".to_owned()
        } else {
            messages.join("; ")
        };
        let hint = problems.iter().find_map(|problem| problem.help.clone());
        Refused { message, hint }.into()
    }
}

type Answer = Result<Value, Failure>;

/// What is done for one script.
pub(crate) struct Host<'a, 'r> {
    session: &'a Session<'r>,
    options: &'a RunOptions,
    told: mpsc::Sender<Told>,
    fetch: FetchPolicy,
    names: Mutex<HashMap<String, u32>>,
    volumes: Mutex<HashSet<String>>,
    /// Those that are caches without device files.
    without_devices: Mutex<HashSet<String>>,
    cache_paths: Mutex<HashMap<String, String>>,
    sandboxes: Mutex<HashMap<u64, Arc<Sandbox>>>,
}

/// How long after its time a script may compute on: the interpreter ends it between two of its own steps. Functions of its
/// library, a search in a long text for example, are one step.
const SLACK: Duration = Duration::from_secs(3);

/// Returns when a script computes on long after its time.
async fn overdue(mut computes: watch::Receiver<Option<Instant>>) {
    loop {
        let until = *computes.borrow_and_update();
        let changed = async {
            // Without a sender the thread has ended.
            if computes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        match until {
            Some(until) => tokio::select! {
                () = tokio::time::sleep_until(until + SLACK) => return,
                () = changed => {}
            },
            None => changed.await,
        }
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a, 'r> Host<'a, 'r> {
    pub(crate) fn new(
        session: &'a Session<'r>,
        options: &'a RunOptions,
        told: mpsc::Sender<Told>,
        fetch: FetchPolicy,
    ) -> Self {
        Self {
            session,
            options,
            told,
            fetch,
            names: Mutex::default(),
            volumes: Mutex::default(),
            without_devices: Mutex::default(),
            cache_paths: Mutex::default(),
            sandboxes: Mutex::default(),
        }
    }

    /// Does what is asked for until the script has ended.
    pub(crate) async fn serve(
        &self,
        mut asks: mpsc::UnboundedReceiver<Ask>,
        says: mpsc::Receiver<(OutputStream, bytes::Bytes)>,
        mut finished: tokio::sync::oneshot::Receiver<Finish>,
        computes: watch::Receiver<Option<Instant>>,
    ) -> Finish {
        let mut overdue = std::pin::pin!(overdue(computes));
        let mut running: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let mut told = false;
        let ended = CancellationToken::new();
        let mut said = self.session.redacted(until(says, ended.clone())).fuse();
        let finish = loop {
            tokio::select! {
                biased;
                () = self.session.cancel().cancelled(), if !told => {
                    told = true;
                    let told = self.told.clone();
                    running.push(Box::pin(async move { told.send(Told::Cancelled).await.unwrap_or_default() }));
                }
                Some(chunk) = said.next() => self.say(chunk).await,
                Some(ask) = asks.recv() => running.push(self.handle(ask)),
                Some(()) = running.next(), if !running.is_empty() => {}
                // Its thread is left to itself: nothing ends it in there.
                () = &mut overdue => break Finish::TooLong,
                finish = &mut finished => break finish.unwrap_or_else(|_| Finish::Broken("the interpreter failed".to_owned())),
            }
        };
        // What it said last is still in the channel.
        ended.cancel();
        while let Some(chunk) = said.next().await {
            self.say(chunk).await;
        }
        drop(running);
        let open: Vec<_> = locked(&self.sandboxes).drain().map(|(_, sandbox)| sandbox).collect();
        for sandbox in open {
            if let Err(error) = self.session.close(&sandbox).await {
                tracing::debug!(%error, "a sandbox that was left open");
            }
        }
        finish
    }

    /// What can't be redacted ends the script's output.
    async fn say(&self, chunk: orchestra::Result<LogChunk>) {
        match chunk {
            Ok(chunk) => self.session.say(chunk).await,
            Err(error) => {
                let message = format!("nothing more of what the script says is shown: {error}");
                self.session.warn(message).await;
            }
        }
    }

    /// Begins what is asked for. Names are given here, in the order of asking, so that they are the same in each run.
    fn handle(&self, ask: Ask) -> BoxFuture<'_, ()> {
        let id = ask.id;
        let (work, share) = self.work(ask);
        Box::pin(async move {
            let done = work.await;
            drop(share);
            let result = match done {
                Ok(value) => Ok(value.to_string()),
                Err(failure) => Err(serde_json::to_string(&failure).unwrap_or_default()),
            };
            // A script that has ended wants no answers.
            self.told.send(Told::Answer { id, result }).await.ok();
        })
    }

    fn work(&self, ask: Ask) -> (BoxFuture<'_, Answer>, OwnedSemaphorePermit) {
        let work = match self.prepare(&ask) {
            Ok(work) => work,
            Err(failure) => Box::pin(async move { Err(failure) }) as BoxFuture<'_, Answer>,
        };
        (work, ask.share)
    }

    fn prepare(&self, ask: &Ask) -> Result<BoxFuture<'_, Answer>, Failure> {
        if self.session.cancel().is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the run was cancelled").into());
        }
        let args: Value = serde_json::from_str(&ask.args).unwrap_or_default();
        let Value::Object(mut args) = args else {
            return Err(Refused::new("options are an object").into());
        };
        let tap = ask.wants_output.then(|| Tap::new(ask.id, self.told.clone()));
        let id = ask.id;
        Ok(match ask.op.as_str() {
            "run" => {
                let (name, options) = self.task_options(&mut args)?;
                let allow = options.get("allowFailure") == Some(&Value::Bool(true));
                let written = options::task(name.as_str(), options)?;
                Box::pin(async move { self.run(written, tap, allow).await })
            }
            "build" => {
                let (name, options) = self.build_options(&mut args)?;
                let written = options::build(name.as_deref(), options)?;
                Box::pin(async move { self.run(written, tap, false).await })
            }
            "volume" => {
                options::known(&args, "volumes.create", &["name"])?;
                let name = args.get("name").and_then(Value::as_str).unwrap_or("volume");
                let name = self.unique(&format!("v:{name}"), name)?;
                Box::pin(async move { self.volume(&name).await })
            }
            "readFiles" => Box::pin(async move { self.read_files(&args).await }),
            "writeFiles" => Box::pin(async move { self.write_files(&args).await }),
            "restore" => {
                let key = args.get("key").and_then(Value::as_str).unwrap_or_default();
                let path = self.cache_path(key);
                let step = options::cache(&path, args)?;
                Box::pin(async move { self.restore(step).await })
            }
            "persist" => Box::pin(async move { self.persist(&args).await }),
            "sandbox" => {
                let (name, options) = self.sandbox_options(&mut args)?;
                let written = options::task(name.as_str(), options)?;
                Box::pin(async move { self.start_sandbox(id, &name, written).await })
            }
            "exec" => Box::pin(async move { self.exec(&args, tap).await }),
            "close" => Box::pin(async move { self.close(&args).await }),
            "fetch" => Box::pin(async move { self.fetch.fetch(&args, self.session.cancel()).await }),
            other => return Err(Refused::new(format!("there is nothing called {other}")).into()),
        })
    }

    /// A name that nothing else of this kind has: `test`, then `test-2`.
    fn unique(&self, kind: &str, name: &str) -> Result<Name, Failure> {
        let first = Name::new(name)?;
        let mut names = locked(&self.names);
        let count = names.entry(kind.to_owned()).or_default();
        *count += 1;
        match *count {
            1 => Ok(first),
            again => Ok(Name::new(format!("{name}-{again}"))?),
        }
    }

    /// Where a cache of this key is said to stand: one place for each key.
    fn cache_path(&self, key: &str) -> String {
        let mut paths = locked(&self.cache_paths);
        let plain = plain(key);
        let others = paths.len();
        let path = paths.entry(key.to_owned()).or_insert_with(|| match others {
            0 => format!("/{plain}"),
            others => format!("/{plain}.{others}"),
        });
        path.clone()
    }

    /// The step's name: the user's, or else `default`, behind the job's and the stage's.
    fn step_name(&self, args: &Object, name: Option<&str>, default: &str) -> Result<Name, Failure> {
        let scope = args.get("scope").and_then(Value::as_array).into_iter().flatten();
        let mut parts: Vec<&str> = scope.filter_map(Value::as_str).collect();
        parts.push(name.unwrap_or(default));
        let whole = parts.join(".");
        self.unique(&whole, &whole)
    }

    fn task_options(&self, args: &mut Object) -> Result<(Name, Object), Failure> {
        let mut options = taken(args)?;
        let command = options.get("command");
        let program = command.and_then(|command| command.get("path").or_else(|| command.get(0)));
        let default = plain_name(program.and_then(Value::as_str).unwrap_or_default(), "task");
        let given = options.remove("name");
        let name = self.step_name(args, name_of(given.as_ref())?, &default)?;
        Ok((name, options))
    }

    fn build_options(&self, args: &mut Object) -> Result<(Option<String>, Object), Failure> {
        let mut options = taken(args)?;
        let tag = options.get("tag").and_then(Value::as_str).unwrap_or_default();
        let last = tag.rsplit('/').next().unwrap_or_default();
        let image = last.split([':', '@']).next().unwrap_or_default();
        let default = format!("build-{}", plain_name(image, "image"));
        let given = options.remove("name");
        let name = self.step_name(args, name_of(given.as_ref())?, &default)?;
        Ok((Some(name.to_string()), options))
    }

    fn sandbox_options(&self, args: &mut Object) -> Result<(Name, Object), Failure> {
        let mut options = taken(args)?;
        let given = options.remove("name");
        let name = self.step_name(args, name_of(given.as_ref())?, "sandbox")?;
        if options.get("secretEnv") == Some(&json!("hidden")) {
            return Err(
                Refused::new("`secretEnv: \"hidden\"` hides variables from what a sandbox executes too")
                    .hint("give them to `exec`, in its `env`, which no engine keeps; or use `secretFiles`")
                    .into(),
            );
        }
        options
            .entry("command")
            .or_insert_with(|| json!({ "path": "sh", "args": ["-c", exec::IDLE] }));
        Ok((name, options))
    }

    /// The step of what was written, checked, with the volumes that it uses.
    async fn read(&self, written: Written) -> Result<SingleStep, Failure> {
        let mut single = SingleStep::read(&written.step, self.session.secrets()).await?;
        let builds = matches!(single.step.action, Action::BuildImage(_));
        let (inputs, caches) = match &mut single.step.action {
            Action::Task(plan) => (&plan.inputs, &mut plan.caches),
            Action::BuildImage(plan) => (&plan.inputs, &mut plan.caches),
            _ => return Err(Refused::new("that is no step").into()),
        };
        for input in inputs {
            self.check_volume(input.name.as_str())?;
        }
        for (path, volume) in written.volumes {
            self.check_volume(&volume)?;
            // Without them, what a layer deletes is there again in the next build.
            if builds && locked(&self.without_devices).contains(&volume) {
                let message = format!(
                    "the cache for {path} was restored without device files, which are how layers say what they delete"
                );
                return Err(Refused::new(message)
                    .hint("restore it with `devices: true`, or name it by its key: `caches: { \"/var/lib/buildkit\": \"key\" }`")
                    .into());
            }
            let name = Name::new(volume)?;
            let caches = caches.iter_mut().filter(|cache| cache.path.as_str() == path);
            caches.for_each(|cache| cache.volume = Some(name.clone()));
        }
        Ok(single)
    }

    fn check_volume(&self, name: &str) -> Result<(), Failure> {
        if locked(&self.volumes).contains(name) {
            return Ok(());
        }
        Err(Refused::new(format!("there is no volume {name:?} in this run"))
            .hint("make one with `await volumes.create()`")
            .into())
    }

    async fn run(&self, written: Written, tap: Option<Tap>, allow_failure: bool) -> Answer {
        let single = self.read(written).await?;
        let what = single.step.kind().to_string();
        let sink = tap.clone().map(|tap| Box::new(tap) as Box<dyn orchestra::OutputSink>);
        let outcome = self.session.step(single, sink, allow_failure).await;
        if let Some(tap) = tap {
            tap.finish().await;
        }
        let code = outcome.report.exit.map(|exit| exit.code());
        let succeeded = outcome.report.status == Status::Succeeded;
        if !(succeeded || outcome.report.tolerated) {
            return Err(failed(&what, outcome));
        }
        let mut answer = json!({
            "name": outcome.report.name,
            "code": code.unwrap_or(0),
            "stdout": outcome.stdout.to_string(),
            "stderr": outcome.stderr.to_string(),
            "duration": outcome.report.duration.as_secs_f64(),
        });
        if let (Some(image), Some(answer)) = (outcome.report.image, answer.as_object_mut()) {
            for (key, value) in [
                ("ref", json!(image.reference)),
                ("refs", json!(image.references)),
                ("digest", json!(image.digest)),
                ("configDigest", json!(image.config_digest)),
                ("platforms", json!(image.platforms)),
                ("targets", json!(image.targets)),
                ("size", json!(image.size)),
                ("steps", json!(image.steps)),
            ] {
                answer.insert(key.to_owned(), value);
            }
        }
        Ok(answer)
    }
}

/// What a script is told of a step that did not succeed.
fn failed(what: &str, outcome: StepOutcome) -> Failure {
    let report = outcome.report;
    let why = report.error.unwrap_or_else(|| report.status.to_string());
    let mut message = format!("{what} {}: {why}", report.name);
    if !report.log_tail.trim().is_empty() {
        message = format!("{message}\nits last output:\n{}", report.log_tail.trim_end());
    }
    Reason {
        kind: Kind::Task,
        message,
        hint: report.hint,
        status: Some(report.status),
        step: Some(report.name.to_string()),
        code: report.exit.map(|exit| exit.code()),
        stdout: outcome.stdout.to_string(),
        stderr: outcome.stderr.to_string(),
    }
    .into()
}

fn taken(args: &mut Object) -> Result<Object, Failure> {
    Ok(options::object(
        args.remove("options").unwrap_or_default(),
        "what is passed",
    )?)
}

fn name_of(given: Option<&Value>) -> Result<Option<&str>, Failure> {
    match given {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(_) => Err(Refused::new("`name` is a string").into()),
    }
}

/// What people see of a key in a path: without its `{{ … }}`, and without what is between those and the words.
fn plain(key: &str) -> String {
    // One that is none is refused where the cache is read.
    let words = key
        .parse::<KeyTemplate>()
        .map_or_else(|_| key.to_owned(), |template| template.text());
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let words: String = words.chars().map(allowed).take(40).collect();
    match words.trim_matches('-') {
        "" => "cache".to_owned(),
        words => words.to_owned(),
    }
}

/// A valid name that is made of a program's or an image's.
fn plain_name(text: &str, otherwise: &str) -> String {
    let last = text.rsplit('/').next().unwrap_or_default();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = last.chars().filter(allowed).take(24).collect();
    let name = name.trim_start_matches(['-', '_']);
    if name.is_empty() {
        otherwise.to_owned()
    } else {
        name.to_owned()
    }
}

/// All that is said until it has ended: what is in the channel then comes too.
fn until(says: mpsc::Receiver<(OutputStream, bytes::Bytes)>, ended: CancellationToken) -> LogStream {
    let next = |(mut says, ended): (mpsc::Receiver<_>, CancellationToken)| async move {
        let said = tokio::select! {
            biased;
            said = says.recv() => said,
            () = ended.cancelled() => says.try_recv().ok(),
        };
        let (stream, bytes) = said?;
        Some((Ok(LogChunk { stream, bytes }), (says, ended)))
    };
    stream::unfold((says, ended), next).fuse().boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_by_its_words() {
        for (key, words) in [
            ("deps-{{ checksum \"source/deps.lock\" }}", "deps"),
            ("a/{{ checksum \"x\" }}/b", "a--b"),
            ("{{ checksum \"x\" }}", "cache"),
            ("tools", "tools"),
        ] {
            assert_eq!(plain(key), words);
        }
    }
}
