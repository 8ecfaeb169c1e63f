//! An engine's socket in another place.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::{Endpoint, Result};

/// One side of a connection, of either kind.
trait Side: Read + Write + Send + Sized + 'static {
    fn duplicate(&self) -> io::Result<Self>;
    fn end(&self) -> io::Result<()>;
}

impl Side for TcpStream {
    fn duplicate(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Side for UnixStream {
    fn duplicate(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Puts the engine on a port of loopback, as long as the program lives, and says which: `HOST:PORT`.
///
/// # Errors
/// If it can't listen.
pub fn by_tcp(engine: &Endpoint) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, engine) = (listener.local_addr()?.to_string(), engine.clone());
    std::thread::spawn(move || listener.incoming().flatten().for_each(|client| serve(client, &engine)));
    Ok(address)
}

/// Puts the engine on a socket that everybody may use, as long as the program lives. Missing folders are made.
///
/// # Errors
/// If it can't listen.
pub fn by_socket(engine: &Endpoint, path: &Path) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    let engine = engine.clone();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|client| serve(client, &engine)));
    Ok(())
}

/// A client whose engine does not answer sees its connection end.
fn serve(client: impl Side, engine: &Endpoint) {
    match engine {
        Endpoint::Unix(socket) => UnixStream::connect(socket).and_then(|engine| join(client, engine)),
        Endpoint::Tcp(address) => TcpStream::connect(address).and_then(|engine| join(client, engine)),
    }
    .ok();
}

fn join(client: impl Side, engine: impl Side) -> io::Result<()> {
    pass_on(client.duplicate()?, engine.duplicate()?);
    pass_on(engine, client);
    Ok(())
}

fn pass_on(mut from: impl Side, mut to: impl Side) {
    std::thread::spawn(move || {
        // Whichever side breaks off, the other one is told.
        io::copy(&mut from, &mut to).ok();
        to.end().ok();
    });
}
