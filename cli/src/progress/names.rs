//! What steps are called on the screen.

use super::update::StepId;

/// Step names, with their job's where there is more than one job.
#[derive(Debug, Default)]
pub(crate) struct Names {
    several_jobs: bool,
    width: usize,
}

impl Names {
    pub(crate) fn of_all(steps: &[StepId]) -> Self {
        let several_jobs = steps.iter().any(|step| step.job != steps[0].job);
        let mut names = Self { several_jobs, width: 0 };
        // Names are ASCII: bytes are columns.
        names.width = steps.iter().map(|step| names.of(step).len()).max().unwrap_or(0);
        names
    }

    /// Takes in a step that was not known beforehand.
    pub(crate) fn see(&mut self, step: &StepId) {
        self.width = self.width.max(self.of(step).len());
    }

    pub(crate) fn of(&self, step: &StepId) -> String {
        if self.several_jobs {
            format!("{}/{}", step.job, step.step)
        } else {
            step.step.clone()
        }
    }

    /// The name, filled up to the width of the longest.
    pub(crate) fn padded(&self, step: &StepId) -> String {
        format!("{:width$}", self.of(step), width = self.width)
    }

    /// The longest name's.
    pub(crate) fn width(&self) -> usize {
        self.width
    }
}
