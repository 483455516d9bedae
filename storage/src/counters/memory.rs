//! Counters in this process's memory, for `serve` and for tests. Bounded: what does not fit is forgotten, which a
//! reader sees as unknown.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use likewise_schema::{Content, Offset, UserId};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout_at},
};

use super::{
    Answer, Ask, Cached, CachedCount, Changes, CounterStore, Fill, Hints, LEASE_LIFE, Lease, LeaseKey, LeaseToken,
    News, Outcome, Progress, Publish, REPUBLISH_EVENTS_MAX, STATUSES_LIFE, Scope, Status, Version, Writer,
};
use crate::{
    Clock, StoreError,
    planted::{self, Bug},
};

/// Counts kept per partition.
const COUNTS_MAX: usize = 16_384;
/// Users whose statuses are kept per partition.
const USERS_MAX: usize = 4096;
/// Statuses kept per user and partition.
const STATUSES_MAX: usize = 128;
/// Leases kept per partition; they live two seconds.
const LEASES_MAX: usize = 16_384;

/// The counter store in memory.
#[derive(Debug)]
pub struct MemoryCounters {
    clock: Clock,
    scopes: RwLock<HashMap<Scope, Arc<Mutex<Entries>>>>,
    hints: Hints,
}

#[derive(Clone, Debug)]
struct Entries {
    progress: Option<Progress>,
    counts: LruCache<Content, Living<CachedCount>>,
    users: LruCache<UserId, Living<BTreeMap<Content, Status>>>,
    leases: LruCache<LeaseKey, Living<LeaseToken>>,
    /// Wakes those who wait for progress.
    moved: Arc<Notify>,
}

/// What the store held at one moment.
#[derive(Debug)]
pub struct CountersCopy(HashMap<Scope, Entries>);

#[derive(Clone, Debug)]
struct Living<T> {
    value: T,
    /// Unix microseconds.
    until: i64,
}

impl<T> Living<T> {
    fn at(&self, now: i64) -> Option<&T> {
        (now < self.until).then_some(&self.value)
    }
}

fn until(now: i64, life: Duration) -> i64 {
    now.saturating_add(i64::try_from(life.as_micros()).unwrap_or(i64::MAX))
}

impl Entries {
    fn new() -> Self {
        let size = |max| NonZeroUsize::new(max).unwrap_or(NonZeroUsize::MIN);
        Self {
            progress: None,
            counts: LruCache::new(size(COUNTS_MAX)),
            users: LruCache::new(size(USERS_MAX)),
            leases: LruCache::new(size(LEASES_MAX)),
            moved: Arc::default(),
        }
    }

    /// Entries that live and are not below the floor.
    fn living(&self, scope: Scope, now: i64) -> Vec<Cached> {
        let floor = self.progress.map_or(Version::MAX, |progress| progress.floor);
        let counts = self.counts.iter().filter_map(|(content, living)| {
            let count = *living.at(now).filter(|count| count.version >= floor)?;
            Some(Cached::Count(scope, *content, count))
        });
        let users = self.users.iter().filter_map(|(user, living)| Some((user, living.at(now)?)));
        let statuses = users.flat_map(|(user, statuses)| {
            let is_known = move |(_, status): &(&Content, &Status)| status.version >= floor;
            let known = statuses.iter().filter(is_known);
            known.map(move |(content, status)| Cached::Status(scope, *user, *content, *status))
        });
        counts.chain(statuses).collect()
    }

    fn move_to(&mut self, progress: Progress) {
        self.progress = Some(progress);
        self.moved.notify_waiters();
    }

    fn publish(&mut self, publish: Publish, now: i64) -> Outcome {
        let Some(progress) = self.progress else { return Outcome::Refused };
        let is_expected = progress.writer == publish.writer && progress.position == publish.from;
        let is_pretended = planted::on(Bug::PositionBeforeRepublish) && publish.recovering;
        if !is_expected && !is_pretended && !planted::on(Bug::PublishWithoutCompare) {
            return Outcome::Refused;
        }
        for (content, fresh) in publish.counts {
            if self.counts.contains(&content) || !planted::on(Bug::LeaseKeptWhereKeyAbsent) {
                self.leases.pop(&LeaseKey::Count(content));
            }
            match self.counts.peek_mut(&content) {
                Some(entry) if entry.value.version < fresh.version => entry.value = fresh,
                Some(_) => {}
                None if planted::on(Bug::IncrementMissingKey) => {
                    let counted = CachedCount { count: 1, version: fresh.version };
                    self.counts.push(content, Living { value: counted, until: until(now, STATUSES_LIFE) });
                }
                None => {}
            }
        }
        for (user, content, fresh) in publish.statuses {
            if self.users.contains(&user) || !planted::on(Bug::LeaseKeptWhereKeyAbsent) {
                self.leases.pop(&LeaseKey::Statuses(user));
            }
            let known = self.users.peek_mut(&user).and_then(|statuses| statuses.value.get_mut(&content));
            if let Some(status) = known.filter(|status| status.version < fresh.version) {
                *status = fresh;
            }
        }
        let Publish { to: position, news, recovering, .. } = publish;
        self.move_to(Progress { position, news, recovering, ..progress });
        Outcome::Done
    }

