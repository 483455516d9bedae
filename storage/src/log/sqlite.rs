//! The embedded log: one SQLite file, durable before each acknowledgement, many appends per transaction.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use likewise_schema::{Offset, Partition, PartitionCount, Timestamp, sql};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

use super::{
    AppendError, Before, Bounds, DeadLetter, EventLog, LogRecord, Mark, NewRecord, RECORD_BYTES_MAX, ReadLimit, Slice,
    headers,
};
use crate::{
    StoreError,
    sqlite::{Failure, File, Job, Readers, Writer},
};

const STORE: &str = "the log";
/// "Lwl1" in the file header, so that a foreign database is not taken for a log.
const APPLICATION_ID: i32 = 0x4c77_6c31;
const READERS: usize = 4;
/// How often a process that only reads looks for new records of the one that writes.
const FOLLOW_EVERY: Duration = Duration::from_millis(50);

/// The log in a SQLite file.
#[derive(Debug)]
pub struct SqliteLog {
    identity: String,
    partitions: PartitionCount,
    readers: Readers,
    writing: Option<Writing>,
}

#[derive(Debug)]
struct Writing {
    writer: Writer<Append>,
    /// The end of each partition, for readers that wait.
    ends: Arc<Vec<watch::Sender<i64>>>,
}

impl SqliteLog {
    /// Opens the log for appending, making it with `partitions` if there is none. The caller owns the directory.
    pub fn open(path: &Path, partitions: PartitionCount) -> Result<Self, StoreError> {
        let file = file(path);
        let connection = file.open_writable(APPLICATION_ID, sql::SQLITE_LOG)?;
        connection
            .execute(
                "INSERT OR IGNORE INTO log_identity VALUES (1, ?1, ?2)",
                params![uuid::Uuid::new_v4().to_string(), partitions.get()],
            )
            .map_err(|e| file.error(&e))?;
        let (identity, found) = identity(&file, &connection)?;
        if found != partitions {
            let reason = format!(
                "{} has {} partitions, not {}; the number is fixed when a log is made: set --partitions {}",
                path.display(),
                found.get(),
                partitions.get(),
                found.get()
            );
            return Err(StoreError::unusable(STORE, reason));
        }
        let readers = Readers::open(&file, APPLICATION_ID, READERS)?;
        let ends = load_ends(&connection, partitions).map_err(|e| file.error(&e))?;
        let ends = Arc::new(ends.into_iter().map(watch::Sender::new).collect());
        let writer = Writer::start(file, connection)?;
        Ok(Self { identity, partitions, readers, writing: Some(Writing { writer, ends }) })
    }

    /// Opens the log for reading only, beside the service that may be writing it.
    pub fn open_readable(path: &Path) -> Result<Self, StoreError> {
        let file = file(path);
        let connection = file.open_readable(APPLICATION_ID)?;
        let (identity, partitions) = identity(&file, &connection)?;
        let readers = Readers::open(&file, APPLICATION_ID, 1)?;
        Ok(Self { identity, partitions, readers, writing: None })
    }

    fn writing(&self) -> Result<&Writing, StoreError> {
        self.writing.as_ref().ok_or_else(|| StoreError::unusable(STORE, "it was opened for reading only"))
    }

    /// Waits until the partition's end is past `from`, at most until `deadline`.
    async fn wait_past(&self, partition: Partition, from: Offset, deadline: Instant) {
        match &self.writing {
            Some(writing) => {
                let mut end = writing.ends[usize::from(partition.get())].subscribe();
                let _at_the_deadline = timeout_at(deadline, end.wait_for(|end| *end > from.get())).await;
            }
            None => tokio::time::sleep_until(deadline.min(Instant::now() + FOLLOW_EVERY)).await,
        }
    }
}

fn file(path: &Path) -> File {
    File { path: PathBuf::from(path), store: STORE, cache_kib: 8192, synchronous: "FULL" }
}

fn identity(file: &File, connection: &Connection) -> Result<(String, PartitionCount), StoreError> {
    let row = connection
        .query_row("SELECT identity, partitions FROM log_identity", [], |row| Ok((row.get(0)?, row.get::<_, u32>(1)?)))
        .map_err(|e| file.error(&e))?;
    let partitions = PartitionCount::new(row.1).map_err(|e| StoreError::unusable(STORE, e))?;
    Ok((row.0, partitions))
}

fn load_ends(connection: &Connection, partitions: PartitionCount) -> rusqlite::Result<Vec<i64>> {
    let mut last = connection.prepare("SELECT max(offset) FROM log_records WHERE partition = ?1")?;
    partitions
        .all()
        .map(|partition| {
            last.query_row([partition.get()], |row| Ok(row.get::<_, Option<i64>>(0)?.map_or(0, |o| o + 1)))
        })
        .collect()
}

