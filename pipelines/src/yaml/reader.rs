//! What all parts of the front end read values with: typed values out, problems collected, nothing thrown away.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use orchestra_secrets::{Reference, SecretKey};

use super::late::Source;
use super::resource::Resources;
use super::tree::{At, Node, Spot, Value};
use super::variables::has_locals;
use crate::values::Fetched;
use crate::{Place, Problem};

/// More than a person reads at once; a file that is something else than a pipeline has thousands.
const MAX_PROBLEMS: usize = 50;

/// The text and what is wrong with it so far.
pub(super) struct Reader<'t> {
    name: &'t str,
    text: &'t str,
    pub(super) fetched: &'t Fetched,
    lines: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
    notes: RefCell<Vec<Problem>>,
    /// Those of them that a run tells, too.
    warnings: RefCell<Vec<Problem>>,
    /// Where the values begin into which a secret was put.
    secret: RefCell<BTreeSet<usize>>,
    count: Cell<usize>,
    told: Cell<usize>,
    waits: Cell<bool>,
    depth: Cell<Option<usize>>,
    resources: OnceCell<Arc<Resources>>,
    source: OnceCell<Arc<Source>>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(name: &'t str, text: &'t str, fetched: &'t Fetched) -> Self {
        let lines = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self {
            name,
            text,
            fetched,
            lines,
            problems: RefCell::default(),
            notes: RefCell::default(),
            warnings: RefCell::default(),
            secret: RefCell::default(),
            count: Cell::new(0),
            told: Cell::new(0),
            waits: Cell::new(false),
            depth: Cell::new(None),
            resources: OnceCell::new(),
            source: OnceCell::new(),
        }
    }

    /// Says, once, what steps may get and put.
    pub(super) fn set_resources(&self, resources: Arc<Resources>) {
        self.resources.set(resources).ok();
    }

    pub(super) fn resources(&self) -> Arc<Resources> {
        self.resources.get_or_init(Arc::default).clone()
    }

    /// The file, for steps that are read again when they run.
    pub(super) fn source(&self) -> Arc<Source> {
        let secret = || self.secret.borrow().clone();
        let make = || Arc::new(Source::new(self.name, self.text, self.resources(), secret()));
        self.source.get_or_init(make).clone()
    }

    /// A secret was put into the value there.
    pub(super) fn put_secret(&self, spot: &Spot) {
        self.secret.borrow_mut().insert(spot.span.start);
    }

    /// The same for all of these.
    pub(super) fn put_secrets(&self, starts: &BTreeSet<usize>) {
        self.secret.borrow_mut().extend(starts);
    }

    /// The same for a value that becomes one with those in it.
    pub(super) fn put_secret_of(&self, spot: &Spot) {
        let holds = self.secret.borrow().range(spot.span.clone()).next().is_some();
        if holds {
            self.put_secret(spot);
        }
    }

    fn holds_secret(&self, spot: &Spot) -> bool {
        self.secret.borrow().contains(&spot.span.start)
    }

    /// Refuses a value that a secret was put into, where the engine, a registry or an image shows it to others.
    pub(super) fn shown(&self, spot: &Spot, what: &str) -> bool {
        if !self.holds_secret(spot) {
            return true;
        }
        let message = format!("a secret can't stand in {what}");
        self.report(spot, "a secret", message, seen_by_all(what).to_owned());
        false
    }

    /// Notes a secret that whoever may ask the engine sees.
    pub(super) fn remark_secret(&self, spot: &Spot, what: &str) {
        if self.holds_secret(spot) {
            let note = self.noted(
                spot,
                format!("a secret in {what} stands in the engine's records while the container is there: `env` with `secret_env: hidden`, or `secret_files`, keep it out of them"),
            );
            keep(&self.warnings, note.clone());
            keep(&self.notes, note);
        }
    }

    /// Whether what stands in values with variables that are not known yet is not told: then it is counted alone.
    pub(super) fn wait_for_variables(&self, waits: bool) {
        self.waits.set(waits);
    }

    /// Says that an `across` is put out whose pipeline runs already, and how many of its kind it is within: what its steps
    /// are is read when each of them runs.
    pub(super) fn put_out(&self, depth: usize) {
        self.depth.set(Some(depth));
    }

    pub(super) fn depth(&self) -> Option<usize> {
        self.depth.get()
    }

    /// How many problems were noted that do not wait for variables.
    pub(super) fn told(&self) -> usize {
        self.told.get()
    }

    /// Notes something that is right, and yet should be known.
    pub(super) fn remark(&self, spot: &Spot, message: impl Into<String>) {
        keep(&self.notes, self.noted(spot, message));
    }

    fn noted(&self, spot: &Spot, message: impl Into<String>) -> Problem {
        Problem {
            message: message.into(),
            help: None,
            places: vec![self.place(spot.span.clone(), "")],
        }
    }

    /// All that should be known, in the order of the file, and of it what a run tells.
    pub(super) fn notes(&self) -> [Vec<Problem>; 2] {
        [&self.notes, &self.warnings].map(|noted| {
            let mut noted = noted.take();
            noted.sort_by_key(|note| note.places.first().map(|place| place.span.start));
            noted
        })
    }

    /// Notes a problem at a node; where an alias brought it elsewhere, that place is shown too.
    pub(super) fn report(&self, spot: &Spot, label: &str, message: impl Into<String>, help: impl Into<Option<String>>) {
        let used = spot.used.iter().map(|used| (used.clone(), "used here"));
        self.note(
            message.into(),
            help.into(),
            std::iter::once((spot.span.clone(), label)).chain(used),
        );
    }

    /// Notes a problem that two places make together; the first is the one to change.
    pub(super) fn conflict(&self, places: [(&Spot, &str); 2], message: impl Into<String>, help: impl Into<String>) {
        // Where one anchor brought both, only the places of use tell them apart.
        let places = places.map(|(spot, label)| (spot.used.as_ref().unwrap_or(&spot.span).clone(), label));
        self.note(message.into(), Some(help.into()), places.into_iter());
    }

    fn note<'a>(&self, message: String, help: Option<String>, places: impl Iterator<Item = (Range<usize>, &'a str)>) {
        let places: Vec<(Range<usize>, &str)> = places.collect();
        self.count.set(self.count.get() + 1);
        if self.waits.get()
            && let Some((span, _)) = places.first()
            && (self.depth().is_some() || has_locals(&self.text[span.clone()]))
        {
            return;
        }
        self.told.set(self.told.get() + 1);
        let places = places.into_iter().map(|(span, label)| self.place(span, label));
        let places = places.collect();
        let problem = Problem { message, help, places };
        let mut problems = self.problems.borrow_mut();
        // The same line of an anchor is read once for each alias.
        if problems.len() <= MAX_PROBLEMS
            && !problems
                .iter()
                .any(|known| known.message == problem.message && known.places.first() == problem.places.first())
        {
            problems.push(problem);
        }
    }

    fn place(&self, span: Range<usize>, label: &str) -> Place {
        let line = self.lines.partition_point(|start| *start <= span.start);
        let start = self.lines[line - 1];
        // A block of text is shown by its first line.
        let shown = self.text[span.clone()]
            .find('\n')
            .map_or(span.end, |at| span.start + at);
        let column = self.text[start..span.start].chars().count() + 1;
        Place {
            line,
            column,
            span: span.start..shown,
            label: label.to_owned(),
        }
    }

    /// The place of a line and column, both from 1.
    pub(super) fn spot(&self, line: usize, column: usize) -> Spot {
        let start = self
            .lines
            .get(line.saturating_sub(1))
            .copied()
            .unwrap_or(self.text.len());
        let at = self.text[start..]
            .char_indices()
            .nth(column.saturating_sub(1))
            .map_or(self.text.len(), |(at, _)| start + at);
        let end = self.text[at..]
            .chars()
            .next()
            .filter(|c| *c != '\n')
            .map_or(at, |c| at + c.len_utf8());
        Spot {
            span: at..end,
            used: None,
        }
    }

    /// How many problems were noted: what grew while something was read was wrong in it.
    pub(super) fn count(&self) -> usize {
        self.count.get()
    }

    /// All problems in the order of the file.
    pub(super) fn finish(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        let cut = problems.len() > MAX_PROBLEMS;
        problems.truncate(MAX_PROBLEMS);
        problems.sort_by_key(|problem| problem.places.first().map(|place| place.span.start));
        if cut {
            let message = format!("there are more than {MAX_PROBLEMS} problems; the others are not shown");
            problems.push(Problem {
                message,
                help: None,
                places: Vec::new(),
            });
        }
        problems
    }

    pub(super) fn wrong(&self, spot: &Spot, what: &str, expected: &str, found: &Value) {
        self.report(
            spot,
            &format!("this is {}", found.kind()),
            format!("{what} is {expected}, not {}", found.kind()),
            None,
        );
    }

    /// A scalar as text. `None` and a problem for anything else.
    pub(super) fn text(&self, node: &Node, what: &str) -> Option<At<String>> {
        let value = match &node.value {
            Value::Text(text) | Value::Number(text) => text.clone(),
            Value::Bool(value) => value.to_string(),
            other => {
                let help = matches!(other, Value::Null).then(|| "give it a value, or remove the key".to_owned());
                self.report(
                    &node.spot,
                    &format!("this is {}", other.kind()),
                    format!("{what} is text, not {}", other.kind()),
                    help,
                );
                return None;
            }
        };
        Some(At {
            value,
            spot: node.spot.clone(),
        })
    }

    /// A text that others are [shown](Self::shown).
    pub(super) fn shown_text(&self, node: &Node, what: &str) -> Option<At<String>> {
        self.text(node, what).filter(|text| self.shown(&text.spot, what))
    }

    /// A scalar of a type that is read from text.
    pub(super) fn parse<T: FromStr<Err = orchestra::Error>>(&self, node: &Node, what: &str) -> Option<At<T>> {
        let At { value, spot } = self.shown_text(node, what)?;
        match value.parse() {
            Ok(value) => Some(At { value, spot }),
            Err(error) => {
                self.report(&spot, "", error.message(), error.hint().map(str::to_owned));
                None
            }
        }
    }

    /// The items of a list; nothing counts as an empty one.
    pub(super) fn items<'n>(&self, node: &'n Node, what: &str) -> &'n [Node] {
        match &node.value {
            Value::List(items) => items,
            Value::Null => &[],
            other => {
                self.wrong(&node.spot, what, "a list", other);
                &[]
            }
        }
    }

    /// Whether a value is one, or refers to a secret that there is; a problem if it does to one that there is not.
    pub(super) fn checked(&self, value: &At<String>) -> bool {
        let found = match SecretKey::of_reference(&value.value) {
            Ok(None) => return true,
            Ok(Some(key)) => self.fetched.get(&Reference::of(key)).map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = &found {
            let message = format!("`{}` has no value: {}", value.value, error.message());
            self.report(&value.spot, "a secret", message, error.hint().map(str::to_owned));
        }
        found.is_ok()
    }

    /// Refuses a value that refers to a secret, where nothing would resolve it: passed on as it is, it would be used as
    /// the value itself.
    pub(super) fn literal(&self, value: &At<String>, what: &str) -> bool {
        if !value.value.starts_with("secret:") {
            return true;
        }
        let message = format!("`{}` in `{what}` can't be a secret", value.value);
        let help = match what {
            "build_args" | "labels" | "annotations" | "build_contexts" | "image_args" | "env" => seen_by_all(what),
            _ => "secrets stand in `env`, `params`, `username`, `password`, `secrets`, `ssh` and `secret_files`",
        };
        self.report(&value.spot, "a secret", message, help.to_owned());
        false
    }
}

