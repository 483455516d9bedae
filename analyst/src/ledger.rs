//! The fold of the whole log, or of a part of it, in bounded memory: events are sorted into buckets by pair, and each
//! bucket is folded by itself.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use likewise_schema::{
    Content, ContentId, ContentType, LikeToggled, Offset, Pair, Partition, PartitionCount, RequestId, Timestamp, UserId,
};
use likewise_storage::EventLog;
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::JoinSet};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Error, Progress,
    model::{Effect, Life},
    range::Range,
    reader::{Pace, PartitionReader, decode},
    spill::Spill,
};

/// Events of a bucket: each of its pairs takes about 250 bytes while it is folded.
const BUCKET_EVENTS: u64 = 200_000;
/// Partitions that are read at once.
const READERS: usize = 2;
const CHUNK: usize = 16_384;

/// A pair, as it is kept in a file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Key {
    kind: ContentType,
    content: i64,
    user: i64,
}

/// A content, as it is kept in a file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ContentKey {
    kind: ContentType,
    content: i64,
}

pub(crate) fn damaged() -> Error {
    Error::asked("a temporary file is damaged")
}

impl Key {
    pub(crate) fn of(pair: &Pair) -> Self {
        let Content { content_type, content_id } = pair.content;
        Self { kind: content_type, content: content_id.get(), user: pair.user.get() }
    }

    pub(crate) fn pair(self) -> Result<Pair, Error> {
        let content = ContentKey { kind: self.kind, content: self.content }.content()?;
        Ok(Pair { content, user: UserId::new(self.user).map_err(|_| damaged())? })
    }
}

impl ContentKey {
    pub(crate) fn of(content: &Content) -> Self {
        Self { kind: content.content_type, content: content.content_id.get() }
    }

    pub(crate) fn content(self) -> Result<Content, Error> {
        let content_id = ContentId::new(self.content).map_err(|_| damaged())?;
        Ok(Content { content_type: self.kind, content_id })
    }
}

/// From which the bucket of a pair follows.
pub(crate) fn number_of_pair(pair: &Pair) -> u64 {
    number_of_content(&pair.content) ^ xxh3_64(&pair.user.get().to_le_bytes())
}

/// From which the bucket of a content follows.
pub(crate) fn number_of_content(content: &Content) -> u64 {
    let kind = content.content_type.as_str().as_bytes();
    let mut bytes = [0; 28];
    bytes[..kind.len()].copy_from_slice(kind);
    bytes[20..].copy_from_slice(&content.content_id.get().to_le_bytes());
    xxh3_64(&bytes)
}

/// An event, as it is kept in a file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Logged {
    key: Key,
    request: [u8; 16],
    pub(crate) liked: bool,
    received: i64,
    /// The greatest `receivedAt` of its partition up to here: the moment from which on the event counts.
    at: i64,
    offset: i64,
    partition: u16,
}

impl Logged {
    pub(crate) fn received_at(&self) -> Timestamp {
        Timestamp::saturating_from_millis(self.received)
    }

    pub(crate) fn at(&self) -> Timestamp {
        Timestamp::saturating_from_millis(self.at)
    }

    pub(crate) fn partition(&self) -> u16 {
        self.partition
    }

    pub(crate) fn offset(&self) -> Offset {
        Offset::new(self.offset).unwrap_or_default()
    }
}

/// Which prefix of each partition.
#[derive(Clone, Debug)]
pub(crate) enum Prefix {
    /// Up to where they are now, and no event after this moment.
    Until(Timestamp),
    /// Up to these offsets.
    Offsets(BTreeMap<Partition, Offset>),
}

/// Of every pair that an event was met of; none of them is `None`.
pub(crate) type Lives = HashMap<Pair, Option<Life>>;

/// Events in buckets.
pub(crate) struct Ledger {
    spill: Spill<Logged>,
    pub(crate) count: PartitionCount,
    /// The end of the prefix that was read of each partition.
    pub(crate) ends: BTreeMap<Partition, Offset>,
    /// When the first event of all was received, in any partition, whatever it is about; also if that is after the prefix.
    pub(crate) begins: Option<Timestamp>,
    /// How many events were asked for.
    pub(crate) events: u64,
}

impl Ledger {
    /// Reads a prefix of the partitions of `range`, and keeps the events that it asks for. The whole beginning must be
    /// there.
    pub(crate) async fn read(
        log: &Arc<dyn EventLog>,
        range: &Range,
        prefix: &Prefix,
        pace: &Arc<Pace>,
        progress: &Progress,
    ) -> Result<Self, Error> {
        let buckets = buckets_for(log).await?;
        Self::read_into(buckets, log, range, prefix, pace, progress).await
    }