    fn take_over(&mut self, writer: Writer, checkpoint: Version, news: News) -> Version {
        let kept = self.progress.filter(|progress| checkpoint - progress.position <= REPUBLISH_EVENTS_MAX);
        let (position, floor) = match (kept, self.progress) {
            (Some(progress), _) => (progress.position, progress.floor),
            (None, Some(given_up)) => (checkpoint, checkpoint.max(given_up.floor)),
            (None, None) => (checkpoint, checkpoint),
        };
        let stored = if planted::on(Bug::PositionBeforeRepublish) { checkpoint } else { position };
        self.move_to(Progress { writer, position: stored, floor, recovering: true, news });
        position
    }

    fn read(&mut self, ask: &Ask, viewer: Option<UserId>, now: i64) -> Answer {
        let Some(progress) = self.progress else {
            let statuses = viewer.map_or(0, |_| ask.statuses.len());
            return Answer { progress: None, counts: vec![None; ask.counts.len()], statuses: vec![None; statuses] };
        };
        let floor = if planted::on(Bug::FloorIgnored) { Version::MIN } else { progress.floor };
        let mut count = |content| {
            let entry = self.counts.get(content)?.at(now).copied();
            entry.filter(|cached| cached.version >= floor)
        };
        let counts = ask.counts.iter().map(&mut count).collect();
        let statuses = viewer.map_or(Vec::new(), |viewer| {
            let known = self.users.get(&viewer).and_then(|statuses| statuses.at(now));
            let status = |content| known?.get(content).copied().filter(|status| status.version >= floor);
            ask.statuses.iter().map(status).collect()
        });
        Answer { progress: Some(progress), counts, statuses }
    }

    fn lease(&mut self, key: LeaseKey, now: i64) -> Option<Lease> {
        let progress = self.progress?;
        if self.leases.peek(&key).is_some_and(|lease| lease.at(now).is_some()) {
            return None;
        }
        let token = LeaseToken(rand::random());
        self.leases.push(key, Living { value: token, until: until(now, LEASE_LIFE) });
        Some(Lease { token, position: progress.position })
    }

    fn fill(&mut self, lease: Lease, fill: Fill, now: i64) -> Outcome {
        let key = fill.lease_key();
        let held = self.leases.peek(&key).and_then(|held| held.at(now)) == Some(&lease.token);
        let held = held || planted::on(Bug::FillWithoutLease);
        if !held || fill.version() < lease.position {
            return Outcome::Refused;
        }
        self.leases.pop(&key);
        match fill {
            Fill::Count(content, fresh, life) => {
                let there = self.counts.peek(&content).and_then(|entry| entry.at(now));
                if there.is_some_and(|there| there.version > fresh.version) {
                    return Outcome::Refused;
                }
                self.counts.push(content, Living { value: fresh, until: until(now, life) });
            }
            Fill::Statuses(user, fresh) => {
                let living = self.users.peek_mut(&user).filter(|statuses| statuses.at(now).is_some());
                let statuses = match living {
                    Some(statuses) => &mut statuses.value,
                    None => {
                        let until = until(now, STATUSES_LIFE);
                        self.users.push(user, Living { value: BTreeMap::new(), until });
                        match self.users.get_mut(&user) {
                            Some(statuses) => &mut statuses.value,
                            None => return Outcome::Refused,
                        }
                    }
                };
                if statuses.len() + fresh.len() > STATUSES_MAX {
                    statuses.clear();
                }
                for (content, status) in fresh.into_iter().take(STATUSES_MAX) {
                    let there = statuses.entry(content).or_insert(status);
                    if there.version <= status.version {
                        *there = status;
                    }
                }
            }
        }
        Outcome::Done
    }
}

impl MemoryCounters {
    /// An empty store that reads lives from `clock`.
    pub fn new(clock: Clock) -> Self {
        Self { clock, scopes: RwLock::default(), hints: Hints::new(true) }
    }

    /// Forgets everything, as a flushed cache does.
    pub fn flush(&self) {
        for entries in self.scopes.read().values() {
            let mut entries = entries.lock();
            let moved = Arc::clone(&entries.moved);
            *entries = Entries { moved, ..Entries::new() };
        }
    }

    /// Forgets the entries of one content and of its partition's users, as an eviction does.
    pub fn evict(&self, content: &Content) {
        for entries in self.scopes.read().values() {
            let mut entries = entries.lock();
            entries.counts.pop(content);
            entries.users.clear();
        }
    }

