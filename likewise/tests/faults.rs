//! Faults of real servers and processes, one test each: what must hold while they last, and after.
//!
//! `LIKEWISE_TEST_REPEATS` sets how often the repeated ones are repeated (3 if it is not set).

use std::{
    collections::BTreeSet,
    env,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Scope},
    time::{Duration, Instant},
};

use likewise_testkit::{
    Service,
    audit::{self, checkpoints, ends},
    load::{History, Load, feed, like, read, read_each},
    proxy::{Fault, Proxy},
    rig::{Own, Rig},
    wait_until,
};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_likewise");
/// A bound of the product is waited for three times as long; what was seen is printed.
const PATIENCE: u32 = 3;

fn repeats() -> usize {
    env::var("LIKEWISE_TEST_REPEATS").map_or(3, |text| text.parse().expect("LIKEWISE_TEST_REPEATS is a number"))
}

fn load(commands: usize) -> Load {
    Load { commands, clients: 16, users: 1000, contents: 100, seed: 11 }
}

/// Tells that it is over when it is dropped: a check that fails must not wait for the load that it ran under.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `disturb` while clients like and unlike through `api`. What it starts beside them goes on until `over`.
fn under_load<'env, T>(
    api: &'env Service,
    history: &'env History,
    over: &'env AtomicBool,
    disturb: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
) -> T {
    thread::scope(|scope| {
        let _however_it_ends = Ends(over);
        scope.spawn(move || load(1600).run_until(over, std::slice::from_ref(api), history));
        disturb(scope)
    })
}

/// Likes every content of the first 48 once more and waits until all of that is projected: every partition moved.
async fn every_partition_moves(rig: &Rig, api: &Service, user: u64) -> Duration {
    let started = Instant::now();
    like(api, user, 1..=48);
    let _waited = audit::quiesce(&rig.places(), Duration::from_secs(60)).await;
    started.elapsed()
}

fn producer(rig: &Rig) -> BaseProducer {
    let brokers = rig.places().kafka;
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("message.max.bytes", "2000000")
        .create()
        .expect("a producer")
}

/// Key, value and `ce_type`.
type Raw<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, Option<&'a str>);

/// Puts records into a partition as they are.
fn produce(rig: &Rig, partition: i32, records: &[Raw<'_>]) {
    let producer = producer(rig);
    for (key, value, kind) in records {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&rig.name).partition(partition);
        if let Some(key) = key {
            record = record.key(key);
        }
        if let Some(value) = value {
            record = record.payload(value);
        }
        if let Some(kind) = kind {
            record = record.headers(OwnedHeaders::new().insert(Header { key: "ce_type", value: Some(*kind) }));
        }
        producer.send(record).map_err(|(error, _)| error).expect("taken");
    }
    producer.flush(Duration::from_secs(30)).expect("written");
}

fn event(id: &str, user: &str, content: i64) -> Vec<u8> {
    json!({ "requestId": id, "userId": user, "contentType": "post", "contentId": content.to_string(), "liked": true,
            "receivedAt": "2026-11-23T10:00:00.120Z" })
    .to_string()
    .into_bytes()
}

/// Killed and stopped projectors: their partitions move, and what a stopped one still wants to write is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_of_a_dead_or_stopped_projector_move_to_others() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let api = rig.role("command-api", "command");
    let mut projectors = vec![rig.projector("a"), rig.projector("b")];
    println!("all partitions move {:?} after the start", every_partition_moves(&rig, &api, 1).await);
    projectors.remove(0).kill();
    let took = every_partition_moves(&rig, &api, 2).await;
    println!("a projector's death is made good within {took:?} (10 s)");
    assert!(took < Duration::from_secs(10) * PATIENCE, "{took:?}");
    projectors.push(rig.projector("a"));
    for round in 0..repeats() {
        let history = History::default();
        every_partition_moves(&rig, &api, 10 + round as u64).await;
        projectors[round % 2].signal("STOP");
        let took = every_partition_moves(&rig, &api, 100 + round as u64).await;
        println!("a stopped projector's partitions move within {took:?} (15 s)");
        assert!(took < Duration::from_secs(15) * PATIENCE, "{took:?}");
        projectors[round % 2].signal("CONT");
        load(1600).run(std::slice::from_ref(&api), &history);
        rig.audit(&history).await;
    }
}

