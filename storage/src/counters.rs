//! The counter store: a cache of counts and statuses that knows which prefix of each partition it reflects.
//!
//! It is never the truth. A missing entry means unknown, never 0.

mod memory;
#[cfg(feature = "servers")]
mod redis;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use likewise_schema::{Content, Offset, Partition, Timestamp, UserId};
use tokio::sync::{broadcast, mpsc};

pub use self::memory::{CountersCopy, MemoryCounters};
#[cfg(feature = "servers")]
pub use self::redis::RedisCounters;
use crate::{
    StoreError,
    records::{Checkpoint, Claim, Generation},
};

/// How long a lease gives a reader the right to fill.
pub const LEASE_LIFE: Duration = Duration::from_secs(2);
/// How long a count lives from its making; ±10 % is the filler's to add.
pub const COUNT_LIFE: Duration = Duration::from_secs(3600);
/// How long a user's statuses live from their making.
pub const STATUSES_LIFE: Duration = Duration::from_secs(3600);
/// How many events a takeover re-publishes at most; progress further back is given up, and its entries with it.
pub const REPUBLISH_EVENTS_MAX: i64 = 100_000;

/// The keys of one partition of one set of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    /// Which tables.
    pub generation: Generation,
    /// Which partition.
    pub partition: Partition,
}

impl Checkpoint {
    /// Where the entries of this checkpoint's partition are.
    pub fn scope(&self) -> Scope {
        Scope { generation: self.generation, partition: self.partition }
    }
}

/// The version of an entry: the offset of the last event behind it, -1 before the first.
pub type Version = i64;

/// The version of what a snapshot with this checkpoint shows.
pub fn version_of(next_offset: Offset) -> Version {
    next_offset.get() - 1
}

/// Names the owner whose publishes are taken; random, made anew at each takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer(pub u64);

/// Names the reader that may fill; random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseToken(pub u64);

/// Which prefix of a partition the entries of a scope reflect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Whose publishes are taken.
    pub writer: Writer,
    /// Offset of the last event reflected, -1 before the first.
    pub position: Version,
    /// Entries of a lower version count as missing. Only rises.
    pub floor: Version,
    /// The owner is publishing what was lost.
    pub recovering: bool,
    /// The rest of it.
    pub news: News,
}

/// What the owner last heard from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// The log's end.
    pub log_end: Offset,
    /// `receivedAt` of the next event that is not reflected, if known.
    pub next_event_at: Option<Timestamp>,
    /// When.
    pub heard_at: Timestamp,
}

impl Publish {
    /// What it changes, for those who want to know at once; none where no event is behind it.
    fn change(&self, scope: Scope) -> Option<Change> {
        let claim = claim(scope.partition, self.to, self.news, self.recovering);
        let is_whole = self.counts.len() <= CHANGED_MAX;
        let counts = if is_whole { self.counts.clone() } else { Vec::new() };
        let from = Offset::new(self.from.saturating_add(1)).unwrap_or_default();
        (self.to > self.from).then_some(Change { scope, from, claim, counts, is_whole })
    }
}

fn claim(partition: Partition, position: Version, news: News, recovering: bool) -> Claim {
    Claim {
        partition,
        next_offset: Offset::new(position.saturating_add(1)).unwrap_or_default(),
        heard_at: news.heard_at,
        next_event_at: news.next_event_at,
        recovering,
    }
}

impl Progress {
    /// The claim of entries read after this progress in the same pipeline.
    pub fn claim(&self, partition: Partition) -> Claim {
        claim(partition, self.position, self.news, self.recovering)
    }
}

/// A user's like of a content, as cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whether it is liked; a known negative is false.
    pub liked: bool,
    /// When it became so; none if it never was anything.
    pub at: Option<Timestamp>,
    /// Its version.
    pub version: Version,
}

/// A count, as cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedCount {
    /// The absolute count.
    pub count: i64,
    /// Its version.
    pub version: Version,
}

/// What one batch changes, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The owner's token.
    pub writer: Writer,
    /// Where progress must stand for this publish to be taken.
    pub from: Version,
    /// Where it moves.
    pub to: Version,
    /// Counts touched.
    pub counts: Vec<(Content, CachedCount)>,
    /// Statuses touched.
    pub statuses: Vec<(UserId, Content, Status)>,
    /// What else progress says.
    pub news: News,
    /// True while the owner re-publishes after a takeover.
    pub recovering: bool,
}

/// What a publish changed. A hint: nothing depends on its arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub scope: Scope,
    /// The first event behind it.
    pub from: Offset,
    /// What the counts reflect.
    pub claim: Claim,
    /// The counts touched; none of them where they are more than [`CHANGED_MAX`].
    pub counts: Vec<(Content, CachedCount)>,
    /// Whether all counts touched are named.
    pub is_whole: bool,
}

/// How many counts a [`Change`] holds at most.
pub const CHANGED_MAX: usize = 1000;
/// Changes that may wait for a receiver; one that is slower loses the oldest.
const CHANGES_WAITING: usize = 256;

/// Changes from the moment on at which they were asked for.
pub struct Changes {
    hints: broadcast::Receiver<Arc<Change>>,
    comes: Arc<AtomicBool>,
}

