//! A terminal: one line for each step that runs, redrawn in place; what has ended stays above.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::time::Duration;

use indicatif::{DecimalBytes, MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use orchestra_pipelines::{Status, StepKind};

use super::names::Names;
use super::summary;
use super::text::{Lines, clean};
use super::update::{Activity, StepEnd, StepId, Update};
use crate::console::{Echo, Theme};
use crate::duration;

/// How many last lines of a failed step are shown.
const TAIL: usize = 60;
/// How often the spinner turns: often enough to be seen alive, not more.
const TICK: Duration = Duration::from_millis(120);

/// Draws with `indicatif`, which knows where the cursor is; all lines go through it.
#[derive(Debug)]
pub(crate) struct Terminal {
    screen: MultiProgress,
    theme: Theme,
    names: Names,
    running: HashMap<StepId, Running>,
    ended: Vec<StepEnd>,
    _echo: Option<Echo>,
}

#[derive(Debug)]
struct Running {
    bar: ProgressBar,
    tail: Tail,
    layers: HashMap<String, (u64, u64)>,
    pulling: String,
    /// Something better than its newest line stands beside its time.
    busy: bool,
    /// A build: its report knows better than the tail which output says why it failed. A script: what it says stays.
    kind: StepKind,
    /// What a build does now, each with a line below the build's.
    vertexes: HashMap<u32, ProgressBar>,
    /// What it has done, and was told; BuildKit takes some up again.
    told: HashSet<u32>,
}

/// How many lines a build may have besides its own; what else it does at once is told when it is done.
const LINES: usize = 8;

/// The last lines of a step's output, in the order they were written.
#[derive(Debug, Default)]
struct Tail {
    partial: [Lines; 2],
    lines: VecDeque<String>,
    cut: u64,
}

impl Tail {
    fn of(text: &str) -> Self {
        let mut tail = Self::default();
        text.lines().for_each(|line| tail.keep(line.as_bytes()));
        tail
    }

    fn keep(&mut self, line: &[u8]) {
        if self.lines.len() == TAIL {
            self.lines.pop_front();
            self.cut += 1;
        }
        self.lines.push_back(String::from_utf8_lossy(line).into_owned());
    }
}

impl Terminal {
    pub(crate) fn new(screen: MultiProgress, theme: Theme) -> Self {
        let (names, running, ended) = (Names::default(), HashMap::new(), Vec::new());
        Self {
            screen,
            theme,
            names,
            running,
            ended,
            _echo: Echo::without_control(),
        }
    }

    fn start(&mut self, step: StepId, kind: StepKind) {
        self.names.see(&step);
        let bar = self.screen.add(ProgressBar::new_spinner());
        bar.set_style(style(self.theme));
        bar.set_prefix(self.names.padded(&step));
        bar.enable_steady_tick(TICK);
        let (tail, layers) = (Tail::default(), HashMap::new());
        self.running.insert(
            step,
            Running {
                bar,
                tail,
                layers,
                pulling: String::new(),
                busy: false,
                kind,
                vertexes: HashMap::new(),
                told: HashSet::new(),
            },
        );
    }

    fn finish(&mut self, end: StepEnd) -> io::Result<()> {
        let theme = self.theme;
        let running = self.running.remove(&end.step);
        if let Some(running) = &running {
            for bar in running.vertexes.values() {
                bar.finish_and_clear();
                self.screen.remove(bar);
            }
            running.bar.finish_and_clear();
            self.screen.remove(&running.bar);
        }
        if end.status != Status::Skipped {
            let (mark, name) = (
                summary::mark(end.status, theme),
                theme.strong(self.names.padded(&end.step)),
            );
            let mut lines = vec![format!(
                "{mark} {name}  {}",
                theme.dim(format!("{:>7}", duration::show(end.duration)))
            )];
            lines.extend(
                summary::details(&end, theme)
                    .into_iter()
                    .map(|line| format!("    {line}")),
            );
            let failed = matches!(end.status, Status::Failed | Status::Errored);
            let is_script = running.as_ref().is_some_and(|running| running.kind == StepKind::Script);
            if let Some(mut running) = running.filter(|_| failed || is_script) {
                if running.kind == StepKind::BuildImage {
                    running.tail = Tail::of(&end.log);
                }
                lines.extend(running.tail.show(theme));
            }
            self.screen.println(lines.join("\n"))?;
        }
        self.ended.push(end);
        Ok(())
    }

    fn doing(&mut self, step: &StepId, what: Activity) -> io::Result<()> {
        let theme = self.theme;
        let name = self.names.of(step);
        if let Activity::Cache { text } = &what {
            return self.screen.println(format!("{} {name} {text}", theme.note("»")));
        }
        let Some(running) = self.running.get_mut(step) else {
            return Ok(());
        };
        let what = match running.vertex(&self.screen, theme, what) {
            Vertex::Told(line) => return self.screen.println(line),
            Vertex::Drawn => return Ok(()),
            Vertex::Other(what) => what,
        };
        running.busy = !matches!(what, Activity::Pulled { .. } | Activity::TakenOver);
        let text = match what {
            Activity::Pulling { image } => {
                running.layers.clear();
                running.pulling = image;
                format!("pulling {}", running.pulling)
            }
            Activity::Layer { id, current, total } => {
                running.layers.insert(id, (current, total));
                let (done, all) = running
                    .layers
                    .values()
                    .fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
                format!(
                    "pulling {}  {} of {}",
                    running.pulling,
                    DecimalBytes(done),
                    DecimalBytes(all)
                )
            }
            Activity::Pulled { .. } => String::new(),
            Activity::TakenOver => {
                return self.screen.println(format!(
                    "{} {name} was begun by an earlier process and is carried on",
                    theme.note("»")
                ));
            }
            Activity::Cache { .. } => String::new(),
            Activity::Stopping { why } => format!("stopping: {why}"),
            Activity::Building { name, .. } => clean(&name, false).into_owned(),
            Activity::Transfer { .. }
            | Activity::Built { .. }
            | Activity::NotBuilt { .. }
            | Activity::BuildingAgain => return Ok(()),
            Activity::Sending { bytes } | Activity::Sent { bytes } => {
                format!("sending the context  {}", DecimalBytes(bytes))
            }
        };
        running.bar.set_message(theme.dim(text));
        Ok(())
    }

    /// The newest line stands beside the step's time. What a script says itself is meant to be read, and stays.
    fn output(&mut self, step: &StepId, stream: usize, bytes: &[u8]) -> io::Result<()> {
        let Some(Running {
            bar, tail, busy, kind, ..
        }) = self.running.get_mut(step)
        else {
            return Ok(());
        };
        let mut lines = std::mem::take(&mut tail.partial[stream]);
        let said = match kind {
            StepKind::Script => lines.push(bytes, |line| {
                let line = String::from_utf8_lossy(line);
                self.screen.println(clean(&line, self.theme.colours))
            }),
            _ => lines.push(bytes, |line| {
                tail.keep(line);
                Ok(())
            }),
        };
        tail.partial[stream] = lines;
        if let (false, Some(newest)) = (*busy, tail.lines.back()) {
            bar.set_message(self.theme.dim(clean(newest, false)));
        }
        said
    }
}

/// What becomes of something that happened in a build.
enum Vertex {
    /// A line that stays.
    Told(String),
    /// Nothing else.
    Drawn,
    /// It is none of a build's, or has no line of its own.
    Other(Activity),
}

impl Running {
    /// The tree below a build: what it does has a line that is redrawn, what it has done one that stays, with its time.
    fn vertex(&mut self, screen: &MultiProgress, theme: Theme, what: Activity) -> Vertex {
        match what {
            Activity::Building { vertex, name } if !is_internal(&name) => {
                if self.vertexes.len() < LINES && !self.vertexes.contains_key(&vertex) {
                    let bar = screen.insert_after(&self.bar, ProgressBar::new_spinner());
                    bar.set_style(style(theme));
                    bar.set_prefix(format!("  {}", shortened(&name)));
                    bar.enable_steady_tick(TICK);
                    self.vertexes.insert(vertex, bar);
                }
                Vertex::Drawn
            }
            Activity::Transfer {
                vertex,
                id,
                current,
                total,
            } => {
                if let Some(bar) = self.vertexes.get(&vertex) {
                    let of = total.map_or_else(String::new, |total| format!(" of {}", DecimalBytes(total)));
                    let amount = if current > 0 {
                        format!("  {}{of}", DecimalBytes(current))
                    } else {
                        String::new()
                    };
                    bar.set_message(theme.dim(format!("{}{amount}", clean(&id, false))));
                }
                Vertex::Drawn
            }
            Activity::Built {
                vertex,
                name,
                cached,
                duration,
            } => {
                self.forget(screen, vertex);
                if is_internal(&name) || !self.told.insert(vertex) {
                    return Vertex::Drawn;
                }
                let took = if cached {
                    "cached".to_owned()
                } else {
                    duration::show(duration)
                };
                let mark = theme.good("✓");
                Vertex::Told(format!(
                    "  {mark} {}  {}",
                    shortened(&name),
                    theme.dim(format!("{took:>7}"))
                ))
            }
            Activity::NotBuilt { vertex, name, canceled } => {
                self.forget(screen, vertex);
                if canceled || !self.told.insert(vertex) {
                    return Vertex::Drawn;
                }
                Vertex::Told(format!("  {} {}", theme.bad("✗"), shortened(&name)))
            }
            Activity::BuildingAgain => {
                let over: Vec<_> = self.vertexes.keys().copied().collect();
                over.into_iter().for_each(|vertex| self.forget(screen, vertex));
                self.told.clear();
                Vertex::Drawn
            }
            other => Vertex::Other(other),
        }
    }

    fn forget(&mut self, screen: &MultiProgress, vertex: u32) {
        if let Some(bar) = self.vertexes.remove(&vertex) {
            bar.finish_and_clear();
            screen.remove(&bar);
        }
    }
}

/// What BuildKit does for itself: to read the Dockerfile, to look for what is ignored.
fn is_internal(name: &str) -> bool {
    name.starts_with("[internal]")
}

/// A vertex's name, which may be a whole script, in one line of a screen.
fn shortened(name: &str) -> String {
    const MOST: usize = 72;
    let name = clean(name, false);
    let mut short: String = name.chars().take(MOST).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    short
}

impl Tail {
    fn show(&mut self, theme: Theme) -> Vec<String> {
        for stream in 0..self.partial.len() {
            if let Some(rest) = self.partial[stream].rest() {
                self.keep(&rest);
            }
        }
        let edge = theme.dim("│");
        let mut shown = Vec::new();
        if self.cut > 0 {
            shown.push(format!(
                "    {edge} {}",
                theme.dim(format!("… {} earlier lines; `--plain` shows all", self.cut))
            ));
        }
        shown.extend(
            self.lines
                .iter()
                .map(|line| format!("    {edge} {}", clean(line, theme.colours))),
        );
        shown
    }
}

fn style(theme: Theme) -> ProgressStyle {
    let template = if theme.colours {
        "{spinner:.cyan} {prefix:.bold}  {took:.dim}   {wide_msg}"
    } else {
        "{spinner} {prefix}  {took}   {wide_msg}"
    };
    let took = |state: &ProgressState, to: &mut dyn std::fmt::Write| {
        // A line that can't be drawn is drawn the next time.
        let _ = write!(to, "{:>7}", duration::show(state.elapsed()));
    };
    // The template is fixed, and known to be right by the tests below.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .with_key("took", took)
}

impl super::Renderer for Terminal {
    fn show(&mut self, update: Update) -> io::Result<()> {
        match update {
            Update::Started { steps, .. } => self.names = Names::of_all(&steps),
            Update::StepStarted { step, kind } => self.start(step, kind),
            Update::Output { step, stream, bytes } => self.output(&step, stream as usize, &bytes)?,
            Update::Doing { step, what } => self.doing(&step, what)?,
            Update::StepFinished(end) => self.finish(*end)?,
            Update::Warning { message } => self.screen.println(format!("{} {message}", self.theme.warn("!")))?,
            Update::Finished { status, duration } => {
                let mut lines = String::new();
                if let Some(table) = summary::table(&self.ended, &self.names, self.theme) {
                    lines = format!("\n{table}\n");
                }
                self.screen
                    .println(lines + &summary::last_line(status, duration, self.theme))?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Renderer;
    use super::super::recorded::{pull, run_of_four_steps};
    use super::*;
    use indicatif::{InMemoryTerm, ProgressDrawTarget};
    use orchestra::OutputStream;

    fn terminal() -> (InMemoryTerm, Terminal) {
        let term = InMemoryTerm::new(100, 80);
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        (
            term,
            Terminal::new(MultiProgress::with_draw_target(target), Theme::PLAIN),
        )
    }

    #[test]
    fn what_has_ended_stays_and_output_is_shown_of_what_failed() {
        let (term, mut terminal) = terminal();
        for update in run_of_four_steps() {
            terminal.show(update).unwrap();
        }
        assert_eq!(
            term.contents(),
            "\
✓ write     0.4s
✓ app      12.3s
    ref: localhost/app:1
    digest: sha256:abc
✗ test      3.0s
    exit code 2
    hint: look at it
    │ oh no

  step    status       time
  write   succeeded    0.4s
  app     succeeded   12.3s
  test    failed       3.0s   exit code 2
  late    skipped         -

failed in 16.2s"
        );
    }

    #[test]
    fn a_running_step_has_one_line_with_what_it_does() {
        let (term, mut terminal) = terminal();
        let mut updates = run_of_four_steps().into_iter().take(2).chain(pull());
        for update in updates.by_ref().take(5) {
            terminal.show(update).unwrap();
        }
        terminal.running.values().for_each(|running| running.bar.tick());
        let contents = term.contents();
        assert!(contents.ends_with("pulling busybox  1.50 MB of 4.00 MB"), "{contents}");
        assert_eq!(contents.lines().count(), 1, "{contents}");
    }

    #[test]
    fn a_build_is_a_tree_of_what_it_did_and_does() {
        let (term, mut terminal) = terminal();
        let mut updates = run_of_four_steps().into_iter();
        let (started, begun) = (
            updates.next().unwrap(),
            updates.find(|update| {
                matches!(
                    update,
                    Update::StepStarted {
                        kind: StepKind::BuildImage,
                        ..
                    }
                )
            }),
        );
        terminal.show(started).unwrap();
        terminal.show(begun.unwrap()).unwrap();
        let step = terminal.running.keys().next().unwrap().clone();
        let name = |text: &str| text.to_owned();
        for what in [
            Activity::Building {
                vertex: 1,
                name: name("[internal] load build definition"),
            },
            Activity::Building {
                vertex: 2,
                name: name("[1/3] FROM base"),
            },
            Activity::Built {
                vertex: 2,
                name: name("[1/3] FROM base"),
                cached: true,
                duration: TICK,
            },
            Activity::Building {
                vertex: 3,
                name: name("[2/3] RUN make"),
            },
            Activity::Built {
                vertex: 3,
                name: name("[2/3] RUN make"),
                cached: false,
                duration: Duration::from_millis(1200),
            },
            Activity::Built {
                vertex: 3,
                name: name("[2/3] RUN make"),
                cached: false,
                duration: TICK,
            },
            Activity::Building {
                vertex: 4,
                name: name("exporting to image"),
            },
            Activity::Transfer {
                vertex: 4,
                id: name("pushing layers"),
                current: 1_500_000,
                total: Some(4_000_000),
            },
        ] {
            terminal
                .show(Update::Doing {
                    step: step.clone(),
                    what,
                })
                .unwrap();
        }
        let running = &terminal.running[&step];
        running.bar.tick();
        running.vertexes.values().for_each(ProgressBar::tick);
        let contents = term.contents();
        let lines: Vec<_> = contents.lines().collect();
        assert_eq!(lines[0], "  ✓ [1/3] FROM base   cached", "{contents}");
        assert_eq!(lines[1], "  ✓ [2/3] RUN make     1.2s", "{contents}");
        assert!(
            lines[2].contains("app") && lines[3].contains("exporting to image"),
            "{contents}"
        );
        assert!(lines[3].ends_with("pushing layers  1.50 MB of 4.00 MB"), "{contents}");
        assert_eq!(lines.len(), 4, "{contents}");
    }

    #[test]
    fn output_of_a_task_can_not_break_the_screen_or_fill_the_memory() {
        let (term, mut terminal) = terminal();
        let mut updates = run_of_four_steps().into_iter();
        updates
            .by_ref()
            .take(2)
            .for_each(|update| terminal.show(update).unwrap());
        let step = terminal.running.keys().next().unwrap().clone();
        for _ in 0..1000 {
            let bytes = "\x1b[2J\x1b[1;1H\x07evil\n\n".into();
            terminal
                .show(Update::Output {
                    step: step.clone(),
                    stream: OutputStream::Stdout,
                    bytes,
                })
                .unwrap();
        }
        assert_eq!(terminal.running[&step].tail.lines.len(), TAIL);
        let end = StepEnd {
            step,
            status: Status::Failed,
            exit: None,
            duration: TICK,
            image: None,
            error: None,
            hint: None,
            log: String::new(),
        };
        terminal.show(Update::StepFinished(Box::new(end))).unwrap();
        let contents = term.contents();
        assert!(contents.contains("1940 earlier lines"), "{contents}");
        assert!(contents.contains("    │ evil\n    │\n"), "{contents}");
    }
}
