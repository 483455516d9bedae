//! The HTTP contract of version 1, against the real binary.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use likewise_testkit::{Answer, Service, Settings, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

fn start() -> (TempDir, Service) {
    let dir = tempfile::tempdir().unwrap();
    let service = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path()).start();
    service.wait_ready();
    (dir, service)
}

fn id() -> String {
    Uuid::now_v7().to_string()
}

fn command(id: &str, user: i64, content: i64, liked: bool) -> Value {
    json!({ "requestId": id, "userId": user.to_string(), "contentType": "post", "contentId": content.to_string(), "liked": liked })
}

/// Sends a command and waits until it is projected.
fn apply(service: &Service, body: &Value) -> Answer {
    let headers = [("Content-Type", "application/json"), ("Prefer", "wait=5")];
    let answer = service.send("POST", "/v1/likes", &headers, Some(body.to_string().as_bytes()));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

fn count(service: &Service, content: i64) -> i64 {
    service.get(&format!("/v1/contents/post/{content}/likes")).json()["count"].as_i64().unwrap()
}

#[test]
fn a_like_is_accepted_projected_and_seen() {
    let (_dir, service) = start();
    let first = id();
    let answer = service.post("/v1/likes", &command(&first, 7, 42, true));
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert_eq!(answer.header("location"), format!("/v1/commands/{first}"));
    let body = answer.json();
    let position = body["position"].as_str().unwrap();
    let expected = json!({ "requestId": first, "userId": "7", "contentType": "post", "contentId": "42", "liked": true,
                           "status": "accepted", "position": position });
    assert_eq!(body, expected);

    let read = service.get(&format!("/v1/contents/post/42/likes?viewer=7&after={position}&wait=5")).json();
    let expected = json!({ "contentType": "post", "contentId": "42", "count": 1, "liked": true, "position": position });
    assert_eq!(read, expected);
    let status = service.get(&format!("/v1/commands/{first}?viewer=7")).json();
    assert_eq!(status, json!({ "requestId": first, "status": "applied", "position": position }));
    assert_eq!(service.get(&format!("/v1/commands/{first}?viewer=8")).json()["status"], "unknown", "another's command");

    let anonymous = service.get("/v1/contents/post/42/likes");
    assert_eq!(anonymous.json()["liked"], Value::Null);
    assert_eq!(anonymous.header("cache-control"), "public, max-age=1");
    let unlike = apply(&service, &command(&id(), 7, 42, false));
    assert_eq!((&unlike.json()["count"], &unlike.json()["status"]), (&json!(0), &json!("applied")));
    assert_eq!(unlike.header("preference-applied"), "wait=5");
}

#[test]
fn put_and_delete_are_the_same_command_without_a_body() {
    let (_dir, service) = start();
    let key = id();
    let headers = [("Prefer", "wait=5"), ("Idempotency-Key", key.as_str())];
    let path = "/v1/contents/post/42/like?viewer=7";
    let put = service.send("PUT", path, &headers, None);
    assert_eq!((put.status, &put.json()["count"]), (200, &json!(1)), "{}", put.text);
    assert_eq!(put.json()["requestId"], json!(key));
    let again = service.send("PUT", path, &headers, None);
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, "true"), "{}", again.text);
    let reused = service.send("DELETE", path, &headers, None);
    assert_eq!((reused.status, &reused.json()["type"]), (422, &json!("/problems/request-id-reused")));
    let delete = service.send("DELETE", path, &[("Prefer", "wait=5")], None);
    assert_eq!((delete.status, &delete.json()["count"]), (200, &json!(0)), "{}", delete.text);
    let nobody = service.send("PUT", "/v1/contents/post/42/like", &[], None);
    assert_eq!(nobody.status, 400);
}

#[test]
fn a_repeated_request_has_one_effect_and_one_answer() {
    let (_dir, service) = start();
    let body = command(&id(), 7, 42, true);
    let first = apply(&service, &body);
    let again = service.post("/v1/likes", &body);
    assert_eq!((again.status, again.header("idempotent-replayed")), (202, "true"));
    assert_eq!(again.json()["position"], first.json()["position"]);
    let mut other = body.clone();
    other["liked"] = json!(false);
    let refused = service.post("/v1/likes", &other);
    assert_eq!((refused.status, &refused.json()["type"]), (422, &json!("/problems/request-id-reused")));
    let mut of_another = body.clone();
    of_another["userId"] = json!(8);
    assert_eq!(apply(&service, &of_another).json()["count"], json!(2), "another user's requestId is another one");
}

