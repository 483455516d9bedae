//! The Redis adapters: the conformance suites on a real server and a real cluster, and what is special about them.

use std::{sync::Arc, time::Duration};

use likewise_schema::Offset;
use likewise_storage::{
    CounterStore, RedisTimeouts, RequestStore,
    conformance::{self, at, partition, post},
    counters::{Ask, COUNT_LIFE, CachedCount, Fill, LeaseKey, News, Outcome, Publish, RedisCounters, Scope, Writer},
    records::Generation,
    requests::{Admitted, Bucket, Charge, Intent, Policy, RedisRequests, RequestKey},
};
use likewise_testkit::servers::{self, Server};
use redis::{Commands, Connection};

/// A test waits for an answer as long as it takes.
const PATIENT: RedisTimeouts = RedisTimeouts {
    request: Duration::from_secs(20),
    publish: Duration::from_secs(20),
    connect: Duration::from_secs(20),
};

/// A connection to each node of a URL.
fn nodes(url: &str) -> Vec<Connection> {
    let (_, addresses) = url.split_once("://").expect("the servers answer");
    let connect = |address: &str| {
        redis::Client::open(format!("redis://{address}"))
            .expect("the servers answer")
            .get_connection()
            .expect("the servers answer")
    };
    addresses.split(',').map(connect).collect()
}

fn flush(url: &str) {
    for mut node in nodes(url) {
        let () = redis::cmd("FLUSHALL").query(&mut node).expect("the servers answer");
    }
}

/// What the store holds, as it is `time` later.
fn age(url: &str, time: Duration) {
    let millis = time.as_millis() as i64;
    for mut node in nodes(url) {
        let keys: Vec<String> = node.keys("like:*").expect("the servers answer");
        for key in keys {
            let left: i64 = node.pttl(&key).expect("the servers answer");
            let () = node.pexpire(&key, (left - millis).max(-1)).expect("the servers answer");
            if key.starts_with("like:rate:") && left > millis {
                let full_at: i64 = node.get(&key).expect("the servers answer");
                let options = redis::SetOptions::default().with_expiration(redis::SetExpiry::KEEPTTL);
                let () =
                    node.set_options(&key, full_at - time.as_micros() as i64, options).expect("the servers answer");
            }
        }
    }
}

