//! One rule for every source: an answer may be used where its claim has reached what the client asked for, and it is
//! marked where its claim is too old. The cheapest source with a good claim answers; with none, the best one, marked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::{join_all, try_join};
use likewise_schema::{Content, ContentType, Offset, Pair, Partition, Position, Timestamp, UserId};
use likewise_storage::{
    Clock, CounterStore, RecordStore, Scopes, StoreError,
    counters::{Answer, Ask, COUNT_LIFE, CachedCount, Fill, Lease, LeaseKey, Scope, Status, Version, version_of},
    planted::{self, Bug},
    records::{Checkpoint, Claim, Liked, Liker, Snapshot},
};
use metrics::counter;
use tokio::time::Instant;

use crate::local::Local;

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

    fn is_reached_by(&self, claim: &Claim) -> bool {
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
    ports: Ports,
    scopes: Scopes,
    local: Local,
}

/// What one source says of a content, each part with its claim.
#[derive(Clone, Copy)]
struct Said {
    count: i64,
    liked: Option<bool>,
    claim: Claim,
}

/// What one snapshot of the records says of a content.
struct Seen {
    scope: Scope,
    content: Content,
    count: CachedCount,
    /// The viewer's; none without a viewer.
    status: Option<Status>,
    claim: Claim,
}

/// The version under which a snapshot's values are installed.
fn filled_version(next_offset: Offset) -> Version {
    version_of(next_offset) + i64::from(planted::on(Bug::FillVersionOffByOne))
}

impl Reads {
    /// The role on its ports.
    pub fn new(ports: Ports) -> Self {
        Self { scopes: Scopes::new(Arc::clone(&ports.records), ports.partitions), local: Local::default(), ports }
    }

    /// Counts of contents and the viewer's statuses, in the order asked for.
    pub async fn items(
        &self,
        contents: &[Content],
        viewer: Option<UserId>,
        after: &After,
    ) -> Result<Vec<Item>, ReadError> {
        let mut asked: BTreeMap<Partition, Vec<Content>> = BTreeMap::new();
        for content in contents {
            let of_partition = asked.entry(self.ports.partitions.partition_of(content)).or_default();
            if !of_partition.contains(content) {
                of_partition.push(*content);
            }
        }
        let deadline = Instant::now() + after.wait;
        let found = loop {
            let found = self.look(&asked, viewer, after).await?;
            let missing =
                found.values().find(|said| !after.is_reached_by(&said.claim)).map(|said| said.claim.partition);
            let Some(partition) = missing.filter(|_| Instant::now() < deadline) else { break found };
            self.wait(partition, after, deadline).await;
        };
        let item = |content: &Content| {
            let said = found.get(content).ok_or(ReadError)?;
            let as_of = self.as_of(&said.claim, after);
            if as_of.is_some() {
                counter!("likewise_stale_answers_total").increment(1);
            }
            Ok(Item { content: *content, count: said.count, liked: said.liked, claim: said.claim, as_of })
        };
        contents.iter().map(item).collect()
    }

    /// When the claim is from, if it is too old or does not reach what was asked for.
    fn as_of(&self, claim: &Claim, after: &After) -> Option<Timestamp> {
        let is_good = after.is_reached_by(claim) && !self.is_old(claim);
        (!is_good).then_some(claim.heard_at)
    }

    fn is_old(&self, claim: &Claim) -> bool {
        let now = self.ports.clock.now().millis();
        let waited = claim.next_event_at.map_or(0, |at| now - at.millis());
        claim.recovering || now - claim.heard_at.millis() > HEARD_MAX_MILLIS || waited > EVENT_AGE_MAX_MILLIS
    }

