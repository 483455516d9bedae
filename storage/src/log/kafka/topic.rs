//! The topics: made once, looked at before each start, and checked for settings that endanger data.

use std::time::Duration;

use likewise_schema::PartitionCount;
use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigEntry, NewTopic, ResourceSpecifier, TopicReplication},
    consumer::{BaseConsumer, Consumer},
    types::RDKafkaErrorCode,
};

use super::{Context, KafkaUrl, REQUEST_MAX, STORE, unavailable};
use crate::{
    StoreError,
    log::{DEAD_LETTER_BYTES_MAX, RECORD_BYTES_MAX},
};

/// What a batch takes beside its records.
const BATCH_OVERHEAD: usize = 4096;

/// What is there of a log.
pub(super) struct Seen {
    pub(super) cluster: String,
    pub(super) partitions: PartitionCount,
}

fn consumer(url: &KafkaUrl) -> Result<BaseConsumer<Context>, StoreError> {
    url.client().set("group.id", "likewise-reader").create_with_context(Context::default()).map_err(|e| unavailable(&e))
}

/// Looks for the topics. Blocks, at most about `wait`.
pub(super) fn look(url: &KafkaUrl, wait: Duration) -> Result<Seen, StoreError> {
    let consumer = consumer(url)?;
    let metadata = consumer
        .fetch_metadata(None, wait)
        .map_err(|_| StoreError::unavailable(STORE, format!("no broker answers at {}", url.brokers)))?;
    let find =
        |name: &str| metadata.topics().iter().find(|topic| topic.name() == name && !topic.partitions().is_empty());
    let missing =
        |name: &str| StoreError::unusable(STORE, format!("there is no topic {name}: run likewise topic create"));
    let topic = find(&url.topic).ok_or_else(|| missing(&url.topic))?;
    find(&url.dead_topic()).ok_or_else(|| missing(&url.dead_topic()))?;
    let count = u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX);
    let partitions = PartitionCount::new(count).map_err(|invalid| {
        let (topic, detail) = (&url.topic, invalid.detail());
        StoreError::unusable(
            STORE,
            format!("topic {topic} has {count} partitions: their number {detail}, and never changes"),
        )
    })?;
    let cluster = consumer.client().fetch_cluster_id(REQUEST_MAX);
    let cluster = cluster.ok_or_else(|| StoreError::unavailable(STORE, "the cluster does not tell its id"))?;
    Ok(Seen { cluster, partitions })
}

/// Makes the topic and the one for dead letters. Fails if either is there.
pub async fn create(url: &KafkaUrl, partitions: PartitionCount, replication: u16) -> Result<(), StoreError> {
    let admin = admin(url)?;
    let (likes, dead) =
        ((RECORD_BYTES_MAX + BATCH_OVERHEAD).to_string(), (DEAD_LETTER_BYTES_MAX + BATCH_OVERHEAD).to_string());
    let in_sync = if replication >= 3 { "2" } else { "1" };
    let name = url.dead_topic();
    let topic = |name, partitions: u16, bytes| {
        NewTopic::new(name, i32::from(partitions), TopicReplication::Fixed(i32::from(replication)))
            .set("cleanup.policy", "delete")
            .set("retention.ms", "-1")
            .set("retention.bytes", "-1")
            .set("message.timestamp.type", "CreateTime")
            .set("unclean.leader.election.enable", "false")
            .set("min.insync.replicas", in_sync)
            .set("max.message.bytes", bytes)
    };
    let topics = [topic(&url.topic, partitions.get(), &likes), topic(&name, 1, &dead)];
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    let made = admin.create_topics(&topics, &options).await.map_err(|_| no_broker(url))?;
    for outcome in made {
        outcome.map_err(|(topic, code)| match code {
            RDKafkaErrorCode::TopicAlreadyExists => {
                StoreError::unusable(STORE, format!("there is a topic {topic} already"))
            }
            RDKafkaErrorCode::InvalidReplicationFactor => {
                StoreError::unusable(STORE, format!("there are fewer than {replication} brokers: set --replication"))
            }
            code => StoreError::unavailable(STORE, format!("topic {topic} could not be made: {code}")),
        })?;
    }
    Ok(())
}

/// What of the topics' settings endangers data, a sentence each. None is good.
pub async fn check(url: &KafkaUrl) -> Result<Vec<String>, StoreError> {
    let replicas = {
        let url = url.clone();
        super::blocking(move || {
            look(&url, REQUEST_MAX)?;
            let metadata =
                consumer(&url)?.fetch_metadata(Some(&url.topic), REQUEST_MAX).map_err(|e| unavailable(&e))?;
            let partitions = metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
            Ok(partitions.map(|partition| partition.replicas().len()).min().unwrap_or(0))
        })
        .await?
    };
    let mut found = Vec::new();
    if replicas < 3 {
        found.push(format!(
            "{} has {replicas} replica(s): the loss of a broker's disk loses likes; 3 are advised",
            url.topic
        ));
    }
    let dead = url.dead_topic();
    for (name, bytes) in [(&url.topic, RECORD_BYTES_MAX), (&dead, DEAD_LETTER_BYTES_MAX)] {
        let (topic, options) = (ResourceSpecifier::Topic(name), AdminOptions::new());
        let configs = admin(url)?.describe_configs([&topic], &options).await;
        let configs = configs.map_err(|_| no_broker(url))?;
        let config = configs.into_iter().next().and_then(Result::ok);
        let config = config.ok_or_else(|| StoreError::unavailable(STORE, "the broker does not tell its settings"))?;
        let value = |key: &str| config.get(key).and_then(|entry: &ConfigEntry| entry.value.clone()).unwrap_or_default();
        let mut expect = |key: &str, good: bool, why: &str| {
            if !good {
                found.push(format!("{name}: {key} is {}, {why}", value(key)));
            }
        };
        expect("cleanup.policy", value("cleanup.policy") == "delete", "and must be delete: compaction loses likes");
        expect("retention.ms", value("retention.ms") == "-1", "and must be -1: Kafka deletes likes after that time");
        expect(
            "retention.bytes",
            value("retention.bytes") == "-1",
            "and must be -1: Kafka deletes likes past that size",
        );
        let unclean = value("unclean.leader.election.enable");
        expect("unclean.leader.election.enable", unclean == "false", "and must be false: it loses acknowledged likes");
        let stamps = value("message.timestamp.type");
        expect("message.timestamp.type", stamps == "CreateTime", "and must be CreateTime");
        let in_sync: usize = value("min.insync.replicas").parse().unwrap_or(0);
        expect("min.insync.replicas", replicas < 3 || in_sync >= 2, "and should be 2: one disk's loss loses likes");
        let size: usize = value("max.message.bytes").parse().unwrap_or(0);
        expect("max.message.bytes", size >= bytes, "too small for the largest record");
    }
    Ok(found)
}

fn admin(url: &KafkaUrl) -> Result<AdminClient<Context>, StoreError> {
    url.client().create_with_context(Context::default()).map_err(|e| unavailable(&e))
}

fn no_broker(url: &KafkaUrl) -> StoreError {
    StoreError::unavailable(STORE, format!("no broker answers at {}", url.brokers))
}
