//! The stores in their order, and what each job has had of them.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use orchestra::{Credentials, Error, ExposeSecret, Result};
use zeroize::Zeroizing;

use crate::job::{JobSecrets, clean, redact};
use crate::redact::Patterns;
use crate::{ClientConfig, Reference, Scope, SecretStore, SecretValue};

/// Stores in the order they are asked, scopes in the order they are looked into, and a list for each job of what is to
/// be redacted. A clone is the same.
///
/// A more specific scope wins whatever store it is in; within a scope, the first store that has the key.
///
/// ```
/// use orchestra_secrets::{MemoryStore, Scope, SecretKey, Secrets};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> orchestra::Result<()> {
/// let store = MemoryStore::new().with(Scope::Global, SecretKey::new("TOKEN")?, "hunter2".into());
/// let secrets = Secrets::new([Scope::pipeline("deploy")?, Scope::Global]).store("memory", store);
/// let found = secrets.find(&"TOKEN".parse()?).await?;
/// assert_eq!(found.unwrap().expose(), b"hunter2");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Secrets(Arc<Inner>);

struct Inner {
    stores: Vec<(String, Arc<dyn SecretStore>)>,
    scopes: Vec<Scope>,
    client: Option<ClientConfig>,
    remembers: bool,
    jobs: Mutex<HashMap<String, JobSecrets>>,
}

impl Inner {
    /// The same stores, with lists that begin anew.
    fn without_jobs(&self) -> Self {
        Self {
            stores: self.stores.clone(),
            scopes: self.scopes.clone(),
            client: self.client.clone(),
            remembers: self.remembers,
            jobs: Mutex::default(),
        }
    }
}

impl Secrets {
    /// Without any store.
    #[must_use]
    pub fn new(scopes: impl IntoIterator<Item = Scope>) -> Self {
        Self(Arc::new(Inner {
            stores: Vec::new(),
            scopes: scopes.into_iter().collect(),
            client: None,
            remembers: false,
            jobs: Mutex::default(),
        }))
    }

    /// Adds a store behind those there are, under the name that references have for it. The jobs' lists begin anew.
    #[must_use]
    pub fn store(self, name: impl Into<String>, store: impl SecretStore) -> Self {
        self.shared_store(name, Arc::new(store))
    }

    /// As [`store`](Self::store), one that others have too.
    #[must_use]
    pub fn shared_store(self, name: impl Into<String>, store: Arc<dyn SecretStore>) -> Self {
        let mut stores = self.0.stores.clone();
        stores.push((name.into(), store));
        Self(Arc::new(Inner {
            stores,
            ..self.0.without_jobs()
        }))
    }

    /// Registries that nothing else is said of are logged in to as this client does. The jobs' lists begin anew.
    #[must_use]
    pub fn client_config(self, client: ClientConfig) -> Self {
        Self(Arc::new(Inner {
            client: Some(client),
            ..self.0.without_jobs()
        }))
    }

    /// What is redacted for a job is remembered after its end, until this goes: for a process that runs one pipeline, and still
    /// shows what jobs have said when they have ended. The jobs' lists begin anew.
    #[must_use]
    pub fn remember(self) -> Self {
        Self(Arc::new(Inner {
            remembers: true,
            ..self.0.without_jobs()
        }))
    }

    /// The client's credentials for a registry's host, and for a repository there.
    ///
    /// # Errors
    /// As [`ClientConfig::credentials`].
    pub async fn registry(&self, host: &str, repository: Option<&str>) -> Result<Option<Credentials>> {
        match &self.0.client {
            Some(client) => client.credentials(host, repository).await,
            None => Ok(None),
        }
    }

    /// The same for who has one login for all of a host, as BuildKit does: of its repositories that are named, those of a
    /// path are taken if they are those of all.
    ///
    /// # Errors
    /// As [`ClientConfig::credentials`].
    pub async fn registry_of_all(&self, host: &str, repositories: &BTreeSet<String>) -> Result<Option<Credentials>> {
        let mut repositories = repositories.iter().map(String::as_str);
        let first = self.registry(host, repositories.next()).await?;
        for repository in repositories {
            let found = self.registry(host, Some(repository)).await?;
            if !same(first.as_ref(), found.as_ref()) {
                return self.registry(host, None).await;
            }
        }
        Ok(first)
    }

