//! The record store: one row per pair, one count per content, one checkpoint per partition.

mod digest;
#[cfg(feature = "servers")]
mod mysql;
mod replaceable;
mod spread;
mod sqlite;
mod successor;

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use likewise_schema::{
    Content, ContentType, Offset, Pair, Partition, PartitionCount, Position, RequestId, Timestamp, UserId,
};

use tokio::sync::mpsc;

#[cfg(feature = "servers")]
pub use self::mysql::MysqlRecords;
pub(crate) use self::sqlite::{APPLICATION_ID as SQLITE_APPLICATION_ID, file as sqlite_file};
pub use self::{
    digest::DigestBuilder,
    replaceable::ReplaceableRecords,
    spread::{Shards, SpreadRecords},
    sqlite::{SqliteRecords, SqliteSuccessor},
    successor::{Standing, Successor},
};
use crate::{StoreError, log::Mark};

/// How long buckets are kept: 48 hours of ten-minute slots.
const BUCKET_SLOTS_KEPT: i64 = 288;
/// How many requestIds of accepted events a row remembers.
pub const RING_MAX: usize = 16;

/// The state of a pair, and what the fold needs to judge its next event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LikeRecord {
    /// Whose and of what.
    pub pair: Pair,
    /// The logical delete: false is liked.
    pub is_canceled: bool,
    /// `receivedAt` of the first accepted event.
    pub created_at: Timestamp,
    /// `receivedAt` of the last accepted event.
    pub updated_at: Timestamp,
    /// `receivedAt` of the event that last made it active; none if it never was.
    pub liked_at: Option<Timestamp>,
    /// Offset of the last accepted event.
    pub version: Offset,
    /// The last accepted requestIds, oldest first, at most [`RING_MAX`].
    pub ring: Vec<RequestId>,
    /// The greatest v7 id that fell out of the ring.
    pub floor: Option<RequestId>,
}

/// An exact change of a content's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountDelta {
    /// Which content.
    pub content: Content,
    /// Active rows gained minus lost.
    pub delta: i64,
    /// Offset of the batch's last accepted event of the content.
    pub version: Offset,
    /// Offset of the batch's first accepted event of the content; kept if the content is new.
    pub first_position: Offset,
}

/// Likes gained and lost in a ten-minute slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketDelta {
    /// Which content.
    pub content: Content,
    /// The slot, see [`Timestamp::ten_minute_slot`].
    pub slot: i64,
    /// Rows that became active.
    pub gained: i64,
    /// Rows that became cancelled.
    pub lost: i64,
}

/// What the fold wants written: full rows and exact deltas, at most one of each per key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Rows, absolute.
    pub rows: Vec<LikeRecord>,
    /// Counts.
    pub counts: Vec<CountDelta>,
    /// Buckets.
    pub buckets: Vec<BucketDelta>,
}

/// A content's count after a commit, or as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Which content.
    pub content: Content,
    /// Its active rows.
    pub count: i64,
    /// Offset of its last accepted event.
    pub version: Offset,
}

/// Tells one set of tables from another that held the same partition: 8 hex digits in cache keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u32);

/// What a partition's tables reflect, and who may write them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which partition.
    pub partition: Partition,
    /// The owner's fence; only rises.
    pub epoch: i64,
    /// The first offset that is not applied.
    pub next_offset: Offset,
    /// The record at `next_offset - 1`, if there is one.
    pub mark: Option<Mark>,
    /// Which log.
    pub log_identity: String,
    /// Which tables.
    pub generation: Generation,
    /// How many partitions the log has.
    pub partitions: PartitionCount,
    /// By which fold the rows were made.
    pub fold_version: u32,
    /// The log's end when the owner last heard from it.
    pub log_end: Offset,
    /// `receivedAt` of the event at `next_offset`, if the owner knows of one.
    pub next_event_at: Option<Timestamp>,
    /// When the owner last heard from the log.
    pub heard_at: Timestamp,
}

