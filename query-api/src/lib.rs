//! The query role: counts, statuses and lists, each with the prefix of the log that it reflects.
//!
//! [`Reads`] finds the cheapest source that is fresh enough; the other files are the resources. May depend on the
//! schema, the storage ports and the shared edge. Must never know how a like is folded, which adapter is behind a
//! port, or the other roles.

#![forbid(unsafe_code)]

mod contents;
mod cursor;
mod flights;
mod lists;
mod live;
mod local;
mod never;
mod pages;
mod reads;
mod reconcile;
mod recorded;
mod stream;
mod trending;
mod upkeep;

use std::{pin::pin, sync::Arc, task::Poll, time::Duration};

use actix_web::{http::Method, web};
use futures::poll;
use likewise_http::{Audience, Concurrency, Kind, Params, Problem, Routes, retry_after};
use likewise_schema::{Content, Position, Timestamp};
use tokio::sync::{Semaphore, watch};
use utoipa::OpenApi;

pub use self::{
    cursor::Secret,
    reads::{After, Item, Ports, ReadError, Reads},
};

/// By when a query must be answered, a granted wait apart.
const QUERY_DEADLINE: Duration = Duration::from_millis(500);
/// Reads of counts and statuses under way at once in one process.
const READS_MAX: usize = 2048;
/// Lists under way at once in one process.
const LISTS_MAX: usize = 128;
/// Reads under way at once that were granted a wait.
const WAITING_MAX: usize = 1024;
/// Streams open at once in one process.
const STREAMS_MAX: usize = 20_000;
const RETRY: Duration = Duration::from_secs(1);

/// What the handlers share.
pub struct State {
    reads: Arc<Reads>,
    secret: Secret,
    /// Whom lists of likers are for.
    likers: Audience,
    concurrency: Concurrency,
    lists: Concurrency,
    waiting: Concurrency,
    streams: Arc<Semaphore>,
    /// Whether streams are to end.
    ended: watch::Sender<bool>,
}

impl State {
    /// Handlers' state around the role; `secret` signs cursors, and is shared by replicas; lists of likers are for
    /// `likers`.
    pub fn new(ports: Ports, secret: Secret, likers: Audience) -> Self {
        Self {
            reads: Arc::new(Reads::new(ports)),
            secret,
            likers,
            concurrency: Concurrency::new(READS_MAX),
            lists: Concurrency::new(LISTS_MAX),
            waiting: Concurrency::new(WAITING_MAX),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            ended: watch::Sender::new(false),
        }
    }

    /// Keeps the sources of reads good; runs as long as the role does.
    pub async fn keep_up(&self) {
        Arc::clone(&self.reads).keep_up().await;
    }

    /// The contents that gained most likes in the last hour and how many, the busiest first, as far as they are known.
    pub fn hottest(&self) -> Vec<(Content, i64)> {
        self.reads.trending.hottest()
    }

    /// Ends the streams, so that a server that stops need not wait for them.
    pub fn end_streams(&self) {
        self.ended.send_replace(true);
    }

    /// The class that a read's turn is taken in. Those that may wait for seconds have their own, so that they cannot
    /// keep the others out.
    fn class<'a>(&'a self, usual: &'a Concurrency, after: &After) -> &'a Concurrency {
        if after.wait.is_zero() { usual } else { &self.waiting }
    }
}

/// Adds the role's routes.
pub fn routes(routes: &mut Routes, state: &Arc<State>) {
    let state = web::Data::from(Arc::clone(state));
    macro_rules! handler {
        ($handler:path) => {{
            let state = state.clone();
            move |request| $handler(state.clone(), request)
        }};
    }
    routes.add(Method::GET, "/v1/contents/{contentType}/{contentId}/likes", handler!(contents::one));
    routes.add(Method::GET, "/v1/likes", handler!(contents::many));
    routes.add(Method::GET, "/v1/likes/stream", handler!(stream::stream));
    routes.add(Method::GET, "/v1/trending", handler!(trending::trending));
    routes.add(Method::GET, "/v1/contents/{contentType}/{contentId}/likers", handler!(lists::likers));
    routes.add(Method::GET, "/v1/users/{userId}/likes", handler!(lists::likes));
}

/// The role's part of the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(contents::one, contents::many, lists::likers, lists::likes, stream::stream, trending::trending))]
pub struct Api;

/// `after` (repeatable) and `wait` of a read.
fn after(params: &mut Params<'_>) -> After {
    let positions: Vec<Position> = params.all("after");
    let wait = params.number("wait", 0..=5, 0);
    After { positions, wait: Duration::from_secs(wait as u64) }
}

/// Runs a read within its deadline.
async fn within<T>(after: &After, read: impl Future<Output = Result<T, ReadError>>) -> Result<T, Problem> {
    let away = |what: &str| Problem::new(&Kind::UNAVAILABLE, what).with_retry_after(RETRY);
    let mut read = pin!(read);
    // What is known at once needs no timer.
    let outcome = match poll!(&mut read) {
        Poll::Ready(outcome) => Ok(outcome),
        Poll::Pending => tokio::time::timeout(QUERY_DEADLINE + after.wait, read).await,
    };
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ReadError)) => Err(away("The stores that know the answer are away.")),
        Err(_) => Err(away("The stores that know the answer did not give it in time.")),
    }
}

fn busy() -> Problem {
    Problem::from(&Kind::REDUCED_CAPACITY).with_retry_after(retry_after())
}

/// `"stale":true` with `asOf`, or nothing.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Age {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    as_of: Option<Timestamp>,
}

impl From<Option<Timestamp>> for Age {
    fn from(as_of: Option<Timestamp>) -> Self {
        Self { stale: as_of.is_some(), as_of }
    }
}

/// What the unit tests name.
#[cfg(test)]
mod examples {
    use likewise_schema::{Content, Offset, Partition, Timestamp};
    use likewise_storage::records::Claim;

    pub(crate) fn post(id: i64) -> Content {
        format!("post:{id}").parse().expect("a content")
    }

    /// Of the first partition, up to an offset.
    pub(crate) fn claim(next_offset: i64) -> Claim {
        Claim {
            partition: Partition::default(),
            next_offset: Offset::new(next_offset).expect("an offset"),
            heard_at: Timestamp::saturating_from_millis(0),
            next_event_at: None,
            recovering: false,
        }
    }
}
