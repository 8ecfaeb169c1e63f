//! libpod's calls, a connection each.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use orchestra_e2e::Endpoint;
use serde_json::json;

use super::Task;
use crate::Outcome;

const API: &str = "/v4.0.0/libpod";

/// Asks for the image, makes, attaches, starts, waits for, reads and removes a container.
pub(super) async fn task(endpoint: &Endpoint, task: &Task<'_>) -> Outcome<()> {
    let Endpoint::Unix(socket) = endpoint else {
        return Err("podman is measured on a socket".into());
    };
    let mut body = json!({"name": task.name, "image": task.image, "entrypoint": task.command});
    if !task.network {
        body["netns"] = json!({"nsmode": "none"});
    }
    let (endpoint, socket, name, image) = (
        endpoint.clone(),
        socket.clone(),
        task.name.to_owned(),
        task.image.to_owned(),
    );
    tokio::task::spawn_blocking(move || {
        let call = |method: &str, path: &str, body: &[u8]| -> Outcome<()> {
            let headers: &[_] = if body.is_empty() {
                &[]
            } else {
                &[("Content-Type", "application/json")]
            };
            let answer = endpoint.send(method, &format!("{API}{path}"), headers, body)?;
            match answer.status {
                200..300 => Ok(()),
                status => Err(format!("{method} {path}: status {status}: {}", answer.text()).into()),
            }
        };
        call("GET", &format!("/images/{image}/exists"), &[])?;
        call("POST", "/containers/create", body.to_string().as_bytes())?;
        let mut output = attach(&socket, &name)?;
        call("POST", &format!("/containers/{name}/start"), &[])?;
        output.read_to_end(&mut Vec::new())?;
        // By itself it looks four times a second.
        let wait = format!("/containers/{name}/wait?condition=exited&interval=10ms");
        call("POST", &wait, &[])?;
        call("DELETE", &format!("/containers/{name}?force=true&v=true"), &[])
    })
    .await?
}

/// The output, from the first byte on.
fn attach(socket: &Path, name: &str) -> Outcome<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "POST {API}/containers/{name}/attach?stream=true&stdout=true&stderr=true HTTP/1.1\r\nHost: podman\r\n\
         Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    if head.starts_with(b"HTTP/1.1 101") {
        Ok(stream)
    } else {
        Err(format!("attach: {}", String::from_utf8_lossy(&head)).into())
    }
}
