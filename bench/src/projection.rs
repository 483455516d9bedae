//! Projection into MySQL and MariaDB, beside raw multi-row upserts of the same columns and one upsert per event.

use std::{
    collections::HashMap,
    io::{Error, Result},
    sync::Arc,
};

use clap::{Args, ValueEnum};
use futures::future::try_join_all;
use likewise_projector::{
    Limits,
    fold::{Event, FOLD_VERSION, fold},
};
use likewise_schema::{ContentId, LikeToggled, Offset, Pair, PartitionCount, RequestId, Timestamp, UserId};
use likewise_storage::{
    RecordStore,
    records::{Advance, Batch, Fence, LikeRecord, MysqlRecords, Owner, Shards},
};
use likewise_testkit::servers::{self, Server};
use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution as _, Zipf};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, query};
use tokio::time::Instant;
use uuid::Uuid;

#[derive(Args)]
pub(crate) struct Options {
    /// Likes of new pairs in each run.
    #[arg(long, default_value_t = 160_000)]
    likes: u64,
    /// Alternating pairs of runs; medians are printed.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Contents that likes are spread over.
    #[arg(long, default_value_t = 100_000)]
    contents: u32,
    /// How they are spread; both when left out.
    #[arg(long)]
    spread: Option<Spread>,
    /// Events in a batch.
    #[arg(long, default_value_t = Limits::default().batch_events)]
    batch: usize,
    /// Rows in a raw statement.
    #[arg(long, default_value_t = 1000)]
    rows: usize,
}

/// How likes are spread over contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Spread {
    /// By Zipf's law with exponent 0.99, as the zipfian workloads of YCSB (Cooper et al. 2010, section 4.1): a few
    /// contents get most of the likes.
    Zipf,
    /// All alike, the hardest case: nearly each like of a batch changes a count of its own.
    Even,
}

/// Connections of the raw runs: as many as the product uses.
const CONNECTIONS: usize = 8;

pub(crate) async fn run(options: &Options) -> Result<()> {
    println!(
        "Likes of new pairs over {} contents, {} a run, batches of {}, raw statements of {} rows, {CONNECTIONS} connections, \
         16 partitions (likes/s)",
        options.contents, options.likes, options.batch, options.rows
    );
    for (name, start) in [("MySQL", servers::start_mysql as fn(&[&str]) -> Server), ("MariaDB", servers::start_mariadb)]
    {
        // As a server comes: a commit is on disk before it is answered.
        let settings = ["--innodb-flush-log-at-trx-commit=1"];
        let server = tokio::task::spawn_blocking(move || start(&settings)).await.map_err(Error::other)?;
        for spread in [Spread::Zipf, Spread::Even] {
            if options.spread.is_none_or(|only| only == spread) {
                compare(options, name, &servers::mysql_url(&server), spread).await?;
            }
        }
    }
    Ok(())
}

/// Alternating runs on one server.
async fn compare(options: &Options, name: &str, server: &str, spread: Spread) -> Result<()> {
    let likes = likes(options, spread);
    let (mut ratios, mut singles) = (Vec::new(), Vec::new());
    for number in 0..options.pairs {
        let raw = raw(&likes, options.rows, &database(server, "raw").await?).await?;
        let product = product(&likes, options.batch, &database(server, "product").await?).await?;
        println!("  {name}, {spread:?}: raw {raw:.0}, projected {product:.0}: {:.2}", product / raw);
        ratios.push(product / raw);
        if number < 2 {
            // A twentieth of them takes long enough.
            let few: Vec<_> = likes.iter().map(|likes| likes[..likes.len() / 20].to_vec()).collect();
            singles.push(product / self::raw(&few, 1, &database(server, "single").await?).await?);
        }
    }
    let (raw, single) = (crate::median(ratios), crate::median(singles));
    println!("  {name}, {spread:?}: projection is {raw:.2} of raw upserts, {single:.1} times one upsert per event");
    Ok(())
}

/// The URL of a new database with the product's tables.
async fn database(server: &str, name: &str) -> Result<String> {
    // What one run leaves behind must not be work for the next.
    let old = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name}"));
    servers::connect(server).await.execute(old).await.map_err(Error::other)?;
    servers::create_database(server, name).await;
    let url = format!("{server}/{name}?ssl-mode=disabled");
    MysqlRecords::new(&url, &Shards::all()).map_err(Error::other)?.migrate().await.map_err(Error::other)?;
    Ok(url)
}

/// Likes by partition.
type Likes = Vec<Vec<LikeToggled>>;

/// Likes of new pairs, the same for all runs.
fn likes(options: &Options, spread: Spread) -> Likes {
    let mut random = StdRng::seed_from_u64(1);
    let zipf = Zipf::new(f64::from(options.contents), 0.99).expect("a law of at least one content");
    let count = PartitionCount::DEFAULT;
    let mut likes: Likes = count.all().map(|_| Vec::new()).collect();
    for number in 0..options.likes {
        let content = match spread {
            Spread::Zipf => zipf.sample(&mut random) as i64,
            Spread::Even => random.random_range(1..=i64::from(options.contents)),
        };
        let like = like(number, content);
        likes[usize::from(count.partition_of(&like.content()).get())].push(like);
    }
    likes
}

