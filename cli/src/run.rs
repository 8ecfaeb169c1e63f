//! `orchestra run`: a pipeline from its file to its summary.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use orchestra::{JobId, Name};
use orchestra_pipelines::{Pipeline, RunOptions, Status, StepKind, Values};
use orchestra_typescript::Script;
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::progress::{Display, Log};
use crate::report::Reports;
use crate::state::StateFile;
use crate::{caches, drivers, interrupt, log, secrets};

pub(crate) async fn run(args: RunArgs) -> Result<Exit, Failure> {
    let config = Config::load(&args.engine)?;
    let secrets = secrets::open(&config.secrets, &args.secrets, &secrets::pipeline_name(&args.file))?;
    log::redact_by(&secrets);
    let caches = match args.no_cache {
        true => None,
        false => caches::configured(&config.caches, &secrets).await?,
    };
    let values = secrets::values(&secrets, &args.variables)?;
    let front = Front::read(&args.file, &values).await?;
    let job = args.job.map(|job| front.job(&job)).transpose()?;
    let reports = Reports::new(args.report.as_deref(), args.junit.as_deref(), || front.svg())?;
    let run_id = args.run_id.as_ref();
    let state = match run_id {
        Some(id) => StateFile::of(id, args.resume, &front.digest())?,
        None => None,
    };
    let driver = drivers::connect(&config, Some(secrets.clone())).await?;

    let privileges = config.privileges();
    let rootless = match &front {
        Front::Yaml(pipeline) => {
            let mut steps = pipeline.jobs.iter().flat_map(|job| job.leaves());
            let has_builds = steps.any(|step| step.kind() == StepKind::BuildImage);
            let rootless = has_builds && config.image_build.is_rootless(&driver).await?;
            config.check_privileges(pipeline, rootless)?;
            rootless
        }
        // What a script makes privileged is known, and refused by the driver's layer, when it asks for it.
        Front::Script(_) => config.image_build.is_rootless(&driver).await?,
    };
    let cancel = CancellationToken::new();
    let display = Display::start(args.show, Log::Stdout, cancel.clone());
    let recording = reports.record(front.name(), display.events())?;
    let interrupts = interrupt::listen(cancel.clone(), driver.clone(), display.jobs(), display.notes())?;

    let mut options = RunOptions::default();
    options.run_id = args.run_id;
    options.state = state.as_ref().map(|file| file.state.clone());
    options.keep = args.keep;
    options.job = job;
    options.cancel = cancel;
    options.events = Some(recording.events());
    options.grace = config.grace;
    options.caches = caches;
    options.rootless = rootless;
    options.privileges = privileges;
    options.buildkit = config.image_build.image;
    options.secrets = Some(secrets);
    options.build_network = config.image_build.network;
    let report = match &front {
        Front::Yaml(pipeline) => orchestra_pipelines::run(pipeline, driver, options).await,
        Front::Script(script) => script.run(driver, options, config.script.options()).await,
    };

    drop(interrupts);
    let unwritten = recording.finish().await;
    display.finish().await;
    for message in unwritten {
        // The run is what it is; nobody is left to tell if standard error is closed.
        writeln!(io::stderr(), "warning: {message}").ok();
    }
    if let Some(state) = state
        && !args.keep
    {
        state.remove();
    }
    if args.keep {
        tell_kept(&report.run_id);
    }
    Ok(exit(report.status))
}

/// Says how to find what was left in the engine.
pub(crate) fn tell_kept(id: &JobId) {
    let kept =
        format!("kept: containers and volumes whose names begin with orchestra.{id}; `orchestra gc` removes them");
    // Nobody is left to tell if standard error is closed.
    writeln!(io::stderr(), "{kept}").ok();
}

/// What a run's end means for who called the program.
pub(crate) fn exit(status: Status) -> Exit {
    match status {
        Status::Succeeded | Status::Skipped => Exit::Success,
        Status::Failed => Exit::StepFailed,
        Status::Errored => Exit::Engine,
        Status::Aborted => Exit::Interrupted,
    }
}

/// A pipeline, by what it is written in.
pub(crate) enum Front {
    Yaml(Pipeline),
    Script(Script),
}

impl Front {
    /// Reads and checks a file; its name tells which it is.
    pub(crate) async fn read(file: &Path, values: &Values) -> Result<Self, Failure> {
        if Script::is_one(file) {
            return Script::read(file).map(Self::Script).map_err(Failure::invalid);
        }
        let pipeline = Pipeline::read_with(file, values).await;
        pipeline.map(Self::Yaml).map_err(Failure::invalid)
    }

    fn name(&self) -> &str {
        match self {
            Self::Yaml(pipeline) => &pipeline.name,
            Self::Script(script) => script.name(),
        }
    }

    /// What tells it from another one.
    fn digest(&self) -> Cow<'_, str> {
        match self {
            Self::Yaml(pipeline) => pipeline.digest().into(),
            Self::Script(script) => script.digest().into(),
        }
    }

    /// The plan as a drawing; a script has none before it runs.
    fn svg(&self) -> String {
        match self {
            Self::Yaml(pipeline) => pipeline.svg(),
            Self::Script(_) => String::new(),
        }
    }

    /// The job of this name; which ones a script has is not known before it runs.
    fn job(&self, name: &str) -> Result<Name, Failure> {
        match self {
            Self::Yaml(pipeline) => find_job(pipeline, name),
            Self::Script(_) => Ok(Name::new(name)?),
        }
    }
}

fn find_job(pipeline: &Pipeline, name: &str) -> Result<Name, Failure> {
    let found = pipeline.jobs.iter().find(|job| job.name.as_str() == name);
    found.map(|job| job.name.clone()).ok_or_else(|| {
        let names: Vec<&str> = pipeline.jobs.iter().map(|job| job.name.as_str()).collect();
        Failure::bad_input(format!("{} has no job {name:?}", pipeline.name))
            .with_hint(format!("there are {}", names.join(", ")))
    })
}
