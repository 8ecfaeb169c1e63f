//! What is known only when a step runs: variables that are read from files, and steps whose text needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use orchestra::{Error, ErrorKind, Labels, Name, Result, VolumePath};
use orchestra_secrets::{Reference, SecretValue};

use super::event::RunEventKind;
use super::job::{JobRun, locked};
use super::tree::Scope;
use super::{Status, StepReport};
use crate::values::Fetched;
use crate::yaml::Value;
use crate::yaml::across::MAX_STEPS;
use crate::yaml::late::value_of;
use crate::yaml::variables::{has_locals, quoted};
use crate::{AcrossPlan, LatePlan, LoadVarPlan, Step, Variables};

/// A task's file, or a variable's: what a person writes is far smaller.
const MAX_FILE: u64 = 1 << 20;

/// Variables that `load_var` steps have set, and those around them.
#[derive(Default)]
pub(super) struct Locals {
    own: Mutex<BTreeMap<String, Value>>,
    outer: Option<Arc<Self>>,
}

impl Locals {
    /// Variables of a part of a plan, which the rest does not see.
    pub(super) fn within(outer: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self {
            own: Mutex::default(),
            outer: Some(outer.clone()),
        })
    }

    fn set(&self, name: &str, value: Value) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.insert(name.to_owned(), value);
    }

    /// A value that stands in the pipeline itself: one that refers to another variable is put in before the step is read.
    pub(super) fn place(&self, name: &str, value: &Value) {
        if !value.scalars().into_iter().any(has_locals) {
            self.set(name, quoted(value.clone()));
        }
    }

    fn all(&self) -> Variables {
        let mut all = self.outer.as_ref().map_or_else(Variables::new, |outer| outer.all());
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.iter().for_each(|(name, value)| all.set_value(name, value.clone()));
        all
    }
}

/// A file that was not read in time.
fn late(limit: std::time::Duration) -> Error {
    Error::new(ErrorKind::TaskFailed, format!("the file was not read within {limit:?}"))
}

