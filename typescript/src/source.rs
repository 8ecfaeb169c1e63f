//! A module's text, what it became, and which place of the one is which of the other.

use std::path::PathBuf;
use std::sync::Arc;

use orchestra_pipelines::{Place, Problem};

/// A module that was read and can be run.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    /// What messages and stack traces call it: relative to where the user is.
    pub(crate) name: String,
    /// As it is run.
    pub(crate) code: Arc<str>,
    pub(crate) map: Option<Arc<oxc_sourcemap::SourceMap<'static>>>,
    /// Each module that it imports: as it is written, and where that is.
    pub(crate) imports: Vec<(String, PathBuf)>,
}

impl Module {
    /// The place in the user's text of one in the code; both from 1.
    pub(crate) fn original(&self, line: u32, column: u32) -> (u32, u32) {
        let Some(map) = &self.map else { return (line, column) };
        let table = map.generate_lookup_table();
        let found = map.lookup_token(&table, line.saturating_sub(1), column.saturating_sub(1));
        found.map_or((line, column), |token| {
            (token.get_src_line() + 1, token.get_src_col() + 1)
        })
    }
}

/// A problem in a text, with its place.
pub(crate) fn problem(text: &str, span: std::ops::Range<usize>, message: String, help: Option<String>) -> Problem {
    Problem::new(message, help, vec![Place::of(text, span, "")])
}
