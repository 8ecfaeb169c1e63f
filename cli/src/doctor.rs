//! `orchestra doctor`: what engine there is, what it can do, what is wrong and how to mend it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use orchestra::{Capabilities, DriverInfo, ErrorKind, GcOptions, ImageRef, PullPolicy, Resource, SharedDriver};
use orchestra_image_build::probe;
use serde_json::{Map, Value, json};

use crate::args::DoctorArgs;
use crate::config::Config;
use crate::console::{Console, Theme};
use crate::exit::{Exit, Failure};
use crate::gc::counts;
use crate::{drivers, interrupt};

/// What was found out.
struct Findings {
    info: DriverInfo,
    answered_in: Duration,
    buildkit: ImageRef,
    has_buildkit: bool,
    left_behind: Vec<Resource>,
    builds: Vec<Mode>,
}

/// What builds without privileges are called.
const ROOTLESS: &str = "rootless";

/// A way to run image builds.
struct Mode {
    name: &'static str,
    image: ImageRef,
    /// `None` if it was not tried, as its image is not there.
    why_not: Option<Option<String>>,
}

/// Tries both ways to run builds, where their images are there: nothing is fetched.
async fn modes(driver: &SharedDriver, config: &Config) -> Result<Vec<Mode>, Failure> {
    let mut modes = Vec::new();
    for (name, rootless) in [("privileged", false), (ROOTLESS, true)] {
        let image = config.image_build.buildkit(rootless)?;
        let why_not = match driver.image_exists(&image).await? {
            true => {
                let probing = async |cancel: &_| probe(driver, &image, rootless, PullPolicy::Never, cancel).await;
                match interrupt::hearing(probing).await? {
                    Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error.into()),
                    probed => Some(probed.unwrap_or_else(|error| {
                        let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                        Some(format!("{error}{hint}"))
                    })),
                }
            }
            false => None,
        };
        modes.push(Mode { name, image, why_not });
    }
    Ok(modes)
}

pub(crate) async fn run(args: DoctorArgs) -> Result<Exit, Failure> {
    let config = Config::load(&args.engine)?;
    let driver = drivers::connect(&config, None).await?;
    let found = examine(&driver, &config).await?;
    let rootless = found
        .builds
        .iter()
        .any(|mode| mode.name == ROOTLESS && mode.why_not == Some(None));
    let mut wrong: Vec<&str> = found.info.problems.iter().map(String::as_str).collect();
    wrong.extend(lacks(&found.info.capabilities, rootless));
    let answer = if args.json {
        format!("{}\n", json_of(&found, &wrong))
    } else {
        text(&found, &wrong, Console::detect().stdout)
    };
    // Who does not read the answer has the exit code.
    std::io::stdout().write_all(answer.as_bytes()).ok();
    Ok(if wrong.is_empty() { Exit::Success } else { Exit::Engine })
}

async fn examine(driver: &SharedDriver, config: &Config) -> Result<Findings, Failure> {
    let began = Instant::now();
    driver.ping().await?;
    let answered_in = began.elapsed();
    let buildkit = match &config.image_build.image {
        Some(image) => image.clone(),
        None => ImageRef::new(orchestra_image_build::DEFAULT_BUILDKIT_IMAGE)?,
    };
    let has_buildkit = driver.image_exists(&buildkit).await?;
    let mut options = GcOptions::default();
    options.dry_run = true;
    let left = orchestra::collect_garbage(driver.as_ref(), options).await?;
    let builds = modes(driver, config).await?;
    let mut info = driver.info().clone();
    // What an engine shows is of use only to who may do everything there.
    info.capabilities.volume_directories &= orchestra_volumes::directory::has_all_rights();
    let left_behind = left.into_iter().flat_map(|job| job.resources).collect();
    Ok(Findings {
        info,
        answered_in,
        buildkit,
        has_buildkit,
        left_behind,
        builds,
    })
}

