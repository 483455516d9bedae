//! The commands for analysts on Kafka, MySQL, MariaDB and Redis.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use likewise_testkit::{
    Service, Settings,
    load::{Dice, History, Load, read, read_each},
    rig::{Own, Rig},
    wait_until,
};
use redis::Commands;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, Row};

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn digest(settings: &Settings) -> Value {
    json_of(&settings.output(&["digest", "--json"]))
}

fn applied(settings: &Settings) -> i64 {
    digest(settings)["applied"].as_array().unwrap().iter().map(|events| events.as_i64().unwrap()).sum()
}

/// What is planted: each changes one thing that is compared, or as many as it says.
const OF_ROWS: [(&str, u64); 6] = [
    ("UPDATE {table} SET is_canceled = 1 - is_canceled WHERE id = {id}", 1),
    ("UPDATE {table} SET version = version + 1 WHERE id = {id}", 1),
    ("UPDATE {table} SET liked_at = NULL, updated_at = updated_at + INTERVAL 1 SECOND WHERE id = {id}", 1),
    ("UPDATE {table} SET request_ring = UNHEX(REPLACE(UUID(), '-', '')) WHERE id = {id}", 1),
    ("DELETE FROM {table} WHERE id = {id}", 1),
    // One that is missing, and one too many.
    ("UPDATE {table} SET user_id = user_id + 1000000 WHERE id = {id}", 2),
];
const OF_COUNTS: [&str; 3] = ["`count` = `count` - 1", "version = version + 1", "first_position = first_position + 1"];

/// Changes so many things in a database at random. Gives how many differences that makes.
async fn corrupt(url: &str, count: usize, seed: u64) -> u64 {
    let mut connection = MySqlConnection::connect(url).await.unwrap();
    let mut dice = Dice::new(seed);
    let mut rows = Vec::new();
    for shard in 0..16 {
        let table = format!("like_records_{shard:02}");
        let ids = connection.fetch_all(AssertSqlSafe(format!("SELECT id FROM {table} ORDER BY id"))).await;
        rows.extend(ids.into_iter().flatten().map(|row| (table.clone(), row.get::<i64, _>(0))));
    }
    let contents = "SELECT shard, content_id, content_type FROM like_counts ORDER BY content_id";
    let contents: Vec<_> = connection.fetch_all(contents).await.unwrap();
    let mut made = 0;
    for content in contents.iter().step_by(4) {
        let (shard, id, kind): (i16, i64, String) = (content.get(0), content.get(1), content.get(2));
        let change = OF_COUNTS[dice.below(3) as usize];
        let of = format!("shard = {shard} AND content_id = {id} AND content_type = '{kind}'");
        connection.execute(AssertSqlSafe(format!("UPDATE like_counts SET {change} WHERE {of}"))).await.unwrap();
        made += 1;
    }
    let chunks = "SELECT `partition`, slot, chunk, changes FROM like_bucket_chunks";
    let mut touched = BTreeSet::new();
    for chunk in connection.fetch_all(chunks).await.unwrap() {
        let (partition, slot, number): (i16, i64, i64) = (chunk.get(0), chunk.get(1), chunk.get(2));
        let changes: Vec<(String, i64, i64, i64)> =
            serde_json::from_str(&format!("[{}]", chunk.get::<String, _>(3))).unwrap();
        let (kind, id, ..) = &changes[0];
        if touched.insert((kind.clone(), *id, slot)) {
            let more = format!("CONCAT(changes, ',[\"{kind}\",{id},1,0]')");
            let of = format!("`partition` = {partition} AND slot = {slot} AND chunk = {number}");
            let sql = format!("UPDATE like_bucket_chunks SET changes = {more} WHERE {of}");
            connection.execute(AssertSqlSafe(sql)).await.unwrap();
            made += 1;
        }
    }
    while made < count as u64 {
        assert!(!rows.is_empty(), "there are rows enough");
        let (table, id) = rows.swap_remove(dice.below(rows.len() as u64) as usize);
        let (sql, differences) = OF_ROWS[dice.below(6) as usize];
        let sql = sql.replace("{table}", &table).replace("{id}", &id.to_string());
        assert_eq!(connection.execute(AssertSqlSafe(sql.clone())).await.unwrap().rows_affected(), 1, "{sql}");
        made += differences;
    }
    made
}

