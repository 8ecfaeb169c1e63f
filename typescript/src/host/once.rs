//! What a run that is carried on does not do again: what was executed in sandboxes, and what was written to volumes or read
//! from them. A volume may have been changed since by a step that is not run again.

use std::future::Future;

use orchestra_pipelines::Status;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Answer, Failure, Host, Kind, Reason};

/// An answer as it is noted.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Noted {
    Done(Value),
    Failed(Reason),
}

impl Noted {
    /// What is final: a program that failed, a file that there is not. A failure of the engine's is tried again.
    fn of(answer: &Answer) -> Option<Self> {
        match answer {
            Ok(value) => Some(Self::Done(value.clone())),
            Err(Failure(reason)) => {
                let ended = reason.kind == Kind::Task && reason.status == Some(Status::Failed);
                ended.then(|| Self::Failed((**reason).clone()))
            }
        }
    }
}

impl Host<'_, '_> {
    /// Does something to a container or volume, or says what was answered when an earlier process of this run did it.
    pub(super) async fn once(
        &self,
        subject: &str,
        what: &str,
        args: &Value,
        work: impl Future<Output = Answer>,
    ) -> (Answer, bool) {
        if !self.session.is_noted() {
            return (work.await, false);
        }
        let digest = Sha256::digest(args.to_string());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let (deed, before) = self.session.deed(subject, &format!("{what} {digest}"));
        if let Some(noted) = before.and_then(|text| serde_json::from_str(&text).ok()) {
            let answer = match noted {
                Noted::Done(value) => Ok(value),
                Noted::Failed(reason) => Err(reason.into()),
            };
            return (answer, true);
        }
        let answer = work.await;
        if let Some(text) = Noted::of(&answer).and_then(|noted| serde_json::to_string(&noted).ok()) {
            self.session.did(deed, text).await;
        }
        (answer, false)
    }
}
