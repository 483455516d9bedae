//! Events as commands to a service: a load that really happened, under new requestIds.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use likewise_schema::LikeToggled;
use serde_json::json;
use tokio::sync::mpsc;
use ureq::{Agent, http::Response};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::Source;
use crate::Failure;

/// Connections, each with one command under way. A pair has one of them, so that its commands keep their order.
const SENDERS: usize = 64;
/// Commands that wait for a connection.
const WAITING: usize = 256;
/// How long a command is tried when there is no answer, or a refusal that passes.
const TRIED_MAX: Duration = Duration::from_secs(120);
/// What a refusal without `Retry-After` is waited for, and what any is waited for at most.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Default)]
pub(super) struct Told {
    accepted: u64,
    /// Answers that asked to come again later.
    later: u64,
    refused: u64,
    /// The first refusal.
    reason: Option<String>,
    /// Of each accepted command, in microseconds.
    latencies: Vec<u32>,
    took: Duration,
}

impl Told {
    /// How many commands were refused for good.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// The latency, in milliseconds, that so many of the accepted commands had at most.
    fn quantile(&self, share: f64) -> f64 {
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let index = (latencies.len() as f64 * share) as usize;
        let micros = latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default();
        f64::from(micros) / 1000.0
    }

    pub(super) fn json(&self) -> serde_json::Value {
        json!({
            "accepted": self.accepted,
            "refused": self.refused,
            "later": self.later,
            "firstRefusal": self.reason,
            "seconds": self.took.as_secs_f64(),
            "p50Millis": self.quantile(0.5),
            "p99Millis": self.quantile(0.99),
        })
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} commands accepted in {:.1} s (p50 {:.1} ms, p99 {:.1} ms), {} refused, {} times asked to come later",
            self.accepted,
            self.took.as_secs_f64(),
            self.quantile(0.5),
            self.quantile(0.99),
            self.refused,
            self.later
        )?;
        self.reason.iter().try_for_each(|reason| write!(f, "; the first refusal: {reason}"))
    }
}

/// Sends every event of `source` to the service at `base`.
pub(super) async fn send(source: &mut Source, base: &str, credential: Option<&Path>) -> Result<Told, Failure> {
    let credential = match credential {
        Some(file) => {
            let text = std::fs::read_to_string(file);
            let text = text.map_err(|e| format!("{} cannot be read ({e})", file.display()))?;
            Some(format!("Bearer {}", text.trim()))
        }
        None => None,
    };
    let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(ANSWER_MAX));
    let agent: Agent = config.max_idle_connections_per_host(SENDERS).build().into();
    let sender = Sender { agent, url: format!("{}/v1/likes", base.trim_end_matches('/')), credential };
    let given_up = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let (queues, threads): (Vec<_>, Vec<_>) = (0..SENDERS)
        .map(|_| {
            let (queue, events) = mpsc::channel(WAITING);
            let (sender, given_up) = (sender.clone(), Arc::clone(&given_up));
            (queue, thread::spawn(move || sender.run(events, &given_up)))
        })
        .unzip();
    while !given_up.load(Ordering::Relaxed)
        && let Some(entry) = source.next().await?
    {
        // What is no event was never a command.
        let Ok(event) = entry.event else { continue };
        let pair = event.pair();
        let index = xxh3_64(format!("{} {}", pair.content, pair.user).as_bytes()) as usize % SENDERS;
        if queues[index].send(event).await.is_err() {
            break;
        }
    }
    drop(queues);
    let mut told = Told::default();
    let joined = tokio::task::spawn_blocking(|| threads.into_iter().map(thread::JoinHandle::join).collect::<Vec<_>>());
    for one in joined.await? {
        let one = one.map_err(|_| "a sender failed")??;
        told.accepted += one.accepted;
        told.later += one.later;
        told.refused += one.refused;
        told.reason = told.reason.or(one.reason);
        told.latencies.extend(one.latencies);
    }
    told.took = started.elapsed();
    Ok(told)
}

#[derive(Clone)]
struct Sender {
    agent: Agent,
    url: String,
    credential: Option<String>,
}

impl Sender {
    fn run(&self, mut events: mpsc::Receiver<LikeToggled>, given_up: &AtomicBool) -> Result<Told, Failure> {
        let mut told = Told::default();
        while let Some(event) = events.blocking_recv() {
            if given_up.load(Ordering::Relaxed) {
                break;
            }
            if let Err(failure) = self.send(&event, &mut told) {
                given_up.store(true, Ordering::Relaxed);
                return Err(failure);
            }
        }
        Ok(told)
    }

    /// One command, until it is answered for good.
    fn send(&self, event: &LikeToggled, told: &mut Told) -> Result<(), Failure> {
        let body = json!({
            "requestId": Uuid::now_v7().to_string(),
            "userId": event.user_id,
            "contentType": event.content_type,
            "contentId": event.content_id,
            "liked": event.liked,
        })
        .to_string();
        let began = Instant::now();
        loop {
            let sent = Instant::now();
            let mut request = self.agent.post(&self.url).header("Content-Type", "application/json");
            if let Some(credential) = &self.credential {
                request = request.header("Authorization", credential);
            }
            let wait = match request.send(body.as_bytes()) {
                Ok(answer) if answer.status().is_success() => {
                    drop(answer.into_body().read_to_vec());
                    told.accepted += 1;
                    told.latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
                    return Ok(());
                }
                Ok(answer) if [409, 429, 503].contains(&answer.status().as_u16()) => {
                    told.later += 1;
                    let wait = retry_after(&answer);
                    drop(answer.into_body().read_to_vec());
                    wait
                }
                Ok(mut answer) => {
                    told.refused += 1;
                    let status = answer.status().as_u16();
                    let text = answer.body_mut().read_to_string().unwrap_or_default();
                    let problem: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                    let detail = problem["detail"].as_str().or(problem["title"].as_str()).unwrap_or("no reason given");
                    if status == 401 || status == 403 || status == 404 {
                        return Err(format!("{} refuses commands: {status}, {detail}", self.url).into());
                    }
                    told.reason.get_or_insert_with(|| format!("{status}, {detail}"));
                    return Ok(());
                }
                Err(error) if began.elapsed() > TRIED_MAX => {
                    return Err(format!("{} does not answer ({error})", self.url).into());
                }
                Err(ureq::Error::BadUri(_) | ureq::Error::Http(_)) => {
                    return Err(format!("{} is not an address of a service", self.url).into());
                }
                Err(_) => RETRY,
            };
            if began.elapsed() > TRIED_MAX {
                told.refused += 1;
                told.reason.get_or_insert_with(|| "put off for two minutes".into());
                return Ok(());
            }
            thread::sleep(wait.min(RETRY_MAX));
        }
    }
}

fn retry_after<T>(answer: &Response<T>) -> Duration {
    let seconds = answer.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(RETRY, Duration::from_secs)
}
