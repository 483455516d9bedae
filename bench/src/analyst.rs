//! The commands for analysts over a long log: how long each takes, and how much memory at most; embedded, and on Kafka and
//! MySQL. Beside each stands how long it takes to read the whole log and do nothing with it.

use std::{
    fs,
    io::{Error, Result},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use futures::future::join_all;
use likewise_schema::{ContentId, LikeToggled, PartitionCount, RequestId, Timestamp, UserId};
use likewise_storage::{
    EventLog,
    log::{KafkaLog, KafkaUrl, NewRecord, SqliteLog},
};
use likewise_testkit::servers;
use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution as _, Zipf};
use tokio::time::sleep;
use uuid::Uuid;

use crate::process::{Server, peak_kib};

#[derive(Args)]
pub(crate) struct Options {
    /// Events of the log.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Contents, liked by Zipf's law with exponent 0.99.
    #[arg(long, default_value_t = 100_000)]
    contents: u32,
    /// Users, all alike.
    #[arg(long, default_value_t = 200_000)]
    users: u32,
    /// On what; both when left out.
    #[arg(long)]
    on: Option<Backend>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The embedded default
    Embedded,
    /// Kafka, MySQL and Redis
    Servers,
}

/// Events that are appended at once.
const AT_ONCE: usize = 10_000;
/// Of the events: thirty days.
const SPAN_MILLIS: i64 = 30 * 86_400_000;
const FIRST_MILLIS: i64 = 1_790_000_000_000;

pub(crate) async fn run(likewise: &Path, options: &Options) -> Result<()> {
    println!(
        "{} events of 30 days, {} users, {} contents by Zipf 0.99, 16 partitions",
        options.events, options.users, options.contents
    );
    if options.on != Some(Backend::Servers) {
        on_files(likewise, options).await?;
    }
    if options.on != Some(Backend::Embedded) {
        on_servers(likewise, options).await?;
    }
    Ok(())
}

async fn on_files(likewise: &Path, options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    fs::create_dir_all(&data)?;
    let path = data.join("log.db");
    let log: Arc<dyn EventLog> = Arc::new(SqliteLog::open(&path, PartitionCount::DEFAULT).map_err(Error::other)?);
    fill(&log, options).await?;
    drop(log);
    println!("\nEmbedded: {} bytes an event in SQLite", fs::metadata(&path)?.len() / options.events.max(1));
    let settings = vec!["--data-dir".to_owned(), data.display().to_string()];
    project(likewise, &settings, options).await?;
    commands(likewise, &settings, dir.path(), "embedded", options)
}

