//! One run of a plugin.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use orchestra::{Error, ErrorKind, Result};
use rustix::fs::{Access, access};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

/// All that are called, by us or by each other.
const NEEDED: [&str; 4] = ["bridge", "firewall", "host-local", "loopback"];
/// Bytes of a plugin's answer that are read.
const ANSWER: u64 = 1 << 20;
/// "Try again later": the specification's code.
const TRY_AGAIN: u64 = 11;

/// Where each plugin is.
#[derive(Debug)]
pub(super) struct Plugins {
    found: BTreeMap<&'static str, PathBuf>,
    path: OsString,
    deadline: Duration,
}

/// What is asked of a plugin.
pub(super) struct Call<'a> {
    pub(super) command: &'static str,
    pub(super) id: &'a str,
    pub(super) netns: Option<&'a Path>,
    pub(super) interface: &'a str,
}

impl Plugins {
    pub(super) fn find(dirs: &[PathBuf], deadline: Duration) -> Result<Self> {
        let find = |name: &'static str| {
            let mut all = dirs.iter().map(|dir| dir.join(name));
            all.find(|path| path.is_file() && access(path, Access::EXEC_OK).is_ok())
                .map(|path| (name, path))
                .ok_or(name)
        };
        let (found, missing): (Vec<_>, Vec<_>) = NEEDED.into_iter().map(find).partition(Result::is_ok);
        let missing: Vec<&str> = missing.into_iter().filter_map(Result::err).collect();
        if !missing.is_empty() {
            let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("CNI plugins are missing: {} (looked for in {})", missing.join(", "), dirs.join(", ")),
            )
            .with_hint("install the package containernetworking-plugins, or use the networks `none` and `host`, which need none"));
        }
        let path = env::join_paths(dirs)
            .map_err(|error| Error::invalid(format!("a folder of CNI plugins can't be used: {error}")))?;
        Ok(Self {
            found: found.into_iter().filter_map(Result::ok).collect(),
            path,
            deadline,
        })
    }

    /// The versions of the specification that a plugin knows.
    pub(super) async fn versions(&self, plugin: &'static str) -> Result<Vec<String>> {
        let call = Call {
            command: "VERSION",
            id: "",
            netns: None,
            interface: "",
        };
        let answer = self.run(plugin, &call, &json!({"cniVersion": "1.0.0"})).await?;
        let versions = answer["supportedVersions"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        Ok(versions.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// What a plugin answers; null where it has nothing to say.
    pub(super) async fn run(&self, plugin: &'static str, call: &Call<'_>, definition: &Value) -> Result<Value> {
        let program = self
            .found
            .get(plugin)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("the CNI plugin {plugin} is not known")))?;
        let about = |error: Error| error.with("plugin", program.display()).with("command", call.command);
        let output = match timeout(self.deadline, self.output(program, call, definition)).await {
            Ok(output) => output.map_err(|error| about(Error::io(format!("run the CNI plugin {plugin}"), error)))?,
            Err(_) => {
                let message = format!(
                    "the CNI plugin {plugin} did not end within {:?}, and was killed",
                    self.deadline
                );
                return Err(about(Error::new(ErrorKind::DeadlineExceeded, message)));
            }
        };
        let answer = String::from_utf8_lossy(&output.stdout);
        let parsed = serde_json::from_str::<Value>(&answer);
        if !output.status.success() {
            return Err(about(refusal(plugin, parsed.ok(), &output)));
        }
        match parsed {
            Ok(value) => Ok(value),
            Err(_) if answer.trim().is_empty() => Ok(Value::Null),
            Err(error) => Err(about(
                Error::new(
                    ErrorKind::Protocol,
                    format!("the CNI plugin {plugin} answered what is no JSON: {error}"),
                )
                .with_source(error),
            )),
        }
    }

    /// Killed when it is dropped.
    async fn output(&self, program: &Path, call: &Call<'_>, definition: &Value) -> std::io::Result<Output> {
        let mut child = Command::new(program)
            .env_clear()
            // They call iptables.
            .env(
                "PATH",
                env::var_os("PATH").unwrap_or_else(|| "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
            )
            .env("CNI_COMMAND", call.command)
            .env("CNI_CONTAINERID", call.id)
            .env("CNI_NETNS", call.netns.map(Path::as_os_str).unwrap_or_default())
            .env("CNI_IFNAME", call.interface)
            .env("CNI_PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let content = definition.to_string();
        let write = async {
            if let Some(mut stdin) = stdin {
                // One that ends without reading has said why elsewhere.
                let _ = stdin.write_all(content.as_bytes()).await;
            }
        };
        let ((), stdout, stderr, status) = tokio::join!(write, read(stdout), read(stderr), child.wait());
        Ok(Output {
            status: status?,
            stdout: stdout?,
            stderr: stderr?,
        })
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(ANSWER).read_to_end(&mut content).await?;
        // What is more is let go, so that the plugin can end.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(content)
}

fn refusal(plugin: &str, answer: Option<Value>, output: &Output) -> Error {
    let answer = answer.unwrap_or_default();
    let said: Vec<&str> = [&answer["msg"], &answer["details"]]
        .into_iter()
        .filter_map(Value::as_str)
        .filter(|text| !text.is_empty())
        .collect();
    let said = match said.is_empty() {
        false => said.join(": "),
        true => {
            let text = [output.stderr.as_slice(), &output.stdout].concat();
            format!("{}: {}", output.status, String::from_utf8_lossy(&text).trim())
        }
    };
    Error::new(ErrorKind::Engine, format!("the CNI plugin {plugin} failed: {said}"))
        .retryable(answer["code"].as_u64() == Some(TRY_AGAIN))
}
