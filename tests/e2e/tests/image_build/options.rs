//! Options of builds: each is seen where it is to have an effect, in a `RUN` step or in what the registry serves.

use std::process::Command;

use futures_util::{StreamExt, TryStreamExt, stream};
use orchestra::{Credentials, ImageRef, InjectedFile, Task, VolumeId, VolumePath, file_from_tar, tar_of_files};
use orchestra_e2e::registry;
use orchestra_image_build::{
    BuildCache, BuildContext, BuildInput, BuildOutput, ImageBuild, OutputFormat, Provenance, RegistryAuth,
};
use serde_json::Value;

use crate::{Outcome, Site, contains, failed};

/// Values that a shell, a list of fields or an option parser would take apart.
const HOSTILE: [&str; 12] = [
    "a b",
    "a,b",
    "a\"b",
    "a'b",
    "$(id)",
    "`id`",
    "a;b&c|d",
    "--push",
    "a=b=c",
    "two\nlines",
    "\\",
    "trailing ",
];

impl Site {
    pub(crate) fn pushed(&self, name: &str, source: &VolumeId) -> ImageBuild {
        let mut build = self.build(name, &self.fixture.registry, source);
        build.target = None;
        build.push = true;
        build
    }

    pub(crate) fn json(&self, build: &str, path: &str) -> Result<Value, libtest_mimic::Failed> {
        let repository = format!("{}/{build}", self.job.id());
        Ok(registry::json(&self.fixture.registry, &repository, path)?)
    }
}

pub(crate) async fn labels_annotations_and_further_tags_are_served(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nLABEL kept=yes replaced=no\nCOPY Dockerfile /\n")
        .await?;
    let mut build = site.pushed("labelled", &source);
    let other = format!("{}/{}/labelled:other", site.fixture.registry, site.job.id());
    build.options.tags.push(other.parse()?);
    build.options.labels.insert("replaced".into(), "yes".into());
    for (number, value) in HOSTILE.into_iter().enumerate() {
        build.options.labels.insert(format!("hostile.{number}"), value.into());
        build
            .options
            .annotations
            .insert(format!("hostile.{number}"), value.into());
    }
    let result = build.run(&site.job).await?;
    assert_eq!(result.references.len(), 2, "{:?}", result.references);

    let (manifest, of_other) = (
        site.json("labelled", "manifests/1")?,
        site.json("labelled", "manifests/other")?,
    );
    assert_eq!(manifest, of_other);
    assert_eq!(manifest["config"]["digest"].as_str(), result.config_digest.as_deref());
    let config = site.json("labelled", &format!("blobs/{}", result.config_digest.unwrap()))?;
    let labels = &config["config"]["Labels"];
    assert_eq!((&labels["kept"], &labels["replaced"]), (&"yes".into(), &"yes".into()));
    for (number, value) in HOSTILE.into_iter().enumerate() {
        let key = format!("hostile.{number}");
        assert_eq!(
            (&labels[&key], &manifest["annotations"][&key]),
            (&value.into(), &value.into())
        );
    }
    Ok(())
}

pub(crate) async fn steps_run_with_the_hosts_limits_and_memory_that_were_asked_for(site: &Site) -> Outcome {
    let source = site.source("FROM scratch\nRUN [\"never\"]\n").await?;
    let mut build = site.local("surroundings", &source);
    build.options.dockerfile_inline = Some(
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \
         \"cat /etc/hosts; echo files $(ulimit -Sn) $(ulimit -Hn); /bin/busybox df -k /dev/shm | /bin/busybox grep shm\"]\n"
            .into(),
    );
    build.options.extra_hosts.push("db.test:10.1.2.3".parse()?);
    build.options.extra_hosts.push("six.test:fd00::7".parse()?);
    build.options.ulimits.push("nofile=512:1024".parse()?);
    build.options.shm_size = Some(8 << 20);
    let other = format!("localhost/{}/second:name", site.job.id());
    build.options.tags.push(other.parse()?);
    let result = build.run(&site.job).await?;
    let said = result.stderr.to_string();
    contains(
        &said,
        &["10.1.2.3\tdb.test", "fd00::7\tsix.test", "files 512 1024", " 8192 "],
    );
    for image in &result.references {
        assert!(site.driver.image_exists(image).await?, "{image} was not loaded");
        site.driver.remove_image(image).await?;
    }
    Ok(())
}

