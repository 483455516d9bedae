//! Makes right what a comparison found wrong, as an owner does: the partition is acquired, so that whoever owned it drops
//! what it remembers, and everything is written in one transaction that holds at one offset.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use likewise_schema::{Content, Offset, Pair, Partition, UserId};
use likewise_storage::{
    Clock, StoreError,
    counters::Scope,
    records::{BucketDelta, Checkpoint, CommitError, Generation, Owner, Repair},
};
use serde::Serialize;

use super::{FINDINGS_MAX, Finding, Mend, Report, Stores};
use crate::{
    Error,
    model::Life,
    reader::{Pace, PartitionReader, decode},
};

/// How often a partition is acquired at most: its owner acquires it anew after a moment, and may be faster.
const TRIES_MAX: u32 = 30;
/// Rows, counts and buckets that are written in one transaction.
const PIECE: usize = 500;
const BACK_OFF: Duration = Duration::from_millis(50);

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repaired {
    /// Rows written or removed.
    pub rows: u64,
    /// Counts worked out anew.
    pub counts: u64,
    /// Buckets changed.
    pub buckets: u64,
    /// Entries that the cache was told to forget.
    pub forgotten: u64,
    /// Differences that nothing is known to mend.
    pub left: u64,
}

impl Repaired {
    /// Adds what another repair did; what is left is what the last one left.
    pub fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.counts += other.counts;
        self.buckets += other.buckets;
        self.forgotten += other.forgotten;
        self.left = other.left;
    }
}

/// What a partition needs.
#[derive(Default)]
struct Needs {
    lives: HashMap<Pair, Option<Life>>,
    counts: BTreeMap<Content, Option<Offset>>,
    repair_buckets: Vec<BucketDelta>,
    contents: BTreeSet<Content>,
    users: BTreeSet<UserId>,
}

impl Needs {
    fn add(&mut self, finding: &Finding, done: &mut Repaired) {
        let Some(content) = finding.content else {
            done.left += 1;
            return;
        };
        self.contents.insert(content);
        self.users.extend(finding.user);
        match (&finding.mend, finding.user) {
            (Mend::Row(life), Some(user)) => {
                // What the log says of a pair is not forgotten for a row too many of it.
                let known = self.lives.entry(Pair { content, user }).or_default();
                *known = life.clone().or(known.take());
                // The count may follow from what was wrong.
                self.counts.entry(content).or_default();
            }
            (Mend::Count(first), _) => {
                let known = self.counts.entry(content).or_default();
                *known = first.or(*known);
            }
            (Mend::Bucket(delta), _) => self.repair_buckets.push(*delta),
            (Mend::Forget, _) => {}
            (Mend::Row(_) | Mend::Nothing, _) => done.left += 1,
        }
    }

    fn is_in_records(&self) -> bool {
        !self.lives.is_empty() || !self.counts.is_empty() || !self.repair_buckets.is_empty()
    }
}

/// Mends what `report` found. `owner` is who acquires: of the projector's fold. What is written now and then differs again is
/// for another comparison to tell.
pub async fn repair(stores: &Stores, owner: &Owner, report: &Report, clock: &Clock) -> Result<Repaired, Error> {
    if report.total() > FINDINGS_MAX as u64 {
        return Err(Error::asked(format!(
            "over {FINDINGS_MAX} differences are not mended one by one: rebuild the records"
        )));
    }
    let mut done = Repaired::default();
    let mut by_partition: BTreeMap<Partition, Needs> = BTreeMap::new();
    for finding in &report.findings {
        match finding.partition {
            Some(partition) => by_partition.entry(partition).or_default().add(finding, &mut done),
            None => done.left += 1,
        }
    }
    let mut failed = None;
    for (partition, needs) in by_partition {
        let Some(scope) = report.scopes.get(&partition).copied() else {
            // It has no checkpoint: nobody may write to it.
            done.left += (needs.lives.len() + needs.counts.len() + needs.repair_buckets.len()) as u64;
            continue;
        };
        let from = report.partitions.get(&partition.get()).and_then(|offset| Offset::new(*offset).ok());
        if needs.is_in_records() {
            let owner = Owner { micros: clock.micros(), ..owner.clone() };
            if let Err(error) = mend(stores, &owner, partition, from.unwrap_or_default(), &needs).await {
                // The others can be mended all the same; what is left here the next comparison tells.
                failed = Some(error);
                continue;
            }
            done.rows += needs.lives.len() as u64;
            done.counts += needs.counts.len() as u64;
            done.buckets += needs.repair_buckets.len() as u64;
        }
        done.forgotten += forget(stores, scope, &needs).await?;
    }
    match failed {
        Some(error) if done == Repaired::default() => Err(error),
        _ => Ok(done),
    }
}

