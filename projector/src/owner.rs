//! The owner of one partition: acquires it, checks that the log is the one it knows, and applies batches.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc, time::Duration};

use likewise_schema::{Content, LikeToggled, Offset, Pair, Partition, Rejected, Timestamp};
use likewise_storage::{
    StoreError,
    counters::{News, version_of},
    log::{Before, DeadLetter, LogRecord, Mark, ReadLimit, Report, Slice},
    planted::{self, Bug},
    records::{Advance, Batch, Checkpoint, CommitError, Committed, Fence, LikeRecord, Owner as Identity},
};
use lru::LruCache;
use metrics::{Counter, Gauge, counter, gauge};
use std::sync::{Mutex, PoisonError};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tracing::{debug, error, warn};

use crate::{
    Limits, PartitionState, Ports, Status,
    fold::{self, Event, FOLD_VERSION, Tally},
    publish::{Changes, Publisher},
};

/// How long a read waits for a first record, and so how often an idle owner says that it heard from the log.
const IDLE: Duration = Duration::from_secs(1);
/// How long before a partition that was lost or failed is acquired anew: the lower bound, doubled at random.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Commits whose publish may be waiting; past it one is dropped, and recovered from the log.
const PUBLISHES_MAX: usize = 64;

/// Why an owner stops applying.
enum Stop {
    /// It was asked to.
    Asked,
    /// Acquire anew after a back-off: lost to another owner, or an outcome is unknown.
    Again(String),
    /// Data is at risk: a person has to look.
    Halt(String),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { .. } => Stop::Again(error.to_string()),
            StoreError::Unusable { .. } => Stop::Halt(error.to_string()),
        }
    }
}

pub(crate) struct Owner {
    ports: Ports,
    limits: Limits,
    partition: Partition,
    status: Arc<Status>,
    report: Report,
    stop: watch::Receiver<bool>,
    meters: Meters,
    /// Events in the next batch: fewer after a failure, then more again.
    batch_events: usize,
    /// Where this owner, or one before it, is known to have come.
    next_offset: Offset,
}

struct Meters {
    lag_events: Gauge,
    lag_seconds: Gauge,
    accepted: Counter,
    duplicate: Counter,
    superseded: Counter,
    dead: Counter,
    halted: Gauge,
}

impl Meters {
    fn new(partition: Partition) -> Self {
        let partition = partition.to_string();
        let events = |outcome: &'static str| counter!("likewise_events_total", "outcome" => outcome);
        let group = |name: &'static str| gauge!(name, "group" => "likewise-projector", "topic" => "likes", "partition" => partition.clone());
        Self {
            lag_events: group("kafka_consumergroup_group_lag"),
            lag_seconds: group("kafka_consumergroup_group_lag_seconds"),
            accepted: events("accepted"),
            duplicate: events("duplicate"),
            superseded: events("superseded"),
            dead: events("dead"),
            halted: gauge!("likewise_partition_halted", "partition" => partition),
        }
    }

    fn count(&self, tally: Tally) {
        self.accepted.increment(tally.accepted);
        self.duplicate.increment(tally.duplicate);
        self.superseded.increment(tally.superseded);
    }
}

/// What an owner holds from acquiring to losing: gone with any error.
struct Tenure {
    fence: Fence,
    mark: Option<Mark>,
    /// Rows as of the last known commit.
    rows: LruCache<Pair, LikeRecord>,
    /// Counts as of the last known commit.
    counts: LruCache<Content, i64>,
    publisher: Publisher,
    /// How long the next read waits: not at all at first, so that a new tenure says at once what it heard.
    wait: Duration,
    /// Before it there is no commit, unless much waits.
    pause_until: Instant,
    /// When it last knew that nothing waits: no event that waits unseen came before.
    caught_up_at: Timestamp,
    /// A gap in the offsets was read once, from here.
    gap_at: Option<Offset>,
}

/// A slice, judged: what can be applied, and what then stops the partition.
struct Judged {
    events: Vec<Event>,
    next_offset: Offset,
    mark: Option<Mark>,
    letters: Vec<DeadLetter>,
    halt: Option<String>,
}

impl Owner {
    pub(crate) fn new(
        ports: Ports,
        limits: Limits,
        partition: Partition,
        status: Arc<Status>,
        report: Report,
        stop: watch::Receiver<bool>,
    ) -> Self {
        status.set(partition, PartitionState::Acquiring(None));
        let meters = Meters::new(partition);
        let batch_events = limits.batch_events;
        Self { ports, limits, partition, status, report, stop, meters, batch_events, next_offset: Offset::ZERO }
    }

