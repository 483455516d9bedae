//! Reads of a system whose cache is cold, or whose parts are away: what they cost, and what they say.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use likewise_testkit::{
    Service, audit,
    load::{feed, like},
    proxy::Fault,
    rig::{Own, Rig},
    wait_until,
};
use serde_json::json;

const BINARY: &str = env!("CARGO_BIN_EXE_likewise");
/// A bound of the product is waited for three times as long; what was seen is printed.
const PATIENCE: u32 = 3;

/// Likes posts, and waits until that is projected.
async fn projected(rig: &Rig, api: &Service, posts: impl Iterator<Item = u64>) {
    like(api, 1, posts);
    let _waited = audit::quiesce(&rig.places(), Duration::from_secs(60)).await;
}

fn record_reads(query: &Service) -> f64 {
    query.metric("likewise_record_reads_total", "")
}

/// A thousand readers want a count that the cache does not have, while the record server is slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_count_is_read_once_however_many_want_it() {
    let rig = Rig::start(BINARY, Own { mysql: true, proxied: true, ..Own::default() }).await;
    let (api, query, projector) =
        (rig.role("command-api", "command"), rig.role("query-api", "query"), rig.projector("a"));
    projected(&rig, &api, 16..32).await;
    // The same path once, for a content of the same server: what a process finds out only once is known.
    assert_eq!(query.get("/v1/contents/post/17/likes").status, 200);
    let before = record_reads(&query);
    rig.mysql_proxy().set(Fault::AnswersLate(Duration::from_millis(10)));
    let request = b"GET /v1/contents/post/16/likes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let read_at_once = |readers: usize| {
        let connect = |_| TcpStream::connect(&query.address).expect("it listens");
        let mut readers: Vec<TcpStream> = (0..readers).map(connect).collect();
        readers.iter_mut().for_each(|reader| reader.write_all(request).expect("sent"));
        let answered = |mut reader: TcpStream| {
            let mut answer = String::new();
            reader.read_to_string(&mut answer).expect("answered");
            let is_right = answer.starts_with("HTTP/1.1 200") && answer.contains(r#""count":1,"#);
            assert!(is_right || answer.starts_with("HTTP/1.1 503"), "{answer}");
            is_right
        };
        readers.into_iter().map(answered).filter(|is_right| *is_right).count()
    };
    // On a slow machine some are answered too late; they ask again, as they were told.
    let mut missing = 1000;
    let answered = wait_until("everybody to be answered", Duration::from_secs(30), || {
        missing -= read_at_once(missing);
        missing == 0
    });
    println!("everybody was answered after {answered:?}");
    let reads = record_reads(&query) - before;
    println!("1,000 readers of a count that is missing: {reads} reads of the records (2)");
    assert!((1.0..=2.0).contains(&reads), "{reads}");
    drop(projector);
}

/// Contents that nobody ever liked cost the records nearly nothing, and are seen as soon as somebody does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_liked_is_known_without_asking() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let (api, query, projector) =
        (rig.role("command-api", "command"), rig.role("query-api", "query"), rig.projector("a"));
    projected(&rig, &api, 1..=2000).await;
    let is_known = || {
        let before = record_reads(&query);
        let unknown: Vec<u64> = (0..100).map(|_| 10_000 + u64::from(rand::random::<u32>())).collect();
        assert_eq!(query.get(&feed(&unknown)).status, 200);
        query.metric("likewise_filter_contents", "") >= 2000.0 && record_reads(&query) - before <= 1.0
    };
    wait_until("the filter of contents", Duration::from_secs(10), is_known);
    let let_through = || query.metric("likewise_filter_let_through_total", "");
    let before = (let_through(), record_reads(&query));
    for _ in 0..1000 {
        let unknown: Vec<u64> = (0..100).map(|_| 10_000 + u64::from(rand::random::<u32>())).collect();
        let answer = query.get(&format!("{}&viewer=7", feed(&unknown)));
        let items = answer.json()["items"].as_array().cloned().unwrap_or_default();
        let is_never =
            |item: &serde_json::Value| item["count"] == 0 && item["liked"] == false && item["stale"].is_null();
        assert!(items.len() == 100 && items.iter().all(is_never), "{}", answer.text);
    }
    let (through, reads) = (let_through() - before.0, record_reads(&query) - before.1);
    println!(
        "of 100,000 contents that nobody liked the filter let {through} through (2,000), in {reads} reads of the records"
    );
    assert!(through <= 2000.0, "{through}");
    let mut slowest = Duration::ZERO;
    for post in (1..=20_u64).map(|number| 5_000_000_000 + number) {
        let path = format!("/v1/contents/post/{post}/likes");
        assert_eq!(query.get(&path).json()["count"], 0);
        let headers = [("Prefer", "wait=5")];
        let put = api.send("PUT", &format!("/v1/contents/post/{post}/like?viewer=7"), &headers, None);
        assert_eq!((put.status, &put.json()["count"]), (200, &json!(1)), "{}", put.text);
        let took =
            wait_until("a first like to be seen", Duration::from_secs(5), || query.get(&path).json()["count"] == 1);
        slowest = slowest.max(took);
    }
    println!("a first like of a content known as never liked is seen {slowest:?} after it is projected");
    assert!(slowest < Duration::from_millis(500) * PATIENCE, "{slowest:?} (0.5 s)");
    drop(projector);
}

