//! What one job has had of the secrets, and what is redacted for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use memchr::memmem;
use orchestra::{Credentials, Error, ExposeSecret, LogStream, Result, SecretString};

use crate::redact::{Form, LONGEST, Patterns, Redactor, SHORTEST, forms};
use crate::{Reference, SecretKey, SecretValue, Secrets, StreamRedactor};

/// More is not redacted for one job: a task that announces more values is ended.
const MAX_FORMS: usize = 400_000;
const MAX_BYTES: usize = 64 << 20;

/// A job's secrets: each is fetched once, and redacted from then on wherever the job's output, errors and files of the
/// engine pass the [layer](crate::SecretsLayer). A clone is the same list.
#[derive(Clone)]
pub struct JobSecrets(Arc<Inner>);

/// One lock a secret: tasks that start at once wait for one question.
type Slots = Mutex<HashMap<Reference, Arc<tokio::sync::Mutex<Option<SecretValue>>>>>;

struct Inner {
    secrets: Secrets,
    /// What was taken, and redacted since.
    fetched: Slots,
    /// What the stores were asked for: secrets, of which those may be fields.
    wholes: Slots,
    list: Mutex<List>,
    /// Grows with each change of the list.
    version: AtomicU64,
    /// What was taken though it is too short to be redacted.
    short: Mutex<Short>,
}

#[derive(Default)]
struct Short {
    values: BTreeMap<Reference, SecretValue>,
    /// What is to be said of it, and of values that a task announced.
    untold: Vec<String>,
    /// What was said of literal values.
    told: BTreeSet<String>,
    /// Whether it was said of such a value: a task may announce any number.
    announced: bool,
}

struct List {
    forms: BTreeSet<Arc<Form>>,
    /// Those of them that the patterns lack.
    fresh: Vec<Arc<Form>>,
    bytes: usize,
    patterns: Arc<Patterns>,
    /// The version that the patterns are of.
    built: u64,
}

impl JobSecrets {
    pub(crate) fn new(secrets: Secrets) -> Self {
        Self(Arc::new(Inner {
            secrets,
            fetched: Mutex::default(),
            wholes: Mutex::default(),
            list: Mutex::new(List {
                forms: BTreeSet::new(),
                fresh: Vec::new(),
                bytes: 0,
                patterns: Arc::default(),
                built: 0,
            }),
            version: AtomicU64::new(0),
            short: Mutex::default(),
        }))
    }

    /// The value of a reference, which is redacted from now on.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) if there is none, or if it is too long to be
    /// redacted (64 KiB); those of the stores.
    pub async fn resolve(&self, reference: &Reference) -> Result<SecretValue> {
        let slot = lock(&self.0.fetched).entry(reference.clone()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(value) = slot.as_ref() {
            return Ok(value.clone());
        }
        let value = reference.of_whole(self.whole(&reference.whole()).await?)?;
        self.take(reference, &value)?;
        *slot = Some(value.clone());
        Ok(value)
    }

    /// A secret of which fields are asked for, one after another: a store that makes up credentials for who asks would give
    /// the user name of one and the password of another.
    async fn whole(&self, reference: &Reference) -> Result<SecretValue> {
        let slot = lock(&self.0.wholes).entry(reference.clone()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(value) = slot.as_ref() {
            return Ok(value.clone());
        }
        let found = self.0.secrets.find(reference).await?;
        let value = found.ok_or_else(|| self.0.secrets.missing(reference))?;
        *slot = Some(value.clone());
        Ok(value)
    }

    /// Takes a value that was fetched before the job began, as if the job had fetched it.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn provide(&self, reference: &Reference, value: &SecretValue) -> Result<()> {
        self.take(reference, value)?;
        let slot = Arc::new(tokio::sync::Mutex::new(Some(value.clone())));
        lock(&self.0.fetched).insert(reference.clone(), slot);
        Ok(())
    }

    /// Takes the value of a secret that was fetched before the job began: fields that are asked for later are of the same answer.
    /// It is not redacted as a whole.
    pub fn provide_whole(&self, reference: &Reference, value: &SecretValue) {
        let slot = Arc::new(tokio::sync::Mutex::new(Some(value.clone())));
        lock(&self.0.wholes).insert(reference.whole(), slot);
    }

    fn take(&self, reference: &Reference, value: &SecretValue) -> Result<()> {
        check_length(reference, value)?;
        if value.expose().trim_ascii().len() < SHORTEST {
            tracing::warn!(secret = %reference, "it is shorter than {SHORTEST} bytes, and so not redacted");
            let mut short = lock(&self.0.short);
            short.values.insert(reference.clone(), value.clone());
            short.untold.push(format!(
                "the secret {reference} is too short to be redacted, less than four bytes: what prints it shows it"
            ));
        }
        self.mask(value).map_err(|error| error.with("secret", reference))
    }

    /// What is to be said since this was asked last of secrets that were fetched, and of values that a task announced, which
    /// are too short to be redacted, less than four bytes: whoever runs the job should be told.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.0.short).untold)
    }

