//! A registry whose certificate an authority of its own has signed, and which wants one of its clients.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::{Result, until_listening};

/// It ends when it is dropped.
#[derive(Debug)]
pub struct TlsRegistry {
    /// `HOST:PORT`.
    pub address: String,
    /// The authority's certificate, in PEM.
    pub ca: String,
    /// A client's, by which it is known.
    pub certificate: String,
    /// The key of that.
    pub key: String,
    child: Child,
    _folder: TempDir,
}

impl TlsRegistry {
    /// Starts it, with an authority of its own.
    ///
    /// # Errors
    /// If there is no `docker-registry`, or it does not listen.
    pub fn start() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let ca = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let signed = |names: &[&str], usage| -> Result<_, rcgen::Error> {
            let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &issuer)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let server = signed(&["127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth)?;
        let (certificate, key) = signed(&["builder"], ExtendedKeyUsagePurpose::ClientAuth)?;

        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("ca.pem"), &ca)?;
        std::fs::write(path("server.pem"), server.0)?;
        std::fs::write(path("server.key"), server.1)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let at = folder.path().display();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {at}/data\nhttp:\n  addr: {address}\n  \
             tls:\n    certificate: {at}/server.pem\n    key: {at}/server.key\n    clientcas:\n      - {at}/ca.pem\n"
        );
        std::fs::write(path("config.yml"), config)?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("docker-registry, of Debian's package of that name: {error}"))?;
        let registry = Self {
            address,
            ca,
            certificate,
            key,
            child,
            _folder: folder,
        };
        until_listening(&registry.address)?;
        Ok(registry)
    }
}

impl Drop for TlsRegistry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
