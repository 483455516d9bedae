//! The command role without HTTP: from a checked command to an acknowledged event, or a refusal that says what it did.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use likewise_schema::{LikeToggled, Pair, Position, RequestId, Timestamp};
use likewise_storage::{
    Clock, CounterStore, EventLog, RecordStore, RequestStore, Scopes, StoreError,
    counters::Ask,
    log::{AppendError, NewRecord},
    planted::{self, Bug},
    records::LikeRecord,
    requests::{Admitted, Bucket, Charge, IN_FLIGHT_LIFE, Intent, Level, MemoryRequests, Policy, RequestKey},
};
use metrics::counter;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::backlog::{Backlog, BacklogLimit, Full};

/// By when a command must be answered, any granted wait apart.
const COMMAND_DEADLINE: Duration = Duration::from_millis(1500);
/// How far ahead of the server's clock a v7 id may be.
const AHEAD_MAX_MILLIS: i64 = 20_000;
/// How old a v7 id may be.
const AGE_MAX_MILLIS: i64 = 7 * 24 * 3600 * 1000;
/// Changes that a pair may make, always.
const PAIR_POLICY: Policy = Policy { burst: 6, window: Duration::from_secs(60) };
/// How often a process says that it gives out tokens.
const ATTEND_EVERY: Duration = Duration::from_secs(1);

/// How many commands one sender may send; none is no limit. That a pair changes at most 6 times a minute is always on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of one user.
    pub user: Option<Policy>,
    /// From one address, or one IPv6 network of 64 bits.
    pub address: Option<Policy>,
}

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
    /// What it wants.
    pub intent: Intent,
    /// Its idempotency key; a user's own.
    pub request_id: RequestId,
    /// When the client says it happened.
    pub occurred_at: Option<Timestamp>,
    /// W3C trace context.
    pub trace_parent: String,
    /// Where it came from, if that is limited.
    pub address: Option<IpAddr>,
}

impl Command {
    fn key(&self) -> RequestKey {
        RequestKey { subject: self.intent.user, request: self.request_id }
    }
}

/// A token bucket after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Which, and how it fills.
    pub charge: Charge,
    /// What it holds.
    pub level: Level,
}

/// A command that the log has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Where its event is.
    pub position: Position,
    /// Whether this is the answer to an earlier request.
    pub replayed: bool,
    /// What it was charged to; nothing where it is replayed.
    pub budgets: Vec<Budget>,
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
    /// A pair, a user or an address sends too much. Nothing was done.
    Quota(Budget),
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
    limits: Limits,
    scopes: Scopes,
    backlog: Arc<Backlog>,
    /// Takes the place of the shared requests and buckets while they are away.
    local: MemoryRequests,
    /// Processes that share the buckets; a share of each policy is this one's while they are away.
    processes: AtomicU32,
}

/// A command that was let in.
struct Entry {
    charges: Vec<Charge>,
    levels: Vec<Level>,
    is_local: bool,
}

impl Commands {
    /// The role on its ports, taking commands while the projection is less than `backlog` behind.
    pub fn new(ports: Ports, backlog: BacklogLimit, limits: Limits) -> Self {
        let count = ports.log.partitions();
        Self {
            scopes: Scopes::new(Arc::clone(&ports.records), count),
            backlog: Arc::new(Backlog::new(count, backlog)),
            local: MemoryRequests::new(ports.clock.clone()),
            processes: AtomicU32::new(1),
            limits,
            ports,
        }
    }

    /// Keeps the knowledge of the projection's lag and of the other processes fresh; runs as long as the role does.
    pub async fn keep_up(&self) {
        let me = Uuid::new_v4();
        let attend = async {
            loop {
                if let Ok(processes) = self.ports.requests.attend(me).await {
                    self.processes.store(processes.max(1), Ordering::Relaxed);
                }
                tokio::time::sleep(ATTEND_EVERY).await;
            }
        };
        tokio::join!(self.backlog.watch(&self.ports, &self.scopes), attend);
    }

    /// Takes one command. Accepted means: the log has it. Whoever gives up waiting gives up the answer: a command that was
    /// let in is brought to its end all the same.
    pub async fn submit(self: &Arc<Self>, command: &Command) -> Result<Accepted, Refusal> {
        let deadline = Instant::now() + COMMAND_DEADLINE;
        let now = self.ports.clock.now();
        check_time(&command.request_id, now)?;
        let entry = match self.admit(command).await? {
            Entered::Fresh(entry) => entry,
            Entered::Answered(position) => return Ok(Accepted { position, replayed: true, budgets: Vec::new() }),
        };
        let (this, command) = (Arc::clone(self), command.clone());
        let ended = tokio::spawn(async move { this.complete(&command, entry, now, deadline).await }).await;
        let outcome = ended.unwrap_or_else(|_| Err(Refusal::Unknown("the command broke off".into())))?;
        // Wherever the process may have stood still since: whoever asked has gone.
        if Instant::now() > deadline { Err(late()) } else { Ok(outcome) }
    }

