//! Who may do what: tokens, service keys, limits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path, thread, time::Duration};

use likewise_testkit::{
    Answer, Service, Settings, at_once, like,
    tokens::{AUDIENCE, ISSUER, SECRET, Signer, claims, part, seconds_from_now},
    wait_until,
};
use serde_json::{Value, json};
use uuid::Uuid;

fn id() -> String {
    Uuid::now_v7().to_string()
}

fn like_of(user: i64, content: u64) -> Value {
    let mut like = like(content);
    like["userId"] = json!(user);
    like
}

fn settings_in(dir: &Path) -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_likewise"), dir)
}

fn by_secret(dir: &Path) -> Settings {
    settings_in(dir).guarded_by_secret()
}

fn by_jwks(dir: &Path, keys: &[Value]) -> Settings {
    settings_in(dir).guarded("auth-jwks-file", &jwks(keys))
}

fn jwks(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn start(settings: &Settings) -> Service {
    let service = settings.start();
    service.wait_ready();
    service
}

/// Makes a service key with these scopes.
fn key(settings: &Settings, scopes: &[&str], more: &[&str]) -> String {
    let mut arguments = vec!["key", "create", "--name=a backend"];
    scopes.iter().for_each(|scope| arguments.extend(["--scope", scope]));
    arguments.extend(more);
    let output = settings.output(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// How many events the log holds.
fn events(settings: &Settings) -> usize {
    let tail = settings.output(&["tail", "--lines", "all", "--json"]);
    String::from_utf8_lossy(&tail.stdout).lines().count()
}

fn is_unauthorized(answer: &Answer, what: &str) {
    assert_eq!(answer.status, 401, "{what}: {}", answer.text);
    assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"likewise\"", "{what}");
    let expected = json!({ "type": "/problems/unauthorized", "title": "Authentication is needed", "status": 401 });
    assert_eq!(answer.json(), expected, "{what}: the same words whatever is wrong");
}

/// Tokens that must be refused: what is wrong with each, and the token. `signer` signs what the server would accept.
fn forged(signer: &Signer, public: &Value) -> Vec<(String, String)> {
    let algorithm = signer.algorithm();
    let header = json!({ "alg": algorithm, "typ": "JWT" });
    let right = signer.token_of(7);
    let [head, body, signature] = right.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let mut table = Vec::new();
    let mut add = |what: &str, token: String| table.push((what.to_owned(), token));

    for none in ["none", "None", "NONE", "nOnE"] {
        let unsigned = format!("{}.{body}", part(&json!({ "alg": none })));
        add(&format!("alg {none}, no signature"), format!("{unsigned}."));
        add(&format!("alg {none}, the old signature"), format!("{unsigned}.{signature}"));
    }
    add("no signature", format!("{head}.{body}."));
    add("two parts", format!("{head}.{body}"));
    add("four parts", format!("{right}.{signature}"));
    add("five parts, as if encrypted", format!("{head}.{body}.{body}.{body}.{signature}"));
    add("a signature of zeros", format!("{head}.{body}.{}", "A".repeat(signature.len())));
    add("another's claims under the signature", format!("{head}.{}.{signature}", part(&claims(8))));
    add("a header that is no JSON", format!("{}.{body}.{signature}", "AAAA"));
    add("a header that is no base64", format!("!!!!.{body}.{signature}"));
    add("no text", "..".into());
    add("8 KiB", "a".repeat(8192));
    add("8 KiB of a token", format!("{right}{}", "A".repeat(8192)));
    // Whoever knows a public key could use it as a secret.
    for secret in [public["x"].as_str(), public["n"].as_str()]
        .into_iter()
        .flatten()
        .map(str::to_owned)
        .chain([public.to_string()])
    {
        let confused = Signer::Secret(secret.into_bytes());
        add("HS256 by the public key", confused.token(&json!({ "alg": "HS256", "typ": "JWT" }), &claims(7)));
    }
    for other in
        [Signer::Secret(b"another secret of thirty-two bytes or more".to_vec()), Signer::ed25519(9), Signer::rsa()]
    {
        if other.algorithm() != algorithm || matches!(other, Signer::Secret(_)) || matches!(other, Signer::Ed25519(_)) {
            add(&format!("another {} key", other.algorithm()), other.token_of(7));
            let mut embedded = other.jwk("a");
            embedded["d"] = json!("AA");
            let header = json!({ "alg": other.algorithm(), "jwk": embedded });
            add("its key in the header", other.token(&header, &claims(7)));
        }
    }
    for name in ["HS384", "HS512", "RS384", "RS512", "PS256", "ES256", "hs256", "eddsa", "rs256", "Ed25519", ""] {
        add(&format!("alg {name} in the header"), signer.token(&json!({ "alg": name, "typ": "JWT" }), &claims(7)));
    }
    let headers = [
        ("jku", json!("http://127.0.0.1:9/keys")),
        ("x5u", json!("http://127.0.0.1:9/certificate")),
        ("x5c", json!(["MIIB"])),
        ("jwk", public.clone()),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
        ("enc", json!("A128GCM")),
        ("typ", json!("secevent+jwt")),
        ("typ", json!("JWE")),
        ("typ", json!(5)),
        ("alg", json!(5)),
        ("alg", json!(null)),
        ("kid", json!("../../etc/passwd")),
        ("kid", json!("' OR 1=1 --")),
        ("kid", json!("x".repeat(1500))),
        ("kid", json!("unknown")),
        ("kid", json!(5)),
    ];
    for (name, value) in headers {
        let mut header = header.clone();
        header[name] = value.clone();
        let shown: String = value.to_string().chars().take(40).collect();
        add(&format!("header {name}: {shown}"), signer.token(&header, &claims(7)));
    }
    let values = [
        ("exp", json!(seconds_from_now(-31))),
        ("exp", json!(0)),
        ("exp", json!(-1)),
        ("exp", json!(null)),
        ("exp", json!(seconds_from_now(60).to_string())),
        ("exp", json!(seconds_from_now(60) as f64 + 0.5)),
        ("exp", json!(9_223_372_036_854_775_808_u64)),
        ("exp", json!([seconds_from_now(60)])),
        ("nbf", json!(seconds_from_now(60))),
        ("nbf", json!(seconds_from_now(-60).to_string())),
        ("nbf", json!(1.5)),
        ("aud", json!(null)),
        ("aud", json!("")),
        ("aud", json!("another.test")),
        ("aud", json!(format!("{AUDIENCE}/admin"))),
        ("aud", json!(["another.test", "third.test"])),
        ("aud", json!([])),
        ("aud", json!([[AUDIENCE]])),
        ("aud", json!({ "0": AUDIENCE })),
        ("iss", json!(null)),
        ("iss", json!("https://issuer.test.evil")),
        ("iss", json!("")),
        ("sub", json!(null)),
        ("sub", json!("")),
        ("sub", json!("-7")),
        ("sub", json!(-7)),
        ("sub", json!(0)),
        ("sub", json!("07")),
        ("sub", json!("seven")),
        ("sub", json!(7.5)),
        ("sub", json!([7])),
        ("sub", json!(true)),
        ("sub", json!("9223372036854775808")),
    ];
    for (name, value) in values {
        let mut wrong = claims(7);
        wrong[name] = value.clone();
        add(&format!("{name}: {value}"), signer.token(&header, &wrong));
    }
    for name in ["exp", "aud", "iss", "sub"] {
        let mut without = claims(7);
        without.as_object_mut().unwrap().remove(name);
        add(&format!("no {name}"), signer.token(&header, &without));
    }
    add("claims that are no object", signer.token(&header, &json!([7])));
    let twice = format!(
        "{{\"iss\":\"{ISSUER}\",\"aud\":\"other\",\"aud\":\"{AUDIENCE}\",\"exp\":{},\"sub\":\"7\"}}",
        seconds_from_now(60)
    );
    add("aud twice", signer.token_of_text(&header, &twice));
    table
}

#[test]
fn every_forged_token_is_refused_and_right_ones_are_not() {
    for (number, signer) in [Signer::secret(), Signer::ed25519(1), Signer::rsa()].iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let settings = match signer {
            Signer::Secret(_) => by_secret(dir.path()),
            // Without an id in its header a token is verified by the only key.
            _ => by_jwks(dir.path(), &[signer.jwk("a")]),
        };
        let service = start(&settings);
        let public = if number == 0 { Signer::ed25519(1).jwk("a") } else { signer.jwk("a") };
        let table = forged(signer, &public);
        for (what, token) in &table {
            let what = format!("{}: {what}", signer.algorithm());
            is_unauthorized(&service.send_as(token, "POST", "/v1/likes", Some(&like(1))), &what);
            is_unauthorized(&service.send_as(token, "GET", "/v1/contents/post/1/likes", None), &what);
        }
        println!("{}: {} forged tokens refused", signer.algorithm(), table.len());
        let right = signer.token_of(7);
        let forms = ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer a b", "Token x", &right, "Bearer\t"];
        for form in forms {
            let headers = [("Content-Type", "application/json"), ("Authorization", form)];
            let body = like(1).to_string();
            is_unauthorized(&service.send("POST", "/v1/likes", &headers, Some(body.as_bytes())), form);
        }
        let both = [
            ("Content-Type", "application/json"),
            ("Authorization", &*format!("Bearer {right}")),
            ("Authorization", &*format!("Bearer {}", signer.token_of(8))),
        ];
        is_unauthorized(&service.send("POST", "/v1/likes", &both, Some(like(1).to_string().as_bytes())), "two headers");
        assert_eq!(events(&settings), 0, "a refused token left an event");

        let mut others = Vec::new();
        for (name, value) in [
            ("aud", json!(["another.test", AUDIENCE])),
            ("sub", json!(7)),
            ("exp", json!(seconds_from_now(-10))),
            ("nbf", json!(seconds_from_now(10))),
            ("iat", json!(seconds_from_now(10))),
        ] {
            let mut right = claims(7);
            right[name] = value;
            others.push(signer.token(&json!({ "alg": signer.algorithm() }), &right));
        }
        others.push(signer.token(&json!({ "alg": signer.algorithm(), "typ": "at+jwt", "x5t": "AA" }), &claims(7)));
        if number > 0 {
            others.push(signer.token(&json!({ "alg": signer.algorithm(), "kid": "a" }), &claims(7)));
        }
        for (number, token) in others.iter().chain([&right, &right]).enumerate() {
            let answer = service.send_as(token, "POST", "/v1/likes", Some(&like(100 + number as u64)));
            assert_eq!((answer.status, &answer.json()["userId"]), (202, &json!("7")), "{number}: {}", answer.text);
        }
    }
}

/// Who calls.
struct Callers {
    user: String,
    other: String,
    commands: String,
    reads: String,
    admin_key: String,
    admin_token: String,
    expired: String,
}

/// What is expected of a resource: the status for nobody, user 7, user 8, a key for commands, one for reads, one for
/// the admin port. All act on, or read of, user 7.
type Expected = [u16; 6];

const EVERYBODY: Expected = [200; 6];
const COMMANDS: Expected = [401, 202, 202, 202, 403, 403];
const OWN: Expected = [401, 200, 403, 403, 200, 403];
const SIGNED_IN: Expected = [401, 200, 200, 403, 200, 403];
/// Reads are anybody's, but a key that names a viewer has to be for reads.
const COUNTS: Expected = [200, 200, 200, 403, 200, 403];
const STATUS: Expected = [401, 200, 200, 200, 403, 403];

/// The rule for a resource; a new one needs one.
fn rule(method: &str, path: &str) -> Expected {
    match (method, path) {
        ("get", "/livez" | "/readyz" | "/problems/{slug}" | "/v1/trending" | "/v1/likes/stream") => EVERYBODY,
        ("get", "/v1/likes" | "/v1/contents/{contentType}/{contentId}/likes") => COUNTS,
        ("get", "/v1/contents/{contentType}/{contentId}/likers") => SIGNED_IN,
        ("get", "/v1/users/{userId}/likes") => OWN,
        ("get", "/v1/commands/{requestId}") => STATUS,
        ("post", "/v1/likes" | "/v1/likes/batch")
        | ("put" | "delete", "/v1/contents/{contentType}/{contentId}/like") => COMMANDS,
        _ => panic!("{method} {path}: say in this test who may"),
    }
}

#[test]
fn nobody_acts_or_reads_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let settings = by_secret(dir.path()).arg("--limit-user=off").arg("--limit-address=off");
    let service = start(&settings);
    let signer = Signer::secret();
    let mut expired = claims(7);
    expired["exp"] = json!(seconds_from_now(-60));
    let callers = Callers {
        user: signer.token_of(7),
        other: signer.token_of(8),
        commands: key(&settings, &["commands"], &[]),
        reads: key(&settings, &["reads"], &[]),
        admin_key: key(&settings, &["admin"], &[]),
        admin_token: signer.admin_token(),
        expired: signer.token(&json!({ "alg": "HS256" }), &expired),
    };
    wait_until("the keys to be taken by both ports", Duration::from_secs(10), || {
        let known = service.send_as(&callers.admin_key, "GET", "/v1/trending", None).status;
        known != 401 && service.get_admin_as(&callers.admin_key, "/metrics").status == 200
    });
    wait_until("something to trend", Duration::from_secs(30), || service.get("/v1/trending").status == 200);

    let openapi = service.get("/openapi.json").json();
    let mut resources = BTreeSet::new();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        methods.as_object().unwrap().keys().for_each(|method| {
            resources.insert((path.clone(), method.clone()));
        });
    }
    assert!(resources.len() >= 12, "{resources:?}");
    let named = [
        ("nobody", "", false),
        ("user 7", &callers.user, false),
        ("user 8", &callers.other, false),
        ("a key for commands", &callers.commands, true),
        ("a key for reads", &callers.reads, true),
        ("a key for the admin port", &callers.admin_key, true),
    ];
    let mut content = 1000;
    for (path, method) in &resources {
        let expected = rule(method, path);
        let is_change = method != "get";
        for ((who, credential, names_user), status) in named.iter().zip(expected) {
            content += 1;
            let concrete = path
                .replace("{contentType}", "post")
                .replace("{contentId}", &content.to_string())
                .replace("{userId}", "7")
                .replace("{requestId}", &id())
                .replace("{slug}", "unauthorized");
            let takes_viewer = path.starts_with("/v1/contents")
                || path.starts_with("/v1/users")
                || path.starts_with("/v1/commands")
                || path == "/v1/likes";
            let in_body = method == "post";
            let mut query = Vec::new();
            if path == "/v1/likes" && !is_change || path == "/v1/likes/stream" {
                query.push(format!("content=post:{content}"));
            }
            if *names_user && takes_viewer && !in_body {
                query.push("viewer=7".into());
            }
            let mark = if query.is_empty() { "" } else { "?" };
            let target = format!("{concrete}{mark}{}", query.join("&"));
            let one = if *names_user { like_of(7, content) } else { like(content) };
            let body = match path.as_str() {
                "/v1/likes/batch" => Some(json!({ "commands": [one] })),
                "/v1/likes" if is_change => Some(one),
                _ => None,
            };
            let status = if path == "/v1/likes/batch" && status == 202 { 200 } else { status };
            let before = if is_change && status >= 400 { Some(events(&settings)) } else { None };
            let method = method.to_uppercase();
            let what = format!("{method} {target} by {who}");
            if path == "/v1/likes/stream" {
                assert_eq!(stream_status(&service, &target, credential), status, "{what}");
                continue;
            }
            let answer = service.send_as(credential, &method, &target, body.as_ref());
            assert_eq!(answer.status, status, "{what}: {}", answer.text);
            if is_change && status < 400 {
                let acted = if path == "/v1/likes/batch" {
                    &answer.json()["results"][0]["userId"]
                } else {
                    &answer.json()["userId"]
                };
                let own = if *who == "user 8" { "8" } else { "7" };
                assert_eq!(acted, own, "{what}");
            }
            if let Some(before) = before {
                assert_eq!(events(&settings), before, "{what} left an event");
            }
        }
        // What is no credential of the APIs is refused wherever one could count.
        if path.starts_with("/v1/") {
            let target = path
                .replace("{contentType}", "post")
                .replace("{contentId}", "1")
                .replace("{userId}", "7")
                .replace("{requestId}", &id());
            for credential in [&callers.expired, &callers.admin_token] {
                let answer = service.send_as(credential, &method.to_uppercase(), &target, None);
                is_unauthorized(&answer, &format!("{method} {target}"));
            }
        }
    }
}

