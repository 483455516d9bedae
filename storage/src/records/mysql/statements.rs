//! The statements. Values are bound; table names come from shards. Multi-row statements come in a few sizes, so that
//! each is prepared once.

use std::collections::{HashMap, HashSet};

use chrono::NaiveDateTime;
use likewise_schema::{Content, ContentType, Offset, Pair, Partition, Position, SHARDS, Timestamp, UserId};
use sqlx::{AssertSqlSafe, MySqlConnection, mysql::MySqlRow, query, query_as, query_scalar};

use super::{Failed, rows};
use crate::records::{
    Batch, Beside, BucketDelta, Checkpoint, Count, CountDelta, Fence, First, Gain, Generation, LikeRecord, Liked,
    Liker, Owner, Repair, Shards, digest,
};

/// Rows of one statement, largest first: each size of each statement is prepared once.
const SIZES: [usize; 11] = [1000, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
/// Up to so many rows the last one is repeated rather than the rest written by another statement.
const REPEATED_MAX: usize = 64;
const COUNT_COLUMNS: &str = "content_type, content_id, `count`, version";
const REPLACE_ROW: &str = "ON DUPLICATE KEY UPDATE created_at = VALUES(created_at), updated_at = VALUES(updated_at),
                               is_canceled = VALUES(is_canceled), liked_at = VALUES(liked_at),
                               version = VALUES(version), request_ring = VALUES(request_ring),
                               request_floor = VALUES(request_floor)";
/// Events whose changes of buckets are about one row.
const CHUNK_EVENTS: i64 = 256;
/// Rows of buckets dropped at once.
const DROP_MAX: u32 = 10_000;

/// The two dialects, where they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    Mysql,
    MariaDb,
}

impl Flavour {
    pub(super) async fn of(connection: &mut MySqlConnection) -> Result<Self, sqlx::Error> {
        let version: String = query_scalar("SELECT VERSION()").fetch_one(connection).await?;
        Ok(if version.contains("MariaDB") { Self::MariaDb } else { Self::Mysql })
    }

    /// The columns of the rows of `table` whose keys are bound, joined from the keys: each key is one look-up.
    fn look_up(self, columns: &str, table: &str, keys: &[&str], count: usize) -> String {
        let names: Vec<String> = (0..keys.len()).map(|index| format!("k{index}")).collect();
        let on: Vec<String> = keys.iter().zip(&names).map(|(key, name)| format!("t.{key} = k.{name}")).collect();
        let (names, on) = (names.join(", "), on.join(" AND "));
        let key = |value: &str| vec![value; keys.len()].join(", ");
        match self {
            Self::Mysql => {
                let values = vec![format!("ROW({})", key("CAST(? AS SIGNED)")); count].join(", ");
                format!("SELECT {columns} FROM (VALUES {values}) AS k ({names}) STRAIGHT_JOIN {table} AS t ON {on}")
            }
            Self::MariaDb => {
                // It takes a bound value for an INT when it makes the table of the keys, and a greater one becomes the
                // greatest INT; what comes from a bit operation is a BIGINT.
                let values = vec![format!("({})", key("CAST(? AS SIGNED) | 0")); count].join(", ");
                format!(
                    "WITH k ({names}) AS (VALUES {values}) SELECT {columns} FROM k STRAIGHT_JOIN {table} AS t ON {on}"
                )
            }
        }
    }
}

/// A part of the rows, and how many a statement for it holds: the last one is repeated where they are fewer.
struct Piece<'a, T> {
    rows: &'a [T],
    size: usize,
}

impl<'a, T> Piece<'a, T> {
    fn is_full(&self) -> bool {
        self.rows.len() == self.size
    }

    /// The rows, and the last one again until the size is reached.
    fn padded(&self) -> impl Iterator<Item = &'a T> {
        let last = self.rows.last();
        self.rows.iter().chain(std::iter::repeat_with(move || last).flatten()).take(self.size)
    }
}

/// Splits into pieces of the known sizes.
fn pieces<T>(mut rows: &[T]) -> impl Iterator<Item = Piece<'_, T>> {
    std::iter::from_fn(move || {
        let at_least = SIZES.into_iter().rev().find(|size| *size >= rows.len() && *size <= REPEATED_MAX);
        let at_most = SIZES.into_iter().find(|size| *size <= rows.len())?;
        let size = at_least.unwrap_or(at_most);
        let (piece, rest) = rows.split_at(size.min(rows.len()));
        rows = rest;
        Some(Piece { rows: piece, size })
    })
}

