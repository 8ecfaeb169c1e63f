//! One image build, pushed to the environment's registry.

use std::path::Path;

use tokio::process::Command;

use crate::client::succeed;
use crate::pipeline::binary;
use crate::{Bench, Outcome};

/// A context whose image needs nothing from outside: the machine's own static busybox and one `RUN` step.
fn write_context(folder: &Path) -> Outcome<()> {
    let busybox = std::fs::read("/bin/busybox")
        .map_err(|error| format!("the build needs /bin/busybox (package busybox-static): {error}"))?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("busybox"), busybox)?;
    let dockerfile = "FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nARG WHO=nobody\n\
                      RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo built for $WHO > /who\"]\n";
    std::fs::write(folder.join("Dockerfile"), dockerfile)?;
    Ok(())
}

/// `orchestra build` against the client running the same image with the same arguments on a bind mount.
pub(crate) async fn one(bench: &mut Bench) -> Outcome<()> {
    let (binary, client) = (binary()?, bench.client.clone());
    let registry = std::env::var("ORCHESTRA_TEST_REGISTRY").unwrap_or_else(|_| "127.0.0.1:5055".to_owned());
    let buildkit =
        std::env::var("ORCHESTRA_TEST_BUILDKIT_IMAGE").unwrap_or_else(|_| "moby/buildkit:v0.34.2".to_owned());
    let folder = std::env::temp_dir().join(format!("orchestra-bench-{}", std::process::id()));
    write_context(&folder)?;
    let tag = format!("{registry}/bench/app:latest");
    let ours = || async {
        let mut command = Command::new(&binary);
        command.arg("build").arg(&folder).args([
            "--tag",
            &tag,
            "--push",
            "--insecure",
            "--network",
            "host",
            "--build-arg",
            "WHO=you",
        ]);
        succeed(&mut command).await
    };
    let mount = format!("{}:/workspace/context:ro", folder.display());
    let output = format!("type=image,name={tag},push=true,registry.insecure=true");
    let theirs = || {
        client.run([
            "run",
            "--rm",
            "--privileged",
            "--network",
            "host",
            "--volume",
            &mount,
            "--entrypoint",
            "buildctl-daemonless.sh",
            &buildkit,
            "build",
            "--frontend",
            "dockerfile.v0",
            "--local",
            "context=/workspace/context",
            "--local",
            "dockerfile=/workspace/context",
            "--opt",
            "build-arg:WHO=you",
            "--output",
            &output,
            "--metadata-file",
            "/tmp/metadata.json",
            "--progress",
            "rawjson",
        ])
    };
    let rounds = bench.rounds.div_ceil(2);
    let measured = bench
        .table
        .compare(
            "one build, pushed",
            "docker run of the same buildctl",
            "≤ 1.05",
            rounds,
            ours,
            theirs,
        )
        .await;
    std::fs::remove_dir_all(&folder)?;
    measured
}
