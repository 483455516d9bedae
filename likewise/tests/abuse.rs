//! `likewise abuse report`, beside a service that runs.

use std::collections::BTreeSet;

use likewise_testkit::{Service, Settings};
use serde_json::{Value, json};
use uuid::Uuid;

fn send(service: &Service, likes: &[(u64, u64)]) {
    for chunk in likes.chunks(100) {
        let command = |(user, content): &(u64, u64)| json!({ "requestId": Uuid::now_v7().to_string(), "userId": user, "contentType": "post", "contentId": content, "liked": true });
        let commands: Vec<Value> = chunk.iter().map(command).collect();
        let answer = service.post("/v1/likes/batch", &json!({ "commands": commands })).json();
        let accepted = answer["results"]
            .as_array()
            .map_or(0, |results| results.iter().filter(|result| result["status"] == "accepted").count());
        assert_eq!(accepted, chunk.len(), "{answer}");
    }
}

#[test]
fn a_lockstep_group_and_a_sudden_growth_are_in_the_report() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path()).arg("--max-backlog=0");
    let service = settings.start();
    service.wait_ready();
    let report = |arguments: &[&str]| {
        let output = settings.output(&[&["abuse", "report"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let empty: Value = serde_json::from_str(&report(&["--format", "json"])).expect("a document");
    assert_eq!((&empty["likes"], &empty["lockstep"], &empty["growth"]), (&json!(0), &json!([]), &json!([])));

    // A crowd, each with a taste of its own, and a group of 200 accounts on 20 contents.
    let crowd =
        (0..300_u64).flat_map(|user| (0..10).map(move |like| (1 + user, 1 + (user * 7919 + like * 104_729) % 3000)));
    let group = (0..200).flat_map(|user| (0..20).map(move |content| (1_000_000 + user, 900_000 + content)));
    send(&service, &crowd.collect::<Vec<_>>());
    send(&service, &group.collect::<Vec<_>>());
    let found: Value = serde_json::from_str(&report(&["--format", "json"])).expect("a document");
    assert_eq!(found["likes"], 7000);
    assert_eq!(found["lockstep"].as_array().map(Vec::len), Some(1), "{found}");
    let accounts: BTreeSet<&str> =
        found["lockstep"][0]["accounts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let expected: Vec<String> = (0..200).map(|user| (1_000_000 + user).to_string()).collect();
    assert_eq!(accounts, expected.iter().map(String::as_str).collect());
    assert_eq!(found["lockstep"][0]["contents"].as_array().map(Vec::len), Some(20));
    let growing = found["growth"].as_array().into_iter().flatten().filter(|growth| growth["lastHour"] == 200).count();
    assert_eq!(growing, 20, "{}", found["growth"]);
    let csv = report(&["--format", "csv"]);
    assert_eq!(csv.lines().next(), Some("finding,group,subject,number"));
    assert_eq!(csv.lines().filter(|line| line.starts_with("lockstep-account,1,10")).count(), 200);
    let table = report(&[]);
    assert!(table.contains("Lockstep: 1 groups") && table.contains("200 accounts, 20 contents"), "{table}");
    assert!(report(&["--min-accounts", "201"]).contains("Lockstep: 0 groups"));
    let refused = settings.output(&["abuse", "report", "--window", "8days"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("at most 7 days"));
}
