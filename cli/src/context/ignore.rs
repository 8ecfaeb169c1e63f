//! `.dockerignore`: what of a context the build does not want, and so is not sent.
//!
//! The rules are those of Docker's documentation of the file ("Patterns in .dockerignore"): Go's `filepath.Match`, `**` for any
//! number of directories, `!` for exceptions, the last pattern that matches decides, and what is in a directory that is left out
//! is left out with it. BuildKit applies the file once more to what it is sent; so whatever is in doubt here is sent.

use std::fs;
use std::io;
use std::path::Path;

use orchestra::{Error, Result};
use regex::Regex;

/// Longest file that is read: one of patterns is a few lines.
const MAX_FILE: u64 = 1 << 20;

/// Which files of a context are left out.
#[derive(Debug, Default)]
pub(crate) struct Ignore {
    patterns: Vec<Pattern>,
    /// The build reads these, whatever the patterns say.
    needed: Vec<String>,
}

#[derive(Debug)]
struct Pattern {
    regex: Regex,
    /// Whether what it matches is not left out.
    exception: bool,
}

/// What is done with a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Sent,
    /// Something in the directory may be sent.
    LookedInto,
    LeftOut,
}

impl Ignore {
    /// What the context's ignore file says: the Dockerfile's own, `NAME.dockerignore` beside it, or else `.dockerignore`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](orchestra::ErrorKind::Io) if it is there and can't be read.
    pub(crate) fn of(context: &Path, dockerfile: &str) -> Result<Self> {
        let own = format!("{dockerfile}.dockerignore");
        for name in [own.as_str(), ".dockerignore"] {
            if let Some(text) = read(&context.join(name))? {
                let needed = [dockerfile, name].map(clean);
                return Ok(Self {
                    patterns: patterns(&text).unwrap_or_default(),
                    needed: needed.into(),
                });
            }
        }
        Ok(Self::default())
    }

    /// What becomes of this path of the context, which is a directory or not.
    pub(crate) fn verdict(&self, path: &Path, is_directory: bool) -> Verdict {
        // What is not UTF-8 is matched as one character a time, as Go does it.
        let path = path.to_string_lossy();
        let path = path.as_ref();
        if self.patterns.is_empty() || !self.is_left_out(path) || self.needed.iter().any(|needed| needed == path) {
            return Verdict::Sent;
        }
        let is_in_it = |needed: &String| needed.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        let has_exceptions = self.patterns.iter().any(|pattern| pattern.exception);
        match is_directory && (has_exceptions || self.needed.iter().any(is_in_it)) {
            true => Verdict::LookedInto,
            false => Verdict::LeftOut,
        }
    }

