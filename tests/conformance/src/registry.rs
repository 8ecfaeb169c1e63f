//! Just enough of a registry's client to put an image into one: the [distribution
//! specification](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push)'s monolithic upload.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use orchestra::{Credentials, Error, ErrorKind, ExposeSecret, ImageRef, Result, stream};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::settings::Registry;
use crate::tarball::{self, Kind};

/// A request's time; a test registry is next door.
const DEADLINE: Duration = Duration::from_secs(30);
/// Answers are short; their bodies are not needed.
const MAX_ANSWER: u64 = 64 * 1024;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry that speaks plain HTTP.
#[derive(Debug)]
pub(crate) struct HttpRegistry {
    address: String,
    credentials: Option<Credentials>,
}

impl HttpRegistry {
    pub(crate) fn new(address: String, credentials: Option<Credentials>) -> Self {
        Self { address, credentials }
    }

    /// Sends one request and returns its status and `Location`.
    ///
    /// HTTP/1.0: the answer is neither chunked nor kept alive and ends where the connection does.
    async fn send(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> std::io::Result<(u16, String)> {
        let mut head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: {media_type}\r\n",
            self.address
        );
        if let Some(credentials) = &self.credentials {
            let pair = format!(
                "{}:{}",
                credentials.username.expose_secret(),
                credentials.password.expose_secret()
            );
            // Writing to a string can't fail.
            let _ = write!(head, "Authorization: Basic {}\r\n", STANDARD.encode(pair));
        }
        let _ = write!(head, "Content-Length: {}\r\n\r\n", body.len());
        let mut connection = TcpStream::connect(&self.address).await?;
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(body).await?;
        let mut answer = Vec::new();
        connection.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let mut lines = answer.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .unwrap_or(0);
        let location = lines.take_while(|line| !line.is_empty()).find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
        });
        Ok((status, location.unwrap_or_default()))
    }

    async fn expect(&self, status: u16, method: &str, path: &str, media_type: &str, body: &[u8]) -> Result<String> {
        let doing = format!("{method} {path} at the test registry {}", self.address);
        match tokio::time::timeout(DEADLINE, self.send(method, path, media_type, body)).await {
            Ok(Ok((got, location))) if got == status => Ok(location),
            Ok(Ok((got, _))) => Err(Error::new(
                ErrorKind::Registry,
                format!("{doing}: got status {got}, wanted {status}"),
            )),
            Ok(Err(error)) => Err(Error::io(doing, error)),
            Err(_) => Err(Error::new(ErrorKind::DeadlineExceeded, doing)),
        }
    }

    async fn put(&self, image: &ImageRef, reference: &str, media_type: &str, manifest: &[u8]) -> Result<()> {
        let path = format!("/v2/{}/manifests/{reference}", image.repository());
        self.expect(201, "PUT", &path, media_type, manifest).await?;
        Ok(())
    }

    async fn upload(&self, repository: &str, digest: &str, blob: &[u8]) -> Result<()> {
        let start = format!("/v2/{repository}/blobs/uploads/");
        let location = self
            .expect(202, "POST", &start, "application/octet-stream", &[])
            .await?;
        let path = location
            .split_once("://")
            .and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]))
            .unwrap_or(&location);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={digest}");
        self.expect(201, "PUT", &path, "application/octet-stream", blob).await?;
        Ok(())
    }
}

#[async_trait]
impl Registry for HttpRegistry {
    fn address(&self) -> &str {
        &self.address
    }

    fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    async fn publish(&self, image: &ImageRef, layout: Bytes) -> Result<()> {
        let mut blobs = BTreeMap::new();
        let mut index = Value::Null;
        for entry in tarball::unpack(stream::once(layout)).await? {
            let Kind::File(content) = entry.kind else { continue };
            if let Some(digest) = entry.path.strip_prefix("blobs/sha256/") {
                blobs.insert(format!("sha256:{digest}"), content);
            } else if entry.path == "index.json" {
                index = serde_json::from_slice(&content).unwrap_or_default();
            }
        }
        let mut manifests = Vec::new();
        for descriptor in index["manifests"].as_array().into_iter().flatten() {
            let digest = descriptor["digest"].as_str().unwrap_or_default();
            let manifest = blobs.remove(digest);
            let manifest = manifest.ok_or_else(|| Error::invalid("the layout lacks a manifest"))?;
            manifests.push((digest, descriptor["mediaType"].as_str().unwrap_or_default(), manifest));
        }
        for (digest, blob) in blobs {
            self.upload(image.repository(), &digest, &blob).await?;
        }
        let tag = image.tag().unwrap_or("latest");
        if let [(_, media_type, manifest)] = manifests.as_slice() {
            return self.put(image, tag, media_type, manifest).await;
        }
        for (digest, media_type, manifest) in &manifests {
            self.put(image, digest, media_type, manifest).await?;
        }
        index["mediaType"] = INDEX.into();
        self.put(image, tag, INDEX, index.to_string().as_bytes()).await
    }
}
