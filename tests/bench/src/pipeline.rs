//! Whole runs of the binary.

use std::fmt::Write;
use std::path::PathBuf;

use tokio::process::Command;

use crate::client::succeed;
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
    for step in 0..30 {
        writeln!(
            pipeline,
            "- task: step-{step}\n  config: {{platform: linux, image: '{image}', run: {{path: /bin/true}}}}"
        )?;
    }
    let file = std::env::temp_dir().join(format!("orchestra-bench-{}.yml", std::process::id()));
    std::fs::write(&file, pipeline)?;
    let ours = || async { succeed(Command::new(&binary).arg("run").arg(&file)).await };
    let theirs = || async {
        for _ in 0..30 {
            client.run(["run", "--rm", &image, "/bin/true"]).await?;
        }
        Ok(())
    };
    let rounds = bench.rounds.div_ceil(3);
    let measured = bench
        .table
        .compare(
            "30 steps of one pipeline",
            "30 × docker run --rm",
            "< 1.0",
            rounds,
            ours,
            theirs,
        )
        .await;
    std::fs::remove_file(&file)?;
    measured
}
