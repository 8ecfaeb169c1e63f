//! Networks by the real plugins. Those that make interfaces need root, and belong into a network namespace of their own.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

#[path = "support/given.rs"]
mod given;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use given::is_given;
use orchestra::ErrorKind;
use orchestra_oci::cni::{Cni, CniConfig};

fn config(state: &Path) -> CniConfig {
    CniConfig {
        plugin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
        name: "orchestra-test".to_owned(),
        bridge: "orctest0".to_owned(),
        subnet: "10.213.7.0/24".to_owned(),
        state_dir: state.to_owned(),
        deadline: Duration::from_secs(20),
    }
}

/// A network namespace, as long as its process runs.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command
            .args(["-n", "sh", "-c", "echo; exec sleep 100"])
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        Self(child)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn plugins_that_are_missing_are_named_with_their_package() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.plugin_dirs = vec![dir.path().to_owned()];
    let error = Cni::open(config.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.message().contains("bridge, firewall, host-local, loopback"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("containernetworking-plugins"));
    for subnet in ["10.0.0.0", "10.0.0.1/24", "fd00::/64", "10.0.0.0/33"] {
        config.subnet = subnet.to_owned();
        assert_eq!(
            Cni::open(config.clone()).await.unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{subnet}"
        );
    }
}

#[tokio::test]
async fn a_container_is_connected_checked_and_disconnected() {
    if !is_given() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cni = Cni::open(config(dir.path())).await.unwrap();
    let (one, two) = (Namespace::new(), Namespace::new());
    let (a, b) = (one.path(), two.path());
    let (first, second) = tokio::join!(cni.attach("one", &a), cni.attach("two", &b));
    let (first, second) = (first.unwrap().addresses, second.unwrap().addresses);
    assert_ne!(first, second);
    let ping = Command::new("nsenter")
        .arg(format!("--net={}", b.display()))
        .args(["busybox", "ping", "-c", "1", "-W", "5", &first[0].to_string()])
        .output()
        .unwrap();
    assert!(
        ping.status.success(),
        "one reaches the other: {}",
        String::from_utf8_lossy(&ping.stdout)
    );
    cni.check("one", &a).await.unwrap();
    assert_eq!(
        cni.check("three", &a).await.unwrap_err().kind(),
        ErrorKind::ContainerNotFound
    );

    cni.detach("one", Some(&a)).await.unwrap();
    cni.detach("one", Some(&a)).await.unwrap();
    drop(two);
    // Its namespace is gone, and another process asks.
    let later = Cni::open(config(dir.path())).await.unwrap();
    later.detach("two", None).await.unwrap();
    let left: Vec<_> = walk(dir.path())
        .into_iter()
        .filter(|name| name.starts_with("10.") || name == "one" || name == "two")
        .collect();
    assert_eq!(left, Vec::<String>::new(), "no address is in use");
}

#[tokio::test]
async fn what_could_not_be_connected_holds_no_address() {
    if !is_given() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cni = Cni::open(config(dir.path())).await.unwrap();
    let error = cni
        .attach("lost", Path::new("/proc/1/no-such-namespace"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Engine, "{error}");
    assert!(
        !walk(dir.path())
            .iter()
            .any(|name| name.starts_with("10.") || name == "lost")
    );
}

/// The names of all files below a folder.
fn walk(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            names.extend(walk(&entry.path()));
        } else {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names
}

/// A plugin that looks for what all containers share and makes it a while later, as Debian's do within a millisecond.
const RACING: &str = r#"#!/bin/sh
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
ADD)
    if ! test -d SHARED/$(basename $0); then
        sleep 0.2
        mkdir SHARED/$(basename $0) || exit 4
    fi
    echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"}]}' ;;
esac
"#;

#[tokio::test]
async fn what_all_share_is_made_by_one_of_several_processes() {
    let (dir, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plugins = tempfile::tempdir().unwrap();
    for name in ["bridge", "firewall", "host-local", "loopback"] {
        let path = plugins.path().join(name);
        // By another process: one that is forked while this one has the file open could not execute it.
        let script = RACING.replace("SHARED", &shared.path().display().to_string());
        let mut write = Command::new("sh");
        write.args(["-c", "printf %s \"$0\" > \"$1\" && chmod 755 \"$1\"", &script]);
        assert!(write.arg(&path).status().unwrap().success());
    }
    // Loopback is every namespace's own.
    std::fs::create_dir(shared.path().join("loopback")).unwrap();
    let mut config = config(dir.path());
    config.plugin_dirs = vec![plugins.path().to_owned()];
    let processes = [
        Cni::open(config.clone()).await.unwrap(),
        Cni::open(config).await.unwrap(),
    ];
    let netns = Path::new("/proc/self/ns/net");
    let containers = (0..6).map(|number| {
        let cni = processes[number % 2].clone();
        async move { cni.attach(&format!("c{number}"), netns).await }
    });
    for attached in futures_util::future::join_all(containers).await {
        assert_eq!(attached.unwrap().addresses.len(), 1);
    }
}
