//! The flags of `orchestra build`: each is seen where it is to have an effect.

use std::process::Command;

use orchestra_e2e::tls::TlsRegistry;
use orchestra_e2e::{Dir, Finished, Fixture, registry};
use serde_json::{Value, json};

use crate::building::{base_image, build};
use crate::support::{assert_says, tests};

tests![
    files_keys_and_limits_reach_the_steps,
    layers_and_attestations_go_where_it_is_said,
    base_images_come_from_where_it_is_said,
    what_a_stage_made_is_written_to_files,
    a_registry_of_ones_own_authority_is_pushed_to,
    a_build_has_its_time_and_its_attempts,
];

fn ended(finished: &Finished, code: i32) {
    assert_eq!(finished.code, code, "{finished}");
}

/// What the registry serves of the image's configuration.
fn config(fixture: &Fixture, repository: &str, tag: &str) -> Value {
    let json = |path: &str| registry::json(&fixture.registry, repository, path).expect("it is served");
    let manifest = json(&format!("manifests/{tag}"));
    let digest = manifest["config"]["digest"].as_str().expect("a digest");
    json(&format!("blobs/{digest}"))
}

fn files_keys_and_limits_reach_the_steps(fixture: &Fixture) {
    let dockerfile = format!(
        "FROM {}\nARG OF_FILE\nARG BOTH\nRUN --mount=type=ssh,required test -S \"$SSH_AUTH_SOCK\" && \
         echo \"word=$OF_FILE,$BOTH\" shm $(df -k /dev/shm | tail -n 1) others $(grep -c eth /proc/net/dev)\n",
        base_image(fixture)
    );
    let dir = Dir::with([
        ("context/Dockerfile", dockerfile.as_str()),
        ("args", "# versions\nOF_FILE=of the file\nBOTH=of the file\n"),
        ("labels", "one=1\nboth=of the file\n"),
    ]);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(dir.file("key"))
        .status();
    assert!(made.is_ok_and(|made| made.success()), "a key is made");
    let tag = format!("{}/e2e/flags:steps", fixture.registry);
    let image = format!("--image={}", fixture.buildkit_image);
    let flags = [
        "build",
        "context",
        "--push",
        "--network=host",
        "--insecure",
        "--build-arg-file=args",
        "--build-arg=BOTH=given",
        "--label-file=labels",
        "--label=both=given",
        "--ssh=key",
        "--run-network=none",
        "--shm-size=8MiB",
        &image,
        "--tag",
        &tag,
    ];
    let finished = fixture.orchestra(flags).dir(dir.path()).run();
    ended(&finished, 0);
    assert_says(&finished, &["word=of the file,given shm tmpfs 8192 ", "others 0\n"]);
    let labels = &config(fixture, "e2e/flags", "steps")["config"]["Labels"];
    assert_eq!((&labels["one"], &labels["both"]), (&json!("1"), &json!("given")));

    // What BuildKit fetches goes by the proxy that the builder's variables name.
    let dir = Dir::with([("Dockerfile", "FROM scratch\nADD http://files.invalid/file /file\n")]);
    let finished = build(fixture, &dir, &tag, &["--env", "HTTP_PROXY=http://127.0.0.1:9"]).run();
    ended(&finished, 1);
    assert_says(&finished, &["127.0.0.1:9"]);
}

