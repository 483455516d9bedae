//! The ports as a process sees them: every call goes through its faults.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use likewise_schema::{Content, ContentType, Offset, Pair, Partition, PartitionCount, Position, UserId};
use likewise_storage::{
    CounterStore, EventLog, RecordStore, RequestStore, StoreError,
    counters::{
        Answer, Ask, Cached, Changes, Fill, Lease, LeaseKey, News, Outcome, Progress, Publish, Scope, Version, Writer,
    },
    log::{AppendError, Bounds, DeadLetter, Mark, NewRecord, ReadLimit, Slice},
    records::{
        Batch, Checkpoint, CommitError, Committed, Count, Fence, First, Gain, Generation, LikeRecord, Liked, Liker,
        Owner, Repair, Scan, Snapshot,
    },
    requests::{Admitted, Charge, Intent, RequestKey},
};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::world::Process;

fn lost() -> StoreError {
    StoreError::unavailable("the simulated store", "the answer was lost")
}

/// A port behind a process's faults.
pub(crate) struct Faulty<T: ?Sized> {
    pub(crate) process: Process,
    pub(crate) inner: Arc<T>,
}

impl<T: ?Sized> Faulty<T> {
    pub(crate) fn new(process: &Process, inner: &Arc<T>) -> Arc<Self> {
        Arc::new(Self { process: process.clone(), inner: Arc::clone(inner) })
    }
}

/// Forwards a call through the process's faults. The arguments are owned by the call.
macro_rules! through {
    ($self:ident, $inner:ident => $call:expr) => {{
        let $inner = Arc::clone(&$self.inner);
        $self.process.call(async move { $call.await }, lost).await
    }};
}

#[async_trait]
impl<T: EventLog + ?Sized> EventLog for Faulty<T> {
    fn identity(&self) -> &str {
        self.inner.identity()
    }

    fn partitions(&self) -> PartitionCount {
        self.inner.partitions()
    }

    async fn append(&self, record: NewRecord) -> Result<Offset, AppendError> {
        let world = &self.process.world;
        if !world.is_calm() && world.chance(10) {
            world.count_fault();
            self.process.point().await;
            return Err(AppendError::Rejected(lost()));
        }
        // A producer that retries below the command: the log holds the record twice.
        let twice = !world.is_calm() && world.chance(20);
        let inner = Arc::clone(&self.inner);
        let call = async move {
            if twice {
                inner.append(record.clone()).await?;
            }
            inner.append(record).await
        };
        self.process.call(call, || AppendError::Unknown(lost())).await
    }

    async fn read(&self, partition: Partition, from: Offset, limit: ReadLimit) -> Result<Slice, StoreError> {
        through!(self, inner => inner.read(partition, from, limit))
    }

    async fn mark(&self, partition: Partition, offset: Offset) -> Result<Option<Mark>, StoreError> {
        through!(self, inner => inner.mark(partition, offset))
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        through!(self, inner => inner.bounds(partition))
    }

    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError> {
        through!(self, inner => inner.bury(letter))
    }

    async fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        through!(self, inner => inner.dead_letters(from, limit))
    }

    async fn flush(&self) -> Result<(), StoreError> {
        through!(self, inner => inner.flush())
    }
}

#[async_trait]
impl<T: RecordStore + ?Sized> RecordStore for Faulty<T> {
    async fn acquire(&self, partition: Partition, owner: &Owner) -> Result<Checkpoint, StoreError> {
        let owner = owner.clone();
        through!(self, inner => inner.acquire(partition, &owner))
    }

    async fn commit(&self, batch: Batch) -> Result<Committed, CommitError> {
        let inner = Arc::clone(&self.inner);
        self.process.call(async move { inner.commit(batch).await }, || CommitError::Unknown(lost())).await
    }

    async fn repair(&self, fence: Fence, generation: Generation, repair: Repair) -> Result<Checkpoint, CommitError> {
        let inner = Arc::clone(&self.inner);
        let call = async move { inner.repair(fence, generation, repair).await };
        self.process.call(call, || CommitError::Unknown(lost())).await
    }

    async fn renew_generation(&self, fence: Fence, generation: Generation) -> Result<Checkpoint, CommitError> {
        let inner = Arc::clone(&self.inner);
        let call = async move { inner.renew_generation(fence, generation).await };
        self.process.call(call, || CommitError::Unknown(lost())).await
    }