/// Projectors come and go under load: nothing is lost, nothing counts twice, nothing stalls for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_and_leaving_stalls_nothing_for_long() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let api = rig.role("command-api", "command");
    let base = rig.role("projector", "base");
    every_partition_moves(&rig, &api, 1).await;
    let (history, over) = (History::default(), AtomicBool::new(false));
    let worst = Mutex::new(Duration::ZERO);
    let records = rig.places().records;
    let runtime = tokio::runtime::Handle::current();
    under_load(&api, &history, &over, |scope| {
        scope.spawn(|| {
            // The longest time in which the sum of what is applied stood still.
            let (mut sum, mut since) = (0, Instant::now());
            while !over.load(Ordering::Relaxed) {
                let known = runtime.block_on(checkpoints(&records));
                let now: i64 = known.values().map(|checkpoint| checkpoint.next_offset).sum();
                let mut worst = worst.lock().expect("not poisoned");
                *worst = worst.max(since.elapsed());
                drop(worst);
                if now != sum {
                    (sum, since) = (now, Instant::now());
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        for round in 0..repeats() * 2 {
            let joined = rig.role("projector", &format!("joined-{round}"));
            joined.wait_ready();
            joined.signal(if round % 2 == 0 { "TERM" } else { "KILL" });
            let _ended = joined.wait();
        }
    });
    let worst = worst.into_inner().expect("not poisoned");
    println!("the longest stall was {worst:?} (15 s)");
    assert!(worst < Duration::from_secs(15) * PATIENCE);
    rig.audit(&history).await;
    drop(base);
}

/// The broker is killed, again and again, and stopped: nothing acknowledged is lost, and nobody waits past the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_or_stops_loses_nothing_and_holds_nobody_up() {
    let mut rig = Rig::start(BINARY, Own { kafka: true, ..Own::default() }).await;
    let (api, projector) = (rig.role("command-api", "command"), rig.projector("a"));
    every_partition_moves(&rig, &api, 1).await;
    let (history, over) = (History::default(), AtomicBool::new(false));
    under_load(&api, &history, &over, |_| {
        for _ in 0..repeats() {
            let before = history.accepted();
            wait_until("commands to be accepted", Duration::from_secs(60), || history.accepted() > before + 200);
            rig.kafka().kill();
            rig.kafka().start();
            let before = history.accepted();
            let limit = Duration::from_secs(5) * PATIENCE;
            let took = wait_until("commands to be accepted again", limit, || history.accepted() > before);
            println!("commands are accepted {took:?} after the broker is up (5 s)");
        }
    });
    rig.kafka().signal("STOP");
    let mut slowest = Duration::ZERO;
    for user in 1..=20 {
        let started = Instant::now();
        let answer = api.send("PUT", &format!("/v1/contents/post/7/like?viewer={user}"), &[], None);
        slowest = slowest.max(started.elapsed());
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(!answer.header("Retry-After").is_empty());
    }
    let last = Instant::now();
    let answer = api.send("PUT", "/v1/contents/post/7/like?viewer=99", &[], None);
    println!("with a stopped broker a command is refused within {slowest:?} (1.5 s), in the end {:?}", last.elapsed());
    assert_eq!((answer.status, &answer.json()["outcome"]), (503, &"rejected".into()), "nothing is tried in vain");
    assert!(slowest < Duration::from_millis(1500) * PATIENCE);
    let read = api.get("/livez");
    assert_eq!(read.status, 200);
    rig.kafka().signal("CONT");
    wait_until("commands to be accepted", Duration::from_secs(15), || {
        api.send("PUT", "/v1/contents/post/7/like?viewer=100", &[], None).status < 300
    });
    rig.audit(&history).await;
    drop(projector);
}

/// A command API that is killed or asked to stop under load: what it acknowledged is in the log, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_api_that_dies_or_stops_loses_nothing_it_acknowledged() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let (projector, stays) = (rig.projector("a"), rig.role("command-api", "stays"));
    let history = History::default();
    for round in 0..repeats() {
        let ends = rig.role("command-api", &format!("ends-{round}"));
        let signal = if round % 2 == 0 { "TERM" } else { "KILL" };
        let services = [ends, rig.role("command-api", &format!("beside-{round}"))];
        thread::scope(|scope| {
            let sending = scope.spawn(|| load(3200).run(&services, &history));
            let before = history.done();
            wait_until("commands to go through", Duration::from_secs(60), || history.done() > before + 800);
            services[0].signal(signal);
            let id = services[0].id();
            let took = wait_until("the process to end", Duration::from_secs(10) * PATIENCE, || !is_running(id));
            println!("after {signal} the process ends within {took:?} (10 s)");
            sending.join().expect("what it was asked meanwhile is asked of the other one");
        });
    }
    let found = rig.audit(&history).await;
    println!("{} accepted, {} events", history.accepted(), found.events);
    drop((projector, stays));
}

/// A process that has ended and was not waited for yet is a zombie.
fn is_running(id: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    state.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Records that are no events neither block nor vanish; the others are projected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_buried_and_what_becomes_valid_is_replayed() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let (api, projector) = (rig.role("command-api", "command"), rig.projector("a"));
    every_partition_moves(&rig, &api, 1).await;
    let (id, ours) = ("0192f0c1-0000-7000-8000-000000000001", Some("LikeToggled.v1"));
    let (good, large) = (event(id, "7", 3), vec![b'x'; 1_000_000]);
    let (negative, elsewhere) = (event(id, "-7", 3), event(id, "7", 4));
    let poison: [Raw<'_>; 9] = [
        (Some(id.as_bytes()), Some(b"not json"), ours),
        (Some(id.as_bytes()), Some(b"[1,2,true]"), ours),
        (Some(id.as_bytes()), None, ours),
        (None, Some(&good), ours),
        (Some(b"another key"), Some(&good), ours),
        (Some(id.as_bytes()), Some(&good), Some("SomethingElse.v1")),
        (Some(id.as_bytes()), Some(&good), None),
        (Some(id.as_bytes()), Some(&large), ours),
        (Some(id.as_bytes()), Some(&negative), ours),
    ];
    produce(&rig, 3, &poison);
    // An event of content 4 belongs to partition 4.
    produce(&rig, 3, &[(Some(id.as_bytes()), Some(&elsewhere), ours)]);
    let took = audit::quiesce(&rig.places(), Duration::from_secs(30)).await;
    println!("the partition has passed the poison after {took:?}");
    every_partition_moves(&rig, &api, 2).await;
    let letters = audit::read_topic(&rig.places().kafka, &format!("{}.dead", rig.name));
    assert_eq!(letters.len(), poison.len() + 1, "every one is buried, once");
    let listed = rig.settings("operator").output(&["dead-letters", "list"]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(text.lines().count(), letters.len(), "{text}");
    assert!(text.contains("3/") && text.contains("belongs to partition 4"), "{text}");
    let shown = rig.settings("operator").output(&["dead-letters", "show", "0"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("__dlq.errors.message"));
    let replayed = rig.settings("operator").output(&["dead-letters", "replay"]);
    let text = String::from_utf8_lossy(&replayed.stdout).into_owned();
    assert!(text.contains("1 appended, 9 left"), "{text}{}", String::from_utf8_lossy(&replayed.stderr));
    let _waited = audit::quiesce(&rig.places(), Duration::from_secs(30)).await;
    let likes = api.send("PUT", "/v1/contents/post/4/like?viewer=8", &[("Prefer", "wait=5")], None).json();
    assert_eq!(likes["count"], 4, "two likes of before, the replayed one, and this: {likes}");
    drop(projector);
}

/// An unknown major version stops its partition and says so; the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_major_version_halts_its_partition_alone() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let (api, projector) = (rig.role("command-api", "command"), rig.projector("a"));
    every_partition_moves(&rig, &api, 1).await;
    let id = "0192f0c1-0000-7000-8000-000000000001";
    produce(&rig, 5, &[(Some(id.as_bytes()), Some(b"{}"), Some("LikeToggled.v2"))]);
    wait_until("the halt", Duration::from_secs(30), || {
        let ready = projector.get("/readyz");
        ready.status == 503 && ready.text.contains("partition 5 is halted")
    });
    let answer = api.send("PUT", "/v1/contents/post/6/like?viewer=9", &[("Prefer", "wait=5")], None);
    assert_eq!(answer.status, 200, "partition 6 goes on: {}", answer.text);
    let answer = api.send("PUT", "/v1/contents/post/5/like?viewer=9", &[], None);
    assert_eq!(answer.status, 202, "partition 5 keeps what comes: {}", answer.text);
    projector.signal("TERM");
    let (status, _, log) = projector.wait();
    assert!(status.success() && log.contains("major version 2"), "{log}");
}

/// The group's offsets are for lag tools: wherever they are set, projecting goes on at the checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_groups_offsets_mean_nothing_and_copies_of_the_log_have_no_effect() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let api = rig.role("command-api", "command");
    let projector = rig.role("projector", "a");
    let history = History::default();
    load(1600).run(std::slice::from_ref(&api), &history);
    rig.audit(&history).await;
    let digest = || {
        let output = rig.settings("operator").output(&["digest", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).expect("a digest")["sha256"].clone()
    };
    let before = digest();
    projector.signal("TERM");
    let _ended = projector.wait();

    let places = rig.places();
    let group: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &places.kafka)
        .set("group.id", &rig.name)
        .create()
        .expect("a consumer");
    let mut back = rdkafka::TopicPartitionList::new();
    let mut ahead = rdkafka::TopicPartitionList::new();
    for (partition, end) in ends(&places.kafka, &rig.name) {
        back.add_partition_offset(&rig.name, partition, rdkafka::Offset::Offset(0)).expect("a place");
        ahead.add_partition_offset(&rig.name, partition, rdkafka::Offset::Offset(end + 1000)).expect("a place");
    }
    let committed = group.committed_offsets(back.clone(), Duration::from_secs(10)).expect("offsets");
    let known =
        committed.elements().iter().filter(|place| matches!(place.offset(), rdkafka::Offset::Offset(_))).count();
    assert!(known > 0, "lag tools see how far the group is");
    for offsets in [back, ahead] {
        group.commit(&offsets, CommitMode::Sync).expect("committed");
        let projector = rig.role("projector", "a");
        every_partition_moves(&rig, &api, if digest() == before { 501 } else { 502 }).await;
        projector.signal("TERM");
        let _ended = projector.wait();
    }
    let projector = rig.role("projector", "a");
    rig.audit(&history).await;
    let before = digest();
    // The whole log once more, as a mirror that runs twice would.
    let producer = producer(&rig);
    let copies = audit::read_topic(&places.kafka, &rig.name);
    for copy in &copies {
        let value = copy.value.to_string();
        let headers = OwnedHeaders::new().insert(Header { key: "ce_type", value: Some("LikeToggled.v1") });
        let record =
            BaseRecord::to(&rig.name).partition(copy.partition).key(&copy.key).payload(&value).headers(headers);
        producer.send(record).map_err(|(error, _)| error).expect("taken");
    }
    producer.flush(Duration::from_secs(30)).expect("written");
    let found = rig.audit(&history).await;
    assert_eq!(found.events, 2 * copies.len());
    assert_eq!(digest(), before, "copies are duplicates");
    drop(projector);
}

fn admin(rig: &Rig) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", rig.places().kafka).create().expect("an admin client")
}

