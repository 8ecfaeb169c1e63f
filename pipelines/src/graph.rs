//! A pipeline as a picture: [Mermaid](https://mermaid.js.org/syntax/flowchart.html) text, or SVG.
//!
//! Jobs stand in columns, each right of those it comes after. In a job, steps go from left to right, what runs at the same
//! time stands one above the other, and hooks stand below what they follow.

use std::fmt::Write as _;

use std::collections::BTreeMap;

use crate::{Action, Hooks, JobPlan, Pipeline, Step, StepKind};

/// A step that was run: what a program did is known when it has done it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ran {
    /// Its name. What stands before a dot is what it is a part of: a job, a stage.
    pub name: String,
    /// What it is.
    pub kind: StepKind,
    /// When it began and ended, in milliseconds since the run began.
    pub time: (u64, u64),
}

impl Ran {
    /// A step that ran from `time.0` to `time.1`.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: StepKind, time: (u64, u64)) -> Self {
        let name = name.into();
        Self { name, kind, time }
    }

    /// What a program's job has run, as an SVG picture like [`Pipeline::svg`]: what followed something stands right of it, what
    /// ran at the same time above or below.
    #[must_use]
    pub fn svg(job: &str, steps: &[Self]) -> String {
        let steps = steps.iter().map(|step| (step.name.as_str(), step)).collect();
        let block = Block::framed(vec![Block::ran(steps)], job.to_owned(), Shape::Job);
        let (width, height) = (block.width + 2.0 * GAP, block.height + 2.0 * GAP);
        let mut out = String::new();
        block.draw(&mut out, (GAP, GAP), job);
        picture(width, height, &out)
    }
}

fn picture(width: f64, height: f64, content: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plan\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"the plan\">\n<style>{STYLE}</style>\n{content}</svg>\n"
    )
}

impl Pipeline {
    /// The plan as a Mermaid flow chart.
    #[must_use]
    pub fn mermaid(&self) -> String {
        let mut chart = Chart::default();
        chart.line("flowchart LR");
        for (at, job) in self.jobs.iter().enumerate() {
            chart.line(&format!("  subgraph job{at}[\"{}\"]", job.name));
            chart.line("    direction LR");
            let flow = chart.sequence(&job.plan, 2);
            chart.hooks(&job.hooks, &flow, 2);
            chart.line("  end");
        }
        for (from, to) in self.edges() {
            chart.line(&format!("  job{from} --> job{to}"));
        }
        chart.text
    }

    /// The plan as an SVG picture. Each step that holds no others is a group with `data-job` and `data-step`.
    #[must_use]
    pub fn svg(&self) -> String {
        let jobs: Vec<Block> = self.jobs.iter().map(Block::job).collect();
        let columns = self.columns();
        let count = columns.iter().max().map_or(0, |last| last + 1);
        let width = |column: usize| {
            let widths = jobs.iter().zip(&columns).filter(|(_, of)| **of == column);
            widths.map(|(job, _)| job.width).fold(0.0, f64::max)
        };
        let (mut out, mut places) = (String::new(), vec![(0.0, 0.0); jobs.len()]);
        let (mut x, mut height) = (GAP, 0.0);
        for column in 0..count {
            let mut y = GAP;
            for (at, job) in jobs.iter().enumerate().filter(|(at, _)| columns[*at] == column) {
                places[at] = (x, y);
                y += job.height + GAP;
            }
            height = f64::max(height, y);
            x += width(column) + 3.0 * GAP;
        }
        for (from, to) in self.edges() {
            let (start, end) = (places[from], places[to]);
            let (x1, y1) = (start.0 + jobs[from].width, start.1 + jobs[from].height / 2.0);
            let (x2, y2) = (end.0, end.1 + jobs[to].height / 2.0);
            let middle = f64::midpoint(x1, x2);
            let _ = writeln!(
                out,
                r#"<path class="edge" d="M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"/>"#
            );
        }
        for (at, (job, place)) in jobs.iter().zip(&places).enumerate() {
            let name = self.jobs.get(at).map_or("", |job| job.name.as_str());
            job.draw(&mut out, *place, name);
        }
        let width = f64::max(x - 2.0 * GAP, GAP);
        picture(width, height, &out)
    }

