//! From the columns of a row to what it means. What cannot be is damage, not a default.

use chrono::{DateTime, NaiveDateTime};
use likewise_schema::{
    Content, ContentId, ContentType, Offset, Pair, Partition, PartitionCount, Position, RequestId, Timestamp, UserId,
};
use sqlx::{Row, mysql::MySqlRow};

use super::Failed;
use crate::{
    log::Mark,
    records::{
        Beside, BucketDelta, Checkpoint, Count, First, Gain, Generation, KeptCount, LikeRecord, Liked, Liker, digest,
    },
};

pub(super) const CHECKPOINT_COLUMNS: &str = "`partition`, epoch, next_offset, mark_key, mark_timestamp, log_identity, generation, \
                                  partitions, fold_version, log_end, next_event_at, heard_at";
pub(super) const RECORD_COLUMNS: &str = "content_type, content_id, user_id, is_canceled, created_at, updated_at, liked_at, version, \
                              request_ring, request_floor";

/// As MySQL's DATETIME(3), in UTC.
pub(super) fn datetime(time: Timestamp) -> NaiveDateTime {
    DateTime::from_timestamp_millis(time.millis()).unwrap_or_default().naive_utc()
}

fn timestamp(time: NaiveDateTime) -> Timestamp {
    Timestamp::saturating_from_millis(time.and_utc().timestamp_millis())
}

fn valid<T, E>(parsed: Result<T, E>) -> Result<T, Failed> {
    parsed.map_err(|_| Failed::Damaged("a stored value is out of its range"))
}

fn offset(row: &MySqlRow, column: usize) -> Result<Offset, Failed> {
    valid(Offset::new(row.try_get(column)?))
}

/// A content from the columns `first` (type) and `first + 1` (id).
pub(super) fn content(row: &MySqlRow, first: usize) -> Result<Content, Failed> {
    Ok(Content {
        content_type: valid(row.try_get::<String, _>(first)?.parse::<ContentType>())?,
        content_id: valid(ContentId::new(row.try_get(first + 1)?))?,
    })
}

pub(super) fn checkpoint(row: &MySqlRow) -> Result<Checkpoint, Failed> {
    let partitions = valid(PartitionCount::new(row.try_get::<i16, _>(7)?.unsigned_abs().into()))?;
    let mark_at: Option<NaiveDateTime> = row.try_get(4)?;
    let key: Option<Vec<u8>> = row.try_get(3)?;
    Ok(Checkpoint {
        partition: valid(Partition::new(row.try_get::<i16, _>(0)?.unsigned_abs().into(), partitions))?,
        epoch: row.try_get(1)?,
        next_offset: offset(row, 2)?,
        mark: mark_at.map(|at| Mark { key, timestamp: timestamp(at) }),
        log_identity: row.try_get(5)?,
        generation: Generation(row.try_get(6)?),
        partitions,
        fold_version: row.try_get(8)?,
        log_end: offset(row, 9)?,
        next_event_at: row.try_get::<Option<NaiveDateTime>, _>(10)?.map(timestamp),
        heard_at: timestamp(row.try_get(11)?),
    })
}

pub(super) fn record(row: &MySqlRow) -> Result<LikeRecord, Failed> {
    let time = |column| Ok::<_, Failed>(timestamp(row.try_get(column)?));
    let ring: Vec<u8> = row.try_get(8)?;
    let floor: Option<Vec<u8>> = row.try_get(9)?;
    let floor = floor.map(|floor| valid(floor.try_into()).map(RequestId::from_bytes)).transpose()?;
    Ok(LikeRecord {
        pair: Pair { content: content(row, 0)?, user: valid(UserId::new(row.try_get(2)?))? },
        is_canceled: row.try_get(3)?,
        created_at: time(4)?,
        updated_at: time(5)?,
        liked_at: row.try_get::<Option<NaiveDateTime>, _>(6)?.map(timestamp),
        version: offset(row, 7)?,
        ring: digest::ring_from_bytes(&ring).ok_or(Failed::Damaged("a stored ring is not whole ids"))?,
        floor,
    })
}

