//! The command line, as clap reads it.

use std::path::PathBuf;
use std::time::Duration;

use crate::build::{AlsoTarget, Destination};
use clap::{Args, Parser, Subcommand};
use orchestra::{ExtraHost, ImageRef, JobId, NetworkMode, Platform, Ulimit};
use orchestra_caches::CacheKey;
use orchestra_image_build::{CacheFrom, CacheTo, Provenance, Sbom};
use orchestra_pipelines::parse_size;

use crate::duration;
use crate::secrets::{SecretArgs, SecretsArgs, VariableArgs};

/// Runs CI pipelines and builds images on container engines.
///
/// Exit codes: 0 success, 1 a step failed, 2 bad input, 3 the engine, or a registry that a task's image comes from, failed, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "orchestra", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a pipeline
    Run(RunArgs),
    /// Check a pipeline without running it
    Validate(ValidateArgs),
    /// Draw a pipeline's plan
    Graph(GraphArgs),
    /// Print the JSON Schema of pipelines, for editors
    Schema,
    /// Write a pipeline to begin with
    Init(InitArgs),
    /// Build an image from a directory
    Build(Box<BuildArgs>),
    /// Keep secrets in an encrypted file
    Secrets(SecretsArgs),
    /// Show which engine is used, what it can do, and what is wrong with it
    Doctor(DoctorArgs),
    /// Remove what runs that died left in the engine
    Gc(GcArgs),
    /// Look after the store of caches
    Caches(CachesArgs),
}

/// What every command that talks to an engine takes.
#[derive(Debug, Default, Args)]
pub(crate) struct EngineArgs {
    /// Which driver talks to the engine: docker, podman, containerd, or auto for the first of them that answers [default: docker]
    #[arg(long, value_name = "NAME")]
    pub(crate) driver: Option<String>,
    /// The configuration file [default: orchestra.toml, where there is one]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct ShowArgs {
    /// Print events on standard output, one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Print all output as plain lines, on a terminal too
    #[arg(long, conflicts_with = "json")]
    pub(crate) plain: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The pipeline's file
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// The run's id: one that died is carried on when it is given again
    #[arg(long, value_name = "ID")]
    pub(crate) run_id: Option<JobId>,
    /// Carry on with the run of this id, and begin none: refused if there is none, or if the pipeline has changed
    #[arg(long, requires = "run_id")]
    pub(crate) resume: bool,
    /// Run only this job
    #[arg(long, value_name = "NAME")]
    pub(crate) job: Option<String>,
    #[command(flatten)]
    pub(crate) secrets: SecretArgs,
    #[command(flatten)]
    pub(crate) variables: VariableArgs,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    /// Leave containers and volumes in the engine, to look at; `orchestra gc` removes them
    #[arg(long)]
    pub(crate) keep: bool,
    /// Neither restore nor persist caches
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Write a page with the plan, a timeline and all logs there
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Write the result of each step there, as JUnit's XML
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    /// The pipeline's file
    pub(crate) file: PathBuf,
    /// The configuration file [default: orchestra.toml, where there is one]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) secrets: SecretArgs,
    #[command(flatten)]
    pub(crate) variables: VariableArgs,
    /// How it is drawn
    #[arg(long, value_name = "FORMAT", default_value = "mermaid")]
    pub(crate) format: GraphFormat,
}

/// How a plan is drawn.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum GraphFormat {
    /// A Mermaid flow chart, which Markdown of many hosts shows
    Mermaid,
    /// A picture
    Svg,
}