    /// Which job comes after which one, by their numbers.
    fn edges(&self) -> Vec<(usize, usize)> {
        if !self.is_graph {
            return (1..self.jobs.len()).map(|at| (at - 1, at)).collect();
        }
        let number = |name: &orchestra::Name| self.jobs.iter().position(|job| job.name == *name);
        let jobs = self.jobs.iter().enumerate();
        jobs.flat_map(|(at, job)| job.after.iter().filter_map(number).map(move |before| (before, at)))
            .collect()
    }

    /// How many jobs stand left of each one.
    fn columns(&self) -> Vec<usize> {
        let edges = self.edges();
        let mut columns = vec![0; self.jobs.len()];
        // No path is longer than there are jobs.
        for _ in &self.jobs {
            for (from, to) in &edges {
                columns[*to] = columns[*to].max(columns[*from] + 1);
            }
        }
        columns
    }
}

const GAP: f64 = 14.0;
const LINE: f64 = 18.0;
const LEAF: f64 = 34.0;
/// Of a letter of the monospaced font, at its size.
const LETTER: f64 = 7.3;

const STYLE: &str = "\
.plan{font:12px ui-monospace,Menlo,Consolas,monospace;fill:none}\
.plan text{fill:#24292f;stroke:none}.plan .kind{fill:#6e7781;font-size:10px}\
.plan .job{fill:#f6f8fa;stroke:#d0d7de}.plan .leaf rect{fill:#fff;stroke:#8c959f}\
.plan .frame{stroke:#d0d7de;stroke-dasharray:4 3}.plan .edge{stroke:#8c959f;stroke-width:1.5}";

/// A part of a plan with its size, and its parts with their places in it.
struct Block {
    width: f64,
    height: f64,
    /// What stands over it.
    title: String,
    shape: Shape,
    parts: Vec<(f64, f64, Block)>,
    /// Whether its parts follow each other.
    flows: bool,
}

enum Shape {
    Job,
    Frame,
    Bare,
    Leaf { kind: String, name: String, label: String },
}

impl Block {
    fn job(job: &JobPlan) -> Self {
        let plan = Self::row(job.plan.iter().map(Self::step).collect());
        let whole = Self::with_hooks(plan, &job.hooks);
        Self::framed(vec![whole], job.name.to_string(), Shape::Job)
    }

    fn step(step: &Step) -> Self {
        let own = match &step.action {
            Action::Do(steps) => Self::row(steps.iter().map(Self::step).collect()),
            Action::InParallel(parallel) => {
                let steps = parallel.steps.iter().map(Self::step).collect();
                Self::framed(steps, "in_parallel".to_owned(), Shape::Frame)
            }
            Action::Try(tried) => Self::framed(vec![Self::step(tried)], "try".to_owned(), Shape::Frame),
            Action::Across(plan) => Self::framed(vec![Self::step(plan.step())], "across".to_owned(), Shape::Frame),
            _ => Self::leaf(step.kind(), step.name.as_str(), step.name.as_str()),
        };
        Self::with_hooks(own, &step.hooks)
    }

    fn leaf(kind: StepKind, name: &str, label: &str) -> Self {
        let (kind, name, label) = (kind.to_string(), name.to_owned(), label.to_owned());
        #[expect(clippy::cast_precision_loss, reason = "a name has at most 80 characters")]
        let letters = label.chars().count().max(kind.len()) as f64;
        Self {
            width: letters * LETTER + 20.0,
            height: LEAF,
            title: String::new(),
            shape: Shape::Leaf { kind, name, label },
            parts: Vec::new(),
            flows: false,
        }
    }

