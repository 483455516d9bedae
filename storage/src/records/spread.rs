//! Records spread over several stores by shard: everything of a partition is in one of them, and only a user's list
//! and the scan of all rows are put together from several.

use std::{cmp::Reverse, fmt, ops::RangeInclusive, str::FromStr, sync::Arc};

use async_trait::async_trait;
use futures::future::{join, join_all, try_join_all};
use likewise_schema::{Content, ContentType, Pair, Partition, Position, SHARDS, UserId};
use tokio::sync::mpsc;

use super::{
    Batch, Checkpoint, CommitError, Committed, Count, Fence, First, Gain, Generation, LikeRecord, Liked, Liker, Owner,
    RecordStore, Repair, SCAN_CHUNKS, Scan, Snapshot, keep_of_each_type,
};
use crate::StoreError;

/// A range of shards, written `0-7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards(RangeInclusive<u16>);

impl Shards {
    /// All of them.
    pub fn all() -> Self {
        Self(0..=SHARDS - 1)
    }

    /// Whether a shard is one of them.
    pub fn contains(&self, shard: u16) -> bool {
        self.0.contains(&shard)
    }

    /// The first and the last.
    pub fn bounds(&self) -> (u16, u16) {
        (*self.0.start(), *self.0.end())
    }
}

impl FromStr for Shards {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match parsed {
            Some((first, last)) if first <= last && last < SHARDS => Ok(Self(first..=last)),
            _ => Err(format!("must be a range of shards between 0 and {}, such as 0-7", SHARDS - 1)),
        }
    }
}

impl fmt::Display for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

/// Several stores as one.
pub struct SpreadRecords {
    stores: Vec<Arc<dyn RecordStore>>,
    /// The index of each shard's store.
    by_shard: Vec<usize>,
}

impl SpreadRecords {
    /// Fails, with a sentence, unless each shard is in exactly one of the stores.
    pub fn new(parts: Vec<(Shards, Arc<dyn RecordStore>)>) -> Result<Self, String> {
        let by_shard = Self::check(parts.iter().map(|(shards, _)| shards))?;
        Ok(Self { stores: parts.into_iter().map(|(_, store)| store).collect(), by_shard })
    }

    /// The index of each shard's range. Fails, with a sentence, unless each shard is in exactly one of them.
    pub fn check<'a>(ranges: impl Iterator<Item = &'a Shards>) -> Result<Vec<usize>, String> {
        let ranges: Vec<&Shards> = ranges.collect();
        let home = |shard| {
            let mut homes = (0..ranges.len()).filter(|index| ranges[*index].contains(shard));
            match (homes.next(), homes.next()) {
                (Some(home), None) => Ok(home),
                (None, _) => Err(format!("no record store has shard {shard}: give each of 0-15 a home")),
                (Some(_), Some(_)) => Err(format!("two record stores have shard {shard}: give it one home")),
            }
        };
        (0..SHARDS).map(home).collect()
    }

    fn of(&self, partition: Partition) -> &Arc<dyn RecordStore> {
        &self.stores[self.by_shard[usize::from(partition.shard())]]
    }

    fn home_of(&self, content: &Content) -> usize {
        self.by_shard[usize::from(content.shard())]
    }

    /// Which keys each store is asked for, by their index.
    fn split<K: Copy>(&self, keys: &[K], content: impl Fn(&K) -> Content) -> Vec<Share<'_, K>> {
        let share = |store| Share { store, indexes: Vec::new(), keys: Vec::new() };
        let mut shares: Vec<Share<'_, K>> = self.stores.iter().map(share).collect();
        for (index, key) in keys.iter().enumerate() {
            let share = &mut shares[self.home_of(&content(key))];
            share.indexes.push(index);
            share.keys.push(*key);
        }
        shares.retain(|share| !share.keys.is_empty());
        shares
    }
}

