//! Reads partitions from given offsets: one consumer without a group, one queue for each partition.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use likewise_schema::{Offset, Timestamp};
use rdkafka::{
    Message, TopicPartitionList,
    consumer::{Consumer, StreamConsumer, stream_consumer::StreamPartitionQueue},
    message::BorrowedMessage,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use super::{Context, Disturbances, KafkaUrl, STORE, headers_of, unavailable};
use crate::{
    StoreError,
    log::{LogRecord, ReadLimit},
};

/// How much is fetched.
pub(super) struct Fetch {
    /// Of each partition, ahead of what is read.
    records: &'static str,
    kbytes: &'static str,
    /// The broker answers when it has so much, of all partitions together, or when a fetch has waited so long.
    bytes: &'static str,
    wait_ms: &'static str,
}

/// For reads that go on where they ended. An answer for each record would cost the broker more than the record did.
pub(super) const TAIL: Fetch = Fetch { records: "10000", kbytes: "4096", bytes: "65536", wait_ms: "15" };
/// For reads of what is there, which seldom go on.
pub(super) const LOOK: Fetch = Fetch { records: "1000", kbytes: "1024", bytes: "1", wait_ms: "250" };

/// A consumer whose partitions stand where they were last read.
pub(super) struct Reader {
    consumer: Arc<StreamConsumer<Context>>,
    disturbances: Arc<Disturbances>,
    cursors: Mutex<HashMap<Place, Arc<tokio::sync::Mutex<Cursor>>>>,
    events: JoinHandle<()>,
}

/// A topic and a partition.
type Place = (String, i32);

/// Where one partition stands.
#[derive(Default)]
struct Cursor {
    queue: Option<StreamPartitionQueue<Context>>,
    /// The offset of the next delivery; none if the partition is not being fetched.
    next: Option<i64>,
    /// How many disturbances there had been at the last read.
    disturbances: u64,
}

/// What a read gave.
pub(super) struct Read {
    pub(super) records: Vec<LogRecord>,
    /// The connection broke, a leader moved or a fetch failed since the read before, or this is the first read.
    pub(super) is_disturbed: bool,
}

impl Reader {
    pub(super) fn new(url: &KafkaUrl, fetch: Fetch) -> Result<Self, StoreError> {
        let context = Context::default();
        let disturbances = Arc::clone(&context.disturbances);
        let consumer: StreamConsumer<Context> = url
            .client()
            .set("group.id", "likewise-reader")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("fetch.min.bytes", fetch.bytes)
            .set("fetch.wait.max.ms", fetch.wait_ms)
            .set("fetch.error.backoff.ms", "50")
            .set("fetch.queue.backoff.ms", "5")
            .set("queued.min.messages", fetch.records)
            .set("queued.max.messages.kbytes", fetch.kbytes)
            .set("fetch.message.max.bytes", "1048576")
            .create_with_context(context)
            .map_err(|e| unavailable(&e))?;
        let consumer = Arc::new(consumer);
        let (polled, noticed) = (Arc::clone(&consumer), Arc::clone(&disturbances));
        // Serves the consumer's events; records come through the partitions' own queues.
        let events = tokio::spawn(async move {
            loop {
                match polled.recv().await {
                    // A record that missed its partition's queue: that partition is fetched anew.
                    Ok(_) => noticed.add(),
                    Err(error) => {
                        tracing::debug!(%error, "a reader was told of an error");
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        });
        Ok(Self { consumer, disturbances, cursors: Mutex::default(), events })
    }

    /// Waits at most `wait` for a first record, then takes what has come already.
    pub(super) async fn read(
        &self,
        topic: &str,
        partition: i32,
        from: Offset,
        limit: ReadLimit,
        wait: Duration,
    ) -> Result<Read, StoreError> {
        let cursor = {
            let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(cursors.entry((topic.to_owned(), partition)).or_default())
        };
        let deadline = Instant::now() + wait;
        let Ok(mut cursor) = timeout_at(deadline, cursor.lock()).await else {
            return Err(StoreError::unavailable(STORE, "another read of the partition goes on"));
        };
        let disturbances = self.disturbances.count();
        let is_disturbed = cursor.queue.is_none() || cursor.disturbances != disturbances;
        cursor.disturbances = disturbances;
        if cursor.next != Some(from.get()) || is_disturbed {
            self.go_to(&mut cursor, topic, partition, from)?;
        }
        let read = take(&mut cursor, from, limit, deadline).await;
        if read.is_err() {
            self.disturbances.add();
            cursor.next = None;
        }
        Ok(Read { records: read?, is_disturbed })
    }

    /// Fetches the partition from an offset. What was fetched from elsewhere is dropped.
    fn go_to(&self, cursor: &mut Cursor, topic: &str, partition: i32, from: Offset) -> Result<(), StoreError> {
        let place = |offset| {
            let mut list = TopicPartitionList::new();
            let added = list.add_partition_offset(topic, partition, offset);
            added.map(|()| list).map_err(|e| unavailable(&e))
        };
        if cursor.queue.take().is_some() {
            let _was_not_assigned = self.consumer.incremental_unassign(&place(rdkafka::Offset::Invalid)?);
        }
        cursor.next = None;
        // Anew each time: a topic that was missing for a moment has other queues afterwards.
        let queue = self.consumer.split_partition_queue(topic, partition);
        cursor.queue = Some(queue.ok_or_else(|| StoreError::unusable(STORE, "the partition has no queue"))?);
        let there = place(rdkafka::Offset::Offset(from.get()))?;
        self.consumer.incremental_assign(&there).map_err(|e| unavailable(&e))?;
        cursor.next = Some(from.get());
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.events.abort();
    }
}

async fn take(
    cursor: &mut Cursor,
    from: Offset,
    limit: ReadLimit,
    deadline: Instant,
) -> Result<Vec<LogRecord>, StoreError> {
    let Cursor { queue: Some(queue), next: Some(next), .. } = cursor else { return Ok(Vec::new()) };
    let (mut records, mut bytes) = (Vec::new(), 0);
    while records.len() < limit.records && bytes < limit.bytes {
        let message = if records.is_empty() {
            timeout_at(deadline, queue.recv()).await
        } else {
            timeout(Duration::ZERO, queue.recv()).await
        };
        let Ok(message) = message else { break };
        let record = record(&message.map_err(|e| unavailable(&e))?)?;
        // What was on its way before the cursor moved.
        if record.offset < from {
            continue;
        }
        *next = record.offset.get() + 1;
        bytes += record.value.as_ref().map_or(0, Vec::len);
        records.push(record);
    }
    Ok(records)
}

fn record(message: &BorrowedMessage<'_>) -> Result<LogRecord, StoreError> {
    Ok(LogRecord {
        offset: Offset::new(message.offset()).map_err(|e| StoreError::unusable(STORE, e))?,
        timestamp: Timestamp::saturating_from_millis(message.timestamp().to_millis().unwrap_or_default()),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers_of(message.headers()),
    })
}