impl JobRun<'_> {
    /// A file of an artifact, as text.
    async fn text_of(&self, artifact: &Name, path: &VolumePath, scope: &Scope) -> Result<String> {
        let volume = scope.artifacts.volume(artifact)?;
        let volumes = self.volumes(&[(volume, Labels::new())]).await?;
        let volume = volumes
            .first()
            .ok_or_else(|| Error::invalid(format!("the artifact `{artifact}` has no volume")))?;
        let read = self.watch(self.job.read_file(volume, path, MAX_FILE));
        let bytes = tokio::select! {
            biased;
            () = scope.cancel.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "the run was cancelled")),
            bytes = read => bytes.map_err(|error| error.with("file", format!("{artifact}/{path}")))?,
        };
        String::from_utf8(bytes).map_err(|_| Error::invalid(format!("{artifact}/{path} is not UTF-8 text")))
    }

    /// What a `load_var` reads. In a run that is carried on that is what it read before: the file may have changed since.
    async fn loaded_text(&self, step: &Step, plan: &LoadVarPlan, scope: &Scope) -> Result<String> {
        let volume = self.job.id().volume(&scope.artifacts.volume(&plan.artifact)?);
        let (deed, before) = self
            .deeds
            .begin(volume.as_str(), &format!("load_var {}{}", step.name, scope.tries));
        let text = match before {
            Some(text) => text,
            None => self.text_of(&plan.artifact, &plan.file, scope).await?,
        };
        if plan.hidden {
            self.hide(&text)?;
        } else {
            self.did(deed, text.clone()).await;
        }
        Ok(text)
    }

    /// Runs a `load_var` step.
    pub(super) async fn load_var(&self, step: &Step, plan: &LoadVarPlan, scope: &Scope) -> StepReport {
        let mut report = StepReport::new(&self.plan.name, &step.name, step.kind(), Status::Succeeded);
        let name = format!("{}/{}", plan.artifact, plan.file);
        let load = async || {
            let text = self.loaded_text(step, plan, scope).await?;
            let value = value_of(&name, text, plan.format).map_err(Error::invalid)?;
            if plan.hidden {
                for scalar in value.scalars() {
                    self.hide(scalar)?;
                }
            }
            scope.variables.set(&plan.variable, value);
            Ok(())
        };
        for attempt in 1..=step.attempts {
            let loaded = match step.timeout {
                Some(limit) => tokio::time::timeout(limit, load())
                    .await
                    .unwrap_or_else(|_| Err(late(limit))),
                None => load().await,
            };
            report.attempt = Some(attempt);
            match loaded {
                Ok(()) => {
                    report.status = Status::Succeeded;
                    (report.error, report.hint) = (None, None);
                    break;
                }
                Err(error) => super::step::failed(&mut report, &error),
            }
            if scope.cancel.is_cancelled() {
                break;
            }
        }
        report
    }

    /// Redacts a text from now on.
    fn hide(&self, text: &str) -> Result<()> {
        let Some(secrets) = &self.secrets else {
            return Err(
                Error::invalid("`reveal: false` needs the layer of secrets, which this run is without")
                    .with_hint("remove it, or run with secrets"),
            );
        };
        secrets.mask_made(&SecretValue::new(text.trim()))
    }

    /// Runs a step for each of the values that are known now. Its steps are as those that are tried again: their caches are in
    /// use until all have ended.
    pub(super) async fn across(&self, plan: &AcrossPlan, scope: &Scope) -> Status {
        let mut planned = Vec::new();
        plan.step().collect(&mut planned);
        let status = match self.put_out(plan, &planned, scope) {
            Ok(step) => {
                let within = Scope {
                    tried_again: true,
                    ..scope.clone()
                };
                self.tree(&step, within).await
            }
            Err(error) => match planned.first() {
                Some(first) => self.refuse(first, &error, scope).await,
                None => Status::Failed,
            },
        };
        if !scope.tried_again {
            let mut pending = locked(&self.pending);
            planned.iter().for_each(|step| _ = pending.remove(&step.name));
        }
        status
    }

    fn put_out(&self, plan: &AcrossPlan, planned: &[&Step], scope: &Scope) -> Result<Step> {
        let step = plan.put_out(&scope.variables.all()).map_err(Error::invalid)?;
        let mut leaves = Vec::new();
        step.collect(&mut leaves);
        let mut further = locked(&self.further);
        let is_known = |leaf: &&Step| {
            let planned = planned.iter().map(|planned| &planned.name);
            let known = further.iter().map(|(name, _)| name);
            planned.chain(known).all(|name| *name != leaf.name)
        };
        let new: Vec<_> = leaves
            .into_iter()
            .filter(is_known)
            .map(|leaf| (leaf.name.clone(), leaf.kind()))
            .collect();
        if further.len() + new.len() > MAX_STEPS {
            let message = format!("`across` makes more than {MAX_STEPS} steps of the job");
            return Err(Error::invalid(message).with_hint("load fewer values"));
        }
        further.extend(new);
        drop(further);
        Ok(step)
    }

    /// Tells why a step can't be run.
    async fn refuse(&self, step: &Step, error: &Error, scope: &Scope) -> Status {
        let (job, name, kind) = (self.plan.name.clone(), step.name.clone(), step.kind());
        self.teller
            .tell(RunEventKind::StepStarted { job, step: name, kind })
            .await;
        let mut report = self.not_run(step, error);
        self.redact(&mut report);
        self.ended(step, report, scope).await
    }

    /// The step as a whole.
    pub(super) async fn whole_step(&self, step: &Step, late: &LatePlan, scope: &Scope) -> Result<Step> {
        let known = Fetched::default().with(self.known);
        let mut placed = late.place(&scope.variables.all(), &known).map_err(Error::invalid)?;
        if let Some((artifact, path)) = placed.file.clone() {
            let text = self.text_of(&artifact, &path, scope).await?;
            placed
                .take_file(format!("{artifact}/{path}"), text)
                .map_err(Error::invalid)?;
        }
        let fetched = self.fetch(std::mem::take(&mut placed.wanted)).await?;
        let whole = placed.read(&fetched).map_err(Error::invalid)?;
        Ok(Step {
            name: step.name.clone(),
            volumes: step.volumes.clone(),
            base: step.base.clone(),
            ..whole
        })
    }

    /// The secrets of these references, redacted from now on. Those that there are not are told where they are used.
    async fn fetch(&self, wanted: BTreeSet<Reference>) -> Result<Fetched> {
        let missing = wanted
            .into_iter()
            .filter(|reference| !self.known.iter().any(|(known, _)| known == reference));
        let fetched = Fetched::for_job(self.secrets.as_ref(), missing.collect()).await;
        Ok(fetched.with(self.known))
    }
}
