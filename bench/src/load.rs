//! The load generator: HTTP/1.1 over kept connections, as small as it can be, since it shares the machine.
//!
//! Open loop: request i is due at start + i / rate whatever became of the others, and its latency counts from then, so
//! that a stall of the server is seen by all requests that fell into it.

use std::{
    io::{Error, Result},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Args;
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

/// Contents that likes are spread over.
pub(crate) const CONTENTS: u64 = 100_000;

/// Contents that are read.
const CONTENTS_READ: u64 = 1000;

#[derive(Args)]
pub(crate) struct Options {
    /// Where the service listens, such as 127.0.0.1:8080.
    address: String,
    /// Connections that are kept.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// For how long.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Likes a second, sent on a fixed schedule; without it each connection sends its next like when one is answered.
    #[arg(long)]
    rate: Option<f64>,
    /// The first like's number: likes of one number are one pair.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

/// Runs one load and prints it.
pub(crate) async fn print(options: &Options) -> Result<()> {
    let plan = Plan {
        connections: options.connections,
        time: Duration::from_secs(options.seconds),
        pace: options.rate.map_or(Pace::Closed, Pace::Open),
        requests: Requests::Likes {
            first: options.first,
            visible_every: options.rate.map_or(0, |rate| (rate / 100.0) as u64),
            on_one_post: 0.0,
        },
    };
    let outcome = run(&options.address, plan).await?;
    println!("{:.0}/s accepted, {} refused", outcome.rate(), outcome.refused);
    println!("accepted  {}", quantiles(&outcome.latency));
    println!("visible   {}", quantiles(&outcome.visible));
    Ok(())
}

/// A histogram of microseconds in a line.
pub(crate) fn quantiles(histogram: &Histogram<u64>) -> String {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    format!(
        "p50 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1} ms",
        at(0.5),
        at(0.99),
        at(0.999),
        histogram.max() as f64 / 1000.0
    )
}

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Each connection sends its next request when the last is answered.
    Closed,
    /// Requests a second, due on a fixed schedule.
    Open(f64),
}

/// What to send, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) connections: usize,
    pub(crate) time: Duration,
    pub(crate) pace: Pace,
    pub(crate) requests: Requests,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Requests {
    /// Likes of new pairs.
    Likes {
        /// The first like; likes of one number are one new pair.
        first: u64,
        /// Every n-th request waits until its like is visible; 0 is none.
        visible_every: u64,
        /// The share of likes that are for `post:1`, from 0 to 1.
        on_one_post: f64,
    },
    /// Counts, and for every twentieth a feed of twenty contents, without a viewer.
    Reads {
        /// The share of counts that are of `post:1`, from 0 to 1.
        on_one_post: f64,
    },
    /// Likes of new pairs, each by the holder of one of these tokens, by turns.
    LikesAs {
        /// The first like.
        first: u64,
        /// `Authorization` headers with their line's end.
        tokens: &'static [String],
    },
    /// Paths that are read by turns.
    Paths(&'static [String]),
}

impl Requests {
    /// Sends the request with this index; gives the status.
    async fn send(&self, connection: &mut Connection, index: u64) -> Result<u16> {
        match *self {
            Self::Likes { first, on_one_post, .. } => {
                let prefer = if self.waits(index) { "Prefer: wait=5\r\n" } else { "" };
                connection.post("/v1/likes", &like(first + index, on_one_post), prefer).await
            }
            Self::LikesAs { first, tokens } => {
                let number = first + index;
                let (id, content) = (Uuid::now_v7(), 1 + mix(number) % 4_000_000_000);
                let body = format!(
                    "{{\"requestId\":\"{id}\",\"contentType\":\"post\",\"contentId\":{content},\"liked\":true}}"
                );
                connection.post("/v1/likes", &body, &tokens[number as usize % tokens.len()]).await
            }
            Self::Reads { on_one_post } => connection.status(&read(index, on_one_post)).await,
            Self::Paths(paths) => connection.status(&paths[index as usize % paths.len()]).await,
        }
    }

    /// Whether a request is answered only when its like is visible.
    fn waits(&self, index: u64) -> bool {
        matches!(*self, Self::Likes { visible_every, .. } if visible_every > 0 && index.is_multiple_of(visible_every))
    }

    /// The status of a request that was done at once.
    fn done(&self) -> u16 {
        match self {
            Self::Likes { .. } | Self::LikesAs { .. } => 202,
            Self::Reads { .. } | Self::Paths(_) => 200,
        }
    }
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) seconds: f64,
    /// Microseconds from due to answered, of requests that do not wait for visibility.
    pub(crate) latency: Histogram<u64>,
    /// Microseconds from due to visible.
    pub(crate) visible: Histogram<u64>,
    /// Microseconds from sent to answered, of those that were done.
    pub(crate) done_after: Histogram<u64>,
    /// Microseconds from sent to answered, of those that were refused.
    pub(crate) refused_after: Histogram<u64>,
}

impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        self.accepted as f64 / self.seconds
    }
}

