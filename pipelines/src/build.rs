//! From a [`BuildPlan`] to the build that `orchestra-image-build` runs.

use orchestra::{Error, ImageRef, Name, VolumeId};
use orchestra_image_build::{AdditionalTarget, BuildCache, BuildInput, BuildOutput, ImageBuild};

use orchestra_secrets::Secrets;

use crate::{Artifact, BuildPlan};

/// Logs a build in, as the client of the [`Secrets`] does, to the registries that it names and has no credentials for; to
/// none if they have no [`client_config`](Secrets::client_config).
///
/// # Errors
/// Those of [`Secrets::registry_of_all`].
pub async fn log_in(build: &mut ImageBuild, secrets: &Secrets) -> orchestra::Result<()> {
    for (host, repositories) in build.without_credentials() {
        if let Some(credentials) = secrets.registry_of_all(&host, &repositories).await? {
            build.log_in(&host, credentials);
        }
    }
    Ok(())
}

type Set = fn(&mut ImageBuild, &BuildPlan);

/// Each key of a `build_image` step, and what it sets.
const KEYS: [(&str, Set); 40] = [
    ("tag", |build, plan| build.tag = plan.tag.clone()),
    ("dockerfile", |build, plan| {
        build.dockerfile.clone_from(&plan.dockerfile)
    }),
    ("push", |build, plan| build.push = plan.push),
    ("load", |build, plan| build.load = plan.load),
    // The path is the build's from its beginning.
    ("context", |build, plan| {
        build.options.context_url.clone_from(&plan.options.context_url)
    }),
    ("ssh", |build, plan| build.ssh.clone_from(&plan.ssh)),
    ("build_args_file", |build, plan| {
        build
            .options
            .build_args_files
            .clone_from(&plan.options.build_args_files)
    }),
    ("labels_file", |build, plan| {
        build.options.labels_files.clone_from(&plan.options.labels_files)
    }),
    ("image_args", |build, plan| {
        build.options.image_args.clone_from(&plan.options.image_args)
    }),
    ("run_network", |build, plan| {
        build.options.run_network = plan.options.run_network
    }),
    ("sbom", |build, plan| build.options.sbom.clone_from(&plan.options.sbom)),
    ("cache_limit", |build, plan| {
        build.options.cache_limit = plan.options.cache_limit.or(plan.state_limit())
    }),
    // Where they are is told by their volumes.
    ("additional_targets", |_, _| ()),
    ("build_args", |build, plan| {
        build.build_args.clone_from(&plan.build_args)
    }),
    ("secrets", |build, plan| {
        build.secrets.clone_from(&plan.secrets);
        build.options.secret_files.clone_from(&plan.options.secret_files);
    }),
    ("target", |build, plan| build.target.clone_from(&plan.target)),
    ("platforms", |build, plan| build.platforms.clone_from(&plan.platforms)),
    ("image", |build, plan| {
        plan.image.iter().for_each(|image| build.image = image.clone())
    }),
    ("env", |build, plan| build.env.clone_from(&plan.env)),
    ("registry", |build, plan| {
        build.registry.clone_from(&plan.registry);
        build.base_registries.clone_from(&plan.registries);
    }),
    ("network", |build, plan| build.network = plan.network),
    ("tags", |build, plan| build.options.tags.clone_from(&plan.options.tags)),
    ("labels", |build, plan| {
        build.options.labels.clone_from(&plan.options.labels)
    }),
    ("annotations", |build, plan| {
        build.options.annotations.clone_from(&plan.options.annotations)
    }),
    ("extra_hosts", |build, plan| {
        build.options.extra_hosts.clone_from(&plan.options.extra_hosts)
    }),
    ("ulimits", |build, plan| {
        build.options.ulimits.clone_from(&plan.options.ulimits)
    }),
    ("shm_size", |build, plan| build.options.shm_size = plan.options.shm_size),
    ("no_cache", |build, plan| build.options.no_cache = plan.options.no_cache),
    ("no_cache_filter", |build, plan| {
        build.options.no_cache_filter.clone_from(&plan.options.no_cache_filter)
    }),
    ("build_contexts", |build, plan| {
        build.options.build_contexts.clone_from(&plan.options.build_contexts)
    }),
    ("dockerfile_inline", |build, plan| {
        build
            .options
            .dockerfile_inline
            .clone_from(&plan.options.dockerfile_inline)
    }),
    ("frontend", |build, plan| {
        build.options.frontend.clone_from(&plan.options.frontend)
    }),
    ("source_date_epoch", |build, plan| {
        build.options.source_date_epoch = plan.options.source_date_epoch
    }),
    ("provenance", |build, plan| {
        build.options.provenance = plan.options.provenance
    }),
    // Where they are is told by their volumes.
    ("outputs", |_, _| ()),
    ("cache_from", |build, plan| {
        build.options.cache_from.clone_from(&plan.options.cache_from)
    }),
    ("cache_to", |build, plan| {
        build.options.cache_to.clone_from(&plan.options.cache_to)
    }),
    ("mirrors", |build, plan| {
        build.options.mirrors.clone_from(&plan.options.mirrors)
    }),
    ("buildkitd_config", |build, plan| {
        build
            .options
            .buildkitd_config
            .clone_from(&plan.options.buildkitd_config)
    }),
    // After the caches themselves, which are to blame for what is wrong with them.
    ("cache_credentials", |build, plan| {
        build.cache_credentials.clone_from(&plan.cache_credentials);
        build.options.cache_from.clone_from(&plan.options.cache_from);
        build.options.cache_to.clone_from(&plan.options.cache_to);
    }),
];

