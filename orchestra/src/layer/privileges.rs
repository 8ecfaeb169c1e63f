//! Who may be privileged.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    ByteStream, ContainerId, ContainerSpec, Created, Driver, DriverInfo, EndReport, Error, ErrorKind, ExecSpec,
    ExecStream, ExitStatus, ImageRef, InjectedFile, JobId, LogStream, PullImage, PullStream, Resource, Result,
    SharedDriver, Signal, VolumeDirectory, VolumeId, VolumePath, VolumeSpec, labels,
};

/// Which containers may be privileged: all where nothing else is said.
///
/// ```
/// use orchestra::layer::PrivilegePolicy;
/// let policy = PrivilegePolicy::only(["moby/buildkit".parse()?]);
/// assert!(policy.permits(&"moby/buildkit:v0.34.2".parse()?));
/// assert!(!policy.permits(&"busybox".parse()?));
/// # Ok::<_, orchestra::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrivilegePolicy {
    /// `None` for all.
    only: Option<Vec<ImageRef>>,
}

impl PrivilegePolicy {
    /// Containers of these images alone, of none where there are none. An image that is written without tag and digest
    /// stands for all of its tags.
    #[must_use]
    pub fn only(images: impl IntoIterator<Item = ImageRef>) -> Self {
        Self {
            only: Some(images.into_iter().collect()),
        }
    }

    /// Whether a container of this image may be privileged.
    #[must_use]
    pub fn permits(&self, image: &ImageRef) -> bool {
        let Some(only) = &self.only else { return true };
        only.iter().any(|permitted| {
            let last = permitted.as_str().rsplit('/').next().unwrap_or_default();
            if last.contains([':', '@']) {
                return permitted.canonical() == image.canonical();
            }
            (permitted.registry(), permitted.repository()) == (image.registry(), image.repository())
        })
    }

    /// Compares a container with the policy. What adds kernel capabilities is privileged too, but for what the
    /// library itself reads and writes [volumes](labels::OUTPUT_CONTENT) by: its program does nothing that a user asks for.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] naming the image: what is permitted is its caller's to know.
    pub fn check(&self, spec: &ContainerSpec) -> Result<()> {
        let is_transfer = spec
            .labels
            .get(labels::OUTPUT)
            .is_some_and(|of| of == labels::OUTPUT_CONTENT);
        match spec.privileged || (!spec.cap_add.is_empty() && !is_transfer) {
            true => self.check_image(&spec.image),
            false => Ok(()),
        }
    }

    /// The same for a container of this image that is to be privileged.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_image(&self, image: &ImageRef) -> Result<()> {
        if self.permits(image) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a privileged container of {image} is not permitted here"),
        )
        .with_hint(
            "do without privileges (an image build: `rootless`), or let who looks after the configuration add the image \
             to those that may have them",
        ))
    }
}

/// Refuses containers that the [policy](PrivilegePolicy) forbids, before the engine is asked for them.
#[derive(Debug)]
pub struct Privileges {
    inner: SharedDriver,
    policy: PrivilegePolicy,
}

impl Privileges {
    /// `inner` with `policy`.
    pub fn wrap(inner: SharedDriver, policy: PrivilegePolicy) -> SharedDriver {
        Arc::new(Self { inner, policy })
    }
}

impl fmt::Display for Privileges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "privileges({})", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Driver for Privileges {
    fn info(&self) -> &DriverInfo {
        self.inner.info()
    }

    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }

    async fn pull_image(&self, pull: &PullImage) -> Result<PullStream> {
        self.inner.pull_image(pull).await
    }

    async fn import_image(&self, image: &ImageRef, archive: ByteStream) -> Result<()> {
        self.inner.import_image(image, archive).await
    }

    async fn image_exists(&self, image: &ImageRef) -> Result<bool> {
        self.inner.image_exists(image).await
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<()> {
        self.inner.remove_image(image).await
    }

    async fn create_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        self.inner.create_volume(id, spec).await
    }

    async fn write_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        self.inner.write_volume(id, path, tar).await
    }

    async fn read_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        self.inner.read_volume(id, paths).await
    }

    async fn volume_directory(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        self.inner.volume_directory(id).await
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<()> {
        self.inner.remove_volume(id).await
    }

    async fn create_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        self.policy.check(spec)?;
        self.inner.create_container(id, spec).await
    }

    async fn write_files(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()> {
        self.inner.write_files(id, files).await
    }

    async fn start_container(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        self.inner.start_container(id, stdin).await
    }

    async fn logs(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        self.inner.logs(id, follow).await
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<ExitStatus> {
        self.inner.wait_container(id).await
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec, stdin: Option<ByteStream>) -> Result<ExecStream> {
        self.inner.exec(id, spec, stdin).await
    }

    async fn signal_container(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        self.inner.signal_container(id, signal).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.inner.remove_container(id).await
    }

    async fn list(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        self.inner.list(job).await
    }

    async fn end_job(&self, job: &JobId) -> Result<EndReport> {
        self.inner.end_job(job).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_permitted_by_its_name_and_by_its_tag_where_one_is_written() {
        let policy = PrivilegePolicy::only(["moby/buildkit", "r.test:5000/tool:1"].map(|image| image.parse().unwrap()));
        let permits = |image: &str| policy.permits(&image.parse().unwrap());
        assert!(permits("docker.io/moby/buildkit:v1") && permits("r.test:5000/tool:1"));
        assert!(!permits("r.test:5000/tool:2") && !permits("r.test:5000/moby/buildkit") && !permits("busybox"));
        assert!(PrivilegePolicy::default().permits(&"busybox".parse().unwrap()));
        let mut spec = ContainerSpec::new("busybox".parse().unwrap());
        policy.check(&spec).unwrap();
        spec.privileged = true;
        assert_eq!(policy.check(&spec).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn what_moves_files_has_its_capabilities_and_no_more() {
        let policy = PrivilegePolicy::only([]);
        let mut spec = ContainerSpec::new("busybox".parse().unwrap());
        spec.cap_add.push("CHOWN".parse().unwrap());
        assert!(policy.check(&spec).is_err());
        spec.labels
            .insert(labels::OUTPUT.to_owned(), labels::OUTPUT_CONTENT.to_owned());
        policy.check(&spec).unwrap();
        spec.privileged = true;
        assert!(policy.check(&spec).is_err());
    }
}
