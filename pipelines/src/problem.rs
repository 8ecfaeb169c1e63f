//! What is wrong with a pipeline: every problem with its place, all of them at once.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Where, the place to change first; none for what concerns the file as a whole.
    pub places: Vec<Place>,
}

/// A place in the file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Bytes of the file.
    #[serde(skip)]
    pub span: Range<usize>,
    /// What is there.
    pub label: String,
}

impl Place {
    /// These bytes of a text.
    #[must_use]
    pub fn of(text: &str, span: Range<usize>, label: &str) -> Self {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            span: start..span.end.clamp(start, text.len()),
            label: label.to_owned(),
        }
    }
}

impl Problem {
    /// A problem of these places.
    #[must_use]
    pub fn new(message: impl Into<String>, help: Option<String>, places: Vec<Place>) -> Self {
        let message = message.into();
        Self { message, help, places }
    }

    /// The line of the place to change, from 1.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.places.first().map(|place| place.line)
    }

    /// The column of the place to change, from 1, in characters.
    #[must_use]
    pub fn column(&self) -> Option<usize> {
        self.places.first().map(|place| place.column)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = |(at, place): (usize, &Place)| {
            let text = Some(place.label.clone()).filter(|label| !label.is_empty());
            match at {
                0 => LabeledSpan::new_primary_with_span(text, place.span.clone()),
                _ => LabeledSpan::new_with_span(text, place.span.clone()),
            }
        };
        Some(Box::new(self.places.iter().enumerate().map(label)))
    }
}

/// A pipeline that is refused, with all that is wrong. Nothing of it was run.
///
/// Its `Display` is a line for each problem; as a [`miette::Diagnostic`] it shows the lines of the file too.
pub struct Invalid(Box<Inner>);

struct Inner {
    name: String,
    summary: String,
    source: Option<NamedSource<Arc<str>>>,
    problems: Vec<Problem>,
}

impl Invalid {
    /// The file `name` with this text in this language: at least one problem.
    #[must_use]
    pub fn new(name: &str, text: &str, language: &str, problems: Vec<Problem>) -> Self {
        let summary = match problems.len() {
            1 => format!("{name} is not a valid pipeline"),
            many => format!("{name} is not a valid pipeline: {many} problems"),
        };
        let source = NamedSource::new(name, Arc::from(text)).with_language(language);
        Self(Box::new(Inner {
            name: name.to_owned(),
            summary,
            source: Some(source),
            problems,
        }))
    }

    /// A file that can't be read as text.
    #[must_use]
    pub fn file(name: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        let problem = Problem {
            message: message.into(),
            help: Some(help.into()),
            places: Vec::new(),
        };
        let summary = format!("cannot read the pipeline {name}");
        Self(Box::new(Inner {
            name: name.to_owned(),
            summary,
            source: None,
            problems: vec![problem],
        }))
    }

    /// All that is wrong, in the order of the file; at least one.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In `{:#}` or a plain log there is no drawing of the places: the text alone has to say where.
        f.write_str(&self.0.summary)?;
        if f.alternate() {
            for problem in &self.0.problems {
                write!(f, "\n{}", self.0.name)?;
                if let Some(place) = problem.places.first() {
                    write!(f, ":{}:{}", place.line, place.column)?;
                }
                write!(f, ": {problem}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#}")
    }
}

impl std::error::Error for Invalid {}

impl Diagnostic for Invalid {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(
            self.0.problems.iter().map(|problem| problem as &dyn Diagnostic),
        ))
    }
}
