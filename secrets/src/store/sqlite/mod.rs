//! An encrypted file: SQLite, with each value sealed by XChaCha20-Poly1305 and bound to its scope and key.
//!
//! | table | what |
//! | --- | --- |
//! | `vault` | one row: format, salt, costs of argon2id, and a known text sealed with the key that they and the passphrase give; a checksum over these, which tells damage from a wrong key |
//! | `secrets` | scope, key, nonce, sealed value, when it was made and set |
//!
//! Names, scopes and dates are not encrypted. Each call is one transaction on a connection of its own, so that any number
//! of processes may use the file at once, and a crash at any point leaves the old or the new, whole.

mod crypt;

use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use orchestra::{Error, ErrorKind, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};
use zeroize::Zeroizing;

use self::crypt::{Cipher, Vault};
use super::{Listed, SecretStore};
use crate::{Scope, SecretKey, SecretValue};

/// How long another process that writes is waited for.
const BUSY: Duration = Duration::from_secs(5);
/// The least that a key file holds: as many bytes as the key has that is derived from it.
const MIN_KEY_FILE: usize = 32;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS vault (
    id INTEGER PRIMARY KEY CHECK (id = 1), format INTEGER NOT NULL, salt BLOB NOT NULL,
    memory INTEGER NOT NULL, passes INTEGER NOT NULL, nonce BLOB NOT NULL, sealed BLOB NOT NULL, checksum BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS secrets (
    scope TEXT NOT NULL, key TEXT NOT NULL, nonce BLOB NOT NULL, sealed BLOB NOT NULL,
    created INTEGER NOT NULL, updated INTEGER NOT NULL, PRIMARY KEY (scope, key)
) STRICT;";

/// What opens the file. `Debug` shows neither.
#[derive(Clone)]
pub enum SqliteKey {
    /// A passphrase that a person remembers.
    Passphrase(SecretValue),
    /// A file of at least 32 bytes that only its owner may read.
    File(PathBuf),
}

impl fmt::Debug for SqliteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passphrase(_) => f.write_str("Passphrase"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

impl SqliteKey {
    fn read(&self) -> Result<SecretValue> {
        let path = match self {
            Self::Passphrase(passphrase) if passphrase.expose().is_empty() => {
                return Err(Error::invalid("the passphrase is empty"));
            }
            Self::Passphrase(passphrase) => return Ok(passphrase.clone()),
            Self::File(path) => path,
        };
        let shown = path.display();
        let missing = || {
            Error::invalid(format!("there is no key file {shown}"))
                .with_hint(format!("make one: (umask 077 && head -c 32 /dev/urandom > {shown})"))
        };
        let key = super::directory::read(path)?.ok_or_else(missing)?;
        let meta = std::fs::metadata(path).map_err(|error| Error::io(format!("read the key file {shown}"), error))?;
        if meta.mode() & 0o077 != 0 {
            let mode = meta.mode() & 0o777;
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!("the key file {shown} can be read or written by others (mode {mode:o})"),
            )
            .with_hint(format!(
                "run `chmod 600 {shown}`; if it was so for long, run `orchestra secrets rekey` with a new one"
            )));
        }
        if key.expose().len() < MIN_KEY_FILE {
            let length = key.expose().len();
            return Err(Error::invalid(format!(
                "the key file {shown} has {length} bytes; at least {MIN_KEY_FILE} are needed"
            )));
        }
        Ok(key)
    }
}

/// Keeps secrets in one encrypted file, which is made by the first [`set`](SecretStore::set).
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    path: PathBuf,
    key: SqliteKey,
    /// The last key that was derived, with what it was derived from: that costs a tenth of a second.
    derived: Mutex<Option<(Vault, Cipher)>>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteStore({}, {:?})", self.0.path.display(), self.0.key)
    }
}

impl SqliteStore {
    /// The store in this file. Nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, key: SqliteKey) -> Self {
        Self(Arc::new(Inner {
            path: path.into(),
            key,
            derived: Mutex::default(),
        }))
    }

    /// Seals everything anew with another key, in one transaction: afterwards only the new key opens the file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if either key is not right; the file is as it was then.
    pub async fn rekey(&self, key: SqliteKey) -> Result<usize> {
        let store = self.clone();
        blocking(move || store.0.rekey(&key)).await
    }
}

#[async_trait]
impl SecretStore for SqliteStore {
    async fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>> {
        let (store, scope, key) = (self.clone(), scope.clone(), key.clone());
        blocking(move || store.0.get(&scope, &key)).await
    }