fn like(number: u64, content: i64) -> LikeToggled {
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    let valid = "the ids are in range";
    LikeToggled {
        request_id: RequestId::from_uuid(Uuid::now_v7()),
        user_id: UserId::new(1 + number).expect(valid),
        content_type: "post".parse().expect(valid),
        content_id: ContentId::new(content).expect(valid),
        liked: true,
        occurred_at: None,
        received_at: Timestamp::from_millis(1_790_000_000_000 + number / 100).expect(valid),
    }
}

fn rate(likes: &Likes, started: Instant) -> f64 {
    likes.iter().map(Vec::len).sum::<usize>() as f64 / started.elapsed().as_secs_f64()
}

/// The rows alone, in statements of many rows, each its own transaction.
async fn raw(likes: &Likes, rows: usize, url: &str) -> Result<f64> {
    let per_connection = likes.len().div_ceil(CONNECTIONS);
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(MySqlConnection::connect(url).await.map_err(Error::other)?);
    }
    let started = Instant::now();
    let shares = likes.chunks(per_connection).enumerate();
    let write = |(connection, (number, share)): (MySqlConnection, (usize, &[Vec<LikeToggled>]))| {
        write_raw(connection, number * per_connection, share.to_vec(), rows)
    };
    try_join_all(connections.into_iter().zip(shares).map(write)).await?;
    Ok(rate(likes, started))
}

/// The tables from `first` on, one after the other.
async fn write_raw(
    mut connection: MySqlConnection,
    first: usize,
    tables: Vec<Vec<LikeToggled>>,
    rows: usize,
) -> Result<()> {
    for (index, likes) in tables.iter().enumerate() {
        for chunk in likes.chunks(rows) {
            upsert(&mut connection, first + index, chunk).await?;
        }
    }
    Ok(())
}

async fn upsert(connection: &mut MySqlConnection, shard: usize, likes: &[LikeToggled]) -> Result<()> {
    let values = vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"; likes.len()].join(", ");
    let sql = format!(
        "INSERT INTO like_records_{shard:02} (user_id, content_id, content_type, created_at, updated_at, is_canceled,
                                             liked_at, version, request_ring, request_floor)
         VALUES {values}
         ON DUPLICATE KEY UPDATE created_at = VALUES(created_at), updated_at = VALUES(updated_at),
             is_canceled = VALUES(is_canceled), liked_at = VALUES(liked_at), version = VALUES(version),
             request_ring = VALUES(request_ring), request_floor = VALUES(request_floor)"
    );
    let mut insert = query(AssertSqlSafe(sql));
    for (offset, like) in likes.iter().enumerate() {
        let at = chrono::DateTime::from_timestamp_millis(like.received_at.millis()).unwrap_or_default().naive_utc();
        insert = insert
            .bind(like.user_id.get())
            .bind(like.content_id.get())
            .bind("post")
            .bind(at)
            .bind(at)
            .bind(false)
            .bind(at)
            .bind(offset as i64)
            .bind(like.request_id.as_bytes().to_vec())
            .bind(None::<Vec<u8>>);
    }
    insert.execute(connection).await.map(drop).map_err(Error::other)
}

/// The product: prior rows, fold, rows, counts, buckets and checkpoint in one fenced transaction for each batch.
async fn product(likes: &Likes, batch: usize, url: &str) -> Result<f64> {
    let store: Arc<dyn RecordStore> = Arc::new(MysqlRecords::new(url, &Shards::all()).map_err(Error::other)?);
    let partitions = PartitionCount::DEFAULT;
    let owner = Owner { log_identity: "bench".into(), partitions, fold_version: FOLD_VERSION, micros: 1 };
    let mut fences = Vec::new();
    for partition in partitions.all() {
        fences.push(store.acquire(partition, &owner).await.map_err(Error::other)?.fence());
    }
    let started = Instant::now();
    let mut owners = tokio::task::JoinSet::new();
    for (fence, likes) in fences.into_iter().zip(likes) {
        owners.spawn(project(Arc::clone(&store), fence, likes.clone(), batch));
    }
    while let Some(ended) = owners.join_next().await {
        ended.map_err(Error::other)??;
    }
    Ok(rate(likes, started))
}

async fn project(store: Arc<dyn RecordStore>, mut fence: Fence, likes: Vec<LikeToggled>, batch: usize) -> Result<()> {
    let offset = |index: usize| Offset::new(index as i64).unwrap_or_default();
    // As an owner does; with 100,000 contents a partition's fit into what it remembers.
    let mut counts = HashMap::new();
    for (number, chunk) in likes.chunks(batch).enumerate() {
        let first = number * batch;
        let event = |(index, like): (usize, &LikeToggled)| Event { offset: offset(first + index), like: *like };
        let events: Vec<Event> = chunk.iter().enumerate().map(event).collect();
        let mut read: Vec<Pair> = events.iter().map(|event| event.like.pair()).collect();
        read.sort_unstable();
        let next_offset = offset(first + chunk.len());
        let time = Timestamp::from_millis(1_790_000_000_000).unwrap_or_default();
        let advance = Advance { next_offset, mark: None, log_end: next_offset, next_event_at: None, heard_at: time };
        let folded = move |prior: Vec<Option<LikeRecord>>| {
            let known = prior.into_iter().flatten().map(|row| (row.pair, row)).collect();
            fold(&known, &events).0
        };
        let batch = Batch { fence, advance, read, counts: counts.clone(), fold: Box::new(folded) };
        let committed = store.commit(batch).await.map_err(Error::other)?;
        counts.extend(committed.counts.into_iter().map(|count| (count.content, count.count)));
        fence.next_offset = next_offset;
    }
    Ok(())
}
