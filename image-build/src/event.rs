//! A build's progress, typed.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use orchestra::OutputStream;
use serde::{Serialize, Serializer};

/// One thing that happened in a build.
///
/// BuildKit's unit is the vertex of its build graph: a Dockerfile instruction, the loading of the context, the export.
/// Its `vertex` number counts them in the order in which they begin, from 1 for each attempt, as the rendered output does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "build", rename_all = "snake_case")]
#[non_exhaustive]
pub enum BuildEvent {
    /// A vertex began.
    Started {
        /// Its number.
        vertex: u32,
        /// What it does: `[2/3] RUN make`.
        name: String,
        /// When, by the builder's clock; `None` for one whose result was there.
        time: Option<SystemTime>,
    },
    /// A vertex ended well. One that BuildKit takes up again, such as an export in several parts, ends more than once.
    Completed {
        /// Its number.
        vertex: u32,
        /// What it did.
        name: String,
        /// Whether its result came from the cache.
        cached: bool,
        /// How long it worked in all.
        duration: Duration,
    },
    /// A vertex failed, and the build with it.
    Failed {
        /// Its number.
        vertex: u32,
        /// What it did.
        name: String,
        /// BuildKit's words.
        error: String,
        /// Whether it was only ended because another one failed or the build was cancelled.
        canceled: bool,
    },
    /// A part of a vertex goes on: a layer that is fetched, a context that is transferred.
    Progress {
        /// The vertex's number.
        vertex: u32,
        /// The part: `transferring context:`.
        id: String,
        /// How much is done, mostly in bytes.
        current: u64,
        /// How much there is, where known.
        total: Option<u64>,
        /// Whether it is done.
        completed: bool,
    },
    /// A vertex's process wrote something; pieces follow the builder's buffers, not lines.
    Log {
        /// The vertex's number.
        vertex: u32,
        /// Where the process wrote it.
        stream: OutputStream,
        /// What it wrote. Serialised as text, with what is not UTF-8 replaced.
        #[serde(serialize_with = "lossy")]
        data: Bytes,
    },
    /// It begins again, in another attempt or because the daemon that it shared has ended: vertexes are numbered from 1 again, and
    /// those that were under way are over.
    Restarted,
    /// Something to know: a Dockerfile check that failed, or what `orchestra` noticed itself.
    Warning {
        /// The vertex's number; `None` for what concerns the build.
        vertex: Option<u32>,
        /// In a sentence.
        message: String,
        /// At length.
        detail: Vec<String>,
        /// Where more is said.
        url: Option<String>,
    },
}

fn lossy<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(data))
}
