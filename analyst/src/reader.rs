//! One partition from an offset on, in chunks, no faster than asked.

use std::{sync::Arc, time::Duration};

use likewise_schema::{LikeToggled, Offset, Partition, Rejected, Timestamp};
use likewise_storage::{
    EventLog, StoreError,
    log::{Bounds, LogRecord, ReadLimit},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

/// Bytes of values of one chunk.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// How long the log may take to show records up to an end that others know already, and how often it is looked at.
const END_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// By how much the clocks of processes that write may differ where a moment is looked for by halves.
const CLOCKS_DIFFER_MILLIS: i64 = 60_000;

/// How many records may be read in a second, by all readers that share it. It leaves the rest of the machine and of the
/// log to those who serve.
#[derive(Debug)]
pub struct Pace {
    /// None: as fast as it goes.
    per_second: Option<f64>,
    /// When the records read so far may have been read.
    next: Mutex<Instant>,
    /// How long a read may wait in the log for records that it has: a log may fetch ahead for one who does.
    wait: Duration,
}

impl Pace {
    /// At most so many records a second; 0 is no limit.
    pub fn new(per_second: u32) -> Arc<Self> {
        let per_second = (per_second > 0).then_some(f64::from(per_second));
        Arc::new(Self { per_second, next: Mutex::new(Instant::now()), wait: END_MAX })
    }

    /// Of somebody who looks at a log that owners of the same process follow: without waiting where they do.
    pub fn beside_owners() -> Arc<Self> {
        Arc::new(Self { per_second: None, next: Mutex::new(Instant::now()), wait: Duration::ZERO })
    }

    /// Waits until so many more records may have been read.
    pub async fn took(&self, records: usize) {
        let Some(per_second) = self.per_second else { return };
        let until = {
            let mut next = self.next.lock().await;
            *next = (*next).max(Instant::now()) + Duration::from_secs_f64(records as f64 / per_second);
            *next
        };
        sleep_until(until).await;
    }
}

/// Decodes a record found in `partition` of `log`.
pub fn decode(log: &Arc<dyn EventLog>, partition: Partition, record: &LogRecord) -> Result<LikeToggled, Rejected> {
    let (key, value) = (record.key.as_deref(), record.value.as_deref());
    LikeToggled::decode(partition, log.partitions(), key, value, &record.headers)
}

/// Reads a partition from an offset up to an end.
pub struct PartitionReader {
    log: Arc<dyn EventLog>,
    partition: Partition,
    /// The next record.
    pub(crate) next: Offset,
    /// Where to stop.
    pub(crate) end: Offset,
    chunk: usize,
    pace: Arc<Pace>,
}

impl PartitionReader {
    /// Gives chunks of at most `chunk` records.
    pub fn new(
        log: &Arc<dyn EventLog>,
        partition: Partition,
        (next, end): (Offset, Offset),
        chunk: usize,
        pace: &Arc<Pace>,
    ) -> Self {
        Self { log: Arc::clone(log), partition, next, end, chunk, pace: Arc::clone(pace) }
    }

    /// The next records; none at the end. Fails where the log has a gap, or ends before the end it had.
    pub async fn chunk(&mut self) -> Result<Vec<LogRecord>, StoreError> {
        if self.next >= self.end {
            return Ok(Vec::new());
        }
        let limit = ReadLimit { records: self.chunk, bytes: CHUNK_BYTES, wait: self.pace.wait };
        let started = Instant::now();
        let records = loop {
            let mut records = self.log.read(self.partition, self.next, limit).await?.records;
            records.retain(|record| record.offset < self.end);
            // Where the end came from elsewhere, what is known here of the log's end may be a moment older.
            if !records.is_empty() || started.elapsed() > END_MAX {
                break records;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        for record in &records {
            if record.offset != self.next {
                let (partition, next) = (self.partition, self.next);
                let reason = format!("partition {partition} has a gap at offset {next}");
                return Err(StoreError::unusable("the log", reason));
            }
            self.next = record.offset.next();
        }
        if records.is_empty() {
            return Err(StoreError::unusable("the log", format!("partition {} ends early", self.partition)));
        }
        self.pace.took(records.len()).await;
        Ok(records)
    }
}

/// The offset of the first event of a partition that was received at `time` or later; the end if there is none. It is
/// found by halves, which is exact as long as the clocks of those who write differ by less than a minute.
pub async fn first_from(
    log: &Arc<dyn EventLog>,
    partition: Partition,
    bounds: Bounds,
    time: Timestamp,
) -> Result<Offset, StoreError> {
    let doubtful = Timestamp::saturating_from_millis(time.millis() - CLOCKS_DIFFER_MILLIS);
    let (mut low, mut high) = (bounds.start.get(), bounds.end.get());
    let limit = ReadLimit { records: 1, bytes: 1, wait: Duration::ZERO };
    while low < high {
        let middle = low + (high - low) / 2;
        let slice = log.read(partition, Offset::new(middle).unwrap_or_default(), limit).await?;
        match slice.records.first() {
            Some(record) if record.timestamp < doubtful => low = middle + 1,
            _ => high = middle,
        }
    }
    let from = Offset::new(low).unwrap_or_default();
    let mut reader = PartitionReader::new(log, partition, (from, bounds.end), 1000, &Pace::new(0));
    loop {
        let records = reader.chunk().await?;
        if records.is_empty() {
            return Ok(bounds.end);
        }
        let is_from = |record: &&LogRecord| decode(log, partition, record).is_ok_and(|like| like.received_at >= time);
        if let Some(record) = records.iter().find(is_from) {
            return Ok(record.offset);
        }
    }
}

/// The bounds of a partition whose whole log is needed: fails if its beginning is gone.
pub async fn whole(log: &Arc<dyn EventLog>, partition: Partition) -> Result<Bounds, StoreError> {
    let bounds = log.bounds(partition).await?;
    if bounds.start > Offset::ZERO {
        let reason = format!("partition {partition} begins at offset {}: what was before is gone", bounds.start);
        return Err(StoreError::unusable("the log", reason));
    }
    Ok(bounds)
}
