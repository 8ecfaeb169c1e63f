//! What comes of a build: images, further stages, root file systems, attestations, caches, and what is told of all that.

use std::process::Command;

use orchestra::{Credentials, ExitStatus, Task};
use orchestra_e2e::registry;
use orchestra_e2e::tls::TlsRegistry;
use orchestra_image_build::{
    AdditionalTarget, BuildCache, BuildOutput, ImageBuild, OutputFormat, RegistryAuth, Sbom, SharedBuilders,
};
use serde_json::Value;

use crate::phases::kill_builder;
use crate::{Outcome, Site, contains, failed};

/// A program that nobody here wrote reads what was pushed.
fn skopeo(args: &[&str]) -> Result<Value, libtest_mimic::Failed> {
    let output = Command::new("skopeo").args(args).output()?;
    if !output.status.success() {
        return Err(format!("skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// 200 values of pieces that shells, lists, records and option parsers take apart.
fn hostile() -> Vec<String> {
    let pieces = [
        "'",
        "\"",
        "`id`",
        "$(id)",
        "${HOME}",
        ";",
        "|",
        "&",
        "\n",
        "\t",
        "\\",
        ",",
        "=",
        " ",
        "--output=type=local,dest=/",
        "-",
        "--then",
        "#",
        "*",
        "{}",
        "<<EOF",
        "%s",
        "ä",
    ];
    let count = pieces.len();
    let value = |number: usize| {
        let (a, b, c) = (
            pieces[number % count],
            pieces[number / count % count],
            pieces[(number * 7 + 3) % count],
        );
        format!("{a}{b}x{c}{a}")
    };
    (0..200).map(value).collect()
}

pub(crate) async fn two_hundred_hostile_values_arrive_as_they_are(site: &Site) -> Outcome {
    let values = hostile();
    // As many arguments as values, which a step writes down.
    let declared: String = (0..values.len()).map(|number| format!("ARG A{number}\n")).collect();
    let step = r#"RUN ["/bin/busybox", "sh", "-c", "i=0; while [ $i -lt 200 ]; do eval v=\"\\$A$i\"; /bin/busybox printf '%s\\0' \"$v\"; i=$((i+1)); done >/values"]"#;
    let source = site
        .source(&format!("FROM scratch\nCOPY busybox /bin/busybox\n{declared}{step}\n"))
        .await?;
    let mut build = site.pushed("hostile", &source);
    for (number, value) in values.iter().enumerate() {
        build.build_args.insert(format!("A{number}"), value.clone());
        build.options.labels.insert(format!("label.{number}"), value.clone());
        build
            .options
            .annotations
            .insert(format!("note.{number}"), value.clone());
    }
    let result = build.run(&site.job).await?;
    // They are told apart from a build of other options by nothing but their values.
    assert_eq!(result.digest, site.served(&site.fixture.registry, "hostile", false)?);
    let image = format!("docker://{}", result.reference);
    let config = skopeo(&["inspect", "--tls-verify=false", "--config", &image])?;
    let manifest = skopeo(&["inspect", "--tls-verify=false", "--raw", &image])?;
    for (number, value) in values.iter().enumerate() {
        let label = &config["config"]["Labels"][format!("label.{number}")];
        let note = &manifest["annotations"][format!("note.{number}")];
        assert_eq!(
            (label.as_str(), note.as_str()),
            (Some(value.as_str()), Some(value.as_str())),
            "{number}"
        );
    }

    let read = Task::new("read", result.reference.as_str())?.command(["/bin/busybox", "cat", "/values"]);
    let written = site.job.run(read).await?.success()?.stdout.to_string();
    let written: Vec<_> = written.split_terminator('\0').collect();
    assert_eq!(written, values, "build arguments");
    site.forget(&result).await?;

    for value in values.iter().filter(|value| !value.is_empty()) {
        let mut build = site.local("refused", &source);
        build.target = Some(value.clone());
        assert!(build.validate().is_err(), "the target {value:?}");
        assert!(value.parse::<orchestra::ImageRef>().is_err(), "the tag {value:?}");
        assert!(value.parse::<orchestra::Name>().is_err(), "the name {value:?}");
        let mut build = site.local("refused", &source);
        build.build_args.insert(value.clone(), String::new());
        assert!(build.validate().is_err(), "the build argument {value:?}");
    }
    Ok(())
}

pub(crate) async fn what_was_pushed_is_what_another_program_reads(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nCOPY Dockerfile /\nENV SAID=yes\nUSER 1234\n")
        .await?;
    let mut build = site.pushed("inspected", &source);
    build.platforms = vec!["linux/amd64".parse()?, "linux/arm64".parse()?];
    build.options.labels.insert("a.label".into(), "of the build".into());
    build
        .options
        .annotations
        .insert("a.note".into(), "of the manifest".into());
    let result = build.run(&site.job).await?;
    let image = format!("docker://{}", result.reference);
    let index = skopeo(&["inspect", "--tls-verify=false", "--raw", &image])?;
    let told: Vec<_> = result
        .platforms
        .iter()
        .map(|of| (of.platform.clone(), of.digest.clone()))
        .collect();
    let read: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| {
            let platform = format!(
                "{}/{}",
                of["platform"]["os"].as_str().unwrap(),
                of["platform"]["architecture"].as_str().unwrap()
            );
            (Some(platform), of["digest"].as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(told, read);
    let mut all = 0;
    for of in &result.platforms {
        let image = format!(
            "docker://{}@{}",
            result.reference.as_str().rsplit_once(':').unwrap().0,
            of.digest
        );
        let manifest = skopeo(&["inspect", "--tls-verify=false", "--raw", &image])?;
        assert_eq!(manifest["annotations"]["a.note"], "of the manifest");
        let config = skopeo(&["inspect", "--tls-verify=false", "--config", &image])?;
        assert_eq!(config["config"]["Labels"]["a.label"], "of the build");
        assert_eq!(config["config"]["User"], "1234");
        let layers = manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["size"].as_u64().unwrap());
        all += layers.sum::<u64>() + manifest["config"]["size"].as_u64().unwrap();
        assert!(of.size > 0);
    }
    assert!(
        result.size.unwrap() > all && result.size.unwrap() < all + 4096,
        "{:?}",
        result.size
    );
    assert!(result.duration >= result.timings.run, "{:?}", result.duration);
    Ok(())
}

pub(crate) async fn a_step_for_a_platform_that_can_not_run_here_is_refused_before_the_build(site: &Site) -> Outcome {
    let source = site
        .source("FROM --platform=$BUILDPLATFORM scratch AS native\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"touch\", \"/made\"]\nFROM scratch AS copied\nCOPY --from=native /made /\nFROM scratch AS run\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"true\"]\n")
        .await?;
    let build = |target: &str| {
        let mut build = site.pushed(target, &source);
        build.target = Some(target.into());
        build.platforms = vec!["linux/amd64".parse().unwrap(), "linux/s390x".parse().unwrap()];
        build
    };
    let result = build("copied").run(&site.job).await?;
    assert_eq!(result.platforms.len(), 2, "{:?}", result.platforms);
    let output = BuildOutput {
        volume: site.job.create_volume("source-also").await?,
        path: "also".parse()?,
        format: OutputFormat::Oci,
    };
    let mut also = build("copied");
    also.additional_targets.push(AdditionalTarget::new("run", output));
    for build in [build("run"), also] {
        let failed = failed(build.run(&site.job).await);
        contains(
            &format!("{failed:#}"),
            &["RUN steps for linux/s390x", "no emulator", "qemu-user-static"],
        );
        assert_eq!(failed.step, None, "{failed}");
    }
    Ok(())
}

pub(crate) async fn a_failing_step_is_shown_with_its_lines_its_output_and_its_code(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nCOPY busybox /bin/busybox\n# before it\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo at work; exit 7\"]\nCOPY Dockerfile /after\n")
        .await?;
    let failed = failed(site.local("failing", &source).run(&site.job).await);
    assert_eq!((failed.step_code, failed.exit), (Some(7), ExitStatus::Code(1)));
    let excerpt = failed.excerpt.clone().ok_or("no excerpt")?;
    contains(
        &excerpt,
        &["Dockerfile:4", "# before it", ">>> RUN", "COPY Dockerfile /after"],
    );
    contains(
        &failed.to_string(),
        &["in the Dockerfile:", ">>> RUN", "at work", "exit code: 7"],
    );
    Ok(())
}

pub(crate) async fn what_the_checks_of_the_dockerfile_find_is_listed(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch as base\nMAINTAINER me\nCOPY Dockerfile /\n")
        .await?;
    let result = site.local("checked", &source).run(&site.job).await?;
    contains(&result.warnings.join("\n"), &["MaintainerDeprecated", "FromAsCasing"]);
    site.forget(&result).await
}

pub(crate) async fn further_stages_have_outputs_of_their_own(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch AS base\nCOPY busybox /bin/busybox\nFROM base AS test\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo 42 >/report\"]\nFROM base AS packed\nLABEL packed=yes\nFROM base AS app\nCOPY Dockerfile /app\n")
        .await?;
    let mut build = site.pushed("staged", &source);
    build.load = Some(true);
    build.target = Some("app".into());
    let mut look = Task::new("look", &site.fixture.image)?
        .shell("cat test/report; tar -tf packed/image.tar | grep index.json; ls app");
    for (target, format) in [
        ("test", OutputFormat::Local),
        ("packed", OutputFormat::Oci),
        ("app", OutputFormat::Local),
    ] {
        let volume = site.job.create_volume(&format!("source-{target}")).await?;
        let output = BuildOutput {
            volume: volume.clone(),
            path: format!("out-{target}").parse()?,
            format,
        };
        if target == "app" {
            build.outputs.push(output);
        } else {
            build.additional_targets.push(AdditionalTarget::new(target, output));
        }
        look = look.mount(&volume, target)?;
    }
    let result = build.run(&site.job).await?;
    assert_eq!(result.digest, site.served(&site.fixture.registry, "staged", false)?);
    let targets: Vec<_> = result
        .targets
        .iter()
        .map(|of| (of.target.as_str(), of.digest.is_some()))
        .collect();
    assert_eq!(targets, [("test", false), ("packed", true)]);
    let seen = site.job.run(look).await?.success()?.stdout.to_string();
    contains(&seen, &["42\n", "index.json\n", "app\nbin\n"]);
    // It was loaded too.
    assert!(site.driver.image_exists(&result.reference).await?);
    site.forget(&result).await?;

    // The image is not built where a stage before it fails.
    let mut build = site.pushed("broken", &source);
    build.target = Some("app".into());
    let volume = site.job.create_volume("source-broken").await?;
    let output = BuildOutput {
        volume,
        path: "out".parse()?,
        format: OutputFormat::Local,
    };
    build.additional_targets.push(AdditionalTarget::new("missing", output));
    contains(&failed(build.run(&site.job).await).to_string(), &["missing"]);
    assert!(site.served(&site.fixture.registry, "broken", false).is_err());
    Ok(())
}

pub(crate) async fn a_root_file_system_is_unpacked_with_its_metadata(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nCOPY busybox /bin/busybox\nCOPY --chown=12:34 busybox /data/owned\nENV A=b\nENV SAID=\"quote\\\" and, comma\"\nUSER 12:34\nUSER 0\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"cd /data; b=/bin/busybox; $b chmod 4711 owned; $b ln owned hard; $b ln -s owned soft; $b mkdir -m 1770 dir; $b chown 5:6 dir; $b touch -d '2001-02-03 04:05:06' dir; $b mkfifo fifo\"]\nUSER 12:34\n")
        .await?;
    let mut build = site.local("unpacked", &source);
    build.load = Some(true);
    let volume = site.job.create_volume("source-rootfs").await?;
    build.outputs.push(BuildOutput {
        volume: volume.clone(),
        path: "out".parse()?,
        format: OutputFormat::RootFs,
    });
    let result = build.run(&site.job).await?;
    let list = "find data bin -exec stat -c '%n %F %a %u:%g' {} + | sort; stat -c %Y data/dir; test data/hard -ef data/owned && echo linked";
    let look = Task::new("look", &site.fixture.image)?.shell(format!(
        "cat out/metadata.json; echo; ls out; cmp /bin/busybox out/rootfs/bin/busybox && echo same; cd out/rootfs; {list}"
    ));
    let seen = site
        .job
        .run(look.mount(&volume, "out")?)
        .await?
        .success()?
        .stdout
        .to_string();
    let metadata: Value = serde_json::from_str(seen.lines().next().ok_or("nothing")?)?;
    let env = metadata["env"].as_array().ok_or("no env")?;
    assert!(
        env.contains(&"A=b".into()) && env.contains(&"SAID=quote\" and, comma".into()),
        "{metadata}"
    );
    assert_eq!(metadata["user"], "12:34");
    contains(&seen, &["metadata.json\nrootfs\n", "same\n"]);
    // As the engine has it that unpacked the image.
    let task = Task::new("compare", result.reference.as_str())?
        .command([
            "/bin/busybox",
            "sh",
            "-c",
            &format!(
                "cd /; alias find='/bin/busybox find' sort='/bin/busybox sort'; {}",
                list.replace("stat", "/bin/busybox stat")
            ),
        ])
        .user("0")?;
    let of_image = site.job.run(task).await?.success()?.stdout.to_string();
    let (_, unpacked) = seen.split_once("same\n").ok_or("not the same")?;
    assert_eq!(unpacked, of_image);
    contains(
        unpacked,
        &[
            "data/owned regular file 4711 12:34",
            "data/dir directory 1770 5:6",
            "data/soft symbolic link",
        ],
    );
    site.forget(&result).await
}

pub(crate) async fn a_list_of_what_is_in_the_image_is_pushed_with_it(site: &Site) -> Outcome {
    // It makes a list as BuildKit's protocol has it (docs/attestations/sbom-protocol.md).
    let statement = r#"{\"_type\":\"https://in-toto.io/Statement/v0.1\",\"predicateType\":\"https://spdx.dev/Document\",\"predicate\":{\"spdxVersion\":\"SPDX-2.3\"}}"#;
    let generator = site
        .source(&format!("FROM scratch\nCOPY busybox /bin/busybox\nENV S='{}'\nENTRYPOINT [\"/bin/busybox\", \"sh\", \"-c\", \"echo \\\"$S\\\" >$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json\"]\n", statement.replace("\\\"", "\"")))
        .await?;
    let generator = site.pushed("generator", &generator).run(&site.job).await?;
    let source = site.source("FROM scratch\nCOPY Dockerfile /\n").await?;
    let mut build = site.pushed("listed", &source);
    build.options.sbom = Some(Sbom {
        generator: Some(generator.reference),
    });
    build.run(&site.job).await?;
    let index = site.json("listed", "manifests/1")?;
    let attestation = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|of| of["annotations"]["vnd.docker.reference.type"] == "attestation-manifest");
    let digest = attestation.ok_or("no attestation")?["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let manifest = site.json("listed", &format!("manifests/{digest}"))?;
    assert_eq!(
        manifest["layers"][0]["annotations"]["in-toto.io/predicate-type"], "https://spdx.dev/Document",
        "{manifest}"
    );
    Ok(())
}

pub(crate) async fn layers_are_shared_by_a_bucket(site: &Site) -> Outcome {
    let get = |name: &str| std::env::var(format!("ORCHESTRA_TEST_S3{name}"));
    let Ok(endpoint) = get("") else { return Ok(()) };
    let (bucket, user, password) = (get("_BUCKET")?, get("_USER")?, get("_PASSWORD")?);
    let record = format!(
        "type=s3,bucket={bucket},region=us-east-1,endpoint_url={endpoint},use_path_style=true,prefix={}/,name=app",
        site.job.id()
    );
    crate::options::shared(site, |build, _| {
        build.options.cache_from = vec![record.parse()?];
        build.options.cache_to = vec![format!("{record},mode=max").parse()?];
        build.cache_credentials = Some(Credentials::new(user.as_str(), password.as_str()));
        Ok(())
    })
    .await
}

pub(crate) async fn a_cache_is_pruned_to_its_limit(site: &Site) -> Outcome {
    let cache = site.job.create_volume("source-limited").await?;
    let built = async |name: &str, limit: Option<u64>| {
        let dockerfile = format!(
            "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox dd if=/dev/urandom of=/{name} bs=1M count=40 2>/dev/null\"]\n"
        );
        let source = site.source(&dockerfile).await?;
        let mut build = site.pushed(name, &source);
        build.options.cache_limit = limit;
        build.caches.push(BuildCache {
            volume: cache.clone(),
            path: "/var/lib/buildkit".parse().unwrap(),
        });
        build.run(&site.job).await?;
        let look = Task::new(format!("size-{name}"), &site.fixture.image)?.shell("du -sm cache | cut -f1");
        let size = site.job.run(look.mount(&cache, "cache")?).await?.success()?;
        Ok::<u64, libtest_mimic::Failed>(size.stdout.to_string().trim().parse()?)
    };
    let first = built("one", None).await?;
    let second = built("two", None).await?;
    let third = built("three", Some(100 << 20)).await?;
    assert!(first > 60 && second > first + 60, "{first} {second}");
    assert!(third <= 100, "{first} {second} {third}");
    Ok(())
}

pub(crate) async fn a_registry_of_ones_own_authority_wants_a_certificate(site: &Site) -> Outcome {
    let registry = TlsRegistry::start()?;
    let source = site.source("FROM scratch\nCOPY Dockerfile /\n").await?;
    let build = |name: &str, auth: RegistryAuth| {
        let mut build: ImageBuild = site.build(name, &registry.address, &source);
        build.target = None;
        build.push = true;
        build.registry = Some(auth);
        build
    };
    let ca = Some(registry.ca.clone());
    let client = Some((registry.certificate.clone(), registry.key.clone().into()));
    let with = |ca: &Option<String>, client: &Option<_>| RegistryAuth {
        ca: ca.clone(),
        client: client.clone(),
        ..RegistryAuth::default()
    };
    let result = build("trusted", with(&ca, &client)).run(&site.job).await?;
    assert!(result.digest.starts_with("sha256:"));
    let stranger = failed(build("stranger", with(&None, &client)).run(&site.job).await);
    contains(&format!("{stranger:#}"), &["x509", "registry.ca"]);
    let nameless = failed(build("nameless", with(&ca, &None)).run(&site.job).await);
    contains(&format!("{nameless:#}"), &["tls: "]);
    assert!(registry::answers(&site.fixture.registry));
    Ok(())
}

pub(crate) async fn builds_of_a_job_share_a_builder_and_do_without_one_that_died(site: &Site) -> Outcome {
    let source = site
        .source("FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo x >/made\"]\n")
        .await?;
    let builders = SharedBuilders::new(&site.job);
    let built = async |name: &str| {
        let result = site.pushed(name, &source).shared(&builders).run(&site.job).await?;
        assert_eq!(result.digest, site.served(&site.fixture.registry, name, false)?);
        Ok::<_, libtest_mimic::Failed>(result)
    };
    assert_eq!(built("first").await?.steps.cached, 0);
    let second = built("second").await?;
    assert_eq!(second.steps.cached, 2, "{}", second.stderr);
    assert_eq!(second.platforms.len(), 1, "{second:?}");

    // It dies, and nobody told.
    kill_builder(site).await?;
    let third = built("third").await?;
    assert_eq!(third.steps.cached, 0, "{}", third.stderr);
    contains(&third.warnings.join("\n"), &["shared builder has ended"]);
    builders.stop().await;
    Ok(())
}