fn table(shard: u16) -> String {
    format!("like_records_{shard:02}")
}

/// `(?, ?, …)` for each row.
fn placeholders(columns: usize, rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    vec![row; rows].join(", ")
}

fn optional(time: Option<Timestamp>) -> Option<NaiveDateTime> {
    time.map(rows::datetime)
}

/// The partition's checkpoint; with `lock` as it is committed now, and kept from others until the transaction ends.
pub(super) async fn checkpoint(
    connection: &mut MySqlConnection,
    partition: Partition,
    lock: bool,
) -> Result<Option<Checkpoint>, Failed> {
    let columns = rows::CHECKPOINT_COLUMNS;
    let lock = if lock { " FOR UPDATE" } else { "" };
    let sql = format!("SELECT {columns} FROM projection_checkpoints WHERE `partition` = ?{lock}");
    let found = query(AssertSqlSafe(sql)).bind(partition.get()).fetch_optional(connection).await?;
    found.as_ref().map(rows::checkpoint).transpose()
}

pub(super) async fn acquire(
    connection: &mut MySqlConnection,
    partition: Partition,
    owner: &Owner,
) -> Result<(), Failed> {
    query(
        "INSERT INTO projection_checkpoints
             (`partition`, epoch, next_offset, log_identity, generation, partitions, fold_version, log_end, heard_at)
         VALUES (?, ?, 0, ?, ?, ?, ?, 0, ?)
         ON DUPLICATE KEY UPDATE epoch = GREATEST(epoch + 1, VALUES(epoch))",
    )
    .bind(partition.get())
    .bind(owner.micros)
    .bind(&owner.log_identity)
    .bind(rand::random::<u32>())
    .bind(owner.partitions.get())
    .bind(owner.fold_version)
    .bind(rows::datetime(Timestamp::saturating_from_millis(0)))
    .execute(connection)
    .await?;
    Ok(())
}

