//! The Redis adapters: the conformance suites on a real server and a real cluster, and what is special about them.

use std::{sync::Arc, time::Duration};

use likewise_storage::{
    CounterStore, RedisTimeouts, RequestStore, conformance, counters::RedisCounters, requests::RedisRequests,
};
use likewise_testkit::servers;
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
                let () = node.hincr(&key, "at", -(time.as_micros() as i64)).expect("the servers answer");
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
