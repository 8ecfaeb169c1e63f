//! Logs in folders of segments, written by a keeper that outlives this process.
//!
//! A container's output goes through two pipes into the keeper ([`orchestra_helper::keep_log`]), which a shim starts by its logging
//! URI ([`LogStore::uri`]), or this process for one that is to have standard input too ([`LogStore::fifos`]). From there it
//! lies on the disk, and is read by whoever asks, whenever, as often as they like.
//!
//! ```no_run
//! # async fn example() -> orchestra::Result<()> {
//! use orchestra_oci::logs::LogStore;
//! let logs = LogStore::open("/var/lib/orchestra/logs", "/var/lib/orchestra/helper", 16 << 20).await?;
//! logs.create("orchestra.job.1.task").await?;
//! let output = logs.read("orchestra.job.1.task", 0, true).await?;
//! # drop(output);
//! # Ok(())
//! # }
//! ```

mod reader;
mod watch;

pub use watch::{Bell, Watcher};

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use orchestra::{Error, ErrorKind, LogStream, Result};
use orchestra_helper::keep_log;
pub use orchestra_helper::shim::Exit;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use tokio::process::Command;

use crate::blocking::blocking;

/// How often a log is removed again whose keeper puts something there meanwhile, which it does once or twice.
const AGAIN: usize = 10;

/// Logs of many containers, each in a folder of its own below one root.
#[derive(Clone, Debug)]
pub struct LogStore {
    root: Arc<Path>,
    program: Arc<Path>,
    limit: u64,
    watcher: Watcher,
}

impl LogStore {
    /// Logs below `root`, which is made if it is missing. `program` is the helper program as an executable file
    /// ([`install_program`]); each log keeps its last `limit` bytes, headers included.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub async fn open(root: impl Into<PathBuf>, program: impl Into<PathBuf>, limit: u64) -> Result<Self> {
        let root = root.into();
        let made = root.clone();
        blocking(move || {
            let done = DirBuilder::new().recursive(true).mode(0o700).create(&made);
            done.map_err(|error| Error::io(format!("make the folder of logs {}", made.display()), error))
        })
        .await?;
        Ok(Self {
            root: root.into(),
            program: program.into().into(),
            limit,
            watcher: Watcher::new()?,
        })
    }

    /// Makes the empty log of `id`; one that is there stays. It can be followed from now on.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io), [`DiskFull`](ErrorKind::DiskFull).
    pub async fn create(&self, id: &str) -> Result<()> {
        let folder = self.folder(id)?;
        blocking(move || {
            create(&folder).map_err(|error| Error::io(format!("make the log {}", folder.display()), error))
        })
        .await
    }

    /// The URI by which a shim starts the keeper: `binary://PROGRAM?keep-log=…`. It has one argument, since shims pass several in any
    /// order.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if `id` can't be a file's name.
    pub fn uri(&self, id: &str) -> Result<String> {
        let argument = self.argument(&self.folder(id)?);
        Ok(format!(
            "binary://{}?keep-log={}",
            percent_encoded(self.program.as_os_str().as_bytes(), b"/"),
            percent_encoded(&argument, b"/")
        ))
    }

    /// Makes two fifos, for standard output and standard error, and starts a keeper of what is written to them: for a
    /// container that is to read standard input, which shims give to none that has a logging URI. The keeper ends with both, or with
    /// [`remove`](Self::remove), and not with this process.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub async fn fifos(&self, id: &str) -> Result<(PathBuf, PathBuf)> {
        let folder = self.folder(id)?;
        let (stdout, stderr) = fifos_of(&folder);
        let made = [stdout.clone(), stderr.clone()];
        blocking(move || {
            for fifo in made {
                match mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(Error::io(format!("make the fifo {}", fifo.display()), error.into())),
                }
            }
            Ok(())
        })
        .await?;
        let argument = self.argument(&folder);
        let started = Command::new(&*self.program)
            .arg("keep-log")
            .arg(std::ffi::OsStr::from_bytes(&argument))
            .args([&stdout, &stderr])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What a terminal sends to this process's group is not meant for it.
            .process_group(0)
            .spawn();
        started.map_err(|error| Error::io(format!("start the log's keeper {}", self.program.display()), error))?;
        Ok((stdout, stderr))
    }

    /// The log from `offset` on, in bytes of both streams together. What is older than the log's limit is left out. Without
    /// `follow` it ends with what was written up to now. With it, it ends when the keeper has marked the end or the log was
    /// removed; a log whose keeper has not started yet is waited for.
    ///
    /// As long as the stream is there, what it has not yielded stays on the disk: a container that writes more than the
    /// log's limit ahead of it has to wait.
    ///
    /// # Errors
    /// [`ContainerNotFound`](ErrorKind::ContainerNotFound) if there is no such log. The stream's last item is
    /// [`Interrupted`](ErrorKind::Interrupted) if it is followed and its keeper died, and [`DiskFull`](ErrorKind::DiskFull) where output could
    /// not be kept.
    pub async fn read(&self, id: &str, offset: u64, follow: bool) -> Result<LogStream> {
        let bell = if follow {
            Some(self.watcher.watch(&self.folder(id)?)?)
        } else {
            None
        };
        reader::read(self.folder(id)?, offset, bell).await
    }

    /// Removes a log; one that is not there is success. Who follows it sees its end.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub async fn remove(&self, id: &str) -> Result<()> {
        let folder = self.folder(id)?;
        blocking(move || {
            release(&folder);
            let mut again = 0..AGAIN;
            loop {
                match fs::remove_dir_all(&folder) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    // Its keeper may just have put something there, such as how the container ended.
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && again.next().is_some() => {}
                    removed => {
                        return removed
                            .map_err(|error| Error::io(format!("remove the log {}", folder.display()), error));
                    }
                }
            }
        })
        .await
    }

    /// How the container ended, if its shim told the log's keeper: what the engine itself forgets when it happens while it is
    /// away (containerd 1.7 and 2.1). Nothing is told of one that has standard input, whose keeper is no child of its shim.
    /// Blocking, for as long as a small file takes.
    #[must_use]
    pub fn exit(&self, id: &str) -> Option<Exit> {
        keep_log::exit(&self.folder(id).ok()?)
    }

    fn folder(&self, id: &str) -> Result<PathBuf> {
        if id.is_empty() || id.starts_with('.') || id.contains(['/', '\0']) {
            return Err(Error::invalid(format!("a log can't have the name {id:?}")));
        }
        Ok(self.root.join(id))
    }

    fn argument(&self, folder: &Path) -> Vec<u8> {
        [format!("{}:", self.limit).as_bytes(), folder.as_os_str().as_bytes()].concat()
    }
}

