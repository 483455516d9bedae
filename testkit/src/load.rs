//! Clients that like and unlike, send some commands twice, and keep what they were told.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::Service;

/// How often a command is sent until it is answered for certain.
const TRIES_MAX: usize = 400;
const TRY_AGAIN: Duration = Duration::from_millis(25);
/// Commands of one batch.
const BATCH: usize = 100;

/// What is known of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// A sender was told that the log has it.
    pub accepted: bool,
    /// A sender got no certain answer.
    pub unknown: bool,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Commands in all.
    pub commands: usize,
    /// Clients at once.
    pub clients: usize,
    /// Users, from 1 on.
    pub users: u64,
    /// Contents, from 1 on. A third of the commands is for `post:1`.
    pub contents: u64,
    /// What the run's choices follow from.
    pub seed: u64,
}

/// What was told of each requestId, and how many commands are done.
#[derive(Debug, Default)]
pub struct History {
    told: Mutex<BTreeMap<String, Told>>,
    done: AtomicUsize,
}

impl History {
    /// How many commands are done.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// A copy of what was told.
    pub fn told(&self) -> BTreeMap<String, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many were accepted.
    pub fn accepted(&self) -> usize {
        self.told().values().filter(|told| told.accepted).count()
    }

    /// How many outcomes were unknown at some time.
    pub fn unknown(&self) -> usize {
        self.told().values().filter(|told| told.unknown).count()
    }

    fn note(&self, id: &str, change: impl Fn(&mut Told)) {
        change(self.told.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_default());
    }

    /// What contradicts a log with these keys: acknowledged and not there, or refused for certain and there.
    pub fn contradictions(&self, is_in_log: impl Fn(&str) -> bool) -> Vec<String> {
        let wrong = |(id, told): (&String, &Told)| {
            let is_there = is_in_log(id);
            if told.accepted && !is_there {
                return Some(format!("{id} was acknowledged and is not in the log"));
            }
            let refused = !told.accepted && !told.unknown;
            (refused && is_there).then(|| format!("{id} was refused for certain and is in the log"))
        };
        self.told().iter().filter_map(wrong).collect()
    }
}

/// Numbers that follow from a seed (xorshift64*, Vigna 2016).
#[derive(Clone, Copy, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}

impl Load {
    /// Sends all of it through `services`, by turns. One in ten commands is sent again later.
    pub fn run(&self, services: &[Service], history: &History) {
        thread::scope(|scope| {
            for client in 0..self.clients {
                scope.spawn(move || self.client(client, services, history));
            }
        });
    }

    /// Sends it all again and again until `over`.
    pub fn run_until(&self, over: &AtomicBool, services: &[Service], history: &History) {
        while !over.load(Ordering::Relaxed) {
            self.run(services, history);
        }
    }

    fn client(&self, client: usize, services: &[Service], history: &History) {
        let mut dice = Dice::new(self.seed.wrapping_add(client as u64 + 1));
        let mut sent: Vec<Value> = Vec::new();
        for number in 0..self.commands / self.clients {
            let body = if !sent.is_empty() && dice.below(10) == 0 {
                sent[dice.below(sent.len() as u64) as usize].clone()
            } else {
                let content = if dice.below(3) == 0 { 1 } else { 1 + dice.below(self.contents) };
                let body = json!({
                    "requestId": uuid::Uuid::now_v7().to_string(),
                    "userId": 1 + dice.below(self.users),
                    "contentType": "post",
                    "contentId": content,
                    "liked": dice.below(3) > 0,
                });
                sent.push(body.clone());
                body
            };
            send(services, client + number, &body, history);
            history.done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Makes a user like posts, in batches; all of it is accepted.
pub fn like(service: &Service, user: u64, posts: impl IntoIterator<Item = u64>) {
    let like = |post| {
        let id = uuid::Uuid::now_v7().to_string();
        json!({ "requestId": id, "userId": user, "contentType": "post", "contentId": post, "liked": true })
    };
    let commands: Vec<Value> = posts.into_iter().map(like).collect();
    for commands in commands.chunks(BATCH) {
        let answer = service.post("/v1/likes/batch", &json!({ "commands": commands }));
        assert_eq!(answer.status, 200, "{}", answer.text);
        let results = answer.json()["results"].as_array().cloned().unwrap_or_default();
        let is_accepted = |result: &Value| result["status"] == "accepted";
        assert!(results.len() == commands.len() && results.iter().all(is_accepted), "{}", answer.text);
    }
}

/// The path of a feed of posts.
pub fn feed(contents: &[u64]) -> String {
    let contents: Vec<String> = contents.iter().map(|content| format!("content=post:{content}")).collect();
    format!("/v1/likes?{}", contents.join("&"))
}

/// Reads feeds of 20 contents for random viewers until `is_over`, so that the cache is filled while it changes. Gives how
/// many reads were answered.
pub fn read(services: &[Service], load: Load, is_over: impl Fn() -> bool) -> usize {
    let mut dice = Dice::new(load.seed ^ 0x5ead);
    let mut answered = 0;
    for number in 0.. {
        if is_over() {
            break;
        }
        let others = (0..20).map(|_| 1 + dice.below(load.contents));
        let contents: Vec<u64> = std::iter::once(1).chain(others).collect();
        let path = format!("{}&viewer={}", feed(&contents), 1 + dice.below(load.users));
        if let Ok(answer) = services[number % services.len()].try_send("GET", &path, &[], None) {
            assert!([200, 503].contains(&answer.status), "a read was answered {} {}", answer.status, answer.text);
            answered += usize::from(answer.status == 200);
        }
    }
    answered
}

/// Reads every content for `viewers` viewers once through each service, so that the cache holds an entry of each.
pub fn read_each(services: &[Service], load: Load, viewers: u64) {
    let contents: Vec<u64> = (1..=load.contents).collect();
    for service in services {
        for (viewer, chunk) in (1..=viewers).flat_map(|viewer| contents.chunks(100).map(move |chunk| (viewer, chunk))) {
            let answer = service.get(&format!("{}&viewer={viewer}", feed(chunk)));
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
    }
}

/// Sends one command until it is answered for certain, to the next service after each try.
fn send(services: &[Service], first: usize, body: &Value, history: &History) {
    let id = body["requestId"].as_str().unwrap_or_default();
    // A sender that dies here was told nothing.
    history.note(id, |_| {});
    for attempt in 0..TRIES_MAX {
        let headers = [("Content-Type", "application/json")];
        let service = &services[(first + attempt) % services.len()];
        match service.try_send("POST", "/v1/likes", &headers, Some(body.to_string().as_bytes())) {
            Ok(answer) if answer.status == 202 => return history.note(id, |told| told.accepted = true),
            Ok(answer) if answer.status == 429 => return,
            Ok(answer) if answer.status == 503 => {
                let outcome = answer.json()["outcome"].clone();
                history.note(id, |told| told.unknown |= outcome != "rejected");
            }
            Ok(answer) if answer.status == 409 => history.note(id, |told| told.unknown = true),
            Ok(answer) => panic!("a command was answered {} {}", answer.status, answer.text),
            Err(_) => history.note(id, |told| told.unknown = true),
        }
        thread::sleep(TRY_AGAIN);
    }
}