    /// The stores' names, in their order.
    pub fn stores(&self) -> impl Iterator<Item = &str> {
        self.0.stores.iter().map(|(name, _)| name.as_str())
    }

    /// The value of a reference, or `None` if there is no such secret. Asks the stores each time.
    ///
    /// # Errors
    /// Those of the stores; [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) for a store that does not
    /// exist, or a field that the value has not.
    pub async fn find(&self, reference: &Reference) -> Result<Option<SecretValue>> {
        let asked = |name: &str| reference.store.as_deref().is_none_or(|wanted| wanted == name);
        if let Some(wanted) = reference
            .store
            .as_deref()
            .filter(|wanted| !self.stores().any(|name| name == *wanted))
        {
            let there_are: Vec<&str> = self.stores().collect();
            return Err(Error::invalid(format!("there is no store of secrets {wanted:?}"))
                .with_hint(format!("there are: {}", there_are.join(", "))));
        }
        for scope in &self.0.scopes {
            for (name, store) in self.0.stores.iter().filter(|(name, _)| asked(name)) {
                let found = store
                    .get(scope, &reference.key)
                    .await
                    .map_err(|error| error.with("secret", &reference.key).with("store", name))?;
                if let Some(value) = found {
                    return reference.of_whole(value).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// What is said where there is no such secret.
    #[must_use]
    pub fn missing(&self, reference: &Reference) -> Error {
        let scopes: Vec<String> = self.0.scopes.iter().map(ToString::to_string).collect();
        let stores: Vec<&str> = match &reference.store {
            Some(store) => vec![store],
            None => self.stores().collect(),
        };
        let looked = match (stores.is_empty(), scopes.is_empty()) {
            (true, _) => "no store is configured".to_owned(),
            (false, true) => format!("looked in {}", stores.join(", ")),
            (false, false) => format!(
                "looked in {}, for the scopes {}",
                stores.join(", "),
                scopes.join(" and ")
            ),
        };
        let key = &reference.key;
        Error::invalid(format!("there is no secret {key}: {looked}")).with_hint(format!(
            "keep it with `orchestra secrets set {key}`, give it with `--secret {key}=…`, or correct the name"
        ))
    }

    /// What the job of this id has had, and what is redacted for it. Jobs see nothing of each other's list.
    #[must_use]
    pub fn job(&self, id: impl AsRef<str>) -> JobSecrets {
        // A job that is remembered must not hold what remembers it: neither would ever be freed, and no value zeroed.
        let new = || JobSecrets::new(Self(Arc::new(self.0.without_jobs())));
        let mut jobs = self.jobs();
        jobs.entry(id.as_ref().to_owned()).or_insert_with(new).clone()
    }

    /// The same for who has nothing to add: an unknown job is not remembered.
    pub(crate) fn known(&self, id: impl AsRef<str>) -> JobSecrets {
        let known = self.jobs().get(id.as_ref()).cloned();
        known.unwrap_or_else(|| JobSecrets::new(self.clone()))
    }

    /// Forgets a job, if it is not to be [remembered](Self::remember). The layer does it when a job has ended; one that is kept
    /// is forgotten by this.
    pub fn forget(&self, id: impl AsRef<str>) {
        if !self.0.remembers {
            self.jobs().remove(id.as_ref());
        }
    }

    /// Redacts a text by the lists of all jobs: for the process's own log, which belongs to none.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let jobs: Vec<JobSecrets> = self.jobs().values().cloned().collect();
        let patterns = jobs.iter().map(|job| job.patterns().map(|(_, patterns)| patterns));
        let patterns: Result<Vec<_>> = patterns.collect();
        redact(text, patterns.map(|patterns| Arc::new(Patterns::of_all(&patterns))))
    }

    /// The same of an error that belongs to no job.
    pub(crate) fn redact_error(&self, error: Error) -> Error {
        clean(error, |text| self.redact(text))
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, HashMap<String, JobSecrets>> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn same(one: Option<&Credentials>, other: Option<&Credentials>) -> bool {
    let exposed = |of: &'_ Credentials| {
        let (name, word) = (of.username.expose_secret(), of.password.expose_secret());
        Zeroizing::new(format!("{name}\0{word}"))
    };
    one.map(exposed) == other.map(exposed)
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("stores", &self.stores().collect::<Vec<_>>())
            .field("scopes", &self.0.scopes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryStore, SecretKey};

    fn store(secrets: &[(Scope, &str, &str)]) -> MemoryStore {
        secrets.iter().fold(MemoryStore::new(), |store, (scope, key, value)| {
            store.with(scope.clone(), SecretKey::new(*key).unwrap(), (*value).into())
        })
    }

    async fn find(secrets: &Secrets, reference: &str) -> Result<Option<String>> {
        let value = secrets.find(&reference.parse().unwrap()).await?;
        Ok(value.map(|value| String::from_utf8(value.expose().to_vec()).unwrap()))
    }

    #[tokio::test]
    async fn a_pipelines_own_secret_wins_then_the_order_of_the_stores() {
        let deploy = Scope::pipeline("deploy").unwrap();
        let first = store(&[(Scope::Global, "A", "first"), (Scope::Global, "B", "first")]);
        let second = store(&[
            (deploy.clone(), "A", "own"),
            (Scope::Global, "B", "second"),
            (Scope::Global, "C", "second"),
        ]);
        let secrets = Secrets::new([deploy, Scope::Global])
            .store("first", first)
            .store("second", second);
        for (reference, expected) in [
            ("A", Some("own")),
            ("B", Some("first")),
            ("C", Some("second")),
            ("second:B", Some("second")),
            ("first:C", None),
        ] {
            assert_eq!(
                find(&secrets, reference).await.unwrap().as_deref(),
                expected,
                "{reference}"
            );
        }
        let error = find(&secrets, "third:A").await.unwrap_err();
        assert!(
            error.message().contains("third") && error.hint().unwrap().contains("first, second"),
            "{error:?}"
        );
        let missing = secrets.missing(&"D".parse().unwrap()).to_string();
        assert!(
            missing
                .contains("there is no secret D: looked in first, second, for the scopes pipeline deploy and global"),
            "{missing}"
        );
    }

    #[tokio::test]
    async fn what_jobs_have_had_goes_with_the_secrets_and_the_jobs() {
        let stored = Arc::new(store(&[(Scope::Global, "A", "hunter2")]));
        let secrets = Secrets::new([Scope::Global]).shared_store("m", stored.clone());
        let job = secrets.job("a");
        assert!(job.resolve(&"A".parse().unwrap()).await.is_ok());
        drop(secrets);
        assert!(job.resolve(&"A".parse().unwrap()).await.is_ok());
        drop(job);
        assert_eq!(Arc::strong_count(&stored), 1, "nobody else holds the store");
    }

    #[test]
    fn a_job_that_has_ended_is_forgotten_unless_it_is_to_be_remembered() {
        for (secrets, shown) in [
            (Secrets::new([]), "hunter2"),
            (Secrets::new([]).remember(), crate::redact::MARKER),
        ] {
            secrets.job("a").mask(&"hunter2".into()).unwrap();
            secrets.forget("a");
            assert_eq!(secrets.redact("hunter2"), shown);
        }
    }

    #[test]
    fn a_text_of_no_job_is_redacted_by_the_lists_of_all_at_once() {
        let secrets = Secrets::new([]);
        assert_eq!(secrets.redact("hunter2"), "hunter2");
        for (job, value) in [("a", "hunter2-and"), ("b", "2-and-more"), ("c", "more-is-secret")] {
            secrets.job(job).mask(&value.into()).unwrap();
        }
        let marker = crate::redact::MARKER;
        assert_eq!(
            secrets.redact("x hunter2-and-more-is-secret y"),
            format!("x {marker} y"),
            "values that overlap leave nothing of each other"
        );
    }

    #[tokio::test]
    async fn a_field_is_taken_out_of_a_json_value() {
        let json = r#"{"user": "robot", "db": {"port": 5432}, "x": null}"#;
        let secrets = Secrets::new([Scope::Global]).store(
            "m",
            store(&[(Scope::Global, "j", json), (Scope::Global, "t", "hunter2")]),
        );
        assert_eq!(find(&secrets, "j.user").await.unwrap().unwrap(), "robot");
        assert_eq!(find(&secrets, "j.db.port").await.unwrap().unwrap(), "5432");
        for (reference, why) in [("j.none", "no field `none`"), ("t.x", "no JSON object")] {
            let error = find(&secrets, reference).await.unwrap_err();
            assert!(
                error.message().contains(why) && !format!("{error:?}").contains("hunter2"),
                "{error}"
            );
        }
    }
}
