//! What every request store does.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use likewise_schema::{Offset, Position};

use super::{pair, partition, post, request, user};
use crate::requests::{ANSWER_LIFE, Begin, Bucket, IN_FLIGHT_LIFE, Intent, Policy, RequestKey, RequestStore};

type Store = Arc<dyn RequestStore>;

/// Lets time pass for the store under test: turns a fake clock on, or waits.
pub(super) type Pass<'a> = &'a dyn Fn(Duration);

fn key(user_id: i64, number: u128) -> RequestKey {
    RequestKey { subject: user(user_id), request: request(number) }
}

fn intent(liked: bool) -> Intent {
    Intent { user: user(7), content: post(1), liked }
}

fn position(number: i64) -> Position {
    Position { partition: partition(1), offset: Offset::new(number).expect("valid") }
}

/// Runs the suite on fresh, empty stores from `make`; `pass` lets time pass for all of them.
pub async fn request_store<F: AsyncFn() -> Arc<dyn RequestStore>>(make: F, pass: Pass<'_>) {
    a_request_is_in_flight_once_and_then_answered(make().await, pass).await;
    of_racing_beginnings_one_is_fresh(make().await).await;
    a_mark_runs_out(make().await, pass).await;
    an_abandoned_request_is_fresh_again(make().await).await;
    a_bucket_gives_its_burst_and_refills(make().await, pass).await;
    buckets_are_apart(make().await).await;
}

async fn a_request_is_in_flight_once_and_then_answered(store: Store, pass: Pass<'_>) {
    let begin = async |key, intent| store.begin(key, intent).await.expect("answered");
    assert_eq!(begin(key(7, 1), intent(true)).await, Begin::Fresh);
    assert_eq!(begin(key(7, 1), intent(true)).await, Begin::InFlight);
    assert_eq!(begin(key(7, 1), intent(false)).await, Begin::Conflict, "another intent under the same id");
    assert_eq!(begin(key(8, 1), intent(true)).await, Begin::Fresh, "another caller's id is another id");
    assert_eq!(store.find(key(7, 1)).await.expect("answered"), Some((intent(true), None)));
    store.finish(key(7, 1), intent(true), position(5)).await.expect("kept");
    assert_eq!(begin(key(7, 1), intent(true)).await, Begin::Answered(position(5)));
    assert_eq!(begin(key(7, 1), intent(false)).await, Begin::Conflict);
    assert_eq!(store.find(key(7, 1)).await.expect("answered"), Some((intent(true), Some(position(5)))));
    store.abandon(key(7, 1)).await.expect("answered");
    assert_eq!(begin(key(7, 1), intent(true)).await, Begin::Answered(position(5)), "an answer cannot be abandoned");
    pass(ANSWER_LIFE + Duration::from_secs(1));
    assert_eq!(store.find(key(7, 1)).await.expect("answered"), None);
    assert_eq!(begin(key(7, 1), intent(true)).await, Begin::Fresh, "an answer is kept for an hour");
}

async fn of_racing_beginnings_one_is_fresh(store: Store) {
    let mut racers = Vec::new();
    for _ in 0..16 {
        let store = Arc::clone(&store);
        racers.push(tokio::spawn(async move { store.begin(key(7, 1), intent(true)).await.expect("answered") }));
    }
    let mut fresh = 0;
    for racer in racers {
        match racer.await.expect("no panic") {
            Begin::Fresh => fresh += 1,
            other => assert_eq!(other, Begin::InFlight),
        }
    }
    assert_eq!(fresh, 1);
}

async fn a_mark_runs_out(store: Store, pass: Pass<'_>) {
    assert_eq!(store.begin(key(7, 1), intent(true)).await.expect("answered"), Begin::Fresh);
    pass(IN_FLIGHT_LIFE + Duration::from_millis(100));
    let again = store.begin(key(7, 1), intent(true)).await.expect("answered");
    assert_eq!(again, Begin::Fresh, "its sender has died: somebody must be able to try again");
}

async fn an_abandoned_request_is_fresh_again(store: Store) {
    assert_eq!(store.begin(key(7, 1), intent(true)).await.expect("answered"), Begin::Fresh);
    store.abandon(key(7, 1)).await.expect("answered");
    assert_eq!(store.begin(key(7, 1), intent(false)).await.expect("answered"), Begin::Fresh);
}

async fn a_bucket_gives_its_burst_and_refills(store: Store, pass: Pass<'_>) {
    let policy = Policy { burst: 6, window: Duration::from_secs(60) };
    let bucket = Bucket::Pair(pair(1, 7));
    for left in (0..6).rev() {
        let taken = store.take(bucket, policy).await.expect("answered");
        assert!(taken.allowed);
        assert_eq!(taken.remaining, left);
    }
    let refused = store.take(bucket, policy).await.expect("answered");
    assert!(!refused.allowed);
    assert!(refused.next_in > Duration::from_secs(9) && refused.next_in <= Duration::from_secs(10), "{refused:?}");
    pass(Duration::from_secs(10));
    assert!(store.take(bucket, policy).await.expect("answered").allowed, "one token flows in every ten seconds");
    assert!(!store.take(bucket, policy).await.expect("answered").allowed);
    store.give_back(bucket, policy).await.expect("answered");
    assert!(store.take(bucket, policy).await.expect("answered").allowed, "a token was given back");
    assert!(!store.take(bucket, policy).await.expect("answered").allowed);
    pass(Duration::from_secs(3600));
    store.give_back(bucket, policy).await.expect("answered");
    let full = store.take(bucket, policy).await.expect("answered");
    assert_eq!((full.allowed, full.remaining), (true, 5), "a bucket holds no more than its burst");
}

async fn buckets_are_apart(store: Store) {
    let policy = Policy { burst: 1, window: Duration::from_secs(60) };
    let address = Bucket::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
    for bucket in
        [Bucket::Pair(pair(1, 7)), Bucket::Pair(pair(1, 8)), Bucket::Pair(pair(17, 7)), Bucket::User(user(7)), address]
    {
        assert!(store.take(bucket, policy).await.expect("answered").allowed, "{bucket:?}");
        assert!(!store.take(bucket, policy).await.expect("answered").allowed, "{bucket:?}");
    }
}
