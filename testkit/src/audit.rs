//! Compares what a system keeps with its log, from outside: reads the whole topic, all rows and counts of the record
//! servers, and all keys of Redis, and folds the log by a model of its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use redis::Commands;
use serde_json::Value;
use sqlx::{Connection, Executor, MySqlConnection, Row};

/// How long the log may be silent before the broker counts as away.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    /// `host:port`.
    pub kafka: String,
    /// The topic; that for dead letters is the same with `.dead` behind.
    pub topic: String,
    /// URLs of the record databases.
    pub records: Vec<String>,
    /// URLs of all Redis nodes.
    pub redis: Vec<String>,
}

/// A user and a content, `type:id`.
pub type Pair = (i64, String);

/// A record of the log.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Value,
}

/// What the model makes of a pair.
#[derive(Clone, Debug, Default)]
struct Life {
    /// Ids of accepted events, oldest first.
    ids: Vec<[u8; 16]>,
    liked: bool,
    version: i64,
}

/// What an audit saw.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Keys of all records of the log.
    pub keys: BTreeSet<String>,
    /// Records of the log.
    pub events: usize,
    /// Rows of the record servers.
    pub rows: usize,
    /// Counts and statuses in Redis that are of now.
    pub cached: usize,
    /// The count of each content, by the model.
    pub counts: BTreeMap<String, i64>,
}

fn bytes_of(id: &str) -> [u8; 16] {
    let hex: String = id.chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&hex, 16).unwrap_or_else(|_| panic!("{id} is no UUID"));
    number.to_be_bytes()
}

fn is_v7(id: &[u8; 16]) -> bool {
    id[6] >> 4 == 7 && id[8] >> 6 == 2
}

/// Reads a topic from its start to the end it has now.
pub fn read_topic(kafka: &str, topic: &str) -> Vec<Event> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("group.id", "audit")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), SILENCE_MAX).expect("metadata");
    let mut left: HashMap<i32, i64> = HashMap::new();
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        let (start, end) = consumer.fetch_watermarks(topic, partition.id(), SILENCE_MAX).expect("watermarks");
        if start < end {
            left.insert(partition.id(), end);
            list.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("a place");
        }
    }
    consumer.assign(&list).expect("assigned");
    let (mut events, mut heard) = (Vec::new(), Instant::now());
    while !left.is_empty() {
        assert!(heard.elapsed() < SILENCE_MAX, "the broker is silent; left: {left:?}");
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        heard = Instant::now();
        let (partition, offset) = (message.partition(), message.offset());
        events.push(Event {
            partition,
            offset,
            key: message.key().unwrap_or_default().to_vec(),
            value: serde_json::from_slice(message.payload().unwrap_or_default()).unwrap_or_default(),
        });
        if left.get(&partition).is_some_and(|end| offset + 1 >= *end) {
            left.remove(&partition);
        }
    }
    events.sort_by_key(|event| (event.partition, event.offset));
    events
}

fn fold(events: &[Event]) -> BTreeMap<Pair, Life> {
    let mut lives: BTreeMap<Pair, Life> = BTreeMap::new();
    for event in events {
        let text = |field: &str| event.value[field].as_str().unwrap_or_default().to_owned();
        let id = bytes_of(&text("requestId"));
        let pair = (text("userId").parse().expect("a user"), format!("{}:{}", text("contentType"), text("contentId")));
        let life = lives.entry(pair).or_default();
        let (forgotten, known) = life.ids.split_at(life.ids.len().saturating_sub(16));
        let superseded = is_v7(&id) && forgotten.iter().any(|old| is_v7(old) && *old >= id);
        if !known.contains(&id) && !superseded {
            life.ids.push(id);
            life.liked = event.value["liked"] == true;
            life.version = event.offset;
        }
    }
    lives
}

/// A row as it is stored.
struct Stored {
    liked: bool,
    version: i64,
    ring: Vec<u8>,
}

/// What the record servers hold.
#[derive(Default)]
struct Records {
    rows: BTreeMap<Pair, Stored>,
    counts: BTreeMap<String, i64>,
    checkpoints: BTreeMap<i32, Checkpoint>,
}

/// How far the records of a partition are, and whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Rises when the partition is acquired.
    pub epoch: i64,
    /// Which tables.
    pub generation: u32,
    /// The first offset that they do not reflect.
    pub next_offset: i64,
}

