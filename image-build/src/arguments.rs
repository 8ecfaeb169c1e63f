//! The build container's arguments: what a user wrote, each an argument of its own.

use orchestra::{ImageRef, Result, Task};

use crate::command::{CONFIG, IMAGE, IMAGE_ARG, OUT, ROOTFS, SECRETS, SSH, dockerfile, in_out};
use crate::shared::Shared;
use crate::{BuildContext, BuildOutput, ImageBuild, OutputFormat};

/// What runs in the container, and the programs of ours that it uses.
const SCRIPT: &str = include_str!("build.sh");
const BUILDCTL: &str = include_str!("buildctl.sh");
const STAGES: &str = include_str!("stages.awk");

/// What separates the parts: what all builds have in common, then what each additional target's has, then the main build's.
const THEN: &str = "--then";

/// What the engine and the job have to do with the arguments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place<'a> {
    /// A daemon that is there already.
    pub(crate) shared: Option<&'a Shared>,
    /// The platform of the engine's host.
    pub(crate) native: Option<&'a orchestra::Platform>,
}

pub(crate) fn argv(build: &ImageBuild, configuration: &str, place: Place<'_>) -> Result<Vec<String>> {
    let dockerfile = dockerfile(build)?;
    let limit = build.options.cache_limit.map(megabytes).unwrap_or_default();
    let mut argv: Vec<String> = [
        "sh",
        "-c",
        SCRIPT,
        "orchestra-build",
        BUILDCTL,
        STAGES,
        if build.options.context_url.is_some() {
            ""
        } else {
            build.context.as_str()
        },
        dockerfile.as_str(),
        if build.streamed { "streamed" } else { "" },
        configuration,
        build.options.dockerfile_inline.as_deref().unwrap_or_default(),
        &limit,
        &stages(build),
        &foreign(build, place.native),
        place.shared.map(|shared| shared.socket.as_str()).unwrap_or_default(),
    ]
    .map(str::to_owned)
    .into();
    argv.extend(common(build));
    for additional in &build.additional_targets {
        argv.push(THEN.to_owned());
        argv.extend(["--opt".to_owned(), format!("target={}", additional.target)]);
        argv.push(format!("--output={}", written(build, &additional.output)));
    }
    argv.push(THEN.to_owned());
    argv.extend(main(build)?);
    Ok(argv)
}

/// BuildKit counts in millions. What a file system takes besides the files is left for it.
fn megabytes(limit: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a limit is no exact number")]
    let megabytes = limit as f64 * 0.9 / 1e6;
    format!("{megabytes:.3}")
}

/// All stages that are built, the last one's name being empty. No name has a comma.
fn stages(build: &ImageBuild) -> String {
    let main = build.target.as_deref().unwrap_or_default();
    let additional = build
        .additional_targets
        .iter()
        .map(|additional| additional.target.as_str());
    std::iter::once(main).chain(additional).collect::<Vec<_>>().join(",")
}

