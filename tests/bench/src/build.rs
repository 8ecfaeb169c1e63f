//! Image builds, pushed to the environment's registry, and the loading of a large image.

use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use orchestra::stream::from_reader;
use orchestra::{ImageRef, Job, NetworkMode, VolumeId, VolumePath, tar_of_files};
use orchestra_e2e::KnownDriver;
use orchestra_image_build::{BuildCache, BuildInput, ImageBuild, RegistryAuth, SharedBuilders};
use serde_json::json;
use tokio::process::Command;

use crate::client::{Client, succeed};
use crate::pipeline::binary;
use crate::pull::digest;
use crate::{Bench, Outcome};

/// What a large image holds, in bytes.
const LARGE: u64 = 500 << 20;

/// One `RUN` step, which is over at once.
const SHORT: &str = "FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nARG WHO=nobody\n\
                     RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo built for $WHO > /who\"]\n";

/// Steps as those of a small program are: something fetched, something computed, something packed.
fn longer() -> String {
    let step = |script: &str| format!("RUN [\"/bin/busybox\", \"sh\", \"-c\", \"{script}\"]\n");
    format!(
        "FROM scratch AS make\nCOPY --chmod=755 busybox /bin/busybox\nARG WHO=nobody\n{}{}{}FROM scratch\nCOPY --from=make /out /out\n",
        step("/bin/busybox dd if=/dev/urandom of=/source bs=1M count=48 2>/dev/null; echo $WHO"),
        step("for i in 1 2 3 4; do /bin/busybox sha256sum /source >>/sums; done"),
        step("/bin/busybox mkdir /out; /bin/busybox gzip -1 -c /source >/out/packed"),
    )
}

/// A context whose image needs nothing from outside: the machine's own static busybox and one `RUN` step.
fn write_context(folder: &Path, dockerfile: &str) -> Outcome<()> {
    let busybox = std::fs::read("/bin/busybox")
        .map_err(|error| format!("the build needs /bin/busybox (package busybox-static): {error}"))?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("busybox"), busybox)?;
    std::fs::write(folder.join("Dockerfile"), dockerfile)?;
    Ok(())
}

/// Where and by what things are built.
#[derive(Clone)]
struct Site {
    registry: String,
    buildkit: String,
    folder: PathBuf,
}

impl Site {
    fn new() -> Self {
        let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        Self {
            registry: variable("ORCHESTRA_TEST_REGISTRY", "127.0.0.1:5055"),
            buildkit: variable("ORCHESTRA_TEST_BUILDKIT_IMAGE", "moby/buildkit:v0.34.2"),
            folder: std::env::temp_dir().join(format!("orchestra-bench-{}", std::process::id())),
        }
    }

    fn tag(&self) -> String {
        format!("{}/bench/app:latest", self.registry)
    }

    /// The client running the same image with the same arguments, its context on a mount.
    async fn by_client(&self, client: &Client, mounts: &[String]) -> Outcome<()> {
        let output = format!("type=image,name={},push=true,registry.insecure=true", self.tag());
        let mut args = ["run", "--rm", "--privileged", "--network", "host"]
            .map(str::to_owned)
            .to_vec();
        for mount in mounts {
            args.extend(["--volume".to_owned(), mount.clone()]);
        }
        args.extend(["--entrypoint", "buildctl-daemonless.sh", &self.buildkit].map(str::to_owned));
        args.extend(
            [
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
            ]
            .map(str::to_owned),
        );
        client.run(args).await
    }

    /// The same build in a job.
    fn build(&self, context: &VolumeId) -> Outcome<ImageBuild> {
        let mut build = ImageBuild::new("app".parse()?, self.tag().parse()?, "context".parse()?);
        build.image = self.buildkit.parse()?;
        build.inputs.push(BuildInput {
            volume: context.clone(),
            path: "context".parse()?,
        });
        build.build_args.insert("WHO".into(), "you".into());
        build.push = true;
        build.network = NetworkMode::Host;
        build.registry = Some(RegistryAuth {
            insecure: true,
            ..RegistryAuth::default()
        });
        Ok(build)
    }

    /// A volume with the context.
    async fn context(&self, job: &Job) -> Outcome<VolumeId> {
        let volume = job.create_volume("context").await?;
        let mut files = Vec::new();
        for name in ["busybox", "Dockerfile"] {
            let content = std::fs::read(self.folder.join(name))?;
            let mut file = orchestra::InjectedFile::new(format!("/{name}").parse()?, content);
            file.mode = 0o755;
            files.push(file);
        }
        let tar = futures_util::stream::iter([Ok(tar_of_files(&files).await?)]).boxed();
        job.driver().write_volume(&volume, &VolumePath::root(), tar).await?;
        Ok(volume)
    }
}

/// All of them.
pub(crate) async fn all(bench: &mut Bench) -> Outcome<()> {
    let site = Site::new();
    // containerd's own client has no way to give BuildKit the cgroups that it needs.
    if bench.known != KnownDriver::Containerd {
        for (what, dockerfile) in [
            ("one build, pushed", SHORT.to_owned()),
            ("a longer build, pushed", longer()),
        ] {
            write_context(&site.folder, &dockerfile)?;
            cold(bench, &site, what).await?;
        }
        write_context(&site.folder, SHORT)?;
        cached(bench, &site).await?;
    }
    write_context(&site.folder, SHORT)?;
    shared(bench, &site).await?;
    let measured = load(bench, &site).await;
    std::fs::remove_dir_all(&site.folder)?;
    measured
}

