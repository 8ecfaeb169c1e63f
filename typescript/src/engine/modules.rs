//! How the interpreter gets its modules: out of what was read before it started, and nothing else.

use std::collections::HashMap;
use std::rc::Rc;

use rquickjs::loader::{ImportAttributes, Loader, Resolver};
use rquickjs::module::Declared;
use rquickjs::{Ctx, Error, Module, Result};

use crate::graph::Graph;

/// Modules by their names.
pub(super) struct Modules(
    HashMap<String, crate::source::Module>,
    HashMap<(String, String), String>,
);

impl Modules {
    pub(super) fn new(graph: &Graph) -> Rc<Self> {
        let modules = graph.modules.values();
        let by_name = modules
            .clone()
            .map(|module| (module.name.clone(), module.clone()))
            .collect();
        let mut imports = HashMap::new();
        for module in modules {
            for (specifier, path) in &module.imports {
                if let Some(imported) = graph.modules.get(path) {
                    imports.insert((module.name.clone(), specifier.clone()), imported.name.clone());
                }
            }
        }
        Rc::new(Self(by_name, imports))
    }

    /// A place in the user's text: `ci.ts:3:9`.
    pub(super) fn place(&self, file: &str, line: u32, column: u32) -> String {
        let (line, column) = match self.0.get(file) {
            Some(module) => module.original(line, column),
            None => (line, column),
        };
        format!("{file}:{line}:{column}")
    }
}

pub(super) struct Known(pub(super) Rc<Modules>);

impl Resolver for Known {
    fn resolve<'js>(
        &mut self,
        _: &Ctx<'js>,
        base: &str,
        name: &str,
        _: Option<ImportAttributes<'js>>,
    ) -> Result<String> {
        if base == super::PRELUDE && self.0.0.contains_key(name) {
            return Ok(name.to_owned());
        }
        let known = self.0.1.get(&(base.to_owned(), name.to_owned()));
        known.cloned().ok_or_else(|| {
            Error::new_resolving_message(
                base,
                name,
                "what is imported while a script runs has to be imported statically somewhere too",
            )
        })
    }
}

impl Loader for Known {
    fn load<'js>(
        &mut self,
        ctx: &Ctx<'js>,
        name: &str,
        _: Option<ImportAttributes<'js>>,
    ) -> Result<Module<'js, Declared>> {
        let module = self.0.0.get(name).ok_or_else(|| Error::new_loading(name))?;
        Module::declare(ctx.clone(), name, module.code.as_bytes())
    }
}
