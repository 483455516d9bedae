//! The embedded log: one SQLite file, durable before each acknowledgement, many appends per transaction.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
    vec::Drain,
};

use async_trait::async_trait;
use likewise_schema::{Offset, Partition, PartitionCount, Timestamp, sql};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::{sync::oneshot, time::Instant};

use super::{
    AppendError, Before, Bounds, DeadLetter, EventLog, LogRecord, Mark, NewRecord, RECORD_BYTES_MAX, ReadLimit, Slice,
    batch, headers, tail::Tails,
};
use crate::{
    StoreError,
    courier::{Courier, Post},
    sqlite::{Commits, Failure, File, Readers, Writer},
};

const STORE: &str = "the log";
/// "Lwl2" in the file header, so that a foreign database is not taken for a log.
pub(crate) const APPLICATION_ID: i32 = 0x4c77_6c32;
const READERS: usize = 4;
/// A batch that reaches this many bytes is a row of its own.
const BATCH_BYTES: usize = 1024 * 1024;
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
    tails: Arc<Tails>,
}

impl SqliteLog {
    /// Opens the log for appending, making it with `partitions`, 16 if they are left out, if there is none. One that is
    /// there must have as many, if they are given. The caller owns the directory.
    pub fn open(path: &Path, partitions: impl Into<Option<PartitionCount>>) -> Result<Self, StoreError> {
        let wanted = partitions.into();
        let file = file(path);
        let connection = file.open_writable(APPLICATION_ID, sql::SQLITE_LOG)?;
        connection
            .execute(
                "INSERT OR IGNORE INTO log_identity VALUES (1, ?1, ?2)",
                params![uuid::Uuid::new_v4().to_string(), wanted.unwrap_or_default().get()],
            )
            .map_err(|e| file.error(&e))?;
        let (identity, partitions) = identity(&file, &connection)?;
        if let Some(wanted) = wanted.filter(|wanted| *wanted != partitions) {
            let reason = format!(
                "{} has {} partitions, not {}; the number is fixed when a log is made: set --partitions {}",
                path.display(),
                partitions.get(),
                wanted.get(),
                partitions.get()
            );
            return Err(StoreError::unusable(STORE, reason));
        }
        let readers = Readers::open(&file, APPLICATION_ID, READERS)?;
        let tails = Arc::new(Tails::new(partitions));
        let appends = Appends { last: 0, ends: Vec::new(), tails: Arc::clone(&tails), partitions };
        let writer = Writer::start(file, connection, appends)?;
        Ok(Self { identity, partitions, readers, writing: Some(Writing { writer, tails }) })
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

    /// Reads from memory where it reaches back far enough, else from the file.
    async fn read_now(&self, partition: Partition, from: Offset, limit: ReadLimit) -> Result<Slice, StoreError> {
        match self.writing.as_ref().and_then(|writing| writing.tails.read(partition, from, limit)) {
            Some(slice) => Ok(slice),
            None => self.readers.read(move |snapshot| read_slice(snapshot, partition, from, limit)).await,
        }
    }

    /// Waits until the partition's end is past `from`, at most until `deadline`.
    async fn wait_past(&self, partition: Partition, from: Offset, deadline: Instant) {
        match &self.writing {
            Some(writing) => writing.tails.wait_past(partition, from, deadline).await,
            None => tokio::time::sleep_until(deadline.min(Instant::now() + FOLLOW_EVERY)).await,
        }
    }
}

pub(crate) fn file(path: &Path) -> File {
    File { path: PathBuf::from(path), store: STORE, cache_kib: 8192, page_bytes: 8192, synchronous: "FULL", wal: None }
}

fn identity(file: &File, connection: &Connection) -> Result<(String, PartitionCount), StoreError> {
    let row = connection
        .query_row("SELECT identity, partitions FROM log_identity", [], |row| Ok((row.get(0)?, row.get::<_, u32>(1)?)))
        .map_err(|e| file.error(&e))?;
    let partitions = PartitionCount::new(row.1).map_err(|e| StoreError::unusable(STORE, e))?;
    Ok((row.0, partitions))
}

/// A record, or a dead letter, on its way to the writer.
struct Append {
    what: What,
    done: oneshot::Sender<Outcome>,
    courier: Courier<Outcome>,
}

type Outcome = Result<Offset, AppendError>;

thread_local! {
    static COURIER: RefCell<Option<Courier<Outcome>>> = const { RefCell::new(None) };
}

enum What {
    Record {
        partition: Partition,
        /// As it is stored but for its place; made before it waits for the writer.
        encoded: Vec<u8>,
        offset: i64,
    },
    DeadLetter {
        letter: DeadLetter,
        offset: i64,
    },
}

/// Commits what was appended meanwhile as one batch.
struct Appends {
    /// The number of the last batch.
    last: i64,
    ends: Vec<i64>,
    tails: Arc<Tails>,
    partitions: PartitionCount,
}

impl Appends {
    fn write_batch(&mut self, connection: &Connection, records: &mut Vec<u8>) -> rusqlite::Result<()> {
        self.last += 1;
        connection
            .prepare_cached("INSERT INTO log_batches (number, ends, records) VALUES (?1, ?2, ?3)")?
            .execute(params![self.last, batch::encode_ends(&self.ends), &*records])?;
        records.clear();
        Ok(())
    }
}

impl Commits for Appends {
    type Job = Append;

