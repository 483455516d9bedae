//! The commands for analysts on the embedded default: files, moments, and proofs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use likewise_testkit::{
    Service, Settings, load,
    load::{Dice, History, Load},
    tokens::Signer,
    wait_until,
};
use rusqlite::Connection;
use serde_json::{Value, json};

fn settings(dir: &Path) -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_likewise"), dir)
}

/// What a command that must end well prints.
fn text(settings: &Settings, arguments: &[&str]) -> String {
    let output = settings.output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The sentence of a command that must fail.
fn refused(settings: &Settings, arguments: &[&str]) -> String {
    let output = settings.output(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?} must fail: {}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "one sentence: {text}");
    text
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// A service with some likes, projected.
fn filled(settings: &Settings, commands: usize) -> Service {
    let service = settings.start();
    service.wait_ready();
    let load = Load { commands, clients: 8, users: 200, contents: 40, seed: 1 };
    load.run(std::slice::from_ref(&service), &History::default());
    settled(&service);
    service
}

/// Waits until everything is projected.
fn settled(service: &Service) {
    wait_until("the projection to end", Duration::from_secs(30), || {
        let metrics = service.get_admin("/metrics").text;
        let lag = metrics.lines().filter(|line| line.starts_with("kafka_consumergroup_group_lag{"));
        lag.clone().count() == 16 && lag.clone().all(|line| line.ends_with(" 0"))
    });
}

#[test]
fn a_log_is_told_filtered_drawn_and_copied() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir.path().join("data"));
    let service = filled(&settings, 2000);
    let to = |name: &str| dir.path().join(name).display().to_string();
    let all = text(&settings, &["tail", "--lines", "all", "--json"]);
    let events: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_7 = |event: &&Value| event["data"]["userId"] == "7";
    let sevens = text(&settings, &["tail", "--user", "7", "--lines", "all", "--json"]);
    assert_eq!(sevens.lines().count(), events.iter().filter(of_7).count());
    assert_eq!(text(&settings, &["tail", "--user", "7", "--lines", "2"]).lines().count(), 2);
    let middle = &events[events.len() / 2];
    let place = format!("{}/{}", middle["partition"], middle["offset"].as_str().unwrap());
    let from = text(&settings, &["tail", "--from", &place, "--json"]);
    assert!(from.contains(middle["id"].as_str().unwrap()) && from.lines().count() < events.len(), "{place}");

    // Counts now are those that are served.
    for content in 1..=40 {
        let counted = json_of(&settings.output(&["count-at", "--content", &format!("post:{content}"), "--json"]));
        let served = service.get(&format!("/v1/contents/post/{content}/likes")).json();
        assert_eq!(counted["count"], served["count"], "post:{content}");
    }
    let drawing = to("hot.svg");
    let history = text(&settings, &["history", "--content", "post:1", "--by", "hour", "--svg", &drawing]);
    assert!(history.lines().count() >= 2, "{history}");
    let drawn = fs::read_to_string(&drawing).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("Likes of post:1"), "{drawn}");
    assert!(text(&settings, &["history", "--content", "post:1", "--plot"]).contains("Likes of post:1"));
    let top = json_of(&settings.output(&["top", "--window", "1h", "--limit", "1", "--json"]));
    assert_eq!(top["items"][0]["content"], "post:1", "{top}");

    // Files: each holds every event.
    let (csv, parquet) = (to("all.csv"), to("all.parquet"));
    text(&settings, &["replay", "--to", &csv]);
    let mut reader = csv::Reader::from_path(&csv).unwrap();
    let ids: BTreeSet<String> = reader.records().map(|row| row.unwrap()[3].to_owned()).collect();
    assert_eq!(ids, events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect());
    text(&settings, &["replay", "--to", &parquet]);
    let written = fs::read(&parquet).unwrap();
    assert!(written.starts_with(b"PAR1") && written.ends_with(b"PAR1"));
    let stdout = text(&settings, &["replay", "--to", "-", "--format", "csv", "--content", "post:1"]);
    let ones = events.iter().filter(|event| event["subject"] == "post/1").count();
    assert_eq!(stdout.lines().count(), ones + 1);

    // A log of other partitions: the same digest, and every event where it belongs.
    let copied = Settings::new(env!("CARGO_BIN_EXE_likewise"), &dir.path().join("copy"));
    let target = format!("sqlite://{}", dir.path().join("copy/log.db").display());
    let output = settings.command(&["replay", "--to", &target, "--partitions", "64"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let copy = copied.start();
    copy.wait_ready();
    let digest = |settings: &Settings| json_of(&settings.output(&["digest", "--json"]));
    wait_until("the copy to be projected", Duration::from_secs(30), || {
        let applied = digest(&copied)["applied"].as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).sum::<i64>();
        applied == events.len() as i64
    });
    assert_eq!(digest(&copied)["sha256"], digest(&settings)["sha256"]);
    assert_eq!(digest(&copied)["partitions"].as_object().unwrap().len(), 64);

    // Commands: another service has the same likes, under new ids and times.
    let other = Settings::new(env!("CARGO_BIN_EXE_likewise"), &dir.path().join("other"));
    let fresh = other.start();
    fresh.wait_ready();
    let base = format!("http://{}", fresh.address);
    let output = settings.output(&["replay", "--to", &base, "--content", "post:2"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let twos = events.iter().filter(|event| event["subject"] == "post/2").count();
    assert!(told.contains(&format!("{twos} commands accepted")) && told.contains(" 0 refused"), "{told}");
    settled(&fresh);
    let path = "/v1/contents/post/2/likes";
    assert_eq!(fresh.get(path).json()["count"], service.get(path).json()["count"]);
    // At its own speed a stretch takes as long as it took.
    let stretch: Vec<&Value> = events.iter().filter(|event| event["subject"] == "post/3").collect();
    let time = |event: &Value| chrono_millis(event["time"].as_str().unwrap());
    let took = time(stretch.last().unwrap()) - time(stretch[0]);
    let started = std::time::Instant::now();
    text(&settings, &["replay", "--to", "-", "--content", "post:3", "--speed", "0.5x"]);
    assert!(started.elapsed() >= Duration::from_millis(2 * took.unsigned_abs()), "{took} ms at half the speed");
}

fn chrono_millis(text: &str) -> i64 {
    // All of them are of one day: what is after the date counts.
    let part = |from: usize, to: usize| text[from..to].parse::<i64>().unwrap();
    ((part(11, 13) * 60 + part(14, 16)) * 60 + part(17, 19)) * 1000 + part(20, 23)
}

#[test]
fn what_cannot_be_done_is_said_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir.path().join("data"));
    assert!(refused(&settings, &["count-at", "--content", "post:1"]).contains("there is no file"));
    let service = filled(&settings, 300);
    let to = |name: &str| dir.path().join(name).display().to_string();
    let unknown = refused(&settings, &["count-at", "--content", "post:999999"]);
    assert!(unknown.contains("has no event of post:999999"), "{unknown}");
    let early = refused(&settings, &["count-at", "--content", "post:1", "--at", "2001-01-01"]);
    assert!(early.contains("begins at") && early.contains("2001-01-01"), "{early}");
    assert!(refused(&settings, &["history", "--user", "999999"]).contains("has no event of user 999999"));
    assert!(refused(&settings, &["tail", "--from", "3/99999"]).contains("has no event 3/99999"));
    let usage = |arguments: &[&str]| {
        let output = settings.output(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(usage(&["count-at", "--content", "post:1", "--at", "yesterday"]).contains("must be a time such as"));
    assert!(usage(&["count-at", "--content", "Post 1"]).contains("must be a content such as post:42"));
    assert!(usage(&["history", "--by", "day"]).contains("--content"));
    assert!(usage(&["top", "--window", "1y"]).contains("must be such as"));
    assert!(usage(&["replay", "--to", "-", "--speed", "fast"]).contains("must be max"));
    assert!(usage(&["tail", "--from", "a/b"]).contains("or a position"));

    assert!(refused(&settings, &["replay", "--to", &to("nowhere/x.csv")]).contains("cannot be written"));
    assert!(refused(&settings, &["replay", "--to", &to("x.txt")]).contains("--format"));
    assert!(refused(&settings, &["replay", "--to", "http://127.0.0.1:1", "--format", "csv"]).contains("--format"));
    fs::write(to("there.csv"), "mine").unwrap();
    assert!(refused(&settings, &["replay", "--to", &to("there.csv")]).contains("exists"));
    assert!(refused(&settings, &["export", "--to", &to("there.csv")]).contains("cannot be written"));
    assert!(refused(&settings, &["export", "--to", &to("none"), "--check"]).contains("there is no folder"));
    assert!(refused(&settings, &["export", "--to", "ftp://x/y"]).contains("must be a folder or s3://"));
    assert!(refused(&settings, &["history", "--content", "post:1", "--svg", &to("there.csv")]).contains("exists"));
    let export = dir.path().join("foreign");
    fs::create_dir(&export).unwrap();
    fs::write(export.join("other.parquet"), "PAR1 nothing of ours PAR1").unwrap();
    assert!(refused(&settings, &["export", "--to", &to("foreign")]).contains("is no whole Parquet file"));
    assert_eq!(exported(&export).len(), 1, "nothing was written");
    let made: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(made.iter().all(|name| !name.to_string_lossy().starts_with(".likewise-")), "no half file: {made:?}");
    drop(service);
}

/// The files that an export has, by name, and how many rows they say they have.
fn exported(dir: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".parquet") {
                let mut ends = name.split('-').map(|part| part.parse::<u64>().unwrap_or_default());
                let (from, until) = (ends.next().unwrap_or_default(), ends.next().unwrap_or_default());
                found.insert(path.display().to_string(), until - from);
            }
        }
    }
    found
}

