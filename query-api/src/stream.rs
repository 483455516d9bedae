//! Counts as they change, as Server-Sent Events.

use std::{collections::BTreeMap, fmt::Write, sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header,
    web::{self, Bytes},
};
use futures::{FutureExt, StreamExt, stream};
use likewise_http::{Params, Problem};
use likewise_schema::{Content, Offset, Partition, Position};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};

use crate::{
    After, Item, State, busy,
    contents::Likes,
    live::{Subscription, Told, WATCHED_MAX},
    within,
};

/// Each content is told at most so often.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a stream may be silent.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How soon a client that lost its stream opens another one, in milliseconds.
const RETRY_MS: u32 = 2000;
/// How long a client that comes again waits for what it has already seen.
const WAIT_FOR_SEEN: Duration = Duration::from_secs(1);

/// Counts of up to 100 contents, as they change: first `event: snapshot` with all of them, then `event: count` for each
/// that changed. Intermediate values may be left out, the last never is.
#[utoipa::path(get, path = "/v1/likes/stream", tag = "queries",
    params(("content" = Vec<String>, Query, description = "`post:42`; 1 to 100"),
           ("Last-Event-ID" = Option<String>, Header, description = "What the client has seen: the snapshot reflects it")),
    responses((status = 200, content_type = "text/event-stream", description = "A stream of events"),
              (status = 400, description = "A parameter is not valid"),
              (status = 503, description = "The truth cannot be reached, or there are too many streams")))]
pub(crate) async fn stream(state: web::Data<State>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut params = Params::of(&request);
    let asked: Vec<Content> = params.all("content");
    if asked.is_empty() || asked.len() > WATCHED_MAX {
        params.fault("content", "must be given 1 to 100 times");
    }
    params.finish()?;
    let mut contents = Vec::with_capacity(asked.len());
    for content in asked {
        if !contents.contains(&content) {
            contents.push(content);
        }
    }
    let permit = Arc::clone(&state.streams).try_acquire_owned().map_err(|_| busy())?;
    let after = seen(&request);
    // Watched before it is read, so that no change falls in between.
    let subscription = state.reads.live.watch(contents);
    let turn = state.class(&state.concurrency, &after).enter().await.map_err(|_| busy())?;
    let items = within(&after, state.reads.items(subscription.contents(), None, &after)).await?;
    drop(turn);
    let mut open = Open {
        subscription,
        told: BTreeMap::new(),
        positions: BTreeMap::new(),
        quiet_until: Instant::now(),
        _permit: permit,
    };
    let first = open.snapshot(items);
    let mut ended = state.ended.subscribe();
    let end = async move {
        let _the_process_ends = ended.wait_for(|ended| *ended).await;
    };
    let events = stream::once(std::future::ready(first)).chain(stream::unfold(open, |mut open| async move {
        let event = open.next().await;
        Some((event, open))
    }));
    let body = events.take_until(end.boxed_local()).map(Ok::<_, actix_web::Error>);
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(body))
}

/// The positions of the last event that the client saw. What is none of ours is ignored: it only makes answers fresher.
fn seen(request: &HttpRequest) -> After {
    let last = request.headers().get("last-event-id").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let positions: Vec<Position> = last.split(',').take(WATCHED_MAX).filter_map(|text| text.parse().ok()).collect();
    let wait = if positions.is_empty() { Duration::ZERO } else { WAIT_FOR_SEEN };
    After { positions, wait }
}

/// A stream under way.
struct Open {
    subscription: Subscription,
    /// What the client was told.
    told: BTreeMap<Content, Told>,
    /// What it has seen of each partition.
    positions: BTreeMap<Partition, Offset>,
    /// What changes often is not told too often.
    quiet_until: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn snapshot(&mut self, items: Vec<Item>) -> Bytes {
        for item in &items {
            self.see(item.content, Told { count: item.count, claim: item.claim, as_of: item.as_of });
        }
        let items: Vec<Likes> = items.into_iter().map(Likes::from).collect();
        let mut text = format!("retry: {RETRY_MS}\n");
        self.event(&mut text, "snapshot", &serde_json::json!({ "items": items }));
        text.into()
    }

    fn see(&mut self, content: Content, told: Told) {
        self.told.insert(content, told);
        if let Some(last) = told.claim.next_offset.previous() {
            let seen = self.positions.entry(told.claim.partition).or_insert(last);
            *seen = last.max(*seen);
        }
    }

    /// The next changes, or a sign of life.
    async fn next(&mut self) -> Bytes {
        loop {
            sleep_until(self.quiet_until).await;
            let Ok(changes) = tokio::time::timeout(HEARTBEAT, self.subscription.next()).await else {
                return Bytes::from_static(b": alive\n\n");
            };
            let mut text = String::new();
            for (content, told) in changes {
                let is_news =
                    |known: &Told| known.claim.next_offset <= told.claim.next_offset && told.differs_from(known);
                if self.told.get(&content).is_none_or(is_news) {
                    self.see(content, told);
                    let Told { count, claim, as_of } = told;
                    let likes = Likes::from(Item { content, count, liked: None, claim, as_of });
                    self.event(&mut text, "count", &likes);
                }
            }
            if !text.is_empty() {
                self.quiet_until = Instant::now() + PAUSE;
                return text.into();
            }
        }
    }

    fn event(&self, text: &mut String, name: &str, data: &impl serde::Serialize) {
        let position = |(partition, offset): (&Partition, &Offset)| {
            Position { partition: *partition, offset: *offset }.to_string()
        };
        let id: Vec<String> = self.positions.iter().map(position).collect();
        let data = serde_json::to_string(data).unwrap_or_default();
        let _a_string_takes_all = write!(text, "event: {name}\nid: {}\ndata: {data}\n\n", id.join(","));
    }
}
