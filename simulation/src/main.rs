//! `simulate`: runs seeds, or proves that planted bugs are found.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use likewise_simulation::run;
use likewise_storage::planted::Bug;
use parking_lot::Mutex;

/// Runs the seeded simulation of Likewise.
#[derive(Parser)]
struct Options {
    /// Run this one seed and print what it saw.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds to run.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Plant this bug; the run is good if it is found.
    #[arg(long, value_parser = parse_bug)]
    bug: Option<Bug>,
    /// Plant every bug in turn; each must be found within --seeds.
    #[arg(long)]
    all_bugs: bool,
}

fn parse_bug(name: &str) -> Result<Bug, String> {
    let known = || Bug::ALL.map(|bug| format!("{bug:?}")).join(", ");
    Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name).ok_or_else(|| format!("the bugs are {}", known()))
}

/// The lowest failing seed of a range, with its violation; stops early once one is found.
fn first_failure(first: u64, seeds: u64, bug: Option<Bug>, bar: &ProgressBar) -> Option<(u64, String)> {
    let (next, found) = (AtomicU64::new(first), Mutex::new(None::<(u64, String)>));
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_over =
                        seed >= first + seeds || found.lock().as_ref().is_some_and(|(lowest, _)| *lowest < seed);
                    if is_over {
                        return;
                    }
                    if let Err(violation) = run(seed, bug) {
                        let mut found = found.lock();
                        if found.as_ref().is_none_or(|(lowest, _)| seed < *lowest) {
                            *found = Some((seed, violation));
                        }
                    }
                    bar.inc(1);
                }
            });
        }
    });
    found.into_inner()
}

fn main() -> ExitCode {
    let options = Options::parse();
    let bar = ProgressBar::new(options.seeds);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    if let Some(seed) = options.seed {
        let outcome = run(seed, options.bug);
        println!("seed {seed}: {outcome:?}");
        return if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if options.all_bugs || options.bug.is_some() {
        let bugs: Vec<Bug> = Bug::ALL.into_iter().filter(|bug| options.bug.is_none_or(|only| only == *bug)).collect();
        let mut missed = 0;
        for bug in bugs {
            bar.reset();
            match first_failure(options.first, options.seeds, Some(bug), &bar) {
                Some((seed, violation)) => println!("{bug:?}: found by seed {seed}: {violation}"),
                None => {
                    println!("{bug:?}: NOT found in {} seeds", options.seeds);
                    missed += 1;
                }
            }
        }
        bar.finish_and_clear();
        return if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let failure = first_failure(options.first, options.seeds, None, &bar);
    bar.finish_and_clear();
    match failure {
        None => {
            println!("{} seeds from {}: no violation", options.seeds, options.first);
            ExitCode::SUCCESS
        }
        Some((seed, violation)) => {
            println!("seed {seed}: {violation}");
            println!("replay it with: cargo run --release -p likewise-simulation --bin simulate -- --seed {seed}");
            ExitCode::FAILURE
        }
    }
}
