//! Images that are made here, and a registry that does what no real one does on demand.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use orchestra::{ByteStream, PullImage};
use orchestra_oci::content::sha256;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// `size` bytes that no other seed makes.
pub(crate) fn noise(seed: u64, size: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

pub(crate) fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": sha256(content).to_string(), "size": content.len() })
}

/// An image for one platform.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) layers: Vec<Bytes>,
    pub(crate) config: Bytes,
    pub(crate) manifest: Bytes,
}

impl TestImage {
    pub(crate) fn new(architecture: &str, layers: &[Bytes]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer).to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": { "Cmd": ["/bin/sh"], "Env": ["A=b"], "Entrypoint": null, "Volumes": null, "Labels": null },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": [{ "created_by": "test", "empty_layer": true }],
        });
        let config = Bytes::from(config.to_string());
        let described: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config), "layers": described,
        });
        Self {
            layers: layers.to_vec(),
            config,
            manifest: manifest.to_string().into(),
        }
    }

    pub(crate) fn digest(&self) -> String {
        sha256(&self.manifest).to_string()
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = Bytes> {
        self.layers.iter().chain([&self.config]).cloned()
    }

    /// The manifest's entry in an index.
    pub(crate) fn entry(&self, platform: Option<Value>) -> Value {
        let mut entry = descriptor(MANIFEST, &self.manifest);
        if let Some(platform) = platform {
            entry["platform"] = platform;
        }
        entry
    }
}

pub(crate) fn index(entries: &[Value]) -> Bytes {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries })
        .to_string()
        .into()
}

/// What a blob's next request meets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes.
    Cut(usize),
    /// An answer of this status without a body.
    Status(u16),
    /// The whole blob, whatever part is asked for.
    Whole,
    /// Other bytes than the right ones.
    Wrong,
    /// So many other bytes, and then the connection's end.
    WrongCut(usize),
    /// So many bytes, and then nothing more, for ever.
    Hang(usize),
}

#[derive(Default)]
struct State {
    manifests: HashMap<String, Bytes>,
    blobs: HashMap<String, Bytes>,
    faults: HashMap<String, VecDeque<Fault>>,
    token: Option<String>,
    /// Requests, as `GET /path range`.
    log: Vec<String>,
}

/// A registry of one repository, `app`.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
    _tasks: Arc<JoinSet<()>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = JoinSet::new();
        let (shared, own) = (state.clone(), address.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, shared.clone(), own.clone()));
            }
        });
        Self {
            address,
            state,
            _tasks: Arc::new(tasks),
        }
    }

    pub(crate) fn tag(&self, tag: &str, manifest: &Bytes) {
        let mut state = self.state.lock().unwrap();
        state.manifests.insert(tag.to_owned(), manifest.clone());
        state.manifests.insert(sha256(manifest).to_string(), manifest.clone());
    }

    pub(crate) fn push(&self, tag: &str, image: &TestImage) {
        self.tag(tag, &image.manifest);
        let mut state = self.state.lock().unwrap();
        state
            .blobs
            .extend(image.blobs().map(|blob| (sha256(&blob).to_string(), blob)));
    }

    /// What the next requests for a blob or a manifest meet, one after the other.
    pub(crate) fn fault(&self, name: impl Into<String>, faults: &[Fault]) {
        self.state
            .lock()
            .unwrap()
            .faults
            .insert(name.into(), faults.iter().copied().collect());
    }

    /// From now on a token is wanted, which user `u` gets for password `p`.
    pub(crate) fn want_token(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.to_owned());
    }

    /// Requests for what `name` is in.
    pub(crate) fn requests(&self, name: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.log.iter().filter(|line| line.contains(name)).cloned().collect()
    }

    pub(crate) fn pull(&self, tag: &str) -> PullImage {
        let separator = if tag.contains(':') { '@' } else { ':' };
        PullImage::new(format!("{}/app{separator}{tag}", self.address).parse().unwrap())
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>, address: String) {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = Vec::new();
            // A TLS client's first message is no request, and has no line.
            let Ok(1..) = (&mut read).take(4096).read_until(b'\n', &mut line).await else {
                return;
            };
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            head.push(line);
            if !head[0].starts_with("GET ") {
                return;
            }
        }
        let path = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
        let header = |name: &str| {
            head.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let range = header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let authorization = header("authorization").unwrap_or_default();
        let (answer, keep) = answer(&state, &address, &path, range, &authorization);
        if write.write_all(&answer).await.is_err() {
            return;
        }
        match keep {
            Keep::On => {}
            Keep::Close => return,
            Keep::Hang => std::future::pending().await,
        }
    }
}

