//! Which partitions a process is to own, as long as it is a member.

use std::{collections::BTreeSet, fmt, sync::mpsc};

use likewise_schema::{Offset, Partition, PartitionCount};
use tokio::sync::watch;

/// A place among the projectors of a log, left when dropped.
pub struct Membership {
    partitions: watch::Receiver<BTreeSet<Partition>>,
    ended: watch::Receiver<Option<String>>,
    report: Report,
    leave: Option<Box<dyn FnOnce() + Send + Sync>>,
    /// Never sent to; keeps a fixed membership from ending.
    _for_ever: Option<watch::Sender<Option<String>>>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("partitions", &*self.partitions.borrow()).finish_non_exhaustive()
    }
}

impl Membership {
    /// A membership that `leave` ends.
    pub fn new(
        partitions: watch::Receiver<BTreeSet<Partition>>,
        ended: watch::Receiver<Option<String>>,
        report: Report,
        leave: Box<dyn FnOnce() + Send + Sync>,
    ) -> Self {
        Self { partitions, ended, report, leave: Some(leave), _for_ever: None }
    }

    /// Of the only member, which owns all partitions.
    pub fn of_all(count: PartitionCount) -> Self {
        Self::fixed(count.all().collect())
    }

    /// Of a member whose partitions never change.
    pub fn fixed(partitions: BTreeSet<Partition>) -> Self {
        let (_, partitions) = watch::channel(partitions);
        let (for_ever, ended) = watch::channel(None);
        Self { partitions, ended, report: Report(None), leave: None, _for_ever: Some(for_ever) }
    }

    /// The partitions to own, as they change. They no longer change once the sender is gone.
    pub fn partitions(&self) -> watch::Receiver<BTreeSet<Partition>> {
        self.partitions.clone()
    }

    /// Where owners say how far they have come.
    pub fn report(&self) -> Report {
        self.report.clone()
    }

    /// Waits until this member can never own anything again, and gives the reason. For ever, if that does not happen.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the consumer group's client has ended".into(),
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            leave();
        }
    }
}

/// Tells lag tools how far a partition has been applied. Nothing depends on it.
#[derive(Clone, Debug)]
pub struct Report(Option<mpsc::Sender<(Partition, Offset)>>);

impl Report {
    /// Sends what owners say to `sender`.
    pub fn to(sender: mpsc::Sender<(Partition, Offset)>) -> Self {
        Self(Some(sender))
    }

    /// Says that everything below `next_offset` is applied.
    pub fn applied(&self, partition: Partition, next_offset: Offset) {
        if let Some(sender) = &self.0 {
            let _has_left = sender.send((partition, next_offset));
        }
    }
}
