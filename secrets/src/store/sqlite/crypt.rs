//! Keys and sealed values of the encrypted file.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use orchestra::{Error, ErrorKind, Result};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::SecretValue;

/// What is sealed to know the key by.
const KNOWN: &[u8] = b"orchestra secrets";
/// Costs of argon2id in KiB and passes: OWASP's second choice, about 0.1 s.
const MEMORY: u32 = 47_104;
const PASSES: u32 = 1;
/// A header that asks for more was not written by us.
const MAX_MEMORY: u32 = 1 << 20;
const MAX_PASSES: u32 = 100;

/// The file's header.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Vault {
    pub(super) format: u32,
    pub(super) salt: Vec<u8>,
    pub(super) memory: u32,
    pub(super) passes: u32,
    pub(super) nonce: Vec<u8>,
    pub(super) sealed: Vec<u8>,
    pub(super) checksum: Vec<u8>,
}

impl Vault {
    pub(super) const FORMAT: u32 = 1;

    /// A header for a new file, or a new key.
    pub(super) fn make(material: &SecretValue) -> Result<(Self, Cipher)> {
        let mut vault = Self {
            format: Self::FORMAT,
            salt: random::<16>()?.to_vec(),
            memory: MEMORY,
            passes: PASSES,
            nonce: Vec::new(),
            sealed: Vec::new(),
            checksum: Vec::new(),
        };
        let cipher = vault.derive(material)?;
        (vault.nonce, vault.sealed) = cipher.seal(&SecretValue::new(KNOWN), KNOWN)?;
        vault.checksum = vault.sum();
        Ok((vault, cipher))
    }

    /// Whether it is as it was written.
    pub(super) fn is_whole(&self) -> bool {
        self.checksum == self.sum() && self.memory <= MAX_MEMORY && self.passes <= MAX_PASSES
    }

    /// The cipher, if the key is right.
    pub(super) fn open(&self, material: &SecretValue) -> Result<Option<Cipher>> {
        let cipher = self.derive(material)?;
        let known = cipher.unseal(&self.nonce, &self.sealed, KNOWN);
        Ok(known.map(|_| cipher))
    }

    fn derive(&self, material: &SecretValue) -> Result<Cipher> {
        let failed = |error| Error::new(ErrorKind::Io, format!("derive the key of the secrets' file: {error}"));
        let params = Params::new(self.memory, self.passes, 1, Some(32)).map_err(failed)?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(material.expose(), &self.salt, key.as_mut_slice())
            .map_err(failed)?;
        Ok(Cipher(XChaCha20Poly1305::new((&*key).into())))
    }

    fn sum(&self) -> Vec<u8> {
        let mut hash = Sha256::new();
        for number in [self.format, self.memory, self.passes] {
            hash.update(number.to_be_bytes());
        }
        for part in [&self.salt, &self.nonce, &self.sealed] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        hash.finalize().to_vec()
    }
}

/// Seals and unseals values; its key is zeroed when it is dropped.
#[derive(Clone)]
pub(super) struct Cipher(XChaCha20Poly1305);

impl Cipher {
    /// Nonce and sealed value, bound to `bound`.
    pub(super) fn seal(&self, value: &SecretValue, bound: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        let nonce = random::<24>()?;
        let payload = Payload {
            msg: value.expose(),
            aad: bound,
        };
        let sealed = self.0.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| Error::new(ErrorKind::Io, "a value could not be sealed"))?;
        Ok((nonce.to_vec(), sealed))
    }

    /// The value, if neither it nor what it is bound to was changed.
    pub(super) fn unseal(&self, nonce: &[u8], sealed: &[u8], bound: &[u8]) -> Option<SecretValue> {
        let nonce = <[u8; 24]>::try_from(nonce).ok()?;
        let payload = Payload {
            msg: sealed,
            aad: bound,
        };
        self.0.decrypt(&XNonce::from(nonce), payload).ok().map(SecretValue::new)
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(ErrorKind::Io, format!("ask the system for random bytes: {error}")))?;
    Ok(bytes)
}
