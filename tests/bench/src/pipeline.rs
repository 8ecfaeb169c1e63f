//! Whole runs of the binary.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use orchestra_e2e::KnownDriver;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::bare::{self, Bare};
use crate::client::succeed;
use crate::pairs::{median, time};
use crate::{Bench, Outcome};

/// The `orchestra` binary under measurement.
pub(crate) fn binary() -> Outcome<PathBuf> {
    std::env::var_os("ORCHESTRA_BIN")
        .map(PathBuf::from)
        .ok_or_else(|| "ORCHESTRA_BIN is not set: run `cargo xtask bench`".into())
}

/// Thirty steps of one pipeline against a loop of thirty clients.
pub(crate) async fn thirty_steps(bench: &mut Bench) -> Outcome<()> {
    let (image, client, binary) = (bench.image.clone(), bench.client.clone(), binary()?);
    let mut pipeline = "plan:\n".to_owned();
    // Its client makes no network either.
    let network = match bench.known {
        KnownDriver::Containerd => "network: none, ",
        KnownDriver::Docker | KnownDriver::Podman => "",
    };
    for step in 0..30 {
        writeln!(
            pipeline,
            "- task: step-{step}\n  config: {{platform: linux, image: '{image}', {network}run: {{path: /bin/true}}}}"
        )?;
    }
    let file = std::env::temp_dir().join(format!("orchestra-bench-{}.yml", std::process::id()));
    std::fs::write(&file, pipeline)?;
    let driver = bench.known.name();
    let ours = || async { succeed(Command::new(&binary).args(["run", "--driver", driver]).arg(&file)).await };
    let theirs = || async {
        for _ in 0..30 {
            client.task(&image, &[], &["/bin/true"]).await?;
        }
        Ok(())
    };
    let rounds = bench.rounds.div_ceil(3);
    let measured = bench
        .table
        .compare(
            "30 steps of one pipeline",
            &format!("30 × {}", client.run_name()),
            "< 1.0",
            rounds,
            ours,
            theirs,
        )
        .await;
    std::fs::remove_file(&file)?;
    measured
}

/// A file of so many steps that run this script each.
fn steps(dir: &Path, image: &str, number: usize, script: &str) -> Outcome<PathBuf> {
    let mut pipeline = "plan:\n".to_owned();
    for step in 0..number {
        writeln!(
            pipeline,
            "- task: step-{step}\n  config: {{platform: linux, image: '{image}', run: {{path: sh, args: [-c, '{script}']}}}}"
        )?;
    }
    let file = dir.join(format!("{number}.yml"));
    std::fs::write(&file, pipeline)?;
    Ok(file)
}

/// One task, as the file of one step is.
fn in_typescript(image: &str) -> String {
    format!(
        "const pipeline = async (): Promise<void> => {{\n  \
         await runtime.run({{ image: {image:?}, command: {{ path: \"sh\", args: [\"-c\", \"true\"] }} }});\n}};\n\
         export {{ pipeline }};\n"
    )
}

