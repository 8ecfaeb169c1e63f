//! What a layer is made of.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::{
    ByteStream, ContainerId, ContainerSpec, Created, Driver, DriverInfo, EndReport, ExecSpec, ExecStream, ExitStatus,
    ImageRef, InjectedFile, JobId, LogStream, PullImage, PullStream, Resource, Result, SharedDriver, Signal,
    VolumeDirectory, VolumeId, VolumePath, VolumeSpec,
};

/// A method of [`Driver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the method of its name")]
#[non_exhaustive]
pub enum Method {
    Ping,
    PullImage,
    ImportImage,
    ImageExists,
    RemoveImage,
    CreateVolume,
    WriteVolume,
    ReadVolume,
    VolumeDirectory,
    RemoveVolume,
    CreateContainer,
    WriteFiles,
    StartContainer,
    Logs,
    WaitContainer,
    Exec,
    SignalContainer,
    RemoveContainer,
    List,
    EndJob,
}

impl Method {
    /// The method's name in the trait.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::PullImage => "pull_image",
            Self::ImportImage => "import_image",
            Self::ImageExists => "image_exists",
            Self::RemoveImage => "remove_image",
            Self::CreateVolume => "create_volume",
            Self::WriteVolume => "write_volume",
            Self::ReadVolume => "read_volume",
            Self::VolumeDirectory => "volume_directory",
            Self::RemoveVolume => "remove_volume",
            Self::CreateContainer => "create_container",
            Self::WriteFiles => "write_files",
            Self::StartContainer => "start_container",
            Self::Logs => "logs",
            Self::WaitContainer => "wait_container",
            Self::Exec => "exec",
            Self::SignalContainer => "signal_container",
            Self::RemoveContainer => "remove_container",
            Self::List => "list",
            Self::EndJob => "end_job",
        }
    }
}

/// One call: which method, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Operation {
    /// The method.
    pub method: Method,
    /// What sort of thing it is about and which: `("container", "orchestra.j.1.t")`.
    pub subject: Option<(&'static str, String)>,
}

/// What a layer does around calls. Each method has what it wraps passed in, and passes it on unless it has a reason not to.
#[async_trait]
pub trait Hook: fmt::Debug + Send + Sync + 'static {
    /// The layer's name in the stack's `Display`.
    fn name(&self) -> &'static str;

    /// Around one call. `driver` is what is below, for a hook that has to ask something itself.
    async fn call<'a, T: Send + 'a>(
        &'a self,
        driver: &'a SharedDriver,
        operation: &'a Operation,
        call: BoxFuture<'a, Result<T>>,
    ) -> Result<T>;

    /// Around a call that reads `input` to its end.
    async fn call_with_input<'a, T: Send + 'a>(
        &'a self,
        driver: &'a SharedDriver,
        operation: &'a Operation,
        input: ByteStream,
        call: Box<dyn FnOnce(ByteStream) -> BoxFuture<'a, Result<T>> + Send + 'a>,
    ) -> Result<T> {
        self.call(driver, operation, call(input)).await
    }

    /// Around the stream that a call returned.
    fn stream<T: Send + 'static>(
        &self,
        _driver: &SharedDriver,
        _operation: &Operation,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        stream
    }
}

/// A driver with a [`Hook`] around every call.
#[derive(Debug)]
pub struct Layered<H> {
    inner: SharedDriver,
    hook: H,
}

impl<H: Hook> Layered<H> {
    /// `inner` with `hook` around it.
    pub fn new(inner: SharedDriver, hook: H) -> Self {
        Self { inner, hook }
    }

    /// The same, shared.
    pub fn wrap(inner: SharedDriver, hook: H) -> SharedDriver {
        Arc::new(Self::new(inner, hook))
    }
}

impl<H: Hook> fmt::Display for Layered<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.hook.name(), self.inner)
    }
}

