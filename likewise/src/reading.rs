//! What the commands that read the log share: how fast they may, how they say how far they are, and times as people write
//! them.

use std::{io::Write, sync::Arc, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use likewise_analyst::{Progress, range, reader::Pace};
use likewise_schema::Timestamp;
use likewise_storage::{Clock, EventLog};

use crate::Failure;

#[derive(Args)]
pub(crate) struct Reading {
    /// Records read in a second at most, so that a service beside is not slowed; 0 is no limit.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    max_rate: u32,
}

impl Reading {
    pub(crate) fn max_rate(&self) -> u32 {
        self.max_rate
    }

    pub(crate) fn pace(&self) -> Arc<Pace> {
        Pace::new(self.max_rate)
    }
}

/// Now.
pub(crate) fn now() -> Timestamp {
    Clock::system().now()
}

/// For a command line's times.
pub(crate) fn parse_time(text: &str) -> Result<Timestamp, String> {
    range::parse_time(text, now())
}

/// For a command line's times and positions.
pub(crate) fn parse_edge(text: &str) -> Result<range::Edge, String> {
    range::Edge::parse(text, now())
}

/// For the texts of a command line that are ids.
pub(crate) fn parse_id<T: std::str::FromStr<Err = likewise_schema::Invalid>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|invalid: likewise_schema::Invalid| invalid.detail().to_owned())
}

/// A bar on a terminal; nothing in a pipe.
pub(crate) fn progress_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) =
        ProgressStyle::with_template("{msg}{bar:30} {human_pos}/{human_len} events, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    bar
}

/// A sign of life on a terminal; nothing in a pipe.
pub(crate) fn spinner(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Moves a bar.
pub(crate) fn moves(bar: &ProgressBar) -> Progress {
    let bar = bar.clone();
    Arc::new(move |records| bar.inc(records))
}

/// A bar for all records of a log.
pub(crate) async fn bar_of(log: &Arc<dyn EventLog>) -> Result<ProgressBar, Failure> {
    let mut records = 0;
    for partition in log.partitions().all() {
        let bounds = log.bounds(partition).await?;
        records += (bounds.end.get() - bounds.start.get()).unsigned_abs();
    }
    Ok(progress_bar(records))
}

/// Writes a line. False once nobody reads any more.
pub(crate) fn print(line: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}
