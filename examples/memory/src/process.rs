//! Processes: a program in Rust with arguments, an environment, files and three streams.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use orchestra::{ExecEvent, LogChunk, OutputStream, Result};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{mpsc, watch};

use super::files::{Errno, Files, Kind, NOT_FOUND, lock};

/// What a file of a memory image holds that is a program: this, and the name the program is registered under.
pub(super) const MAGIC: &[u8] = b"#!orchestra-memory ";

/// A program: it gets its process and ends with an exit code.
pub type Program = Arc<dyn Fn(Process) -> BoxFuture<'static, u8> + Send + Sync>;

/// Programs by the name under which files name them.
pub(super) type Programs = BTreeMap<String, Program>;

/// Standard input, shared by the processes that inherit it.
#[derive(Clone)]
pub struct Input(Arc<tokio::sync::Mutex<BufReader<Reader>>>);

type Reader = Pin<Box<dyn AsyncRead + Send>>;

impl Input {
    pub(super) fn new(reader: impl AsyncRead + Send + 'static) -> Self {
        Self(Arc::new(tokio::sync::Mutex::new(BufReader::new(Box::pin(reader)))))
    }

    pub(super) fn empty() -> Self {
        Self::new(tokio::io::empty())
    }

    /// The next piece; empty at the end.
    pub async fn read(&self) -> Bytes {
        let mut piece = vec![0; 64 * 1024];
        let read = self.0.lock().await.read(&mut piece).await.unwrap_or(0);
        piece.truncate(read);
        piece.into()
    }

    /// The next line without its line feed; `None` at the end.
    pub async fn read_line(&self) -> Option<String> {
        let mut line = String::new();
        match self.0.lock().await.read_line(&mut line).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end_matches('\n').to_owned()),
        }
    }
}

/// Where a process writes.
#[derive(Clone)]
pub struct Output(pub(super) Sink);

#[derive(Clone)]
pub(super) enum Sink {
    Null,
    /// The container's log.
    Log(Arc<Log>, OutputStream),
    /// Who runs it.
    Exec(mpsc::Sender<Result<ExecEvent>>, OutputStream),
    /// Another process or a file, when this one has ended.
    Buffer(Arc<Mutex<Vec<u8>>>),
}

impl Output {
    /// Writes.
    pub async fn write(&self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        match &self.0 {
            _ if bytes.is_empty() => {}
            Sink::Null => {}
            Sink::Log(log, stream) => log.append(LogChunk { stream: *stream, bytes }),
            // Whoever dropped the stream does not want the output: the process goes on.
            Sink::Exec(sender, stream) => {
                let _ = sender
                    .send(Ok(ExecEvent::Output(LogChunk { stream: *stream, bytes })))
                    .await;
            }
            Sink::Buffer(buffer) => lock(buffer).extend_from_slice(&bytes),
        }
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Input")
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

/// What a container wrote, kept whole; pieces share the bytes of the files they come from.
#[derive(Debug)]
pub(super) struct Log {
    chunks: Mutex<Vec<LogChunk>>,
    /// How many chunks there are, and whether these are all.
    length: watch::Sender<(usize, bool)>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            chunks: Mutex::default(),
            length: watch::Sender::new((0, false)),
        }
    }
}

impl Log {
    fn append(&self, chunk: LogChunk) {
        let mut chunks = lock(&self.chunks);
        chunks.push(chunk);
        let count = chunks.len();
        self.length.send_modify(|length| length.0 = count);
    }

    pub(super) fn close(&self) {
        self.length.send_modify(|length| length.1 = true);
    }

    pub(super) fn get(&self, index: usize) -> Option<LogChunk> {
        lock(&self.chunks).get(index).cloned()
    }

    /// Waits until there is a chunk `index`; false if there will never be.
    pub(super) async fn wait_for(&self, index: usize) -> bool {
        let mut length = self.length.subscribe();
        let reached = length.wait_for(|(count, closed)| *count > index || *closed).await;
        reached.is_ok_and(|length| length.0 > index)
    }
}

