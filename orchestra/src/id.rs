//! Ids and names: validated once, where they enter, and safe in every place an engine uses them from then on.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Longest id an engine is asked to take: it ends up in host names, labels and file names (255 bytes at most).
const MAX_ID: usize = 200;
/// Longest name a person gives; ids are made of a job's and a task's.
const MAX_NAME: usize = 63;

/// Letters, digits and `extra`, starting with a letter or digit: what every engine takes as a name.
fn check(what: &str, value: &str, max: usize, extra: &str) -> Result<()> {
    let refuse = |why: String| Err(Error::invalid(format!("{what} {value:?} {why}")));
    let Some(first) = value.chars().next() else {
        return Err(Error::invalid(format!("{what} is empty")));
    };
    if value.len() > max {
        return refuse(format!("is {} bytes long; at most {max} are allowed", value.len()));
    }
    if let Some(bad) = value
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !extra.contains(*c))
    {
        return refuse(format!(
            "contains {bad:?}; allowed are letters, digits and {}",
            list(extra)
        ));
    }
    if !first.is_ascii_alphanumeric() {
        return refuse("must start with a letter or a digit".to_owned());
    }
    if value.contains("..") {
        return refuse("contains `..`".to_owned());
    }
    Ok(())
}

fn list(extra: &str) -> String {
    extra.chars().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ")
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:expr, $extra:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Takes `value` if it is valid.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) naming the character or length that is not allowed.
            pub fn new(value: impl Into<String>) -> Result<Self> {
                let value = value.into();
                check($what, &value, $max, $extra)?;
                Ok(Self(value))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = Error;
            fn from_str(value: &str) -> Result<Self> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(value: String) -> Result<Self> {
                Self::new(value)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = Error;
            fn try_from(value: &str) -> Result<Self> {
                Self::new(value)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// Names one run of a job. Two runs with the same id are the same run: the second carries on where the first was.
    ///
    /// 1 to 63 letters, digits, `-` and `_`, starting with a letter or digit. It has no dot, so that the ids made of it
    /// (`orchestra.JOB.…`) can be told apart.
    JobId, "job id", MAX_NAME, "-_"
}
name! {
    /// A task's, volume's or artifact's name within a job.
    ///
    /// 1 to 63 letters, digits, `-`, `_` and `.`, starting with a letter or digit, without `..`.
    Name, "name", MAX_NAME, "-_."
}
name! {
    /// A container's id: the name that it has in the engine, chosen by the caller.
    ContainerId, "container id", MAX_ID, "-_."
}
name! {
    /// A volume's id: the name that it has in the engine, chosen by the caller.
    VolumeId, "volume id", MAX_ID, "-_."
}

impl JobId {
    /// An id that no other run has: time of day and a random part.
    #[must_use]
    pub fn unique() -> Self {
        use std::hash::{BuildHasher, Hasher, RandomState};
        let seconds = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        // Each `RandomState` is seeded from the system's random source: no further crate is needed for 64 bits of it.
        let random = RandomState::new().build_hasher().finish();
        Self(format!("{seconds:x}-{:010x}", random & 0xff_ffff_ffff))
    }

    /// The id of this job's container for `task`, the `attempt`-th time (from 1).
    #[must_use]
    pub fn container(&self, task: &Name, attempt: u32) -> ContainerId {
        ContainerId(format!("orchestra.{self}.{attempt}.{task}"))
    }

    /// The id of this job's volume `name`.
    #[must_use]
    pub fn volume(&self, name: &Name) -> VolumeId {
        VolumeId(format!("orchestra.{self}.v.{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_could_escape_are_refused_with_the_reason() {
        for (bad, why) in [
            ("", "is empty"),
            ("a/b", "contains '/'"),
            ("a\nb", "contains '\\n'"),
            ("..", "must start with"),
            ("a..b", "contains `..`"),
            ("-rm", "must start with"),
            (&"x".repeat(64), "64 bytes"),
        ] {
            let error = Name::new(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
        assert!(JobId::new("a.b").is_err(), "a dot in a job id would make ids ambiguous");
    }

    #[test]
    fn two_unique_job_ids_differ() {
        assert_ne!(JobId::unique(), JobId::unique());
        assert!(JobId::new(JobId::unique().as_str()).is_ok());
    }

    proptest! {
        #[test]
        fn ids_made_of_valid_parts_are_valid_and_distinct(job in "[a-z0-9][a-zA-Z0-9_-]{0,62}", a in "[a-z0-9][a-z0-9._-]{0,62}", b in "[a-z0-9][a-z0-9._-]{0,62}") {
            prop_assume!(!a.contains("..") && !b.contains(".."));
            let job = JobId::new(job).unwrap();
            let (a, b) = (Name::new(a).unwrap(), Name::new(b).unwrap());
            prop_assert!(ContainerId::new(job.container(&a, 1).as_str()).is_ok());
            prop_assert!(VolumeId::new(job.volume(&a).as_str()).is_ok());
            prop_assert_eq!(job.container(&a, 1) == job.container(&b, 1), a == b);
            prop_assert_ne!(job.container(&a, 1), job.container(&a, 2));
        }
    }
}
