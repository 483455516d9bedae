//! Nothing that is secret or somebody's own is in a log, a metric, an error or a dead letter.

use std::time::Duration;

use likewise_testkit::{
    Settings,
    tokens::{AUDIENCE, ISSUER, Signer, seconds_from_now},
    wait_until,
};
use serde_json::json;
use uuid::Uuid;

/// In every input and every setting that could hold a secret.
const CANARY: &str = "Canary4D1F";
/// A user whose number is told nowhere.
const USER: i64 = 4_815_162_342;

#[test]
fn canaries_in_every_input_and_setting_are_found_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let secret = format!("{CANARY}-and-more-than-thirty-two-bytes");
    let settings = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path())
        .guarded("auth-secret-file", &secret)
        .arg("--trusted-proxies=127.0.0.1")
        // Redis is away, and whatever is said of that is said without its password.
        .arg(&format!("--counters=redis://{CANARY}:{CANARY}@127.0.0.1:1/0"))
        .arg("--log-level=trace")
        .arg("--log-format=json");
    let service = settings.start();
    service.wait_ready();
    let signer = Signer::Secret(secret.into_bytes());
    let claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "exp": seconds_from_now(600), "sub": USER, "name": CANARY });
    let token = signer.token(&json!({ "alg": "HS256" }), &claims);
    let admin = signer.admin_token();

    let mut answers = String::new();
    let mut send = |method: &str, path: &str, authorization: &str, body: &str| {
        let headers = [
            ("Authorization", authorization),
            ("Content-Type", "application/json"),
            ("Cookie", CANARY),
            ("User-Agent", CANARY),
            ("Referer", CANARY),
            ("X-Forwarded-For", "203.0.113.77"),
            ("Idempotency-Key", CANARY),
            ("Prefer", CANARY),
            ("traceparent", CANARY),
            (CANARY, CANARY),
        ];
        let body = if method == "GET" { None } else { Some(body.as_bytes()) };
        let answer = service.send(method, path, &headers, body);
        answers.extend([answer.text.as_str(), "\n"]);
        answer.headers.iter().for_each(|(name, value)| answers.extend([name.as_str(), value.to_str().unwrap(), "\n"]));
        answer.status
    };
    let right = format!("Bearer {token}");
    let command = |field: &str, value: &str| {
        let mut body =
            json!({ "requestId": Uuid::now_v7().to_string(), "contentType": "post", "contentId": 42, "liked": true });
        body[field] = json!(value);
        body.to_string()
    };
    for field in ["requestId", "contentType", "contentId", "liked", "occurredAt", "userId", CANARY] {
        send("POST", "/v1/likes", &right, &command(field, CANARY));
    }
    for body in [
        CANARY,
        &format!("{{\"{CANARY}\""),
        &format!("[\"{CANARY}\"]"),
        &CANARY.repeat(1000),
        &format!("\u{1b}[31m\n{CANARY}"),
    ] {
        send("POST", "/v1/likes", &right, body);
        send("POST", "/v1/likes/batch", &right, body);
    }
    for authorization in
        [CANARY, &format!("Bearer {CANARY}"), &format!("Bearer lk_{CANARY}_{CANARY}"), &format!("Basic {CANARY}")]
    {
        assert_eq!(send("POST", "/v1/likes", authorization, CANARY), 401);
    }
    for path in [
        format!("/{CANARY}"),
        format!("/v1/contents/{CANARY}/1/likes"),
        format!("/v1/contents/post/{CANARY}/likes?{CANARY}={CANARY}"),
        format!("/v1/likes?content={CANARY}"),
        format!("/v1/contents/post/1/likes?after={CANARY}&wait={CANARY}"),
        format!("/v1/users/{USER}/likes?cursor={CANARY}"),
        format!("/v1/commands/{CANARY}?content={CANARY}"),
        format!("/problems/{CANARY}"),
    ] {
        for method in ["GET", "PUT", "DELETE", "POST"] {
            send(method, &path, &right, "");
        }
    }
    // And what is right, so that there is something to tell.
    let like =
        json!({ "requestId": Uuid::now_v7().to_string(), "contentType": "post", "contentId": 42, "liked": true });
    assert_eq!(service.send_as(&token, "POST", "/v1/likes", Some(&like)).status, 202);
    wait_until("the like", Duration::from_secs(30), || service.get("/v1/contents/post/42/likes").json()["count"] == 1);
    let metrics = service.get_admin_as(&admin, "/metrics").text;
    assert!(metrics.contains("likewise_http_requests_total"));
    service.signal("TERM");
    let (status, _, log) = service.wait();
    assert!(status.success(), "{log}");
    let printed = [&["config"][..], &["dead-letters", "list"], &["key", "list"]].map(|command| {
        let output = settings.output(command);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    let lines = log.lines().count();
    println!("{lines} lines of log, {} bytes of answers, {} of metrics", answers.len(), metrics.len());
    assert!(lines > 50 && log.contains("likewise_http::access"), "{log}");
    assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "a line is no JSON");
    let accepted =
        log.lines().find(|line| line.contains("likewise_http::access") && line.contains("\"status\":202")).unwrap();
    for field in ["\"route\":\"/v1/likes\"", "\"request\":", "\"trace\":", "\"user\":", "\"network\":\"127.0.0.0/24\""]
    {
        assert!(accepted.contains(field), "{field}: {accepted}");
    }
    let config = printed[0].replace("redis://Canary4D1F:***@", "");
    for (what, text) in [
        ("log", &log),
        ("answers", &answers),
        ("metrics", &metrics),
        ("config", &config),
        ("dead letters", &printed[1]),
        ("keys", &printed[2]),
    ] {
        for secret in [CANARY, &token, &USER.to_string(), "203.0.113.77"] {
            let place =
                text.find(secret).map(|at| text[at.saturating_sub(300)..].chars().take(600).collect::<String>());
            assert!(place.is_none(), "{secret} in {what}: {place:?}");
        }
    }
}