/// The owner's right to write: a commit changes nothing unless the checkpoint holds exactly these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Which partition.
    pub partition: Partition,
    /// The epoch the owner acquired.
    pub epoch: i64,
    /// The first offset of the batch.
    pub next_offset: Offset,
}

/// How a commit moves the checkpoint. An idle owner commits an advance that moves nothing but the times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// The new first offset that is not applied.
    pub next_offset: Offset,
    /// The record before it.
    pub mark: Option<Mark>,
    /// The log's end as last heard.
    pub log_end: Offset,
    /// `receivedAt` of the event at the new `next_offset`, if known.
    pub next_event_at: Option<Timestamp>,
    /// When the log was last heard from.
    pub heard_at: Timestamp,
}

/// Turns the prior rows of a batch, in the order asked for, into what is written. Pure: it may run more than once.
pub type Fold = Box<dyn Fn(Vec<Option<LikeRecord>>) -> Writes + Send + Sync>;

/// A batch of one partition.
pub struct Batch {
    /// The owner's fence.
    pub fence: Fence,
    /// Where the checkpoint goes.
    pub advance: Advance,
    /// The pairs whose rows the fold does not know yet.
    pub read: Vec<Pair>,
    /// Counts that the owner knows, as they are before this batch. Others are read.
    pub counts: HashMap<Content, i64>,
    /// The fold.
    pub fold: Fold,
}

impl Batch {
    /// The pairs that have no row yet, by the prior rows in the order of `read`.
    fn new_pairs(&self, prior: &[Option<LikeRecord>]) -> HashSet<Pair> {
        self.read.iter().zip(prior).filter(|(_, row)| row.is_none()).map(|(pair, _)| *pair).collect()
    }
}

/// What a commit wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The rows, for the owner to remember.
    pub rows: Vec<LikeRecord>,
    /// The counts touched, absolute.
    pub counts: Vec<Count>,
}

/// Why a commit has no known effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Another owner holds the partition, or the checkpoint is not where this owner thinks. Nothing was written.
    #[error("the partition has another owner or another checkpoint")]
    Fenced,
    /// The outcome is unknown: acquire anew before going on.
    #[error(transparent)]
    Unknown(#[from] StoreError),
}

/// What an owner needs to be the one that the tables were made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The log it reads.
    pub log_identity: String,
    /// The log's partition count.
    pub partitions: PartitionCount,
    /// The fold it applies.
    pub fold_version: u32,
    /// Its clock, in Unix microseconds: epochs begin there.
    pub micros: i64,
}

/// Which prefix of a partition something reflects, and how old that knowledge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which partition.
    pub partition: Partition,
    /// The first offset that is not reflected.
    pub next_offset: Offset,
    /// When the owner last heard from the log.
    pub heard_at: Timestamp,
    /// `receivedAt` of the next event that is not reflected, if known.
    pub next_event_at: Option<Timestamp>,
    /// The cache is being brought up to its tables.
    pub recovering: bool,
}

impl Claim {
    /// Whether it reflects the event at `offset`.
    pub fn has_reached(&self, offset: Offset) -> bool {
        self.next_offset > offset
    }
}

impl Checkpoint {
    /// The claim of whatever is read in the same snapshot.
    pub fn claim(&self) -> Claim {
        Claim {
            partition: self.partition,
            next_offset: self.next_offset,
            heard_at: self.heard_at,
            next_event_at: self.next_event_at,
            recovering: false,
        }
    }

    /// The fence of the owner that got this checkpoint on acquiring.
    pub fn fence(&self) -> Fence {
        Fence { partition: self.partition, epoch: self.epoch, next_offset: self.next_offset }
    }
}

