//! The binary: command line, configuration, wiring; one file per subcommand.
//!
//! May depend on every crate of the workspace. Must never know how a like is folded or stored.

#![forbid(unsafe_code)]

/// A like is allocated on one thread and freed on another; the system's allocator is slow at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod config;
mod demo;
mod digest;
mod merge;
mod replay;
mod serve;
mod tail;
mod wiring;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Flags;

/// A like service: durable, exact, fast.
///
/// Without a command it serves everything from one process, with no other server: the same as `likewise serve`.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the command API, the projector and the query API from one process (the default).
    Serve,
    /// Print the effective settings, and where each comes from.
    Config,
    /// Print the last events of the log; with --follow, also those to come.
    Tail(tail::Options),
    /// Copy all events, as they are, into a file of JSON Lines or into an empty log.
    Replay(replay::Options),
    /// Print the SHA-256 of the projected rows: equal logs have equal digests.
    Digest(digest::Options),
}

/// Why a command ended early, in one sentence for the person who ran it.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(sentence)) => {
            eprintln!("likewise: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let loaded = config::load(&cli.flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => runtime.block_on(serve::run(&loaded.settings)),
        Command::Config => loaded.print(),
        Command::Tail(options) => runtime.block_on(tail::run(&loaded.settings, &options)),
        Command::Replay(options) => runtime.block_on(replay::run(&loaded.settings, &options)),
        Command::Digest(options) => runtime.block_on(digest::run(&loaded.settings, &options)),
    }
}
