//! A container's shim, asked how its process ended.
//!
//! A shim speaks [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md) at a socket whose address stands in its
//! bundle, the folder that it works in: in `bootstrap.json` since containerd 1.7, in `address` before.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The service of tasks, as shims call it. Which one they have depends on containerd's version.
const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// A message that asks, and one that answers.
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
/// Bytes before each message: its length, its stream, its kind and flags.
const HEADER: usize = 10;
/// Bytes of an answer at most: it has two numbers, or an error's text.
const MOST: usize = 64 << 10;

/// How a container's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, 128 and its number for a signal.
    pub code: u32,
    /// Whether the kernel killed a process of the container for its memory.
    pub out_of_memory: bool,
}

/// Waits until the process of container `id` has ended, whose shim has this bundle.
///
/// # Errors
/// If the shim can't be asked, does not know the container, or ends before it has answered.
pub fn wait(bundle: &Path, id: &str) -> io::Result<u32> {
    let mut shim = UnixStream::connect(socket(bundle)?)?;
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for (service, stream) in SERVICES.iter().zip([1, 3]) {
        // `WaitRequest` of containerd's `api/runtime/task`: the container's id, and no process that was executed in it.
        let mut asked = Vec::new();
        put(&mut asked, 1, id.as_bytes());
        let mut request = Vec::new();
        put(&mut request, 1, service.as_bytes());
        put(&mut request, 2, b"Wait");
        put(&mut request, 3, &asked);
        shim.write_all(&message(stream, &request))?;
        match code(&answer(&mut shim)?) {
            Ok(code) => return Ok(code),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether the kernel has killed a process of a cgroup for its memory, version 2 or 1. The cgroup has to be there still.
#[must_use]
pub fn out_of_memory(cgroup: &str) -> bool {
    let files = [
        format!("/sys/fs/cgroup/{cgroup}/memory.events"),
        format!("/sys/fs/cgroup/memory/{cgroup}/memory.oom_control"),
    ];
    files.iter().any(|file| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills.trim() != "0")
    })
}

/// Where the shim of a bundle listens.
fn socket(bundle: &Path) -> io::Result<String> {
    let text = match fs::read_to_string(bundle.join("bootstrap.json")) {
        Ok(json) => {
            let address = json.split_once("\"address\":").map(|(_, after)| after.trim_start());
            let address = address.and_then(|text| text.strip_prefix('"')?.split('"').next());
            address.unwrap_or_default().to_owned()
        }
        Err(_) => fs::read_to_string(bundle.join("address"))?,
    };
    let path = text.trim().strip_prefix("unix://").filter(|path| path.starts_with('/'));
    let no_path = || io::Error::new(io::ErrorKind::InvalidData, format!("a shim has the address {text:?}"));
    path.map(str::to_owned).ok_or_else(no_path)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a request has the length of its few names"
)]
fn message(stream: u32, request: &[u8]) -> Vec<u8> {
    let mut message = (request.len() as u32).to_be_bytes().to_vec();
    message.extend_from_slice(&stream.to_be_bytes());
    message.extend_from_slice(&[REQUEST, 0]);
    message.extend_from_slice(request);
    message
}

fn answer(shim: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut header = [0; HEADER];
    shim.read_exact(&mut header)?;
    let [a, b, c, d, .., kind, _] = header;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if kind != RESPONSE || length > MOST {
        return Err(nonsense());
    }
    let mut response = vec![0; length];
    shim.read_exact(&mut response)?;
    Ok(response)
}

/// The exit code in an answer: ttrpc's `Response` has a status and a payload, which is a `WaitResponse`.
fn code(response: &[u8]) -> io::Result<u32> {
    let (mut status, mut payload) = (&[][..], &[][..]);
    for field in Fields(response) {
        match field? {
            (1, Value::Bytes(bytes)) => status = bytes,
            (2, Value::Bytes(bytes)) => payload = bytes,
            _ => {}
        }
    }
    if let failed @ 1.. = number(status)? {
        return Err(io::Error::other(format!("the shim answered with status {failed}")));
    }
    // When it ended; an answer without is none.
    if !Fields(payload).any(|field| matches!(field, Ok((2, _)))) {
        return Err(nonsense());
    }
    u32::try_from(number(payload)?).map_err(|_| nonsense())
}