async fn on_servers(likewise: &Path, options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let start = || (servers::start_kafka(&[]), servers::start_mysql(&[]), servers::start_redis(&[]));
    let (kafka, mysql, redis) = tokio::task::spawn_blocking(start).await.map_err(Error::other)?;
    servers::create_database(&servers::mysql_url(&mysql), "likewise").await;
    let url = format!("kafka://{}/likes", kafka.address());
    let records = format!("{}/likewise?ssl-mode=disabled", servers::mysql_url(&mysql));
    let settings: Vec<String> = [
        ("--log", url.clone()),
        ("--records", records),
        ("--counters", servers::redis_url(&redis)),
        ("--data-dir", dir.path().join("data").display().to_string()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect();
    for command in [&["topic", "create"][..], &["migrate"]] {
        let status = Command::new(likewise).args(command).args(&settings).stdout(Stdio::null()).status()?;
        if !status.success() {
            return Err(Error::other(format!("{command:?} failed")));
        }
    }
    let log = KafkaLog::open(KafkaUrl::parse(&url).map_err(Error::other)?).await.map_err(Error::other)?;
    let log: Arc<dyn EventLog> = Arc::new(log);
    fill(&log, options).await?;
    drop(log);
    println!("\nKafka, MySQL, Redis: {} bytes an event in Kafka", topic_bytes(&kafka.data())? / options.events.max(1));
    project(likewise, &settings, options).await?;
    commands(likewise, &settings, dir.path(), "servers", options)
}

async fn fill(log: &Arc<dyn EventLog>, options: &Options) -> Result<()> {
    let mut random = StdRng::seed_from_u64(1);
    let zipf = Zipf::new(f64::from(options.contents), 0.99).map_err(Error::other)?;
    let (started, mut number) = (Instant::now(), 0);
    while number < options.events {
        let chunk = (options.events - number).min(AT_ONCE as u64);
        let records: Vec<NewRecord> = (0..chunk)
            .map(|index| {
                let at = FIRST_MILLIS + ((number + index) as i64) * SPAN_MILLIS / options.events as i64;
                record(
                    at,
                    zipf.sample(&mut random) as i64,
                    random.random_range(1..=i64::from(options.users)),
                    &mut random,
                )
            })
            .collect();
        let appends = join_all(records.into_iter().map(|record| log.append(record)));
        for outcome in tokio::task::unconstrained(appends).await {
            outcome.map_err(Error::other)?;
        }
        number += chunk;
    }
    println!("filled in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn record(at: i64, content: i64, user: i64, random: &mut StdRng) -> NewRecord {
    let valid = "the ids are in range";
    let mut id = *Uuid::from_u128(random.random()).as_bytes();
    id[..6].copy_from_slice(&at.to_be_bytes()[2..]);
    id[6] = 0x70 | (id[6] & 0x0f);
    id[8] = 0x80 | (id[8] & 0x3f);
    let like = LikeToggled {
        request_id: RequestId::from_bytes(id),
        user_id: UserId::new(user).expect(valid),
        content_type: "post".parse().expect(valid),
        content_id: ContentId::new(content).expect(valid),
        liked: random.random_range(0..10) > 0,
        occurred_at: None,
        received_at: Timestamp::from_millis(at).expect(valid),
    };
    let partition = PartitionCount::DEFAULT.partition_of(&like.content());
    let headers = like.headers(&likewise_schema::trace_parent(random.random(), random.random()));
    NewRecord { partition, timestamp: like.received_at, key: Some(like.key()), value: Some(like.value()), headers }
}

/// Runs the service until everything is projected.
async fn project(likewise: &Path, settings: &[String], options: &Options) -> Result<()> {
    let started = Instant::now();
    let mut command = Command::new(likewise);
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]).args(settings);
    let server = Server::start(command.stderr(Stdio::null()))?;
    let admin = server.admin.clone().ok_or_else(|| Error::other("no admin port"))?;
    let accepted = async || -> Result<u64> {
        let metrics = crate::load::Connection::open(&admin).await?.get("/metrics").await?;
        let events = metrics.lines().filter(|line| line.starts_with("likewise_events_total{"));
        Ok(events.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
    };
    while accepted().await? < options.events {
        sleep(Duration::from_millis(100)).await;
    }
    println!("projected in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs each command, and prints how long it took and how much memory.
fn commands(likewise: &Path, settings: &[String], dir: &Path, name: &str, options: &Options) -> Result<()> {
    let export = dir.join("export").display().to_string();
    let all: [(&str, &[&str]); 7] = [
        ("read and drop (tail)", &["tail", "--lines", "0", "--user", "9223372036854775807", "--max-rate", "0"]),
        ("export", &["export", "--to", &export, "--max-rate", "0"]),
        ("export --check", &["export", "--to", &export, "--check"]),
        ("verify --full", &["verify", "--max-rate", "0"]),
        ("count-at", &["count-at", "--content", "post:1", "--max-rate", "0"]),
        ("top --window 7d", &["top", "--window", "7d", "--at", "2026-10-20", "--max-rate", "0"]),
        ("digest", &["digest"]),
    ];
    for (command, arguments) in all {
        let (seconds, peak) = timed(likewise, arguments, settings)?;
        println!("  {command:22} {seconds:6.1} s, {:4} MiB at most", peak / 1024);
    }
    // Last, for it makes the tables anew.
    let (seconds, peak) = timed(likewise, &["rebuild", "--max-rate", "0"], settings)?;
    println!("  {:22} {seconds:6.1} s, {:4} MiB at most", "rebuild", peak / 1024);
    let bytes = tree_bytes(Path::new(&export))?;
    println!("  {name}: {} bytes an event in Parquet", bytes / options.events.max(1));
    Ok(())
}

fn timed(likewise: &Path, arguments: &[&str], settings: &[String]) -> Result<(f64, u64)> {
    let started = Instant::now();
    let mut child = Command::new(likewise).args(arguments).args(settings).stdout(Stdio::null()).spawn()?;
    let mut peak = 0;
    loop {
        peak = peak.max(peak_kib(child.id()));
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                return Err(Error::other(format!("{arguments:?} failed")));
            }
            return Ok((started.elapsed().as_secs_f64(), peak));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes of all files in a folder.
fn tree_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { tree_bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

/// Bytes of the topic's segments.
fn topic_bytes(data: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(data)? {
        let path: PathBuf = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("likes-")) {
            for segment in fs::read_dir(&path)? {
                let segment = segment?;
                let is_log = segment.path().extension().is_some_and(|extension| extension == "log");
                bytes += if is_log { segment.metadata()?.len() } else { 0 };
            }
        }
    }
    Ok(bytes)
}
