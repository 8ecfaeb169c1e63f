//! How a volume says that it is a cache: by a label, so that the engine keeps it with the volume.

use orchestra::{Error, Labels, Result, VolumePath};
use serde::{Deserialize, Serialize};

use crate::CacheKey;

/// The label that makes a volume a cache. Its value is a [`CacheSpec`] as JSON.
pub const LABEL: &str = "dev.orchestra.cache";

/// What a cache volume is to be filled from, and where its content goes.
///
/// ```
/// use orchestra::{Labels, VolumeSpec};
/// use orchestra_caches::CacheSpec;
/// let spec = CacheSpec::new("ci/test/cargo-1f2e".parse()?);
/// let volume = VolumeSpec::new(Labels::from([spec.label()]));
/// # Ok::<(), orchestra::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct CacheSpec {
    /// Which cache it is.
    pub key: CacheKey,
    /// If there is none of this key, the newest whose key begins with the first of these that any does.
    #[serde(default)]
    pub restore_keys: Vec<String>,
    /// Whether it is restored, persisted or both.
    #[serde(default)]
    pub policy: Policy,
    /// Most bytes that it may have: one that has more is neither persisted nor restored.
    #[serde(default)]
    pub size_limit: Option<u64>,
    /// What of the volume is persisted; all of it where empty. What is not there is left out.
    #[serde(default)]
    pub paths: Vec<VolumePath>,
    /// Whether devices are kept, as BuildKit's layers have them.
    #[serde(default)]
    pub devices: bool,
}

/// What is done with a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// It is restored and persisted.
    #[default]
    PullPush,
    /// It is only restored: for runs that are not trusted.
    Pull,
    /// It is only persisted.
    Push,
}

impl Policy {
    /// Whether caches are restored.
    #[must_use]
    pub fn pulls(self) -> bool {
        self != Self::Push
    }

    /// Whether caches are persisted.
    #[must_use]
    pub fn pushes(self) -> bool {
        self != Self::Pull
    }
}

impl std::str::FromStr for Policy {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        match value {
            "pull-push" => Ok(Self::PullPush),
            "pull" => Ok(Self::Pull),
            "push" => Ok(Self::Push),
            other => Err(Error::invalid(format!("{other:?} is no cache policy"))
                .with_hint("write `pull-push`, `pull` or `push`")),
        }
    }
}

impl CacheSpec {
    /// A cache that is restored and persisted whole.
    #[must_use]
    pub fn new(key: CacheKey) -> Self {
        Self {
            key,
            restore_keys: Vec::new(),
            policy: Policy::default(),
            size_limit: None,
            paths: Vec::new(),
            devices: false,
        }
    }

    /// The label that says it.
    #[must_use]
    pub fn label(&self) -> (String, String) {
        (LABEL.to_owned(), serde_json::to_string(self).unwrap_or_default())
    }

    /// What labels say; `None` for a volume that is no cache.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) for a label that this version does not understand.
    pub fn of(labels: &Labels) -> Result<Option<Self>> {
        let Some(value) = labels.get(LABEL) else {
            return Ok(None);
        };
        let spec = serde_json::from_str(value);
        spec.map(Some)
            .map_err(|error| Error::invalid(format!("the label {LABEL} can't be read: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_all_of_a_spec() {
        let mut spec = CacheSpec::new("a/b".parse().unwrap());
        spec.restore_keys = vec!["a/".to_owned()];
        spec.policy = Policy::Pull;
        spec.paths = vec!["x/y".parse().unwrap()];
        assert_eq!(CacheSpec::of(&Labels::from([spec.label()])).unwrap(), Some(spec));
        assert_eq!(CacheSpec::of(&Labels::new()).unwrap(), None);
        assert!(CacheSpec::of(&Labels::from([(LABEL.to_owned(), "{}".to_owned())])).is_err());
    }
}
