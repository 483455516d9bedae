//! Which adapter is behind each port: chosen by the URL's scheme.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use likewise_schema::PartitionCount;
use likewise_storage::{
    Clock, CounterStore, EventLog, RecordStore, RequestStore,
    counters::MemoryCounters,
    log::SqliteLog,
    records::{Shards, SpreadRecords, SqliteRecords},
    requests::MemoryRequests,
};

use crate::Failure;

/// The path of a `sqlite://` URL.
pub(crate) fn sqlite_path(setting: &str, url: &str) -> Result<PathBuf, Failure> {
    match url.split_once("://") {
        Some(("sqlite", path)) if !path.is_empty() && !path.contains('?') => Ok(PathBuf::from(path)),
        _ => Err(format!("{setting} must be a URL such as sqlite://likewise-data/{setting}.db").into()),
    }
}

/// The log, for appending. The caller owns its directory.
pub(crate) fn writable_log(url: &str, partitions: PartitionCount) -> Result<Arc<dyn EventLog>, Failure> {
    Ok(Arc::new(SqliteLog::open(&sqlite_path("log", url)?, partitions)?))
}

/// The log, for reading beside the service.
pub(crate) fn readable_log(url: &str) -> Result<Arc<dyn EventLog>, Failure> {
    Ok(Arc::new(SqliteLog::open_readable(&sqlite_path("log", url)?)?))
}

/// The records, for writing. The caller owns their directories.
pub(crate) fn writable_records(urls: &[String]) -> Result<Arc<dyn RecordStore>, Failure> {
    records(urls, |path, shards| Ok(Arc::new(SqliteRecords::open(path, shards)?)))
}

/// The records, for reading beside the service.
pub(crate) fn readable_records(urls: &[String]) -> Result<Arc<dyn RecordStore>, Failure> {
    records(urls, |path, shards| Ok(Arc::new(SqliteRecords::open_readable(path, shards)?)))
}

type Open = fn(&Path, &Shards) -> Result<Arc<dyn RecordStore>, Failure>;

/// The files of embedded records and the shards of each. Fails unless each shard has one home, before a file is made.
pub(crate) fn record_files(urls: &[String]) -> Result<Vec<(Shards, PathBuf)>, Failure> {
    let mut parts = Vec::new();
    for url in urls {
        let (base, query) = url.split_once('?').map_or((url.as_str(), None), |(base, query)| (base, Some(query)));
        let shards = match query {
            None => Shards::all(),
            Some(query) => {
                let range = query.strip_prefix("shards=").ok_or("records takes ?shards=… and nothing else")?;
                range.parse().map_err(|what| format!("records: ?shards= {what}"))?
            }
        };
        parts.push((shards, sqlite_path("records", base)?));
    }
    SpreadRecords::check(parts.iter().map(|(shards, _)| shards))?;
    Ok(parts)
}

/// One store, or several with a range of shards each.
fn records(urls: &[String], open: Open) -> Result<Arc<dyn RecordStore>, Failure> {
    let parts = record_files(urls)?;
    if let [(shards, path)] = &parts[..] {
        return open(path, shards);
    }
    let stores = parts.into_iter().map(|(shards, path)| Ok((shards.clone(), open(&path, &shards)?)));
    Ok(Arc::new(SpreadRecords::new(stores.collect::<Result<_, Failure>>()?)?))
}

/// Counters and requests: one server holds both.
pub(crate) type Cache = (Arc<dyn CounterStore>, Arc<dyn RequestStore>);

/// Counters and requests.
pub(crate) fn counters(url: &str, clock: &Clock) -> Result<Cache, Failure> {
    match url {
        "memory://" => Ok((Arc::new(MemoryCounters::new(clock.clone())), Arc::new(MemoryRequests::new(clock.clone())))),
        _ => Err("counters must be memory://".into()),
    }
}