    /// Brings a command that was let in to its end.
    async fn complete(
        &self,
        command: &Command,
        entry: Entry,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Accepted, Refusal> {
        let (key, intent) = (command.key(), command.intent);
        match self.append(command, now, deadline).await {
            Ok(position) => {
                let _a_courtesy = self.ports.requests.finish(key, intent, position).await;
                if self.ports.requests.can_be_away() {
                    let _a_courtesy = self.local.finish(key, intent, position).await;
                }
                let budgets = entry.charges.into_iter().zip(entry.levels);
                let budgets = budgets.map(|(charge, level)| Budget { charge, level }).collect();
                Ok(Accepted { position, replayed: false, budgets })
            }
            Err(refusal) => {
                if !matches!(refusal, Refusal::Unknown(_)) {
                    // It was not done, so it is not charged.
                    let (shared, local): (&[Charge], &[Charge]) =
                        if entry.is_local { (&[], &entry.charges) } else { (&entry.charges, &[]) };
                    let _a_courtesy = self.local.release(key, local).await;
                    let _a_courtesy = self.ports.requests.release(key, shared).await;
                }
                Err(refusal)
            }
        }
    }

    /// Lets a command in, or says why not. What this process knows of a request counts first: it knows its own also while
    /// the shared requests are slow or away.
    async fn admit(&self, command: &Command) -> Result<Entered, Refusal> {
        let Intent { user, content, .. } = command.intent;
        let (key, intent) = (command.key(), command.intent);
        let of = |bucket, policy| Charge { bucket, policy };
        let address = self.limits.address.zip(command.address);
        let mut charges: Vec<Charge> = address
            .map(|(policy, address)| of(Bucket::Address(address), policy))
            .into_iter()
            .chain(self.limits.user.map(|policy| of(Bucket::User(user), policy)))
            .chain([of(Bucket::Pair(Pair { content, user }), PAIR_POLICY)])
            .collect();
        let has_local = self.ports.requests.can_be_away();
        let here = if has_local { self.local.admit(key, intent, &[]).await.ok() } else { None };
        let (admitted, is_local) = match here {
            Some(known @ (Admitted::InFlight | Admitted::Answered(_) | Admitted::Conflict)) => (known, true),
            _ => match self.ports.requests.admit(key, intent, &charges).await {
                Ok(admitted) => {
                    match &admitted {
                        Admitted::Fresh(_) => {}
                        Admitted::Answered(position) if has_local => {
                            drop(self.local.finish(key, intent, *position).await)
                        }
                        _ => drop(self.local.release(key, &[]).await),
                    }
                    (admitted, false)
                }
                // Without the shared requests one that is sent to several processes is appended by each, and has one effect.
                Err(_) => {
                    counter!("likewise_local_admissions_total").increment(1);
                    let processes = self.processes.load(Ordering::Relaxed);
                    charges.iter_mut().for_each(|charge| charge.policy = charge.policy.share(processes));
                    let _its_mark = self.local.release(key, &[]).await;
                    let local = self.local.admit(key, intent, &charges).await;
                    (local.unwrap_or(Admitted::Fresh(Vec::new())), true)
                }
            },
        };
        match admitted {
            Admitted::Fresh(levels) => Ok(Entered::Fresh(Entry { charges, levels, is_local })),
            Admitted::InFlight => Err(Refusal::InFlight { retry_after: IN_FLIGHT_LIFE }),
            Admitted::Answered(position) => Ok(Entered::Answered(position)),
            Admitted::Conflict => Err(Refusal::Reused),
            Admitted::Exhausted { charge, level } => {
                let charge = charges.swap_remove(charge.min(charges.len() - 1));
                counter!("likewise_limited_total", "limit" => charge.bucket.name()).increment(1);
                Err(Refusal::Quota(Budget { charge, level }))
            }
        }
    }

    async fn append(&self, command: &Command, now: Timestamp, deadline: Deadline) -> Result<Position, Refusal> {
        let Intent { user, content, liked } = command.intent;
        if let Some(fault) = self.ports.log.fault() {
            return Err(Refusal::Rejected(fault));
        }
        let partition = self.ports.log.partitions().partition_of(&content);
        let room = self.backlog.admit(partition).await.map_err(|Full| Refusal::Backlog)?;
        if Instant::now() >= deadline {
            // Whoever asked has gone, and what is not begun can still be left.
            return Err(Refusal::Backlog);
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
            Ok(Err(AppendError::Rejected(error))) => Err(Refusal::Rejected(error)),
            Ok(Err(AppendError::Unknown(error))) => Err(Refusal::Unknown(error.to_string())),
            Err(_) => Err(late()),
        }
    }

    /// Waits until the event at `position` is projected, at most `wait`, and gives the content's count then.
    pub(crate) async fn applied_count(&self, intent: &Intent, position: Position, wait: Duration) -> Option<i64> {
        let deadline = Instant::now() + wait;
        self.scopes.passed(&self.ports.counters, position, deadline).await;
        let scope = self.scopes.scope(position.partition).await.ok()??;
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

fn late() -> Refusal {
    Refusal::Unknown("the log did not answer in time".into())
}

/// How a command was let in.
enum Entered {
    Fresh(Entry),
    Answered(Position),
}

fn check_time(id: &RequestId, now: Timestamp) -> Result<(), Refusal> {
    let Some(millis) = id.v7_millis() else { return Ok(()) };
    let ahead = millis - now.millis();
    if ahead > AHEAD_MAX_MILLIS || -ahead > AGE_MAX_MILLIS {
        return Err(Refusal::RequestIdTime { now });
    }
    Ok(())
}
