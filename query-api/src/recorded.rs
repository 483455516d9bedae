//! The records as the last source of reads: each server by itself, each count once for all who want it at the moment, and
//! what was read is put into the cache.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::{join_all, try_join};
use likewise_schema::{Content, Offset, Pair, Partition, UserId};
use likewise_storage::{
    RecordStore, StoreError,
    counters::{Ask, COUNT_LIFE, CachedCount, Fill, Lease, LeaseKey, Outcome, Scope, Status, Version, version_of},
    planted::{self, Bug},
    records::{Checkpoint, Claim},
};
use tokio::sync::Semaphore;

use crate::{
    flights::Own,
    reads::{After, Known, ReadError, Reads, Wanted},
};

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

/// Reads under way at once on each record server, so that a cold cache cannot sink it.
pub(crate) struct Turns([Semaphore; HOMES_MAX]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Semaphore::new(RECORD_READS_MAX)))
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
    /// Reads the records for what no cheaper source could answer, each server by itself: one that is away takes nothing from
    /// the others.
    pub(crate) async fn take_recorded(
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
            self.know_more(known, after, seen);
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
                let landed = self.local.get(content).filter(|(_, claim)| self.is_good(claim, after));
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
                    Ok(seen) => self.know_more(&mut known, after, seen),
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
            && seen.claims().all(|claim| self.is_good(claim, after))
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
                    let Some(cached) = cached.next().flatten().filter(|_| self.is_good(&claim, after)) else {
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
        let turns = &self.turns.0[self.ports.records.home(first.scope.partition) % HOMES_MAX];
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

    fn know_more(&self, known: &mut Known, after: &After, more: Known) {
        more.counts.into_iter().for_each(|(content, count)| self.know(&mut known.counts, after, content, count));
        more.statuses.into_iter().for_each(|(content, status)| self.know(&mut known.statuses, after, content, status));
    }

    /// Keeps a value, unless something better is known. What the cache said and is asked for again was not good.
    fn know<T>(&self, known: &mut BTreeMap<Content, (T, Claim)>, after: &After, content: Content, value: (T, Claim)) {
        let is_further = |(_, claim): &(T, Claim)| claim.next_offset <= value.1.next_offset;
        if self.is_good(&value.1, after) || known.get(&content).is_none_or(is_further) {
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

fn checkpoint_of(checkpoints: &[Checkpoint], partition: Partition) -> Option<&Checkpoint> {
    checkpoints.iter().find(|checkpoint| checkpoint.partition == partition)
}

/// ±10 %, so that what was filled together does not expire together.
fn jittered(life: Duration) -> Duration {
    life.mul_f64(0.9 + 0.2 * rand::random::<f64>())
}