/// Another log under the same name, longer than the one before, is noticed and not projected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_lost_and_has_grown_again_halts_and_is_never_guessed_at() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let api = rig.role("command-api", "command");
    let projector = rig.role("projector", "a");
    every_partition_moves(&rig, &api, 1).await;
    for service in [api, projector] {
        service.signal("TERM");
        let _ended = service.wait();
    }
    let (admin, options) = (admin(&rig), AdminOptions::new());
    let topic = NewTopic::new(&rig.name, 16, TopicReplication::Fixed(1));
    admin.delete_topics(&[&rig.name], &options).await.expect("deleted");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let made = admin.create_topics([&topic], &options).await.expect("answered");
        if made.iter().all(Result::is_ok) {
            break;
        }
        assert!(Instant::now() < deadline, "the topic is not made again: {made:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    wait_until("the new topic", Duration::from_secs(30), || {
        rig.settings("operator").output(&["topic", "check"]).stdout.starts_with(rig.name.as_bytes())
    });
    let projector = rig.role("projector", "a");
    let halted = || projector.get("/readyz").text.contains("is halted");
    wait_until("a halt, since the checkpoint is beyond the log's end", Duration::from_secs(30), halted);
    projector.signal("TERM");
    let _ended = projector.wait();
    // Longer than before, in every partition.
    for partition in 0..16 {
        for user in 1..=9 {
            let id = format!("0192f0c1-0000-7000-8000-{:012}", partition * 100 + user);
            let value = event(&id, &user.to_string(), i64::from(partition) + 16);
            produce(&rig, partition, &[(Some(id.as_bytes()), Some(&value), Some("LikeToggled.v1"))]);
        }
    }
    let next_offsets = async || -> Vec<i64> {
        checkpoints(&rig.places().records).await.values().map(|checkpoint| checkpoint.next_offset).collect()
    };
    let before = next_offsets().await;
    let projector = rig.role("projector", "a");
    let halted = || projector.get("/readyz").text.contains("is halted");
    wait_until("a halt, since another record is at the mark", Duration::from_secs(30), halted);
    assert_eq!(next_offsets().await, before, "a halted owner moves nothing");
    projector.signal("TERM");
    let (_, _, log) = projector.wait();
    assert!(log.contains("another log?"), "{log}");
}

