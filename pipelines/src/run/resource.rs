//! `get` and `put`: programs of resource types, and what they say.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use orchestra::{ContainerPath, Error, ErrorKind, ExitStatus, Labels, Mount, Name, Result, Task, stream};
use orchestra_secrets::{Reference, SecretKey, SecretValue};
use serde::Deserialize;
use serde_json::{Value, json};

use super::cache::hashed;
use super::job::{JobRun, got};
use super::output::Tail;
use super::step::failed;
use super::tree::Scope;
use super::{Metadata, Status, StepReport};
use crate::resource::Json;
use crate::{GetPlan, PutPlan, Resource, Step, Version};

/// Where a `get` finds the directory that it fills.
const DESTINATION: &str = "/tmp/build/get";

/// How many times longer a version may be than any is.
const MAX_OUTPUT: u64 = 1 << 20;

/// The version of each resource in a run: who asks first finds it, and a `put` replaces it.
#[derive(Default)]
pub(super) struct Versions(Mutex<HashMap<Name, Slot>>);

type Slot = Arc<tokio::sync::Mutex<Option<Version>>>;

impl Versions {
    /// Those that an earlier process of the run has found.
    pub(super) fn known(versions: HashMap<Name, Version>) -> Self {
        let slot = |(name, version)| (name, Arc::new(tokio::sync::Mutex::new(Some(version))));
        Self(Mutex::new(versions.into_iter().map(slot).collect()))
    }

    fn of(&self, resource: &Name) -> Slot {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(resource.clone()).or_default().clone()
    }
}

/// What `in` and `out` write.
#[derive(Deserialize)]
struct Made {
    version: Version,
    #[serde(default)]
    metadata: Option<Vec<Metadata>>,
}

/// One program's run.
struct Call<'c> {
    step: &'c Step,
    resource: &'c Resource,
    scope: &'c Scope,
    tail: &'c Tail,
    /// What its container is called.
    name: Name,
    program: &'static str,
    arguments: Vec<String>,
    input: Value,
    mounts: Vec<Mount>,
}