pub(crate) async fn a_named_context_is_a_directory_of_the_inputs_and_nothing_else(site: &Site) -> Outcome {
    let source = site.source("FROM scratch\nCOPY --from=more word /\n").await?;
    let more = site
        .source_with(
            "",
            "mkdir deep && echo found > deep/word && ln -s /root out && ln -s ../../.. up",
        )
        .await?;
    let with = |name: &str, path: &str| {
        let mut build = site.local(name, &source);
        build.inputs.push(BuildInput {
            volume: more.clone(),
            path: "more".parse().unwrap(),
        });
        let context: BuildContext = path.parse().unwrap();
        build.options.build_contexts.insert("more".into(), context);
        build
    };
    let result = with("named", "more/deep").run(&site.job).await?;
    site.forget(&result).await?;
    for outside in ["more/out", "more/up", "more/missing"] {
        let failed = failed(with("outside", outside).run(&site.job).await);
        contains(
            &failed.to_string(),
            &["is not a directory of the build's inputs", outside],
        );
    }
    Ok(())
}

pub(crate) async fn a_named_context_is_an_image_of_a_registry(site: &Site) -> Outcome {
    let base = site.source("FROM scratch\nCOPY Dockerfile /base\n").await?;
    let base = site.pushed("named-base", &base).run(&site.job).await?;
    // It stands for the image that the Dockerfile names, and for a stage that it does not have.
    let source = site
        .source("FROM hub.invalid/base\nCOPY --from=more /base /again\n")
        .await?;
    let mut build = site.local("of-image", &source);
    for name in ["hub.invalid/base", "more"] {
        let context: BuildContext = format!("docker-image://{}", base.reference).parse()?;
        build.options.build_contexts.insert(name.into(), context);
    }
    let result = build.run(&site.job).await?;
    contains(&result.stderr.to_string(), &["COPY --from=more /base /again"]);
    site.forget(&result).await
}

pub(crate) async fn a_base_image_is_fetched_with_the_credentials_of_its_registry(site: &Site) -> Outcome {
    let credentials = &site.fixture.credentials;
    let private = RegistryAuth {
        hostname: Some(site.fixture.registry_auth.clone()),
        credentials: Some(Credentials::new(
            credentials.user.as_str(),
            credentials.password.as_str(),
        )),
        ..RegistryAuth::default()
    };
    let source = site.source("FROM scratch\nCOPY Dockerfile /base\n").await?;
    let mut build = site.build("private-base", &site.fixture.registry_auth, &source);
    (build.push, build.target, build.registry) = (true, None, Some(private.clone()));
    let base = build.run(&site.job).await?.reference;

    let source = site.source(&format!("FROM {base}\nCOPY Dockerfile /again\n")).await?;
    // The image goes to both registries: each is spoken to in its own way.
    let mut build = site.pushed("of-private", &source);
    let other = format!("{}/{}/of-private:1", site.fixture.registry_auth, site.job.id());
    build.options.tags.push(other.parse()?);
    build.base_registries.push(private);
    let result = build.run(&site.job).await?;
    for (registry, has_credentials) in [(&site.fixture.registry, false), (&site.fixture.registry_auth, true)] {
        assert_eq!(result.digest, site.served(registry, "of-private", has_credentials)?);
    }

    let told = failed(site.pushed("stranger", &source).run(&site.job).await);
    contains(&format!("{told:#}"), &["private-base", "wants credentials"]);
    Ok(())
}

