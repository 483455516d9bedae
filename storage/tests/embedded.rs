//! The embedded adapters: the conformance suites, and what is special about files.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use likewise_schema::{Headers, Offset, PartitionCount};
use likewise_storage::{
    Clock, CounterStore, DataDir, EventLog, RecordStore, RequestStore, StoreError,
    conformance::{self, at, partition},
    counters::MemoryCounters,
    log::{AppendError, NewRecord, ReadLimit, SqliteLog},
    records::{Shards, SpreadRecords, SqliteRecords},
    requests::MemoryRequests,
};

const MANY: PartitionCount = PartitionCount::DEFAULT;

fn record(key: &str) -> NewRecord {
    NewRecord {
        partition: partition(0),
        timestamp: at(0),
        key: Some(key.as_bytes().to_vec()),
        value: Some(vec![b'x'; 500]),
        headers: Headers::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sqlite_log_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    conformance::event_log(async || {
        let file = dir.path().join(format!("{}.db", made.fetch_add(1, Ordering::Relaxed)));
        Arc::new(SqliteLog::open(&file, MANY).unwrap()) as Arc<dyn EventLog>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sqlite_records_conform() {
    let dir = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    conformance::record_store(async || {
        let file = dir.path().join(format!("{}.db", made.fetch_add(1, Ordering::Relaxed)));
        Arc::new(SqliteRecords::open(&file, &Shards::all()).unwrap()) as Arc<dyn RecordStore>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_spread_over_two_files_conform() {
    let dir = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    conformance::record_store(async || {
        let number = made.fetch_add(1, Ordering::Relaxed);
        let part = |range: &str| {
            let shards: Shards = range.parse().unwrap();
            let store = SqliteRecords::open(&dir.path().join(format!("{number}-{range}.db")), &shards).unwrap();
            (shards, Arc::new(store) as Arc<dyn RecordStore>)
        };
        Arc::new(SpreadRecords::new(vec![part("8-15"), part("0-7")]).unwrap()) as Arc<dyn RecordStore>
    })
    .await;
}

#[tokio::test]
async fn a_file_keeps_the_shards_it_was_made_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("records.db");
    let shards = |range: &str| range.parse::<Shards>().unwrap();
    drop(SqliteRecords::open(&file, &shards("0-7")).unwrap());
    SqliteRecords::open_readable(&file, &shards("0-7")).unwrap();
    for range in ["0-15", "8-15", "0-6"] {
        let refused = SqliteRecords::open(&file, &shards(range)).unwrap_err().to_string();
        assert!(refused.contains("holds shards 0-7") && refused.contains(range), "{refused}");
        SqliteRecords::open_readable(&file, &shards(range)).unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_counters_conform() {
    conformance::counter_store(async || Arc::new(MemoryCounters::new(Clock::system())) as Arc<dyn CounterStore>).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_requests_conform() {
    let micros = Arc::new(AtomicI64::new(1));
    let read = Arc::clone(&micros);
    let clock = Clock::from_micros(move || read.load(Ordering::Relaxed));
    let pass = |time: Duration| {
        micros.fetch_add(i64::try_from(time.as_micros()).unwrap(), Ordering::Relaxed);
    };
    let make = async || Arc::new(MemoryRequests::new(clock.clone())) as Arc<dyn RequestStore>;
    conformance::request_store(make, &pass).await;
}

#[tokio::test]
async fn a_log_is_what_it_was_after_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.db");
    let log = SqliteLog::open(&file, MANY).unwrap();
    let identity = log.identity().to_owned();
    for number in 0..3 {
        log.append(record(&number.to_string())).await.unwrap();
    }
    let beside = SqliteLog::open_readable(&file).unwrap();
    assert_eq!(beside.bounds(partition(0)).await.unwrap().end.get(), 3, "a reader opens beside the writer");
    let refused = beside.append(record("4")).await.unwrap_err();
    assert!(matches!(refused, AppendError::Rejected(_)));
    drop(log);
    let log = SqliteLog::open(&file, MANY).unwrap();
    assert_eq!(log.identity(), identity);
    assert_eq!(log.append(record("3")).await.unwrap().get(), 3, "offsets go on");
    let more = PartitionCount::new(32).unwrap();
    let refused = SqliteLog::open(&file, more).unwrap_err().to_string();
    assert!(refused.contains("--partitions 16"), "{refused}");
}

/// The writer answers from memory, a reader beside it from the file: both must tell the same, from every offset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_and_file_tell_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.db");
    let log = Arc::new(SqliteLog::open(&file, MANY).unwrap());
    let mut appends = Vec::new();
    for number in 0..600_u32 {
        // Partition 3 gets one record in a hundred, partition 1 none at the start and many later.
        let to = if number % 100 == 0 { 3 } else { u32::from(number > 300) };
        let log = Arc::clone(&log);
        appends.push(tokio::spawn(async move {
            let new = NewRecord { partition: partition(to), ..record(&number.to_string()) };
            log.append(new).await.unwrap();
        }));
        if number % 37 == 0 {
            for append in appends.drain(..) {
                append.await.unwrap();
            }
        }
    }
    for append in appends {
        append.await.unwrap();
    }
    let beside = SqliteLog::open_readable(&file).unwrap();
    let limit = ReadLimit { records: 7, bytes: 3000, wait: Duration::ZERO };
    let mut read = 0;
    for number in 0..4 {
        let end = log.bounds(partition(number)).await.unwrap().end.get();
        for from in 0..=end + 1 {
            let from = Offset::new(from).unwrap();
            let (memory, disk) =
                (log.read(partition(number), from, limit), beside.read(partition(number), from, limit));
            let (memory, disk) = (memory.await.unwrap(), disk.await.unwrap());
            assert_eq!(memory, disk, "partition {number} from {from}");
            assert_eq!(beside.mark(partition(number), from).await.unwrap(), disk.records.first().map(|r| r.mark()));
            read += disk.records.len();
        }
    }
    assert!(read > 600, "something was compared: {read}");
    let end = log.bounds(partition(0)).await.unwrap().end;
    drop((log, beside));
    let log = SqliteLog::open(&file, MANY).unwrap();
    let mut key = record("reopened");
    key.partition = partition(0);
    assert_eq!(log.append(key).await.unwrap(), end);
    let from = Offset::new(end.get() - 1).unwrap();
    let records = log.read(partition(0), from, limit).await.unwrap().records;
    assert_eq!(records.len(), 2, "what memory does not reach back to is read from the file");
}

#[tokio::test]
async fn a_follower_in_another_process_sees_new_records() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.db");
    let log = SqliteLog::open(&file, MANY).unwrap();
    let follower = SqliteLog::open_readable(&file).unwrap();
    let limit = ReadLimit { records: 10, bytes: 1000, wait: Duration::from_secs(30) };
    let read = tokio::spawn(async move { follower.read(partition(0), Offset::ZERO, limit).await });
    log.append(record("1")).await.unwrap();
    assert_eq!(read.await.unwrap().unwrap().records.len(), 1);
}

#[tokio::test]
async fn damaged_and_foreign_files_are_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        fs::write(&file, bytes).unwrap();
        SqliteLog::open(&file, MANY).unwrap_err()
    };
    let damaged = refused("damaged.db", &[7; 8192]);
    assert!(matches!(&damaged, StoreError::Unusable { reason, .. } if reason.contains("is damaged")), "{damaged}");
    let records = dir.path().join("records.db");
    drop(SqliteRecords::open(&records, &Shards::all()).unwrap());
    let foreign = SqliteLog::open(&records, MANY).unwrap_err();
    assert!(foreign.to_string().contains("another program"), "{foreign}");
    let missing = SqliteLog::open_readable(&dir.path().join("none.db")).unwrap_err();
    assert!(missing.to_string().contains("there is no file"), "{missing}");
}

#[tokio::test]
async fn damage_inside_a_log_is_an_error_and_never_an_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.db");
    let log = SqliteLog::open(&file, MANY).unwrap();
    for number in 0..200 {
        log.append(record(&number.to_string())).await.unwrap();
    }
    drop(log);
    let mut bytes = fs::read(&file).unwrap();
    let _truncated_wal = fs::remove_file(dir.path().join("log.db-wal"));
    assert!(bytes.len() > 3 * 4096, "the log was checkpointed into its file: {} bytes", bytes.len());
    bytes[4096..].fill(0xa5);
    fs::write(&file, bytes).unwrap();
    let outcome = match SqliteLog::open(&file, MANY) {
        Ok(log) => log.append(record("x")).await.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    let error = outcome.expect_err("nothing is acknowledged");
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn a_second_owner_of_a_directory_is_told_who_the_first_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = DataDir::acquire(dir.path()).unwrap();
    first.announce(Some(("127.0.0.1:8080", "http://127.0.0.1:8081"))).unwrap();
    let refused = DataDir::acquire(dir.path()).unwrap_err().to_string();
    let pid = std::process::id().to_string();
    assert!(refused.contains(&pid) && refused.contains("127.0.0.1:8080"), "{refused}");
    drop(first);
    DataDir::acquire(dir.path()).unwrap();
}