    /// Steps that were run, each with the part of its name that says what it is in here.
    fn ran(steps: Vec<(&str, &Ran)>) -> Self {
        let mut groups: BTreeMap<&str, Vec<(&str, &Ran)>> = BTreeMap::new();
        let mut items: Vec<((u64, u64), Self)> = Vec::new();
        for (label, step) in steps {
            match label.split_once('.') {
                Some((group, rest)) => groups.entry(group).or_default().push((rest, step)),
                None => items.push((step.time, Self::leaf(step.kind, &step.name, label))),
            }
        }
        for (group, steps) in groups {
            let start = steps.iter().map(|(_, step)| step.time.0).min().unwrap_or_default();
            let end = steps.iter().map(|(_, step)| step.time.1).max().unwrap_or_default();
            let block = Self::framed(vec![Self::ran(steps)], group.to_owned(), Shape::Frame);
            items.push(((start, end), block));
        }
        items.sort_by_key(|(time, _)| *time);
        // Lanes, in each of which one follows another; where all have ended, the next begins anew.
        let mut row: Vec<Self> = Vec::new();
        let mut lanes: Vec<(u64, Vec<Self>)> = Vec::new();
        for ((start, end), block) in items {
            if lanes.iter().all(|(ended, _)| *ended <= start) {
                row.extend(Self::lanes(std::mem::take(&mut lanes)));
            }
            match lanes.iter_mut().find(|(ended, _)| *ended <= start) {
                Some((ended, lane)) => {
                    lane.push(block);
                    *ended = end;
                }
                None => lanes.push((end, vec![block])),
            }
        }
        row.extend(Self::lanes(lanes));
        Self::row(row)
    }

    fn lanes(lanes: Vec<(u64, Vec<Self>)>) -> Vec<Self> {
        let mut lanes: Vec<Vec<Self>> = lanes.into_iter().map(|(_, lane)| lane).collect();
        if lanes.len() < 2 {
            return lanes.pop().unwrap_or_default();
        }
        let lanes = lanes.into_iter().map(Self::row).collect();
        vec![Self::framed(lanes, "in_parallel".to_owned(), Shape::Frame)]
    }

    /// One after the other.
    fn row(steps: Vec<Self>) -> Self {
        let height = steps.iter().map(|step| step.height).fold(0.0, f64::max);
        let mut x = 0.0;
        let mut parts = Vec::new();
        for step in steps {
            let width = step.width;
            parts.push((x, (height - step.height) / 2.0, step));
            x += width + GAP;
        }
        Self {
            width: f64::max(x - GAP, 0.0),
            height,
            title: String::new(),
            shape: Shape::Bare,
            parts,
            flows: true,
        }
    }

    /// One above the other, in a frame.
    fn framed(steps: Vec<Self>, title: String, shape: Shape) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a name has at most 80 characters")]
        let letters = title.chars().count() as f64;
        let widest = steps.iter().map(|step| step.width).fold(letters * LETTER, f64::max);
        let mut y = LINE + GAP / 2.0;
        let mut parts = Vec::new();
        for step in steps {
            let height = step.height;
            parts.push((GAP, y, step));
            y += height + GAP / 2.0;
        }
        Self {
            width: widest + 2.0 * GAP,
            height: y + GAP / 2.0,
            title,
            shape,
            parts,
            flows: false,
        }
    }

    fn with_hooks(own: Self, hooks: &Hooks) -> Self {
        let hooks: Vec<Self> = named(hooks)
            .map(|(name, step)| Self::framed(vec![Self::step(step)], name.to_owned(), Shape::Frame))
            .collect();
        if hooks.is_empty() {
            return own;
        }
        let below = Self::row(hooks);
        let (width, y) = (f64::max(own.width, below.width), own.height + GAP / 2.0);
        let height = y + below.height;
        let mut below = below;
        below.flows = false;
        Self {
            width,
            height,
            title: String::new(),
            shape: Shape::Bare,
            parts: vec![(0.0, 0.0, own), (0.0, y, below)],
            flows: false,
        }
    }

    fn draw(&self, out: &mut String, (x, y): (f64, f64), job: &str) {
        let Self {
            width, height, title, ..
        } = self;
        // What a name may have needs no escaping: letters, digits, `-`, `_` and `.`.
        let _ = match &self.shape {
            Shape::Bare => Ok(()),
            Shape::Leaf { kind, name, label } => writeln!(
                out,
                r#"<g class="leaf" data-job="{job}" data-step="{name}"><title>{kind} {name}</title><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/><text class="kind" x="{0}" y="{1}">{kind}</text><text x="{0}" y="{2}">{label}</text></g>"#,
                x + 10.0,
                y + 13.0,
                y + 27.0
            ),
            shape => writeln!(
                out,
                r#"<rect class="{}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/><text class="kind" x="{}" y="{}">{title}</text>"#,
                if matches!(shape, Shape::Job) { "job" } else { "frame" },
                x + GAP,
                y + 15.0
            ),
        };
        if self.flows {
            for pair in self.parts.windows(2) {
                if let [(x1, y1, first), (x2, y2, second)] = pair {
                    let (from, to) = (y + y1 + first.height / 2.0, y + y2 + second.height / 2.0);
                    let _ = writeln!(
                        out,
                        r#"<path class="edge" d="M{} {from}L{} {to}"/>"#,
                        x + x1 + first.width,
                        x + x2
                    );
                }
            }
        }
        for (dx, dy, part) in &self.parts {
            part.draw(out, (x + dx, y + dy), job);
        }
    }
}

