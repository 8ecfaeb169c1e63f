//! What secrets are called: keys, scopes, and references to them.

use std::fmt;
use std::str::FromStr;

use orchestra::{Error, Result};
use zeroize::Zeroizing;

use crate::SecretValue;
use crate::files::Zeroed;

/// What a reference starts with that is a whole value: `secret:KEY`.
const PREFIX: &str = "secret:";
const MAX: usize = 255;

/// A secret's name within its scope.
///
/// 1 to 255 letters, digits, `_`, `-`, `.`, `/`, `@` and `+`; it starts with a letter, digit or `_`, and no part between
/// slashes is empty or starts with a dot. So it is a safe relative path, and a safe argument of a program.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretKey(String);

impl SecretKey {
    /// Takes `key` if it is valid.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) saying what is not allowed.
    pub fn new(key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        let refuse = |why: String| {
            Err(Error::invalid(format!("secret key {key:?} {why}")).with_hint(
                "use letters, digits, `_`, `-`, `.`, `/`, `@` and `+`, for example REGISTRY_PASSWORD or team/token",
            ))
        };
        if key.is_empty() {
            return refuse("is empty".to_owned());
        }
        if key.len() > MAX {
            return refuse(format!("is {} bytes long; at most {MAX} are allowed", key.len()));
        }
        if let Some(bad) = key
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !"_-./@+".contains(*c))
        {
            return refuse(format!("contains {bad:?}"));
        }
        if !key.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            return refuse("must start with a letter, a digit or `_`".to_owned());
        }
        if key.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
            return refuse("has a part that is empty or starts with a dot".to_owned());
        }
        Ok(Self(key))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of a text that is a reference as a whole: `secret:KEY`. `None` if it is none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) if what follows `secret:` is no key.
    pub fn of_reference(text: &str) -> Result<Option<Self>> {
        text.strip_prefix(PREFIX).map(Self::new).transpose()
    }
}

impl FromStr for SecretKey {
    type Err = Error;
    fn from_str(key: &str) -> Result<Self> {
        Self::new(key)
    }
}

impl fmt::Display for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Who a secret is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One pipeline, by its name; wins over the global one.
    Pipeline(String),
    /// All pipelines.
    Global,
}

impl Scope {
    /// A pipeline's scope, by a name without control characters.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) for a name that is empty, too long or not printable.
    pub fn pipeline(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        if name.is_empty() || name.len() > MAX || name.chars().any(char::is_control) {
            return Err(Error::invalid(format!("{name:?} can't be a pipeline's name"))
                .with_hint("a pipeline is called after its file: `deploy` for ci/deploy.yml"));
        }
        Ok(Self::Pipeline(name))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipeline(name) => write!(f, "pipeline {name}"),
            Self::Global => f.write_str("global"),
        }
    }
}

/// Which secret: a key, maybe in one store, maybe a field of the JSON object that is its value. Written
/// `((KEY))`, `((KEY.FIELD))`, `((STORE:KEY.FIELD))`; a part with dots or colons of its own stands in double quotes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The store to ask alone; all of them in order where `None`.
    pub store: Option<String>,
    /// The key.
    pub key: SecretKey,
    /// The path of fields in its value.
    pub fields: Vec<String>,
}

impl Reference {
    /// A whole secret of any store.
    #[must_use]
    pub fn of(key: SecretKey) -> Self {
        Self {
            store: None,
            key,
            fields: Vec::new(),
        }
    }

    /// The secret that this is a field of, or is.
    #[must_use]
    pub fn whole(&self) -> Self {
        Self {
            fields: Vec::new(),
            ..self.clone()
        }
    }

