//! The whole log folded anew beside the live tables, which it takes the place of while likes go on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use likewise_testkit::{
    Service, Settings,
    load::{Dice, History, Load},
    rig::{Own, Rig},
    wait_until,
};
use rusqlite::Connection;
use serde_json::{Value, json};
use sqlx::{Executor, MySqlConnection};

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn told(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(text).unwrap()
}

fn verified(settings: &Settings) -> Value {
    let outcome = json_of(&settings.output(&["verify", "--json"]));
    assert_eq!(outcome["remaining"], 0, "{}", outcome["findings"]);
    outcome
}

/// Likes one post by one user after the other, reads its own like each time, and reads what is served without asking for
/// more. Nothing is refused, and no answer that is not marked is wrong.
fn likes_and_reads(api: &Service, query: &Service, post: u64, over: &AtomicBool, slowest: &AtomicU64) -> u64 {
    let mut likes = 0;
    while !over.load(Ordering::Relaxed) {
        let id = uuid::Uuid::now_v7().to_string();
        let user = 1_000_000 + likes;
        let like = json!({ "requestId": id, "userId": user, "contentType": "post", "contentId": post, "liked": true });
        let started = Instant::now();
        let answer = api.post("/v1/likes", &like);
        assert_eq!(answer.status, 202, "no command is refused: {}", answer.text);
        likes += 1;
        let position = answer.json()["position"].as_str().unwrap().to_owned();
        let read = query.get(&format!("/v1/contents/post/{post}/likes?viewer={user}&after={position}&wait=5"));
        let body = read.json();
        assert_eq!(read.status, 200, "{body}");
        if body["stale"] != true {
            assert_eq!((&body["count"], &body["liked"]), (&json!(likes), &json!(true)), "{body}");
        }
        slowest.fetch_max(started.elapsed().as_millis() as u64, Ordering::Relaxed);
        let plain = query.get(&format!("/v1/contents/post/{post}/likes")).json();
        let count = plain["count"].as_u64().unwrap_or_else(|| panic!("{plain}"));
        assert!(count <= likes, "never more than there are: {plain}");
    }
    likes
}

/// Waits until everything is projected.
fn settled(service: &Service) {
    wait_until("the projection to end", Duration::from_secs(60), || {
        let metrics = service.get_admin("/metrics").text;
        let lag = metrics.lines().filter(|line| line.starts_with("kafka_consumergroup_group_lag{"));
        lag.clone().count() == 16 && lag.clone().all(|line| line.ends_with(" 0"))
    });
}

fn spoil(dir: &Path) {
    for file in ["records-0-7.db", "records-8-15.db"] {
        let file = Connection::open(dir.join(file)).unwrap();
        file.busy_timeout(Duration::from_secs(10)).unwrap();
        file.execute("UPDATE like_records SET is_canceled = 1 - is_canceled WHERE user_id % 3 = 0", []).unwrap();
        file.execute("DELETE FROM like_counts WHERE content_id % 4 = 0", []).unwrap();
    }
}

