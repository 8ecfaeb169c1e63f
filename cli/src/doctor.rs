//! `orchestra doctor`: what engine there is, what it can do, what is wrong and how to mend it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use orchestra::{Capabilities, DriverInfo, GcOptions, ImageRef, Resource, SharedDriver};
use serde_json::{Value, json};

use crate::args::DoctorArgs;
use crate::config::Config;
use crate::console::{Console, Theme};
use crate::drivers;
use crate::exit::{Exit, Failure};
use crate::gc::counts;

/// What was found out.
struct Findings {
    info: DriverInfo,
    answered_in: Duration,
    buildkit: ImageRef,
    has_buildkit: bool,
    left_behind: Vec<Resource>,
}

pub(crate) async fn run(args: DoctorArgs) -> Result<Exit, Failure> {
    let config = Config::load(&args.engine)?;
    let driver = drivers::connect(&config).await?;
    let found = examine(&driver, &config).await?;
    let wrong = wrong(&found.info.capabilities);
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
    let left_behind = left.into_iter().flat_map(|job| job.resources).collect();
    Ok(Findings {
        info: driver.info().clone(),
        answered_in,
        buildkit,
        has_buildkit,
        left_behind,
    })
}

/// What keeps pipelines from running, each with what it is needed for.
fn wrong(capabilities: &Capabilities) -> Vec<&'static str> {
    let needs = [
        (
            capabilities.default_network,
            "the engine gives containers no network: tasks need `network: none` or `host`",
        ),
        (
            capabilities.privileged,
            "the engine runs no privileged containers: `build_image` can't work",
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
    let (can, can_not): (Vec<_>, Vec<_>) = capabilities(&info.capabilities).into_iter().partition(|(_, can)| *can);
    for (label, mark, names) in [("can", theme.good("✓"), can), ("can not", theme.bad("✗"), can_not)] {
        for (row, names) in names.chunks(3).enumerate() {
            let label = if row == 0 { label } else { "" };
            let names: String = names.iter().map(|(name, _)| format!("{mark} {name:<21}")).collect();
            let _ = writeln!(text, "{}  {}", theme.dim(format!("{label:>10}")), names.trim_end());
        }
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

/// Names and values, as the struct has them.
fn capabilities(capabilities: &Capabilities) -> Vec<(String, bool)> {
    match serde_json::to_value(capabilities) {
        Ok(Value::Object(fields)) => fields
            .into_iter()
            .map(|(name, can)| (name, can == Value::Bool(true)))
            .collect(),
        _ => Vec::new(),
    }
}

fn json_of(found: &Findings, wrong: &[&str]) -> Value {
    json!({
        "usable": wrong.is_empty(),
        "engine": found.info,
        "answered_in": found.answered_in,
        "buildkit": {"image": found.buildkit, "present": found.has_buildkit},
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
        }
    }

    #[test]
    fn an_engine_that_can_everything_is_ready() {
        let shown = text(&found(Capabilities::ALL), &wrong(&Capabilities::ALL), Theme::PLAIN);
        assert!(shown.contains("  endpoint  unix:///d.sock\n"), "{shown}");
        assert!(shown.contains("✓ host_network") && !shown.contains('✗'), "{shown}");
        assert!(shown.ends_with("The engine is ready.\n"), "{shown}");
    }

    #[test]
    fn what_is_missing_is_said_with_what_it_is_for() {
        let mut missing = Capabilities::ALL;
        missing.privileged = false;
        let shown = text(&found(missing), &wrong(&missing), Theme::PLAIN);
        assert!(shown.contains("✗ privileged"), "{shown}");
        assert!(shown.contains("`build_image` can't work"), "{shown}");
        assert_eq!(json_of(&found(missing), &wrong(&missing))["usable"], false);
    }
}
