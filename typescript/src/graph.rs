//! A pipeline's modules: the entry and all that it imports, read before anything runs.
//!
//! An import is relative and stays in the entry's folder, symbolic links followed: a pipeline that comes from elsewhere
//! reads nothing else of this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use orchestra_pipelines::{Invalid, Problem};

use crate::depth;
use crate::source::{self, Module};
use crate::strip::{self, ENTRY};

/// A module that is larger was not written by a person.
const MAX_BYTES: u64 = 512 << 10;
const MAX_MODULES: usize = 500;
/// What may be left out of an import's end.
const EXTENSIONS: [&str; 4] = ["ts", "js", "mts", "mjs"];

/// All modules, each under its path.
#[derive(Clone, Debug)]
pub(crate) struct Graph {
    pub(crate) entry: PathBuf,
    pub(crate) modules: BTreeMap<PathBuf, Module>,
}

impl Graph {
    /// Reads all modules from the entry on.
    ///
    /// # Errors
    /// What is wrong with the first file that is not valid.
    pub(crate) fn read(entry: &Path) -> Result<Self, Invalid> {
        let name = entry.display().to_string();
        let path = entry.canonicalize().map_err(|error| unreadable(&name, &error))?;
        let root = path.parent().unwrap_or(Path::new("/")).to_owned();
        let here = entry.parent().unwrap_or(Path::new("")).to_owned();
        let mut graph = Self {
            entry: path.clone(),
            modules: BTreeMap::new(),
        };
        let mut wanted = vec![path];
        while let Some(path) = wanted.pop() {
            if graph.modules.contains_key(&path) {
                continue;
            }
            let shown = here
                .join(path.strip_prefix(&root).unwrap_or(&path))
                .display()
                .to_string();
            if graph.modules.len() == MAX_MODULES {
                let message = format!("the pipeline has more than {MAX_MODULES} modules");
                return Err(Invalid::file(&shown, message, "leave out what it does not need"));
            }
            let module = graph.module(&root, path.clone(), shown)?;
            wanted.extend(module.imports.iter().map(|(_, path)| path.clone()));
            graph.modules.insert(path, module);
        }
        Ok(graph)
    }

    fn module(&self, root: &Path, path: PathBuf, name: String) -> Result<Module, Invalid> {
        let text = text(&path, &name)?;
        let invalid = |problems| Invalid::new(&name, &text, "typescript", problems);
        if let Some(at) = depth::too_deep(&text) {
            let help = "check that it is the file you mean, or give its parts names".to_owned();
            let message = "what is written here is within too much else".to_owned();
            return Err(invalid(vec![source::problem(&text, at..at + 1, message, Some(help))]));
        }
        let stripped = depth::with_room(|| strip::strip(&path, &text));
        let stripped = stripped.map_err(|error| Invalid::file(&name, error.to_string(), "simplify it"))?;
        let stripped = stripped.map_err(invalid)?;
        let mut problems = Vec::new();
        let mut imports = Vec::new();
        for (specifier, span) in stripped.imports {
            match resolve(root, &path, &specifier) {
                Ok(found) => imports.push((specifier, found)),
                Err((message, help)) => {
                    problems.push(source::problem(&text, span, message, Some(help.to_owned())));
                }
            }
        }
        if path == self.entry && !stripped.exports_pipeline {
            let message = format!("the file exports no `{ENTRY}`");
            let help = format!("end it with `export {{ {ENTRY} }};`, where `{ENTRY}` is an async function");
            problems.push(Problem::new(message, Some(help), Vec::new()));
        }
        if !problems.is_empty() {
            return Err(invalid(problems));
        }
        Ok(Module {
            code: stripped.code,
            map: stripped.map,
            imports,
            name,
        })
    }
}

/// Where an import leads.
fn resolve(root: &Path, from: &Path, specifier: &str) -> Result<PathBuf, (String, &'static str)> {
    if !specifier.starts_with("./") && !specifier.starts_with("../") {
        let message = format!("`{specifier}` is no file of the pipeline");
        return Err((
            message,
            "import files alone, as `./name` or `./name.ts`: there are no packages here",
        ));
    }
    let base = from.parent().unwrap_or(root).join(specifier);
    let mut candidates = vec![base.clone()];
    candidates.extend(EXTENSIONS.iter().map(|extension| {
        let mut name = base.clone().into_os_string();
        name.push(".");
        name.push(extension);
        PathBuf::from(name)
    }));
    // What TypeScript writes for a module that is `.ts` on disk.
    if base.extension().is_some_and(|extension| extension == "js") {
        candidates.push(base.with_extension("ts"));
    }
    let found = candidates.iter().find(|path| path.is_file());
    let Some(found) = found.and_then(|path| path.canonicalize().ok()) else {
        let message = format!("there is no file `{specifier}`");
        return Err((message, "check the path; it is relative to the file that imports it"));
    };
    if !found.starts_with(root) {
        let message = format!("`{specifier}` is outside of the pipeline's folder");
        return Err((message, "move it into the folder that the pipeline's file is in"));
    }
    Ok(found)
}

fn text(path: &Path, name: &str) -> Result<String, Invalid> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| unreadable(name, &error))?;
    if bytes.len() as u64 > MAX_BYTES {
        let message = format!("it is larger than {} KiB", MAX_BYTES >> 10);
        return Err(Invalid::file(
            name,
            message,
            "check that it is the file you mean, or split it",
        ));
    }
    String::from_utf8(bytes).map_err(|_| Invalid::file(name, "it is not UTF-8 text", "save it as UTF-8"))
}

fn unreadable(name: &str, error: &std::io::Error) -> Invalid {
    let help = match error.kind() {
        std::io::ErrorKind::NotFound => "check the path; it is relative to where you are",
        std::io::ErrorKind::PermissionDenied => "check the file's permissions",
        _ => "check that it is a file that can be read",
    };
    let message = match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    };
    Invalid::file(name, message, help)
}
