//! The log in Kafka: one topic, and a second one for dead letters.
//!
//! Appends wait for all in-sync replicas. Reads are of partitions and offsets that the caller names: the consumer group
//! only says who owns what ([`membership`]), and its offsets are written for lag tools and never read.

mod membership;
mod producer;
mod reader;
pub(crate) mod topic;
mod watermarks;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use likewise_schema::{Headers, Offset, Partition, PartitionCount};
use parking_lot::RwLock;
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
};

use self::{producer::Producer, reader::Reader, watermarks::Watermarks};
use super::{
    AppendError, Before, Bounds, DEAD_LETTER_BYTES_MAX, DeadLetter, EventLog, LogRecord, Mark, Membership, NewRecord,
    RECORD_BYTES_MAX, ReadLimit, Slice,
};
use crate::StoreError;

const STORE: &str = "Kafka";
/// How long an append may take before its outcome counts as unknown: below a command's deadline.
const DELIVERY_MAX: Duration = Duration::from_millis(1200);
/// Records and kilobytes that may wait for the broker; past them an append is rejected.
const WAITING_MAX: &str = "20000";
const WAITING_KBYTES_MAX: &str = "65536";
/// How long a record waits for others of its partition: a request to the broker costs far more than a record in it.
const LINGER_MS: &str = "5";
/// How long a broker may not have answered before appends are rejected at once.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// How long a request to the broker may take.
const REQUEST_MAX: Duration = Duration::from_secs(2);
/// How long a broker is looked for at the start.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a stop waits for what was appended.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// Which brokers and which topic: `kafka://host:port,host:port/topic`, or `kafkas://user:password@host:port/topic` over
/// TLS, with a user by SCRAM-SHA-512.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaUrl {
    brokers: String,
    topic: String,
    group: String,
    has_tls: bool,
    /// A user and a password.
    user: Option<(String, String)>,
    mechanism: String,
    /// A PEM file of authorities; the system's if there is none.
    ca: Option<String>,
}

impl fmt::Debug for KafkaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaUrl").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl KafkaUrl {
    /// Whether a URL is meant to be one.
    pub fn is_one(url: &str) -> bool {
        url.starts_with("kafka://") || url.starts_with("kafkas://")
    }

    /// Fails, with a sentence, on anything else. After a `?`, joined by `&`: `group=` names another consumer group than
    /// `likewise-projector`, `ca=` a PEM file of authorities, `sasl=` another mechanism: SCRAM-SHA-256 or PLAIN.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let wrong = || {
            let forms = "kafka://host:9092/likes or kafkas://user:password@host:9093/likes";
            StoreError::unusable(STORE, format!("the log's URL must be such as {forms}"))
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let has_tls = match scheme {
            "kafka" => false,
            "kafkas" => true,
            _ => return Err(wrong()),
        };
        if has_tls && !cfg!(feature = "kafka-tls") {
            return Err(StoreError::unusable(
                STORE,
                "this program was built without TLS for it: build it with --features kafka-tls",
            ));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (who, rest) = rest.rsplit_once('@').map_or((None, rest), |(who, rest)| (Some(who), rest));
        let (brokers, topic) = rest.split_once('/').ok_or_else(wrong)?;
        let is_name = |text: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            (1..=200).contains(&text.len()) && text.bytes().all(allowed)
        };
        let user = match who.map(|who| who.split_once(':').ok_or_else(wrong)).transpose()? {
            Some(_) if !has_tls => {
                return Err(StoreError::unusable(
                    STORE,
                    "the log's URL holds a password, which is sent over TLS only: write kafkas://",
                ));
            }
            Some((user, password)) => Some((decoded(user).ok_or_else(wrong)?, decoded(password).ok_or_else(wrong)?)),
            None => None,
        };
        let (mut group, mut mechanism, mut ca) = ("likewise-projector", "SCRAM-SHA-512", None);
        for setting in query.split('&').filter(|setting| !setting.is_empty()) {
            match setting.split_once('=').ok_or_else(wrong)? {
                ("group", name) => group = name,
                ("ca", file) if has_tls => ca = Some(file.to_owned()),
                ("sasl", name) if user.is_some() && MECHANISMS.contains(&name) => mechanism = name,
                _ => return Err(wrong()),
            }
        }
        let has_port = |broker: &str| {
            broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if !is_name(topic) || !is_name(group) || !brokers.split(',').all(has_port) {
            return Err(wrong());
        }
        let (brokers, topic, group, mechanism) = (brokers.into(), topic.into(), group.into(), mechanism.into());
        Ok(Self { brokers, topic, group, has_tls, user, mechanism, ca })
    }

    /// The name of the topic for dead letters.
    pub fn dead_topic(&self) -> String {
        format!("{}.dead", self.topic)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "likewise")
            .set("allow.auto.create.topics", "false")
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", "2000")
            .set("socket.timeout.ms", "6000")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set_log_level(RDKafkaLogLevel::Warning);
        if self.has_tls {
            // The broker's certificate and its name are verified.
            config.set("security.protocol", if self.user.is_some() { "sasl_ssl" } else { "ssl" });
            config.set("ssl.endpoint.identification.algorithm", "https");
            if let Some(ca) = &self.ca {
                config.set("ssl.ca.location", ca);
            }
        }
        if let Some((user, password)) = &self.user {
            config.set("sasl.mechanism", &self.mechanism).set("sasl.username", user).set("sasl.password", password);
        }
        config
    }
}

