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
        ExitStatus::Code(126 | 127) => {
            return Some(format!(
                "{} has to be a BuildKit image, with sh, buildctl, buildctl-daemonless.sh and buildkitd",
                failed.image
            ));
        }
        _ => {}
    }
    if failed.said.contains("could not connect to unix://") {
        return Some("BuildKit's daemon did not start: see its log above; on a slow host, raise BUILDCTL_CONNECT_RETRIES_MAX in env".into());
    }
    let error = failed.error.as_deref()?;
    let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
    // A step's own failure is told by its output, which this error does not contain.
    if error.starts_with("process ") {
        return None;
    }
    if says(&["server gave HTTP response to HTTPS client"]) {
        return Some("the registry speaks plain HTTP: set registry.insecure if it is a test registry".into());
    }
    if says(&["x509: ", "tls: "]) {
        return Some(
            "the registry's certificate can't be verified: mend it, or set registry.insecure if it is a test registry"
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
    if says(&["no space left on device"]) {
        return Some("free space where the engine keeps its volumes, or empty the build's cache".into());
    }
    None
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
            log: String::new(),
            said: String::new(),
            stdout: Captured::new(0),
            stderr: Captured::new(0),
            timings: Timings::default(),
            network: NetworkMode::Default,
            has_credentials: false,
            image: "busybox".parse().unwrap(),
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