/// The status of a stream, whose body does not end.
fn stream_status(service: &Service, target: &str, credential: &str) -> u16 {
    use std::io::{BufRead, BufReader, Write};
    let mut socket = std::net::TcpStream::connect(&service.address).unwrap();
    let authorization =
        if credential.is_empty() { String::new() } else { format!("Authorization: Bearer {credential}\r\n") };
    write!(socket, "GET {target} HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_users_word_on_who_they_are_counts_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let settings = by_secret(dir.path());
    let service = start(&settings);
    let seven = Signer::secret().token_of(7);
    let as_seven = |method: &str, path: &str, body: Option<&Value>| service.send_as(&seven, method, path, body);
    for body in [like_of(8, 1), like_of(7, 1)] {
        let answer = as_seven("POST", "/v1/likes", Some(&body));
        assert_eq!(answer.status, 400, "{}", answer.text);
        let answer = as_seven("POST", "/v1/likes/batch", Some(&json!({ "commands": [body] })));
        assert_eq!(answer.status, 400, "{}", answer.text);
    }
    for name in ["user_id", "sub", "actor", "isAdmin", "version", "is_canceled", "created_at", "count"] {
        let mut body = like(1);
        body[name] = json!(8);
        assert_eq!(as_seven("POST", "/v1/likes", Some(&body)).status, 400, "{name}");
    }
    for (method, path) in [
        ("POST", "/v1/likes?viewer=8"),
        ("POST", "/v1/likes?userId=8"),
        ("PUT", "/v1/contents/post/1/like?viewer=8"),
        ("PUT", "/v1/contents/post/1/like?viewer=7"),
        ("DELETE", "/v1/contents/post/1/like?userId=8"),
        ("GET", "/v1/contents/post/1/likes?viewer=8"),
        ("GET", "/v1/likes?content=post:1&viewer=8"),
        ("GET", "/v1/users/7/likes?viewer=8"),
    ] {
        let body = if method == "POST" { Some(like(1)) } else { None };
        assert_eq!(as_seven(method, path, body.as_ref()).status, 400, "{method} {path}");
    }
    for header in ["X-User-Id", "X-Viewer", "X-Forwarded-User", "Sub"] {
        let headers =
            [("Content-Type", "application/json"), ("Authorization", &*format!("Bearer {seven}")), (header, "8")];
        let answer = service.send("POST", "/v1/likes", &headers, Some(like(2).to_string().as_bytes()));
        assert_ne!(answer.json()["userId"], "8", "{header}");
    }
    assert_eq!(as_seven("GET", "/v1/users/8/likes", None).status, 403);
    // Another's command is unknown, not told.
    let mine = like(3);
    assert_eq!(as_seven("POST", "/v1/likes", Some(&mine)).status, 202);
    let path = format!("/v1/commands/{}?content=post:3", mine["requestId"].as_str().unwrap());
    assert_eq!(service.send_as(&Signer::secret().token_of(8), "GET", &path, None).json()["status"], "unknown");
    // The same requestId by another user is another command.
    let theirs = service.send_as(&Signer::secret().token_of(8), "POST", "/v1/likes", Some(&mine));
    assert_eq!((theirs.status, theirs.header("idempotent-replayed")), (202, ""));
    let services = service.send_as(&seven, "POST", "/v1/likes", Some(&mine));
    assert_eq!((services.status, services.header("idempotent-replayed")), (202, "true"));
}

#[test]
fn keys_of_tokens_and_services_come_and_go_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Signer::ed25519(1), Signer::rsa());
    let settings = by_jwks(dir.path(), &[first.jwk("a")]);
    let service = start(&settings);
    let status = |credential: &str| service.send_as(credential, "GET", "/v1/users/7/likes?viewer=7", None).status;
    let of_user =
        |signer: &Signer, kid: &str| signer.token(&json!({ "alg": signer.algorithm(), "kid": kid }), &claims(7));
    let own = |credential: &str| service.send_as(credential, "GET", "/v1/users/7/likes", None).status;
    let (one, two) = (of_user(&first, "a"), of_user(&second, "b"));
    assert_eq!((own(&one), own(&two)), (200, 401));
    let file = dir.path().join("auth-jwks-file");
    fs::write(&file, jwks(&[first.jwk("a"), second.jwk("b")])).unwrap();
    wait_until("the second key", Duration::from_secs(10), || own(&two) == 200);
    assert_eq!(own(&one), 200);
    assert_eq!(own(&second.token_of(7)), 401, "of two keys a token has to name one");
    assert_eq!(own(&of_user(&second, "a")), 401, "by the other's name");
    fs::write(&file, "nonsense").unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!((own(&one), own(&two)), (200, 200), "the last valid keys count");
    fs::write(&file, jwks(&[second.jwk("b")])).unwrap();
    wait_until("the first key to go", Duration::from_secs(10), || own(&one) == 401);
    assert_eq!(own(&two), 200, "what was verified by a key that has gone is forgotten with it");

    let reads = key(&settings, &["reads"], &[]);
    wait_until("the service key", Duration::from_secs(10), || status(&reads) == 200);
    let file = fs::read_to_string(dir.path().join("keys.json")).unwrap();
    assert!(!file.contains(&reads) && !file.contains(&reads[20..]), "only a hash is kept");
    let wrong: String = format!("{}A", &reads[..reads.len() - 1]);
    assert!(wrong == reads || status(&wrong) == 401);
    assert_eq!((status("lk_"), status("lk_00_00"), status(&reads[..reads.len() - 1])), (401, 401, 401));
    let short = key(&settings, &["reads"], &["--expires-in=1s"]);
    wait_until("it to expire", Duration::from_secs(10), || status(&short) == 401);
    let list = String::from_utf8(settings.output(&["key", "list"]).stdout).unwrap();
    assert!(list.contains("a backend") && list.contains("reads") && !list.contains(&reads[12..]), "{list}");
    let id = &reads[3..19];
    assert!(settings.output(&["key", "revoke", id]).status.success());
    wait_until("it to be refused", Duration::from_secs(10), || status(&reads) == 401);
    assert!(!settings.output(&["key", "revoke", id]).status.success());
    let last = key(&settings, &["reads"], &[]);
    wait_until("another one", Duration::from_secs(10), || status(&last) == 200);
    fs::remove_file(dir.path().join("keys.json")).unwrap();
    wait_until("all to be refused with their file", Duration::from_secs(10), || status(&last) == 401);
}

