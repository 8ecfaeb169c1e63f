//! `orchestra caches`: looks after the store of caches. No engine is needed for any of it.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use indicatif::DecimalBytes;
use orchestra::stream::from_reader;
use orchestra::{Error, ErrorKind};
use orchestra_caches::{CacheKey, CachesOptions, Entry, Persist, Prune, Pruned, Store, Verified};
use orchestra_pipelines::Caches;
use orchestra_secrets::Secrets;
use serde_json::json;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use crate::args::{CachesArgs, CachesCommand, EngineArgs};
use crate::config::{CachesConfig, Config};
use crate::duration;
use crate::exit::{Exit, Failure};
use crate::log;
use crate::secrets;
use crate::validate::count;

/// The caches that are configured, with the secrets that their store needs; `None` where no store is.
pub(crate) async fn configured(config: &CachesConfig, secrets: &Secrets) -> Result<Option<Caches>, Failure> {
    let Some(options) = config.store_options(secrets).await? else {
        return Ok(None);
    };
    let store = Store::open(&options)?;
    let mut options = CachesOptions::default();
    options.policy = config.policy;
    options.size_limit = config.size_limit;
    options.time_to_live = config.time_to_live;
    options.timeout = config.timeout.unwrap_or(options.timeout);
    Ok(Some(Caches::new(store, options)))
}

pub(crate) async fn run(args: CachesArgs) -> Result<Exit, Failure> {
    let engine = EngineArgs {
        config: args.config,
        ..EngineArgs::default()
    };
    let Config {
        caches: mut config,
        secrets,
        ..
    } = Config::load(&engine)?;
    if let Some(store) = args.store {
        config.store = Some(store);
    }
    // Opening them may ask for a passphrase, which nobody wants to type for nothing.
    let secrets = match config.references()?.is_empty() {
        true => Secrets::new([]),
        false => secrets::open(&secrets, &args.secrets, "caches")?,
    };
    log::redact_by(&secrets);
    let Some(caches) = configured(&config, &secrets).await? else {
        return Err(Failure::bad_input("no cache store is configured")
            .with_hint("set `store` under `[caches]` in orchestra.toml, or give --store file:///a/folder"));
    };
    let store = caches.store;
    let told = match args.command {
        CachesCommand::List { prefix, json } => list(&store, &prefix, json).await?,
        CachesCommand::Inspect { key } => inspect(&store, &key).await?,
        CachesCommand::Rm { keys } => remove(&store, &keys).await?,
        CachesCommand::Prune {
            older_than,
            keep_size,
            grace,
            dry_run,
            json,
        } => {
            let mut prune = Prune::default();
            prune.older_than = older_than.or(config.time_to_live);
            prune.keep_bytes = keep_size;
            prune.grace = grace.unwrap_or(prune.grace);
            prune.dry_run = dry_run;
            let longest = caches.options.timeout;
            if prune.grace < longest && !dry_run {
                let (grace, longest) = (duration::show(prune.grace), duration::show(longest));
                writeln!(
                    io::stderr(),
                    "warning: the grace period of {grace} is shorter than the {longest} that a restore or persist may take: \
                     one that runs now can lose its cache"
                )
                .ok();
            }
            let pruned = store.prune(prune).await?;
            if json {
                format!("{}\n", serde_json::to_value(&pruned).unwrap_or_default())
            } else {
                text_of(&pruned, dry_run)
            }
        }
        CachesCommand::Verify { prefix, repair } => return verify(&store, &prefix, repair).await,
        CachesCommand::Export { key, file } => export(&store, &key, &file).await?,
        CachesCommand::Import { key, file } => import(&store, &key, &file).await?,
    };
    say(&told);
    Ok(Exit::Success)
}

/// Who does not read the answer has the exit code.
fn say(text: &str) {
    io::stdout().write_all(text.as_bytes()).ok();
}

fn age(entry: &Entry) -> Duration {
    SystemTime::now().duration_since(entry.persisted()).unwrap_or_default()
}

fn as_json(entry: &Entry) -> serde_json::Value {
    let time = jiff::Timestamp::try_from(entry.persisted()).map(|time| time.to_string());
    json!({
        "key": entry.key,
        "size": entry.size,
        "stored": entry.stored,
        "chunks": entry.chunks,
        "created": entry.created,
        "persisted": time.ok(),
    })
}

async fn list(store: &Store, prefix: &str, json: bool) -> Result<String, Failure> {
    let entries = store.list(prefix).await?;
    if json {
        let entries: Vec<_> = entries.iter().map(as_json).collect();
        return Ok(format!("{}\n", serde_json::Value::from(entries)));
    }
    if entries.is_empty() {
        let named = if prefix.is_empty() {
            String::new()
        } else {
            format!(" whose keys begin with {prefix}")
        };
        return Ok(format!("there are no caches{named} in {}\n", store.address()));
    }
    let width = entries.iter().map(|entry| entry.key.as_str().len()).max().unwrap_or(0);
    let line = |entry: &Entry| {
        let (size, stored) = (
            DecimalBytes(entry.size).to_string(),
            DecimalBytes(entry.stored).to_string(),
        );
        let age = duration::show(age(entry));
        format!("{:width$}   {size:>10}   {stored:>10}   {age:>8} ago\n", entry.key)
    };
    let head = format!(
        "{:width$}   {:>10}   {:>10}   {:>12}\n",
        "key", "size", "stored", "persisted"
    );
    Ok(head + &entries.iter().map(line).collect::<String>())
}

