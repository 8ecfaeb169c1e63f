//! `orchestra secrets`: keeps secrets in the encrypted file.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use orchestra_secrets::{Listed, Scope, SecretKey, SecretStore, SqliteKey, SqliteStore};

use super::{file_store, input};
use crate::args::EngineArgs;
use crate::config::Config;
use crate::exit::{Exit, Failure};

#[derive(Debug, Args)]
pub(crate) struct SecretsArgs {
    #[command(subcommand)]
    command: SecretsCommand,
    /// The encrypted file [default: `file` under `[secrets]` in the configuration]
    #[arg(long, value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    /// The file whose content opens it [default: `key_file` under `[secrets]`; else a passphrase is asked for]
    #[arg(long, value_name = "FILE", global = true)]
    key_file: Option<PathBuf>,
    /// The configuration file [default: orchestra.toml, where there is one]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum SecretsCommand {
    /// Keep a secret; its value is typed without echo, or read from standard input
    Set {
        key: SecretKey,
        #[command(flatten)]
        scope: ScopeArgs,
        /// Read the value from this file, to the byte
        #[arg(long, value_name = "PATH")]
        from_file: Option<PathBuf>,
        /// A value that was given as an argument: it is refused without being shown once more.
        #[arg(hide = true, value_name = "VALUE", allow_hyphen_values = true)]
        shown: Vec<OsString>,
    },
    /// Print a secret's value
    Get {
        key: SecretKey,
        #[command(flatten)]
        scope: ScopeArgs,
        /// Yes, print it for all to see
        #[arg(long, required = true)]
        reveal: bool,
    },
    /// List names, scopes and dates, never values
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a secret
    Rm {
        key: SecretKey,
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Seal the whole file anew with another key or passphrase
    Rekey {
        /// The new key's file; a passphrase is asked for without
        #[arg(long, value_name = "FILE")]
        new_key_file: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct ScopeArgs {
    /// For the pipeline of this name alone (deploy for ci/deploy.yml) [default: for all]
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
}

impl ScopeArgs {
    fn scope(&self) -> Result<Scope, Failure> {
        Ok(match &self.pipeline {
            Some(name) => Scope::pipeline(name)?,
            None => Scope::Global,
        })
    }
}

impl SecretsArgs {
    /// Whether answers are JSON.
    pub(crate) fn json(&self) -> bool {
        matches!(self.command, SecretsCommand::List { json: true })
    }
}

pub(crate) async fn run(args: SecretsArgs) -> Result<Exit, Failure> {
    let engine = EngineArgs {
        config: args.config.clone(),
        ..EngineArgs::default()
    };
    let config = Config::load(&engine)?.secrets;
    let file = args.file.or(config.file).ok_or_else(|| {
        Failure::bad_input("there is no file to keep secrets in")
            .with_hint("give --file, or set `file` under [secrets] in the configuration")
    })?;
    let key_file = args.key_file.or(config.key_file);
    let needs_file = !matches!(args.command, SecretsCommand::Set { .. } | SecretsCommand::List { .. });
    if needs_file && !file.exists() {
        return Err(
            Failure::bad_input(format!("there is no file of secrets {}", file.display()))
                .with_hint("`orchestra secrets set` makes it"),
        );
    }
    let store = || -> Result<SqliteStore, Failure> {
        match (&key_file, file.exists()) {
            (None, false) => Ok(SqliteStore::new(&file, SqliteKey::Passphrase(input::new_passphrase()?))),
            (key_file, _) => file_store(&file, key_file.as_deref()),
        }
    };
    match args.command {
        SecretsCommand::Set { shown, .. } if !shown.is_empty() => {
            return Err(Failure::bad_input(
                "a secret's value is no argument: who lists processes would see it".to_owned(),
            )
            .with_hint("leave it out and type it, pipe it in, or give --from-file"));
        }
        SecretsCommand::Set {
            key,
            scope,
            from_file,
            shown: _,
        } => {
            let scope = scope.scope()?;
            let store = store()?;
            let value = match from_file {
                Some(path) => input::file(&path)?,
                None => input::value(key.as_str())?,
            };
            store.set(&scope, &key, &value).await?;
        }
        SecretsCommand::Get { key, scope, reveal: _ } => {
            let scope = scope.scope()?;
            let value = store()?.get(&scope, &key).await?.ok_or_else(|| missing(&scope, &key))?;
            let mut out = std::io::stdout();
            let written = out.write_all(value.expose()).and_then(|()| out.flush());
            written.map_err(|error| Failure::text(Exit::Interrupted, format!("write the value: {error}"), None))?;
        }
        SecretsCommand::List { json } => {
            // Names are not encrypted: nothing is asked for.
            let key = SqliteKey::File(key_file.unwrap_or_default());
            let listed = SqliteStore::new(&file, key).list().await?;
            // Who does not read the answer has the exit code.
            std::io::stdout().write_all(shown(&listed, json).as_bytes()).ok();
        }
        SecretsCommand::Rm { key, scope } => {
            let scope = scope.scope()?;
            if !store()?.remove(&scope, &key).await? {
                return Err(missing(&scope, &key));
            }
        }
        SecretsCommand::Rekey { new_key_file } => {
            let store = file_store(&file, key_file.as_deref())?;
            let key = match new_key_file {
                Some(path) => SqliteKey::File(path),
                None => SqliteKey::Passphrase(input::new_passphrase()?),
            };
            let count = store.rekey(key).await?;
            let what = if count == 1 { "secret is" } else { "secrets are" };
            writeln!(std::io::stderr(), "{count} {what} sealed anew").ok();
        }
    }
    Ok(Exit::Success)
}

fn missing(scope: &Scope, key: &SecretKey) -> Failure {
    Failure::bad_input(format!("there is no secret {key} ({scope})"))
        .with_hint("`orchestra secrets list` shows what there is; --pipeline names the scope")
}

fn shown(listed: &[Listed], json: bool) -> String {
    let updated = |listed: &Listed| {
        let time = listed.updated.and_then(|time| jiff::Timestamp::try_from(time).ok());
        time.map(|time| time.to_string()).unwrap_or_default()
    };
    let pipeline = |listed: &Listed| match &listed.scope {
        Scope::Pipeline(name) => Some(name.clone()),
        Scope::Global => None,
    };
    if json {
        let entry = |listed: &Listed| serde_json::json!({"key": listed.key.as_str(), "pipeline": pipeline(listed), "updated": updated(listed)});
        let all: Vec<_> = listed.iter().map(entry).collect();
        return format!("{}\n", serde_json::Value::from(all));
    }
    let width = |text: fn(&Listed) -> usize| listed.iter().map(text).max().unwrap_or_default();
    let (key, scope) = (width(|l| l.key.as_str().len()), width(|l| l.scope.to_string().len()));
    listed
        .iter()
        .map(|l| {
            format!(
                "{:<key$}  {:<scope$}  {}\n",
                l.key.as_str(),
                l.scope.to_string(),
                updated(l)
            )
        })
        .collect()
}
