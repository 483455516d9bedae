//! Where each partition's counters are: the generation, learned from the checkpoint and kept until it is in doubt.

use std::{collections::BTreeMap, sync::Arc};

use likewise_schema::{Partition, PartitionCount};
use parking_lot::RwLock;

use crate::{
    StoreError,
    counters::Scope,
    records::{Generation, RecordStore},
};

/// The generations that a process knows.
pub struct Scopes {
    records: Arc<dyn RecordStore>,
    count: PartitionCount,
    known: RwLock<BTreeMap<Partition, Generation>>,
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

    /// The partition's scope; none if it was never owned.
    pub async fn scope(&self, partition: Partition) -> Result<Option<Scope>, StoreError> {
        let known = self.known.read().get(&partition).copied();
        if let Some(generation) = known {
            return Ok(Some(Scope { generation, partition }));
        }
        let Some(checkpoint) = self.records.checkpoint(partition).await? else { return Ok(None) };
        self.known.write().insert(partition, checkpoint.generation);
        Ok(Some(checkpoint.scope()))
    }

    /// Reads the generation again on the next use: progress was missing or stale.
    pub fn doubt(&self, partition: Partition) {
        self.known.write().remove(&partition);
    }
}