/// Spreads numbers over 64 bits (the finaliser of SplitMix64, <https://prng.di.unimi.it/splitmix64.c>).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A share of all numbers, spread among them.
fn is_among(share: f64, number: u64) -> bool {
    (mix(number ^ 0xaaaa) % 1000) < (share * 1000.0) as u64
}

/// The path of the read with this number.
fn read(number: u64, on_one_post: f64) -> String {
    let content = |number| if is_among(on_one_post, number) { 1 } else { 1 + mix(number) % CONTENTS_READ };
    if !number.is_multiple_of(20) {
        return format!("/v1/contents/post/{}/likes", content(number));
    }
    let contents: Vec<String> =
        (0..20).map(|index| format!("content=post:{}", 1 + mix(number * 20 + index) % CONTENTS_READ)).collect();
    format!("/v1/likes?{}", contents.join("&"))
}

/// The JSON of the like with this number: a new pair for each.
pub(crate) fn like(number: u64, on_one_post: f64) -> String {
    let is_hot = is_among(on_one_post, number);
    let content = if is_hot { 1 } else { 1 + mix(number) % CONTENTS };
    let user = if is_hot { 1 + number } else { 1 + mix(number ^ 0x5555) % 4_000_000 };
    let id = Uuid::now_v7();
    format!(
        "{{\"requestId\":\"{id}\",\"userId\":{user},\"contentType\":\"post\",\"contentId\":{content},\"liked\":true}}"
    )
}

pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(8192) })
    }

    /// Posts JSON, with further headers, each with its line's end; gives the status.
    pub(crate) async fn post(&mut self, path: &str, body: &str, headers: &str) -> Result<u16> {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        self.send(&request).await.map(|(status, _)| status)
    }

    /// Gets a path; gives the body.
    pub(crate) async fn get(&mut self, path: &str) -> Result<String> {
        let (_, body) = self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await?;
        Ok(String::from_utf8_lossy(&self.buffer[body..]).into_owned())
    }

    /// Gets a path; gives the status.
    async fn status(&mut self, path: &str) -> Result<u16> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await.map(|(status, _)| status)
    }

    /// Gives the status, and where in the buffer the body begins.
    async fn send(&mut self, request: &str) -> Result<(u16, usize)> {
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Error::other("the server closed the connection"));
            }
            let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&self.buffer[..end]).map_err(Error::other)?;
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            let whole = end + 4 + length.unwrap_or(0);
            while self.buffer.len() < whole {
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    return Err(Error::other("the server closed the connection"));
                }
            }
            return Ok((status, end + 4));
        }
    }
}

fn histogram() -> Histogram<u64> {
    // Up to a minute, three digits: cannot fail with these bounds.
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap_or_else(|_| unreachable!("valid bounds"))
}