#[test]
fn one_request_id_sent_1000_times_in_parallel_has_one_effect() {
    let (_dir, service) = start();
    let body = command(&id(), 7, 42, true);
    let (answered, busy) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let answer = service.post("/v1/likes", &body);
                    match answer.status {
                        202 => answered.fetch_add(1, Ordering::Relaxed),
                        409 => {
                            assert!(!answer.header("retry-after").is_empty());
                            busy.fetch_add(1, Ordering::Relaxed)
                        }
                        other => panic!("{other}: {}", answer.text),
                    };
                }
            });
        }
    });
    assert_eq!(answered.load(Ordering::Relaxed) + busy.load(Ordering::Relaxed), 1000);
    assert!(answered.load(Ordering::Relaxed) >= 1);
    let metrics = service.get_admin("/metrics").text;
    wait_until("the like to be counted", Duration::from_secs(10), || count(&service, 42) == 1);
    let appended = service.get_admin("/metrics").text;
    let accepted = |text: &str, outcome: &str| {
        let line =
            text.lines().find(|line| line.starts_with(&format!("likewise_events_total{{outcome=\"{outcome}\"}}")));
        line.and_then(|line| line.split(' ').nth(1)?.parse::<u64>().ok()).unwrap_or_default()
    };
    assert_eq!((accepted(&appended, "accepted"), accepted(&appended, "duplicate")), (1, 0), "{metrics}");
}

#[test]
fn a_pair_may_change_six_times_a_minute() {
    let (_dir, service) = start();
    let bodies: Vec<Value> = (0..7).map(|number| command(&id(), 7, 42, number % 2 == 0)).collect();
    for body in &bodies[..6] {
        assert_eq!(service.post("/v1/likes", body).status, 202);
    }
    let refused = service.post("/v1/likes", &bodies[6]);
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert_eq!(refused.json()["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(refused.header("ratelimit-policy"), "\"pair\";q=6;w=60");
    let limit = refused.header("ratelimit").to_owned();
    assert!(limit.starts_with("\"pair\";r=0;t="), "{limit}");
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=10).contains(&seconds), "{seconds}");
    assert_eq!(service.post("/v1/likes", &bodies[0]).status, 202, "a known requestId costs nothing");
    assert_eq!(service.post("/v1/likes", &command(&id(), 8, 42, true)).status, 202, "another pair has its own");
}