    /// What this refers to of the [whole](Self::whole) secret's value.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) for a field that the value has not.
    pub fn of_whole(&self, value: SecretValue) -> Result<SecretValue> {
        if self.fields.is_empty() {
            return Ok(value);
        }
        let refuse = |why: &str| Error::invalid(format!("the secret {}: {why}", self.key));
        let json: Zeroed = serde_json::from_slice(value.expose())
            .map(Zeroed)
            .map_err(|_| refuse("it has no fields, as it is no JSON object"))?;
        let mut at = &json.0;
        for name in &self.fields {
            let found = at.get(name);
            at = found.ok_or_else(|| refuse(&format!("it has no field `{}`", self.fields.join("."))))?;
        }
        match at {
            serde_json::Value::String(text) => Ok(text.as_str().into()),
            other => Ok(Zeroizing::new(other.to_string()).as_str().into()),
        }
    }
}

/// From what stands between the double parentheses.
impl FromStr for Reference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let (store, path) = match split(text, ':')?.as_slice() {
            [path] => (None, path.clone()),
            [store, path] => (Some(unquoted(store)), path.clone()),
            _ => {
                return Err(Error::invalid(format!("(({text})) has more than one `:`"))
                    .with_hint("write ((STORE:KEY.FIELD)), and quote a part that has a `:` of its own"));
            }
        };
        let mut parts = split(&path, '.')?.into_iter().map(|part| unquoted(&part));
        let key = SecretKey::new(parts.next().unwrap_or_default())?;
        let fields: Vec<String> = parts.collect();
        if fields.iter().any(String::is_empty) || store.as_ref().is_some_and(String::is_empty) {
            return Err(Error::invalid(format!("(({text})) has an empty part")));
        }
        Ok(Self { store, key, fields })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(store) = &self.store {
            write!(f, "{store}:")?;
        }
        write!(f, "{}", self.key)?;
        self.fields.iter().try_for_each(|field| write!(f, ".{field}"))
    }
}

/// Splits at `sign` outside of double quotes; the quotes stay.
fn split(text: &str, sign: char) -> Result<Vec<String>> {
    let (mut parts, mut quoted) = (vec![String::new()], false);
    for c in text.chars() {
        quoted ^= c == '"';
        if c == sign && !quoted {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    if quoted {
        return Err(Error::invalid(format!("(({text})) has a quote that is not closed")));
    }
    Ok(parts)
}

fn unquoted(part: &str) -> String {
    part.replace('"', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_could_be_a_path_out_or_an_option_is_refused_with_the_reason() {
        for (bad, why) in [
            ("", "is empty"),
            ("-rf", "must start with"),
            ("../x", "must start with"),
            ("a/../b", "starts with a dot"),
            ("a//b", "is empty or"),
            ("a b", "contains ' '"),
            ("a\0b", "contains '\\0'"),
            ("schlüssel", "contains 'ü'"),
            ("a;b", "contains ';'"),
            (&"x".repeat(256), "256 bytes"),
        ] {
            let error = SecretKey::new(bad).unwrap_err();
            assert!(error.message().contains(why), "{bad:?}: {error}");
        }
        for good in ["TOKEN", "team/ci/token", "_x", "a.b-c@d+e", "0"] {
            assert!(SecretKey::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_reference_is_the_whole_text_or_none() {
        assert_eq!(
            SecretKey::of_reference("secret:TOKEN").unwrap().unwrap().as_str(),
            "TOKEN"
        );
        assert_eq!(SecretKey::of_reference("my secret:TOKEN").unwrap(), None);
        assert!(SecretKey::of_reference("secret:").is_err());
    }

    #[test]
    fn references_are_read_as_concourse_writes_them() {
        let read = |text: &str| {
            let Reference { store, key, fields } = text.parse::<Reference>().unwrap();
            (store, key.as_str().to_owned(), fields)
        };
        assert_eq!(read("token"), (None, "token".into(), vec![]));
        assert_eq!(
            read("vault:team/db.password"),
            (Some("vault".into()), "team/db".into(), vec!["password".into()])
        );
        assert_eq!(
            read("vault:\"a.b\".\"c:d\".e"),
            (Some("vault".into()), "a.b".into(), vec!["c:d".into(), "e".into()])
        );
        for bad in ["a:b:c", "a.", ":a", "a.\"b", ""] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
