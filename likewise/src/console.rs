//! What the operator's console shows beside the metrics: the top of the log, the hottest contents and dead letters.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{HttpResponse, http::Method};
use likewise_analyst::{
    Error,
    range::Range,
    reader::Pace,
    stream::{Entry, Stream},
};
use likewise_http::{Kind, Problem, Routes};
use likewise_storage::EventLog;
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::timeout};

/// Looked at no more often, however many look.
const FRESH: Duration = Duration::from_secs(1);
/// How long a look may take.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// The last events of all partitions.
const EVENTS: usize = 15;
const HOTTEST: usize = 10;
/// More dead letters than that are many.
const LETTERS: usize = 100;

/// What the console looks at.
pub(crate) struct Console {
    log: Arc<dyn EventLog>,
    queries: Option<Arc<likewise_query_api::State>>,
    seen: Mutex<Option<(Instant, Value)>>,
}

impl Console {
    pub(crate) fn new(log: &Arc<dyn EventLog>, queries: Option<Arc<likewise_query_api::State>>) -> Arc<Self> {
        Arc::new(Self { log: Arc::clone(log), queries, seen: Mutex::new(None) })
    }

    async fn state(&self) -> Result<Value, Error> {
        let mut seen = self.seen.lock().await;
        if let Some((at, state)) = &*seen
            && at.elapsed() < FRESH
        {
            return Ok(state.clone());
        }
        let state = self.look().await?;
        *seen = Some((Instant::now(), state.clone()));
        Ok(state)
    }

    async fn look(&self) -> Result<Value, Error> {
        let mut stream = Stream::new(&self.log, Range::default(), &Pace::beside_owners()).await?;
        stream.skip_to_last(EVENTS as u64);
        let mut entries = Vec::new();
        while let Some(entry) = stream.next().await? {
            entries.push(entry);
        }
        let newest = entries.len().saturating_sub(EVENTS);
        let event = |Entry { partition, record, event }: &Entry| {
            let mut shown =
                json!({ "partition": partition.get(), "offset": record.offset.get(), "at": record.timestamp });
            if let Ok(like) = event {
                shown["user"] = json!(like.user_id);
                shown["content"] = json!(like.content().to_string());
                shown["liked"] = json!(like.liked);
            }
            shown
        };
        let events: Vec<Value> = entries[newest..].iter().rev().map(event).collect();
        let hottest = self.queries.iter().flat_map(|queries| queries.hottest()).take(HOTTEST);
        let hottest: Vec<Value> =
            hottest.map(|(content, gained)| json!({ "content": content.to_string(), "gained": gained })).collect();
        let letters = self.log.dead_letters(0, LETTERS).await?.len();
        Ok(json!({ "events": events, "hottest": hottest, "deadLetters": letters, "deadLettersMax": LETTERS }))
    }
}

/// Adds what the console asks for.
pub(crate) fn routes(routes: &mut Routes, console: &Arc<Console>) {
    let console = Arc::clone(console);
    routes.add(Method::GET, "/console/state", move || {
        let console = Arc::clone(&console);
        async move {
            match timeout(LOOK_MAX, console.state()).await {
                Ok(Ok(state)) => Ok(HttpResponse::Ok().insert_header(("Cache-Control", "no-store")).json(state)),
                _ => Err(Problem::new(&Kind::UNAVAILABLE, "The log cannot be read.")),
            }
        }
    });
}
