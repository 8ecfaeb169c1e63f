//! Contents of `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`.

use std::net::IpAddr;

use orchestra::{ExtraHost, NetworkMode};

/// The host's resolv.conf, for a container in `network`. Blocking.
#[must_use]
pub fn resolv_conf(network: NetworkMode) -> String {
    let _ = network;
    todo!()
}

/// The content of `/etc/hosts`. `addresses` are those the network gave, once they are known. Blocking.
#[must_use]
pub fn hosts(network: NetworkMode, hostname: &str, addresses: &[IpAddr], extra: &[ExtraHost]) -> String {
    let _ = (network, hostname, addresses, extra);
    todo!()
}

/// A container's host name: of its id what a host name can have, at most 63 bytes.
#[must_use]
pub fn hostname(id: &str) -> String {
    let _ = id;
    todo!()
}