    /// The same, into so many buckets.
    pub(crate) async fn read_into(
        buckets: usize,
        log: &Arc<dyn EventLog>,
        range: &Range,
        prefix: &Prefix,
        pace: &Arc<Pace>,
        progress: &Progress,
    ) -> Result<Self, Error> {
        let mut ends = BTreeMap::new();
        for partition in range.partitions(log) {
            let bounds = crate::reader::whole(log, partition).await?;
            let end = match prefix {
                Prefix::Until(_) => Some(bounds.end),
                Prefix::Offsets(offsets) => offsets.get(&partition).copied(),
            };
            if let Some(end) = end {
                ends.insert(partition, end);
            }
        }
        let spill = Arc::new(Spill::new(buckets)?);
        let permits = Arc::new(Semaphore::new(READERS));
        let until = match prefix {
            Prefix::Until(until) => *until,
            Prefix::Offsets(_) => Timestamp::MAX,
        };
        let mut tasks = JoinSet::new();
        for (partition, end) in &ends {
            let reader = PartitionReader::new(log, *partition, (Offset::ZERO, *end), CHUNK, pace);
            let task = Reading {
                log: Arc::clone(log),
                reader,
                partition: *partition,
                range: range.clone(),
                until,
                spill: Arc::clone(&spill),
                progress: Arc::clone(progress),
            };
            let permits = Arc::clone(&permits);
            tasks.spawn(async move {
                let _permit = permits.acquire_owned().await;
                task.run().await
            });
        }
        let (mut begins, mut events) = (None::<Timestamp>, 0);
        while let Some(ended) = tasks.join_next().await {
            let read = ended.map_err(|e| Error::file("reading the log failed", e))??;
            ends.insert(read.partition, read.end);
            begins = begins.into_iter().chain(read.begins).min();
            events += read.events;
        }
        let spill = Arc::into_inner(spill).ok_or_else(|| Error::asked("reading the log has not ended"))?;
        Ok(Self { spill, count: log.partitions(), ends, begins, events })
    }

    /// How many buckets there are.
    pub(crate) fn buckets(&self) -> usize {
        self.spill.buckets()
    }

    /// Folds a bucket, and tells what each event did.
    pub(crate) fn fold(
        &self,
        bucket: usize,
        mut tell: impl FnMut(&Pair, &Logged, Effect) -> Result<(), Error>,
    ) -> Result<Lives, Error> {
        let mut lives = Lives::new();
        self.spill.each(bucket, |logged| {
            let pair = logged.key.pair()?;
            let id = RequestId::from_bytes(logged.request);
            let life = lives.entry(pair).or_default();
            let effect = Life::meet(life, &id, logged.liked, logged.received_at(), logged.offset());
            tell(&pair, &logged, effect)
        })?;
        Ok(lives)
    }
}

/// Into how many buckets a log is sorted.
pub(crate) async fn buckets_for(log: &Arc<dyn EventLog>) -> Result<usize, Error> {
    let mut records = 0;
    for partition in log.partitions().all() {
        records += log.bounds(partition).await?.end.get().unsigned_abs();
    }
    Ok(usize::try_from(records.div_ceil(BUCKET_EVENTS)).unwrap_or(usize::MAX).max(1))
}

/// One partition being read.
struct Reading {
    log: Arc<dyn EventLog>,
    reader: PartitionReader,
    partition: Partition,
    range: Range,
    until: Timestamp,
    spill: Arc<Spill<Logged>>,
    progress: Progress,
}

struct Done {
    partition: Partition,
    end: Offset,
    begins: Option<Timestamp>,
    events: u64,
}

impl Reading {
    async fn run(mut self) -> Result<Done, Error> {
        let (mut at, mut begins, mut events) = (Timestamp::default(), None, 0);
        let partition = self.partition;
        loop {
            let records = self.reader.chunk().await?;
            if records.is_empty() {
                return Ok(Done { partition, end: self.reader.end, begins, events });
            }
            let mut kept = Vec::new();
            let mut end = None;
            for record in &records {
                // What is no event counts for nothing, and has no time.
                let Ok(event) = decode(&self.log, partition, record) else { continue };
                begins = begins.or(Some(event.received_at));
                if event.received_at > self.until {
                    end = Some(record.offset);
                    break;
                }
                at = at.max(event.received_at);
                if self.range.holds(&event) {
                    kept.push(self.logged(&event, record.offset, at));
                }
            }
            events += kept.len() as u64;
            self.spill.put(kept)?;
            (self.progress)(records.len() as u64);
            if let Some(end) = end {
                return Ok(Done { partition, end, begins, events });
            }
        }
    }

    fn logged(&self, event: &LikeToggled, offset: Offset, at: Timestamp) -> (u64, Logged) {
        let pair = event.pair();
        let logged = Logged {
            key: Key::of(&pair),
            request: *event.request_id.as_bytes(),
            liked: event.liked,
            received: event.received_at.millis(),
            at: at.millis(),
            offset: offset.get(),
            partition: self.partition.get(),
        };
        (number_of_pair(&pair), logged)
    }
}
