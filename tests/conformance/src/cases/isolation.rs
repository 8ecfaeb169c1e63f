//! Who a process is, what it may do and what it is connected to, as it sees that itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use orchestra::{ContainerPath, ContainerSpec, ErrorKind, NetworkMode, Profile};

use super::case;
use crate::check::{Failure, Outcome, holds, same};
use crate::context::Context;
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(a_process_runs_as_the_user_it_is_given, "`user` by number and by name.", needs user),
    case!(dropped_capabilities_are_gone, "`cap_drop` takes capabilities, `ALL` takes all, and `cap_add` adds some.", needs kernel_capabilities),
    case!(a_privileged_process_has_all_capabilities, "`privileged` gives what an ordinary container lacks.", needs privileged),
    case!(new_privileges_can_be_ruled_out, "`no_new_privileges` is seen by the kernel, and only where it is asked for.", needs no_new_privileges),
    case!(system_calls_are_filtered_as_asked, "`seccomp` by profile and none at all.", needs seccomp),
    case!(
        an_unconfined_process_is_always_to_be_had,
        "`Unconfined` is accepted by every engine."
    ),
    case!(a_profile_that_is_not_loaded_is_no_silent_freedom, "An AppArmor profile that does not exist keeps the container from running.", needs apparmor),
    case!(without_a_network_there_is_only_loopback, "`NetworkMode::None` has only loopback.", needs no_network),
    case!(the_default_network_has_an_interface_of_its_own, "`NetworkMode::Default` has more than loopback, and not the host's.", needs default_network),
    case!(the_host_network_is_the_engines_own, "`NetworkMode::Host` is one network for all, and not the default one.", needs host_network),
    case!(extra_hosts_are_known, "`extra_hosts` are in `/etc/hosts`.", needs extra_hosts),
    case!(a_container_knows_its_name_and_whom_to_ask_for_others, "Its host name is in `/etc/hostname` and `/etc/hosts`, and there is a `/etc/resolv.conf`.", needs default_network),
    case!(
        the_stop_signal_is_no_part_of_a_kill,
        "`stop_signal` is accepted, and `signal_container` still sends what it is told."
    ),
];

async fn a_process_runs_as_the_user_it_is_given(cx: Arc<Context>) -> Outcome {
    for (name, user, wanted) in [
        ("number", "1234", "1234"),
        ("numbers", "1234:5678", "1234 5678"),
        ("name", "root", "0 0"),
        ("mixed", "root:12", "0 12"),
    ] {
        let mut spec = cx.shell("echo $(id -u) $(id -g)");
        spec.user = Some(user.parse()?);
        let seen = cx.output(name, &spec).await?;
        // Which group a bare number has is the engine's affair.
        holds(
            seen.trim() == wanted || seen.starts_with(&format!("{wanted} ")),
            format!("{user} is {wanted}: {seen:?}"),
        )?;
    }
    let mut spec = cx.shell("true");
    spec.user = Some("nobody-of-that-name".parse()?);
    let id = cx.id("unknown");
    let answer = match cx.driver.create_container(&id, &spec).await {
        Ok(_) => cx.driver.start_container(&id, None).await,
        Err(error) => Err(error),
    };
    holds(answer.is_err(), "a user that the image does not know can't run")
}

/// A line of `/proc/self/status`.
async fn status(cx: &Context, name: &str, spec: &ContainerSpec, field: &str) -> Outcome<String> {
    let mut spec = spec.clone();
    spec.entrypoint = Some(["cat", "/proc/self/status"].map(str::to_owned).to_vec());
    let seen = cx.output(name, &spec).await?;
    let line = seen
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned())
        .ok_or_else(|| Failure::new(format!("{field} is not in {seen}")))
}

async fn effective(cx: &Context, name: &str, spec: &ContainerSpec) -> Outcome<u64> {
    let seen = status(cx, name, spec, "CapEff").await?;
    u64::from_str_radix(&seen, 16).map_err(|error| Failure::new(format!("CapEff {seen:?}: {error}")))
}

/// Bits of capabilities(7).
const CHOWN: u64 = 1 << 0;
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;