    async fn checkpoint(&self, partition: Partition) -> Result<Option<Checkpoint>, StoreError> {
        through!(self, inner => inner.checkpoint(partition))
    }

    async fn counts(&self, contents: &[Content]) -> Result<Snapshot<Vec<Option<Count>>>, StoreError> {
        let contents = contents.to_vec();
        through!(self, inner => inner.counts(&contents))
    }

    async fn rows(&self, pairs: &[Pair]) -> Result<Snapshot<Vec<Option<LikeRecord>>>, StoreError> {
        let pairs = pairs.to_vec();
        through!(self, inner => inner.rows(&pairs))
    }

    async fn likers(
        &self,
        content: Content,
        after: Option<Liker>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liker>>, StoreError> {
        through!(self, inner => inner.likers(content, after, limit))
    }

    async fn likes_of(
        &self,
        user: UserId,
        content_type: Option<ContentType>,
        after: Option<Liked>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liked>>, StoreError> {
        through!(self, inner => inner.likes_of(user, content_type, after, limit))
    }

    async fn firsts(&self, from: &[Position], limit: usize) -> Result<Snapshot<Vec<First>>, StoreError> {
        let from = from.to_vec();
        through!(self, inner => inner.firsts(&from, limit))
    }

    async fn gains(&self, slot: i64, limit: usize) -> Result<Vec<Gain>, StoreError> {
        through!(self, inner => inner.gains(slot, limit))
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Checkpoint>, StoreError> {
        through!(self, inner => inner.scan(scan))
    }
}

#[async_trait]
impl<T: CounterStore + ?Sized> CounterStore for Faulty<T> {
    async fn publish(&self, scope: Scope, publish: Publish) -> Result<Outcome, StoreError> {
        through!(self, inner => inner.publish(scope, publish))
    }

    async fn take_over(
        &self,
        scope: Scope,
        writer: Writer,
        checkpoint: Version,
        news: News,
    ) -> Result<Version, StoreError> {
        through!(self, inner => inner.take_over(scope, writer, checkpoint, news))
    }

    async fn progress(&self, scope: Scope) -> Result<Option<Progress>, StoreError> {
        through!(self, inner => inner.progress(scope))
    }

    async fn read(&self, asks: &[Ask], viewer: Option<UserId>) -> Result<Vec<Answer>, StoreError> {
        let asks = asks.to_vec();
        through!(self, inner => inner.read(&asks, viewer))
    }

    async fn lease(&self, scope: Scope, key: LeaseKey) -> Result<Option<Lease>, StoreError> {
        through!(self, inner => inner.lease(scope, key))
    }

    async fn fill(&self, scope: Scope, lease: Lease, fill: Fill) -> Result<Outcome, StoreError> {
        through!(self, inner => inner.fill(scope, lease, fill))
    }

    async fn passed(&self, scope: Scope, offset: Offset, wait: Duration) {
        self.process.point().await;
        self.inner.passed(scope, offset, wait).await;
    }

    async fn forget(&self, scope: Scope, contents: &[Content], users: &[UserId]) -> Result<(), StoreError> {
        let (contents, users) = (contents.to_vec(), users.to_vec());
        through!(self, inner => inner.forget(scope, &contents, &users))
    }

    fn changes(&self) -> Changes {
        self.inner.changes()
    }

    async fn entries(&self, out: mpsc::Sender<Vec<Cached>>) -> Result<(), StoreError> {
        through!(self, inner => inner.entries(out))
    }
}

#[async_trait]
impl<T: RequestStore + ?Sized> RequestStore for Faulty<T> {
    async fn admit(&self, key: RequestKey, intent: Intent, charges: &[Charge]) -> Result<Admitted, StoreError> {
        let charges = charges.to_vec();
        through!(self, inner => inner.admit(key, intent, &charges))
    }

    async fn finish(&self, key: RequestKey, intent: Intent, position: Position) -> Result<(), StoreError> {
        through!(self, inner => inner.finish(key, intent, position))
    }

    async fn release(&self, key: RequestKey, charges: &[Charge]) -> Result<(), StoreError> {
        let charges = charges.to_vec();
        through!(self, inner => inner.release(key, &charges))
    }

    async fn find(&self, key: RequestKey) -> Result<Option<(Intent, Option<Position>)>, StoreError> {
        through!(self, inner => inner.find(key))
    }

    async fn attend(&self, process: Uuid) -> Result<u32, StoreError> {
        through!(self, inner => inner.attend(process))
    }
}
