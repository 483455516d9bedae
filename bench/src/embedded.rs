//! The embedded service beside a bare POST and beside one transaction per like.

use std::{
    io::{Error, Result},
    path::Path,
    process::Command,
    time::Duration,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep};

use crate::{
    disk, lag,
    load::{self, Connection, Outcome, Pace, Plan, Requests, quantiles},
    median,
    peers::{self, Kind},
    process::Server,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Seconds of each measured run of the whole service.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seconds of each run that finds a highest rate.
    #[arg(long, default_value_t = 8)]
    peak_seconds: u64,
    /// Alternating pairs of peak runs; medians are printed.
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// Rows that are there before the whole service is measured.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// The whole service's load, as a share of the bare POST's rate.
    #[arg(long, default_value_t = 0.15)]
    share: f64,
    /// Run one part alone.
    #[arg(long)]
    only: Option<Part>,
    /// The bare POST's rate, where the part that measures it is left out.
    #[arg(long, default_value_t = 100_000.0)]
    bare: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The highest rates of the bare POST, of accepting alone and of one transaction per like.
    Peaks,
    /// The whole service, with projection.
    Whole,
}

pub(crate) async fn run(likewise: &Path, options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    println!("fdatasync: {:.0}/s", disk::fdatasync_rate(dir.path())?);
    let bare = if options.only == Some(Part::Whole) { options.bare } else { peaks(options, dir.path()).await? };
    if options.only == Some(Part::Peaks) {
        return Ok(());
    }
    whole(likewise, options, dir.path(), bare).await
}

/// Highest rates of the bare POST, of accepting alone and of one transaction per like, in alternation.
async fn peaks(options: &Options, dir: &Path) -> Result<f64> {
    println!(
        "\nHighest rates, closed loop, {} s each, {} rounds (likes/s, latency in ms)",
        options.peak_seconds, options.pairs
    );
    let mut bare_rate = 0.0;
    for connections in [64, 256] {
        let mut rates = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..options.pairs {
            for (kind, rates) in [Kind::Bare, Kind::AcceptOnly, Kind::TransactionPerLike].into_iter().zip(&mut rates) {
                let server = peers::start(kind, dir)?;
                let time = Duration::from_secs(options.peak_seconds);
                let requests = Requests::Likes { first: 0, visible_every: 0, on_one_post: 0.0 };
                let plan = Plan { connections, time, pace: Pace::Closed, requests };
                let outcome = load::run(&server.address, plan).await?;
                rates.push(outcome.rate());
                println!(
                    "  {connections:>3} connections, {kind:?}: {:.0}/s, {}",
                    outcome.rate(),
                    quantiles(&outcome.latency)
                );
            }
        }
        let [bare, accept, transaction] = rates.map(median);
        println!(
            "  {connections:>3} connections: accepting is {:.2} of bare, {:.1} times one transaction per like",
            accept / bare,
            accept / transaction
        );
        if connections == 64 {
            bare_rate = bare;
        }
    }
    Ok(bare_rate)
}

/// The whole service with rows that are there, at rising loads.
async fn whole(likewise: &Path, options: &Options, dir: &Path, bare: f64) -> Result<()> {
    let data = dir.join("whole");
    let start = || {
        let mut command = Command::new(likewise);
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
        Server::start(&mut command)
    };
    let mut server = start()?;
    let bar = ProgressBar::new(options.rows);
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {human_pos}/{human_len}, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar.set_message("filling");
    let (started, each) = (Instant::now(), bar.clone());
    load::fill(&server.address, 0, options.rows, move |likes| each.inc(likes)).await?;
    lag::settle(admin(&server)?).await?;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    println!("\n{} likes in batches, projected: {:.0}/s", options.rows, options.rows as f64 / seconds);
    let (data_bytes, wal_bytes) = disk::bytes(&data)?;
    println!(
        "on disk: {} bytes per like (log and records), and {} MiB of write-ahead logs",
        data_bytes / options.rows.max(1),
        wal_bytes / 1024 / 1024
    );
    drop(server);
    let started = Instant::now();
    server = start()?;
    wait_ready(&server).await?;
    println!("restart after a kill with {} events: ready after {:.2} s", options.rows, started.elapsed().as_secs_f64());

    let mut first = options.rows;
    println!("\nThe whole service, new pairs, open loop, {} s each", options.seconds);
    for (name, rate, on_one_post) in [
        ("its share of the bare POST", options.share * bare, 0.0),
        ("3,000/s", 3000.0, 0.0),
        ("3,000/s on one post", 3000.0, 1.0),
        ("10,000/s", 10_000.0, 0.0),
        ("overload: 4 times its share", 4.0 * options.share * bare, 0.0),
    ] {
        let lag = lag::Watch::start(admin(&server)?);
        let plan = Plan {
            connections: 512,
            time: Duration::from_secs(options.seconds),
            pace: Pace::Open(rate),
            requests: Requests::Likes { first, visible_every: (rate / 100.0) as u64, on_one_post },
        };
        let outcome = load::run(&server.address, plan).await?;
        first += outcome.sent;
        let worst = lag.stop().await;
        print(name, rate, rate / bare, &outcome, &worst, server.rss_kib());
        lag::settle(admin(&server)?).await?;
    }
    Ok(())
}

fn print(name: &str, rate: f64, share: f64, outcome: &Outcome, worst: &lag::Lag, rss_kib: u64) {
    let (accepted, refused) = (outcome.rate(), outcome.refused);
    println!("  {name}: {rate:.0}/s due ({share:.2} of bare), {accepted:.0}/s accepted, {refused} refused");
    println!("    accepted  {}", quantiles(&outcome.latency));
    println!("    visible   {}", quantiles(&outcome.visible));
    println!("    lag       {worst}; memory {} MiB", rss_kib / 1024);
}

fn admin(server: &Server) -> Result<&str> {
    server.admin.as_deref().ok_or_else(|| Error::other("no admin port"))
}

async fn wait_ready(server: &Server) -> Result<()> {
    loop {
        if Connection::open(&server.address).await?.get("/readyz").await? == "ok\n" {
            return Ok(());
        }
        sleep(Duration::from_millis(5)).await;
    }
}
