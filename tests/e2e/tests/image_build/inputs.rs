//! What a build is given: contexts of all kinds, files of pairs, images of archives, keys, networks.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command};
use std::str::FromStr;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use orchestra::tar::{END, Head, padded};
use orchestra::{
    ContainerPath, InjectedFile, Job, NetworkMode, SecretString, Task, VolumeId, VolumePath, tar_of_files,
};
use orchestra_e2e::until_listening;
use orchestra_image_build::{BuildContext, BuildError, BuildInput, BuildOutput, ImageBuild, OutputFormat};
use orchestra_secrets::{MARKER, Secrets, SecretsLayer};

use crate::{Outcome, Site, contains, failed};

/// An archive over plain HTTP, which is served until the program ends.
fn served(archive: Vec<u8>) -> Result<String, libtest_mimic::Failed> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/context.tar", listener.local_addr()?);
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let size = client.read(&mut request).unwrap_or(0);
            let body: &[u8] = if request[..size].starts_with(b"HEAD") {
                &[]
            } else {
                &archive
            };
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", archive.len());
            client
                .write_all(head.as_bytes())
                .and_then(|()| client.write_all(body))
                .ok();
        }
    });
    Ok(url)
}

pub(crate) async fn a_context_is_fetched_from_its_url(site: &Site) -> Outcome {
    let dockerfile = b"FROM scratch\nCOPY Dockerfile /copied\n";
    let mut archive = Head::file(dockerfile.len() as u64).blocks("Dockerfile");
    archive.extend([padded(dockerfile), END]);
    let url = served(archive.concat())?;
    let mut build = site.local("fetched", &"none".parse()?);
    build.inputs.clear();
    build.options.context_url = Some(url.clone());
    let result = build.run(&site.job).await?;
    contains(
        &result.stderr.to_string(),
        &["load remote build context", "COPY Dockerfile /copied"],
    );
    site.forget(&result).await?;

    let mut build = site.local("inline", &"none".parse()?);
    build.inputs.clear();
    build.options.context_url = Some(url);
    build.options.dockerfile_inline = Some("FROM scratch\nCOPY Dockerfile /other\n".into());
    let result = build.run(&site.job).await?;
    contains(&result.stderr.to_string(), &["COPY Dockerfile /other"]);
    site.forget(&result).await
}

/// Ends the server when it is dropped.
struct GitServer {
    /// Where it is, as git has it.
    url: String,
    process: Child,
    _dir: tempfile::TempDir,
}

impl GitServer {
    /// Serves the repository `app`, whose branch `main` has these files.
    fn start(files: &[(&str, &str)]) -> Result<Self, libtest_mimic::Failed> {
        let dir = tempfile::tempdir()?;
        let work = dir.path().join("app");
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command
                .args(args)
                .env("HOME", dir.path())
                .env("GIT_CONFIG_NOSYSTEM", "1");
            for of in ["AUTHOR", "COMMITTER"] {
                command
                    .env(format!("GIT_{of}_NAME"), "e2e")
                    .env(format!("GIT_{of}_EMAIL"), "e2e@git.test");
            }
            command
        };
        let made = |args: &[&str]| match git(args).current_dir(&work).output()? {
            output if output.status.success() => Ok(()),
            output => Err(libtest_mimic::Failed::from(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )),
        };
        for (name, content) in files {
            let path = work.join(name);
            std::fs::create_dir_all(path.parent().ok_or("no folder")?)?;
            std::fs::write(path, content)?;
        }
        made(&["init", "--quiet", "--initial-branch=main"])?;
        made(&["add", "."])?;
        made(&["commit", "--quiet", "--message=all"])?;
        // It takes no port of the system's choice, and says of none which it is.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let base = dir.path().to_str().ok_or("no UTF-8")?;
        let listen = [
            "--export-all",
            "--reuseaddr",
            "--listen=127.0.0.1",
            &format!("--port={port}"),
            &format!("--base-path={base}"),
        ];
        // Itself: `git` would be its parent, and it live on.
        let programs = String::from_utf8(git(&["--exec-path"]).output()?.stdout)?;
        let process = Command::new(format!("{}/git-daemon", programs.trim()))
            .args(listen)
            .env("HOME", dir.path())
            .spawn()?;
        let server = Self {
            url: format!("git://127.0.0.1:{port}/app"),
            process,
            _dir: dir,
        };
        until_listening(&format!("127.0.0.1:{port}"))?;
        Ok(server)
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        // It ends by itself with the sandbox if that fails.
        self.process.kill().and_then(|()| self.process.wait()).ok();
    }
}

