//! Properties of the fold, and a slow model of it written differently.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashMap};

use likewise_projector::fold::{Event, Tally, Verdict, apply, fold};
use likewise_schema::{Content, LikeToggled, Offset, Pair, RequestId, Timestamp, UserId};
use likewise_storage::records::{LikeRecord, Writes};
use proptest::prelude::*;

const START: i64 = 1_700_000_000_000;

/// An id: v7 with a time and a tail, or of another version.
fn id(millis: i64, tail: u8, is_v7: bool) -> RequestId {
    let mut bytes = [tail; 16];
    bytes[..6].copy_from_slice(&(START + millis).to_be_bytes()[2..]);
    bytes[6] = if is_v7 { 0x70 } else { 0x40 } | (tail & 0x0f);
    bytes[8] = 0x80 | (tail & 0x3f);
    RequestId::from_bytes(bytes)
}

fn event(offset: i64, request_id: RequestId, user: i64, content: i64, liked: bool) -> Event {
    let content: Content = format!("post:{content}").parse().unwrap();
    let like = LikeToggled {
        request_id,
        user_id: UserId::new(user).unwrap(),
        content_type: content.content_type,
        content_id: content.content_id,
        liked,
        occurred_at: None,
        received_at: Timestamp::from_millis(START + offset * 1000).unwrap(),
    };
    Event { offset: Offset::new(offset).unwrap(), like }
}

/// Few users, contents and milliseconds, so that rings overflow, ids repeat and floors matter.
fn logs() -> impl Strategy<Value = Vec<Event>> {
    let one = (0..40_i64, 0..4_u8, prop::bool::weighted(0.8), 1..3_i64, 1..3_i64, any::<bool>());
    prop::collection::vec(one, 0..200).prop_map(|drawn| {
        let numbered = drawn.into_iter().zip(0..);
        numbered
            .map(|((ms, tail, v7, user, content, liked), at)| event(at, id(ms, tail, v7), user, content, liked))
            .collect()
    })
}

/// The rows and counts of a whole log, folded in batches that end at `cuts`.
fn in_batches(log: &[Event], cuts: &[usize]) -> (HashMap<Pair, LikeRecord>, BTreeMap<Content, i64>, Tally) {
    let (mut rows, mut counts, mut total) = (HashMap::new(), BTreeMap::new(), Tally::default());
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (log.len() + 1)).chain([log.len()]).collect();
    ends.sort_unstable();
    let mut start = 0;
    for end in ends {
        let (writes, tally) = fold(&rows, &log[start..end]);
        start = end;
        rows.extend(writes.rows.into_iter().map(|row| (row.pair, row)));
        for delta in writes.counts {
            *counts.entry(delta.content).or_default() += delta.delta;
        }
        total.accepted += tally.accepted;
        total.duplicate += tally.duplicate;
        total.superseded += tally.superseded;
    }
    (rows, counts, total)
}

