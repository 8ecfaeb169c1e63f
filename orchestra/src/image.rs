//! Images: where they come from and how they get into an engine.

use std::fmt;
use std::str::FromStr;

use futures_util::stream::BoxStream;
use secrecy::SecretString;

use crate::{Error, ImageRef, JobId, Result};

/// An operating system and processor, as in `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    /// Go's name of the operating system: `linux`.
    pub os: String,
    /// Go's name of the processor: `amd64`, `arm64`.
    pub architecture: String,
    /// The processor's variant: `v7`.
    pub variant: Option<String>,
}

impl FromStr for Platform {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        let parts: Vec<&str> = value.split('/').collect();
        let valid =
            |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(valid) {
            return Err(Error::invalid(format!(
                "platform {value:?} is not valid; write OS/ARCHITECTURE[/VARIANT], for example linux/amd64"
            )));
        }
        Ok(Self {
            os: parts[0].to_owned(),
            architecture: parts[1].to_owned(),
            variant: parts.get(2).map(|variant| (*variant).to_owned()),
        })
    }
}

impl TryFrom<String> for Platform {
    type Error = Error;
    fn try_from(value: String) -> Result<Self> {
        value.parse()
    }
}

impl From<Platform> for String {
    fn from(value: Platform) -> Self {
        value.to_string()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A registry's user name and password. `Debug` shows neither.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user name; it may be a secret too (robot accounts), so it is kept like one.
    pub username: SecretString,
    /// The password or token.
    pub password: SecretString,
}

impl Credentials {
    /// Credentials of these two parts.
    pub fn new(username: impl Into<SecretString>, password: impl Into<SecretString>) -> Self {
        Self {
            username: username.into(),
            password: password.into(),
        }
    }
}

/// When an image is fetched from its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PullPolicy {
    /// If the engine does not have it.
    #[default]
    IfNotPresent,
    /// Every time, so that a moved tag is noticed.
    Always,
    /// Never: an image the engine does not have is an error.
    Never,
}

/// What to pull, and as whom.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PullImage {
    /// The image.
    pub image: ImageRef,
    /// Which of a multi-platform image; the engine's own where `None`.
    pub platform: Option<Platform>,
    /// Sent to the image's registry only.
    pub credentials: Option<Credentials>,
    /// Permit plain HTTP and unverified TLS. Requires [`Capabilities::insecure_pull`](crate::Capabilities::insecure_pull).
    pub insecure: bool,
    /// The job it is for, where it is for one: a layer, or a driver, may keep something for it until the job's end, as what
    /// has come of an image before a pull failed.
    pub job: Option<JobId>,
}

impl PullImage {
    /// A pull of `image` for the engine's own platform, without credentials.
    #[must_use]
    pub fn new(image: ImageRef) -> Self {
        Self {
            image,
            platform: None,
            credentials: None,
            insecure: false,
            job: None,
        }
    }
}

/// One step of a pull's progress.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "pull", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PullEvent {
    /// A layer's state changed.
    Layer {
        /// The layer's id or digest, as the engine names it.
        id: String,
        /// What the engine says it does: "Downloading", "Extracting", "Pull complete".
        status: String,
        /// Bytes done, where the engine counts.
        current: Option<u64>,
        /// Bytes in all, where the engine knows.
        total: Option<u64>,
    },
    /// A line about the whole image.
    Status {
        /// The engine's words.
        message: String,
    },
}

/// A pull's progress; the pull is done when it ends, and has failed when it yields an error, which is its last item.
/// Dropping it abandons the pull.
pub type PullStream = BoxStream<'static, Result<PullEvent>>;

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn platforms_print_as_they_are_written() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for bad in ["linux", "linux/", "linux/amd64/v1/x", "linux/amd64,push"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn credentials_are_not_in_debug_output() {
        let credentials = Credentials::new("robot", "hunter2");
        assert_eq!(credentials.password.expose_secret(), "hunter2");
        let shown = format!("{credentials:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("robot"), "{shown}");
    }
}