pub(crate) async fn a_context_is_fetched_from_its_repository(site: &Site) -> Outcome {
    let server = GitServer::start(&[
        ("Dockerfile", "FROM scratch\nCOPY sub /top\n"),
        ("sub/Dockerfile", "FROM scratch\nCOPY word /word\n"),
        ("sub/word", "of the repository"),
    ])?;
    let fetched = |name: &str, of: &str| {
        let mut build = site.local(name, &"none".parse().unwrap());
        build.inputs.clear();
        build.options.context_url = Some(format!("{}#{of}", server.url));
        build
    };
    for (name, of, step) in [
        ("whole", "main", "COPY sub /top"),
        ("folder", "main:sub", "COPY word /word"),
    ] {
        let result = fetched(name, of).run(&site.job).await?;
        contains(&result.stderr.to_string(), &["load git source", step]);
        site.forget(&result).await?;
    }
    let told = failed(fetched("missing", "nowhere").run(&site.job).await);
    contains(&told.to_string(), &["nowhere"]);

    // A repository may be one of several contexts.
    let source = site.source("FROM scratch\nCOPY --from=more /sub/word /\n").await?;
    let mut build = site.local("beside", &source);
    let more = BuildContext::from_str(&format!("{}#main", server.url))?;
    build.options.build_contexts.insert("more".into(), more);
    let result = build.run(&site.job).await?;
    contains(&result.stderr.to_string(), &["COPY --from=more /sub/word /"]);
    site.forget(&result).await
}

pub(crate) async fn the_builder_has_its_environment_and_steps_do_not(site: &Site) -> Outcome {
    // A proxy, as only the builder's environment names it: the host is in no name service.
    let proxy = served(b"by the proxy".to_vec())?.replace("/context.tar", "");
    let source = site
        .source(
            "FROM scratch\nCOPY busybox /bin/busybox\nADD http://files.invalid/file /file\n\
             RUN [\"/bin/busybox\", \"sh\", \"-c\", \"test -z \\\"$HTTP_PROXY\\\" && /bin/busybox cat /file\"]\n",
        )
        .await?;
    let mut build = site.local("proxied", &source);
    build.env.0.insert("HTTP_PROXY".into(), proxy);
    let result = build.run(&site.job).await?;
    contains(&result.stderr.to_string(), &["by the proxy"]);
    site.forget(&result).await
}

pub(crate) async fn files_of_the_inputs_give_arguments_and_labels(site: &Site) -> Outcome {
    let source = site
        .source_with(
            "FROM scratch\nARG FROM_FILE\nARG BOTH\nLABEL told=\"$FROM_FILE $BOTH\"\nCOPY Dockerfile /\n",
            "printf '# versions\\nFROM_FILE=a b $(id)\\nBOTH=of file\\n' >args && printf 'one=1\\ntold=\\n' >labels && echo bad >bad",
        )
        .await?;
    let mut build = site.pushed("filed", &source);
    build.build_args.insert("BOTH".into(), "of the build".into());
    build.options.build_args_files.push("source/args".parse()?);
    build.options.labels_files.push("source/labels".parse()?);
    build.options.labels.insert("told".into(), "wins".into());
    build.options.labels.insert("args".into(), "x".into());
    let result = build.run(&site.job).await?;
    let config = site.json("filed", &format!("blobs/{}", result.config_digest.unwrap()))?;
    let labels = &config["config"]["Labels"];
    assert_eq!((&labels["one"], &labels["told"]), (&"1".into(), &"wins".into()));
    let history = config["history"].to_string();
    contains(&history, &["FROM_FILE=a b $(id)", "BOTH=of the build"]);

    for (file, expected) in [("source/bad", "line 1 is not KEY=VALUE"), ("source/missing", "missing")] {
        let mut build = site.local("misfiled", &source);
        build.options.build_args_files.push(file.parse()?);
        let error = build.run(&site.job).await.unwrap_err();
        assert!(matches!(error, BuildError::Job(_)), "{error:?}");
        contains(&format!("{error:?}"), &[expected]);
    }
    assert!(site.left().is_empty(), "{:?}", site.left());
    Ok(())
}