#[test]
fn past_its_backlog_a_partition_refuses_and_what_was_refused_is_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path()).arg("--max-backlog=1");
    let service = settings.start();
    service.wait_ready();
    let (accepted, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for sender in 0..32 {
            let (service, accepted, refused) = (&service, &accepted, &refused);
            scope.spawn(move || {
                for number in 1..=20 {
                    let answer = service.post("/v1/likes", &command(&id(), sender * 20 + number, 42, true));
                    if answer.status == 202 {
                        accepted.fetch_add(1, Ordering::Relaxed);
                    } else {
                        assert_eq!(
                            (answer.status, &answer.json()["outcome"]),
                            (503, &json!("rejected")),
                            "{}",
                            answer.text
                        );
                        assert!(["1", "2", "3"].contains(&answer.header("retry-after")), "not all come again at once");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (accepted, refused) = (accepted.into_inner(), refused.into_inner());
    assert!(accepted > 0 && refused > 0, "{accepted} accepted, {refused} refused");
    wait_until("the accepted ones to be counted", Duration::from_secs(10), || count(&service, 42) == accepted as i64);
    let tail = settings.output(&["tail", "--lines", "all", "--json"]);
    assert_eq!(String::from_utf8_lossy(&tail.stdout).lines().count() as u64, accepted);
    // A retry of one that was refused is taken once there is room: it was not charged.
    let retried = command(&id(), 9999, 42, true);
    wait_until("room", Duration::from_secs(10), || service.post("/v1/likes", &retried).status == 202);
}

#[test]
fn other_names_for_this_machine_and_bodies_where_none_belong_are_refused() {
    let (_dir, service) = start();
    let read = |host: &str| service.send("GET", "/v1/contents/post/1/likes", &[("Host", host)], None).status;
    assert_eq!((read("localhost:8080"), read("[::1]:1"), read("127.0.0.1")), (200, 200, 200));
    assert_eq!((read("evil.example:8080"), read("localhost.evil.example")), (421, 421));
    let path = "/v1/contents/post/1/like?viewer=7";
    let refused = service.send("PUT", path, &[("Content-Type", "application/json")], Some(b"{\"liked\":false}"));
    assert_eq!(refused.status, 400, "{}", refused.text);
    for method in ["BREW", "AAAAAAA", "AAAAAAB", "PROPFIND"] {
        let mut socket = TcpStream::connect(&service.address).unwrap();
        write!(socket, "{method} /v1/likes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 405"), "{method}: {answer}");
    }
    let metrics = service.get_admin("/metrics").text;
    assert!(metrics.contains("method=\"other\"") && !metrics.contains("AAAAAA"), "{metrics}");
}

#[test]
fn a_batch_has_one_outcome_for_each_command() {
    let (_dir, service) = start();
    let mut commands: Vec<Value> = (1..=100).map(|user| command(&id(), user, 42, true)).collect();
    let late = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 1_000_000_000, 0)).to_string();
    commands[3]["requestId"] = json!(late);
    let answer = service.post("/v1/likes/batch", &json!({ "commands": commands }));
    assert_eq!(answer.status, 200, "{}", answer.text);
    let results = answer.json()["results"].as_array().unwrap().clone();
    assert_eq!(results.len(), 100);
    for (index, result) in results.iter().enumerate() {
        if index == 3 {
            assert_eq!((&result["status"], &result["type"]), (&json!(422), &json!("/problems/request-id-time")));
            assert!(result["serverTime"].is_string());
        } else {
            assert_eq!((&result["status"], &result["userId"]), (&json!("accepted"), &json!((index + 1).to_string())));
        }
    }
    wait_until("the batch to be projected", Duration::from_secs(10), || count(&service, 42) == 99);
    let twice = json!({ "commands": [command(&id(), 1, 43, true), command(&id(), 1, 43, false)] });
    let refused = service.post("/v1/likes/batch", &twice);
    assert_eq!((refused.status, &refused.json()["errors"][0]["pointer"]), (422, &json!("/commands/1")));
    let mut wrong = command("no", 1, 43, true);
    wrong["liked"] = json!(1);
    let refused = service.post("/v1/likes/batch", &json!({ "commands": [wrong, command(&id(), 0, 43, true)] }));
    let pointers: Vec<Value> =
        refused.json()["errors"].as_array().unwrap().iter().map(|e| e["pointer"].clone()).collect();
    assert_eq!(refused.status, 400);
    for pointer in ["/commands/0/requestId", "/commands/0/liked", "/commands/1/userId"] {
        assert!(pointers.contains(&json!(pointer)), "every fault is named: {pointers:?}");
    }
    assert_eq!(service.post("/v1/likes/batch", &json!({ "commands": [] })).status, 422);
    let many: Vec<Value> = (1..=101).map(|user| command(&id(), user, 44, true)).collect();
    assert_eq!(service.post("/v1/likes/batch", &json!({ "commands": many })).status, 422);
    assert_eq!(count(&service, 43), 0);
}

#[test]
fn request_ids_of_a_wrong_clock_are_refused_with_the_servers_time() {
    let (_dir, service) = start();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let at = |seconds: u64| Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0)).to_string();
    for (seconds, status) in [(now + 60, 422), (now + 5, 202), (now - 6 * 86_400, 202), (now - 8 * 86_400, 422)] {
        let answer = service.post("/v1/likes", &command(&at(seconds), 7, seconds as i64, true));
        assert_eq!(answer.status, status, "{}", answer.text);
        assert_eq!(answer.json()["serverTime"].is_string(), status == 422);
    }
}

