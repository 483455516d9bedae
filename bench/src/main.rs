//! Benchmarks: the service beside peers and raw limits, in the same run, since absolute rates of one machine drift.
//!
//! May depend on every crate but the simulation. Must never be needed by the product or its tests.

#![forbid(unsafe_code)]

/// A like is allocated on one thread and freed on another; the system's allocator is slow at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod analyst;
mod command;
mod disk;
mod embedded;
mod lag;
mod load;
mod peers;
mod process;
mod projection;
mod query;
mod system;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Benchmarks of Likewise. Run them through scripts/bench, which builds what they need.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The embedded service: durable likes a second, latencies, lag, bytes, beside a bare POST and one transaction a like.
    Embedded {
        /// The release binary of likewise.
        #[arg(long)]
        likewise: PathBuf,
        #[command(flatten)]
        options: embedded::Options,
    },
    /// The command API with every protection on beside a bare handler on Kafka and beside a transaction per like.
    #[command(name = "command")]
    Accepting {
        /// The release binary of likewise.
        #[arg(long)]
        likewise: PathBuf,
        #[command(flatten)]
        options: command::Options,
    },
    /// Projection into MySQL and MariaDB beside raw multi-row upserts and one upsert per event.
    Projection(projection::Options),
    /// The whole service in roles on Kafka, MySQL and Redis, with the load generator on the same machine.
    System {
        /// The release binary of likewise.
        #[arg(long)]
        likewise: PathBuf,
        #[command(flatten)]
        options: system::Options,
    },
    /// Reads of the query API beside a bare handler, webdis and MySQL: counts, feeds, lists, streams.
    Query {
        /// The release binary of likewise.
        #[arg(long)]
        likewise: PathBuf,
        #[command(flatten)]
        options: query::Options,
    },
    /// The commands for analysts over a long log: seconds, memory, bytes an event.
    Analyst {
        /// The release binary of likewise.
        #[arg(long)]
        likewise: PathBuf,
        #[command(flatten)]
        options: analyst::Options,
    },
    /// Sends likes of new pairs to a service that runs, and prints what came of it.
    Load(load::Options),
    /// A server that another benchmark is compared with.
    #[command(hide = true)]
    Peer {
        /// Which one.
        kind: peers::Kind,
        /// Where it may keep files.
        #[arg(long)]
        data_dir: PathBuf,
        /// Servers that it uses: addresses or URLs.
        #[arg(long)]
        server: Vec<String>,
    },
}

/// The middle one; of an even number the upper of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> std::io::Result<()> {
    let command = Cli::parse().command;
    // Beside a whole system the load generator takes as little of the machine as it can.
    let workers = if matches!(command, Command::System { .. }) { 1 } else { 2 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    match command {
        Command::Embedded { likewise, options } => runtime.block_on(embedded::run(&likewise, &options)),
        Command::Accepting { likewise, options } => runtime.block_on(command::run(&likewise, &options)),
        Command::Projection(options) => runtime.block_on(projection::run(&options)),
        Command::System { likewise, options } => runtime.block_on(system::run(&likewise, &options)),
        Command::Query { likewise, options } => runtime.block_on(query::run(&likewise, &options)),
        Command::Analyst { likewise, options } => runtime.block_on(analyst::run(&likewise, &options)),
        Command::Load(options) => runtime.block_on(load::print(&options)),
        Command::Peer { kind, data_dir, server } => runtime.block_on(peers::serve(kind, &data_dir, &server)),
    }
}