/// Those of one server, by partition.
async fn read_checkpoints(connection: &mut MySqlConnection) -> sqlx::Result<BTreeMap<i32, Checkpoint>> {
    let sql = "SELECT CAST(`partition` AS SIGNED), epoch, generation, next_offset FROM projection_checkpoints";
    let rows = connection.fetch_all(sql).await?;
    let checkpoint = |row: &sqlx::mysql::MySqlRow| {
        let known = Checkpoint { epoch: row.get(1), generation: row.get(2), next_offset: row.get(3) };
        (row.get::<i64, _>(0) as i32, known)
    };
    Ok(rows.iter().map(checkpoint).collect())
}

async fn read_records(urls: &[String]) -> Records {
    let mut records = Records::default();
    for url in urls {
        let mut connection = MySqlConnection::connect(url).await.expect("the record server answers");
        let sql = "SELECT user_id, content_type, content_id, is_canceled, version, request_ring FROM like_records";
        for row in connection.fetch_all(sql).await.expect("rows") {
            let pair = (row.get(0), format!("{}:{}", row.get::<String, _>(1), row.get::<i64, _>(2)));
            let stored = Stored { liked: !row.get::<bool, _>(3), version: row.get(4), ring: row.get(5) };
            assert!(records.rows.insert(pair.clone(), stored).is_none(), "{pair:?} has two rows");
        }
        for row in
            connection.fetch_all("SELECT content_type, content_id, `count` FROM like_counts").await.expect("counts")
        {
            records.counts.insert(format!("{}:{}", row.get::<String, _>(0), row.get::<i64, _>(1)), row.get(2));
        }
        records.checkpoints.extend(read_checkpoints(&mut connection).await.expect("checkpoints"));
    }
    records
}

