//! `across` steps whose values are loaded: they are put out when they run, and each step of them is read when it runs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use orchestra::Name;

use super::across::{self, Size};
use super::late::{self, Source};
use super::reader::Reader;
use super::step::Read;
use super::steps::{self, Tree};
use super::tree::{Node, Spot};
use crate::Step;
use crate::values::{Fetched, Variables};

/// Where a step stands that holds no others: where its kind is written, and the alias that brought it there.
type Place = (usize, Option<usize>);

fn place(spot: &Spot) -> Place {
    (spot.span.start, spot.used.as_ref().map(|used| used.start))
}

/// What the plan calls the steps that hold no others, in their order. Several stand in one place where they are one step
/// several times.
#[derive(Clone)]
pub(super) struct Leaves(BTreeMap<Place, Vec<Named>>);

#[derive(Clone)]
struct Named {
    name: Name,
    volumes: BTreeMap<Name, Name>,
    base: Option<Name>,
}

impl Leaves {
    pub(super) fn of(reads: &[&Read]) -> Self {
        let mut all: BTreeMap<Place, Vec<Named>> = BTreeMap::new();
        for read in reads {
            if let Some(step) = &read.step {
                all.entry(place(&read.spot)).or_default().push(Named {
                    name: step.name.clone(),
                    volumes: step.volumes.clone(),
                    base: step.base.clone(),
                });
            }
        }
        Self(all)
    }
}

/// A step that is run for each of some values that are known when it runs. `Debug` shows no text of it, as a secret may stand
/// in it.
#[derive(Clone)]
pub struct AcrossPlan {
    /// The step, as far as it is known before.
    one: Step,
    node: Node,
    source: Arc<Source>,
    leaves: Leaves,
    /// How many of its kind it is within.
    depth: usize,
}

impl fmt::Debug for AcrossPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcrossPlan")
            .field("one", &self.one)
            .finish_non_exhaustive()
    }
}

impl AcrossPlan {
    pub(super) fn new(reader: &Reader<'_>, one: Step, node: Node, leaves: Leaves) -> Self {
        Self {
            one,
            node,
            source: reader.source(),
            leaves,
            depth: reader.depth().map_or(0, |depth| depth + 1),
        }
    }

    /// The step, as far as it is known before it runs: with the first of the values, its steps are called as this one's.
    #[must_use]
    pub fn step(&self) -> &Step {
        &self.one
    }

    /// The steps with the values in their places.
    pub(crate) fn put_out(&self, variables: &Variables) -> Result<Step, String> {
        let fetched = Fetched::default();
        let reader = self.source.reader(&fetched);
        reader.put_out(self.depth);
        let node = across::placed(&reader, self.node.clone(), variables);
        let mut tree = steps::read(&reader, &across::expand(&reader, &node, &mut Size::default()));
        self.name(&reader, &mut tree);
        let step = tree.into_step(&reader);
        late::told(&self.source.name, reader.finish())?;
        step.ok_or_else(|| format!("{}: the step could not be read", self.source.name))
    }

    /// Calls steps as the plan does, and those of all values but the first by their number too: `test`, `test.x2`, and `test.xx2`
    /// of an `across` within another one. No planned step may be called so, and no try of a resource's programs is.
    fn name(&self, reader: &Reader<'_>, tree: &mut Tree) {
        let mut leaves = Vec::new();
        tree.leaves_mut(&mut leaves);
        let mut found: BTreeMap<Place, usize> = BTreeMap::new();
        for read in leaves {
            let at = place(&read.spot);
            let (Some(step), Some(planned)) = (&mut read.step, self.leaves.0.get(&at)) else {
                continue;
            };
            let number = found.entry(at).or_default();
            let (value, which) = (*number / planned.len(), *number % planned.len());
            *number += 1;
            let Some(planned) = planned.get(which) else { continue };
            if value == 0 {
                (step.name, step.base, step.volumes) =
                    (planned.name.clone(), planned.base.clone(), planned.volumes.clone());
                continue;
            }
            let numbered = |name: &Name| Name::new(format!("{name}.{}{}", "x".repeat(self.depth + 1), value + 1));
            let named = numbered(&planned.name).and_then(|name| {
                step.name = name;
                step.base = planned.base.as_ref().map(numbered).transpose()?;
                step.volumes = BTreeMap::new();
                Ok(())
            });
            if named.is_err() {
                steps::too_long(reader, &read.spot);
            }
        }
    }
}

/// Whether a step that is planned is called as one for a value of another one is.
pub(crate) fn is_numbered(name: &Name, of: &Name) -> bool {
    let rest = name.as_str().strip_prefix(of.as_str());
    let rest = rest.and_then(|rest| rest.strip_prefix(".x"));
    rest.is_some_and(|rest| rest.trim_start_matches('x').starts_with(|c: char| c.is_ascii_digit()))
}
