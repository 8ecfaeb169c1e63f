//! The stores of secrets that the program uses, and `orchestra secrets`.
//!
//! Stores are asked in this order, where `order` under `[secrets]` says nothing else: those of the command line (always
//! first), `environment`, `directory`, `file`, then commands in the order of their names.

mod command;
mod input;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use orchestra_pipelines::{Values, Variables};
use orchestra_secrets::{
    ClientConfig, CommandStore, DirectoryStore, EnvironmentStore, MemoryStore, Scope, SecretKey, SecretValue, Secrets,
    SqliteKey, SqliteStore,
};
use serde::Deserialize;

use crate::config::read_some_duration;
use crate::exit::Failure;

pub(crate) use command::{SecretsArgs, run};

const COMMAND_LINE: &str = "command-line";
const ENVIRONMENT: &str = "environment";
const DIRECTORY: &str = "directory";
const FILE: &str = "file";

/// Secrets and variables, as `run`, `validate` and `build` take them.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SecretArgs {
    /// Give a secret; with `-` as the value it is read from standard input. Who lists processes sees a value given here
    #[arg(long = "secret", value_name = "KEY=VALUE", global = true)]
    pub(crate) secrets: Vec<Pair>,
    /// Give a secret by its file, or with `-` by standard input
    #[arg(long = "secret-file", value_name = "KEY=PATH", global = true)]
    pub(crate) secret_files: Vec<Pair>,
    /// Log in to registries as the user's own clients do, by their configuration and credential helpers
    #[arg(long)]
    pub(crate) use_docker_config: bool,
}

impl SecretArgs {
    /// What is given here, in either way.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.secrets
            .iter()
            .chain(&self.secret_files)
            .map(|pair| pair.0.as_str())
    }
}

/// Plain variables, as `run` and `validate` take them.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct VariableArgs {
    /// Give a variable, which the pipeline has as ((NAME)); it is no secret
    #[arg(long = "var", short = 'v', value_name = "NAME=VALUE")]
    pub(crate) vars: Vec<Pair>,
    /// Read variables from a YAML file
    #[arg(long = "load-vars-from", short = 'l', value_name = "FILE")]
    pub(crate) load_vars_from: Vec<PathBuf>,
}

/// A name and what belongs to it. `Debug` shows the name alone.
#[derive(Clone)]
pub(crate) struct Pair(pub(crate) String, pub(crate) String);

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=…", self.0)
    }
}

impl std::str::FromStr for Pair {
    type Err = std::convert::Infallible;
    /// Never fails: the parser of arguments would show what it refuses, which may be a secret. [`check`](Self::check) does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').unwrap_or(("", text));
        Ok(Self(name.to_owned(), value.to_owned()))
    }
}

impl Pair {
    /// Refuses what has no name, without showing it.
    fn check(&self, option: &str) -> Result<(), Failure> {
        match self.0.is_empty() {
            true => Err(
                Failure::bad_input(format!("a value of {option} names nothing")).with_hint(format!(
                    "write {option} NAME=VALUE; the value is not shown here, as it may be a secret"
                )),
            ),
            false => Ok(()),
        }
    }
}

/// `[secrets]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretsConfig {
    /// The stores' order; those that are not named are not asked.
    order: Option<Vec<String>>,
    /// The environment's variables that are secrets.
    #[serde(default)]
    environment: Vec<String>,
    /// A directory with a file for each secret.
    directory: Option<PathBuf>,
    /// The encrypted file.
    pub(crate) file: Option<PathBuf>,
    /// What opens it; a passphrase where there is none.
    pub(crate) key_file: Option<PathBuf>,
    /// Programs that are asked, by name.
    #[serde(default)]
    command: BTreeMap<String, CommandConfig>,
    /// Whether registries are logged in to as the user's own clients do.
    #[serde(default)]
    pub(crate) use_docker_config: bool,
}

/// `[secrets.command.NAME]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandConfig {
    argv: Vec<String>,
    #[serde(default, deserialize_with = "read_some_duration")]
    timeout: Option<Duration>,
    #[serde(default)]
    missing: Vec<i32>,
}

/// All stores, for what is called `name`.
///
/// # Errors
/// Bad input for what can't be a store, or for a value that can't be read.
pub(crate) fn open(config: &SecretsConfig, args: &SecretArgs, name: &str) -> Result<Secrets, Failure> {
    let scope = Scope::pipeline(name)?;
    let given = given(args)?;
    let commands: Vec<&str> = config.command.keys().map(String::as_str).collect();
    let known = [&[ENVIRONMENT, DIRECTORY, FILE][..], &commands].concat();
    let order: Vec<&str> = match &config.order {
        Some(order) => order.iter().map(String::as_str).collect(),
        None => known.clone(),
    };
    let command_line = given.into_iter().fold(MemoryStore::new(), |store, (key, value)| {
        store.with(scope.clone(), key, value)
    });
    let secrets = Secrets::new([scope, Scope::Global]).remember();
    let mut secrets = secrets.store(COMMAND_LINE, command_line);
    for store in order {
        secrets = match (store, config.command.get(store)) {
            (ENVIRONMENT, _) if config.environment.is_empty() => secrets,
            (ENVIRONMENT, _) => {
                let names = config.environment.iter().map(SecretKey::new);
                let names = names.collect::<orchestra::Result<Vec<_>>>()?;
                secrets.store(ENVIRONMENT, EnvironmentStore::new(names))
            }
            (DIRECTORY, _) => match &config.directory {
                Some(directory) => secrets.store(DIRECTORY, DirectoryStore::new(directory)),
                None => secrets,
            },
            (FILE, _) => match &config.file {
                Some(file) if file.exists() => secrets.store(FILE, file_store(file, config.key_file.as_deref())?),
                // One that is not there yet has nothing, and needs no passphrase.
                Some(_) => secrets.store(FILE, MemoryStore::new()),
                None => secrets,
            },
            (name, Some(command)) => {
                let mut store = CommandStore::new(command.argv.clone())?;
                store.deadline = command.timeout.unwrap_or(store.deadline);
                store.missing.clone_from(&command.missing);
                secrets.store(name, store)
            }
            (unknown, None) => {
                return Err(
                    Failure::bad_input(format!("`order` under [secrets] names a store {unknown:?}"))
                        .with_hint(format!("there are {}", known.join(", "))),
                );
            }
        };
    }
    if args.use_docker_config || config.use_docker_config {
        secrets = secrets.client_config(ClientConfig::of_user()?);
    }
    Ok(secrets)
}

