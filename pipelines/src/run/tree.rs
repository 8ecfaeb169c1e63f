//! The tree of a job's steps: order, parallelism, tries, and what follows an end. The rules are Concourse's.
//!
//! | | succeeds | fails, errors | is aborted |
//! | --- | --- | --- | --- |
//! | `do` | if all do | as the first that does | likewise |
//! | `in_parallel` | if all do | errors if one does, else fails | if it is cancelled from outside |
//! | `try` | if its step is not aborted | never | likewise |
//! | `attempts` | if one of them does | as the last one | at once, with no further one |
//! | `timeout` | | what takes longer has failed | |
//!
//! An `across` is an `in_parallel` of a step for each value.
//!
//! A hook after an abort runs outside of what was cancelled: else it could not run.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use tokio_util::sync::CancellationToken;

use super::Status;
use super::artifacts::Artifacts;
use super::job::JobRun;
use super::late::Locals;
use crate::{Action, Hooks, Parallel, Step};

/// What a step runs in.
#[derive(Clone)]
pub(super) struct Scope {
    /// Ends it.
    pub(super) cancel: CancellationToken,
    /// Tells that it was ended by the timeout of what holds it.
    pub(super) expired: CancellationToken,
    /// Which tries of what holds it these are, where it is not the first: `try2`.
    pub(super) tries: String,
    /// Whether it may be run again after its end.
    pub(super) tried_again: bool,
    /// Whether it may fail.
    pub(super) tolerated: bool,
    /// What `load_var` steps have set.
    pub(super) variables: Arc<Locals>,
    /// What steps have made.
    pub(super) artifacts: Arc<Artifacts>,
}

impl Scope {
    /// For what has to run even though all else was cancelled.
    fn detached(&self) -> Self {
        Self {
            cancel: CancellationToken::new(),
            expired: CancellationToken::new(),
            ..self.clone()
        }
    }

    /// `artifacts` are those that there were before the first try.
    fn of_try(&self, number: u32, of: u32, artifacts: &Artifacts) -> Self {
        let tries = match (number, self.tries.as_str()) {
            (1, outer) => outer.to_owned(),
            (_, "") => format!("try{number}"),
            (_, outer) => format!("{outer}.try{number}"),
        };
        Self {
            cancel: self.cancel.child_token(),
            expired: self.expired.child_token(),
            tries,
            tried_again: self.tried_again || of > 1,
            tolerated: self.tolerated,
            variables: self.variables.clone(),
            artifacts: artifacts.within(),
        }
    }
}