/// Platforms that are not the host's own.
fn foreign(build: &ImageBuild, native: Option<&orchestra::Platform>) -> String {
    let Some(native) = native else { return String::new() };
    let foreign = build
        .platforms
        .iter()
        .filter(|platform| (&platform.os, &platform.architecture) != (&native.os, &native.architecture));
    foreign.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What all targets have in common.
fn common(build: &ImageBuild) -> Vec<String> {
    let options = &build.options;
    let mut argv = Vec::new();
    // An option's value is an argument of its own: `buildctl` takes trailing blanks from `--opt=VALUE`.
    let mut opt = |value: String| argv.extend(["--opt".to_owned(), value]);
    let pairs = build.build_args.iter();
    pairs.for_each(|(key, value)| opt(format!("build-arg:{key}={value}")));
    if !build.platforms.is_empty() {
        let platforms: Vec<_> = build.platforms.iter().map(ToString::to_string).collect();
        opt(format!("platform={}", platforms.join(",")));
    }
    options.context_url.iter().for_each(|url| opt(format!("context={url}")));
    for (number, key) in options.image_args.keys().enumerate() {
        opt(format!("build-arg:{key}={IMAGE_ARG}{number}"));
    }
    for (number, path) in options.image_args.values().enumerate() {
        argv.push(format!("--layout=arg{number}={IMAGE_ARG}{number}=./{path}"));
    }
    let layouts = options.contexts().filter_map(|(name, context)| match context {
        BuildContext::OciLayout(path) => Some((name, path)),
        _ => None,
    });
    for (number, (name, path)) in layouts.enumerate() {
        argv.push(format!("--layout={number}={name}=./{path}"));
    }
    let secrets = build.secrets.keys();
    argv.extend(secrets.map(|id| format!("--secret=id={id},src={SECRETS}/{id}")));
    argv.extend(build.ssh.keys().map(|id| format!("--ssh={id}={SECRETS}/{SSH}/{id}")));
    let frontend = options.frontend.as_ref().map_or("dockerfile.v0", |_| "gateway.v0");
    argv.push(format!("--frontend={frontend}"));
    argv.extend(options.arguments());
    for from in &options.cache_from {
        argv.push(format!("--import-cache={}", record(&from.fields(Task::WORKING_DIR))));
    }
    let registries = build.registry.iter().chain(&build.base_registries);
    argv.extend(
        registries
            .enumerate()
            .filter_map(|(number, registry)| registry.tls_context(number, &build.tag))
            .map(|fields| format!("--registry-auth-tlscontext={}", record(&fields))),
    );
    argv
}

/// What the main build has alone.
fn main(build: &ImageBuild) -> Result<Vec<String>> {
    let mut argv = Vec::new();
    if let Some(target) = &build.target {
        argv.extend(["--opt".to_owned(), format!("target={target}")]);
    }
    for to in &build.options.cache_to {
        argv.push(format!("--export-cache={}", record(&to.fields(Task::WORKING_DIR))));
    }
    let written_by_builder = build
        .outputs
        .iter()
        .filter(|output| output.format != OutputFormat::RootFs);
    argv.extend(written_by_builder.map(|output| format!("--output={}", written(build, output))));
    if build.unpacks() {
        let tar = format!("{OUT}/{}", in_out(build, ROOTFS)?);
        argv.push(format!("--output={}", record(&OutputFormat::RootFs.fields(&tar))));
        argv.push(format!("--config={OUT}/{}", in_out(build, CONFIG)?));
    }
    // The last one's digest is the build's.
    argv.extend(
        images(build)?
            .iter()
            .map(|fields| format!("--output={}", record(fields))),
    );
    Ok(argv)
}

/// The record of what is written to a volume.
fn written(build: &ImageBuild, output: &BuildOutput) -> String {
    let mut fields = output.format.fields(&output.path.resolve(Task::WORKING_DIR));
    if output.format.is_image() {
        fields.push(names(build));
        // An archive of one platform knows none.
        let has_annotations = output.format != OutputFormat::Loadable;
        fields.extend(build.options.output(has_annotations));
    }
    record(&fields)
}

fn names(build: &ImageBuild) -> String {
    let names: Vec<_> = build.tags().map(ImageRef::canonical).collect();
    format!("name={}", names.join(","))
}

/// What becomes of the image: each a record of comma separated values, as `--output` is read.
fn images(build: &ImageBuild) -> Result<Vec<Vec<String>>> {
    let mut records = Vec::new();
    if build.loads() {
        let mut fields = vec![
            "type=docker".to_owned(),
            names(build),
            format!("dest={OUT}/{}", in_out(build, IMAGE)?),
        ];
        fields.extend(build.options.output(false));
        records.push(fields);
    }
    // One that is neither pushed nor loaded has a digest all the same.
    if build.push || !build.loads() {
        let mut fields = vec!["type=image".to_owned(), names(build), format!("push={}", build.push)];
        // Which registry is spoken to in plain HTTP, the daemon's configuration says. `registry.insecure` would have it so
        // for all names, those in other registries too.
        fields.extend(build.options.output(true));
        records.push(fields);
    }
    Ok(records)
}

fn record(fields: &[String]) -> String {
    fields.iter().map(|field| csv(field)).collect::<Vec<_>>().join(",")
}

/// One field (RFC 4180).
fn csv(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdditionalTarget, RegistryAuth};
    use proptest::prelude::*;

    fn build() -> ImageBuild {
        ImageBuild::new(
            "app".parse().unwrap(),
            "r.example.com/app:1".parse().unwrap(),
            "source".parse().unwrap(),
        )
    }

    fn arguments(build: &ImageBuild) -> Vec<String> {
        argv(build, "", Place::default()).unwrap().split_off(6)
    }

    #[test]
    fn a_build_that_says_nothing_is_loaded_from_the_output_volume() {
        assert_eq!(
            arguments(&build()),
            [
                "source",
                "Dockerfile",
                "",
                "",
                "",
                "",
                "",
                "",
                "",
                "--frontend=dockerfile.v0",
                "--then",
                "--output=type=docker,name=r.example.com/app:1,dest=/orchestra/image.tar",
            ]
        );
    }

    #[test]
    fn everything_that_is_said_becomes_one_argument() {
        let mut build = build();
        build.push = true;
        build.dockerfile = Some("source/Docker file".into());
        build.build_args = [("A", "x, y\n$(id) \"'"), ("B", "")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
        build.target = Some("production".into());
        build.platforms = vec!["linux/amd64".parse().unwrap(), "linux/arm/v7".parse().unwrap()];
        build.registry = Some(RegistryAuth {
            insecure: true,
            ..RegistryAuth::default()
        });
        assert_eq!(
            arguments(&build)[1..],
            [
                "source/Docker file",
                "",
                "",
                "",
                "",
                "production",
                "",
                "",
                "--opt",
                "build-arg:A=x, y\n$(id) \"'",
                "--opt",
                "build-arg:B=",
                "--opt",
                "platform=linux/amd64,linux/arm/v7",
                "--frontend=dockerfile.v0",
                "--then",
                "--opt",
                "target=production",
                "--output=type=image,name=r.example.com/app:1,push=true",
            ]
        );
    }

    #[test]
    fn an_additional_target_has_a_part_of_its_own_before_the_main_one() {
        let mut build = build();
        (build.push, build.load) = (true, Some(true));
        build.target = Some("production".into());
        build.additional_targets.push(AdditionalTarget::new(
            "test",
            BuildOutput {
                volume: "o".parse().unwrap(),
                path: "out".parse().unwrap(),
                format: OutputFormat::Local,
            },
        ));
        let arguments = arguments(&build);
        let at = arguments.iter().position(|argument| argument == THEN).unwrap();
        assert_eq!(
            arguments[at..],
            [
                "--then",
                "--opt",
                "target=test",
                "--output=type=local,dest=/workspace/out",
                "--then",
                "--opt",
                "target=production",
                "--output=type=docker,name=r.example.com/app:1,dest=/orchestra/image.tar",
                "--output=type=image,name=r.example.com/app:1,push=true",
            ]
        );
    }

    #[test]
    fn only_platforms_that_are_not_the_hosts_need_an_emulator() {
        let mut build = build();
        let native: orchestra::Platform = "linux/amd64".parse().unwrap();
        build.platforms = vec![native.clone(), "linux/arm64".parse().unwrap()];
        assert_eq!(foreign(&build, Some(&native)), "linux/arm64");
        assert_eq!(foreign(&build, None), "");
    }

    #[test]
    fn a_field_stays_one_field() {
        assert_eq!(csv("name=a,push=false"), "\"name=a,push=false\"");
        assert_eq!(csv("a\"b"), "\"a\"\"b\"");
        assert_eq!(csv("name=a"), "name=a");
    }

    #[test]
    fn the_script_is_the_same_whatever_is_built() {
        let mut other = build();
        other.context = "$(reboot)".parse().unwrap();
        other.dockerfile = Some("`reboot`".into());
        let whole = |build: &ImageBuild, configuration| argv(build, configuration, Place::default()).unwrap();
        assert_eq!(whole(&build(), "")[..6], whole(&other, "$(reboot)")[..6]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Whatever is written as a value never becomes an argument that is an option, or a part of its own.
        #[test]
        fn a_hostile_value_stays_behind_its_key_or_is_refused(
            key in "[A-Z_,=; -]{1,6}",
            value in "(--|-o|[,=;\"'$(`\\n ])?[ -~\\n]{0,24}",
        ) {
            let mut build = build();
            build.build_args.insert(key.clone(), value.clone());
            build.target = Some(value.clone());
            build.options.labels.insert(key, value.clone());
            build.options.annotations.insert("a".into(), value);
            build.push = true;
            build.inputs.push(crate::BuildInput { volume: "v".parse().unwrap(), path: "source".parse().unwrap() });
            if build.validate().is_ok() {
                let arguments = arguments(&build).split_off(9);
                let mut behind = false;
                for argument in &arguments {
                    prop_assert!(
                        !behind || ["build-arg:", "label:", "target="].iter().any(|key| argument.starts_with(key)),
                        "{argument:?}"
                    );
                    behind = !behind && argument == "--opt";
                }
                prop_assert_eq!(arguments.iter().filter(|argument| *argument == THEN).count(), 1);
                prop_assert_eq!(arguments.iter().filter(|argument| argument.starts_with("--output=")).count(), 1);
            }
        }
    }
}
