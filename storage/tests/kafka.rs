//! The Kafka log: the conformance suite on a real broker, and what is special about it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use likewise_schema::PartitionCount;
use likewise_storage::{
    EventLog, conformance,
    log::{KafkaLog, KafkaUrl, create_topic},
};
use likewise_testkit::servers;

/// The URL of a topic that does not exist yet.
fn url() -> KafkaUrl {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("storage-{}-{number}", std::process::id());
    KafkaUrl::parse(&format!("kafka://{}/{name}?group={name}", servers::kafka())).expect("a URL")
}

async fn log() -> Arc<KafkaLog> {
    let url = url();
    create_topic(&url, PartitionCount::DEFAULT, 1).await.expect("the topics are made");
    Arc::new(KafkaLog::open(url).await.expect("the log opens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_conforms() {
    conformance::event_log(async || log().await as Arc<dyn EventLog>).await;
}
