//! The log as a rebuild reads it: no faster than asked, and dead letters are not written a second time.

use std::sync::Arc;

use async_trait::async_trait;
use likewise_analyst::reader::Pace;
use likewise_schema::{Offset, Partition, PartitionCount};
use likewise_storage::{
    EventLog, StoreError,
    log::{AppendError, Bounds, DeadLetter, Mark, NewRecord, ReadLimit, Slice},
};

pub(super) struct Reread {
    log: Arc<dyn EventLog>,
    pace: Arc<Pace>,
}

impl Reread {
    pub(super) fn new(log: &Arc<dyn EventLog>, max_rate: u32) -> Self {
        Self { log: Arc::clone(log), pace: Pace::new(max_rate) }
    }
}

#[async_trait]
impl EventLog for Reread {
    fn identity(&self) -> &str {
        self.log.identity()
    }

    fn partitions(&self) -> PartitionCount {
        self.log.partitions()
    }

    async fn append(&self, _record: NewRecord) -> Result<Offset, AppendError> {
        Err(AppendError::Rejected(StoreError::unusable("the log", "a rebuild writes nothing to it")))
    }

    async fn read(&self, partition: Partition, from: Offset, limit: ReadLimit) -> Result<Slice, StoreError> {
        let slice = self.log.read(partition, from, limit).await?;
        self.pace.took(slice.records.len()).await;
        Ok(slice)
    }

    async fn mark(&self, partition: Partition, offset: Offset) -> Result<Option<Mark>, StoreError> {
        self.log.mark(partition, offset).await
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        self.log.bounds(partition).await
    }

    async fn bury(&self, _letter: DeadLetter) -> Result<(), StoreError> {
        // It was buried when it was first read.
        Ok(())
    }

    async fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.log.dead_letters(from, limit).await
    }

    async fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
