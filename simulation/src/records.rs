//! Records in memory. Pass the record store's conformance suite; all faults come from outside.

use std::{cmp::Reverse, collections::BTreeMap};

use async_trait::async_trait;
use likewise_schema::{Content, ContentType, Offset, Pair, Partition, Position, UserId};
use likewise_storage::{
    RecordStore, StoreError,
    records::{
        Batch, Beside, BucketDelta, Checkpoint, CommitError, Committed, Count, Fence, First, Gain, Generation,
        KeptCount, LikeRecord, Liked, Liker, Owner, Repair, Scan, Snapshot, check_owner, keep_of_each_type,
    },
};
use parking_lot::Mutex;

const STORE: &str = "the simulated records";

/// The records in memory. One lock is one transaction.
#[derive(Default)]
pub struct SimRecords(Mutex<Tables>);

#[derive(Clone, Default)]
struct Tables {
    rows: BTreeMap<Pair, LikeRecord>,
    counts: BTreeMap<Content, Count>,
    firsts: BTreeMap<Content, Position>,
    /// Gained and lost, by slot.
    buckets: BTreeMap<(i64, Content), (i64, i64)>,
    checkpoints: BTreeMap<Partition, Checkpoint>,
    generations: u32,
}

impl Tables {
    fn holds(&self, fence: &Fence) -> bool {
        let stored = self.checkpoints.get(&fence.partition);
        stored.is_some_and(|stored| stored.epoch == fence.epoch && stored.next_offset == fence.next_offset)
    }

    fn add_bucket(&mut self, delta: BucketDelta) {
        let (gained, lost) = self.buckets.entry((delta.slot, delta.content)).or_default();
        *gained += delta.gained;
        *lost += delta.lost;
    }

    fn snapshot<T>(&self, value: T) -> Snapshot<T> {
        Snapshot { value, checkpoints: self.checkpoints.values().cloned().collect() }
    }
}

impl SimRecords {
    /// Becomes what `primary` is now, as a replica that catches up does.
    pub fn follow(&self, primary: &SimRecords) {
        let now = primary.0.lock().clone();
        *self.0.lock() = now;
    }

    /// All rows, by pair.
    pub fn all_rows(&self) -> BTreeMap<Pair, LikeRecord> {
        self.0.lock().rows.clone()
    }

    /// All counts.
    pub fn all_counts(&self) -> BTreeMap<Content, Count> {
        self.0.lock().counts.clone()
    }
}

#[async_trait]
impl RecordStore for SimRecords {
    async fn acquire(&self, partition: Partition, owner: &Owner) -> Result<Checkpoint, StoreError> {
        let mut tables = self.0.lock();
        if let Some(stored) = tables.checkpoints.get(&partition) {
            check_owner(STORE, stored, owner)?;
        } else {
            tables.generations += 1;
        }
        let generation = Generation(tables.generations);
        let fresh = || Checkpoint {
            partition,
            epoch: owner.micros - 1,
            next_offset: Offset::ZERO,
            mark: None,
            log_identity: owner.log_identity.clone(),
            generation,
            partitions: owner.partitions,
            fold_version: owner.fold_version,
            log_end: Offset::ZERO,
            next_event_at: None,
            heard_at: Default::default(),
        };
        let stored = tables.checkpoints.entry(partition).or_insert_with(fresh);
        stored.epoch = (stored.epoch + 1).max(owner.micros);
        Ok(stored.clone())
    }

    async fn commit(&self, batch: Batch) -> Result<Committed, CommitError> {
        let mut tables = self.0.lock();
        if !tables.holds(&batch.fence) {
            return Err(CommitError::Fenced);
        }
        let partition = batch.fence.partition;
        if let Some(stored) = tables.checkpoints.get_mut(&partition) {
            stored.next_offset = batch.advance.next_offset;
            stored.mark = batch.advance.mark;
            stored.log_end = batch.advance.log_end;
            stored.next_event_at = batch.advance.next_event_at;
            stored.heard_at = batch.advance.heard_at;
        }
        let prior = batch.read.iter().map(|pair| tables.rows.get(pair).cloned()).collect();
        let writes = (batch.fold)(prior);
        for row in &writes.rows {
            tables.rows.insert(row.pair, row.clone());
        }
        let mut counts = Vec::new();
        for delta in writes.counts {
            let fresh = Count { content: delta.content, count: 0, version: delta.version };
            let first = Position { partition, offset: delta.first_position };
            tables.firsts.entry(delta.content).or_insert(first);
            let count = tables.counts.entry(delta.content).or_insert(fresh);
            count.count += delta.delta;
            count.version = delta.version;
            counts.push(*count);
        }
        for delta in writes.buckets {
            tables.add_bucket(delta);
        }
        Ok(Committed { rows: writes.rows, counts })
    }

    async fn repair(&self, fence: Fence, generation: Generation, repair: Repair) -> Result<Checkpoint, CommitError> {
        let mut tables = self.0.lock();
        if !tables.holds(&fence) {
            return Err(CommitError::Fenced);
        }
        let stored = tables.checkpoints.get_mut(&fence.partition).ok_or(CommitError::Fenced)?;
        stored.generation = generation;
        stored.epoch += 1;
        let renewed = stored.clone();
        for (pair, row) in repair.rows {
            match row {
                Some(row) => tables.rows.insert(pair, row),
                None => tables.rows.remove(&pair),
            };
        }
        for (content, first) in repair.counts {
            let rows: Vec<&LikeRecord> = tables.rows.values().filter(|row| row.pair.content == content).collect();
            let count = rows.iter().filter(|row| !row.is_canceled).count() as i64;
            match rows.iter().map(|row| row.version).max() {
                Some(version) => tables.counts.insert(content, Count { content, count, version }),
                None => tables.counts.remove(&content),
            };
            if let Some(offset) = first {
                tables.firsts.insert(content, Position { partition: fence.partition, offset });
            }
        }
        for delta in repair.buckets {
            tables.add_bucket(delta);
        }
        Ok(renewed)
    }