/// A record, or a dead letter, on its way to the writer.
struct Append {
    what: What,
    ends: Arc<Vec<watch::Sender<i64>>>,
    offset: i64,
    done: oneshot::Sender<Result<Offset, AppendError>>,
}

enum What {
    Record(NewRecord),
    DeadLetter(DeadLetter),
}

impl Job for Append {
    type State = Vec<i64>;

    fn load(connection: &Connection) -> rusqlite::Result<Vec<i64>> {
        let partitions = connection.query_row("SELECT partitions FROM log_identity", [], |row| row.get(0))?;
        load_ends(connection, PartitionCount::new(partitions).unwrap_or(PartitionCount::DEFAULT))
    }

    fn apply(&mut self, connection: &Connection, ends: &mut Vec<i64>) -> rusqlite::Result<()> {
        match &self.what {
            What::Record(record) => {
                let end = &mut ends[usize::from(record.partition.get())];
                self.offset = *end;
                connection
                    .prepare_cached(
                        "INSERT INTO log_records (partition, offset, timestamp, key, value, headers)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    )?
                    .execute(params![
                        record.partition.get(),
                        self.offset,
                        record.timestamp.millis(),
                        record.key,
                        record.value,
                        headers::encode(&record.headers, record.key.as_deref()),
                    ])?;
                *end += 1;
            }
            What::DeadLetter(letter) => {
                connection
                    .prepare_cached(
                        "INSERT INTO dead_letters (timestamp, key, value, headers) VALUES (?1, ?2, ?3, ?4)",
                    )?
                    .execute(params![
                        letter.timestamp.millis(),
                        letter.key,
                        letter.value,
                        headers::encode(&letter.headers, letter.key.as_deref()),
                    ])?;
                self.offset = connection.last_insert_rowid();
            }
        }
        Ok(())
    }

    fn finish(self, outcome: Result<(), Failure>) {
        let answer = match outcome {
            Ok(()) => {
                if let What::Record(record) = &self.what {
                    let end = self.offset + 1;
                    self.ends[usize::from(record.partition.get())].send_if_modified(|known| {
                        let moved = end > *known;
                        *known = end.max(*known);
                        moved
                    });
                }
                Offset::new(self.offset).map_err(|e| AppendError::Unknown(StoreError::unusable(STORE, e)))
            }
            Err(Failure::Rejected(error)) => Err(AppendError::Rejected(error)),
            Err(Failure::Unknown(error)) => Err(AppendError::Unknown(error)),
        };
        let _caller_has_gone = self.done.send(answer);
    }
}

impl SqliteLog {
    async fn submit(&self, what: What) -> Result<Offset, AppendError> {
        let writing = self.writing().map_err(AppendError::Rejected)?;
        let (done, answer) = oneshot::channel();
        let ended = || StoreError::unavailable(STORE, "its writer has ended");
        let append = Append { what, ends: Arc::clone(&writing.ends), offset: 0, done };
        if !writing.writer.submit(append).await {
            return Err(AppendError::Rejected(ended()));
        }
        answer.await.unwrap_or_else(|_| Err(AppendError::Unknown(ended())))
    }
}

#[async_trait]
impl EventLog for SqliteLog {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn partitions(&self) -> PartitionCount {
        self.partitions
    }

    async fn append(&self, record: NewRecord) -> Result<Offset, AppendError> {
        let of_headers = record.headers.0.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let size = record.key.as_ref().map_or(0, Vec::len) + record.value.as_ref().map_or(0, Vec::len) + of_headers;
        if size > RECORD_BYTES_MAX || record.partition.get() >= self.partitions.get() {
            let reason = "the record is larger than 1 MiB or names a partition that the log does not have";
            return Err(AppendError::Rejected(StoreError::unusable(STORE, reason)));
        }
        self.submit(What::Record(record)).await
    }

    async fn read(&self, partition: Partition, from: Offset, limit: ReadLimit) -> Result<Slice, StoreError> {
        let deadline = Instant::now() + limit.wait;
        loop {
            let waited_long_enough = Instant::now() >= deadline;
            if self.writing.is_some() && !waited_long_enough {
                self.wait_past(partition, from, deadline).await;
            }
            let slice = self.readers.read(move |snapshot| read_slice(snapshot, partition, from, limit)).await?;
            if from < slice.bounds.start {
                let reason =
                    format!("offset {from} of partition {partition} is below the log's start {}", slice.bounds.start);
                return Err(StoreError::unusable(STORE, reason));
            }
            if !slice.records.is_empty() || from > slice.bounds.end || Instant::now() >= deadline {
                return Ok(slice);
            }
            self.wait_past(partition, from, deadline).await;
        }
    }

