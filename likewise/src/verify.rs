//! `likewise verify`: proof that records and cache are what the log says, and what makes them so again.

use std::{collections::BTreeSet, sync::Arc};

use clap::Args;
use likewise_analyst::{
    Progress,
    reader::Pace,
    verify::{Repaired, Report, Stores, repair, verify as compare},
};
use likewise_projector::fold::FOLD_VERSION;
use likewise_schema::{Partition, PartitionCount};
use likewise_storage::{Clock, records::Owner};
use rand::seq::IteratorRandom;
use serde_json::Value;

use crate::{
    Failure,
    config::Settings,
    operator,
    reading::{self, Reading},
    serve::own_directories,
    wiring,
};

/// Compare rows, counts, buckets and cached entries with the log, while the service runs.
///
/// The log is folded anew, by code that the projector does not share, up to the offsets of one snapshot of the records. Ends
/// with 0 if all is as the log says, or was mended; with 3 if something differs.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise verify                     everything
  likewise verify --sample 2          two partitions drawn at random
  likewise verify --repair            everything, and mend what differs
  likewise verify --json | jq .findings")]
pub(crate) struct Options {
    /// Compare everything (the default).
    #[arg(long, conflicts_with = "sample")]
    full: bool,
    /// Compare so many partitions, drawn at random.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    sample: Option<u16>,
    /// Mend what differs, as an owner of the partition; then compare again.
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    owner: operator::Owner,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Differences that are printed for people.
const SHOWN: usize = 20;
/// Comparisons with a repair after each: what an owner does between a comparison and its repair can follow from what was
/// wrong.
const ROUNDS_MAX: usize = 3;

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let asked =
        operator::Verify { sample: options.sample, repair: options.repair, max_rate: options.reading.max_rate() };
    let outcome = match options.owner.of(&settings.records)? {
        Some(service) => service.verify(asked).await?,
        None => here(settings, options, asked).await?,
    };
    if options.json {
        reading::print(&outcome.to_string())?;
    } else {
        print(&outcome)?;
    }
    match outcome["remaining"].as_u64() {
        Some(0) => Ok(()),
        remaining => {
            let remaining = remaining.unwrap_or_default();
            Err(Failure::different(format!("{remaining} differences between the log and what was derived from it")))
        }
    }
}

/// Compares in this process.
async fn here(settings: &Settings, options: &Options, asked: operator::Verify) -> Result<Value, Failure> {
    let is_embedded = settings.records.iter().all(|url| wiring::is_embedded(url));
    // Files are mended by whoever owns them.
    let _owned = if is_embedded && options.repair { own_directories(settings)? } else { Vec::new() };
    let log = wiring::readable_log(&settings.log).await?;
    let records = match is_embedded && options.repair {
        true => wiring::writable_records(&settings.records).await?,
        false => wiring::readable_records(&settings.records).await?,
    };
    let counters = match settings.counters.as_str() {
        "memory://" => None,
        url => Some(wiring::counters(url, &Clock::system()).await?.0),
    };
    let bar = reading::bar_of(&log).await?;
    let stores = Stores { log, records, counters };
    let verified = verify(&stores, asked, &options.reading.pace(), &reading::moves(&bar)).await;
    bar.finish_and_clear();
    verified
}

/// Compares, and mends if that is asked for. The report is of the first comparison; `remaining` is what the last one found.
pub(crate) async fn verify(
    stores: &Stores,
    asked: operator::Verify,
    pace: &Arc<Pace>,
    progress: &Progress,
) -> Result<Value, Failure> {
    let sample = asked.sample.map(|size| drawn(stores.log.partitions(), size));
    let first = compare(stores, sample.as_ref(), pace, progress).await?;
    let (mut repaired, mut remaining) = (Repaired::default(), first.total());
    if asked.repair && remaining > 0 {
        let clock = Clock::system();
        let owner = Owner {
            log_identity: stores.log.identity().to_owned(),
            partitions: stores.log.partitions(),
            fold_version: FOLD_VERSION,
            micros: clock.micros(),
        };
        let mut next: Option<Report> = None;
        for _ in 0..ROUNDS_MAX {
            let done = repair(stores, &owner, next.as_ref().unwrap_or(&first), &clock).await?;
            repaired.add(done);
            let again = compare(stores, sample.as_ref(), pace, progress).await?;
            remaining = again.total();
            next = Some(again);
            if remaining == 0 {
                break;
            }
        }
    }
    let mut outcome = serde_json::to_value(&first)?;
    outcome["repaired"] = if asked.repair { serde_json::to_value(repaired)? } else { Value::Null };
    outcome["remaining"] = remaining.into();
    Ok(outcome)
}

fn drawn(count: PartitionCount, size: u16) -> BTreeSet<Partition> {
    count.all().sample(&mut rand::rng(), size.into()).into_iter().collect()
}

fn print(outcome: &Value) -> Result<(), Failure> {
    let number = |name: &str| outcome[name].as_u64().unwrap_or_default();
    let cached = match outcome["cached"].as_u64() {
        Some(entries) => format!("{entries} cached entries"),
        None => match outcome["cacheFault"].as_str() {
            Some(fault) => format!("no cached entries ({fault})"),
            None => "no cached entries, which were in the service's memory".into(),
        },
    };
    let partitions = outcome["partitions"].as_object().map_or(0, serde_json::Map::len);
    let mut lines = vec![
        format!(
            "{} events of {partitions} partitions folded; {} rows, {} counts and {cached} compared",
            number("events"),
            number("rows"),
            number("counts")
        ),
        format!("{}  all rows", outcome["sha256"].as_str().unwrap_or_default()),
    ];
    let findings = outcome["findings"].as_array().map_or(&[][..], Vec::as_slice);
    for finding in findings.iter().take(SHOWN) {
        let text = |name: &str| finding[name].as_str().unwrap_or("?").to_owned();
        let place = finding["partition"].as_u64().map_or_else(|| "?".into(), |partition| partition.to_string());
        let content = finding["content"].as_str().map_or_else(String::new, |content| format!(" {content}"));
        let user = finding["user"].as_str().map_or_else(String::new, |user| format!(" user {user}"));
        let (kind, found, expected) = (text("kind").replace('-', " "), text("found"), text("expected"));
        lines.push(format!("partition {place}:{content}{user}: {kind}: {found}, not {expected}"));
    }
    let total: u64 =
        outcome["differences"].as_object().map_or(0, |kinds| kinds.values().filter_map(Value::as_u64).sum());
    if total > SHOWN as u64 {
        lines.push(format!("and {} more; --json prints them", total - SHOWN as u64));
    }
    if let Some(repaired) = outcome["repaired"].as_object() {
        let number = |name: &str| repaired.get(name).and_then(Value::as_u64).unwrap_or_default();
        lines.push(format!(
            "mended: {} rows, {} counts, {} buckets; {} cached entries forgotten; {} differences remain",
            number("rows"),
            number("counts"),
            number("buckets"),
            number("forgotten"),
            outcome["remaining"].as_u64().unwrap_or_default()
        ));
    }
    for line in lines {
        if !reading::print(&line)? {
            break;
        }
    }
    Ok(())
}
