//! What every request store does.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use likewise_schema::{Offset, Position};
use uuid::Uuid;

use super::{pair, partition, post, request, user};
use crate::requests::{
    ANSWER_LIFE, Admitted, Bucket, Charge, IN_FLIGHT_LIFE, Intent, Policy, RequestKey, RequestStore,
};

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
    of_racing_requests_one_is_fresh(make().await).await;
    a_mark_runs_out(make().await, pass).await;
    a_released_request_is_fresh_again(make().await).await;
    a_bucket_gives_its_burst_and_refills(make().await, pass).await;
    buckets_are_apart(make().await).await;
    one_empty_bucket_costs_nothing_elsewhere(make().await).await;
    what_is_known_costs_nothing(make().await).await;
    racing_requests_get_exactly_the_burst(make().await).await;
    a_process_that_attends_is_counted(make().await).await;
}

async fn admit(store: &Store, key: RequestKey, intent: Intent, charges: &[Charge]) -> Admitted {
    store.admit(key, intent, charges).await.expect("answered")
}

/// Not charged for anything.
async fn begin(store: &Store, key: RequestKey, intent: Intent) -> Admitted {
    admit(store, key, intent, &[]).await
}

const FRESH: Admitted = Admitted::Fresh(Vec::new());

async fn a_request_is_in_flight_once_and_then_answered(store: Store, pass: Pass<'_>) {
    assert_eq!(begin(&store, key(7, 1), intent(true)).await, FRESH);
    assert_eq!(begin(&store, key(7, 1), intent(true)).await, Admitted::InFlight);
    assert_eq!(begin(&store, key(7, 1), intent(false)).await, Admitted::Conflict, "another intent under the same id");
    assert_eq!(begin(&store, key(8, 1), intent(true)).await, FRESH, "another caller's id is another id");
    assert_eq!(store.find(key(7, 1)).await.expect("answered"), Some((intent(true), None)));
    store.finish(key(7, 1), intent(true), position(5)).await.expect("kept");
    assert_eq!(begin(&store, key(7, 1), intent(true)).await, Admitted::Answered(position(5)));
    assert_eq!(begin(&store, key(7, 1), intent(false)).await, Admitted::Conflict);
    assert_eq!(store.find(key(7, 1)).await.expect("answered"), Some((intent(true), Some(position(5)))));
    store.release(key(7, 1), &[]).await.expect("answered");
    assert_eq!(begin(&store, key(7, 1), intent(true)).await, Admitted::Answered(position(5)), "an answer stays");
    pass(ANSWER_LIFE + Duration::from_secs(1));
    assert_eq!(store.find(key(7, 1)).await.expect("answered"), None);
    assert_eq!(begin(&store, key(7, 1), intent(true)).await, FRESH, "an answer is kept for an hour");
}

/// Sends all at once, and gives what each came to.
async fn race(store: &Store, senders: u128, request: fn(u128) -> u128, charges: &[Charge]) -> Vec<Admitted> {
    let racers = (0..senders).map(|sender| {
        let (store, charges) = (Arc::clone(store), charges.to_vec());
        tokio::spawn(async move { admit(&store, key(7, request(sender)), intent(true), &charges).await })
    });
    let racers: Vec<_> = racers.collect();
    let mut outcomes = Vec::new();
    for racer in racers {
        outcomes.push(racer.await.expect("no panic"));
    }
    outcomes
}

async fn of_racing_requests_one_is_fresh(store: Store) {
    let outcomes = race(&store, 16, |_| 1, &[]).await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == FRESH).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Admitted::InFlight).count(), 15);
}

async fn a_mark_runs_out(store: Store, pass: Pass<'_>) {
    assert_eq!(begin(&store, key(7, 1), intent(true)).await, FRESH);
    pass(IN_FLIGHT_LIFE + Duration::from_millis(100));
    let again = begin(&store, key(7, 1), intent(true)).await;
    assert_eq!(again, FRESH, "its sender has died: somebody must be able to try again");
}

async fn a_released_request_is_fresh_again(store: Store) {
    assert_eq!(begin(&store, key(7, 1), intent(true)).await, FRESH);
    store.release(key(7, 1), &[]).await.expect("answered");
    assert_eq!(begin(&store, key(7, 1), intent(false)).await, FRESH);
}

const SIX_A_MINUTE: Policy = Policy { burst: 6, window: Duration::from_secs(60) };

fn of_the_pair(policy: Policy) -> Charge {
    Charge { bucket: Bucket::Pair(pair(1, 7)), policy }
}