    async fn renew_generation(&self, fence: Fence, generation: Generation) -> Result<Checkpoint, CommitError> {
        let mut tables = self.0.lock();
        if !tables.holds(&fence) {
            return Err(CommitError::Fenced);
        }
        let stored = tables.checkpoints.get_mut(&fence.partition).ok_or(CommitError::Fenced)?;
        stored.generation = generation;
        stored.epoch += 1;
        Ok(stored.clone())
    }

    async fn checkpoint(&self, partition: Partition) -> Result<Option<Checkpoint>, StoreError> {
        Ok(self.0.lock().checkpoints.get(&partition).cloned())
    }

    async fn counts(&self, contents: &[Content]) -> Result<Snapshot<Vec<Option<Count>>>, StoreError> {
        let tables = self.0.lock();
        Ok(tables.snapshot(contents.iter().map(|content| tables.counts.get(content).copied()).collect()))
    }

    async fn rows(&self, pairs: &[Pair]) -> Result<Snapshot<Vec<Option<LikeRecord>>>, StoreError> {
        let tables = self.0.lock();
        Ok(tables.snapshot(pairs.iter().map(|pair| tables.rows.get(pair).cloned()).collect()))
    }

    async fn likers(
        &self,
        content: Content,
        after: Option<Liker>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liker>>, StoreError> {
        let tables = self.0.lock();
        let active = tables.rows.values().filter(|row| !row.is_canceled && row.pair.content == content);
        let mut likers: Vec<Liker> =
            active.filter_map(|row| row.liked_at.map(|liked_at| Liker { user: row.pair.user, liked_at })).collect();
        let key = |liker: &Liker| (Reverse(liker.liked_at), liker.user);
        likers.sort_by_key(key);
        likers.retain(|liker| after.is_none_or(|after| key(liker) > key(&after)));
        likers.truncate(limit);
        Ok(tables.snapshot(likers))
    }

    async fn likes_of(
        &self,
        user: UserId,
        content_type: Option<ContentType>,
        after: Option<Liked>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liked>>, StoreError> {
        let tables = self.0.lock();
        let active = tables.rows.values().filter(|row| !row.is_canceled && row.pair.user == user);
        let mut likes: Vec<Liked> = active
            .filter(|row| content_type.is_none_or(|kind| row.pair.content.content_type == kind))
            .filter_map(|row| row.liked_at.map(|liked_at| Liked { content: row.pair.content, liked_at }))
            .collect();
        let key = |liked: &Liked| (Reverse(liked.liked_at), liked.content);
        likes.sort_by_key(key);
        likes.retain(|liked| after.is_none_or(|after| key(liked) > key(&after)));
        likes.truncate(limit);
        Ok(tables.snapshot(likes))
    }

    async fn firsts(&self, from: &[Position], limit: usize) -> Result<Snapshot<Vec<First>>, StoreError> {
        let tables = self.0.lock();
        let mut firsts = Vec::new();
        for asked in from {
            let is_asked = |first: &&Position| first.partition == asked.partition && first.offset >= asked.offset;
            let found = tables.firsts.iter().filter(|(_, first)| is_asked(first));
            let mut found: Vec<First> =
                found.map(|(content, first)| First { content: *content, position: *first }).collect();
            found.sort_by_key(|first| first.position.offset);
            firsts.extend(found.into_iter().take(limit));
        }
        Ok(tables.snapshot(firsts))
    }

    async fn gains(&self, slot: i64, limit: usize) -> Result<Vec<Gain>, StoreError> {
        let tables = self.0.lock();
        let of_slot = tables.buckets.iter().filter(|((of, _), (gained, lost))| *of == slot && gained != lost);
        let mut gains: Vec<Gain> =
            of_slot.map(|((_, content), (gained, lost))| Gain { content: *content, likes: gained - lost }).collect();
        gains.sort_by_key(|gain| (Reverse(gain.likes.abs()), gain.content));
        keep_of_each_type(&mut gains, limit, |gain| gain.content);
        gains.sort_by_key(|gain| (Reverse(gain.likes), gain.content));
        Ok(gains)
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Checkpoint>, StoreError> {
        let (rows, beside, checkpoints) = {
            let tables = self.0.lock();
            let first = |count: &Count| tables.firsts.get(&count.content).copied();
            let kept = |count: &Count| {
                let Position { partition, offset: first_position } = first(count)?;
                Some(Beside::Count(KeptCount { count: *count, partition, first_position }))
            };
            let bucket = |((slot, content), (gained, lost)): (&(i64, Content), &(i64, i64))| {
                Beside::Bucket(BucketDelta { content: *content, slot: *slot, gained: *gained, lost: *lost })
            };
            let beside = tables.counts.values().filter_map(kept).chain(tables.buckets.iter().map(bucket)).collect();
            (tables.rows.values().cloned().collect(), beside, tables.checkpoints.values().cloned().collect())
        };
        let _nobody_takes_them = scan.rows.send(rows).await;
        if let Some(out) = scan.beside {
            let _nobody_takes_them = out.send(beside).await;
        }
        Ok(checkpoints)
    }
}
