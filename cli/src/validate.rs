//! `orchestra validate`: says what is wrong with a pipeline, or that nothing is.

use std::io::Write;

use orchestra_pipelines::{Pipeline, Problem};
use orchestra_typescript::Script;

use crate::args::{EngineArgs, ValidateArgs};
use crate::caches;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::secrets;

pub(crate) async fn run(args: &ValidateArgs) -> Result<Exit, Failure> {
    let engine = EngineArgs {
        config: args.config.clone(),
        ..EngineArgs::default()
    };
    if Script::is_one(&args.file) {
        return script(args);
    }
    let config = Config::load(&engine)?;
    let secrets = secrets::open(&config.secrets, &args.secrets, &secrets::pipeline_name(&args.file))?;
    let values = secrets::values(&secrets, &args.variables)?;
    // What is wrong with the store's settings is told here too, unless they are secrets.
    if config.caches.references()?.is_empty() {
        caches::configured(&config.caches, &secrets).await?;
    }
    let permitted = |pipeline: &Pipeline| config.check_privileges(pipeline, config.image_build.may_be_rootless());
    let wrong = |file: &str, problems: serde_json::Value| {
        let answer = serde_json::json!({"valid": false, "file": file, "problems": problems});
        (answer.to_string(), Exit::BadInput)
    };
    let (answer, exit) = match Pipeline::read_with(&args.file, &values).await {
        Err(invalid) if !args.json => return Err(Failure::invalid(invalid)),
        Err(invalid) => wrong(invalid.name(), serde_json::json!(invalid.problems())),
        Ok(pipeline) if let Err(refused) = permitted(&pipeline) => {
            if !args.json {
                return Err(refused.into());
            }
            let problem = serde_json::json!({"message": refused.to_string(), "help": refused.hint(), "places": []});
            wrong(&pipeline.name, serde_json::json!([problem]))
        }
        Ok(pipeline) => {
            let steps: usize = pipeline.jobs.iter().map(|job| job.leaves().len()).sum();
            let jobs = pipeline.jobs.len();
            let answer = if args.json {
                let notes = pipeline.notes();
                serde_json::json!({"valid": true, "file": pipeline.name, "jobs": jobs, "steps": steps, "notes": notes})
                    .to_string()
            } else {
                let note = |note: &Problem| {
                    let line = note.line().unwrap_or_default();
                    format!("{}:{line}: note: {note}\n", pipeline.name)
                };
                format!(
                    "{}{} is valid: {}, {}",
                    pipeline.notes().iter().map(note).collect::<String>(),
                    pipeline.name,
                    count(jobs, "job"),
                    count(steps, "step")
                )
            };
            (answer, Exit::Success)
        }
    };
    // Who does not read the answer has the exit code.
    writeln!(std::io::stdout(), "{answer}").ok();
    Ok(exit)
}

/// Which steps a script has is known when it runs: what can be told before is its syntax and its imports.
fn script(args: &ValidateArgs) -> Result<Exit, Failure> {
    let (answer, exit) = match Script::read(&args.file) {
        Err(invalid) if !args.json => return Err(Failure::invalid(invalid)),
        Err(invalid) => {
            let answer = serde_json::json!({"valid": false, "file": invalid.name(), "problems": invalid.problems()});
            (answer.to_string(), Exit::BadInput)
        }
        Ok(script) if args.json => {
            let answer = serde_json::json!({"valid": true, "file": script.name(), "modules": script.modules()});
            (answer.to_string(), Exit::Success)
        }
        Ok(script) => {
            let answer = format!("{} is valid: {}", script.name(), count(script.modules(), "module"));
            (answer, Exit::Success)
        }
    };
    writeln!(std::io::stdout(), "{answer}").ok();
    Ok(exit)
}

/// `1 job`, `2 jobs`.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