async fn conforms(url: &str) {
    conformance::counter_store(async || {
        flush(url);
        Arc::new(RedisCounters::new(url, PATIENT).expect("the servers answer")) as Arc<dyn CounterStore>
    })
    .await;
    let make = async || {
        flush(url);
        Arc::new(RedisRequests::new(url, PATIENT).expect("the servers answer")) as Arc<dyn RequestStore>
    };
    conformance::request_store(make, &|time| age(url, time)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_conforms() {
    conforms(&servers::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_cluster_conforms() {
    conforms(&servers::redis_cluster()).await;
}

/// Settings, and one partition of them that is owned: writer 1 stands at 10, and post 1 has 5 likes.
async fn owned(server: &Server) -> (Arc<RedisCounters>, Scope) {
    let store = Arc::new(RedisCounters::new(&servers::redis_url(server), PATIENT).expect("a URL"));
    let scope = Scope { generation: Generation(7), partition: partition(1) };
    let position = store.take_over(scope, Writer(1), 10, news()).await.expect("taken over");
    assert_eq!(position, 10);
    fill(&store, scope, 5, 10).await;
    (store, scope)
}

fn news() -> News {
    News { log_end: Offset::ZERO, next_event_at: None, heard_at: at(1) }
}

async fn fill(store: &RedisCounters, scope: Scope, count: i64, version: i64) {
    let lease = store.lease(scope, LeaseKey::Count(post(1))).await.expect("answered").expect("leased");
    let fill = Fill::Count(post(1), CachedCount { count, version }, COUNT_LIFE);
    assert_eq!(store.fill(scope, lease, fill).await.expect("answered"), Outcome::Done);
}

fn publish(from: i64, count: i64) -> Publish {
    let counts = vec![(post(1), CachedCount { count, version: from + 1 })];
    Publish { writer: Writer(1), from, to: from + 1, counts, statuses: vec![], news: news(), recovering: false }
}

async fn count(store: &RedisCounters, scope: Scope) -> Option<i64> {
    let answers = store.read(&[Ask { scope, counts: vec![post(1)], statuses: vec![] }], None).await.expect("read");
    answers[0].counts[0].map(|cached| cached.count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_refuses_a_publish_as_a_whole() {
    let server = servers::start_redis(&["--maxmemory-policy", "noeviction"]);
    let (store, scope) = owned(&server).await;
    let mut node = nodes(&servers::redis_url(&server)).remove(0);
    let mut limit = |bytes: &str| {
        let () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).query(&mut node).unwrap();
    };
    limit("1");
    store.publish(scope, publish(10, 6)).await.expect_err("no memory");
    assert_eq!(count(&store, scope).await, Some(5), "nothing was changed");
    assert_eq!(store.progress(scope).await.unwrap().map(|progress| progress.position), Some(10));
    limit("0");
    assert_eq!(store.publish(scope, publish(10, 6)).await.unwrap(), Outcome::Done);
    assert_eq!(count(&store, scope).await, Some(6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_wrong_type_count_as_missing_and_are_made_anew() {
    let server = servers::start_redis(&[]);
    let (store, scope) = owned(&server).await;
    let mut node = nodes(&servers::redis_url(&server)).remove(0);
    let keys: Vec<String> = node.keys("like:count:*").unwrap();
    let spoil = |node: &mut Connection, key: &str| {
        let () = redis::cmd("SET").arg(key).arg("x").query(node).unwrap();
    };
    spoil(&mut node, &keys[0]);
    assert_eq!(count(&store, scope).await, None);
    assert_eq!(store.publish(scope, publish(10, 6)).await.unwrap(), Outcome::Done, "it is deleted");
    fill(&store, scope, 6, 11).await;
    assert_eq!(count(&store, scope).await, Some(6));
    spoil(&mut node, &keys[0]);
    fill(&store, scope, 6, 11).await;
    assert_eq!(count(&store, scope).await, Some(6));
    let progress: Vec<String> = node.keys("like:progress:*").unwrap();
    spoil(&mut node, &progress[0]);
    assert_eq!(store.progress(scope).await.unwrap(), None, "entries without progress have no claim");
    assert_eq!(count(&store, scope).await, None);
    assert_eq!(store.take_over(scope, Writer(1), 11, news()).await.unwrap(), 11);
    assert_eq!(count(&store, scope).await, Some(6), "what is at the floor is still good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_scripts_and_a_restart_are_recovered_from_by_themselves() {
    let mut server = servers::start_redis(&[]);
    let (store, scope) = owned(&server).await;
    let mut node = nodes(&servers::redis_url(&server)).remove(0);
    let () = redis::cmd("SCRIPT").arg("FLUSH").query(&mut node).unwrap();
    assert_eq!(store.publish(scope, publish(10, 6)).await.unwrap(), Outcome::Done);
    server.kill();
    store.progress(scope).await.expect_err("it is away");
    server.start();
    let started = std::time::Instant::now();
    while store.progress(scope).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(30), "it is not found again");
    }
    println!("answered {:?} after it was back (1 s)", started.elapsed());
    assert_eq!(count(&store, scope).await, None, "it came back empty: unknown, not 0");
    // The owners' connection notices with its first call.
    let refused = loop {
        match store.publish(scope, publish(11, 7)).await {
            Ok(outcome) => break outcome,
            Err(_) => assert!(started.elapsed() < Duration::from_secs(30), "it is not found again"),
        }
    };
    assert_eq!(refused, Outcome::Refused);
}

/// Calls of a busy process share a connection: each gets its own answer, also where the scripts are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_share_a_connection_get_their_own_answers() {
    let server = servers::start_redis(&[]);
    let store = Arc::new(RedisRequests::new(&servers::redis_url(&server), PATIENT).expect("a URL"));
    let policy = Policy { burst: 3, window: Duration::from_secs(3600) };
    for round in 0..3_i64 {
        let calls = (1..=500_i64).map(|number| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let charge = Charge { bucket: Bucket::Pair(conformance::pair(1, number)), policy };
                let request = conformance::request(round.unsigned_abs().into());
                let key = RequestKey { subject: conformance::user(number), request };
                let intent = Intent { user: key.subject, content: post(number), liked: true };
                let first = store.admit(key, intent, &[charge]).await.expect("answered");
                (number, first, store.admit(key, intent, &[charge]).await.expect("answered"))
            })
        });
        for call in calls.collect::<Vec<_>>() {
            let (number, first, second) = call.await.expect("no panic");
            let Admitted::Fresh(levels) = first else { panic!("{number}: {first:?}") };
            assert_eq!(
                levels.iter().map(|level| i64::from(level.remaining)).collect::<Vec<_>>(),
                [2 - round],
                "{number}"
            );
            assert_eq!(second, Admitted::InFlight, "{number}");
        }
        let () = redis::cmd("SCRIPT").arg("FLUSH").query(&mut nodes(&servers::redis_url(&server))[0]).expect("flushed");
    }
}

/// A user that may not tell what changed publishes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_tell_changes_publishes_them() {
    let server = servers::start_redis(&[]);
    let mut connection =
        redis::Client::open(servers::redis_url(&server)).expect("a URL").get_connection().expect("there");
    let rights = ["on", ">secret", "~like:*", "resetchannels", "+@all"];
    let () = redis::cmd("ACL").arg("SETUSER").arg("mute").arg(&rights).query(&mut connection).expect("a user");
    let url = servers::redis_url(&server).replace("redis://", "redis://mute:secret@");
    let store = RedisCounters::new(&url, PATIENT).expect("a URL");
    let scope = Scope { generation: Generation(7), partition: partition(1) };
    assert_eq!(store.take_over(scope, Writer(1), 10, news()).await.expect("taken over"), 10);
    fill(&store, scope, 5, 10).await;
    assert_eq!(store.publish(scope, publish(10, 6)).await, Ok(Outcome::Done));
    assert_eq!(count(&store, scope).await, Some(6));
}
