//! Where the partitions end, asked of the broker many times a second, which also tells whether it answers.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use likewise_schema::{Offset, Partition, PartitionCount};
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};

use super::{Context, KafkaUrl, REQUEST_MAX, STORE, blocking, unavailable};
use crate::{StoreError, log::Bounds};

const ASK_EVERY: Duration = Duration::from_millis(200);

/// What was last heard of all partitions.
pub(super) struct Watermarks {
    consumer: Arc<BaseConsumer<Context>>,
    heard: Arc<Mutex<Heard>>,
    stopped: Arc<AtomicBool>,
}

struct Heard {
    bounds: HashMap<u16, Bounds>,
    at: Instant,
}

fn offset(number: i64) -> Offset {
    Offset::new(number.max(0)).unwrap_or_default()
}

impl Watermarks {
    /// Asks once, then goes on asking on a thread of its own until dropped.
    pub(super) fn start(url: &KafkaUrl, count: PartitionCount) -> Result<Self, StoreError> {
        let consumer: BaseConsumer<Context> = url
            .client()
            .set("group.id", "likewise-reader")
            .set("enable.auto.commit", "false")
            .create_with_context(Context::default())
            .map_err(|e| unavailable(&e))?;
        let consumer = Arc::new(consumer);
        let mut heard = Heard { bounds: HashMap::new(), at: Instant::now() };
        heard.ask(&consumer, &url.topic, count)?;
        let heard = Arc::new(Mutex::new(heard));
        let stopped = Arc::new(AtomicBool::new(false));
        let (asking, kept, topic, stop) =
            (Arc::clone(&consumer), Arc::clone(&heard), url.topic.clone(), Arc::clone(&stopped));
        let ask = move || {
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(ASK_EVERY);
                let mut fresh = Heard { bounds: HashMap::new(), at: Instant::now() };
                match fresh.ask(&asking, &topic, count) {
                    Ok(()) => *kept.lock().unwrap_or_else(PoisonError::into_inner) = fresh,
                    Err(error) => tracing::debug!(%error, "the broker did not tell where the log ends"),
                }
                let _serves_events = asking.poll(Duration::ZERO);
            }
        };
        let started = thread::Builder::new().name("watermarks".into()).spawn(ask);
        started.map_err(|e| StoreError::unavailable(STORE, e))?;
        Ok(Self { consumer, heard, stopped })
    }

    /// How long ago the broker last answered.
    pub(super) fn age(&self) -> Duration {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).at.elapsed()
    }

    /// The partition's bounds as last heard.
    pub(super) fn bounds(&self, partition: Partition) -> Bounds {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let none = Bounds { start: Offset::ZERO, end: Offset::ZERO };
        heard.bounds.get(&partition.get()).copied().unwrap_or(none)
    }

    /// A partition's bounds, asked now.
    pub(super) async fn fresh(&self, topic: &str, partition: i32) -> Result<Bounds, StoreError> {
        let (consumer, topic) = (Arc::clone(&self.consumer), topic.to_owned());
        blocking(move || {
            let found = consumer.fetch_watermarks(&topic, partition, REQUEST_MAX).map_err(|e| unavailable(&e))?;
            Ok(Bounds { start: offset(found.0), end: offset(found.1) })
        })
        .await
    }
}

impl Drop for Watermarks {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

impl Heard {
    /// Asks for the start and the end of every partition, in one request for each.
    fn ask(&mut self, consumer: &BaseConsumer<Context>, topic: &str, count: PartitionCount) -> Result<(), StoreError> {
        let ask = |place| {
            let mut list = TopicPartitionList::new();
            for partition in count.all() {
                let added = list.add_partition_offset(topic, i32::from(partition.get()), place);
                added.map_err(|e| unavailable(&e))?;
            }
            // The protocol takes the two places in lieu of a time.
            let answer = consumer.offsets_for_times(list, REQUEST_MAX).map_err(|e| unavailable(&e))?;
            let of = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
                element.error().map_err(|e| unavailable(&e))?;
                let number = match element.offset() {
                    rdkafka::Offset::Offset(number) => number,
                    _ => return Err(StoreError::unavailable(STORE, "the broker gave no offset")),
                };
                Ok((element.partition().unsigned_abs() as u16, offset(number)))
            };
            answer.elements().iter().map(of).collect::<Result<HashMap<u16, Offset>, StoreError>>()
        };
        let starts = ask(rdkafka::Offset::Beginning)?;
        let ends = ask(rdkafka::Offset::End)?;
        let missing = || StoreError::unavailable(STORE, "the broker left a partition out");
        for (partition, end) in ends {
            let start = *starts.get(&partition).ok_or_else(missing)?;
            self.bounds.insert(partition, Bounds { start, end });
        }
        Ok(())
    }
}