pub(crate) async fn a_date_makes_the_same_context_the_same_image(site: &Site) -> Outcome {
    let dockerfile =
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo x >/made\"]\n";
    let mut digests = Vec::new();
    for name in ["first", "second"] {
        let source = site.source(dockerfile).await?;
        let mut build = site.pushed(name, &source);
        build.options.source_date_epoch = Some(1_700_000_000);
        digests.push(build.run(&site.job).await?.digest);
    }
    assert_eq!(digests[0], digests[1]);
    let manifest = site.json("first", "manifests/1")?;
    let config = site.json(
        "first",
        &format!("blobs/{}", manifest["config"]["digest"].as_str().unwrap()),
    )?;
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    Ok(())
}

pub(crate) async fn a_cache_is_left_aside_for_all_steps_or_those_of_a_stage(site: &Site) -> Outcome {
    let run = |word: &str| format!("RUN [\"/bin/busybox\", \"echo\", \"{word}\"]\n");
    let dockerfile = format!(
        "FROM scratch AS one\nCOPY busybox /bin/busybox\n{}FROM one AS two\n{}",
        run("of one"),
        run("of two")
    );
    let source = site.source(&dockerfile).await?;
    let cache = site.job.create_volume("layers").await?;
    let built = async |all: bool, stages: &[&str]| {
        let mut build = site.local("uncached", &source);
        build.caches.push(BuildCache {
            volume: cache.clone(),
            path: "/var/lib/buildkit".parse().unwrap(),
        });
        build.options.no_cache = all;
        build.options.no_cache_filter = stages.iter().map(ToString::to_string).collect();
        let result = build.run(&site.job).await?;
        let steps = result.steps;
        site.forget(&result).await?;
        Ok::<_, libtest_mimic::Failed>((steps.cached, result.stderr.to_string()))
    };
    assert_eq!(built(false, &[]).await?.0, 0);
    assert_eq!(built(false, &[]).await?.0, 3, "COPY and both RUNs");
    let (cached, said) = built(false, &["two"]).await?;
    assert_eq!(cached, 2, "{said}");
    contains(&said, &[" of two"]);
    assert_eq!(built(true, &[]).await?.0, 0);
    Ok(())
}

pub(crate) async fn a_provenance_attestation_is_pushed_with_the_image(site: &Site) -> Outcome {
    let source = site.source("FROM scratch\nCOPY Dockerfile /\n").await?;
    let mut build = site.pushed("attested", &source);
    build.options.provenance = Some(Provenance::Max);
    let result = build.run(&site.job).await?;
    assert_eq!(result.digest, site.served(&site.fixture.registry, "attested", false)?);
    let index = site.json("attested", "manifests/1")?;
    let kinds: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|manifest| {
            manifest["annotations"]["vnd.docker.reference.type"]
                .as_str()
                .unwrap_or("image")
        })
        .collect();
    assert_eq!(kinds, ["image", "attestation-manifest"], "{index}");
    Ok(())
}

pub(crate) async fn a_frontend_is_an_image_that_reads_the_dockerfile(site: &Site) -> Outcome {
    // Only where the private engines are: it is compiled.
    let Ok(program) = std::env::var("ORCHESTRA_TEST_FRONTEND") else {
        return Ok(());
    };
    let source = site
        .source("FROM scratch\nCOPY frontend /bin/frontend\nENTRYPOINT [\"/bin/frontend\"]\n")
        .await?;
    let mut file = InjectedFile::new("/frontend".parse()?, std::fs::read(program)?);
    file.mode = 0o755;
    let tar = tar_of_files(&[file]).await?;
    let tar = stream::iter([Ok(tar)]).boxed();
    site.driver.write_volume(&source, &VolumePath::root(), tar).await?;
    let frontend = site.pushed("frontend", &source).run(&site.job).await?.reference;

    let dockerfile = "FROM scratch\nARG WORD\nLABEL word=$WORD\nCOPY Dockerfile /\n";
    let in_comment = format!("# syntax={frontend}\n{dockerfile}");
    for (name, dockerfile, given) in [("chosen", dockerfile, Some(&frontend)), ("in-file", &in_comment, None)] {
        let source = site.source(dockerfile).await?;
        let mut build = site.pushed(name, &source);
        build.options.frontend = given.cloned();
        build.build_args.insert("WORD".into(), "a, b=\"c\"".into());
        let result = build.run(&site.job).await?;
        contains(&result.stderr.to_string(), &["frontend:1", "COPY Dockerfile /"]);
        let config = site.json(name, &format!("blobs/{}", result.config_digest.unwrap()))?;
        assert_eq!(config["config"]["Labels"]["word"], "a, b=\"c\"");
    }
    Ok(())
}

