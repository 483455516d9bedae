//! The plain model, and the invariants checked against it. Shares no code with the fold.

use std::collections::{BTreeMap, BTreeSet};

use likewise_schema::{Content, LikeToggled, Pair, Partition, PartitionCount, Position, RequestId};
use likewise_storage::{log::LogRecord, records::LikeRecord};

/// What the senders were told of one requestId.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) accepted: Vec<Position>,
    /// Some sender got no definite answer.
    pub(crate) unknown: bool,
}

/// A pair's life as the model sees it: every accepted event, oldest first.
type Accepted = BTreeMap<Pair, Vec<(i64, LikeToggled)>>;

/// Plays the first `end` records of a partition.
pub(crate) fn play(partition: Partition, records: &[LogRecord], end: usize) -> Accepted {
    let mut accepted = Accepted::new();
    records.iter().take(end).for_each(|record| play_one(&mut accepted, partition, record));
    accepted
}

/// Plays the next record.
pub(crate) fn play_one(accepted: &mut Accepted, partition: Partition, record: &LogRecord) {
    let (key, value) = (record.key.as_deref(), record.value.as_deref());
    let decoded = LikeToggled::decode(partition, PartitionCount::DEFAULT, key, value, &record.headers);
    let Ok(like) = decoded else { return };
    let past = accepted.entry(like.pair()).or_default();
    if counts(past, &like.request_id) {
        past.push((record.offset.get(), like));
    }
}

fn counts(past: &[(i64, LikeToggled)], id: &RequestId) -> bool {
    let recent = past.iter().rev().take(16);
    if recent.clone().any(|(_, like)| like.request_id == *id) {
        return false;
    }
    let is_v7 = |id: &RequestId| id.as_bytes()[6] >> 4 == 7 && id.as_bytes()[8] >> 6 == 2;
    let forgotten = past.iter().rev().skip(16).map(|(_, like)| like.request_id);
    !(is_v7(id) && forgotten.filter(is_v7).any(|old| old >= *id))
}

/// Whether the user of `pair` likes its content.
pub(crate) fn likes(accepted: &Accepted, pair: &Pair) -> bool {
    accepted.get(pair).and_then(|past| past.last()).is_some_and(|(_, like)| like.liked)
}

/// The number of users who like `content`.
pub(crate) fn count(accepted: &Accepted, content: &Content) -> i64 {
    accepted.keys().filter(|pair| pair.content == *content && likes(accepted, pair)).count() as i64
}

/// I1 and I2: what was acknowledged is where it was said to be; what was refused for certain is nowhere.
pub(crate) fn acknowledgements(
    histories: &BTreeMap<RequestId, History>,
    records: &BTreeMap<Partition, Vec<LogRecord>>,
) -> Result<(), String> {
    let key_at = |position: &Position| {
        let record = records.get(&position.partition)?.get(position.offset.get() as usize)?;
        Some(record.key.clone().unwrap_or_default())
    };
    let in_log: BTreeSet<Vec<u8>> = records.values().flatten().filter_map(|record| record.key.clone()).collect();
    for (id, history) in histories {
        for position in &history.accepted {
            if key_at(position) != Some(id.to_string().into_bytes()) {
                return Err(format!(
                    "I1: {id} was acknowledged at {position:?}, where the log has another record or none"
                ));
            }
        }
        let refused = history.accepted.is_empty() && !history.unknown;
        if refused && in_log.contains(id.to_string().as_bytes()) {
            return Err(format!("I2: {id} was refused for certain, and the log has it"));
        }
    }
    Ok(())
}

/// I3 and I4: rows and counts are what the model says.
pub(crate) fn rows(
    accepted: &Accepted,
    rows: &BTreeMap<Pair, LikeRecord>,
    stored_counts: &BTreeMap<Content, i64>,
) -> Result<(), String> {
    for (pair, past) in accepted {
        let row = rows.get(pair).ok_or(format!("I3: {pair:?} has no row"))?;
        let Some((version, last)) = past.last() else { continue };
        if row.is_canceled == last.liked || row.version.get() != *version {
            return Err(format!(
                "I3: the row of {pair:?} is {row:?}, the last accepted event is {last:?} at {version}"
            ));
        }
        let ring: Vec<RequestId> =
            past.iter().skip(past.len().saturating_sub(16)).map(|(_, like)| like.request_id).collect();
        if row.ring != ring {
            return Err(format!("I3: the ring of {pair:?} is {:?}, not {ring:?}", row.ring));
        }
    }
    if rows.len() != accepted.len() {
        return Err(format!("I3: {} rows for {} pairs", rows.len(), accepted.len()));
    }
    for content in accepted.keys().map(|pair| pair.content) {
        let expected = count(accepted, &content);
        let stored = stored_counts.get(&content);
        if stored != Some(&expected) {
            return Err(format!("I3: the count of {content} is {stored:?}, {expected} rows are active"));
        }
    }
    Ok(())
}
