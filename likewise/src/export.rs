//! `likewise export`: the log as Parquet files.

use clap::Args;
use likewise_analyst::export::{Target, check, export};

use crate::{
    Failure,
    config::Settings,
    reading::{self, Reading},
    wiring,
};

/// Write the log to Parquet files, for DuckDB, Spark, pandas and others. A later run adds what is new.
///
/// The files are DIR/day=2026-11-26/partition=0003/<first offset>-<end>.parquet, each whole or not there, and never change.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise export --to likes
  likewise export --to s3://bucket/likes     with AWS_ACCESS_KEY_ID and so on in the environment
  likewise export --to likes --check")]
pub(crate) struct Options {
    /// A folder, or s3://bucket/prefix
    #[arg(long, value_name = "DIR|URL")]
    to: String,
    /// Write nothing: read every file, look for gaps and overlaps, and say how much of the log is missing.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let log = wiring::readable_log(&settings.log).await?;
    let bar = reading::bar_of(&log).await?;
    let moves = reading::moves(&bar);
    let done = if options.check {
        check(&log, &Target::existing(&options.to)?, &moves).await?
    } else {
        export(&log, &Target::open(&options.to)?, &options.reading.pace(), &moves).await?
    };
    bar.finish_and_clear();
    let line = match options {
        Options { json: true, .. } => serde_json::to_string(&done)?,
        Options { check: true, .. } => {
            format!(
                "{} files with {} events are whole; {} events are not exported yet",
                done.files, done.records, done.missing
            )
        }
        _ => format!("{} events exported into {} new files", done.records, done.files),
    };
    reading::print(&line).map(drop)
}
