//! `likewise verify`: proof that records and cache are what the log says.

use std::collections::BTreeSet;

use clap::Args;
use likewise_analyst::verify::{Report, Stores, verify};
use likewise_schema::{Partition, PartitionCount};
use likewise_storage::Clock;
use rand::seq::IteratorRandom;

use crate::{
    Failure,
    config::Settings,
    reading::{self, Reading},
    wiring,
};

/// Compare rows, counts, buckets and cached entries with the log, while the service runs.
///
/// The log is folded anew, by code that the projector does not share, up to the offsets of one snapshot of the records. Ends
/// with 0 if all is as the log says, with 3 if something differs.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise verify                     everything
  likewise verify --sample 2          two partitions drawn at random
  likewise verify --json | jq .findings")]
pub(crate) struct Options {
    /// Compare everything (the default).
    #[arg(long, conflicts_with = "sample")]
    full: bool,
    /// Compare so many partitions, drawn at random.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    sample: Option<u16>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Differences that are printed for people.
const SHOWN: usize = 20;

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let log = wiring::readable_log(&settings.log).await?;
    let records = wiring::readable_records(&settings.records).await?;
    let counters = match settings.counters.as_str() {
        "memory://" => None,
        url => Some(wiring::counters(url, &Clock::system()).await?.0),
    };
    let sample = options.sample.map(|size| drawn(log.partitions(), size));
    let bar = match &sample {
        None => reading::bar_of(&log).await?,
        Some(partitions) => {
            let mut records = 0;
            for partition in partitions {
                records += log.bounds(*partition).await?.end.get().unsigned_abs();
            }
            reading::progress_bar(records)
        }
    };
    let stores = Stores { log, records, counters };
    let report = verify(&stores, sample.as_ref(), &options.reading.pace(), &reading::moves(&bar)).await?;
    bar.finish_and_clear();
    if options.json {
        reading::print(&serde_json::to_string(&report)?)?;
    } else {
        print(&report)?;
    }
    match report.total() {
        0 => Ok(()),
        differences => {
            Err(Failure::different(format!("{differences} differences between the log and what was derived")))
        }
    }
}

fn drawn(count: PartitionCount, size: u16) -> BTreeSet<Partition> {
    count.all().sample(&mut rand::rng(), size.into()).into_iter().collect()
}

fn print(report: &Report) -> Result<(), Failure> {
    let Report { events, rows, counts, partitions, sha256, .. } = report;
    let cached = match report.cached {
        Some(entries) => format!("{entries} cached entries"),
        None => "no cached entries, which are in the service's memory".into(),
    };
    let mut lines = vec![
        format!(
            "{events} events of {} partitions folded; {rows} rows, {counts} counts and {cached} compared",
            partitions.len()
        ),
        format!("{sha256}  all rows"),
    ];
    for finding in report.findings.iter().take(SHOWN) {
        let place = finding.partition.map_or_else(|| "?".into(), |partition| partition.to_string());
        let content = finding.content.map_or_else(String::new, |content| format!(" {content}"));
        let user = finding.user.map_or_else(String::new, |user| format!(" user {user}"));
        let kind = finding.kind.name();
        lines.push(format!("partition {place}:{content}{user}: {kind}: {}, not {}", finding.found, finding.expected));
    }
    if report.total() > SHOWN as u64 {
        lines.push(format!("and {} more; --json prints them", report.total() - SHOWN as u64));
    }
    for line in lines {
        if !reading::print(&line)? {
            break;
        }
    }
    Ok(())
}
