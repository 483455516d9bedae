//! `likewise digest`: one number for all that the records show.

use clap::Args;
use serde::Serialize;

use crate::{Failure, config::Settings, wiring};

#[derive(Args)]
pub(crate) struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    sha256: String,
    rows: u64,
    active: u64,
    /// Events applied, by partition.
    applied: Vec<i64>,
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let records = wiring::readable_records(&settings.records).await?;
    let snapshot = records.digest().await?;
    let report = Report {
        sha256: likewise_schema::hex(&snapshot.value.sha256),
        rows: snapshot.value.rows,
        active: snapshot.value.active,
        applied: snapshot.checkpoints.iter().map(|checkpoint| checkpoint.next_offset.get()).collect(),
    };
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        let events: i64 = report.applied.iter().sum();
        println!("{}  {} rows, {} likes, {events} events applied", report.sha256, report.rows, report.active);
    }
    Ok(())
}