async fn a_bucket_gives_its_burst_and_refills(store: Store, pass: Pass<'_>) {
    let charge = [of_the_pair(SIX_A_MINUTE)];
    let mut number = 0;
    let mut take = async || {
        number += 1;
        match admit(&store, key(7, number), intent(true), &charge).await {
            Admitted::Fresh(levels) => Ok(levels[0]),
            Admitted::Exhausted { charge: 0, level } => Err(level),
            other => panic!("{other:?}"),
        }
    };
    for left in (0..6).rev() {
        assert_eq!(take().await.map(|level| level.remaining), Ok(left));
    }
    let refused = take().await.expect_err("it is empty");
    assert!(refused.next_in > Duration::from_secs(9) && refused.next_in <= Duration::from_secs(10), "{refused:?}");
    pass(Duration::from_secs(10));
    assert!(take().await.is_ok(), "one token flows in every ten seconds");
    assert!(take().await.is_err());
    store.release(key(7, 1), &charge).await.expect("answered");
    assert!(take().await.is_ok(), "a token was given back");
    assert!(take().await.is_err());
    pass(Duration::from_secs(3600));
    store.release(key(7, 2), &charge).await.expect("answered");
    assert_eq!(take().await.map(|level| level.remaining), Ok(5), "a bucket holds no more than its burst");
}

async fn buckets_are_apart(store: Store) {
    let policy = Policy { burst: 1, window: Duration::from_secs(60) };
    let buckets = [
        Bucket::Pair(pair(1, 7)),
        Bucket::Pair(pair(1, 8)),
        Bucket::Pair(pair(17, 7)),
        Bucket::User(user(7)),
        Bucket::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        Bucket::Address(IpAddr::V4(Ipv4Addr::new(0, 0, 0, 7))),
        Bucket::Address(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    for (number, bucket) in (0..).zip(buckets) {
        let charge = [Charge { bucket, policy }];
        let subject = if let Bucket::Pair(pair) = bucket { pair.user.get() } else { 7 };
        let first = admit(&store, key(subject, 2 * number), intent(true), &charge).await;
        assert!(matches!(first, Admitted::Fresh(_)), "{bucket:?}: {first:?}");
        let second = admit(&store, key(subject, 2 * number + 1), intent(true), &charge).await;
        assert!(matches!(second, Admitted::Exhausted { charge: 0, .. }), "{bucket:?}: {second:?}");
    }
}

/// An address, a user and a pair, of which the one at `empty` holds one token and the others two.
fn three_charges(empty: usize) -> [Charge; 3] {
    let buckets = [Bucket::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)), Bucket::User(user(7)), Bucket::Pair(pair(1, 7))];
    std::array::from_fn(|index| {
        let burst = if index == empty { 1 } else { 2 };
        Charge { bucket: buckets[index], policy: Policy { burst, window: Duration::from_secs(60) } }
    })
}

async fn one_empty_bucket_costs_nothing_elsewhere(store: Store) {
    let charges = three_charges(2);
    let Admitted::Fresh(levels) = admit(&store, key(7, 1), intent(true), &charges).await else { panic!("not fresh") };
    assert_eq!(levels.iter().map(|level| level.remaining).collect::<Vec<_>>(), [1, 1, 0]);
    for _ in 0..5 {
        let refused = admit(&store, key(7, 2), intent(true), &charges).await;
        assert!(matches!(refused, Admitted::Exhausted { charge: 2, .. }), "{refused:?}");
    }
    let others = admit(&store, key(7, 2), intent(true), &charges[..2]).await;
    assert!(
        matches!(&others, Admitted::Fresh(levels) if levels.iter().all(|level| level.remaining == 0)),
        "{others:?}"
    );
}

async fn what_is_known_costs_nothing(store: Store) {
    let charges = three_charges(3);
    let first = admit(&store, key(7, 1), intent(true), &charges).await;
    assert!(matches!(first, Admitted::Fresh(_)), "{first:?}");
    for _ in 0..5 {
        assert_eq!(admit(&store, key(7, 1), intent(true), &charges).await, Admitted::InFlight);
    }
    store.finish(key(7, 1), intent(true), position(5)).await.expect("kept");
    for _ in 0..5 {
        assert_eq!(admit(&store, key(7, 1), intent(true), &charges).await, Admitted::Answered(position(5)));
        assert_eq!(admit(&store, key(7, 1), intent(false), &charges).await, Admitted::Conflict);
    }
    let second = admit(&store, key(7, 2), intent(true), &charges).await;
    assert!(
        matches!(&second, Admitted::Fresh(levels) if levels.iter().all(|level| level.remaining == 0)),
        "{second:?}"
    );
}

async fn racing_requests_get_exactly_the_burst(store: Store) {
    let policy = Policy { burst: 20, window: Duration::from_secs(3600) };
    let outcomes = race(&store, 100, |sender| sender, &[of_the_pair(policy)]).await;
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Admitted::Fresh(_))).count(), 20);
}

async fn a_process_that_attends_is_counted(store: Store) {
    let me = Uuid::from_u128(1);
    assert_eq!(store.attend(me).await.expect("answered"), 1);
    assert_eq!(store.attend(me).await.expect("answered"), 1);
}