/// Bad bodies: what is sent, the status, and a pointer that must be among the faults.
#[test]
fn bad_bodies_are_refused_without_a_trace() {
    let (_dir, service) = start();
    let good = command(&id(), 7, 42, true);
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body.to_string()
    };
    let raw = |from: &str, to: &str| good.to_string().replace(from, to);
    let without = |key: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(key);
        body.to_string()
    };
    let table: Vec<(String, u16, &str)> = vec![
        (String::new(), 400, ""),
        ("null".into(), 400, ""),
        ("[]".into(), 400, ""),
        ("text".into(), 400, ""),
        ("[1,2,true]".into(), 400, ""),
        (format!("{good} x"), 400, ""),
        (format!("\u{feff}{good}"), 400, ""),
        ("[".repeat(3000), 400, ""),
        (format!("{{\"a\":{}", "[".repeat(3000)), 400, ""),
        (raw("\"liked\":true", "\"liked\":true,\"liked\":true"), 400, ""),
        (raw("\"liked\":true", "\"liked\":1"), 400, "/liked"),
        (raw("\"liked\":true", "\"liked\":\"true\""), 400, "/liked"),
        (raw("\"liked\":true", "\"liked\":null"), 400, "/liked"),
        (raw("\"userId\":\"7\"", "\"userId\":1.0"), 400, "/userId"),
        (raw("\"userId\":\"7\"", "\"userId\":1e3"), 400, "/userId"),
        (raw("\"userId\":\"7\"", "\"userId\":[7]"), 400, "/userId"),
        (raw("\"userId\":\"7\"", "\"userId\":-1"), 422, "/userId"),
        (raw("\"userId\":\"7\"", "\"userId\":0"), 422, "/userId"),
        (raw("\"userId\":\"7\"", "\"userId\":9223372036854775808"), 422, "/userId"),
        (raw("\"userId\":\"7\"", "\"userId\":18446744073709551616"), 422, "/userId"),
        (raw("\"post\"", "\"po\\u0000st\""), 400, "/contentType"),
        (raw("\"post\"", "\"\\ud800\""), 400, "/contentType"),
        (without("requestId"), 400, "/requestId"),
        (without("liked"), 400, "/liked"),
        (with("isAdmin", json!(true)), 400, ""),
        (with("count", json!(5)), 400, ""),
        (with("contentId", json!(0)), 422, "/contentId"),
        (with("contentId", json!("-1")), 422, "/contentId"),
        (with("contentId", json!("042")), 422, "/contentId"),
        (with("contentId", json!("' OR 1=1 --")), 422, "/contentId"),
        (with("contentType", json!("")), 422, "/contentType"),
        (with("contentType", json!("abcdefghijklmnopqrstu")), 422, "/contentType"),
        (with("contentType", json!("Post")), 422, "/contentType"),
        (with("contentType", json!("рost")), 422, "/contentType"),
        (with("contentType", json!("post ")), 422, "/contentType"),
        (with("contentType", json!("😀")), 422, "/contentType"),
        (with("requestId", json!("no")), 422, "/requestId"),
        (with("requestId", json!("x".repeat(65))), 422, "/requestId"),
        (with("requestId", json!(5)), 400, "/requestId"),
        (with("occurredAt", json!("yesterday")), 422, "/occurredAt"),
        (with("occurredAt", json!(5)), 400, "/occurredAt"),
        (with("contentType", json!("x".repeat(5000))), 413, ""),
    ];
    for (body, status, pointer) in table {
        let headers = [("Content-Type", "application/json")];
        let answer = service.send("POST", "/v1/likes", &headers, Some(body.as_bytes()));
        let shown: String = body.chars().take(120).collect();
        assert_eq!(answer.status, status, "{shown} -> {}", answer.text);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{shown}");
        let problem = answer.json();
        assert_eq!(problem["status"], json!(status));
        if !pointer.is_empty() {
            let faults = problem["errors"].as_array().unwrap();
            assert!(faults.iter().any(|fault| fault["pointer"] == json!(pointer)), "{shown} -> {}", answer.text);
        }
        assert!(!answer.text.contains("OR 1=1"), "no echo");
    }
    let invalid_utf8 = [b"{\"requestId\":\"".as_slice(), &[0xff, 0xfe], b"\"}"].concat();
    assert_eq!(
        service.send("POST", "/v1/likes", &[("Content-Type", "application/json")], Some(&invalid_utf8)).status,
        400
    );
    let all = service.post("/v1/likes", &json!({ "requestId": 1, "userId": 0, "contentType": "X", "contentId": true }));
    assert_eq!(all.json()["errors"].as_array().map(Vec::len), Some(5), "every fault at once: {}", all.text);
    let body = good.to_string();
    for headers in [
        vec![("Content-Type", "text/plain")],
        vec![],
        vec![("Content-Type", "application/json; charset=utf-16")],
        vec![("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
    ] {
        assert_eq!(service.send("POST", "/v1/likes", &headers, Some(body.as_bytes())).status, 415, "{headers:?}");
    }
    let key = id();
    for (value, status) in [(key.as_str(), 422), ("no", 422), ("\"\"", 422)] {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", value)];
        assert_eq!(service.send("POST", "/v1/likes", &headers, Some(body.as_bytes())).status, status, "{value}");
    }
    let own = good["requestId"].as_str().unwrap();
    for value in [own.to_owned(), format!("\"{own}\"")] {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", value.as_str())];
        let bare = without("requestId");
        assert_eq!(service.send("POST", "/v1/likes", &headers, Some(bare.as_bytes())).status, 202, "{value}");
    }
    wait_until("the one good command", Duration::from_secs(10), || count(&service, 42) == 1);
    let tail = Settings::new(env!("CARGO_BIN_EXE_likewise"), _dir.path()).output(&["tail", "--lines", "all", "--json"]);
    assert_eq!(String::from_utf8_lossy(&tail.stdout).lines().count(), 1, "no refused command left an event");
}

#[test]
fn bad_parameters_paths_and_methods_are_refused() {
    let (_dir, service) = start();
    let many = "&content=post:1".repeat(100);
    let table = [
        ("GET", "/nothing".to_owned(), 404),
        ("GET", "/v1/contents/post/42".into(), 404),
        ("DELETE", "/v1/likes".into(), 405),
        ("POST", "/v1/contents/post/42/likes".into(), 405),
        ("GET", "/v1/contents/post/0/likes".into(), 400),
        ("GET", "/v1/contents/post/x/likes".into(), 400),
        ("GET", "/v1/contents/post/9223372036854775808/likes".into(), 400),
        ("GET", "/v1/contents/Post/1/likes".into(), 400),
        ("GET", "/v1/contents/post/1/likes?viewer=0".into(), 400),
        ("GET", "/v1/contents/post/1/likes?viewer=1&viewer=2".into(), 400),
        ("GET", "/v1/contents/post/1/likes?unknown=1".into(), 400),
        ("GET", "/v1/contents/post/1/likes?after=x".into(), 400),
        ("GET", "/v1/contents/post/1/likes?wait=6".into(), 400),
        ("GET", "/v1/likes".into(), 400),
        ("GET", format!("/v1/likes?content=post:1{many}"), 400),
        ("GET", "/v1/likes?content=post".into(), 400),
        ("GET", "/v1/contents/post/1/likers?limit=0".into(), 400),
        ("GET", "/v1/contents/post/1/likers?limit=101".into(), 400),
        ("GET", "/v1/contents/post/1/likers?limit=abc".into(), 400),
        ("GET", "/v1/contents/post/1/likers?cursor=%27--".into(), 400),
        ("GET", "/v1/users/7/likes?viewer=8".into(), 403),
        ("GET", "/v1/users/x/likes".into(), 400),
        ("GET", "/v1/commands/no?viewer=7".into(), 400),
        ("GET", format!("/v1/commands/{}", id()), 400),
        ("GET", format!("/v1/likes?content={}", "x".repeat(9000)), 414),
        ("GET", "/v1/contents/%2e%2e/1/likes".into(), 400),
        ("GET", "/v1/contents/post%00/1/likes".into(), 400),
        ("GET", "/problems/none".into(), 404),
    ];
    for (method, path, status) in table {
        let answer = service.send(method, &path, &[], None);
        let shown: String = path.chars().take(80).collect();
        assert_eq!(answer.status, status, "{method} {shown} -> {}", answer.text);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{method} {shown}");
        if status == 405 {
            assert!(!answer.header("allow").is_empty());
        }
        let kind = answer.json()["type"].as_str().unwrap().to_owned();
        assert_eq!(service.get(&kind).status, 200, "each type has its page: {kind}");
    }
}

#[test]
fn a_body_that_never_ends_is_given_up() {
    let (_dir, service) = start();
    let mut socket = TcpStream::connect(&service.address).unwrap();
    let head =
        "POST /v1/likes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    socket.write_all(head.as_bytes()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let mut answer = [0; 64];
    let read = socket.read(&mut answer).unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer[..read]));
}

