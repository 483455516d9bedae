//! Which adapter is behind each port: chosen by the URL's scheme.

use std::{path::PathBuf, sync::Arc};

use likewise_schema::PartitionCount;
use likewise_storage::{
    Clock, CounterStore, EventLog, RecordStore, RequestStore, counters::MemoryCounters, log::SqliteLog,
    records::SqliteRecords, requests::MemoryRequests,
};

use crate::Failure;

/// The path of a `sqlite://` URL.
pub(crate) fn sqlite_path(setting: &str, url: &str) -> Result<PathBuf, Failure> {
    match url.split_once("://") {
        Some(("sqlite", path)) if !path.is_empty() => Ok(PathBuf::from(path)),
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

/// The records, for writing. The caller owns their directory.
pub(crate) fn writable_records(url: &str) -> Result<Arc<dyn RecordStore>, Failure> {
    Ok(Arc::new(SqliteRecords::open(&sqlite_path("records", url)?)?))
}

/// The records, for reading beside the service.
pub(crate) fn readable_records(url: &str) -> Result<Arc<dyn RecordStore>, Failure> {
    Ok(Arc::new(SqliteRecords::open_readable(&sqlite_path("records", url)?)?))
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
