//! Caches of a plan: what their keys say, and how that becomes a key in a store.

use std::fmt;
use std::str::FromStr;

use orchestra::{ContainerPath, Error, Name, Result, Task, VolumePath};
use orchestra_caches::{CacheKey, Policy};
use sha2::{Digest, Sha256};

/// A directory that is kept: between the attempts of its step and, where there is a store, from run to run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CachePlan {
    /// Where it stands.
    pub path: ContainerPath,
    /// What it is called within its scope; after its path where `None`.
    pub key: Option<KeyTemplate>,
    /// Beginnings of keys, within the scope, of which the newest is taken if there is none of its own.
    pub restore_keys: Vec<KeyTemplate>,
    /// Who shares it.
    pub scope: CacheScope,
    /// Most bytes that it may have.
    pub size_limit: Option<u64>,
    /// Whether it is restored, persisted or both.
    pub policy: Policy,
    /// What of it is persisted; all of it where empty.
    pub paths: Vec<VolumePath>,
    /// Whether devices are kept.
    pub devices: bool,
    /// A volume of the job that stands there instead of one of the cache's own: what else is said here does not count.
    pub volume: Option<Name>,
}

impl CachePlan {
    /// A cache of the job that is called after its path.
    #[must_use]
    pub fn new(path: ContainerPath) -> Self {
        Self {
            path,
            key: None,
            restore_keys: Vec::new(),
            scope: CacheScope::Job,
            size_limit: None,
            policy: Policy::PullPush,
            paths: Vec::new(),
            devices: false,
            volume: None,
        }
    }

    /// What two plans have in common that have the same key, whatever checksums will be.
    pub(crate) fn identity(&self, step: &Name) -> (CacheScope, Option<Name>, String) {
        let step = (self.scope == CacheScope::Task).then(|| step.clone());
        let key = self
            .key
            .as_ref()
            .map_or_else(|| self.default_key(), ToString::to_string);
        (self.scope, step, key)
    }

    fn default_key(&self) -> String {
        self.path.resolve(Task::WORKING_DIR).trim_start_matches('/').to_owned()
    }

    /// All files that its keys need checksums of.
    pub(crate) fn files(&self) -> impl Iterator<Item = &ContainerPath> {
        self.key.iter().chain(&self.restore_keys).flat_map(KeyTemplate::files)
    }

    /// The keys in a store, with `checksum` telling of each file.
    pub(crate) fn keys(
        &self,
        pipeline: &str,
        job: &Name,
        step: &Name,
        checksum: impl Fn(&ContainerPath) -> String,
    ) -> Result<(CacheKey, Vec<String>)> {
        // No name begins with a `-`: what one scope has, no other one can name.
        let (job, step) = match self.scope {
            CacheScope::Pipeline => ("-", "-"),
            CacheScope::Job => (job.as_str(), "-"),
            CacheScope::Task => (job.as_str(), step.as_str()),
        };
        let file = pipeline.rsplit('/').next().unwrap_or(pipeline);
        let within = |key: &str| format!("{file}/{job}/{step}/{key}");
        let key = self
            .key
            .as_ref()
            .map_or_else(|| self.default_key(), |key| key.render(&checksum));
        // As a key has no doubled slashes, the beginning of one has none.
        let plain = |key: String| {
            key.split('/')
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("/")
        };
        let restore_keys = self.restore_keys.iter().map(|key| {
            let rendered = key.render(&checksum);
            let end = if rendered.ends_with('/') { "/" } else { "" };
            plain(within(&rendered)) + end
        });
        Ok((CacheKey::new(within(&key))?, restore_keys.collect()))
    }
}

/// Who shares a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CacheScope {
    /// All steps of its job.
    #[default]
    Job,
    /// Its own step alone.
    Task,
    /// All jobs of the pipeline.
    Pipeline,
}

impl FromStr for CacheScope {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        match value {
            "job" => Ok(Self::Job),
            "task" => Ok(Self::Task),
            "pipeline" => Ok(Self::Pipeline),
            other => Err(Error::invalid(format!("{other:?} is no scope of a cache"))
                .with_hint("write `job`, `task` or `pipeline`")),
        }
    }
}

/// A key with checksums in it: `cargo-{{ checksum "source/Cargo.lock" }}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTemplate(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Checksum(ContainerPath),
}