#[test]
fn embedded_files_are_rebuilt_while_the_service_takes_likes_and_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path());
    let service = settings.start();
    service.wait_ready();
    let load = Load { commands: 4000, clients: 8, users: 300, contents: 60, seed: 1 };
    load.run(std::slice::from_ref(&service), &History::default());
    settled(&service);
    let clean = verified(&settings);
    spoil(dir.path());
    let dry = settings.output(&["rebuild", "--dry-run"]);
    assert!(told(&dry).contains("a rebuild would mend") && dry.status.code() == Some(3), "{}", told(&dry));
    assert!(!dir.path().join("rebuild").exists(), "nothing was made");

    let (over, slowest) = (AtomicBool::new(false), AtomicU64::new(0));
    let likes = thread::scope(|scope| {
        let liking = scope.spawn(|| likes_and_reads(&service, &service, 777, &over, &slowest));
        let rebuilt = settings.output(&["rebuild", "--json"]);
        assert!(rebuilt.status.success(), "{}", told(&rebuilt));
        // Some more after the switch.
        thread::sleep(Duration::from_millis(300));
        over.store(true, Ordering::Relaxed);
        liking.join().unwrap()
    });
    println!("{likes} likes meanwhile; the slowest was read after {slowest:?} ms");
    // Who waits for a like while the tables are switched goes over to the new ones, and does not wait in vain.
    assert!(slowest.load(Ordering::Relaxed) < 4000, "{slowest:?}");
    settled(&service);
    let outcome = verified(&settings);
    assert_eq!(outcome["rows"].as_u64().unwrap(), clean["rows"].as_u64().unwrap() + likes);
    let again = settings.output(&["rebuild"]);
    assert!(told(&again).contains("--drop-old"), "{}", told(&again));
    assert!(settings.output(&["rebuild", "--drop-old"]).status.success());
    assert!(!dir.path().join("before-rebuild").exists());
    assert!(told(&settings.output(&["rebuild", "--drop-old"])).contains("nothing is dropped"));
    for content in 1..=60 {
        let counted = json_of(&settings.output(&["count-at", "--content", &format!("post:{content}"), "--json"]));
        let served = service.get(&format!("/v1/contents/post/{content}/likes")).json();
        assert_eq!(counted["count"], served["count"], "post:{content}");
    }

    // One that takes too long is given up, by another command.
    thread::scope(|scope| {
        let slow = scope.spawn(|| settings.output(&["rebuild", "--max-rate", "200"]));
        wait_until("the rebuild to begin", Duration::from_secs(20), || dir.path().join("rebuild").exists());
        let cancelled = settings.output(&["rebuild", "--cancel"]);
        assert!(told(&cancelled).contains("is dropped"), "{}", told(&cancelled));
        let slow = slow.join().unwrap();
        assert!(told(&slow).contains("was given up"), "{}", told(&slow));
    });
    assert!(!dir.path().join("rebuild").exists());
    verified(&settings);

    service.signal("TERM");
    service.wait();
    spoil(dir.path());
    let rebuilt = settings.output(&["rebuild"]);
    assert!(told(&rebuilt).contains("events folded anew"), "{}", told(&rebuilt));
    assert_eq!(verified(&settings)["sha256"], outcome["sha256"]);
    let service = settings.start();
    service.wait_ready();
    assert_eq!(service.get("/v1/contents/post/777/likes").json()["count"], likes);
}

