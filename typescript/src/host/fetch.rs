//! `fetch`: to hosts that were named beforehand, with a deadline and a size limit.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use orchestra::{Error, ErrorKind};
use orchestra_pipelines::{Status, parse_duration};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Url};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::options::Refused;
use super::{Answer, Failure, Kind, Object, Reason, files};

/// How many times a server may send elsewhere, each time to a host that is allowed.
const MAX_REDIRECTS: usize = 5;

/// What scripts may reach over the network themselves. Containers are not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FetchPolicy {
    /// Hosts: `api.example.com`, `127.0.0.1:8080` for one port alone, or `*.example.com` for all below. None where empty.
    pub allow: Vec<String>,
    /// How long a request may take, its answer included.
    pub timeout: Duration,
    /// Most bytes of an answer.
    pub limit: u64,
}

impl Default for FetchPolicy {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            timeout: Duration::from_secs(30),
            limit: 10 << 20,
        }
    }
}

impl FetchPolicy {
    /// Whether a script may speak to this host.
    fn allows(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        self.allow.iter().any(|allowed| {
            let (name, only) = match allowed.rsplit_once(':') {
                Some((name, port)) if port.parse::<u16>().is_ok() => (name, port.parse().ok()),
                _ => (allowed.as_str(), None),
            };
            let below = name.strip_prefix("*.");
            let fits = match below {
                Some(parent) => host.strip_suffix(parent).is_some_and(|start| start.ends_with('.')),
                None => host.eq_ignore_ascii_case(name),
            };
            fits && only.is_none_or(|only: u16| only == port)
        })
    }

    fn refuse(&self, url: &Url) -> Failure {
        let host = url.host_str().unwrap_or_default();
        let allowed = match self.allow.as_slice() {
            [] => "none is".to_owned(),
            hosts => format!("allowed are {}", hosts.join(", ")),
        };
        Refused::new(format!("fetch: the host {host} is not allowed: {allowed}"))
            .hint(format!(
                "let the one who runs the pipeline have `fetch_allow = [{host:?}]` under [script] in orchestra.toml"
            ))
            .into()
    }

    pub(super) async fn fetch(&self, args: &Object, cancel: &CancellationToken) -> Answer {
        let text = args.get("url").and_then(Value::as_str).unwrap_or_default();
        let url: Url = text
            .parse()
            .map_err(|error| Refused::new(format!("fetch: {text:?} is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::new(format!("fetch: {} is neither http nor https", url.scheme())).into());
        }
        if !self.allows(&url) {
            return Err(self.refuse(&url));
        }
        let request = self.request(args, url.clone())?;
        let timeout = match args.get("timeout") {
            None | Some(Value::Null) => self.timeout,
            Some(text) => {
                let text = text.as_str().unwrap_or_default();
                let own = parse_duration(text)
                    .map_err(|help| Refused::new(format!("fetch: `timeout: {text}` is not valid")).hint(help))?;
                own.min(self.timeout)
            }
        };
        let answered = tokio::select! {
            answered = tokio::time::timeout(timeout, self.answer(request)) => answered,
            () = cancel.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "the run was cancelled").into()),
        };
        let shown = url.host_str().unwrap_or_default();
        answered.unwrap_or_else(|_| Err(trouble(format!("fetch: {shown} did not answer within {timeout:?}"))))
    }

    fn request(&self, args: &Object, url: Url) -> Result<reqwest::RequestBuilder, Failure> {
        // rustls panics where a program links two providers and has chosen none; one that has, keeps its own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let policy = self.clone();
        let redirects = Policy::custom(move |attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("there are too many redirects")
            } else if policy.allows(attempt.url()) {
                attempt.follow()
            } else {
                let host = attempt.url().host_str().unwrap_or_default().to_owned();
                attempt.error(format!("it redirects to {host}, which is not allowed"))
            }
        });
        // A redirect would go over the connection that answered it, which its server may be closing: a connection each.
        let client = Client::builder().redirect(redirects).pool_max_idle_per_host(0).build();
        let client = client.map_err(|error| trouble(format!("fetch: {}", chain(&error))))?;
        let method = args
            .get("method")
            .and_then(Value::as_str)
            .unwrap_or("GET")
            .to_ascii_uppercase();
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| Refused::new(format!("fetch: {method:?} is no method")))?;
        let mut headers = HeaderMap::new();
        for (name, value) in args.get("headers").and_then(Value::as_object).into_iter().flatten() {
            let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
            let value = value.as_str().and_then(|value| HeaderValue::from_str(value).ok());
            let (Some(name), Some(value)) = (parsed, value) else {
                return Err(Refused::new(format!("fetch: the header {name:?} is not valid")).into());
            };
            headers.append(name, value);
        }
        let request = client.request(method, url).headers(headers);
        Ok(match args.get("body") {
            None | Some(Value::Null) => request,
            Some(body) => request.body(files::content(body)?),
        })
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Answer {
        let failed = |error: reqwest::Error| trouble(format!("fetch: {}", chain(&error.without_url())));
        let mut response = request.send().await.map_err(failed)?;
        let (status, url) = (response.status().as_u16(), response.url().to_string());
        let header = |(name, value): (&HeaderName, &HeaderValue)| {
            json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])
        };
        let headers: Vec<Value> = response.headers().iter().map(header).collect();
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            if (body.len() + piece.len()) as u64 > self.limit {
                return Err(trouble(format!(
                    "fetch: the answer is larger than {} bytes",
                    self.limit
                )));
            }
            body.extend_from_slice(&piece);
        }
        let text = String::from_utf8_lossy(&body);
        Ok(json!({
            "status": status,
            "url": url,
            "headers": headers,
            "text": text,
            "base64": BASE64_STANDARD.encode(&body),
        }))
    }
}

fn trouble(message: String) -> Failure {
    Reason {
        kind: Kind::Task,
        message,
        status: Some(Status::Errored),
        ..Reason::default()
    }
    .into()
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_allowed_by_name_by_port_and_below_a_parent() {
        let policy = FetchPolicy {
            allow: ["api.example.com", "127.0.0.1:8080", "*.example.org"]
                .map(str::to_owned)
                .to_vec(),
            ..FetchPolicy::default()
        };
        let allows = |url: &str| policy.allows(&url.parse().unwrap());
        for good in [
            "https://api.example.com/x",
            "http://API.example.com:81",
            "http://127.0.0.1:8080",
            "https://a.b.example.org",
        ] {
            assert!(allows(good), "{good}");
        }
        for bad in [
            "https://example.com",
            "http://127.0.0.1",
            "https://example.org",
            "https://api.example.com.evil.test",
            "https://evilexample.org",
            "http://user@evil.test/api.example.com",
        ] {
            assert!(!allows(bad), "{bad}");
        }
    }
}
