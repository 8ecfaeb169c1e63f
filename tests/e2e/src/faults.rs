//! A proxy before an HTTP server that delays, refuses and cuts.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::Result;

/// What the proxy does to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Waits so long before it passes anything on.
    Delay(Duration),
    /// Answers so many times with status 503, then does nothing more.
    Refuse(u32),
    /// Breaks the connection off after so many bytes of the server's answer, so many times.
    Cut(u64, u32),
    /// Takes what comes and never answers.
    Hang,
}

/// A proxy that runs as long as the program.
#[derive(Clone, Debug)]
pub struct FaultProxy {
    fault: Arc<Mutex<Fault>>,
    met: Arc<AtomicU32>,
    /// What every connection ends with.
    changed: Arc<watch::Sender<()>>,
    address: String,
}

impl FaultProxy {
    /// One before `server`, which is `HOST:PORT`.
    ///
    /// # Errors
    /// If it can't listen.
    pub async fn start(server: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let proxy = Self {
            fault: Arc::new(Mutex::new(Fault::None)),
            met: Arc::default(),
            changed: Arc::new(watch::Sender::new(())),
            address: listener.local_addr()?.to_string(),
        };
        let (of_proxy, server) = (proxy.clone(), server.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut changed = of_proxy.changed.subscribe();
                let fault = of_proxy.next();
                let server = server.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        passed = pass(client, &server, fault) => passed.ok(),
                        Ok(()) = changed.changed() => None,
                    }
                });
            }
        });
        Ok(proxy)
    }

    /// Where it listens: `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Does this from now on. Connections that are there end: one that is kept would not meet it.
    pub fn set(&self, fault: Fault) {
        let mut now = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        *now = fault;
        self.met.store(0, Ordering::Relaxed);
        drop(now);
        self.changed.send_replace(());
    }

    /// How many connections have met the fault.
    #[must_use]
    pub fn met(&self) -> u32 {
        self.met.load(Ordering::Relaxed)
    }

    fn next(&self) -> Fault {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let now = *fault;
        match &mut *fault {
            Fault::Refuse(0) | Fault::Cut(_, 0) => return Fault::None,
            Fault::Refuse(left) | Fault::Cut(_, left) => *left -= 1,
            Fault::None => return now,
            Fault::Delay(_) | Fault::Hang => {}
        }
        self.met.fetch_add(1, Ordering::Relaxed);
        now
    }
}

async fn pass(mut client: TcpStream, server: &str, fault: Fault) -> std::io::Result<()> {
    match fault {
        Fault::Hang => {
            let mut sink = tokio::io::sink();
            copy(&mut client, &mut sink).await?;
            return Ok(());
        }
        Fault::Refuse(_) => {
            let mut some = [0; 4096];
            // The request's head, or a part of it, is enough to be rude.
            let _ = client.read(&mut some).await?;
            let answer = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            client.write_all(answer.as_bytes()).await?;
            return client.shutdown().await;
        }
        Fault::Delay(delay) => tokio::time::sleep(delay).await,
        Fault::None | Fault::Cut(..) => {}
    }
    let mut upstream = TcpStream::connect(server).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = upstream.split();
    match fault {
        Fault::Cut(bytes, _) => {
            let mut limited = from_server.take(bytes);
            tokio::select! {
                done = copy(&mut limited, &mut to_client) => done.map(|_| ()),
                done = copy(&mut from_client, &mut to_server) => done.map(|_| ()),
            }
        }
        _ => {
            tokio::select! {
                done = copy(&mut from_server, &mut to_client) => done.map(|_| ()),
                done = copy(&mut from_client, &mut to_server) => done.map(|_| ()),
            }
        }
    }
}
