//! Where each partition's counters are, learned from the checkpoint and kept until it is in doubt, and what the records
//! reflect.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use likewise_schema::{Partition, PartitionCount, Position};
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::{
    CounterStore, StoreError,
    counters::Scope,
    records::{Claim, Generation, RecordStore},
};

/// A checkpoint in doubt is read again at most so often.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long a request waits for a checkpoint that is read again.
const LOOK_MAX: Duration = Duration::from_millis(50);

/// How long one set of tables is waited for before it is asked whether it is still the one.
const WAIT_ON_ONE: Duration = Duration::from_millis(250);

/// The generations that a process knows.
pub struct Scopes {
    records: Arc<dyn RecordStore>,
    count: PartitionCount,
    known: Arc<RwLock<BTreeMap<Partition, Known>>>,
}

#[derive(Clone, Copy)]
struct Known {
    generation: Generation,
    claim: Claim,
    read_at: Instant,
    is_in_doubt: bool,
}

impl Known {
    fn scope(self, partition: Partition) -> Scope {
        Scope { generation: self.generation, partition }
    }
}

impl Scopes {
    /// Knows nothing yet; asks `records`.
    pub fn new(records: Arc<dyn RecordStore>, count: PartitionCount) -> Self {
        Self { records, count, known: Arc::default() }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> PartitionCount {
        self.count
    }

    /// The partition's scope; none if it was never owned. A generation in doubt is used all the same while the records
    /// are away or slow: what stands under it says itself how old it is.
    pub async fn scope(&self, partition: Partition) -> Result<Option<Scope>, StoreError> {
        if let Some(scope) = self.known(partition) {
            return Ok(Some(scope));
        }
        let known = match self.look_again(partition).await {
            Some(known) => Some(known),
            None => read(Arc::clone(&self.records), Arc::clone(&self.known), partition).await?,
        };
        Ok(known.map(|known| known.scope(partition)))
    }

    /// The partition's scope, if it is known and not in doubt.
    pub fn known(&self, partition: Partition) -> Option<Scope> {
        let known = self.known.read().get(&partition).copied().filter(|known| !known.is_in_doubt)?;
        Some(known.scope(partition))
    }

    /// What is known of a partition, read again unless that was done a moment ago or takes long.
    async fn look_again(&self, partition: Partition) -> Option<Known> {
        let known = {
            let mut all = self.known.write();
            let known = all.get_mut(&partition)?;
            if known.read_at.elapsed() < READ_AGAIN_AFTER {
                return Some(*known);
            }
            // Whoever asks meanwhile gets what was read before.
            known.read_at = Instant::now();
            *known
        };
        // In a task of its own: a slow answer comes too late for this request, and in time for others.
        let look = tokio::spawn(read(Arc::clone(&self.records), Arc::clone(&self.known), partition));
        match tokio::time::timeout(LOOK_MAX, look).await {
            Ok(Ok(Ok(fresh))) => fresh,
            _ => Some(known),
        }
    }

    /// What the records reflect of a partition, read a moment ago where they answer; none if that is not known.
    pub async fn records_claim(&self, partition: Partition) -> Option<Claim> {
        self.look_again(partition).await.map(|known| known.claim)
    }

    /// Waits until the counters have passed a position, at most until `deadline`. A hint, as [`CounterStore::passed`] is.
    /// New tables can come meanwhile, and with them other counters: who waits goes over to them.
    pub async fn passed(&self, counters: &Arc<dyn CounterStore>, position: Position, deadline: Instant) {
        while let Ok(Some(scope)) = self.scope(position.partition).await {
            let started = Instant::now();
            let wait = deadline.saturating_duration_since(started).min(WAIT_ON_ONE);
            counters.passed(scope, position.offset, wait).await;
            if started.elapsed() < wait || Instant::now() >= deadline {
                return;
            }
            self.doubt(position.partition);
        }
    }

    /// Reads the generation again before long: progress was missing or stale.
    pub fn doubt(&self, partition: Partition) {
        if let Some(known) = self.known.write().get_mut(&partition) {
            known.is_in_doubt = true;
        }
    }
}

async fn read(
    records: Arc<dyn RecordStore>,
    all: Arc<RwLock<BTreeMap<Partition, Known>>>,
    partition: Partition,
) -> Result<Option<Known>, StoreError> {
    let Some(checkpoint) = records.checkpoint(partition).await? else { return Ok(None) };
    let generation = checkpoint.generation;
    let fresh = Known { generation, claim: checkpoint.claim(), read_at: Instant::now(), is_in_doubt: false };
    all.write().insert(partition, fresh);
    Ok(Some(fresh))
}