pub(crate) async fn a_file_of_an_input_is_a_secret_of_the_build(site: &Site) -> Outcome {
    let source = site
        .source_with(
            "FROM scratch\nCOPY busybox /bin/busybox\nRUN --mount=type=secret,id=token [\"/bin/busybox\", \"sh\", \"-c\", \
             \"test $(/bin/busybox wc -c </run/secrets/token) = 16\"]\n",
            "printf hunter2-of-input >token && printf secret:OTHER >reference && ln -s /etc/passwd link",
        )
        .await?;
    let mut build = site.pushed("secret-file", &source);
    build
        .options
        .secret_files
        .insert("token".into(), "source/token".parse()?);
    let result = build.run(&site.job).await?;
    let config = site.json("secret-file", &format!("blobs/{}", result.config_digest.unwrap()))?;
    assert!(!config.to_string().contains("hunter2"), "{config}");

    for (file, expected) in [
        ("source/missing", "missing"),
        ("source/reference", "as a reference to a secret does"),
        ("source/link", "link"),
        ("elsewhere/token", "in none of the build's inputs"),
    ] {
        let mut build = site.local("no-secret-file", &source);
        build.options.secret_files.insert("token".into(), file.parse()?);
        let error = build.run(&site.job).await.unwrap_err();
        assert!(matches!(error, BuildError::Job(_)), "{error:?}");
        contains(&format!("{error:?}"), &[expected]);
    }
    let mut build = site.local("twice", &source);
    build
        .options
        .secret_files
        .insert("token".into(), "source/token".parse()?);
    build.secrets.insert("token".into(), "hunter2".into());
    contains(
        &format!("{:?}", build.run(&site.job).await.unwrap_err()),
        &["given twice"],
    );
    assert!(site.left().is_empty(), "{:?}", site.left());
    Ok(())
}

/// A volume with an image as an archive and as a layout, which a build made.
async fn packed(site: &Site) -> Result<VolumeId, libtest_mimic::Failed> {
    let source = site
        .source("FROM scratch\nCOPY busybox /bin/busybox\nCOPY Dockerfile /base\n")
        .await?;
    let mut build = site.local("base", &source);
    build.load = Some(false);
    let volume = site.job.create_volume("source-packed").await?;
    build.outputs.push(BuildOutput {
        volume: volume.clone(),
        path: "packed".parse()?,
        format: OutputFormat::Oci,
    });
    let result = build.run(&site.job).await?;
    assert!(result.digest.starts_with("sha256:"));
    assert!(!site.driver.image_exists(&result.reference).await?, "it was loaded");
    let unpack = Task::new("unpack", &site.fixture.image)?
        .shell("cd packed && mkdir layout && tar -xf image.tar -C layout && echo x >none.tar");
    site.job.run(unpack.mount(&volume, "packed")?).await?.success()?;
    Ok(volume)
}

pub(crate) async fn images_of_the_inputs_need_no_registry(site: &Site) -> Outcome {
    let packed = packed(site).await?;
    let with = |build: &mut ImageBuild| {
        build.network = NetworkMode::None;
        build.inputs.push(BuildInput {
            volume: packed.clone(),
            path: "packed".parse().unwrap(),
        });
    };
    let source = site
        .source("ARG BASE_IMAGE\nFROM $BASE_IMAGE AS one\nRUN [\"/bin/busybox\", \"cat\", \"/base\"]\nFROM scratch\nCOPY --from=more /base /\nCOPY --from=one /base /two\n")
        .await?;
    let mut build = site.local("offline", &source);
    with(&mut build);
    build
        .options
        .image_args
        .insert("BASE_IMAGE".into(), "packed/image.tar".parse()?);
    let context: BuildContext = "oci-layout://packed/layout".parse()?;
    build.options.build_contexts.insert("more".into(), context);
    let result = build.run(&site.job).await?;
    contains(
        &result.stderr.to_string(),
        &["COPY Dockerfile /base", "COPY --from=more"],
    );
    site.forget(&result).await?;

    for (path, expected) in [
        ("packed/none.tar", "is no archive of an image"),
        ("source", "has no index.json"),
        ("packed/missing", "has no index.json"),
    ] {
        let mut build = site.local("wrong", &source);
        with(&mut build);
        build.options.image_args.insert("BASE_IMAGE".into(), path.parse()?);
        contains(&failed(build.run(&site.job).await).to_string(), &[expected, path]);
    }
    Ok(())
}