/// The first field's number; protobuf leaves a zero out.
fn number(message: &[u8]) -> io::Result<u64> {
    for field in Fields(message) {
        if let (1, Value::Number(number)) = field? {
            return Ok(number);
        }
    }
    Ok(0)
}

/// Appends a field of bytes, as [protobuf](https://protobuf.dev/programming-guides/encoding/) has them.
fn put(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(bytes);
}

enum Value<'m> {
    Number(u64),
    Bytes(&'m [u8]),
}

/// The fields of a protobuf message.
struct Fields<'m>(&'m [u8]);

impl<'m> Fields<'m> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'m [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Value<'m>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'m> Iterator for Fields<'m> {
    type Item = io::Result<(u64, Value<'m>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(nonsense);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the shim's answer makes no sense")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A shim that answers so, one message to each that it gets.
    fn shim(bundle: &Path, answers: Vec<Vec<u8>>) -> std::thread::JoinHandle<Vec<Vec<u8>>> {
        let socket = bundle.join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let bootstrap = format!(
            "{{\"version\":2,\"address\":\"unix://{}\",\"protocol\":\"ttrpc\"}}",
            socket.display()
        );
        fs::write(bundle.join("bootstrap.json"), bootstrap).unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            for answer in answers {
                let mut header = [0; HEADER];
                client.read_exact(&mut header).unwrap();
                let mut request = vec![0; header[3].into()];
                client.read_exact(&mut request).unwrap();
                asked.push(request);
                let mut message = message(1, &answer);
                message[8] = RESPONSE;
                client.write_all(&message).unwrap();
            }
            asked
        })
    }

    #[test]
    fn a_shim_of_either_service_tells_the_exit_code() {
        let mut unimplemented = Vec::new();
        put(&mut unimplemented, 1, &[8, 12, 18, 1, b'x']);
        // 137 in two bytes, and the time, which is another message.
        let mut ended = Vec::new();
        put(&mut ended, 2, &[8, 0x89, 1, 18, 2, 8, 1]);
        for before in [vec![], vec![unimplemented.clone()]] {
            let bundle = tempfile::tempdir().unwrap();
            let tries = before.len();
            let serving = shim(bundle.path(), [before, vec![ended.clone()]].concat());
            assert_eq!(wait(bundle.path(), "some-id").unwrap(), 137);
            let asked = serving.join().unwrap();
            assert_eq!(asked.len(), tries + 1);
            let last = String::from_utf8_lossy(&asked[tries]).into_owned();
            assert!(
                last.contains(SERVICES[tries]) && last.contains("Wait") && last.contains("some-id"),
                "{last:?}"
            );
        }
    }

    #[test]
    fn a_shim_that_knows_nothing_is_an_error() {
        let mut not_found = Vec::new();
        put(&mut not_found, 1, &[8, 5]);
        for answers in [
            vec![],
            vec![not_found.clone(), not_found],
            vec![vec![0xff; 20]; 2],
            vec![vec![]; 2],
        ] {
            let bundle = tempfile::tempdir().unwrap();
            let _serving = shim(bundle.path(), answers);
            assert!(wait(bundle.path(), "some-id").is_err());
        }
        let bundle = tempfile::tempdir().unwrap();
        assert!(wait(bundle.path(), "some-id").is_err());
    }

    #[test]
    fn an_older_shims_address_is_in_a_file_of_its_own() {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("address"), "unix:///run/containerd/s/old\n").unwrap();
        assert_eq!(socket(bundle.path()).unwrap(), "/run/containerd/s/old");
        fs::write(bundle.path().join("address"), "unix://@/abstract").unwrap();
        assert!(socket(bundle.path()).is_err());
    }
}
