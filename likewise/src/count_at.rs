//! `likewise count-at`: a count at a past moment, exactly.

use clap::Args;
use likewise_analyst::counts::count_at;
use likewise_schema::{Content, Timestamp};

use crate::{
    Failure,
    config::Settings,
    reading::{self, Reading},
    wiring,
};

/// Print how many users liked a content at a past moment.
///
/// It is counted from the log: each partition up to the first event that was received after that moment.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise count-at --content post:42 --at 2026-11-01T00:00Z
  likewise count-at --content post:42 --at 24h --json")]
pub(crate) struct Options {
    /// Which content.
    #[arg(long, value_name = "TYPE:ID", value_parser = reading::parse_id::<Content>)]
    content: Content,
    /// When: a time (2026-11-01T10:00Z), a date (its beginning in UTC), how long ago (36h), or now.
    #[arg(long, value_name = "TIME", default_value = "now", value_parser = reading::parse_time)]
    at: Timestamp,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let log = wiring::readable_log(&settings.log).await?;
    let bounds = log.bounds(log.partitions().partition_of(&options.content)).await?;
    let bar = reading::progress_bar(bounds.end.get().unsigned_abs());
    let counted = count_at(&log, options.content, options.at, &options.reading.pace(), &reading::moves(&bar)).await?;
    bar.finish_and_clear();
    let line = if options.json {
        serde_json::to_string(&counted)?
    } else {
        let (content, gained, lost) = (&counted.content, counted.gained, counted.lost);
        format!("{}  likes of {content} at {}: {gained} came, {lost} were taken back", counted.count, counted.at)
    };
    reading::print(&line).map(drop)
}