fn layers_and_attestations_go_where_it_is_said(fixture: &Fixture) {
    let dir = Dir::with([(
        "Dockerfile",
        format!(
            "FROM {} AS made\nRUN echo one > /one\nFROM made\nRUN echo two > /two\n",
            base_image(fixture)
        ),
    )]);
    let tag = |tag: &str| format!("{}/e2e/flags:{tag}", fixture.registry);
    let layers = tag("layers");
    let from = format!("--cache-from=type=registry,ref={layers}");
    let to = format!("--cache-to=type=registry,ref={layers},mode=max");
    ended(&build(fixture, &dir, &tag("cached"), &["--push", &to]).run(), 0);
    let cached = |more: &[&str]| {
        let finished = build(
            fixture,
            &dir,
            &tag("cached"),
            &[&["--push", "--json", &from], more].concat(),
        )
        .run();
        ended(&finished, 0);
        let events = finished.events().expect("every line is an event");
        let end = events.iter().find(|event| event["event"] == "step_finished");
        end.expect("an end")["image"]["steps"]["cached"].as_u64()
    };
    assert_eq!(cached(&[]), Some(2), "both RUNs");
    assert_eq!(
        cached(&["--no-cache-filter=made"]),
        Some(0),
        "what follows a stage is made again too"
    );
    assert_eq!(cached(&["--no-cache"]), Some(0));

    // It makes a list as BuildKit's protocol has it (docs/attestations/sbom-protocol.md).
    let statement =
        r#"{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{}}"#;
    let generator = Dir::with([(
        "Dockerfile",
        format!(
            "FROM {}\nENV S='{statement}'\nENTRYPOINT [\"/bin/sh\", \"-c\", \"echo \\\"$S\\\" >$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json\"]\n",
            base_image(fixture)
        ),
    )]);
    ended(&build(fixture, &generator, &tag("generator"), &["--push"]).run(), 0);
    let plain = Dir::with([("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let sbom = format!("--sbom={}", tag("generator"));
    let flags = [
        "--push",
        "--provenance=max",
        &sbom,
        "--platform=linux/amd64",
        "--platform=linux/arm64",
    ];
    ended(&build(fixture, &plain, &tag("attested"), &flags).run(), 0);
    let json = |path: &str| registry::json(&fixture.registry, "e2e/flags", path).expect("it is served");
    let index = json("manifests/attested");
    let manifests = index["manifests"].as_array().expect("an index");
    let platforms: Vec<_> = manifests
        .iter()
        .map(|of| of["platform"]["architecture"].as_str())
        .collect();
    assert_eq!(
        platforms,
        [Some("amd64"), Some("arm64"), Some("unknown"), Some("unknown")]
    );
    let attestation = json(&format!(
        "manifests/{}",
        manifests[2]["digest"].as_str().expect("a digest")
    ));
    let mut kinds: Vec<_> = attestation["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|layer| {
            layer["annotations"]["in-toto.io/predicate-type"]
                .as_str()
                .expect("a kind")
        })
        .collect();
    kinds.sort_unstable();
    assert!(kinds[0].starts_with("https://slsa.dev/provenance/"), "{kinds:?}");
    assert_eq!(kinds[1..], ["https://spdx.dev/Document"]);
}

fn base_images_come_from_where_it_is_said(fixture: &Fixture) {
    let (base, tag) = (base_image(fixture), "orchestra-e2e/flags:bases");
    let built = |dockerfile: &str, file: (&'static str, &str), flags: &[&str]| {
        let dir = Dir::with([("Dockerfile", dockerfile), file]);
        let finished = build(fixture, &dir, tag, flags).run();
        if finished.code == 0 {
            fixture.engine.remove_image(tag).expect("it is removed");
        }
        finished
    };
    let of_hub = "FROM hub.invalid/e2e/base:1\nRUN echo of the mirror\n";
    let nothing = ("file", "");
    let mirror = format!("--registry-mirror=hub.invalid={}", fixture.registry);
    let mirrors = format!("[registry.\"hub.invalid\"]\n  mirrors = [\"{}\"]\n", fixture.registry);
    let context = format!("--build-context=hub.invalid/e2e/base:1=docker-image://{base}");
    for (file, flag) in [
        (nothing, mirror.as_str()),
        (("file", mirrors.as_str()), "--buildkitd-config=file"),
        (nothing, &context),
    ] {
        let finished = built(of_hub, file, &[flag]);
        ended(&finished, 0);
        assert_says(&finished, &["of the mirror"]);
    }
    let alone = built(of_hub, nothing, &[]);
    ended(&alone, 1);
    assert_says(&alone, &["hub.invalid"]);

    let missing = format!("{}/no/frontend:1", fixture.registry);
    let finished = built(of_hub, nothing, &["--frontend", &missing]);
    ended(&finished, 1);
    assert_says(&finished, &["no/frontend"]);
}

fn what_a_stage_made_is_written_to_files(fixture: &Fixture) {
    let tag = "orchestra-e2e/flags:written";
    let dockerfile = format!(
        "FROM {} AS base\nRUN echo of the base > /of-base\nFROM base AS also\nLABEL also=yes\nFROM base\nRUN echo whole > /whole\n",
        base_image(fixture)
    );
    let dir = Dir::with([
        ("Dockerfile", dockerfile.as_str()),
        (
            "next/Dockerfile",
            "ARG BASE\nFROM $BASE\nRUN cat /of-base && test ! -e /whole\n",
        ),
    ]);
    let flags = [
        "--output=type=docker,dest=whole.tar",
        "--also-target=also=type=oci,dest=next/also.tar",
    ];
    ended(&build(fixture, &dir, tag, &flags).run(), 0);
    fixture.engine.remove_image(tag).expect("it is removed");
    let image = format!("docker-archive:{}", dir.file("whole.tar").display());
    let inspected = Command::new("skopeo")
        .args(["inspect", "--config", &image])
        .output()
        .expect("skopeo");
    let text = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(text.contains("RUN") && text.contains("/whole"), "{text} {inspected:?}");

    // The one that was written first is what the next build begins with, and no registry is asked.
    let (mut args, tag) = (vec!["build", "next", "-t"], "orchestra-e2e/flags:next");
    args.extend([tag, "--image-arg=BASE=also.tar", "--network=none"]);
    let next = fixture
        .orchestra(args)
        .dir(dir.path())
        .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_image)
        .run();
    ended(&next, 0);
    assert_says(&next, &["of the base"]);
    fixture.engine.remove_image(tag).expect("it is removed");
}

fn a_registry_of_ones_own_authority_is_pushed_to(fixture: &Fixture) {
    let registry = TlsRegistry::start().expect("a registry");
    let dir = Dir::with([
        ("context/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n"),
        ("ca.pem", &registry.ca),
        ("client.pem", &registry.certificate),
        ("client.key", &registry.key),
    ]);
    let tag = format!("{}/e2e/own:1", registry.address);
    let built = |flags: &[&str]| {
        let args = ["build", "context", "-t", &tag, "--network", "host", "--push"];
        let command = fixture.orchestra([&args, flags].concat()).dir(dir.path());
        command
            .env("ORCHESTRA_IMAGE_BUILD__IMAGE", &fixture.buildkit_image)
            .run()
    };
    let client = ["--registry-cert=client.pem", "--registry-key=client.key"];
    let finished = built(&[&["--registry-ca=ca.pem"], &client[..]].concat());
    ended(&finished, 0);
    assert!(finished.value("digest").is_some(), "{finished}");
    assert!(!finished.all().contains("PRIVATE KEY"), "{finished}");
    let unknown = built(&client);
    ended(&unknown, 1);
    assert_says(&unknown, &["x509", "hint: "]);
    let half = built(&client[..1]);
    ended(&half, 2);
}

fn a_build_has_its_time_and_its_attempts(fixture: &Fixture) {
    let dir = Dir::with([(
        "Dockerfile",
        format!(
            "FROM {} AS slow\nRUN sleep 300\nFROM {0} AS failing\nRUN echo tried; exit 3\n",
            base_image(fixture)
        ),
    )]);
    let late = build(
        fixture,
        &dir,
        "orchestra-e2e/flags:late",
        &["--target=slow", "--timeout=20s"],
    )
    .run();
    ended(&late, 1);
    assert_says(
        &late,
        &[
            "timed out",
            "step: [slow 2/2] RUN sleep 300",
            "hint: raise the build's timeout",
        ],
    );
    // Each sends the context.
    let twice = build(
        fixture,
        &dir,
        "orchestra-e2e/flags:twice",
        &["--target=failing", "--attempts=2"],
    )
    .run();
    ended(&twice, 1);
    assert_eq!(twice.all().matches(" tried\n").count(), 2, "{twice}");
}