/// How a user can prove who they are.
const MECHANISMS: [&str; 3] = ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"];

/// A part of a URL without its escapes.
fn decoded(text: &str) -> Option<String> {
    percent_encoding::percent_decode_str(text).decode_utf8().ok().map(Into::into)
}

/// Notices what the client library says, without what it may hold of addresses.
#[derive(Debug, Default)]
pub(crate) struct Disturbances(std::sync::atomic::AtomicU64);

impl Disturbances {
    /// Counts reconnects, leader changes and fetch errors: what was read before may have been truncated since.
    fn count(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Acquire)
    }

    fn add(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    }
}

/// The client library's callbacks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context {
    disturbances: Arc<Disturbances>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, _reason: &str) {
        tracing::debug!(%error, "the Kafka client reports an error");
        self.disturbances.add();
    }
}

impl rdkafka::consumer::ConsumerContext for Context {}

/// The log in Kafka.
pub struct KafkaLog {
    url: KafkaUrl,
    identity: String,
    partitions: PartitionCount,
    producer: RwLock<Producer>,
    /// For reads that wait for records to come: it stays where it is, at the end.
    tail: Reader,
    /// For reads of what is there.
    look: Reader,
    watermarks: Watermarks,
}

impl fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaLog").field("url", &self.url).finish_non_exhaustive()
    }
}

fn unavailable(error: &KafkaError) -> StoreError {
    match error.rdkafka_error_code() {
        Some(code) => StoreError::unavailable(STORE, code),
        None => StoreError::unavailable(STORE, "the client failed"),
    }
}

impl KafkaLog {
    /// The log of an existing topic. Fails as unusable if the topic or the one for dead letters is missing or has a
    /// partition count that no log has; as unavailable if no broker answers within ten seconds.
    pub async fn open(url: KafkaUrl) -> Result<Self, StoreError> {
        let seen = {
            let url = url.clone();
            blocking(move || topic::look(&url, CONNECT_MAX)).await?
        };
        let producer = RwLock::new(producer(&url)?);
        Ok(Self {
            tail: Reader::new(&url, reader::TAIL)?,
            look: Reader::new(&url, reader::LOOK)?,
            watermarks: Watermarks::start(&url, seen.partitions)?,
            identity: format!("{}/{}", seen.cluster, url.topic),
            partitions: seen.partitions,
            producer,
            url,
        })
    }

    /// The producer; another one once it has failed for good, as it does when the log goes back under it.
    fn producer(&self) -> Result<Producer, StoreError> {
        let known = self.producer.read().clone();
        if known.client().fatal_error().is_none() {
            return Ok(known);
        }
        let mut kept = self.producer.write();
        if let Some((code, _)) = kept.client().fatal_error() {
            tracing::warn!(%code, "the producer failed for good; another one takes its place");
            *kept = producer(&self.url)?;
        }
        Ok(kept.clone())
    }

