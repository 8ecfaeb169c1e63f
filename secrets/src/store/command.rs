//! A program of the user's own: `op read …`, `vault kv get …`, `pass show …`.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use orchestra::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use zeroize::Zeroizing;

use super::{Listed, SecretStore, read_only};
use crate::redact::{LONGEST, MARKER};
use crate::{Scope, SecretKey, SecretValue, Secrets};

/// What the key is filled in for.
const PLACE: &str = "{key}";
/// How much of a program's complaint is shown.
const SAID: usize = 4 << 10;

/// Asks a program for each secret. No shell is involved; its arguments are a fixed list, in which only `{key}` is filled
/// in. It has this process's environment, and no input. Secrets are global.
#[derive(Clone, Debug)]
pub struct CommandStore {
    argv: Vec<String>,
    /// How long it may take; 30 s where nothing is said.
    pub deadline: Duration,
    /// Exit codes that say that there is no such secret; none where nothing is said. Any other code is an error.
    pub missing: Vec<i32>,
}

impl CommandStore {
    /// The program and its arguments.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there is no program, or no argument that `{key}` stands in.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Result<Self> {
        let argv: Vec<String> = argv.into_iter().map(Into::into).collect();
        let example = "for example [\"pass\", \"show\", \"ci/{key}\"]";
        match argv.split_first() {
            Some((program, rest)) if !program.is_empty() && !program.contains(PLACE) => {
                if !rest.iter().any(|argument| argument.contains(PLACE)) {
                    return Err(Error::invalid(format!("no argument of {program} holds `{PLACE}`")).with_hint(example));
                }
            }
            _ => return Err(Error::invalid("a command of secrets needs a program").with_hint(example)),
        }
        Ok(Self {
            argv,
            deadline: Duration::from_secs(30),
            missing: Vec::new(),
        })
    }

    async fn ask(&self, key: &SecretKey) -> Result<Option<SecretValue>> {
        let program = &self.argv[0];
        let failed = |error| Error::io(format!("run {program} for the secret {key}"), error);
        let mut child = Command::new(program)
            .args(
                self.argv[1..]
                    .iter()
                    .map(|argument| argument.replace(PLACE, key.as_str())),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let group = Group(child.id());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // A line's end, and a byte more than may be kept: what goes on behind the end is no single line.
        let limit = SecretValue::MAX as u64 + 3;
        // With room for all of it, so that it does not grow: what a growing vector leaves is not zeroed.
        let mut value = Zeroizing::new(Vec::with_capacity(SecretValue::MAX + 64));
        let mut said = Vec::new();
        let asked = async {
            let (value, said, status) = tokio::join!(
                read(stdout, limit, &mut value),
                // More than is shown: a value that was cut would not be found.
                read(stderr, SAID as u64 + LONGEST as u64, &mut said),
                child.wait()
            );
            value.and(said).and(status)
        };
        let answered = tokio::time::timeout(self.deadline, asked).await;
        drop(group);
        let status = match answered {
            Ok(answered) => answered.map_err(failed)?,
            Err(_) => {
                let message = format!("{program} did not give the secret {key} within {:?}", self.deadline);
                return Err(Error::new(ErrorKind::DeadlineExceeded, message)
                    .with_hint("check that it does not wait for a log-in, or raise the `timeout` of this command"));
            }
        };
        if !status.success() {
            if status.code().is_some_and(|code| self.missing.contains(&code)) {
                return Ok(None);
            }
            let cut = said.len() >= SAID + LONGEST;
            // A script that traces itself says the value there too.
            let own = Secrets::new([]).job(key.to_string());
            let traced = own.mask(&SecretValue::from_input(std::mem::take(&mut value)));
            let said = match traced {
                Ok(()) => own.redact(String::from_utf8_lossy(&said).trim()),
                Err(_) => MARKER.to_owned(),
            };
            // A value that the reading has cut is not found.
            let said = match cut {
                true => "it said too much to be shown",
                false => &said[..said.floor_char_boundary(SAID)],
            };
            return Err(Error::new(
                ErrorKind::Io,
                format!("{program} failed for the secret {key}: {status}: {said}"),
            )
            .with_hint("run it by hand; list the codes that mean `no such secret` under `missing`"));
        }
        let value = SecretValue::from_input(std::mem::take(&mut value));
        value.check(key)?;
        Ok(Some(value))
    }
}