/// Why the engine lacks a capability, and what would give it: in its driver's words, or what is usually the reason.
fn why<'a>(info: &'a DriverInfo, capability: &str) -> &'a str {
    if let Some(reason) = info.reasons.get(capability) {
        return reason;
    }
    match capability {
        "cpu_quota" | "memory_limit" | "pids_limit" => {
            "its cgroup controller is not there; without root it has to be delegated to the user"
        }
        "default_network" => "without root podman needs slirp4netns or pasta (package passt) on its host",
        "seccomp" => "the engine takes no profile from its client, only its own or none",
        "apparmor" => "the engine's host has no AppArmor, or has it switched off",
        "exact_volumes" => {
            "the engine's archive calls lose some of a file; Orchestra's helper carries all of it instead"
        }
        "volume_directories" => {
            "the engine is on another machine, has its files out of sight, or a user namespace, or this process is not root with \
             all its rights: what is in a volume goes through the engine"
        }
        "any_file" => {
            "in a user namespace the kernel gives no devices, no `trusted.*` attributes, and only the ids that it has"
        }
        "out_of_memory" => "the engine tells it as a SIGKILL (podman before 5.0, or no memory controller)",
        _ => "the engine does not have it",
    }
}

/// What keeps pipelines from running, each with what it is needed for. `rootless` says whether builds do without privileges.
fn lacks(capabilities: &Capabilities, rootless: bool) -> Vec<&'static str> {
    let needs = [
        (
            capabilities.default_network,
            "the engine gives containers no network: tasks need `network: none` or `host`",
        ),
        (
            capabilities.privileged || rootless,
            "the engine runs no privileged containers, and builds can't do without them here: `build_image` can't work",
        ),
    ];
    needs.iter().filter(|(has, _)| !has).map(|(_, why)| *why).collect()
}

fn text(found: &Findings, wrong: &[&str], theme: Theme) -> String {
    let info = &found.info;
    let mut text = String::new();
    let buildkit = if found.has_buildkit {
        "is there"
    } else {
        "is pulled by the first build"
    };
    let facts = [
        ("driver", info.driver.clone()),
        ("endpoint", info.endpoint.clone()),
        (
            "engine",
            format!("{}, API {}, {}", info.engine_version, info.api_version, info.platform),
        ),
        (
            "answer",
            format!("in {:.1} ms", found.answered_in.as_secs_f64() * 1000.0),
        ),
        ("BuildKit", format!("{} {buildkit}", found.buildkit)),
    ];
    // Writing to a string can't fail.
    for (name, fact) in facts {
        let _ = writeln!(text, "{}  {fact}", theme.dim(format!("{name:>10}")));
    }
    let (can, can_not): (Vec<_>, Vec<_>) = info.capabilities.list().into_iter().partition(|(_, can)| *can);
    let can = can.chunks(3).map(|names| {
        let names: String = names
            .iter()
            .map(|(name, _)| format!("{} {name:<21}", theme.good("✓")))
            .collect();
        names.trim_end().to_owned()
    });
    let can_not = can_not
        .iter()
        .map(|(name, _)| format!("{} {name:<21}{}", theme.bad("✗"), theme.dim(why(info, name))));
    for (label, rows) in [("can", can.collect::<Vec<_>>()), ("can not", can_not.collect())] {
        for (number, row) in rows.iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            let _ = writeln!(text, "{}  {row}", theme.dim(format!("{label:>10}")));
        }
    }
    for (number, mode) in found.builds.iter().enumerate() {
        let label = if number == 0 { "builds" } else { "" };
        let (mark, why) = match &mode.why_not {
            Some(None) => (theme.good("✓"), String::new()),
            Some(Some(why)) => (theme.bad("✗"), why.clone()),
            None => (theme.dim("?"), format!("not tried: {} is not here yet", mode.image)),
        };
        let row = format!("{mark} {:<21}{}", mode.name, theme.dim(why));
        let _ = writeln!(text, "{}  {}", theme.dim(format!("{label:>10}")), row.trim_end());
    }
    text.push('\n');
    if !found.left_behind.is_empty() {
        let left = counts(&found.left_behind);
        let _ = writeln!(
            text,
            "{}: runs that died left {left} behind; `orchestra gc` removes them",
            theme.note("note")
        );
    }
    for why in wrong {
        let _ = writeln!(text, "{}: {why}", theme.bad("error"));
    }
    if wrong.is_empty() {
        let _ = writeln!(text, "{}", theme.good("The engine is ready."));
    }
    text
}

