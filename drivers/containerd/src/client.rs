//! The connection to containerd, and what every request carries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::tonic::Request;
use containerd_client::tonic::metadata::{AsciiMetadataValue, MetadataValue};
use containerd_client::tonic::transport::{Channel, Endpoint, Uri};
use hyper_util::rt::TokioIo;
use orchestra::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tower::service_fn;

use crate::error::{self, Subject};

/// Largest message either way: containerd's own client's, and what its server permits.
const MAX_MESSAGE: usize = 16 << 20;
/// Bytes of one call that may be under way: layers pass through.
const WINDOW: u32 = 4 << 20;
/// How long whatever listens may take to say what it is.
const PROBE: Duration = Duration::from_secs(2);

/// A client of one namespace of one containerd. Cloning it is cheap; all clones share the connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    calls: Channel,
    /// A connection of its own for bytes, so that a slow reader of a blob holds up no call.
    bytes: Channel,
    namespace: AsciiMetadataValue,
    lease: Option<AsciiMetadataValue>,
}

macro_rules! services {
    ($($name:ident: $client:ident on $channel:ident),+ $(,)?) => {
        $(pub(crate) fn $name(&self) -> $client<Channel> {
            $client::new(self.$channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
        })+
    };
}

impl Client {
    /// A client of the containerd that listens at `socket`. It connects with the first call, and again with the first one
    /// after a connection broke.
    pub(crate) fn new(socket: &Path, namespace: &str) -> Result<Self> {
        Ok(Self {
            calls: channel(socket.to_owned()),
            bytes: channel(socket.to_owned()),
            namespace: metadata(namespace)?,
            lease: None,
        })
    }

    /// A client whose requests make all that they make under this lease: containerd's garbage collector leaves it alone
    /// until the lease is deleted.
    pub(crate) fn with_lease(&self, lease: &str) -> Result<Self> {
        Ok(Self {
            lease: Some(metadata(lease)?),
            ..self.clone()
        })
    }

    /// A request for this client's namespace, and under its lease, if it has one.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        request
    }

    services! {
        containers: ContainersClient on calls,
        content: ContentClient on bytes,
        diff: DiffClient on calls,
        images: ImagesClient on calls,
        introspection: IntrospectionClient on calls,
        leases: LeasesClient on calls,
        snapshots: SnapshotsClient on calls,
        tasks: TasksClient on calls,
        version: VersionClient on calls,
    }

    /// The engine's version.
    pub(crate) async fn engine_version(&self) -> Result<String> {
        let answer = self.version().version(self.request(())).await;
        Ok(answer.map_err(error::about(Subject::Engine))?.into_inner().version)
    }
}

fn metadata(value: &str) -> Result<AsciiMetadataValue> {
    MetadataValue::try_from(value).map_err(|_| Error::invalid(format!("{value:?} can't be sent to containerd")))
}

fn channel(socket: PathBuf) -> Channel {
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    // The address is not used: the connector knows the socket.
    Endpoint::from_static("http://containerd")
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .connect_with_connector_lazy(connect)
}

/// Whether a containerd answers on this socket: what another engine's driver could not speak to may be one. No answer within
/// two seconds is none.
pub async fn is_containerd(socket: &Path) -> bool {
    let answer = async { Client::new(socket, "default")?.engine_version().await };
    matches!(tokio::time::timeout(PROBE, answer).await, Ok(Ok(_)))
}

/// Says whether another engine listens there, and which: one that speaks HTTP as docker does.
pub(crate) async fn recognise(socket: &Path) -> Option<Error> {
    let answer = tokio::time::timeout(PROBE, async {
        let mut stream = UnixStream::connect(socket).await.ok()?;
        stream
            .write_all(b"GET /_ping HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .await
            .ok()?;
        let mut answer = Vec::new();
        stream.take(64 << 10).read_to_end(&mut answer).await.ok()?;
        Some(String::from_utf8_lossy(&answer).to_ascii_lowercase())
    });
    let answer = answer.await.ok()??;
    if !answer.starts_with("http/1.") {
        return None;
    }
    let has = |header: &str| answer.contains(&format!("\r\n{header}:"));
    let other = match (
        has("libpod-api-version"),
        has("api-version") || has("docker-experimental"),
    ) {
        (true, _) => Some("podman"),
        (false, true) => Some("docker"),
        (false, false) => None,
    };
    let message = format!(
        "{} answers here, not containerd",
        other.unwrap_or("something that speaks HTTP/1.1")
    );
    let hint = match other {
        Some(other) => format!("use the driver of that engine (`--driver {other}`), or name containerd's own socket"),
        None => "name containerd's own socket, or use the driver of the engine that answers here".to_owned(),
    };
    Some(Error::new(ErrorKind::Unsupported, message).with_hint(hint))
}