    fn load(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        (self.last, self.ends) = match last_batch(connection)? {
            Some((last, ends)) if ends.len() == usize::from(self.partitions.get()) => (last, ends),
            Some(_) => return Err(damaged(1, "the ends of a batch are not those of all partitions")),
            None => (0, vec![0; usize::from(self.partitions.get())]),
        };
        self.tails.set_ends(&self.ends);
        Ok(())
    }

    fn apply(&mut self, connection: &Connection, jobs: &mut [Append]) -> rusqlite::Result<()> {
        let mut records = Vec::new();
        for job in jobs {
            match &mut job.what {
                What::Record { partition, encoded, offset } => {
                    let end = &mut self.ends[usize::from(partition.get())];
                    *offset = *end;
                    *end += 1;
                    batch::put_record(&mut records, *partition, *offset, encoded);
                    if records.len() >= BATCH_BYTES {
                        self.write_batch(connection, &mut records)?;
                    }
                }
                What::DeadLetter { letter, offset } => {
                    let mut headers = Vec::new();
                    headers::encode(&mut headers, &letter.headers, letter.key.as_deref());
                    connection
                        .prepare_cached(
                            "INSERT INTO dead_letters (timestamp, key, value, headers) VALUES (?1, ?2, ?3, ?4)",
                        )?
                        .execute(params![letter.timestamp.millis(), letter.key, letter.value, headers])?;
                    *offset = connection.last_insert_rowid();
                }
            }
        }
        if !records.is_empty() {
            self.write_batch(connection, &mut records)?;
        }
        Ok(())
    }

