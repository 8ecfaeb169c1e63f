//! The layer: references in, redacted output out.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use orchestra::{
    ByteStream, ContainerId, ContainerSpec, Created, Driver, DriverInfo, EndReport, Env, Error, ErrorKind, ExecSpec,
    ExecStream, ExitStatus, ExposeSecret, ImageRef, InjectedFile, JobId, LogStream, PullImage, PullStream, Resource,
    Result, SharedDriver, Signal, VolumeDirectory, VolumeId, VolumePath, VolumeSpec, labels,
};
use zeroize::Zeroize;

use crate::hide::Hidden;
use crate::{JobSecrets, Reference, SecretKey, Secrets, files, hide, stream};

/// A driver that resolves `secret:KEY` and redacts what comes back, by a list of its own for each job.
///
/// | call | what is resolved |
/// | --- | --- |
/// | `create_container`, `exec` | values of the environment that are `secret:KEY` as a whole |
/// | `write_files` | files that are `secret:KEY` as a whole; in files called `.json`, texts that are |
/// | `pull_image` | user name and password |
///
/// What a container or an exec writes, and every error, is redacted by the list of the job it belongs to, or by all there
/// are; a volume's content is not, on its way in and out. What a job's list has to have is fetched by `create_container`: who
/// reads a container that another process made says it again first, as [`Job`](orchestra::Job) does, or
/// [provides](JobSecrets::provide) it. Put it next to
/// the driver, with [`orchestra::layer::standard`] around it, so that what is traced and reported is redacted too.
///
/// ```
/// use orchestra::{Job, SharedDriver, Task};
/// use orchestra_secrets::{MemoryStore, Scope, SecretKey, Secrets, SecretsLayer};
///
/// async fn deploy(driver: SharedDriver) -> orchestra::Result<String> {
///     let store = MemoryStore::new().with(Scope::Global, SecretKey::new("TOKEN")?, "hunter2".into());
///     let secrets = Secrets::new([Scope::Global]).store("memory", store);
///     let driver = orchestra::layer::standard(SecretsLayer::wrap(driver, secrets));
///     let job = Job::builder(driver).build();
///     let task = Task::new("show", "busybox")?.env("TOKEN", "secret:TOKEN").shell("echo token=$TOKEN");
///     let result = job.run(task).await?.success()?;
///     job.end().await?;
///     Ok(result.stdout.to_string())
/// }
/// # use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
/// # let engine = MemoryEngine::new();
/// # engine.add_image("busybox", MemoryImage::busybox()).unwrap();
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// # assert_eq!(runtime.block_on(deploy(engine.driver())).unwrap(), "token=***REDACTED***\n");
/// ```
#[derive(Debug)]
pub struct SecretsLayer {
    inner: SharedDriver,
    secrets: Secrets,
    containers: Mutex<HashMap<ContainerId, Container>>,
}

/// What is to be known of a container between its calls.
#[derive(Clone, Debug)]
struct Container {
    job: JobSecrets,
    /// Whether its standard error is BuildKit's progress.
    progress: bool,
    /// Whether what is executed in it writes a volume's content, which is nobody's output.
    content: bool,
    hidden: Option<Arc<Mutex<Hidden>>>,
    /// The numbers of its user, where they are known.
    owner: Option<(u32, u32)>,
}

impl SecretsLayer {
    /// `inner` with these secrets.
    #[must_use]
    pub fn new(inner: SharedDriver, secrets: Secrets) -> Self {
        Self {
            inner,
            secrets,
            containers: Mutex::default(),
        }
    }

    /// The same, shared.
    #[must_use]
    pub fn wrap(inner: SharedDriver, secrets: Secrets) -> SharedDriver {
        Arc::new(Self::new(inner, secrets))
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<ContainerId, Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &ContainerId) -> Container {
        let known = self.containers().get(id).cloned();
        known.unwrap_or_else(|| Container {
            job: self.secrets.job(owner(id.as_str())),
            progress: false,
            content: false,
            hidden: None,
            owner: None,
        })
    }

    fn of_volume(&self, id: &VolumeId) -> JobSecrets {
        self.secrets.known(owner(id.as_str()))
    }
}

/// The job in an id that [`JobId::container`] or [`JobId::volume`] made; any other id stands for itself.
fn owner(id: &str) -> &str {
    let job = id.strip_prefix("orchestra.").and_then(|rest| rest.split('.').next());
    job.unwrap_or(id)
}

