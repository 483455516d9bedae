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
}

impl Bug {
    /// Every bug.
    pub const ALL: [Bug; 10] = [
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
