//! HTTP to libpod: one connection a call, on a socket or by TCP.
//!
//! The crate `podman-api` 0.11 is not used: it takes whole images and tars as a `Vec<u8>` (`load`, `import`), reads a
//! stream of JSON by network pieces, which breaks values in two, knows no `cause` of a refusal, and brings `hyper` 0.14
//! beside the one that all else here uses. A connection of its own for each call costs tens of microseconds on a socket,
//! never is a stale one of a pool after the engine was restarted, and ends what was asked for when it is dropped.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use orchestra::{Error, ErrorKind};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Endpoint;
use crate::error::{Failure, Refusal, Subject, about};

/// The version of the API that each request names: the oldest that has all this driver needs, and so one that every
/// version from podman 4.0 on speaks.
pub(crate) const API: &str = "4.0.0";

/// Largest answer that is taken into memory: a list of some ten thousand resources.
const MAX_ANSWER: usize = 64 << 20;

/// What stands in a path or query as it is (RFC 3986, "unreserved").
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Speaks to one engine.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    endpoint: Arc<Endpoint>,
}

impl Client {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint: Arc::new(endpoint),
        }
    }

    /// Makes sure that a podman answers that speaks this driver's version of the API. All of them tell their own in a
    /// header, also of the answer to docker's ping; to other paths docker says nothing of itself.
    pub(crate) async fn identify(&self) -> orchestra::Result<()> {
        let mut call = self.get(&[]);
        call.target = "/_ping".to_owned();
        let answer = match call.exchange().await {
            Err(Failure::Broken(_)) if self.endpoint.speaks_first().await => {
                return Err(other_engine("something that does not speak HTTP/1.1"));
            }
            answer => answer.map_err(about(Subject::Engine))?,
        };
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let Some(version) = header("libpod-api-version") else {
            let server = header("server").unwrap_or_default();
            return Err(match server.split('/').next() {
                Some("Docker") => other_engine("docker"),
                Some("") | None => other_engine("something else"),
                Some(other) => other_engine(&format!("{other:?}")),
            });
        };
        if major(version) < major(API) {
            return Err(too_old(version));
        }
        Ok(())
    }

    pub(crate) fn get(&self, path: &[&str]) -> Call {
        self.call(Method::GET, path)
    }

    pub(crate) fn head(&self, path: &[&str]) -> Call {
        self.call(Method::HEAD, path)
    }

    pub(crate) fn post(&self, path: &[&str]) -> Call {
        self.call(Method::POST, path)
    }

    pub(crate) fn put(&self, path: &[&str]) -> Call {
        self.call(Method::PUT, path)
    }

    pub(crate) fn delete(&self, path: &[&str]) -> Call {
        self.call(Method::DELETE, path)
    }

    /// A call of the path of these parts below libpod's own.
    fn call(&self, method: Method, path: &[&str]) -> Call {
        let mut target = format!("/v{API}/libpod");
        for part in path {
            target.push('/');
            target.extend(utf8_percent_encode(part, ENCODED));
        }
        Call {
            endpoint: self.endpoint.clone(),
            method,
            target,
            query: String::new(),
            headers: HeaderMap::new(),
            body: empty(),
        }
    }
}

/// What answers where podman should.
fn other_engine(engine: &str) -> Error {
    let hint = match engine {
        "docker" => "use the driver of that engine (`--driver docker`), or name podman's own socket",
        _ => "name podman's own socket, or use the driver of the engine that answers here",
    };
    Error::new(ErrorKind::Unsupported, format!("{engine} answers here, not podman")).with_hint(hint)
}

/// The number before a version's first dot.
pub(crate) fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// `version` is podman's own, which that of its API follows.
pub(crate) fn too_old(version: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("podman {version} does not speak API {API}, which is needed"),
    )
    .with_hint("update podman to 4.0 or newer; this driver was tested with 4.3 to 5.8")
}