/// content_type, content_id, count, version
pub(super) fn count(row: &MySqlRow) -> Result<Count, Failed> {
    Ok(Count { content: content(row, 0)?, count: row.try_get(2)?, version: offset(row, 3)? })
}

/// A row of a scan, which must be in the table of its content's shard.
pub(super) fn record_in_place(row: &MySqlRow) -> Result<LikeRecord, Failed> {
    let record = record(row)?;
    if row.try_get::<i64, _>(10)? != i64::from(record.pair.content.shard()) {
        return Err(Failed::Damaged("it is in the table of another shard, where nobody looks for it"));
    }
    Ok(record)
}

/// content_type, content_id, count, version, partition, first_position, shard
pub(super) fn kept_count(row: &MySqlRow) -> Result<Vec<Beside>, Failed> {
    if row.try_get::<i16, _>(6)?.unsigned_abs() != content(row, 0)?.shard() {
        return Err(Failed::Damaged("it is kept under another shard, where nobody looks for it"));
    }
    let partition = valid(Partition::unbounded(row.try_get::<i16, _>(4)?.unsigned_abs()).ok_or(()))?;
    Ok(vec![Beside::Count(KeptCount { count: count(row)?, partition, first_position: offset(row, 5)? })])
}

/// slot, changes
pub(super) fn bucket_parts(row: &MySqlRow) -> Result<Vec<Beside>, Failed> {
    let (slot, changes): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
    let damaged = Failed::Damaged("the changes of a bucket cannot be read");
    let parsed = serde_json::from_str::<Vec<(ContentType, i64, i64, i64)>>(&format!("[{changes}]"));
    let part = |(content_type, id, gained, lost)| {
        let content = Content { content_type, content_id: valid(ContentId::new(id))? };
        Ok(Beside::Bucket(BucketDelta { content, slot, gained, lost }))
    };
    parsed.map_err(|_| damaged)?.into_iter().map(part).collect()
}

/// What a row that cannot be read is about, as far as it says: content_type, content_id and user_id come first.
pub(super) fn name(row: &MySqlRow, has_user: bool) -> String {
    let number = |column| row.try_get::<i64, _>(column).map_or_else(|_| "?".into(), |number| number.to_string());
    let kind = row.try_get::<String, _>(0).unwrap_or_else(|_| "?".into());
    let content = format!("{kind}:{}", number(1));
    if has_user { format!("{content} and user {}", number(2)) } else { content }
}

/// content_type, content_id, partition, first_position; of one of the partitions of `from`
pub(super) fn first(row: &MySqlRow, from: &[Position]) -> Result<First, Failed> {
    let partition: u16 = row.try_get::<i16, _>(2)?.unsigned_abs();
    let asked = from.iter().map(|position| position.partition).find(|asked| asked.get() == partition);
    let partition = asked.ok_or(Failed::Damaged("a stored partition is not the one asked for"))?;
    Ok(First { content: content(row, 0)?, position: Position { partition, offset: offset(row, 3)? } })
}

/// content_type, content_id, likes
pub(super) fn gain(row: &MySqlRow) -> Result<Gain, Failed> {
    Ok(Gain { content: content(row, 0)?, likes: row.try_get(2)? })
}

/// user_id, liked_at
pub(super) fn liker(row: &MySqlRow) -> Result<Liker, Failed> {
    Ok(Liker { user: valid(UserId::new(row.try_get(0)?))?, liked_at: timestamp(row.try_get(1)?) })
}

/// content_type, content_id, liked_at
pub(super) fn liked(row: &MySqlRow) -> Result<Liked, Failed> {
    Ok(Liked { content: content(row, 0)?, liked_at: timestamp(row.try_get(2)?) })
}