async fn dropped_capabilities_are_gone(cx: Arc<Context>) -> Outcome {
    let default = effective(&cx, "default", &cx.spec()).await?;
    holds(
        default & CHOWN != 0 && default & NET_ADMIN == 0,
        format!("the engine's default set is usual: {default:x}"),
    )?;
    let mut spec = cx.spec();
    spec.cap_drop = vec!["CHOWN".parse()?];
    same(
        "the set without CHOWN",
        effective(&cx, "one-less", &spec).await?,
        default & !CHOWN,
    )?;
    spec.cap_drop = vec![];
    spec.cap_add = vec!["NET_ADMIN".parse()?];
    same(
        "the set with NET_ADMIN",
        effective(&cx, "one-more", &spec).await?,
        default | NET_ADMIN,
    )?;
    spec.cap_drop = vec!["ALL".parse()?];
    same(
        "NET_ADMIN and nothing else",
        effective(&cx, "only-one", &spec).await?,
        NET_ADMIN,
    )?;
    spec.cap_add = vec![];
    same("the empty set", effective(&cx, "none", &spec).await?, 0)
}

async fn a_privileged_process_has_all_capabilities(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.spec();
    same(
        "SYS_ADMIN in an ordinary container",
        effective(&cx, "ordinary", &spec).await? & SYS_ADMIN,
        0,
    )?;
    spec.privileged = true;
    same(
        "SYS_ADMIN in a privileged one",
        effective(&cx, "capable", &spec).await? & SYS_ADMIN,
        SYS_ADMIN,
    )?;
    same(
        "its system call filter",
        status(&cx, "filter", &spec, "Seccomp").await?,
        "0",
    )?;
    let mut spec = cx.shell("mkdir /mnt2 && mount -t tmpfs none /mnt2 && echo mounted");
    spec.privileged = true;
    same(
        "what only a privileged one can do",
        cx.output("mounts", &spec).await?,
        "mounted\n",
    )
}

async fn new_privileges_can_be_ruled_out(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.spec();
    same(
        "NoNewPrivs where not asked for",
        status(&cx, "without", &spec, "NoNewPrivs").await?,
        "0",
    )?;
    spec.security.no_new_privileges = true;
    same(
        "NoNewPrivs where asked for",
        status(&cx, "with", &spec, "NoNewPrivs").await?,
        "1",
    )
}

async fn system_calls_are_filtered_as_asked(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.spec();
    same(
        "the default filter",
        status(&cx, "default", &spec, "Seccomp").await?,
        "2",
    )?;
    spec.security.seccomp = Profile::Unconfined;
    same("no filter", status(&cx, "none", &spec, "Seccomp").await?, "0")?;
    let mut spec = cx.shell("if mkdir /made 2>/dev/null; then echo made; else echo refused; fi");
    let profile =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    spec.security.seccomp = Profile::Custom(profile.to_owned());
    // The engine makes directories itself where it sets a container up; not where the working directory is there.
    spec.working_dir = Some(ContainerPath::new("/")?);
    same(
        "mkdir under a profile without it",
        cx.output("custom", &spec).await?,
        "refused\n",
    )
}

async fn an_unconfined_process_is_always_to_be_had(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("echo free");
    spec.security.seccomp = Profile::Unconfined;
    spec.security.apparmor = Profile::Unconfined;
    same("what it prints", cx.output("free", &spec).await?, "free\n")
}

async fn a_profile_that_is_not_loaded_is_no_silent_freedom(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("true");
    spec.security.apparmor = Profile::Custom("orchestra-no-such-profile".to_owned());
    let id = cx.id("confined");
    let answer = match cx.driver.create_container(&id, &spec).await {
        Ok(_) => cx.driver.start_container(&id, None).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(()) => Err(Failure::new("it runs without its profile")),
        Err(error) => holds(
            error.kind() != ErrorKind::Unsupported,
            "what the engine lacks is no capability of it",
        ),
    }
}

/// The names of the network interfaces that a container sees.
async fn interfaces(cx: &Context, name: &str, network: NetworkMode) -> Outcome<BTreeSet<String>> {
    let mut spec = cx.shell("cat /proc/net/dev");
    spec.network = network;
    let seen = cx.output(name, &spec).await?;
    Ok(seen
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect())
}

/// Which network namespace a container is in.
async fn namespace(cx: &Context, name: &str, network: NetworkMode) -> Outcome<String> {
    let mut spec = cx.shell("readlink /proc/self/ns/net");
    spec.network = network;
    cx.output(name, &spec).await
}

