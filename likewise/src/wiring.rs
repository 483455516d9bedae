//! Which adapter is behind each port: chosen by the URL's scheme.

use std::{path::PathBuf, sync::Arc};

use likewise_schema::PartitionCount;
use likewise_storage::{
    Clock, CounterStore, DataDir, EventLog, RecordStore, RedisTimeouts, RequestStore, StoreError,
    counters::{MemoryCounters, RedisCounters},
    log::{KafkaLog, KafkaUrl, SqliteLog},
    records::{MysqlRecords, Shards, SpreadRecords, SqliteRecords},
    requests::{MemoryRequests, RedisRequests},
};
use tracing::warn;

use crate::{Failure, serve::directory_of};

/// Whether a store is in this process's files, and so belongs to one process.
pub(crate) fn is_embedded(url: &str) -> bool {
    url.starts_with("sqlite://") || url.starts_with("memory://")
}

/// The path of a `sqlite://` URL.
pub(crate) fn sqlite_path(setting: &str, url: &str) -> Result<PathBuf, Failure> {
    match url.split_once("://") {
        Some(("sqlite", path)) if !path.is_empty() && !path.contains('?') => Ok(PathBuf::from(path)),
        _ => {
            let (file, server) = match setting {
                "records" => ("sqlite://likewise-data/records.db", "mysql://user:password@host/database"),
                _ => ("sqlite://likewise-data/log.db", "kafka://host:9092/likes"),
            };
            Err(format!("{setting} must be a URL such as {file} or {server}").into())
        }
    }
}

/// The log, for appending. The caller owns its directory, if it has one. A log that is there must have `partitions`,
/// if they are given.
pub(crate) async fn writable_log(url: &str, partitions: Option<PartitionCount>) -> Result<Arc<dyn EventLog>, Failure> {
    if KafkaUrl::is_one(url) {
        let log = KafkaLog::open(KafkaUrl::parse(url)?).await?;
        let found = log.partitions();
        if partitions.is_some_and(|wanted| wanted != found) {
            let found = found.get();
            return Err(format!(
                "the topic has {found} partitions; their number never changes: set --partitions {found}"
            )
            .into());
        }
        return Ok(Arc::new(log));
    }
    Ok(Arc::new(SqliteLog::open(&sqlite_path("log", url)?, partitions)?))
}

/// The log, for reading beside the service.
pub(crate) async fn readable_log(url: &str) -> Result<Arc<dyn EventLog>, Failure> {
    if KafkaUrl::is_one(url) {
        return writable_log(url, None).await;
    }
    Ok(Arc::new(SqliteLog::open_readable(&sqlite_path("log", url)?)?))
}

/// One place of records.
pub(crate) enum Place {
    File(PathBuf),
    Server(Arc<MysqlRecords>),
}

/// Where the records are, and the shards of each place. Fails unless each shard has one home, before anything is made.
pub(crate) fn record_places(urls: &[String]) -> Result<Vec<(Shards, Place)>, Failure> {
    let mut parts = Vec::new();
    for url in urls {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (of_shards, rest): (Vec<&str>, Vec<&str>) =
            query.split('&').filter(|part| !part.is_empty()).partition(|part| part.starts_with("shards="));
        let shards = match of_shards[..] {
            [] => Shards::all(),
            [range] => range["shards=".len()..].parse().map_err(|what| format!("records: ?shards= {what}"))?,
            _ => return Err("records takes ?shards= once".into()),
        };
        let place = if base.starts_with("mysql://") {
            let query = rest.join("&");
            let mark = if query.is_empty() { "" } else { "?" };
            Place::Server(Arc::new(MysqlRecords::new(&format!("{base}{mark}{query}"), &shards)?))
        } else if rest.is_empty() {
            Place::File(sqlite_path("records", base)?)
        } else {
            return Err("an embedded record store takes ?shards=… and nothing else".into());
        };
        parts.push((shards, place));
    }
    SpreadRecords::check(parts.iter().map(|(shards, _)| shards))?;
    Ok(parts)
}

/// Where the service that owns embedded records takes what an operator asks of it; none if no service has them open.
pub(crate) fn operator_of(urls: &[String]) -> Result<Option<String>, Failure> {
    for (_, place) in record_places(urls)? {
        if let Place::File(path) = place
            && let Some(operator) = DataDir::operator_of(&directory_of(&path))
        {
            return Ok(Some(operator));
        }
    }
    Ok(None)
}

/// The records, for writing. The caller owns their directories.
pub(crate) async fn writable_records(urls: &[String]) -> Result<Arc<dyn RecordStore>, Failure> {
    records(urls, true).await
}

/// The records, for reading beside the service.
pub(crate) async fn readable_records(urls: &[String]) -> Result<Arc<dyn RecordStore>, Failure> {
    records(urls, false).await
}

/// One store, or several with a range of shards each.
async fn records(urls: &[String], is_writable: bool) -> Result<Arc<dyn RecordStore>, Failure> {
    let mut stores: Vec<(Shards, Arc<dyn RecordStore>)> = Vec::new();
    for (shards, place) in record_places(urls)? {
        let store: Arc<dyn RecordStore> = match place {
            Place::File(path) if is_writable => Arc::new(SqliteRecords::open(&path, &shards)?),
            Place::File(path) => Arc::new(SqliteRecords::open_readable(&path, &shards)?),
            Place::Server(server) => {
                match server.check().await {
                    Err(error @ StoreError::Unusable { .. }) => return Err(error.into()),
                    // It is waited for where it is needed.
                    Err(error) => warn!(%error, "going on without a record server"),
                    Ok(()) => {}
                }
                server
            }
        };
        stores.push((shards, store));
    }
    match &stores[..] {
        [(_, store)] => Ok(Arc::clone(store)),
        _ => Ok(Arc::new(SpreadRecords::new(stores)?)),
    }
}

/// Counters and requests: one server holds both.
pub(crate) type Cache = (Arc<dyn CounterStore>, Arc<dyn RequestStore>);

/// Counters and requests.
pub(crate) async fn counters(url: &str, clock: &Clock) -> Result<Cache, Failure> {
    if url == "memory://" {
        return Ok((Arc::new(MemoryCounters::new(clock.clone())), Arc::new(MemoryRequests::new(clock.clone()))));
    }
    let is_redis =
        ["redis://", "rediss://", "redis+cluster://", "rediss+cluster://"].iter().any(|form| url.starts_with(form));
    if !is_redis {
        return Err("counters must be memory://, or a URL such as redis://host:6379".into());
    }
    let counters = RedisCounters::new(url, RedisTimeouts::default())?;
    match counters.advice().await {
        Ok(None) => {}
        Ok(Some(advice)) => warn!("Redis: {advice}"),
        Err(error) => warn!(%error, "going on without Redis"),
    }
    Ok((Arc::new(counters), Arc::new(RedisRequests::new(url, RedisTimeouts::default())?)))
}
