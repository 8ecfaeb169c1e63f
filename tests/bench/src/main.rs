//! Side-by-side measurements of orchestra and the engine's own client, on the engine of the environment.
//!
//! Each comparison runs its two sides in turn, A B, B A, A B …, in one process on one engine, and prints the median of the
//! ratios pair by pair: machines are noisy, and what drifts meets both sides of a pair. Nothing is asserted.

mod bare;
mod build;
mod caches;
mod client;
mod logs;
mod pairs;
mod pipeline;
mod pull;
mod tasks;
mod volumes;

use std::error::Error;

use client::Client;
use orchestra::SharedDriver;
use orchestra_e2e::KnownDriver;
use pairs::Table;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What every measurement needs.
struct Bench {
    known: KnownDriver,
    driver: SharedDriver,
    client: Client,
    image: String,
    rounds: usize,
    table: Table,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
async fn main() -> Outcome<()> {
    if let Some(done) = caches::part().await {
        return done;
    }
    let names: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let rounds = std::env::args()
        .find_map(|arg| arg.strip_prefix("--rounds=")?.parse().ok())
        .unwrap_or(15);
    let known = KnownDriver::chosen().unwrap_or(KnownDriver::Docker);
    let driver = known.connect(None).await?;
    let client = Client::find(known)?;
    println!(
        "engine {} {} (API {}), client {}, {rounds} pairs",
        driver.info().driver,
        driver.info().engine_version,
        driver.info().api_version,
        client.version
    );
    let image = std::env::var("ORCHESTRA_TEST_IMAGE").unwrap_or_else(|_| "busybox:stable".to_owned());
    let name = std::env::args().find_map(|arg| arg.strip_prefix("--name=").map(str::to_owned));
    let name = name.unwrap_or_else(|| driver.info().driver.clone());
    let engine = format!("{name} {}", driver.info().engine_version);
    let mut bench = Bench {
        known,
        driver,
        client,
        image,
        rounds,
        table: Table::new(engine),
    };
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    if wanted("task") {
        tasks::one(&mut bench).await?;
    }
    if wanted("steps") {
        pipeline::thirty_steps(&mut bench).await?;
    }
    if wanted("pipeline") {
        pipeline::whole(&mut bench).await?;
    }
    if wanted("hidden") {
        pipeline::hidden(&mut bench).await?;
    }
    if wanted("many") {
        tasks::fifty_at_once(&mut bench).await?;
    }
    if wanted("logs") {
        logs::all(&mut bench).await?;
    }
    if wanted("caches") {
        caches::all(&mut bench).await?;
    }
    if wanted("build") {
        build::all(&mut bench).await?;
    }
    if wanted("volumes") {
        volumes::one_gib(&mut bench).await?;
    }
    if wanted("pull") {
        pull::ten_layers(&mut bench).await?;
    }
    println!("\n{}", bench.table);
    Ok(())
}
