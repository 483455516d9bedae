//! Reads beside their peers, on the same servers in the same run.

use std::{
    io::{Error, Result},
    path::Path,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use likewise_testkit::servers;
use rand_distr::{Distribution, Zipf};
use sqlx::{AssertSqlSafe, Executor, mysql::MySqlPoolOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    lag,
    load::{self, CONTENTS, Connection, Outcome, Pace, Plan, Requests, quantiles},
    median,
    peers::{self, Kind},
    process::rss_kib,
    system::System,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Seconds of each run.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Alternating rounds; medians are printed.
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// Likes of new pairs over 100,000 posts that are there before.
    #[arg(long, default_value_t = 200_000)]
    likes: u64,
    /// Likers of one post, a tenth of which one user likes.
    #[arg(long, default_value_t = 1_000_000)]
    likers: u64,
    /// Streams that are open at once.
    #[arg(long, default_value_t = 10_000)]
    streams: usize,
}

const CONNECTIONS: usize = 64;
/// Contents of a feed.
const FEED: usize = 100;
/// Feeds of each kind that are read by turns.
const FEEDS: usize = 2000;
/// A post of the first shard that no like of the load is for, and a user that it does not have.
const BIG_POST: u64 = 1_600_000_000;
const BUSY_USER: u64 = 1_700_000_000;
const ROWS: u64 = 1000;

pub(crate) async fn run(likewise: &Path, options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (binary, folder) = (likewise.to_owned(), dir.path().to_owned());
    let starting = tokio::task::spawn_blocking(move || System::start(&binary, &folder, false));
    let system = Arc::new(starting.await.map_err(Error::other)??);
    println!("Liking {CONTENTS} posts, {} likes", options.likes);
    load::fill(&system.role("command-api").address, 0, options.likes, |_| {}).await?;
    lag::settle(&system.role("projector").admin).await?;
    let url = format!("{}/likewise", servers::mysql_url(&system.mysql));
    println!("Writing {} likers of one post, and {} likes of one user", options.likers, options.likers / 10);
    write_lists(&url, options.likers).await?;

    let query = system.role("query-api").address.clone();
    let webdis = Webdis::start(dir.path(), &system.redis.address()).await?;
    webdis.fill().await?;
    let by_one = leak((0..FEEDS).map(|number| format!("/HMGET/hash:{}/count/v", 1 + number % 1000)).collect());
    let bare = peers::start(Kind::BareRead, dir.path())?;
    let one = leak(vec!["/v1/contents/post/1/likes".to_owned()]);
    let all: Vec<u64> = (1..=CONTENTS).collect();
    // Everything is in the cache before anything is measured.
    let whole = leak(all.chunks(FEED).map(ours).collect());
    read(&query, whole, Duration::from_secs(15)).await?;

    println!("\nA hot count, {CONNECTIONS} connections, closed loop, {} s each (reads/s)", options.seconds);
    let time = Duration::from_secs(options.seconds);
    let (mut bares, mut counts) = (Vec::new(), Vec::new());
    for _ in 0..options.pairs {
        bares.push(shown("bare handler", &read(&bare.address, one, time).await?));
        counts.push(shown("query API", &read(&query, one, time).await?));
    }
    println!("  a hot count is {:.2} of a bare handler", median(ratios(&counts, &bares)));

    let mut random = rand::rng();
    let zipf = Zipf::new(CONTENTS as f64, 0.99).map_err(Error::other)?;
    let hot = feeds(|| 1 + rand::random_range(0..1000));
    let mixed = feeds(|| zipf.sample(&mut random) as u64);
    let cold = feeds(|| 1 + rand::random_range(0..CONTENTS));
    for (name, feeds) in [("1,000 hot posts", hot), ("Zipf 0.99 over 100,000", mixed), ("100,000 posts alike", cold)] {
        println!(
            "\nFeeds of {FEED} posts, {name} (feeds/s; webdis: one MGET of as many plain strings, or one HMGET for each)"
        );
        let ours = leak(feeds.iter().map(|feed| ours(feed)).collect());
        let theirs = leak(feeds.iter().map(|feed| theirs(feed)).collect());
        let (mut webdis_rates, mut single_rates, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.pairs {
            webdis_rates.push(shown("webdis", &read(&webdis.address, theirs, time).await?));
            single_rates.push(shown("webdis, by one", &read(&webdis.address, by_one, time).await?) / FEED as f64);
            rates.push(shown("query API", &read(&query, ours, time).await?));
        }
        println!(
            "  in contents/s {:.1} of webdis where each content is a hash, as ours is; {:.2} where all are plain strings",
            median(ratios(&rates, &single_rates)),
            median(ratios(&rates, &webdis_rates))
        );
    }

    println!("\nThe count of one post on the same MySQL, 16 connections (queries/s)");
    let sums = format!(
        "SELECT COUNT(*) FROM like_records_00 WHERE content_type = 'post' AND content_id = {BIG_POST} AND is_canceled = 0"
    );
    let row = "SELECT `count` FROM like_counts WHERE shard = 1 AND content_id = 1 AND content_type = 'post'";
    println!("  SELECT COUNT(*) of {} rows: {:.1}/s", options.likers, queries(&url, &sums, time).await?);
    println!("  SELECT count: {:.0}/s", queries(&url, row, time).await?);

    println!("\nFirst pages of 20, 200/s for {} s", options.seconds);
    let likers = leak(vec![format!("/v1/contents/post/{BIG_POST}/likers?viewer=1")]);
    let likes = leak(vec![format!("/v1/users/{BUSY_USER}/likes?viewer={BUSY_USER}")]);
    for (name, paths) in [("likers", likers), ("a user's likes", likes)] {
        let plan = Plan { connections: 16, time, pace: Pace::Open(200.0), requests: Requests::Paths(paths) };
        let outcome = load::run(&query, plan).await?;
        println!("  {name:15} {}, {} refused", quantiles(&outcome.latency), outcome.refused);
    }
    streams(&system, &query, options.streams).await
}

fn leak(paths: Vec<String>) -> &'static [String] {
    Vec::leak(paths)
}

fn feeds(mut content: impl FnMut() -> u64) -> Vec<Vec<u64>> {
    (0..FEEDS).map(|_| (0..FEED).map(|_| content()).collect()).collect()
}

fn ours(contents: &[u64]) -> String {
    let contents: Vec<String> = contents.iter().map(|content| format!("content=post:{content}")).collect();
    format!("/v1/likes?{}", contents.join("&"))
}

fn theirs(contents: &[u64]) -> String {
    let contents: Vec<String> = contents.iter().map(|content| format!("post:{content}")).collect();
    format!("/MGET/{}", contents.join("/"))
}

async fn read(address: &str, paths: &'static [String], time: Duration) -> Result<Outcome> {
    let plan = Plan { connections: CONNECTIONS, time, pace: Pace::Closed, requests: Requests::Paths(paths) };
    load::run(address, plan).await
}

fn shown(name: &str, outcome: &Outcome) -> f64 {
    println!("  {name:15} {:.0}/s, {}, {} refused", outcome.rate(), quantiles(&outcome.latency), outcome.refused);
    outcome.rate()
}

fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

/// Rows as the projection writes them, for lists that it would take long to make by likes.
async fn write_lists(url: &str, likers: u64) -> Result<()> {
    let pool = MySqlPoolOptions::new().connect(&format!("{url}?ssl-mode=disabled")).await.map_err(Error::other)?;
    let insert = async |shard: u64, rows: Vec<(u64, u64)>| {
        let row = |(user, content): &(u64, u64)| {
            let at = format!("'2026-01-01 00:00:00' + INTERVAL {} SECOND", (user + content) % 20_000_000);
            format!("({user}, {content}, 'post', {at}, {at}, 0, {at}, 0, REPEAT('x', 16))")
        };
        let values: Vec<String> = rows.iter().map(row).collect();
        let sql = format!(
            "INSERT INTO like_records_{shard:02} (user_id, content_id, content_type, created_at, updated_at, is_canceled,
                                                  liked_at, version, request_ring) VALUES {}",
            values.join(", ")
        );
        pool.execute(AssertSqlSafe(sql)).await.map(drop).map_err(Error::other)
    };
    for first in (1..=likers).step_by(ROWS as usize) {
        insert(BIG_POST % 16, (first..(first + ROWS).min(likers + 1)).map(|user| (user, BIG_POST)).collect()).await?;
    }
    for shard in 0..16 {
        let contents: Vec<u64> = (0..likers / 160).map(|number| 200_000_000 + 16 * number + shard).collect();
        for contents in contents.chunks(ROWS as usize) {
            insert(shard, contents.iter().map(|content| (BUSY_USER, *content)).collect()).await?;
        }
    }
    Ok(())
}