impl KeyTemplate {
    /// What is written out in it, without what is computed.
    #[must_use]
    pub fn text(&self) -> String {
        let text = |piece: &Piece| match piece {
            Piece::Text(text) => Some(text.clone()),
            Piece::Checksum(_) => None,
        };
        self.0.iter().filter_map(text).collect()
    }

    /// The files that it needs checksums of, as the step sees them.
    pub(crate) fn files(&self) -> impl Iterator<Item = &ContainerPath> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Checksum(path) => Some(path),
            Piece::Text(_) => None,
        })
    }

    fn render(&self, checksum: impl Fn(&ContainerPath) -> String) -> String {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Checksum(path) => checksum(path),
            })
            .collect()
    }
}

impl FromStr for KeyTemplate {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        const FORM: &str = "write `{{ checksum \"source/Cargo.lock\" }}`, with a file of one of the step's inputs";
        let refuse = |why: &str| Err(Error::invalid(format!("the cache key {value:?} {why}")).with_hint(FORM));
        let mut pieces = Vec::new();
        let mut rest = value;
        while let Some((text, after)) = rest.split_once("{{") {
            let Some((expression, after)) = after.split_once("}}") else {
                return refuse("has a `{{` without its `}}`");
            };
            if !text.is_empty() {
                pieces.push(Piece::Text(text.to_owned()));
            }
            let Some(argument) = expression.trim().strip_prefix("checksum") else {
                return refuse("calls something else than `checksum`");
            };
            let quoted = argument.trim();
            let path = quoted
                .strip_prefix('"')
                .and_then(|path| path.strip_suffix('"'))
                .filter(|path| !path.contains('"'));
            let Some(path) = path else {
                return refuse("has a checksum of something that is no file's name in quotes");
            };
            pieces.push(Piece::Checksum(ContainerPath::new(path)?));
            rest = after;
        }
        if rest.contains("}}") {
            return refuse("has a `}}` without its `{{`");
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        let template = Self(pieces);
        // What no store can hold is told now, not at the end of a long run.
        CacheKey::new(template.render(|_| "0".repeat(CHECKSUM)))?;
        Ok(template)
    }
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Checksum(path) => write!(f, "{{{{ checksum \"{path}\" }}}}"),
        })
    }
}

/// Digits of a checksum in a key.
const CHECKSUM: usize = 32;

/// A file's content as it stands in a key.
pub(crate) fn checksum(content: &Sha256) -> String {
    let digest = content.clone().finalize();
    digest
        .iter()
        .take(CHECKSUM / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(key: &str, scope: CacheScope) -> String {
        let mut plan = CachePlan::new(".cargo".parse().unwrap());
        plan.scope = scope;
        plan.key = (!key.is_empty()).then(|| key.parse().unwrap());
        let (job, step) = (Name::new("test").unwrap(), Name::new("unit").unwrap());
        plan.keys("dir/ci.yml", &job, &step, |path| format!("<{path}>"))
            .unwrap()
            .0
            .to_string()
    }

    #[test]
    fn a_key_stands_in_its_scope() {
        assert_eq!(keys("", CacheScope::Job), "ci.yml/test/-/workspace/.cargo");
        assert_eq!(keys("", CacheScope::Task), "ci.yml/test/unit/workspace/.cargo");
        assert_eq!(keys("x", CacheScope::Pipeline), "ci.yml/-/-/x");
        let with = keys(
            "a-{{ checksum \"src/Cargo.lock\" }}-{{checksum \"b\"}}",
            CacheScope::Pipeline,
        );
        assert_eq!(with, "ci.yml/-/-/a-<src/Cargo.lock>-<b>");
    }

    #[test]
    fn a_template_that_makes_no_sense_is_refused_with_the_form_it_has() {
        for (bad, why) in [
            ("a{{ checksum \"x\"", "without its `}}`"),
            ("a}}", "without its `{{`"),
            ("{{ hash \"x\" }}", "something else than `checksum`"),
            ("{{ checksum x }}", "in quotes"),
            ("{{ checksum \"../x\" }}", "contains `..`"),
            ("", "is empty"),
            (&"x".repeat(300), "too long"),
        ] {
            let error = bad.parse::<KeyTemplate>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