    async fn wait(&self, partition: Partition, after: &After, deadline: Instant) {
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

    /// One look at all sources that are needed.
    async fn look(
        &self,
        asked: &BTreeMap<Partition, Vec<Content>>,
        viewer: Option<UserId>,
        after: &After,
    ) -> Result<BTreeMap<Content, Said>, ReadError> {
        let mut found = BTreeMap::new();
        let mut asks = Vec::with_capacity(asked.len());
        for (partition, contents) in asked {
            let contents =
                if viewer.is_none() { self.take_local(contents, after, &mut found) } else { contents.clone() };
            if !contents.is_empty()
                && let Some(scope) = self.scopes.scope(*partition).await?
            {
                asks.push(Ask { scope, contents });
            }
        }
        if asks.is_empty() {
            return Ok(found);
        }
        let answers = self.ports.counters.read(&asks, viewer).await.unwrap_or_default();
        let mut missing: Vec<(Scope, Vec<Content>)> = Vec::new();
        for (index, ask) in asks.into_iter().enumerate() {
            let rest = match answers.get(index) {
                Some(answer) => self.take_cached(&ask, answer, viewer, after, &mut found),
                None => ask.contents,
            };
            counter!("likewise_cache_misses_total").increment(rest.len() as u64);
            if !rest.is_empty() {
                missing.push((ask.scope, rest));
            }
        }
        if !missing.is_empty() {
            let read = self.read_and_fill(&missing, viewer, after, &mut found).await;
            let every_one_is_known = asked.values().flatten().all(|content| found.contains_key(content));
            if !every_one_is_known {
                read?;
            }
        }
        Ok(found)
    }

    /// Takes what this process read a moment ago; gives the contents for which the cache must be asked.
    fn take_local(&self, contents: &[Content], after: &After, found: &mut BTreeMap<Content, Said>) -> Vec<Content> {
        let is_missing = |content: &&Content| {
            let known = self.local.get(content).filter(|(_, claim)| self.as_of(claim, after).is_none());
            if let Some((count, claim)) = known {
                counter!("likewise_local_hits_total").increment(1);
                found.insert(**content, Said { count, liked: None, claim });
            }
            known.is_none()
        };
        contents.iter().filter(is_missing).copied().collect()
    }

    /// Takes from the cache what is whole; gives the contents for which the records must be asked.
    fn take_cached(
        &self,
        ask: &Ask,
        answer: &Answer,
        viewer: Option<UserId>,
        after: &After,
        found: &mut BTreeMap<Content, Said>,
    ) -> Vec<Content> {
        let Some(progress) = answer.progress else {
            self.scopes.doubt(ask.scope.partition);
            return ask.contents.clone();
        };
        let claim = progress.claim(ask.scope.partition);
        let is_good = after.is_reached_by(&claim) && !self.is_old(&claim);
        if !is_good {
            self.scopes.doubt(ask.scope.partition);
        }
        let mut rest = Vec::new();
        for (index, content) in ask.contents.iter().enumerate() {
            let count = answer.counts.get(index).copied().flatten();
            let status = answer.statuses.get(index).copied().flatten();
            let is_whole = count.is_some() && (viewer.is_none() || status.is_some());
            if let Some(count) = count.filter(|_| is_whole) {
                let liked = viewer.and(status).map(|status| status.liked);
                found.insert(*content, Said { count: count.count, liked, claim });
                self.local.keep(*content, count.count, claim);
            }
            if !is_whole || !is_good {
                rest.push(*content);
            }
        }
        rest
    }

    /// Reads the records for what the cache could not answer, and fills the cache where this reader may.
    async fn read_and_fill(
        &self,
        missing: &[(Scope, Vec<Content>)],
        viewer: Option<UserId>,
        after: &After,
        found: &mut BTreeMap<Content, Said>,
    ) -> Result<(), ReadError> {
        let leases = self.lease(missing, viewer).await;
        if let Some(replica) = self.ports.replica.as_ref().filter(|_| leases.is_empty())
            && let Ok(seen) = self.see(&**replica, missing, viewer).await
            && seen.iter().all(|seen| after.is_reached_by(&seen.claim) && !self.is_old(&seen.claim))
        {
            seen.iter().for_each(|seen| self.keep(seen, after, found));
            return Ok(());
        }
        let store = match &self.ports.replica {
            Some(replica) if planted::on(Bug::ReplicaFills) => replica,
            _ => &self.ports.records,
        };
        let seen = self.see(&**store, missing, viewer).await?;
        let mut fills = Vec::new();
        let mut statuses: BTreeMap<Scope, Vec<(Content, Status)>> = BTreeMap::new();
        for seen in &seen {
            self.keep(seen, after, found);
            self.local.keep(seen.content, seen.count.count, seen.claim);
            if let Some(lease) = leases.get(&(seen.scope, LeaseKey::Count(seen.content))) {
                fills.push((seen.scope, *lease, Fill::Count(seen.content, seen.count, jittered(COUNT_LIFE))));
            }
            statuses.entry(seen.scope).or_default().extend(seen.status.map(|status| (seen.content, status)));
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
        let _outcomes = join_all(fills.into_iter().map(fill)).await;
        Ok(())
    }

    /// What a record store says of contents, and of the viewer's likes of them.
    async fn see(
        &self,
        store: &dyn RecordStore,
        missing: &[(Scope, Vec<Content>)],
        viewer: Option<UserId>,
    ) -> Result<Vec<Seen>, ReadError> {
        let contents: Vec<Content> = missing.iter().flat_map(|(_, contents)| contents.iter().copied()).collect();
        let pairs = |user| contents.iter().map(|content| Pair { content: *content, user }).collect::<Vec<_>>();
        let rows = async {
            match viewer {
                Some(user) => Ok(Some(store.rows(&pairs(user)).await?)),
                None => Ok(None),
            }
        };
        let (counts, rows) = try_join(store.counts(&contents), rows).await?;
        let mut all = Vec::with_capacity(contents.len());
        for (scope, contents) in missing {
            let counted = checkpoint_of(&counts.checkpoints, scope.partition).ok_or(ReadError)?;
            let judged = match &rows {
                Some(rows) => checkpoint_of(&rows.checkpoints, scope.partition).ok_or(ReadError)?,
                None => counted,
            };
            for content in contents {
                let index = all.len();
                let count = CachedCount {
                    count: counts.value[index].map_or(0, |count| count.count),
                    version: filled_version(counted.next_offset),
                };
                let status = rows.as_ref().map(|rows| {
                    let row = rows.value[index].as_ref();
                    Status {
                        liked: row.is_some_and(|row| !row.is_canceled),
                        at: row.map(|row| row.updated_at),
                        version: filled_version(judged.next_offset),
                    }
                });
                // Of two snapshots the one that reflects less is what both reflect.
                let claim = if judged.next_offset < counted.next_offset { judged.claim() } else { counted.claim() };
                all.push(Seen { scope: *scope, content: *content, count, status, claim });
            }
        }
        Ok(all)
    }

    /// Keeps what was seen, unless something better is known.
    fn keep(&self, seen: &Seen, after: &After, found: &mut BTreeMap<Content, Said>) {
        let claim = seen.claim;
        let said = Said { count: seen.count.count, liked: seen.status.map(|status| status.liked), claim };
        // What the cache said and is asked for again here was not good.
        let is_good = after.is_reached_by(&claim) && !self.is_old(&claim);
        let is_further = |known: &Said| known.claim.next_offset <= claim.next_offset;
        if is_good || found.get(&seen.content).is_none_or(is_further) {
            found.insert(seen.content, said);
        }
    }

    /// Leases are taken before the records are read: what changes in between drops them.
    async fn lease(
        &self,
        missing: &[(Scope, Vec<Content>)],
        viewer: Option<UserId>,
    ) -> BTreeMap<(Scope, LeaseKey), Lease> {
        let mut wanted = Vec::new();
        for (scope, contents) in missing {
            let counts = contents.iter().map(|content| LeaseKey::Count(*content));
            wanted.extend(counts.chain(viewer.map(LeaseKey::Statuses)).map(|key| (*scope, key)));
        }
        // Side by side: a server gets them in one go.
        let lease = |(scope, key)| self.ports.counters.lease(scope, key);
        let leases = join_all(wanted.iter().copied().map(lease)).await;
        let given = |(wanted, lease): (_, Result<Option<Lease>, StoreError>)| Some((wanted, lease.ok()??));
        wanted.into_iter().zip(leases).filter_map(given).collect()
    }

    /// One page of a content's likers, and when it is from if it may be old.
    pub async fn likers(
        &self,
        content: Content,
        last: Option<Liker>,
        limit: usize,
        after: &After,
    ) -> Result<(Vec<Liker>, Option<Timestamp>), ReadError> {
        let partition = self.ports.partitions.partition_of(&content);
        let read = async |store: &dyn RecordStore| store.likers(content, last, limit).await;
        self.page(read, |claim| claim.partition == partition, after).await
    }

    /// One page of a user's likes, and when it is from if it may be old. It is as old as its oldest partition.
    pub async fn likes_of(
        &self,
        user: UserId,
        content_type: Option<ContentType>,
        last: Option<Liked>,
        limit: usize,
        after: &After,
    ) -> Result<(Vec<Liked>, Option<Timestamp>), ReadError> {
        let read = async |store: &dyn RecordStore| store.likes_of(user, content_type, last, limit).await;
        self.page(read, |_| true, after).await
    }

    /// Asks the replica, if there is one, then the primary, until one has reached what was asked for.
    async fn page<T>(
        &self,
        read: impl AsyncFn(&dyn RecordStore) -> Result<Snapshot<Vec<T>>, StoreError>,
        is_part: impl Fn(&Claim) -> bool,
        after: &After,
    ) -> Result<(Vec<T>, Option<Timestamp>), ReadError> {
        let claims_of = |snapshot: &Snapshot<Vec<T>>| -> Vec<Claim> {
            snapshot.checkpoints.iter().map(Checkpoint::claim).filter(&is_part).collect()
        };
        if let Some(replica) = &self.ports.replica
            && let Ok(snapshot) = read(&**replica).await
        {
            let claims = claims_of(&snapshot);
            if !claims.is_empty() && claims.iter().all(|claim| self.as_of(claim, after).is_none()) {
                return Ok((snapshot.value, None));
            }
        }
        let deadline = Instant::now() + after.wait;
        loop {
            let snapshot = read(&*self.ports.records).await?;
            let claims = claims_of(&snapshot);
            if claims.is_empty() {
                return Err(ReadError);
            }
            let missing = claims.iter().find(|claim| !after.is_reached_by(claim)).map(|claim| claim.partition);
            match missing.filter(|_| Instant::now() < deadline) {
                Some(partition) => self.wait(partition, after, deadline).await,
                None => {
                    let as_of = claims.iter().filter_map(|claim| self.as_of(claim, after)).min();
                    return Ok((snapshot.value, as_of));
                }
            }
        }
    }
}

fn checkpoint_of(checkpoints: &[Checkpoint], partition: Partition) -> Option<&Checkpoint> {
    checkpoints.iter().find(|checkpoint| checkpoint.partition == partition)
}

/// ±10 %, so that what was filled together does not expire together.
fn jittered(life: Duration) -> Duration {
    life.mul_f64(0.9 + 0.2 * rand::random::<f64>())
}
