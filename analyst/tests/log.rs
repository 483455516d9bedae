//! What is read from a log, against slower ways to the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
    sync::Arc,
};

use likewise_analyst::{
    Progress,
    counts::{Step, Subject, count_at, history},
    export::{Exported, Target, check, export},
    model::Life,
    range::{Edge, Range},
    reader::Pace,
    stream::Stream,
    top::{Gained, top},
};
use likewise_projector::fold::{Event, Verdict, apply};
use likewise_schema::{Content, LikeToggled, Offset, Pair, Partition, PartitionCount, RequestId, Timestamp, UserId};
use likewise_storage::{
    EventLog,
    log::{NewRecord, SqliteLog},
    records::LikeRecord,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const START: i64 = 1_790_000_000_000;
const HOUR: i64 = 3_600_000;

fn time(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

/// An id: v7 with a time and a tail, or of another version.
fn id(millis: i64, tail: u16, is_v7: bool) -> RequestId {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&(START + millis).to_be_bytes()[2..]);
    bytes[6] = if is_v7 { 0x70 } else { 0x40 };
    bytes[8] = 0x80;
    bytes[14..].copy_from_slice(&tail.to_be_bytes());
    RequestId::from_bytes(bytes)
}

fn like(request_id: RequestId, user: i64, content: i64, liked: bool, received_at: i64) -> LikeToggled {
    let content: Content = format!("{}:{content}", if content % 5 == 0 { "clip" } else { "post" }).parse().unwrap();
    let (content_type, content_id) = (content.content_type, content.content_id);
    let user_id = UserId::new(user).unwrap();
    LikeToggled {
        request_id,
        user_id,
        content_type,
        content_id,
        liked,
        occurred_at: None,
        received_at: time(received_at),
    }
}

/// Three weeks of few users and contents, so that ids repeat and rings overflow; clocks go back by up to half a day.
fn drawn(events: usize, seed: u64) -> Vec<LikeToggled> {
    drawn_over(events, 21 * 24 * HOUR, 12 * HOUR, seed)
}

/// The same over some time, by clocks that go back by so much.
fn drawn_over(events: usize, span: i64, back: i64, seed: u64) -> Vec<LikeToggled> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut draw = |most: i64| random.random_range(0..most);
    (0..events as i64)
        .map(|number| {
            let at = number * span / events as i64;
            let id = id(at - draw(20) * HOUR, draw(60_000) as u16, draw(10) > 0);
            like(id, 1 + draw(12), 1 + draw(30), draw(3) > 0, START + at - draw(back))
        })
        .collect()
}

/// Some come twice.
fn with_copies(events: &[LikeToggled], seed: u64) -> Vec<LikeToggled> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut all = Vec::new();
    for event in events {
        all.push(*event);
        if random.random_range(0..10) == 0 {
            all.push(all[random.random_range(0..all.len())]);
        }
    }
    all
}

fn record(event: &LikeToggled) -> NewRecord {
    let partition = PartitionCount::DEFAULT.partition_of(&event.content());
    let headers = event.headers("00-0123456789abcdef0123456789abcdef-0123456789abcdef-00");
    NewRecord { partition, timestamp: event.received_at, key: Some(event.key()), value: Some(event.value()), headers }
}

async fn append(log: &Arc<dyn EventLog>, records: impl IntoIterator<Item = NewRecord>) {
    for record in records {
        log.append(record).await.unwrap();
    }
}

/// A log in a folder, with these events.
async fn log(dir: &Path, events: &[LikeToggled]) -> Arc<dyn EventLog> {
    let log: Arc<dyn EventLog> = Arc::new(SqliteLog::open(&dir.join("log.db"), PartitionCount::DEFAULT).unwrap());
    let appends: Vec<_> = events.iter().map(|event| log.append(record(event))).collect();
    for outcome in tokio::task::unconstrained(futures::future::join_all(appends)).await {
        outcome.unwrap();
    }
    log
}

fn quietly() -> (Arc<Pace>, Progress) {
    (Pace::new(0), Arc::new(|_| {}))
}

/// The plain fold: every event of a partition until one was received after `at`, by the projector's own code.
struct Plain {
    rows: HashMap<Pair, LikeRecord>,
    /// Partition, content, user, when it counts, and the change.
    changes: Vec<(Content, UserId, i64, i64)>,
}

