//! One rule for every source: an answer may be used where its claim has reached what the client asked for, and it is
//! marked where its claim is too old. The cheapest source with a good claim answers; with none, the best one, marked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::{join_all, try_join};
use likewise_schema::{Content, Offset, Pair, Partition, Position, Timestamp, UserId};
use likewise_storage::{
    Clock, CounterStore, RecordStore, Scopes, StoreError,
    counters::{Ask, COUNT_LIFE, CachedCount, Fill, Lease, LeaseKey, Outcome, Scope, Status, Version, version_of},
    planted::{self, Bug},
    records::{Checkpoint, Claim},
};
use metrics::{Counter, counter};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    flights::{Flights, Own},
    live::Live,
    local::Local,
    never::NeverLiked,
    trending::Trending,
};

/// A claim whose owner has not heard from the log for longer is old.
const HEARD_MAX_MILLIS: i64 = 3000;
/// A claim whose next event has waited for longer is old.
const EVENT_AGE_MAX_MILLIS: i64 = 5000;
/// How long to wait before looking again for an event that is not there yet, where no hint comes.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Record servers: one for each shard at most.
const HOMES_MAX: usize = 16;
/// Reads under way at once on one record server in one process, and how long one waits for its turn.
const RECORD_READS_MAX: usize = 16;
/// How long a read of the records may take, whoever still waits for it.
const RECORD_READ_MAX: Duration = Duration::from_secs(1);
const TURN_WAIT: Duration = Duration::from_millis(200);
/// How long a count that another process is filling is waited for, and how often it is looked for meanwhile.
const FILL_WAIT: Duration = Duration::from_millis(50);
const FILL_LOOKS: u32 = 5;

/// What the role works with.
#[derive(Clone)]
pub struct Ports {
    /// The cache.
    pub counters: Arc<dyn CounterStore>,
    /// The truth that can be queried.
    pub records: Arc<dyn RecordStore>,
    /// A copy of it that may lag, for lists and for what is not put into the cache.
    pub replica: Option<Arc<dyn RecordStore>>,
    /// How many partitions the log has.
    pub partitions: likewise_schema::PartitionCount,
    /// Its clock.
    pub clock: Clock,
}

/// What an answer must reflect, and how long to wait for it.
#[derive(Clone, Debug, Default)]
pub struct After {
    /// Each binds its own partition.
    pub positions: Vec<Position>,
    /// Past it the best answer is given, marked.
    pub wait: Duration,
}

impl After {
    /// The last offset asked for in a partition.
    fn offset(&self, partition: Partition) -> Option<Offset> {
        self.positions.iter().filter(|position| position.partition == partition).map(|position| position.offset).max()
    }

    pub(crate) fn is_reached_by(&self, claim: &Claim) -> bool {
        self.offset(claim.partition).is_none_or(|offset| claim.has_reached(offset))
    }
}

/// The truth cannot be reached, and none is invented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadError;

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        tracing::debug!(%error, "a read failed");
        ReadError
    }
}

/// A content's count and the viewer's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which content.
    pub content: Content,
    /// Its active likes.
    pub count: i64,
    /// Whether the viewer likes it; none without a viewer.
    pub liked: Option<bool>,
    /// Which prefix of the log this reflects.
    pub claim: Claim,
    /// Set if the answer may be old: when the projection last heard from the log.
    pub as_of: Option<Timestamp>,
}

/// The role without HTTP.
pub struct Reads {
    pub(crate) ports: Ports,
    scopes: Scopes,
    pub(crate) local: Local,
    flights: Arc<Flights>,
    pub(crate) never: NeverLiked,
    pub(crate) live: Arc<Live>,
    pub(crate) trending: Trending,
    /// Reads under way at once on each record server, so that a cold cache cannot sink it.
    turns: [Semaphore; HOMES_MAX],
    meters: Meters,
}

/// What reads came to.
struct Meters {
    local_hits: Counter,
    never_liked: Counter,
    misses: Counter,
    let_through: Counter,
    record_reads: Counter,
    record_reads_refused: Counter,
    fills: Counter,
    fills_refused: Counter,
    stale: Counter,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            local_hits: counter!("likewise_local_hits_total"),
            never_liked: counter!("likewise_never_liked_total"),
            misses: counter!("likewise_cache_misses_total"),
            let_through: counter!("likewise_filter_let_through_total"),
            record_reads: counter!("likewise_record_reads_total"),
            record_reads_refused: counter!("likewise_record_reads_refused_total"),
            fills: counter!("likewise_fills_total"),
            fills_refused: counter!("likewise_fills_refused_total"),
            stale: counter!("likewise_stale_answers_total"),
        }
    }
}

