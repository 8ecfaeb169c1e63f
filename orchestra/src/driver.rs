//! The contract between `orchestra` and a container engine.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::capability::refuse;
use crate::{
    ByteStream, Capabilities, ContainerId, ContainerSpec, Created, EndReport, ExecSpec, ExecStream, ExitStatus,
    ImageRef, InjectedFile, JobId, LogStream, Platform, PullImage, PullStream, Resource, Result, Signal,
    VolumeDirectory, VolumeId, VolumePath, VolumeSpec,
};

/// What a driver knows of its engine since it connected.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct DriverInfo {
    /// The driver's short name, as config has it: `docker`.
    pub driver: String,
    /// Where the engine answers: `unix:///run/docker.sock`.
    pub endpoint: String,
    /// The engine's version: `20.10.24`.
    pub engine_version: String,
    /// The version of the API that is spoken: `1.41`.
    pub api_version: String,
    /// What containers run on where nothing else is said.
    pub platform: Platform,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Why a capability is missing and what would give it, by the capability's name, where the driver knows.
    pub reasons: BTreeMap<String, String>,
    /// What keeps the engine from running any container, as far as can be seen before one is made, and what would mend it.
    pub problems: Vec<String>,
}

impl DriverInfo {
    /// All fields at once, for drivers.
    pub fn new(
        driver: impl Into<String>,
        endpoint: impl Into<String>,
        engine_version: impl Into<String>,
        api_version: impl Into<String>,
        platform: Platform,
        capabilities: Capabilities,
    ) -> Self {
        Self {
            driver: driver.into(),
            endpoint: endpoint.into(),
            engine_version: engine_version.into(),
            api_version: api_version.into(),
            platform,
            capabilities,
            reasons: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// Says that the engine can run no container, why, and what would mend that: `orchestra doctor` repeats it.
    #[must_use]
    pub fn problem(mut self, problem: impl Into<String>) -> Self {
        self.problems.push(problem.into());
        self
    }

    /// Says why a capability is missing, and what would give it.
    #[must_use]
    pub fn because(mut self, capability: &str, reason: impl Into<String>) -> Self {
        self.reasons.insert(capability.to_owned(), reason.into());
        self
    }

    /// Compares `spec` with what the engine can do, as [`Capabilities::check_container`] does, and says why it can't.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) naming every capability that is asked for and missing.
    pub fn check_container(&self, spec: &ContainerSpec) -> Result<()> {
        refuse(&self.capabilities.missing_for(spec), &self.reasons)
    }
}

/// One container engine.
///
/// # Life cycle
/// 1. A driver is made connected; [`info`](Self::info) does no I/O from then on.
/// 2. Images come first ([`pull_image`](Self::pull_image), [`import_image`](Self::import_image)), then volumes
///    ([`create_volume`](Self::create_volume), [`write_volume`](Self::write_volume)), then the container:
///    [`create_container`](Self::create_container), [`write_files`](Self::write_files), [`logs`](Self::logs),
///    [`start_container`](Self::start_container), [`wait_container`](Self::wait_container),
///    [`remove_container`](Self::remove_container). [`end_job`](Self::end_job) is last and removes what is left.
/// 3. **Concurrency**: every method may be called from many tasks at once, on different resources and on the same one.
/// 4. **Idempotency**: creating what exists attaches to it; removing what does not exist succeeds. After an error, the
///    same call may be made again.
/// 5. **State**: all of it is in the engine, found again by id and label. Another process with the same ids sees the same.
/// 6. **Ownership**: a driver touches only what it is given by id, and, in [`list`](Self::list) and
///    [`end_job`](Self::end_job), what carries [`labels::JOB`](crate::labels::JOB).
/// 7. **Dropping** a future or stream abandons the call and leaves the connection usable; it may or may not have taken effect.
/// 8. What [`Capabilities`] rule out is refused with [`Unsupported`](crate::ErrorKind::Unsupported) before any effect.
///
/// Deadlines, retries, redaction, tracing and error context are [layers](crate::layer); a driver has none of it.
/// Each `# Behavior` line that any engine can be made to show has a case in the conformance suite; limits that a driver's
/// own configuration sets have tests of the driver's.
///
/// # Errors
/// Every method can fail with [`Unreachable`](crate::ErrorKind::Unreachable), [`PermissionDenied`](crate::ErrorKind::PermissionDenied),
/// [`Interrupted`](crate::ErrorKind::Interrupted), [`Protocol`](crate::ErrorKind::Protocol), [`Engine`](crate::ErrorKind::Engine) and
/// [`DiskFull`](crate::ErrorKind::DiskFull), this last as far as the engine has a code for it (one that has none says so in its
/// own words, as [`Engine`](crate::ErrorKind::Engine)); those below are in addition.
#[async_trait]
pub trait Driver: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Name, endpoint, versions and capabilities of the stack. No I/O.
    ///
    /// # Behavior
    /// - The engine's version and platform are those it reports itself.
    fn info(&self) -> &DriverInfo;

    /// Whether the engine answers now.
    ///
    /// # Behavior
    /// - Succeeds on a running engine; fails with [`Unreachable`](crate::ErrorKind::Unreachable) where none listens.
    async fn ping(&self) -> Result<()>;

    /// Fetches an image from its registry, whether or not the engine has it.
    ///
    /// # Behavior
    /// - When the stream ends without an error, [`image_exists`](Self::image_exists) is true.
    /// - A failure in the middle of a pull is an error of the stream.
    /// - Credentials go to the image's registry and are kept nowhere.
    ///
    /// # Errors
    /// [`ImageNotFound`](crate::ErrorKind::ImageNotFound), [`Unauthorized`](crate::ErrorKind::Unauthorized) and
    /// [`Registry`](crate::ErrorKind::Registry), as far as the engine tells them apart. Requires
    /// [`insecure_pull`](Capabilities::insecure_pull) for [`PullImage::insecure`].
    async fn pull_image(&self, pull: &PullImage) -> Result<PullStream>;

    /// Loads an image from a tar, an [OCI image layout](https://github.com/opencontainers/image-spec/blob/main/image-layout.md)
    /// or a docker archive, under the name `image`.
    ///
    /// # Behavior
    /// - The archive's own names are ignored; it has to hold one image.
    /// - An image that had the name loses it.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the tar is neither. A [`Conflict`](crate::ErrorKind::Conflict) that is
    /// [retryable](crate::Error::is_retryable) where others removed an image that shares layers with it meanwhile, on engines
    /// that don't keep them (podman): [`import_archive`](crate::import_archive) imports again then. Requires
    /// [`import_image`](Capabilities::import_image).
    async fn import_image(&self, image: &ImageRef, archive: ByteStream) -> Result<()>;

    /// Whether the engine has the image.
    async fn image_exists(&self, image: &ImageRef) -> Result<bool>;

    /// Takes the name from the image, and removes the image if it has no other name.
    ///
    /// # Behavior
    /// - An image that does not exist is success.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) while a container uses it.
    async fn remove_image(&self, image: &ImageRef) -> Result<()>;

    /// Makes an empty volume.
    ///
    /// # Behavior
    /// - With an id that exists it answers [`Created::Existing`] and leaves the content as it is.
    async fn create_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created>;

    /// Unpacks a tar into the volume's directory `path`, which must exist.
    ///
    /// # Behavior
    /// - Files that exist are replaced, others stay.
    /// - Owners (numbers), permission bits with setuid, mtimes in seconds, symlinks and hard links are kept.
    /// - With [`exact_volumes`](Capabilities::exact_volumes) so is all else that the kernel keeps of a file, as `pax` records
    ///   tell it: mtimes in nanoseconds, extended attributes (`SCHILY.xattr.*`), fifos, devices, holes, names of any bytes.
    ///   Without it such things may be lost or refused: the crate `orchestra-volumes` carries them on any engine.
    /// - No entry is ever written outside of the volume.
    /// - An error of `tar` ends the call with that error.
    ///
    /// # Errors
    /// [`VolumeNotFound`](crate::ErrorKind::VolumeNotFound), [`PathNotFound`](crate::ErrorKind::PathNotFound).
    async fn write_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()>;

    /// Packs files and directories of a volume, all below them included, into one tar.
    ///
    /// # Behavior
    /// - Entry names are relative to the volume's root, without a leading `./`; the root itself has no entry.
    /// - What [`write_volume`](Self::write_volume) keeps, comes back.
    ///
    /// # Errors
    /// [`VolumeNotFound`](crate::ErrorKind::VolumeNotFound), [`PathNotFound`](crate::ErrorKind::PathNotFound), from the call or from the stream.
    async fn read_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream>;

    /// Where a volume's files are on this machine: the directory that containers have mounted. `None` where the driver can't
    /// show that it is this very volume, because the engine is on another machine, in a mount namespace of its own, or behind a
    /// socket that leads elsewhere. It is for whoever moves whole trees; this process may still lack the right to read there.
    /// Someone else may remove the volume meanwhile: who has read it all asks once more whether it is there.
    ///
    /// # Behavior
    /// - Needs [`volume_directories`](Capabilities::volume_directories); without it the answer is `None`.
    /// - What is written there is in the volume, and the other way round, with the same owners.
    /// - As long as it is held, [`remove_volume`](Self::remove_volume) of this driver waits, and fails with
    ///   [`Conflict`](crate::ErrorKind::Conflict) after ten seconds.
    ///
    /// # Errors
    /// [`VolumeNotFound`](crate::ErrorKind::VolumeNotFound).
    async fn volume_directory(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>>;

    /// Removes a volume.
    ///
    /// # Behavior
    /// - A volume that does not exist is success.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) while a container uses it, or this process its directory.
    async fn remove_volume(&self, id: &VolumeId) -> Result<()>;

    /// Makes a container without starting it.
    ///
    /// # Behavior
    /// - With an id that exists it answers [`Created::Existing`] and changes nothing.
    /// - A working directory that the image lacks is made.
    /// - Entry point, command, environment, working directory and user are the image's where the spec says nothing. A volume
    ///   that the image declares begins with what the image has there, is this container's own and goes with it.
    ///
    /// # Errors
    /// [`ImageNotFound`](crate::ErrorKind::ImageNotFound), also if the engine has the image for another
    /// [`platform`](ContainerSpec::platform) only; [`VolumeNotFound`](crate::ErrorKind::VolumeNotFound) (no volume is ever
    /// made by mounting it), [`InvalidInput`](crate::ErrorKind::InvalidInput); [`Unsupported`](crate::ErrorKind::Unsupported) for what
    /// [`Capabilities::check_container`] says.
    async fn create_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created>;

    /// Puts small files into a container that has not been started.
    ///
    /// # Behavior
    /// - Content, permission bits and owners are as given; missing directories are made.
    ///
    /// # Errors
    /// [`ContainerNotFound`](crate::ErrorKind::ContainerNotFound), [`Conflict`](crate::ErrorKind::Conflict) if it was started.
    async fn write_files(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()>;

    /// Starts a container; returns when its process runs.
    ///
    /// # Behavior
    /// - A container that runs already is success.
    /// - `stdin` is fed to the process as it reads, and closed at its end; without one, a container with
    ///   [`ContainerSpec::stdin`] reads an end of file.
    ///
    /// # Errors
    /// [`ContainerNotFound`](crate::ErrorKind::ContainerNotFound); [`Conflict`](crate::ErrorKind::Conflict) if it has ended or if `stdin` is given
    /// and the spec did not ask for it; [`InvalidInput`](crate::ErrorKind::InvalidInput) if the image lacks the program, or it can't be executed.
    async fn start_container(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()>;

    /// All that the container writes, from its first byte on.
    ///
    /// # Behavior
    /// - `follow` ends when the container has ended; on a container that has not been started it waits for the start and
    ///   loses nothing. Call it before [`start_container`](Self::start_container): that is the cheapest and exact to the byte.
    /// - Without `follow` it ends with what was written up to now.
    /// - It may be read late, more than once, and by another process. Then a last line without a line feed may come with
    ///   one, where the engine keeps logs by lines.
    /// - Read late, it is whole as far as the driver's limit on a log's size, which its config states; the oldest goes first.
    /// - But for that, and as long as the log is below the limit, each stream has the same bytes each time: who was cut off
    ///   reads on by a [`LogOffset`](crate::LogOffset).
    /// - A reader that is slow slows the container, or is served from the engine's disk; it is never cut off.
    ///
    /// # Errors
    /// [`ContainerNotFound`](crate::ErrorKind::ContainerNotFound).
    async fn logs(&self, id: &ContainerId, follow: bool) -> Result<LogStream>;

    /// Waits until the container has ended, and tells how; at once if it has.
    ///
    /// # Behavior
    /// - Many may wait for one container.
    ///
    /// # Errors
    /// [`ContainerNotFound`](crate::ErrorKind::ContainerNotFound), also if it is removed meanwhile;
    /// [`Conflict`](crate::ErrorKind::Conflict) if it was never started.
    async fn wait_container(&self, id: &ContainerId) -> Result<ExitStatus>;

    /// Runs a further process in a running container. Dropping the stream leaves the process running.
    ///
    /// # Behavior
    /// - The stream yields output of both streams, then the exit as its last item.
    /// - `stdin` is fed to the process and closed at its end.
    ///
    /// # Errors
    /// [`ContainerNotFound`](crate::ErrorKind::ContainerNotFound), [`Conflict`](crate::ErrorKind::Conflict) if it does not run. Requires [`exec`](Capabilities::exec).
    async fn exec(&self, id: &ContainerId, spec: &ExecSpec, stdin: Option<ByteStream>) -> Result<ExecStream>;

    /// Sends a signal to the container's main process.
    ///
    /// # Behavior
    /// - A container that has ended is success: who signals can't know.
    ///
    /// # Errors
    /// [`ContainerNotFound`](crate::ErrorKind::ContainerNotFound).
    async fn signal_container(&self, id: &ContainerId, signal: Signal) -> Result<()>;

    /// Removes a container with its writable layer and the volumes its image declares, killing it if it runs.
    ///
    /// # Behavior
    /// - A container that does not exist is success; when the call returns it is gone.
    /// - Volumes that were mounted by id stay.
    async fn remove_container(&self, id: &ContainerId) -> Result<()>;

    /// What the engine holds of one job, or of all jobs: all that carries [`labels::JOB`](crate::labels::JOB).
    ///
    /// # Behavior
    /// - A container is listed with its state.
    /// - Nothing of another job, and nothing that is not ours, is ever listed.
    async fn list(&self, job: Option<&JobId>) -> Result<Vec<Resource>>;

    /// Removes everything of a job, containers first, and says what was removed and what could not be.
    ///
    /// # Behavior
    /// - A job that the engine does not know is success.
    /// - What processes that have died had begun for no job, a pull, goes too, where the driver keeps record of it.
    /// - After it, [`list`](Self::list) of the job is what the report names as remaining.
    async fn end_job(&self, job: &JobId) -> Result<EndReport>;
}

/// A driver that is shared and wrapped.
pub type SharedDriver = Arc<dyn Driver>;