#[test]
fn an_export_that_is_killed_goes_on_while_the_log_grows() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir.path().join("data"));
    let service = filled(&settings, 3000);
    let target = dir.path().join("export");
    let to = target.to_str().unwrap();
    let mut dice = Dice::new(1);
    let mut kills = 0;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (service, over) = (&service, &over);
        scope.spawn(move || {
            let load = Load { commands: 400, clients: 2, users: 5000, contents: 40, seed: 2 };
            load.run_until(over, std::slice::from_ref(service), &History::default());
        });
        for _ in 0..10 {
            let mut export = settings.command(&["export", "--to", to, "--max-rate", "1500"]).spawn().unwrap();
            thread::sleep(Duration::from_millis(5 + dice.below(300)));
            kills += usize::from(export.try_wait().unwrap().is_none());
            let _has_ended = export.kill();
            export.wait().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    settled(&service);
    let output = text(&settings, &["export", "--to", to, "--json"]);
    let again = json_of(&settings.output(&["export", "--to", to, "--json"]));
    assert_eq!(again["records"], 0, "nothing is new");
    let state = json_of(&settings.output(&["export", "--to", to, "--check", "--json"]));
    let events = text(&settings, &["tail", "--lines", "all", "--json"]).lines().count() as u64;
    println!("{kills} of 10 exports killed; {events} events; the last run: {output}");
    assert_eq!((state["records"].as_u64(), state["missing"].as_u64()), (Some(events), Some(0)), "{state}");
    assert_eq!(exported(&target).values().sum::<u64>(), events);
    assert!(kills > 3, "{kills} were killed");
}