async fn queries(url: &str, sql: &str, time: Duration) -> Result<f64> {
    let pool = MySqlPoolOptions::new().max_connections(16).connect(&format!("{url}?ssl-mode=disabled")).await;
    let (pool, started) = (pool.map_err(Error::other)?, Instant::now());
    let mut connections = JoinSet::new();
    for _ in 0..16 {
        let (pool, sql) = (pool.clone(), sql.to_owned());
        connections.spawn(async move {
            let mut done = 0_u64;
            while started.elapsed() < time {
                sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql.clone()))
                    .fetch_one(&pool)
                    .await
                    .map_err(Error::other)?;
                done += 1;
            }
            Ok::<_, Error>(done)
        });
    }
    let mut done = 0;
    while let Some(ended) = connections.join_next().await {
        done += ended.map_err(Error::other)??;
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

/// webdis in front of the same Redis, with a plain string for each post.
struct Webdis {
    child: Child,
    address: String,
}

impl Webdis {
    async fn start(dir: &Path, redis: &str) -> Result<Self> {
        let (host, port) = redis.split_once(':').ok_or_else(|| Error::other("no port"))?;
        let own = servers::free_port();
        let settings = format!(
            r#"{{"redis_host": "{host}", "redis_port": {port}, "http_host": "127.0.0.1", "http_port": {own}, "threads": 2,
                "pool_size": 16, "daemonize": false, "database": 0, "verbosity": 0, "logfile": "/dev/null"}}"#
        );
        let file = dir.join("webdis.json");
        std::fs::write(&file, settings)?;
        let child = Command::new("webdis").arg(file).spawn()?;
        let webdis = Self { child, address: format!("127.0.0.1:{own}") };
        let started = Instant::now();
        while TcpStream::connect(&webdis.address).await.is_err() {
            if started.elapsed() > Duration::from_secs(10) {
                return Err(Error::other("webdis does not listen"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(webdis)
    }

    async fn fill(&self) -> Result<()> {
        let mut connection = Connection::open(&self.address).await?;
        for chunk in (1..=CONTENTS).collect::<Vec<_>>().chunks(FEED) {
            let pairs: Vec<String> = chunk.iter().map(|content| format!("post:{content}/{}", content % 1000)).collect();
            connection.get(&format!("/MSET/{}", pairs.join("/"))).await?;
        }
        for content in 1..=1000 {
            connection.get(&format!("/HSET/hash:{content}/count/{content}/v/{content}")).await?;
        }
        Ok(())
    }
}

impl Drop for Webdis {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

/// Opens streams of one post, then likes it once: how much memory they take, and when all of them were told.
async fn streams(system: &System, address: &str, count: usize) -> Result<()> {
    let process = system.role("query-api").id();
    let before = rss_kib(process) / 1024;
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /v1/likes/stream?content=post:1 HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        next(&mut stream, "event: snapshot").await?;
        open.push(stream);
    }
    let after = rss_kib(process) / 1024;
    println!("\n{count} streams take {} MiB ({before} before, {after} after)", after.saturating_sub(before));
    let mut told = JoinSet::new();
    for mut stream in open {
        told.spawn(async move { next(&mut stream, "event: count").await });
    }
    let body = load::like(900_000_000, 1.0);
    let mut commands = Connection::open(&system.role("command-api").address).await?;
    let started = Instant::now();
    let status = commands.post("/v1/likes", &body, "").await?;
    if status != 202 {
        return Err(Error::other(format!("a like was answered {status}")));
    }
    let mut first = None;
    while let Some(ended) = told.join_next().await {
        ended.map_err(Error::other)??;
        first.get_or_insert_with(|| started.elapsed());
    }
    println!(
        "A like of the post was told to the first stream after {:.0?} and to the last after {:.0?}",
        first.unwrap_or_default(),
        started.elapsed()
    );
    Ok(())
}

/// Reads a stream until it says something.
async fn next(stream: &mut TcpStream, what: &str) -> Result<()> {
    let mut text = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&text).contains(what) {
            if stream.read_buf(&mut text).await? == 0 {
                return Err(Error::other("a stream has ended"));
            }
        }
        Ok(())
    };
    timeout(Duration::from_secs(30), read).await.unwrap_or_else(|_| Err(Error::other(format!("no {what}"))))
}