/// Kernels put their tunnels' fallback devices (`tunl0`, `sit0`) into every namespace: those that are not up carry nothing.
async fn up(cx: &Context, name: &str, network: NetworkMode) -> Outcome<BTreeSet<String>> {
    let all = interfaces(cx, name, network).await?;
    let tunnels = [
        "tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0",
    ];
    Ok(all
        .into_iter()
        .filter(|interface| !tunnels.contains(&interface.as_str()))
        .collect())
}

async fn without_a_network_there_is_only_loopback(cx: Arc<Context>) -> Outcome {
    same(
        "the interfaces",
        up(&cx, "none", NetworkMode::None).await?,
        BTreeSet::from(["lo".to_owned()]),
    )
}

async fn the_default_network_has_an_interface_of_its_own(cx: Arc<Context>) -> Outcome {
    let seen = up(&cx, "default", NetworkMode::Default).await?;
    holds(
        seen.contains("lo") && seen.len() > 1,
        format!("there is more than loopback: {seen:?}"),
    )
}

async fn the_host_network_is_the_engines_own(cx: Arc<Context>) -> Outcome {
    let one = namespace(&cx, "host-1", NetworkMode::Host).await?;
    same(
        "the network of a second container",
        namespace(&cx, "host-2", NetworkMode::Host).await?,
        one.clone(),
    )?;
    for (name, network, has) in [
        ("none", NetworkMode::None, cx.driver.info().capabilities.no_network),
        (
            "default",
            NetworkMode::Default,
            cx.driver.info().capabilities.default_network,
        ),
    ] {
        if has {
            let other = namespace(&cx, name, network).await?;
            holds(
                other != one,
                format!("{name} is another network than the host's: {other}"),
            )?;
        }
    }
    // What listens on the engine's own loopback answers there alone.
    let Some(registry) = cx
        .settings
        .registry
        .as_ref()
        .filter(|registry| registry.address().starts_with("127."))
    else {
        return Ok(());
    };
    let mut spec = cx.shell(&format!(
        "wget -q -O /dev/null http://{}/v2/ && echo reached",
        registry.address()
    ));
    spec.network = NetworkMode::Host;
    same(
        "the registry on the engine's loopback",
        cx.output("wget", &spec).await?,
        "reached\n",
    )
}

async fn extra_hosts_are_known(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("cat /etc/hosts");
    if cx.driver.info().capabilities.default_network {
        spec.network = NetworkMode::Default;
    }
    spec.extra_hosts = vec!["db.test:10.1.2.3".parse()?, "six.test:2001:db8::7".parse()?];
    let seen = cx.output("hosts", &spec).await?;
    for (address, name) in [("10.1.2.3", "db.test"), ("2001:db8::7", "six.test")] {
        let there = seen.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(address) && words.any(|word| word == name)
        });
        holds(there, format!("{name} is {address} in {seen:?}"))?;
    }
    Ok(())
}

async fn a_container_knows_its_name_and_whom_to_ask_for_others(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell(
        "cat /proc/sys/kernel/hostname /etc/hostname; echo --; cat /etc/hosts && cat /etc/resolv.conf >/dev/null",
    );
    spec.network = NetworkMode::Default;
    let seen = cx.output("names", &spec).await?;
    let (names, hosts) = seen.split_once("--\n").unwrap_or((&seen, ""));
    let name = names.lines().next().unwrap_or_default();
    holds(
        // podman 4.3.1 ends the file without a line feed.
        !name.is_empty() && names.lines().eq([name, name]),
        format!("the kernel and /etc/hostname tell one name: {names:?}"),
    )?;
    for wanted in [name, "localhost"] {
        let there = hosts
            .lines()
            .any(|line| line.split_whitespace().skip(1).any(|word| word == wanted));
        holds(there, format!("{wanted} is in {hosts:?}"))?;
    }
    Ok(())
}

async fn the_stop_signal_is_no_part_of_a_kill(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("trap 'exit 5' USR1; trap 'exit 7' TERM; echo up; while true; do sleep 0.1; done");
    spec.stop_signal = Some("USR1".parse()?);
    let id = cx.start_and_see("stopped", &spec).await?;
    cx.driver.signal_container(&id, orchestra::Signal::TERM).await?;
    same("its exit", cx.driver.wait_container(&id).await?.code(), 7)
}