impl Changes {
    /// The next one; those that were lost in between are left out. None when the store has ended.
    pub async fn next(&mut self) -> Option<Arc<Change>> {
        loop {
            match self.hints.recv().await {
                Ok(change) => return Some(change),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// Tells at any time whether changes come, as far as is known.
    pub fn liveness(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let comes = Arc::clone(&self.comes);
        move || comes.load(Ordering::Relaxed)
    }
}

/// Sends changes to whoever asked for them.
#[derive(Debug)]
struct Hints {
    sender: broadcast::Sender<Arc<Change>>,
    comes: Arc<AtomicBool>,
}

impl Hints {
    fn new(comes: bool) -> Self {
        Self { sender: broadcast::Sender::new(CHANGES_WAITING), comes: Arc::new(AtomicBool::new(comes)) }
    }

    fn changes(&self) -> Changes {
        Changes { hints: self.sender.subscribe(), comes: Arc::clone(&self.comes) }
    }

    fn are_wanted(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    fn send(&self, change: Change) {
        let _nobody_listens = self.sender.send(Arc::new(change));
    }
}

/// Whether a conditional write was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Its condition did not hold; nothing changed.
    Refused,
}

/// What a reader asks of one scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Where.
    pub scope: Scope,
    /// Which counts.
    pub counts: Vec<Content>,
    /// The viewer's statuses of which contents; nothing is asked without a viewer.
    pub statuses: Vec<Content>,
}

/// What a scope answers: progress, read first, and the entries read after it. Entries below the floor are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// None: the entries have no claim, and are not given.
    pub progress: Option<Progress>,
    /// In the order asked for.
    pub counts: Vec<Option<CachedCount>>,
    /// In the order asked for; empty without a viewer.
    pub statuses: Vec<Option<Status>>,
}

/// What a reader may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LeaseKey {
    /// One count.
    Count(Content),
    /// A user's statuses in the scope's partition.
    Statuses(UserId),
}

/// The right to fill, and what a snapshot must have reached to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Names the holder.
    pub token: LeaseToken,
    /// Progress when the lease was given.
    pub position: Version,
}

/// A value to install under a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fill {
    /// One count, with how long it may live.
    Count(Content, CachedCount, Duration),
    /// Statuses of one user; those of contents that are not named stay unknown.
    Statuses(UserId, Vec<(Content, Status)>),
}

impl Fill {
    /// The lease it needs.
    pub fn lease_key(&self) -> LeaseKey {
        match self {
            Fill::Count(content, ..) => LeaseKey::Count(*content),
            Fill::Statuses(user, _) => LeaseKey::Statuses(*user),
        }
    }

    /// The version installed.
    fn version(&self) -> Version {
        match self {
            Fill::Count(_, cached, _) => cached.version,
            Fill::Statuses(_, statuses) => statuses.iter().map(|(_, status)| status.version).min().unwrap_or(-1),
        }
    }
}

/// The counter port. Each method is atomic within its scope.
#[async_trait]
pub trait CounterStore: Send + Sync + 'static {
    /// Takes a batch over if progress holds its writer and stands at `from`. Updates entries that exist and are
    /// older, drops the leases of all that it names, then moves progress and sets `recovering`.
    async fn publish(&self, scope: Scope, publish: Publish) -> Result<Outcome, StoreError>;

    /// Makes `writer` the one whose publishes are taken, marks the scope as recovering, and returns the position to
    /// publish from. Where progress is missing, or over [`REPUBLISH_EVENTS_MAX`] behind `checkpoint`, position and
    /// floor become `checkpoint`, the last offset applied to the records.
    async fn take_over(
        &self,
        scope: Scope,
        writer: Writer,
        checkpoint: Version,
        news: News,
    ) -> Result<Version, StoreError>;

    /// The scope's progress.
    async fn progress(&self, scope: Scope) -> Result<Option<Progress>, StoreError>;

    /// Reads entries of several scopes, the viewer's statuses included.
    async fn read(&self, asks: &[Ask], viewer: Option<UserId>) -> Result<Vec<Answer>, StoreError>;

    /// Gives the right to fill to one reader at a time. None while another holds it, or while progress is missing.
    async fn lease(&self, scope: Scope, key: LeaseKey) -> Result<Option<Lease>, StoreError>;

    /// Installs a value read from the primary if the lease is still held and what is there is missing or not newer.
    /// A value older than the lease's position is refused.
    async fn fill(&self, scope: Scope, lease: Lease, fill: Fill) -> Result<Outcome, StoreError>;

    /// Drops counts, and all statuses of users in the scope, with their leases: what a repair touched is unknown then.
    async fn forget(&self, scope: Scope, contents: &[Content], users: &[UserId]) -> Result<(), StoreError>;

    /// Waits until progress has passed `offset`, at most `wait`. A hint: the caller reads again in any case.
    async fn passed(&self, scope: Scope, offset: Offset, wait: Duration);

    /// What publishes change from now on, of all scopes.
    fn changes(&self) -> Changes;

    /// Sends every entry that lives, of all scopes, in chunks. For those who check; it takes its time.
    async fn entries(&self, out: mpsc::Sender<Vec<Cached>>) -> Result<(), StoreError>;
}

/// An entry, as it is found by somebody who looks at all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached {
    /// A count.
    Count(Scope, Content, CachedCount),
    /// A user's like of a content.
    Status(Scope, UserId, Content, Status),
    /// A key of a scope whose value nobody writes; the key.
    Damaged(Scope, String),
}
