//! `likewise digest`: one number for all that the records show, and one for each partition.

use std::collections::BTreeMap;

use clap::Args;
use likewise_storage::records::{Checkpoint, Digest, DigestBuilder, LikeRecord, SCAN_CHUNKS, Scan};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{Failure, config::Settings, reading, wiring};

/// Print the SHA-256 of the projected rows, of each partition and of all: equal logs have equal digests.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise digest                     of this service
  likewise digest --json | jq -r .sha256")]
pub(crate) struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    sha256: String,
    rows: u64,
    active: u64,
    /// Events applied, by partition.
    applied: Vec<i64>,
    /// Of each partition; of one without rows that of nothing.
    partitions: BTreeMap<u16, String>,
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let records = wiring::readable_records(&settings.records).await?;
    let (sender, mut rows) = mpsc::channel::<Vec<LikeRecord>>(SCAN_CHUNKS);
    // Which partition a row is of follows from their number, which is fixed.
    let mut count = None;
    for partition in likewise_schema::PartitionCount::DEFAULT.all() {
        count = count.or(records.checkpoint(partition).await?.map(|stored: Checkpoint| stored.partitions));
    }
    let build = async {
        let mut all = DigestBuilder::default();
        let mut by_partition: BTreeMap<u16, DigestBuilder> = BTreeMap::new();
        while let Some(chunk) = rows.recv().await {
            for row in &chunk {
                all.add(row);
                let partition = count.map(|count| count.partition_of(&row.pair.content).get());
                by_partition.entry(partition.unwrap_or_default()).or_default().add(row);
            }
        }
        (all.finish(), by_partition)
    };
    let (checkpoints, (Digest { sha256, rows, active }, mut by_partition)) =
        tokio::join!(records.scan(Scan::of_rows(sender)), build);
    let checkpoints = checkpoints?;
    let hex = |digest: DigestBuilder| likewise_schema::hex(&digest.finish().sha256);
    let of = |stored: &Checkpoint| {
        let partition = stored.partition.get();
        (partition, hex(by_partition.remove(&partition).unwrap_or_default()))
    };
    let partitions: BTreeMap<u16, String> = checkpoints.iter().map(of).collect();
    let report = Report {
        sha256: likewise_schema::hex(&sha256),
        rows,
        active,
        applied: checkpoints.iter().map(|checkpoint| checkpoint.next_offset.get()).collect(),
        partitions,
    };
    if options.json {
        return reading::print(&serde_json::to_string(&report)?).map(drop);
    }
    let events: i64 = report.applied.iter().sum();
    let Report { sha256, rows, active, .. } = &report;
    reading::print(&format!("{sha256}  {rows} rows, {active} likes, {events} events applied"))?;
    for (partition, sha256) in &report.partitions {
        if !reading::print(&format!("{sha256}  partition {partition}"))? {
            break;
        }
    }
    Ok(())
}
