//! What the operator's console shows beside the metrics: the top of the log, the hottest contents and dead letters.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{HttpResponse, http::Method};
use likewise_http::{Kind, Problem, Routes};
use likewise_schema::{LikeToggled, Partition};
use likewise_storage::{EventLog, StoreError, log::LogRecord};
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::timeout};

use crate::merge::Merge;

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

    async fn state(&self) -> Result<Value, StoreError> {
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

    async fn look(&self) -> Result<Value, StoreError> {
        let count = self.log.partitions();
        let mut merge = Merge::new(&self.log, count.all(), Some(EVENTS as u64)).await?;
        let mut events = Vec::new();
        while let Some(found) = merge.next().await? {
            events.push(found);
        }
        let newest = events.len().saturating_sub(EVENTS);
        let event = |(partition, record): &(Partition, LogRecord)| {
            let mut event =
                json!({ "partition": partition.get(), "offset": record.offset.get(), "at": record.timestamp });
            let decoded =
                LikeToggled::decode(*partition, count, record.key.as_deref(), record.value.as_deref(), &record.headers);
            if let Ok(like) = decoded {
                event["user"] = json!(like.user_id);
                event["content"] = json!(like.content().to_string());
                event["liked"] = json!(like.liked);
            }
            event
        };
        let events: Vec<Value> = events[newest..].iter().rev().map(event).collect();
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