    async fn mark(&self, partition: Partition, offset: Offset) -> Result<Option<Mark>, StoreError> {
        self.readers.read(move |snapshot| read_mark(snapshot, partition, offset)).await
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        self.readers.read(move |snapshot| read_bounds(snapshot, partition)).await
    }

    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError> {
        match self.submit(What::DeadLetter(letter)).await {
            Ok(_) => Ok(()),
            Err(AppendError::Rejected(error) | AppendError::Unknown(error)) => Err(error),
        }
    }

    async fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.readers
            .read(move |snapshot| {
                let mut statement = snapshot.prepare_cached(
                    "SELECT timestamp, key, value, headers FROM dead_letters ORDER BY offset LIMIT ?1 OFFSET ?2",
                )?;
                let rows = statement.query_map(params![limit as i64, from as i64], |row| {
                    let key: Option<Vec<u8>> = row.get(1)?;
                    let headers = stored_headers(row.get_ref(3)?.as_blob()?, key.as_deref())?;
                    let timestamp = Timestamp::saturating_from_millis(row.get(0)?);
                    Ok(DeadLetter { timestamp, key, value: row.get(2)?, headers })
                })?;
                rows.collect()
            })
            .await
    }

    fn fault(&self) -> Option<StoreError> {
        self.writing.as_ref().and_then(|writing| writing.writer.fault())
    }

    async fn flush(&self) -> Result<(), StoreError> {
        // Nothing is acknowledged before its commit: there is nothing to wait for.
        Ok(())
    }
}

fn read_bounds(snapshot: &Connection, partition: Partition) -> rusqlite::Result<Bounds> {
    let mut statement = snapshot.prepare_cached(
        "SELECT (SELECT min(offset) FROM log_records WHERE partition = ?1),
                (SELECT max(offset) FROM log_records WHERE partition = ?1)",
    )?;
    statement.query_row([partition.get()], |row| {
        let start = row.get::<_, Option<i64>>(0)?.unwrap_or(0);
        let end = row.get::<_, Option<i64>>(1)?.map_or(0, |last| last + 1);
        Ok(Bounds { start: stored_offset(start)?, end: stored_offset(end)? })
    })
}

fn read_mark(snapshot: &Connection, partition: Partition, offset: Offset) -> rusqlite::Result<Option<Mark>> {
    let mut statement =
        snapshot.prepare_cached("SELECT key, timestamp FROM log_records WHERE partition = ?1 AND offset = ?2")?;
    let mark = |row: &rusqlite::Row<'_>| {
        Ok(Mark { key: row.get(0)?, timestamp: Timestamp::saturating_from_millis(row.get(1)?) })
    };
    statement.query_row(params![partition.get(), offset.get()], mark).optional()
}

fn read_slice(snapshot: &Connection, partition: Partition, from: Offset, limit: ReadLimit) -> rusqlite::Result<Slice> {
    let bounds = read_bounds(snapshot, partition)?;
    let before = match from.previous() {
        Some(previous) => read_mark(snapshot, partition, previous)?.map_or(Before::Absent, Before::Found),
        None => Before::Absent,
    };
    let mut statement = snapshot.prepare_cached(
        "SELECT offset, timestamp, key, value, headers FROM log_records
         WHERE partition = ?1 AND offset >= ?2 ORDER BY offset LIMIT ?3",
    )?;
    let mut rows = statement.query(params![partition.get(), from.get(), limit.records as i64])?;
    let (mut records, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let key: Option<Vec<u8>> = row.get(2)?;
        let value: Option<Vec<u8>> = row.get(3)?;
        bytes += value.as_ref().map_or(0, Vec::len);
        records.push(LogRecord {
            offset: stored_offset(row.get(0)?)?,
            timestamp: Timestamp::saturating_from_millis(row.get(1)?),
            headers: stored_headers(row.get_ref(4)?.as_blob()?, key.as_deref())?,
            key,
            value,
        });
        if bytes >= limit.bytes {
            break;
        }
    }
    Ok(Slice { records, bounds, before })
}

fn damaged(column: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, what.into())
}

fn stored_offset(offset: i64) -> rusqlite::Result<Offset> {
    Offset::new(offset).map_err(|_| damaged(0, "a stored offset is negative"))
}

fn stored_headers(stored: &[u8], key: Option<&[u8]>) -> rusqlite::Result<likewise_schema::Headers> {
    headers::decode(stored, key).ok_or_else(|| damaged(4, "stored headers cannot be read"))
}