impl JobRun<'_> {
    /// Runs the job's plan and what follows it.
    pub(super) async fn whole(&self, cancel: &CancellationToken) -> Status {
        let scope = Scope {
            cancel: cancel.clone(),
            expired: CancellationToken::new(),
            tries: String::new(),
            tried_again: false,
            tolerated: false,
            variables: Arc::default(),
            artifacts: Arc::default(),
        };
        let status = self.sequence(&self.plan.plan, &scope).await;
        self.hooks(&self.plan.hooks, status, &scope).await
    }

    pub(super) fn tree<'s>(&'s self, step: &'s Step, scope: Scope) -> BoxFuture<'s, Status> {
        Box::pin(async move {
            let status = match &step.action {
                Action::Do(_) | Action::InParallel(_) | Action::Try(_) | Action::Across(_) => {
                    self.tries(step, &scope).await
                }
                // The core has the tries and the timeout of a single task.
                _ => self.apart(step, &scope).await,
            };
            self.hooks(&step.hooks, status, &scope).await
        })
    }

    /// A step that holds no others, or none yet. Its state is large, and would be on the stack once for each step that holds others: a file
    /// may have thirty of them within each other, and a thread that runs futures has 2 MiB.
    fn apart<'s>(&'s self, step: &'s Step, scope: &'s Scope) -> BoxFuture<'s, Status> {
        match &step.action {
            Action::Across(plan) => Box::pin(self.across(plan, scope)),
            _ => Box::pin(self.leaf(step, scope)),
        }
    }

    async fn tries(&self, step: &Step, scope: &Scope) -> Status {
        let mut status = Status::Succeeded;
        let before = scope.artifacts.within();
        for number in 1..=step.attempts {
            let of_try = scope.of_try(number, step.attempts, &before);
            let artifacts = of_try.artifacts.clone();
            status = self.once(step, of_try).await;
            scope.artifacts.join(&artifacts);
            if scope.cancel.is_cancelled() || matches!(status, Status::Succeeded | Status::Aborted) {
                break;
            }
        }
        status
    }

    async fn once(&self, step: &Step, scope: Scope) -> Status {
        let work = async {
            match &step.action {
                Action::Do(steps) => self.sequence(steps, &scope).await,
                Action::InParallel(parallel) => self.parallel(parallel, &scope).await,
                Action::Try(tried) => {
                    let within = Scope {
                        tolerated: true,
                        ..scope.clone()
                    };
                    match self.tree(tried, within).await {
                        Status::Aborted => Status::Aborted,
                        _ => Status::Succeeded,
                    }
                }
                _ => self.apart(step, &scope).await,
            }
        };
        let Some(timeout) = step.timeout else { return work.await };
        let mut work = std::pin::pin!(work);
        if let Ok(status) = tokio::time::timeout(timeout, &mut work).await {
            return status;
        }
        let outside = scope.cancel.is_cancelled();
        if !outside {
            scope.expired.cancel();
        }
        scope.cancel.cancel();
        let status = work.await;
        if outside {
            return status;
        }
        let message = format!("`{}` did not end within its timeout of {timeout:?}", step.kind());
        self.warn(message).await;
        Status::Failed
    }

    async fn sequence(&self, steps: &[Step], scope: &Scope) -> Status {
        for step in steps {
            if scope.cancel.is_cancelled() {
                return Status::Aborted;
            }
            let status = self.tree(step, scope.clone()).await;
            if status != Status::Succeeded {
                return status;
            }
        }
        Status::Succeeded
    }

    async fn parallel(&self, parallel: &Parallel, scope: &Scope) -> Status {
        let within = Scope {
            cancel: scope.cancel.child_token(),
            ..scope.clone()
        };
        let parts: Vec<Arc<Artifacts>> = parallel.steps.iter().map(|_| scope.artifacts.within()).collect();
        let begin = |(at, (step, artifacts)): (usize, (_, &Arc<Artifacts>))| {
            let mut scope = within.clone();
            scope.artifacts = artifacts.clone();
            if let Some(across) = &parallel.across {
                scope.variables = Locals::within(&scope.variables);
                let value = across.values.get(at);
                value
                    .into_iter()
                    .for_each(|value| scope.variables.place(&across.name, value));
            }
            let stop = within.cancel.clone();
            async move {
                if stop.is_cancelled() {
                    return Status::Aborted;
                }
                let status = self.tree(step, scope).await;
                if parallel.fail_fast && status != Status::Succeeded {
                    stop.cancel();
                }
                status
            }
        };
        let running: Vec<_> = parallel.steps.iter().zip(&parts).enumerate().map(begin).collect();
        let ended: Vec<Status> = stream::iter(running).buffer_unordered(parallel.limit).collect().await;
        parts.iter().for_each(|part| scope.artifacts.join(part));
        // What `fail_fast` has aborted is not why it ended.
        let order = match scope.cancel.is_cancelled() {
            true => [Status::Aborted, Status::Errored, Status::Failed],
            false => [Status::Errored, Status::Failed, Status::Aborted],
        };
        let worst = order.into_iter().find(|status| ended.contains(status));
        worst.unwrap_or(Status::Succeeded)
    }

    async fn hooks(&self, hooks: &Hooks, ended: Status, scope: &Scope) -> Status {
        let mut status = ended;
        if let (Status::Succeeded, Some(hook)) = (status, &hooks.on_success) {
            status = self.tree(hook, scope.clone()).await;
        }
        // Within what was ended by its timeout there is no time left for a hook; what holds it has hooks of its own.
        let expired = scope.expired.is_cancelled();
        if let (Status::Failed, Some(hook)) = (status, hooks.on_failure.as_ref().filter(|_| !expired)) {
            status = and(status, self.tree(hook, scope.clone()).await);
        }
        if let (Status::Aborted, Some(hook)) = (status, hooks.on_abort.as_ref().filter(|_| !expired)) {
            self.tree(hook, scope.detached()).await;
        }
        if let (Status::Errored, Some(hook)) = (status, hooks.on_error.as_ref().filter(|_| !expired)) {
            self.tree(hook, scope.clone()).await;
        }
        if let Some(hook) = &hooks.ensure {
            // What was cancelled before does not end it; a cancellation while it runs does, as in Concourse.
            let scope = match scope.cancel.is_cancelled() {
                true => scope.detached(),
                false => scope.clone(),
            };
            status = and(status, self.tree(hook, scope).await);
        }
        status
    }
}

/// What a step and its hook come to: an error of the hook is one of the whole, and nothing is better than its step.
fn and(step: Status, hook: Status) -> Status {
    match (step, hook) {
        (Status::Succeeded, hook) | (Status::Failed, hook @ (Status::Errored | Status::Aborted)) => hook,
        (step, _) => step,
    }
}
