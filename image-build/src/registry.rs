//! How registries are spoken to, and what tells BuildKit.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orchestra::{ContainerPath, Credentials, Error, ExposeSecret, ImageRef, InjectedFile, Result, SecretString};
use serde_json::json;

use crate::BuildOptions;
use crate::command::SECRETS;

/// Where `buildctl` looks for credentials, in its image's user's home.
const CREDENTIALS: &str = ".docker/config.json";
/// The key that credentials for docker.io have had in `config.json` since its first registry.
const DOCKER_IO: &str = "https://index.docker.io/v1/";

/// What a value begins with that stands for a secret: a layer resolves it when the file is written.
pub(crate) const REFERENCE: &str = "secret:";

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
    /// Certificates, in PEM, of the authorities that the registry's own is checked with, besides those of the BuildKit image.
    pub ca: Option<String>,
    /// The certificate, in PEM, by which the registry knows the builder, and its key, which may be `secret:KEY`.
    pub client: Option<(String, SecretString)>,
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

    fn file(number: usize, name: &str) -> String {
        format!("{SECRETS}/.registry/{number}/{name}.pem")
    }

    /// The certificates and keys of the registry of this number.
    pub(crate) fn files(&self, number: usize) -> Result<Vec<InjectedFile>> {
        let file = |name: &str, content: &str| {
            let path = ContainerPath::new(Self::file(number, name))?;
            Ok(InjectedFile::new(path, content.to_owned()))
        };
        let mut files = Vec::new();
        if let Some(ca) = &self.ca {
            files.push(file("ca", ca)?);
        }
        if let Some((certificate, key)) = &self.client {
            files.push(file("client", certificate)?);
            files.extend(file("key", key.expose_secret()).map(|key| InjectedFile { secret: true, ..key }));
        }
        Ok(files)
    }

    /// How `buildctl` itself speaks to the registry's host, where it asks for a token.
    pub(crate) fn tls_context(&self, number: usize, tag: &ImageRef) -> Option<Vec<String>> {
        let file = |name: &str| Self::file(number, name);
        let mut fields = vec![format!("host={}", self.host(tag))];
        fields.extend(self.ca.iter().map(|_| format!("ca={}", file("ca"))));
        if self.client.is_some() {
            fields.extend([format!("cert={}", file("client")), format!("key={}", file("key"))]);
        }
        (fields.len() > 1).then_some(fields)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let is_pem = |text: &str| text.contains("-----BEGIN ") || text.starts_with(REFERENCE);
        let pems = [self.ca.as_deref(), self.client.as_ref().map(|(pem, _)| pem.as_str())];
        let key = self.client.as_ref().map(|(_, key)| key.expose_secret());
        if pems.into_iter().chain([key]).flatten().any(|text| !is_pem(text)) {
            return Err(
                Error::invalid("a certificate or key of the registry is not in PEM").with_hint(
                    "give its text, which has a line -----BEGIN CERTIFICATE----- or the like, and not its file's name",
                ),
            );
        }
        if self.insecure && self.ca.is_some() {
            return Err(Error::invalid("a registry is insecure and has a certificate authority")
                .with_hint("leave out one of the two: what is insecure is not checked"));
        }
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
    for (number, registry) in registries.iter().enumerate() {
        let mut lines = String::new();
        if registry.insecure {
            lines += "  http = true\n  insecure = true\n";
        } else if registry.ca.is_some() || registry.client.is_some() {
            // One on loopback is spoken to without TLS where nothing is said.
            lines += "  http = false\n";
        }
        let file = |name| RegistryAuth::file(number, name);
        if registry.ca.is_some() {
            lines += &format!("  ca = [\"{}\"]\n", file("ca"));
        }
        if registry.client.is_some() {
            lines += &format!(
                "  keypair = [{{ key = \"{}\", cert = \"{}\" }}]\n",
                file("key"),
                file("client")
            );
        }
        if !lines.is_empty() {
            tables.insert(registry.host(tag), lines);
        }
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
            ..RegistryAuth::default()
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
    fn a_registry_of_ones_own_authority_is_told_to_daemon_and_client() {
        let registry = RegistryAuth {
            ca: Some("-----BEGIN CERTIFICATE-----".into()),
            client: Some(("-----BEGIN CERTIFICATE-----".into(), "secret:KEY".into())),
            ..RegistryAuth::default()
        };
        registry.check().unwrap();
        let tag = "r.test/x".parse().unwrap();
        let at = "/.orchestra-secrets/.registry/0";
        assert_eq!(
            configuration(&[&registry], &tag, &BuildOptions::default()),
            format!(
                "[registry.\"r.test\"]\n  http = false\n  ca = [\"{at}/ca.pem\"]\n  \
                 keypair = [{{ key = \"{at}/key.pem\", cert = \"{at}/client.pem\" }}]\n"
            )
        );
        let fields = registry.tls_context(0, &tag).unwrap().join(",");
        assert_eq!(
            fields,
            format!("host=r.test,ca={at}/ca.pem,cert={at}/client.pem,key={at}/key.pem")
        );
        assert_eq!(registry.files(0).unwrap().len(), 3);
        let named = RegistryAuth {
            ca: Some("/etc/ca.pem".into()),
            ..RegistryAuth::default()
        };
        assert!(named.check().unwrap_err().to_string().contains("not in PEM"));
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