    /// Owns the partition until asked to stop.
    pub(crate) async fn run(mut self) {
        let partition = self.partition;
        self.meters.halted.set(0.0);
        loop {
            match self.own().await {
                Stop::Asked => return,
                Stop::Again(reason) => {
                    // What did not go through in time, may in smaller parts.
                    self.batch_events = (self.batch_events / 4).max(1);
                    warn!(%partition, reason, "acquiring the partition anew");
                    self.look().await;
                    self.status.set(partition, PartitionState::Acquiring(Some(reason)));
                    // The clock's last digits spread owners as well as a random number, and can be replayed.
                    let spread = self.ports.clock.micros().rem_euclid(1000) as f64 / 1000.0;
                    let back_off = BACK_OFF + BACK_OFF.mul_f64(spread);
                    if self.stopped_within(back_off).await {
                        return;
                    }
                }
                Stop::Halt(reason) => {
                    error!(%partition, reason, "the partition is halted to protect its data");
                    self.meters.halted.set(1.0);
                    self.status.set(partition, PartitionState::Halted(reason));
                    // The lag of a halted partition goes on growing, and is seen to.
                    while !self.stopped_within(IDLE).await {
                        self.look().await;
                    }
                    return;
                }
            }
        }
    }

    async fn stopped_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.stop.wait_for(|stop| *stop)).await.is_ok()
    }

    /// One tenure: from acquiring to the reason why it ended.
    async fn own(&mut self) -> Stop {
        // Dropped with the tenure, so that its publisher cannot outlive it; on a stop it may finish first.
        let mut tasks = JoinSet::new();
        let mut tenure = match self.begin(&mut tasks).await {
            Ok(tenure) => tenure,
            Err(stop) => return stop,
        };
        loop {
            if let Err(stop) = self.step(&mut tenure).await {
                if matches!(stop, Stop::Asked | Stop::Halt(_)) {
                    drop(tenure);
                    let finished = async { while tasks.join_next().await.is_some() {} };
                    let _in_vain = tokio::time::timeout(IDLE, finished).await;
                }
                return stop;
            }
        }
    }

    async fn begin(&mut self, tasks: &mut JoinSet<()>) -> Result<Tenure, Stop> {
        let identity = Identity {
            log_identity: self.ports.log.identity().to_owned(),
            partitions: self.ports.log.partitions(),
            fold_version: FOLD_VERSION,
            micros: self.ports.clock.micros(),
        };
        let checkpoint = self.ports.records.acquire(self.partition, &identity).await?;
        self.next_offset = checkpoint.next_offset;
        self.verify(&checkpoint).await?;
        debug!(partition = %self.partition, next_offset = %checkpoint.next_offset, epoch = checkpoint.epoch, "acquired");
        let publisher = Publisher::spawn(tasks, self.ports.clone(), &checkpoint, PUBLISHES_MAX);
        self.status.set(self.partition, PartitionState::Running);
        Ok(Tenure {
            fence: checkpoint.fence(),
            mark: checkpoint.mark,
            rows: remembered(self.limits.rows_remembered),
            counts: remembered(self.limits.counts_remembered),
            publisher,
            wait: Duration::ZERO,
            pause_until: Instant::now(),
            caught_up_at: checkpoint.heard_at,
            gap_at: None,
        })
    }

    /// The log must hold the record that the checkpoint stands behind, and its end must not lie before it.
    async fn verify(&self, checkpoint: &Checkpoint) -> Result<(), Stop> {
        let next = checkpoint.next_offset;
        let bounds = self.ports.log.bounds(self.partition).await?;
        if next > bounds.end {
            return Err(Stop::Halt(format!("the checkpoint {next} is beyond the log's end {}", bounds.end)));
        }
        if next < bounds.start {
            return Err(Stop::Halt(format!("the checkpoint {next} is below the log's start {}", bounds.start)));
        }
        let Some(previous) = next.previous() else { return Ok(()) };
        let found = self.ports.log.mark(self.partition, previous).await?;
        let gone_with_the_start = found.is_none() && next == bounds.start;
        if found != checkpoint.mark && !gone_with_the_start {
            return Err(Stop::Halt(format!("the record at {previous} is not the one that was applied: another log?")));
        }
        Ok(())
    }

    /// Reads once and applies what came.
    async fn step(&mut self, tenure: &mut Tenure) -> Result<(), Stop> {
        if *self.stop.borrow() {
            return Err(Stop::Asked);
        }
        if tenure.publisher.has_ended() {
            return Err(Stop::Again("the publisher found another owner or newer counters".into()));
        }
        let pause = tenure.pause_until.saturating_duration_since(Instant::now());
        if !pause.is_zero() && self.stopped_within(pause).await {
            return Err(Stop::Asked);
        }
        let from = tenure.fence.next_offset;
        // One more than a batch holds, to know the time of the next event.
        let limit = ReadLimit { records: self.batch_events + 1, bytes: self.limits.batch_bytes, wait: tenure.wait };
        tenure.wait = IDLE;
        let log = Arc::clone(&self.ports.log);
        let slice = tokio::select! {
            biased;
            slice = log.read(self.partition, from, limit) => slice?,
            _ = self.stop.wait_for(|stop| *stop) => return Err(Stop::Asked),
        };
        self.status.step(self.partition);
        let heard_at = self.ports.clock.before(slice.age);
        if from > slice.bounds.end {
            return Err(Stop::Halt(format!("the checkpoint {from} is beyond the log's end {}", slice.bounds.end)));
        }
        let is_known = match &slice.before {
            Before::NotRead => true,
            Before::Absent => from == slice.bounds.start,
            Before::Found(mark) => Some(mark) == tenure.mark.as_ref(),
        };
        if !is_known {
            return Err(Stop::Halt(format!("the record before {from} is not the one that was applied: another log?")));
        }
        self.measure(slice.bounds.end, slice.records.first().map(|record| record.timestamp));
        let judged = self.judge(tenure, &slice)?;
        let Some(mut judged) = judged else { return Ok(()) };
        for letter in std::mem::take(&mut judged.letters) {
            self.ports.log.bury(letter).await?;
            self.status.step(self.partition);
            self.meters.dead.increment(1);
        }
        // The time of the next event; where the read ended before it, that of the last one read, which is no later.
        let beyond = slice.records.iter().find(|record| record.offset >= judged.next_offset).or(slice.records.last());
        let is_behind = slice.bounds.end > judged.next_offset;
        if !is_behind {
            tenure.caught_up_at = heard_at;
        }
        // An event that is there and was not given came after the last moment when nothing waited.
        let waits_since = beyond.map_or(tenure.caught_up_at, |record| record.timestamp);
        let next_event_at = is_behind.then_some(waits_since);
        let news = News { log_end: slice.bounds.end, next_event_at, heard_at };
        let halt = judged.halt.take();
        let (started, is_empty) = (Instant::now(), judged.events.is_empty());
        self.commit(tenure, judged, news).await?;
        if !is_empty && slice.records.len() < self.batch_events {
            let Limits { pause, .. } = self.limits;
            let relief = started.elapsed().clamp(pause, 2 * pause);
            tenure.pause_until = Instant::now() + relief;
        }
        if !is_empty {
            self.batch_events = (self.batch_events * 2).min(self.limits.batch_events);
        }
        self.next_offset = tenure.fence.next_offset;
        self.report.applied(self.partition, self.next_offset);
        self.measure(news.log_end, news.next_event_at);
        halt.map_or(Ok(()), |reason| Err(Stop::Halt(reason)))
    }

    /// Lag as of now: events between where this owner is and the log's end, and the age of the oldest of them.
    fn measure(&self, log_end: Offset, next_event_at: Option<Timestamp>) {
        self.meters.lag_events.set((log_end.get() - self.next_offset.get()).max(0) as f64);
        let age = next_event_at.map_or(0, |at| self.ports.clock.now().millis() - at.millis());
        self.meters.lag_seconds.set(age.max(0) as f64 / 1000.0);
    }

    /// Measures while nothing is applied.
    async fn look(&self) {
        let limit = ReadLimit { records: 1, bytes: 1, wait: Duration::ZERO };
        if let Ok(slice) = self.ports.log.read(self.partition, self.next_offset, limit).await {
            self.measure(slice.bounds.end, slice.records.first().map(|record| record.timestamp));
        }
    }

    /// Sorts a slice into events and dead letters. None: a gap was read for the first time, read again.
    fn judge(&self, tenure: &mut Tenure, slice: &Slice) -> Result<Option<Judged>, Stop> {
        let mut judged = Judged {
            events: Vec::with_capacity(slice.records.len()),
            next_offset: tenure.fence.next_offset,
            mark: tenure.mark.clone(),
            letters: Vec::new(),
            halt: None,
        };
        let count = self.ports.log.partitions();
        let fresh = slice.records.iter().filter(|record| record.offset >= tenure.fence.next_offset);
        for record in fresh.take(self.batch_events) {
            if record.offset != judged.next_offset {
                if judged.next_offset != tenure.fence.next_offset {
                    break; // The gap is met again at the start of the next read.
                }
                if tenure.gap_at.replace(judged.next_offset) == Some(judged.next_offset) {
                    let (expected, found) = (judged.next_offset, record.offset);
                    return Err(Stop::Halt(format!("the log goes from {expected} to {found}: events are missing")));
                }
                return Ok(None);
            }
            let decoded = LikeToggled::decode(
                self.partition,
                count,
                record.key.as_deref(),
                record.value.as_deref(),
                &record.headers,
            );
            match decoded {
                Ok(like) => judged.events.push(Event { offset: record.offset, like }),
                Err(Rejected::Malformed(reason)) => {
                    judged.letters.push(DeadLetter::new(LogRecord::clone(record), self.partition, &reason.to_string()));
                }
                Err(Rejected::Halt(reason)) => {
                    judged.halt = Some(format!("at offset {}: {reason}", record.offset));
                    break;
                }
            }
            judged.next_offset = record.offset.next();
            judged.mark = Some(record.mark());
        }
        tenure.gap_at = None;
        Ok(Some(judged))
    }

    /// Commits a batch, which may be empty, and hands its changes to the publisher.
    async fn commit(&self, tenure: &mut Tenure, judged: Judged, news: News) -> Result<(), Stop> {
        let Judged { events, next_offset, mark, .. } = judged;
        let advance = Advance {
            next_offset,
            mark: mark.clone(),
            log_end: news.log_end,
            next_event_at: news.next_event_at,
            heard_at: news.heard_at,
        };
        let received_at = events.first().map(|event| event.like.received_at);
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut batch = self.batch(tenure, events, advance, &tally);
        if planted::on(Bug::CheckpointBeforeRows) {
            self.committed(empty_copy(&batch)).await?;
            batch.fence.next_offset = next_offset;
        }
        if planted::on(Bug::NoFence)
            && let Some(stored) = self.ports.records.checkpoint(self.partition).await?
        {
            batch.fence = stored.fence();
        }
        let from = tenure.fence.next_offset;
        let committed = match self.committed(batch).await {
            Ok(committed) => committed,
            Err(Stop::Again(_)) if planted::on(Bug::KeepRowsAfterUnknownCommit) => {
                Committed { rows: vec![], counts: vec![] }
            }
            Err(stop) => return Err(stop),
        };
        self.meters.count(*tally.lock().unwrap_or_else(PoisonError::into_inner));
        for count in &committed.counts {
            tenure.counts.push(count.content, count.count);
        }
        tenure.publisher.send(Changes {
            from: version_of(from),
            to: version_of(next_offset),
            counts: committed.counts,
            statuses: committed.rows.iter().map(Into::into).collect(),
            news,
            received_at,
        });
        for row in committed.rows {
            tenure.rows.push(row.pair, row);
        }
        tenure.fence.next_offset = next_offset;
        tenure.mark = mark;
        Ok(())
    }

    async fn committed(&self, batch: Batch) -> Result<Committed, Stop> {
        self.ports.records.commit(batch).await.map_err(|e| match e {
            CommitError::Fenced => Stop::Again(CommitError::Fenced.to_string()),
            CommitError::Unknown(error) => Stop::Again(error.to_string()),
        })
    }

    fn batch(&self, tenure: &mut Tenure, events: Vec<Event>, advance: Advance, tally: &Arc<Mutex<Tally>>) -> Batch {
        let mut known: HashMap<Pair, LikeRecord> = HashMap::new();
        let mut read: Vec<Pair> = Vec::new();
        let mut pairs: Vec<Pair> = events.iter().map(|event| event.like.pair()).collect();
        pairs.sort_unstable();
        pairs.dedup();
        for pair in pairs {
            match tenure.rows.get(&pair) {
                Some(row) => {
                    known.insert(pair, row.clone());
                }
                None => read.push(pair),
            }
        }
        let mut counts = HashMap::new();
        for event in &events {
            let content = event.like.content();
            if let Some(count) = tenure.counts.get(&content) {
                counts.insert(content, *count);
            }
        }
        let tally = Arc::clone(tally);
        let fold = move |prior: Vec<Option<LikeRecord>>| {
            let mut rows = known.clone();
            rows.extend(prior.into_iter().flatten().map(|row| (row.pair, row)));
            let (writes, tallied) = fold::fold(&rows, &events);
            *tally.lock().unwrap_or_else(PoisonError::into_inner) = tallied;
            writes
        };
        Batch { fence: tenure.fence, advance, read, counts, fold: Box::new(fold) }
    }
}

fn remembered<K: std::hash::Hash + Eq, V>(most: usize) -> LruCache<K, V> {
    LruCache::new(NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN))
}

/// A batch that moves the checkpoint as `batch` does, and writes nothing.
fn empty_copy(batch: &Batch) -> Batch {
    let advance = batch.advance.clone();
    let (read, counts) = (Vec::new(), HashMap::new());
    Batch { fence: batch.fence, advance, read, counts, fold: Box::new(|_| Default::default()) }
}
