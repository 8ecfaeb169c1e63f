//! Just enough of an HTTP client to talk to a daemon's socket and to a registry on loopback.
//!
//! It speaks HTTP/1.0, so that an answer is neither chunked nor kept alive: it ends where the connection does.

use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail};

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The first header of this name, which is given in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// GETs `path`.
pub(crate) fn get(stream: impl Read + Write, path: &str) -> Result<Response> {
    get_as(stream, path, "*/*")
}

/// GETs `path` as one of the media types in `accept`.
pub(crate) fn get_as(mut stream: impl Read + Write, path: &str, accept: &str) -> Result<Response> {
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
    )?;
    read_response(stream)
}

/// POSTs `length` bytes of a tar from `body` to `path`.
pub(crate) fn post_tar(
    mut stream: impl Read + Write,
    path: &str,
    mut body: impl Read,
    length: u64,
) -> Result<Response> {
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/x-tar\r\n\
         Content-Length: {length}\r\n\r\n"
    )?;
    // A server that refuses answers before it has read everything: its answer tells more than our broken pipe.
    let sent = io::copy(&mut body, &mut stream);
    match (read_response(stream), sent) {
        (Ok(response), _) => Ok(response),
        (Err(_), Err(error)) => Err(error).context("cannot send the request's body"),
        (Err(error), Ok(_)) => Err(error),
    }
}

fn read_response(mut stream: impl Read) -> Result<Response> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).context("cannot read the answer")?;
    parse_response(&bytes)
}

fn parse_response(bytes: &[u8]) -> Result<Response> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(end) = end else {
        bail!("the answer is no HTTP: {:?}", String::from_utf8_lossy(bytes));
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .context("the answer has no HTTP status")?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Response {
        status,
        headers,
        body: bytes[end + 4..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let response = parse_response(b"HTTP/1.0 200 OK\r\nDocker-Content-Digest: sha256:ab\r\n\r\nbody\n").unwrap();
        assert_eq!(response.status, 200);
        assert_eq!(response.header("docker-content-digest"), Some("sha256:ab"));
        assert_eq!(response.text(), "body");
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert!(parse_response(b"hello").is_err());
        assert!(parse_response(b"").is_err());
    }
}
