//! The event log: the source of truth.

mod batch;
mod headers;
#[cfg(feature = "servers")]
mod kafka;
mod leb128;
mod membership;
mod sqlite;
mod tail;

use std::time::Duration;

use async_trait::async_trait;
use likewise_schema::{Headers, Offset, Partition, PartitionCount, Timestamp};
use sha2::{Digest as _, Sha256};

#[cfg(feature = "servers")]
pub use self::kafka::{
    KafkaLog, KafkaUrl,
    topic::{check as check_topic, create as create_topic},
};
pub(crate) use self::sqlite::{APPLICATION_ID as SQLITE_APPLICATION_ID, file as sqlite_file};
pub use self::{
    membership::{Membership, Report},
    sqlite::SqliteLog,
};
use crate::StoreError;

/// Most bytes of one record's key, value and headers together.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// What a letter's own headers take.
const DLQ_BYTES: usize = 4096;
/// Longest key that a mark keeps as it is.
const MARK_KEY_BYTES_MAX: usize = 512;
/// Most bytes of a dead letter: a record of any size that the log takes, and why it is here.
pub const DEAD_LETTER_BYTES_MAX: usize = RECORD_BYTES_MAX + 64 * 1024;

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// Where to.
    pub partition: Partition,
    /// The producer's time.
    pub timestamp: Timestamp,
    /// The key, as it is.
    pub key: Option<Vec<u8>>,
    /// The value, as it is; none is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Headers,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Its place in the partition.
    pub offset: Offset,
    /// The producer's time.
    pub timestamp: Timestamp,
    /// The key, as it is.
    pub key: Option<Vec<u8>>,
    /// The value, as it is; none is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Headers,
}

/// What identifies the record before a checkpoint, so that another log under the same name is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its timestamp.
    pub timestamp: Timestamp,
}

impl LogRecord {
    /// The mark a checkpoint keeps of this record. Of a key that is longer than any of ours it keeps the SHA-256.
    pub fn mark(&self) -> Mark {
        let short =
            |key: &Vec<u8>| if key.len() <= MARK_KEY_BYTES_MAX { key.clone() } else { Sha256::digest(key).to_vec() };
        Mark { key: self.key.as_ref().map(short), timestamp: self.timestamp }
    }
}

/// The first offset kept and the one after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first offset that can be read.
    pub start: Offset,
    /// The offset that the next record will get.
    pub end: Offset,
}

/// How much to read at once.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimit {
    /// At most this many records, at least 1.
    pub records: usize,
    /// Stop after the record that reaches this many bytes of values.
    pub bytes: usize,
    /// How long to wait for a first record when there is none yet.
    pub wait: Duration,
}

/// What one read saw, in one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Records from the offset asked for, ascending.
    pub records: Vec<LogRecord>,
    /// The partition's bounds.
    pub bounds: Bounds,
    /// The record before the offset asked for.
    pub before: Before,
    /// How long ago the log was heard from; zero for a log that each read asks.
    pub age: Duration,
}

/// What a read saw of the record before the offset asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// The adapter does not look at it in each read.
    NotRead,
    /// The log does not hold it.
    Absent,
    /// Its mark.
    Found(Mark),
}

/// Why a record was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// It is certain that the record was not written.
    #[error("not appended: {0}")]
    Rejected(StoreError),
    /// The record may or may not be in the log, now or later.
    #[error("the outcome of the append is unknown: {0}")]
    Unknown(StoreError),
}

/// The log port. Appends are durable before they are acknowledged; records of a partition keep their order for ever.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// The log's identity: another log under the same name has another.
    fn identity(&self) -> &str;

    /// How many partitions it has.
    fn partitions(&self) -> PartitionCount;

    /// Why nothing can be written right now, as far as the adapter knows; for readiness.
    fn fault(&self) -> Option<StoreError> {
        None
    }

    /// Appends one record and gives its offset once it is durable.
    async fn append(&self, record: NewRecord) -> Result<Offset, AppendError>;

    /// Reads from `from` on, which may be the end. Fails if `from` is below the start.
    async fn read(&self, partition: Partition, from: Offset, limit: ReadLimit) -> Result<Slice, StoreError>;

    /// The mark of the record at `offset`; none if the log does not hold it (any more, or yet).
    async fn mark(&self, partition: Partition, offset: Offset) -> Result<Option<Mark>, StoreError>;

    /// The partition's bounds.
    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError>;

    /// Appends a dead letter and returns once it is durable.
    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError>;

    /// Up to `limit` dead letters from the `from`-th on (from 0), oldest first.
    async fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, StoreError>;

    /// Waits until nothing acknowledged can be lost by the process ending.
    async fn flush(&self) -> Result<(), StoreError>;

    /// Takes a place among the projectors of the log. A log that only one process can write has only one, which owns
    /// everything. `instance` names the process for good: a restart under the same name moves no partition.
    fn join(&self, instance: Option<&str>) -> Result<Membership, StoreError> {
        let _only_one = instance;
        Ok(Membership::of_all(self.partitions()))
    }
}

/// A record that is not an event: as it was, with headers that say where it was and why it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The record's own timestamp.
    pub timestamp: Timestamp,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers, then `__dlq.errors.topic`, `.partition`, `.offset`, `.message` and `.stage` (named as in Kafka's
    /// KIP-1191).
    pub headers: Headers,
}

impl DeadLetter {
    /// The letter for `record`, found in `partition`, which failed because of `message`.
    pub fn new(record: LogRecord, partition: Partition, message: &str) -> Self {
        let LogRecord { mut headers, mut key, mut value, .. } = record;
        // What no topic of ours could hold is cut; the digest says what it was.
        let of_headers =
            |headers: &Headers| headers.0.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        if of_headers(&headers) + length(&key) + length(&value) > DEAD_LETTER_BYTES_MAX - DLQ_BYTES {
            let mut digest = Sha256::new();
            [&key, &value].into_iter().flatten().for_each(|bytes| digest.update(bytes));
            let digest = likewise_schema::hex(&digest.finalize());
            key.iter_mut().for_each(|key| key.truncate(MARK_KEY_BYTES_MAX));
            headers.0.retain(|(name, value)| name.len() + value.len() <= MARK_KEY_BYTES_MAX);
            headers.0.truncate(16);
            value.iter_mut().for_each(|value| value.truncate(RECORD_BYTES_MAX));
            headers.push("__dlq.cut.sha256", digest);
        }
        headers.push("__dlq.errors.topic", "likes");
        headers.push("__dlq.errors.partition", partition.to_string());
        headers.push("__dlq.errors.offset", record.offset.to_string());
        headers.push("__dlq.errors.message", message);
        headers.push("__dlq.errors.stage", "decode");
        Self { timestamp: record.timestamp, key, value, headers }
    }
}