/// A topic whose partitions were added to is refused, with a sentence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_number_of_partitions_is_refused() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let api = rig.role("command-api", "command");
    let projector = rig.role("projector", "a");
    every_partition_moves(&rig, &api, 1).await;
    drop((api, projector));
    let admin = admin(&rig);
    admin.create_partitions([&NewPartitions::new(&rig.name, 17)], &AdminOptions::new()).await.expect("added");
    let refused =
        rig.settings("x").output(&["command-api", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("has 17 partitions"), "{text}");
    admin.create_partitions([&NewPartitions::new(&rig.name, 32)], &AdminOptions::new()).await.expect("added");
    let brokers = rig.places().kafka;
    let looking: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a consumer");
    let patience = Duration::from_secs(5);
    wait_until("the new partitions to have leaders", Duration::from_secs(60), || {
        let metadata = looking.fetch_metadata(Some(&rig.name), patience);
        metadata.is_ok_and(|metadata| metadata.topics()[0].partitions().len() == 32)
            && (0..32).all(|partition| looking.fetch_watermarks(&rig.name, partition, patience).is_ok())
    });
    let projector = rig.role("projector", "b");
    wait_until("a halt", Duration::from_secs(30), || projector.get("/readyz").text.contains("is halted"));
    projector.signal("TERM");
    let (_, _, log) = projector.wait();
    assert!(log.contains("was made from a log of 16 partitions"), "{log}");
}