#[derive(Debug, Args)]
pub(crate) struct CachesArgs {
    #[command(subcommand)]
    pub(crate) command: CachesCommand,
    /// The configuration file [default: orchestra.toml, where there is one]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// The store's address, instead of the configured one
    #[arg(long, value_name = "URL", global = true)]
    pub(crate) store: Option<String>,
    #[command(flatten)]
    pub(crate) secrets: SecretArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CachesCommand {
    /// List caches, the one that was persisted last first
    List {
        /// Only those whose keys begin with this
        #[arg(default_value = "")]
        prefix: String,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of a cache
    Inspect {
        /// The cache, as `orchestra caches list` calls it
        key: CacheKey,
    },
    /// Remove caches
    Rm {
        /// The caches, as `orchestra caches list` calls them
        #[arg(required = true)]
        keys: Vec<CacheKey>,
    },
    /// Remove caches by age and size, and what no cache uses any more
    Prune {
        /// Remove caches that were not persisted for so long [default: the configured time to live]
        #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
        older_than: Option<Duration>,
        /// Keep the newest caches, and none from the first on with which they take more than this; content that several
        /// have in common counts for each
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        keep_size: Option<u64>,
        /// How long unused objects are kept; longer than any run restores or persists [default: 1d]
        #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
        grace: Option<Duration>,
        /// Only tell what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Read all caches and compare them with their hashes; exit code 1 if one is damaged
    Verify {
        /// Only those whose keys begin with this
        #[arg(default_value = "")]
        prefix: String,
        /// Delete what is damaged, so that the next run persists it anew
        #[arg(long)]
        repair: bool,
    },
    /// Write a cache's content to a file, as a tar
    Export {
        /// The cache, as `orchestra caches list` calls it
        key: CacheKey,
        /// The file, or `-` for standard output
        file: PathBuf,
    },
    /// Make a cache of a tar
    Import {
        /// What to call it: FILE/JOB/STEP/KEY for a cache that a step of a pipeline is to find
        key: CacheKey,
        /// The file, or `-` for standard input
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// The pipeline's file
    pub(crate) file: PathBuf,
    /// The configuration file [default: orchestra.toml, where there is one]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) secrets: SecretArgs,
    #[command(flatten)]
    pub(crate) variables: VariableArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Where
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// In TypeScript, with the declarations that editors and compilers need
    #[arg(long)]
    pub(crate) ts: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The directory that is the build's context, or a git or https URL that BuildKit fetches
    #[arg(default_value = ".", value_name = "DIR|URL")]
    pub(crate) dir: PathBuf,
    /// The image's name, for example registry.example.com/team/app:1.2; may be given more than once, and the first is the
    /// one that the result is reported by
    #[arg(short, long = "tag", value_name = "IMAGE", required = true)]
    pub(crate) tags: Vec<ImageRef>,
    /// The Dockerfile, relative to the context [default: Dockerfile]
    #[arg(short = 'f', long, value_name = "DOCKERFILE")]
    pub(crate) file: Option<String>,
    /// An image that reads the Dockerfile, instead of BuildKit's own frontend
    #[arg(long, value_name = "IMAGE")]
    pub(crate) frontend: Option<ImageRef>,
    /// Set a build argument; without a value, that of the environment is taken
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(crate) build_args: Vec<String>,
    /// Read build arguments from a file with lines of NAME=VALUE; --build-arg wins
    #[arg(long = "build-arg-file", value_name = "FILE")]
    pub(crate) build_arg_files: Vec<PathBuf>,
    /// Let RUN --mount=type=ssh use a key of this file; without an id it is the default one
    #[arg(long = "ssh", value_name = "[ID=]FILE")]
    pub(crate) ssh: Vec<String>,
    /// Let FROM $NAME be the image of this archive or OCI layout in the context
    #[arg(long = "image-arg", value_name = "NAME=PATH")]
    pub(crate) image_args: Vec<String>,
    /// Set a variable of the build container, for example of a proxy; without a value, that of the environment is taken
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Label the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(crate) labels: Vec<String>,
    /// Read labels from a file with lines of NAME=VALUE; --label wins
    #[arg(long = "label-file", value_name = "FILE")]
    pub(crate) label_files: Vec<PathBuf>,
    /// Annotate the image's manifest, if it is pushed
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub(crate) annotations: Vec<String>,
    /// Add a line to /etc/hosts of RUN steps
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    pub(crate) extra_hosts: Vec<ExtraHost>,
    /// Limit processes of RUN steps, for example nofile=1024:2048
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimits: Vec<Ulimit>,
    /// The network of RUN steps: none, or host, which is the build container's
    #[arg(long, value_name = "MODE")]
    pub(crate) run_network: Option<NetworkMode>,
    /// The size of /dev/shm in RUN steps, for example 256MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) shm_size: Option<u64>,
    /// Run every step, whatever a cache has
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Run every step of this stage, whatever a cache has; may be given more than once
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,
    /// What the Dockerfile knows as NAME: docker-image://IMAGE, oci-layout://PATH in the context, or a URL with https or git
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    pub(crate) build_contexts: Vec<String>,
    /// Date the image to these seconds since 1970, so that the same context gives the same digest
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    pub(crate) source_date_epoch: Option<u64>,
    /// Attach an attestation of how the image was built, if it is pushed: min, or max
    #[arg(long, value_name = "MODE")]
    pub(crate) provenance: Option<Provenance>,
    /// Attach a list of what is in the image, if it is pushed, made by this image or by BuildKit's own choice
    #[arg(long, value_name = "IMAGE", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) sbom: Option<Sbom>,
    /// Take layers from there: type=registry,ref=NAME, a NAME alone, or type=s3,bucket=NAME,region=NAME, which
    /// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY open; may be given more than once
    #[arg(long = "cache-from", value_name = "CACHE")]
    pub(crate) cache_from: Vec<CacheFrom>,
    /// Put layers there: `type=inline`, `type=registry,ref=NAME[,mode=max][,ignore-error=true]`, `type=s3,…`, or a NAME alone
    #[arg(long = "cache-to", value_name = "CACHE")]
    pub(crate) cache_to: Vec<CacheTo>,
    /// Ask this host before the registry's own; may be given more than once
    #[arg(long = "registry-mirror", value_name = "REGISTRY=HOST")]
    pub(crate) mirrors: Vec<String>,
    /// A file with BuildKit's own configuration
    #[arg(long, value_name = "FILE")]
    pub(crate) buildkitd_config: Option<PathBuf>,
    /// Write the image to a file too: type=oci,dest=FILE, or type=docker,dest=FILE; may be given more than once
    #[arg(short = 'o', long = "output", value_name = "OUTPUT")]
    pub(crate) outputs: Vec<Destination>,
    /// Build this stage too, and write it to a file: STAGE=type=oci,dest=FILE; may be given more than once
    #[arg(long = "also-target", value_name = "STAGE=OUTPUT")]
    pub(crate) additional_targets: Vec<AlsoTarget>,
    /// The BuildKit image that builds
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<ImageRef>,
    /// Build without privileges, in a user namespace
    #[arg(long)]
    pub(crate) rootless: bool,
    /// Stop at this stage of the Dockerfile
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Build for this platform, for example linux/arm64; may be given more than once
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
    pub(crate) platforms: Vec<Platform>,
    /// Push the image to its registry instead of loading it into the engine
    #[arg(long)]
    pub(crate) push: bool,
    /// Load the image into the engine though it is pushed
    #[arg(long)]
    pub(crate) load: bool,
    /// Check the registry's certificate with the authorities of this file too
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub(crate) registry_ca: Option<PathBuf>,
    /// The certificate by which the registry knows this client
    #[arg(long, value_name = "FILE", requires = "registry_key")]
    pub(crate) registry_cert: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "registry_cert")]
    pub(crate) registry_key: Option<PathBuf>,
    /// Speak plain HTTP to the registry
    #[arg(long)]
    pub(crate) insecure: bool,
    /// The registry that user name and certificates are for [default: the tag's]
    #[arg(long, value_name = "HOST")]
    pub(crate) registry: Option<String>,
    /// The user name for the registry
    #[arg(long, requires = "password_stdin")]
    pub(crate) username: Option<String>,
    /// Read the registry's password from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    /// The build container's network: default, none, or host, which reaches a registry on loopback
    #[arg(long, value_name = "MODE")]
    pub(crate) network: Option<NetworkMode>,
    /// End the build when it takes longer, for example 10m
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// How often it is tried at most
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) attempts: u32,
    #[command(flatten)]
    pub(crate) secrets: SecretArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    /// Leave container and volumes in the engine, to look at; `orchestra gc` removes them
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Print the findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Also remove what runs left that can't be seen from here (other machines, other containers), if it is this old
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) older_than: Option<Duration>,
    /// Only tell what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_password_is_never_an_argument() {
        let refused = Cli::try_parse_from(["orchestra", "build", "-t", "a", "--username", "u"]).unwrap_err();
        assert!(refused.to_string().contains("--password-stdin"), "{refused}");
        assert!(Cli::try_parse_from(["orchestra", "build", "-t", "a", "--password", "p"]).is_err());
    }

    #[test]
    fn a_tag_that_is_not_valid_is_refused_with_the_form_it_has() {
        let refused = Cli::try_parse_from(["orchestra", "build", "-t", "UPPER"]).unwrap_err();
        assert!(refused.to_string().contains("UPPER"), "{refused}");
    }
}
