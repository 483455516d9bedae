//! The command line: settings, owning the data, stopping, and the commands for analysts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use likewise_testkit::{Service, Settings, wait_until};
use serde_json::{Value, json};
use uuid::Uuid;

fn settings(dir: &Path) -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_likewise"), dir)
}

fn like(user: i64, content: i64, liked: bool) -> Value {
    json!({ "requestId": Uuid::now_v7().to_string(), "userId": user, "contentType": "post", "contentId": content, "liked": liked })
}

fn stderr(settings: &Settings, arguments: &[&str]) -> String {
    let output = settings.command(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?} must fail");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "one sentence: {text}");
    text
}

/// Likes by several users, and waits until all are projected.
fn fill(service: &Service) {
    for content in 1..=20 {
        let commands: Vec<Value> = (1..=30).map(|user| like(user, content, (user + content) % 5 != 0)).collect();
        assert_eq!(service.post("/v1/likes/batch", &json!({ "commands": commands })).status, 200);
    }
    wait_until("the likes to be projected", Duration::from_secs(20), || {
        let metrics = service.get_admin("/metrics").text;
        metrics.lines().any(|line| line == "likewise_events_total{outcome=\"accepted\"} 600")
    });
}

#[test]
fn settings_come_from_flags_variables_and_a_file_and_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("likewise.toml");
    fs::write(&file, "partitions = 32\nlisten = \"127.0.0.1:7000\"\n").unwrap();
    let mut command = settings(dir.path()).command(&["config", "--listen", "127.0.0.1:7001"]);
    command.env("LIKEWISE_CONFIG", &file).env("LIKEWISE_MAX_BACKLOG", "5").env("LIKEWISE_TEST_KAFKA", "ignored");
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line =
        |key: &str| text.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap_or_default().to_owned();
    assert!(line("listen").contains("127.0.0.1:7001") && line("listen").ends_with("# the command line"), "{text}");
    assert!(line("partitions").contains("32") && line("partitions").contains("likewise.toml"), "{text}");
    assert!(line("max_backlog").contains('5') && line("max_backlog").ends_with("# the environment"), "{text}");
    assert!(line("counters").ends_with("# the default"), "{text}");
    assert!(line("records").contains("?shards=0-7") && line("records").contains("?shards=8-15"), "{text}");
    let records = |value: &str| {
        fs::write(&file, format!("records = {value}\n")).unwrap();
        let output = settings(dir.path()).command(&["config"]).env("LIKEWISE_CONFIG", &file).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|line| line.starts_with("records = ")).unwrap_or_default().to_owned()
    };
    assert!(records("\"sqlite://one.db\"").contains("[\"sqlite://one.db\"]"));
    let several = "[\"sqlite://a.db?shards=0-7\", \"sqlite://b.db?shards=8-15\"]";
    assert!(records(several).contains(several));
}

#[test]
fn a_wrong_setting_stops_the_start_with_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let file = dir.path().join("wrong.toml");
    let file_name = file.to_str().unwrap();
    fs::write(&file, "lissten = \"x\"\n").unwrap();
    assert!(stderr(&settings, &["serve", "--config", file_name]).contains("lissten, which is not a setting"));
    fs::write(&file, "partitions = \"many\"\n").unwrap();
    assert!(stderr(&settings, &["serve", "--config", file_name]).contains("partitions"));
    fs::write(&file, "partitions = \n").unwrap();
    assert!(stderr(&settings, &["serve", "--config", file_name]).contains("wrong.toml"));
    assert!(stderr(&settings, &["serve", "--config", "/nowhere.toml"]).contains("there is no file"));
    assert!(stderr(&settings, &["serve", "--partitions", "17"]).contains("multiple of 16"));
    assert!(stderr(&settings, &["serve", "--listen", "8080"]).contains("listen must be an address"));
    assert!(stderr(&settings, &["serve", "--listen", "0.0.0.0:0"]).contains("loopback"));
    assert!(stderr(&settings, &["serve", "--counters", "http://user:secret@host"]).contains("counters"));
    let no_database = stderr(&settings, &["serve", "--records", "mysql://user:secret@host"]);
    assert!(no_database.contains("names no database") && !no_database.contains("secret"), "{no_database}");
    let role = stderr(&settings, &["projector"]);
    assert!(role.contains("--log") && role.contains("likewise serve"), "{role}");
    let nobody = stderr(&settings, &["tail", "--log", "kafka://127.0.0.1:1/likes"]);
    assert!(nobody.contains("no broker answers"), "{nobody}");
    let secret = stderr(&settings, &["serve", "--log", "kafka://user:secret@host/likes"]);
    assert!(secret.contains("log") && !secret.contains("secret"), "{secret}");
    let spread = |urls: &[&str]| {
        let flags = urls.iter().flat_map(|url| ["--records", url]);
        stderr(&settings, &["serve"].into_iter().chain(flags).collect::<Vec<_>>())
    };
    let (low, high) = ("sqlite://low.db?shards=0-7", "sqlite://high.db?shards=7-15");
    assert!(spread(&[low]).contains("no record store has shard 8"));
    assert!(spread(&[low, high]).contains("two record stores have shard 7"));
    assert!(spread(&["sqlite://low.db?shards=0-16"]).contains("range of shards"));
    assert!(spread(&["sqlite://low.db?shard=0-7"]).contains("?shards="));
    let made = ["lock", "low.db", "high.db"].map(|name| Path::new(name).exists());
    assert_eq!(made, [false; 3], "a refused start makes no file, nor owns a directory");
    let output = settings.command(&["serve"]).env("LIKEWISE_LISSTEN", "x").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not a setting"));
    let help = settings.output(&["--help"]);
    let help = String::from_utf8_lossy(&help.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("(the default)") && help.contains("dead-letters"), "{help}");
}