/// The cache stops answering: reads go on without it, hardly slower, and with it as soon as it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_cache_costs_little_time() {
    let mut rig = Rig::start(BINARY, Own { redis: true, ..Own::default() }).await;
    let (api, query, projector) =
        (rig.role("command-api", "command"), rig.role("query-api", "query"), rig.projector("a"));
    projected(&rig, &api, 1..=400).await;
    let read = |first: u64| {
        let started = Instant::now();
        let answer = query.get(&format!("{}&viewer=1", feed(&[first, first + 100, first + 200, first + 300])));
        let items = answer.json()["items"].as_array().cloned().unwrap_or_default();
        assert!(
            items.len() == 4 && items.iter().all(|item| item["count"] == 1 && item["liked"] == true),
            "{}",
            answer.text
        );
        started.elapsed()
    };
    // What is told of a content may be a second old.
    let is_told = |answer: &likewise_testkit::Answer| !answer.text.contains(r#""count":0"#);
    wait_until("all likes to be told", Duration::from_secs(5), || {
        (1..=4).all(|part| is_told(&query.get(&feed(&(100 * part - 99..=100 * part).collect::<Vec<_>>()))))
    });
    let usual = (1..=100).map(read).max().unwrap_or_default();
    let is_open = || query.metric("likewise_breakers_open", "Redis") >= 1.0;
    rig.redis().signal("STOP");
    let stopped = Instant::now();
    let (mut slowest, mut opened) = (Duration::ZERO, None);
    for first in (1..=100).cycle().take(300) {
        slowest = slowest.max(read(first));
        if opened.is_none() && is_open() {
            opened = Some(stopped.elapsed());
        }
    }
    rig.redis().signal("CONT");
    let closed = wait_until("the breaker to close", Duration::from_secs(1) * PATIENCE, || {
        read(1);
        !is_open()
    });
    let opened = opened.expect("the breaker opened");
    let added = slowest.saturating_sub(usual);
    println!(
        "with Redis stopped a read takes up to {slowest:?}, {added:?} more than before (50 ms); the breaker opened after {opened:?} (1 s) and closed {closed:?} after Redis was back (1 s)"
    );
    assert!(added < Duration::from_millis(50) * PATIENCE && opened < Duration::from_secs(1) * PATIENCE);
    drop(projector);
}

/// A record server stops answering: what is hot goes on, and the rest is refused soon, and never invented.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_record_server_leaves_what_is_hot() {
    let mut rig = Rig::start(BINARY, Own { mysql: true, ..Own::default() }).await;
    let (api, query, projector) =
        (rig.role("command-api", "command"), rig.role("query-api", "query"), rig.projector("a"));
    // Posts 16 to 23 are on the server that stops, 24 on the other.
    projected(&rig, &api, 16..=24).await;
    let path = |post: u64| format!("/v1/contents/post/{post}/likes");
    assert_eq!(query.get(&path(16)).json()["count"], 1);
    rig.mysql().signal("STOP");
    let started = Instant::now();
    let (mut hot, mut slowest) = (0, Duration::ZERO);
    let cold = format!("{}?viewer=1", path(17));
    while started.elapsed() < Duration::from_secs(6) {
        let answer = query.get(&path(16));
        assert_eq!((answer.status, &answer.json()["count"]), (200, &json!(1)), "{}", answer.text);
        if started.elapsed() > Duration::from_secs(5) {
            assert_eq!(answer.json()["stale"], true, "its owner cannot go on: {}", answer.text);
        }
        hot += 1;
        let asked = Instant::now();
        for path in [&cold, "/v1/contents/post/16/likers"] {
            let refused = query.get(path);
            assert_eq!(refused.status, 503, "{}", refused.text);
            assert!(!refused.header("Retry-After").is_empty());
        }
        slowest = slowest.max(asked.elapsed() / 2);
        assert_eq!(query.get(&path(24)).json()["count"], 1, "the other server's");
    }
    rig.mysql().signal("CONT");
    println!("with a record server stopped {hot} hot answers went on; others were refused within {slowest:?} (0.5 s)");
    assert!(slowest < Duration::from_millis(500) * PATIENCE, "{slowest:?}");
    let back = wait_until("answers from it", Duration::from_secs(15), || query.get(&cold).status == 200);
    println!("they came again {back:?} after it was back");
    drop(projector);
}

/// An entry of the cache is wrong, by whatever accident: it is found and mended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_entry_of_the_cache_is_found_and_mended() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let (api, query, projector) =
        (rig.role("command-api", "command"), rig.role("query-api", "query"), rig.projector("a"));
    projected(&rig, &api, 16..=20).await;
    let path = "/v1/contents/post/16/likes";
    let count = || query.get(path).json()["count"].as_i64();
    wait_until("the count to be cached", Duration::from_secs(10), || count() == Some(1));
    let mut redis = rig.redis_connection();
    let keys: Vec<String> = redis::cmd("KEYS").arg("like:count:*:post:16").query(&mut redis).expect("keys");
    assert_eq!(keys.len(), 1, "{keys:?}");
    let () = redis::cmd("HSET").arg(&keys[0]).arg("count").arg(999).query(&mut redis).expect("set");
    let mended = || {
        count();
        let there: i64 = redis::cmd("HGET").arg(&keys[0]).arg("count").query(&mut rig.redis_connection()).expect("get");
        there == 1 && count() == Some(1)
    };
    let took = wait_until("the entry to be mended", Duration::from_secs(5) * PATIENCE, mended);
    let (compared, wrong) =
        (query.metric("likewise_reconciled_total", ""), query.metric("likewise_reconciled_wrong_total", ""));
    println!("a wrong entry was mended after {took:?} (5 s); {wrong} of {compared} compared");
    assert!(wrong >= 1.0 && compared >= wrong);
    drop(projector);
}
