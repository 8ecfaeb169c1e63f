//! Plain lines, for logs: each line of output behind its step's name, as it comes.

use std::collections::HashMap;
use std::io::{self, Write};

use indicatif::DecimalBytes;
use orchestra::OutputStream;
use orchestra_pipelines::Status;

use super::names::Names;
use super::summary;
use super::text::{Lines, clean};
use super::update::{Activity, StepEnd, StepId, Update};
use crate::console::Theme;
use crate::duration;

/// Writes `STEP | line` for output and `==> STEP …` for what happens to a step.
///
/// All of it goes to one stream, so that its order is the order it happened in; warnings go to the other.
#[derive(Debug)]
pub(crate) struct Plain<O, E> {
    out: O,
    err: E,
    theme: Theme,
    /// Whether output is to be made fit for a terminal; a log gets it as it is.
    terminal: bool,
    names: Names,
    partial: HashMap<StepId, [Lines; 2]>,
    ended: Vec<StepEnd>,
}

impl<O: Write, E: Write> Plain<O, E> {
    pub(crate) fn new(out: O, err: E, theme: Theme, terminal: bool) -> Self {
        let (names, partial, ended) = (Names::default(), HashMap::new(), Vec::new());
        Self {
            out,
            err,
            theme,
            terminal,
            names,
            partial,
            ended,
        }
    }

    fn say(&mut self, step: &StepId, what: &str) -> io::Result<()> {
        let name = self.theme.strong(self.names.of(step));
        writeln!(self.out, "{} {name} {what}", self.theme.note("==>"))
    }

    fn output(&mut self, step: &StepId, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        let prefix = self.prefix(step);
        let (out, terminal, theme) = (&mut self.out, self.terminal, self.theme);
        let lines = &mut self.partial.entry(step.clone()).or_default()[stream as usize];
        lines.push(bytes, |line| write_line(out, &prefix, line, terminal, theme))
    }

    fn prefix(&self, step: &StepId) -> String {
        format!("{} {}", self.theme.note(self.names.of(step)), self.theme.dim("|"))
    }

    fn doing(&mut self, step: &StepId, what: Activity) -> io::Result<()> {
        match what {
            Activity::Pulling { image } => self.say(step, &format!("pulls {image}")),
            Activity::Pulled { image, duration } => {
                self.say(step, &format!("pulled {image} in {}", duration::show(duration)))
            }
            Activity::Sent { bytes } => self.say(step, &format!("sent its context, {}", DecimalBytes(bytes))),
            Activity::Cache { text } => self.say(step, &text),
            Activity::TakenOver => self.say(step, "was begun by an earlier process and is carried on"),
            Activity::Stopping { why } => self.say(step, &format!("is being stopped: {why}")),
            // A log has no place for what is over the next moment.
            Activity::Layer { .. } | Activity::Sending { .. } => Ok(()),
            // It is in the output.
            Activity::Building { .. }
            | Activity::Transfer { .. }
            | Activity::Built { .. }
            | Activity::NotBuilt { .. }
            | Activity::BuildingAgain => Ok(()),
        }
    }

    fn finished(&mut self, end: StepEnd) -> io::Result<()> {
        let prefix = self.prefix(&end.step);
        for mut lines in self.partial.remove(&end.step).into_iter().flatten() {
            if let Some(rest) = lines.rest() {
                write_line(&mut self.out, &prefix, &rest, self.terminal, self.theme)?;
            }
        }
        if end.status != Status::Skipped {
            let status = summary::status(end.status, self.theme);
            self.say(&end.step, &format!("{status} in {}", duration::show(end.duration)))?;
        }
        for line in summary::details(&end, self.theme) {
            writeln!(self.out, "    {line}")?;
        }
        self.ended.push(end);
        Ok(())
    }
}

fn write_line(out: &mut impl Write, prefix: &str, line: &[u8], terminal: bool, theme: Theme) -> io::Result<()> {
    out.write_all(prefix.as_bytes())?;
    if !line.is_empty() {
        out.write_all(b" ")?;
    }
    if terminal {
        out.write_all(clean(&String::from_utf8_lossy(line), theme.colours).as_bytes())?;
    } else {
        out.write_all(line)?;
    }
    out.write_all(b"\n")
}

impl<O: Write + Send, E: Write + Send> super::Renderer for Plain<O, E> {
    fn show(&mut self, update: Update) -> io::Result<()> {
        match update {
            Update::Started { steps, .. } => self.names = Names::of_all(&steps),
            Update::StepStarted { step, kind } => {
                self.names.see(&step);
                self.say(&step, &format!("starts ({kind})"))?;
            }
            Update::Output { step, stream, bytes } => self.output(&step, stream, &bytes)?,
            Update::Doing { step, what } => self.doing(&step, what)?,
            Update::StepFinished(end) => self.finished(*end)?,
            // Nobody reads standard error any more: the run is not worse for it.
            Update::Warning { message } => {
                self.out.flush()?;
                writeln!(self.err, "{}: {message}", self.theme.warn("warning")).ok();
            }
            Update::Finished { status, duration } => {
                if let Some(table) = summary::table(&self.ended, &self.names, self.theme) {
                    write!(self.out, "\n{table}")?;
                }
                writeln!(self.out, "\n{}", summary::last_line(status, duration, self.theme))?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Renderer;
    use super::super::recorded::{pull, run_of_four_steps};
    use super::*;

    fn shown(updates: Vec<Update>) -> String {
        let mut plain = Plain::new(Vec::new(), Vec::new(), Theme::PLAIN, false);
        for update in updates {
            plain.show(update).unwrap();
        }
        String::from_utf8(plain.out).unwrap()
    }

    #[test]
    fn a_run_reads_as_a_log() {
        assert_eq!(
            shown(run_of_four_steps()),
            "\
==> write starts (task)
write | hello
write | a warning
write | no line feed
==> write succeeded in 0.4s
==> app starts (build_image)
==> app succeeded in 12.3s
    ref: localhost/app:1
    digest: sha256:abc
==> test starts (task)
test | oh no
==> test failed in 3.0s
    exit code 2
    hint: look at it

  step    status       time
  write   succeeded    0.4s
  app     succeeded   12.3s
  test    failed       3.0s   exit code 2
  late    skipped         -

failed in 16.2s
"
        );
    }

    #[test]
    fn a_pull_is_told_by_its_start_and_its_end_alone() {
        assert_eq!(
            shown(pull()),
            "==> write pulls busybox\n==> write pulled busybox in 2.0s\n"
        );
    }

    #[test]
    fn output_reaches_a_log_byte_for_byte_and_a_terminal_cleaned() {
        let step = StepId {
            job: "main".into(),
            step: "a".into(),
        };
        let bytes = b"\x1b[2J\xff\r50%\r100%\n";
        let output = || Update::Output {
            step: step.clone(),
            stream: OutputStream::Stdout,
            bytes: bytes.to_vec().into(),
        };
        let mut log = Plain::new(Vec::new(), Vec::new(), Theme::PLAIN, false);
        log.show(output()).unwrap();
        assert_eq!(log.out, b"a | \x1b[2J\xff\r50%\r100%\n");
        let mut terminal = Plain::new(Vec::new(), Vec::new(), Theme::PLAIN, true);
        terminal.show(output()).unwrap();
        assert_eq!(terminal.out, b"a | 100%\n");
    }
}