/// What the program started and left running goes with it.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let group = self
            .0
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            // Nothing is left of it in the usual case.
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        }
    }
}

/// All of it up to `limit` bytes; what is more is read and forgotten, so that the program is not stopped by it.
async fn read(from: Option<impl AsyncRead + Unpin>, limit: u64, into: &mut Vec<u8>) -> std::io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    (&mut from).take(limit).read_to_end(into).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(())
}

#[async_trait]
impl SecretStore for CommandStore {
    async fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>> {
        match scope {
            Scope::Global => self.ask(key).await,
            Scope::Pipeline(_) => Ok(None),
        }
    }

    async fn set(&self, _: &Scope, _: &SecretKey, _: &SecretValue) -> Result<()> {
        Err(read_only(&format!("the store behind {}", self.argv[0])))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} can't be asked what secrets there are", self.argv[0]),
        ))
    }

    async fn remove(&self, _: &Scope, _: &SecretKey) -> Result<bool> {
        Err(read_only(&format!("the store behind {}", self.argv[0])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(script: &str) -> CommandStore {
        CommandStore::new(["sh", "-c", script, "x", "{key}"]).unwrap()
    }

    async fn get(store: &CommandStore, key: &str) -> Result<Option<SecretValue>> {
        store.get(&Scope::Global, &SecretKey::new(key).unwrap()).await
    }

    #[tokio::test]
    async fn a_program_is_given_the_key_and_its_answer_is_the_value() {
        let value = get(&store("echo \"<$1>\""), "team/token").await.unwrap().unwrap();
        assert_eq!(value.expose(), b"<team/token>");
        assert!(CommandStore::new(["pass", "show"]).is_err());
        assert!(CommandStore::new(Vec::<String>::new()).is_err());
    }

    #[tokio::test]
    async fn a_failure_says_what_the_program_said_and_a_chosen_code_means_missing() {
        let mut failing = store("echo value; echo 'not signed in' >&2; exit 3");
        let error = get(&failing, "k").await.unwrap_err();
        assert!(
            error.message().contains("not signed in") && !error.message().contains("value"),
            "{error}"
        );
        failing.missing = vec![3];
        assert!(get(&failing, "k").await.unwrap().is_none());
        // The value stands across the place where what it said is cut.
        let talks = "head -c 4090 /dev/zero | tr '\\0' x >&2; echo hunter2hunter2 >&2; echo hunter2hunter2; exit 1";
        let error = get(&store(talks), "k").await.unwrap_err();
        assert!(
            error.message().contains("xxxx") && !error.message().contains("hun"),
            "{error}"
        );
        let talks = "head -c 69630 /dev/zero | tr '\\0' x >&2; echo hunter2hunter2 >&2; echo hunter2hunter2; exit 1";
        let error = get(&store(talks), "k").await.unwrap_err();
        let said = error.message();
        assert!(said.contains("too much") && !said.contains("hun"), "{error}");
        let error = get(&CommandStore::new(["/no/such/program", "{key}"]).unwrap(), "k").await;
        assert!(error.unwrap_err().message().contains("/no/such/program"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_or_never_stops_talking_is_ended_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("alive");
        let mut hanging = store(&format!("(sleep 3; touch {}) & wait", mark.display()));
        hanging.deadline = Duration::from_millis(200);
        assert_eq!(
            get(&hanging, "k").await.unwrap_err().kind(),
            ErrorKind::DeadlineExceeded
        );
        let mut endless = store("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxx; done");
        endless.deadline = Duration::from_millis(500);
        assert_eq!(
            get(&endless, "k").await.unwrap_err().kind(),
            ErrorKind::DeadlineExceeded
        );
        let large = store("head -c 1048577 /dev/zero");
        assert!(get(&large, "k").await.unwrap_err().message().contains("1048577 bytes"));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!mark.exists(), "what it had started was ended too");
    }
}
