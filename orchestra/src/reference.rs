//! How images are named.
//!
//! `oci-spec` has the same grammar as one regular expression. To compile that takes some 60 ms, a fifth of what a whole
//! task takes, and each process would pay it anew; the test compares the two.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Where an image is that is named without a registry.
const DOCKER_HUB: &str = "docker.io";
/// The Docker Hub's older name, which means the same.
const DOCKER_HUB_LEGACY: &str = "index.docker.io";
/// Most bytes of a repository's name, as registries built on `distribution` have it.
const MAX_REPOSITORY: usize = 255;
/// Most bytes of a tag.
const MAX_TAG: usize = 128;
/// Algorithms of digests, and how many hexadecimal digits each has.
const DIGESTS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

/// An image's reference, as people write it: `busybox`, `ghcr.io/o/app:1.2`, `app@sha256:…`.
///
/// It is checked by the grammar of the [OCI distribution specification](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests)
/// and docker's rules for leaving out registry and tag. `Display` gives back what was written.
///
/// ```
/// use orchestra::ImageRef;
/// let image: ImageRef = "busybox".parse()?;
/// assert_eq!(image.canonical(), "docker.io/library/busybox:latest");
/// let image: ImageRef = "127.0.0.1:5055/team/app:v1".parse()?;
/// assert_eq!((image.registry(), image.repository(), image.tag()), ("127.0.0.1:5055", "team/app", Some("v1")));
/// assert!("App:latest".parse::<ImageRef>().is_err());
/// # Ok::<(), orchestra::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    written: String,
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ImageRef {
    /// Takes `value` if it is a valid reference.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) saying which part is not valid.
    pub fn new(value: impl Into<String>) -> Result<Self> {
        let written = value.into();
        Self::parse(&written).map_err(|reason| {
            Error::invalid(format!("image reference {written:?} is not valid: {reason}")).with_hint(
                "write it as [REGISTRY/]REPOSITORY[:TAG][@DIGEST], for example registry.example.com/team/app:1.2",
            )
        })
    }

    fn parse(written: &str) -> std::result::Result<Self, &'static str> {
        let (rest, digest) = match written.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (written, None),
        };
        // What follows the last colon is a port if a path comes after it.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        digest.map_or(Ok(()), check_digest)?;
        tag.map_or(Ok(()), check_tag)?;
        let is_registry =
            |first: &str| first.contains(['.', ':']) || first == "localhost" || first.contains(char::is_uppercase);
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => {
                check_registry(first)?;
                (first, path)
            }
            _ => (DOCKER_HUB, name),
        };
        let registry = if registry == DOCKER_HUB_LEGACY {
            DOCKER_HUB
        } else {
            registry
        };
        path.split('/').try_for_each(check_component)?;
        let repository = if registry == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if repository.len() > MAX_REPOSITORY {
            return Err("the repository's name is longer than 255 bytes");
        }
        let tag = tag.or_else(|| digest.is_none().then_some("latest"));
        Ok(Self {
            written: written.to_owned(),
            registry: registry.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Registry, repository and tag or digest, with nothing left out.
    #[must_use]
    pub fn canonical(&self) -> String {
        let mut whole = format!("{}/{}", self.registry, self.repository);
        for (mark, part) in [(':', &self.tag), ('@', &self.digest)] {
            if let Some(part) = part {
                whole.push(mark);
                whole.push_str(part);
            }
        }
        whole
    }

    /// The registry's host and port; `docker.io` where none is written.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, `library/` included for docker.io's official images.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where neither tag nor digest is written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned to one.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

type Check = std::result::Result<(), &'static str>;

fn check_digest(digest: &str) -> Check {
    let Some((algorithm, hex)) = digest.split_once(':') else {
        return Err("its digest has no algorithm, as in `sha256:…`");
    };
    let Some((_, length)) = DIGESTS.iter().find(|(known, _)| *known == algorithm) else {
        return Err("its digest's algorithm is none of sha256, sha384 and sha512");
    };
    if hex.len() != *length {
        return Err("its digest is too short or too long");
    }
    if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("its digest is not of lower-case hexadecimal digits");
    }
    Ok(())
}

fn check_tag(tag: &str) -> Check {
    if tag.is_empty() || tag.len() > MAX_TAG {
        return Err("its tag has not between 1 and 128 characters");
    }
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !is_word(tag.as_bytes()[0]) || !tag.bytes().all(|byte| is_word(byte) || b".-".contains(&byte)) {
        return Err("its tag is not of letters, digits, `_`, `.` and `-`, the first a letter, a digit or `_`");
    }
    Ok(())
}

fn check_registry(registry: &str) -> Check {
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let label = |label: &str| {
        let fits = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        fits && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    if !host.split('.').all(label) {
        return Err("its registry is no host name");
    }
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err("its registry's port is no number");
    }
    Ok(())
}

/// What stands between slashes: words of lower-case letters and digits, with one `.`, one or two `_`, or any number of `-`
/// between two of them.
fn check_component(component: &str) -> Check {
    if component.is_empty() {
        return Err("its repository's name is empty, or a part of it is");
    }
    if component.contains(|c: char| c.is_ascii_uppercase()) {
        return Err("its repository's name has upper-case letters");
    }
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !component.chars().all(|c| word(c) || "._-".contains(c)) {
        return Err("its repository's name is not of lower-case letters, digits, `.`, `_` and `-`");
    }
    if !component.starts_with(word) || !component.ends_with(word) {
        return Err("a part of its repository's name does not begin and end with a letter or a digit");
    }
    let separators = component.split(word).filter(|separator| !separator.is_empty());
    let known = |separator: &str| ["__", "_", "."].contains(&separator) || separator.bytes().all(|byte| byte == b'-');
    if !separators.into_iter().all(known) {
        return Err("two words of its repository's name have more than `.`, `_`, `__` or dashes between them");
    }
    Ok(())
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.written, f)
    }
}

