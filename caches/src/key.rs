//! What a cache is called in a store.

use std::fmt;
use std::str::FromStr;

use object_store::path::Path;
use orchestra::{Error, Result};

/// Longest part of a key between two slashes once it is encoded: file names end at 255 bytes.
const MAX_PART: usize = 240;
/// Longest key.
const MAX_KEY: usize = 1024;
/// Ends an object's name. No encoded part ends with it, so that no key's object is another key's folder.
const END: char = '=';

/// A cache's key: text with `/` between its parts, for example `ci/test/cargo-3f2a`.
///
/// ```
/// use orchestra_caches::CacheKey;
/// let key: CacheKey = "ci/test/.cargo".parse()?;
/// assert_eq!(key.as_str(), "ci/test/.cargo");
/// assert!("a\nb".parse::<CacheKey>().is_err());
/// # Ok::<(), orchestra::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheKey(String);

impl CacheKey {
    /// Takes `value` if it is valid; doubled and closing slashes go.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) if it is empty, longer than 1024 bytes, has a
    /// control character, or a part of it is too long for a file's name.
    pub fn new(value: impl AsRef<str>) -> Result<Self> {
        let value = value.as_ref();
        let refuse = |why: &str| Err(Error::invalid(format!("cache key {value:?} {why}")));
        let parts: Vec<&str> = value.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return refuse("is empty");
        }
        if value.len() > MAX_KEY {
            return refuse("is longer than 1024 bytes");
        }
        if value.chars().any(char::is_control) {
            return refuse("has a control character");
        }
        if parts.iter().any(|part| encode(part).len() > MAX_PART) {
            return refuse("has a part between two `/` that is too long for a file's name; use a checksum instead");
        }
        Ok(Self(parts.join("/")))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where its entry is.
    pub(crate) fn object(&self, folder: &str) -> Path {
        let parts: Vec<String> = self.0.split('/').map(encode).collect();
        Path::from(format!("{folder}/{}{END}", parts.join("/")))
    }

    /// The key that an object belongs to; `None` for what is no entry.
    pub(crate) fn of_object(folder: &str, object: &Path) -> Option<Self> {
        let name = object
            .as_ref()
            .strip_prefix(folder)?
            .strip_prefix('/')?
            .strip_suffix(END)?;
        let parts: Option<Vec<String>> = name.split('/').map(decode).collect();
        Self::new(parts?.join("/")).ok()
    }
}

/// The folder that holds all keys with this prefix.
pub(crate) fn folder_of(folder: &str, prefix: &str) -> Path {
    let parts = prefix.rsplit_once('/').map_or("", |(parts, _)| parts);
    let parts = parts.split('/').filter(|part| !part.is_empty()).map(encode);
    let parts: Vec<String> = std::iter::once(folder.to_owned()).chain(parts).collect();
    Path::from(parts.join("/"))
}

/// As quoted-printable has it, because stores and file systems differ in what else they take.
fn encode(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    // `.` and `..` mean something else.
    let dots = part.bytes().all(|byte| byte == b'.');
    part.bytes()
        .map(|byte| match byte {
            byte if plain(byte) && !dots => char::from(byte).to_string(),
            byte => format!("={byte:02X}"),
        })
        .collect()
}

fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = part.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'=' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for CacheKey {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        Self::new(value)
    }
}

impl TryFrom<String> for CacheKey {
    type Error = Error;
    fn try_from(value: String) -> Result<Self> {
        Self::new(value)
    }
}

impl From<CacheKey> for String {
    fn from(key: CacheKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_that_no_store_can_hold_are_refused_with_the_reason() {
        for (bad, why) in [
            ("", "is empty"),
            ("//", "is empty"),
            ("a\0b", "control character"),
            (&"x".repeat(241), "too long"),
            (&"a/".repeat(600), "longer than"),
        ] {
            let error = CacheKey::new(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_key_comes_back_from_its_object_and_stays_in_its_folder(text in "\\PC{1,20}(/\\PC{1,20}){0,3}") {
            prop_assume!(CacheKey::new(&text).is_ok());
            let key = CacheKey::new(&text).unwrap();
            let object = key.object("entries");
            prop_assert_eq!(CacheKey::of_object("entries", &object), Some(key.clone()));
            prop_assert!(!object.as_ref().split('/').any(|part| part.is_empty() || part == "." || part == ".."));
            for cut in key.as_str().char_indices().map(|(at, _)| at) {
                let folder = folder_of("entries", &key.as_str()[..cut]);
                prop_assert!(object.prefix_matches(&folder), "{} {}", object, folder);
            }
        }
    }
}
