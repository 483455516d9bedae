//! What a like means. Pure and total: no I/O, no clock, never panics. Any batching of a log gives byte-equal rows.

use std::collections::{BTreeMap, HashMap};

use likewise_schema::{Content, LikeToggled, Offset, Pair, RequestId};
use likewise_storage::{
    planted::{self, Bug},
    records::{BucketDelta, CountDelta, LikeRecord, RING_MAX, Writes},
};

/// Stored in each checkpoint. Another fold, or another idea of which records are malformed, is another version, and
/// needs a rebuild.
pub const FOLD_VERSION: u32 = 1;

/// An event with its place in the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its offset: the version it gives.
    pub offset: Offset,
    /// The event.
    pub like: LikeToggled,
}

/// What an event came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It entered the ring and moved the version, whether or not it changed the state.
    Accepted,
    /// Its requestId is in the ring.
    Duplicate,
    /// It is a v7 id at or below the floor.
    Superseded,
}

/// How many events of a batch came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// See [`Verdict::Accepted`].
    pub accepted: u64,
    /// See [`Verdict::Duplicate`].
    pub duplicate: u64,
    /// See [`Verdict::Superseded`].
    pub superseded: u64,
}

/// Judges an event by the row of its pair.
pub fn judge(row: Option<&LikeRecord>, event: &LikeToggled) -> Verdict {
    let Some(row) = row else { return Verdict::Accepted };
    if row.ring.contains(&event.request_id) {
        return Verdict::Duplicate;
    }
    match row.floor {
        Some(floor) if is_at_or_below(&event.request_id, &floor) => Verdict::Superseded,
        _ => Verdict::Accepted,
    }
}

/// Both are v7 ids, or the answer is no. All 16 bytes are compared: ids of one millisecond differ after the time.
fn is_at_or_below(id: &RequestId, floor: &RequestId) -> bool {
    if planted::on(Bug::FloorByTimeOnly) {
        return id.v7_millis().is_some_and(|millis| Some(millis) < floor.v7_millis());
    }
    id.v7_millis().is_some() && id.as_bytes() <= floor.as_bytes()
}

/// Applies one event to the row of its pair. None for the row: nothing is to be written.
pub fn apply(row: Option<&LikeRecord>, event: &Event) -> (Verdict, Option<LikeRecord>) {
    let like = &event.like;
    let verdict = judge(row, like);
    if verdict != Verdict::Accepted {
        return (verdict, None);
    }
    if planted::on(Bug::UnlikeOfUnknownPairDropped) && row.is_none() && !like.liked {
        return (verdict, None);
    }
    let was_active = row.is_some_and(|row| !row.is_canceled);
    let is_active = if planted::on(Bug::Flip) { !was_active } else { like.liked };
    let mut next = row.cloned().unwrap_or_else(|| LikeRecord {
        pair: like.pair(),
        is_canceled: true,
        created_at: like.received_at,
        updated_at: like.received_at,
        liked_at: None,
        version: event.offset,
        ring: Vec::with_capacity(1),
        floor: None,
    });
    next.is_canceled = !is_active;
    next.updated_at = like.received_at;
    next.version = event.offset;
    if is_active && !was_active {
        next.liked_at = Some(like.received_at);
    }
    if !(planted::on(Bug::NoOpLeftOutOfRing) && row.is_some() && is_active == was_active) {
        remember(&mut next, like.request_id);
    }
    (verdict, Some(next))
}

fn remember(row: &mut LikeRecord, id: RequestId) {
    row.ring.push(id);
    if row.ring.len() > RING_MAX {
        let fallen = row.ring.remove(0);
        if fallen.v7_millis().is_some() {
            row.floor = row.floor.max(Some(fallen));
        }
    }
}

/// Folds a batch: `events` of one partition in log order, `prior` the rows their pairs had before it. A pair that
/// `prior` does not name has no row.
pub fn fold(prior: &HashMap<Pair, LikeRecord>, events: &[Event]) -> (Writes, Tally) {
    let mut rows: BTreeMap<Pair, LikeRecord> = BTreeMap::new();
    let mut counts: BTreeMap<Content, CountDelta> = BTreeMap::new();
    let mut buckets: BTreeMap<(i64, Content), BucketDelta> = BTreeMap::new();
    let mut tally = Tally::default();
    for event in events {
        let pair = event.like.pair();
        let before = rows.get(&pair).or_else(|| prior.get(&pair));
        let was_active = before.is_some_and(|row| !row.is_canceled);
        let (verdict, after) = apply(before, event);
        match verdict {
            Verdict::Accepted => tally.accepted += 1,
            Verdict::Duplicate => tally.duplicate += 1,
            Verdict::Superseded => tally.superseded += 1,
        }
        let Some(after) = after else { continue };
        let change = i64::from(!after.is_canceled) - i64::from(was_active);
        rows.insert(pair, after);
        let content = pair.content;
        let first_position = event.offset;
        let count = CountDelta { content, delta: 0, version: event.offset, first_position };
        let count = counts.entry(content).or_insert(count);
        count.delta += change;
        count.version = event.offset;
        if change != 0 {
            let slot = event.like.received_at.ten_minute_slot();
            let bucket = BucketDelta { content, slot, gained: 0, lost: 0 };
            let bucket = buckets.entry((slot, content)).or_insert(bucket);
            bucket.gained += i64::from(change > 0);
            bucket.lost += i64::from(change < 0);
        }
    }
    let writes = Writes {
        rows: rows.into_values().collect(),
        counts: counts.into_values().collect(),
        buckets: buckets.into_values().collect(),
    };
    (writes, tally)
}