/// What is known so far of what was asked for, each value with its claim.
#[derive(Default)]
struct Known {
    counts: BTreeMap<Content, (i64, Claim)>,
    statuses: BTreeMap<Content, (bool, Claim)>,
}

/// What is asked of one partition's keys, or of the records behind them.
struct Wanted {
    scope: Scope,
    counts: Vec<Content>,
    /// The viewer's.
    statuses: Vec<Content>,
    /// How far the cache reflects the partition; none if it did not say.
    cached: Option<Claim>,
}

impl Wanted {
    fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.statuses.is_empty()
    }
}

/// What one look at the records says.
#[derive(Default)]
struct Seen {
    counts: Vec<(Scope, Content, CachedCount, Claim)>,
    statuses: Vec<(Scope, Content, Status, Claim)>,
}

impl Seen {
    fn claims(&self) -> impl Iterator<Item = &Claim> {
        let counts = self.counts.iter().map(|(.., claim)| claim);
        counts.chain(self.statuses.iter().map(|(.., claim)| claim))
    }
}

/// The version under which a snapshot's values are installed.
fn filled_version(next_offset: Offset) -> Version {
    version_of(next_offset) + i64::from(planted::on(Bug::FillVersionOffByOne))
}

impl Reads {
    /// The role on its ports.
    pub fn new(ports: Ports) -> Self {
        Self {
            scopes: Scopes::new(Arc::clone(&ports.records), ports.partitions),
            local: Local::default(),
            flights: Arc::default(),
            never: NeverLiked::default(),
            live: Arc::default(),
            trending: Trending::default(),
            turns: std::array::from_fn(|_| Semaphore::new(RECORD_READS_MAX)),
            meters: Meters::default(),
            ports,
        }
    }

    /// Counts of contents and the viewer's statuses, in the order asked for.
    pub async fn items(
        self: &Arc<Self>,
        contents: &[Content],
        viewer: Option<UserId>,
        after: &After,
    ) -> Result<Vec<Item>, ReadError> {
        let at_once: Vec<Option<(i64, Claim)>> =
            contents.iter().map(|content| self.count_at_once(content, after)).collect();
        let wanted = || contents.iter().zip(&at_once).filter(|(_, count)| count.is_none()).map(|(content, _)| content);
        self.meters.local_hits.increment((contents.len() - wanted().count()) as u64);
        let known = if viewer.is_none() && wanted().next().is_none() {
            Known::default()
        } else {
            let counts = self.by_partition(wanted());
            let statuses = if viewer.is_some() { self.by_partition(contents.iter()) } else { BTreeMap::new() };
            self.find(&counts, &statuses, viewer, after).await?
        };
        let item = |(content, at_once): (&Content, Option<(i64, Claim)>)| {
            let (count, mut claim) = at_once.or_else(|| known.counts.get(content).copied()).ok_or(ReadError)?;
            let (mut liked, mut as_of) = (None, self.as_of(&claim, after));
            if viewer.is_some() {
                let (status, of_status) = *known.statuses.get(content).ok_or(ReadError)?;
                liked = Some(status);
                as_of = as_of.or(self.as_of(&of_status, after));
                claim = older(claim, of_status);
            }
            if as_of.is_some() {
                self.meters.stale.increment(1);
            }
            Ok(Item { content: *content, count, liked, claim, as_of })
        };
        contents.iter().zip(at_once.iter().copied()).map(item).collect()
    }

    /// What this process read a moment ago, or knows that nobody liked.
    fn count_at_once(&self, content: &Content, after: &After) -> Option<(i64, Claim)> {
        let is_good = |(_, claim): &(i64, Claim)| self.as_of(claim, after).is_none();
        self.local.get(content).filter(is_good).or_else(|| {
            let scope = self.scope_of(content)?;
            let never_liked = self.never.claim(scope, content).map(|claim| (0, claim)).filter(is_good)?;
            self.meters.never_liked.increment(1);
            Some(never_liked)
        })
    }

