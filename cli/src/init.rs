//! `orchestra init`: the files that a pipeline begins with.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};

use orchestra_typescript::STARTER;

use crate::args::InitArgs;
use crate::exit::{Exit, Failure};

pub(crate) fn run(args: &InitArgs) -> Result<Exit, Failure> {
    if !args.ts {
        return Err(Failure::bad_input("nothing says what kind of pipeline it is to be").with_hint("add --ts"));
    }
    let dir = &args.dir;
    let failed = |what: String, error: std::io::Error| Failure::bad_input(format!("{what}: {error}"));
    fs::create_dir_all(dir).map_err(|error| failed(format!("make the directory {}", dir.display()), error))?;
    let paths = STARTER.map(|(name, text)| (dir.join(name), text));
    // None is written if one is there: half a starter is worse than none.
    if let Some((path, _)) = paths.iter().find(|(path, _)| path.exists()) {
        return Err(Failure::bad_input(format!("{} is there already", path.display()))
            .with_hint("name an empty directory, or remove it"));
    }
    for (path, text) in &paths {
        let written = File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
        match written {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            written => written.map_err(|error| failed(format!("write {}", path.display()), error))?,
        }
        writeln!(std::io::stdout(), "wrote {}", path.display()).ok();
    }
    Ok(Exit::Success)
}
