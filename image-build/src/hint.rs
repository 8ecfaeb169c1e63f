//! What to do about a build that failed, guessed from the words of BuildKit and its registries' clients. Only this text
//! depends on them, nothing that is decided.

use orchestra::{ExitStatus, NetworkMode};

use crate::FailedBuild;

const UNREACHABLE: [&str; 5] = [
    "connection refused",
    "no such host",
    "i/o timeout",
    "no route to host",
    "network is unreachable",
];
const UNAUTHORIZED: [&str; 6] = [
    "401 Unauthorized",
    "403 Forbidden",
    "no basic auth credentials",
    "authorization failed",
    "insufficient_scope",
    "access denied",
];

pub(crate) fn of(failed: &FailedBuild) -> Option<String> {
    match failed.exit {
        ExitStatus::TimedOut => {
            return Some("raise the build's timeout, or keep its layers on a cache at /var/lib/buildkit".into());
        }
        ExitStatus::Cancelled => return None,
        ExitStatus::OutOfMemory => return Some("give the engine more memory, or build fewer stages at once".into()),
        ExitStatus::Code(crate::command::NO_EMULATOR) => {
            return Some(
                "register an emulator on the engine's host (package qemu-user-static, or the image tonistiigi/binfmt), or \
                 compile in a stage of `FROM --platform=$BUILDPLATFORM`"
                    .into(),
            );
        }
        ExitStatus::Code(126 | 127) => {
            return Some(format!(
                "{} has to be a BuildKit image, with sh, buildctl, buildctl-daemonless.sh and buildkitd",
                failed.image
            ));
        }
        _ => {}
    }
    if is_of_daemon(failed) {
        return Some(of_daemon(failed));
    }
    let error = failed.error.as_deref()?;
    let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if says(&["no cgroup mount found"]) {
        return Some(NO_CGROUPS.into());
    }
    if says(&["exec format error"]) || failed.log.contains("exec format error") {
        return Some(
            "the step's program is for another processor: register an emulator on the engine's host, or check `platforms` \
             and what was copied"
                .into(),
        );
    }
    // A step's own failure is told by its output, which this error does not contain.
    if error.starts_with("process ") {
        return None;
    }
    if says(&["toomanyrequests", "429 Too Many Requests", "rate limit"]) {
        return Some(
            "the registry limits how often it is asked: log in to it by `registry`, or ask another one first by `mirrors`"
                .into(),
        );
    }
    if says(&["no space left on device", "disk quota exceeded"]) {
        return Some(DISK_FULL.into());
    }
    if says(&["server gave HTTP response to HTTPS client"]) {
        return Some("the registry speaks plain HTTP: set registry.insecure if it is a test registry".into());
    }
    if says(&["x509: ", "tls: "]) {
        return Some(
            "the registry's certificate can't be verified: give its authority's by registry.ca, mend it, or set \
             registry.insecure if it is a test registry"
                .into(),
        );
    }
    if says(&UNAUTHORIZED) {
        let hint = if failed.has_credentials {
            "check user name and password of the registry, and that they may write to the repository"
        } else {
            "the registry wants credentials: give it user name and password by registry"
        };
        return Some(hint.into());
    }
    if says(&UNREACHABLE) {
        let loopback = ["127.0.0.1", "localhost", "[::1]"]
            .iter()
            .any(|host| error.contains(host));
        let hint = if loopback && failed.network != NetworkMode::Host {
            "in the build container, loopback is its own: a registry on the engine's host is reached with network: host"
        } else {
            "check that the registry runs, and that it can be reached from the engine's containers"
        };
        return Some(hint.into());
    }
    None
}

/// Whether the daemon did not start, or ended during the build: what was said is its log.
pub(crate) fn is_of_daemon(failed: &FailedBuild) -> bool {
    failed.said.contains("could not connect to unix://") || has_ended(failed)
}

fn has_ended(failed: &FailedBuild) -> bool {
    failed
        .error
        .as_deref()
        .is_some_and(|error| error.contains("BuildKit's daemon ended"))
}

const NO_CGROUPS: &str = "the engine gives its containers no cgroup file system, without which no step can run: mount it on \
    the engine's host, or use another engine";
const DISK_FULL: &str = "free space where the engine keeps its volumes, or empty the build's cache";