/// Redis is emptied, killed and full while it is read: no answer is a wrong number that is not marked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_is_emptied_killed_or_full_never_makes_a_wrong_answer() {
    let mut rig = Rig::start(BINARY, Own { redis: true, ..Own::default() }).await;
    let (api, query, projector) =
        (rig.role("command-api", "command"), rig.role("query-api", "query"), rig.projector("a"));
    // Likes only ever grow here: a number is wrong if it is below what the position asked for shows, or above what was
    // ever sent.
    let contents: Vec<String> = (1..=10).map(|content| format!("content=post:{content}")).collect();
    let feed = format!("/v1/likes?{}", contents.join("&"));
    let sent = AtomicU64::new(0);
    let like = |user: u64| {
        sent.store(user, Ordering::SeqCst);
        let positions: Vec<String> = (1..=10)
            .map(|content| {
                let path = format!("/v1/contents/post/{content}/like?viewer={user}");
                let answer = api.send("PUT", &path, &[("Prefer", "wait=1")], None);
                assert!(answer.status == 200 || answer.status == 202, "{}", answer.text);
                format!("&after={}", answer.json()["position"].as_str().unwrap_or_default())
            })
            .collect();
        (user, positions.concat())
    };
    let known = Mutex::new(like(1));
    let _waited = audit::quiesce(&rig.places(), Duration::from_secs(60)).await;
    let (over, wrong) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let mut read = 0;
    thread::scope(|scope| {
        let (query, over, wrong, known, feed, sent) = (&query, &over, &wrong, &known, &feed, &sent);
        let reading = scope.spawn(move || {
            let mut read = 0;
            while !over.load(Ordering::Relaxed) {
                let (least, after) = known.lock().expect("not poisoned").clone();
                let answer = query.get(&format!("{feed}{after}"));
                if answer.status != 200 {
                    continue;
                }
                for item in answer.json()["items"].as_array().cloned().unwrap_or_default() {
                    read += 1;
                    let most = sent.load(Ordering::SeqCst);
                    if item["stale"] != true
                        && !item["count"].as_u64().is_some_and(|count| (least..=most).contains(&count))
                    {
                        wrong.lock().expect("not poisoned").push(format!("{item}, not {least} to {most}"));
                    }
                }
            }
            read
        });
        let ends = Ends(over);
        let mut user = 1;
        for fault in 0..4 * repeats() {
            match fault % 4 {
                0 => {
                    let () = redis::cmd("FLUSHALL").query(&mut rig.redis_connection()).expect("flushed");
                }
                1 => {
                    rig.redis().kill();
                    rig.redis().start();
                }
                2 => {
                    let mut redis = rig.redis_connection();
                    let set = |redis: &mut redis::Connection, bytes: &str| {
                        let () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).query(redis).expect("set");
                    };
                    set(&mut redis, "1");
                    *known.lock().expect("not poisoned") = like(user + 1);
                    user += 1;
                    set(&mut redis, "0");
                }
                _ => {
                    // A key of a wrong type, and scripts that the server has forgotten.
                    let mut redis = rig.redis_connection();
                    let keys: Vec<String> = redis::cmd("KEYS").arg("like:count:*").query(&mut redis).expect("keys");
                    for key in keys {
                        let () = redis::cmd("SET").arg(key).arg("x").query(&mut redis).expect("set");
                    }
                    let () = redis::cmd("SCRIPT").arg("FLUSH").query(&mut redis).expect("flushed");
                }
            }
            *known.lock().expect("not poisoned") = like(user + 1);
            user += 1;
        }
        drop(ends);
        read = reading.join().expect("read");
    });
    let wrong = wrong.into_inner().expect("not poisoned");
    println!("{read} numbers read, {} wrong and not marked", wrong.len());
    assert_eq!(wrong.iter().take(3).collect::<BTreeSet<_>>(), BTreeSet::new());
    assert!(read > 100);
    let found = rig.audit(&History::default()).await;
    println!("{} cached entries compared", found.cached);
    drop(projector);
}

