//! One rule for every source: an answer may be used where its claim has reached what the client asked for, and it is
//! marked where its claim is too old. The cheapest source with a good claim answers; with none, the best one, marked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use likewise_schema::{Content, Offset, Partition, Position, Timestamp, UserId};
use likewise_storage::{
    Clock, CounterStore, RecordStore, Scopes, StoreError,
    counters::{Ask, Scope},
    records::Claim,
};
use metrics::{Counter, counter};
use tokio::time::Instant;

use crate::{flights::Flights, live::Live, local::Local, never::NeverLiked, recorded::Turns, trending::Trending};

/// A claim whose owner has not heard from the log for longer is old.
const HEARD_MAX_MILLIS: i64 = 3000;
/// A claim whose next event has waited for longer is old.
const EVENT_AGE_MAX_MILLIS: i64 = 5000;
/// How long to wait before looking again for an event that is not there yet, where no hint comes.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

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
    pub(crate) scopes: Scopes,
    pub(crate) local: Local,
    pub(crate) flights: Arc<Flights>,
    pub(crate) never: NeverLiked,
    pub(crate) live: Arc<Live>,
    pub(crate) trending: Trending,
    pub(crate) turns: Turns,
    pub(crate) meters: Meters,
}

/// What reads came to.
pub(crate) struct Meters {
    local_hits: Counter,
    never_liked: Counter,
    misses: Counter,
    let_through: Counter,
    pub(crate) record_reads: Counter,
    pub(crate) record_reads_refused: Counter,
    pub(crate) fills: Counter,
    pub(crate) fills_refused: Counter,
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

/// What a request asks of the stores.
#[derive(Default)]
struct Asked {
    viewer: Option<UserId>,
    partitions: BTreeMap<Partition, AskedOfPartition>,
}

#[derive(Default)]
struct AskedOfPartition {
    counts: BTreeSet<Content>,
    /// The viewer's.
    statuses: BTreeSet<Content>,
}

/// What is known so far of what was asked for, each value with its claim.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) counts: BTreeMap<Content, (i64, Claim)>,
    pub(crate) statuses: BTreeMap<Content, (bool, Claim)>,
}

/// What is asked of one partition's keys, or of the records behind them.
pub(crate) struct Wanted {
    pub(crate) scope: Scope,
    pub(crate) counts: Vec<Content>,
    /// The viewer's.
    pub(crate) statuses: Vec<Content>,
    /// How far the cache reflects the partition; none if it did not say.
    pub(crate) cached: Option<Claim>,
}

impl Wanted {
    pub(crate) fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.statuses.is_empty()
    }
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
            turns: Turns::default(),
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
            let mut asked = Asked { viewer, ..Asked::default() };
            for content in wanted() {
                self.of_partition(&mut asked, content).counts.insert(*content);
            }
            for content in contents.iter().filter(|_| viewer.is_some()) {
                self.of_partition(&mut asked, content).statuses.insert(*content);
            }
            self.find(&asked, after).await?
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
        let is_good = |(_, claim): &(i64, Claim)| self.is_good(claim, after);
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

    fn of_partition<'a>(&self, asked: &'a mut Asked, content: &Content) -> &'a mut AskedOfPartition {
        asked.partitions.entry(self.ports.partitions.partition_of(content)).or_default()
    }

    /// Looks for counts and statuses until they reach what was asked for.
    async fn find(self: &Arc<Self>, asked: &Asked, after: &After) -> Result<Known, ReadError> {
        let deadline = Instant::now() + after.wait;
        loop {
            let known = self.look(asked, after).await?;
            let claims = known.counts.values().map(|(_, claim)| claim);
            let mut claims = claims.chain(known.statuses.values().map(|(_, claim)| claim));
            let missing = claims.find(|claim| !after.is_reached_by(claim)).map(|claim| claim.partition);
            let Some(partition) = missing.filter(|_| Instant::now() < deadline) else { return Ok(known) };
            self.wait(partition, after, deadline).await;
        }
    }

    /// Whether what has this claim may be used without a mark.
    pub(crate) fn is_good(&self, claim: &Claim, after: &After) -> bool {
        after.is_reached_by(claim) && !self.is_old(claim)
    }

    /// When the claim is from, if it is too old or does not reach what was asked for.
    pub(crate) fn as_of(&self, claim: &Claim, after: &After) -> Option<Timestamp> {
        (!self.is_good(claim, after)).then_some(claim.heard_at)
    }

    pub(crate) fn is_old(&self, claim: &Claim) -> bool {
        let now = self.ports.clock.now().millis();
        let waited = claim.next_event_at.map_or(0, |at| now - at.millis());
        claim.recovering || now - claim.heard_at.millis() > HEARD_MAX_MILLIS || waited > EVENT_AGE_MAX_MILLIS
    }

    pub(crate) async fn wait(&self, partition: Partition, after: &After, deadline: Instant) {
        let started = Instant::now();
        if let Some(offset) = after.offset(partition) {
            self.scopes.passed(&self.ports.counters, Position { partition, offset }, deadline).await;
        }
        // The counters may have passed it while an older source had answered, or the hint may be lost.
        if started.elapsed() < LOOK_AGAIN {
            tokio::time::sleep_until(deadline.min(started + LOOK_AGAIN)).await;
        }
    }

    /// One look at the stores that are needed, the cheapest first.
    async fn look(self: &Arc<Self>, asked: &Asked, after: &After) -> Result<Known, ReadError> {
        let mut known = Known::default();
        let mut wanted = Vec::with_capacity(asked.partitions.len());
        for (partition, of_partition) in &asked.partitions {
            if let Some(scope) = self.scopes.scope(*partition).await? {
                let counts = of_partition.counts.iter().copied().collect();
                let statuses = of_partition.statuses.iter().copied().collect();
                wanted.push(Wanted { scope, counts, statuses, cached: None });
            }
        }
        let wanted = self.take_cached(wanted, asked.viewer, after, &mut known).await;
        let wanted = self.take_never_liked(wanted, after, &mut known);
        if !wanted.is_empty()
            && let Err(error) = self.take_recorded(wanted, asked.viewer, after, &mut known).await
        {
            // What is known is an answer all the same, if it is one to everything.
            let is_whole = |of_partition: &AskedOfPartition| {
                of_partition.counts.iter().all(|content| known.counts.contains_key(content))
                    && of_partition.statuses.iter().all(|content| known.statuses.contains_key(content))
            };
            if !asked.partitions.values().all(is_whole) {
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
            let is_good = self.is_good(&claim, after);
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
        of_records.is_none_or(|claim| claim.next_offset > cached.next_offset || self.is_good(&claim, after))
    }

    /// Nobody ever liked what the filter does not know; gives what it may know.
    fn take_never_liked(&self, mut wanted: Vec<Wanted>, after: &After, known: &mut Known) -> Vec<Wanted> {
        for Wanted { scope, counts, statuses, cached } in &mut wanted {
            let is_never =
                |content: &Content| self.never.claim(*scope, content).filter(|claim| self.is_good(claim, after));
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
}

/// Of two claims the one that says less.
fn older(one: Claim, other: Claim) -> Claim {
    let rank = |claim: &Claim| (claim.next_offset, !claim.recovering, claim.heard_at);
    if rank(&other) < rank(&one) { other } else { one }
}
