//! How each owned partition is doing, for readiness and for people.

use std::collections::BTreeMap;

use likewise_schema::Partition;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The state of an owned partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionState {
    /// Being acquired, for the first time or again; the last error, if there was one.
    Acquiring(Option<String>),
    /// Events are applied as they come.
    Running,
    /// Stopped to protect data, until a person has looked.
    Halted(String),
}

/// The states of all partitions of a projector.
#[derive(Debug, Default)]
pub struct Status(Mutex<BTreeMap<Partition, Owned>>);

#[derive(Debug)]
struct Owned {
    state: PartitionState,
    steps: u64,
}

impl Status {
    fn owned(&self) -> MutexGuard<'_, BTreeMap<Partition, Owned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, partition: Partition, state: PartitionState) {
        let mut owned = self.owned();
        let steps = owned.get(&partition).map_or(0, |known| known.steps + 1);
        owned.insert(partition, Owned { state, steps });
    }

    pub(crate) fn remove(&self, partition: Partition) {
        self.owned().remove(&partition);
    }

    /// An owner that does not halt makes a step each second or so; one that makes none is stuck.
    pub(crate) fn step(&self, partition: Partition) {
        if let Some(known) = self.owned().get_mut(&partition) {
            known.steps += 1;
        }
    }

    /// A copy of all states.
    pub fn all(&self) -> BTreeMap<Partition, PartitionState> {
        self.owned().iter().map(|(partition, owned)| (*partition, owned.state.clone())).collect()
    }

    /// How many steps each owner that is not halted has made. One whose number stands still is stuck.
    pub fn steps(&self) -> BTreeMap<Partition, u64> {
        let owned = self.owned();
        let going = owned.iter().filter(|(_, owned)| !matches!(owned.state, PartitionState::Halted(_)));
        going.map(|(partition, owned)| (*partition, owned.steps)).collect()
    }
}