/// The encrypted file, opened by its key file or by a passphrase that is asked for.
pub(crate) fn file_store(file: &Path, key_file: Option<&Path>) -> Result<SqliteStore, Failure> {
    let key = match key_file {
        Some(key_file) => SqliteKey::File(key_file.to_owned()),
        None => SqliteKey::Passphrase(input::passphrase(&format!("passphrase of {}", file.display()))?),
    };
    Ok(SqliteStore::new(file, key))
}

/// The secrets of the command line.
fn given(args: &SecretArgs) -> Result<Vec<(SecretKey, SecretValue)>, Failure> {
    let mut read = false;
    let mut stdin = || {
        if std::mem::replace(&mut read, true) {
            return Err(Failure::bad_input("only one secret can be read from standard input"));
        }
        input::piped(std::io::stdin())
    };
    let options = args.secrets.iter().map(|pair| (pair, "--secret"));
    let options = options.chain(args.secret_files.iter().map(|pair| (pair, "--secret-file")));
    options.into_iter().try_for_each(|(pair, option)| pair.check(option))?;
    let mut given = Vec::new();
    for (Pair(key, value), is_file) in args
        .secrets
        .iter()
        .map(|pair| (pair, false))
        .chain(args.secret_files.iter().map(|pair| (pair, true)))
    {
        let key = SecretKey::new(key)?;
        let value = match (value.as_str(), is_file) {
            ("-", _) => stdin()?,
            (path, true) => input::file(Path::new(path))?,
            (value, false) => value.into(),
        };
        value.check(&key)?;
        given.push((key, value));
    }
    Ok(given)
}

/// What a pipeline's text may refer to.
pub(crate) fn values(secrets: &Secrets, args: &VariableArgs) -> Result<Values, Failure> {
    let mut variables = Variables::new();
    for file in &args.load_vars_from {
        let name = file.display().to_string();
        let text = fs::read_to_string(file)
            .map_err(|error| Failure::bad_input(format!("read the variables in {name}: {error}")))?;
        variables.load(&name, &text).map_err(Failure::invalid)?;
    }
    for pair in &args.vars {
        pair.check("--var")?;
        let Pair(name, value) = pair;
        variables.set(name, value);
    }
    let mut values = Values::default();
    values.variables = variables;
    values.secrets = Some(secrets.clone());
    Ok(values)
}

/// What a pipeline is called in scopes: its file's name without extension.
pub(crate) fn pipeline_name(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    stem.filter(|stem| !stem.is_empty())
        .unwrap_or_else(|| "pipeline".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use figment::Figment;
    use figment::providers::{Format, Toml};

    fn config(text: &str) -> SecretsConfig {
        Figment::from(Toml::string(text)).extract().unwrap()
    }

    fn names(config: &SecretsConfig) -> Result<Vec<String>, String> {
        let opened = open(config, &SecretArgs::default(), "ci");
        opened
            .map(|secrets| secrets.stores().map(str::to_owned).collect())
            .map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn stores_are_asked_in_the_order_that_is_stated() {
        let text = "environment = ['A']\ndirectory = '/d'\ncommand.op.argv = ['op', '{key}']\ncommand.b = { argv = ['b', '{key}'], timeout = '5s', missing = [1] }";
        assert_eq!(
            names(&config(text)).unwrap(),
            ["command-line", "environment", "directory", "b", "op"]
        );
        let text = format!("order = ['op', 'directory']\n{text}");
        assert_eq!(names(&config(&text)).unwrap(), ["command-line", "op", "directory"]);
        assert!(
            names(&config("order = ['vault']"))
                .unwrap_err()
                .contains("names a store")
        );
        assert!(names(&config("environment = ['a b']")).is_err());
        assert!(names(&config("command.x.argv = ['x']")).unwrap_err().contains("{key}"));
    }

    #[test]
    fn a_pair_that_is_none_is_refused_without_its_value() {
        for bad in ["hunter2", "=hunter2"] {
            let args = SecretArgs {
                secrets: vec![bad.parse().unwrap()],
                ..SecretArgs::default()
            };
            let refused = format!("{:?}", given(&args).unwrap_err());
            assert!(
                refused.contains("--secret names nothing") && !refused.contains("hunter2"),
                "{refused}"
            );
        }
        assert!(!format!("{:?}", "K=hunter2".parse::<Pair>().unwrap()).contains("hunter2"));
        let args = SecretArgs {
            secrets: vec![Pair("a b".into(), "hunter2".into())],
            ..SecretArgs::default()
        };
        let refused = format!("{:?}", given(&args).unwrap_err());
        assert!(
            refused.contains("contains ' '") && !refused.contains("hunter2"),
            "{refused}"
        );
    }

    #[test]
    fn a_pipeline_is_called_after_its_file() {
        assert_eq!(pipeline_name(Path::new("ci/deploy.prod.yml")), "deploy.prod");
    }
}
