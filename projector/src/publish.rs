//! Brings the counters up to each commit of one tenure, strictly in order, without the records ever waiting for it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use likewise_schema::{Content, LikeToggled, Offset, Pair, Timestamp, UserId};
use likewise_storage::{
    StoreError,
    counters::{CachedCount, News, Outcome, Publish, Scope, Status, Version, Writer, version_of},
    log::ReadLimit,
    planted::{self, Bug},
    records::{Checkpoint, CommitError, Count, Generation, LikeRecord},
};
use metrics::{Histogram, counter, histogram};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::{debug, warn};

use crate::Ports;

/// Events re-read and re-published at once after a takeover.
const REPUBLISH_EVENTS: usize = 1000;
const REPUBLISH_BYTES: usize = 4 * 1024 * 1024;
/// How long after a failed takeover before the next one.
const RETRY: Duration = Duration::from_millis(100);

/// What one commit changed.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    pub(crate) from: Version,
    pub(crate) to: Version,
    pub(crate) counts: Vec<Count>,
    pub(crate) statuses: Vec<StatusOf>,
    pub(crate) news: News,
    /// When the first of the events arrived.
    pub(crate) received_at: Option<Timestamp>,
}

/// A pair's status after a commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusOf {
    user: UserId,
    content: Content,
    status: Status,
}

impl From<&LikeRecord> for StatusOf {
    fn from(row: &LikeRecord) -> Self {
        let status = Status { liked: !row.is_canceled, at: Some(row.updated_at), version: row.version.get() };
        Self { user: row.pair.user, content: row.pair.content, status }
    }
}

/// The owner's end of the publisher.
pub(crate) struct Publisher {
    changes: mpsc::Sender<Changes>,
}

impl Publisher {
    /// Starts publishing for the tenure that acquired `checkpoint`; at most `waiting_max` commits wait.
    pub(crate) fn spawn(tasks: &mut JoinSet<()>, ports: Ports, checkpoint: &Checkpoint, waiting_max: usize) -> Self {
        let (changes, waiting) = mpsc::channel(waiting_max);
        let task = Task {
            ports,
            scope: checkpoint.scope(),
            epoch: checkpoint.epoch,
            writer: Writer(0),
            position: -1,
            news: News {
                log_end: checkpoint.log_end,
                next_event_at: checkpoint.next_event_at,
                heard_at: checkpoint.heard_at,
            },
            waits_since: None,
            visible: histogram!("likewise_visible_seconds"),
        };
        tasks.spawn(task.run(waiting));
        Self { changes }
    }

    /// Hands a commit over. With a full queue it is dropped: the next one that is taken shows the gap.
    pub(crate) fn send(&self, changes: Changes) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.changes.try_send(changes) {
            counter!("likewise_publishes_dropped_total").increment(1);
        }
    }

    /// True once the tenure must be given up.
    pub(crate) fn has_ended(&self) -> bool {
        self.changes.is_closed()
    }
}

/// Why a takeover did not lead to a position.
enum Lost {
    /// Try again.
    Retry(String),
    /// The tenure is over.
    Over(&'static str),
}

impl From<StoreError> for Lost {
    fn from(error: StoreError) -> Self {
        Lost::Retry(error.to_string())
    }
}

struct Task {
    ports: Ports,
    scope: Scope,
    epoch: i64,
    writer: Writer,
    /// Where this task left the counters.
    position: Version,
    news: News,
    /// When the oldest event arrived that the counters do not show yet.
    waits_since: Option<Timestamp>,
    /// From an event's arrival until counts show it, for the oldest event of each publish.
    visible: Histogram,
}

impl Task {
    /// Ends with the tenure, or when it finds that the tenure is over.
    async fn run(mut self, mut waiting: mpsc::Receiver<Changes>) {
        if !self.recover_until_done(&waiting).await {
            return;
        }
        while let Some(changes) = waiting.recv().await {
            self.news = changes.news;
            // What a takeover has already published is passed over, unless it only brings news.
            if changes.to < self.position || (changes.to == self.position && changes.from < changes.to) {
                continue;
            }
            self.waits_since = self.waits_since.or(changes.received_at);
            let taken = changes.from == self.position && self.publish(changes).await;
            if !taken && !planted::on(Bug::RefusedPublishIgnored) && !self.recover_until_done(&waiting).await {
                return;
            }
        }
    }

    /// False: nothing is known to have changed, or the outcome is unknown.
    async fn publish(&mut self, changes: Changes) -> bool {
        let to = changes.to;
        let publish = Publish {
            writer: self.writer,
            from: changes.from,
            to,
            counts: changes.counts.iter().map(cached).collect(),
            statuses: changes.statuses.iter().map(|of| (of.user, of.content, of.status)).collect(),
            news: changes.news,
            recovering: false,
        };
        let outcome = self.ports.counters.publish(self.scope, publish).await;
        let done = outcome == Ok(Outcome::Done);
        match outcome {
            Ok(Outcome::Done) => {
                self.position = to;
                self.shown();
            }
            Ok(Outcome::Refused) => debug!(partition = %self.scope.partition, "a publish was refused"),
            Err(error) => debug!(partition = %self.scope.partition, %error, "a publish failed"),
        }
        if planted::on(Bug::RefusedPublishIgnored) {
            self.position = to;
        }
        done
    }