/// The model: for each pair the list of all accepted events; everything is looked up in it anew each time.
fn model(log: &[Event]) -> HashMap<Pair, Vec<Event>> {
    let mut accepted: HashMap<Pair, Vec<Event>> = HashMap::new();
    for event in log {
        let past = accepted.entry(event.like.pair()).or_default();
        let (fallen, ring) = past.split_at(past.len().saturating_sub(16));
        let is_v7 = |id: &RequestId| {
            let text = id.to_string();
            text.as_bytes()[14] == b'7' && matches!(text.as_bytes()[19], b'8' | b'9' | b'a' | b'b')
        };
        let id = event.like.request_id;
        let is_known = ring.iter().any(|past| past.like.request_id == id);
        let is_late = is_v7(&id)
            && fallen
                .iter()
                .map(|past| past.like.request_id)
                .filter(is_v7)
                .any(|past| past.to_string() >= id.to_string());
        if !is_known && !is_late {
            past.push(*event);
        }
    }
    accepted.retain(|_, events| !events.is_empty());
    accepted
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_batching_gives_equal_rows_and_counts(log in logs(), cuts in prop::collection::vec(any::<usize>(), 0..20)) {
        prop_assert_eq!(in_batches(&log, &cuts), in_batches(&log, &[]));
    }

    #[test]
    fn the_fold_is_the_model(log in logs()) {
        let (rows, counts, _) = in_batches(&log, &[]);
        let expected = model(&log);
        prop_assert_eq!(rows.len(), expected.len());
        for (pair, events) in expected {
            let row = &rows[&pair];
            let last = events.last().unwrap();
            let mut liked_since = None;
            for event in &events {
                liked_since = event.like.liked.then(|| liked_since.unwrap_or(event.like.received_at));
            }
            prop_assert_eq!(!row.is_canceled, last.like.liked);
            prop_assert_eq!(row.version, last.offset);
            prop_assert_eq!(row.created_at, events[0].like.received_at);
            prop_assert_eq!(row.updated_at, last.like.received_at);
            if last.like.liked {
                prop_assert_eq!(row.liked_at, liked_since);
            }
            let (fallen, ring) = events.split_at(events.len().saturating_sub(16));
            prop_assert_eq!(&row.ring, &ring.iter().map(|event| event.like.request_id).collect::<Vec<_>>());
            let floor = fallen.iter().map(|event| event.like.request_id).filter(|id| id.v7_millis().is_some()).max();
            prop_assert_eq!(row.floor, floor);
        }
        let mut active: BTreeMap<Content, i64> = rows.values().map(|row| (row.pair.content, 0)).collect();
        for row in rows.values().filter(|row| !row.is_canceled) {
            *active.get_mut(&row.pair.content).unwrap() += 1;
        }
        prop_assert_eq!(counts, active);
    }

    #[test]
    fn copies_of_accepted_v7_events_never_have_an_effect(log in logs(), copies in prop::collection::vec(any::<(usize, usize)>(), 0..50)) {
        let log: Vec<Event> = log.into_iter().filter(|event| event.like.request_id.v7_millis().is_some()).collect();
        let accepted: Vec<Event> = model(&log).into_values().flatten().collect();
        prop_assume!(!accepted.is_empty());
        // A copy comes anywhere after its original.
        let mut with_copies: Vec<Event> = log.clone();
        for (which, place) in copies {
            let copy = accepted[which % accepted.len()];
            let original = with_copies.iter().position(|event| event.offset == copy.offset).unwrap();
            let after = original + 1;
            with_copies.insert(after + place % (with_copies.len() + 1 - after), copy);
        }
        let (rows, counts, _) = in_batches(&with_copies, &[]);
        let (expected, expected_counts, _) = in_batches(&log, &[]);
        prop_assert_eq!(rows, expected);
        prop_assert_eq!(counts, expected_counts);
    }

    #[test]
    fn versions_never_go_back_and_every_event_is_judged_once(log in logs()) {
        let mut rows: HashMap<Pair, LikeRecord> = HashMap::new();
        for event in &log {
            let pair = event.like.pair();
            if let (verdict, Some(next)) = apply(rows.get(&pair), event) {
                prop_assert_eq!(verdict, Verdict::Accepted);
                prop_assert!(rows.get(&pair).is_none_or(|row| row.version < next.version));
                rows.insert(pair, next);
            }
        }
        let (_, _, tally) = in_batches(&log, &[]);
        prop_assert_eq!(tally.accepted + tally.duplicate + tally.superseded, log.len() as u64);
    }
}

#[test]
fn an_unlike_of_an_unknown_pair_writes_a_cancelled_row() {
    let (writes, _) = fold(&HashMap::new(), &[event(5, id(1, 1, true), 7, 42, false)]);
    let Writes { rows, counts, buckets } = writes;
    assert!(rows[0].is_canceled && rows[0].liked_at.is_none());
    assert_eq!(rows[0].ring, [id(1, 1, true)]);
    assert_eq!((counts[0].delta, counts[0].version.get(), counts[0].first_position.get()), (0, 5, 5));
    assert!(buckets.is_empty());
}

#[test]
fn the_floor_compares_all_bytes_of_v7_ids_and_no_other_ids() {
    let ids: Vec<RequestId> = (0..16).map(|tail| id(100, 16 + tail, true)).collect();
    let mut log = vec![event(0, id(100, 8, true), 7, 42, true)];
    log.extend(ids.iter().zip(1..).map(|(id, at)| event(at, *id, 7, 42, at % 2 == 0)));
    let (rows, _, _) = in_batches(&log, &[]);
    let row = rows.values().next().unwrap();
    assert_eq!(row.floor, Some(id(100, 8, true)), "the first id fell out of the ring");
    let verdict = |id| apply(Some(row), &event(99, id, 7, 42, true)).0;
    assert_eq!(verdict(id(100, 8, true)), Verdict::Superseded, "the floor itself");
    assert_eq!(verdict(id(100, 7, true)), Verdict::Superseded, "the same millisecond, below");
    assert_eq!(verdict(id(100, 9, true)), Verdict::Accepted, "the same millisecond, above");
    assert_eq!(verdict(id(0, 1, false)), Verdict::Accepted, "not a v7 id");
    assert_eq!(verdict(ids[3]), Verdict::Duplicate);
}