/// The record files of a data directory, opened beside the service.
fn record_files(dir: &Path) -> Vec<Connection> {
    let open = |name: &str| {
        let file = Connection::open(dir.join(name)).unwrap();
        file.busy_timeout(Duration::from_secs(10)).unwrap();
        file
    };
    ["records-0-7.db", "records-8-15.db"].map(open).into()
}

/// Changes so many things of the records at random, each of another pair, content or bucket.
fn corrupt(dir: &Path, count: usize, seed: u64) -> usize {
    let mut files = record_files(dir);
    let mut dice = Dice::new(seed);
    let mut done = 0;
    for file in &mut files {
        let change = file.transaction().unwrap();
        let all = |sql: &str| -> Vec<(String, i64, i64)> {
            let mut statement = change.prepare(sql).unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
            rows.map(Result::unwrap).collect()
        };
        let rows = all("SELECT content_type, content_id, user_id FROM like_records ORDER BY content_id, user_id");
        let contents = all("SELECT content_type, content_id, 0 FROM like_counts ORDER BY content_id");
        let buckets = all("SELECT content_type, content_id, slot FROM like_buckets ORDER BY content_id, slot");
        let every = (rows.len() * 2 / count.max(1)).max(1);
        for (number, (kind, content, user)) in rows.iter().enumerate().filter(|(number, _)| number % every == 0) {
            let sql = match dice.below(6) {
                0 => "UPDATE like_records SET is_canceled = 1 - is_canceled",
                1 => "UPDATE like_records SET version = version + 1",
                2 => "UPDATE like_records SET updated_at = updated_at + 1",
                3 => "UPDATE like_records SET request_ring = randomblob(16)",
                4 => "DELETE FROM like_records",
                _ => "UPDATE like_records SET user_id = user_id + 1000000",
            };
            let of = " WHERE content_type = ?1 AND content_id = ?2 AND user_id = ?3";
            let changed = change.execute(&format!("{sql}{of}"), (kind, content, user)).unwrap();
            assert_eq!(changed, 1, "{number}");
            // A row of another user is one that is missing and one too many.
            done += if sql.contains("1000000") { 2 } else { 1 };
        }
        for (kind, content, _) in contents.iter().step_by(3) {
            let sql = ["count = count + 1", "version = version + 1", "first_position = first_position + 1"]
                [dice.below(3) as usize];
            let sql = format!("UPDATE like_counts SET {sql} WHERE content_type = ?1 AND content_id = ?2");
            done += change.execute(&sql, (kind, content)).unwrap();
        }
        for (kind, content, slot) in buckets.iter().step_by(3) {
            let sql =
                "UPDATE like_buckets SET gained = gained + 1 WHERE content_type = ?1 AND content_id = ?2 AND slot = ?3";
            done += change.execute(sql, (kind, content, slot)).unwrap();
        }
        change.commit().unwrap();
    }
    done
}

