//! `likewise replay`: all events, as they are, into a file or into an empty log.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufWriter, Write},
    path::Path,
    sync::Arc,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use likewise_schema::Partition;
use likewise_storage::{
    DataDir, EventLog,
    log::{AppendError, LogRecord, NewRecord},
};

use crate::{
    Failure,
    config::Settings,
    merge::{Line, Merge},
    serve::directory_of,
    wiring,
};

/// Records held in memory at once; their partitions are appended to side by side.
const CHUNK: usize = 10_000;

#[derive(Args)]
pub(crate) struct Options {
    /// FILE.jsonl, - for standard output, or the URL of an empty log such as sqlite://copy/log.db or
    /// kafka://host:9092/likes, whose topic has been made
    #[arg(long, value_name = "TARGET")]
    to: String,
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let log = wiring::readable_log(&settings.log).await?;
    let mut merge = Merge::new(&log, log.partitions().all(), None).await?;
    let progress = progress_bar(merge.remaining());
    let copied = if options.to.contains("://") {
        let path = wiring::is_embedded(&options.to).then(|| wiring::sqlite_path("--to", &options.to)).transpose()?;
        let _owned = path.map(|path| DataDir::acquire(&directory_of(&path))).transpose()?;
        let target = wiring::writable_log(&options.to, Some(log.partitions())).await?;
        into_log(&mut merge, &target, &progress).await?
    } else if options.to == "-" {
        into_lines(&mut merge, std::io::stdout().lock(), &progress).await?
    } else {
        into_file(&mut merge, Path::new(&options.to), &progress).await?
    };
    progress.finish_and_clear();
    eprintln!("{copied} events copied");
    Ok(())
}

pub(crate) fn progress_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} events, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

async fn into_file(merge: &mut Merge, path: &Path, progress: &ProgressBar) -> Result<u64, Failure> {
    let fail = |e: std::io::Error| format!("{} cannot be written ({e})", path.display());
    let file = fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => format!("{} exists; name a new file", path.display()),
        _ => fail(e),
    })?;
    let copied = into_lines(merge, BufWriter::new(&file), progress).await?;
    file.sync_all().map_err(fail)?;
    Ok(copied)
}

async fn into_lines(merge: &mut Merge, mut out: impl Write, progress: &ProgressBar) -> Result<u64, Failure> {
    let mut copied = 0;
    while let Some((partition, record)) = merge.next().await? {
        serde_json::to_writer(&mut out, &Line::of(partition, &record))?;
        out.write_all(b"\n")?;
        copied += 1;
        progress.inc(1);
    }
    out.flush()?;
    Ok(copied)
}

async fn into_log(merge: &mut Merge, target: &Arc<dyn EventLog>, progress: &ProgressBar) -> Result<u64, Failure> {
    for partition in target.partitions().all() {
        if target.bounds(partition).await?.end.get() > 0 {
            return Err("the log to replay into is not empty; name a new one".into());
        }
    }
    let mut copied = 0;
    loop {
        let mut chunk: BTreeMap<Partition, Vec<NewRecord>> = BTreeMap::new();
        let mut size = 0;
        while size < CHUNK
            && let Some((partition, record)) = merge.next().await?
        {
            chunk.entry(partition).or_default().push(copy(partition, record));
            size += 1;
        }
        if chunk.is_empty() {
            return Ok(copied);
        }
        let partitions = chunk.into_values().map(|records| append_in_order(target, records, progress));
        for outcome in futures::future::join_all(partitions).await {
            copied += outcome?;
        }
    }
}

/// Each record after the acknowledgement of the one before: that alone keeps a partition's order.
async fn append_in_order(
    target: &Arc<dyn EventLog>,
    records: Vec<NewRecord>,
    progress: &ProgressBar,
) -> Result<u64, AppendError> {
    let mut copied = 0;
    for record in records {
        target.append(record).await?;
        copied += 1;
        progress.inc(1);
    }
    Ok(copied)
}

/// The target has as many partitions as the source: each record keeps its own.
fn copy(partition: Partition, record: LogRecord) -> NewRecord {
    let LogRecord { timestamp, key, value, headers, .. } = record;
    NewRecord { partition, timestamp, key, value, headers }
}