/// `orchestra build` against the client, with nothing of an earlier build.
async fn cold(bench: &mut Bench, site: &Site, what: &str) -> Outcome<()> {
    let (binary, client, driver) = (binary()?, bench.client.clone(), bench.known.name());
    let tag = site.tag();
    let ours = || async {
        let mut command = Command::new(&binary);
        command.arg("build").arg(&site.folder).args([
            "--driver",
            driver,
            "--image",
            &site.buildkit,
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
    let mounts = [format!("{}:/workspace/context:ro", site.folder.display())];
    let theirs = || site.by_client(&client, &mounts);
    let rounds = bench.rounds.div_ceil(2);
    bench
        .table
        .compare(what, "docker run of the same buildctl", "≤ 1.05", rounds, ours, theirs)
        .await
}

/// A build whose layers are all on its cache volume, against the client on the same volume.
async fn cached(bench: &mut Bench, site: &Site) -> Outcome<()> {
    let job = Job::builder(bench.driver.clone()).build();
    let context = site.context(&job).await?;
    let cache = job.create_volume("state").await?;
    let client = bench.client.clone();
    let ours = || async {
        let mut build = site.build(&context)?;
        build.caches.push(BuildCache {
            volume: cache.clone(),
            path: "/var/lib/buildkit".parse()?,
        });
        build.run(&job).await?;
        Ok(())
    };
    let mounts = [
        format!("{}:/workspace/context:ro", context.as_str()),
        format!("{}:/var/lib/buildkit", cache.as_str()),
    ];
    let theirs = || site.by_client(&client, &mounts);
    let rounds = bench.rounds.div_ceil(2);
    let what = "a build that is wholly cached";
    let measured = bench
        .table
        .compare(what, "docker run on the same volumes", "≤ 1.1", rounds, ours, theirs)
        .await;
    job.end().await?;
    measured
}

/// A build of a job after its first, by a daemon that they share, against one with a daemon to itself.
async fn shared(bench: &mut Bench, site: &Site) -> Outcome<()> {
    let job = Job::builder(bench.driver.clone()).build();
    let context = site.context(&job).await?;
    let builders = SharedBuilders::new(&job);
    let ours = || async {
        site.build(&context)?.shared(&builders).run(&job).await?;
        Ok(())
    };
    let theirs = || async {
        site.build(&context)?.run(&job).await?;
        Ok(())
    };
    let rounds = bench.rounds.div_ceil(2);
    let what = "a job's second build, shared builder";
    let measured = bench
        .table
        .compare(what, "a daemon for each build", "≤ 0.5", rounds, ours, theirs)
        .await;
    builders.stop().await;
    job.end().await?;
    measured
}

/// A large image, from its archive into the engine.
async fn load(bench: &mut Bench, site: &Site) -> Outcome<()> {
    let (client, driver) = (bench.client.clone(), bench.driver.clone());
    let archive = site.folder.join("large.tar");
    let image: ImageRef = "localhost/bench/large:1".parse()?;
    write_archive(&archive, &image, &driver.info().platform.architecture)?;
    // Both begin without it.
    let reset = || async { Ok(driver.remove_image(&image).await?) };
    let ours = || async {
        let content = from_reader(tokio::fs::File::open(&archive).await?, "read the archive");
        Ok(driver.import_image(&image, content).await?)
    };
    let file = archive.display().to_string();
    let args: &[&str] = match bench.known {
        KnownDriver::Docker | KnownDriver::Podman => &["load", "--quiet", "--input", &file],
        KnownDriver::Containerd => &["images", "import", &file],
    };
    let theirs = || client.run(args);
    let (rounds, other) = (
        bench.rounds.div_ceil(2),
        format!("{} of the archive", client.load_name()),
    );
    let what = "load of a 500 MB image";
    bench
        .table
        .compare_anew(what, &other, "≤ 1.1", rounds, reset, ours, theirs)
        .await?;
    Ok(driver.remove_image(&image).await?)
}

/// A docker archive of an image with one layer, which does not compress.
fn write_archive(archive: &Path, image: &ImageRef, architecture: &str) -> Outcome<()> {
    let layer = archive.with_extension("layer");
    let mut tar = tar::Builder::new(std::fs::File::create(&layer)?);
    let mut header = tar::Header::new_gnu();
    header.set_size(LARGE);
    header.set_mode(0o644);
    let random = std::fs::File::open("/dev/urandom")?;
    tar.append_data(&mut header, "large", std::io::Read::take(random, LARGE))?;
    tar.into_inner()?;
    let digest = digest(&std::fs::read(&layer)?);
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [image.as_str()], "Layers": ["layer.tar"] }]);
    let mut tar = tar::Builder::new(std::fs::File::create(archive)?);
    tar.append_path_with_name(&layer, "layer.tar")?;
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        let content = content.to_string();
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes())?;
    }
    tar.into_inner()?;
    Ok(std::fs::remove_file(layer)?)
}