fn empty() -> Body {
    whole(Bytes::new())
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A request that is being put together.
pub(crate) struct Call {
    endpoint: Arc<Endpoint>,
    method: Method,
    target: String,
    query: String,
    headers: HeaderMap,
    body: Body,
}

impl Call {
    pub(crate) fn query(mut self, key: &str, value: impl Display) -> Self {
        self.query.push(if self.query.is_empty() { '?' } else { '&' });
        self.query.push_str(key);
        self.query.push('=');
        self.query.extend(utf8_percent_encode(&value.to_string(), ENCODED));
        self
    }

    /// A header whose value is kept out of debug output.
    pub(crate) fn secret(mut self, name: &'static str, value: &str) -> Result<Self, Failure> {
        let value = HeaderValue::from_str(value);
        let mut value = value.map_err(|error| Failure::Protocol(format!("{name} can't be sent: {error}")))?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(self)
    }

    pub(crate) fn json(mut self, value: &impl Serialize) -> Result<Self, Failure> {
        let text = serde_json::to_vec(value);
        let text = text.map_err(|error| Failure::Protocol(format!("a request can't be written: {error}")))?;
        self.headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body = whole(text.into());
        Ok(self)
    }

    pub(crate) fn tar(mut self, pieces: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Self {
        self.headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
        self.body = StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync();
        self
    }

    /// The answer, whatever it says.
    async fn exchange(self) -> Result<Response<Incoming>, Failure> {
        let host = match self.endpoint.as_ref() {
            // Go's server wants a host, and looks at nothing but its form.
            Endpoint::Unix(_) => "podman",
            Endpoint::Tcp(address) => address,
        };
        let mut request = Request::builder()
            .method(self.method)
            .uri(format!("{}{}", self.target, self.query))
            .header(header::HOST, host);
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers);
        }
        let request = request.body(self.body);
        let request = request.map_err(|error| Failure::Protocol(format!("a request can't be made: {error}")))?;
        match self.endpoint.as_ref() {
            Endpoint::Unix(path) => send(UnixStream::connect(path).await.map_err(Failure::Connect)?, request).await,
            Endpoint::Tcp(address) => send(TcpStream::connect(address).await.map_err(Failure::Connect)?, request).await,
        }
    }

    /// The answer, if it is no refusal.
    pub(crate) async fn send(self) -> Result<Response<Incoming>, Failure> {
        let answer = self.exchange().await?;
        let status = answer.status();
        // 304 is said of a container that is in the state that was asked for.
        if status.is_success() || matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::NOT_MODIFIED) {
            return Ok(answer);
        }
        let body = read(answer).await?;
        Err(Failure::Refused(Refusal::new(status.as_u16(), &body)))
    }

    /// Ends when the engine has done it.
    pub(crate) async fn done(self) -> Result<(), Failure> {
        read(self.send().await?).await.map(drop)
    }

    pub(crate) async fn value<T: DeserializeOwned>(self) -> Result<T, Failure> {
        let body = read(self.send().await?).await?;
        serde_json::from_slice(&body).map_err(|error| Failure::Protocol(format!("the answer can't be read: {error}")))
    }

    /// The body in pieces, as they come.
    pub(crate) async fn stream(self) -> Result<impl Stream<Item = Result<Bytes, Failure>> + Send + use<>, Failure> {
        Ok(BodyDataStream::new(self.send().await?.into_body()).map_err(broken))
    }

    /// Takes the connection over from HTTP.
    pub(crate) async fn hijack(mut self) -> Result<TokioIo<Upgraded>, Failure> {
        self.headers
            .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        self.headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
        let answer = self.send().await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Protocol(format!(
                "the connection is not given over: {}",
                answer.status()
            )));
        }
        Ok(TokioIo::new(hyper::upgrade::on(answer).await.map_err(broken)?))
    }
}

async fn send<S>(stream: S, request: Request<Body>) -> Result<Response<Incoming>, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with the answer's body, or when that is dropped. Its error is the answer's too.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(broken)
}

async fn read(answer: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    Ok(body.map_err(Failure::Broken)?.to_bytes())
}

fn broken(error: hyper::Error) -> Failure {
    Failure::Broken(Box::new(error))
}

/// The values of a stream of JSON, of which each stands on a line of its own.
pub(crate) fn lines<T: DeserializeOwned>(
    pieces: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static,
) -> impl Stream<Item = Result<T, Failure>> + Send {
    let reader = tokio_util::io::StreamReader::new(pieces.map_err(|failure| {
        let Failure::Broken(error) = failure else {
            return std::io::Error::other("the stream broke off");
        };
        std::io::Error::other(error)
    }));
    let codec = tokio_util::codec::LinesCodec::new_with_max_length(1 << 20);
    tokio_util::codec::FramedRead::new(reader, codec).filter_map(async |line| match line {
        Ok(line) if line.trim().is_empty() => None,
        Ok(line) => {
            let value = serde_json::from_str(&line);
            Some(value.map_err(|error| Failure::Protocol(format!("the answer can't be read: {error}"))))
        }
        Err(error) => Some(Err(Failure::Broken(Box::new(error)))),
    })
}
