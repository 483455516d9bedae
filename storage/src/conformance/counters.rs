//! What every counter store does.

use std::{sync::Arc, time::Duration};

use likewise_schema::{Content, Offset};
use tokio::sync::mpsc;

use super::{at, partition, post, user};
use crate::{
    counters::{
        Answer, Ask, CHANGED_MAX, COUNT_LIFE, Cached, CachedCount, Change, Changes, CounterStore, Fill, Lease,
        LeaseKey, News, Outcome, Publish, REPUBLISH_EVENTS_MAX, Scope, Status, Version, Writer,
    },
    records::Generation,
};

type Store = Arc<dyn CounterStore>;

fn scope() -> Scope {
    Scope { generation: Generation(0xabc), partition: partition(1) }
}

fn news(seconds: i64) -> News {
    News { log_end: Offset::new(seconds).expect("valid"), next_event_at: Some(at(seconds)), heard_at: at(seconds) }
}

fn cached(count: i64, version: Version) -> CachedCount {
    CachedCount { count, version }
}

fn status(liked: bool, version: Version) -> Status {
    Status { liked, at: Some(at(1)), version }
}

fn publish(writer: u64, from: Version, to: Version) -> Publish {
    Publish {
        writer: Writer(writer),
        from,
        to,
        counts: vec![],
        statuses: vec![],
        news: news(to.max(0)),
        recovering: false,
    }
}

fn counting(writer: u64, from: Version, to: Version, content: Content, count: i64) -> Publish {
    Publish { counts: vec![(content, cached(count, to))], ..publish(writer, from, to) }
}

async fn read(store: &Store) -> Answer {
    let ask = Ask { scope: scope(), counts: vec![post(1), post(17)], statuses: vec![post(1), post(17)] };
    store.read(&[ask], Some(user(7))).await.expect("read").pop().expect("an answer")
}

async fn lease(store: &Store, key: LeaseKey) -> Option<Lease> {
    store.lease(scope(), key).await.expect("answered")
}

async fn fill_count(store: &Store, lease: Lease, content: Content, count: i64, version: Version) -> Outcome {
    store.fill(scope(), lease, Fill::Count(content, cached(count, version), COUNT_LIFE)).await.expect("answered")
}

/// Fresh, taken over by writer 1 at `position`.
async fn owned<F: AsyncFn() -> Store>(make: &F, position: Version) -> Store {
    let store = make().await;
    let at = store.take_over(scope(), Writer(1), position, news(0)).await.expect("taken over");
    assert_eq!(at, position, "without progress the checkpoint's position is taken");
    store
}

