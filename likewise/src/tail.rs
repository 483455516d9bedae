//! `likewise tail`: the last events, and with `--follow` those to come.

use std::{io::Write, time::Duration};

use clap::Args;
use likewise_schema::{LikeToggled, Partition};
use likewise_storage::log::LogRecord;

use crate::{
    Failure,
    config::Settings,
    merge::{Line, Merge},
    wiring,
};

/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(crate) struct Options {
    /// Go on with events as they come.
    #[arg(long, short)]
    follow: bool,
    /// How many of the last events to print first; all of them with `--lines all`.
    #[arg(long, short = 'n', default_value = "10", value_parser = parse_lines)]
    lines: Lines,
    /// Print JSON Lines: each record with partition, offset, key, value and headers.
    #[arg(long)]
    json: bool,
    /// Only this partition.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
}

/// How many lines come first; none is all.
#[derive(Clone, Copy)]
struct Lines(Option<u64>);

fn parse_lines(text: &str) -> Result<Lines, String> {
    match text {
        "all" => Ok(Lines(None)),
        number => number.parse().map(|lines| Lines(Some(lines))).map_err(|_| "must be a number or all".into()),
    }
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let log = wiring::readable_log(&settings.log).await?;
    let count = log.partitions();
    let partitions: Vec<Partition> = match options.partition {
        Some(number) => vec![Partition::new(number, count).map_err(|e| format!("--partition {}", e.detail()))?],
        None => count.all().collect(),
    };
    let Lines(last) = options.lines;
    let mut merge = Merge::new(&log, partitions.iter().copied(), last).await?;
    let mut skip = last.map_or(0, |last| merge.remaining().saturating_sub(last));
    loop {
        while let Some((partition, record)) = merge.next().await? {
            if skip > 0 {
                skip -= 1;
            } else if !print(options, count, partition, &record)? {
                return Ok(());
            }
        }
        if !options.follow {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
        merge.extend().await?;
    }
}

/// False once nobody reads any more.
fn print(
    options: &Options,
    count: likewise_schema::PartitionCount,
    partition: Partition,
    record: &LogRecord,
) -> Result<bool, Failure> {
    let line = if options.json {
        serde_json::to_string(&Line::of(partition, record))?
    } else {
        readable(count, partition, record)
    };
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn readable(count: likewise_schema::PartitionCount, partition: Partition, record: &LogRecord) -> String {
    let decoded =
        LikeToggled::decode(partition, count, record.key.as_deref(), record.value.as_deref(), &record.headers);
    let place = format!("{}  {partition}/{}", record.timestamp, record.offset);
    match decoded {
        Ok(event) => {
            let verb = if event.liked { "likes  " } else { "unlikes" };
            format!("{place}  user {} {verb} {}  {}", event.user_id, event.content(), event.request_id)
        }
        Err(reason) => format!("{place}  dead letter: {reason}"),
    }
}