/// A cache that has lost everything holds it all again soon, as the records have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_was_lost_is_whole_again_soon() {
    let keys: u64 = if repeats() >= 20 { 100_000 } else { 10_000 };
    let rig = Rig::start(BINARY, Own { redis: true, ..Own::default() }).await;
    let (api, query, projector) =
        (rig.role("command-api", "command"), rig.role("query-api", "query"), rig.projector("a"));
    let history = History::default();
    let many = Load { contents: keys, users: 100_000, ..load(if keys > 10_000 { 200_000 } else { 12_800 }) };
    many.run(std::slice::from_ref(&api), &history);
    rig.audit(&history).await;
    let read_all = || {
        thread::scope(|scope| {
            for part in 0..4 {
                let query = &query;
                scope.spawn(move || {
                    let contents: Vec<u64> = (1..=keys).filter(|content| content / 100 % 4 == part).collect();
                    for chunk in contents.chunks(100) {
                        let path = feed(chunk);
                        wait_until("a feed to be answered", Duration::from_secs(30), || query.get(&path).status == 200);
                    }
                });
            }
        });
    };
    for loss in ["before it was filled", "while it was full"] {
        let () = redis::cmd("FLUSHALL").query(&mut rig.redis_connection()).expect("flushed");
        let started = Instant::now();
        let mut passes = 0;
        loop {
            // What is read before the owner has said again how far it is, is not kept.
            read_all();
            passes += 1;
            let found = rig.audit(&history).await;
            let took = started.elapsed();
            println!("lost {loss}: {} entries are there and right after {passes} readings, {took:?}", found.cached);
            assert!(took < Duration::from_secs(30) * PATIENCE, "{took:?} (30 s for 100,000)");
            // The others were never liked, which is known without an entry.
            if found.cached >= found.counts.len() * 99 / 100 {
                break;
            }
        }
    }
    drop(projector);
}

/// Redis does what it is told and its answers are lost: what was published again has no second effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_of_the_cache_double_nothing() {
    let rig = Rig::start(BINARY, Own { redis: true, proxied: true, ..Own::default() }).await;
    let (api, query, projector) =
        (rig.role("command-api", "command"), rig.role("query-api", "query"), rig.projector("a"));
    every_partition_moves(&rig, &api, 1).await;
    let (history, over) = (History::default(), AtomicBool::new(false));
    under_load(&api, &history, &over, |scope| {
        scope.spawn(|| read(std::slice::from_ref(&query), load(1600), || over.load(Ordering::Relaxed)));
        for round in 1..=10 * repeats() as u64 {
            let before = (rig.redis_proxy().hits(), history.done());
            rig.redis_proxy().set(Fault::AnswersLost);
            wait_until("answers to be lost", Duration::from_secs(30), || rig.redis_proxy().hits() >= before.0 + 20);
            rig.redis_proxy().set(Fault::None);
            // What waits for a lost answer would be given that of another question.
            rig.redis_proxy().cut();
            wait_until("commands to go on", Duration::from_secs(30), || history.done() > before.1 + 20);
            assert!(rig.redis_proxy().hits() >= 20 * round);
        }
    });
    rig.audit(&history).await;
    // Nothing is kept until the reader has found out that Redis answers again.
    let started = Instant::now();
    let cached = loop {
        read_each(std::slice::from_ref(&query), load(0), 3);
        let cached = rig.audit(&history).await.cached;
        if cached >= 300 || started.elapsed() > Duration::from_secs(30) {
            break cached;
        }
    };
    println!("{} answers of Redis lost; {cached} cached entries are as they must be", rig.redis_proxy().hits());
    assert!(cached >= 300, "{cached}");
    drop(projector);
}

/// The broker's acknowledgement is lost: the sender is told that the outcome is unknown, and its retries have one effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_acknowledgements_of_the_log_double_nothing() {
    let rig = Rig::start(BINARY, Own { kafka: true, proxied: true, ..Own::default() }).await;
    let (api, projector) = (rig.role("command-api", "command"), rig.projector("a"));
    every_partition_moves(&rig, &api, 1).await;
    let (history, over) = (History::default(), AtomicBool::new(false));
    under_load(&api, &history, &over, |_| {
        for _ in 0..repeats() {
            let (before, unknown) = (history.done(), history.unknown());
            rig.kafka_proxy().set(Fault::AnswersLost);
            wait_until("outcomes to be unknown", Duration::from_secs(30), || history.unknown() > unknown);
            rig.kafka_proxy().set(Fault::None);
            rig.kafka_proxy().cut();
            wait_until("commands to go on", Duration::from_secs(60), || history.done() > before + 200);
        }
    });
    println!("{} answers of the broker lost, {} outcomes unknown", rig.kafka_proxy().hits(), history.unknown());
    rig.audit(&history).await;
    drop(projector);
}