/// Drops from the cache whatever was touched.
async fn forget(stores: &Stores, scope: Scope, needs: &Needs) -> Result<u64, Error> {
    let Some(counters) = &stores.counters else { return Ok(0) };
    let contents: Vec<Content> = needs.contents.iter().copied().collect();
    let users: Vec<UserId> = needs.users.iter().copied().collect();
    counters.forget(scope, &contents, &users).await?;
    Ok((contents.len() + users.len()) as u64)
}

async fn mend(stores: &Stores, owner: &Owner, partition: Partition, from: Offset, needs: &Needs) -> Result<(), Error> {
    let (mut lives, mut at) = (needs.lives.clone(), from);
    // Rows first: counts follow from them.
    let mut rows: Vec<Pair> = lives.keys().copied().collect();
    rows.sort_unstable();
    let mut counts: Vec<(Content, Option<Offset>)> =
        needs.counts.iter().map(|(content, first)| (*content, *first)).collect();
    let mut buckets = needs.repair_buckets.clone();
    let mut last = StoreError::unavailable("the records", "the partition has an owner that is always faster");
    'acquired: for _ in 0..TRIES_MAX {
        let mut checkpoint = match stores.records.acquire(partition, owner).await {
            Ok(checkpoint) => checkpoint,
            Err(error @ StoreError::Unavailable { .. }) => {
                last = error;
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        at = live_on(stores, &checkpoint, at, &mut lives).await?;
        // In pieces that a transaction takes well; the checkpoint stays, so all of them are of one offset.
        while !rows.is_empty() || !counts.is_empty() || !buckets.is_empty() {
            let piece = rows.len().saturating_sub(PIECE);
            let of_rows = rows[piece..].iter().map(|pair| {
                let life = lives.get(pair).and_then(Option::as_ref);
                (*pair, life.map(|life| life.record(*pair)))
            });
            let mut repair = Repair { rows: of_rows.collect(), ..Repair::default() };
            let of_counts = counts.len().saturating_sub(if piece == 0 { PIECE } else { 0 });
            let of_buckets = buckets.len().saturating_sub(if piece == 0 { PIECE } else { 0 });
            repair.counts = counts[of_counts..].to_vec();
            repair.buckets = buckets[of_buckets..].to_vec();
            match stores.records.repair(checkpoint.fence(), Generation(rand::random()), repair).await {
                Ok(renewed) => {
                    checkpoint = renewed;
                    rows.truncate(piece);
                    counts.truncate(of_counts);
                    buckets.truncate(of_buckets);
                }
                Err(CommitError::Fenced) => {
                    tokio::time::sleep(BACK_OFF).await;
                    continue 'acquired;
                }
                // Buckets would be added to twice: another comparison has to tell what came of it.
                Err(CommitError::Unknown(error)) => return Err(error.into()),
            }
        }
        return Ok(());
    }
    Err(last.into())
}

/// Lives through what came between an offset and the checkpoint.
async fn live_on(
    stores: &Stores,
    checkpoint: &Checkpoint,
    from: Offset,
    lives: &mut HashMap<Pair, Option<Life>>,
) -> Result<Offset, Error> {
    let (partition, end) = (checkpoint.partition, checkpoint.next_offset);
    if end < from {
        return Err(Error::asked("the records went back meanwhile: compare again"));
    }
    let mut reader = PartitionReader::new(&stores.log, partition, (from, end), 4096, &Pace::new(0));
    loop {
        let records = reader.chunk().await?;
        if records.is_empty() {
            return Ok(end);
        }
        for record in &records {
            if let Ok(event) = decode(&stores.log, partition, record)
                && let Some(life) = lives.get_mut(&event.pair())
            {
                Life::meet(life, &event.request_id, event.liked, event.received_at, record.offset);
            }
        }
    }
}