#[test]
fn a_development_token_works_and_is_signed_only_with_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let settings = by_secret(dir.path());
    let service = start(&settings);
    let token = |arguments: &[&str]| String::from_utf8(settings.output(arguments).stdout).unwrap().trim().to_owned();
    let seven = token(&["token", "--user", "7"]);
    assert_eq!(service.send_as(&seven, "POST", "/v1/likes", Some(&like(1))).status, 202);
    is_unauthorized(&service.get_admin_as(&seven, "/metrics"), "a user's token on the admin port");
    is_unauthorized(&service.get_admin("/metrics"), "nobody on the admin port");
    assert_eq!(service.get_admin("/livez").status, 200);
    assert_eq!(service.get_admin_as(&token(&["token", "--admin"]), "/metrics").status, 200);
    let short = token(&["token", "--user", "7", "--for", "1s"]);
    assert_eq!(service.send_as(&short, "GET", "/v1/users/7/likes", None).status, 200);
    let other = tempfile::tempdir().unwrap();
    let refused = by_jwks(other.path(), &[Signer::rsa().jwk("a")]).output(&["token", "--user=7"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--auth-secret-file"));
}

#[test]
fn settings_that_would_be_unsafe_stop_the_start_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let open = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path());
    let weak = settings_in(dir.path()).guarded("auth-secret-file", "short-and-secret");
    let (oct, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cases: [(Settings, &str, &str); 14] = [
        (open.clone().arg("--listen=0.0.0.0:0"), "listen must be a loopback address", "0.0.0.0"),
        (open.clone().arg("--admin-listen=[::]:0"), "admin_listen must be a loopback address", "[::]"),
        (weak, "must hold at least 32 bytes", "short-and-secret"),
        (by_jwks(oct.path(), &[Signer::secret().jwk("a")]), "secret key", SECRET),
        (settings_in(empty.path()).guarded("auth-jwks-file", "{}"), "JWK set", "{}"),
        (
            open.clone().arg("--auth-secret-file=/nowhere/x").arg("--auth-issuer=i").arg("--auth-audience=a"),
            "cannot be read",
            "-",
        ),
        (open.clone().arg("--auth-secret-file=x").arg("--auth-issuer=i"), "auth_audience is needed", "-"),
        (open.clone().arg("--auth-secret-file=x").arg("--auth-jwks-file=y"), "exclude each other", "-"),
        (open.clone().arg("--likers=friends"), "likers must be", "friends"),
        (open.clone().arg("--limit-user=20"), "limit_user must be", "-"),
        (open.clone().arg("--trusted-proxies=10.0.0.0/40"), "trusted_proxies must be", "/40"),
        (open.clone().arg("--cors-origins=*"), "cors_origins must be", "-"),
        (open.clone().arg("--content-types=Post"), "content_types must be", "Post"),
        (open.clone().arg("--tls-cert-file=x"), "come together", "-"),
    ];
    for (settings, sentence, value) in cases {
        // An address is set once.
        let arguments = ["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
        let output = settings.output(if sentence.contains("listen must") { &arguments[..1] } else { &arguments });
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(sentence), "{sentence}: {said}");
        assert!(value == "-" || !said.contains(value), "the value is repeated: {said}");
    }
}

