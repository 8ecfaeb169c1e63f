//! What standard output and standard error are connected to, and colours where they show.

use std::fmt::Display;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use owo_colors::{OwoColorize, Style};
use rustix::stdio::stderr;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// Where output goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    /// Both are terminals: lines can be redrawn.
    pub(crate) interactive: bool,
    pub(crate) stdout_is_terminal: bool,
    pub(crate) stderr_is_terminal: bool,
    pub(crate) stdout: Theme,
    pub(crate) stderr: Theme,
}

impl Console {
    pub(crate) fn detect() -> Self {
        let (stdout, stderr) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        // https://no-color.org
        let colours = !set("NO_COLOR") && !dumb;
        Self {
            interactive: stdout && stderr && !dumb,
            stdout_is_terminal: stdout,
            stderr_is_terminal: stderr,
            stdout: Theme {
                colours: stdout && colours,
            },
            stderr: Theme {
                colours: stderr && colours,
            },
        }
    }
}

/// The few colours there are, by what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Theme {
    pub(crate) colours: bool,
}

impl Theme {
    pub(crate) const PLAIN: Self = Self { colours: false };

    fn paint(self, style: Style, text: impl Display) -> String {
        if self.colours {
            text.style(style).to_string()
        } else {
            text.to_string()
        }
    }

    pub(crate) fn good(self, text: impl Display) -> String {
        self.paint(Style::new().green(), text)
    }

    pub(crate) fn bad(self, text: impl Display) -> String {
        self.paint(Style::new().red().bold(), text)
    }

    pub(crate) fn warn(self, text: impl Display) -> String {
        self.paint(Style::new().yellow(), text)
    }

    pub(crate) fn note(self, text: impl Display) -> String {
        self.paint(Style::new().cyan(), text)
    }

    pub(crate) fn strong(self, text: impl Display) -> String {
        self.paint(Style::new().bold(), text)
    }

    pub(crate) fn dim(self, text: impl Display) -> String {
        self.paint(Style::new().dimmed(), text)
    }
}

/// A terminal's settings as they were, until they are restored.
static SETTINGS: Mutex<Option<Termios>> = Mutex::new(None);

/// While it lives, the terminal does not write `^C` when that is typed: lines that are redrawn would not be found again
/// where they were drawn.
#[derive(Debug)]
pub(crate) struct Echo(());

impl Echo {
    /// `None` where that can't be had, which is no harm.
    pub(crate) fn without_control() -> Option<Self> {
        if !in_foreground() {
            return None;
        }
        let before = tcgetattr(stderr()).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHOCTL);
        tcsetattr(stderr(), OptionalActions::Now, &quiet).ok()?;
        *SETTINGS.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        Some(Self(()))
    }

    /// Does what the end of its life does, for a program that ends without it.
    pub(crate) fn restore() {
        let before = SETTINGS.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(before) = before.filter(|_| in_foreground()) {
            // What can't be restored is no reason to fail.
            tcsetattr(stderr(), OptionalActions::Now, &before).ok();
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        Self::restore();
    }
}

/// A process in the background that changes its terminal's settings is stopped (termios(3)).
fn in_foreground() -> bool {
    tcgetpgrp(stderr()).is_ok_and(|foreground| foreground == rustix::process::getpgrp())
}