    async fn send(&self, topic: &str, partition: i32, record: NewRecord) -> Result<Offset, AppendError> {
        if let Some(fault) = self.fault() {
            return Err(AppendError::Rejected(fault));
        }
        let headers = record
            .headers
            .0
            .iter()
            .fold(OwnedHeaders::new_with_capacity(record.headers.0.len()), |headers, (name, value)| {
                headers.insert(Header { key: name, value: Some(value.as_ref()) })
            });
        let producer = self.producer().map_err(AppendError::Rejected)?;
        let delivery = producer.send(topic, partition, &record, headers);
        match delivery.map_err(|error| AppendError::Rejected(unavailable(&error)))?.await {
            Ok(Ok(offset)) => Offset::new(offset)
                .map_err(|_| AppendError::Unknown(StoreError::unavailable(STORE, "the broker gave no offset"))),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(AppendError::Unknown(StoreError::unavailable(STORE, "the producer has ended"))),
        }
    }

    /// What the record before `from` is, read anew.
    async fn before(&self, partition: Partition, from: Offset) -> Result<Before, StoreError> {
        let Some(previous) = from.previous() else { return Ok(Before::Absent) };
        Ok(self.mark(partition, previous).await?.map_or(Before::Absent, Before::Found))
    }
}

/// A producer that waits for all in-sync replicas, and writes each record once however often it tries.
fn producer(url: &KafkaUrl) -> Result<Producer, StoreError> {
    let text = |text: &str| text.to_owned();
    Producer::new(
        url,
        &[
            ("acks", text("all")),
            ("enable.idempotence", text("true")),
            ("message.timeout.ms", DELIVERY_MAX.as_millis().to_string()),
            ("request.timeout.ms", text("1000")),
            ("queue.buffering.max.ms", text(LINGER_MS)),
            ("queue.buffering.max.messages", text(WAITING_MAX)),
            ("queue.buffering.max.kbytes", text(WAITING_KBYTES_MAX)),
            ("message.max.bytes", (DEAD_LETTER_BYTES_MAX + 64 * 1024).to_string()),
        ],
    )
}

/// Whether a record that was not acknowledged may be in the log all the same.
fn refused(error: &KafkaError) -> AppendError {
    use RDKafkaErrorCode as Code;
    let certain = [Code::QueueFull, Code::MessageSizeTooLarge, Code::InvalidRecord];
    let reason = unavailable(error);
    match error.rdkafka_error_code() {
        Some(code) if certain.contains(&code) => AppendError::Rejected(reason),
        _ => AppendError::Unknown(reason),
    }
}

/// Runs what blocks its thread.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let ended = |_| Err(StoreError::unavailable(STORE, "the call ended early"));
    tokio::task::spawn_blocking(call).await.unwrap_or_else(ended)
}

fn size(record: &NewRecord) -> usize {
    let of_headers: usize = record.headers.0.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.key.as_ref().map_or(0, Vec::len) + record.value.as_ref().map_or(0, Vec::len) + of_headers
}

#[async_trait]
impl EventLog for KafkaLog {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn partitions(&self) -> PartitionCount {
        self.partitions
    }

    fn fault(&self) -> Option<StoreError> {
        let silent = self.watermarks.age() > SILENCE_MAX;
        silent.then(|| StoreError::unavailable(STORE, "no broker answers"))
    }

    async fn append(&self, record: NewRecord) -> Result<Offset, AppendError> {
        if size(&record) > RECORD_BYTES_MAX || record.partition.get() >= self.partitions.get() {
            let reason = "the record is larger than 1 MiB or names a partition that the log does not have";
            return Err(AppendError::Rejected(StoreError::unusable(STORE, reason)));
        }
        let partition = i32::from(record.partition.get());
        self.send(&self.url.topic, partition, record).await
    }

