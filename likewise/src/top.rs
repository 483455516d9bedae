//! `likewise top`: what trended at a past moment.

use clap::Args;
use likewise_analyst::{range::parse_duration_millis, top::top};
use likewise_schema::{ContentType, Timestamp};
use serde_json::json;

use crate::{
    Failure,
    config::Settings,
    reading::{self, Reading},
    wiring,
};

/// Print the contents that gained most likes in a time, now or in the past.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise top --window 7d                     the last seven days
  likewise top --window 24h --at 2026-11-01    the day before November")]
pub(crate) struct Options {
    /// How long: minutes, hours, days or weeks, such as 24h.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_window)]
    window: Window,
    /// When it ends: a time (2026-11-01T10:00Z), a date (its beginning in UTC), how long ago (36h), or now.
    #[arg(long, value_name = "TIME", default_value = "now", value_parser = reading::parse_time)]
    at: Timestamp,
    /// Only contents of this type.
    #[arg(long, value_name = "TYPE", value_parser = reading::parse_id::<ContentType>)]
    content_type: Option<ContentType>,
    /// How many.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Milliseconds.
#[derive(Clone, Copy)]
struct Window(i64);

fn parse_window(text: &str) -> Result<Window, String> {
    parse_duration_millis(text).map(Window).ok_or_else(|| "must be such as 90m, 24h, 7d or 2w".into())
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let log = wiring::readable_log(&settings.log).await?;
    let bar = reading::bar_of(&log).await?;
    let (Window(window), at) = (options.window, options.at);
    let (limit, pace) = (options.limit as usize, options.reading.pace());
    let found = top(&log, options.content_type, (window, at), limit, &pace, &reading::moves(&bar)).await?;
    bar.finish_and_clear();
    if options.json {
        let from = Timestamp::saturating_from_millis(at.millis() - window);
        return reading::print(&json!({ "from": from, "to": at, "items": found }).to_string()).map(drop);
    }
    if !reading::print(&format!("{:>10} {:>10} {:>10}  content", "gained", "lost", "count"))? {
        return Ok(());
    }
    for line in found {
        if !reading::print(&format!("{:>10} {:>10} {:>10}  {}", line.gained, line.lost, line.count, line.content))? {
            break;
        }
    }
    Ok(())
}
