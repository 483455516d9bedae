//! The embedded records: one SQLite file. Commits of several partitions share a transaction.
//!
//! The file is derived from the log, so a commit need only survive a crash of the process (`synchronous=NORMAL`):
//! after a power cut rows and checkpoints are back at one earlier moment, together, and the log is read from there.

mod successor;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    vec::Drain,
};

use async_trait::async_trait;
use likewise_schema::{
    Content, ContentType, Offset, Pair, Partition, PartitionCount, Position, RequestId, Timestamp, UserId, sql,
};
use rusqlite::{Connection, OptionalExtension, Row, params, types::FromSql};
use tokio::sync::{mpsc, oneshot};

use super::{
    BUCKET_SLOTS_KEPT, Batch, Beside, BucketDelta, Checkpoint, CommitError, Committed, Count, Fence, First, Gain,
    Generation, KeptCount, LikeRecord, Liked, Liker, Owner, RecordStore, Repair, Scan, Shards, Snapshot, Writes,
    digest,
};
use crate::{
    StoreError,
    log::Mark,
    sqlite::{Commits, Failure, File, Readers, Writer},
    wal::WalLimits,
};

const STORE: &str = "the record store";
/// "Lwr2" in the file header.
pub(crate) const APPLICATION_ID: i32 = 0x4c77_7232;
const READERS: usize = 4;
/// A content with at most so many rows, cancelled ones too, has its likers sorted when they are asked for. That saves
/// most contents a place in an index, and each of their likes the writing of a page.
const SORTED_ROWS_MAX: i64 = 256;
/// Rows that a scan sends at once.
const SCAN_ROWS: usize = 1000;

pub use self::successor::SqliteSuccessor;

/// Records in a SQLite file.
#[derive(Debug)]
pub struct SqliteRecords {
    readers: Readers,
    writer: Option<Writer<Write>>,
}

impl SqliteRecords {
    /// Opens the records of `shards` for writing, making them if there are none. The caller owns the directory.
    pub fn open(path: &Path, shards: &Shards) -> Result<Self, StoreError> {
        Self::open_file(file(path), shards)
    }

    fn open_file(file: File, shards: &Shards) -> Result<Self, StoreError> {
        let connection = file.open_writable(APPLICATION_ID, sql::SQLITE_RECORDS)?;
        let (first, last) = shards.bounds();
        connection
            .execute("INSERT OR IGNORE INTO record_shards VALUES (1, ?1, ?2)", [first, last])
            .map_err(|e| file.error(&e))?;
        check_shards(&file, &connection, shards)?;
        let readers = Readers::open(&file, APPLICATION_ID, READERS)?;
        Ok(Self { readers, writer: Some(Writer::start(file, connection, Housekeeping { newest_slot: 0 })?) })
    }

    /// Opens the records for reading only, beside the service that may be writing them.
    pub fn open_readable(path: &Path, shards: &Shards) -> Result<Self, StoreError> {
        let file = file(path);
        check_shards(&file, &file.open_readable(APPLICATION_ID)?, shards)?;
        Ok(Self { readers: Readers::open(&file, APPLICATION_ID, 1)?, writer: None })
    }

