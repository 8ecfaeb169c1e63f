//! A container's processes: arguments, environment, user and what they may do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::image::{Config, ImageConfiguration};
use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Spec, User,
};
use orchestra::{ContainerSpec, Env, Error, ErrorKind, ExecSpec, NetworkMode, Profile, Result, Ulimit};

use rustix::system::uname;

use super::capabilities;
use super::host::SYS_RESOURCE;
use super::{Host, SpecInput};
use crate::users::ResolvedUser;

/// Where programs are looked for when the image says nothing.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The main process.
pub(super) fn process(input: &SpecInput<'_>, granted: u64) -> Result<Process> {
    let SpecInput {
        container, image, host, ..
    } = *input;
    let security = &container.security;
    let mut process = Process::default();
    process
        .set_terminal(Some(false))
        .set_user(user(&input.user))
        .set_args(Some(arguments(container, image)?))
        .set_env(Some(environment(input)))
        .set_cwd(working_dir(container, image))
        .set_capabilities(Some(sets(granted)?))
        .set_rlimits(Some(rlimits(&container.limits.ulimits, host)?))
        .set_no_new_privileges(Some(security.no_new_privileges))
        .set_apparmor_profile(apparmor(&security.apparmor, host)?)
        // Else it would be that of whoever starts it: an engine's processes are often spared.
        .set_oom_score_adj(Some(0));
    Ok(process)
}

/// The process of an exec, in the container whose spec is `spec`. `user` is the exec's own, if it has one.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput) without a command; [`Protocol`](ErrorKind::Protocol) if the container's
/// spec has no process.
pub fn exec_process(spec: &Spec, exec: &ExecSpec, user_of_exec: Option<&ResolvedUser>) -> Result<Process> {
    if exec.command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("the command to run in the container is empty"));
    }
    let mut process = spec
        .process()
        .clone()
        .ok_or_else(|| Error::new(ErrorKind::Protocol, "the container's runtime spec has no process"))?;
    let env = overlay(process.env().clone().unwrap_or_default(), &exec.env);
    process.set_args(Some(exec.command.clone())).set_env(Some(env));
    if let Some(dir) = &exec.working_dir {
        process.set_cwd(PathBuf::from(dir.resolve("/")));
    }
    if let Some(resolved) = user_of_exec {
        process.set_user(user(resolved));
    }
    Ok(process)
}

fn user(resolved: &ResolvedUser) -> User {
    let mut user = User::default();
    user.set_uid(resolved.uid)
        .set_gid(resolved.gid)
        .set_additional_gids(Some(resolved.groups.clone()));
    user
}

/// Entry point and command: who replaces the image's entry point drops its command too.
fn arguments(container: &ContainerSpec, image: &ImageConfiguration) -> Result<Vec<String>> {
    let config = image.config().as_ref();
    let of_image = |part: fn(&Config) -> &Option<Vec<String>>| config.and_then(|config| part(config).clone());
    let command = container.command.clone().filter(|command| !command.is_empty());
    let arguments = match &container.entrypoint {
        Some(entrypoint) => [entrypoint.clone(), command.unwrap_or_default()].concat(),
        None => {
            let entrypoint = of_image(Config::entrypoint).unwrap_or_default();
            let command = command.or_else(|| of_image(Config::cmd)).unwrap_or_default();
            [entrypoint, command].concat()
        }
    };
    if arguments.is_empty() {
        return Err(Error::invalid(format!(
            "there is nothing to run: {} has neither an entry point nor a command, and none was given",
            container.image
        )));
    }
    Ok(arguments)
}

fn environment(input: &SpecInput<'_>) -> Vec<String> {
    let config = input.image.config().as_ref();
    let of_image = config.and_then(|config| config.env().clone()).unwrap_or_default();
    let mut base = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
    let hostname = match input.container.network {
        NetworkMode::Host => uname().nodename().to_string_lossy().into_owned(),
        _ => input.hostname.to_owned(),
    };
    base.insert("HOSTNAME".to_owned(), hostname);
    let of_image = of_image.into_iter().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    });
    base.extend(of_image);
    let base = base.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    overlay(base, &input.container.env)
}

/// `lines` with variables added and replaced.
fn overlay(mut lines: Vec<String>, env: &Env) -> Vec<String> {
    lines.retain(|line| !line.split_once('=').is_some_and(|(key, _)| env.0.contains_key(key)));
    lines.extend(env.0.iter().map(|(key, value)| format!("{key}={value}")));
    lines
}

fn working_dir(container: &ContainerSpec, image: &ImageConfiguration) -> PathBuf {
    let of_image = || image.config().as_ref()?.working_dir().clone();
    let dir = container.working_dir.as_ref().map(|dir| dir.as_str().to_owned());
    // Joined, since an image may have a relative one.
    PathBuf::from("/").join(dir.or_else(of_image).unwrap_or_default())
}

/// Not inheritable: a program of an ordinary user would get them by its file capabilities (CVE-2022-24769).
fn sets(granted: u64) -> Result<LinuxCapabilities> {
    let set = || -> Result<Capabilities> {
        capabilities::names(granted)
            .map(|name| {
                let known = name.trim_start_matches("CAP_").parse::<Capability>();
                known.map_err(|_| Error::new(ErrorKind::Protocol, format!("the runtime spec has no {name}")))
            })
            .collect()
    };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set()?))
        .set_effective(Some(set()?))
        .set_permitted(Some(set()?))
        .set_inheritable(Some(Capabilities::new()))
        .set_ambient(Some(Capabilities::new()));
    Ok(sets)
}

fn apparmor(profile: &Profile, host: &Host) -> Result<Option<String>> {
    match profile {
        Profile::Custom(name) if host.apparmor => Ok(Some(name.clone())),
        Profile::Custom(name) => Err(Error::invalid(format!(
            "the AppArmor profile {name:?} can't be applied: this machine's kernel has no AppArmor"
        ))),
        _ => Ok(None),
    }
}

fn rlimits(ulimits: &[Ulimit], host: &Host) -> Result<Vec<PosixRlimit>> {
    let mut limits = BTreeMap::new();
    for Ulimit { name, soft, hard } in ulimits {
        let typ: PosixRlimitType = format!("RLIMIT_{}", name.to_ascii_uppercase())
            .parse()
            .map_err(|_| Error::invalid(format!("there is no resource limit {name:?}; setrlimit(2) lists them")))?;
        if soft > hard {
            return Err(Error::invalid(format!(
                "the resource limit {name} has a soft limit of {soft} over its hard one of {hard}"
            )));
        }
        // Numbers that only an unsigned one holds can but mean "unlimited".
        let value = |value: u64| if i64::try_from(value).is_ok() { value } else { u64::MAX };
        let most = host.hard_limits.get(name).copied().unwrap_or(u64::MAX);
        if value(*hard) > most && !host.can_have(SYS_RESOURCE) {
            return Err(Error::invalid(format!(
                "the resource limit {name} of {hard} is over {most}, the hard limit of the processes that start containers"
            ))
            .with_hint("ask for less, or raise the limit of the engine's own process"));
        }
        let limit = PosixRlimitBuilder::default()
            .typ(typ)
            .soft(value(*soft))
            .hard(value(*hard))
            .build()
            .map_err(|error| Error::invalid(format!("the resource limit {name}: {error}")))?;
        limits.insert(name, limit);
    }
    Ok(limits.into_values().collect())
}