/// Waits until records and Redis reflect the whole log, at most `limit`; gives how long that took.
pub async fn quiesce(places: &Places, limit: Duration) -> Duration {
    let started = Instant::now();
    let ends = ends(&places.kafka, &places.topic);
    loop {
        let behind = behind(places, &ends).await;
        if behind.is_empty() {
            return started.elapsed();
        }
        assert!(started.elapsed() < limit, "waited {limit:?} for the projection: {behind:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The end of each partition.
pub fn ends(kafka: &str, topic: &str) -> BTreeMap<i32, i64> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", kafka).set("group.id", "audit").create().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), SILENCE_MAX).expect("metadata");
    let end = |id| consumer.fetch_watermarks(topic, id, SILENCE_MAX).expect("watermarks").1;
    metadata.topics()[0].partitions().iter().map(|partition| (partition.id(), end(partition.id()))).collect()
}

/// The checkpoint of each partition whose server answers.
pub async fn checkpoints(records: &[String]) -> BTreeMap<i32, Checkpoint> {
    let mut found = BTreeMap::new();
    for url in records {
        let Ok(mut connection) = MySqlConnection::connect(url).await else { continue };
        found.extend(read_checkpoints(&mut connection).await.unwrap_or_default());
    }
    found
}

/// What is not there yet, in words.
async fn behind(places: &Places, ends: &BTreeMap<i32, i64>) -> Vec<String> {
    let mut missing = Vec::new();
    let checkpoints = checkpoints(&places.records).await;
    let mut nodes = Nodes::connect(&places.redis);
    for (partition, end) in ends {
        match checkpoints.get(partition) {
            Some(known) if known.next_offset == *end => {
                let progress = nodes.progress(known.generation, *partition);
                if progress != Some((end - 1, false)) {
                    missing.push(format!("partition {partition}: Redis is at {progress:?}, the log ends at {end}"));
                }
            }
            // A partition without events may never have been owned.
            None if *end == 0 => {}
            other => {
                missing.push(format!("partition {partition}: the records are at {other:?}, the log ends at {end}"))
            }
        }
    }
    missing
}

/// Connections to all Redis nodes.
struct Nodes(Vec<redis::Connection>);

impl Nodes {
    fn connect(urls: &[String]) -> Self {
        let connect = |url: &String| redis::Client::open(url.as_str()).expect("a URL").get_connection().ok();
        Self(urls.iter().filter_map(connect).collect())
    }

    /// Position, and whether it is recovering.
    fn progress(&mut self, generation: u32, partition: i32) -> Option<(i64, bool)> {
        let key = format!("like:progress:{{{generation:08x}.{partition}}}");
        self.0.iter_mut().find_map(|node| {
            let fields: (Option<i64>, Option<i64>) = node.hmget(&key, &["position", "recovering"]).ok()?;
            Some((fields.0?, fields.1? != 0))
        })
    }

    fn keys(&mut self) -> Vec<(usize, String)> {
        let mut all = Vec::new();
        for (index, node) in self.0.iter_mut().enumerate() {
            let keys: Vec<String> = node.scan_match("like:*").expect("scanned").filter_map(Result::ok).collect();
            all.extend(keys.into_iter().map(|key| (index, key)));
        }
        all
    }
}

/// Checks everything, after [`quiesce`]. The error says what is wrong first.
pub async fn audit(places: &Places) -> Result<Found, String> {
    let events = read_topic(&places.kafka, &places.topic);
    let dead = read_topic(&places.kafka, &format!("{}.dead", places.topic));
    if !dead.is_empty() {
        return Err(format!("{} dead letters", dead.len()));
    }
    let lives = fold(&events);
    let records = read_records(&places.records).await;
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for (pair, life) in &lives {
        *counts.entry(pair.1.clone()).or_default() += i64::from(life.liked);
        let row = records.rows.get(pair).ok_or(format!("{pair:?} has no row"))?;
        if (row.liked, row.version) != (life.liked, life.version) {
            let row = (row.liked, row.version);
            return Err(format!("the row of {pair:?} is {row:?}, the model says {life:?}"));
        }
        let ring: Vec<u8> = life.ids[life.ids.len().saturating_sub(16)..].concat();
        if row.ring != ring {
            return Err(format!("the ring of {pair:?} is {:?}, not {ring:?}", row.ring));
        }
    }
    if records.rows.len() != lives.len() {
        return Err(format!("{} rows for {} pairs", records.rows.len(), lives.len()));
    }
    if records.counts != counts {
        let wrong = counts.iter().find(|(content, count)| records.counts.get(*content) != Some(count));
        return Err(format!("counts differ, first {wrong:?}"));
    }
    let cached = check_redis(places, &records)?;
    let keys = events.iter().map(|event| String::from_utf8_lossy(&event.key).into_owned()).collect();
    Ok(Found { keys, events: events.len(), rows: records.rows.len(), cached, counts })
}

/// How many entries of the present generations were compared.
fn check_redis(places: &Places, records: &Records) -> Result<usize, String> {
    let mut nodes = Nodes::connect(&places.redis);
    let mut compared = 0;
    for (node, key) in nodes.keys() {
        let Some(Key { kind, generation, partition, rest }) = Key::parse(&key) else { continue };
        let known = records.checkpoints.get(&partition).filter(|known| known.generation == generation);
        let Some(Checkpoint { next_offset: next, .. }) = known else { continue };
        let progress = format!("like:progress:{{{generation:08x}.{partition}}}");
        let connection = &mut nodes.0[node];
        let floor: i64 = connection.hget(&progress, "floor").map_err(|e| format!("{progress}: {e}"))?;
        let fields: BTreeMap<String, String> = match kind {
            "count" | "user" => connection.hgetall(&key).map_err(|e| format!("{key}: {e}"))?,
            _ => continue,
        };
        let number = |text: &str| text.parse::<i64>().map_err(|_| format!("{key} holds {text}"));
        if kind == "count" {
            let (count, version) = (number(&fields["count"])?, number(&fields["v"])?);
            let stored = records.counts.get(rest).copied().unwrap_or(0);
            if version >= floor && (count != stored || version >= *next) {
                return Err(format!("{key} is {count} of version {version}, the records have {stored} up to {next}"));
            }
            compared += 1;
            continue;
        }
        for (content, status) in fields {
            let words: Vec<&str> = status.split(' ').collect();
            let pair = (number(rest)?, content);
            let stored = records.rows.get(&pair).is_some_and(|row| row.liked);
            if number(words[2])? >= floor && (words[0] == "1") != stored {
                return Err(format!("{key} says {status} of {}, the records say {stored}", pair.1));
            }
            compared += 1;
        }
    }
    Ok(compared)
}

/// What a key is made of: `like:kind:{generation.partition}:rest`.
struct Key<'a> {
    kind: &'a str,
    generation: u32,
    partition: i32,
    rest: &'a str,
}

impl<'a> Key<'a> {
    /// None for keys that belong to no partition.
    fn parse(key: &'a str) -> Option<Self> {
        let (kind, rest) = key.strip_prefix("like:")?.split_once(":{")?;
        let (tag, rest) = rest.split_once('}')?;
        let (generation, partition) = tag.split_once('.')?;
        let generation = u32::from_str_radix(generation, 16).ok()?;
        Some(Self { kind, generation, partition: partition.parse().ok()?, rest: rest.trim_start_matches(':') })
    }
}
