//! Contents of `/etc/resolv.conf`, `/etc/hosts` and the host name, as docker has them.

use std::fs;
use std::net::IpAddr;

use orchestra::{ExtraHost, NetworkMode};

/// The machine's own, and where systemd's resolver keeps the one that it goes by itself.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Who is asked where the machine knows nobody outside of itself: docker's choice.
const PUBLIC: &str = "nameserver 8.8.8.8\nnameserver 8.8.4.4\n";
/// The longest name that a machine can have.
const LONGEST_NAME: usize = 63;

/// The content of `/etc/resolv.conf` for a container in `network`. Blocking.
#[must_use]
pub fn resolv_conf(network: NetworkMode) -> String {
    let [own, behind] = RESOLV_CONF.map(|path| fs::read_to_string(path).unwrap_or_default());
    match network {
        NetworkMode::Host => own,
        _ if nameservers(&own).eq(["127.0.0.53"]) && !behind.is_empty() => outside(&behind),
        _ => outside(&own),
    }
}

fn nameservers(content: &str) -> impl Iterator<Item = &str> {
    content.lines().filter_map(nameserver)
}

fn nameserver(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    words.next().filter(|word| *word == "nameserver")?;
    words.next()
}

/// Without what a container can't reach: its loopback is another one, and its network has no addresses of the sixth version.
fn outside(content: &str) -> String {
    let reachable = |line: &&str| match nameserver(line) {
        Some(server) => server
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_ipv4() && !address.is_loopback()),
        None => true,
    };
    let mut kept: String = content
        .lines()
        .filter(reachable)
        .flat_map(|line| [line, "\n"])
        .collect();
    if nameservers(&kept).next().is_none() {
        kept.push_str(PUBLIC);
    }
    kept
}

/// The content of `/etc/hosts`. `addresses` are those that the network gave the container, once they are known; with
/// [`NetworkMode::Host`] the machine's own names are there instead. Blocking.
#[must_use]
pub fn hosts(network: NetworkMode, hostname: &str, addresses: &[IpAddr], extra: &[ExtraHost]) -> String {
    let mut content = if network == NetworkMode::Host {
        let mut own = fs::read_to_string("/etc/hosts").unwrap_or_default();
        if !own.is_empty() && !own.ends_with('\n') {
            own.push('\n');
        }
        own
    } else {
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n"
            .to_owned()
    };
    let extra = extra.iter().map(|host| (host.address, host.name.as_str()));
    let own = addresses.iter().map(|address| (*address, hostname));
    for (address, name) in extra.chain(own) {
        content.push_str(&format!("{address}\t{name}\n"));
    }
    content
}

/// A container's host name: what a name can have of its id.
#[must_use]
pub fn hostname(id: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = id.chars().map(allowed).take(LONGEST_NAME).collect();
    name.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_not_sent_to_a_resolver_that_it_cannot_reach() {
        let own = "# ours\nnameserver 127.0.0.1\nnameserver ::1\nnameserver 10.0.0.2\nnameserver fd00::2\n\
                   nameserver nonsense\nsearch example.test\noptions ndots:2";
        let seen = "# ours\nnameserver 10.0.0.2\nsearch example.test\noptions ndots:2\n";
        assert_eq!(outside(own), seen);
        assert_eq!(
            outside("search a\nnameserver 127.0.0.53\n"),
            format!("search a\n{PUBLIC}")
        );
        assert_eq!(outside(""), PUBLIC);
    }

    #[test]
    fn a_container_knows_itself_and_whom_it_was_told_of() {
        let extra = ["db:10.0.0.7".parse().unwrap(), "six:2001:db8::7".parse().unwrap()];
        let seen = hosts(NetworkMode::Default, "me", &["10.89.0.2".parse().unwrap()], &extra);
        for line in [
            "127.0.0.1\tlocalhost",
            "10.0.0.7\tdb",
            "2001:db8::7\tsix",
            "10.89.0.2\tme",
        ] {
            assert!(seen.lines().any(|seen| seen == line), "{line} in {seen}");
        }
        assert!(hosts(NetworkMode::Host, "me", &[], &extra).ends_with("10.0.0.7\tdb\n2001:db8::7\tsix\n"));
    }

    #[test]
    fn a_host_name_is_made_of_any_id() {
        assert_eq!(hostname("orchestra.job_1.1.task"), "orchestra-job-1-1-task");
        assert_eq!(hostname(&format!("{}.x", "a".repeat(62))), "a".repeat(62));
    }
}