#[test]
fn lists_of_likers_are_for_whom_the_setting_says() {
    for (whom, expected) in [("public", [200, 200, 200]), ("signed-in", [401, 200, 200]), ("service", [401, 403, 200])]
    {
        let dir = tempfile::tempdir().unwrap();
        let settings = by_secret(dir.path()).arg(&format!("--likers={whom}"));
        let reads = key(&settings, &["reads"], &[]);
        let service = start(&settings);
        let seven = Signer::secret().token_of(7);
        let status = |credential: &str| service.send_as(credential, "GET", "/v1/contents/post/1/likers", None).status;
        assert_eq!([status(""), status(&seven), status(&reads)], expected, "{whom}");
    }
}

#[test]
fn only_contents_of_the_types_set_are_liked() {
    let dir = tempfile::tempdir().unwrap();
    let service = start(&Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path()).arg("--content-types=post,comment"));
    let mut body = like_of(7, 1);
    assert_eq!(service.post("/v1/likes", &body).status, 202);
    body["contentType"] = json!("video");
    let refused = service.post("/v1/likes", &body);
    assert_eq!((refused.status, &refused.json()["errors"][0]["pointer"]), (422, &json!("/contentType")));
    assert_eq!(service.send("PUT", "/v1/contents/video/1/like?viewer=7", &[], None).status, 400);
    assert_eq!(service.send("PUT", "/v1/contents/comment/1/like?viewer=7", &[], None).status, 202);
    assert_eq!(service.get("/v1/contents/video/1/likes").json()["count"], 0);
}

