//! `.dockerignore`: what of a context the build does not want, and so is not sent.
//!
//! The rules are those of Docker's documentation of the file ("Patterns in .dockerignore"): Go's `filepath.Match`, `**` for any
//! number of directories, `!` for exceptions, the last pattern that matches decides, and what is in a directory that is left out
//! is left out with it. BuildKit applies the file once more to what it is sent; so whatever is in doubt here is sent.

use std::fs;
use std::path::Path;

use regex::Regex;

/// Longest file that is read: one of patterns is a few lines.
const MAX_FILE: u64 = 1 << 20;

/// Which files of a context are left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ignore {
    patterns: Vec<Pattern>,
    /// The build reads these, whatever the patterns say.
    needed: Vec<String>,
}

#[derive(Clone, Debug)]
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
    /// What the context's ignore file says: the Dockerfile's own, `NAME.dockerignore` beside it, or else `.dockerignore`. One that
    /// can't be read says nothing to BuildKit either.
    pub(crate) fn of(context: &Path, dockerfile: &str) -> Self {
        if !stands_there(context, dockerfile) || has_other_frontend(&context.join(dockerfile)) {
            return Self::default();
        }
        let own = format!("{dockerfile}.dockerignore");
        let found = [own.as_str(), ".dockerignore"]
            .into_iter()
            .find_map(|name| read(&context.join(name)).map(|text| (name, text)));
        let Some((name, text)) = found else {
            return Self::default();
        };
        Self {
            patterns: patterns(&text).unwrap_or_default(),
            needed: [dockerfile, name].map(clean).into(),
        }
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

    /// From the top down, as BuildKit walks: what matches a directory matches all in it, and a pattern that could not change what
    /// the ones before it say of a directory is not tried on it.
    fn is_left_out(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let (mut matched, mut left_out) = (vec![false; self.patterns.len()], false);
        for end in ends {
            left_out = false;
            for (pattern, matched) in self.patterns.iter().zip(&mut matched) {
                if pattern.exception == left_out {
                    *matched = *matched || pattern.regex.is_match(&path[..end]);
                }
                if *matched {
                    left_out = !pattern.exception;
                }
            }
        }
        left_out
    }
}

/// Whether the Dockerfile is where its name says. BuildKit finds the one that a link leads to, which may be among what is left
/// out.
fn stands_there(context: &Path, dockerfile: &str) -> bool {
    let found = context.join(dockerfile).canonicalize();
    let named = context.canonicalize().map(|context| context.join(clean(dockerfile)));
    matches!((found, named), (Ok(found), Ok(named)) if found == named)
}

/// Whether another frontend than Docker's is to read the Dockerfile, which may know no such file.
fn has_other_frontend(dockerfile: &Path) -> bool {
    let Some(text) = read(dockerfile) else {
        return true;
    };
    let comments = text.lines().map(str::trim).take_while(|line| line.starts_with('#'));
    let syntax = comments.filter_map(|line| {
        let (key, value) = line.trim_start_matches('#').split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case("syntax")
            .then(|| value.trim().to_owned())
    });
    let of_docker = |image: &str| {
        let name = image.strip_prefix("docker.io/").unwrap_or(image);
        let name = name.split([':', '@']).next().unwrap_or_default();
        matches!(name, "docker/dockerfile" | "docker/dockerfile-upstream")
    };
    syntax.into_iter().any(|image| !of_docker(&image))
}

/// A small file of text; `None` if there is none that can be read.
fn read(path: &Path) -> Option<String> {
    let length = fs::metadata(path).ok().filter(fs::Metadata::is_file)?.len();
    let bytes = fs::read(path).ok().filter(|_| length <= MAX_FILE)?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
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

/// What every regular expression begins with.
const BEGIN: &str = "(?s)^";

/// A pattern as a regular expression; `None` for what is in doubt.
fn translated(pattern: &str) -> Option<String> {
    let mut regex = BEGIN.to_owned();
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '*' if characters.next_if_eq(&'*').is_some() => {
                let whole = characters.next_if_eq(&'/').is_some();
                let last = characters.peek().is_none();
                // At a pattern's beginning, with no `/` behind it, it means any text to some versions.
                if regex == BEGIN && !whole && !last {
                    return None;
                }
                regex.push_str(if last { ".*" } else { "(?:.*/)?" });
            }
            '*' => regex.push_str("[^/]*"),
            '?' => regex.push_str("[^/]"),
            // A class of characters to who takes it over as it is, and an anchor.
            '\\' if characters.peek().is_some_and(char::is_ascii_alphanumeric) => return None,
            '^' => return None,
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
            // What is in a directory is tried with the patterns that its directory was not tried with.
            ("*\n!src/main.rs\nsrc", "src/main.rs", true),
            ("*\n!node_modules/keep\n**/node_modules", "node_modules/keep", true),
            // In doubt, all is sent.
            ("*\n!**.go", "main.go", true),
            ("*\n\\d", "a", true),
            ("*\n^a", "a", true),
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
        fs::write(at("Dockerfile"), "FROM scratch").unwrap();
        fs::write(at("Other"), "FROM scratch").unwrap();
        let sent = |dockerfile: &str, path: &str| {
            Ignore::of(folder.path(), dockerfile).verdict(Path::new(path), false) == Verdict::Sent
        };
        assert!(sent("Dockerfile", "a"));
        fs::write(at(".dockerignore"), "a\n").unwrap();
        fs::write(at("Other.dockerignore"), "b\n").unwrap();
        assert!(!sent("Dockerfile", "a") && sent("Dockerfile", "b"));
        assert!(sent("Other", "a") && !sent("Other", "b"));
        fs::remove_file(at(".dockerignore")).unwrap();
        fs::create_dir(at(".dockerignore")).unwrap();
        assert!(sent("Dockerfile", "a"), "what can't be read says nothing");
    }

    #[test]
    fn where_something_else_reads_the_context_all_of_it_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("docker")).unwrap();
        fs::write(at(".dockerignore"), "docker\n").unwrap();
        let sent = |text: &str| {
            fs::write(at("Dockerfile"), text).unwrap();
            Ignore::of(folder.path(), "Dockerfile").verdict(Path::new("docker/x"), false) == Verdict::Sent
        };
        assert!(!sent("# syntax=docker/dockerfile:1.7\nFROM scratch"));
        assert!(!sent("# a comment\nFROM scratch\n# syntax=other/frontend\n"));
        assert!(sent("# check=skip=all\n#Syntax = other/frontend:1\nFROM scratch"));
        fs::rename(at("Dockerfile"), at("docker/Dockerfile")).unwrap();
        std::os::unix::fs::symlink("docker/Dockerfile", at("Dockerfile")).unwrap();
        let linked = Ignore::of(folder.path(), "Dockerfile");
        assert_eq!(linked.verdict(Path::new("docker"), true), Verdict::Sent);
    }
}
