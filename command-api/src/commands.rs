//! The command role without HTTP: from a checked command to an acknowledged event, or a refusal that says what it did.

use std::{sync::Arc, time::Duration};

use likewise_schema::{LikeToggled, Pair, Position, RequestId, Timestamp, UserId};
use likewise_storage::{
    Clock, CounterStore, EventLog, RecordStore, RequestStore, Scopes, StoreError,
    counters::Ask,
    log::{AppendError, NewRecord},
    planted::{self, Bug},
    records::LikeRecord,
    requests::{Begin, Bucket, IN_FLIGHT_LIFE, Intent, MemoryRequests, Policy, RequestKey, Taken},
};
use tokio::time::{Instant, timeout_at};

use crate::backlog::{Backlog, BacklogLimit, Full};

/// By when a command must be answered, any granted wait apart.
const COMMAND_DEADLINE: Duration = Duration::from_millis(1500);
/// How far ahead of the server's clock a v7 id may be.
const AHEAD_MAX_MILLIS: i64 = 20_000;
/// How old a v7 id may be.
const AGE_MAX_MILLIS: i64 = 7 * 24 * 3600 * 1000;
/// Changes that a pair may make.
pub(crate) const PAIR_POLICY: Policy = Policy { burst: 6, window: Duration::from_secs(60) };

/// What the role works with.
#[derive(Clone)]
pub struct Ports {
    /// Where events go.
    pub log: Arc<dyn EventLog>,
    /// Where rows are read for a command's status.
    pub records: Arc<dyn RecordStore>,
    /// Where progress and counts are read.
    pub counters: Arc<dyn CounterStore>,
    /// Where requests and token buckets are.
    pub requests: Arc<dyn RequestStore>,
    /// Its clock.
    pub clock: Clock,
}

/// A like or unlike, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Who sent it: requestIds are the caller's own.
    pub subject: UserId,
    /// What it wants.
    pub intent: Intent,
    /// Its idempotency key.
    pub request_id: RequestId,
    /// When the client says it happened.
    pub occurred_at: Option<Timestamp>,
    /// W3C trace context.
    pub trace_parent: String,
}

/// A command that the log has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Where its event is.
    pub position: Position,
    /// Whether this is the answer to an earlier request.
    pub replayed: bool,
}

/// Why a command was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The same request is being worked on. The outcome is the other sender's.
    InFlight {
        /// When to ask again.
        retry_after: Duration,
    },
    /// The requestId was used for another intent.
    Reused,
    /// The time in the requestId is too far from the server's.
    RequestIdTime {
        /// The server's clock.
        now: Timestamp,
    },
    /// The pair changes too often.
    Quota(Taken),
    /// The projection is too far behind to take more. Nothing was done.
    Backlog,
    /// The log refused. Nothing was done.
    Rejected(StoreError),
    /// The log did not say: it may have it.
    Unknown(String),
}

/// What is known of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Accepted(Position),
    Applied(Option<Position>),
    Superseded(Position),
    Unknown,
}

/// A moment by which something must be answered.
pub type Deadline = Instant;

/// The command role.
pub struct Commands {
    ports: Ports,
    scopes: Scopes,
    backlog: Arc<Backlog>,
    /// Takes the place of the shared buckets while they are away.
    local: MemoryRequests,
}

impl Commands {
    /// The role on its ports, taking commands while the projection is less than `limit` behind.
    pub fn new(ports: Ports, limit: BacklogLimit) -> Self {
        let count = ports.log.partitions();
        Self {
            scopes: Scopes::new(Arc::clone(&ports.records), count),
            backlog: Arc::new(Backlog::new(count, limit)),
            local: MemoryRequests::new(ports.clock.clone()),
            ports,
        }
    }

    /// Keeps the knowledge of the projection's lag fresh; runs as long as the role does.
    pub async fn watch_backlog(&self) {
        self.backlog.watch(&self.ports, &self.scopes).await;
    }

    /// Takes one command. Accepted means: the log has it.
    pub async fn submit(&self, command: &Command) -> Result<Accepted, Refusal> {
        let deadline = Instant::now() + COMMAND_DEADLINE;
        let now = self.ports.clock.now();
        check_time(&command.request_id, now)?;
        let key = RequestKey { subject: command.subject, request: command.request_id };
        // Without the request store a repeated request is appended again, and has no second effect.
        match self.ports.requests.begin(key, command.intent).await.unwrap_or(Begin::Fresh) {
            Begin::Fresh => {}
            Begin::InFlight => return Err(Refusal::InFlight { retry_after: IN_FLIGHT_LIFE }),
            Begin::Answered(position) => return Ok(Accepted { position, replayed: true }),
            Begin::Conflict => return Err(Refusal::Reused),
        }
        match self.append(command, now, deadline).await {
            Ok(position) => {
                let _a_courtesy = self.ports.requests.finish(key, command.intent, position).await;
                Ok(Accepted { position, replayed: false })
            }
            Err(refusal) => {
                if !matches!(refusal, Refusal::Unknown(_)) {
                    let _a_courtesy = self.ports.requests.abandon(key).await;
                }
                Err(refusal)
            }
        }
    }

