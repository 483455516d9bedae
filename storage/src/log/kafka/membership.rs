//! The consumer group says which process owns which partitions. Nothing is read through it: its partitions are paused,
//! and what protects the records is the checkpoint's fence.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use likewise_schema::{Offset, Partition, PartitionCount};
use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance},
    error::KafkaError,
};
use tokio::sync::watch;

use super::{KafkaUrl, STORE, unavailable};
use crate::{
    StoreError,
    log::{Membership, Report},
};

/// How long a member may be silent before its partitions are given to others.
const SESSION_MS: &str = "6000";
const HEARTBEAT_MS: &str = "1000";
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How often offsets are committed, for lag tools.
const COMMIT_EVERY: u32 = 10;

struct Group {
    count: PartitionCount,
    owned: watch::Sender<BTreeSet<Partition>>,
}

impl Group {
    fn change(&self, list: &TopicPartitionList, change: impl Fn(&mut BTreeSet<Partition>, Partition)) {
        self.owned.send_modify(|owned| {
            for element in list.elements() {
                match Partition::new(element.partition().unsigned_abs(), self.count) {
                    Ok(partition) => change(owned, partition),
                    Err(_) => tracing::error!(
                        partition = element.partition(),
                        "the topic has more partitions than when this process started; nothing reads the new ones"
                    ),
                }
            }
        });
    }
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, message);
    }
}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, _consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            self.change(list, |owned, partition| {
                owned.remove(&partition);
            });
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let _reads_a_little_in_vain = consumer.pause(list);
                self.change(list, |owned, partition| {
                    owned.insert(partition);
                });
            }
            Rebalance::Revoke(_) => {}
            Rebalance::Error(error) => {
                tracing::warn!(%error, "a rebalance failed");
                self.owned.send_modify(BTreeSet::clear);
            }
        }
    }
}

/// Joins the group. With `instance`, a restart under the same name keeps its partitions.
pub(super) fn join(url: &KafkaUrl, count: PartitionCount, instance: Option<&str>) -> Result<Membership, StoreError> {
    let mut config = url.client();
    config
        .set("group.id", &url.group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", SESSION_MS)
        .set("heartbeat.interval.ms", HEARTBEAT_MS)
        .set("max.poll.interval.ms", "30000")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "latest")
        .set("queued.min.messages", "1")
        .set("queued.max.messages.kbytes", "64");
    if let Some(instance) = instance {
        config.set("group.instance.id", instance);
    }
    let (owned, partitions) = watch::channel(BTreeSet::new());
    let consumer: BaseConsumer<Group> =
        config.create_with_context(Group { count, owned }).map_err(|e| unavailable(&e))?;
    consumer.subscribe(&[&url.topic]).map_err(|e| unavailable(&e))?;
    let (lost, ended) = watch::channel(None);
    let (report, reports) = std::sync::mpsc::channel::<(Partition, Offset)>();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, topic) = (Arc::clone(&stop), url.topic.clone());
    let poll = move || {
        let mut applied: BTreeMap<Partition, Offset> = BTreeMap::new();
        let mut turns = 0_u32;
        while !stopping.load(Ordering::Relaxed) {
            // Records that were on their way when their partition was paused.
            if let Some(Err(error)) = consumer.poll(POLL_EVERY)
                && let Some(reason) = fatal(&consumer, &error)
            {
                consumer.context().owned.send_modify(BTreeSet::clear);
                let _nobody_waits = lost.send(Some(reason));
                return;
            }
            applied.extend(reports.try_iter());
            turns += 1;
            if turns.is_multiple_of(COMMIT_EVERY) {
                commit(&consumer, &topic, std::mem::take(&mut applied));
            }
        }
        applied.extend(reports.try_iter());
        commit(&consumer, &topic, applied);
        consumer.context().owned.send_modify(BTreeSet::clear);
        // Dropping the consumer leaves the group, unless the member is static: then its partitions wait for it.
    };
    let thread = thread::Builder::new().name("membership".into()).spawn(poll);
    let thread = thread.map_err(|e| StoreError::unavailable(STORE, e))?;
    let leave = Box::new(move || {
        stop.store(true, Ordering::Relaxed);
        let _panicked = thread.join();
    });
    Ok(Membership::new(partitions, ended, Report::to(report), leave))
}

/// Commits what is applied of the partitions that are owned. A static member that has lost its partitions and joins
/// again would be fenced, for good, by a commit under its old name.
fn commit(consumer: &BaseConsumer<Group>, topic: &str, mut applied: BTreeMap<Partition, Offset>) {
    let owned = consumer.context().owned.borrow().clone();
    applied.retain(|partition, _| owned.contains(partition));
    if applied.is_empty() || consumer.assignment_lost() {
        return;
    }
    let mut list = TopicPartitionList::new();
    for (partition, next) in applied {
        let place = rdkafka::Offset::Offset(next.get());
        let _is_valid = list.add_partition_offset(topic, i32::from(partition.get()), place);
    }
    let _for_lag_tools_only = consumer.commit(&list, CommitMode::Async);
}

/// Why the member can never get partitions again.
fn fatal(consumer: &BaseConsumer<Group>, error: &KafkaError) -> Option<String> {
    if let Some((code, _)) = consumer.client().fatal_error() {
        return Some(match code {
            rdkafka::types::RDKafkaErrorCode::FencedInstanceId => {
                "another process has joined the group under the same --instance-id".into()
            }
            code => format!("the consumer group failed for good: {code}"),
        });
    }
    tracing::debug!(%error, "the group was told of an error");
    None
}