/// What one store is asked for.
struct Share<'a, K> {
    store: &'a Arc<dyn RecordStore>,
    indexes: Vec<usize>,
    keys: Vec<K>,
}

/// Puts the answers in the order asked for.
fn assemble<K, T>(
    count: usize,
    shares: &[Share<'_, K>],
    answers: Vec<Snapshot<Vec<Option<T>>>>,
) -> Snapshot<Vec<Option<T>>> {
    let mut value: Vec<Option<T>> = std::iter::repeat_with(|| None).take(count).collect();
    let mut checkpoints = Vec::new();
    for (share, answer) in shares.iter().zip(answers) {
        share.indexes.iter().zip(answer.value).for_each(|(index, found)| value[*index] = found);
        checkpoints.extend(answer.checkpoints);
    }
    Snapshot { value, checkpoints: sorted(checkpoints) }
}

fn sorted(mut checkpoints: Vec<Checkpoint>) -> Vec<Checkpoint> {
    checkpoints.sort_by_key(|checkpoint| checkpoint.partition);
    checkpoints
}

#[async_trait]
impl RecordStore for SpreadRecords {
    async fn acquire(&self, partition: Partition, owner: &Owner) -> Result<Checkpoint, StoreError> {
        self.of(partition).acquire(partition, owner).await
    }

    fn home(&self, partition: Partition) -> usize {
        self.by_shard[usize::from(partition.shard())]
    }

    fn fault(&self) -> Option<StoreError> {
        self.stores.iter().find_map(|store| store.fault())
    }

    async fn commit(&self, batch: Batch) -> Result<Committed, CommitError> {
        self.of(batch.fence.partition).commit(batch).await
    }

    async fn repair(&self, fence: Fence, generation: Generation, repair: Repair) -> Result<Checkpoint, CommitError> {
        self.of(fence.partition).repair(fence, generation, repair).await
    }

    async fn renew_generation(&self, fence: Fence, generation: Generation) -> Result<Checkpoint, CommitError> {
        self.of(fence.partition).renew_generation(fence, generation).await
    }

    async fn checkpoint(&self, partition: Partition) -> Result<Option<Checkpoint>, StoreError> {
        self.of(partition).checkpoint(partition).await
    }

    async fn counts(&self, contents: &[Content]) -> Result<Snapshot<Vec<Option<Count>>>, StoreError> {
        let shares = self.split(contents, |content| *content);
        let answers = try_join_all(shares.iter().map(|share| share.store.counts(&share.keys))).await?;
        Ok(assemble(contents.len(), &shares, answers))
    }

    async fn rows(&self, pairs: &[Pair]) -> Result<Snapshot<Vec<Option<LikeRecord>>>, StoreError> {
        let shares = self.split(pairs, |pair| pair.content);
        let answers = try_join_all(shares.iter().map(|share| share.store.rows(&share.keys))).await?;
        Ok(assemble(pairs.len(), &shares, answers))
    }

    async fn likers(
        &self,
        content: Content,
        after: Option<Liker>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liker>>, StoreError> {
        self.stores[self.home_of(&content)].likers(content, after, limit).await
    }

    async fn likes_of(
        &self,
        user: UserId,
        content_type: Option<ContentType>,
        after: Option<Liked>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liked>>, StoreError> {
        let pages = self.stores.iter().map(|store| store.likes_of(user, content_type, after, limit));
        let (mut value, mut checkpoints) = (Vec::new(), Vec::new());
        for page in try_join_all(pages).await? {
            value.extend(page.value);
            checkpoints.extend(page.checkpoints);
        }
        value.sort_by_key(|liked: &Liked| (Reverse(liked.liked_at), liked.content));
        value.truncate(limit);
        Ok(Snapshot { value, checkpoints: sorted(checkpoints) })
    }

    async fn firsts(&self, from: &[Position], limit: usize) -> Result<Snapshot<Vec<First>>, StoreError> {
        let firsts = self.stores.iter().enumerate().map(|(index, store)| async move {
            let held = |position: &&Position| self.by_shard[usize::from(position.partition.shard())] == index;
            let from: Vec<Position> = from.iter().filter(held).copied().collect();
            store.firsts(&from, limit).await
        });
        // Of each what it says: one that is away takes nothing from the others.
        let (mut value, mut checkpoints, mut failed) = (Vec::new(), Vec::new(), None);
        for firsts in join_all(firsts).await {
            match firsts {
                Ok(firsts) => {
                    value.extend(firsts.value);
                    checkpoints.extend(firsts.checkpoints);
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if checkpoints.is_empty() => Err(error),
            _ => Ok(Snapshot { value, checkpoints: sorted(checkpoints) }),
        }
    }

    async fn gains(&self, slot: i64, limit: usize) -> Result<Vec<Gain>, StoreError> {
        let mut all = try_join_all(self.stores.iter().map(|store| store.gains(slot, limit))).await?.concat();
        all.sort_by_key(|gain| (Reverse(gain.likes.abs()), gain.content));
        keep_of_each_type(&mut all, limit, |gain| gain.content);
        all.sort_by_key(|gain| (Reverse(gain.likes), gain.content));
        Ok(all)
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Checkpoint>, StoreError> {
        let Scan { rows, beside } = scan;
        let mut streams = Vec::new();
        let scans = self.stores.iter().map(|store| {
            let (sender, receiver) = mpsc::channel(SCAN_CHUNKS);
            streams.push(Rows { receiver, chunk: Vec::new().into_iter() });
            store.scan(Scan { rows: sender, beside: beside.clone() })
        });
        let scans = try_join_all(scans.collect::<Vec<_>>());
        drop(beside);
        let (checkpoints, ()) = join(scans, merge(streams, rows)).await;
        Ok(sorted(checkpoints?.concat()))
    }
}

/// The rows of one store, as they come.
struct Rows {
    receiver: mpsc::Receiver<Vec<LikeRecord>>,
    chunk: std::vec::IntoIter<LikeRecord>,
}

impl Rows {
    async fn next(&mut self) -> Option<LikeRecord> {
        loop {
            if let Some(row) = self.chunk.next() {
                return Some(row);
            }
            self.chunk = self.receiver.recv().await?.into_iter();
        }
    }
}

/// Sends the rows of all stores in one order. Ends early when nobody takes them.
async fn merge(mut streams: Vec<Rows>, rows: mpsc::Sender<Vec<LikeRecord>>) {
    const CHUNK: usize = 1000;
    let mut heads = Vec::new();
    for stream in &mut streams {
        heads.push(stream.next().await);
    }
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        let pair_of = |index: &usize| heads[*index].as_ref().map(|row: &LikeRecord| row.pair);
        let first = (0..heads.len()).filter(|index| heads[*index].is_some()).min_by_key(pair_of);
        if chunk.len() == CHUNK || first.is_none() {
            let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
            if rows.send(full).await.is_err() {
                return;
            }
        }
        let Some(first) = first else { return };
        let next = streams[first].next().await;
        chunk.extend(std::mem::replace(&mut heads[first], next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_ranges_that_exist() {
        assert_eq!("0-7".parse::<Shards>().map(|shards| shards.to_string()), Ok("0-7".into()));
        for bad in ["", "7", "8-7", "0-16", "-1-3", "a-b"] {
            assert!(bad.parse::<Shards>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_shard_needs_one_home() {
        let refused = |ranges: &[&str]| {
            let ranges: Vec<Shards> = ranges.iter().map(|range| range.parse().unwrap()).collect();
            SpreadRecords::check(ranges.iter()).err()
        };
        assert_eq!(refused(&["0-7", "8-15"]), None);
        assert!(refused(&["0-7", "9-15"]).unwrap().contains("no record store has shard 8"));
        assert!(refused(&["0-8", "8-15"]).unwrap().contains("two record stores have shard 8"));
    }
}
