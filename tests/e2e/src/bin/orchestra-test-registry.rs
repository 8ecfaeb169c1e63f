//! A registry for tests beside a user's own engine, which can reach the internet: the public image `registry:2`, run by our
//! own [`Job`] on the driver under test, so that nothing has to be installed. The images that tests expect to be there are
//! fetched first.
//!
//! It listens on loopback (the engine's host network), prints `ready` when it answers, and ends with its standard input.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use orchestra::{ContainerPath, ImageRef, InjectedFile, Job, NetworkMode, PullImage, Task, TaskResult};
use orchestra_e2e::{KnownDriver, registry};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep};

const IMAGE: &str = "registry:2";
const USERS: &str = "/auth/htpasswd";
/// How long it may take to answer, pull included.
const START_LIMIT: Duration = Duration::from_secs(300);

#[derive(Debug, Parser)]
struct Args {
    /// Where it listens
    #[arg(long, value_name = "HOST:PORT")]
    addr: String,
    /// Ask for this user name, and for the password that ORCHESTRA_TEST_REGISTRY_PASSWORD has
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Fetch this image if the engine lacks it; may be given more than once
    #[arg(long = "fetch", value_name = "IMAGE")]
    images: Vec<ImageRef>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Our own errors say in `Debug` what to do.
            match error.downcast::<orchestra::Error>() {
                Ok(error) => say_error(&format!("{error:?}")),
                Err(error) => say_error(&error.to_string()),
            }
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "it is a program for tests, and this is where it says why it fails"
)]
fn say_error(error: &str) {
    eprintln!("test registry: {error}");
}

async fn serve(args: Args) -> Result<(), Box<dyn Error>> {
    let task = describe(&args)?;
    let known = KnownDriver::chosen().unwrap_or(KnownDriver::Docker);
    let job = Job::builder(known.connect(None).await?).build();
    let outcome = async {
        for image in &args.images {
            if !job.driver().image_exists(image).await? {
                job.pull(&PullImage::new(image.clone())).await?;
            }
        }
        run(&job, task, &args.addr).await
    };
    let outcome = outcome.await;
    job.end().await?;
    outcome
}

fn describe(args: &Args) -> Result<Task, Box<dyn Error>> {
    let task = Task::new("registry", IMAGE)?
        .network(NetworkMode::Host)
        .env("REGISTRY_HTTP_ADDR", &args.addr)
        .env("REGISTRY_STORAGE_DELETE_ENABLED", "true")
        .env("REGISTRY_LOG_LEVEL", "warn")
        .env("OTEL_TRACES_EXPORTER", "none");
    let Some(user) = &args.user else { return Ok(task) };
    let password = std::env::var("ORCHESTRA_TEST_REGISTRY_PASSWORD")
        .map_err(|_| "ORCHESTRA_TEST_REGISTRY_PASSWORD has to be set with --user")?;
    // The lowest cost that bcrypt has: every request pays it, and the password is random.
    let users = format!("{user}:{}\n", bcrypt::hash(password, 4)?);
    Ok(task
        .file(InjectedFile::new(ContainerPath::new(USERS)?, users))
        .env("REGISTRY_AUTH", "htpasswd")
        .env("REGISTRY_AUTH_HTPASSWD_REALM", "orchestra-tests")
        .env("REGISTRY_AUTH_HTPASSWD_PATH", USERS))
}

/// Runs it until standard input ends.
async fn run(job: &Job, task: Task, address: &str) -> Result<(), Box<dyn Error>> {
    if registry::answers(address) {
        return Err(format!("something answers at {address} already").into());
    }
    let mut running = job.start(task);
    let limit = Instant::now() + START_LIMIT;
    while !registry::answers(address) {
        tokio::select! {
            ended = running.wait() => return Err(died(ended?)),
            () = sleep(Duration::from_millis(100)) => {}
        }
        if Instant::now() > limit {
            return Err(format!("it does not answer at {address}").into());
        }
    }
    say("ready");
    let mut ignored = [0; 64];
    let mut stdin = tokio::io::stdin();
    loop {
        tokio::select! {
            ended = running.wait() => return Err(died(ended?)),
            read = stdin.read(&mut ignored) => if read? == 0 {
                break;
            }
        }
    }
    running.cancel();
    running.wait().await?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the line is what it is started for")]
fn say(line: &str) {
    println!("{line}");
}

fn died(result: TaskResult) -> Box<dyn Error> {
    format!(
        "it ended by itself: {}\n{}{}",
        result.exit,
        result.stdout.last_lines(20),
        result.stderr.last_lines(20)
    )
    .into()
}