    async fn read(&self, partition: Partition, from: Offset, limit: ReadLimit) -> Result<Slice, StoreError> {
        let number = i32::from(partition.get());
        let (reader, wait) = if limit.wait.is_zero() {
            let bounds = self.bounds(partition).await?;
            if from >= bounds.end {
                let before = self.before(partition, from).await?;
                return Ok(Slice { records: Vec::new(), bounds, before, age: Duration::ZERO });
            }
            (&self.look, REQUEST_MAX)
        } else {
            (&self.tail, limit.wait)
        };
        let read = reader.read(&self.url.topic, number, from, limit, wait).await?;
        let before = if read.is_disturbed { self.before(partition, from).await? } else { Before::NotRead };
        let age = self.watermarks.age();
        if read.records.is_empty() && (limit.wait.is_zero() || age > SILENCE_MAX) {
            return Err(StoreError::unavailable(STORE, "no broker answers"));
        }
        let mut bounds = self.watermarks.bounds(partition);
        if let Some(last) = read.records.last() {
            bounds.end = bounds.end.max(last.offset.next());
        }
        if read.records.is_empty() && from > bounds.end {
            // What is known of the end may be older than what was read before.
            bounds = self.bounds(partition).await?;
        }
        Ok(Slice { records: read.records, bounds, before, age })
    }

    async fn mark(&self, partition: Partition, offset: Offset) -> Result<Option<Mark>, StoreError> {
        let bounds = self.bounds(partition).await?;
        if offset < bounds.start || offset >= bounds.end {
            return Ok(None);
        }
        let limit = ReadLimit { records: 1, bytes: 1, wait: Duration::ZERO };
        let read = self.look.read(&self.url.topic, i32::from(partition.get()), offset, limit, REQUEST_MAX).await?;
        match read.records.first() {
            Some(record) => Ok(Some(record).filter(|record| record.offset == offset).map(LogRecord::mark)),
            None => Err(StoreError::unavailable(STORE, "the broker does not give a record that it has")),
        }
    }

    async fn bounds(&self, partition: Partition) -> Result<Bounds, StoreError> {
        self.watermarks.fresh(&self.url.topic, i32::from(partition.get())).await
    }

    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError> {
        let DeadLetter { timestamp, key, value, headers } = letter;
        let record = NewRecord { partition: Partition::default(), timestamp, key, value, headers };
        match self.send(&self.url.dead_topic(), 0, record).await {
            Ok(_) => Ok(()),
            Err(AppendError::Rejected(error) | AppendError::Unknown(error)) => Err(error),
        }
    }

    async fn dead_letters(&self, from: u64, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        let topic = self.url.dead_topic();
        let bounds = self.watermarks.fresh(&topic, 0).await?;
        let mut next = Offset::new(bounds.start.get().saturating_add_unsigned(from)).unwrap_or_default();
        let mut letters = Vec::new();
        while next < bounds.end && letters.len() < limit {
            let records = limit - letters.len();
            let limit = ReadLimit { records, bytes: 16 * RECORD_BYTES_MAX, wait: Duration::ZERO };
            let read = self.look.read(&topic, 0, next, limit, REQUEST_MAX).await?;
            let Some(last) = read.records.last() else {
                return Err(StoreError::unavailable(STORE, "the broker does not give a record that it has"));
            };
            next = last.offset.next();
            letters.extend(read.records.into_iter().map(|record| {
                let LogRecord { timestamp, key, value, headers, .. } = record;
                DeadLetter { timestamp, key, value, headers }
            }));
        }
        Ok(letters)
    }

    async fn flush(&self) -> Result<(), StoreError> {
        let producer = self.producer.read().clone();
        producer.flush(FLUSH_MAX).await
    }

    fn join(&self, instance: Option<&str>) -> Result<Membership, StoreError> {
        membership::join(&self.url, self.partitions, instance)
    }
}

/// The headers of a message; one without a value has an empty one.
fn headers_of(headers: Option<&impl rdkafka::message::Headers>) -> Headers {
    let mut owned = Headers::default();
    // The client panics on a name that is not text. Without its headers such a record is no event, and is buried.
    let copy = || {
        let all = headers.into_iter().flat_map(rdkafka::message::Headers::iter);
        all.map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect::<Vec<_>>()
    };
    for (name, value) in std::panic::catch_unwind(std::panic::AssertUnwindSafe(copy)).unwrap_or_default() {
        owned.push(name, value);
    }
    owned
}
