//! The projector role: folds the log into records, and publishes what changed to the counters.
//!
//! One task per partition owns it ([`owner`](mod@owner)); beside it a publisher brings the counters up to each commit
//! ([`publish`](mod@publish)). What a like means is in [`fold`](mod@fold) and nowhere else. May depend on the schema
//! and the storage ports. Must never know which adapter is behind a port, nor HTTP, nor the other roles.

#![forbid(unsafe_code)]

pub mod fold;
mod owner;
mod publish;
mod status;

use std::{collections::HashMap, sync::Arc};

use likewise_schema::Partition;
use likewise_storage::{Clock, CounterStore, EventLog, RecordStore};
use tokio::{sync::watch, task::JoinSet};

pub use self::status::{PartitionState, Status};

/// What a projector works with.
#[derive(Clone)]
pub struct Ports {
    /// The log it reads.
    pub log: Arc<dyn EventLog>,
    /// The records it writes.
    pub records: Arc<dyn RecordStore>,
    /// The counters it publishes to.
    pub counters: Arc<dyn CounterStore>,
    /// Its clock.
    pub clock: Clock,
}

/// How much a batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events per batch. A batch takes what is there and never waits to be full, so batches grow under load alone.
    pub batch_events: usize,
    /// Bytes of event values per batch.
    pub batch_bytes: usize,
    /// Rows each partition's owner remembers between batches.
    pub rows_remembered: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { batch_events: 1000, batch_bytes: 1024 * 1024, rows_remembered: 4096 }
    }
}

/// Owns `partitions` until `stop` becomes true, then finishes what is in flight. `status` tells how each is doing.
pub async fn run(
    ports: Ports,
    limits: Limits,
    partitions: Vec<Partition>,
    status: Arc<Status>,
    stop: watch::Receiver<bool>,
) {
    let mut owners = JoinSet::new();
    let mut owned = HashMap::new();
    for partition in partitions {
        let owner = owner::Owner::new(ports.clone(), limits, partition, Arc::clone(&status), stop.clone());
        owned.insert(owners.spawn(owner.run()).id(), partition);
    }
    while let Some(ended) = owners.join_next_with_id().await {
        if let Err(error) = ended
            && let Some(partition) = owned.get(&error.id())
        {
            tracing::error!(%partition, %error, "the owner of a partition failed");
            status.set(*partition, PartitionState::Halted("its owner failed".into()));
        }
    }
}
