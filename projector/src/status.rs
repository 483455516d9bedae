//! How each owned partition is doing, for readiness and for people.

use std::collections::BTreeMap;

use likewise_schema::Partition;
use std::sync::{Mutex, PoisonError};

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
pub struct Status(Mutex<BTreeMap<Partition, PartitionState>>);

impl Status {
    pub(crate) fn set(&self, partition: Partition, state: PartitionState) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, state);
    }

    /// A copy of all states.
    pub fn all(&self) -> BTreeMap<Partition, PartitionState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