/// A projector dies with a batch that is read and not committed, committed without its knowing, committed and not
/// published, or published without its knowing. Nothing more happens to those contents, and all the same everything
/// agrees soon after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_that_dies_between_two_stores_leaves_no_trace() {
    let rig = Rig::start(BINARY, Own { mysql: true, redis: true, proxied: true, ..Own::default() }).await;
    let (api, query) = (rig.role("command-api", "command"), rig.role("query-api", "query"));
    for round in 0..repeats() as u64 {
        for (step, proxy, fault) in [
            ("read, not committed", rig.mysql_proxy(), Fault::Silence),
            ("committed, not known to be", rig.mysql_proxy(), Fault::AnswersLostFrom("COMMIT")),
            ("committed, not published", rig.redis_proxy(), Fault::Silence),
            ("published, not known to be", rig.redis_proxy(), Fault::AnswersLost),
        ] {
            let projector = rig.projector("a");
            every_partition_moves(&rig, &api, 1000 * (round + 1)).await;
            read_each(std::slice::from_ref(&query), load(0), 1);
            let (hits, before) = (proxy.hits(), of_first_shards(&rig).await);
            proxy.set(fault);
            let history = History::default();
            load(64).run(std::slice::from_ref(&api), &history);
            wait_until("the fault to hit", Duration::from_secs(30), || proxy.hits() > hits);
            // Which of the two stores has the batch is as the step says.
            let is_committed = step != "read, not committed";
            let started = Instant::now();
            while is_committed && of_first_shards(&rig).await <= before {
                assert!(started.elapsed() < Duration::from_secs(30), "{step}: nothing was committed");
            }
            projector.kill();
            assert!(is_committed || of_first_shards(&rig).await == before, "{step}");
            proxy.set(Fault::None);
            proxy.cut();
            let projector = rig.projector("a");
            let started = Instant::now();
            let found = rig.audit(&history).await;
            println!("{step}: all agree {:?} after the restart (10 s), {} entries", started.elapsed(), found.cached);
            assert!(started.elapsed() < Duration::from_secs(10) * PATIENCE);
            drop(projector);
        }
    }
}

/// How much of the partitions on the server that may have a proxy is committed.
async fn of_first_shards(rig: &Rig) -> i64 {
    let known = checkpoints(&rig.places().records).await;
    known.iter().filter(|(partition, _)| **partition % 16 < 8).map(|(_, checkpoint)| checkpoint.next_offset).sum()
}

/// The answer to a command is lost on its way: the sender asks again, and there is one effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_answer_is_lost_has_one_effect() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let (api, projector) = (rig.role("command-api", "command"), rig.projector("a"));
    api.wait_ready();
    let proxy = Proxy::start(&api.address);
    for number in 0..10 * repeats() {
        let id = uuid::Uuid::now_v7().to_string();
        let body =
            json!({ "requestId": id, "userId": 1 + number, "contentType": "post", "contentId": 7, "liked": true });
        let hits = proxy.hits();
        proxy.set(Fault::AnswersLost);
        let request = format!(
            "POST /v1/likes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.to_string().len()
        );
        let mut stream = std::net::TcpStream::connect(proxy.address()).expect("the proxy listens");
        std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
        wait_until("the answer to be lost", Duration::from_secs(10), || proxy.hits() > hits);
        proxy.set(Fault::None);
        let again = api.post("/v1/likes", &body);
        assert_eq!((again.status, again.header("Idempotent-Replayed")), (202, "true"), "{}", again.text);
    }
    let found = rig.audit(&History::default()).await;
    assert_eq!((found.events, found.counts["post:7"]), (10 * repeats(), 10 * repeats() as i64));
    drop(projector);
}

/// A record server that answers slowly keeps projection waiting and nothing else: no partition moves, nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_record_server_is_waited_for() {
    let rig = Rig::start(BINARY, Own { mysql: true, proxied: true, ..Own::default() }).await;
    let (api, projector) = (rig.role("command-api", "command"), rig.projector("a"));
    every_partition_moves(&rig, &api, 1).await;
    let epochs = async || -> Vec<i64> {
        checkpoints(&rig.places().records).await.into_values().map(|checkpoint| checkpoint.epoch).collect()
    };
    let before = epochs().await;
    rig.mysql_proxy().set(Fault::AnswersLate(Duration::from_millis(100)));
    let history = History::default();
    load(160).run(std::slice::from_ref(&api), &history);
    wait_until("answers to be late", Duration::from_secs(30), || rig.mysql_proxy().hits() > 20);
    every_partition_moves(&rig, &api, 2).await;
    assert_eq!(epochs().await, before, "no partition was acquired anew");
    // So slow that a large batch does not go through in time: it goes on in smaller ones.
    rig.mysql_proxy().set(Fault::AnswersLate(Duration::from_millis(300)));
    load(640).run(std::slice::from_ref(&api), &history);
    println!("projected {:?} after the last command", audit::quiesce(&rig.places(), Duration::from_secs(90)).await);
    rig.mysql_proxy().set(Fault::None);
    rig.audit(&history).await;
    drop(projector);
}