pub(crate) async fn run_steps_have_the_network_that_was_asked_for(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox readlink /proc/self/ns/net; /bin/busybox cat /proc/net/dev\"]\n")
        .await?;
    let mut said = Vec::new();
    for network in [NetworkMode::None, NetworkMode::Host] {
        let mut build = site.local("network", &source);
        build.options.run_network = network;
        let result = build.run(&site.job).await?;
        said.push(result.stderr.to_string());
        site.forget(&result).await?;
    }
    let interfaces = |text: &str| {
        text.lines()
            .filter(|line| line.contains(": ") && line.contains("    "))
            .count()
    };
    // Which network it is, and not what is in it: that changes with every container that others start.
    let outside = Task::new("outside", &site.fixture.image)?
        .command(["readlink", "/proc/self/ns/net"])
        .network(NetworkMode::Host);
    let outside = site.job.run(outside).await?.success()?.stdout.to_string();
    let outside = outside.trim();
    assert!(outside.starts_with("net:["), "{outside}");
    assert!(
        interfaces(&said[0]) <= 1 && !said[0].contains(outside),
        "{outside}: {}",
        said[0]
    );
    contains(&said[1], &[outside]);
    Ok(())
}

/// The agent's client of this machine, with what it is linked with.
fn ssh_add() -> Result<Vec<InjectedFile>, libtest_mimic::Failed> {
    let program = "/usr/bin/ssh-add";
    let linked = Command::new("ldd").arg(program).output()?;
    let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
    let libraries = linked
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let files = libraries.chain([program]).map(|path| {
        let mut file = InjectedFile::new(ContainerPath::new(format!("/client{path}"))?, std::fs::read(path)?);
        file.mode = 0o755;
        Ok(file)
    });
    files.collect()
}

pub(crate) async fn a_key_is_used_by_a_step_and_seen_by_none(site: &Site) -> Outcome {
    let dir = tempfile::tempdir()?;
    let key = dir.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "of the build", "-f"])
        .arg(&key)
        .status()?;
    assert!(made.success());
    let print = Command::new("ssh-keygen").arg("-lf").arg(&key).output()?;
    let print = String::from_utf8(print.stdout)?
        .split_whitespace()
        .nth(1)
        .ok_or("no print")?
        .to_owned();
    let pem = std::fs::read_to_string(&key)?;

    let source = site
        .source("FROM scratch\nCOPY client /\nCOPY busybox /bin/busybox\nRUN --mount=type=ssh [\"/usr/bin/ssh-add\", \"-l\"]\nRUN --mount=type=ssh,id=other,required [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox find / -xdev -type f -exec /bin/busybox grep -l PRIVATE {} + || echo no key\"]\n")
        .await?;
    let client = tar_of_files(&ssh_add()?).await?;
    let tar = stream::iter([Ok::<Bytes, _>(client)]).boxed();
    site.driver.write_volume(&source, &VolumePath::root(), tar).await?;
    let mut build = site.local("keyed", &source);
    for id in ["default", "other"] {
        build.ssh.insert(id.into(), SecretString::from(pem.clone()));
    }
    let shown = format!("{build:?}");
    let result = build.run(&site.job).await?;
    let said = result.stderr.to_string();
    contains(&said, &[&print, "no key"]);
    let body = pem.lines().nth(1).ok_or("no body")?;
    assert!(!said.contains(body) && !shown.contains(body));
    site.forget(&result).await?;

    let failed = failed(site.local("keyless", &source).run(&site.job).await);
    contains(&failed.to_string(), &["RUN --mount=type=ssh"]);
    Ok(())
}

/// A secret of the library's own user, which no store has.
pub(crate) async fn what_a_step_prints_of_its_secret_is_not_shown_by_any_buildkit(site: &Site) -> Outcome {
    let secret = "a first line of it\nand a second one\n";
    let script = r#"FROM scratch
COPY busybox /bin/busybox
RUN --mount=type=secret,id=it ["/bin/busybox", "sh", "-c", "/bin/busybox cat /run/secrets/it; echo between; /bin/busybox base64 /run/secrets/it; exit 3"]
"#;
    let source = site.source(script).await?;
    let old = site.old_buildctl().await?;
    let driver = SecretsLayer::wrap(site.driver.clone(), Secrets::new([]));
    let job = Job::builder(driver).build();
    for (name, programs) in [("json", None), ("plain", Some(old))] {
        let mut build = site.local(name, &source);
        build.inputs.extend(programs);
        build.secrets.insert("it".into(), secret.into());
        let failed = failed(build.run(&job).await);
        let said = format!("{failed} {failed:?} {}", failed.stderr);
        contains(&said, &["between", MARKER]);
        let encoded = "YSBmaXJzdCBsaW5l";
        for hidden in secret.lines().chain([encoded]) {
            assert!(!said.contains(hidden), "{name}: {said}");
        }
    }
    job.end().await?;
    Ok(())
}