fn named(hooks: &Hooks) -> impl Iterator<Item = (&'static str, &Step)> {
    let all = [
        ("on_success", &hooks.on_success),
        ("on_failure", &hooks.on_failure),
        ("on_abort", &hooks.on_abort),
        ("on_error", &hooks.on_error),
        ("ensure", &hooks.ensure),
    ];
    all.into_iter()
        .filter_map(|(name, hook)| hook.as_deref().map(|step| (name, step)))
}

/// Where a part of a chart begins and ends.
#[derive(Clone, Default)]
struct Flow {
    first: Vec<usize>,
    last: Vec<usize>,
}

#[derive(Default)]
struct Chart {
    text: String,
    nodes: usize,
}

impl Chart {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn edge(&mut self, from: &[usize], to: &[usize], arrow: &str, indent: usize) {
        for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (from, to))) {
            self.line(&format!("{}s{from} {arrow} s{to}", "  ".repeat(indent)));
        }
    }

    fn sequence(&mut self, steps: &[Step], indent: usize) -> Flow {
        let mut whole: Option<Flow> = None;
        for step in steps {
            let flow = self.step(step, indent);
            whole = Some(match whole {
                None => flow,
                Some(before) => {
                    self.edge(&before.last, &flow.first, "-->", indent);
                    Flow {
                        first: before.first,
                        last: flow.last,
                    }
                }
            });
        }
        whole.unwrap_or_default()
    }

    fn step(&mut self, step: &Step, indent: usize) -> Flow {
        let pad = "  ".repeat(indent);
        let flow = match &step.action {
            Action::Do(steps) => self.sequence(steps, indent),
            Action::InParallel(parallel) => {
                self.nodes += 1;
                self.line(&format!("{pad}subgraph p{}[\"in_parallel\"]", self.nodes));
                let mut whole = Flow::default();
                for step in &parallel.steps {
                    let flow = self.step(step, indent + 1);
                    whole.first.extend(flow.first);
                    whole.last.extend(flow.last);
                }
                self.line(&format!("{pad}end"));
                whole
            }
            Action::Try(tried) => self.within("try", tried, indent),
            Action::Across(plan) => self.within("across", plan.step(), indent),
            _ => {
                self.nodes += 1;
                let node = self.nodes;
                self.line(&format!("{pad}s{node}[\"{} {}\"]", step.kind(), step.name));
                Flow {
                    first: vec![node],
                    last: vec![node],
                }
            }
        };
        self.hooks(&step.hooks, &flow, indent);
        flow
    }

    fn within(&mut self, kind: &str, step: &Step, indent: usize) -> Flow {
        let pad = "  ".repeat(indent);
        self.nodes += 1;
        self.line(&format!("{pad}subgraph {}{}[\"{kind}\"]", &kind[..1], self.nodes));
        let flow = self.step(step, indent + 1);
        self.line(&format!("{pad}end"));
        flow
    }

    fn hooks(&mut self, hooks: &Hooks, of: &Flow, indent: usize) {
        for (name, step) in named(hooks) {
            let flow = self.step(step, indent);
            self.edge(&of.last, &flow.first, &format!("-. {name} .->"), indent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
jobs:
- name: ci
  plan:
  - in_parallel:
    - { task: a, image: b, config: { run: { path: sh } } }
    - { task: b, image: b, config: { run: { path: sh } }, on_failure: { task: f, image: b, config: { run: { path: sh } } } }
  - try: { task: c, image: b, config: { run: { path: sh } } }
- name: next
  plan: [{ task: d, image: b, config: { run: { path: sh } } }]
";

    #[test]
    fn a_plan_is_drawn_with_what_follows_what() {
        let chart = Pipeline::parse("ci.yml", TEXT).unwrap().mermaid();
        let expected = "flowchart LR
  subgraph job0[\"ci\"]
    direction LR
    subgraph p1[\"in_parallel\"]
      s2[\"task a\"]
      s3[\"task b\"]
      s4[\"task f\"]
      s3 -. on_failure .-> s4
    end
    subgraph t5[\"try\"]
      s6[\"task c\"]
    end
    s2 --> s6
    s3 --> s6
  end
  subgraph job1[\"next\"]
    direction LR
    s7[\"task d\"]
  end
  job0 --> job1
";
        assert_eq!(chart, expected);
    }

    #[test]
    fn a_picture_has_every_step_once_within_its_bounds() {
        let svg = Pipeline::parse("ci.yml", TEXT).unwrap().svg();
        let steps = [("ci", "a"), ("ci", "b"), ("ci", "f"), ("ci", "c"), ("next", "d")];
        whole(&svg, &steps);
    }

    #[test]
    fn what_was_run_is_drawn_by_its_times() {
        let ran = [
            ("get", (0, 10)),
            ("test.unit", (10, 30)),
            ("test.lint", (12, 15)),
            ("test.report", (15, 40)),
            ("docs", (11, 20)),
            ("push", (40, 40)),
        ];
        let steps: Vec<Ran> = ran
            .iter()
            .map(|(name, time)| Ran::new(*name, StepKind::Task, *time))
            .collect();
        let svg = Ran::svg("p", &steps);
        whole(&svg, &ran.map(|(name, _)| ("p", name)));
        let x = |name: &str| {
            let leaf = &svg[svg.find(&format!("data-step=\"{name}\"")).unwrap()..];
            number(leaf, "x")
        };
        for (first, second) in [
            ("get", "test.unit"),
            ("test.lint", "test.report"),
            ("test.report", "push"),
            ("docs", "push"),
        ] {
            assert!(x(first) < x(second), "{first} {second}\n{svg}");
        }
        assert!(svg.contains(">report</text>") && svg.contains(">test</text>"), "{svg}");
    }

    fn number(text: &str, key: &str) -> f64 {
        let from = text.find(&format!(" {key}=\"")).unwrap() + key.len() + 3;
        text[from..].split('"').next().unwrap().parse().unwrap()
    }

    fn whole(svg: &str, steps: &[(&str, &str)]) {
        for (job, step) in steps {
            let place = format!("data-job=\"{job}\" data-step=\"{step}\"");
            assert_eq!(svg.matches(&place).count(), 1, "{svg}");
        }
        let head = svg.lines().next().unwrap();
        for rect in svg.match_indices("<rect").map(|(at, _)| &svg[at..]) {
            assert!(number(rect, "x") + number(rect, "width") <= number(head, "width"));
            assert!(number(rect, "y") + number(rect, "height") <= number(head, "height"));
        }
    }
}