/// Changes so many entries of the cache. Gives how many were there to be changed.
fn corrupt_cache(connection: &mut redis::Connection, count: usize) -> u64 {
    let counts: Vec<String> = connection.scan_match("like:count:*").unwrap().map(Result::unwrap).collect();
    let users: Vec<String> = connection.scan_match("like:user:*").unwrap().map(Result::unwrap).collect();
    let (mut made, counts) = (0, counts.into_iter().collect::<BTreeSet<_>>());
    for (number, key) in counts.iter().take(count / 2).enumerate() {
        if number % 4 == 0 {
            // The count is right, and no later one would ever take its place.
            let _fields: i64 = connection.hset(key, "v", 999_999_999).unwrap();
        } else {
            let _more: i64 = connection.hincr(key, "count", 1).unwrap();
        }
        made += 1;
    }
    for key in users.into_iter().collect::<BTreeSet<_>>() {
        let fields: Vec<(String, String)> = connection.hgetall(&key).unwrap();
        for (content, status) in fields {
            if made < count as u64 {
                let flipped = format!("{}{}", if status.starts_with('1') { '0' } else { '1' }, &status[1..]);
                let _fields: i64 = connection.hset(&key, content, flipped).unwrap();
                made += 1;
            }
        }
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_corruptions_are_found_and_mended_while_likes_go_on() {
    let rig = Rig::start(env!("CARGO_BIN_EXE_likewise"), Own::default()).await;
    let api = rig.role("command-api", "command");
    let query = rig.role("query-api", "query");
    let projectors = [rig.projector("projector-0"), rig.projector("projector-1")];
    let history = History::default();
    let load = Load { commands: 6000, clients: 32, users: 2000, contents: 80, seed: 1 };
    load.run(std::slice::from_ref(&api), &history);
    rig.audit(&history).await;
    read_each(std::slice::from_ref(&query), load, 10);
    let settings = rig.settings("operator");
    let verify = |extra: &[&str]| {
        let arguments: Vec<&str> = ["verify", "--json"].iter().chain(extra).copied().collect();
        let output = settings.output(&arguments);
        (output.status.code(), json_of(&output))
    };
    let (code, clean) = verify(&[]);
    assert_eq!((code, &clean["differences"]), (Some(0), &json!({})), "{}", clean["findings"]);
    assert!(clean["cached"].as_u64().unwrap() >= 800, "{}", clean["cached"]);
    assert_eq!(clean["sha256"], digest(&settings)["sha256"]);

    // A query API looks at samples of the cache by itself, and would mend some of it before they are counted.
    drop(query);
    let mut planted = corrupt_cache(&mut rig.redis_connection(), 200);
    for (url, seed) in rig.places().records.iter().zip(1..) {
        planted += corrupt(url, 400, seed).await;
    }
    let (code, found) = verify(&[]);
    let differences: u64 =
        found["differences"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    println!("{planted} planted; found {}", found["differences"]);
    assert_eq!((code, differences), (Some(3), planted));
    assert!(planted >= 1000, "{planted}");
    let query = rig.role("query-api", "query-again");

    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (api, history, over) = (&api, &history, &over);
        scope.spawn(move || {
            let load = Load { commands: 400, seed: 7, ..load };
            load.run_until(over, std::slice::from_ref(api), history);
        });
        let (code, mended) = verify(&["--repair"]);
        over.store(true, Ordering::Relaxed);
        println!("mended: {}, {} remain", mended["repaired"], mended["remaining"]);
        assert_eq!((code, &mended["remaining"]), (Some(0), &json!(0)), "{}", mended["differences"]);
    });
    // The audit of the tests, which knows nothing of this one, agrees.
    rig.audit(&history).await;
    // And while it is written to and read, nothing is found that is not there.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (api, query, history, over) = (&api, &query, &history, &over);
        scope.spawn(move || {
            let load = Load { commands: 400, seed: 8, ..load };
            load.run_until(over, std::slice::from_ref(api), history);
        });
        scope.spawn(move || read(std::slice::from_ref(query), load, || over.load(Ordering::Relaxed)));
        let mut cached = 0;
        for _ in 0..8 {
            let (code, outcome) = verify(&[]);
            if code != Some(0) {
                over.store(true, Ordering::Relaxed);
            }
            assert_eq!((code, &outcome["differences"]), (Some(0), &json!({})), "{}", outcome["findings"]);
            cached += outcome["cached"].as_u64().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        println!("{cached} cached entries compared in 8 runs under load");
    });
    rig.audit(&history).await;
    // A row in the table of another shard is told, and its pair has none where it is looked for.
    let mysql = &rig.places().records[0];
    let mut connection = MySqlConnection::connect(mysql).await.unwrap();
    let moved =
        "INSERT INTO like_records_01 (user_id, content_id, content_type, created_at, updated_at, is_canceled, liked_at,
                                              version, request_ring, request_floor)
                 SELECT user_id, content_id, content_type, created_at, updated_at, is_canceled, liked_at, version,
                        request_ring, request_floor FROM like_records_00 ORDER BY id LIMIT 1";
    connection.execute(moved).await.unwrap();
    connection.execute("DELETE FROM like_records_00 ORDER BY id LIMIT 1").await.unwrap();
    let (code, misplaced) = verify(&["--repair"]);
    assert_eq!((code, &misplaced["differences"]), (Some(3), &json!({ "damaged": 1, "missing-row": 1 })), "{misplaced}");
    connection.execute("DELETE FROM like_records_01 WHERE content_id % 16 <> 1").await.unwrap();
    let (code, clean) = verify(&[]);
    assert_eq!((code, &clean["differences"]), (Some(0), &json!({})), "{}", clean["findings"]);
    drop(projectors);
}