/// False if the fence does not hold.
pub(super) async fn renew(
    connection: &mut MySqlConnection,
    fence: &Fence,
    generation: Generation,
) -> Result<bool, Failed> {
    let renewed = query(
        "UPDATE projection_checkpoints SET generation = ?, epoch = epoch + 1
         WHERE `partition` = ? AND epoch = ? AND next_offset = ?",
    )
    .bind(generation.0)
    .bind(fence.partition.get())
    .bind(fence.epoch)
    .bind(fence.next_offset.get())
    .execute(connection)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Moves the checkpoint. False if the fence does not hold.
pub(super) async fn advance(connection: &mut MySqlConnection, batch: &Batch) -> Result<bool, Failed> {
    let (fence, advance) = (&batch.fence, &batch.advance);
    // A matched row counts as affected, changed or not: the driver asks for that.
    let moved = query(
        "UPDATE projection_checkpoints
         SET next_offset = ?, mark_key = ?, mark_timestamp = ?, log_end = ?, next_event_at = ?, heard_at = ?
         WHERE `partition` = ? AND epoch = ? AND next_offset = ?",
    )
    .bind(advance.next_offset.get())
    .bind(advance.mark.as_ref().and_then(|mark| mark.key.as_deref()))
    .bind(optional(advance.mark.as_ref().map(|mark| mark.timestamp)))
    .bind(advance.log_end.get())
    .bind(optional(advance.next_event_at))
    .bind(rows::datetime(advance.heard_at))
    .bind(fence.partition.get())
    .bind(fence.epoch)
    .bind(fence.next_offset.get())
    .execute(connection)
    .await?;
    Ok(moved.rows_affected() == 1)
}

/// The rows of pairs, in the order asked for. Pairs may be of several shards.
pub(super) async fn rows(
    connection: &mut MySqlConnection,
    flavour: Flavour,
    pairs: &[Pair],
) -> Result<Vec<Option<LikeRecord>>, Failed> {
    let mut by_shard: HashMap<u16, Vec<Pair>> = HashMap::new();
    for pair in pairs {
        by_shard.entry(pair.content.shard()).or_default().push(*pair);
    }
    let mut found: HashMap<Pair, LikeRecord> = HashMap::with_capacity(pairs.len());
    for (shard, pairs) in by_shard {
        for piece in pieces(&pairs) {
            let keys = ["user_id", "content_id"];
            let sql = flavour.look_up(rows::RECORD_COLUMNS, &table(shard), &keys, piece.size);
            let mut select = query(AssertSqlSafe(sql));
            for pair in piece.padded() {
                select = select.bind(pair.user.get()).bind(pair.content.content_id.get());
            }
            for row in select.fetch_all(&mut *connection).await? {
                let record = rows::record(&row)?;
                found.insert(record.pair, record);
            }
        }
    }
    Ok(pairs.iter().map(|pair| found.get(pair).cloned()).collect())
}

/// Writes full rows of one partition. Those of new pairs are told apart: to insert costs less than to look whether to.
pub(super) async fn write_rows(
    connection: &mut MySqlConnection,
    partition: Partition,
    records: &[LikeRecord],
    is_new: &HashSet<Pair>,
) -> Result<(), Failed> {
    let (new, known): (Vec<&LikeRecord>, Vec<&LikeRecord>) =
        records.iter().partition(|record| is_new.contains(&record.pair));
    let table = table(partition.shard());
    // A repeated row is not new any more.
    let new = pieces(&new).map(|piece| (if piece.is_full() { "" } else { REPLACE_ROW }, piece));
    let known = pieces(&known).map(|piece| (REPLACE_ROW, piece));
    for (or_else, piece) in new.chain(known) {
        let values = placeholders(10, piece.size);
        let sql = format!(
            "INSERT INTO {table} (user_id, content_id, content_type, created_at, updated_at, is_canceled, liked_at,
                                  version, request_ring, request_floor)
             VALUES {values} {or_else}"
        );
        let mut insert = query(AssertSqlSafe(sql));
        for record in piece.padded() {
            insert = insert
                .bind(record.pair.user.get())
                .bind(record.pair.content.content_id.get())
                .bind(record.pair.content.content_type.to_string())
                .bind(rows::datetime(record.created_at))
                .bind(rows::datetime(record.updated_at))
                .bind(record.is_canceled)
                .bind(optional(record.liked_at))
                .bind(record.version.get())
                .bind(digest::ring_bytes(&record.ring))
                .bind(record.floor.map(|floor| floor.as_bytes().to_vec()));
        }
        insert.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Adds to counts, and gives them as they are then, in the order of `deltas`. Those in `known`, which is how they were
/// before, are not read.
pub(super) async fn add_counts(
    connection: &mut MySqlConnection,
    flavour: Flavour,
    partition: Partition,
    deltas: &[CountDelta],
    known: &HashMap<Content, i64>,
) -> Result<Vec<Count>, Failed> {
    let (sure, unsure): (Vec<CountDelta>, Vec<CountDelta>) =
        deltas.iter().partition(|delta| known.contains_key(&delta.content));
    write_deltas(connection, partition, &sure, "").await?;
    let mut found = match flavour {
        Flavour::MariaDb => write_deltas(connection, partition, &unsure, &format!("RETURNING {COUNT_COLUMNS}")).await?,
        Flavour::Mysql => {
            write_deltas(connection, partition, &unsure, "").await?;
            let contents: Vec<Content> = unsure.iter().map(|delta| delta.content).collect();
            counts(connection, flavour, &contents).await?
        }
    };
    for delta in sure {
        let count = known.get(&delta.content).copied().unwrap_or_default() + delta.delta;
        found.insert(delta.content, Count { content: delta.content, count, version: delta.version });
    }
    let missing = Failed::Damaged("a count that was just written is not there");
    deltas.iter().map(|delta| found.get(&delta.content).copied()).collect::<Option<_>>().ok_or(missing)
}

/// Gives what `returning` returns.
async fn write_deltas(
    connection: &mut MySqlConnection,
    partition: Partition,
    deltas: &[CountDelta],
    returning: &str,
) -> Result<HashMap<Content, Count>, Failed> {
    let mut found = HashMap::with_capacity(deltas.len());
    for piece in pieces(deltas) {
        let values = placeholders(7, piece.size);
        let sql = format!(
            "INSERT INTO like_counts (shard, content_id, content_type, `partition`, `count`, version, first_position)
             VALUES {values}
             ON DUPLICATE KEY UPDATE `count` = `count` + VALUES(`count`), version = VALUES(version) {returning}"
        );
        let mut insert = query(AssertSqlSafe(sql));
        for (index, delta) in piece.padded().enumerate() {
            // A repeated row adds nothing.
            let change = if index < piece.rows.len() { delta.delta } else { 0 };
            insert = insert
                .bind(delta.content.shard())
                .bind(delta.content.content_id.get())
                .bind(delta.content.content_type.to_string())
                .bind(partition.get())
                .bind(change)
                .bind(delta.version.get())
                .bind(delta.first_position.get());
        }
        for row in insert.fetch_all(&mut *connection).await? {
            let count = rows::count(&row)?;
            found.insert(count.content, count);
        }
    }
    Ok(found)
}

/// The counts that there are.
pub(super) async fn counts(
    connection: &mut MySqlConnection,
    flavour: Flavour,
    contents: &[Content],
) -> Result<HashMap<Content, Count>, Failed> {
    let mut found = HashMap::with_capacity(contents.len());
    for piece in pieces(contents) {
        let sql = flavour.look_up(COUNT_COLUMNS, "like_counts", &["shard", "content_id"], piece.size);
        let mut select = query(AssertSqlSafe(sql));
        for content in piece.padded() {
            select = select.bind(content.shard()).bind(content.content_id.get());
        }
        for row in select.fetch_all(&mut *connection).await? {
            let count = rows::count(&row)?;
            found.insert(count.content, count);
        }
    }
    Ok(found)
}

/// Appends to the buckets of a batch that begins at `first`.
pub(super) async fn add_buckets(
    connection: &mut MySqlConnection,
    partition: Partition,
    first: Offset,
    deltas: &[BucketDelta],
) -> Result<(), Failed> {
    for of_slot in deltas.chunk_by(|one, next| one.slot == next.slot) {
        let change = |delta: &BucketDelta| {
            // A type has no character that JSON escapes.
            let Content { content_type, content_id } = delta.content;
            format!(r#"["{content_type}",{content_id},{},{}]"#, delta.gained, delta.lost)
        };
        let changes: Vec<String> = of_slot.iter().map(change).collect();
        let insert = query(
            "INSERT INTO like_bucket_chunks (`partition`, slot, chunk, changes) VALUES (?, ?, ?, ?)
             ON DUPLICATE KEY UPDATE changes = CONCAT(changes, ',', VALUES(changes))",
        );
        insert
            .bind(partition.get())
            .bind(of_slot[0].slot)
            .bind(first.get() / CHUNK_EVENTS)
            .bind(changes.join(","))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Rows, then what follows from them, then buckets.
pub(super) async fn repair(connection: &mut MySqlConnection, fence: Fence, repair: &Repair) -> Result<(), Failed> {
    let partition = fence.partition;
    let table = table(partition.shard());
    let delete = format!("DELETE FROM {table} WHERE user_id = ? AND content_id = ? AND content_type = ?");
    for (pair, _) in &repair.rows {
        let Content { content_type, content_id } = pair.content;
        let delete = query(AssertSqlSafe(delete.clone())).bind(pair.user.get()).bind(content_id.get());
        delete.bind(content_type.to_string()).execute(&mut *connection).await?;
    }
    let rows: Vec<LikeRecord> = repair.rows.iter().filter_map(|(_, row)| row.clone()).collect();
    write_rows(connection, partition, &rows, &HashSet::new()).await?;
    let from_rows = format!(
        "SELECT COUNT(*), CAST(COALESCE(SUM(is_canceled = 0), 0) AS SIGNED), MAX(version), MIN(version) FROM {table}
         WHERE content_id = ? AND content_type = ?"
    );
    for (content, first) in &repair.counts {
        let (id, kind) = (content.content_id.get(), content.content_type.to_string());
        let (rows, active, version, least): (i64, i64, Option<i64>, Option<i64>) =
            query_as(AssertSqlSafe(from_rows.clone())).bind(id).bind(&kind).fetch_one(&mut *connection).await?;
        let write = if rows == 0 {
            query("DELETE FROM like_counts WHERE shard = ? AND content_id = ? AND content_type = ?")
                .bind(content.shard())
                .bind(id)
                .bind(kind)
        } else {
            query(
                "INSERT INTO like_counts (shard, content_id, content_type, `partition`, `count`, version, first_position)
                 VALUES (?, ?, ?, ?, ?, ?, ?)
                 ON DUPLICATE KEY UPDATE `partition` = VALUES(`partition`), `count` = VALUES(`count`),
                     version = VALUES(version), first_position = COALESCE(?, first_position)",
            )
            .bind(content.shard())
            .bind(id)
            .bind(kind)
            .bind(partition.get())
            .bind(active)
            .bind(version)
            .bind(first.map(Offset::get).or(least))
            .bind(first.map(Offset::get))
        };
        write.execute(&mut *connection).await?;
    }
    let mut buckets = repair.buckets.clone();
    buckets.sort_by_key(|bucket| (bucket.slot, bucket.content));
    add_buckets(connection, partition, fence.next_offset, &buckets).await
}

/// Drops the partition's buckets up to a slot.
pub(super) async fn drop_buckets(
    connection: &mut MySqlConnection,
    partition: Partition,
    slot: i64,
) -> Result<(), Failed> {
    let drop = query("DELETE FROM like_bucket_chunks WHERE `partition` = ? AND slot <= ? LIMIT ?");
    drop.bind(partition.get()).bind(slot).bind(DROP_MAX).execute(connection).await?;
    Ok(())
}

/// After everything.
fn newest() -> NaiveDateTime {
    rows::datetime(Timestamp::saturating_from_millis(i64::MAX))
}

pub(super) async fn likers(
    connection: &mut MySqlConnection,
    content: Content,
    after: Option<Liker>,
    limit: usize,
) -> Result<Vec<Liker>, Failed> {
    let table = table(content.shard());
    let sql = format!(
        "SELECT user_id, liked_at FROM {table}
         WHERE content_id = ? AND content_type = ? AND is_canceled = 0
           AND liked_at <= ? AND (liked_at < ? OR user_id > ?)
         ORDER BY liked_at DESC, user_id LIMIT ?"
    );
    let liked_at = after.map_or_else(newest, |last| rows::datetime(last.liked_at));
    let select = query(AssertSqlSafe(sql))
        .bind(content.content_id.get())
        .bind(content.content_type.to_string())
        .bind(liked_at)
        .bind(liked_at)
        .bind(after.map_or(0, |last| last.user.get()))
        .bind(limit as u64);
    select.fetch_all(connection).await?.iter().map(rows::liker).collect()
}

pub(super) async fn likes_of(
    connection: &mut MySqlConnection,
    shards: Shards,
    user: UserId,
    content_type: Option<ContentType>,
    after: Option<Liked>,
    limit: usize,
) -> Result<Vec<Liked>, Failed> {
    let of_type = if content_type.is_some() { "AND content_type = ?" } else { "" };
    let order = "ORDER BY liked_at DESC, content_type, content_id LIMIT ?";
    let of_shard = |shard| {
        let table = table(shard);
        format!(
            "(SELECT content_type, content_id, liked_at FROM {table}
              WHERE user_id = ? AND is_canceled = 0 {of_type} AND liked_at <= ?
                AND (liked_at < ? OR content_type > ? OR (content_type = ? AND content_id > ?)) {order})"
        )
    };
    let held: Vec<u16> = (0..SHARDS).filter(|shard| shards.contains(*shard)).collect();
    let parts: Vec<String> = held.iter().map(|shard| of_shard(*shard)).collect();
    let mut select = query(AssertSqlSafe(format!("{} {order}", parts.join(" UNION ALL "))));
    let liked_at = after.map_or_else(newest, |last| rows::datetime(last.liked_at));
    let last_type = after.map_or_else(String::new, |last| last.content.content_type.to_string());
    for _ in held {
        select = select.bind(user.get());
        if let Some(content_type) = content_type {
            select = select.bind(content_type.to_string());
        }
        select = select.bind(liked_at).bind(liked_at).bind(last_type.clone()).bind(last_type.clone());
        select = select.bind(after.map_or(0, |last| last.content.content_id.get())).bind(limit as u64);
    }
    select.bind(limit as u64).fetch_all(connection).await?.iter().map(rows::liked).collect()
}

/// The contents whose first event is at or beyond an offset of a partition.
pub(super) async fn firsts(
    connection: &mut MySqlConnection,
    from: &[Position],
    limit: usize,
) -> Result<Vec<First>, Failed> {
    let of_partition = "(SELECT content_type, content_id, `partition`, first_position FROM like_counts
                         WHERE `partition` = ? AND first_position >= ? ORDER BY first_position LIMIT ?)";
    let mut select = query(AssertSqlSafe(vec![of_partition; from.len()].join(" UNION ALL ")));
    for Position { partition, offset } in from {
        select = select.bind(partition.get()).bind(offset.get()).bind(limit as u64);
    }
    let found = if from.is_empty() { Vec::new() } else { select.fetch_all(connection).await? };
    let first = |row| rows::first(row, from);
    found.iter().map(first).collect()
}

/// What gained most in a slot, of each type, in the partitions that there are.
pub(super) async fn gains(connection: &mut MySqlConnection, slot: i64, limit: usize) -> Result<Vec<Gain>, Failed> {
    let select = query(
        "SELECT content_type, content_id, likes FROM (
             SELECT t.*, ROW_NUMBER() OVER (PARTITION BY content_type ORDER BY ABS(likes) DESC, content_id) AS place FROM (
                 SELECT c.content_type, c.content_id, CAST(SUM(c.gained - c.lost) AS SIGNED) AS likes
                 FROM projection_checkpoints AS p
                 STRAIGHT_JOIN like_bucket_chunks AS b ON b.`partition` = p.`partition` AND b.slot = ?
                 JOIN JSON_TABLE(CONCAT('[', b.changes, ']'), '$[*]' COLUMNS (
                     content_type VARCHAR(20) PATH '$[0]', content_id BIGINT PATH '$[1]',
                     gained BIGINT PATH '$[2]', lost BIGINT PATH '$[3]')) AS c
                 GROUP BY c.content_type, c.content_id
             ) AS t WHERE likes <> 0
         ) AS u WHERE place <= ? ORDER BY likes DESC, content_type, content_id",
    );
    let found = select.bind(slot).bind(limit as u64).fetch_all(connection).await?;
    found.iter().map(rows::gain).collect()
}

/// All rows of the shards, in order, each with the shard whose table it is in.
pub(super) fn scan(shards: &Shards) -> String {
    let columns = rows::RECORD_COLUMNS;
    let held = (0..SHARDS).filter(|shard| shards.contains(*shard));
    let parts: Vec<String> =
        held.map(|shard| format!("SELECT {columns}, {shard} AS shard FROM {}", table(shard))).collect();
    format!("{} ORDER BY content_type, content_id, user_id", parts.join(" UNION ALL "))
}

/// Reads what a row of a scan holds.
type ReadBeside = fn(&MySqlRow) -> Result<Vec<Beside>, Failed>;

/// What is kept beside rows, and how it is read.
pub(super) const SCANS_BESIDE: [(&str, ReadBeside); 2] = [
    (
        "SELECT content_type, content_id, `count`, version, `partition`, first_position, shard FROM like_counts",
        rows::kept_count,
    ),
    ("SELECT slot, changes FROM like_bucket_chunks", rows::bucket_parts),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_every_row_once_and_pad_with_the_last_one() {
        for count in (0..200).chain([511, 512, 990, 1000, 1001, 1999, 4000]) {
            let rows: Vec<usize> = (0..count).collect();
            let mut seen = Vec::new();
            for piece in pieces(&rows) {
                let padded: Vec<usize> = piece.padded().copied().collect();
                assert_eq!(padded.len(), piece.size);
                assert!(SIZES.contains(&piece.size));
                assert_eq!(&padded[..piece.rows.len()], piece.rows);
                assert!(padded[piece.rows.len()..].iter().all(|row| Some(row) == piece.rows.last()));
                assert!(piece.is_full() || piece.size <= REPEATED_MAX);
                seen.extend_from_slice(piece.rows);
            }
            assert_eq!(seen, rows);
        }
    }
}
