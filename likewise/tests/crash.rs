//! `kill -9` under load, again and again: every acknowledged like is there, every count is exact.
//!
//! `LIKEWISE_TEST_KILLS` sets the number of kills (25 if it is not set).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use likewise_testkit::{Service, Settings, wait_until};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use uuid::Uuid;

const CLIENTS: u64 = 16;
const USERS: i64 = 400;
const CONTENTS: i64 = 25;

/// What the clients know.
#[derive(Default)]
struct Known {
    acknowledged: Mutex<BTreeSet<String>>,
    attempts: AtomicU64,
    refused_for_quota: AtomicU64,
}

fn command(random: &mut StdRng) -> Value {
    json!({
        "requestId": Uuid::now_v7().to_string(),
        "userId": random.random_range(1..=USERS),
        "contentType": if random.random_bool(0.5) { "post" } else { "photo" },
        "contentId": random.random_range(1..=CONTENTS),
        "liked": random.random_bool(0.6),
    })
}

/// Sends commands until told to stop; one in ten repeats an earlier requestId, and an unknown outcome is retried.
fn client(number: u64, service: &RwLock<Option<Service>>, known: &Known, stop: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(number);
    let mut sent: Vec<Value> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let repeat = !sent.is_empty() && random.random_bool(0.1);
        let body = if repeat { sent[random.random_range(0..sent.len())].clone() } else { command(&mut random) };
        if !repeat {
            sent.push(body.clone());
        }
        for _ in 0..3 {
            known.attempts.fetch_add(1, Ordering::Relaxed);
            let guard = service.read().unwrap();
            let Some(service) = guard.as_ref() else { break };
            let headers = [("Content-Type", "application/json")];
            let answer = service.try_send("POST", "/v1/likes", &headers, Some(body.to_string().as_bytes()));
            match answer.as_ref().map(|answer| answer.status) {
                Ok(202) => {
                    let id = body["requestId"].as_str().unwrap().to_owned();
                    known.acknowledged.lock().unwrap().insert(id);
                    break;
                }
                Ok(429) => {
                    known.refused_for_quota.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Ok(409 | 503) | Err(_) => {}
                Ok(other) => panic!("{other}: {}", answer.unwrap().text),
            }
        }
    }
}

/// By content, whether each user who ever liked it does.
type Likes = BTreeMap<(String, i64), BTreeMap<i64, bool>>;

/// The log's events by pair in order, folded by hand: ids seen before have no effect, else the last one wins.
fn fold(lines: &str) -> (Likes, BTreeSet<String>) {
    let mut likes = Likes::new();
    let (mut ids, mut last_offsets) = (BTreeSet::new(), HashMap::new());
    let mut seen: BTreeSet<(String, String)> = BTreeSet::new();
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let (partition, offset) = (record["partition"].as_i64().unwrap(), record["offset"].as_i64().unwrap());
        let expected = last_offsets.insert(partition, offset).map_or(0, |last: i64| last + 1);
        assert_eq!(offset, expected, "partition {partition} has no gaps");
        let event = &record["value"];
        let number = |name: &str| event[name].as_str().unwrap().parse::<i64>().unwrap();
        let (kind, id) =
            (event["contentType"].as_str().unwrap().to_owned(), event["requestId"].as_str().unwrap().to_owned());
        ids.insert(id.clone());
        let pair = format!("{kind}/{}/{}", number("contentId"), number("userId"));
        if seen.insert((pair, id)) {
            let state = event["liked"].as_bool().unwrap();
            likes.entry((kind, number("contentId"))).or_default().insert(number("userId"), state);
        }
    }
    (likes, ids)
}

#[test]
fn no_kill_loses_an_acknowledged_like_or_counts_one_twice() {
    let kills: u32 = std::env::var("LIKEWISE_TEST_KILLS").map_or(25, |kills| kills.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path());
    let known = Known::default();
    let (service, stop) = (RwLock::new(Some(settings.start())), AtomicBool::new(false));
    let mut slowest = Duration::ZERO;
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (service, known, stop) = (&service, &known, &stop);
            scope.spawn(move || client(number, service, known, stop));
        }
        let acknowledged = || known.acknowledged.lock().unwrap().len();
        let mut random = StdRng::seed_from_u64(99);
        for _ in 0..kills {
            // Kill in the middle of load: after some more likes have been acknowledged.
            let enough = acknowledged() + random.random_range(50..400);
            wait_until("acknowledgements", Duration::from_secs(30), || acknowledged() >= enough);
            // Killed first, while requests are in flight; replaced once no client holds it.
            service.read().unwrap().as_ref().unwrap().signal("KILL");
            let mut current = service.write().unwrap();
            drop(current.take());
            let fresh = settings.start();
            slowest = slowest.max(fresh.wait_ready());
            *current = Some(fresh);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let service = service.into_inner().unwrap().unwrap();
    let acknowledged = known.acknowledged.into_inner().unwrap();

    let output = settings.output(&["replay", "--to", "-"]);
    let (likes, ids) = fold(&String::from_utf8(output.stdout).unwrap());
    let lost: Vec<&String> = acknowledged.difference(&ids).collect();
    assert!(lost.is_empty(), "{} acknowledged likes are not in the log: {lost:?}", lost.len());
    let is_projected = || {
        let metrics = service.get_admin("/metrics").text;
        let lag = metrics.lines().filter(|line| line.starts_with("kafka_consumergroup_group_lag{"));
        lag.clone().count() == 16 && lag.clone().all(|line| line.ends_with(" 0"))
    };
    wait_until("the projection to end", Duration::from_secs(30), is_projected);
    let mut active = 0;
    for ((kind, id), users) in &likes {
        let expected = users.values().filter(|liked| **liked).count() as i64;
        active += expected;
        for round in ["from the records", "from the counters"] {
            let read = service.get(&format!("/v1/contents/{kind}/{id}/likes")).json();
            assert_eq!(read["count"], json!(expected), "{kind}:{id} {round}: {read}");
        }
    }
    let digest: Value = serde_json::from_slice(&settings.output(&["digest", "--json"]).stdout).unwrap();
    let pairs: usize = likes.values().map(BTreeMap::len).sum();
    assert_eq!((&digest["rows"], &digest["active"]), (&json!(pairs), &json!(active)));
    println!(
        "{kills} kills, {} attempts, {} acknowledged, {} over quota, {pairs} pairs; slowest start {slowest:?}",
        known.attempts.load(Ordering::Relaxed),
        acknowledged.len(),
        known.refused_for_quota.load(Ordering::Relaxed),
    );
}