/// How many differences there are of what is compared one by one. The service may have filled its cache with what was
/// planted meanwhile, which is a difference, too.
fn differences(outcome: &Value) -> u64 {
    let kinds = outcome["differences"].as_object().unwrap();
    let is_planted = |kind: &str| kind != "damaged" && !kind.starts_with("cached");
    kinds.iter().filter(|(kind, _)| is_planted(kind)).map(|(_, count)| count.as_u64().unwrap()).sum()
}

#[test]
fn every_corruption_is_found_and_mended_beside_the_service_and_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let settings = settings(&data);
    let service = filled(&settings, 6000);
    for content in 1..=40 {
        service.get(&format!("/v1/contents/post/{content}/likes?viewer=1"));
    }
    let verify = |extra: &[&str]| {
        let arguments: Vec<&str> = ["verify", "--json"].iter().chain(extra).copied().collect();
        let output = settings.output(&arguments);
        (output.status.code(), json_of(&output))
    };
    let (code, clean) = verify(&[]);
    assert_eq!((code, &clean["differences"], &clean["remaining"]), (Some(0), &json!({}), &json!(0)), "{clean}");
    assert!(clean["cached"].as_u64().unwrap() >= 80, "the cache is compared, too: {clean}");
    let digest = json_of(&settings.output(&["digest", "--json"]));
    assert_eq!(clean["sha256"], digest["sha256"]);

    let planted = corrupt(&data, 500, 1);
    let (code, found) = verify(&[]);
    println!("{planted} planted, found {}", found["differences"]);
    assert_eq!((code, differences(&found)), (Some(3), planted as u64), "{}", found["differences"]);
    let sentence = settings.output(&["verify"]);
    let lines = String::from_utf8_lossy(&sentence.stdout).into_owned();
    assert!(lines.contains("more; --json prints them") && sentence.status.code() == Some(3), "{lines}");
    // Likes go on meanwhile.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (service, over) = (&service, &over);
        scope.spawn(move || {
            let load = Load { commands: 400, clients: 2, users: 5000, contents: 40, seed: 2 };
            load.run_until(over, std::slice::from_ref(service), &History::default());
        });
        let (code, mended) = verify(&["--repair"]);
        over.store(true, Ordering::Relaxed);
        println!("mended beside the service: {}, {} remain", mended["repaired"], mended["remaining"]);
        assert_eq!((code, &mended["remaining"]), (Some(0), &json!(0)), "{}", mended["differences"]);
    });
    settled(&service);
    let (code, clean) = verify(&[]);
    assert_eq!((code, &clean["differences"]), (Some(0), &json!({})), "{}", clean["findings"]);
    for content in 1..=40 {
        let counted = json_of(&settings.output(&["count-at", "--content", &format!("post:{content}"), "--json"]));
        // What was read before the repair is served for a second at most.
        wait_until(&format!("post:{content} to be served as the log says"), Duration::from_secs(3), || {
            service.get(&format!("/v1/contents/post/{content}/likes")).json()["count"] == counted["count"]
        });
    }

    // Without the service, whoever mends owns the files.
    service.signal("TERM");
    service.wait();
    let planted = corrupt(&data, 500, 2);
    let (code, found) = verify(&[]);
    assert_eq!((code, differences(&found), &found["cached"]), (Some(3), planted as u64, &Value::Null));
    let (code, mended) = verify(&["--repair"]);
    assert_eq!((code, &mended["remaining"]), (Some(0), &json!(0)), "{}", mended["differences"]);
    assert_eq!(json_of(&settings.output(&["digest", "--json"]))["sha256"], clean["sha256"]);
    // What a service believes that began on records without some counts is mended, too: nobody ever liked them, it thinks.
    for file in record_files(&data) {
        file.execute("DELETE FROM like_counts WHERE content_id % 2 = 0", []).unwrap();
    }
    let service = settings.start();
    service.wait_ready();
    wait_until("a filter of liked contents", Duration::from_secs(20), || {
        service.metric("likewise_filter_contents", "") > 0.0
    });
    let believed = service.get("/v1/contents/post/2/likes").json();
    let (code, mended) = verify(&["--repair"]);
    assert_eq!((code, &mended["remaining"]), (Some(0), &json!(0)), "{}", mended["differences"]);
    let counted = json_of(&settings.output(&["count-at", "--content", "post:2", "--json"]))["count"].clone();
    wait_until("the count to be served", Duration::from_secs(20), || {
        service.get("/v1/contents/post/2/likes").json()["count"] == counted
    });
    println!("post:2 was served as {} before the repair, as {counted} after", believed["count"]);
    let sampled = verify(&["--sample", "2"]).1;
    assert_eq!(sampled["partitions"].as_object().unwrap().len(), 2, "{sampled}");
}

