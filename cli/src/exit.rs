//! How the program ends, and how it says why.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceCode};
use orchestra::ErrorKind;
use orchestra_pipelines::{Invalid, Problem};

use crate::console::{Console, Theme};
use crate::log::redacted;

/// The exit codes, which are part of the command's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All went well.
    Success = 0,
    /// A step ran and failed.
    StepFailed = 1,
    /// What was given can't be used: arguments, configuration, pipeline.
    BadInput = 2,
    /// The engine or a registry failed, or can't be reached.
    Engine = 3,
    /// A signal ended it, or nobody reads its output any more.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Who has to act on an error decides the code: its caller, or who runs engine and registries.
impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidInput | ErrorKind::Unsupported => Self::BadInput,
            ErrorKind::TaskFailed => Self::StepFailed,
            ErrorKind::Cancelled => Self::Interrupted,
            _ => Self::Engine,
        }
    }
}

/// Why the program ends otherwise than well.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: Message,
}

#[derive(Debug)]
enum Message {
    Text {
        text: String,
        causes: Vec<String>,
        hint: Option<String>,
    },
    /// Shows places in a file.
    Invalid(Invalid),
}

impl Failure {
    /// Something that was given can't be used.
    pub(crate) fn bad_input(text: impl Into<String>) -> Self {
        Self::text(Exit::BadInput, text, None)
    }

    pub(crate) fn text(exit: Exit, text: impl Into<String>, hint: Option<String>) -> Self {
        let message = Message::Text {
            text: text.into(),
            causes: Vec::new(),
            hint,
        };
        Self { exit, message }
    }

    /// A pipeline that can't be run.
    pub(crate) fn invalid(invalid: Invalid) -> Self {
        Self {
            exit: Exit::BadInput,
            message: Message::Invalid(invalid),
        }
    }

    /// Adds what to do.
    pub(crate) fn with_hint(mut self, better: impl Into<String>) -> Self {
        if let Message::Text { hint, .. } = &mut self.message {
            *hint = Some(better.into());
        }
        self
    }

    /// Says why, to standard error, and with `json` as an event on standard output too.
    pub(crate) fn report(&self, json: bool) -> Exit {
        let console = Console::detect();
        // Nobody is left to tell if standard error is closed.
        let shown = redacted(&self.show(console.stderr));
        std::io::stderr().write_all(shown.as_bytes()).ok();
        if json {
            let event = serde_json::json!({
                "event": "error",
                "message": redacted(&self.show(Theme::PLAIN)).trim_end(),
                "exit_code": self.exit as u8,
            });
            writeln!(std::io::stdout(), "{event}").ok();
        }
        self.exit
    }

    fn show(&self, theme: Theme) -> String {
        match &self.message {
            Message::Text { text, causes, hint } => {
                let mut shown = format!("{}: {text}\n", theme.bad("error"));
                for cause in causes {
                    shown.push_str(&format!("  {}: {cause}\n", theme.dim("caused by")));
                }
                if let Some(line) = hint {
                    shown.push_str(&format!("  {}: {line}\n", theme.note("hint")));
                }
                shown
            }
            Message::Invalid(invalid) => show_invalid(invalid, theme),
        }
    }
}

/// All problems, each with its lines of the file.
fn show_invalid(invalid: &Invalid, theme: Theme) -> String {
    let graphics = if theme.colours {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let handler = GraphicalReportHandler::new_themed(graphics).with_links(false);
    let mut shown = format!("{}: {invalid}", theme.bad("error"));
    if invalid.source_code().is_none() {
        for problem in invalid.problems() {
            shown.push_str(&format!(": {problem}\n"));
            if let Some(help) = &problem.help {
                shown.push_str(&format!("  {}: {help}\n", theme.note("hint")));
            }
        }
        return shown;
    }
    shown.push('\n');
    for problem in invalid.problems() {
        shown.push('\n');
        let placed = Placed { problem, invalid };
        if handler.render_report(&mut shown, &placed).is_err() {
            shown.push_str(&format!("  {problem}\n"));
        }
    }
    shown
}

/// A problem together with the file that it is in.
#[derive(Debug)]
struct Placed<'a> {
    problem: &'a Problem,
    invalid: &'a Invalid,
}

impl fmt::Display for Placed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.problem, f)
    }
}

impl std::error::Error for Placed<'_> {}

impl Diagnostic for Placed<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.problem.help()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.problem.labels()
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.invalid.source_code()
    }
}

impl From<orchestra::Error> for Failure {
    fn from(error: orchestra::Error) -> Self {
        let text = error.to_string();
        let mut causes = Vec::new();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Many errors repeat their source's words in their own.
            if !text.contains(&cause_text) && !causes.contains(&cause_text) {
                causes.push(cause_text);
            }
            source = cause.source();
        }
        let hint = error.hint().map(ToOwned::to_owned);
        Self {
            exit: error.kind().into(),
            message: Message::Text { text, causes, hint },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestra::Error;

    #[test]
    fn an_error_is_shown_with_its_causes_once_and_its_hint() {
        let source = std::io::Error::other("connection refused");
        let error = Error::new(ErrorKind::Unreachable, "connect").with_source(source);
        let shown = Failure::from(error).show(Theme::PLAIN);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines[..2],
            ["error: unreachable: connect", "  caused by: connection refused"]
        );
        assert!(lines[2].starts_with("  hint: start the engine"), "{shown}");
    }

    #[test]
    fn who_has_to_act_decides_the_exit_code() {
        let code = |kind| Failure::from(Error::new(kind, "x")).exit;
        assert_eq!(code(ErrorKind::InvalidInput), Exit::BadInput);
        assert_eq!(code(ErrorKind::Unreachable), Exit::Engine);
        assert_eq!(code(ErrorKind::PermissionDenied), Exit::Engine);
        assert_eq!(code(ErrorKind::TaskFailed), Exit::StepFailed);
    }
}
