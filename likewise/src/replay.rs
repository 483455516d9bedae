//! `likewise replay`: events again, into a file, into an empty log, or as commands to a service.

mod commands;

use std::{
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use futures::future::join_all;
use indicatif::ProgressBar;
use likewise_analyst::{
    export::Making,
    line::RawLine,
    range::{Edge, Range},
    stream::{Entry, Stream},
};
use likewise_schema::{Content, LikeToggled, Partition, PartitionCount, Timestamp, UserId};
use likewise_storage::{
    DataDir, EventLog,
    log::{LogRecord, NewRecord},
};

use crate::{
    Failure,
    config::Settings,
    reading::{self, Reading},
    serve::directory_of,
    wiring,
};

/// Records that are appended at once.
const CHUNK: usize = 4000;

/// Copy events, as they are, into a file or an empty log, or send them again as commands to a service.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise replay --to likes.jsonl                            every record, byte for byte
  likewise replay --to november.parquet --from 2026-11-01 --until 2026-12-01
  likewise replay --to - --format csv --content post:42
  likewise replay --to kafka://broker:9092/likes              into an empty topic: its projection has the same digest
  likewise replay --to http://127.0.0.1:8080 --speed 10x      the load that there was, as new commands")]
pub(crate) struct Options {
    /// FILE.jsonl, FILE.csv or FILE.parquet, - for standard output, the URL of an empty log such as
    /// sqlite://copy/log.db or kafka://host:9092/likes, whose topic has been made, or http://HOST:PORT of a service
    #[arg(long, value_name = "TARGET")]
    to: String,
    /// What a file looks like [default: by its name; JSON Lines on standard output]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Begin there: a time (2026-11-01T10:00Z, 2026-11-01, 36h ago as 36h) or a position.
    #[arg(long, value_name = "TIME|POSITION", value_parser = reading::parse_edge)]
    from: Option<Edge>,
    /// End before that: a time or a position.
    #[arg(long, value_name = "TIME|POSITION", value_parser = reading::parse_edge)]
    until: Option<Edge>,
    /// Only events of this content.
    #[arg(long, value_name = "TYPE:ID", value_parser = reading::parse_id::<Content>)]
    content: Option<Content>,
    /// Only events of this user.
    #[arg(long, value_name = "ID", value_parser = reading::parse_id::<UserId>)]
    user: Option<UserId>,
    /// How fast, by the times of the events: 1x as it was, 10x, or max.
    #[arg(long, value_name = "SPEED", default_value = "max", value_parser = parse_speed)]
    speed: Speed,
    /// Print what came of it as JSON on standard error.
    #[arg(long)]
    json: bool,
    /// File with a service key or token, for commands to a service with authentication.
    #[arg(long, value_name = "FILE")]
    credential_file: Option<std::path::PathBuf>,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Records byte for byte, with their headers
    Jsonl,
    /// The columns of events
    Csv,
    /// The columns of an export
    Parquet,
}

/// How much faster than it was; none is as fast as it goes.
#[derive(Clone, Copy)]
struct Speed(Option<f64>);

fn parse_speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed(None));
    }
    let times = text.strip_suffix('x').and_then(|times| times.parse::<f64>().ok());
    let is_sane = |times: &f64| (0.001..=1e6).contains(times);
    times.filter(is_sane).map(|times| Speed(Some(times))).ok_or_else(|| "must be max, or such as 1x or 10x".into())
}

/// Events at the speed that was asked for.
struct Source {
    stream: Stream,
    speed: Speed,
    /// When the first event was given, and its time.
    began: Option<(Instant, Timestamp)>,
    next: Option<Entry>,
    bar: ProgressBar,
}

impl Source {
    async fn new(log: &Arc<dyn EventLog>, options: &Options) -> Result<Self, Failure> {
        let Options { from, until, content, user, speed, .. } = *options;
        let range = Range { from, until, content, user, partition: None };
        let stream = Stream::new(log, range, &options.reading.pace()).await?;
        let bar = reading::progress_bar(stream.remaining());
        Ok(Self { stream, speed, began: None, next: None, bar })
    }

    /// How long until an event of that time is due.
    fn due_in(&mut self, time: Timestamp) -> Duration {
        let Speed(Some(times)) = self.speed else { return Duration::ZERO };
        let (started, first) = *self.began.get_or_insert((Instant::now(), time));
        let after = Duration::from_millis((time.millis() - first.millis()).max(0).unsigned_abs()).div_f64(times);
        (started + after).saturating_duration_since(Instant::now())
    }

