//! Pairs of measurements, and the table of what they say.

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use crate::Outcome;

/// What was measured so far, on one engine.
pub(crate) struct Table {
    engine: String,
    rows: Vec<Row>,
}

enum Row {
    Pairs {
        what: String,
        other: String,
        target: &'static str,
        ours: Duration,
        theirs: Duration,
        ratios: Vec<f64>,
    },
    Figure {
        what: String,
        value: String,
    },
}

/// How long a future takes that has to succeed.
pub(crate) async fn time<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<Duration> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed())
}

pub(crate) fn median<T: Copy + PartialOrd>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted.get(sorted.len() / 2).copied()
}

impl Table {
    pub(crate) fn new(engine: String) -> Self {
        Self {
            engine,
            rows: Vec::new(),
        }
    }

    /// Measures `ours` and `theirs` in turn, once unmeasured and then `rounds` times.
    pub(crate) async fn compare<A, B, FA, FB>(
        &mut self,
        what: &str,
        other: &str,
        target: &'static str,
        rounds: usize,
        ours: A,
        theirs: B,
    ) -> Outcome<()>
    where
        A: FnMut() -> FA,
        B: FnMut() -> FB,
        FA: Future<Output = Outcome<()>>,
        FB: Future<Output = Outcome<()>>,
    {
        self.compare_with(what, other, target, rounds, || Ok(()), ours, theirs)
            .await
    }

    /// The same, where something has to be done before each pair, unmeasured.
    #[expect(clippy::too_many_arguments, reason = "the two sides, and what is said of them")]
    pub(crate) async fn compare_with<A, B, FA, FB>(
        &mut self,
        what: &str,
        other: &str,
        target: &'static str,
        rounds: usize,
        mut before: impl FnMut() -> Outcome<()>,
        ours: A,
        theirs: B,
    ) -> Outcome<()>
    where
        A: FnMut() -> FA,
        B: FnMut() -> FB,
        FA: Future<Output = Outcome<()>>,
        FB: Future<Output = Outcome<()>>,
    {
        let mut sides = 0;
        let reset = || {
            sides += 1;
            let done = if sides % 2 == 1 { before() } else { Ok(()) };
            async move { done }
        };
        self.compare_anew(what, other, target, rounds, reset, ours, theirs)
            .await
    }

    /// The same, where `reset` is run before each of them, unmeasured.
    #[expect(clippy::too_many_arguments, reason = "a row of the table has as many columns")]
    pub(crate) async fn compare_anew<R, A, B, FR, FA, FB>(
        &mut self,
        what: &str,
        other: &str,
        target: &'static str,
        rounds: usize,
        mut reset: R,
        mut ours: A,
        mut theirs: B,
    ) -> Outcome<()>
    where
        R: FnMut() -> FR,
        A: FnMut() -> FA,
        B: FnMut() -> FB,
        FR: Future<Output = Outcome<()>>,
        FA: Future<Output = Outcome<()>>,
        FB: Future<Output = Outcome<()>>,
    {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            // What runs second may profit from the first: the order changes with each pair.
            for first in [true, false] {
                reset().await?;
                if first == (round % 2 == 0) {
                    a.push(time(ours()).await?);
                } else {
                    b.push(time(theirs()).await?);
                }
            }
        }
        // The first pair is there to warm up.
        a.remove(0);
        b.remove(0);
        let ratios = a
            .iter()
            .zip(&b)
            .map(|(a, b)| a.as_secs_f64() / b.as_secs_f64())
            .collect();
        let row = Row::Pairs {
            what: what.to_owned(),
            other: other.to_owned(),
            target,
            ours: median(&a).unwrap_or_default(),
            theirs: median(&b).unwrap_or_default(),
            ratios,
        };
        eprint_row(&row);
        self.rows.push(row);
        Ok(())
    }

    /// A figure that has no other side.
    pub(crate) fn figure(&mut self, what: &str, value: String) {
        let row = Row::Figure {
            what: what.to_owned(),
            value,
        };
        eprint_row(&row);
        self.rows.push(row);
    }
}

#[expect(clippy::print_stderr, reason = "shows that a long measurement goes on")]
fn eprint_row(row: &Row) {
    eprintln!("  {row}");
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pairs {
                what,
                other,
                target,
                ours,
                theirs,
                ratios,
            } => {
                let ratio = median(ratios).unwrap_or(f64::NAN);
                let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
                let most = ratios.iter().copied().fold(0.0, f64::max);
                let (ours, theirs) = (ours.as_secs_f64() * 1e3, theirs.as_secs_f64() * 1e3);
                write!(
                    f,
                    "| {what} | {other} | {ours:.1} ms | {theirs:.1} ms | **{ratio:.3}** | {least:.2}–{most:.2} | {target} |"
                )
            }
            Self::Figure { what, value } => write!(f, "| {what} | | {value} | | | | |"),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| engine | ours | against | ours, median | theirs, median | median of ratios | min–max | target |"
        )?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
        let Self { engine, rows } = self;
        rows.iter().try_for_each(|row| writeln!(f, "| {engine} {row}"))
    }
}