/// A service on these settings, once everything is projected.
fn projected(settings: &Settings, events: i64) -> Service {
    let service = settings.start();
    wait_until("the projection to end", Duration::from_secs(60), || applied(settings) == events);
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_has_the_same_digest_on_every_backend_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = Settings::new(env!("CARGO_BIN_EXE_likewise"), &dir.path().join("embedded"));
    let service = embedded.start();
    service.wait_ready();
    let load = Load { commands: 3000, clients: 8, users: 300, contents: 60, seed: 1 };
    load.run(std::slice::from_ref(&service), &History::default());
    let lines = |settings: &Settings| {
        let output = settings.output(&["tail", "--lines", "all", "--raw"]);
        let mut lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let events = lines(&embedded).len() as i64;
    wait_until("the projection to end", Duration::from_secs(60), || applied(&embedded) == events);

    let rig = Rig::start(env!("CARGO_BIN_EXE_likewise"), Own::default()).await;
    let servers = rig.settings("servers");
    let output = embedded.output(&["replay", "--to", &rig.log_url()]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("events copied"), "{output:?}");
    let again = embedded.output(&["replay", "--to", &rig.log_url()]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"), "{again:?}");
    assert_eq!(lines(&servers), lines(&embedded), "every record is the same, byte for byte, at the same place");
    let on_servers = projected(&servers, events);
    assert_eq!(digest(&servers)["sha256"], digest(&embedded)["sha256"]);
    let content = ["count-at", "--content", "post:1", "--json"];
    assert_eq!(json_of(&servers.output(&content))["count"], json_of(&embedded.output(&content))["count"]);
    let export = dir.path().join("export").display().to_string();
    let exported = json_of(&servers.output(&["export", "--to", &export, "--json"]));
    assert_eq!(exported["records"], events);
    let other = embedded.output(&["export", "--to", &export]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("another log"), "{other:?}");

    let back = Settings::new(env!("CARGO_BIN_EXE_likewise"), &dir.path().join("back"));
    let target = format!("sqlite://{}", dir.path().join("back/log.db").display());
    let output = servers.output(&["replay", "--to", &target]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let _back = projected(&back, events);
    assert_eq!(digest(&back), digest(&embedded), "of every partition");
    drop(on_servers);
}
