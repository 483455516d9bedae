//! Keeps what is accepted within what is projected: past a bound commands wait a little, past a second one they are
//! refused, so that lag and memory stay bounded.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use likewise_schema::{Offset, Partition, PartitionCount};
use likewise_storage::Scopes;
use metrics::{Gauge, gauge};

use crate::commands::Ports;

/// How often the projection's progress is read.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// How long a command waits at most when the backlog is just below the bound.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// Events that may be accepted and not yet projected.
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

/// How far the projection is behind what this process has accepted.
pub struct Backlog {
    limit: BacklogLimit,
    /// The end of each partition as far as this process knows.
    ends: Vec<AtomicI64>,
    /// The first offset of each partition that is not projected.
    projected: Vec<AtomicI64>,
    events: AtomicI64,
    gauge: Gauge,
}

impl Backlog {
    pub(crate) fn new(count: PartitionCount, limit: BacklogLimit) -> Self {
        let zeros = || count.all().map(|_| AtomicI64::new(0)).collect();
        let gauge = gauge!("likewise_backlog_events");
        Self { limit, ends: zeros(), projected: zeros(), events: AtomicI64::new(0), gauge }
    }

    pub(crate) fn appended(&self, partition: Partition, offset: Offset) {
        self.ends[usize::from(partition.get())].fetch_max(offset.get() + 1, Ordering::Relaxed);
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets a command pass, at once or after a short wait.
    pub(crate) async fn admit(&self) -> Result<(), Full> {
        let events = self.events.load(Ordering::Relaxed);
        let BacklogLimit { slow_from, refuse_from } = self.limit;
        if events >= refuse_from {
            return Err(Full);
        }
        if events > slow_from {
            let share = (events - slow_from) as f64 / (refuse_from - slow_from) as f64;
            tokio::time::sleep(WAIT_MAX.mul_f64(share)).await;
        }
        Ok(())
    }

    /// Reads progress again and again.
    pub(crate) async fn watch(&self, ports: &Ports, scopes: &Scopes) {
        loop {
            for partition in scopes.partitions().all() {
                self.sample(partition, ports, scopes).await;
            }
            let pairs = self.ends.iter().zip(&self.projected);
            let behind =
                pairs.map(|(end, projected)| (end.load(Ordering::Relaxed) - projected.load(Ordering::Relaxed)).max(0));
            let events = behind.sum();
            self.events.store(events, Ordering::Relaxed);
            self.gauge.set(events as f64);
            tokio::time::sleep(SAMPLE_EVERY).await;
        }
    }

    async fn sample(&self, partition: Partition, ports: &Ports, scopes: &Scopes) {
        let index = usize::from(partition.get());
        let Ok(Some(scope)) = scopes.scope(partition).await else { return };
        match ports.counters.progress(scope).await {
            Ok(Some(progress)) => {
                self.projected[index].fetch_max(progress.position + 1, Ordering::Relaxed);
                self.ends[index].fetch_max(progress.news.log_end.get(), Ordering::Relaxed);
            }
            Ok(None) => scopes.doubt(partition),
            Err(_) => {}
        }
    }
}
