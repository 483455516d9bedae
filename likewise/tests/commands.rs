//! The command side on real servers: limits that processes share, one request sent everywhere, a process that stands
//! still.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use likewise_testkit::{
    Answer, Service, Settings, at_once, audit, like,
    rig::{Own, Rig},
    tokens::Signer,
    wait_until,
};
use serde_json::json;

const BINARY: &str = env!("CARGO_BIN_EXE_likewise");

/// A command API with authentication.
fn guarded(rig: &Rig, folder: &str, arguments: &[&str]) -> Settings {
    let settings = rig.settings(folder).role("command-api").guarded_by_secret();
    arguments.iter().fold(settings, |settings, argument| settings.arg(argument))
}

/// How often a process let a command in without Redis.
fn on_its_own(service: &Service) -> f64 {
    service.metric_as(&Signer::secret().admin_token(), "likewise_local_admissions_total", "")
}

/// Sends commands at once, by turns to each service, and counts the answers by status.
fn by_turns(
    services: &[&Service],
    senders: usize,
    send: impl Fn(&Service, usize) -> Answer + Sync,
) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for answer in at_once(senders, |sender| send(services[sender % services.len()], sender)) {
        *counts.entry(answer.status).or_insert(0) += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_limits_exactly_and_by_shares_while_redis_is_away() {
    let mut rig = Rig::start(BINARY, Own { redis: true, ..Own::default() }).await;
    let arguments = ["--limit-user=20/1h", "--limit-address=off"];
    let (one, two) = (guarded(&rig, "one", &arguments).start(), guarded(&rig, "two", &arguments).start());
    let services = [&one, &two];
    let send = |user: i64| {
        let token = Signer::secret().token_of(user);
        move |service: &Service, sender: usize| {
            service.send_as(&token, "POST", "/v1/likes", Some(&like(sender as u64 + 1)))
        }
    };
    let answers = by_turns(&services, 100, send(7));
    assert_eq!(answers, BTreeMap::from([(202, 20), (429, 80)]), "100 at once by two processes, 20 of one user");

    // Each knows of the other by now, and gives out half while Redis is away.
    thread::sleep(Duration::from_millis(2500));
    rig.redis().kill();
    let answers = by_turns(&services, 100, send(8));
    println!("without Redis: {answers:?} (2 x 10 of 20)");
    assert_eq!(answers, BTreeMap::from([(202, 20), (429, 80)]));
    rig.redis().start();
    let connected = || {
        let answer = one.send_as(&Signer::secret().token_of(9), "POST", "/v1/likes", Some(&like(1000)));
        answer.header("ratelimit-policy").contains("\"user\";q=20;w=3600")
    };
    let took = wait_until("the shared buckets", Duration::from_secs(30), connected);
    println!("Redis is used again {took:?} after it was back");
    let answers = by_turns(&services, 100, send(10));
    assert_eq!(answers, BTreeMap::from([(202, 20), (429, 80)]), "the shared buckets count again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_sent_everywhere_at_once_is_one_event_and_one_answer() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let (one, two) = (guarded(&rig, "one", &[]).start(), guarded(&rig, "two", &[]).start());
    let projector = rig.projector("a");
    let (token, body) = (Signer::secret().token_of(7), like(1));
    // While a process has no connection to Redis yet, it knows its own requests only.
    for service in [&one, &two] {
        assert_eq!(service.send_as(&token, "POST", "/v1/likes", Some(&like(2))).status, 202);
    }
    let positions = Mutex::new(std::collections::BTreeSet::new());
    let send = |service: &Service, _: usize| {
        let mut answer = service.send_as(&token, "POST", "/v1/likes", Some(&body));
        for _ in 0..49 {
            if answer.status == 202 {
                positions.lock().expect("no panic").insert(answer.json()["position"].to_string());
            } else {
                assert_eq!((answer.status, answer.header("retry-after")), (409, "3"), "{}", answer.text);
            }
            answer = service.send_as(&token, "POST", "/v1/likes", Some(&body));
        }
        answer
    };
    let answers = by_turns(&[&one, &two], 20, send);
    println!("1,000 sends of one request by two processes, the last 20: {answers:?}");
    let positions = positions.into_inner().expect("no panic").len();
    // On a machine so busy that Redis takes over 50 ms, each process knows its own requests: two events, one effect.
    let alone = on_its_own(&one) + on_its_own(&two);
    let most = if alone > 0.0 { 2 } else { 1 };
    println!("{positions} positions; {alone} times a process was on its own");
    assert!((1..=most).contains(&positions), "answers disagree: {positions} positions, at most {most}");
    let events = audit::read_topic(&rig.places().kafka, &rig.name).len() - 2;
    assert_eq!(events, positions, "an event for each position beside the first two");
    drop(projector);
}

/// A process that was stopped sheds what waited meanwhile: nobody gets a success that is too late to count on, but for
/// the answer that each of its two workers was just writing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_still_has_no_late_success() {
    let rig = Rig::start(BINARY, Own::default()).await;
    let (api, projector) = (rig.role("command-api", "api"), rig.projector("a"));
    // What a command may take, and as much again for a busy machine.
    let late = Duration::from_millis(1500) + Duration::from_millis(1000);
    let over = AtomicBool::new(false);
    let [accepted, tardy, unknown, refused] = [const { AtomicU64::new(0) }; 4];
    let (before, after) = thread::scope(|scope| {
        for client in 0..16_u64 {
            let (api, over, accepted, tardy) = (&api, &over, &accepted, &tardy);
            let (unknown, refused) = (&unknown, &refused);
            scope.spawn(move || {
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    number += 1;
                    let mut body = like(number);
                    body["userId"] = json!(client + 1);
                    let sent = Instant::now();
                    let headers = [("Content-Type", "application/json")];
                    let answer = api.try_send("POST", "/v1/likes", &headers, Some(body.to_string().as_bytes()));
                    let took = sent.elapsed();
                    // A connection that seemed idle while the process stood still is closed: nobody was told anything.
                    let Ok(answer) = answer else {
                        unknown.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    let counter = match (answer.status, answer.json()["outcome"].as_str()) {
                        (202, _) if took < late => accepted,
                        (202, _) => tardy,
                        (503, Some("unknown")) => unknown,
                        (503, Some("rejected")) => refused,
                        _ => panic!("{} {}", answer.status, answer.text),
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let rate = || {
            let before = accepted.load(Ordering::Relaxed);
            thread::sleep(Duration::from_secs(1));
            accepted.load(Ordering::Relaxed) - before
        };
        thread::sleep(Duration::from_secs(1));
        let before = rate();
        api.signal("STOP");
        thread::sleep(Duration::from_secs(10));
        api.signal("CONT");
        let returned = Instant::now();
        let mut after = rate();
        while after * 2 < before && returned.elapsed() < Duration::from_secs(6) {
            after = rate();
        }
        println!("{before}/s before, {after}/s within {:?} after it went on (2 s)", returned.elapsed());
        over.store(true, Ordering::Relaxed);
        (before, after)
    });
    println!("{accepted:?} accepted, {tardy:?} too late, {unknown:?} unknown, {refused:?} refused");
    let tardy = tardy.into_inner();
    assert!(tardy <= 2, "{tardy} successes were late");
    assert!(after * 2 >= before, "{before}/s before, {after}/s after");
    assert!(unknown.into_inner() + refused.into_inner() > 0, "nothing was sent while it stood still");
    drop(projector);
}
