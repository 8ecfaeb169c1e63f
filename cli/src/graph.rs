//! `orchestra graph`: a pipeline's plan as a picture; `orchestra schema`: what pipelines may say, for editors.

use std::io::Write;

use orchestra_pipelines::Pipeline;
use orchestra_typescript::Script;

use crate::args::{EngineArgs, GraphArgs, GraphFormat};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::secrets;

pub(crate) async fn run(args: &GraphArgs) -> Result<Exit, Failure> {
    if Script::is_one(&args.file) {
        return Err(Failure::bad_input(
            "the steps of a script are known when it runs: there is no plan to draw".to_owned(),
        )
        .with_hint("`orchestra run --report FILE` draws what it has run"));
    }
    let engine = EngineArgs {
        config: args.config.clone(),
        ..EngineArgs::default()
    };
    let config = Config::load(&engine)?;
    let secrets = secrets::open(&config.secrets, &args.secrets, &secrets::pipeline_name(&args.file))?;
    let values = secrets::values(&secrets, &args.variables)?;
    let pipeline = Pipeline::read_with(&args.file, &values)
        .await
        .map_err(Failure::invalid)?;
    let drawn = match args.format {
        GraphFormat::Mermaid => pipeline.mermaid(),
        GraphFormat::Svg => pipeline.svg(),
    };
    // Who does not read the picture needs none.
    std::io::stdout().write_all(drawn.as_bytes()).ok();
    Ok(Exit::Success)
}

pub(crate) fn schema() -> Result<Exit, Failure> {
    writeln!(std::io::stdout(), "{}", orchestra_pipelines::schema()).ok();
    Ok(Exit::Success)
}