/// Refuses an owner that the tables were not made for.
pub fn check_owner(store: &'static str, stored: &Checkpoint, owner: &Owner) -> Result<(), StoreError> {
    let partition = stored.partition;
    let refuse = |what: String| Err(StoreError::unusable(store, format!("partition {partition} {what}")));
    if stored.log_identity != owner.log_identity {
        return refuse("was made from another log; name that log, or rebuild the records from this one".into());
    }
    if stored.partitions != owner.partitions {
        let (made, now) = (stored.partitions.get(), owner.partitions.get());
        return refuse(format!("was made from a log of {made} partitions, this one has {now}; name the right log"));
    }
    if stored.fold_version != owner.fold_version {
        let (made, now) = (stored.fold_version, owner.fold_version);
        return refuse(format!("was folded by version {made}, this program folds by {now}; rebuild the records"));
    }
    Ok(())
}

/// A value with the checkpoints of the same snapshot. A partition that was never owned has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot<T> {
    /// What was read.
    pub value: T,
    /// Of the partitions read from, ascending.
    pub checkpoints: Vec<Checkpoint>,
}

/// One entry of a user's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liked {
    /// What the user likes.
    pub content: Content,
    /// Since when.
    pub liked_at: Timestamp,
}

/// One entry of a content's likers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liker {
    /// Who likes it.
    pub user: UserId,
    /// Since when.
    pub liked_at: Timestamp,
}

/// A content's first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// Which content.
    pub content: Content,
    /// Where.
    pub position: Position,
}

/// What a content gained in a ten-minute slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gain {
    /// Which content.
    pub content: Content,
    /// Likes gained less those lost; not 0.
    pub likes: i64,
}

/// Keeps the first `limit` entries of each content type.
pub fn keep_of_each_type<T>(entries: &mut Vec<T>, limit: usize, content: impl Fn(&T) -> Content) {
    let mut of_type: HashMap<ContentType, usize> = HashMap::new();
    entries.retain(|entry| {
        let seen = of_type.entry(content(entry).content_type).or_default();
        *seen += 1;
        *seen <= limit
    });
}

