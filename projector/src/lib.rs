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

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use likewise_schema::Partition;
use likewise_storage::{
    Clock, CounterStore, EventLog, RecordStore,
    log::{Membership, Report},
};
use tokio::{sync::watch, task::JoinSet};

use self::owner::Owner;
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
    /// The pause between two commits of a partition that has little more to apply; the first after a silence does not
    /// wait. Where a commit is costly this makes fewer and larger ones. A pause is as long as the last commit took, but
    /// at least this and at most twice this, so that a busy store is relieved.
    pub pause: Duration,
    /// Bytes of event values per batch.
    pub batch_bytes: usize,
    /// Rows each partition's owner remembers between batches.
    pub rows_remembered: usize,
    /// Counts each partition's owner remembers between batches.
    pub counts_remembered: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_events: 2000,
            pause: Duration::ZERO,
            batch_bytes: 1024 * 1024,
            rows_remembered: 4096,
            counts_remembered: 8192,
        }
    }
}

/// Owns the partitions that the membership names, as they change, until `stop` becomes true; then finishes what is in
/// flight. `status` tells how each is doing.
pub async fn run(
    ports: Ports,
    limits: Limits,
    membership: &Membership,
    status: Arc<Status>,
    mut stop: watch::Receiver<bool>,
) {
    let mut wanted = membership.partitions();
    let mut owners =
        Owners { ports, limits, report: membership.report(), status, tasks: JoinSet::new(), owned: BTreeMap::new() };
    loop {
        let now = wanted.borrow_and_update().clone();
        owners.give_up_all_but(&now);
        owners.take(&now);
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            Ok(()) = wanted.changed() => {}
            Some(ended) = owners.tasks.join_next_with_id() => owners.note(ended),
        }
    }
    owners.give_up_all_but(&BTreeSet::new());
    while let Some(ended) = owners.tasks.join_next_with_id().await {
        owners.note(ended);
    }
}

/// The owners of this process, one task for each partition.
struct Owners {
    ports: Ports,
    limits: Limits,
    report: Report,
    status: Arc<Status>,
    tasks: JoinSet<()>,
    owned: BTreeMap<Partition, Owned>,
}

struct Owned {
    task: tokio::task::Id,
    stop: watch::Sender<bool>,
}

impl Owners {
    /// Asks those to stop that are no longer wanted. A partition that comes back waits for its owner's end.
    fn give_up_all_but(&self, wanted: &BTreeSet<Partition>) {
        for owned in self.owned.iter().filter(|(partition, _)| !wanted.contains(partition)).map(|(_, owned)| owned) {
            let _has_ended = owned.stop.send(true);
        }
    }

    fn take(&mut self, wanted: &BTreeSet<Partition>) {
        for partition in wanted {
            if !self.owned.contains_key(partition) {
                let (stop, stopping) = watch::channel(false);
                let (ports, status) = (self.ports.clone(), Arc::clone(&self.status));
                let owner = Owner::new(ports, self.limits, *partition, status, self.report.clone(), stopping);
                let task = self.tasks.spawn(owner.run()).id();
                self.owned.insert(*partition, Owned { task, stop });
            }
        }
    }

    fn note(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let id = ended.as_ref().map_or_else(tokio::task::JoinError::id, |(id, ())| *id);
        let Some(partition) = self.owned.iter().find(|(_, owned)| owned.task == id).map(|(partition, _)| *partition)
        else {
            return;
        };
        match ended {
            Ok(_) => {
                self.owned.remove(&partition);
                self.status.remove(partition);
            }
            Err(error) => {
                // It stays here, so that nobody starts it again.
                tracing::error!(%partition, %error, "the owner of a partition failed");
                self.status.set(partition, PartitionState::Halted("its owner failed".into()));
            }
        }
    }
}
