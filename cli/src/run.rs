//! `orchestra run`: a pipeline from its file to its summary.

use std::io::{self, Write};

use orchestra::{JobId, Name};
use orchestra_pipelines::{Pipeline, RunOptions, Status, StepKind};
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
    let pipeline = Pipeline::read_with(&args.file, &values)
        .await
        .map_err(Failure::invalid)?;
    let job = args.job.map(|job| find_job(&pipeline, &job)).transpose()?;
    let reports = Reports::new(args.report.as_deref(), args.junit.as_deref(), || pipeline.svg())?;
    let run_id = args.run_id.as_ref();
    let state = run_id.map(|id| StateFile::of(id, args.resume, &pipeline));
    let state = state.transpose()?.flatten();
    let driver = drivers::connect(&config, Some(secrets.clone())).await?;

    let mut steps = pipeline.jobs.iter().flat_map(|job| job.leaves());
    let has_builds = steps.any(|step| step.kind() == StepKind::BuildImage);
    let rootless = has_builds && config.image_build.is_rootless(&driver).await?;
    let privileges = config.privileges();
    pipeline.check_privileges(&privileges, rootless, config.image_build.image.as_ref())?;
    let cancel = CancellationToken::new();
    let display = Display::start(args.show, Log::Stdout, cancel.clone());
    let recording = reports.record(&pipeline.name, display.events())?;
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
    let report = orchestra_pipelines::run(&pipeline, driver, options).await;

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

fn find_job(pipeline: &Pipeline, name: &str) -> Result<Name, Failure> {
    let found = pipeline.jobs.iter().find(|job| job.name.as_str() == name);
    found.map(|job| job.name.clone()).ok_or_else(|| {
        let names: Vec<&str> = pipeline.jobs.iter().map(|job| job.name.as_str()).collect();
        Failure::bad_input(format!("{} has no job {name:?}", pipeline.name))
            .with_hint(format!("there are {}", names.join(", ")))
    })
}