/// Signals that were sent to a container's main process and not yet handled.
#[derive(Debug, Default)]
pub(super) struct Signals {
    pending: Mutex<Vec<u8>>,
    sent: tokio::sync::Notify,
}

impl Signals {
    pub(super) fn send(&self, signal: u8) {
        lock(&self.pending).push(signal);
        self.sent.notify_waiters();
    }

    pub(super) fn take(&self) -> Option<u8> {
        lock(&self.pending).pop()
    }

    pub(super) async fn arrived(&self) {
        let sent = self.sent.notified();
        if lock(&self.pending).is_empty() {
            sent.await;
        }
    }
}

/// A process of a container.
#[derive(Clone)]
pub struct Process {
    /// The program's name as it was called, and its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its working directory: absolute.
    pub cwd: String,
    /// Who it runs as.
    pub uid: u32,
    /// And with which group.
    pub gid: u32,
    /// Standard input.
    pub stdin: Input,
    /// Standard output.
    pub stdout: Output,
    /// Standard error.
    pub stderr: Output,
    pub(super) files: Files,
    pub(super) programs: Arc<Programs>,
    /// The main process's only: nobody can signal another one.
    pub(super) signals: Arc<Signals>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("args", &self.args)
            .field("cwd", &self.cwd)
            .finish_non_exhaustive()
    }
}

impl Process {
    /// A file's content, or why it can't be read.
    ///
    /// # Errors
    /// The C library's words: `No such file or directory`.
    pub fn read_file(&self, path: &str) -> Result<Bytes, &'static str> {
        self.files.read(&self.cwd, path)
    }

    /// Writes a file, which is made if it is missing.
    ///
    /// # Errors
    /// The C library's words: `Read-only file system`.
    pub fn write_file(&self, path: &str, content: impl Into<Bytes>) -> Result<(), &'static str> {
        self.files.write(&self.cwd, path, content.into(), false, self.owner())
    }

    /// The names in a directory.
    ///
    /// # Errors
    /// The C library's words: `Not a directory`.
    pub fn list_dir(&self, path: &str) -> Result<Vec<String>, &'static str> {
        self.files.list(&self.cwd, path)
    }

    pub(super) fn owner(&self) -> (u64, u64) {
        (self.uid.into(), self.gid.into())
    }

    /// Finds the program that `args` names: by its path, or in `PATH`.
    pub(super) fn find(&mut self) -> Result<Program, Errno> {
        let name = self.args.first().ok_or(NOT_FOUND)?.clone();
        let path = self.env.get("PATH").map_or("/bin:/usr/bin", String::as_str);
        let candidates = match name.contains('/') {
            true => vec![name],
            false => path.split(':').map(|dir| format!("{dir}/{name}")).collect(),
        };
        let mut why = NOT_FOUND;
        for candidate in candidates {
            let Ok(inode) = self.files.stat(&self.cwd, &candidate, true) else {
                continue;
            };
            let content = match &inode.kind {
                Kind::File(content) if inode.mode & 0o111 != 0 => content.clone(),
                _ => {
                    why = "Permission denied";
                    continue;
                }
            };
            let first = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
            if let Some(program) = first.strip_prefix(MAGIC) {
                let program = self.programs.get(String::from_utf8_lossy(program).trim());
                return program.cloned().ok_or("Exec format error");
            }
            let Some(interpreter) = first.strip_prefix(b"#!") else {
                return Err("Exec format error");
            };
            self.args[0] = candidate;
            self.args
                .insert(0, String::from_utf8_lossy(interpreter).trim().to_owned());
            return self.find();
        }
        Err(why)
    }

    /// Runs the program that `args` names, and answers with its exit code; 127 or 126 if there is none.
    pub(super) fn exec(mut self) -> BoxFuture<'static, u8> {
        Box::pin(async move {
            match self.find() {
                Ok(program) => program(self).await,
                Err(why) => {
                    let name = self.args.first().map_or("", String::as_str);
                    self.stderr.write(format!("{name}: {why}\n")).await;
                    if why == NOT_FOUND { 127 } else { 126 }
                }
            }
        })
    }
}