/// Sends requests as planned.
pub(crate) async fn run(address: &str, plan: Plan) -> Result<Outcome> {
    let next = Arc::new(AtomicU64::new(0));
    let total = Arc::new(Mutex::new(Outcome {
        sent: 0,
        accepted: 0,
        refused: 0,
        seconds: 0.0,
        latency: histogram(),
        visible: histogram(),
        done_after: histogram(),
        refused_after: histogram(),
    }));
    let start = Instant::now();
    let mut connections = JoinSet::new();
    for _ in 0..plan.connections {
        let mut connection = Connection::open(address).await?;
        let (next, total) = (Arc::clone(&next), Arc::clone(&total));
        connections.spawn(async move {
            let (mut latency, mut visible) = (histogram(), histogram());
            let (mut done_after, mut refused_after) = (histogram(), histogram());
            let (mut sent, mut accepted, mut refused) = (0, 0, 0);
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let due = match plan.pace {
                    Pace::Closed => Instant::now(),
                    Pace::Open(rate) => start + Duration::from_secs_f64(index as f64 / rate),
                };
                // What is due but could not be sent in time is not sent any more: that is what overload looks like.
                if due.duration_since(start) >= plan.time || start.elapsed() >= plan.time {
                    break;
                }
                // A timer ticks once a millisecond: one that is due already would cost a tick.
                if due > Instant::now() {
                    sleep_until(due).await;
                }
                let waits = plan.requests.waits(index);
                let sent_at = Instant::now();
                let status = plan.requests.send(&mut connection, index).await?;
                let took = u64::try_from(sent_at.elapsed().as_micros()).unwrap_or(u64::MAX);
                if status == 503 {
                    refused_after.saturating_record(took)
                } else {
                    done_after.saturating_record(took)
                }
                let micros = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
                sent += 1;
                match status {
                    200 if waits => visible.saturating_record(micros),
                    done if !waits && done == plan.requests.done() => latency.saturating_record(micros),
                    // Accepted, and not visible within the wait.
                    202 if waits => visible.saturating_record(micros),
                    503 => refused += 1,
                    other => return Err(Error::other(format!("status {other}"))),
                }
                accepted += u64::from(status != 503);
            }
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.sent += sent;
            total.accepted += accepted;
            total.refused += refused;
            total.done_after.add(&done_after).map_err(Error::other)?;
            total.refused_after.add(&refused_after).map_err(Error::other)?;
            total.latency.add(&latency).map_err(Error::other)?;
            total.visible.add(&visible).map_err(Error::other)
        });
    }
    while let Some(ended) = connections.join_next().await {
        ended.map_err(Error::other)??;
    }
    let mut outcome = Arc::into_inner(total)
        .and_then(|total| total.into_inner().ok())
        .ok_or_else(|| Error::other("a connection did not end"))?;
    outcome.seconds = start.elapsed().as_secs_f64();
    Ok(outcome)
}

/// Sends `count` likes in batches as fast as they are taken.
pub(crate) async fn fill(
    address: &str,
    first: u64,
    count: u64,
    each: impl Fn(u64) + Clone + Send + 'static,
) -> Result<()> {
    const BATCH: u64 = 100;
    let next = Arc::new(AtomicU64::new(0));
    let mut connections = JoinSet::new();
    for _ in 0..16 {
        let mut connection = Connection::open(address).await?;
        let (next, each) = (Arc::clone(&next), each.clone());
        connections.spawn(async move {
            loop {
                let start = next.fetch_add(BATCH, Ordering::Relaxed);
                if start >= count {
                    return Ok::<_, Error>(());
                }
                let likes: Vec<String> = (start..start + BATCH).map(|number| like(first + number, 0.0)).collect();
                let body = format!("{{\"commands\":[{}]}}", likes.join(","));
                while connection.post("/v1/likes/batch", &body, "").await? == 503 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                each(BATCH);
            }
        });
    }
    while let Some(ended) = connections.join_next().await {
        ended.map_err(Error::other)??;
    }
    Ok(())
}
