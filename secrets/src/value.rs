//! A secret's value.

use std::fmt;
use std::sync::Arc;

use orchestra::{Error, Result};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use zeroize::Zeroize;

/// Bytes that are nobody's business: not in `Debug`, zeroed when the last clone is dropped. A clone is the same bytes.
#[derive(Clone)]
pub struct SecretValue(Arc<SecretSlice<u8>>);

impl SecretValue {
    /// The longest value that a store keeps: 1 MiB.
    pub const MAX: usize = 1 << 20;

    /// Takes the bytes.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let mut bytes = bytes.into();
        // A vector with room to spare would leave its bytes behind when it is made to fit.
        let exact: Box<[u8]> = bytes.as_slice().into();
        bytes.zeroize();
        Self(Arc::new(SecretSlice::new(exact)))
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }

    /// The value as text, for an environment variable or a registry's password.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) if it is not UTF-8 or has a NUL byte; `what` names it.
    pub fn text(&self, what: &str) -> Result<&str> {
        let hint = "use it as a file instead: `secret_files` takes any bytes";
        match std::str::from_utf8(self.expose()) {
            Ok(text) if !text.contains('\0') => Ok(text),
            Ok(_) => {
                Err(Error::invalid(format!("{what} has a NUL byte, which an environment can't hold")).with_hint(hint))
            }
            Err(_) => Err(Error::invalid(format!("{what} is not UTF-8 text")).with_hint(hint)),
        }
    }

    /// A value that was typed or piped in: a single line loses its line feed, as `$(…)` has it; one of many lines stays
    /// as it is, since a private key without its last line feed is none.
    #[must_use]
    pub fn from_input(mut bytes: Vec<u8>) -> Self {
        if bytes.iter().position(|byte| *byte == b'\n') == bytes.len().checked_sub(1) && !bytes.is_empty() {
            bytes.truncate(bytes.len() - 1);
            if bytes.last() == Some(&b'\r') {
                bytes.truncate(bytes.len() - 1);
            }
        }
        Self::new(bytes)
    }

    /// Refuses what no store keeps.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) for an empty value or one over [`MAX`](Self::MAX).
    pub fn check(&self, key: impl fmt::Display) -> Result<()> {
        match self.expose().len() {
            0 => Err(Error::invalid(format!("the secret {key} is empty")).with_hint("remove it instead")),
            length if length > Self::MAX => Err(Error::invalid(format!(
                "the secret {key} is {length} bytes long; at most {} are kept",
                Self::MAX
            ))
            .with_hint("keep a key in the store and the data, encrypted with it, elsewhere")),
            _ => Ok(()),
        }
    }
}

impl From<&str> for SecretValue {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes())
    }
}

impl From<&SecretString> for SecretValue {
    fn from(text: &SecretString) -> Self {
        Self::new(text.expose_secret().as_bytes())
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_line_loses_its_line_feed_and_a_key_of_many_lines_keeps_it() {
        for (given, kept) in [
            ("token\n", "token"),
            ("token\r\n", "token"),
            ("token", "token"),
            ("", ""),
            ("a\nb\n", "a\nb\n"),
            ("\n", ""),
        ] {
            assert_eq!(
                SecretValue::from_input(given.into()).expose(),
                kept.as_bytes(),
                "{given:?}"
            );
        }
    }

    #[test]
    fn debug_shows_nothing_and_no_environment_gets_what_it_can_not_hold() {
        let value = SecretValue::new(b"hun\0ter2".to_vec());
        assert_eq!(format!("{value:?}"), "[REDACTED]");
        let error = value.text("the secret TOKEN").unwrap_err();
        assert!(error.message().contains("TOKEN has a NUL byte") && !format!("{error:?}").contains("ter2"));
        assert!(SecretValue::new(vec![0xff, 0xfe]).text("x").is_err());
    }

    #[test]
    fn what_is_empty_or_too_long_is_refused() {
        assert!(SecretValue::from("").check("K").is_err());
        assert!(SecretValue::new(vec![b'x'; SecretValue::MAX]).check("K").is_ok());
        let error = SecretValue::new(vec![b'x'; SecretValue::MAX + 1])
            .check("K")
            .unwrap_err();
        assert!(error.message().contains("K is 1048577 bytes long"), "{error}");
    }
}
