//! The credentials that a user's own clients have for registries: `config.json`, `auth.json`, and credential helpers.
//!
//! The file and the [helpers' protocol](https://github.com/docker/docker-credential-helpers#development) are what most
//! clients share: a helper is a program `docker-credential-NAME`, which is asked with `get` and the registry on its input.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orchestra::{Credentials, Error, ErrorKind, Result};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use zeroize::Zeroizing;

use crate::SecretValue;
use crate::files::Zeroed;

/// What a helper may take, and say.
const DEADLINE: Duration = Duration::from_secs(30);
const LIMIT: usize = 256 << 10;
/// How much of a helper's complaint is shown.
const SAID: usize = 500;
/// A file that is larger is something else.
const MAX_FILE: usize = 4 << 20;
/// The key of docker.io, since its first registry.
const DOCKER_IO: &str = "https://index.docker.io/v1/";
const PROGRAM: &str = "docker-credential-";

/// A client's configuration, read once.
#[derive(Clone)]
pub struct ClientConfig {
    path: PathBuf,
    text: SecretValue,
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientConfig({})", self.path.display())
    }
}

impl ClientConfig {
    /// Reads a file of this form.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it can't be read, [`ErrorKind::InvalidInput`] if it is no such file.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let shown = path.display();
        let text = std::fs::read(&path)
            .map_err(|error| Error::io(format!("read the registries' credentials in {shown}"), error))?;
        if text.len() > MAX_FILE {
            return Err(no_config(&path));
        }
        let config = Self {
            text: SecretValue::new(text),
            path,
        };
        config.config().map(|_| config)
    }

    fn config(&self) -> Result<Zeroed> {
        match serde_json::from_slice(self.text.expose()).map(Zeroed) {
            Ok(config) if config.0.is_object() => Ok(config),
            _ => Err(no_config(&self.path)),
        }
    }

    /// The user's own: the first there is of `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`,
    /// `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.docker/config.json` and `~/.config/containers/auth.json`.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`ErrorKind::InvalidInput`] if there is none.
    pub fn of_user() -> Result<Self> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let places = [
            set("REGISTRY_AUTH_FILE"),
            set("DOCKER_CONFIG").map(|dir| dir.join("config.json")),
            set("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
            set("HOME").map(|dir| dir.join(".docker/config.json")),
            set("HOME").map(|dir| dir.join(".config/containers/auth.json")),
        ];
        let found = places.into_iter().flatten().find(|place| place.exists());
        Self::read(found.ok_or_else(|| {
            Error::invalid("the user's clients have no configuration with registries' credentials")
                .with_hint("log in with one of them, or leave out --use-docker-config")
        })?)
    }

    /// The credentials for a registry's host, if there are any. Those of a repository, or of a path above it, go before
    /// those of the host alone ([containers-auth.json(5)](https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md)).
    ///
    /// # Errors
    /// [`ErrorKind::Io`] or [`ErrorKind::DeadlineExceeded`] if a credential helper fails.
    pub async fn credentials(&self, host: &str, repository: Option<&str>) -> Result<Option<Credentials>> {
        let keys = match host {
            "docker.io" => vec![DOCKER_IO, "docker.io", "index.docker.io"],
            host => vec![host],
        };
        let whole = repository.map_or_else(String::new, |repository| format!("{host}/{repository}"));
        let paths = std::iter::successors(Some(whole.as_str()), |path| Some(path.rsplit_once('/')?.0));
        let paths: Vec<&str> = paths.take_while(|path| path.contains('/')).collect();
        // Not held while a helper is asked.
        let found = self.config().and_then(|config| self.find(&config.0, &paths, &keys))?;
        match found {
            Found::Credentials(credentials) => Ok(Some(credentials)),
            Found::Helper(helper, key) => self.ask(&helper, key).await,
            Found::Nothing => Ok(None),
        }
    }

    /// As clients look: the host's own helper, what the file holds, the helper for all. `paths` are the host's with a
    /// repository, and are in the file alone.
    fn find<'k>(&self, config: &Value, paths: &[&str], keys: &[&'k str]) -> Result<Found<'k>> {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let helpers = config.get("credHelpers");
        for key in keys {
            if let Some(helper) = helpers.and_then(|helpers| text(helpers.get(*key)?)) {
                return Ok(Found::Helper(helper, key));
            }
        }
        let auths = config.get("auths").and_then(Value::as_object);
        for key in paths.iter().chain(keys) {
            let of_key = auths.and_then(|auths| {
                // Older clients wrote an address, of which only the host counts.
                let of_host = || auths.iter().find(|(address, _)| host_of(address) == *key);
                auths.get(*key).or_else(|| of_host().map(|(_, auth)| auth))
            });
            let auth = |name: &str| of_key?.get(name).and_then(text).map(Zeroizing::new);
            if auth("identitytoken").is_some() {
                return Err(no_tokens(&self.path.display(), key));
            }
            if let Some(encoded) = auth("auth") {
                let pair = STANDARD
                    .decode(encoded.as_bytes())
                    .ok()
                    .and_then(|pair| String::from_utf8(pair).ok())
                    .map(Zeroizing::new);
                return match pair.as_ref().and_then(|pair| pair.split_once(':')) {
                    Some((username, password)) => Ok(Found::Credentials(Credentials::new(
                        username,
                        password.trim_end_matches('\0'),
                    ))),
                    None => Err(Error::invalid(format!(
                        "the credentials for {key} in {} can't be read",
                        self.path.display()
                    ))
                    .with_hint("log in to the registry again")),
                };
            }
            if let (Some(username), Some(password)) = (auth("username"), auth("password")) {
                return Ok(Found::Credentials(Credentials::new(
                    username.as_str(),
                    password.as_str(),
                )));
            }
        }
        let of_all = config.get("credsStore").and_then(text);
        Ok(of_all.map_or(Found::Nothing, |helper| Found::Helper(helper, keys[0])))
    }

    async fn ask(&self, helper: &str, server: &str) -> Result<Option<Credentials>> {
        let valid = !helper.is_empty() && helper.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let program = format!("{PROGRAM}{helper}");
        if !valid {
            return Err(Error::invalid(format!(
                "{program:?} in {} can't be a credential helper",
                self.path.display()
            )));
        }
        self.run(&program, server).await
    }

    async fn run(&self, program: &str, server: &str) -> Result<Option<Credentials>> {
        let failed = |error| {
            Error::io(format!("ask {program} for {server}"), error)
                .with_hint("check that the helper is installed, or leave out --use-docker-config")
        };
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let asked = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A helper that does not read has its own way to know.
                stdin.write_all(format!("{server}\n").as_bytes()).await.ok();
            }
            // With room for all of it: what a growing vector leaves is not zeroed.
            let mut answer = Zeroizing::new(Vec::with_capacity(LIMIT + 64));
            if let Some(stdout) = child.stdout.take() {
                stdout.take(LIMIT as u64).read_to_end(&mut answer).await?;
            }
            Ok::<_, std::io::Error>((answer, child.wait().await?))
        };
        let (answer, status) = match tokio::time::timeout(DEADLINE, asked).await {
            Ok(asked) => asked.map_err(failed)?,
            Err(_) => {
                let message = format!("{program} did not answer within {DEADLINE:?}");
                return Err(Error::new(ErrorKind::DeadlineExceeded, message));
            }
        };
        if !status.success() {
            // The protocol's words for a registry that it does not know.
            if String::from_utf8_lossy(&answer).contains("credentials not found") {
                return Ok(None);
            }
            // By the protocol it says why on its output, in a line; what may be an answer is not shown.
            let said = Zeroizing::new(String::from_utf8_lossy(&answer).into_owned());
            let line = said.trim().lines().next().unwrap_or_default();
            let why = match said.contains('{') || line.is_empty() {
                true => String::new(),
                false => format!(": {}", &line[..line.floor_char_boundary(SAID)]),
            };
            return Err(Error::new(
                ErrorKind::Io,
                format!("{program} failed for {server}: {status}{why}"),
            ));
        }
        let answer = serde_json::from_slice(&answer).map(Zeroed);
        let answer =
            answer.map_err(|_| Error::new(ErrorKind::Io, format!("{program} answered something that is no JSON")))?;
        let field = |name: &str| answer.0.get(name).and_then(Value::as_str).unwrap_or_default();
        match field("Username") {
            "<token>" => Err(no_tokens(&program, server)),
            username => Ok(Some(Credentials::new(username, field("Secret")))),
        }
    }
}

