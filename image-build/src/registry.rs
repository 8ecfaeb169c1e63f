//! How registries are spoken to, and what tells BuildKit.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orchestra::{ContainerPath, Credentials, Error, ExposeSecret, ImageRef, InjectedFile, Result};
use serde_json::json;

use crate::BuildOptions;

/// Where `buildctl` looks for credentials, in its image's user's home.
const CREDENTIALS: &str = ".docker/config.json";
/// The key that credentials for docker.io have had in `config.json` since its first registry.
const DOCKER_IO: &str = "https://index.docker.io/v1/";

/// What a value begins with that stands for a secret: a layer resolves it when the file is written.
const REFERENCE: &str = "secret:";

/// How a registry is spoken to. `Debug` shows no credentials.
#[derive(Clone, Debug, Default)]
pub struct RegistryAuth {
    /// Host and port; those of the build's tag where `None`.
    pub hostname: Option<String>,
    /// User name and password. They reach BuildKit as a file that only root can read, never in arguments or the environment.
    /// Each may be `secret:KEY`, where the job's driver has a layer that resolves it.
    pub credentials: Option<Credentials>,
    /// Permits plain HTTP and certificates that can't be verified. Never for a registry that matters. BuildKit's own
    /// configuration file, if its image holds one, is replaced.
    pub insecure: bool,
}

impl RegistryAuth {
    /// Credentials for the registry in the build's tag.
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        Self {
            credentials: Some(credentials),
            ..Self::default()
        }
    }

    /// The registry's host, for a build of `tag`.
    pub(crate) fn host<'a>(&'a self, tag: &'a ImageRef) -> &'a str {
        match self.hostname.as_deref() {
            Some("index.docker.io" | "registry-1.docker.io") => "docker.io",
            Some(hostname) => hostname,
            None => tag.registry(),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if let Some(host) = self.hostname.as_deref().filter(|host| !is_host(host)) {
            return Err(
                Error::invalid(format!("registry hostname {host:?} is not valid")).with_hint(
                    "write host and port alone, for example registry.example.com:5000, without https:// and path",
                ),
            );
        }
        // RFC 7617: the first colon ends the user name.
        if let Some(credentials) = &self.credentials {
            let name = credentials.username.expose_secret();
            let name = name.strip_prefix(REFERENCE).unwrap_or(name);
            if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
                return Err(Error::invalid(
                    "the registry's user name is empty, or holds a `:` or a control character",
                ));
            }
        }
        Ok(())
    }
}

/// Whether it is a host with or without a port, and holds nothing that a file could take for more.
pub(crate) fn is_host(host: &str) -> bool {
    let rest = host.trim_start_matches('[');
    rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == ':')
        && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c))
}

/// The file that has the credentials for these registries, if there are any.
pub(crate) fn credentials(
    registries: &[&RegistryAuth],
    tag: &ImageRef,
    rootless: bool,
) -> Result<Option<InjectedFile>> {
    let mut auths = BTreeMap::new();
    for registry in registries {
        let host = registry.host(tag);
        if let Some(Credentials { username, password }) = &registry.credentials {
            let (username, password) = (username.expose_secret(), password.expose_secret());
            let key = if host == "docker.io" { DOCKER_IO } else { host };
            // What is still to be resolved must be found, and is not in base64.
            let auth = if [username, password].iter().any(|part| part.starts_with(REFERENCE)) {
                json!({ "username": username, "password": password })
            } else {
                json!({ "auth": STANDARD.encode(format!("{username}:{password}")) })
            };
            auths.insert(key, auth);
        }
    }
    if auths.is_empty() {
        return Ok(None);
    }
    let content = json!({ "auths": auths }).to_string();
    let home = if rootless { "/home/user" } else { "/root" };
    let path = ContainerPath::new(format!("{home}/{CREDENTIALS}"))?;
    Ok(Some(InjectedFile::new(path, content)))
}