    fn is_left_out(&self, path: &str) -> bool {
        let ends = path.match_indices('/');
        let above: Vec<&str> = ends.map(|(at, _)| &path[..at]).chain([path]).collect();
        let mut left_out = false;
        for pattern in &self.patterns {
            if pattern.exception == left_out && above.iter().any(|path| pattern.regex.is_match(path)) {
                left_out = !pattern.exception;
            }
        }
        left_out
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    let failed = |error| Error::io(format!("read {}", path.display()), error);
    let length = match fs::metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        found => found.map_err(failed)?.len(),
    };
    if length > MAX_FILE {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    let bytes = fs::read(path).map_err(failed)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// `None` if any of them is in doubt.
fn patterns(text: &str) -> Option<Vec<Pattern>> {
    let mut patterns = Vec::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        if line.starts_with('#') {
            continue;
        }
        let line = line.trim();
        let (exception, line) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        if line.is_empty() {
            if exception {
                return None;
            }
            continue;
        }
        let cleaned = clean(line);
        // The root itself, which is always sent.
        if cleaned.is_empty() {
            continue;
        }
        patterns.push(Pattern {
            regex: Regex::new(&translated(&cleaned)?).ok()?,
            exception,
        });
    }
    Some(patterns)
}

/// A path in its shortest form and from the context's root, as Go's `filepath.Clean` makes it.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => _ = parts.pop(),
            // Nothing is above the root.
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A pattern as a regular expression; `None` for what is in doubt.
fn translated(pattern: &str) -> Option<String> {
    let mut regex = "(?s)^".to_owned();
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '*' if characters.next_if_eq(&'*').is_some() => {
                characters.next_if_eq(&'/');
                regex.push_str(if characters.peek().is_none() { ".*" } else { "(?:.*/)?" });
            }
            '*' => regex.push_str("[^/]*"),
            '?' => regex.push_str("[^/]"),
            '\\' => regex.push_str(&regex::escape(&characters.next()?.to_string())),
            '[' => {
                regex.push('[');
                if characters.next_if_eq(&'^').is_some() {
                    regex.push('^');
                }
                loop {
                    match characters.next()? {
                        ']' => break,
                        // What else stands there means something else to this and that reader.
                        inner if inner.is_ascii_alphanumeric() || inner == '-' => regex.push(inner),
                        '_' => regex.push('_'),
                        '.' => regex.push_str("\\."),
                        _ => return None,
                    }
                }
                regex.push(']');
            }
            other => regex.push_str(&regex::escape(&other.to_string())),
        }
    }
    regex.push('$');
    Some(regex)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignore(text: &str) -> Ignore {
        Ignore {
            patterns: patterns(text).unwrap_or_default(),
            needed: vec!["docker/Dockerfile".to_owned(), ".dockerignore".to_owned()],
        }
    }

    fn is_sent(text: &str, path: &str) -> bool {
        ignore(text).verdict(Path::new(path), false) == Verdict::Sent
    }

    #[test]
    fn patterns_mean_what_they_mean_to_docker() {
        for (text, path, sent) in [
            ("*/temp*", "somedir/temporary.txt", false),
            ("*/temp*", "somedir/subdir/temporary.txt", true),
            ("*/*/temp*", "somedir/subdir/temporary.txt", false),
            ("temp?", "tempa", false),
            ("temp?", "temp", true),
            ("temp?", "dir/tempa", true),
            ("**/*.go", "a.go", false),
            ("**/*.go", "deep/er/a.go", false),
            ("*.md\n!README.md", "README.md", true),
            ("*.md\n!README.md", "CHANGES.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", false),
            ("*.md\nREADME-secret.md\n!README*.md", "README-secret.md", true),
            ("/node_modules/", "node_modules", false),
            ("node_modules", "node_modules/left/index.js", false),
            ("node_modules", "web/node_modules", true),
            ("**/node_modules", "web/node_modules/index.js", false),
            ("./a/../b", "b", false),
            ("../outside", "outside", true),
            ("# not.this\n  spaced.txt  ", "spaced.txt", false),
            ("# not.this", "# not.this", true),
            ("*\n!src", "src/main.rs", true),
            ("*\n!src\nsrc/*.o", "src/main.o", false),
            ("dir/**", "dir/a/b", false),
            ("dir/**", "directory", true),
            ("a**b", "axx/yb", true),
            ("a**b", "ax/b", false),
            ("[a-c]*.txt", "beta.txt", false),
            ("[^a-c]*.txt", "beta.txt", true),
            ("a+(b).txt", "a+(b).txt", false),
            ("\\*", "*", false),
            ("\\*", "a", true),
            ("ä*", "ähnlich", false),
            ("*\n!caf?", "café", true),
            (".", "a", true),
            ("", "a", true),
            ("docker\n.dockerignore", "docker/Dockerfile", true),
            ("docker\n.dockerignore", ".dockerignore", true),
            ("docker", "docker/other", false),
            // In doubt, all is sent.
            ("*\n[", "a", true),
            ("*\n[[:alpha:]]", "a", true),
            ("*\n!", "a", true),
        ] {
            assert_eq!(is_sent(text, path), sent, "{text:?}, {path}");
        }
    }

    #[test]
    fn a_name_that_is_not_utf_8_is_matched_too() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        let odd = Path::new(OsStr::from_bytes(b"caf\xe9.log"));
        assert_eq!(ignore("*.log").verdict(odd, false), Verdict::LeftOut);
        assert_eq!(ignore("caf?.log").verdict(odd, false), Verdict::LeftOut);
    }

    #[test]
    fn a_directory_is_looked_into_where_something_in_it_may_be_wanted() {
        let verdict = |text: &str, path: &str| ignore(text).verdict(Path::new(path), true);
        assert_eq!(verdict("node_modules", "node_modules"), Verdict::LeftOut);
        assert_eq!(
            verdict("node_modules\n!node_modules/kept", "node_modules"),
            Verdict::LookedInto
        );
        assert_eq!(verdict("docker", "docker"), Verdict::LookedInto);
        assert_eq!(verdict("src", "source"), Verdict::Sent);
    }

    #[test]
    fn a_dockerfiles_own_file_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(Ignore::of(folder.path(), "Dockerfile").unwrap().patterns.is_empty());
        fs::write(at(".dockerignore"), "a\n").unwrap();
        fs::write(at("Other.dockerignore"), "b\n").unwrap();
        let sent = |dockerfile: &str, path: &str| {
            Ignore::of(folder.path(), dockerfile)
                .unwrap()
                .verdict(Path::new(path), false)
                == Verdict::Sent
        };
        assert!(!sent("Dockerfile", "a") && sent("Dockerfile", "b"));
        assert!(sent("Other", "a") && !sent("Other", "b"));
        fs::remove_file(at(".dockerignore")).unwrap();
        fs::create_dir(at(".dockerignore")).unwrap();
        let error = Ignore::of(folder.path(), "Dockerfile").unwrap_err();
        assert!(error.to_string().contains(".dockerignore"), "{error}");
    }
}