fn json_of(found: &Findings, wrong: &[&str]) -> Value {
    let missing = found.info.capabilities.list().into_iter().filter(|(_, can)| !can);
    let missing: Map<String, Value> = missing
        .map(|(name, _)| (name.clone(), why(&found.info, &name).into()))
        .collect();
    json!({
        "usable": wrong.is_empty(),
        "engine": found.info,
        "missing": missing,
        "answered_in": found.answered_in,
        "buildkit": {"image": found.buildkit, "present": found.has_buildkit},
        "builds": found.builds.iter().map(|mode| json!({
            "mode": mode.name,
            "image": mode.image,
            "works": mode.why_not.as_ref().map(Option::is_none),
            "why_not": mode.why_not.as_ref().and_then(Option::as_ref),
        })).collect::<Vec<_>>(),
        "left_behind": found.left_behind,
        "problems": wrong,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(capabilities: Capabilities) -> Findings {
        Findings {
            info: DriverInfo::new(
                "docker",
                "unix:///d.sock",
                "20.10",
                "1.41",
                "linux/amd64".parse().unwrap(),
                capabilities,
            ),
            answered_in: Duration::from_micros(1500),
            buildkit: ImageRef::new("moby/buildkit").unwrap(),
            has_buildkit: false,
            left_behind: Vec::new(),
            builds: [
                ("privileged", Some(None)),
                ("rootless", Some(Some("newuidmap: not permitted".to_owned()))),
            ]
            .map(|(name, why_not)| Mode {
                name,
                image: ImageRef::new("moby/buildkit").unwrap(),
                why_not,
            })
            .into(),
        }
    }

    #[test]
    fn an_engine_that_can_everything_is_ready() {
        let shown = text(
            &found(Capabilities::ALL),
            &lacks(&Capabilities::ALL, false),
            Theme::PLAIN,
        );
        assert!(shown.contains("  endpoint  unix:///d.sock\n"), "{shown}");
        assert!(shown.contains("✓ host_network"), "{shown}");
        assert!(
            shown.contains("    builds  ✓ privileged\n            ✗ rootless             newuidmap: not permitted\n"),
            "{shown}"
        );
        assert!(shown.ends_with("The engine is ready.\n"), "{shown}");
    }

    #[test]
    fn what_is_missing_is_said_with_what_it_is_for() {
        let mut missing = Capabilities::ALL;
        missing.privileged = false;
        let shown = text(&found(missing), &lacks(&missing, false), Theme::PLAIN);
        assert!(shown.contains("✗ privileged"), "{shown}");
        assert!(shown.contains("`build_image` can't work"), "{shown}");
        assert!(lacks(&missing, true).is_empty(), "builds do without privileges there");
        let told = json_of(&found(missing), &lacks(&missing, false));
        assert_eq!(
            (&told["usable"], &told["engine"]["capabilities"]["privileged"]),
            (&json!(false), &json!(false))
        );
        assert_eq!(told["missing"].as_object().unwrap().len(), 1, "{told}");
    }

    #[test]
    fn the_drivers_own_reason_goes_before_the_usual_one() {
        let mut missing = Capabilities::ALL;
        missing.default_network = false;
        let mut found = found(missing);
        found.info = found.info.because("default_network", "CNI plugins are missing: bridge");
        let shown = text(&found, &lacks(&missing, false), Theme::PLAIN);
        assert!(
            shown.contains("✗ default_network      CNI plugins are missing: bridge\n"),
            "{shown}"
        );
        assert!(!shown.contains("slirp4netns"), "{shown}");
    }

    #[test]
    fn a_capability_that_is_missing_has_a_row_of_its_own_with_the_reason() {
        let mut missing = Capabilities::ALL;
        missing.seccomp = false;
        missing.memory_limit = false;
        let shown = text(&found(missing), &[], Theme::PLAIN);
        assert!(
            shown.contains("   can not  ✗ memory_limit         its cgroup controller is not there"),
            "{shown}"
        );
        assert!(
            shown.contains("\n            ✗ seccomp              the engine takes no profile"),
            "{shown}"
        );
    }
}
