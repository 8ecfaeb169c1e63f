//! Paths inside containers and volumes. They are text of the engine's side (POSIX), never paths of this machine.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

const MAX_PATH: usize = 4096;

/// Refuses what could mean something else than it says; returns the parts without `.` and doubled slashes.
fn parts<'a>(what: &str, value: &'a str) -> Result<Vec<&'a str>> {
    let refuse = |why: &str| Err(Error::invalid(format!("{what} {value:?} {why}")));
    if value.is_empty() {
        return Err(Error::invalid(format!("{what} is empty")));
    }
    if value.len() > MAX_PATH {
        return refuse("is longer than 4096 bytes");
    }
    if value.chars().any(char::is_control) {
        return refuse("contains a control character");
    }
    let parts: Vec<&str> = value
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") {
        return refuse("contains `..`");
    }
    Ok(parts)
}

/// Where something stands in a container: absolute (`/var/cache`) or relative to the working directory (`source`).
///
/// ```
/// use orchestra::ContainerPath;
/// let path: ContainerPath = "source/./app/".parse()?;
/// assert_eq!(path.as_str(), "source/app");
/// assert_eq!(path.resolve("/workspace"), "/workspace/source/app");
/// assert!("../etc".parse::<ContainerPath>().is_err());
/// # Ok::<(), orchestra::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerPath(String);

impl ContainerPath {
    /// Takes `value` if it is a valid path.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if it is empty, longer than 4096 bytes, or has a
    /// `..` or a control character.
    pub fn new(value: impl AsRef<str>) -> Result<Self> {
        let value = value.as_ref();
        let joined = parts("container path", value)?.join("/");
        Ok(Self(match (value.starts_with('/'), joined.is_empty()) {
            (true, _) => format!("/{joined}"),
            (false, true) => ".".to_owned(),
            (false, false) => joined,
        }))
    }

    /// The text, without doubled slashes, `.` parts and a closing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it starts at the root.
    #[must_use]
    pub fn is_absolute(&self) -> bool {
        self.0.starts_with('/')
    }

    /// The absolute path, for a container that works in `working_dir`.
    #[must_use]
    pub fn resolve(&self, working_dir: &str) -> String {
        let base = working_dir.trim_end_matches('/');
        match self.0.as_str() {
            absolute if self.is_absolute() => absolute.to_owned(),
            "." if base.is_empty() => "/".to_owned(),
            "." => base.to_owned(),
            relative => format!("{base}/{relative}"),
        }
    }
}

/// A path inside a volume, relative to its root; `.` is the root itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumePath(String);

impl VolumePath {
    /// Takes `value` if it is a valid relative path.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if it is absolute, empty, longer than 4096 bytes, or
    /// has a `..` or a control character.
    pub fn new(value: impl AsRef<str>) -> Result<Self> {
        let value = value.as_ref();
        if value.starts_with('/') {
            return Err(Error::invalid(format!(
                "volume path {value:?} is absolute; it must be relative to the volume's root"
            )));
        }
        let joined = parts("volume path", value)?.join("/");
        Ok(Self(if joined.is_empty() { ".".to_owned() } else { joined }))
    }

    /// The volume's root.
    #[must_use]
    pub fn root() -> Self {
        Self(".".to_owned())
    }

    /// Whether `path`, a name in a tar of the volume, is this path or below it.
    #[must_use]
    pub fn contains(&self, path: &[u8]) -> bool {
        let below = path.strip_prefix(self.0.as_bytes());
        self.is_root() || below.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }

    /// The paths without those that are below others, which would be packed twice.
    #[must_use]
    pub fn outermost(paths: &[Self]) -> Vec<Self> {
        let mut outermost: Vec<Self> = Vec::new();
        let mut sorted = paths.to_vec();
        // Parts compare as a directory before what is in it.
        sorted.sort_by(|a, b| a.0.split('/').cmp(b.0.split('/')));
        for path in sorted {
            if !outermost.iter().any(|of| of.contains(path.0.as_bytes())) {
                outermost.push(path);
            }
        }
        if outermost.iter().any(Self::is_root) {
            outermost.retain(Self::is_root);
        }
        outermost
    }

    /// Whether this is the volume's root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "."
    }

    /// The text; `.` for the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $type {
            type Err = Error;
            fn from_str(value: &str) -> Result<Self> {
                Self::new(value)
            }
        }
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(value: String) -> Result<Self> {
                Self::new(value)
            }
        }
        impl TryFrom<&str> for $type {
            type Error = Error;
            fn try_from(value: &str) -> Result<Self> {
                Self::new(value)
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }
    };
}
text!(ContainerPath);
text!(VolumePath);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_working_directory_itself_can_be_meant() {
        let here = ContainerPath::new(".").unwrap();
        assert_eq!(here.resolve("/work/"), "/work");
        assert_eq!(here.resolve("/"), "/");
        assert_eq!(ContainerPath::new("/").unwrap().resolve("/work"), "/");
    }

    #[test]
    fn a_volume_path_never_leaves_its_volume() {
        for bad in ["/etc", "..", "a/../../b", "", "a\0b", "a\nb"] {
            assert!(VolumePath::new(bad).is_err(), "{bad:?}");
        }
        assert!(VolumePath::new("./").unwrap().is_root());
    }

    proptest! {
        #[test]
        fn resolving_stays_under_the_working_directory(path in "[a-z./]{1,40}") {
            if let Ok(path) = ContainerPath::new(&path) {
                let resolved = path.resolve("/work");
                prop_assert!(resolved.starts_with('/'));
                prop_assert!(!resolved.split('/').any(|part| part == ".."));
                if !path.is_absolute() {
                    prop_assert!(resolved == "/work" || resolved.starts_with("/work/"));
                }
            }
        }
    }

    #[test]
    fn paths_below_others_are_left_out() {
        let paths = |texts: &[&str]| -> Vec<VolumePath> {
            texts.iter().map(|text| VolumePath::new(text).expect("valid")).collect()
        };
        assert_eq!(
            VolumePath::outermost(&paths(&["a/b", "a", "ab", "a/b/c", "c/d"])),
            paths(&["a", "ab", "c/d"])
        );
        assert_eq!(VolumePath::outermost(&paths(&["a", ".", "b"])), paths(&["."]));
    }
}
