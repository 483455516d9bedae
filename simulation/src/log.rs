//! A log in memory. Passes the log's conformance suite; all faults come from outside.

use std::time::Duration;

use async_trait::async_trait;
use likewise_schema::{Offset, Partition, PartitionCount};
use likewise_storage::{
    EventLog, StoreError,
    log::{AppendError, Before, Bounds, DeadLetter, LogRecord, Mark, NewRecord, RECORD_BYTES_MAX, ReadLimit, Slice},
};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

const STORE: &str = "the simulated log";

/// The log in memory.
pub struct SimLog {
    identity: String,
    partitions: Vec<Mutex<Vec<LogRecord>>>,
    // Notify wakes in order; a watch channel wakes at random.
    grown: Notify,
    dead: Mutex<Vec<DeadLetter>>,
}

impl SimLog {
    /// An empty log of 16 partitions.
    pub fn new(identity: &str) -> Self {
        Self {
            identity: identity.to_owned(),
            partitions: PartitionCount::DEFAULT.all().map(|_| Mutex::default()).collect(),
            grown: Notify::new(),
            dead: Mutex::default(),
        }
    }

    /// A copy of a partition.
    pub fn records(&self, partition: Partition) -> Vec<LogRecord> {
        self.of(partition).lock().clone()
    }

    /// Loses a record, as no log should.
    pub fn forget(&self, partition: Partition, offset: Offset) {
        self.of(partition).lock().retain(|record| record.offset != offset);
    }

    fn of(&self, partition: Partition) -> &Mutex<Vec<LogRecord>> {
        &self.partitions[usize::from(partition.get())]
    }
}

fn offset(index: usize) -> Offset {
    Offset::new(index as i64).unwrap_or_default()
}

#[async_trait]
impl EventLog for SimLog {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn partitions(&self) -> PartitionCount {
        PartitionCount::DEFAULT
    }

    async fn append(&self, record: NewRecord) -> Result<Offset, AppendError> {
        let size = record.value.as_ref().map_or(0, Vec::len);
        if size > RECORD_BYTES_MAX || usize::from(record.partition.get()) >= self.partitions.len() {
            return Err(AppendError::Rejected(StoreError::unusable(STORE, "it cannot keep this record")));
        }
        let NewRecord { partition, timestamp, key, value, headers } = record;
        let mut records = self.of(partition).lock();
        let offset = offset(records.len());
        records.push(LogRecord { offset, timestamp, key, value, headers });
        self.grown.notify_waiters();
        Ok(offset)
    }

    async fn read(&self, partition: Partition, from: Offset, limit: ReadLimit) -> Result<Slice, StoreError> {
        let deadline = Instant::now() + limit.wait;
        while limit.wait > Duration::ZERO && offset(self.of(partition).lock().len()) <= from {
            if timeout_at(deadline, self.grown.notified()).await.is_err() {
                break;
            }
        }
        let all = self.of(partition).lock();
        let (mut records, mut bytes) = (Vec::new(), 0);
        for record in all.iter().filter(|record| record.offset >= from).take(limit.records) {
            bytes += record.value.as_ref().map_or(0, Vec::len);
            records.push(record.clone());
            if bytes >= limit.bytes {
                break;
            }
        }
        let previous = from.previous().and_then(|previous| all.get(previous.get() as usize));
        let before = previous.map_or(Before::Absent, |record| Before::Found(record.mark()));
        Ok(Slice {
            records,
            bounds: Bounds { start: Offset::ZERO, end: offset(all.len()) },
            before,
            age: Duration::ZERO,
        })
    }

    async fn mark(&self, partition: Partition, offset: Offset) -> Result<Option<Mark>, StoreError> {
        Ok(self.of(partition).lock().get(offset.get() as usize).map(LogRecord::mark))
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        Ok(Bounds { start: Offset::ZERO, end: offset(self.of(partition).lock().len()) })
    }

    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError> {
        self.dead.lock().push(letter);
        Ok(())
    }

    async fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        Ok(self.dead.lock().iter().skip(from as usize).take(limit).cloned().collect())
    }

    async fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
