//! Counters in Redis or a Redis Cluster: each method is one script, or one pipeline of a partition's keys.
//!
//! All keys of a scope carry the tag `{generation.partition}` and so are on one node. Offsets and counts are numbers
//! in Lua, exact up to 2^53.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, future::try_join_all};
use likewise_schema::{Content, Offset, Partition, Position, Timestamp, UserId, lua};
use parking_lot::Mutex;
use redis::{Pipeline, RedisResult, Script, Value, from_redis_value};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

use super::{
    Answer, Ask, Cached, CachedCount, Change, Changes, CounterStore, Fill, Hints, LEASE_LIFE, Lease, LeaseKey,
    LeaseToken, News, Outcome, Progress, Publish, REPUBLISH_EVENTS_MAX, STATUSES_LIFE, Scope, Status, Version, Writer,
};
use crate::{
    StoreError,
    records::{Claim, Generation},
    redis::{Address, Connection, Part, RedisTimeouts, Subscription, advice},
};

const STORE: &str = "Redis";
/// Statuses kept per user and partition.
const STATUSES_MAX: usize = 1024;
/// Where publishes tell what they change.
const CHANNEL: &str = "like:changes";
/// How long after a subscription broke another one is made.
const SUBSCRIBE_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How often progress is read while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The counter store in Redis.
pub struct RedisCounters {
    inner: Arc<Inner>,
}

struct Inner {
    /// For requests.
    requests: Connection,
    /// For owners, so that a large publish does not delay a request.
    owners: Connection,
    is_cluster: bool,
    scripts: Scripts,
    /// Where progress is, for scopes in which somebody waits.
    waits: Mutex<HashMap<Scope, watch::Sender<Version>>>,
    address: Address,
    hints: Hints,
    /// Somebody listens to the channel for all who want hints.
    listens: AtomicBool,
}

struct Scripts {
    publish: Script,
    take_over: Script,
    lease: Script,
    fill_count: Script,
    fill_statuses: Script,
}

impl fmt::Debug for RedisCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisCounters")
    }
}

