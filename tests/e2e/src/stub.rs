//! A server that answers as some engine would that the tests don't have: an old one, or none at all.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::{Dir, Result};

/// It listens until it is dropped.
#[derive(Debug)]
pub struct Stub {
    dir: Dir,
}

/// What a request's path is answered with: the status, the headers, each with its line's end, and the body.
pub type Answer = fn(path: &str) -> (u16, &'static str, &'static str);

impl Stub {
    /// Starts one.
    ///
    /// # Errors
    /// If it can't listen.
    pub fn start(answer: Answer) -> Result<Self> {
        let dir = Dir::with::<&str>([]);
        let listener = UnixListener::bind(dir.file("engine.sock"))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who goes away in the middle has what it wanted.
                serve(&stream, answer).ok();
            }
        });
        Ok(Self { dir })
    }

    /// Where it listens, as engines' clients have it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.file("engine.sock").display())
    }
}

fn serve(mut stream: &UnixStream, answer: Answer) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, headers, body) = answer(path);
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
}
