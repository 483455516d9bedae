//! `likewise tail`: the last events, and with `--follow` those to come.

use std::{collections::VecDeque, time::Duration};

use clap::Args;
use likewise_analyst::{
    line::{RawLine, cloud_event},
    range::{Edge, Range},
    stream::{Entry, Stream},
};
use likewise_schema::{Content, Partition, UserId};

use crate::{
    Failure,
    config::Settings,
    reading::{self, Reading},
    wiring,
};

/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// Lines that come first where nothing else is said.
const LINES: u64 = 10;

/// Print the last events of the log; with --follow, also those to come.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise tail --follow --content post:42     who likes a post, as it happens
  likewise tail --from 1h --json | jq .data    the events of the last hour, as CloudEvents
  likewise tail --user 7 --lines all           everything a user ever did")]
pub(crate) struct Options {
    /// Go on with events as they come.
    #[arg(long, short)]
    follow: bool,
    /// How many of the last events to print first; all of them with `--lines all` [default: 10; with --from, all]
    #[arg(long, short = 'n', value_name = "N", value_parser = parse_lines)]
    lines: Option<Lines>,
    /// Print JSON Lines: each event as a CloudEvent, with its partition and offset.
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Print JSON Lines: each record byte for byte, with its headers.
    #[arg(long)]
    raw: bool,
    /// Only events of this content.
    #[arg(long, value_name = "TYPE:ID", value_parser = reading::parse_id::<Content>)]
    content: Option<Content>,
    /// Only events of this user.
    #[arg(long, value_name = "ID", value_parser = reading::parse_id::<UserId>)]
    user: Option<UserId>,
    /// Begin there: a time (2026-11-01T10:00Z, 2026-11-01, 36h ago as 36h) or a position.
    #[arg(long, value_name = "TIME|POSITION", value_parser = reading::parse_edge)]
    from: Option<Edge>,
    /// Only this partition.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    #[command(flatten)]
    reading: Reading,
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
    let partition = options.partition.map(|number| Partition::new(number, log.partitions()));
    let range = Range {
        from: options.from,
        until: None,
        content: options.content,
        user: options.user,
        partition: partition.transpose().map_err(|e| format!("--partition {}", e.detail()))?,
    };
    let Lines(last) = options.lines.unwrap_or(Lines(options.from.is_none().then_some(LINES)));
    let has_filter = range.has_filter();
    let mut stream = Stream::new(&log, range, &options.reading.pace()).await?;
    if let Some(last) = last {
        if !has_filter {
            stream.skip_to_last(last);
        }
        // The last of all partitions together.
        let mut kept = VecDeque::new();
        while let Some(entry) = stream.next().await? {
            kept.push_back(entry);
            if kept.len() as u64 > last {
                kept.pop_front();
            }
        }
        for entry in kept {
            if !reading::print(&line(options, &entry)?)? {
                return Ok(());
            }
        }
    }
    loop {
        while let Some(entry) = stream.next().await? {
            if !reading::print(&line(options, &entry)?)? {
                return Ok(());
            }
        }
        if !options.follow {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
        stream.extend().await?;
    }
}

fn line(options: &Options, entry: &Entry) -> Result<String, Failure> {
    if options.json {
        return Ok(serde_json::to_string(&cloud_event(entry))?);
    }
    let Entry { partition, record, event } = entry;
    if options.raw {
        return Ok(serde_json::to_string(&RawLine::of(*partition, record))?);
    }
    let place = format!("{}  {partition}/{}", record.timestamp, record.offset);
    Ok(match event {
        Ok(event) => {
            let verb = if event.liked { "likes  " } else { "unlikes" };
            format!("{place}  user {} {verb} {}  {}", event.user_id, event.content(), event.request_id)
        }
        Err(reason) => format!("{place}  dead letter: {reason}"),
    })
}
