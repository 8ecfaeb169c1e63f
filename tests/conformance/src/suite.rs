//! Running cases: each with a driver, a job and a deadline of its own, and a look for what it left.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use orchestra::{Capabilities, Error, JobId, PullImage, Result, SharedDriver};
use tokio::sync::{OnceCell, RwLock};

use crate::check::{Failure, Outcome};
use crate::context::{Context, Unlabelled};
use crate::settings::{Connect, Settings};

/// How long connecting and cleaning up may take, each.
const PATIENCE: Duration = Duration::from_secs(60);

/// A case that may take this many deadlines is tried alone.
const ALONE: u32 = 3;

/// One promise and how it is tried.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// What it is called: the promise, as a name.
    pub name: &'static str,
    /// The promise, in a sentence.
    pub promise: &'static str,
    /// Why it can't be tried here, if it can't.
    pub requires: fn(&Capabilities, &Settings) -> Option<String>,
    /// How many times [`Settings::deadline`] it may take.
    pub deadlines: u32,
    /// Tries it.
    pub run: fn(Arc<Context>) -> BoxFuture<'static, Outcome>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.promise)
    }
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The promise was kept.
    Passed,
    /// It was not tried, for this reason.
    Skipped(String),
    /// It was broken: how, and where in the suite that was seen.
    Failed(String),
}

/// The cases and what they run on.
///
/// [`main`](crate::main()) is the whole of a test target; this is for those who want each verdict.
pub struct Suite {
    settings: Settings,
    connect: Connect,
    /// What the names of this suite's jobs start with.
    run: JobId,
    next: AtomicUsize,
    image: OnceCell<()>,
    /// Written to by a case that is to be alone, and read by the others.
    room: RwLock<()>,
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Suite {
    /// A suite for the drivers that `connect` makes.
    pub fn new<F>(settings: Settings, connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<SharedDriver>> + Send + 'static,
    {
        let connect: Connect = Arc::new(move || Box::pin(connect()));
        Self {
            settings,
            connect,
            run: JobId::unique(),
            next: AtomicUsize::new(0),
            image: OnceCell::new(),
            room: RwLock::new(()),
        }
    }

    /// All cases.
    #[must_use]
    pub fn cases() -> Vec<Case> {
        crate::cases::all()
    }

    /// Tries one case.
    ///
    /// One that takes several times as long as others do is tried alone: it keeps disk and processors so busy that the
    /// deadlines of cases beside it would tell of it, and not of the engine.
    pub async fn run(&self, case: &Case) -> Verdict {
        if case.deadlines >= ALONE {
            let _alone = self.room.write().await;
            self.verdict(case).await
        } else {
            let _beside = self.room.read().await;
            self.verdict(case).await
        }
    }

    async fn verdict(&self, case: &Case) -> Verdict {
        let connected = tokio::time::timeout(PATIENCE, self.prepare()).await;
        let driver = match connected {
            Ok(Ok(driver)) => driver,
            Ok(Err(error)) => return Verdict::Failed(format!("no driver can be made: {error:?}")),
            Err(_) => return Verdict::Failed(format!("making a driver took longer than {PATIENCE:?}")),
        };
        if let Some(reason) = (case.requires)(&driver.info().capabilities, &self.settings) {
            return Verdict::Skipped(reason);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Two valid ids and a dash are shorter than an id may be.
        let job = JobId::new(format!("{}-{number}", self.run)).unwrap_or_else(|_| JobId::unique());
        let context = Arc::new(self.surroundings(driver, job));
        let limit = self.settings.deadline * case.deadlines;
        // A task of its own: a panic is a failure like others and does not skip the clean-up.
        let mut task = tokio::spawn((case.run)(context.clone()));
        let outcome = match tokio::time::timeout(limit, &mut task).await {
            Ok(Ok(outcome)) => outcome.map_err(|failure| failure.to_string()),
            Ok(Err(panic)) => Err(format!("the case panicked: {panic}")),
            Err(_) => {
                task.abort();
                Err(format!("the case took longer than {limit:?}"))
            }
        };
        let left = tokio::time::timeout(PATIENCE, clean_up(&context)).await;
        let left = left.unwrap_or_else(|_| Err(Failure::new(format!("cleaning up took longer than {PATIENCE:?}"))));
        match (outcome, left) {
            (Ok(()), Ok(())) => Verdict::Passed,
            (Err(why), Ok(())) => Verdict::Failed(format!("{}\n{why}", case.promise)),
            (Ok(()), Err(left)) => Verdict::Failed(format!("after the case: {left}")),
            (Err(why), Err(left)) => Verdict::Failed(format!("{}\n{why}\nand after the case: {left}", case.promise)),
        }
    }

    fn surroundings(&self, driver: SharedDriver, job: JobId) -> Context {
        Context {
            driver,
            job,
            settings: self.settings.clone(),
            connect: self.connect.clone(),
            unlabelled: Mutex::default(),
        }
    }

    /// A driver for a job that another process has named.
    pub(crate) async fn context(&self, job: JobId) -> Result<Context> {
        Ok(self.surroundings(self.prepare().await?, job))
    }

    async fn prepare(&self) -> Result<SharedDriver> {
        let driver = (self.connect)().await?;
        let image = &self.settings.image;
        let had = self.image.get_or_try_init(|| async {
            if driver.image_exists(image).await? {
                return Ok(());
            }
            let mut pull = driver.pull_image(&PullImage::new(image.clone())).await?;
            while let Some(event) = pull.next().await {
                event?;
            }
            Ok::<_, Error>(())
        });
        had.await?;
        Ok(driver)
    }

    /// What is left of this suite's jobs; to be asked when all cases have run.
    ///
    /// # Errors
    /// The driver's.
    pub async fn leftovers(&self) -> Result<Vec<orchestra::Resource>> {
        let driver = (self.connect)().await?;
        let mut listed = driver.list(None).await?;
        let prefix = format!("{}-", self.run);
        listed.retain(|resource| resource.job().is_some_and(|job| job.as_str().starts_with(&prefix)));
        Ok(listed)
    }
}

/// Ends the case's job and fails if the driver leaves anything of it.
async fn clean_up(cx: &Context) -> Outcome {
    let report = cx.driver.end_job(&cx.job).await?;
    cx.driver.end_job(&cx.other_job()).await?;
    let unlabelled = std::mem::take(&mut *cx.unlabelled.lock().unwrap_or_else(PoisonError::into_inner));
    // What was made last may use what was made first.
    for what in unlabelled.into_iter().rev() {
        match what {
            Unlabelled::Image(image) => cx.driver.remove_image(&image).await?,
            Unlabelled::Container(id) => cx.driver.remove_container(&id).await?,
            Unlabelled::Volume(id) => cx.driver.remove_volume(&id).await?,
        }
    }
    if let Some((resource, error)) = report.remaining.first() {
        return Err(Failure::new(format!(
            "end_job could not remove {resource:?}: {error:?}"
        )));
    }
    match cx.driver.list(Some(&cx.job)).await? {
        left if left.is_empty() => Ok(()),
        left => Err(Failure::new(format!("end_job left {left:?}"))),
    }
}
