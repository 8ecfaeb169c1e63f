//! Just enough of an HTTP client to look at an engine's socket and a registry on loopback.
//!
//! It speaks HTTP/1.0, so that an answer is neither chunked nor kept alive: it ends where the connection does.

use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Result;

/// How long an answer may take; an engine that loads an image is the slowest.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket in the file system.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl Endpoint {
    /// From `unix:///PATH` or `tcp://HOST:PORT`, as `DOCKER_HOST` has it, or a path alone, as `CONTAINERD_ADDRESS` has it.
    ///
    /// # Errors
    /// If it is neither.
    pub fn parse(url: &str) -> Result<Self> {
        match (url.strip_prefix("unix://"), url.strip_prefix("tcp://")) {
            (Some(path), _) => Ok(Self::Unix(path.into())),
            (_, Some(address)) => Ok(Self::Tcp(address.to_owned())),
            _ if url.starts_with('/') => Ok(Self::Unix(url.into())),
            _ => Err(format!("{url} is neither unix:// nor tcp://").into()),
        }
    }

    /// Sends a request with an empty body, or with `body`.
    ///
    /// # Errors
    /// If nobody listens or the answer is no HTTP. An answer with an error status is an answer.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response> {
        let fail = |error: std::io::Error| format!("{method} {path} of {self}: {error}");
        match self {
            Self::Unix(socket) => {
                let stream = UnixStream::connect(socket).map_err(fail)?;
                stream.set_read_timeout(Some(LIMIT))?;
                exchange(stream, method, path, headers, body)
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).map_err(fail)?;
                stream.set_read_timeout(Some(LIMIT))?;
                exchange(stream, method, path, headers, body)
            }
        }
        .map_err(|error| format!("{method} {path} of {self}: {error}").into())
    }

    /// GETs `path`.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn get(&self, path: &str) -> Result<Response> {
        self.send("GET", path, &[], &[])
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this name, which is given in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// If it is none, or the status is an error's.
    pub fn json(&self) -> Result<serde_json::Value> {
        if self.status >= 300 {
            return Err(format!("status {}: {}", self.status, self.text()).into());
        }
        Ok(serde_json::from_slice(&self.body)?)
    }
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let mut request = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<Response> {
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or("the answer is no HTTP")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(':'));
    Ok(Response {
        status: status.ok_or("the answer has no status")?,
        headers: headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect(),
        body: answer[end + 4..].to_vec(),
    })
}

/// Waits until somebody listens at `HOST:PORT`.
///
/// # Errors
/// If nobody does within 30 s.
pub fn until_listening(address: &str) -> Result<()> {
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        if began.elapsed() > Duration::from_secs(30) {
            return Err(format!("nobody listens at {address}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let response = parse(b"HTTP/1.0 404 Not Found\r\nDocker-Content-Digest: sha256:ab\r\n\r\nbody\n").unwrap();
        assert_eq!(
            (response.status, response.header("docker-content-digest")),
            (404, Some("sha256:ab"))
        );
        assert!(response.json().is_err());
        assert!(parse(b"hello").is_err());
    }
}