/// Replaces references; the names of the variables that were some.
async fn resolve_env(env: &mut Env, job: &JobSecrets) -> Result<Vec<String>> {
    let mut resolved = Vec::new();
    for (name, value) in &mut env.0 {
        let Some(key) = SecretKey::of_reference(value).map_err(|error| error.with("variable", name))? else {
            continue;
        };
        let secret = job.resolve(&Reference::of(key.clone())).await;
        let secret = secret.map_err(|error| error.with("variable", name))?;
        secret
            .text(&format!("the secret {key} for the variable {name}"))?
            .clone_into(value);
        resolved.push(name.clone());
    }
    Ok(resolved)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Driver for SecretsLayer {
    fn info(&self) -> &DriverInfo {
        self.inner.info()
    }

    async fn ping(&self) -> Result<()> {
        self.inner
            .ping()
            .await
            .map_err(|error| self.secrets.redact_error(error))
    }

    async fn pull_image(&self, pull: &PullImage) -> Result<PullStream> {
        let of_client = match &pull.credentials {
            Some(_) => None,
            None => {
                let (host, repository) = (pull.image.registry(), pull.image.repository());
                let login = self.secrets.registry(host, Some(repository)).await;
                login.map_err(|error| self.secrets.redact_error(error))?
            }
        };
        let Some(credentials) = pull.credentials.as_ref().or(of_client.as_ref()) else {
            let secrets = self.secrets.clone();
            let stream = self.inner.pull_image(pull).await;
            let stream = stream.map_err(|error| secrets.redact_error(error))?;
            return Ok(stream.map_err(move |error| secrets.redact_error(error)).boxed());
        };
        let job = match &pull.job {
            Some(job) => self.secrets.job(job),
            // A pull for nobody has a list for itself.
            None => JobSecrets::new(self.secrets.clone()),
        };
        let mut resolved = pull.clone();
        resolved.credentials = Some(match &of_client {
            None => job.credentials(credentials).await?,
            // Nobody refers to anything in there.
            Some(own) => {
                job.mask_credentials(own.username.expose_secret(), own.password.expose_secret())?;
                own.clone()
            }
        });
        let stream = self.inner.pull_image(&resolved).await;
        let stream = stream.map_err(|error| job.redact_error(error))?;
        Ok(stream.map_err(move |error| job.redact_error(error)).boxed())
    }

    async fn import_image(&self, image: &ImageRef, archive: ByteStream) -> Result<()> {
        self.inner
            .import_image(image, archive)
            .await
            .map_err(|error| self.secrets.redact_error(error))
    }

    async fn image_exists(&self, image: &ImageRef) -> Result<bool> {
        self.inner
            .image_exists(image)
            .await
            .map_err(|error| self.secrets.redact_error(error))
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<()> {
        self.inner
            .remove_image(image)
            .await
            .map_err(|error| self.secrets.redact_error(error))
    }

    async fn create_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        let job = self.of_volume(id);
        self.inner
            .create_volume(id, spec)
            .await
            .map_err(|error| job.redact_error(error))
    }

    async fn write_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        let job = self.of_volume(id);
        self.inner
            .write_volume(id, path, tar)
            .await
            .map_err(|error| job.redact_error(error))
    }

    async fn read_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        let job = self.of_volume(id);
        let stream = self
            .inner
            .read_volume(id, paths)
            .await
            .map_err(|error| job.redact_error(error))?;
        Ok(stream.map_err(move |error| job.redact_error(error)).boxed())
    }

    async fn volume_directory(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        let job = self.of_volume(id);
        self.inner
            .volume_directory(id)
            .await
            .map_err(|error| job.redact_error(error))
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<()> {
        let job = self.of_volume(id);
        self.inner
            .remove_volume(id)
            .await
            .map_err(|error| job.redact_error(error))
    }

    async fn create_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        let job = self.secrets.job(
            spec.labels
                .get(labels::JOB)
                .map_or_else(|| owner(id.as_str()), String::as_str),
        );
        let mut spec = spec.clone();
        let mut secret = resolve_env(&mut spec.env, &job)
            .await
            .map_err(|error| job.redact_error(error))?;
        if hide::hides_env(&spec) {
            // A front end may have put a secret into a longer text.
            let holds = spec.env.0.iter().filter(|(_, value)| job.holds_secret(value));
            secret = holds.map(|(name, _)| name.clone()).chain(secret).collect();
        }
        let hidden = hide::prepare(&mut spec, &secret, self.inner.info())?;
        let writes = |what: &str| spec.labels.get(labels::OUTPUT).is_some_and(|output| output == what);
        let mut container = Container {
            job: job.clone(),
            progress: writes(labels::OUTPUT_RAWJSON),
            content: writes(labels::OUTPUT_CONTENT),
            hidden: hidden.map(|hidden| Arc::new(Mutex::new(hidden))),
            owner: spec.user.as_ref().and_then(|user| hide::numbers(user.as_str())),
        };
        self.containers().insert(id.clone(), container.clone());
        let created = self.inner.create_container(id, &spec).await;
        spec.env.0.values_mut().for_each(Zeroize::zeroize);
        let created = created.map_err(|error| job.redact_error(error))?;
        if container.hidden.is_some() {
            // Before anybody attaches: podman 4.3 to 5.8 prepares a container for that, and looks for its program then.
            match self.inner.write_files(id, &[hide::program(self.inner.info())?]).await {
                // It runs already: it has had its secrets.
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    container.hidden = None;
                    self.containers().insert(id.clone(), container);
                }
                Err(error) => {
                    if matches!(created, Created::New) {
                        self.inner.remove_container(id).await.ok();
                    }
                    return Err(job.redact_error(error));
                }
                Ok(()) => {}
            }
        }
        Ok(created)
    }

    async fn write_files(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()> {
        let Container { job, hidden, owner, .. } = self.container(id);
        let mut written = Vec::with_capacity(files.len());
        for file in files {
            let (mut file, secret) = files::resolve(file, &job)
                .await
                .map_err(|error| job.redact_error(error))?;
            if let (Some(hidden), Some(secret)) = (&hidden, &secret) {
                let mut hidden = hidden.lock().unwrap_or_else(PoisonError::into_inner);
                if hidden.takes(&file.path) {
                    hidden.file(file.path.as_str(), secret);
                    continue;
                }
            }
            if let (Some(_), Some((uid, gid)), 0) = (secret, owner, file.uid) {
                (file.uid, file.gid) = (uid, gid);
            }
            written.push(file);
        }
        if written.is_empty() {
            return Ok(());
        }
        self.inner
            .write_files(id, &written)
            .await
            .map_err(|error| job.redact_error(error))
    }

    async fn start_container(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        let Container { job, hidden, .. } = self.container(id);
        let stdin = match hidden {
            None => stdin,
            Some(hidden) => {
                let hidden = hidden.lock().unwrap_or_else(PoisonError::into_inner);
                Some(hidden.before(stdin))
            }
        };
        self.inner
            .start_container(id, stdin)
            .await
            .map_err(|error| job.redact_error(error))
    }

    async fn logs(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        let Container { job, progress, .. } = self.container(id);
        let logs = self
            .inner
            .logs(id, follow)
            .await
            .map_err(|error| job.redact_error(error))?;
        Ok(stream::logs(logs, job, progress))
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<ExitStatus> {
        let job = self.container(id).job;
        self.inner
            .wait_container(id)
            .await
            .map_err(|error| job.redact_error(error))
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec, stdin: Option<ByteStream>) -> Result<ExecStream> {
        let Container { job, content, .. } = self.container(id);
        let mut spec = spec.clone();
        resolve_env(&mut spec.env, &job)
            .await
            .map_err(|error| job.redact_error(error))?;
        let events = self.inner.exec(id, &spec, stdin).await;
        spec.env.0.values_mut().for_each(Zeroize::zeroize);
        Ok(stream::exec(
            events.map_err(|error| job.redact_error(error))?,
            job,
            content,
        ))
    }

    async fn signal_container(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        let job = self.container(id).job;
        self.inner
            .signal_container(id, signal)
            .await
            .map_err(|error| job.redact_error(error))
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        let job = self.container(id).job;
        let removed = self
            .inner
            .remove_container(id)
            .await
            .map_err(|error| job.redact_error(error));
        if removed.is_ok() {
            self.containers().remove(id);
        }
        removed
    }

    async fn list(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        let listed = self.inner.list(job).await;
        listed.map_err(|error| match job {
            Some(job) => self.secrets.known(job).redact_error(error),
            None => self.secrets.redact_error(error),
        })
    }

    async fn end_job(&self, job: &JobId) -> Result<EndReport> {
        let secrets = self.secrets.known(job);
        let mut report = self
            .inner
            .end_job(job)
            .await
            .map_err(|error| secrets.redact_error(error))?;
        let remaining = std::mem::take(&mut report.remaining);
        let clean = |(resource, error): (Resource, Error)| (resource, secrets.redact_error(error));
        report.remaining = remaining.into_iter().map(clean).collect();
        // Who tries again what remains reads on.
        if report.remaining.is_empty() {
            self.containers().retain(|id, _| owner(id.as_str()) != job.as_str());
            self.secrets.forget(job);
        }
        Ok(report)
    }
}

impl fmt::Display for SecretsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secrets({})", self.inner)
    }
}