/// Sends 100 commands at once, and gives how many were accepted and what a refusal looked like.
fn hundred(
    service: &Service,
    credential: impl Fn(usize) -> String + Sync,
    body: impl Fn(usize) -> Value + Sync,
) -> (usize, Option<Answer>) {
    let answers = at_once(100, |sender| service.send_as(&credential(sender), "POST", "/v1/likes", Some(&body(sender))));
    let (accepted, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 202);
    assert!(refused.iter().all(|answer| answer.status == 429), "{refused:?}");
    (accepted.len(), refused.into_iter().next())
}

#[test]
fn a_limit_passes_exactly_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        by_secret(dir.path()).arg("--limit-user=20/1h").arg("--limit-address=60/1h").arg("--trusted-proxies=127.0.0.1");
    let service = start(&settings);
    let token_of = |user: i64| Signer::secret().token_of(user);
    // Of one user, on many contents.
    let (accepted, refused) = hundred(&service, |_| token_of(7), |sender| like(sender as u64 + 1));
    assert_eq!(accepted, 20);
    let refused = refused.unwrap();
    assert_eq!(refused.json()["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(refused.header("ratelimit-policy"), "\"user\";q=20;w=3600");
    assert!(refused.header("ratelimit").starts_with("\"user\";r=0;t="), "{:?}", refused.headers);
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((170..=180).contains(&wait), "{wait}");
    // Of one address: 60 in all, of which user 7 had 20.
    let (accepted, refused) = hundred(&service, |sender| token_of(100 + sender as i64), |_| like(1000));
    assert_eq!(accepted, 40);
    assert!(refused.unwrap().header("ratelimit-policy").starts_with("\"address\""));
    // What came through the proxy from elsewhere has its own bucket, and tells what is left of each.
    let authorization = format!("Bearer {}", token_of(500));
    let from = |address: &str, content: u64| {
        let headers =
            [("Content-Type", "application/json"), ("Authorization", &*authorization), ("X-Forwarded-For", address)];
        service.send("POST", "/v1/likes", &headers, Some(like(content).to_string().as_bytes()))
    };
    let answer = from("203.0.113.9", 1);
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert_eq!(answer.header("ratelimit-policy"), "\"address\";q=60;w=3600, \"user\";q=20;w=3600, \"pair\";q=6;w=60");
    assert_eq!(answer.header("ratelimit"), "\"address\";r=59;t=1, \"user\";r=19;t=1, \"pair\";r=5;t=1");
    assert_eq!(from("127.0.0.1", 2).status, 429);
    assert_eq!(from("2001:db8::1", 3).header("ratelimit").split(',').next(), Some("\"address\";r=59;t=1"));
    assert_eq!(from("2001:db8::ffff:1", 4).header("ratelimit").split(',').next(), Some("\"address\";r=58;t=1"));
    // A batch is charged by the command.
    let commands: Vec<Value> = (0..30).map(|content| like(2000 + content)).collect();
    let batch = json!({ "commands": commands }).to_string();
    let headers =
        [("Content-Type", "application/json"), ("Authorization", &*authorization), ("X-Forwarded-For", "198.51.100.1")];
    let answer = service.send("POST", "/v1/likes/batch", &headers, Some(batch.as_bytes())).json();
    let accepted = answer["results"].as_array().unwrap().iter().filter(|result| result["status"] == "accepted").count();
    assert_eq!(accepted, 17, "20 less the three before");
    // A backend sends for many from one address.
    let commands = key(&settings, &["commands"], &[]);
    wait_until("the key", Duration::from_secs(10), || {
        service.send_as(&commands, "POST", "/v1/likes", Some(&like_of(600, 1))).status == 202
    });
    let token = settings.output(&["token", "--admin"]);
    let metrics = service.get_admin_as(String::from_utf8(token.stdout).unwrap().trim(), "/metrics").text;
    for line in ["likewise_limited_total{limit=\"user\"} 93", "likewise_limited_total{limit=\"address\"} 61"] {
        assert!(metrics.lines().any(|known| known == line), "{line}");
    }
}

#[test]
fn a_thousand_sends_of_one_request_are_one_event() {
    let dir = tempfile::tempdir().unwrap();
    let settings = by_secret(dir.path());
    let service = start(&settings);
    let (seven, body) = (Signer::secret().token_of(7), like(1));
    let positions = std::sync::Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let answer = service.send_as(&seven, "POST", "/v1/likes", Some(&body));
                    match answer.status {
                        202 => drop(
                            positions.lock().unwrap().insert(answer.json()["position"].as_str().unwrap().to_owned()),
                        ),
                        409 => assert_eq!(answer.header("retry-after"), "3"),
                        _ => panic!("{} {}", answer.status, answer.text),
                    }
                }
            });
        }
    });
    assert_eq!(positions.into_inner().unwrap().len(), 1, "no two answers disagree");
    assert_eq!(events(&settings), 1);
    let mut other = body.clone();
    other["liked"] = json!(false);
    assert_eq!(service.send_as(&seven, "POST", "/v1/likes", Some(&other)).status, 422);
}
