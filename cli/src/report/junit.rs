//! JUnit's XML: a suite for each job, a case for each step.

use std::io::{self, Write};
use std::time::Duration;

use orchestra_pipelines::Status;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::{Record, StepRecord};

/// Writes the report.
pub(super) fn write(out: &mut dyn Write, record: &Record) -> io::Result<()> {
    let mut report = Report::new(&record.name);
    report.set_time(record.duration);
    let mut suites: Vec<TestSuite> = Vec::new();
    for id in &record.order {
        let Some(step) = record.steps.get(id) else { continue };
        let at = suites.iter().position(|suite| suite.name.as_str() == id.job);
        let at = at.unwrap_or_else(|| {
            suites.push(TestSuite::new(&id.job));
            suites.len() - 1
        });
        let mut case = TestCase::new(&id.step, status(step));
        case.set_classname(&id.job);
        let took = step.report.as_ref().map_or(Duration::ZERO, |report| report.duration);
        case.set_time(took);
        if let Some(tail) = step.report.as_ref().map(|report| &report.log_tail)
            && !tail.is_empty()
        {
            case.set_system_out(tail);
        }
        suites[at].add_test_case(case);
    }
    report.add_test_suites(suites);
    report.serialize(out).map_err(io::Error::other)
}

fn status(step: &StepRecord) -> TestCaseStatus {
    let Some(report) = &step.report else {
        return TestCaseStatus::skipped();
    };
    let kind = match report.status {
        Status::Succeeded => return TestCaseStatus::success(),
        Status::Skipped => return TestCaseStatus::skipped(),
        // Its failure is none of the run.
        _ if report.tolerated => {
            let mut status = TestCaseStatus::skipped();
            let error = report.error.as_deref().and_then(|error| error.lines().next());
            let why = error.map(|error| format!(": {error}")).unwrap_or_default();
            status.set_message(format!("{}, and may{why}", report.status));
            return status;
        }
        Status::Failed => NonSuccessKind::Failure,
        Status::Errored | Status::Aborted => NonSuccessKind::Error,
    };
    let mut status = TestCaseStatus::non_success(kind);
    let error = report.error.clone().unwrap_or_else(|| report.status.to_string());
    status.set_type(report.status.to_string());
    status.set_message(error.lines().next().unwrap_or_default());
    let hint = report
        .hint
        .as_ref()
        .map_or_else(String::new, |hint| format!("\nhint: {hint}"));
    status.set_description(format!("{error}{hint}"));
    status
}