pub(crate) async fn a_frontend_that_can_not_be_fetched_is_named(site: &Site) -> Outcome {
    let source = site.source("FROM scratch\n").await?;
    let mut build = site.local("fronted", &source);
    build.options.frontend = Some(format!("{}/no/such-frontend:1", site.fixture.registry).parse()?);
    let failed = failed(build.run(&site.job).await);
    contains(&failed.to_string(), &["no/such-frontend"]);
    Ok(())
}

/// The same build twice, by daemons that know nothing of each other: the second takes all layers from where the first put
/// them.
pub(crate) async fn shared(site: &Site, change: impl Fn(&mut ImageBuild, &str) -> Outcome) -> Outcome {
    let source = site
        .source(
            "FROM scratch AS made\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo x >/made\"]\n\
             FROM scratch\nCOPY --from=made /made /made\n",
        )
        .await?;
    for (name, cached) in [("cold", 0), ("warm", 3)] {
        let mut build = site.pushed(name, &source);
        change(&mut build, name)?;
        let result = build.run(&site.job).await?;
        assert_eq!(result.steps.cached, cached, "{name}: {}", result.stderr);
    }
    Ok(())
}

pub(crate) async fn layers_are_shared_by_a_registry(site: &Site) -> Outcome {
    let reference = format!("{}/{}/layers:cache", site.fixture.registry, site.job.id());
    shared(site, |build, _| {
        build.options.cache_from = vec![reference.parse()?];
        build.options.cache_to = vec![format!("type=registry,ref={reference},mode=max").parse()?];
        Ok(())
    })
    .await
}

pub(crate) async fn layers_are_shared_by_a_directory_of_a_cache(site: &Site) -> Outcome {
    let volume = site.job.create_volume("source-layers").await?;
    shared(site, |build, _| {
        build.caches.push(BuildCache {
            volume: volume.clone(),
            path: "layers".parse()?,
        });
        build.options.cache_from = vec!["type=local,src=layers/of app".parse()?];
        build.options.cache_to = vec!["type=local,dest=layers/of app,mode=max".parse()?];
        Ok(())
    })
    .await
}

pub(crate) async fn layers_are_shared_by_the_image_itself(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo x >/made\"]\n")
        .await?;
    let mut build = site.pushed("first", &source);
    build.options.cache_to = vec!["type=inline".parse()?];
    let first = build.run(&site.job).await?;
    let mut build = site.pushed("second", &source);
    build.options.cache_from = vec![first.reference.as_str().parse()?];
    let second = build.run(&site.job).await?;
    assert_eq!(second.steps.cached, 2, "{}", second.stderr);
    Ok(())
}

/// The registry of the base image is one that does not exist.
pub(crate) async fn a_base_image_comes_from_a_mirror(site: &Site) -> Outcome {
    let source = site.source("FROM scratch\nCOPY Dockerfile /base\n").await?;
    site.pushed("base", &source).run(&site.job).await?;
    let dockerfile = format!("FROM hub.invalid/{}/base:1\nCOPY Dockerfile /\n", site.job.id());
    let source = site.source(&dockerfile).await?;
    let mirror = &site.fixture.registry;
    let mut build = site.pushed("mirrored", &source);
    build.options.mirrors = [("hub.invalid".to_owned(), vec![mirror.clone()])].into();
    build.run(&site.job).await?;
    // The same in the daemon's own words.
    let mut build = site.pushed("configured", &source);
    build.options.buildkitd_config = Some(format!("[registry.\"hub.invalid\"]\n  mirrors = [\"{mirror}\"]"));
    build.run(&site.job).await?;

    let failed = failed(site.pushed("alone", &source).run(&site.job).await);
    contains(&failed.to_string(), &["hub.invalid"]);
    Ok(())
}