    async fn set(&self, scope: &Scope, key: &SecretKey, value: &SecretValue) -> Result<()> {
        value.check(key)?;
        let (store, scope, key, value) = (self.clone(), scope.clone(), key.clone(), value.clone());
        blocking(move || store.0.set(&scope, &key, &value)).await
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let store = self.clone();
        blocking(move || store.0.list()).await
    }

    async fn remove(&self, scope: &Scope, key: &SecretKey) -> Result<bool> {
        let (store, scope, key) = (self.clone(), scope.clone(), key.clone());
        blocking(move || store.0.remove(&scope, &key)).await
    }
}

/// Runs what blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(
            ErrorKind::Cancelled,
            format!("the runtime ended it: {error}"),
        ))
    })
}

fn scope_text(scope: &Scope) -> String {
    match scope {
        Scope::Global => "global".to_owned(),
        Scope::Pipeline(name) => format!("pipeline/{name}"),
    }
}

fn scope_of(text: &str) -> Option<Scope> {
    match text.strip_prefix("pipeline/") {
        Some(name) => Scope::pipeline(name).ok(),
        None => (text == "global").then_some(Scope::Global),
    }
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

impl Inner {
    fn failed(&self, doing: &str, error: &rusqlite::Error) -> Error {
        let file = self.path.display();
        let (kind, why, hint) = match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
                ErrorKind::DeadlineExceeded,
                format!("another process has kept it locked for {BUSY:?}"),
                "wait for it, or find out what holds the file open",
            ),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => (
                ErrorKind::PermissionDenied,
                "it, or its directory, can't be written to".to_owned(),
                "check the permissions of both, and whether the file system is mounted read-only",
            ),
            Some(ErrorCode::CannotOpen) => (
                ErrorKind::PermissionDenied,
                "it can't be opened".to_owned(),
                "check the path, and the permissions of the file and of its directory",
            ),
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                return self.damaged("it is no SQLite database");
            }
            Some(ErrorCode::DiskFull) => (
                ErrorKind::DiskFull,
                "there is no space left".to_owned(),
                "make room, then try again: nothing was changed",
            ),
            _ => (ErrorKind::Io, error.to_string(), "check that it is the secrets' file"),
        };
        Error::new(kind, format!("{doing} the secrets' file {file}: {why}"))
            .with_hint(hint)
            .retryable(false)
    }

    fn damaged(&self, why: &str) -> Error {
        Error::new(
            ErrorKind::Io,
            format!("the secrets' file {} is damaged: {why}", self.path.display()),
        )
        .with_hint("restore it from a backup; the key is not to blame")
    }

    fn wrong_key(&self) -> Error {
        let what = match &self.key {
            SqliteKey::Passphrase(_) => "the passphrase".to_owned(),
            SqliteKey::File(path) => format!("the key file {}", path.display()),
        };
        Error::invalid(format!(
            "{what} does not open the secrets' file {}",
            self.path.display()
        ))
        .with_hint("it is another file's, or it was changed by `orchestra secrets rekey`")
    }

    /// The file, if it is there; made for its owner alone where `make` says so.
    fn open(&self, make: bool) -> Result<Option<Connection>> {
        if !exists(&self.path)? {
            if !make {
                return Ok(None);
            }
            let made = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&self.path);
            made.map_err(|error| {
                Error::io(format!("make the secrets' file {}", self.path.display()), error)
                    .with_hint("check that its directory exists and can be written to")
            })?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&self.path, flags).and_then(|connection| {
            connection.busy_timeout(BUSY)?;
            // What is removed or replaced is overwritten, sealed as it is.
            connection.pragma_update(None, "secure_delete", true)?;
            Ok(connection)
        });
        opened.map(Some).map_err(|error| self.failed("open", &error))
    }

    /// What says how the key is derived; `None` in a file that nothing was put into.
    fn vault(&self, connection: &Connection) -> Result<Option<Vault>> {
        let failed = |error: &rusqlite::Error| self.failed("read", error);
        let made = connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'vault'", [], |row| {
                row.get::<_, i64>(0)
            })
            .map_err(|error| failed(&error))?;
        if made == 0 {
            return Ok(None);
        }
        let sql = "SELECT format, salt, memory, passes, nonce, sealed, checksum FROM vault";
        let vault = connection
            .query_row(sql, [], |row| {
                Ok(Vault {
                    format: row.get(0)?,
                    salt: row.get(1)?,
                    memory: row.get(2)?,
                    passes: row.get(3)?,
                    nonce: row.get(4)?,
                    sealed: row.get(5)?,
                    checksum: row.get(6)?,
                })
            })
            .optional()
            .map_err(|error| match error {
                rusqlite::Error::SqliteFailure(..) => failed(&error),
                _ => self.damaged("its header can't be read"),
            })?;
        let vault = vault.ok_or_else(|| self.damaged("its header is missing"))?;
        if !vault.is_whole() {
            return Err(self.damaged("its header was changed"));
        }
        if vault.format != Vault::FORMAT {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the secrets' file {} was written by a newer version (format {})",
                    self.path.display(),
                    vault.format
                ),
            )
            .with_hint("use that version of orchestra"));
        }
        Ok(Some(vault))
    }

    /// The cipher of an existing vault.
    fn cipher(&self, vault: &Vault) -> Result<Cipher> {
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, cipher)) = derived.as_ref()
            && known == vault
        {
            return Ok(cipher.clone());
        }
        let cipher = vault.open(&self.key.read()?)?.ok_or_else(|| self.wrong_key())?;
        *derived = Some((vault.clone(), cipher.clone()));
        Ok(cipher)
    }

    fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>> {
        let Some(connection) = self.open(false)? else {
            return Ok(None);
        };
        let failed = |error: rusqlite::Error| self.failed("read", &error);
        let read = connection.unchecked_transaction().map_err(failed)?;
        let Some(vault) = self.vault(&read)? else {
            return Ok(None);
        };
        let cipher = self.cipher(&vault)?;
        let scope = scope_text(scope);
        let sql = "SELECT nonce, sealed FROM secrets WHERE scope = ?1 AND key = ?2";
        let row = read
            .query_row(sql, (&scope, key.as_str()), |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?))
            })
            .optional()
            .map_err(failed)?;
        let Some((nonce, sealed)) = row else { return Ok(None) };
        let value = cipher.unseal(&nonce, &sealed, &bound_to(&scope, key.as_str()));
        match value {
            Some(value) => Ok(Some(value)),
            // The key is right: the header was opened with it.
            None => Err(self.damaged(&format!("the value of {key} was changed, or belongs elsewhere"))),
        }
    }

    fn set(&self, scope: &Scope, key: &SecretKey, value: &SecretValue) -> Result<()> {
        // The key is read first: a file that nobody can open is not made.
        let material = self.key.read()?;
        let failed = |error: rusqlite::Error| self.failed("write to", &error);
        let Some(mut connection) = self.open(true)? else {
            return Ok(());
        };
        let known = self
            .vault(&connection)?
            .map(|vault| self.cipher(&vault).map(|_| ()))
            .transpose()?;
        let new = known.is_none().then(|| Vault::make(&material)).transpose()?;
        let write = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        write.execute_batch(SCHEMA).map_err(failed)?;
        // Another process may have made or rekeyed it between the two looks.
        let cipher = match (self.has_vault(&write)?, new) {
            (true, _) => {
                let vault = self
                    .vault(&write)?
                    .ok_or_else(|| self.damaged("its header is missing"))?;
                self.cipher(&vault)?
            }
            (false, Some((vault, cipher))) => {
                insert_vault(&write, &vault).map_err(failed)?;
                cipher
            }
            (false, None) => return Err(self.damaged("its header is missing")),
        };
        let scope = scope_text(scope);
        let (nonce, sealed) = cipher.seal(value, &bound_to(&scope, key.as_str()))?;
        let sql = "INSERT INTO secrets (scope, key, nonce, sealed, created, updated) VALUES (?1, ?2, ?3, ?4, ?5, ?5)
            ON CONFLICT (scope, key) DO UPDATE SET nonce = ?3, sealed = ?4, updated = ?5";
        write
            .execute(sql, (&scope, key.as_str(), &nonce, &sealed, now()))
            .map_err(failed)?;
        write.commit().map_err(failed)
    }

    fn has_vault(&self, connection: &Connection) -> Result<bool> {
        let count = connection.query_row("SELECT count(*) FROM vault", [], |row| row.get::<_, i64>(0));
        count
            .map(|count| count > 0)
            .map_err(|error| self.failed("read", &error))
    }

    fn list(&self) -> Result<Vec<Listed>> {
        let Some(connection) = self.open(false)? else {
            return Ok(Vec::new());
        };
        let failed = |error: rusqlite::Error| self.failed("read", &error);
        if self.vault(&connection)?.is_none() {
            return Ok(Vec::new());
        }
        let mut select = connection
            .prepare("SELECT scope, key, updated FROM secrets")
            .map_err(failed)?;
        let rows = select
            .query_map([], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, i64>(2)?,
                ))
            })
            .map_err(failed)?;
        let mut listed = Vec::new();
        for row in rows {
            let (scope, key, updated) = row.map_err(failed)?;
            let (Some(scope), Ok(key)) = (scope_of(&scope), SecretKey::new(key)) else {
                return Err(self.damaged("a name in it was changed"));
            };
            let since = Duration::from_secs(u64::try_from(updated).unwrap_or_default());
            listed.push(Listed {
                scope,
                key,
                updated: Some(UNIX_EPOCH + since),
            });
        }
        listed.sort();
        Ok(listed)
    }

    fn remove(&self, scope: &Scope, key: &SecretKey) -> Result<bool> {
        let Some(connection) = self.open(false)? else {
            return Ok(false);
        };
        // Who can't read what is in it may not change it by this program either.
        let Some(vault) = self.vault(&connection)? else {
            return Ok(false);
        };
        self.cipher(&vault)?;
        let sql = "DELETE FROM secrets WHERE scope = ?1 AND key = ?2";
        let removed = connection.execute(sql, (scope_text(scope), key.as_str()));
        removed
            .map(|count| count > 0)
            .map_err(|error| self.failed("write to", &error))
    }

    fn rekey(&self, key: &SqliteKey) -> Result<usize> {
        let none = || {
            Error::invalid(format!("there is no secrets' file {} to rekey", self.path.display()))
                .with_hint("`orchestra secrets set` makes one")
        };
        let failed = |error: rusqlite::Error| self.failed("write to", &error);
        let material = key.read()?;
        let mut connection = self.open(false)?.ok_or_else(none)?;
        let (vault, new) = Vault::make(&material)?;
        let write = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let old = self.vault(&write)?.ok_or_else(none)?;
        let old = self.cipher(&old)?;
        let count = self.reseal(&write, &old, &new)?;
        write.execute("DELETE FROM vault", []).map_err(failed)?;
        insert_vault(&write, &vault).map_err(failed)?;
        write.commit().map_err(failed)?;
        Ok(count)
    }

    fn reseal(&self, write: &Transaction<'_>, old: &Cipher, new: &Cipher) -> Result<usize> {
        let failed = |error: rusqlite::Error| self.failed("write to", &error);
        let mut select = write.prepare("SELECT scope, key FROM secrets").map_err(failed)?;
        let names = select
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
            .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
            .map_err(failed)?;
        for (scope, key) in &names {
            let bound = bound_to(scope, key);
            let row = write
                .query_row(
                    "SELECT nonce, sealed FROM secrets WHERE scope = ?1 AND key = ?2",
                    (scope, key),
                    |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)),
                )
                .map_err(failed)?;
            let value = old
                .unseal(&row.0, &row.1, &bound)
                .ok_or_else(|| self.damaged(&format!("the value of {key} was changed, or belongs elsewhere")))?;
            let (nonce, sealed) = new.seal(&value, &bound)?;
            let sql = "UPDATE secrets SET nonce = ?3, sealed = ?4 WHERE scope = ?1 AND key = ?2";
            write.execute(sql, (scope, key, &nonce, &sealed)).map_err(failed)?;
        }
        Ok(names.len())
    }
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists()
        .map_err(|error| Error::io(format!("look for the secrets' file {}", path.display()), error))
}

fn insert_vault(write: &Transaction<'_>, vault: &Vault) -> rusqlite::Result<()> {
    let sql = "INSERT INTO vault (id, format, salt, memory, passes, nonce, sealed, checksum) VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let Vault {
        format,
        salt,
        memory,
        passes,
        nonce,
        sealed,
        checksum,
    } = vault;
    write
        .execute(sql, (format, salt, memory, passes, nonce, sealed, checksum))
        .map(|_| ())
}

/// What a value is bound to, so that no row can be put in another's place. The length keeps two pairs apart.
fn bound_to(scope: &str, key: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(format!("{}:{scope}{key}", scope.len()).into_bytes())
}

#[cfg(test)]
mod tests;