    /// The counters show all that was handed over so far.
    fn shown(&mut self) {
        if let Some(since) = self.waits_since.take() {
            let millis = self.ports.clock.now().millis() - since.millis();
            self.visible.record(millis.max(0) as f64 / 1000.0);
        }
    }

    /// Takes progress over as often as it takes. False once the tenure is over.
    async fn recover_until_done(&mut self, waiting: &mpsc::Receiver<Changes>) -> bool {
        counter!("likewise_counter_takeovers_total").increment(1);
        loop {
            match self.recover().await {
                Ok(()) => {
                    self.shown();
                    return true;
                }
                Err(Lost::Over(reason)) => {
                    warn!(partition = %self.scope.partition, reason, "the publisher ends");
                    return false;
                }
                Err(Lost::Retry(reason)) => debug!(partition = %self.scope.partition, reason, "taking over again"),
            }
            if waiting.is_closed() {
                return false;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// One takeover: from the checkpoint on the primary, through what the counters missed, to unmarked progress.
    async fn recover(&mut self) -> Result<(), Lost> {
        let stored = self.ports.records.checkpoint(self.scope.partition).await?;
        let Some(checkpoint) = stored.filter(|stored| stored.epoch == self.epoch) else {
            return Err(Lost::Over("the partition has another owner"));
        };
        let target = version_of(checkpoint.next_offset);
        self.writer = Writer(rand::random());
        let remembered = self.position;
        self.position = self.ports.counters.take_over(self.scope, self.writer, target, self.news).await?;
        if planted::on(Bug::RepublishFromMemory) && self.position < remembered.min(target) {
            self.move_to(remembered.min(target), Vec::new(), Vec::new(), true).await?;
        }
        if self.position > target {
            return Err(self.renew_generation(&checkpoint).await);
        }
        while self.position < target {
            self.republish(target).await?;
        }
        self.move_to(target, Vec::new(), Vec::new(), false).await
    }

    /// The counters reflect more than the records: these are not the tables they were made from.
    async fn renew_generation(&self, checkpoint: &Checkpoint) -> Lost {
        let generation = Generation(rand::random());
        match self.ports.records.renew_generation(checkpoint.fence(), generation).await {
            Ok(_) => Lost::Over("the counters were ahead of the records, which now have a new generation"),
            Err(CommitError::Fenced) => Lost::Retry("the records moved meanwhile".into()),
            Err(CommitError::Unknown(error)) => error.into(),
        }
    }

    /// Publishes the next stretch of the log between the position and `target`, with the rows as the primary has
    /// them now, in snapshots whose checkpoint is at or beyond the stretch.
    async fn republish(&mut self, target: Version) -> Result<(), Lost> {
        let from = Offset::new(self.position + 1).unwrap_or_default();
        let limit = ReadLimit { records: REPUBLISH_EVENTS, bytes: REPUBLISH_BYTES, wait: Duration::ZERO };
        let log = Arc::clone(&self.ports.log);
        let slice = log.read(self.scope.partition, from, limit).await?;
        let (mut to, mut pairs) = (self.position, BTreeSet::new());
        for record in slice.records.iter().filter(|record| record.offset.get() <= target) {
            if record.offset.get() != to + 1 {
                return Err(Lost::Retry("the log has a gap".into()));
            }
            to = record.offset.get();
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            let count = log.partitions();
            if let Ok(like) = LikeToggled::decode(self.scope.partition, count, key, value, &record.headers) {
                pairs.insert(like.pair());
            }
        }
        if to == self.position {
            return Err(Lost::Retry("the log does not give what it gave before".into()));
        }
        let contents: BTreeSet<Content> = pairs.iter().map(|pair| pair.content).collect();
        let contents: Vec<Content> = contents.into_iter().collect();
        let pairs: Vec<Pair> = pairs.into_iter().collect();
        let counts = self.ports.records.counts(&contents).await?;
        let rows = self.ports.records.rows(&pairs).await?;
        let reaches = |checkpoints: &[Checkpoint]| {
            let own = checkpoints.iter().find(|checkpoint| checkpoint.partition == self.scope.partition);
            own.is_some_and(|checkpoint| version_of(checkpoint.next_offset) >= to)
        };
        if !reaches(&counts.checkpoints) || !reaches(&rows.checkpoints) {
            return Err(Lost::Retry("the records went back".into()));
        }
        let (counts, rows) = (counts.value, rows.value);
        let counts = counts.iter().flatten().map(cached).collect();
        let statuses = rows.iter().flatten().map(StatusOf::from).map(|of| (of.user, of.content, of.status)).collect();
        self.move_to(to, counts, statuses, true).await
    }

    async fn move_to(
        &mut self,
        to: Version,
        counts: Vec<(Content, CachedCount)>,
        statuses: Vec<(UserId, Content, Status)>,
        recovering: bool,
    ) -> Result<(), Lost> {
        let (writer, from, news) = (self.writer, self.position, self.news);
        let publish = Publish { writer, from, to, counts, statuses, news, recovering };
        match self.ports.counters.publish(self.scope, publish).await? {
            Outcome::Done => {
                self.position = to;
                Ok(())
            }
            Outcome::Refused => Err(Lost::Retry("another took progress over".into())),
        }
    }
}

fn cached(count: &Count) -> (Content, CachedCount) {
    (count.content, CachedCount { count: count.count, version: count.version.get() })
}