/// What `buildkitd` has to be told of these registries, as its `buildkitd.toml`; empty if that is nothing.
pub(crate) fn configuration(registries: &[&RegistryAuth], tag: &ImageRef, options: &BuildOptions) -> String {
    // TOML lets a table stand there once. Hosts were checked to hold nothing that its quotes do not.
    let mut tables: BTreeMap<&str, String> = BTreeMap::new();
    for registry in registries.iter().filter(|registry| registry.insecure) {
        tables.insert(registry.host(tag), "  http = true\n  insecure = true\n".to_owned());
    }
    for (host, mirrors) in &options.mirrors {
        let line = format!("  mirrors = [\"{}\"]\n", mirrors.join("\", \""));
        tables.entry(host).or_default().push_str(&line);
    }
    let own = options.buildkitd_config.iter().map(|text| format!("{text}\n"));
    own.chain(
        tables
            .iter()
            .map(|(host, lines)| format!("[registry.\"{host}\"]\n{lines}")),
    )
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(hostname: Option<&str>, user: &str) -> RegistryAuth {
        RegistryAuth {
            hostname: hostname.map(Into::into),
            credentials: Some(Credentials::new(user, "pa:ss\"word")),
            insecure: false,
        }
    }

    fn content(registries: &[&RegistryAuth], tag: &str) -> serde_json::Value {
        let file = credentials(registries, &tag.parse().unwrap(), false).unwrap().unwrap();
        assert_eq!((file.path.as_str(), file.mode), ("/root/.docker/config.json", 0o600));
        serde_json::from_slice(&file.content).unwrap()
    }

    #[test]
    fn credentials_of_several_registries_are_one_file_that_only_root_can_read() {
        let config = content(
            &[&auth(None, "a"), &auth(Some("base.example.com"), "b")],
            "r.example.com:5000/x",
        );
        let expected = |user: &str| STANDARD.encode(format!("{user}:pa:ss\"word"));
        assert_eq!(config["auths"]["r.example.com:5000"]["auth"], expected("a"));
        assert_eq!(config["auths"]["base.example.com"]["auth"], expected("b"));
    }

    #[test]
    fn references_stand_as_they_are_for_a_layer_to_resolve() {
        let mut auth = auth(None, "secret:REGISTRY_USER");
        auth.credentials = Some(Credentials::new("secret:REGISTRY_USER", "secret:REGISTRY_PASSWORD"));
        auth.check().unwrap();
        let config = content(&[&auth], "r.example.com/x");
        let expected = json!({"username": "secret:REGISTRY_USER", "password": "secret:REGISTRY_PASSWORD"});
        assert_eq!(config["auths"]["r.example.com"], expected);
    }

    #[test]
    fn docker_io_has_the_key_that_clients_look_for() {
        for (hostname, tag) in [
            (None, "team/app"),
            (Some("index.docker.io"), "r.example.com/x"),
            (Some("docker.io"), "x"),
        ] {
            let config = content(&[&auth(hostname, "a")], tag);
            assert!(config["auths"].get(DOCKER_IO).is_some(), "{config}");
        }
    }

    #[test]
    fn an_insecure_registry_is_told_to_the_daemon_and_no_other_is() {
        let insecure = RegistryAuth {
            insecure: true,
            ..RegistryAuth::default()
        };
        assert_eq!(
            configuration(
                &[&insecure],
                &"127.0.0.1:5000/x".parse().unwrap(),
                &BuildOptions::default()
            ),
            "[registry.\"127.0.0.1:5000\"]\n  http = true\n  insecure = true\n"
        );
        let (secure, tag) = (RegistryAuth::default(), "x".parse().unwrap());
        assert_eq!(configuration(&[&secure], &tag, &BuildOptions::default()), "");
        assert!(credentials(&[&secure], &tag, true).unwrap().is_none());
    }

    #[test]
    fn mirrors_stand_in_the_one_table_of_their_registry_after_what_the_user_wrote() {
        let insecure = RegistryAuth {
            insecure: true,
            ..RegistryAuth::default()
        };
        let mut options = BuildOptions {
            buildkitd_config: Some("debug = true".into()),
            ..BuildOptions::default()
        };
        options
            .mirrors
            .insert("r.test".into(), vec!["a.test".into(), "b.test:1/team".into()]);
        options.check().unwrap();
        assert_eq!(
            configuration(&[&insecure], &"r.test/x".parse().unwrap(), &options),
            "debug = true\n[registry.\"r.test\"]\n  http = true\n  insecure = true\n  \
             mirrors = [\"a.test\", \"b.test:1/team\"]\n"
        );
        for bad in ["", "https://a.test", "a\"]\n", "a/../b c", "a/"] {
            options.mirrors = [("r.test".to_owned(), vec![bad.to_owned()])].into();
            assert!(options.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_could_break_out_of_a_file_is_refused() {
        for bad in [
            "",
            "https://r.example.com",
            "r.example.com/v2",
            "a\"]\nroot = \"x",
            "a b",
            "-x",
        ] {
            let refused = RegistryAuth {
                hostname: Some(bad.into()),
                ..RegistryAuth::default()
            }
            .check();
            assert!(refused.is_err(), "{bad:?}");
        }
        for good in ["r.example.com:5000", "localhost", "[::1]:5000"] {
            assert!(
                RegistryAuth {
                    hostname: Some(good.into()),
                    ..RegistryAuth::default()
                }
                .check()
                .is_ok(),
                "{good:?}"
            );
        }
        assert!(auth(None, "a:b").check().is_err());
    }

    #[test]
    fn debug_shows_no_credentials() {
        let shown = format!("{:?}", auth(None, "robot"));
        assert!(!shown.contains("robot") && !shown.contains("pa:ss"), "{shown}");
    }
}