#[test]
fn a_feed_is_read_at_once_in_the_order_asked_for() {
    let (_dir, service) = start();
    for user in 1..=3 {
        apply(&service, &command(&id(), user, 1, true));
    }
    apply(&service, &command(&id(), 7, 2, true));
    for round in ["filled", "cached"] {
        let answer = service.get("/v1/likes?viewer=7&content=post:2&content=post:1&content=post:99&content=post:2");
        assert_eq!(answer.header("cache-control"), "private, no-store");
        let items = answer.json()["items"].as_array().unwrap().clone();
        let shown: Vec<_> = items
            .iter()
            .map(|item| (item["contentId"].as_str(), item["count"].as_i64(), item["liked"].as_bool()))
            .collect();
        let expected = [
            (Some("2"), Some(1), Some(true)),
            (Some("1"), Some(3), Some(false)),
            (Some("99"), Some(0), Some(false)),
            (Some("2"), Some(1), Some(true)),
        ];
        assert_eq!(shown, expected, "{round}");
    }
}

#[test]
fn lists_are_walked_page_by_page_while_likes_go_on() {
    let (_dir, service) = start();
    let commands: Vec<Value> = (1..=100).map(|user| command(&id(), user, 42, true)).collect();
    assert_eq!(service.post("/v1/likes/batch", &json!({ "commands": commands })).status, 200);
    let commands: Vec<Value> = (1..=100).map(|content| command(&id(), 7, 1000 + content, true)).collect();
    let last = service.post("/v1/likes/batch", &json!({ "commands": commands })).json();
    let positions: HashSet<String> =
        last["results"].as_array().unwrap().iter().map(|r| r["position"].as_str().unwrap().into()).collect();
    let after: String = positions.iter().map(|position| format!("&after={position}")).collect();
    wait_until("the likes to be projected", Duration::from_secs(10), || count(&service, 42) == 100);
    for (path, key) in [("/v1/contents/post/42/likers", "userId"), ("/v1/users/7/likes", "contentId")] {
        let (mut seen, mut cursor, mut newcomer) = (Vec::new(), String::new(), 2000);
        loop {
            let page = service.get(&format!("{path}?limit=7&wait=5{after}{cursor}"));
            assert_eq!(page.status, 200, "{}", page.text);
            let page = page.json();
            assert_eq!(page.get("stale"), None);
            seen.extend(page["items"].as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()));
            // Newer likes come before what is still to be read.
            newcomer += 1;
            apply(&service, &command(&id(), newcomer, 42, true));
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let distinct: HashSet<&String> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len(), "no entry twice in {path}");
        let untouched: Vec<&String> = seen.iter().filter(|id| id.len() != 4 || key == "contentId").collect();
        assert_eq!(untouched.len(), if key == "userId" { 100 } else { 101 }, "each untouched entry once in {path}");
        if key == "contentId" {
            let photos = service.get(&format!("{path}?contentType=photo")).json();
            assert_eq!(photos, json!({ "items": [] }));
        }
    }
}