/// Puts the helper program at `path`, from where shims start it, unless it is there already. Blocking.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) if this was built without the program; [`Io`](ErrorKind::Io).
pub fn install_program(path: &Path) -> Result<()> {
    let program = orchestra_helper::program(std::env::consts::ARCH).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "this program was built without its helper, which keeps logs",
        )
        .with_hint("build it where rustc has a musl target or the C library's static archive is installed")
    })?;
    if fs::read(path).is_ok_and(|installed| installed == program) {
        return Ok(());
    }
    let failed = |error| Error::io(format!("install the helper program {}", path.display()), error);
    // Under another name first: one that runs can't be written to, and nobody may start half of it.
    let new = path.with_extension(format!("new.{}", orchestra::JobId::unique()));
    let done = fs::write(&new, program)
        .and_then(|()| fs::set_permissions(&new, Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&new, path));
    done.map_err(|error| {
        let _ = fs::remove_file(&new);
        failed(error)
    })
}

/// The first segment is there from the beginning: readers that wait for the start hold it.
fn create(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if keep_log::segments(folder)?.is_empty() {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        open(
            folder.join(keep_log::segment_name(0)),
            flags,
            Mode::from_raw_mode(0o600),
        )?;
    }
    Ok(())
}

fn fifos_of(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("stdout"), folder.join("stderr"))
}

/// A keeper that waits for somebody to write to its fifos sees that nobody will.
fn release(folder: &Path) {
    let (stdout, stderr) = fifos_of(folder);
    for fifo in [stdout, stderr] {
        let _ = open(fifo, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    }
}

/// All but letters, digits, `-`, `.`, `_` and `also` as `%XX`.
fn percent_encoded(bytes: &[u8], also: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._".contains(byte) || also.contains(byte) => {
                text.push(char::from(*byte));
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