impl FromStr for ImageRef {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        Self::new(value)
    }
}

impl TryFrom<String> for ImageRef {
    type Error = Error;
    fn try_from(value: String) -> Result<Self> {
        Self::new(value)
    }
}

impl TryFrom<&str> for ImageRef {
    type Error = Error;
    fn try_from(value: &str) -> Result<Self> {
        Self::new(value)
    }
}

impl From<ImageRef> for String {
    fn from(value: ImageRef) -> Self {
        value.written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::distribution::Reference;
    use proptest::prelude::*;

    #[test]
    fn references_are_refused_with_the_reason_and_the_form() {
        for (bad, reason) in [
            ("", "empty"),
            ("UPPER", "upper-case"),
            ("a b", "lower-case letters, digits"),
            ("app:", "between 1 and 128"),
            ("app:ta g", "its tag"),
            ("app:\u{e4}", "its tag"),
            ("app\n", "lower-case letters, digits"),
            ("-app", "begin and end"),
            ("reg/../app", "begin and end"),
            ("example.com/a//b", "empty"),
            ("example.com:port/a", "port"),
            ("a._b", "between them"),
            ("app:latest --push", "its tag"),
            ("app@sha256:12", "too short"),
            ("app@md5:12", "algorithm"),
        ] {
            let error = ImageRef::new(bad).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput, "{bad:?}");
            assert!(error.hint().unwrap().contains("REPOSITORY"), "{bad:?}");
            assert!(error.message().contains(reason), "{bad:?}: {error}");
        }
    }

    /// Where the two differ on purpose: a first part with upper-case letters is a registry, as it is to docker, and a
    /// digest's digits are lower-case, as engines have it.
    fn differs(text: &str) -> bool {
        let first = text.split('/').next().unwrap_or_default();
        let upper = text.contains('/') && first.contains(char::is_uppercase) && !first.contains(['.', ':']);
        let digest = text.split_once('@').map_or("", |(_, digest)| digest);
        upper || digest.contains(char::is_uppercase)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn it_is_the_grammar_of_oci_spec(
            text in "([a-zB0.-]{1,4}(:[0-9x]{0,3})?/)?([a-b0_.-]{0,4}/)?[a-bC0._-]{1,5}(:[a-bC0._/-]{0,4})?(@(sha256|md5):([0-9a-f]{64}|[0-9]{32}))?",
        ) {
            prop_assume!(!differs(&text));
            let ours = ImageRef::new(text.as_str()).ok();
            let theirs = text.parse::<Reference>().ok();
            prop_assert_eq!(ours.map(|image| image.canonical()), theirs.map(|image| image.whole()), "{}", text);
        }
    }
}