/// One call through the hook: `call!(self, Method, "kind" => subject, future)`.
macro_rules! call {
    ($self:ident, $method:ident, $kind:literal => $subject:expr, $call:expr) => {
        call!(
            $self,
            Operation {
                method: Method::$method,
                subject: Some(($kind, $subject.to_string()))
            },
            $call
        )
    };
    ($self:ident, $method:ident, $call:expr) => {
        call!(
            $self,
            Operation {
                method: Method::$method,
                subject: None
            },
            $call
        )
    };
    ($self:ident, $operation:expr, $call:expr) => {{
        let operation = $operation;
        $self.hook.call(&$self.inner, &operation, Box::pin($call)).await
    }};
}

/// The same for a call that returns a stream.
macro_rules! streaming {
    ($self:ident, $method:ident, $kind:literal => $subject:expr, $call:expr) => {{
        let operation = Operation {
            method: Method::$method,
            subject: Some(($kind, $subject.to_string())),
        };
        let stream = $self.hook.call(&$self.inner, &operation, Box::pin($call)).await?;
        Ok($self.hook.stream(&$self.inner, &operation, stream))
    }};
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<H: Hook> Driver for Layered<H> {
    fn info(&self) -> &DriverInfo {
        self.inner.info()
    }

    async fn ping(&self) -> Result<()> {
        call!(self, Ping, self.inner.ping())
    }

    async fn pull_image(&self, pull: &PullImage) -> Result<PullStream> {
        streaming!(self, PullImage, "image" => pull.image, self.inner.pull_image(pull))
    }

    async fn import_image(&self, image: &ImageRef, archive: ByteStream) -> Result<()> {
        let operation = Operation {
            method: Method::ImportImage,
            subject: Some(("image", image.to_string())),
        };
        let call = Box::new(move |archive| self.inner.import_image(image, archive));
        self.hook.call_with_input(&self.inner, &operation, archive, call).await
    }

    async fn image_exists(&self, image: &ImageRef) -> Result<bool> {
        call!(self, ImageExists, "image" => image, self.inner.image_exists(image))
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<()> {
        call!(self, RemoveImage, "image" => image, self.inner.remove_image(image))
    }

    async fn create_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        call!(self, CreateVolume, "volume" => id, self.inner.create_volume(id, spec))
    }

    async fn write_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        let operation = Operation {
            method: Method::WriteVolume,
            subject: Some(("volume", id.to_string())),
        };
        let call = Box::new(move |tar| self.inner.write_volume(id, path, tar));
        self.hook.call_with_input(&self.inner, &operation, tar, call).await
    }

    async fn read_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        streaming!(self, ReadVolume, "volume" => id, self.inner.read_volume(id, paths))
    }

    async fn volume_directory(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        call!(self, VolumeDirectory, "volume" => id, self.inner.volume_directory(id))
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<()> {
        call!(self, RemoveVolume, "volume" => id, self.inner.remove_volume(id))
    }

    async fn create_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        call!(self, CreateContainer, "container" => id, self.inner.create_container(id, spec))
    }

    async fn write_files(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()> {
        call!(self, WriteFiles, "container" => id, self.inner.write_files(id, files))
    }

    async fn start_container(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        call!(self, StartContainer, "container" => id, self.inner.start_container(id, stdin))
    }

    async fn logs(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        streaming!(self, Logs, "container" => id, self.inner.logs(id, follow))
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<ExitStatus> {
        call!(self, WaitContainer, "container" => id, self.inner.wait_container(id))
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec, stdin: Option<ByteStream>) -> Result<ExecStream> {
        streaming!(self, Exec, "container" => id, self.inner.exec(id, spec, stdin))
    }

    async fn signal_container(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        call!(self, SignalContainer, "container" => id, self.inner.signal_container(id, signal))
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        call!(self, RemoveContainer, "container" => id, self.inner.remove_container(id))
    }

    async fn list(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        call!(self, List, self.inner.list(job))
    }

    async fn end_job(&self, job: &JobId) -> Result<EndReport> {
        call!(self, EndJob, "job" => job, self.inner.end_job(job))
    }
}
