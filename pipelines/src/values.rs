//! What `((name))` and `secret:KEY` stand for in a pipeline.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures_util::StreamExt;
use futures_util::stream;
use orchestra::{Error, Result};
use orchestra_secrets::{JobSecrets, LONGEST, Reference, SecretValue, Secrets};
use sha2::{Digest, Sha256};

use crate::Invalid;
use crate::yaml::Value;

/// How many secrets are fetched at once.
const AT_ONCE: usize = 8;

/// Plain variables by name: what they hold is no secret, and stands in logs as it is. `Debug` shows their names.
#[derive(Clone, Default)]
pub struct Variables(BTreeMap<String, Value>);

impl Variables {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets one to a text, replacing one of that name.
    pub fn set(&mut self, name: impl Into<String>, text: impl Into<String>) {
        self.0.insert(name.into(), Value::Text(text.into()));
    }

    pub(crate) fn set_value(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// Adds those of a YAML map, whose values may be of any kind; `name` is the file's, for messages. They replace those
    /// of their names.
    ///
    /// # Errors
    /// [`Invalid`] if it is no YAML, or no map.
    pub fn load(&mut self, name: &str, text: &str) -> Result<(), Invalid> {
        self.0.extend(crate::yaml::variables_of(name, text)?);
        Ok(())
    }

    /// The value of `name`, or of `name.field.field`.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        if let Some(value) = self.0.get(name) {
            return Some(value);
        }
        let (first, fields) = name.split_once('.')?;
        fields
            .split('.')
            .try_fold(self.0.get(first)?, |value, field| match value {
                Value::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| matches!(&key.value, Value::Text(text) if text == field))
                    .map(|(_, value)| &value.value),
                _ => None,
            })
    }

    /// What tells them from others.
    pub(crate) fn digest(&self, into: &mut Sha256) {
        for (name, value) in &self.0 {
            for part in [name.clone(), format!("{value:?}")] {
                into.update((part.len() as u64).to_be_bytes());
                into.update(part);
            }
        }
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What a pipeline's text may refer to: variables first, then secrets.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Values {
    /// Plain variables.
    pub variables: Variables,
    /// Secrets; none where `None`.
    pub secrets: Option<Secrets>,
}

/// What was found of the secrets that a text refers to.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    found: BTreeMap<Reference, Result<SecretValue>>,
    /// The secrets that those are, or are fields of.
    wholes: Vec<(Reference, SecretValue)>,
}

impl Fetched {
    pub(crate) async fn new(secrets: Option<&Secrets>, references: BTreeSet<Reference>) -> Self {
        let Some(secrets) = secrets else { return Self::default() };
        let wholes: BTreeSet<Reference> = references.iter().map(Reference::whole).collect();
        let fetch = |whole: Reference| async move {
            let found = secrets.find(&whole).await;
            (whole, found)
        };
        let fetched = stream::iter(wholes).map(fetch).buffer_unordered(AT_ONCE);
        let fetched: BTreeMap<Reference, Result<Option<SecretValue>>> = fetched.collect().await;
        let of = |reference: &Reference| {
            let value = match fetched.get(&reference.whole()) {
                Some(Ok(Some(value))) => reference.of_whole(value.clone())?,
                Some(Err(error)) => return Err(same(error)),
                Some(Ok(None)) | None => return Err(secrets.missing(reference)),
            };
            match value.expose().len() {
                length if length > LONGEST => Err(Error::invalid(format!(
                    "the secret {reference} is {length} bytes long; at most {LONGEST} can be redacted, and so used"
                ))),
                _ => Ok(value),
            }
        };
        let found = references.into_iter().map(|reference| {
            let value = of(&reference);
            (reference, value)
        });
        let found = found.collect();
        let wholes = fetched.into_iter();
        let wholes = wholes.filter_map(|(whole, value)| Some((whole, value.ok()??)));
        Self {
            found,
            wholes: wholes.collect(),
        }
    }

    /// The same for a job, which fetches each once and redacts it from then on.
    pub(crate) async fn for_job(job: Option<&JobSecrets>, references: BTreeSet<Reference>) -> Self {
        let Some(job) = job else { return Self::default() };
        let fetch = |reference: Reference| async move {
            let found = job.resolve(&reference).await;
            (reference, found)
        };
        let fetched = stream::iter(references).map(fetch).buffer_unordered(AT_ONCE);
        Self {
            found: fetched.collect().await,
            wholes: Vec::new(),
        }
    }

    /// Adds those that were fetched before.
    pub(crate) fn with(mut self, known: &[(Reference, SecretValue)]) -> Self {
        let known = known
            .iter()
            .map(|(reference, value)| (reference.clone(), Ok(value.clone())));
        self.found.extend(known);
        self
    }

    pub(crate) fn get(&self, reference: &Reference) -> Result<&SecretValue, Error> {
        match self.found.get(reference) {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(same(error)),
            None => Err(Error::invalid("there are no secrets here")
                .with_hint("configure a store under [secrets], or give it with `--secret KEY=VALUE`")),
        }
    }

    /// All that were found.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&Reference, &SecretValue)> {
        self.found
            .iter()
            .filter_map(|(reference, value)| Some((reference, value.as_ref().ok()?)))
    }

    /// The secrets as a whole that they are, or are fields of.
    pub(crate) fn wholes(&self) -> &[(Reference, SecretValue)] {
        &self.wholes
    }
}

/// What one error says, for each that it is the error of.
fn same(error: &Error) -> Error {
    let same = Error::new(error.kind(), error.message());
    let same = error.context().fold(same, |same, (key, value)| same.with(key, value));
    match error.hint() {
        Some(hint) => same.with_hint(hint),
        None => same,
    }
}