#[test]
fn one_service_owns_a_data_directory_and_reading_commands_open_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    assert!(stderr(&settings, &["tail"]).contains("there is no file"));
    let service = settings.start();
    service.wait_ready();
    fill(&service);
    let refused = stderr(&settings, &["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    assert!(refused.contains(&service.id().to_string()) && refused.contains(&service.address), "{refused}");

    let tail = settings.output(&["tail", "--lines", "3"]);
    assert_eq!(String::from_utf8(tail.stdout).unwrap().lines().filter(|line| line.contains(" user ")).count(), 3);
    let mut follow =
        settings.command(&["tail", "--follow", "--json", "--lines", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    // The follower says nothing until something comes: like until it has seen one.
    let seen = AtomicBool::new(false);
    let line = thread::scope(|scope| {
        scope.spawn(|| {
            let mut user = 1000;
            while !seen.load(Ordering::Relaxed) {
                service.post("/v1/likes", &like(user, 1, true));
                user += 1;
                thread::yield_now();
            }
        });
        let line = lines.next().unwrap().unwrap();
        seen.store(true, Ordering::Relaxed);
        line
    });
    follow.kill().unwrap();
    follow.wait().unwrap();
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record["data"]["requestId"], record["id"]);
    assert_eq!((&record["type"], &record["specversion"]), (&json!("LikeToggled.v1"), &json!("1.0")), "{record}");
}

#[test]
fn a_replayed_log_has_the_same_digest_and_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (first, copy) = (dir.path().join("first"), dir.path().join("copy"));
    let settings = settings(&first);
    let service = settings.start();
    service.wait_ready();
    fill(&service);
    let digest = |settings: &Settings| -> Value {
        let output = settings.output(&["digest", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
    };
    let target = format!("sqlite://{}", copy.join("log.db").display());
    let output = settings.output(&["replay", "--to", &target]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("600 events copied"), "{output:?}");
    let again = stderr(&settings, &["replay", "--to", &target]);
    assert!(again.contains("not empty"), "{again}");

    let of_copy = Settings::new(env!("CARGO_BIN_EXE_likewise"), &copy);
    let replayed = of_copy.start();
    replayed.wait_ready();
    wait_until("the copy to be projected", Duration::from_secs(20), || {
        digest(&of_copy)["applied"] == digest(&settings)["applied"]
    });
    assert_eq!(digest(&of_copy), digest(&settings));
    assert_eq!(digest(&settings)["rows"], json!(600));

    let lines = |settings: &Settings, name: &str| {
        let file = dir.path().join(name);
        let output = settings.output(&["replay", "--to", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(file).unwrap()
    };
    let (first, copy) = (lines(&settings, "first.jsonl"), lines(&of_copy, "copy.jsonl"));
    let difference = first.lines().zip(copy.lines()).position(|(first, copy)| first != copy);
    assert_eq!((difference, first.len()), (None, copy.len()), "the first line that differs");
    let exists = stderr(&settings, &["replay", "--to", dir.path().join("first.jsonl").to_str().unwrap()]);
    assert!(exists.contains("exists"), "{exists}");
}

#[test]
fn sigterm_under_load_drains_and_ends_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let service = settings.start();
    service.wait_ready();
    let (stop, accepted, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for sender in 0..8 {
            let (service, stop, accepted, refused) = (&service, &stop, &accepted, &refused);
            scope.spawn(move || {
                for number in 0.. {
                    let body = like(1 + sender, 1 + number, true).to_string();
                    let sent = service.try_send(
                        "POST",
                        "/v1/likes",
                        &[("Content-Type", "application/json")],
                        Some(body.as_bytes()),
                    );
                    match sent {
                        Ok(answer) => {
                            assert_eq!(answer.status, 202, "a request in flight is answered: {}", answer.text);
                            accepted.fetch_add(1, Ordering::Relaxed);
                        }
                        // Once it no longer listens, no request is in flight.
                        Err(_) => {
                            assert!(stop.load(Ordering::Relaxed), "refused before the stop");
                            refused.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    }
                }
            });
        }
        wait_until("load", Duration::from_secs(20), || accepted.load(Ordering::Relaxed) > 500);
        stop.store(true, Ordering::Relaxed);
        service.signal("TERM");
    });
    assert_eq!(refused.load(Ordering::Relaxed), 8);
    let (status, took, log) = service.wait();
    println!("ended {took:?} after the last request; {} accepted", accepted.load(Ordering::Relaxed));
    assert!(status.success(), "{status}: {log}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    let lines = settings.output(&["tail", "--lines", "all", "--json"]).stdout;
    let appended = String::from_utf8(lines).unwrap().lines().count() as u64;
    assert!(appended >= accepted.load(Ordering::Relaxed), "{appended} events");
}

/// A file system of its own, small enough to fill; taken away when dropped. None where that is not allowed.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "likewise-test"]).arg(dir.path()).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _left_to_the_system = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_never_an_acknowledgement_and_space_heals_it() {
    let Some(disk) = SmallDisk::mount("8m") else {
        println!("not run: mounting a small file system needs root");
        return;
    };
    let path = disk.0.path();
    let ballast = path.join("ballast");
    fs::write(&ballast, vec![7; 4 * 1024 * 1024]).unwrap();
    let settings = settings(&path.join("data"));
    let service = settings.start();
    service.wait_ready();
    let (mut acknowledged, mut refused) = (BTreeSet::new(), 0);
    for user in 1..200_000 {
        let commands: Vec<Value> = (1..=100).map(|content| like(user, content, true)).collect();
        let answer = service.post("/v1/likes/batch", &json!({ "commands": commands }));
        for result in answer.json()["results"].as_array().unwrap() {
            if result["status"] == "accepted" {
                acknowledged.insert(result["requestId"].as_str().unwrap().to_owned());
            } else {
                assert_eq!(result["status"], 503, "{result}");
                refused += 1;
            }
        }
        if refused > 1000 {
            break;
        }
    }
    assert!(refused > 1000, "the disk never became full");
    fs::remove_file(&ballast).unwrap();
    wait_until("likes to be taken again", Duration::from_secs(30), || {
        service.post("/v1/likes", &like(500_000, 1, true)).status == 202
    });
    wait_until("the service to be ready", Duration::from_secs(30), || service.get("/readyz").status == 200);
    let lines = String::from_utf8(settings.output(&["tail", "--lines", "all", "--json"]).stdout).unwrap();
    let ids = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned());
    let in_log: BTreeSet<String> = ids.collect();
    println!("{} acknowledged, {refused} refused", acknowledged.len());
    assert!(acknowledged.is_subset(&in_log), "every acknowledged like is in the log");
}

/// The bound is 1 s for a start; a test waits three times as long and prints what it saw.
#[test]
fn it_is_ready_soon_after_a_start_and_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    for round in ["first start", "restart after a kill"] {
        let service = settings.start();
        let took = service.wait_ready();
        println!("{round}: ready {took:?} after its first line");
        assert!(took < Duration::from_secs(3), "{round}: {took:?}");
        fill_once(&service, round);
        service.kill();
    }
}

fn fill_once(service: &Service, round: &str) {
    if round == "first start" {
        fill(service);
    }
}

/// What is not known yet of the projection must not look like a backlog: the log holds more events of one partition
/// than may wait there.
#[test]
fn a_service_that_starts_again_takes_commands_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let service = settings.start();
    service.wait_ready();
    for first in (0..2_500).step_by(100) {
        let commands: Vec<Value> = (1..=100).map(|user| like(first + user, 16, true)).collect();
        wait_until("room in the backlog", Duration::from_secs(20), || {
            let answer = service.post("/v1/likes/batch", &json!({ "commands": commands }));
            answer.json()["results"].as_array().unwrap().iter().all(|result| result["status"] == "accepted")
        });
    }
    drop(service);
    let service = settings.start();
    for user in 5_000..5_050 {
        let answer = service.post("/v1/likes", &like(user, 16, true));
        assert_eq!(answer.status, 202, "{}", answer.text);
    }
}