#[test]
fn health_metrics_and_documents_are_served() {
    let (_dir, service) = start();
    apply(&service, &command(&id(), 7, 42, true));
    assert_eq!(service.get("/livez").status, 200);
    assert_eq!((service.get_admin("/livez").status, service.get_admin("/readyz").status), (200, 200));
    assert_eq!(service.get("/metrics").status, 404, "metrics are on the admin port alone");
    let metrics = service.get_admin("/metrics").text;
    for line in [
        "likewise_events_total{outcome=\"accepted\"} 1",
        "likewise_commit_jobs_total{store=\"the log\"} 1",
        "likewise_commit_seconds_count{store=\"the log\"} 1",
        "kafka_consumergroup_group_lag{group=\"likewise-projector\",topic=\"likes\",partition=\"10\"} 0",
        "kafka_consumergroup_group_lag_seconds{group=\"likewise-projector\",topic=\"likes\",partition=\"10\"} 0",
        "likewise_http_requests_total{method=\"POST\",route=\"/v1/likes\",status=\"200\"} 1",
        "likewise_http_request_seconds_bucket{route=\"/v1/likes\",le=\"0.2\"}",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let openapi = service.get("/openapi.json").json();
    assert!(openapi["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    let docs = service.get("/docs/");
    assert_eq!((docs.status, docs.text.contains("swagger-ui")), (200, true));
    assert!(!docs.text.contains("https://"), "the UI downloads nothing");
    let page = service.get("/");
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
}

/// A stream of events, read as it comes.
struct Events {
    socket: TcpStream,
    /// What was read and is not yet an event.
    text: String,
    /// What came before the first event.
    head: String,
}

impl Events {
    fn open(service: &Service, query: &str, headers: &str) -> Self {
        let mut socket = TcpStream::connect(&service.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request = format!("GET /v1/likes/stream?{query} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        Self { socket, text: String::new(), head: String::new() }
    }

    /// The next event: its name, id and data.
    fn next(&mut self) -> (String, String, Value) {
        loop {
            if let Some(start) = self.text.find("event: ")
                && let Some(length) = self.text[start..].find("\n\n")
            {
                let event: String = self.text[start..start + length].into();
                if self.head.is_empty() {
                    self.head = self.text[..start].to_lowercase();
                }
                self.text.drain(..start + length);
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    line.unwrap_or_else(|| panic!("no {name} in {event}")).to_owned()
                };
                return (field("event"), field("id"), serde_json::from_str(&field("data")).unwrap());
            }
            assert!(self.read() > 0, "the stream has ended: {}", self.text);
        }
    }

    fn read(&mut self) -> usize {
        let mut part = [0; 4096];
        let count = self.socket.read(&mut part).unwrap();
        self.text.push_str(&String::from_utf8_lossy(&part[..count]));
        count
    }
}

#[test]
fn a_stream_tells_counts_as_they_change() {
    let (_dir, service) = start();
    apply(&service, &command(&id(), 7, 42, true));
    let mut events = Events::open(&service, "content=post:42&content=post:43&content=post:42", "");
    let (name, _, snapshot) = events.next();
    let of = |items: &Value| -> Vec<(String, i64)> {
        let each = items.as_array().unwrap().iter();
        each.map(|item| (item["contentId"].as_str().unwrap().into(), item["count"].as_i64().unwrap())).collect()
    };
    assert_eq!((name.as_str(), of(&snapshot["items"])), ("snapshot", vec![("42".into(), 1), ("43".into(), 0)]));
    for header in ["content-type: text/event-stream", "x-accel-buffering: no", "cache-control: no-store", "retry: 2000"]
    {
        assert!(events.head.contains(header), "{header} in {}", events.head);
    }
    let position = apply(&service, &command(&id(), 8, 43, true)).json()["position"].as_str().unwrap().to_owned();
    let (name, last, told) = events.next();
    assert_eq!((name.as_str(), &told["contentId"], &told["count"]), ("count", &json!("43"), &json!(1)));
    assert!(last.split(',').any(|seen| seen == position), "{position} in {last}");

    // Many changes: few events, the last of which is the last count, not over ten a second.
    let started = std::time::Instant::now();
    let likes: Vec<Value> = (100..400).map(|user| command(&id(), user, 42, true)).collect();
    for commands in likes.chunks(100) {
        assert_eq!(service.post("/v1/likes/batch", &json!({ "commands": commands })).status, 200);
    }
    let (mut told, mut seen) = (0, 0);
    while told < 301 {
        let (_, _, count) = events.next();
        let count = count["count"].as_i64().unwrap();
        assert!(count > told, "{count} after {told}");
        (told, seen) = (count, seen + 1);
    }
    let most = started.elapsed().as_millis() / 100 + 2;
    assert!(seen <= most, "{seen} events, {most} at most");

    // Whoever comes again gets nothing older than what was seen.
    let mut again = Events::open(&service, "content=post:43", &format!("Last-Event-ID: {last}\r\n"));
    let (name, _, snapshot) = again.next();
    assert_eq!((name.as_str(), of(&snapshot["items"])), ("snapshot", vec![("43".into(), 1)]));
    assert_eq!(service.get("/v1/likes/stream").status, 400);
    assert_eq!(service.get("/v1/likes/stream?content=post:1&viewer=7").status, 400, "streams are anonymous");

    // A stop ends the streams, and is not held up by them.
    service.signal("TERM");
    let (status, took, _) = service.wait();
    assert!(status.success() && took < Duration::from_secs(5) * 3, "{status} after {took:?} (5 s)");
    while again.read() > 0 {}
}

#[test]
fn what_gains_likes_is_trending() {
    let (_dir, service) = start();
    let body = |service: &Service, query: &str| service.get(&format!("/v1/trending?{query}"));
    for (content, users) in [(1, 3), (2, 5), (3, 1)] {
        for user in 1..=users {
            apply(&service, &command(&id(), user, content, true));
        }
    }
    apply(&service, &command(&id(), 1, 3, false));
    let ids = |answer: &Answer| -> Vec<(String, i64)> {
        let each = answer.json()["items"].as_array().unwrap().clone().into_iter();
        each.map(|item| (item["contentId"].as_str().unwrap().into(), item["gained"].as_i64().unwrap())).collect()
    };
    let expected: Vec<(String, i64)> = vec![("2".into(), 5), ("1".into(), 3)];
    let took = wait_until("what is trending to be computed anew", Duration::from_secs(10) * 3, || {
        ["1h", "24h"].iter().all(|window| ids(&body(&service, &format!("window={window}"))) == expected)
    });
    println!("trending after {took:?} (10 s)");
    assert_eq!(ids(&body(&service, "")), expected, "what was taken back does not count");
    assert_eq!(ids(&body(&service, "limit=1&contentType=post")), expected[..1]);
    assert!(ids(&body(&service, "contentType=video")).is_empty());
    for bad in ["window=2h", "limit=0", "limit=101", "contentType=X", "window=1h&window=24h"] {
        assert_eq!(body(&service, bad).status, 400, "{bad}");
    }
}

#[test]
fn a_client_that_has_the_counts_needs_no_body() {
    let (_dir, service) = start();
    apply(&service, &command(&id(), 7, 42, true));
    for path in ["/v1/contents/post/42/likes", "/v1/likes?content=post:42&content=post:43"] {
        let first = service.get(path);
        let tag = first.header("etag").to_owned();
        assert!(tag.starts_with("W/\"") && first.header("cache-control") == "public, max-age=1", "{tag}");
        let again = |tag: &str| service.send("GET", path, &[("If-None-Match", tag)], None);
        let known = again(&format!("\"other\", {tag}"));
        assert_eq!((known.status, known.text.as_str(), known.header("etag")), (304, "", tag.as_str()));
        assert_eq!(again("\"other\"").status, 200);
        assert_eq!(again("garbage").status, 200);
        let user = if path.contains("43") { 9 } else { 8 };
        let position = apply(&service, &command(&id(), user, 42, true)).json()["position"].as_str().unwrap().to_owned();
        let mark = if path.contains('?') { '&' } else { '?' };
        let after = format!("{path}{mark}after={position}&wait=5");
        assert_eq!(service.send("GET", &after, &[("If-None-Match", &tag)], None).status, 200, "another count");
        let own = service.get(&format!("{path}{mark}viewer=7"));
        assert_eq!((own.header("etag"), own.header("cache-control")), ("", "private, no-store"));
    }
}
