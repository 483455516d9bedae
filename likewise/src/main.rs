//! The binary: command line, configuration, wiring; one file per subcommand.
//!
//! May depend on every crate of the workspace. Must never know how a like is folded or stored.

#![forbid(unsafe_code)]

/// A like is allocated on one thread and freed on another; the system's allocator is slow at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod abuse;
mod backup;
mod config;
mod console;
mod count_at;
mod dead_letters;
mod demo;
mod digest;
mod export;
mod history;
mod key;
mod migrate;
mod operator;
mod pages;
mod private;
mod reading;
mod rebuild;
mod replay;
mod security;
mod serve;
mod tail;
mod token;
mod top;
mod topic;
mod verify;
mod wiring;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

use crate::{config::Flags, serve::Roles};

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
    /// Serve the command API alone: several of them share a Kafka log and Redis.
    #[command(name = "command-api")]
    Commands,
    /// Project alone: several of them share the partitions of a Kafka log.
    Projector,
    /// Serve the query API alone: several of them share the records and Redis.
    #[command(name = "query-api")]
    Queries,
    /// Make the topics of a Kafka log, or check their settings.
    Topic(topic::Options),
    /// Make the tables of the record servers, or bring them to this program's version.
    Migrate,
    /// Look at records that are no events, and replay those that have become valid.
    DeadLetters(dead_letters::Options),
    /// Make, list and revoke keys for backends that act for users.
    Key(key::Options),
    /// Find accounts that like in lockstep, and contents that grow as they never did.
    Abuse(abuse::Options),
    /// Print a token for trying things out, signed with --auth-secret-file.
    Token(token::Options),
    /// Print the effective settings, and where each comes from.
    Config,
    Tail(tail::Options),
    Replay(replay::Options),
    Export(export::Options),
    CountAt(count_at::Options),
    History(history::Options),
    Top(top::Options),
    Verify(verify::Options),
    Rebuild(rebuild::Options),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Digest(digest::Options),
}

/// Why a command did not end well, in one sentence for the person who ran it.
#[derive(Debug)]
pub(crate) struct Failure {
    sentence: String,
    code: u8,
}

/// The exit code of a command that could not do what it was asked to. A wrong command line is 2, which clap says.
const FAILED: u8 = 1;
/// The exit code of a check that was done, and found differences.
const DIFFERENT: u8 = 3;

impl Failure {
    /// What was compared differs.
    pub(crate) fn different(sentence: String) -> Self {
        Self { sentence, code: DIFFERENT }
    }
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { sentence: error.to_string(), code: FAILED }
    }
}

/// How long blocking work may go on after a command has ended.
const LEAVE_MAX: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { sentence, code }) => {
            eprintln!("likewise: {sentence}");
            ExitCode::from(code)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let loaded = config::load(&cli.flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => runtime.block_on(serve::run(&loaded.settings, Roles::ALL)),
        Command::Commands => runtime.block_on(serve::run(&loaded.settings, Roles::COMMANDS)),
        Command::Projector => runtime.block_on(serve::run(&loaded.settings, Roles::PROJECTOR)),
        Command::Queries => runtime.block_on(serve::run(&loaded.settings, Roles::QUERIES)),
        Command::Topic(options) => runtime.block_on(topic::run(&loaded.settings, &options)),
        Command::Migrate => runtime.block_on(migrate::run(&loaded.settings)),
        Command::DeadLetters(options) => runtime.block_on(dead_letters::run(&loaded.settings, &options)),
        Command::Abuse(options) => runtime.block_on(abuse::run(&loaded.settings, &options)),
        Command::Key(options) => key::run(&loaded.settings, &options),
        Command::Token(options) => token::run(&loaded.settings, &options),
        Command::Config => loaded.print(),
        Command::Tail(options) => runtime.block_on(tail::run(&loaded.settings, &options)),
        Command::Replay(options) => runtime.block_on(replay::run(&loaded.settings, &options)),
        Command::Export(options) => runtime.block_on(export::run(&loaded.settings, &options)),
        Command::CountAt(options) => runtime.block_on(count_at::run(&loaded.settings, &options)),
        Command::History(options) => runtime.block_on(history::run(&loaded.settings, &options)),
        Command::Top(options) => runtime.block_on(top::run(&loaded.settings, &options)),
        Command::Verify(options) => runtime.block_on(verify::run(&loaded.settings, &options)),
        Command::Rebuild(options) => runtime.block_on(rebuild::run(&loaded.settings, &options)),
        Command::Backup(options) => runtime.block_on(backup::backup(&loaded.settings, &options)),
        Command::Restore(options) => runtime.block_on(backup::restore(&loaded.settings, &options)),
        Command::Digest(options) => runtime.block_on(digest::run(&loaded.settings, &options)),
    };
    // What still blocks a thread then, such as leaving a group whose broker is silent, is left to end with the process.
    runtime.shutdown_timeout(LEAVE_MAX);
    outcome
}