/// The next change of this suite's scope that names `content`, or too many to name. What was told before may arrive late.
async fn told(changes: &mut Changes, content: Content) -> Arc<Change> {
    let next = async {
        loop {
            let change = changes.next().await.expect("the store is there");
            let is_it = change.counts.iter().any(|(named, _)| *named == content) || !change.is_whole;
            if change.scope == scope() && is_it {
                return change;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), next).await.expect("a change is told")
}

async fn what_a_publish_changes_is_told(store: Store) {
    let (mut changes, content) = (store.changes(), post(33));
    let comes = changes.liveness();
    let waited_until = tokio::time::Instant::now() + Duration::from_secs(20);
    while !comes() && tokio::time::Instant::now() < waited_until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(comes(), "changes come");
    let refused = store.publish(scope(), counting(2, 10, 11, content, 6)).await;
    assert_eq!(refused, Ok(Outcome::Refused));
    assert_eq!(store.publish(scope(), publish(1, 10, 10)).await, Ok(Outcome::Done));
    assert_eq!(store.publish(scope(), counting(1, 10, 12, content, 7)).await, Ok(Outcome::Done));
    let change = told(&mut changes, content).await;
    let from_and_counts = (change.from.get(), change.counts.as_slice(), change.is_whole);
    let expected = (11, &[(content, cached(7, 12))][..], true);
    assert_eq!(from_and_counts, expected, "neither of a refused publish nor of one without events");
    let claim = store.progress(scope()).await.expect("read").expect("owned").claim(scope().partition);
    assert_eq!(change.claim, claim);
    let many = (0..=CHANGED_MAX as i64).map(|number| (post(1 + 16 * number), cached(1, 13))).collect();
    let many = Publish { counts: many, ..publish(1, 12, 13) };
    assert_eq!(store.publish(scope(), many).await, Ok(Outcome::Done));
    let many = told(&mut changes, content).await;
    assert!(many.counts.is_empty() && !many.is_whole, "too many to name");
}

/// Runs the suite on fresh, empty stores from `make`.
pub async fn counter_store<F: AsyncFn() -> Arc<dyn CounterStore>>(make: F) {
    what_is_missing_is_unknown(make().await).await;
    a_takeover_marks_and_keeps_position_and_floor(owned(&make, 10).await).await;
    progress_far_behind_is_given_up_with_its_entries(owned(&make, 10).await).await;
    a_publish_needs_its_writer_and_the_position_before_it(owned(&make, 10).await).await;
    a_publish_updates_what_is_there_and_creates_nothing(owned(&make, 10).await).await;
    what_a_publish_changes_is_told(owned(&make, 10).await).await;
    a_fill_needs_its_lease(owned(&make, 10).await).await;
    a_publish_drops_the_leases_of_what_it_names(owned(&make, 10).await).await;
    a_fill_never_goes_back(owned(&make, 10).await).await;
    statuses_are_filled_and_updated_by_field(owned(&make, 10).await).await;
    entries_below_the_floor_count_as_missing(owned(&make, 10).await).await;
    scopes_are_apart(owned(&make, 10).await).await;
    passing_an_offset_wakes(owned(&make, 10).await).await;
    all_entries_are_listed_and_can_be_forgotten(owned(&make, 10).await).await;
}

async fn entries(store: &Store) -> Vec<Cached> {
    let (out, mut found) = mpsc::channel(1);
    let collect = async {
        let mut all = Vec::new();
        while let Some(chunk) = found.recv().await {
            all.extend(chunk);
        }
        all.retain(|entry: &Cached| matches!(entry, Cached::Count(of, ..) | Cached::Status(of, ..) if *of == scope()));
        all.sort_by_key(|entry| format!("{entry:?}"));
        all
    };
    let (listed, all) = tokio::join!(store.entries(out), collect);
    listed.expect("listed");
    all
}

async fn all_entries_are_listed_and_can_be_forgotten(store: Store) {
    assert_eq!(entries(&store).await, []);
    let key = lease(&store, LeaseKey::Count(post(1))).await.expect("leased");
    assert_eq!(fill_count(&store, key, post(1), 5, 10).await, Outcome::Done);
    let key = lease(&store, LeaseKey::Statuses(user(7))).await.expect("leased");
    let statuses = Fill::Statuses(user(7), vec![(post(1), status(true, 10)), (post(17), status(false, 10))]);
    assert_eq!(store.fill(scope(), key, statuses).await, Ok(Outcome::Done));
    let of_user = |id, liked| Cached::Status(scope(), user(7), post(id), status(liked, 10));
    let expected = [Cached::Count(scope(), post(1), cached(5, 10)), of_user(1, true), of_user(17, false)];
    assert_eq!(entries(&store).await, expected);
    // Who fills meanwhile with what was read before must not bring it back.
    let under_way = lease(&store, LeaseKey::Count(post(17))).await.expect("leased");
    store.forget(scope(), &[post(1), post(17)], &[]).await.expect("forgotten");
    assert_eq!(fill_count(&store, under_way, post(17), 1, 10).await, Outcome::Refused);
    assert_eq!(entries(&store).await, expected[1..]);
    store.forget(scope(), &[], &[user(7)]).await.expect("forgotten");
    assert_eq!(entries(&store).await, []);
    assert!(store.progress(scope()).await.expect("answered").is_some(), "progress stays");
}

async fn what_is_missing_is_unknown(store: Store) {
    assert_eq!(store.progress(scope()).await.expect("answered"), None);
    let answer = read(&store).await;
    assert_eq!(answer, Answer { progress: None, counts: vec![None, None], statuses: vec![None, None] });
    assert_eq!(lease(&store, LeaseKey::Count(post(1))).await, None, "without progress nothing can be filled");
    let refused = store.publish(scope(), publish(0, -1, 0)).await.expect("answered");
    assert_eq!(refused, Outcome::Refused);
}

async fn a_takeover_marks_and_keeps_position_and_floor(store: Store) {
    let done = store.publish(scope(), publish(1, 10, 12)).await.expect("answered");
    assert_eq!(done, Outcome::Done);
    let before = store.progress(scope()).await.expect("answered").expect("progress");
    assert!(!before.recovering, "a publish that does not recover unmarks");
    assert_eq!((before.position, before.floor, before.news), (12, 10, news(12)));
    let position = store.take_over(scope(), Writer(2), 15, news(15)).await.expect("taken over");
    assert_eq!(position, 12, "publishing goes on from what is there");
    let after = store.progress(scope()).await.expect("answered").expect("progress");
    assert_eq!((after.writer, after.position, after.floor, after.recovering), (Writer(2), 12, 10, true));
    assert!(after.claim(partition(1)).recovering);
}

async fn progress_far_behind_is_given_up_with_its_entries(store: Store) {
    let key = lease(&store, LeaseKey::Count(post(1))).await.expect("leased");
    assert_eq!(fill_count(&store, key, post(1), 3, 10).await, Outcome::Done);
    let far = 10 + REPUBLISH_EVENTS_MAX + 1;
    assert_eq!(store.take_over(scope(), Writer(2), far, news(0)).await.expect("taken over"), far);
    let answer = read(&store).await;
    let progress = answer.progress.expect("progress");
    assert_eq!((progress.position, progress.floor), (far, far));
    assert_eq!(answer.counts[0], None, "older entries count as missing");
}

async fn a_publish_needs_its_writer_and_the_position_before_it(store: Store) {
    let before = store.progress(scope()).await.expect("answered");
    for wrong in [publish(9, 10, 11), publish(1, 9, 11), publish(1, 11, 12)] {
        assert_eq!(store.publish(scope(), wrong).await.expect("answered"), Outcome::Refused);
    }
    assert_eq!(store.progress(scope()).await.expect("answered"), before, "a refused publish changes nothing");
    assert_eq!(store.publish(scope(), publish(1, 10, 11)).await.expect("answered"), Outcome::Done);
    let late = store.publish(scope(), publish(1, 10, 11)).await.expect("answered");
    assert_eq!(late, Outcome::Refused, "a repeated publish has no second effect");
    let idle = store.publish(scope(), publish(1, 11, 11)).await.expect("answered");
    assert_eq!(idle, Outcome::Done, "an empty publish brings news");
}

async fn a_publish_updates_what_is_there_and_creates_nothing(store: Store) {
    let key = lease(&store, LeaseKey::Count(post(1))).await.expect("leased");
    assert_eq!(fill_count(&store, key, post(1), 5, 10).await, Outcome::Done);
    let both = Publish {
        counts: vec![(post(1), cached(6, 11)), (post(17), cached(1, 11))],
        statuses: vec![(user(7), post(1), status(true, 11))],
        ..publish(1, 10, 11)
    };
    assert_eq!(store.publish(scope(), both).await.expect("answered"), Outcome::Done);
    let answer = read(&store).await;
    assert_eq!(answer.counts, [Some(cached(6, 11)), None], "INCR on nothing would be wrong; so would be a set");
    assert_eq!(answer.statuses, [None, None]);
    let older = Publish { counts: vec![(post(1), cached(4, 9))], ..publish(1, 11, 12) };
    assert_eq!(store.publish(scope(), older).await.expect("answered"), Outcome::Done);
    assert_eq!(read(&store).await.counts[0], Some(cached(6, 11)), "an older version changes nothing");
}

async fn a_fill_needs_its_lease(store: Store) {
    let key = LeaseKey::Count(post(1));
    let held = lease(&store, key).await.expect("leased");
    assert_eq!(held.position, 10, "a lease tells the position that a snapshot must have reached");
    assert_eq!(lease(&store, key).await, None, "one reader at a time");
    let forged = Lease { token: crate::counters::LeaseToken(held.token.0 ^ 1), ..held };
    assert_eq!(fill_count(&store, forged, post(1), 1, 10).await, Outcome::Refused);
    assert_eq!(fill_count(&store, held, post(17), 1, 10).await, Outcome::Refused, "a lease is for one key");
    assert_eq!(fill_count(&store, held, post(1), 1, 10).await, Outcome::Done);
    assert_eq!(fill_count(&store, held, post(1), 2, 10).await, Outcome::Refused, "a lease is for one fill");
    assert_eq!(read(&store).await.counts, [Some(cached(1, 10)), None]);
}

async fn a_publish_drops_the_leases_of_what_it_names(store: Store) {
    let count = lease(&store, LeaseKey::Count(post(1))).await.expect("leased");
    let statuses = lease(&store, LeaseKey::Statuses(user(7))).await.expect("leased");
    let other = lease(&store, LeaseKey::Count(post(17))).await.expect("leased");
    let touching = Publish { statuses: vec![(user(7), post(1), status(true, 11))], ..counting(1, 10, 11, post(1), 1) };
    assert_eq!(store.publish(scope(), touching).await.expect("answered"), Outcome::Done);
    assert_eq!(fill_count(&store, count, post(1), 0, 10).await, Outcome::Refused, "read before the publish");
    let stale = Fill::Statuses(user(7), vec![(post(1), status(false, 10))]);
    assert_eq!(store.fill(scope(), statuses, stale).await.expect("answered"), Outcome::Refused);
    assert_eq!(fill_count(&store, other, post(17), 0, 10).await, Outcome::Done, "what was not touched keeps its lease");
    assert!(lease(&store, LeaseKey::Count(post(1))).await.is_some(), "the next reader may fill");
}

async fn a_fill_never_goes_back(store: Store) {
    let key = LeaseKey::Count(post(1));
    let behind = lease(&store, key).await.expect("leased");
    assert_eq!(fill_count(&store, behind, post(1), 1, 9).await, Outcome::Refused, "the snapshot is behind the lease");
    let held = match lease(&store, key).await {
        Some(fresh) => fresh,
        None => behind, // A refused fill may keep the lease.
    };
    assert_eq!(fill_count(&store, held, post(1), 5, 12).await, Outcome::Done);
    let again = lease(&store, key).await.expect("leased");
    assert_eq!(fill_count(&store, again, post(1), 4, 11).await, Outcome::Refused, "what is there is newer");
    assert_eq!(read(&store).await.counts[0], Some(cached(5, 12)));
}

async fn statuses_are_filled_and_updated_by_field(store: Store) {
    let key = LeaseKey::Statuses(user(7));
    let held = lease(&store, key).await.expect("leased");
    let negative = Status { liked: false, at: None, version: 10 };
    let fill = Fill::Statuses(user(7), vec![(post(1), negative)]);
    assert_eq!(store.fill(scope(), held, fill).await.expect("answered"), Outcome::Done);
    assert_eq!(read(&store).await.statuses, [Some(negative), None], "a known negative is known, the other is not");
    let change = Publish {
        statuses: vec![(user(7), post(1), status(true, 11)), (user(7), post(17), status(true, 11))],
        ..publish(1, 10, 11)
    };
    assert_eq!(store.publish(scope(), change).await.expect("answered"), Outcome::Done);
    assert_eq!(read(&store).await.statuses, [Some(status(true, 11)), None], "a field that is missing stays missing");
    let held = lease(&store, key).await.expect("leased");
    let fill = Fill::Statuses(user(7), vec![(post(17), status(true, 11))]);
    assert_eq!(store.fill(scope(), held, fill).await.expect("answered"), Outcome::Done);
    assert_eq!(read(&store).await.statuses, [Some(status(true, 11)), Some(status(true, 11))]);
}

async fn entries_below_the_floor_count_as_missing(store: Store) {
    let held = lease(&store, LeaseKey::Count(post(1))).await.expect("leased");
    assert_eq!(fill_count(&store, held, post(1), 5, 10).await, Outcome::Done);
    let far = 10 + REPUBLISH_EVENTS_MAX + 1;
    store.take_over(scope(), Writer(2), far, news(0)).await.expect("taken over");
    let held = lease(&store, LeaseKey::Count(post(1))).await.expect("leased");
    assert_eq!(fill_count(&store, held, post(1), 9, far).await, Outcome::Done);
    assert_eq!(read(&store).await.counts[0], Some(cached(9, far)));
    store.take_over(scope(), Writer(3), far - 5, news(0)).await.expect("taken over");
    let progress = store.progress(scope()).await.expect("answered").expect("progress");
    assert_eq!(progress.floor, far, "the floor only rises");
}

async fn scopes_are_apart(store: Store) {
    let other = Scope { generation: Generation(0xdef), ..scope() };
    assert_eq!(store.progress(other).await.expect("answered"), None, "another generation is another world");
    let asks = [
        Ask { scope: other, counts: vec![post(1)], statuses: vec![] },
        Ask { scope: scope(), counts: vec![], statuses: vec![] },
    ];
    let answers = store.read(&asks, None).await.expect("read");
    assert!(answers[0].progress.is_none() && answers[1].progress.is_some());
    assert_eq!((answers[0].counts.len(), answers[1].counts.len(), answers[0].statuses.len()), (1, 0, 0));
}

async fn passing_an_offset_wakes(store: Store) {
    let waiter = Arc::clone(&store);
    let offset = Offset::new(11).expect("valid");
    let passed = tokio::spawn(async move { waiter.passed(scope(), offset, Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    assert_eq!(store.publish(scope(), publish(1, 10, 11)).await.expect("answered"), Outcome::Done);
    tokio::time::timeout(Duration::from_secs(30), passed).await.expect("it wakes").expect("no panic");
    store.passed(scope(), offset, Duration::from_secs(60)).await;
}
