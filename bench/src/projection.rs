//! Projection into MySQL and MariaDB, beside raw multi-row upserts of the same columns and one upsert per event.

use std::{
    io::{Error, Result},
    sync::Arc,
};

use clap::Args;
use futures::future::try_join_all;
use likewise_projector::fold::{Event, FOLD_VERSION, fold};
use likewise_schema::{ContentId, LikeToggled, Offset, Pair, Partition, PartitionCount, RequestId, Timestamp, UserId};
use likewise_storage::{
    RecordStore,
    records::{Advance, Batch, LikeRecord, MysqlRecords, Owner, Shards},
};
use likewise_testkit::servers::{self, Server};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, query};
use tokio::time::Instant;
use uuid::Uuid;

use crate::load::mix;

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
    contents: u64,
    /// Events in a batch, rows in a raw statement.
    #[arg(long, default_value_t = 1000)]
    batch: usize,
}

/// Connections of the raw runs: as many as the product uses.
const CONNECTIONS: usize = 8;

pub(crate) async fn run(options: &Options) -> Result<()> {
    println!(
        "Likes of new pairs over {} contents, {} a run, batches of {}, {CONNECTIONS} connections, 16 partitions (likes/s)",
        options.contents, options.likes, options.batch
    );
    for (name, start) in [("MySQL", servers::start_mysql as fn(&[&str]) -> Server), ("MariaDB", servers::start_mariadb)]
    {
        let server = tokio::task::spawn_blocking(move || start(&[])).await.map_err(Error::other)?;
        let (mut ratios, mut singles) = (Vec::new(), Vec::new());
        for number in 0..options.pairs {
            let raw = raw(options, &database(&server, &format!("raw_{number}")).await?).await?;
            let product = product(options, &database(&server, &format!("product_{number}")).await?).await?;
            println!("  {name}: raw {raw:.0}, projected {product:.0}: {:.2}", product / raw);
            ratios.push(product / raw);
            if number < 2 {
                singles.push(product / single(options, &database(&server, &format!("single_{number}")).await?).await?);
            }
        }
        let (raw, single) = (crate::median(ratios), crate::median(singles));
        println!("  {name}: projection is {raw:.2} of raw upserts, {single:.1} times one upsert per event");
    }
    Ok(())
}

/// A database with the product's tables, and its URL.
async fn database(server: &Server, name: &str) -> Result<String> {
    let mut connection = MySqlConnection::connect(&servers::mysql_url(server)).await.map_err(Error::other)?;
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.map_err(Error::other)?;
    let url = format!("{}/{name}?ssl-mode=disabled", servers::mysql_url(server));
    MysqlRecords::new(&url, &Shards::all()).map_err(Error::other)?.migrate().await.map_err(Error::other)?;
    Ok(url)
}

/// The like with this number, in its partition: a new pair for each.
fn like(options: &Options, number: u64) -> LikeToggled {
    let id = |id: u64| i64::try_from(id).unwrap_or(i64::MAX);
    let valid = "the ids are in range";
    LikeToggled {
        request_id: RequestId::from_uuid(Uuid::now_v7()),
        user_id: UserId::new(id(1 + number)).expect(valid),
        content_type: "post".parse().expect(valid),
        content_id: ContentId::new(id(1 + mix(number) % options.contents)).expect(valid),
        liked: true,
        occurred_at: None,
        received_at: Timestamp::from_millis(1_790_000_000_000 + id(number / 100)).expect(valid),
    }
}

/// Everything to write, by partition.
fn likes(options: &Options) -> Vec<Vec<LikeToggled>> {
    let count = PartitionCount::DEFAULT;
    let mut likes: Vec<Vec<LikeToggled>> = count.all().map(|_| Vec::new()).collect();
    for number in 0..options.likes {
        let like = like(options, number);
        likes[usize::from(count.partition_of(&like.content()).get())].push(like);
    }
    likes
}

fn rate(options: &Options, started: Instant) -> f64 {
    options.likes as f64 / started.elapsed().as_secs_f64()
}

/// The rows alone, in statements of many rows, each its own transaction.
async fn raw(options: &Options, url: &str) -> Result<f64> {
    let likes = likes(options);
    let per_connection = likes.len().div_ceil(CONNECTIONS);
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(MySqlConnection::connect(url).await.map_err(Error::other)?);
    }
    let started = Instant::now();
    let shares = likes.chunks(per_connection).enumerate();
    let write = |(connection, (number, share)): (MySqlConnection, (usize, &[Vec<LikeToggled>]))| {
        write_raw(connection, number * per_connection, share.to_vec(), options.batch)
    };
    try_join_all(connections.into_iter().zip(shares).map(write)).await?;
    Ok(rate(options, started))
}

/// The tables from `first` on, one after the other.
async fn write_raw(
    mut connection: MySqlConnection,
    first: usize,
    tables: Vec<Vec<LikeToggled>>,
    batch: usize,
) -> Result<()> {
    for (index, likes) in tables.iter().enumerate() {
        for chunk in likes.chunks(batch) {
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

/// One statement, and so one transaction, for each event.
async fn single(options: &Options, url: &str) -> Result<f64> {
    let options = &Options { likes: options.likes / 20, batch: 1, ..*options };
    raw(options, url).await
}

/// The product: prior rows, fold, rows, counts, buckets and checkpoint in one fenced transaction for each batch.
async fn product(options: &Options, url: &str) -> Result<f64> {
    let store: Arc<dyn RecordStore> = Arc::new(MysqlRecords::new(url, &Shards::all()).map_err(Error::other)?);
    let likes = likes(options);
    let started = Instant::now();
    let mut partitions = tokio::task::JoinSet::new();
    for (partition, likes) in PartitionCount::DEFAULT.all().zip(likes) {
        partitions.spawn(project(Arc::clone(&store), partition, likes, options.batch));
    }
    while let Some(ended) = partitions.join_next().await {
        ended.map_err(Error::other)??;
    }
    Ok(rate(options, started))
}

async fn project(
    store: Arc<dyn RecordStore>,
    partition: Partition,
    likes: Vec<LikeToggled>,
    batch: usize,
) -> Result<()> {
    let partitions = PartitionCount::DEFAULT;
    let owner = Owner { log_identity: "bench".into(), partitions, fold_version: FOLD_VERSION, micros: 1 };
    let mut fence = store.acquire(partition, &owner).await.map_err(Error::other)?.fence();
    let offset = |index: usize| Offset::new(index as i64).unwrap_or_default();
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
        store.commit(Batch { fence, advance, read, fold: Box::new(folded) }).await.map_err(Error::other)?;
        fence.next_offset = next_offset;
    }
    Ok(())
}
