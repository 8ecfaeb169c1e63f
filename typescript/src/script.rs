//! A script from its file to its report.

use std::path::Path;
use std::time::Duration;

use orchestra::{Name, SharedDriver};
use orchestra_pipelines::{Ended, Invalid, Program, RunOptions, RunReport, Status, run_program};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::engine::{self, Channels, Finish, Settings};
use crate::graph::Graph;
use crate::host::{FetchPolicy, Host};

/// What waits for the script, and what it has said that waits for its reader.
const WAITING: usize = 64;

/// What a script may use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScriptOptions {
    /// Bytes of memory for all of its values.
    pub memory: usize,
    /// How long it may compute, all in all. What it waits for does not count.
    pub time: Duration,
    /// What it may reach over the network.
    pub fetch: FetchPolicy,
}

impl Default for ScriptOptions {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            time: Duration::from_secs(60),
            fetch: FetchPolicy::default(),
        }
    }
}

/// A pipeline that is a module of TypeScript or JavaScript, with all modules that it imports.
#[derive(Clone, Debug)]
pub struct Script {
    name: String,
    job: Name,
    graph: Graph,
}

impl Script {
    /// Whether a file is one, by its name.
    #[must_use]
    pub fn is_one(path: &Path) -> bool {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("ts" | "js" | "mts" | "mjs"))
    }

    /// Reads a pipeline and all that it imports, and takes the types out. Nothing of it is run.
    ///
    /// # Errors
    /// What is wrong with the first file that is not valid: its syntax, an import, no `pipeline` among its exports.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Invalid> {
        let path = path.as_ref();
        let graph = Graph::read(path)?;
        let stem = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        let allowed = |c: char| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
                c
            } else {
                '-'
            }
        };
        let job: String = stem.chars().map(allowed).take(50).collect();
        let job = Name::new(job.trim_start_matches(['-', '_'])).or_else(|_| Name::new("pipeline"));
        Ok(Self {
            name: path.display().to_string(),
            job: job.map_err(|error| Invalid::file(&path.display().to_string(), error.to_string(), ""))?,
            graph,
        })
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells its code from another one, that of all its files, in hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        let root = self.graph.entry.parent().unwrap_or(Path::new("/"));
        for (path, module) in &self.graph.modules {
            let path = path.strip_prefix(root).unwrap_or(path).as_os_str();
            for part in [path.as_encoded_bytes(), module.code.as_bytes()] {
                digest.update((part.len() as u64).to_be_bytes());
                digest.update(part);
            }
        }
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// How many files it is made of.
    #[must_use]
    pub fn modules(&self) -> usize {
        self.graph.modules.len()
    }

    /// Runs it to its end and removes everything it made, however it ends, as [`orchestra_pipelines::run()`] does.
    ///
    /// What goes wrong is in the report: the last step is the script itself.
    pub async fn run(&self, driver: SharedDriver, mut options: RunOptions, script: ScriptOptions) -> RunReport {
        let info = driver.info().clone();
        let only = options.job.take().map(|job| job.to_string());
        let shared = options.clone();
        let program = Program::new(self.name.clone(), self.job.clone());
        run_program(&program, driver, options, async |session| {
            let (asks, asked) = mpsc::unbounded_channel();
            let (says, said) = mpsc::channel(WAITING);
            let (tell, told) = mpsc::channel(WAITING);
            let context = json!({
                "runId": session.job().id(), "file": self.name, "job": self.job,
                "driver": info.driver, "engineVersion": info.engine_version, "platform": info.platform.to_string(),
            });
            let settings = Settings {
                memory: script.memory,
                time: script.time,
                context: context.to_string(),
                only: only.clone(),
            };
            // When this future is dropped, the thread ends too.
            let stop = CancellationToken::new();
            let _stops = stop.clone().drop_guard();
            let (until, computes) = watch::channel(None);
            let channels = Channels {
                asks,
                says,
                told,
                until,
            };
            let finished = match engine::start(self.graph.clone(), settings, channels, stop) {
                Ok(finished) => finished,
                Err(error) => return Ended::with(Status::Errored, format!("start the script's thread: {error}"), None),
            };
            let host = Host::new(session, &shared, tell, script.fetch.clone());
            let finish = host.serve(asked, said, finished, computes).await;
            ended(finish, &script)
        })
        .await
    }
}

fn ended(finish: Finish, script: &ScriptOptions) -> Ended {
    match finish {
        Finish::Well => Ended::well(),
        Finish::Cancelled => Ended::with(Status::Aborted, "the run was cancelled", None),
        Finish::TooLong => Ended::with(
            Status::Failed,
            format!("the script computed for longer than its limit of {:?}", script.time),
            Some("look for a loop that does not end, or raise `time` under [script] in orchestra.toml".to_owned()),
        ),
        Finish::Stuck => Ended::with(
            Status::Failed,
            "the script waits for something that can't happen any more: no task, timer or request is under way",
            Some("look for a promise that is never resolved".to_owned()),
        ),
        Finish::Broken(error) => Ended::with(Status::Errored, error, None),
        Finish::Threw(thrown) => {
            let status = match thrown.status.as_deref() {
                Some("errored") => Status::Errored,
                Some("aborted") => Status::Aborted,
                _ => Status::Failed,
            };
            // Where there is no memory for an error, QuickJS throws nothing at all.
            let text = match thrown.text.as_str() {
                "thrown: null" => "InternalError: out of memory, or `null` was thrown".to_owned(),
                _ => thrown.text,
            };
            let memory = text.starts_with("InternalError: out of memory").then(|| {
                format!(
                    "the script may have {} bytes: hold less at once, or raise `memory` under [script] in orchestra.toml",
                    script.memory
                )
            });
            Ended::with(status, text, thrown.hint.or(memory))
        }
    }
}