impl Plain {
    fn new(events: &[LikeToggled], at: i64) -> Self {
        let (mut rows, mut changes) = (HashMap::new(), Vec::new());
        let mut partitions: BTreeMap<Partition, (i64, i64)> = BTreeMap::new();
        let mut ended = HashSet::new();
        for like in events {
            let partition = PartitionCount::DEFAULT.partition_of(&like.content());
            let (offset, greatest) = partitions.entry(partition).or_default();
            let event = Event { offset: Offset::new(*offset).unwrap(), like: *like };
            *offset += 1;
            if like.received_at.millis() > at {
                ended.insert(partition);
            }
            if ended.contains(&partition) {
                continue;
            }
            *greatest = (*greatest).max(like.received_at.millis());
            let before = rows.get(&like.pair());
            let was = before.is_some_and(|row: &LikeRecord| !row.is_canceled);
            let (verdict, after) = apply(before, &event);
            if let Some(after) = after.filter(|_| verdict == Verdict::Accepted) {
                let change = i64::from(!after.is_canceled) - i64::from(was);
                changes.push((like.content(), like.user_id, *greatest, change));
                rows.insert(like.pair(), after);
            }
        }
        Self { rows, changes }
    }

    fn count(&self, content: Content) -> i64 {
        self.rows.values().filter(|row| row.pair.content == content && !row.is_canceled).count() as i64
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_at_any_moment_are_those_of_a_plain_fold_and_histories_sum_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let events = with_copies(&drawn(4000, 1), 2);
    let log = log(dir.path(), &events).await;
    let (pace, progress) = quietly();
    let mut random = StdRng::seed_from_u64(3);
    let mut not_0 = 0;
    for _ in 0..1000 {
        let content = events[random.random_range(0..events.len())].content();
        // Also moments that are those of an event, to the millisecond.
        let exact = events[random.random_range(0..events.len())].received_at.millis();
        let at = if random.random() { exact } else { START + random.random_range(HOUR..22 * 24 * HOUR) };
        let plain = Plain::new(&events, at);
        match count_at(&log, content, time(at), &pace, &progress).await {
            Ok(counted) => {
                assert_eq!(counted.count, plain.count(content), "{content} at {at}");
                assert_eq!(counted.gained as i64 - counted.lost as i64, counted.count);
                not_0 += i64::from(counted.count != 0);
            }
            Err(error) => {
                assert!(error.to_string().contains("begins at"), "{error}");
                assert_eq!(plain.count(content), 0);
            }
        }
    }
    assert!(not_0 > 800, "most counts are not 0: {not_0}");

    let all = Plain::new(&events, i64::MAX);
    for number in 1..=30 {
        let content = events.iter().map(LikeToggled::content).find(|c| c.content_id.get() == number).unwrap();
        for step in [Step::Hour, Step::Day] {
            let slots = history(&log, Subject::Content(content), step, (time(0), Timestamp::MAX), &pace, &progress);
            let slots = slots.await.unwrap();
            let net: i64 = slots.iter().map(|slot| slot.gained as i64 - slot.lost as i64).sum();
            assert_eq!((net, slots.last().unwrap().count), (all.count(content), all.count(content)));
            assert!(slots.windows(2).all(|two| two[0].start < two[1].start));
            for slot in slots.iter().step_by(3) {
                let end = time(slot.start.millis() + step.millis() - 1);
                let counted = count_at(&log, content, end, &pace, &progress).await.unwrap();
                assert_eq!(counted.count, slot.count, "{content} at the end of {}", slot.start);
            }
        }
    }
    let user = UserId::new(7).unwrap();
    let days =
        history(&log, Subject::User(user), Step::Day, (time(0), Timestamp::MAX), &pace, &progress).await.unwrap();
    let likes = all.rows.values().filter(|row| row.pair.user == user && !row.is_canceled).count() as i64;
    assert_eq!(days.last().unwrap().count, likes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_trended_then_is_what_gained_most_in_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let events = with_copies(&drawn(3000, 4), 5);
    let log = log(dir.path(), &events).await;
    let (pace, progress) = quietly();
    let mut moments: Vec<(i64, i64)> = [(21 * 24, 7 * 24), (10 * 24, 24), (300, 5), (400, 500)].into();
    moments.iter_mut().for_each(|(at, window)| (*at, *window) = (START + *at * HOUR, *window * HOUR));
    // Windows that begin with an event, to the millisecond.
    let at = START + 20 * 24 * HOUR;
    moments.extend(Plain::new(&events, at).changes.iter().rev().step_by(40).take(20).map(|change| (at, at - change.2)));
    let mut filled = 0;
    for (at, window) in moments {
        let plain = Plain::new(&events, at);
        let mut expected: Vec<Gained> = Vec::new();
        let contents: HashSet<Content> = events.iter().map(LikeToggled::content).collect();
        for content in contents {
            let of = |wanted: i64| {
                let within = plain.changes.iter().filter(|change| change.0 == content && change.2 > at - window);
                within.filter(|change| change.3 == wanted).count() as i64
            };
            expected.push(Gained { content, gained: of(1), lost: of(-1), count: plain.count(content) });
        }
        expected.retain(|gained| gained.gained > gained.lost);
        expected.sort_by_key(|gained| (gained.lost - gained.gained, gained.content));
        let found = top(&log, None, (window, time(at)), 5, &pace, &progress).await.unwrap();
        assert_eq!(found, expected[..expected.len().min(5)], "{window} before {at}");
        filled += usize::from(!found.is_empty());
        let clips = top(&log, Some("clip".parse().unwrap()), (window, time(at)), 100, &pace, &progress).await.unwrap();
        expected.retain(|gained| gained.content.content_type.as_str() == "clip");
        assert_eq!(clips, expected);
    }
    assert!(filled > 15, "most windows have something: {filled}");
}

async fn entries(log: &Arc<dyn EventLog>, range: Range) -> Vec<(u16, i64)> {
    let mut stream = Stream::new(log, range, &Pace::new(0)).await.unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = stream.next().await.unwrap() {
        entries.push((entry.partition.get(), entry.record.offset.get()));
    }
    entries
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_meet_hold_every_event_once() {
    let dir = tempfile::tempdir().unwrap();
    // Closer together than clocks differ, and those by less than a minute.
    let events = drawn_over(3000, HOUR / 2, 30_000, 6);
    let mut times: HashMap<(u16, i64), Timestamp> = HashMap::new();
    for event in &events {
        let partition = PartitionCount::DEFAULT.partition_of(&event.content()).get();
        let offset = times.keys().filter(|(of, _)| *of == partition).count() as i64;
        times.insert((partition, offset), event.received_at);
    }
    let log = log(dir.path(), &events).await;
    let all = entries(&log, Range::default()).await;
    assert_eq!(all.len(), events.len());
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..40 {
        let edge = if random.random() {
            Edge::Time(events[random.random_range(0..events.len())].received_at)
        } else {
            let (partition, offset) = all[random.random_range(0..all.len())];
            let partition = Partition::new(partition.into(), PartitionCount::DEFAULT).unwrap();
            Edge::Position(likewise_schema::Position { partition, offset: Offset::new(offset).unwrap() })
        };
        let before = entries(&log, Range { until: Some(edge), ..Range::default() }).await;
        let after = entries(&log, Range { from: Some(edge), ..Range::default() }).await;
        let mut both: Vec<_> = before.iter().chain(&after).copied().collect();
        let mut sorted = all.clone();
        both.sort_unstable();
        sorted.sort_unstable();
        assert_eq!(both, sorted, "{edge}");
        if let Edge::Time(time) = edge {
            assert!(before.iter().all(|place| times[place] < time), "{edge}");
            let first = |partition: u16| after.iter().filter(|(of, _)| *of == partition).min();
            assert!((0..16).filter_map(first).all(|place| times[place] >= time), "{edge}");
        }
        if let Edge::Position(position) = edge {
            let place = (position.partition.get(), position.offset.get());
            assert!(after.contains(&place) && !before.contains(&place));
        }
    }
    let user = UserId::new(3).unwrap();
    let of_user = entries(&log, Range { user: Some(user), ..Range::default() }).await;
    assert_eq!(of_user.len(), events.iter().filter(|event| event.user_id == user).count());
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_grows_with_the_log_and_notices_what_is_not_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (drawn(3000, 8), drawn(500, 9));
    let log = log(dir.path(), &first).await;
    let to = dir.path().join("export");
    let target = || Target::open(to.to_str().unwrap()).unwrap();
    let (pace, progress) = quietly();
    let held = target();
    let refused_one = Target::open(to.to_str().unwrap()).err().unwrap().to_string();
    assert!(refused_one.contains("another export runs"), "{refused_one}");
    drop(held);
    let done = export(&log, &target(), &pace, &progress).await.unwrap();
    assert_eq!((done.records, done.files as usize), (3000, files(&to).len() - 1), "and the lock");
    assert!(done.files > 16 * 10, "a file for each day and partition: {}", done.files);
    let before = files(&to);
    assert_eq!(export(&log, &target(), &pace, &progress).await.unwrap(), Exported::default(), "nothing is new");

    // Records that are no events are there, too.
    append(&log, second.iter().map(record)).await;
    let broken = NewRecord { value: Some(b"{}".to_vec()), ..record(&first[0]) };
    append(&log, [broken]).await;
    let state = check(&log, &target(), &progress).await.unwrap();
    assert_eq!((state.records, state.missing), (3000, 501));
    assert_eq!(export(&log, &target(), &pace, &progress).await.unwrap().records, 501);
    let after = files(&to);
    assert!(before.iter().all(|file| after.contains(file)), "what was there stays");
    let state = check(&log, &target(), &progress).await.unwrap();
    assert_eq!((state.records, state.missing, state.files as usize), (3501, 0, after.len() - 1));

    let refused = async |what: &str| {
        let export = export(&log, &target(), &pace, &progress).await.unwrap_err().to_string();
        let check = check(&log, &target(), &progress).await.unwrap_err().to_string();
        let is_told = check.contains(what) || check.contains("is not as it was written");
        assert!(export.contains(what) && is_told, "{what}: {export}; {check}");
        assert!(!export.contains('\n'), "one sentence: {export}");
    };
    let (file, beside) = (&after[40], dir.path().join("beside"));
    let whole = fs::read(file).unwrap();
    fs::write(file, &whole[..whole.len() / 2]).unwrap();
    refused("is no whole Parquet file").await;
    fs::write(file, b"").unwrap();
    refused("is no whole Parquet file").await;
    fs::rename(file, &beside).unwrap();
    refused("lacks offsets").await;
    fs::write(file, &whole).unwrap();
    fs::write(file.with_file_name("copy.parquet"), &whole).unwrap();
    refused("twice").await;
    fs::remove_file(file.with_file_name("copy.parquet")).unwrap();
    // What a run that was killed leaves behind is in nobody's way, and goes.
    let unfinished = file.with_file_name("x.parquet#1");
    fs::write(&unfinished, &whole[..100]).unwrap();
    assert_eq!(export(&log, &target(), &pace, &progress).await.unwrap(), Exported::default());
    assert!(!unfinished.exists());

    let other = tempfile::tempdir().unwrap();
    let other: Arc<dyn EventLog> =
        Arc::new(SqliteLog::open(&other.path().join("log.db"), PartitionCount::DEFAULT).unwrap());
    let error = export(&other, &target(), &pace, &progress).await.unwrap_err().to_string();
    assert!(error.contains("another log"), "{error}");
    let oldest = after.iter().find(|file| file.to_string_lossy().contains("/0000000000000000000-")).unwrap();
    fs::rename(oldest, &beside).unwrap();
    refused("lacks offsets 0 to").await;
    fs::rename(&beside, oldest).unwrap();
    let damaged = {
        let mut bytes = whole.clone();
        let middle = bytes.len() / 3;
        bytes[middle..middle + 40].fill(0xff);
        bytes
    };
    fs::write(file, damaged).unwrap();
    let error = check(&log, &target(), &progress).await.unwrap_err().to_string();
    assert!(error.contains("is not as it was written"), "{error}");
}

proptest! {
    /// Few users, contents and milliseconds, so that rings overflow, ids repeat and floors matter.
    #[test]
    fn the_second_fold_is_the_first(drawn in prop::collection::vec((0..40_i64, 0..4_u16, prop::bool::weighted(0.8), 1..3_i64, 1..3_i64, any::<bool>()), 0..200)) {
        let mut rows: HashMap<Pair, LikeRecord> = HashMap::new();
        let mut lives: HashMap<Pair, Option<Life>> = HashMap::new();
        for ((millis, tail, is_v7, user, content, liked), number) in drawn.into_iter().zip(0..) {
            let like = like(id(millis, tail, is_v7), user, content, liked, START + number * 1000);
            let (pair, offset) = (like.pair(), Offset::new(number).unwrap());
            let was = rows.get(&pair).is_some_and(|row| !row.is_canceled);
            let (_, after) = apply(rows.get(&pair), &Event { offset, like });
            rows.extend(after.map(|row| (pair, row)));
            let is = !rows[&pair].is_canceled;
            let effect = Life::meet(lives.entry(pair).or_default(), &like.request_id, like.liked, like.received_at, offset);
            prop_assert_eq!(effect.change(), i64::from(is) - i64::from(was));
            prop_assert_eq!(&lives[&pair].as_ref().unwrap().record(pair), &rows[&pair]);
        }
    }
}