#[test]
fn what_an_operator_asks_needs_a_token_for_the_admin_port() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir.path().join("data")).guarded_by_secret();
    let service = settings.start();
    service.wait_ready();
    let signer = Signer::secret();
    let token = |name: &str, text: String| {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let (admin, user) = (token("admin", signer.admin_token()), token("user", signer.token_of(7)));
    for command in ["verify", "rebuild"] {
        assert!(refused(&settings, &[command]).contains("--credential-file"), "{command} without one");
        assert!(refused(&settings, &[command, "--credential-file", &user]).contains("--credential-file"), "{command}");
    }
    let output = settings.output(&["verify", "--json", "--credential-file", &admin]);
    assert_eq!(json_of(&output)["remaining"], 0);
    drop(service);
}

#[test]
fn a_clean_system_has_no_differences_while_it_is_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let service = filled(&settings, 1000);
    let over = AtomicBool::new(false);
    let (mut verified, mut cached) = (0, 0);
    thread::scope(|scope| {
        let (service, over) = (&service, &over);
        scope.spawn(move || {
            let load = Load { commands: 800, clients: 4, users: 2000, contents: 40, seed: 3 };
            load.run_until(over, std::slice::from_ref(service), &History::default());
        });
        scope.spawn(move || {
            let load = Load { commands: 1, clients: 1, users: 2000, contents: 40, seed: 4 };
            load::read(std::slice::from_ref(service), load, || over.load(Ordering::Relaxed))
        });
        for _ in 0..12 {
            let output = settings.output(&["verify", "--json"]);
            let outcome = json_of(&output);
            if outcome["remaining"] != 0 {
                over.store(true, Ordering::Relaxed);
            }
            assert_eq!((output.status.code(), &outcome["remaining"]), (Some(0), &json!(0)), "{}", outcome["findings"]);
            verified += outcome["events"].as_u64().unwrap();
            cached += outcome["cached"].as_u64().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("{verified} events and {cached} cached entries compared in 12 runs");
    assert!(cached > 1000, "{cached}");
}