/// The record port. Everything of a partition changes only through [`commit`](RecordStore::commit) by the owner that
/// last acquired it.
#[async_trait]
pub trait RecordStore: Send + Sync + 'static {
    /// Makes the caller the owner, in one transaction: the epoch becomes `max(stored + 1, owner.micros)`. A new
    /// partition starts at offset 0 with a new generation. Fails as unusable, changing nothing, if the tables were
    /// made from another log, another partition count or another fold.
    async fn acquire(&self, partition: Partition, owner: &Owner) -> Result<Checkpoint, StoreError>;

    /// Which of its servers holds a partition, below 16: what one does not answer, another may.
    fn home(&self, _partition: Partition) -> usize {
        0
    }

    /// Why nothing can be written right now, as far as the adapter knows; for readiness.
    fn fault(&self) -> Option<StoreError> {
        None
    }

    /// Applies a batch in one transaction: checks the fence and moves the checkpoint, reads, folds, writes.
    async fn commit(&self, batch: Batch) -> Result<Committed, CommitError>;

    /// Makes rows, counts and buckets of a partition right again in one transaction, if the fence holds, and gives the
    /// partition a new generation and a higher epoch with it: whatever was cached or told of it before counts no more. It
    /// stays at the same offset.
    async fn repair(&self, fence: Fence, generation: Generation, repair: Repair) -> Result<Checkpoint, CommitError>;

    /// Gives the partition a new generation and a higher epoch, if the fence holds.
    async fn renew_generation(&self, fence: Fence, generation: Generation) -> Result<Checkpoint, CommitError>;

    /// The partition's checkpoint, from the primary, in a new transaction.
    async fn checkpoint(&self, partition: Partition) -> Result<Option<Checkpoint>, StoreError>;

    /// The counts of contents, in the order asked for; none for a content without events.
    async fn counts(&self, contents: &[Content]) -> Result<Snapshot<Vec<Option<Count>>>, StoreError>;

    /// The rows of pairs, in the order asked for.
    async fn rows(&self, pairs: &[Pair]) -> Result<Snapshot<Vec<Option<LikeRecord>>>, StoreError>;

    /// Up to `limit` likers of a content, by (liked_at descending, user), after the last one of the page before.
    async fn likers(
        &self,
        content: Content,
        after: Option<Liker>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liker>>, StoreError>;

    /// Up to `limit` likes of a user, of one type or all, by (liked_at descending, type, id), after the last one of
    /// the page before. The checkpoints are those of all partitions.
    async fn likes_of(
        &self,
        user: UserId,
        content_type: Option<ContentType>,
        after: Option<Liked>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liked>>, StoreError>;

    /// Of each partition the contents whose first event is at or beyond an offset, by that, at most `limit` of each.
    async fn firsts(&self, from: &[Position], limit: usize) -> Result<Snapshot<Vec<First>>, StoreError>;

    /// Of each content type the `limit` contents that gained or lost most in a slot (see [`Timestamp::ten_minute_slot`]),
    /// those that gained most first. Takes its time.
    async fn gains(&self, slot: i64, limit: usize) -> Result<Vec<Gain>, StoreError>;

    /// Sends everything in chunks, as one snapshot shows it (one of each server, where there are several), and returns the
    /// checkpoints of that snapshot. Ends early when nobody takes the rows.
    async fn scan(&self, scan: Scan) -> Result<Vec<Checkpoint>, StoreError>;

    /// The SHA-256 over all rows (see [`DigestBuilder`]) and their number, with all checkpoints.
    async fn digest(&self) -> Result<Snapshot<Digest>, StoreError> {
        let (sender, mut rows) = mpsc::channel::<Vec<LikeRecord>>(SCAN_CHUNKS);
        let build = async {
            let mut builder = DigestBuilder::default();
            while let Some(chunk) = rows.recv().await {
                chunk.iter().for_each(|row| builder.add(row));
            }
            builder.finish()
        };
        let (checkpoints, value) = tokio::join!(self.scan(Scan::of_rows(sender)), build);
        Ok(Snapshot { value, checkpoints: checkpoints? })
    }
}

/// What makes a partition's tables right again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Rows as they must be; none: there must be no row.
    pub rows: Vec<(Pair, Option<LikeRecord>)>,
    /// Contents whose count and version are worked out anew from their rows, after those above are right. One without rows
    /// loses its count. The offset of the first event replaces what is stored, where it is given.
    pub counts: Vec<(Content, Option<Offset>)>,
    /// What is added to buckets.
    pub buckets: Vec<BucketDelta>,
}

/// Whom a scan sends what to.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Rows, sorted by (type, content, user).
    pub rows: mpsc::Sender<Vec<LikeRecord>>,
    /// What is kept beside them, in any order, after the rows. None: it is left out, and a row that cannot be read is an
    /// error.
    pub beside: Option<mpsc::Sender<Vec<Beside>>>,
}

impl Scan {
    /// Of the rows alone.
    pub fn of_rows(rows: mpsc::Sender<Vec<LikeRecord>>) -> Self {
        Self { rows, beside: None }
    }
}

/// What a store keeps beside rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// A content's count.
    Count(KeptCount),
    /// A part of a bucket; its parts add up.
    Bucket(BucketDelta),
    /// Something that no owner writes, in words; of which content, if that can be told.
    Damaged(Option<Content>, String),
}

/// A content's count as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptCount {
    /// Its active rows, and its version.
    pub count: Count,
    /// Where its events are.
    pub partition: Partition,
    /// Offset of its first accepted event.
    pub first_position: Offset,
}

/// Chunks of a scan that may wait for whoever takes them.
pub const SCAN_CHUNKS: usize = 4;

/// A digest of all rows: equal logs give equal digests, on every store and for every partition count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// SHA-256.
    pub sha256: [u8; 32],
    /// How many rows.
    pub rows: u64,
    /// How many of them are active: the sum of all counts.
    pub active: u64,
}
