//! Resources: what a pipeline fetches from outside and what it makes there, by programs in images of their own.
//!
//! The programs speak [Concourse's protocol](https://concourse-ci.org/implementing-resource-types.html): `check`, `in` and
//! `out` in `/opt/resource`, with JSON on standard input and output; what they write to standard error is their log.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use orchestra::{ContainerPath, Name};

use crate::TaskImage;

/// Which one of a resource's states: `{ ref: 61cbef }`.
pub type Version = BTreeMap<String, String>;

/// Configuration for a resource's programs. `Debug` shows nothing of it, as a secret may stand in it.
#[derive(Clone, Default)]
pub(crate) struct Json(pub(crate) serde_json::Value);

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_null() { "none" } else { "…" })
    }
}

/// Something outside that has versions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resource {
    /// Its name in the pipeline.
    pub name: Name,
    /// Its type's name.
    pub kind: String,
    /// The image that has the type's programs.
    pub image: TaskImage,
    /// Whether they run with all privileges.
    pub privileged: bool,
    /// The version that is fetched, where it is pinned; else the newest.
    pub version: Option<Version>,
    pub(crate) source: Json,
}

/// Fetches a version of a resource into an artifact.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GetPlan {
    /// The artifact that it makes.
    pub artifact: Name,
    /// Of what.
    pub resource: Arc<Resource>,
    /// The version, where it is pinned here.
    pub version: Option<Version>,
    /// The jobs that have to have succeeded with the version.
    pub passed: Vec<Name>,
    pub(crate) params: Json,
}

/// Makes a version of a resource, and fetches it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PutPlan {
    /// The artifact that it makes of the new version.
    pub artifact: Name,
    /// Of what.
    pub resource: Arc<Resource>,
    /// What it sees of the artifacts.
    pub inputs: PutInputs,
    /// Whether the new version is not fetched.
    pub no_get: bool,
    pub(crate) params: Json,
    pub(crate) get_params: Json,
}

/// Which artifacts a `put` sees.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PutInputs {
    /// All that were made before it.
    All,
    /// Those that its `params` name.
    Detect,
    /// These.
    These(Vec<Name>),
}

impl Resource {
    /// The directory that a `put` finds artifacts in.
    pub(crate) const DIRECTORY: &str = "/tmp/build/put";

    /// Where an artifact stands in a `put`.
    pub(crate) fn directory_of(artifact: &Name) -> orchestra::Result<ContainerPath> {
        ContainerPath::new(format!("{}/{artifact}", Self::DIRECTORY))
    }
}

impl PutPlan {
    /// Whether it sees this artifact.
    pub(crate) fn sees(&self, artifact: &Name) -> bool {
        match &self.inputs {
            PutInputs::All => true,
            PutInputs::These(names) => names.contains(artifact),
            PutInputs::Detect => mentions(&self.params.0, artifact),
        }
    }
}

/// Whether a text in it is a path in the artifact.
fn mentions(value: &serde_json::Value, artifact: &Name) -> bool {
    match value {
        serde_json::Value::String(text) => {
            let first = text.trim_start_matches("./").split('/').next();
            first == Some(artifact.as_str())
        }
        serde_json::Value::Array(items) => items.iter().any(|item| mentions(item, artifact)),
        serde_json::Value::Object(entries) => entries.values().any(|value| mentions(value, artifact)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_detects_the_artifacts_that_its_params_name() {
        let params =
            serde_json::json!({"image": "built/image.tar", "tags": [{"file": "./version/number"}], "x": "other"});
        let sees = |name: &str| mentions(&params, &Name::new(name).unwrap());
        assert!(sees("built") && sees("version") && sees("other"));
        assert!(!sees("image.tar") && !sees("source"));
    }
}