/// Why a secret can't stand somewhere, and what to do instead.
fn seen_by_all(what: &str) -> &'static str {
    match what.trim_matches('`') {
        "build_args" | "labels" | "annotations" | "dockerfile_inline" | "target" => {
            "it would stand in the image for all to see: use `secrets`, and `RUN --mount=type=secret` in the Dockerfile"
        }
        "env" => {
            "the engine shows a build's environment: `registry` logs in to registries, and `secrets` are for steps of the Dockerfile"
        }
        _ => {
            "it is shown in logs, by the engine or by a registry: give it as a plain variable, with `--var NAME=VALUE`"
        }
    }
}

/// The candidate that was probably meant.
pub(super) fn closest<'c>(name: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let score = |candidate: &&str| strsim::jaro_winkler(&name.to_ascii_lowercase(), &candidate.to_ascii_lowercase());
    let best = candidates
        .iter()
        .copied()
        .max_by(|a, b| score(a).total_cmp(&score(b)))?;
    let edits = strsim::damerau_levenshtein(&name.to_ascii_lowercase(), &best.to_ascii_lowercase());
    (edits <= 2.max(name.len() / 3) || score(&best) > 0.88).then_some(best)
}

/// Adds a note that is not there.
fn keep(notes: &RefCell<Vec<Problem>>, note: Problem) {
    let mut notes = notes.borrow_mut();
    if notes.len() < MAX_PROBLEMS && !notes.contains(&note) {
        notes.push(note);
    }
}

/// Names as a person lists them.
pub(super) fn list<T: Display>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