/// Each is read by a task after the build.
pub(crate) async fn what_was_built_is_in_volumes_for_the_next_tasks(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nLABEL a=b\nCOPY Dockerfile /dir/made\nCOPY busybox /bin/busybox\nENTRYPOINT [\"/bin/busybox\", \"cat\", \"/dir/made\"]\n")
        .await?;
    let mut build = site.pushed("written", &source);
    build.options.annotations.insert("noted".into(), "yes".into());
    let mut look = Task::new("look", &site.fixture.image)?.shell(
        "tar -tf oci/image.tar | sort | head -n 2; grep -c noted oci-layout/index.json; ls oci-layout; \
         tar -xOf docker/image.tar manifest.json; echo; ls local; cat local/dir/made",
    );
    for format in ["oci", "oci-layout", "docker", "local"] {
        let volume = site.job.create_volume(&format!("source-{format}")).await?;
        build.outputs.push(BuildOutput {
            volume: volume.clone(),
            path: format!("out-{format}").parse()?,
            format: format.parse()?,
        });
        look = look.mount(&volume, format)?;
    }
    let [oci, _, archive, _] = build.outputs.clone().try_into().map_err(|_| "other outputs")?;
    let result = build.run(&site.job).await?;
    assert_eq!(result.digest, site.served(&site.fixture.registry, "written", false)?);
    let seen = site.job.run(look).await?.success()?.stdout.to_string();
    let name = format!("\"{}\"", result.reference.as_str());
    contains(
        &seen,
        &[
            "blobs/\nblobs/sha256/\n",
            "blobs\nindex.json\n",
            "oci-layout\n",
            &name,
            "\nbin\ndir\nFROM scratch\nLABEL a=b",
        ],
    );
    // One is an archive that the engine takes, the other one that a program which nobody here wrote does.
    let read = async |output: &BuildOutput| {
        let path = output.format.archive().ok_or("no archive")?;
        let tar = site
            .driver
            .read_volume(&output.volume, std::slice::from_ref(&path))
            .await?;
        Ok::<_, libtest_mimic::Failed>(file_from_tar(tar, &path).await?)
    };
    let imported: ImageRef = format!("localhost/{}/imported:1", site.job.id()).parse()?;
    site.driver.import_image(&imported, read(&archive).await?).await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("image.tar");
    let content: Vec<_> = read(&oci).await?.try_collect().await?;
    std::fs::write(&file, content.concat())?;
    let copied: ImageRef = format!("{}/{}/copied:1", site.fixture.registry, site.job.id()).parse()?;
    let copy = Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .args([format!("oci-archive:{}", file.display()), format!("docker://{copied}")])
        .output()?;
    assert!(copy.status.success(), "{}", String::from_utf8_lossy(&copy.stderr));
    for (name, image) in [("imported", imported), ("copied", copied)] {
        contains(
            &site.run_image(name, image.as_str()).await?,
            &["LABEL a=b\nCOPY Dockerfile"],
        );
        site.driver.remove_image(&image).await?;
    }
    Ok(())
}

pub(crate) async fn what_the_dockerignore_names_is_not_in_the_image(site: &Site) -> Outcome {
    let source = site
        .source_with(
            "FROM scratch\nCOPY . /\n",
            "mkdir sub && echo x >sub/kept && echo x >sub/secret.key && echo x >notes.md && printf '**/*.key\\n*.md\\n' >.dockerignore",
        )
        .await?;
    let mut build = site.pushed("ignoring", &source);
    let volume = site.job.create_volume("source-files").await?;
    build.outputs.push(BuildOutput {
        volume: volume.clone(),
        path: "files".parse()?,
        format: OutputFormat::Local,
    });
    build.run(&site.job).await?;
    let look = Task::new("look", &site.fixture.image)?.shell("cd files && find . -type f | sort");
    let seen = site.job.run(look.mount(&volume, "files")?).await?.success()?;
    assert_eq!(
        seen.stdout.to_string(),
        "./.dockerignore\n./Dockerfile\n./busybox\n./sub/kept\n"
    );
    Ok(())
}