    async fn append(&self, command: &Command, now: Timestamp, deadline: Deadline) -> Result<Position, Refusal> {
        let Intent { user, content, liked } = command.intent;
        let partition = self.ports.log.partitions().partition_of(&content);
        let room = self.backlog.admit(partition).await.map_err(|Full| Refusal::Backlog)?;
        let bucket = Bucket::Pair(Pair { content, user });
        let taken = self.take(bucket).await;
        if !taken.allowed {
            return Err(Refusal::Quota(taken));
        }
        let event = LikeToggled {
            request_id: command.request_id,
            user_id: user,
            content_type: content.content_type,
            content_id: content.content_id,
            liked,
            occurred_at: command.occurred_at,
            received_at: now,
        };
        let record = NewRecord {
            partition,
            timestamp: now,
            key: Some(event.key()),
            value: Some(event.value()),
            headers: event.headers(&command.trace_parent),
        };
        if planted::on(Bug::AcknowledgedBeforeLog) {
            let (log, offset) = (Arc::clone(&self.ports.log), likewise_schema::Offset::ZERO);
            tokio::spawn(async move { log.append(record).await });
            return Ok(Position { partition, offset });
        }
        match timeout_at(deadline, self.ports.log.append(record)).await {
            Ok(Ok(offset)) => {
                room.appended(offset);
                Ok(Position { partition, offset })
            }
            Ok(Err(AppendError::Rejected(error))) => {
                // It was not done, so it is not charged.
                let _a_courtesy = self.ports.requests.give_back(bucket, PAIR_POLICY).await;
                Err(Refusal::Rejected(error))
            }
            Ok(Err(AppendError::Unknown(error))) => Err(Refusal::Unknown(error.to_string())),
            Err(_) => Err(Refusal::Unknown("the log did not answer in time".into())),
        }
    }

    async fn take(&self, bucket: Bucket) -> Taken {
        let shared = self.ports.requests.take(bucket, PAIR_POLICY).await;
        match shared {
            Ok(taken) => taken,
            Err(_) => self.local.take(bucket, PAIR_POLICY).await.unwrap_or(Taken {
                allowed: true,
                remaining: 0,
                next_in: Duration::ZERO,
            }),
        }
    }

    /// Waits until the event at `position` is projected, at most `wait`, and gives the content's count then.
    pub(crate) async fn applied_count(&self, intent: &Intent, position: Position, wait: Duration) -> Option<i64> {
        let deadline = Instant::now() + wait;
        let scope = self.scopes.scope(position.partition).await.ok()??;
        self.ports.counters.passed(scope, position.offset, wait).await;
        let ask = Ask { scope, counts: vec![intent.content], statuses: vec![] };
        let read = timeout_at(deadline.max(Instant::now() + Duration::from_millis(50)), async {
            let answers = self.ports.counters.read(&[ask], None).await.ok();
            let cached = answers.and_then(|mut answers| answers.pop()).and_then(|answer| {
                let claim = answer.progress?.claim(position.partition);
                claim.has_reached(position.offset).then_some(answer.counts.first().copied()??.count)
            });
            if cached.is_some() {
                return cached;
            }
            let snapshot = self.ports.records.counts(&[intent.content]).await.ok()?;
            let reached = snapshot
                .checkpoints
                .iter()
                .any(|at| at.partition == position.partition && at.claim().has_reached(position.offset));
            reached.then(|| snapshot.value.first().copied().flatten().map_or(0, |count| count.count))
        });
        read.await.ok().flatten()
    }

    /// Whether the record of a command's pair shows it.
    pub(crate) async fn progress(
        &self,
        key: RequestKey,
        content: Option<likewise_schema::Content>,
    ) -> Result<Progress, StoreError> {
        let known = self.ports.requests.find(key).await.ok().flatten();
        let (pair, position) = match (known, content) {
            (Some((intent, position)), _) => (Pair { content: intent.content, user: intent.user }, position),
            (None, Some(content)) => (Pair { content, user: key.subject }, None),
            (None, None) => return Ok(Progress::Unknown),
        };
        let snapshot = self.ports.records.rows(&[pair]).await?;
        let row = snapshot.value.first().and_then(Option::as_ref);
        if row.is_some_and(|row: &LikeRecord| row.ring.contains(&key.request)) {
            return Ok(Progress::Applied(position));
        }
        let Some(position) = position else { return Ok(Progress::Unknown) };
        let projected = snapshot
            .checkpoints
            .iter()
            .any(|at| at.partition == position.partition && at.claim().has_reached(position.offset));
        // An accepted id leaves the ring only by going below the floor, if it is a v7 id.
        let is_below = key.request.v7_millis().is_some()
            && row.is_some_and(|row| row.floor.is_some_and(|floor| key.request.as_bytes() <= floor.as_bytes()));
        Ok(match projected {
            false => Progress::Accepted(position),
            true if is_below => Progress::Superseded(position),
            true => Progress::Applied(Some(position)),
        })
    }
}

fn check_time(id: &RequestId, now: Timestamp) -> Result<(), Refusal> {
    let Some(millis) = id.v7_millis() else { return Ok(()) };
    let ahead = millis - now.millis();
    if ahead > AHEAD_MAX_MILLIS || -ahead > AGE_MAX_MILLIS {
        return Err(Refusal::RequestIdTime { now });
    }
    Ok(())
}
