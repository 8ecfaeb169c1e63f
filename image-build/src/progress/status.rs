//! The lines of `--progress=rawjson`: BuildKit's `client.SolveStatus` (`client/graph.go`), as far as it is used.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// One line.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SolveStatus {
    pub(super) vertexes: Vec<Vertex>,
    pub(super) statuses: Vec<Status>,
    pub(super) logs: Vec<Log>,
    pub(super) warnings: Vec<Warning>,
    /// Not BuildKit's: a line of our own script, and what it is about.
    pub(super) orchestra: Option<String>,
    /// With that: whose manifest it is.
    pub(super) digest: String,
    /// With that: BuildKit's metadata file, or a manifest.
    pub(super) metadata: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Vertex {
    pub(super) digest: String,
    pub(super) name: String,
    pub(super) started: Option<Time>,
    pub(super) completed: Option<Time>,
    pub(super) cached: bool,
    pub(super) error: String,
    #[serde(rename = "progressGroup")]
    pub(super) group: Option<Group>,
}

/// Vertexes that are shown as one: the parts of a `COPY --link`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Group {
    pub(super) id: String,
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) id: String,
    pub(super) vertex: String,
    pub(super) total: i64,
    pub(super) current: i64,
    pub(super) timestamp: Option<Time>,
    pub(super) started: Option<Time>,
    pub(super) completed: Option<Time>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    pub(super) vertex: String,
    /// 1 is standard output, 2 standard error.
    pub(super) stream: i64,
    pub(super) data: Base64,
    pub(super) timestamp: Option<Time>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Warning {
    pub(super) vertex: String,
    pub(super) short: Base64,
    pub(super) detail: Vec<Base64>,
    pub(super) url: String,
}

impl SolveStatus {
    /// A line that is one; `None` for any other line, JSON or not.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let status: Self = serde_json::from_slice(line).ok()?;
        let empty = status.vertexes.is_empty()
            && status.statuses.is_empty()
            && status.logs.is_empty()
            && status.warnings.is_empty()
            && status.orchestra.is_none();
        // BuildKit writes `{}` for an update that says nothing; another object of other fields is not its own.
        (!empty || line.trim_ascii() == b"{}").then_some(status)
    }
}

/// A point in time of the builder's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) struct Time(jiff::Timestamp);

impl Time {
    /// How much later it is than `earlier`; zero if it is not.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0.duration_since(earlier.0)).unwrap_or_default()
    }

    /// As the standard library has it, where it can have it.
    pub(super) fn system(self) -> Option<SystemTime> {
        self.0.try_into().ok()
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

/// Go's form of bytes in JSON. A nil slice is `null`.
#[derive(Debug, Default)]
pub(super) struct Base64(pub(super) Vec<u8>);

impl Base64 {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        STANDARD
            .decode(text.unwrap_or_default())
            .map(Self)
            .map_err(D::Error::custom)
    }
}