/// Runs a command, which is killed after a while.
fn killed_after(mut command: Command, after: Duration) -> bool {
    let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while started.elapsed() < after {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

#[test]
fn an_embedded_rebuild_that_is_killed_anywhere_goes_on_or_leaves_what_was() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path());
    let service = settings.start();
    service.wait_ready();
    let load = Load { commands: 3000, clients: 8, users: 300, contents: 60, seed: 2 };
    load.run(std::slice::from_ref(&service), &History::default());
    settled(&service);
    let clean = verified(&settings);
    service.signal("TERM");
    service.wait();
    let started = Instant::now();
    let whole = settings.output(&["rebuild"]);
    assert!(whole.status.success(), "{}", told(&whole));
    let took = started.elapsed();
    settings.output(&["rebuild", "--drop-old"]);
    let mut dice = Dice::new(3);
    let (mut kills, mut ended) = (0, 0);
    while kills < 10 {
        let after = took.mul_f64(dice.below(110) as f64 / 100.0);
        let was_killed = killed_after(settings.command(&["rebuild"]), after);
        // Whatever is live is whole.
        assert_eq!(verified(&settings)["sha256"], clean["sha256"], "killed after {after:?}");
        kills += usize::from(was_killed);
        if !was_killed {
            ended += 1;
            settings.output(&["rebuild", "--drop-old"]);
        }
    }
    let last = settings.output(&["rebuild"]);
    let is_done = last.status.success() || told(&last).contains("--drop-old");
    assert!(is_done, "{}", told(&last));
    println!("a rebuild takes {took:?}; {kills} killed, {ended} ended before");
    assert_eq!(verified(&settings)["sha256"], clean["sha256"]);
    settings.output(&["rebuild", "--drop-old"]);
    settings.output(&["rebuild", "--cancel"]);
    assert!(!dir.path().join("rebuild").exists() && !dir.path().join("before-rebuild").exists());
    // A service that is killed while it rebuilds has what was, or what is new.
    let service = settings.start();
    service.wait_ready();
    let asking = settings.command(&["rebuild"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    thread::sleep(took.mul_f64(0.6));
    service.signal("KILL");
    asking.unwrap().wait().unwrap();
    let (_, _, _) = service.wait();
    let service = settings.start();
    service.wait_ready();
    assert_eq!(verified(&settings)["sha256"], clean["sha256"]);
    let again = settings.output(&["rebuild"]);
    assert!(again.status.success() || told(&again).contains("--drop-old"), "{}", told(&again));
    assert_eq!(verified(&settings)["sha256"], clean["sha256"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_on_servers_are_rebuilt_under_load_and_killed_on_the_way() {
    let rig = Rig::start(env!("CARGO_BIN_EXE_likewise"), Own::default()).await;
    let api = rig.role("command-api", "command");
    let query = rig.role("query-api", "query");
    let projectors = [rig.projector("projector-0"), rig.projector("projector-1")];
    let history = History::default();
    let load = Load { commands: 4000, clients: 32, users: 2000, contents: 80, seed: 1 };
    load.run(std::slice::from_ref(&api), &history);
    rig.audit(&history).await;
    let settings = rig.settings("operator");
    let clean = verified(&settings);
    for url in rig.places().records {
        let mut connection = <MySqlConnection as sqlx::Connection>::connect(&url).await.unwrap();
        connection.execute("DELETE FROM like_counts WHERE content_id % 4 = 0").await.unwrap();
    }
    let dry = settings.output(&["rebuild", "--dry-run"]);
    assert!(told(&dry).contains("missing count"), "{}", told(&dry));

    let (over, slowest, others) = (AtomicBool::new(false), AtomicU64::new(0), History::default());
    let mut dice = Dice::new(4);
    let (likes, kills, took) = thread::scope(|scope| {
        let liking = scope.spawn(|| likes_and_reads(&api, &query, 777, &over, &slowest));
        scope.spawn(|| {
            let load = Load { commands: 400, clients: 4, seed: 7, ..load };
            load.run_until(&over, std::slice::from_ref(&api), &others);
        });
        let mut kills = 0;
        while kills < 10 {
            let after = Duration::from_millis(dice.below(1200));
            if killed_after(settings.command(&["rebuild"]), after) {
                kills += 1;
            } else {
                let _dropped = settings.output(&["rebuild", "--drop-old"]);
            }
        }
        let started = Instant::now();
        let rebuilt = settings.output(&["rebuild"]);
        let is_done = rebuilt.status.success() || told(&rebuilt).contains("--drop-old");
        assert!(is_done, "{}", told(&rebuilt));
        thread::sleep(Duration::from_millis(500));
        over.store(true, Ordering::Relaxed);
        (liking.join().unwrap(), kills, started.elapsed())
    });
    println!("{kills} killed, the last took {took:?}; {likes} likes of one meanwhile, {} others", others.done());
    println!("the slowest was read after {slowest:?} ms");
    assert!(slowest.load(Ordering::Relaxed) < 4000, "{slowest:?}");
    assert_eq!(others.unknown(), 0, "no command was refused");
    settings.output(&["rebuild", "--cancel"]);
    rig_settled(&rig).await;
    let outcome = verified(&settings);
    assert!(outcome["rows"].as_u64().unwrap() >= clean["rows"].as_u64().unwrap() + likes);
    assert!(outcome["cached"].as_u64().unwrap() > 0, "the cache is of the new tables: {}", outcome["cached"]);
    let dropped = settings.output(&["rebuild", "--drop-old"]);
    assert!(dropped.status.success(), "{}", told(&dropped));
    drop(projectors);
}

async fn rig_settled(rig: &Rig) {
    likewise_testkit::audit::quiesce(&rig.places(), Duration::from_secs(90)).await;
}