    /// The next event, when it is due.
    async fn next(&mut self) -> Result<Option<Entry>, Failure> {
        let entry = match self.next.take() {
            Some(entry) => Some(entry),
            None => self.stream.next().await?,
        };
        if let Some(entry) = &entry {
            let wait = self.due_in(entry.record.timestamp);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
        self.bar.set_position(self.stream.read());
        Ok(entry)
    }

    /// The next event, if it is due already.
    async fn next_now(&mut self) -> Result<Option<Entry>, Failure> {
        if self.next.is_none() {
            self.next = self.stream.next().await?;
        }
        let time = self.next.as_ref().map(|entry| entry.record.timestamp);
        let is_due = time.is_some_and(|time| self.due_in(time).is_zero());
        Ok(if is_due { self.next.take() } else { None })
    }
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let log = wiring::readable_log(&settings.log).await?;
    let to = options.to.as_str();
    let is_service = to.starts_with("http://") || to.starts_with("https://");
    let is_log = to.contains("://") && !is_service;
    if (is_service || is_log) && options.format.is_some() {
        return Err("--format is for files and standard output".into());
    }
    if options.credential_file.is_some() && !is_service {
        return Err("--credential-file is for a service: --to http://…".into());
    }
    let mut source = Source::new(&log, options).await?;
    if is_service {
        let told = commands::send(&mut source, to, options.credential_file.as_deref()).await?;
        source.bar.finish_and_clear();
        if options.json {
            eprintln!("{}", told.json());
        } else {
            eprintln!("{told}");
        }
        return match told.refused() {
            0 => Ok(()),
            refused => Err(format!("{refused} commands were refused").into()),
        };
    }
    let copied = if is_log {
        let path = wiring::is_embedded(to).then(|| wiring::sqlite_path("--to", to)).transpose()?;
        let _owned = path.map(|path| DataDir::acquire(&directory_of(&path))).transpose()?;
        // A topic has the partitions that it was made with; a new file gets those asked for, or as many as the log has.
        let partitions = path_partitions(settings, &log, to);
        let target = wiring::writable_log(to, partitions).await?;
        into_log(&mut source, &target).await?
    } else {
        into_file(&mut source, &log, to, options.format).await?
    };
    source.bar.finish_and_clear();
    if options.json {
        eprintln!("{}", serde_json::json!({ "copied": copied }));
    } else {
        eprintln!("{copied} events copied");
    }
    Ok(())
}

fn path_partitions(settings: &Settings, log: &Arc<dyn EventLog>, to: &str) -> Option<PartitionCount> {
    let asked = settings.partitions.unwrap_or(log.partitions());
    wiring::is_embedded(to).then_some(asked)
}

/// The columns of a CSV file, as an export names them.
const COLUMNS: [&str; 12] = [
    "log_partition",
    "log_offset",
    "log_timestamp",
    "request_id",
    "user_id",
    "content_type",
    "content_id",
    "liked",
    "occurred_at",
    "received_at",
    "traceparent",
    "problem",
];

async fn into_file(
    source: &mut Source,
    log: &Arc<dyn EventLog>,
    to: &str,
    format: Option<Format>,
) -> Result<u64, Failure> {
    let extension = Path::new(to).extension().and_then(|extension| extension.to_str());
    let format = format.or(match (to, extension) {
        ("-", _) | (_, Some("jsonl" | "ndjson")) => Some(Format::Jsonl),
        (_, Some("csv")) => Some(Format::Csv),
        (_, Some("parquet")) => Some(Format::Parquet),
        _ => None,
    });
    let format = format.ok_or_else(|| {
        format!("{to} does not tell what it is to be: end it with .jsonl, .csv or .parquet, or say --format")
    })?;
    if to == "-" {
        if format == Format::Parquet {
            return Err("Parquet is for a file: --to FILE.parquet".into());
        }
        let out = std::io::BufWriter::new(std::io::stdout());
        return match write(source, log, format, out).await {
            Err(WriteFailed::Gone) => Ok(0),
            Err(WriteFailed::Other(failure)) => Err(failure),
            Ok(copied) => Ok(copied),
        };
    }
    // Beside, and then in place: nothing half-written is ever under the name.
    let path = Path::new(to);
    let fail = |e: &dyn std::fmt::Display| format!("{to} cannot be written ({e})");
    if path.exists() {
        return Err(format!("{to} exists; name a new file").into());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As any new file, and not for its owner alone as temporary files are.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let file = tempfile::Builder::new().prefix(".likewise-").permissions(permissions).tempfile_in(folder);
    let file = file.map_err(|e| fail(&e))?;
    let out = std::io::BufWriter::new(file.as_file());
    let copied = match write(source, log, format, out).await {
        Ok(copied) => copied,
        Err(WriteFailed::Gone) => return Err(fail(&"nobody reads it").into()),
        Err(WriteFailed::Other(failure)) => return Err(failure),
    };
    file.as_file().sync_all().map_err(|e| fail(&e))?;
    file.persist_noclobber(path).map_err(|e| fail(&e.error))?;
    Ok(copied)
}

/// Why events were not written.
enum WriteFailed {
    /// Nobody reads the pipe any more.
    Gone,
    Other(Failure),
}

impl<E: Into<Failure>> From<E> for WriteFailed {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

fn broken(error: std::io::Error) -> WriteFailed {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => WriteFailed::Gone,
        _ => WriteFailed::Other(error.into()),
    }
}

async fn write(
    source: &mut Source,
    log: &Arc<dyn EventLog>,
    format: Format,
    mut out: impl Write + Send,
) -> Result<u64, WriteFailed> {
    let mut copied = 0;
    match format {
        Format::Jsonl => {
            while let Some(Entry { partition, record, .. }) = source.next().await? {
                let line = serde_json::to_string(&RawLine::of(partition, &record)).map_err(Failure::from)?;
                out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n")).map_err(broken)?;
                copied += 1;
            }
        }
        Format::Csv => {
            let mut out = csv::Writer::from_writer(&mut out);
            let failed = |error: csv::Error| match error.into_kind() {
                csv::ErrorKind::Io(error) => broken(error),
                other => WriteFailed::Other(format!("a line cannot be written ({other:?})").into()),
            };
            out.write_record(COLUMNS).map_err(failed)?;
            while let Some(entry) = source.next().await? {
                out.write_record(row(&entry)).map_err(failed)?;
                copied += 1;
            }
            out.flush().map_err(broken)?;
        }
        Format::Parquet => {
            let mut making = Making::new(&mut out).map_err(Failure::from)?;
            while let Some(entry) = source.next().await? {
                making.push(&entry).map_err(Failure::from)?;
                copied += 1;
            }
            making.finish(log.identity(), None).map_err(Failure::from)?;
        }
    }
    out.flush().map_err(broken)?;
    Ok(copied)
}

/// A line of CSV. What is not known is empty.
fn row(entry: &Entry) -> [String; 12] {
    let Entry { partition, record, event } = entry;
    let of = |value: fn(&LikeToggled) -> String| event.as_ref().map(value).unwrap_or_default();
    let trace = record.headers.get("traceparent").map(String::from_utf8_lossy);
    [
        partition.to_string(),
        record.offset.to_string(),
        record.timestamp.to_string(),
        of(|event| event.request_id.to_string()),
        of(|event| event.user_id.to_string()),
        of(|event| event.content_type.to_string()),
        of(|event| event.content_id.to_string()),
        of(|event| event.liked.to_string()),
        of(|event| event.occurred_at.map_or_else(String::new, |at| at.to_string())),
        of(|event| event.received_at.to_string()),
        trace.unwrap_or_default().into_owned(),
        event.as_ref().err().map_or_else(String::new, ToString::to_string),
    ]
}

async fn into_log(source: &mut Source, target: &Arc<dyn EventLog>) -> Result<u64, Failure> {
    let count = target.partitions();
    for partition in count.all() {
        if target.bounds(partition).await?.end.get() > 0 {
            return Err("the log to replay into is not empty; name a new one".into());
        }
    }
    let mut copied = 0;
    while let Some(first) = source.next().await? {
        let mut chunk = vec![copy(first, count)?];
        while chunk.len() < CHUNK
            && let Some(entry) = source.next_now().await?
        {
            chunk.push(copy(entry, count)?);
        }
        // They are handed over in this order, which both logs keep within a partition. Without a limit on how much one task
        // does at a time: a future that had to stand back would be overtaken.
        let appends = join_all(chunk.into_iter().map(|record| target.append(record)));
        for outcome in tokio::task::unconstrained(appends).await {
            outcome.map_err(|error| format!("{error}; the copy is not whole: begin again with a new log"))?;
            copied += 1;
        }
    }
    target.flush().await?;
    Ok(copied)
}

/// A record for a log of `count` partitions: an event goes where the contract puts it, anything else stays where it was as
/// far as there is such a partition.
fn copy(entry: Entry, count: PartitionCount) -> Result<NewRecord, Failure> {
    let Entry { partition, record, event } = entry;
    let partition = match event {
        Ok(event) => count.partition_of(&event.content()),
        Err(_) => Partition::new(u32::from(partition.get() % count.get()), count).map_err(|e| e.detail())?,
    };
    let LogRecord { timestamp, key, value, headers, .. } = record;
    Ok(NewRecord { partition, timestamp, key, value, headers })
}
