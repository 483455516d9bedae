//! The projector on simulated stores: what it sorts out, and where it stops to protect data.

use std::{sync::Arc, time::Duration};

use likewise_projector::{Limits, PartitionState, Ports, Status, run};
use likewise_schema::{Headers, LikeToggled, Offset, Partition};
use likewise_simulation::{SimLog, SimRecords};
use likewise_storage::{
    Clock, CounterStore, EventLog, RecordStore,
    conformance::{at, pair, partition, post, request, user},
    counters::{MemoryCounters, News, Writer},
    log::{Membership, NewRecord},
    records::Owner,
};
use tokio::{sync::watch, task::JoinHandle};

/// Post 1 is in this partition.
const PARTITION: u32 = 1;

fn own() -> Partition {
    partition(PARTITION)
}

/// A like of post 1 by a user, as the command API would write it.
fn like(number: u128, user_id: i64) -> NewRecord {
    let content = post(1);
    let event = LikeToggled {
        request_id: request(number),
        user_id: user(user_id),
        content_type: content.content_type,
        content_id: content.content_id,
        liked: true,
        occurred_at: None,
        received_at: at(number as i64),
    };
    NewRecord {
        partition: own(),
        timestamp: event.received_at,
        key: Some(event.key()),
        value: Some(event.value()),
        headers: event.headers("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    }
}

struct Running {
    records: Arc<SimRecords>,
    counters: Arc<MemoryCounters>,
    status: Arc<Status>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn start(log: &Arc<SimLog>, records: &Arc<SimRecords>, counters: &Arc<MemoryCounters>) -> Running {
    let ports = Ports {
        log: Arc::clone(log) as Arc<dyn EventLog>,
        records: Arc::clone(records) as Arc<dyn RecordStore>,
        counters: Arc::clone(counters) as Arc<dyn CounterStore>,
        clock: Clock::system(),
    };
    let (stop, asked) = watch::channel(false);
    let status = Arc::new(Status::default());
    let (membership, told) = (Membership::fixed([own()].into()), Arc::clone(&status));
    let task = tokio::spawn(async move { run(ports, Limits::default(), &membership, told, asked).await });
    Running { records: Arc::clone(records), counters: Arc::clone(counters), status, stop, task }
}

impl Running {
    fn state(&self) -> Option<PartitionState> {
        self.status.all().remove(&own())
    }

    /// Waits for records and counters to reach an offset.
    async fn reaches(&self, next: i64) {
        until("the projection", async || {
            let Ok(Some(checkpoint)) = self.records.checkpoint(own()).await else { return false };
            let progress = self.counters.progress(checkpoint.scope()).await.ok().flatten();
            let claim = progress.map(|progress| progress.claim(own()));
            checkpoint.next_offset.get() == next
                && claim.is_some_and(|claim| claim.next_offset.get() == next && !claim.recovering)
        })
        .await;
    }

    async fn halts(&self) -> String {
        until("a halt", async || matches!(self.state(), Some(PartitionState::Halted(_)))).await;
        match self.state() {
            Some(PartitionState::Halted(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.expect("the projector ends");
    }
}

async fn until(what: &str, is_true: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_true().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("waited for {what}"));
}

fn stores() -> (Arc<SimRecords>, Arc<MemoryCounters>) {
    (Arc::default(), Arc::new(MemoryCounters::new(Clock::system())))
}

async fn log_of(likes: impl IntoIterator<Item = NewRecord>) -> Arc<SimLog> {
    let log = Arc::new(SimLog::new("a log"));
    for like in likes {
        log.append(like).await.expect("appended");
    }
    log
}

async fn count(records: &SimRecords) -> Option<i64> {
    records.counts(&[post(1)]).await.expect("read").value[0].map(|count| count.count)
}

#[tokio::test]
async fn poison_goes_to_the_dead_letters_and_blocks_nothing() {
    let broken = |change: &dyn Fn(&mut NewRecord)| {
        let mut record = like(50, 50);
        change(&mut record);
        record
    };
    let poison = [
        broken(&|record| record.value = Some(b"{".to_vec())),
        broken(&|record| record.value = None),
        broken(&|record| record.key = None),
        broken(&|record| record.key = Some(b"another".to_vec())),
        broken(&|record| record.headers = Headers::default()),
        broken(&|record| record.value = Some(vec![b'x'; 1_000_000])),
        broken(&|record| {
            let value = String::from_utf8(record.value.clone().expect("a value")).expect("text");
            record.value = Some(value.replace("\"contentId\":\"1\"", "\"contentId\":\"2\"").into_bytes());
        }),
    ];
    let poisoned = poison.len();
    let log = log_of([like(1, 1)].into_iter().chain(poison).chain([like(2, 2)])).await;
    let (records, counters) = stores();
    let running = start(&log, &records, &counters);
    running.reaches(poisoned as i64 + 2).await;
    assert_eq!(count(&records).await, Some(2));
    let letters = log.dead_letters(0, 100).await.expect("read");
    let header = |index: usize, name: &str| {
        letters[index].headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    };
    assert_eq!(letters.len(), poisoned);
    for index in 0..poisoned {
        assert_eq!(header(index, "__dlq.errors.offset"), (index + 1).to_string());
    }
    assert!(header(6, "__dlq.errors.message").contains("belongs to partition 2"));
    running.stop().await;
}

#[tokio::test]
async fn an_unknown_major_version_halts_after_what_came_before_it() {
    let mut newer = like(2, 2);
    newer.headers.push("ce_type", "LikeToggled.v2");
    let log = log_of([like(1, 1), newer, like(3, 3)]).await;
    let (records, counters) = stores();
    let running = start(&log, &records, &counters);
    let reason = running.halts().await;
    assert!(reason.contains("major version 2"), "{reason}");
    running.reaches(1).await;
    assert_eq!(count(&records).await, Some(1));
    assert!(log.dead_letters(0, 1).await.expect("read").is_empty(), "it is not a dead letter");
    running.stop().await;
}

#[tokio::test]
async fn another_log_a_shorter_one_and_a_regrown_one_halt() {
    let (records, counters) = stores();
    let running = start(&log_of([like(1, 1), like(2, 2)]).await, &records, &counters);
    running.reaches(2).await;
    running.stop().await;

    let stranger = Arc::new(SimLog::new("another log"));
    let running = start(&stranger, &records, &counters);
    assert!(running.halts().await.contains("another log"));
    running.stop().await;

    let running = start(&log_of([like(1, 1)]).await, &records, &counters);
    let reason = running.halts().await;
    assert!(reason.contains("beyond the log's end"), "{reason}");
    running.stop().await;

    let running = start(&log_of([like(1, 1), like(9, 9), like(3, 3)]).await, &records, &counters);
    let reason = running.halts().await;
    assert!(reason.contains("not the one that was applied"), "{reason}");
    running.stop().await;
    assert_eq!(count(&records).await, Some(2), "a halted owner rewrites nothing");
}

#[tokio::test]
async fn missing_events_halt() {
    let log = log_of([like(1, 1), like(2, 2), like(3, 3)]).await;
    log.forget(own(), Offset::new(1).expect("valid"));
    let (records, counters) = stores();
    let running = start(&log, &records, &counters);
    let reason = running.halts().await;
    assert!(reason.contains("events are missing"), "{reason}");
    running.stop().await;
}

/// A restored dump: the counters reflect more than the records. Their keys must never be met again.
#[tokio::test]
async fn counters_ahead_of_the_records_get_a_new_generation() {
    let log = log_of([like(1, 1), like(2, 2)]).await;
    let (records, counters) = stores();
    let owner = Owner {
        log_identity: log.identity().to_owned(),
        partitions: log.partitions(),
        fold_version: likewise_projector::fold::FOLD_VERSION,
        micros: 1,
    };
    let restored = records.acquire(own(), &owner).await.expect("acquired");
    let news = News { log_end: Offset::ZERO, next_event_at: None, heard_at: at(0) };
    counters.take_over(restored.scope(), Writer(1), 5, news).await.expect("taken over");
    let running = start(&log, &records, &counters);
    until("a new generation", async || {
        let stored = records.checkpoint(own()).await.expect("read").expect("owned");
        stored.generation != restored.generation
    })
    .await;
    running.reaches(2).await;
    assert_eq!(count(&records).await, Some(2));
    let old = counters.progress(restored.scope()).await.expect("read").expect("progress");
    assert_eq!(old.position, 5, "the old keys are left alone");
    running.stop().await;
}

#[tokio::test]
async fn a_stop_publishes_what_was_committed() {
    let log = log_of((1..=500).map(|number| like(number, number as i64))).await;
    let (records, counters) = stores();
    let running = start(&log, &records, &counters);
    until("a first commit", async || count(&records).await.is_some()).await;
    let (records, counters) = (Arc::clone(&running.records), Arc::clone(&running.counters));
    running.stop().await;
    let checkpoint = records.checkpoint(own()).await.expect("read").expect("owned");
    let progress = counters.progress(checkpoint.scope()).await.expect("read").expect("progress");
    assert_eq!(progress.claim(own()).next_offset, checkpoint.next_offset);
    assert!(records.rows(&[pair(1, 1)]).await.expect("read").value[0].is_some());
}