/// A step with a resource.
#[derive(Clone, Copy)]
pub(super) enum With<'p> {
    Get(&'p GetPlan),
    Put(&'p PutPlan),
}

impl JobRun<'_> {
    /// Runs a `get` or `put` step, as often as it says, each time under another name.
    pub(super) async fn resource(&self, step: &Step, with: With<'_>, name: &Name, scope: &Scope) -> StepReport {
        let tail = Tail::new();
        let mut report = StepReport::new(&self.plan.name, &step.name, step.kind(), Status::Errored);
        for attempt in 1..=step.attempts {
            let name = match attempt {
                1 => Ok(name.clone()),
                _ => Name::new(format!("{name}.{attempt}")),
            };
            report.attempt = Some(attempt);
            let made = match (name, with) {
                (Ok(name), With::Get(plan)) => self.get(step, plan, &name, scope, &tail).await,
                (Ok(name), With::Put(plan)) => self.put(step, plan, &name, scope, &tail).await,
                (Err(error), _) => Err(error),
            };
            match made {
                Ok(made) => {
                    report.status = Status::Succeeded;
                    (report.error, report.hint) = (None, None);
                    report.version = Some(made.version);
                    report.metadata = made.metadata.unwrap_or_default();
                    return report;
                }
                Err(error) => failed(&mut report, &error),
            }
            if scope.cancel.is_cancelled() || report.status == Status::Aborted {
                break;
            }
        }
        report.log_tail = tail.lines();
        report
    }

    async fn get(&self, step: &Step, plan: &GetPlan, name: &Name, scope: &Scope, tail: &Tail) -> Result<Made> {
        let call = |program| self.call(step, &plan.resource, scope, tail, name, program);
        let pinned = plan.version.as_ref().or(plan.resource.version.as_ref());
        let version = match pinned {
            Some(version) => version.clone(),
            None => {
                let slot = self.versions.of(&plan.resource.name);
                let mut slot = slot.lock().await;
                match &*slot {
                    Some(version) => version.clone(),
                    None => {
                        let version = self.newest(call("check")?).await?;
                        self.note_version(&plan.resource.name, &version).await;
                        slot.insert(version).clone()
                    }
                }
            }
        };
        let volume = got(step, name, &plan.artifact)?;
        self.fetch_version(call("in")?, version, &plan.params, &plan.artifact, volume)
            .await
    }

    async fn put(&self, step: &Step, plan: &PutPlan, name: &Name, scope: &Scope, tail: &Tail) -> Result<Made> {
        let call = |program| self.call(step, &plan.resource, scope, tail, name, program);
        let mut out = call("out")?;
        let seen: Vec<(Name, Name)> = scope
            .artifacts
            .all()
            .into_iter()
            .filter(|(name, _)| plan.sees(name))
            .collect();
        let mut places = Vec::new();
        for (artifact, volume) in seen {
            places.push((volume, Resource::directory_of(&artifact)?));
        }
        if places.is_empty() {
            // The directory is there though nothing is in it.
            let nothing = hashed("put", format!("{name}/nothing"))?;
            places.push((nothing, ContainerPath::new(Resource::DIRECTORY)?));
        }
        let names: Vec<(Name, Labels)> = places
            .iter()
            .map(|(volume, _)| (volume.clone(), Labels::new()))
            .collect();
        let volumes = self.volumes(&names).await?;
        out.mounts
            .extend(volumes.into_iter().zip(places).map(|(volume, (_, target))| Mount {
                volume,
                target,
                read_only: false,
            }));
        out.arguments = vec![Resource::DIRECTORY.to_owned()];
        let source = self.json(&plan.resource.source).await?;
        out.input = json!({ "source": source, "params": self.params(&plan.params).await? });
        let made: Made = self.answer(out).await?;
        *self.versions.of(&plan.resource.name).lock().await = Some(made.version.clone());
        self.note_version(&plan.resource.name, &made.version).await;
        if plan.no_get {
            return Ok(made);
        }
        let volume = hashed("put", name.as_str())?;
        let fetched = self
            .fetch_version(call("in")?, made.version, &plan.get_params, &plan.artifact, volume)
            .await?;
        let metadata = made.metadata.filter(|metadata| !metadata.is_empty());
        Ok(Made {
            metadata: metadata.or(fetched.metadata),
            version: fetched.version,
        })
    }

    /// Another process that carries on has the same version.
    async fn note_version(&self, resource: &Name, version: &Version) {
        // A file that is kept holds no secret: another process looks for the version anew.
        let is_clean = |text: &String| self.redacted(text.clone()) == *text;
        let version = Some(version).filter(|version| version.values().all(is_clean));
        if let Some(state) = &self.options.state
            && let Err(error) = state.take(resource, version).await
        {
            self.warn(error.to_string()).await;
        }
    }

    fn call<'c>(
        &self,
        step: &'c Step,
        resource: &'c Resource,
        scope: &'c Scope,
        tail: &'c Tail,
        name: &Name,
        program: &'static str,
    ) -> Result<Call<'c>> {
        let name = Name::new(format!("{name}.{program}"))
            .map_err(|error| error.with_hint("give the resource, or the step, a shorter name"))?;
        self.alias(&name, &step.name);
        Ok(Call {
            step,
            resource,
            scope,
            tail,
            name,
            program,
            arguments: Vec::new(),
            input: Value::Null,
            mounts: Vec::new(),
        })
    }

    /// The newest version there is.
    async fn newest(&self, mut check: Call<'_>) -> Result<Version> {
        check.input = json!({ "source": self.json(&check.resource.source).await? });
        let resource = check.resource;
        let versions: Vec<Version> = self.answer(check).await?;
        versions.into_iter().next_back().ok_or_else(|| {
            Error::new(
                ErrorKind::TaskFailed,
                format!("the resource `{}` has no version", resource.name),
            )
            .with_hint("check its `source`, or put one first")
        })
    }

    /// Fetches a version into a volume, which is the artifact from then on.
    async fn fetch_version(
        &self,
        mut call: Call<'_>,
        version: Version,
        params: &Json,
        artifact: &Name,
        volume: Name,
    ) -> Result<Made> {
        let volumes = self.volumes(&[(volume.clone(), Labels::new())]).await?;
        for volume in volumes {
            call.mounts.push(Mount {
                volume,
                target: ContainerPath::new(DESTINATION)?,
                read_only: false,
            });
        }
        call.arguments = vec![DESTINATION.to_owned()];
        let source = self.json(&call.resource.source).await?;
        call.input = json!({ "source": source, "version": version, "params": self.params(params).await? });
        let artifacts = call.scope.artifacts.clone();
        let made = self.answer(call).await?;
        artifacts.make(artifact, &volume);
        Ok(made)
    }

    /// Runs a program, and reads what it wrote.
    async fn answer<T: for<'d> Deserialize<'d>>(&self, call: Call<'_>) -> Result<T> {
        let Call {
            step,
            resource,
            scope,
            tail,
            name,
            program,
            arguments,
            input,
            mounts,
        } = call;
        let input = serde_json::to_vec(&input)
            .map_err(|error| Error::invalid(format!("the source of `{}` is no JSON: {error}", resource.name)))?;
        let path = format!("/opt/resource/{program}");
        let mut task = Task::with_image(name, resource.image.reference.clone())
            .command(std::iter::once(path).chain(arguments))
            .privileged(resource.privileged)
            .pull(self.options.pull)
            .stdin(stream::once(input))
            .output(self.errors_of(step, tail));
        task = self.registry(task, &resource.image);
        task.spec.env.0.extend(self.build_metadata());
        if let Some(timeout) = step.timeout {
            task = task.timeout(timeout);
        }
        task.spec.mounts = mounts;
        let job = self.job.scope(&scope.cancel);
        let result = self.watch(job.run(task)).await?;
        let told = || format!("`{program}` of the resource `{}`", resource.name);
        match result.exit {
            ExitStatus::Cancelled => return Err(Error::new(ErrorKind::Cancelled, "it was cancelled")),
            exit if !exit.success() => {
                return Err(Error::new(ErrorKind::TaskFailed, format!("{}: {exit}", told())));
            }
            _ => {}
        }
        if result.stdout.total() > MAX_OUTPUT || result.stdout.cut() > 0 {
            let message = format!("{} wrote more than a version: {:?}", told(), result.stdout);
            return Err(Error::new(ErrorKind::TaskFailed, message));
        }
        serde_json::from_slice(&result.stdout.to_bytes()).map_err(|error| {
            let message = format!("{} did not write what the protocol asks for: {error}", told());
            Error::new(ErrorKind::TaskFailed, message)
                .with_hint("its answer goes to standard output, as JSON, and its log to standard error")
        })
    }

    /// What Concourse tells the programs of a resource type of the build. There is no page of it that they could name.
    fn build_metadata(&self) -> [(String, String); 6] {
        let run = self.job.id().as_str();
        [
            ("BUILD_ID", run),
            ("BUILD_NAME", run),
            ("BUILD_JOB_NAME", self.plan.name.as_str()),
            ("BUILD_PIPELINE_NAME", self.pipeline),
            ("BUILD_TEAM_NAME", "main"),
            ("ATC_EXTERNAL_URL", ""),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
    }

    async fn params(&self, params: &Json) -> Result<Value> {
        let params = self.json(params).await?;
        Ok(if params.is_null() { json!({}) } else { params })
    }

    /// Configuration with its secrets in their places.
    async fn json(&self, json: &Json) -> Result<Value> {
        let mut wanted = BTreeSet::new();
        references(&json.0, &mut wanted)?;
        let mut found = HashMap::new();
        for key in wanted {
            let Some(secrets) = &self.secrets else {
                return Err(Error::invalid(format!(
                    "`secret:{key}` has no value: this run is without secrets"
                )));
            };
            let value = secrets.resolve(&Reference::of(key.clone())).await?;
            found.insert(format!("secret:{key}"), value);
        }
        resolved(&json.0, &found)
    }
}

fn references(value: &Value, found: &mut BTreeSet<SecretKey>) -> Result<()> {
    match value {
        Value::String(text) => found.extend(SecretKey::of_reference(text)?),
        Value::Array(items) => items.iter().try_for_each(|item| references(item, found))?,
        Value::Object(entries) => entries.values().try_for_each(|value| references(value, found))?,
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

fn resolved(value: &Value, found: &HashMap<String, SecretValue>) -> Result<Value> {
    Ok(match value {
        Value::String(text) => match found.get(text) {
            Some(secret) => Value::String(secret.text(text)?.to_owned()),
            None => value.clone(),
        },
        Value::Array(items) => Value::Array(items.iter().map(|item| resolved(item, found)).collect::<Result<_>>()?),
        Value::Object(entries) => {
            let entry = |(key, value): (&String, &Value)| Ok((key.clone(), resolved(value, found)?));
            Value::Object(entries.iter().map(entry).collect::<Result<_>>()?)
        }
        other => other.clone(),
    })
}