/// What a pipeline costs over the engine's calls: its start, two hundred steps, and a thousand that are only planned.
pub(crate) async fn whole(bench: &mut Bench) -> Outcome<()> {
    let (image, client, binary) = (bench.image.clone(), bench.client.clone(), binary()?);
    let dir = tempfile::tempdir()?;
    let engine = Bare::connect(bench).await?;
    let canonical = image.parse::<orchestra::ImageRef>()?.canonical();
    let bare_task = |name: String| {
        let (engine, image) = (engine.clone(), canonical.clone());
        async move {
            let task = bare::Task {
                image: &image,
                name: &name,
                command: &["sh", "-c", "true"],
                network: engine.has_network(),
                kept: true,
            };
            engine.task(&task).await
        }
    };
    let driver = bench.known.name();
    let run = |file: PathBuf| {
        let binary = binary.clone();
        async move { succeed(Command::new(binary).args(["run", "--driver", driver]).arg(file)).await }
    };

    let one = steps(dir.path(), &image, 1, "true")?;
    let script = dir.path().join("one.ts");
    std::fs::write(&script, in_typescript(&image))?;
    let process = std::process::id();
    for (file, what, most) in [(one, "YAML", 60), (script, "TypeScript", 80)] {
        let mut over = Vec::new();
        for round in 0..=bench.rounds {
            let ours = time(run(file.clone())).await?;
            let theirs = time(bare_task(format!("bench-one-{process}-{what}-{round}"))).await?;
            if round > 0 {
                over.push(ours.as_secs_f64() * 1e3 - theirs.as_secs_f64() * 1e3);
            }
        }
        let over = median(&over).unwrap_or(f64::NAN);
        let what = format!(
            "a run of one task in {what} over the bare API calls, process start and removal included (at most {most} ms)"
        );
        bench.table.figure(&what, format!("{over:.1} ms"));
    }

    let thousand = steps(dir.path(), &image, 1000, "true")?;
    let mut validated = Vec::new();
    for _ in 0..bench.rounds {
        validated.push(time(succeed(Command::new(&binary).arg("validate").arg(&thousand))).await?);
    }
    let took = median(&validated).unwrap_or_default().as_secs_f64() * 1e3;
    bench.table.figure(
        "validate 1,000 steps, the whole process (at most 100 ms)",
        format!("{took:.1} ms"),
    );

    let idle = resident(&binary, driver, &steps(dir.path(), &image, 1, "echo up; sleep 60")?).await?;
    let full = resident(&binary, driver, &steps(dir.path(), &image, 1000, "echo up; sleep 60")?).await?;
    let more = full.saturating_sub(idle) as f64 / 1024.0;
    let what = "most memory of a run of 1,000 steps over one of one step (at most 50 MiB)";
    bench.table.figure(what, format!("{more:.1} MiB"));

    let many = steps(dir.path(), &image, 200, "true")?;
    let rounds = bench.rounds.div_ceil(5);
    let ours = || run(many.clone());
    let theirs = || async {
        for _ in 0..200 {
            client.task(&image, &[], &["sh", "-c", "true"]).await?;
        }
        Ok(())
    };
    let against = &format!("200 × {}", client.run_name());
    bench
        .table
        .compare("200 steps of one pipeline", against, "< 1.0", rounds, ours, theirs)
        .await?;
    let theirs = || async {
        for number in 0..200 {
            bare_task(format!("bench-many-{process}-{number}")).await?;
        }
        Ok(())
    };
    let against = "200 × the bare API calls";
    bench
        .table
        .compare("200 steps of one pipeline", against, "≤ 1.03", rounds, ours, theirs)
        .await
}

/// What it costs a task that its secret is hidden from the engine's records.
pub(crate) async fn hidden(bench: &mut Bench) -> Outcome<()> {
    let (image, binary, driver) = (bench.image.clone(), binary()?, bench.known.name());
    let dir = tempfile::tempdir()?;
    let run = |way: &str| {
        let file = dir.path().join(format!("{way}.yml"));
        let pipeline = format!(
            "plan:\n- task: one\n  secret_env: {way}\n  env: {{TOKEN: 'secret:TOKEN'}}\n  \
             config: {{image: '{image}', run: {{path: sh, args: [-c, 'test \"$TOKEN\" = hunter2-token']}}}}\n"
        );
        let binary = binary.clone();
        async move {
            std::fs::write(&file, pipeline)?;
            let args = ["run", "--driver", driver, "--secret", "TOKEN=hunter2-token"];
            succeed(Command::new(binary).args(args).arg(file)).await
        }
    };
    let (ours, theirs) = (|| run("hidden"), || run("engine"));
    let (what, against) = ("one task whose secret is hidden", "the same with `secret_env: engine`");
    bench
        .table
        .compare(what, against, "< 5 ms more", bench.rounds, ours, theirs)
        .await
}

/// The most memory, in KiB, that a run has had when its first step is running. The run is then cancelled.
async fn resident(binary: &Path, driver: &str, file: &Path) -> Outcome<u64> {
    let mut running = Command::new(binary)
        .args(["run", "--plain", "--driver", driver])
        .arg(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = running.id().ok_or("the run has ended")?;
    let mut lines = BufReader::new(running.stdout.take().ok_or("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        if line.ends_with("| up") {
            break;
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.trim().trim_end_matches(" kB").trim().parse().ok());
    succeed(Command::new("kill").args(["-INT", &pid.to_string()])).await?;
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    tokio::time::timeout(Duration::from_secs(30), running.wait()).await??;
    peak.ok_or_else(|| "the kernel does not tell the process's memory".into())
}