enum Keep {
    On,
    Close,
    Hang,
}

fn answer(
    state: &Mutex<State>,
    address: &str,
    path: &str,
    range: Option<usize>,
    authorization: &str,
) -> (Vec<u8>, Keep) {
    let mut state = state.lock().unwrap();
    state.log.push(format!(
        "{path} {}",
        range.map(|from| from.to_string()).unwrap_or_default()
    ));
    let reply = |status: u16, headers: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    if path.starts_with("/token?") {
        // `u:p`.
        return match (authorization, &state.token) {
            ("Basic dTpw", Some(token)) => (
                reply(200, "", json!({ "token": token }).to_string().as_bytes()),
                Keep::On,
            ),
            _ => (reply(401, "", b"wrong password"), Keep::On),
        };
    }
    if let Some(token) = &state.token
        && authorization != format!("Bearer {token}")
    {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"test\"\r\n");
        return (reply(401, &challenge, b""), Keep::On);
    }
    if path == "/v2/" {
        return (reply(200, "", b"{}"), Keep::On);
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let fault = state.faults.get_mut(name).and_then(VecDeque::pop_front);
    if let Some(Fault::Status(status)) = fault {
        return (reply(status, "", b""), Keep::On);
    }
    if path.starts_with("/v2/app/manifests/") {
        return match state.manifests.get(name) {
            Some(manifest) => {
                let kind = if manifest.windows(11).any(|part| part == b"\"manifests\"") {
                    INDEX
                } else {
                    MANIFEST
                };
                (reply(200, &format!("Content-Type: {kind}\r\n"), manifest), Keep::On)
            }
            None => {
                let error = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
                (reply(404, "", error), Keep::On)
            }
        };
    }
    let Some(blob) = state.blobs.get(name) else {
        return (
            reply(
                404,
                "",
                br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#,
            ),
            Keep::On,
        );
    };
    let wrong: Bytes = blob.iter().map(|byte| !byte).collect::<Vec<u8>>().into();
    let blob = if matches!(fault, Some(Fault::Wrong | Fault::WrongCut(_))) {
        &wrong
    } else {
        blob
    };
    let whole = match (fault, range) {
        (Some(Fault::Whole), _) | (_, None) => reply(200, "", blob),
        (_, Some(from)) => {
            let part = format!("Content-Range: bytes {from}-{}/{}\r\n", blob.len() - 1, blob.len());
            reply(206, &part, &blob[from..])
        }
    };
    match fault {
        Some(Fault::Cut(after) | Fault::WrongCut(after)) => (whole[..after.min(whole.len())].to_vec(), Keep::Close),
        Some(Fault::Hang(after)) => (whole[..after.min(whole.len())].to_vec(), Keep::Hang),
        _ => (whole, Keep::On),
    }
}

/// A tar of files, in pieces of an odd size, so that no block comes in one.
pub(crate) fn tar(members: &[(&str, &[u8])]) -> ByteStream {
    use futures_util::StreamExt;
    use orchestra::tar::{END, Head, padded};
    let mut pieces = Vec::new();
    for (name, content) in members {
        pieces.extend(Head::file(content.len() as u64).blocks(name));
        pieces.push(padded(content));
    }
    pieces.push(END);
    let bytes = Bytes::from(pieces.concat());
    let starts = (0..bytes.len()).step_by(30_001);
    let pieces: Vec<_> = starts
        .map(|start| Ok(bytes.slice(start..bytes.len().min(start + 30_001))))
        .collect();
    futures_util::stream::iter(pieces).boxed()
}