fn no_tokens(of: &dyn fmt::Display, registry: &str) -> Error {
    let message = format!("{of} has an identity token for {registry}, which is not supported");
    Error::new(ErrorKind::Unsupported, message).with_hint("log in to the registry with a user name and a password")
}

/// What a configuration says of a registry.
enum Found<'k> {
    Credentials(Credentials),
    /// The program to ask, and what for.
    Helper(String, &'k str),
    Nothing,
}

fn no_config(path: &Path) -> Error {
    Error::invalid(format!("{} is no configuration of a client", path.display()))
        .with_hint("it is a JSON object with `auths`")
}

/// The host of an address that an older client wrote: `https://registry.example.com/v2/`.
fn host_of(address: &str) -> &str {
    let host = ["https://", "http://"]
        .iter()
        .find_map(|scheme| address.strip_prefix(scheme));
    host.map_or(address, |rest| rest.split('/').next().unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestra::ExposeSecret;

    fn config(dir: &tempfile::TempDir, text: &str) -> Result<ClientConfig> {
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        ClientConfig::read(path)
    }

    #[tokio::test]
    async fn an_identity_token_is_refused_and_not_taken_for_a_password() {
        let dir = tempfile::tempdir().unwrap();
        let pair = STANDARD.encode("00000000-0000-0000-0000-000000000000:");
        for auth in [
            format!(r#"{{"auth": "{pair}", "identitytoken": "ey-word"}}"#),
            r#"{"identitytoken": "ey-word"}"#.to_owned(),
        ] {
            let config = config(&dir, &format!(r#"{{"auths": {{"r.example.com": {auth}}}}}"#)).unwrap();
            let error = config.credentials("r.example.com", None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let said = format!("{error:?}");
            assert!(said.contains("r.example.com") && !said.contains("ey-word"), "{said}");
        }
    }

    #[tokio::test]
    async fn credentials_are_found_by_host_as_clients_find_them() {
        let dir = tempfile::tempdir().unwrap();
        let pair = STANDARD.encode("robot:pa:ss");
        let other = STANDARD.encode("other:word");
        let text = format!(
            r#"{{"auths": {{"r.example.com:5000/team": {{"auth": "{other}"}}, "r.example.com:5000": {{"auth": "{pair}"}}, "{DOCKER_IO}": {{"username": "u", "password": "p"}}, "https://old.example.com/v2/": {{"auth": "{pair}"}}, "empty": {{}}}}}}"#
        );
        let config = config(&dir, &text).unwrap();
        let found = async |host: &str| {
            let (host, repository) = host
                .split_once('/')
                .map_or((host, None), |(host, path)| (host, Some(path)));
            let found = config.credentials(host, repository).await.unwrap()?;
            Some(format!(
                "{}|{}",
                found.username.expose_secret(),
                found.password.expose_secret()
            ))
        };
        assert_eq!(found("r.example.com:5000").await.unwrap(), "robot|pa:ss");
        assert_eq!(found("r.example.com:5000/teams/app").await.unwrap(), "robot|pa:ss");
        assert_eq!(found("r.example.com:5000/team").await.unwrap(), "other|word");
        assert_eq!(found("r.example.com:5000/team/app").await.unwrap(), "other|word");
        assert_eq!(found("docker.io").await.unwrap(), "u|p");
        assert_eq!(found("docker.io/library/busybox").await.unwrap(), "u|p");
        assert_eq!(found("old.example.com").await.unwrap(), "robot|pa:ss");
        assert_eq!(found("r.example.com").await, None);
        assert_eq!(found("empty").await, None);
        assert!(!format!("{config:?}").contains("pa:ss"));
    }

    #[tokio::test]
    async fn who_has_one_login_a_host_gets_that_of_all_its_repositories() {
        let dir = tempfile::tempdir().unwrap();
        let auth = |pair: &str| format!(r#"{{"auth": "{}"}}"#, STANDARD.encode(pair));
        let (team, host) = (auth("team:t"), auth("host:h"));
        let config = config(&dir, &format!(r#"{{"auths": {{"r/team": {team}, "r": {host}}}}}"#)).unwrap();
        let secrets = crate::Secrets::new([]).client_config(config);
        for (repositories, user) in [
            (vec![], "host"),
            (vec!["team/a", "team/b"], "team"),
            (vec!["team/a", "other/b"], "host"),
            (vec!["other/b"], "host"),
        ] {
            let repositories = repositories.into_iter().map(str::to_owned).collect();
            let found = secrets.registry_of_all("r", &repositories).await.unwrap().unwrap();
            assert_eq!(found.username.expose_secret(), user, "{repositories:?}");
        }
        let none = secrets
            .registry_of_all("other", &["x".to_owned()].into())
            .await
            .unwrap();
        assert!(none.is_none());
    }

    #[tokio::test]
    async fn a_helper_that_fails_says_why_and_shows_no_answer() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let answer = r#"{"Username": "robot", "Secret": "hunter2"}"#;
        for (says, told) in [
            ("not signed in", "not signed in"),
            (answer, "exit status: 1"),
            (&format!("careful\n{answer}"), "exit status: 1"),
        ] {
            let program = dir.path().join("docker-credential-fails");
            std::fs::write(&program, format!("#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit 1\n")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            // By its path: a test changes no variable of its process.
            let config = config(&dir, "{}").unwrap();
            let error = config.run(&program.display().to_string(), "r").await.unwrap_err();
            assert!(error.message().ends_with(told), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_is_missing_or_no_name_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for (text, why) in [
            (
                r#"{"credHelpers": {"r": "no-such-helper"}}"#,
                "ask docker-credential-no-such-helper for r",
            ),
            (r#"{"credsStore": "../x"}"#, "can't be a credential helper"),
        ] {
            let error = config(&dir, text).unwrap().credentials("r", None).await.unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
        assert!(config(&dir, "[]").unwrap_err().message().contains("no configuration"));
    }
}