async fn inspect(store: &Store, key: &CacheKey) -> Result<String, Failure> {
    let entry = found(store, key).await?;
    Ok(format!("{:#}\n", as_json(&entry)))
}

async fn found(store: &Store, key: &CacheKey) -> Result<Entry, Failure> {
    if let Some(entry) = store.get(key).await? {
        return Ok(entry);
    }
    // Who wrote `key: deps` looks for that, and it is the end of what the cache is called.
    let end = format!("/{key}");
    let entries = store.list("").await?;
    let keys = entries.iter().map(|entry| entry.key.as_str());
    let alike: Vec<&str> = keys.filter(|key| key.ends_with(&end)).take(3).collect();
    let failure = Failure::bad_input(format!("there is no cache {key} in {}", store.address()));
    Err(match alike.is_empty() {
        true => failure.with_hint("`orchestra caches list` names those there are"),
        false => failure.with_hint(format!("there is {}", alike.join(" and "))),
    })
}

async fn remove(store: &Store, keys: &[CacheKey]) -> Result<String, Failure> {
    let mut told = String::new();
    for key in keys {
        found(store, key).await.map(drop).or_else(|failure| {
            // A damaged one is one that is there.
            if failure.exit == Exit::BadInput {
                Err(failure)
            } else {
                Ok(())
            }
        })?;
    }
    for key in keys {
        store.remove(key).await?;
        told.push_str(&format!("removed {key}\n"));
    }
    Ok(told + "what only they used goes by `orchestra caches prune`\n")
}

fn text_of(pruned: &Pruned, dry_run: bool) -> String {
    let verb = if dry_run { "would remove" } else { "removed" };
    let mut text = String::new();
    for key in &pruned.caches {
        text.push_str(&format!("{verb} {key}\n"));
    }
    text.push_str(&format!(
        "{verb} {}, {}, {}\n",
        count(pruned.caches.len(), "cache"),
        count(pruned.objects, "object"),
        DecimalBytes(pruned.bytes)
    ));
    if pruned.condemned > 0 {
        text.push_str(&format!(
            "{}, {}, will go after the grace period\n",
            count(pruned.condemned, "unused object"),
            DecimalBytes(pruned.condemned_bytes)
        ));
    }
    text
}

async fn verify(store: &Store, prefix: &str, repair: bool) -> Result<Exit, Failure> {
    let verified: Verified = store.verify(prefix, repair).await?;
    say(&format!(
        "{}, {} read\n",
        count(verified.whole, "whole cache"),
        DecimalBytes(verified.read)
    ));
    for damage in &verified.damaged {
        say(&format!("damaged: {}: {}\n", damage.key, damage.error.message()));
    }
    if verified.damaged.is_empty() {
        return Ok(Exit::Success);
    }
    if !repair {
        say("with --repair, what is damaged is deleted, and persisted anew by the next run\n");
    } else {
        say("they are deleted, and persisted anew by the next run\n");
    }
    Ok(Exit::StepFailed)
}

async fn export(store: &Store, key: &CacheKey, file: &Path) -> Result<String, Failure> {
    let entry = found(store, key).await?;
    let mut content = store.restore(&entry).await?.content;
    let failed = |error| Error::io(format!("write {}", file.display()), error);
    if file.as_os_str() == "-" {
        let mut out = tokio::io::stdout();
        while let Some(piece) = content.next().await {
            out.write_all(&piece?).await.map_err(failed)?;
        }
        out.flush().await.map_err(failed)?;
        return Ok(String::new());
    }
    // Beside its place, so that nothing half made has the name.
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let written = async {
        let mut out = File::create(&partial).await.map_err(failed)?;
        while let Some(piece) = content.next().await {
            out.write_all(&piece?).await.map_err(failed)?;
        }
        out.sync_all().await.map_err(failed)?;
        tokio::fs::rename(&partial, file).await.map_err(failed)
    };
    if let Err(error) = written.await {
        tokio::fs::remove_file(&partial).await.ok();
        return Err(error.into());
    }
    Ok(format!("exported {key}, {}\n", DecimalBytes(entry.size)))
}

async fn import(store: &Store, key: &CacheKey, file: &Path) -> Result<String, Failure> {
    let content = if file.as_os_str() == "-" {
        from_reader(tokio::io::stdin(), "read standard input")
    } else {
        let opened = File::open(file).await;
        let opened = opened.map_err(|error| Failure::bad_input(format!("read {}: {error}", file.display())))?;
        from_reader(opened, "read the archive")
    };
    let mut options = Persist::default();
    options.devices = true;
    let persisted = store
        .persist(key, content, options)
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::Interrupted => Failure::bad_input(format!("{} is no tar: {}", file.display(), error.message())),
            _ => error.into(),
        })?;
    Ok(format!(
        "imported {key}, {}, of which {} were new\n",
        DecimalBytes(persisted.size),
        DecimalBytes(persisted.new)
    ))
}