    async fn write<T>(&self, write: impl FnOnce(Done<T>) -> Write) -> Result<T, CommitError> {
        let (done, answer) = oneshot::channel();
        let ended = || CommitError::Unknown(StoreError::unavailable(STORE, "its writer has ended"));
        let writer =
            self.writer.as_ref().ok_or_else(|| StoreError::unusable(STORE, "it was opened for reading only"))?;
        if !writer.submit(write(done)).await {
            return Err(ended());
        }
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

pub(crate) fn file(path: &Path) -> File {
    let wal = Some(WalLimits { pass: 24_000, long: 65_536 });
    File { path: path.to_owned(), store: STORE, cache_kib: 131_072, page_bytes: 4096, synchronous: "NORMAL", wal }
}

/// A file holds the shards it was made for, and no others.
fn check_shards(file: &File, connection: &Connection, shards: &Shards) -> Result<(), StoreError> {
    let made_for = connection
        .query_row("SELECT first, last FROM record_shards", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(|e| file.error(&e))?;
    if made_for == shards.bounds() {
        return Ok(());
    }
    let ((first, last), path) = (made_for, file.path.display());
    Err(StoreError::unusable(STORE, format!("{path} holds shards {first}-{last}, not {shards}: say so in its URL")))
}

type Done<T> = oneshot::Sender<Result<T, CommitError>>;

enum Write {
    Commit {
        batch: Batch,
        result: Option<Committed>,
        done: Done<Committed>,
    },
    Acquire {
        partition: Partition,
        owner: Owner,
        result: Option<Result<Checkpoint, StoreError>>,
        done: Done<Checkpoint>,
    },
    Repair {
        fence: Fence,
        generation: Generation,
        repair: Repair,
        result: Option<Checkpoint>,
        done: Done<Checkpoint>,
    },
    Renew {
        fence: Fence,
        generation: Generation,
        result: Option<Checkpoint>,
        done: Done<Checkpoint>,
    },
}

/// What the writer remembers between transactions.
struct Housekeeping {
    /// The newest bucket slot seen; older ones are dropped relative to it.
    newest_slot: i64,
}

impl Commits for Housekeeping {
    type Job = Write;

    fn load(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let newest =
            connection.query_row("SELECT max(slot) FROM like_buckets", [], |row| row.get::<_, Option<i64>>(0))?;
        self.newest_slot = newest.unwrap_or(0);
        Ok(())
    }

    fn apply(&mut self, connection: &Connection, jobs: &mut [Write]) -> rusqlite::Result<()> {
        jobs.iter_mut().try_for_each(|job| match job {
            Write::Commit { batch, result, .. } => {
                *result = commit(connection, batch, self)?;
                Ok(())
            }
            Write::Acquire { partition, owner, result, .. } => {
                *result = Some(acquire(connection, *partition, owner)?);
                Ok(())
            }
            Write::Repair { fence, generation, repair, result, .. } => {
                *result = self::repair(connection, fence, *generation, repair)?;
                Ok(())
            }
            Write::Renew { fence, generation, result, .. } => {
                *result = renew(connection, fence, *generation)?;
                Ok(())
            }
        })
    }

    fn finish(&mut self, jobs: Drain<'_, Write>, outcome: &Result<(), Failure>) {
        fn tell<T>(done: Done<T>, outcome: &Result<(), Failure>, result: Result<T, CommitError>) {
            let answer = match outcome.clone() {
                Ok(()) => result,
                Err(Failure::Rejected(error) | Failure::Unknown(error)) => Err(CommitError::Unknown(error)),
            };
            let _caller_has_gone = done.send(answer);
        }
        for job in jobs {
            match job {
                Write::Commit { result, done, .. } => tell(done, outcome, result.ok_or(CommitError::Fenced)),
                Write::Repair { result, done, .. } => tell(done, outcome, result.ok_or(CommitError::Fenced)),
                Write::Renew { result, done, .. } => tell(done, outcome, result.ok_or(CommitError::Fenced)),
                Write::Acquire { result, done, .. } => {
                    let missing = || StoreError::unavailable(STORE, "nothing was acquired");
                    tell(done, outcome, result.unwrap_or_else(|| Err(missing())).map_err(CommitError::Unknown));
                }
            }
        }
    }
}

/// None if the fence does not hold.
fn renew(connection: &Connection, fence: &Fence, generation: Generation) -> rusqlite::Result<Option<Checkpoint>> {
    let changed = connection
        .prepare_cached(
            "UPDATE projection_checkpoints SET generation = ?1, epoch = epoch + 1
             WHERE partition = ?2 AND epoch = ?3 AND next_offset = ?4",
        )?
        .execute(params![generation.0, fence.partition.get(), fence.epoch, fence.next_offset.get()])?;
    if changed == 1 { checkpoint(connection, fence.partition) } else { Ok(None) }
}

/// None if the fence does not hold.
fn repair(
    connection: &Connection,
    fence: &Fence,
    generation: Generation,
    repair: &Repair,
) -> rusqlite::Result<Option<Checkpoint>> {
    let Some(renewed) = renew(connection, fence, generation)? else { return Ok(None) };
    let mut contents: HashSet<Content> = repair.counts.iter().map(|(content, _)| *content).collect();
    let mut delete = connection
        .prepare_cached("DELETE FROM like_records WHERE content_type = ?1 AND content_id = ?2 AND user_id = ?3")?;
    let mut insert = connection.prepare_cached(INSERT_ROW)?;
    for (pair, row) in &repair.rows {
        let Content { content_type, content_id } = pair.content;
        delete.execute(params![content_type.as_str(), content_id.get(), pair.user.get()])?;
        if let Some(row) = row {
            write_row(&mut insert, row, Some(false))?;
        }
        contents.insert(pair.content);
    }
    let mut first = connection
        .prepare_cached("UPDATE like_counts SET first_position = ?1 WHERE content_type = ?2 AND content_id = ?3")?;
    let mut recount = connection.prepare_cached(
        "INSERT INTO like_counts (content_type, content_id, partition, count, rows, version, first_position)
         SELECT ?1, ?2, ?3, total(is_canceled = 0), count(*), max(version), min(version) FROM like_records
         WHERE content_type = ?1 AND content_id = ?2 HAVING count(*) > 0
         ON CONFLICT (content_id, content_type) DO UPDATE
         SET partition = excluded.partition, count = excluded.count, rows = excluded.rows, version = excluded.version",
    )?;
    let mut forget = connection.prepare_cached(
        "DELETE FROM like_counts WHERE content_type = ?1 AND content_id = ?2
         AND NOT EXISTS (SELECT 1 FROM like_records AS r WHERE r.content_type = ?1 AND r.content_id = ?2)",
    )?;
    let mut list = connection.prepare_cached(
        "UPDATE like_records SET listed = 1 - listed WHERE content_type = ?1 AND content_id = ?2
         AND listed <> (SELECT rows > ?3 FROM like_counts WHERE content_type = ?1 AND content_id = ?2)",
    )?;
    for content in contents {
        let (kind, id) = (content.content_type, content.content_id.get());
        recount.execute(params![kind.as_str(), id, fence.partition.get()])?;
        forget.execute(params![kind.as_str(), id])?;
        list.execute(params![kind.as_str(), id, SORTED_ROWS_MAX])?;
    }
    for (content, offset) in &repair.counts {
        if let Some(offset) = offset {
            first.execute(params![offset.get(), content.content_type.as_str(), content.content_id.get()])?;
        }
    }
    add_buckets(connection, &repair.buckets)?;
    connection.execute("DELETE FROM like_buckets WHERE gained = 0 AND lost = 0", [])?;
    Ok(Some(renewed))
}

const INSERT_ROW: &str =
    "INSERT INTO like_records (is_canceled, created_at, updated_at, liked_at, version, request_ring, request_floor,
                               content_type, content_id, user_id, listed)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

/// Binds a row; for a statement that makes one also whether it is listed.
fn write_row(
    statement: &mut rusqlite::CachedStatement<'_>,
    row: &LikeRecord,
    is_listed: Option<bool>,
) -> rusqlite::Result<()> {
    let Content { content_type, content_id } = row.pair.content;
    let values = params![
        row.is_canceled,
        row.created_at.millis(),
        row.updated_at.millis(),
        row.liked_at.map(Timestamp::millis),
        row.version.get(),
        digest::ring_bytes(&row.ring),
        row.floor.as_ref().map(|id| id.as_bytes().as_slice()),
        content_type.as_str(),
        content_id.get(),
        row.pair.user.get(),
        is_listed,
    ];
    statement.execute(if is_listed.is_some() { values } else { &values[..values.len() - 1] }).map(drop)
}

fn add_buckets(connection: &Connection, deltas: &[BucketDelta]) -> rusqlite::Result<()> {
    let mut bucket = connection.prepare_cached(
        "INSERT INTO like_buckets (slot, content_type, content_id, gained, lost) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (slot, content_id, content_type)
         DO UPDATE SET gained = gained + excluded.gained, lost = lost + excluded.lost",
    )?;
    for BucketDelta { content, slot, gained, lost } in deltas {
        bucket.execute(params![slot, content.content_type.as_str(), content.content_id.get(), gained, lost])?;
    }
    Ok(())
}

/// None if the fence does not hold.
fn commit(connection: &Connection, batch: &Batch, state: &mut Housekeeping) -> rusqlite::Result<Option<Committed>> {
    let (fence, advance) = (&batch.fence, &batch.advance);
    let moved = connection
        .prepare_cached(
            "UPDATE projection_checkpoints
             SET next_offset = ?1, mark_key = ?2, mark_timestamp = ?3, log_end = ?4, next_event_at = ?5, heard_at = ?6
             WHERE partition = ?7 AND epoch = ?8 AND next_offset = ?9",
        )?
        .execute(params![
            advance.next_offset.get(),
            advance.mark.as_ref().and_then(|mark| mark.key.as_deref()),
            advance.mark.as_ref().map(|mark| mark.timestamp.millis()),
            advance.log_end.get(),
            advance.next_event_at.map(Timestamp::millis),
            advance.heard_at.millis(),
            fence.partition.get(),
            fence.epoch,
            fence.next_offset.get(),
        ])?;
    if moved == 0 {
        return Ok(None);
    }
    let mut prior = Vec::with_capacity(batch.read.len());
    for pair in &batch.read {
        prior.push(row(connection, pair)?);
    }
    let is_new = batch.new_pairs(&prior);
    let writes = (batch.fold)(prior);
    let counts = write(connection, fence.partition, &writes, &is_new, &batch.counts, state)?;
    Ok(Some(Committed { rows: writes.rows, counts }))
}

fn write(
    connection: &Connection,
    partition: Partition,
    writes: &Writes,
    is_new: &HashSet<Pair>,
    known: &HashMap<Content, i64>,
    state: &mut Housekeeping,
) -> rusqlite::Result<Vec<Count>> {
    let mut new_rows: HashMap<Content, i64> = HashMap::new();
    for pair in is_new {
        *new_rows.entry(pair.content).or_default() += 1;
    }
    let mut count = connection.prepare_cached(
        "INSERT INTO like_counts (content_type, content_id, partition, count, rows, version, first_position)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (content_id, content_type)
         DO UPDATE SET count = count + excluded.count, rows = rows + excluded.rows, version = excluded.version
         RETURNING count, rows",
    )?;
    let mut counts = Vec::with_capacity(writes.counts.len());
    let mut listed = HashSet::new();
    for delta in &writes.counts {
        let content = delta.content;
        let more_rows = new_rows.get(&content).copied().unwrap_or(0);
        let parameters = params![
            content.content_type.as_str(),
            content.content_id.get(),
            partition.get(),
            delta.delta,
            more_rows,
            delta.version.get(),
            delta.first_position.get(),
        ];
        let (count, rows) = count.query_row(parameters, |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
        // What the owner knows goes first, as in a store that saves itself the reading.
        let count = known.get(&content).map_or(count, |known| known + delta.delta);
        counts.push(Count { content, count, version: delta.version });
        if rows > SORTED_ROWS_MAX {
            listed.insert(content);
            if rows - more_rows <= SORTED_ROWS_MAX {
                connection
                    .prepare_cached("UPDATE like_records SET listed = 1 WHERE content_type = ?1 AND content_id = ?2")?
                    .execute(params![content.content_type.as_str(), content.content_id.get()])?;
            }
        }
    }
    let mut insert = connection.prepare_cached(INSERT_ROW)?;
    let mut update = connection.prepare_cached(
        "UPDATE like_records SET is_canceled = ?1, created_at = ?2, updated_at = ?3, liked_at = ?4, version = ?5,
                                 request_ring = ?6, request_floor = ?7
         WHERE content_type = ?8 AND content_id = ?9 AND user_id = ?10",
    )?;
    for row in &writes.rows {
        match is_new.contains(&row.pair) {
            true => write_row(&mut insert, row, Some(listed.contains(&row.pair.content)))?,
            false => write_row(&mut update, row, None)?,
        }
    }
    add_buckets(connection, &writes.buckets)?;
    if let Some(newest) = writes.buckets.iter().map(|delta| delta.slot).max().filter(|slot| *slot > state.newest_slot) {
        state.newest_slot = newest;
        connection.execute("DELETE FROM like_buckets WHERE slot <= ?1", [newest - BUCKET_SLOTS_KEPT])?;
    }
    Ok(counts)
}

fn acquire(
    connection: &Connection,
    partition: Partition,
    owner: &Owner,
) -> rusqlite::Result<Result<Checkpoint, StoreError>> {
    let stored = checkpoint(connection, partition)?;
    if let Some(stored) = &stored
        && let Err(refusal) = super::check_owner(STORE, stored, owner)
    {
        return Ok(Err(refusal));
    }
    connection
        .prepare_cached(
            "INSERT INTO projection_checkpoints
                 (partition, epoch, next_offset, log_identity, generation, partitions, fold_version, log_end, heard_at)
             VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6, 0, 0)
             ON CONFLICT (partition) DO UPDATE SET epoch = max(epoch + 1, excluded.epoch)",
        )?
        .execute(params![
            partition.get(),
            owner.micros,
            owner.log_identity,
            rand::random::<u32>(),
            owner.partitions.get(),
            owner.fold_version,
        ])?;
    let missing = || StoreError::unavailable(STORE, "the checkpoint vanished");
    Ok(checkpoint(connection, partition)?.ok_or_else(missing))
}

const CHECKPOINT_COLUMNS: &str = "partition, epoch, next_offset, mark_key, mark_timestamp, log_identity, generation, \
                                  partitions, fold_version, log_end, next_event_at, heard_at";

fn checkpoint(connection: &Connection, partition: Partition) -> rusqlite::Result<Option<Checkpoint>> {
    let sql = format!("SELECT {CHECKPOINT_COLUMNS} FROM projection_checkpoints WHERE partition = ?1");
    connection.prepare_cached(&sql)?.query_row([partition.get()], read_checkpoint).optional()
}

fn all_checkpoints(connection: &Connection) -> rusqlite::Result<Vec<Checkpoint>> {
    let sql = format!("SELECT {CHECKPOINT_COLUMNS} FROM projection_checkpoints ORDER BY partition");
    connection.prepare_cached(&sql)?.query_map([], read_checkpoint)?.collect()
}

fn read_checkpoint(row: &Row<'_>) -> rusqlite::Result<Checkpoint> {
    let partitions = valid(row, 7, |count: u32| PartitionCount::new(count).ok())?;
    let mark = match row.get::<_, Option<i64>>(4)? {
        Some(millis) => Some(Mark { key: row.get(3)?, timestamp: Timestamp::saturating_from_millis(millis) }),
        None => None,
    };
    Ok(Checkpoint {
        partition: valid(row, 0, |number: u32| Partition::new(number, partitions).ok())?,
        epoch: row.get(1)?,
        next_offset: valid(row, 2, |offset| Offset::new(offset).ok())?,
        mark,
        log_identity: row.get(5)?,
        generation: Generation(row.get(6)?),
        partitions,
        fold_version: row.get(8)?,
        log_end: valid(row, 9, |offset| Offset::new(offset).ok())?,
        next_event_at: row.get::<_, Option<i64>>(10)?.map(Timestamp::saturating_from_millis),
        heard_at: Timestamp::saturating_from_millis(row.get(11)?),
    })
}

/// A column whose stored value must be valid; if it is not, the file is damaged.
fn valid<S: FromSql, T>(row: &Row<'_>, column: usize, parse: impl FnOnce(S) -> Option<T>) -> rusqlite::Result<T> {
    parse(row.get(column)?).ok_or_else(|| {
        let what = "a stored value is out of its range";
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, what.into())
    })
}

const ROW_COLUMNS: &str = "content_type, content_id, user_id, is_canceled, created_at, updated_at, liked_at, version, \
                           request_ring, request_floor";

fn row(connection: &Connection, pair: &Pair) -> rusqlite::Result<Option<LikeRecord>> {
    let sql =
        format!("SELECT {ROW_COLUMNS} FROM like_records WHERE content_type = ?1 AND content_id = ?2 AND user_id = ?3");
    let Content { content_type, content_id } = pair.content;
    connection
        .prepare_cached(&sql)?
        .query_row(params![content_type.as_str(), content_id.get(), pair.user.get()], read_row)
        .optional()
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<LikeRecord> {
    let time = |column| row.get(column).map(Timestamp::saturating_from_millis);
    Ok(LikeRecord {
        pair: Pair { content: read_content(row, 0)?, user: valid(row, 2, |id| UserId::new(id).ok())? },
        is_canceled: row.get(3)?,
        created_at: time(4)?,
        updated_at: time(5)?,
        liked_at: row.get::<_, Option<i64>>(6)?.map(Timestamp::saturating_from_millis),
        version: valid(row, 7, |offset| Offset::new(offset).ok())?,
        ring: valid(row, 8, |ring: Vec<u8>| digest::ring_from_bytes(&ring))?,
        floor: row.get::<_, Option<[u8; 16]>>(9)?.map(RequestId::from_bytes),
    })
}

/// A content from the columns `first` (type) and `first + 1` (id).
fn read_content(row: &Row<'_>, first: usize) -> rusqlite::Result<Content> {
    Ok(Content {
        content_type: valid(row, first, |kind: String| kind.parse::<ContentType>().ok())?,
        content_id: valid(row, first + 1, |id| likewise_schema::ContentId::new(id).ok())?,
    })
}

#[async_trait]
impl RecordStore for SqliteRecords {
    async fn acquire(&self, partition: Partition, owner: &Owner) -> Result<Checkpoint, StoreError> {
        let owner = owner.clone();
        match self.write(|done| Write::Acquire { partition, owner, result: None, done }).await {
            Ok(checkpoint) => Ok(checkpoint),
            Err(CommitError::Unknown(error)) => Err(error),
            Err(CommitError::Fenced) => Err(StoreError::unavailable(STORE, "acquiring was refused")),
        }
    }

    async fn commit(&self, batch: Batch) -> Result<Committed, CommitError> {
        self.write(|done| Write::Commit { batch, result: None, done }).await
    }

    async fn repair(&self, fence: Fence, generation: Generation, repair: Repair) -> Result<Checkpoint, CommitError> {
        self.write(|done| Write::Repair { fence, generation, repair, result: None, done }).await
    }

    async fn renew_generation(&self, fence: Fence, generation: Generation) -> Result<Checkpoint, CommitError> {
        self.write(|done| Write::Renew { fence, generation, result: None, done }).await
    }

    fn fault(&self) -> Option<StoreError> {
        self.writer.as_ref().and_then(Writer::fault)
    }

    async fn checkpoint(&self, partition: Partition) -> Result<Option<Checkpoint>, StoreError> {
        self.readers.read(move |snapshot| checkpoint(snapshot, partition)).await
    }

    async fn counts(&self, contents: &[Content]) -> Result<Snapshot<Vec<Option<Count>>>, StoreError> {
        let contents = contents.to_vec();
        self.readers
            .read(move |snapshot| {
                let mut statement = snapshot.prepare_cached(
                    "SELECT count, version FROM like_counts WHERE content_type = ?1 AND content_id = ?2",
                )?;
                let mut value = Vec::with_capacity(contents.len());
                for content in contents {
                    let parameters = params![content.content_type.as_str(), content.content_id.get()];
                    let count = |row: &Row<'_>| {
                        let version = valid(row, 1, |offset| Offset::new(offset).ok())?;
                        Ok(Count { content, count: row.get(0)?, version })
                    };
                    value.push(statement.query_row(parameters, count).optional()?);
                }
                Ok(Snapshot { value, checkpoints: all_checkpoints(snapshot)? })
            })
            .await
    }

    async fn rows(&self, pairs: &[Pair]) -> Result<Snapshot<Vec<Option<LikeRecord>>>, StoreError> {
        let pairs = pairs.to_vec();
        self.readers
            .read(move |snapshot| {
                let value = pairs.iter().map(|pair| row(snapshot, pair)).collect::<Result<_, _>>()?;
                Ok(Snapshot { value, checkpoints: all_checkpoints(snapshot)? })
            })
            .await
    }

    async fn likers(
        &self,
        content: Content,
        after: Option<Liker>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liker>>, StoreError> {
        self.readers
            .read(move |snapshot| {
                let (content_type, content_id) = (content.content_type, content.content_id.get());
                let rows = snapshot
                    .prepare_cached("SELECT rows FROM like_counts WHERE content_type = ?1 AND content_id = ?2")?
                    .query_row(params![content_type.as_str(), content_id], |row| row.get::<_, i64>(0))
                    .optional()?;
                let from_index = if rows > Some(SORTED_ROWS_MAX) { "AND listed = 1" } else { "" };
                let mut statement = snapshot.prepare_cached(&format!(
                    "SELECT user_id, liked_at FROM like_records
                     WHERE content_type = ?1 AND content_id = ?2 AND is_canceled = 0 {from_index}
                       AND liked_at <= ?3 AND (liked_at < ?3 OR user_id > ?4)
                     ORDER BY liked_at DESC, user_id LIMIT ?5"
                ))?;
                let (liked_at, user) = after.map_or((i64::MAX, 0), |last| (last.liked_at.millis(), last.user.get()));
                let rows = statement.query_map(
                    params![content_type.as_str(), content_id, liked_at, user, limit as i64],
                    |row| {
                        let user = valid(row, 0, |id| UserId::new(id).ok())?;
                        Ok(Liker { user, liked_at: Timestamp::saturating_from_millis(row.get(1)?) })
                    },
                )?;
                Ok(Snapshot { value: rows.collect::<Result<_, _>>()?, checkpoints: all_checkpoints(snapshot)? })
            })
            .await
    }

    async fn likes_of(
        &self,
        user: UserId,
        content_type: Option<ContentType>,
        after: Option<Liked>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liked>>, StoreError> {
        self.readers
            .read(move |snapshot| {
                let mut statement = snapshot.prepare_cached(
                    "SELECT content_type, content_id, liked_at FROM like_records
                     WHERE user_id = ?1 AND is_canceled = 0 AND (?2 IS NULL OR content_type = ?2)
                       AND liked_at <= ?3 AND (liked_at < ?3 OR (content_type, content_id) > (?4, ?5))
                     ORDER BY liked_at DESC, content_type, content_id LIMIT ?6",
                )?;
                let kind = content_type.as_ref().map(ContentType::as_str);
                let last = after.as_ref().map(|last| &last.content);
                let rows = statement.query_map(
                    params![
                        user.get(),
                        kind,
                        after.map_or(i64::MAX, |last| last.liked_at.millis()),
                        last.map_or("", |content| content.content_type.as_str()),
                        last.map_or(0, |content| content.content_id.get()),
                        limit as i64,
                    ],
                    |row| {
                        let liked_at = Timestamp::saturating_from_millis(row.get(2)?);
                        Ok(Liked { content: read_content(row, 0)?, liked_at })
                    },
                )?;
                Ok(Snapshot { value: rows.collect::<Result<_, _>>()?, checkpoints: all_checkpoints(snapshot)? })
            })
            .await
    }

    async fn firsts(&self, from: &[Position], limit: usize) -> Result<Snapshot<Vec<First>>, StoreError> {
        let from = from.to_vec();
        self.readers
            .read(move |snapshot| {
                let mut statement = snapshot.prepare_cached(
                    "SELECT content_type, content_id, first_position FROM like_counts
                     WHERE partition = ?1 AND first_position >= ?2 ORDER BY first_position LIMIT ?3",
                )?;
                let mut value = Vec::new();
                for Position { partition, offset } in from {
                    let first = |row: &Row<'_>| {
                        let offset = valid(row, 2, |offset| Offset::new(offset).ok())?;
                        Ok(First { content: read_content(row, 0)?, position: Position { partition, offset } })
                    };
                    let rows = statement.query_map(params![partition.get(), offset.get(), limit as i64], first)?;
                    for first in rows {
                        value.push(first?);
                    }
                }
                Ok(Snapshot { value, checkpoints: all_checkpoints(snapshot)? })
            })
            .await
    }

    async fn gains(&self, slot: i64, limit: usize) -> Result<Vec<Gain>, StoreError> {
        self.readers
            .read(move |snapshot| {
                let mut statement = snapshot.prepare_cached(
                    "SELECT content_type, content_id, likes FROM (
                         SELECT content_type, content_id, gained - lost AS likes, row_number() OVER (
                             PARTITION BY content_type ORDER BY abs(gained - lost) DESC, content_id) AS place
                         FROM like_buckets WHERE slot = ?1 AND gained <> lost
                     ) WHERE place <= ?2 ORDER BY likes DESC, content_type, content_id",
                )?;
                let gain = |row: &Row<'_>| Ok(Gain { content: read_content(row, 0)?, likes: row.get(2)? });
                statement.query_map(params![slot, limit as i64], gain)?.collect()
            })
            .await
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Checkpoint>, StoreError> {
        self.readers
            .read(move |snapshot| {
                let sql = format!("SELECT {ROW_COLUMNS} FROM like_records ORDER BY content_type, content_id, user_id");
                let mut statement = snapshot.prepare(&sql)?;
                let mut found = statement.query([])?;
                let mut chunk = Vec::with_capacity(SCAN_ROWS);
                while let Some(row) = found.next()? {
                    match (read_row(row), &scan.beside) {
                        (Ok(row), _) => chunk.push(row),
                        (Err(error), None) => return Err(error),
                        (Err(error), Some(beside)) => {
                            let name = |index| row.get_ref(index).map(|value| text_of(value)).unwrap_or_default();
                            let what = format!("the row of {}:{} and user {}: {error}", name(0), name(1), name(2));
                            let _nobody_takes_it = beside.blocking_send(vec![Beside::Damaged(None, what)]);
                        }
                    }
                    if chunk.len() == SCAN_ROWS {
                        let full = std::mem::replace(&mut chunk, Vec::with_capacity(SCAN_ROWS));
                        if scan.rows.blocking_send(full).is_err() {
                            return all_checkpoints(snapshot);
                        }
                    }
                }
                let _nobody_takes_it = scan.rows.blocking_send(chunk);
                drop(scan.rows);
                if let Some(beside) = scan.beside {
                    scan_beside(snapshot, &beside)?;
                }
                all_checkpoints(snapshot)
            })
            .await
    }
}

/// A stored value in words.
fn text_of(value: rusqlite::types::ValueRef<'_>) -> String {
    match value {
        rusqlite::types::ValueRef::Integer(number) => number.to_string(),
        rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        _ => "?".into(),
    }
}

/// Counts, buckets, and what lists depend on beside rows.
fn scan_beside(snapshot: &Connection, out: &mpsc::Sender<Vec<Beside>>) -> rusqlite::Result<()> {
    let count = |row: &Row<'_>| {
        let partition = valid(row, 2, Partition::unbounded)?;
        let version = valid(row, 4, |offset| Offset::new(offset).ok())?;
        let first_position = valid(row, 5, |offset| Offset::new(offset).ok())?;
        let count = Count { content: read_content(row, 0)?, count: row.get(3)?, version };
        Ok(Beside::Count(KeptCount { count, partition, first_position }))
    };
    let bucket = |row: &Row<'_>| {
        let content = read_content(row, 0)?;
        Ok(Beside::Bucket(BucketDelta { content, slot: row.get(2)?, gained: row.get(3)?, lost: row.get(4)? }))
    };
    let misplaced = |row: &Row<'_>| {
        let content = read_content(row, 0)?;
        let what = format!("how many rows {content} has, or which of them are listed, is wrong");
        Ok(Beside::Damaged(Some(content), what))
    };
    let misplaced_sql = format!(
        "SELECT c.content_type, c.content_id FROM like_counts AS c
         LEFT JOIN like_records AS r ON r.content_id = c.content_id AND r.content_type = c.content_type
         GROUP BY c.content_id, c.content_type
         HAVING c.rows <> count(r.user_id) OR total(r.listed) <> iif(c.rows > {SORTED_ROWS_MAX}, count(r.user_id), 0)"
    );
    type Read<'a> = &'a dyn Fn(&Row<'_>) -> rusqlite::Result<Beside>;
    let parts: [(&str, Read<'_>); 3] = [
        ("SELECT content_type, content_id, partition, count, version, first_position FROM like_counts", &count),
        ("SELECT content_type, content_id, slot, gained, lost FROM like_buckets", &bucket),
        (&misplaced_sql, &misplaced),
    ];
    for (sql, read) in parts {
        let mut statement = snapshot.prepare(sql)?;
        let mut found = statement.query([])?;
        let mut chunk = Vec::with_capacity(SCAN_ROWS);
        while let Some(row) = found.next()? {
            let name = |index| row.get_ref(index).map(|value| text_of(value)).unwrap_or_default();
            let damaged = |error| Beside::Damaged(None, format!("what is counted of {}:{}: {error}", name(0), name(1)));
            chunk.push(read(row).unwrap_or_else(damaged));
            if chunk.len() == SCAN_ROWS && out.blocking_send(std::mem::take(&mut chunk)).is_err() {
                return Ok(());
            }
        }
        if out.blocking_send(chunk).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