/// Readers whose fills are late, on a way of their own to a cache that is flushed and evicted, beside a replica that
/// lags: what they install is never wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_fills_and_a_lagging_replica_install_nothing_wrong() {
    let rig = Rig::start(BINARY, Own { mysql: true, redis: true, proxied: true, ..Own::default() }).await;
    let replica = rig.start_replica(Duration::from_secs(2)).await;
    let slow = Proxy::start(rig.redis_proxy().address().as_str());
    let reader = rig
        .settings_with_cache("query", &rig.redis_through(&slow))
        .role("query-api")
        .arg("--records-replica")
        .arg(&rig.replica_url(&replica, "0-7"))
        .arg("--records-replica")
        .arg(&rig.mariadb_url("8-15"))
        .start();
    let (api, projector) = (rig.role("command-api", "command"), rig.projector("a"));
    reader.wait_ready();
    slow.set(Fault::AnswersLate(Duration::from_millis(15)));
    let (history, over) = (History::default(), AtomicBool::new(false));
    let (mut read_back, mut wrong) = (0, Vec::new());
    under_load(&api, &history, &over, |scope| {
        for _ in 0..2 {
            scope.spawn(|| read(std::slice::from_ref(&reader), load(1600), || over.load(Ordering::Relaxed)));
        }
        let mut redis = rig.redis_connection();
        for round in 0..20 * repeats() as u64 {
            // A content of its own, whose count only this thread changes, is read back after every change.
            let content = 1_000_000 + round % 3;
            let path = format!("/v1/contents/post/{content}/like?viewer={}", 5000 + round);
            let answer = api.send("PUT", &path, &[], None);
            assert_eq!(answer.status, 202, "{}", answer.text);
            let after = answer.json()["position"].as_str().unwrap_or_default().to_owned();
            let viewer = 5000 + round;
            let path = format!("/v1/contents/post/{content}/likes?after={after}&wait=2&viewer={viewer}");
            let (seen, expected) = (reader.get(&path).json(), round / 3 + 1);
            if seen["stale"] != true && seen["count"].is_number() {
                read_back += 1;
                if seen["count"] != expected || seen["liked"] != true {
                    wrong.push(format!("{seen}, not {expected}"));
                }
            }
            match round % 8 {
                0 => {
                    let () = redis::cmd("FLUSHALL").query(&mut redis).expect("flushed");
                }
                // Evicted: some of the keys that may be.
                _ => {
                    for pattern in ["like:count:*", "like:user:*"] {
                        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query(&mut redis).expect("keys");
                        let some: Vec<&String> = keys.iter().step_by(3).collect();
                        if !some.is_empty() {
                            let () = redis::cmd("DEL").arg(some).query(&mut redis).expect("deleted");
                        }
                    }
                }
            }
        }
    });
    println!("{read_back} numbers read back, {} wrong and not marked; {} late answers", wrong.len(), slow.hits());
    assert_eq!(wrong.iter().take(3).collect::<BTreeSet<_>>(), BTreeSet::new());
    assert!(read_back > 10 && slow.hits() > 100);
    slow.set(Fault::None);
    rig.audit(&history).await;
    read_each(std::slice::from_ref(&reader), load(0), 3);
    println!("{} cached entries are as they must be", rig.audit(&history).await.cached);
    drop(projector);
}

/// MySQL is killed under load, again and again: rows and checkpoint move together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_server_that_dies_under_load_loses_and_doubles_nothing() {
    let mut rig = Rig::start(BINARY, Own { mysql: true, ..Own::default() }).await;
    let (api, projector) = (rig.role("command-api", "command"), rig.projector("a"));
    every_partition_moves(&rig, &api, 1).await;
    let (history, over) = (History::default(), AtomicBool::new(false));
    under_load(&api, &history, &over, |_| {
        for _ in 0..repeats() {
            let before = history.accepted();
            wait_until("commands to be accepted", Duration::from_secs(60), || history.accepted() > before + 400);
            rig.mysql().kill();
            rig.mysql().start();
        }
    });
    rig.audit(&history).await;
    drop(projector);
}
