//! A run that is carried on: what its earlier process has done, and what this one notes for another.

use orchestra::{Name, Result};

use super::deeds::{Deed, Deeds, MAX_ANSWER};
use super::job::{JobRun, got};
use super::step::in_place;
use super::tree::Scope;
use super::{Status, StepReport};
use crate::{Action, Artifact, Step};

impl JobRun<'_> {
    /// What an earlier process of this run has done, as far as the engine no longer knows it.
    pub(super) async fn recall(&mut self) -> Result<()> {
        let Some(state) = &self.options.state else {
            return Ok(());
        };
        let mut recorded = state.steps(&self.plan.name).await?;
        if !recorded.is_empty() {
            let left = self.driver.list(Some(self.job.id())).await?;
            recorded.left = left.into_iter().map(|resource| resource.id).collect();
        }
        self.recorded = Some(recorded);
        self.deeds = Deeds::recall(Some(state), &self.driver, self.job.id()).await?;
        Ok(())
    }

    /// The report of a step that an earlier process has run, whose container is gone.
    pub(super) fn ended_before(&self, step: &Step, name: &Name, scope: &Scope) -> Option<StepReport> {
        let recorded = self.recorded.as_ref()?;
        let prefix = format!("orchestra.{}.", self.job.id());
        let is_its = |id: &str| {
            let own = id.strip_prefix(&prefix).and_then(|rest| rest.split_once('.'));
            own.is_some_and(|(_, own)| {
                let program = own.strip_prefix(name.as_str());
                program.is_some_and(|rest| ["", ".check", ".in", ".out"].contains(&rest))
            })
        };
        let report = recorded.ended(&step.name, name, step.kind(), is_its)?;
        // The programs of a resource are run under another name in each attempt.
        let tried = report.attempt.filter(|attempt| *attempt > 1);
        let tried = tried.map_or_else(|| Ok(name.clone()), |attempt| Name::new(format!("{name}.{attempt}")));
        // What a step has made has to be there: who has removed all has ended the run.
        let made: Vec<(Name, Name)> = match &step.action {
            Action::Task(plan) => {
                let made = |output: &Artifact| {
                    let there = in_place(&plan.inputs, output, scope);
                    (
                        output.name.clone(),
                        there.unwrap_or_else(|| step.volume_of(&output.name)),
                    )
                };
                plan.outputs.iter().map(made).collect()
            }
            Action::Get(plan) => vec![(plan.artifact.clone(), got(step, &tried.ok()?, &plan.artifact).ok()?)],
            Action::Put(plan) if plan.no_get => Vec::new(),
            Action::Put(plan) => {
                let volume = super::cache::hashed("put", tried.ok()?.as_str()).ok()?;
                vec![(plan.artifact.clone(), volume)]
            }
            // Whether the engine still has an image that was built is not known: a build has its own cache.
            _ => return None,
        };
        if recorded.left.is_empty() || !made.iter().all(|(_, volume)| self.is_left(volume)) {
            return None;
        }
        for (artifact, volume) in made {
            scope.artifacts.make(&artifact, &volume);
        }
        Some(report)
    }

    /// Notes what came of something, where that is no secret.
    pub(super) async fn did(&self, deed: Deed, answer: String) {
        if answer.len() > MAX_ANSWER || self.redacted(answer.clone()) != answer {
            return;
        }
        let message = match self.deeds.end(deed, answer).await {
            Ok(false) => return,
            Ok(true) => "what this run has done is too much to note all of it".to_owned(),
            Err(error) => error.to_string(),
        };
        self.warn(format!("{message}; if it is carried on, some of it is done again"))
            .await;
    }

    /// Whether an earlier process of the run has left this volume.
    pub(super) fn is_left(&self, volume: &Name) -> bool {
        let id = self.job.id().volume(volume);
        let left = self.recorded.as_ref().map(|recorded| &recorded.left);
        left.is_some_and(|left| left.contains(id.as_str()))
    }

    /// Notes that a step has succeeded.
    pub(super) async fn remember(&self, step: &Step, name: &Name, report: &StepReport) {
        // A program is told what its steps wrote, which only the engine knows.
        let Some(state) = self.options.state.as_ref().filter(|_| self.recorded.is_some()) else {
            return;
        };
        if report.status == Status::Succeeded
            && !matches!(step.action, Action::LoadVar(_))
            && let Err(error) = state.finish(&self.plan.name, name, report).await
        {
            let message = format!("{error}; this run can be carried on with only as far as its containers are there");
            self.warn(message).await;
        }
    }
}