    /// Where a content's entries are, if that is known.
    pub(crate) fn scope_of(&self, content: &Content) -> Option<Scope> {
        self.scopes.known(self.ports.partitions.partition_of(content))
    }

    fn by_partition<'a>(&self, contents: impl Iterator<Item = &'a Content>) -> BTreeMap<Partition, BTreeSet<Content>> {
        let mut by_partition: BTreeMap<Partition, BTreeSet<Content>> = BTreeMap::new();
        for content in contents {
            by_partition.entry(self.ports.partitions.partition_of(content)).or_default().insert(*content);
        }
        by_partition
    }

    /// Looks for counts and statuses until they reach what was asked for.
    async fn find(
        self: &Arc<Self>,
        counts: &BTreeMap<Partition, BTreeSet<Content>>,
        statuses: &BTreeMap<Partition, BTreeSet<Content>>,
        viewer: Option<UserId>,
        after: &After,
    ) -> Result<Known, ReadError> {
        let deadline = Instant::now() + after.wait;
        loop {
            let known = self.look(counts, statuses, viewer, after).await?;
            let claims = known.counts.values().map(|(_, claim)| claim);
            let mut claims = claims.chain(known.statuses.values().map(|(_, claim)| claim));
            let missing = claims.find(|claim| !after.is_reached_by(claim)).map(|claim| claim.partition);
            let Some(partition) = missing.filter(|_| Instant::now() < deadline) else { return Ok(known) };
            self.wait(partition, after, deadline).await;
        }
    }

    /// When the claim is from, if it is too old or does not reach what was asked for.
    pub(crate) fn as_of(&self, claim: &Claim, after: &After) -> Option<Timestamp> {
        let is_good = after.is_reached_by(claim) && !self.is_old(claim);
        (!is_good).then_some(claim.heard_at)
    }

    pub(crate) fn is_old(&self, claim: &Claim) -> bool {
        let now = self.ports.clock.now().millis();
        let waited = claim.next_event_at.map_or(0, |at| now - at.millis());
        claim.recovering || now - claim.heard_at.millis() > HEARD_MAX_MILLIS || waited > EVENT_AGE_MAX_MILLIS
    }

    pub(crate) async fn wait(&self, partition: Partition, after: &After, deadline: Instant) {
        let (scope, offset) = (self.scopes.scope(partition).await, after.offset(partition));
        let started = Instant::now();
        if let (Ok(Some(scope)), Some(offset)) = (scope, offset) {
            self.ports.counters.passed(scope, offset, deadline.saturating_duration_since(started)).await;
        }
        // The counters may have passed it while an older source had answered, or the hint may be lost.
        if started.elapsed() < LOOK_AGAIN {
            tokio::time::sleep_until(deadline.min(started + LOOK_AGAIN)).await;
        }
    }

    /// One look at the stores that are needed, the cheapest first.
    async fn look(
        self: &Arc<Self>,
        counts: &BTreeMap<Partition, BTreeSet<Content>>,
        statuses: &BTreeMap<Partition, BTreeSet<Content>>,
        viewer: Option<UserId>,
        after: &After,
    ) -> Result<Known, ReadError> {
        let mut known = Known::default();
        let partitions: BTreeSet<Partition> = counts.keys().chain(statuses.keys()).copied().collect();
        let mut wanted = Vec::with_capacity(partitions.len());
        for partition in partitions {
            if let Some(scope) = self.scopes.scope(partition).await? {
                let of = |all: &BTreeMap<Partition, BTreeSet<Content>>| {
                    all.get(&partition).map_or(Vec::new(), |contents| contents.iter().copied().collect())
                };
                wanted.push(Wanted { scope, counts: of(counts), statuses: of(statuses), cached: None });
            }
        }
        let wanted = self.take_cached(wanted, viewer, after, &mut known).await;
        let wanted = self.take_never_liked(wanted, after, &mut known);
        if !wanted.is_empty()
            && let Err(error) = self.take_recorded(wanted, viewer, after, &mut known).await
        {
            // What is known is an answer all the same, if it is one to everything.
            let is_whole = counts.values().flatten().all(|content| known.counts.contains_key(content))
                && statuses.values().flatten().all(|content| known.statuses.contains_key(content));
            if !is_whole {
                return Err(error);
            }
        }
        Ok(known)
    }

    /// Takes from the cache, in one round trip, what is there. Gives what is not, and what is there with a claim that is
    /// not good while the records may have a better one.
    async fn take_cached(
        &self,
        mut wanted: Vec<Wanted>,
        viewer: Option<UserId>,
        after: &After,
        known: &mut Known,
    ) -> Vec<Wanted> {
        let ask = |wanted: &Wanted| Ask {
            scope: wanted.scope,
            counts: wanted.counts.clone(),
            statuses: wanted.statuses.clone(),
        };
        let asks: Vec<Ask> = wanted.iter().map(ask).collect();
        let Ok(answers) = self.ports.counters.read(&asks, viewer).await else { return wanted };
        for (wanted, answer) in wanted.iter_mut().zip(answers) {
            let partition = wanted.scope.partition;
            let Some(progress) = answer.progress else {
                self.scopes.doubt(partition);
                continue;
            };
            let claim = progress.claim(partition);
            let is_good = after.is_reached_by(&claim) && !self.is_old(&claim);
            if !is_good {
                self.scopes.doubt(partition);
            }
            wanted.cached = Some(claim);
            let is_best = is_good || !self.records_are_further(&claim, after).await;
            let mut answers = answer.counts.into_iter();
            wanted.counts.retain(|content| {
                let Some(cached) = answers.next().flatten() else { return true };
                known.counts.insert(*content, (cached.count, claim));
                self.local.keep(wanted.scope, *content, cached.count, claim);
                !is_best
            });
            let mut answers = answer.statuses.into_iter();
            wanted.statuses.retain(|content| {
                let Some(status) = answers.next().flatten() else { return true };
                known.statuses.insert(*content, (status.liked, claim));
                !is_best
            });
        }
        wanted.retain(|wanted| !wanted.is_empty());
        let missed: usize = wanted.iter().map(|wanted| wanted.counts.len() + wanted.statuses.len()).sum();
        self.meters.misses.increment(missed as u64);
        wanted
    }

    /// Whether the records may have a better claim than the cache. They are asked for their checkpoint now and then, so
    /// that a cache which can go no further does not send every reader to them.
    async fn records_are_further(&self, cached: &Claim, after: &After) -> bool {
        let of_records = self.scopes.records_claim(cached.partition).await;
        of_records.is_none_or(|claim| {
            claim.next_offset > cached.next_offset || (after.is_reached_by(&claim) && !self.is_old(&claim))
        })
    }

    /// Nobody ever liked what the filter does not know; gives what it may know.
    fn take_never_liked(&self, mut wanted: Vec<Wanted>, after: &After, known: &mut Known) -> Vec<Wanted> {
        for Wanted { scope, counts, statuses, cached } in &mut wanted {
            let is_never = |content: &Content| {
                let claim = self.never.claim(*scope, content)?;
                self.as_of(&claim, after).is_none().then_some(claim)
            };
            counts.retain(|content| {
                let is_known = |claim: &Claim| {
                    known.counts.get(content).is_some_and(|(_, known)| known.next_offset > claim.next_offset)
                };
                let claim = is_never(content).filter(|claim| !is_known(claim));
                known.counts.extend(claim.map(|claim| (*content, (0, claim))));
                claim.is_none()
            });
            statuses.retain(|content| {
                // Not older than the cache, which may have the viewer's own like: it would be shown undone.
                let is_not_behind =
                    |claim: &Claim| cached.is_some_and(|cached| cached.next_offset <= claim.next_offset);
                let claim = is_never(content).filter(is_not_behind);
                known.statuses.extend(claim.map(|claim| (*content, (false, claim))));
                claim.is_none()
            });
            self.meters.let_through.increment(counts.len() as u64);
        }
        wanted.retain(|wanted| !wanted.is_empty());
        wanted
    }

    /// Reads the records for what no cheaper source could answer, each server by itself: one that is away takes nothing from
    /// the others.
    async fn take_recorded(
        self: &Arc<Self>,
        wanted: Vec<Wanted>,
        viewer: Option<UserId>,
        after: &After,
        known: &mut Known,
    ) -> Result<(), ReadError> {
        let mut by_home: BTreeMap<usize, Vec<Wanted>> = BTreeMap::new();
        for wanted in wanted {
            by_home.entry(self.ports.records.home(wanted.scope.partition) % HOMES_MAX).or_default().push(wanted);
        }
        let reads = by_home.into_values().map(|wanted| self.read_records(wanted, viewer, after));
        let mut outcome = Ok(());
        for (seen, read) in join_all(reads).await {
            seen.counts.into_iter().for_each(|(content, seen)| self.know(&mut known.counts, after, content, seen));
            seen.statuses.into_iter().for_each(|(content, seen)| self.know(&mut known.statuses, after, content, seen));
            outcome = outcome.and(read);
        }
        outcome
    }

    /// Reads one server's records: each count once for all who want it at the moment. Gives what was found, and whether that
    /// is all.
    async fn read_records(
        self: &Arc<Self>,
        mut wanted: Vec<Wanted>,
        viewer: Option<UserId>,
        after: &After,
    ) -> (Known, Result<(), ReadError>) {
        let mut known = Known::default();
        let mut read = Ok(());
        // Again, where another reader failed whose result was waited for.
        for _ in 0..2 {
            let counts: Vec<Content> = wanted.iter().flat_map(|wanted| wanted.counts.iter().copied()).collect();
            let (mut own, others) = self.flights.begin(&counts);
            let is_left = |content: &Content, known: &mut Known, own: &mut Own| {
                let landed = self.local.get(content).filter(|(_, claim)| self.as_of(claim, after).is_none());
                if let Some((count, claim)) = landed {
                    known.counts.insert(*content, (count, claim));
                    own.bring(content, count, claim);
                }
                landed.is_none()
            };
            for wanted in &mut wanted {
                wanted.counts.retain(|content| own.has(content) && is_left(content, &mut known, &mut own));
            }
            wanted.retain(|wanted| !wanted.is_empty());
            if !wanted.is_empty() {
                // In a task of its own: whoever waits for it may give up, and then others still get what it brings.
                let (reads, of_all, after_all) = (Arc::clone(self), std::mem::take(&mut wanted), after.clone());
                let task = tokio::spawn(async move { reads.read_and_fill(of_all, viewer, &after_all, own).await });
                match task.await.unwrap_or(Err(ReadError)) {
                    Ok(seen) => {
                        seen.counts
                            .into_iter()
                            .for_each(|(content, seen)| self.know(&mut known.counts, after, content, seen));
                        let statuses = seen.statuses.into_iter();
                        statuses.for_each(|(content, seen)| self.know(&mut known.statuses, after, content, seen));
                    }
                    Err(error) => read = read.and(Err(error)),
                }
            }
            let mut late: BTreeMap<Partition, Vec<Content>> = BTreeMap::new();
            for (content, other) in others {
                match other.brought().await {
                    Some((count, claim)) => {
                        self.know(&mut known.counts, after, content, (count, claim));
                        if after.is_reached_by(&claim) {
                            continue;
                        }
                    }
                    None => read = read.and(Err(ReadError)),
                }
                late.entry(self.ports.partitions.partition_of(&content)).or_default().push(content);
            }
            wanted.clear();
            for (partition, counts) in late {
                match self.scopes.scope(partition).await {
                    Ok(Some(scope)) => wanted.push(Wanted { scope, counts, statuses: Vec::new(), cached: None }),
                    Ok(None) | Err(_) => return (known, Err(ReadError)),
                }
            }
            if wanted.is_empty() {
                break;
            }
            read = Ok(());
        }
        let outcome = if wanted.is_empty() { read } else { Err(ReadError) };
        (known, outcome)
    }

    /// Reads the records, and fills the cache where this reader may.
    async fn read_and_fill(
        &self,
        wanted: Vec<Wanted>,
        viewer: Option<UserId>,
        after: &After,
        mut own: Own,
    ) -> Result<Known, ReadError> {
        let mut known = Known::default();
        let leases = self.lease(&wanted, viewer).await;
        let wanted = self.filled_by_another(wanted, &leases, after, &mut known, &mut own).await;
        if wanted.is_empty() {
            return Ok(known);
        }
        if let Some(replica) = self.ports.replica.as_ref().filter(|_| leases.is_empty())
            && let Ok(seen) = self.see(&**replica, &wanted, viewer).await
            && seen.claims().all(|claim| after.is_reached_by(claim) && !self.is_old(claim))
        {
            self.know_all(&seen, after, &mut known, &mut own);
            return Ok(known);
        }
        let store = match &self.ports.replica {
            Some(replica) if planted::on(Bug::ReplicaFills) => replica,
            _ => &self.ports.records,
        };
        let seen = self.see(&**store, &wanted, viewer).await?;
        self.know_all(&seen, after, &mut known, &mut own);
        let mut fills = Vec::new();
        for (scope, content, count, _) in &seen.counts {
            if let Some(lease) = leases.get(&(*scope, LeaseKey::Count(*content))) {
                fills.push((*scope, *lease, Fill::Count(*content, *count, jittered(COUNT_LIFE))));
            }
        }
        let mut statuses: BTreeMap<Scope, Vec<(Content, Status)>> = BTreeMap::new();
        for (scope, content, status, _) in &seen.statuses {
            statuses.entry(*scope).or_default().push((*content, *status));
        }
        for (scope, statuses) in statuses {
            if let Some(user) = viewer
                && let Some(lease) = leases.get(&(scope, LeaseKey::Statuses(user)))
            {
                fills.push((scope, *lease, Fill::Statuses(user, statuses)));
            }
        }
        // A refused or failed fill leaves the entry missing: the next reader tries again.
        let fill = |(scope, lease, fill)| self.ports.counters.fill(scope, lease, fill);
        let outcomes = join_all(fills.into_iter().map(fill)).await;
        let done = outcomes.iter().filter(|outcome| **outcome == Ok(Outcome::Done)).count();
        self.meters.fills.increment(done as u64);
        self.meters.fills_refused.increment((outcomes.len() - done) as u64);
        Ok(known)
    }

    /// Waits a moment for the counts that another process is filling. Gives what is still wanted then.
    async fn filled_by_another(
        &self,
        wanted: Vec<Wanted>,
        leases: &BTreeMap<(Scope, LeaseKey), Lease>,
        after: &After,
        known: &mut Known,
        own: &mut Own,
    ) -> Vec<Wanted> {
        let is_leased = |scope, content: &Content| leases.contains_key(&(scope, LeaseKey::Count(*content)));
        let mut asks: Vec<Ask> = wanted
            .iter()
            .filter(|wanted| wanted.cached.is_some())
            .map(|wanted| {
                let unleased = wanted.counts.iter().filter(|content| !is_leased(wanted.scope, content));
                Ask { scope: wanted.scope, counts: unleased.copied().collect(), statuses: Vec::new() }
            })
            .filter(|ask| !ask.counts.is_empty())
            .collect();
        if asks.is_empty() {
            return wanted;
        }
        let mut filled = BTreeSet::new();
        for _ in 0..FILL_LOOKS {
            tokio::time::sleep(FILL_WAIT / FILL_LOOKS).await;
            let Ok(answers) = self.ports.counters.read(&asks, None).await else { break };
            for (ask, answer) in asks.iter_mut().zip(answers) {
                let Some(claim) = answer.progress.map(|progress| progress.claim(ask.scope.partition)) else { continue };
                let mut cached = answer.counts.into_iter();
                ask.counts.retain(|content| {
                    let Some(cached) = cached.next().flatten().filter(|_| self.as_of(&claim, after).is_none()) else {
                        return true;
                    };
                    known.counts.insert(*content, (cached.count, claim));
                    self.local.keep(ask.scope, *content, cached.count, claim);
                    own.bring(content, cached.count, claim);
                    filled.insert(*content);
                    false
                });
            }
            asks.retain(|ask| !ask.counts.is_empty());
            if asks.is_empty() {
                break;
            }
        }
        let left = |mut wanted: Wanted| {
            wanted.counts.retain(|content| !filled.contains(content));
            wanted
        };
        wanted.into_iter().map(left).filter(|wanted| !wanted.is_empty()).collect()
    }

    /// What a record store says of contents, and of the viewer's likes of them.
    async fn see(&self, store: &dyn RecordStore, wanted: &[Wanted], viewer: Option<UserId>) -> Result<Seen, ReadError> {
        let Some(first) = wanted.first() else { return Ok(Seen::default()) };
        let turns = &self.turns[self.ports.records.home(first.scope.partition) % HOMES_MAX];
        let turn = tokio::time::timeout(TURN_WAIT, turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            self.meters.record_reads_refused.increment(1);
            return Err(ReadError);
        };
        self.meters.record_reads.increment(1);
        let each = |of: fn(&Wanted) -> &Vec<Content>| {
            wanted.iter().flat_map(move |wanted| of(wanted).iter().map(|content| (wanted.scope, *content)))
        };
        let contents: Vec<Content> = each(|wanted| &wanted.counts).map(|(_, content)| content).collect();
        let pairs: Vec<Pair> = viewer.map_or(Vec::new(), |user| {
            each(|wanted| &wanted.statuses).map(|(_, content)| Pair { content, user }).collect()
        });
        let counts = async { if contents.is_empty() { Ok(None) } else { store.counts(&contents).await.map(Some) } };
        let rows = async { if pairs.is_empty() { Ok(None) } else { store.rows(&pairs).await.map(Some) } };
        let read = tokio::time::timeout(RECORD_READ_MAX, try_join(counts, rows)).await;
        let (counts, rows) = read.map_err(|_| ReadError)??;
        let mut seen = Seen::default();
        if let Some(counts) = counts {
            for ((scope, content), count) in each(|wanted| &wanted.counts).zip(counts.value) {
                let checkpoint = checkpoint_of(&counts.checkpoints, scope.partition).ok_or(ReadError)?;
                let version = filled_version(checkpoint.next_offset);
                let count = CachedCount { count: count.map_or(0, |count| count.count), version };
                seen.counts.push((scope, content, count, checkpoint.claim()));
            }
        }
        if let Some(rows) = rows {
            for ((scope, content), row) in each(|wanted| &wanted.statuses).zip(rows.value) {
                let checkpoint = checkpoint_of(&rows.checkpoints, scope.partition).ok_or(ReadError)?;
                let version = filled_version(checkpoint.next_offset);
                let liked = row.as_ref().is_some_and(|row| !row.is_canceled);
                let status = Status { liked, at: row.map(|row| row.updated_at), version };
                seen.statuses.push((scope, content, status, checkpoint.claim()));
            }
        }
        Ok(seen)
    }

    fn know_all(&self, seen: &Seen, after: &After, known: &mut Known, own: &mut Own) {
        for (scope, content, count, claim) in &seen.counts {
            self.know(&mut known.counts, after, *content, (count.count, *claim));
            self.local.keep(*scope, *content, count.count, *claim);
            own.bring(content, count.count, *claim);
        }
        for (_, content, status, claim) in &seen.statuses {
            self.know(&mut known.statuses, after, *content, (status.liked, *claim));
        }
    }

    /// Keeps a value, unless something better is known. What the cache said and is asked for again was not good.
    fn know<T>(&self, known: &mut BTreeMap<Content, (T, Claim)>, after: &After, content: Content, value: (T, Claim)) {
        let is_further = |(_, claim): &(T, Claim)| claim.next_offset <= value.1.next_offset;
        if self.as_of(&value.1, after).is_none() || known.get(&content).is_none_or(is_further) {
            known.insert(content, value);
        }
    }

    /// Leases are taken before the records are read: what changes in between drops them.
    async fn lease(&self, wanted: &[Wanted], viewer: Option<UserId>) -> BTreeMap<(Scope, LeaseKey), Lease> {
        let mut keys = Vec::new();
        // Where the cache does not even say how far it is, there is nothing to fill.
        for wanted in wanted.iter().filter(|wanted| wanted.cached.is_some()) {
            let counts = wanted.counts.iter().map(|content| LeaseKey::Count(*content));
            let statuses = viewer.filter(|_| !wanted.statuses.is_empty()).map(LeaseKey::Statuses);
            keys.extend(counts.chain(statuses).map(|key| (wanted.scope, key)));
        }
        // Side by side: a server gets them in one go.
        let lease = |(scope, key)| self.ports.counters.lease(scope, key);
        let leases = join_all(keys.iter().copied().map(lease)).await;
        let given = |(key, lease): (_, Result<Option<Lease>, StoreError>)| Some((key, lease.ok()??));
        keys.into_iter().zip(leases).filter_map(given).collect()
    }
}

/// Of two claims the one that says less.
fn older(one: Claim, other: Claim) -> Claim {
    let rank = |claim: &Claim| (claim.next_offset, !claim.recovering, claim.heard_at);
    if rank(&other) < rank(&one) { other } else { one }
}

fn checkpoint_of(checkpoints: &[Checkpoint], partition: Partition) -> Option<&Checkpoint> {
    checkpoints.iter().find(|checkpoint| checkpoint.partition == partition)
}

/// ±10 %, so that what was filled together does not expire together.
fn jittered(life: Duration) -> Duration {
    life.mul_f64(0.9 + 0.2 * rand::random::<f64>())
}