    /// Redacts a value from now on, in all its forms.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) if it is longer than 64 KiB, or if there are too
    /// many.
    pub fn mask(&self, value: &SecretValue) -> Result<()> {
        if value.expose().len() > LONGEST {
            return Err(Error::invalid(format!(
                "a value longer than {LONGEST} bytes can't be redacted"
            )));
        }
        let mut list = lock(&self.0.list);
        let new: Vec<Arc<Form>> = forms(value.expose())
            .into_iter()
            .filter(|form| !list.forms.contains(form))
            .map(Arc::new)
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let bytes = list.bytes + new.iter().map(|form| form.bytes.len()).sum::<usize>();
        if list.forms.len() + new.len() > MAX_FORMS || bytes > MAX_BYTES {
            return Err(Error::invalid("there are more values to redact than one job may have")
                .with_hint("announce fewer values with ::add-mask::, or use more than one job"));
        }
        list.fresh.extend(new.iter().cloned());
        list.forms.extend(new);
        list.bytes = bytes;
        self.0.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The same of a value that a task made up: of one that is too short, a [warning](Self::warnings) tells.
    ///
    /// # Errors
    /// As [`mask`](Self::mask).
    pub fn mask_made(&self, value: &SecretValue) -> Result<()> {
        let mut short = lock(&self.0.short);
        if !short.announced && (1..SHORTEST).contains(&value.expose().trim_ascii().len()) {
            short.announced = true;
            short.untold.push(
                "a value that a step made up (::add-mask::, reveal: false) is too short to be redacted, less than four bytes".to_owned(),
            );
        }
        drop(short);
        self.mask(value)
    }

    /// The same of a value that is no stored secret: a [warning](Self::warnings) tells of `what` is too short.
    pub(crate) fn mask_given(&self, what: &str, value: &SecretValue) -> Result<()> {
        if (1..SHORTEST).contains(&value.expose().trim_ascii().len()) {
            let told = format!("{what} is too short to be redacted, less than four bytes: what prints it shows it");
            let mut short = lock(&self.0.short);
            if short.told.insert(told.clone()) {
                short.untold.push(told);
            }
        }
        self.mask(value)
    }

    /// All texts that are looked for; for measurements.
    #[doc(hidden)]
    #[must_use]
    pub fn forms(&self) -> Vec<Vec<u8>> {
        lock(&self.0.list).forms.iter().map(|form| form.bytes.clone()).collect()
    }

    /// Resolves a registry's credentials where they are references, and redacts them, the password and `user:password`
    /// also where they are not.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub async fn credentials(&self, credentials: &Credentials) -> Result<Credentials> {
        let username = self
            .text("the registry's user name", credentials.username.expose_secret())
            .await?;
        let password = self
            .text("the registry's password", credentials.password.expose_secret())
            .await?;
        self.mask_credentials(username.expose_secret(), password.expose_secret())?;
        Ok(Credentials { username, password })
    }

