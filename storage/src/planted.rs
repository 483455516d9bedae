//! Bugs that the simulation must find, to prove that it can. They exist in test builds only: without the feature
//! `planted-bugs`, [`on`] is a constant `false` and the compiler removes every branch behind it.

/// One planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The fold flips the state and ignores `liked`.
    Flip,
    /// The checkpoint moves in a transaction of its own, before the rows.
    CheckpointBeforeRows,
    /// A commit takes whatever epoch and offset are stored for its own.
    NoFence,
    /// A command is acknowledged before the log has it.
    AcknowledgedBeforeLog,
    /// A publish counts up from nothing where the key is absent.
    IncrementMissingKey,
    /// An event that does not change the state stays out of the ring.
    NoOpLeftOutOfRing,
    /// An unlike of an unknown pair writes no row.
    UnlikeOfUnknownPairDropped,
    /// The floor compares the time of a v7 id only.
    FloorByTimeOnly,
    /// After a lost answer the owner goes on from memory, without acquiring anew.
    KeepRowsAfterUnknownCommit,
    /// A refused publish is ignored.
    RefusedPublishIgnored,
    /// A fill is installed without its lease.
    FillWithoutLease,
    /// A publish drops the lease only of entries that are there.
    LeaseKeptWhereKeyAbsent,
    /// A fill is installed under the version after its snapshot's.
    FillVersionOffByOne,
    /// A reader reads the entries first, and progress after them.
    ValueBeforeProgress,
    /// A publish is taken from whoever sends it, wherever progress stands.
    PublishWithoutCompare,
    /// A publisher goes on from where it remembers to have been, whatever progress says.
    RepublishFromMemory,
    /// A takeover reads progress in one step and writes it in another.
    TakeoverInTwoSteps,
    /// A takeover moves the position to the checkpoint before what was missed is published.
    PositionBeforeRepublish,
    /// Entries below the floor are given to readers.
    FloorIgnored,
    /// What a replica says is put into the cache.
    ReplicaFills,
}

impl Bug {
    /// Every bug.
    pub const ALL: [Bug; 20] = [
        Bug::Flip,
        Bug::CheckpointBeforeRows,
        Bug::NoFence,
        Bug::AcknowledgedBeforeLog,
        Bug::IncrementMissingKey,
        Bug::NoOpLeftOutOfRing,
        Bug::UnlikeOfUnknownPairDropped,
        Bug::FloorByTimeOnly,
        Bug::KeepRowsAfterUnknownCommit,
        Bug::RefusedPublishIgnored,
        Bug::FillWithoutLease,
        Bug::LeaseKeptWhereKeyAbsent,
        Bug::FillVersionOffByOne,
        Bug::ValueBeforeProgress,
        Bug::PublishWithoutCompare,
        Bug::RepublishFromMemory,
        Bug::TakeoverInTwoSteps,
        Bug::PositionBeforeRepublish,
        Bug::FloorIgnored,
        Bug::ReplicaFills,
    ];
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local!(static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) });

    /// Plants `bug`, or none, in this thread.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Whether `bug` is planted in this thread.
    pub fn on(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub use switch::{on, plant};

/// Whether `bug` is planted: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
pub const fn on(_bug: Bug) -> bool {
    false
}
