//! TypeScript to JavaScript: types are taken out, nothing is checked of them.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use orchestra_pipelines::Problem;
use oxc_allocator::Allocator;
use oxc_ast::ast::{Program, Statement};
use oxc_codegen::{Codegen, CodegenOptions};
use oxc_diagnostics::OxcDiagnostic;
use oxc_parser::Parser;
use oxc_semantic::SemanticBuilder;
use oxc_span::{GetSpan, SourceType};
use oxc_syntax::module_record::ExportLocalName;
use oxc_transformer::{TransformOptions, Transformer};

use crate::source;

/// A module's code.
#[derive(Debug)]
pub(crate) struct Stripped {
    pub(crate) code: Arc<str>,
    pub(crate) map: Option<Arc<oxc_sourcemap::SourceMap<'static>>>,
    /// What it imports, as written, and where that stands.
    pub(crate) imports: Vec<(String, Range<usize>)>,
    /// Whether it exports [`ENTRY`].
    pub(crate) exports_pipeline: bool,
}

/// What the entry has to export.
pub(crate) const ENTRY: &str = "pipeline";

/// Takes the types out of a module.
///
/// # Errors
/// All that is wrong with its syntax.
pub(crate) fn strip(path: &Path, text: &str) -> Result<Stripped, Vec<Problem>> {
    let allocator = Allocator::default();
    let source_type = SourceType::from_path(path)
        .unwrap_or_else(|_| SourceType::ts())
        .with_module(true);
    let parsed = Parser::new(&allocator, text, source_type).parse();
    if parsed.panicked || !parsed.diagnostics.is_empty() {
        return Err(problems(text, parsed.diagnostics));
    }
    let mut program = parsed.program;
    // The transformer needs the values of enums.
    let semantic = SemanticBuilder::new()
        .with_check_syntax_error(true)
        .with_enum_eval(true)
        .build(&program);
    if !semantic.diagnostics.is_empty() {
        return Err(problems(text, semantic.diagnostics));
    }
    let record = &parsed.module_record;
    // A name that is nowhere is an error of the parser's for JavaScript alone, as another file's types may have it.
    let undeclared = record
        .local_export_entries
        .iter()
        .filter_map(|export| match &export.local_name {
            ExportLocalName::Name(local) => Some(local),
            _ => None,
        });
    let scoping = semantic.semantic.scoping();
    let undeclared = undeclared.filter(|local| scoping.get_root_binding(local.name.as_str().into()).is_none());
    let undeclared: Vec<Problem> = undeclared
        .map(|local| {
            let message = format!("`{}` is exported, and declared nowhere", local.name);
            source::problem(text, range(local.span), message, None)
        })
        .collect();
    if !undeclared.is_empty() {
        return Err(undeclared);
    }
    // Whether `export *` brings it is seen when it runs.
    let exports_pipeline = record.exported_bindings.contains_key(ENTRY) || !record.star_export_entries.is_empty();
    let scoping = semantic.semantic.into_scoping();
    let options = TransformOptions::default();
    let transformed = Transformer::new(&allocator, path, &options).build_with_scoping(scoping, &mut program);
    if !transformed.diagnostics.is_empty() {
        return Err(problems(text, transformed.diagnostics));
    }
    // Imports of types alone are gone by now.
    let imports = imports(&program);
    let options = CodegenOptions {
        source_map_path: Some(path.to_owned()),
        ..CodegenOptions::default()
    };
    let generated = Codegen::new().with_options(options).build(&program);
    Ok(Stripped {
        code: generated.code.into(),
        map: generated.map.map(|map| Arc::new(map.into_owned())),
        imports,
        exports_pipeline,
    })
}

fn range(span: oxc_span::Span) -> Range<usize> {
    span.start as usize..span.end as usize
}

fn problems(text: &str, errors: impl IntoIterator<Item = OxcDiagnostic>) -> Vec<Problem> {
    let problem = |error: OxcDiagnostic| {
        let label = error.labels.first();
        let span = label.map_or(0..0, |label| {
            label.offset() as usize..(label.offset() + label.len()) as usize
        });
        let help = error.help.as_ref().map(ToString::to_string);
        source::problem(text, span, error.message.to_string(), help)
    };
    let mut problems: Vec<Problem> = errors.into_iter().take(50).map(problem).collect();
    if problems.is_empty() {
        problems.push(source::problem(text, 0..0, "it can't be parsed".to_owned(), None));
    }
    problems
}

fn imports(program: &Program<'_>) -> Vec<(String, Range<usize>)> {
    let source = |statement: &Statement<'_>| {
        let source = match statement {
            Statement::ImportDeclaration(import) => &import.source,
            Statement::ExportAllDeclaration(export) => &export.source,
            Statement::ExportFromDeclaration(export) => &export.source,
            _ => return None,
        };
        Some((source.value.to_string(), range(source.span())))
    };
    program.body.iter().filter_map(source).collect()
}
