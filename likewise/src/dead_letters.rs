//! `likewise dead-letters`: records that are no events, and what can be done about them.

use std::{io::Write, sync::Arc};

use clap::{Args, Subcommand};
use likewise_schema::{Headers, LikeToggled, Malformed, Partition, PartitionCount, Rejected};
use likewise_storage::{
    EventLog,
    log::{DeadLetter, LogRecord, NewRecord},
};

use likewise_analyst::line::RawLine;

use crate::{Failure, config::Settings, wiring};

/// Letters read at once.
const PAGE: usize = 1000;

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A line for each: its number, where it was found, and what is wrong with it.
    List,
    /// One whole, as a line of JSON.
    Show {
        /// Its number in the list.
        number: u64,
    },
    /// Check them again, and append those that are events now to the partition where they belong.
    Replay {
        /// Their numbers in the list; all when left out.
        numbers: Vec<u64>,
        /// Also those whose user and content had a later event since.
        #[arg(long)]
        force: bool,
    },
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    match &options.what {
        What::List => list(&wiring::readable_log(&settings.log).await?).await,
        What::Show { number } => show(&wiring::readable_log(&settings.log).await?, *number).await,
        What::Replay { numbers, force } => replay(settings, numbers, *force).await,
    }
}

fn text(letter: &DeadLetter, name: &str) -> String {
    letter.headers.get(name).map_or_else(String::new, |value| String::from_utf8_lossy(value).into_owned())
}

async fn list(log: &Arc<dyn EventLog>) -> Result<(), Failure> {
    let mut number = 0;
    loop {
        let page = log.dead_letters(number, PAGE).await?;
        for letter in &page {
            let (partition, offset) = (text(letter, "__dlq.errors.partition"), text(letter, "__dlq.errors.offset"));
            let line = format!(
                "{number}  {}  {partition}/{offset}  {}",
                letter.timestamp,
                text(letter, "__dlq.errors.message")
            );
            match writeln!(std::io::stdout(), "{line}") {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            number += 1;
        }
        if page.len() < PAGE {
            return Ok(());
        }
    }
}

async fn one(log: &Arc<dyn EventLog>, number: u64) -> Result<DeadLetter, Failure> {
    let letter = log.dead_letters(number, 1).await?.pop();
    letter.ok_or_else(|| format!("there is no dead letter {number}; dead-letters list shows them").into())
}

async fn show(log: &Arc<dyn EventLog>, number: u64) -> Result<(), Failure> {
    let DeadLetter { timestamp, key, value, headers } = one(log, number).await?;
    let found = |name: &str| headers.get(name).and_then(|text| std::str::from_utf8(text).ok()?.parse::<i64>().ok());
    let count = log.partitions();
    let partition =
        found("__dlq.errors.partition").and_then(|number| Partition::new(u32::try_from(number).ok()?, count).ok());
    let offset =
        found("__dlq.errors.offset").and_then(|offset| likewise_schema::Offset::new(offset).ok()).unwrap_or_default();
    let partition = partition.ok_or("the letter does not say where it was found")?;
    let record = LogRecord { offset, timestamp, key, value, headers };
    println!("{}", serde_json::to_string(&RawLine::of(partition, &record))?);
    Ok(())
}

async fn replay(settings: &Settings, numbers: &[u64], force: bool) -> Result<(), Failure> {
    if wiring::is_embedded(&settings.log) {
        return Err(
            "an embedded log is written by its service alone, which never writes a record that becomes valid".into()
        );
    }
    let log = wiring::writable_log(&settings.log, settings.partitions).await?;
    let records = wiring::readable_records(&settings.records).await?;
    let mut letters = Vec::new();
    for number in numbers {
        letters.push((*number, one(&log, *number).await?));
    }
    while numbers.is_empty() {
        let page = log.dead_letters(letters.len() as u64, PAGE).await?;
        let is_last = page.len() < PAGE;
        letters.extend((letters.len() as u64..).zip(page));
        if is_last {
            break;
        }
    }
    let (mut appended, mut skipped) = (0, 0);
    for (number, letter) in letters {
        let (partition, event, headers) = match revive(log.partitions(), &letter) {
            Ok(revived) => revived,
            Err(reason) => {
                println!("{number}  still no event: {reason}");
                skipped += 1;
                continue;
            }
        };
        let row = records.rows(&[event.pair()]).await?.value.pop().flatten();
        if !force && row.is_some_and(|row| row.updated_at >= event.received_at) {
            println!("{number}  skipped: its user and content had an event since; --force appends it all the same");
            skipped += 1;
            continue;
        }
        let DeadLetter { timestamp, key, value, .. } = letter;
        let offset = log.append(NewRecord { partition, timestamp, key, value, headers }).await?;
        println!("{number}  appended at {partition}/{offset}");
        appended += 1;
    }
    log.flush().await?;
    println!("{appended} appended, {skipped} left");
    Ok(())
}

/// Where a letter belongs, if it is an event of this contract: as it was, without what says why it was one.
fn revive(count: PartitionCount, letter: &DeadLetter) -> Result<(Partition, LikeToggled, Headers), Rejected> {
    let decode = |partition| {
        LikeToggled::decode(partition, count, letter.key.as_deref(), letter.value.as_deref(), &letter.headers)
    };
    let mut partition = Partition::default();
    let event = match decode(partition) {
        Err(Rejected::Malformed(Malformed::WrongPartition { expected })) => {
            partition = expected;
            decode(partition)?
        }
        decoded => decoded?,
    };
    let mut headers = letter.headers.clone();
    headers.0.retain(|(name, _)| !name.starts_with("__dlq."));
    Ok((partition, event, headers))
}