impl BuildPlan {
    /// The artifacts that are mounted: the inputs, then the outputs.
    pub(crate) fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        self.inputs
            .iter()
            .chain(self.outputs.iter().map(|(artifact, _)| artifact))
            .chain(self.additional_targets.iter().map(|(_, artifact, _)| artifact))
    }

    /// What the cache of BuildKit's own state may take where it is persisted.
    fn state_limit(&self) -> Option<u64> {
        let state = self
            .caches
            .iter()
            .find(|cache| cache.path.as_str() == "/var/lib/buildkit")?;
        state.size_limit
    }

    /// The build, on these volumes: those of the [artifacts](Self::artifacts), then those of the caches.
    pub(crate) fn image_build(&self, name: &Name, volumes: impl IntoIterator<Item = VolumeId>) -> ImageBuild {
        let mut volumes = volumes.into_iter();
        let mut build = ImageBuild::new(name.clone(), self.tag.clone(), self.context.clone());
        let inputs = self.inputs.iter().zip(volumes.by_ref());
        build.inputs = inputs
            .map(|(input, volume)| BuildInput {
                volume,
                path: input.path.clone(),
            })
            .collect();
        let outputs = self.outputs.iter().zip(volumes.by_ref());
        build.outputs = outputs
            .map(|((output, format), volume)| BuildOutput {
                volume,
                path: output.path.clone(),
                format: *format,
            })
            .collect();
        let additional = self.additional_targets.iter().zip(volumes.by_ref());
        build.additional_targets = additional
            .map(|((target, output, format), volume)| {
                let (path, format) = (output.path.clone(), *format);
                AdditionalTarget::new(target, BuildOutput { volume, path, format })
            })
            .collect();
        let caches = self.caches.iter().zip(volumes);
        build.caches = caches
            .map(|(cache, volume)| BuildCache {
                volume,
                path: cache.path.clone(),
            })
            .collect();
        KEYS.iter().for_each(|(_, set)| set(&mut build, self));
        build
    }

    /// What `orchestra-image-build` would refuse, with the key to blame. It does not matter here which volumes there are.
    pub(crate) fn problems(&self, name: &Name) -> Vec<(&'static str, Error)> {
        let (Ok(volume), Ok(tag)) = (VolumeId::new("any"), ImageRef::new("any")) else {
            return Vec::new();
        };
        let mut bare = self.clone();
        bare.caches.clear();
        bare.outputs.clear();
        bare.additional_targets.clear();
        let base = || {
            let mut build = ImageBuild::new(name.clone(), tag.clone(), self.context.clone());
            build.inputs = bare
                .image_build(name, self.inputs.iter().map(|_| volume.clone()))
                .inputs;
            // Several platforms are a problem of `platforms`, and only without it.
            build.push = self.push;
            // It may have no input.
            build.options.context_url.clone_from(&self.options.context_url);
            build
        };
        let of_base = std::iter::once(("name", base()));
        let of_keys = KEYS.iter().map(|(key, set)| {
            let mut build = base();
            if ["platforms", "outputs", "additional_targets", "load"].contains(key) {
                let whole = self.image_build(name, self.artifacts().map(|_| volume.clone()));
                // Each with what it can be to blame for, and nothing that another one is.
                if *key == "additional_targets" {
                    build.additional_targets = whole.additional_targets;
                } else {
                    (build.outputs, build.load) = (whole.outputs, self.load);
                }
            }
            if ["provenance", "sbom"].contains(key) {
                build.load = self.load.filter(|_| self.push);
            }
            if key.starts_with("cache_") {
                // Layers may be in a cache, and must not be under the image's name.
                build.tag = self.tag.clone();
                build.rootless = self.rootless.unwrap_or(false);
                build.caches = self
                    .caches
                    .iter()
                    .map(|cache| BuildCache {
                        volume: volume.clone(),
                        path: cache.path.clone(),
                    })
                    .collect();
            }
            set(&mut build, self);
            (*key, build)
        });
        let mut problems: Vec<(&'static str, Error)> = Vec::new();
        for (key, build) in of_base.chain(of_keys) {
            let Err(orchestra_image_build::BuildError::Job(error)) = build.validate() else {
                continue;
            };
            // What is wrong with the base is wrong with each key on it.
            if !problems.iter().any(|(_, known)| known.message() == error.message()) {
                problems.push((key, error));
            }
        }
        problems
    }
}
