//! Keeps what is accepted within what is projected: past a bound commands wait a little, past a second one they are
//! refused, so that lag and memory stay bounded.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use likewise_schema::{Offset, Partition, PartitionCount};
use likewise_storage::{Scopes, counters::Ask};
use metrics::{Gauge, gauge};

use crate::commands::Ports;

/// How often the projection's progress is read.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// The same where nothing depends on it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Progress that is older may be that of tables that are no more: their generation is read again.
const DOUBT_AFTER_MILLIS: i64 = 3000;
/// How long a command waits at most when the backlog is just below the bound.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// Events that one partition may have accepted and not yet projected. The bound is each partition's own, so that one
/// that is halted does not stop the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BacklogLimit {
    /// From here on commands wait, longer the more there are.
    pub slow_from: i64,
    /// From here on commands are refused.
    pub refuse_from: i64,
}

impl BacklogLimit {
    /// Waits from a third of `events` on, refuses from `events` on; 0 is no limit.
    pub fn new(events: u32) -> Self {
        let refuse_from = if events == 0 { i64::MAX } else { i64::from(events) };
        Self { slow_from: refuse_from / 3, refuse_from }
    }
}

/// There is no room.
pub(crate) struct Full;

/// How far the projection is behind what this process has accepted, or is about to.
pub struct Backlog {
    limit: BacklogLimit,
    partitions: Vec<Counted>,
    gauge: Gauge,
}

struct Counted {
    /// Commands that were let pass and are not answered yet.
    passing: AtomicI64,
    /// Events that this process appended.
    appended: AtomicI64,
    /// The end of the partition as far as this process knows.
    end: AtomicI64,
    /// The first offset that is not projected; [`UNKNOWN`] until it was read once.
    projected: AtomicI64,
}

/// What is not known yet does not hold commands up, or a process that starts would refuse them all: until it is known,
/// what this process itself appended counts as the backlog.
const UNKNOWN: i64 = -1;

impl Counted {
    fn behind(&self) -> i64 {
        match self.projected.load(Ordering::Relaxed) {
            UNKNOWN => self.appended.load(Ordering::Relaxed),
            projected => (self.end.load(Ordering::Relaxed) - projected).max(0),
        }
    }
}

/// Room for one command, given back when it is dropped.
pub(crate) struct Room<'a>(&'a Counted);

impl Room<'_> {
    /// The command became the event at `offset`.
    pub(crate) fn appended(self, offset: Offset) {
        self.0.appended.fetch_add(1, Ordering::Relaxed);
        self.0.end.fetch_max(offset.get() + 1, Ordering::Relaxed);
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.passing.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Backlog {
    pub(crate) fn new(count: PartitionCount, limit: BacklogLimit) -> Self {
        let unknown = |_| Counted { passing: 0.into(), appended: 0.into(), end: 0.into(), projected: UNKNOWN.into() };
        let partitions = count.all().map(unknown).collect();
        Self { limit, partitions, gauge: gauge!("likewise_backlog_events") }
    }

    /// Lets a command for `partition` pass, at once or after a short wait.
    pub(crate) async fn admit(&self, partition: Partition) -> Result<Room<'_>, Full> {
        let counted = &self.partitions[usize::from(partition.get())];
        let passing = counted.passing.fetch_add(1, Ordering::Relaxed);
        let room = Room(counted);
        let events = counted.behind().saturating_add(passing);
        let BacklogLimit { slow_from, refuse_from } = self.limit;
        if events >= refuse_from {
            return Err(Full);
        }
        if events > slow_from {
            let share = (events - slow_from) as f64 / (refuse_from - slow_from) as f64;
            tokio::time::sleep(WAIT_MAX.mul_f64(share)).await;
        }
        Ok(room)
    }

    /// Reads progress again and again.
    pub(crate) async fn watch(&self, ports: &Ports, scopes: &Scopes) {
        loop {
            self.sample(ports, scopes).await;
            self.gauge.set(self.partitions.iter().map(Counted::behind).sum::<i64>() as f64);
            tokio::time::sleep(if self.limit.refuse_from == i64::MAX { LOOK_EVERY } else { SAMPLE_EVERY }).await;
        }
    }

    async fn sample(&self, ports: &Ports, scopes: &Scopes) {
        let mut asks = Vec::new();
        for partition in scopes.partitions().all() {
            if let Ok(Some(scope)) = scopes.scope(partition).await {
                asks.push(Ask { scope, counts: Vec::new(), statuses: Vec::new() });
            }
        }
        let answers = ports.counters.read(&asks, None).await;
        for (index, ask) in asks.iter().enumerate() {
            let partition = ask.scope.partition;
            let counted = &self.partitions[usize::from(partition.get())];
            let progress = answers.as_ref().map(|answers| answers.get(index).and_then(|answer| answer.progress));
            if let Ok(Some(progress)) = progress {
                counted.projected.fetch_max(progress.position + 1, Ordering::Relaxed);
                counted.end.fetch_max(progress.news.log_end.get(), Ordering::Relaxed);
                let age = ports.clock.now().millis() - progress.news.heard_at.millis();
                if age > DOUBT_AFTER_MILLIS {
                    scopes.doubt(partition);
                }
                continue;
            }
            // Without counters the records tell how far they are.
            if progress.is_ok() {
                scopes.doubt(partition);
            }
            if let Ok(Some(checkpoint)) = ports.records.checkpoint(partition).await {
                counted.projected.fetch_max(checkpoint.next_offset.get(), Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A projection that nobody can ask still has a bound.
    #[tokio::test(start_paused = true)]
    async fn commands_are_bounded_while_nothing_is_known_of_the_projection() {
        let backlog = Backlog::new(PartitionCount::DEFAULT, BacklogLimit::new(10));
        let partition = PartitionCount::DEFAULT.all().next().unwrap();
        let mut taken = 0;
        while let Ok(room) = backlog.admit(partition).await {
            // The log held events before this process began.
            room.appended(Offset::new(1_000_000 + taken).unwrap());
            taken += 1;
        }
        assert_eq!(taken, 10);
    }
}