/// Why the daemon did not start or has ended, from its log.
fn of_daemon(failed: &FailedBuild) -> String {
    let says = |words: &[&str]| words.iter().any(|word| failed.said.contains(word));
    if says(&["no cgroup mount found"]) {
        return NO_CGROUPS.into();
    }
    if says(&["could not lock", "buildkitd.lock"]) {
        return "another BuildKit daemon uses the same state: give each build that runs at once a cache of its own"
            .into();
    }
    if failed.rootless
        && says(&[
            "newuidmap",
            "newgidmap",
            "unshare",
            "user namespace",
            "failed to start the child",
            "failed to setup UID/GID map",
        ])
    {
        return "the engine's host does not let a user make namespaces: allow it (user.max_user_namespaces, \
                kernel.apparmor_restrict_unprivileged_userns=0), or build with privileges"
            .into();
    }
    if says(&["no space left on device", "disk quota exceeded"]) {
        return DISK_FULL.into();
    }
    if says(&["operation not permitted", "permission denied", "must be root"]) {
        return match failed.rootless {
            true => "BuildKit's daemon may not do what it needs: see its log above, or build with privileges".into(),
            false => {
                "BuildKit's daemon needs privileges that it was not given: check that the engine's own daemon has \
                      them, or build without by `rootless`"
                    .into()
            }
        };
    }
    if says(&["overlay"]) {
        return "the file system of BuildKit's state takes no overlay: keep it on a cache at /var/lib/buildkit".into();
    }
    match has_ended(failed) {
        true => "BuildKit's daemon ended: see its log above".into(),
        false => "BuildKit's daemon did not start: see its log above".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestra::{Captured, Timings};

    pub(crate) fn failed(exit: ExitStatus, error: Option<&str>) -> FailedBuild {
        FailedBuild {
            name: "app".parse().unwrap(),
            tag: "127.0.0.1:5000/app".parse().unwrap(),
            timeout: None,
            exit,
            code: exit.code(),
            step: None,
            error: error.map(Into::into),
            step_code: None,
            excerpt: None,
            log: String::new(),
            said: String::new(),
            stdout: Captured::new(0),
            stderr: Captured::new(0),
            timings: Timings::default(),
            network: NetworkMode::Default,
            has_credentials: false,
            image: "busybox".parse().unwrap(),
            rootless: false,
        }
    }

    fn hint(error: &str, change: impl FnOnce(&mut FailedBuild)) -> String {
        let mut failed = failed(ExitStatus::Code(1), Some(error));
        change(&mut failed);
        of(&failed).unwrap_or_default()
    }

    #[test]
    fn each_known_situation_has_its_own_advice() {
        let refused = "failed to push 127.0.0.1:5059/x:1: dial tcp 127.0.0.1:5059: connect: connection refused";
        assert!(hint(refused, |_| ()).contains("network: host"));
        assert!(hint(refused, |failed| failed.network = NetworkMode::Host).contains("registry runs"));
        let unauthorized = "unexpected status from HEAD request to http://127.0.0.1:5056/v2/: 401 Unauthorized";
        assert!(hint(unauthorized, |_| ()).contains("wants credentials"));
        assert!(hint(unauthorized, |failed| failed.has_credentials = true).contains("check user name"));
        assert!(hint("http: server gave HTTP response to HTTPS client", |_| ()).contains("registry.insecure"));
        assert!(
            hint(
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
                |_| ()
            )
            .contains("certificate")
        );
        assert!(hint("x", |failed| failed.exit = ExitStatus::TimedOut).contains("timeout"));
        assert!(hint("x", |failed| failed.exit = ExitStatus::Code(127)).contains("busybox has to be a BuildKit image"));
    }

    #[test]
    fn what_keeps_the_daemon_from_starting_is_named() {
        let of_log = |log: &str, rootless| {
            hint("x", |failed| {
                failed.said = format!("could not connect to unix:///run/x after 0 trials\n===\n{log}");
                failed.rootless = rootless;
            })
        };
        assert!(of_log("mount: operation not permitted", false).contains("privileges that it was not given"));
        assert!(of_log("write: no space left on device", false).contains("free space"));
        assert!(
            of_log(
                "[rootlesskit:parent] error: failed to start the child: fork/exec: no space left on device",
                true
            )
            .contains("namespaces")
        );
        assert!(of_log("newuidmap 22 0 1000: operation not permitted", true).contains("namespaces"));
        assert!(of_log("could not lock /var/lib/buildkit/buildkitd.lock", false).contains("same state"));
        let told_by_all = "could not lock buildkitd.lock\n[rootlesskit:parent] error: child exited";
        assert!(of_log(told_by_all, true).contains("same state"));
        assert!(of_log("strange", false).contains("see its log above"));
        assert!(hint("toomanyrequests: You have reached your pull rate limit", |_| ()).contains("mirrors"));
        assert!(hint("x", |failed| failed.exit = ExitStatus::Code(94)).contains("emulator"));
    }

    #[test]
    fn a_step_that_fails_by_itself_has_no_advice() {
        assert_eq!(
            hint(
                "process \"curl localhost: connection refused\" did not complete successfully: exit code: 7",
                |_| ()
            ),
            ""
        );
        assert_eq!(hint("target stage \"x\" could not be found", |_| ()), "");
    }
}