    /// Forgets how far the entries reflect their partitions, as the eviction of one key does.
    pub fn forget_progress(&self) {
        self.scopes.read().values().for_each(|entries| entries.lock().progress = None);
    }

    /// A copy of everything, as a replica has it.
    pub fn copy(&self) -> CountersCopy {
        let copy = |(scope, entries): (&Scope, &Arc<Mutex<Entries>>)| (*scope, entries.lock().clone());
        CountersCopy(self.scopes.read().iter().map(copy).collect())
    }

    /// Goes on from a copy, as after a failover to a replica that was behind.
    pub fn fail_over(&self, copy: &CountersCopy) {
        for (scope, entries) in self.scopes.read().iter() {
            let mut entries = entries.lock();
            let moved = Arc::clone(&entries.moved);
            let before = copy.0.get(scope).cloned().unwrap_or_else(Entries::new);
            *entries = Entries { moved, ..before };
        }
    }

    fn entries(&self, scope: Scope) -> Arc<Mutex<Entries>> {
        if let Some(entries) = self.scopes.read().get(&scope) {
            return Arc::clone(entries);
        }
        let mut scopes = self.scopes.write();
        Arc::clone(scopes.entry(scope).or_insert_with(|| Arc::new(Mutex::new(Entries::new()))))
    }
}

#[async_trait]
impl CounterStore for MemoryCounters {
    async fn publish(&self, scope: Scope, publish: Publish) -> Result<Outcome, StoreError> {
        let change = if self.hints.are_wanted() { publish.change(scope) } else { None };
        let outcome = self.entries(scope).lock().publish(publish, self.clock.micros());
        if let Some(change) = change.filter(|_| outcome == Outcome::Done) {
            self.hints.send(change);
        }
        Ok(outcome)
    }

    async fn take_over(
        &self,
        scope: Scope,
        writer: Writer,
        checkpoint: Version,
        news: News,
    ) -> Result<Version, StoreError> {
        let entries = self.entries(scope);
        if planted::on(Bug::TakeoverInTwoSteps) {
            let read = entries.lock().progress;
            tokio::time::sleep(Duration::from_millis(50)).await;
            entries.lock().progress = read;
        }
        let position = entries.lock().take_over(writer, checkpoint, news);
        Ok(position)
    }

    async fn progress(&self, scope: Scope) -> Result<Option<Progress>, StoreError> {
        Ok(self.entries(scope).lock().progress)
    }

    async fn read(&self, asks: &[Ask], viewer: Option<UserId>) -> Result<Vec<Answer>, StoreError> {
        let now = self.clock.micros();
        let read = |ask: &Ask| self.entries(ask.scope).lock().read(ask, viewer, now);
        let mut answers: Vec<Answer> = asks.iter().map(read).collect();
        if planted::on(Bug::ValueBeforeProgress) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            for (ask, answer) in asks.iter().zip(&mut answers) {
                answer.progress = self.entries(ask.scope).lock().progress;
            }
        }
        Ok(answers)
    }

    async fn lease(&self, scope: Scope, key: LeaseKey) -> Result<Option<Lease>, StoreError> {
        Ok(self.entries(scope).lock().lease(key, self.clock.micros()))
    }

    async fn fill(&self, scope: Scope, lease: Lease, fill: Fill) -> Result<Outcome, StoreError> {
        Ok(self.entries(scope).lock().fill(lease, fill, self.clock.micros()))
    }

    async fn passed(&self, scope: Scope, offset: Offset, wait: Duration) {
        let (entries, deadline) = (self.entries(scope), Instant::now() + wait);
        loop {
            let moved = Arc::clone(&entries.lock().moved);
            let mut notified = std::pin::pin!(moved.notified());
            notified.as_mut().enable();
            let has_passed = entries.lock().progress.is_some_and(|progress| progress.position >= offset.get());
            if has_passed || timeout_at(deadline, notified).await.is_err() {
                return;
            }
        }
    }

    fn changes(&self) -> Changes {
        self.hints.changes()
    }

    async fn forget(&self, scope: Scope, contents: &[Content], users: &[UserId]) -> Result<(), StoreError> {
        let Some(entries) = self.scopes.read().get(&scope).cloned() else { return Ok(()) };
        let mut entries = entries.lock();
        for content in contents {
            entries.counts.pop(content);
            entries.leases.pop(&LeaseKey::Count(*content));
        }
        for user in users {
            entries.users.pop(user);
            entries.leases.pop(&LeaseKey::Statuses(*user));
        }
        Ok(())
    }

    async fn entries(&self, out: mpsc::Sender<Vec<Cached>>) -> Result<(), StoreError> {
        let scopes: Vec<Scope> = self.scopes.read().keys().copied().collect();
        for scope in scopes {
            let Some(entries) = self.scopes.read().get(&scope).cloned() else { continue };
            let found = entries.lock().living(scope, self.clock.micros());
            if out.send(found).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}
