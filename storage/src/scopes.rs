//! Where each partition's counters are: the generation, learned from the checkpoint and kept until it is in doubt.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use likewise_schema::{Partition, PartitionCount};
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::{
    StoreError,
    counters::Scope,
    records::{Generation, RecordStore},
};

/// A generation in doubt is read again at most so often.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The generations that a process knows.
pub struct Scopes {
    records: Arc<dyn RecordStore>,
    count: PartitionCount,
    known: RwLock<BTreeMap<Partition, Known>>,
}

#[derive(Clone, Copy)]
struct Known {
    generation: Generation,
    read_at: Instant,
    is_in_doubt: bool,
}

impl Scopes {
    /// Knows nothing yet; asks `records`.
    pub fn new(records: Arc<dyn RecordStore>, count: PartitionCount) -> Self {
        Self { records, count, known: RwLock::default() }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> PartitionCount {
        self.count
    }

    /// The partition's scope; none if it was never owned. A generation in doubt is used all the same while the records
    /// are away: what stands under it says itself how old it is.
    pub async fn scope(&self, partition: Partition) -> Result<Option<Scope>, StoreError> {
        let known = self.known.read().get(&partition).copied();
        let of = |known: Known| Scope { generation: known.generation, partition };
        if let Some(known) = known.filter(|known| !known.is_in_doubt || known.read_at.elapsed() < READ_AGAIN_AFTER) {
            return Ok(Some(of(known)));
        }
        match (self.records.checkpoint(partition).await, known) {
            (Ok(Some(checkpoint)), _) => {
                let generation = checkpoint.generation;
                let fresh = Known { generation, read_at: Instant::now(), is_in_doubt: false };
                self.known.write().insert(partition, fresh);
                Ok(Some(of(fresh)))
            }
            (Ok(None), _) => Ok(None),
            (Err(_), Some(known)) => Ok(Some(of(known))),
            (Err(error), None) => Err(error),
        }
    }

    /// Reads the generation again before long: progress was missing or stale.
    pub fn doubt(&self, partition: Partition) {
        if let Some(known) = self.known.write().get_mut(&partition) {
            known.is_in_doubt = true;
        }
    }
}
