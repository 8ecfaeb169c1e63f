//! `info`, `ping` and what capabilities rule out.

use std::sync::Arc;

use orchestra::{
    Capabilities, ContainerPath, ContainerSpec, ErrorKind, ExecSpec, NetworkMode, Profile, PullImage, Tmpfs, Ulimit,
};

use super::case;
use crate::check::{Outcome, fails, holds, same};
use crate::context::Context;
use crate::settings::Settings;
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(
        info_tells_what_the_engine_is,
        "The engine's version and platform are those it reports itself."
    ),
    case!(a_running_engine_answers_a_ping, "`ping` succeeds on a running engine."),
    case!(where_no_engine_listens_it_is_unreachable, "`ping` fails with `Unreachable` where no engine listens.", requires no_engine),
    case!(
        what_capabilities_rule_out_is_refused,
        "What `Capabilities` rule out is refused with `Unsupported` before any effect."
    ),
    case!(
        what_capabilities_promise_is_accepted,
        "A capability that is there is not refused."
    ),
];

fn no_engine(settings: &Settings) -> Option<String> {
    settings
        .unreachable
        .is_none()
        .then(|| "the settings have no endpoint where no engine listens".to_owned())
}

async fn info_tells_what_the_engine_is(cx: Arc<Context>) -> Outcome {
    let info = cx.driver.info();
    holds(
        !info.driver.is_empty() && !info.endpoint.is_empty(),
        "a driver has a name and an endpoint",
    )?;
    holds(!cx.driver.to_string().is_empty(), "a driver has a text")?;
    holds(
        info.engine_version.starts_with(|c: char| c.is_ascii_digit()),
        format!("the engine's version is a version: {:?}", info.engine_version),
    )?;
    let machine = cx.output("machine", &cx.shell("uname -m")).await?;
    let architecture = match machine.trim() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    same("the architecture", info.platform.architecture.as_str(), architecture)?;
    same("the operating system", info.platform.os.as_str(), "linux")?;
    let again = (cx.connect)().await?;
    same("what a second driver says", again.info(), info)
}

async fn a_running_engine_answers_a_ping(cx: Arc<Context>) -> Outcome {
    Ok(cx.driver.ping().await?)
}

async fn where_no_engine_listens_it_is_unreachable(cx: Arc<Context>) -> Outcome {
    let Some(connect) = &cx.settings.unreachable else {
        return Ok(());
    };
    let answer = match connect().await {
        Ok(driver) => driver.ping().await,
        Err(error) => Err(error),
    };
    let error = fails("connecting to nothing", answer, &[ErrorKind::Unreachable])?;
    holds(error.hint().is_some(), "it says what to do")
}

/// What asks for each capability that a spec can ask for.
#[expect(clippy::type_complexity, reason = "a table that is read once")]
const ASKS: &[(
    &str,
    fn(&Capabilities) -> bool,
    fn(&mut ContainerSpec) -> orchestra::Result<()>,
)] = &[
    (
        "default_network",
        |c| c.default_network,
        |spec| {
            spec.network = NetworkMode::Default;
            Ok(())
        },
    ),
    (
        "no_network",
        |c| c.no_network,
        |spec| {
            spec.network = NetworkMode::None;
            Ok(())
        },
    ),
    (
        "host_network",
        |c| c.host_network,
        |spec| {
            spec.network = NetworkMode::Host;
            Ok(())
        },
    ),
    (
        "privileged",
        |c| c.privileged,
        |spec| {
            spec.privileged = true;
            Ok(())
        },
    ),
    (
        "kernel_capabilities",
        |c| c.kernel_capabilities,
        |spec| {
            spec.cap_drop.push("ALL".parse()?);
            Ok(())
        },
    ),
    (
        "seccomp",
        |c| c.seccomp,
        |spec| {
            spec.security.seccomp = Profile::Custom(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.to_owned());
            Ok(())
        },
    ),
    (
        "no_new_privileges",
        |c| c.no_new_privileges,
        |spec| {
            spec.security.no_new_privileges = true;
            Ok(())
        },
    ),
    (
        "cpu_quota",
        |c| c.cpu_quota,
        |spec| {
            spec.limits.cpus = Some("0.5".parse()?);
            Ok(())
        },
    ),
    (
        "memory_limit",
        |c| c.memory_limit,
        |spec| {
            spec.limits.memory = Some(64 << 20);
            Ok(())
        },
    ),
    (
        "pids_limit",
        |c| c.pids_limit,
        |spec| {
            spec.limits.pids = Some(100);
            Ok(())
        },
    ),
    (
        "shm_size",
        |c| c.shm_size,
        |spec| {
            spec.limits.shm_size = Some(1 << 20);
            Ok(())
        },
    ),
    (
        "ulimits",
        |c| c.ulimits,
        |spec| {
            spec.limits.ulimits.push(Ulimit {
                name: "nofile".to_owned(),
                soft: 100,
                hard: 200,
            });
            Ok(())
        },
    ),
    (
        "tmpfs",
        |c| c.tmpfs,
        |spec| {
            spec.tmpfs.push(Tmpfs {
                target: ContainerPath::new("/scratch")?,
                size: Some(1 << 20),
            });
            Ok(())
        },
    ),
    (
        "extra_hosts",
        |c| c.extra_hosts,
        |spec| {
            spec.extra_hosts.push("db:10.0.0.7".parse()?);
            Ok(())
        },
    ),
    (
        "stdin",
        |c| c.stdin,
        |spec| {
            spec.stdin = true;
            Ok(())
        },
    ),
    (
        "user",
        |c| c.user,
        |spec| {
            spec.user = Some("1:1".parse()?);
            Ok(())
        },
    ),
];

async fn what_capabilities_rule_out_is_refused(cx: Arc<Context>) -> Outcome {
    let capabilities = cx.driver.info().capabilities;
    for (name, _, ask) in ASKS.iter().filter(|(_, has, _)| !has(&capabilities)) {
        let mut spec = cx.shell("true");
        ask(&mut spec)?;
        let answer = cx.driver.create_container(&cx.id(&name.replace('_', "-")), &spec).await;
        let error = fails(
            format!("a container that asks for {name}"),
            answer,
            &[ErrorKind::Unsupported],
        )?;
        holds(
            error.message().contains(name),
            format!("the error names {name}: {error}"),
        )?;
    }
    if !capabilities.import_image {
        let answer = cx
            .driver
            .import_image(&cx.image("unsupported"), orchestra::stream::once(""))
            .await;
        fails("import_image", answer, &[ErrorKind::Unsupported])?;
    }
    if !capabilities.insecure_pull {
        let mut pull = PullImage::new("127.0.0.1:1/none:1".parse()?);
        pull.insecure = true;
        fails(
            "an insecure pull",
            cx.driver.pull_image(&pull).await,
            &[ErrorKind::Unsupported],
        )?;
    }
    if !capabilities.exec {
        let answer = cx
            .driver
            .exec(&cx.id("unsupported"), &ExecSpec::new(["true"]), None)
            .await;
        fails("exec", answer, &[ErrorKind::Unsupported])?;
    }
    same("what is there afterwards", cx.listed().await?, vec![])
}

async fn what_capabilities_promise_is_accepted(cx: Arc<Context>) -> Outcome {
    let capabilities = cx.driver.info().capabilities;
    for (name, _, ask) in ASKS.iter().filter(|(_, has, _)| has(&capabilities)) {
        let mut spec = cx.shell("true");
        ask(&mut spec)?;
        cx.create(&name.replace('_', "-"), &spec).await?;
    }
    Ok(())
}
