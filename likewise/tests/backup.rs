//! Backups that are taken under load, and what comes back from them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use likewise_testkit::{
    Settings,
    load::{History, Load},
    rig::{Own, Rig},
    servers, wait_until,
};
use serde_json::Value;

fn told(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap()
}

fn settings(dir: &Path) -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_likewise"), dir)
}

fn lines(settings: &Settings) -> Vec<String> {
    let output = settings.output(&["tail", "--lines", "all", "--raw"]);
    let mut lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn digest(settings: &Settings) -> Value {
    let output = settings.output(&["digest", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", told(&output)))
}

#[test]
fn an_embedded_backup_is_a_prefix_of_the_log_and_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let original = settings(&dir.path().join("data"));
    let service = original.start();
    service.wait_ready();
    let backup = dir.path().join("backup");
    let to = backup.to_str().unwrap();
    let over = AtomicBool::new(false);
    let history = History::default();
    thread::scope(|scope| {
        let (service, over, history) = (&service, &over, &history);
        scope.spawn(move || {
            let load = Load { commands: 400, clients: 4, users: 300, contents: 40, seed: 1 };
            load.run_until(over, std::slice::from_ref(service), history);
        });
        wait_until("some likes", Duration::from_secs(20), || history.done() > 1000);
        let output = original.output(&["backup", "--to", to]);
        assert!(output.status.success(), "{}", told(&output));
        over.store(true, Ordering::Relaxed);
    });
    assert!(told(&original.output(&["backup", "--to", to])).contains("not empty"));
    let over_it = original.output(&["restore", "--from", to]);
    assert!(told(&over_it).contains("is in use by"), "{}", told(&over_it));

    let restored = settings(&dir.path().join("restored"));
    let output = restored.output(&["restore", "--from", to]);
    assert!(output.status.success() && told(&output).contains("are restored"), "{}", told(&output));
    assert!(told(&restored.output(&["restore", "--from", to])).contains("exists"));
    let (kept, all) = (lines(&restored), lines(&original));
    println!("{} of {} events are in the backup", kept.len(), all.len());
    assert!(kept.len() > 500 && kept.iter().all(|line| all.binary_search(line).is_ok()));
    let again = restored.start();
    again.wait_ready();
    wait_until("the records to have the log", Duration::from_secs(20), || {
        let applied: i64 = digest(&restored)["applied"].as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).sum();
        applied == kept.len() as i64
    });
    let verified = restored.output(&["verify"]);
    assert!(verified.status.success(), "{}", told(&verified));

    // What SQLite left beside a file that was lost must not be taken for the restored one's.
    let beside = dir.path().join("beside/log.db-wal");
    fs::create_dir(beside.parent().unwrap()).unwrap();
    fs::write(&beside, "frames of another file").unwrap();
    let stale = settings(beside.parent().unwrap()).output(&["restore", "--from", to]);
    assert!(told(&stale).contains("log.db-wal exists"), "{}", told(&stale));

    // What is not whole is not put in place.
    let refused = |what: &str| {
        let other = settings(&dir.path().join("other"));
        let output = other.output(&["restore", "--from", to]);
        assert!(!output.status.success() && told(&output).contains(what), "{}", told(&output));
        assert!(!dir.path().join("other/log.db").exists(), "nothing was put in place");
    };
    let mut log = fs::read(backup.join("log.db")).unwrap();
    let middle = log.len() / 2;
    log[middle] ^= 1;
    fs::write(backup.join("log.db"), log).unwrap();
    refused("log.db that is not as it was written");
    fs::remove_file(backup.join("backup.json")).unwrap();
    refused("is no whole backup");
}

/// The commands of docs/backup.md that are for a shell, in order.
fn documented() -> Vec<String> {
    let page = include_str!("../../docs/backup.md");
    page.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_a_record_server_comes_back_and_catches_up_as_the_page_says() {
    let rig = Rig::start(env!("CARGO_BIN_EXE_likewise"), Own::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let api = rig.role("command-api", "command");
    let projector = rig.projector("projector");
    let history = History::default();
    let load = Load { commands: 1500, clients: 16, users: 500, contents: 60, seed: 1 };
    load.run(std::slice::from_ref(&api), &history);
    let run = |script: &str, server: &str| {
        let (host, port) = server.split_once(':').unwrap();
        let script = script
            .replace("likewise.sql", &format!("{}.sql", port))
            .replace("DATABASE likewise", &format!("DATABASE {}", rig.name));
        let script = script
            .replace("IF EXISTS likewise", &format!("IF EXISTS {}", rig.name))
            .replace(" likewise ", &format!(" {} ", rig.name));
        let status = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &script])
            .env("HOST", host)
            .env("PORT", port)
            .env("DB_USER", "root")
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{script}");
    };
    let address = |url: String| url.split_once('@').unwrap().1.split('/').next().unwrap().to_owned();
    let both = [address(servers::mysql()), address(servers::mariadb())];
    let commands = documented();
    assert_eq!(commands.len(), 2, "a dump and a restore");
    // Likes go on while it is dumped, and after.
    thread::scope(|scope| {
        let (api, history) = (&api, &history);
        let more = scope.spawn(move || Load { seed: 2, ..load }.run(std::slice::from_ref(api), history));
        both.iter().for_each(|server| run(&commands[0], server));
        more.join().unwrap();
    });
    rig.audit(&history).await;
    let before = digest(&rig.settings("operator"));
    drop(projector);
    both.iter().for_each(|server| run(&commands[1], server));
    let _projector = rig.projector("projector");
    let found = rig.audit(&history).await;
    assert_eq!(digest(&rig.settings("operator"))["sha256"], before["sha256"], "{} events", found.events);
    let verified = rig.settings("operator").output(&["verify"]);
    assert!(verified.status.success(), "{}", told(&verified));
}