impl RedisCounters {
    /// The store at a URL (see `redis://`, `rediss://`, `redis+cluster://`), connected when it is first used.
    pub fn new(url: &str, timeouts: RedisTimeouts) -> Result<Self, StoreError> {
        let address = Address::parse(STORE, url)?;
        let connection = |wait| Connection::new(STORE, address.clone(), wait, timeouts.connect);
        let scripts = Scripts {
            publish: Script::new(lua::PUBLISH),
            take_over: Script::new(lua::TAKE_OVER),
            lease: Script::new(lua::LEASE),
            fill_count: Script::new(lua::FILL_COUNT),
            fill_statuses: Script::new(lua::FILL_STATUSES),
        };
        let (requests, owners) = (connection(timeouts.request), connection(timeouts.publish));
        let is_cluster = address.is_cluster();
        let inner = Inner {
            requests,
            owners,
            is_cluster,
            scripts,
            waits: Mutex::default(),
            address,
            hints: Hints::new(false),
            listens: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What of the server's configuration should be changed, in a sentence.
    pub async fn advice(&self) -> Result<Option<String>, StoreError> {
        advice(&self.inner.owners).await
    }
}

fn tag(scope: Scope) -> String {
    format!("{{{:08x}.{}}}", scope.generation.0, scope.partition)
}

fn progress_key(scope: Scope) -> String {
    format!("like:progress:{}", tag(scope))
}

fn count_key(scope: Scope, content: &Content) -> String {
    format!("like:count:{}:{content}", tag(scope))
}

fn user_key(scope: Scope, user: UserId) -> String {
    format!("like:user:{}:{user}", tag(scope))
}

fn lease_key(scope: Scope, key: &LeaseKey) -> String {
    match key {
        LeaseKey::Count(content) => format!("like:lease:{}:count:{content}", tag(scope)),
        LeaseKey::Statuses(user) => format!("like:lease:{}:user:{user}", tag(scope)),
    }
}

fn token(random: u64) -> String {
    format!("{random:016x}")
}

/// `liked ms version`; the version comes last, where the scripts find it.
fn status_text(status: &Status) -> String {
    let at = status.at.map_or_else(|| "-".into(), |at| at.millis().to_string());
    format!("{} {at} {}", u8::from(status.liked), status.version)
}

fn parse_status(text: &str) -> Option<Status> {
    let mut parts = text.split(' ');
    let (liked, at, version) = (parts.next()?, parts.next()?, parts.next()?);
    let at = if at == "-" { None } else { Some(Timestamp::saturating_from_millis(at.parse().ok()?)) };
    Some(Status { liked: liked == "1", at, version: version.parse().ok()? })
}

fn news_arguments(news: &News) -> [String; 3] {
    let next = news.next_event_at.map_or_else(String::new, |at| at.millis().to_string());
    [news.log_end.to_string(), next, news.heard_at.millis().to_string()]
}

/// The scope, where it comes from and its claim, then a line for each count. Nothing where no event was applied.
fn change_text(change: &Change) -> String {
    let Change { scope, from, claim, counts, is_whole } = change;
    let Some(offset) = claim.next_offset.previous() else { return String::new() };
    let (generation, position) = (scope.generation.0, Position { partition: scope.partition, offset });
    let (heard_at, next) = (claim.heard_at.millis(), claim.next_event_at.map_or(-1, Timestamp::millis));
    let (recovering, is_whole) = (u8::from(claim.recovering), u8::from(*is_whole));
    let mut text = format!("{generation:08x} {position} {from} {heard_at} {next} {recovering} {is_whole}");
    for (content, CachedCount { count, version }) in counts {
        let _a_string_takes_all = write!(text, "\n{content} {count} {version}");
    }
    text
}

/// None for what no owner wrote.
fn parse_change(text: &str) -> Option<Change> {
    let mut lines = text.lines();
    let mut parts = lines.next()?.split(' ');
    let generation = Generation(u32::from_str_radix(parts.next()?, 16).ok()?);
    let Position { partition, offset } = parts.next()?.parse().ok()?;
    let mut number = || parts.next()?.parse::<i64>().ok();
    let from = Offset::new(number()?).ok()?;
    let heard_at = Timestamp::saturating_from_millis(number()?);
    let next_event_at = number().map(|at| (at >= 0).then(|| Timestamp::saturating_from_millis(at)))?;
    let (recovering, is_whole) = (number()? != 0, number()? != 0);
    let count = |line: &str| {
        let mut parts = line.split(' ');
        let content = parts.next()?.parse().ok()?;
        let (count, version) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some((content, CachedCount { count, version }))
    };
    let claim = Claim { partition, next_offset: offset.next(), heard_at, next_event_at, recovering };
    let counts = lines.map(count).collect::<Option<_>>()?;
    Some(Change { scope: Scope { generation, partition }, from, claim, counts, is_whole })
}

const PROGRESS_FIELDS: [&str; 7] =
    ["writer", "position", "floor", "recovering", "log_end", "next_event_at", "heard_at"];

/// None if it is missing, or not what an owner wrote.
fn parse_progress(fields: Value) -> Option<Progress> {
    let fields: Vec<Option<String>> = from_redis_value(fields).ok()?;
    let number = |index: usize| fields.get(index)?.as_deref()?.parse::<i64>().ok();
    let at = |millis| Timestamp::saturating_from_millis(millis);
    Some(Progress {
        writer: Writer(u64::from_str_radix(fields.first()?.as_deref()?, 16).ok()?),
        position: number(1)?,
        floor: number(2)?,
        recovering: number(3)? != 0,
        news: News {
            log_end: Offset::new(number(4)?).ok()?,
            next_event_at: number(5).map(at),
            heard_at: at(number(6)?),
        },
    })
}

fn parse_count(fields: Value) -> Option<CachedCount> {
    let (count, version): (Option<i64>, Option<i64>) = from_redis_value(fields).ok()?;
    Some(CachedCount { count: count?, version: version? })
}

impl Ask {
    /// Adds what this ask reads: progress first, so that what comes after it reflects at least that.
    fn put(&self, pipeline: &mut Pipeline, viewer: Option<UserId>) {
        pipeline.cmd("HMGET").arg(progress_key(self.scope)).arg(&PROGRESS_FIELDS);
        for content in &self.counts {
            pipeline.cmd("HMGET").arg(count_key(self.scope, content)).arg(&["count", "v"]);
        }
        if let Some(viewer) = viewer.filter(|_| !self.statuses.is_empty()) {
            let fields: Vec<String> = self.statuses.iter().map(Content::to_string).collect();
            pipeline.cmd("HMGET").arg(user_key(self.scope, viewer)).arg(fields);
        }
    }

    /// Takes what [`put`](Self::put) asked for. A value that cannot be read counts as missing.
    fn take(&self, values: &mut impl Iterator<Item = RedisResult<Value>>, viewer: Option<UserId>) -> Answer {
        let mut next = || values.next().and_then(Result::ok);
        let progress = next().and_then(parse_progress);
        let floor = progress.as_ref().map(|progress| progress.floor);
        let counts: Vec<_> = self.counts.iter().map(|_| next().and_then(parse_count)).collect();
        let mut statuses = vec![None; if viewer.is_some() { self.statuses.len() } else { 0 }];
        if !statuses.is_empty()
            && let Some(fields) = next().and_then(|fields| from_redis_value::<Vec<Option<String>>>(fields).ok())
        {
            for (status, field) in statuses.iter_mut().zip(fields) {
                *status = field.as_deref().and_then(parse_status);
            }
        }
        let counts =
            counts.into_iter().map(|count| count.filter(|count| floor.is_some_and(|floor| count.version >= floor)));
        let statuses = statuses
            .into_iter()
            .map(|known| known.filter(|known: &Status| floor.is_some_and(|floor| known.version >= floor)));
        Answer { progress, counts: counts.collect(), statuses: statuses.collect() }
    }
}

fn outcome(done: i64) -> Outcome {
    if done == 1 { Outcome::Done } else { Outcome::Refused }
}

impl Inner {
    /// All fields of a key; none where it is no hash.
    async fn fields(&self, key: &str) -> Result<Option<HashMap<String, String>>, StoreError> {
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors().cmd("HGETALL").arg(key);
        let mut values: Vec<RedisResult<Value>> = self.owners.pipeline(&pipeline).await?;
        Ok(values.pop().and_then(Result::ok).and_then(|fields| from_redis_value(fields).ok()))
    }

    async fn progress(&self, scope: Scope) -> Result<Option<Progress>, StoreError> {
        // In a pipeline a key of a wrong type is an answer, not a failure of the server.
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors().cmd("HMGET").arg(progress_key(scope)).arg(&PROGRESS_FIELDS);
        let mut values: Vec<RedisResult<Value>> = self.requests.pipeline(&pipeline).await?;
        Ok(values.pop().and_then(Result::ok).and_then(parse_progress))
    }

    /// Reads progress while somebody waits for it, once for all who do.
    async fn look(self: Arc<Self>, scope: Scope) {
        loop {
            if let Ok(Some(progress)) = self.progress(scope).await {
                let waits = self.waits.lock();
                if let Some(sender) = waits.get(&scope) {
                    sender.send_if_modified(|position| {
                        let is_new = *position != progress.position;
                        *position = progress.position;
                        is_new
                    });
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let mut waits = self.waits.lock();
            if waits.get(&scope).is_none_or(|sender| sender.receiver_count() == 0) {
                waits.remove(&scope);
                return;
            }
        }
    }

    /// Takes what is told on the channel, as long as somebody wants it.
    async fn listen(self: Arc<Self>) {
        loop {
            if !self.hints.are_wanted() {
                self.listens.store(false, Ordering::Release);
                // Somebody may have come after the look, and found that the task still listened.
                if !self.hints.are_wanted() || self.listens.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
            if let Ok(mut subscription) = Subscription::new(&self.address, CHANNEL).await {
                self.hints.comes.store(true, Ordering::Relaxed);
                while let Ok(text) = subscription.next().await
                    && self.hints.are_wanted()
                {
                    if let Some(change) = text.as_deref().and_then(parse_change) {
                        self.hints.send(change);
                    }
                }
                self.hints.comes.store(false, Ordering::Relaxed);
            }
            tokio::time::sleep(SUBSCRIBE_AGAIN_AFTER).await;
        }
    }

    fn watch(self: &Arc<Self>, scope: Scope) -> watch::Receiver<Version> {
        let mut waits = self.waits.lock();
        if let Some(sender) = waits.get(&scope) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(Version::MIN);
        waits.insert(scope, sender);
        tokio::spawn(Arc::clone(self).look(scope));
        receiver
    }
}

#[async_trait]
impl CounterStore for RedisCounters {
    async fn publish(&self, scope: Scope, publish: Publish) -> Result<Outcome, StoreError> {
        let told = publish.change(scope).as_ref().map_or_else(String::new, change_text);
        let Publish { writer, from, to, counts, statuses, news, recovering } = publish;
        let mut parts = Vec::with_capacity(10 + 4 * counts.len() + 5 * statuses.len());
        parts.push(Part::Key(progress_key(scope)));
        let [log_end, next_event_at, heard_at] = news_arguments(&news);
        let recovering = u8::from(recovering).to_string();
        let head = [token(writer.0), from.to_string(), to.to_string(), log_end, next_event_at, heard_at, recovering];
        parts.extend(head.map(Part::Argument));
        parts.push(Part::Argument(counts.len().to_string()));
        parts.push(Part::Argument(told));
        for (content, cached) in &counts {
            parts.push(Part::Key(count_key(scope, content)));
            parts.push(Part::Key(lease_key(scope, &LeaseKey::Count(*content))));
            parts.push(Part::Argument(cached.count.to_string()));
            parts.push(Part::Argument(cached.version.to_string()));
        }
        for (user, content, status) in &statuses {
            parts.push(Part::Key(user_key(scope, *user)));
            parts.push(Part::Key(lease_key(scope, &LeaseKey::Statuses(*user))));
            parts.push(Part::Argument(content.to_string()));
            parts.push(Part::Argument(status_text(status)));
            parts.push(Part::Argument(status.version.to_string()));
        }
        self.inner.owners.script(&self.inner.scripts.publish, parts).await.map(outcome)
    }

    async fn take_over(
        &self,
        scope: Scope,
        writer: Writer,
        checkpoint: Version,
        news: News,
    ) -> Result<Version, StoreError> {
        let [log_end, next_event_at, heard_at] = news_arguments(&news);
        let most = REPUBLISH_EVENTS_MAX.to_string();
        let arguments = [token(writer.0), checkpoint.to_string(), log_end, next_event_at, heard_at, most];
        let parts = std::iter::once(Part::Key(progress_key(scope))).chain(arguments.map(Part::Argument));
        self.inner.owners.script(&self.inner.scripts.take_over, parts).await
    }

    async fn progress(&self, scope: Scope) -> Result<Option<Progress>, StoreError> {
        self.inner.progress(scope).await
    }

    async fn read(&self, asks: &[Ask], viewer: Option<UserId>) -> Result<Vec<Answer>, StoreError> {
        if self.inner.is_cluster {
            // A transaction is on one node or fails as a whole: no part of it is redirected on its own.
            let each = asks.iter().map(|ask| async move {
                let mut pipeline = Pipeline::new();
                pipeline.atomic().ignore_errors();
                ask.put(&mut pipeline, viewer);
                let values: Vec<RedisResult<Value>> = self.inner.requests.pipeline(&pipeline).await?;
                Ok(ask.take(&mut values.into_iter(), viewer))
            });
            return try_join_all(each).await;
        }
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors();
        asks.iter().for_each(|ask| ask.put(&mut pipeline, viewer));
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let values: Vec<RedisResult<Value>> = self.inner.requests.pipeline(&pipeline).await?;
        let mut values = values.into_iter();
        Ok(asks.iter().map(|ask| ask.take(&mut values, viewer)).collect())
    }

    async fn lease(&self, scope: Scope, key: LeaseKey) -> Result<Option<Lease>, StoreError> {
        let random = rand::random();
        let parts = [
            Part::Key(progress_key(scope)),
            Part::Key(lease_key(scope, &key)),
            Part::Argument(token(random)),
            Part::Argument(LEASE_LIFE.as_millis().to_string()),
        ];
        let position: Option<Version> = self.inner.requests.script(&self.inner.scripts.lease, parts).await?;
        Ok(position.map(|position| Lease { token: LeaseToken(random), position }))
    }

    async fn fill(&self, scope: Scope, lease: Lease, fill: Fill) -> Result<Outcome, StoreError> {
        if fill.version() < lease.position {
            return Ok(Outcome::Refused);
        }
        let lease_key = lease_key(scope, &fill.lease_key());
        let (script, parts) = match fill {
            Fill::Count(content, cached, life) => {
                let life = life.as_millis().to_string();
                let arguments = [token(lease.token.0), cached.count.to_string(), cached.version.to_string(), life];
                let keys = [count_key(scope, &content), lease_key].map(Part::Key);
                (
                    &self.inner.scripts.fill_count,
                    keys.into_iter().chain(arguments.map(Part::Argument)).collect::<Vec<_>>(),
                )
            }
            Fill::Statuses(user, statuses) => {
                let life = STATUSES_LIFE.as_millis().to_string();
                let mut parts: Vec<Part> = [user_key(scope, user), lease_key].map(Part::Key).into();
                parts.extend([token(lease.token.0), life, STATUSES_MAX.to_string()].map(Part::Argument));
                for (content, status) in statuses.iter().take(STATUSES_MAX) {
                    let fields = [content.to_string(), status_text(status), status.version.to_string()];
                    parts.extend(fields.map(Part::Argument));
                }
                (&self.inner.scripts.fill_statuses, parts)
            }
        };
        self.inner.requests.script(script, parts).await.map(outcome)
    }

    async fn passed(&self, scope: Scope, offset: Offset, wait: Duration) {
        let deadline = Instant::now() + wait;
        let mut position = self.inner.watch(scope);
        let _in_vain = timeout_at(deadline, position.wait_for(|position| *position >= offset.get())).await;
    }

    fn changes(&self) -> Changes {
        let changes = self.inner.hints.changes();
        if !self.inner.listens.swap(true, Ordering::AcqRel) {
            tokio::spawn(Arc::clone(&self.inner).listen());
        }
        changes
    }

    async fn forget(&self, scope: Scope, contents: &[Content], users: &[UserId]) -> Result<(), StoreError> {
        let counts = contents.iter().map(|content| (count_key(scope, content), LeaseKey::Count(*content)));
        let statuses = users.iter().map(|user| (user_key(scope, *user), LeaseKey::Statuses(*user)));
        let keys: Vec<String> = counts.chain(statuses).flat_map(|(key, of)| [key, lease_key(scope, &of)]).collect();
        // The keys of a scope are on one node.
        for keys in keys.chunks(DELETED_AT_ONCE) {
            let _how_many: i64 = self.inner.owners.command(redis::cmd("DEL").arg(keys)).await?;
        }
        Ok(())
    }

    async fn entries(&self, out: mpsc::Sender<Vec<Cached>>) -> Result<(), StoreError> {
        let (found, mut keys) = mpsc::channel(4);
        let list = async {
            let listed = self.inner.owners.keys("like:*", &found).await;
            drop(found);
            listed
        };
        let read = async {
            let mut floors: HashMap<Scope, Version> = HashMap::new();
            while let Some(keys) = keys.recv().await {
                let places: Vec<Place> = keys.iter().filter_map(|key| Place::parse(key)).collect();
                for scope in places.iter().map(|place| place.scope) {
                    if let Entry::Vacant(unknown) = floors.entry(scope) {
                        // Entries without progress have no claim, and are not given to anybody.
                        unknown.insert(self.inner.progress(scope).await?.map_or(Version::MAX, |known| known.floor));
                    }
                }
                let keys: Vec<String> = places.iter().map(|place| place.key.clone()).collect();
                let fields = |key: String| {
                    let inner = Arc::clone(&self.inner);
                    async move { inner.fields(&key).await }
                };
                let values = futures::stream::iter(keys).map(fields).buffered(ENTRIES_AT_ONCE);
                let values: Vec<_> = values.try_collect().await?;
                let entries =
                    places.iter().zip(values).flat_map(|(place, fields)| place.entries(fields, floors[&place.scope]));
                if out.send(entries.collect()).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        tokio::try_join!(list, read).map(drop)
    }
}

/// Keys that are deleted in one call.
const DELETED_AT_ONCE: usize = 500;
/// Entries that are read at once when all are looked at.
const ENTRIES_AT_ONCE: usize = 64;

/// A key of a scope, taken apart.
struct Place {
    key: String,
    scope: Scope,
    what: What,
}

enum What {
    Count(Content),
    Statuses(UserId),
}

impl Place {
    /// None for a key that is no entry of a scope.
    fn parse(key: &str) -> Option<Self> {
        let (kind, rest) = key.strip_prefix("like:")?.split_once(":{")?;
        let (tag, rest) = rest.split_once("}:")?;
        let (generation, partition) = tag.split_once('.')?;
        let generation = Generation(u32::from_str_radix(generation, 16).ok()?);
        let scope = Scope { generation, partition: Partition::unbounded(partition.parse().ok()?)? };
        let what = match kind {
            "count" => What::Count(rest.parse().ok()?),
            "user" => What::Statuses(rest.parse().ok()?),
            _ => return None,
        };
        Some(Self { key: key.to_owned(), scope, what })
    }

    /// What its fields say; nothing where the key has gone meanwhile.
    fn entries(&self, fields: Option<HashMap<String, String>>, floor: Version) -> Vec<Cached> {
        let damaged = || vec![Cached::Damaged(self.scope, self.key.clone())];
        let Some(fields) = fields else { return damaged() };
        if fields.is_empty() {
            return Vec::new();
        }
        let entries: Option<Vec<(Version, Cached)>> = match self.what {
            What::Count(content) => {
                let number = |name: &str| fields.get(name)?.parse::<i64>().ok();
                let cached = || Some(CachedCount { count: number("count")?, version: number("v")? });
                cached().map(|cached| vec![(cached.version, Cached::Count(self.scope, content, cached))])
            }
            What::Statuses(user) => {
                let status = |(content, status): (&String, &String)| {
                    let (content, status) = (content.parse().ok()?, parse_status(status)?);
                    Some((status.version, Cached::Status(self.scope, user, content, status)))
                };
                fields.iter().map(status).collect()
            }
        };
        let Some(entries) = entries else { return damaged() };
        entries.into_iter().filter(|(version, _)| *version >= floor).map(|(_, entry)| entry).collect()
    }
}
