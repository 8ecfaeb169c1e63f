//! One step by itself, from a front end that is a program: the same keys and checks as in a file.

use std::collections::BTreeSet;

use orchestra_secrets::{JobSecrets, Reference};
use serde_json::Value as Json;

use super::reader::Reader;
use super::tree::{At, Node, Spot, Value};
use super::{build, task, variables};
use crate::values::{Fetched, Variables};
use crate::{Problem, Step};

/// A step that was read.
#[derive(Debug)]
#[non_exhaustive]
pub struct SingleStep {
    /// The step.
    pub step: Step,
}

impl SingleStep {
    /// Reads a task or an image build of the form that it has in a file, with `task` or `build_image` as its key. Texts
    /// are taken as they are: `((name))` is no variable here. What `secret:KEY` stands for is fetched for the job, once.
    ///
    /// Which artifacts there are is the caller's to know.
    ///
    /// # Errors
    /// All that is wrong, each without a place.
    pub async fn read(step: &Json, secrets: Option<&JobSecrets>) -> Result<Self, Vec<Problem>> {
        let node = node(step);
        let mut wanted = BTreeSet::new();
        whole(&node, &mut wanted);
        let fetched = Fetched::for_job(secrets, wanted).await;
        let reader = Reader::new("", "", &fetched);
        let read = match step.get("build_image") {
            Some(_) => build::read(&reader, &node),
            None => task::read(&reader, &node),
        };
        let mut problems = reader.finish();
        problems.iter_mut().for_each(|problem| problem.places.clear());
        match read.and_then(|read| read.step) {
            Some(step) if problems.is_empty() => Ok(Self { step }),
            _ => Err(problems),
        }
    }
}

/// The texts that are `secret:KEY` as a whole.
fn whole(node: &Node, found: &mut BTreeSet<Reference>) {
    match &node.value {
        Value::Text(text) if text.starts_with("secret:") => {
            variables::references(node, &Variables::default(), found);
        }
        Value::List(items) => items.iter().for_each(|item| whole(item, found)),
        Value::Map(entries) => entries.iter().for_each(|(_, value)| whole(value, found)),
        _ => {}
    }
}

fn node(json: &Json) -> Node {
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => Value::Number(number.to_string()),
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(node).collect()),
        Json::Object(entries) => {
            let entry = |(key, value): (&String, &Json)| (at(Value::Text(key.clone())), node(value));
            Value::Map(entries.iter().map(entry).collect())
        }
    };
    at(value)
}

fn at(value: Value) -> Node {
    let spot = Spot { span: 0..0, used: None };
    At { value, spot }
}
