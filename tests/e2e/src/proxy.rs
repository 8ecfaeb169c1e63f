//! An engine's socket on a port.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::{Endpoint, Result};

/// Passes connections of a port on loopback on to the engine, as long as the program lives, and says where that port is:
/// `HOST:PORT`.
///
/// # Errors
/// If it can't listen.
pub fn by_tcp(engine: &Endpoint) -> Result<String> {
    let socket = match engine {
        Endpoint::Tcp(address) => return Ok(address.clone()),
        Endpoint::Unix(socket) => socket.clone(),
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let socket = socket.clone();
            std::thread::spawn(move || pass_on(&client, socket).ok());
        }
    });
    Ok(address)
}

fn pass_on(client: &TcpStream, socket: PathBuf) -> io::Result<()> {
    let engine = UnixStream::connect(socket)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let passed = io::copy(&mut &*client, &mut &engine);
            engine.shutdown(Shutdown::Write).ok();
            passed
        });
        io::copy(&mut &engine, &mut &*client)?;
        client.shutdown(Shutdown::Write)
    })
}