    fn finish(&mut self, jobs: Drain<'_, Append>, outcome: &Result<(), Failure>) {
        let known = |offset| Offset::new(offset).map_err(|e| AppendError::Unknown(StoreError::unusable(STORE, e)));
        let mut post = Post::default();
        for Append { what, done, courier } in jobs {
            let answer = match (outcome, what) {
                (Ok(()), What::Record { partition, encoded, offset }) => {
                    self.tails.push(partition, encoded);
                    known(offset)
                }
                (Ok(()), What::DeadLetter { offset, .. }) => known(offset),
                (Err(Failure::Rejected(error)), _) => Err(AppendError::Rejected(error.clone())),
                (Err(Failure::Unknown(error)), _) => Err(AppendError::Unknown(error.clone())),
            };
            post.add(&courier, done, answer);
        }
        post.send();
        if outcome.is_ok() {
            self.tails.set_ends(&self.ends);
        }
    }
}

impl SqliteLog {
    async fn submit(&self, what: What) -> Result<Offset, AppendError> {
        let writing = self.writing().map_err(AppendError::Rejected)?;
        let (done, answer) = oneshot::channel();
        let ended = || StoreError::unavailable(STORE, "its writer has ended");
        let courier = COURIER.with(Courier::of_thread);
        if !writing.writer.submit(Append { what, done, courier }).await {
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
        let (partition, encoded) = (record.partition, batch::encode_rest(&record));
        drop(record);
        self.submit(What::Record { partition, encoded, offset: 0 }).await
    }

    async fn read(&self, partition: Partition, from: Offset, limit: ReadLimit) -> Result<Slice, StoreError> {
        let deadline = Instant::now() + limit.wait;
        loop {
            let slice = self.read_now(partition, from, limit).await?;
            if !slice.records.is_empty() || from > slice.bounds.end || Instant::now() >= deadline {
                return Ok(slice);
            }
            self.wait_past(partition, from, deadline).await;
        }
    }

    async fn mark(&self, partition: Partition, offset: Offset) -> Result<Option<Mark>, StoreError> {
        let limit = ReadLimit { records: 1, bytes: 1, wait: Duration::ZERO };
        let slice = self.readers.read(move |snapshot| read_slice(snapshot, partition, offset, limit)).await?;
        Ok(slice.records.first().map(LogRecord::mark))
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        self.readers
            .read(move |snapshot| {
                let end = last_batch(snapshot)?.map_or(Ok(0), |(_, ends)| end_of(&ends, partition))?;
                Ok(Bounds { start: Offset::ZERO, end: stored_offset(end)? })
            })
            .await
    }

    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError> {
        match self.submit(What::DeadLetter { letter, offset: 0 }).await {
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

/// The last batch's number and the ends after it. None if there is none.
fn last_batch(snapshot: &Connection) -> rusqlite::Result<Option<(i64, Vec<i64>)>> {
    snapshot
        .prepare_cached("SELECT number, ends FROM log_batches ORDER BY number DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, stored_ends(row.get_ref(1)?.as_blob()?)?)))
        .optional()
}

/// The first batch after which the partition's end is past `offset`, between 1 and `last`, whose end is.
fn batch_of(snapshot: &Connection, partition: Partition, offset: Offset, last: i64) -> rusqlite::Result<i64> {
    let mut ends = snapshot.prepare_cached("SELECT ends FROM log_batches WHERE number = ?1")?;
    let (mut low, mut high) = (1, last);
    while low < high {
        let middle = low + (high - low) / 2;
        let after = ends.query_row([middle], |row| end_of(&stored_ends(row.get_ref(0)?.as_blob()?)?, partition))?;
        if after > offset.get() {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}

fn read_slice(snapshot: &Connection, partition: Partition, from: Offset, limit: ReadLimit) -> rusqlite::Result<Slice> {
    let (last, end) = match last_batch(snapshot)? {
        Some((last, ends)) => (last, end_of(&ends, partition)?),
        None => (0, 0),
    };
    let bounds = Bounds { start: Offset::ZERO, end: stored_offset(end)? };
    let mut slice = Slice { records: Vec::new(), bounds, before: Before::Absent, age: Duration::ZERO };
    // The record before is read too, for its mark.
    let first = from.previous().unwrap_or(from);
    if first >= bounds.end {
        return Ok(slice);
    }
    let mut batches = snapshot.prepare_cached("SELECT records FROM log_batches WHERE number >= ?1 ORDER BY number")?;
    let mut rows = batches.query([batch_of(snapshot, partition, first, last)?])?;
    let (mut next, mut bytes) = (first.get(), 0);
    while next < end
        && let Some(row) = rows.next()?
    {
        let mut input = row.get_ref(0)?.as_blob()?;
        while !input.is_empty() {
            let cannot_be_read = || damaged(0, "a stored batch cannot be read");
            let stored = batch::take_record(&mut input).ok_or_else(cannot_be_read)?;
            if stored.partition != u64::from(partition.get()) || stored.offset < next {
                continue;
            }
            if stored.offset > next {
                return Err(damaged(0, "a stored batch lacks a record"));
            }
            let record = stored.decode().ok_or_else(cannot_be_read)?;
            next += 1;
            if record.offset < from {
                slice.before = Before::Found(record.mark());
                continue;
            }
            bytes += record.value.as_ref().map_or(0, Vec::len);
            slice.records.push(record);
            if bytes >= limit.bytes || slice.records.len() >= limit.records {
                return Ok(slice);
            }
        }
    }
    Ok(slice)
}

fn damaged(column: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, what.into())
}

fn stored_offset(offset: i64) -> rusqlite::Result<Offset> {
    Offset::new(offset).map_err(|_| damaged(0, "a stored offset is negative"))
}

fn stored_ends(stored: &[u8]) -> rusqlite::Result<Vec<i64>> {
    batch::decode_ends(stored).ok_or_else(|| damaged(0, "the stored ends cannot be read"))
}

fn end_of(ends: &[i64], partition: Partition) -> rusqlite::Result<i64> {
    let end = ends.get(usize::from(partition.get()));
    end.copied().ok_or_else(|| damaged(0, "the stored ends lack a partition"))
}

fn stored_headers(stored: &[u8], key: Option<&[u8]>) -> rusqlite::Result<likewise_schema::Headers> {
    headers::decode(stored, key).ok_or_else(|| damaged(3, "stored headers cannot be read"))
}