    pub(crate) fn mask_credentials(&self, username: &str, password: &str) -> Result<()> {
        self.mask_given("the password of a registry", &password.into())?;
        // The user's name alone is no secret.
        if password.trim().len() < SHORTEST {
            return Ok(());
        }
        let pair = zeroize::Zeroizing::new(format!("{username}:{password}"));
        self.mask(&pair.as_str().into())
    }

    /// A text that may be a reference as a whole.
    pub(crate) async fn text(&self, what: &str, text: &str) -> Result<SecretString> {
        match SecretKey::of_reference(text)? {
            None => Ok(text.into()),
            Some(key) => {
                let value = self.resolve(&Reference::of(key.clone())).await?;
                Ok(value.text(&format!("the secret {key} for {what}"))?.into())
            }
        }
    }

    /// Redacts a stream that does not come from an engine.
    #[must_use]
    pub fn stream(&self) -> StreamRedactor {
        StreamRedactor::new(self.clone())
    }

    /// Redacts both streams of a program that does not run in an engine, as the [layer](crate::SecretsLayer) does those of
    /// a container. An error, for a value that is announced and can't be redacted, is the last item.
    #[must_use]
    pub fn output(&self, output: LogStream) -> LogStream {
        crate::stream::logs(output, self.clone(), false)
    }

    /// A text with what is secret in it replaced.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        redact(text, self.patterns().map(|(_, patterns)| patterns))
    }

    /// Whether a text holds a secret, one that is too short to be redacted too.
    pub(crate) fn holds_secret(&self, text: &str) -> bool {
        let short = lock(&self.0.short);
        let mut values = short.values.values().map(|value| value.expose().trim_ascii());
        values.any(|value| !value.is_empty() && memmem::find(text.as_bytes(), value).is_some())
            || self.redact(text) != text
    }

    /// An error of which no text holds a secret. One that is clean stays as it is, with what caused it.
    #[must_use]
    pub fn redact_error(&self, error: Error) -> Error {
        if self.0.version.load(Ordering::Acquire) == 0 {
            return error;
        }
        clean(error, |text| self.redact(text))
    }

    /// What changes when the list does.
    pub(crate) fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// The list as it is now, and its version.
    pub(crate) fn patterns(&self) -> Result<(u64, Arc<Patterns>)> {
        let mut list = lock(&self.0.list);
        let version = self.version();
        if list.built != version {
            list.patterns = Arc::new(list.patterns.with(list.fresh.clone())?);
            list.fresh.clear();
            list.built = version;
        }
        Ok((version, list.patterns.clone()))
    }
}

/// An error of which no text holds what `redact` replaces. One that is clean stays as it is, with what caused it.
pub(crate) fn clean(error: Error, redact: impl Fn(&str) -> String) -> Error {
    // `Debug` shows hint and causes too.
    let shown = format!("{error:?}");
    match redact(&shown) == shown {
        true => error,
        false => error.map_text(|text| redact(text)),
    }
}

/// A text with what these find replaced.
pub(crate) fn redact(text: &str, patterns: Result<Arc<Patterns>>) -> String {
    let Ok(patterns) = patterns else {
        // Too much to look for: nothing is safe to show.
        return crate::redact::MARKER.to_owned();
    };
    let mut redactor = Redactor::new(patterns);
    let mut out = redactor.push(Bytes::copy_from_slice(text.as_bytes())).to_vec();
    out.extend_from_slice(&redactor.finish());
    String::from_utf8_lossy(&out).into_owned()
}

/// Refuses a value that is too long to be redacted.
pub(crate) fn check_length(reference: &Reference, value: &SecretValue) -> Result<()> {
    match value.expose().len() {
        length if length > LONGEST => Err(Error::invalid(format!(
            "the secret {reference} is {length} bytes long; at most {LONGEST} can be redacted, and so given to a task"
        ))
        .with_hint("keep a key as the secret, and the data, encrypted with it, elsewhere")),
        _ => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for JobSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobSecrets({} fetched)", lock(&self.0.fetched).len())
    }
}
