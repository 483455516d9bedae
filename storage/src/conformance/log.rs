//! What every log does.

use std::{sync::Arc, time::Duration};

use likewise_schema::{Offset, PartitionCount};

use super::{at, headers, partition};
use crate::log::{AppendError, Before, DeadLetter, EventLog, LogRecord, NewRecord, RECORD_BYTES_MAX, ReadLimit};

const ALL: ReadLimit = ReadLimit { records: 10_000, bytes: 64 * 1024 * 1024, wait: Duration::ZERO };

fn offset(number: i64) -> Offset {
    Offset::new(number).expect("a valid offset")
}

fn record(number: u32, key: &str, value: &str) -> NewRecord {
    NewRecord {
        partition: partition(number),
        timestamp: at(i64::from(number)),
        key: Some(key.as_bytes().to_vec()),
        value: Some(value.as_bytes().to_vec()),
        headers: headers(&[("ce_id", key), ("x-other", "1")]),
    }
}

/// Runs the suite on fresh, empty logs of 16 partitions from `make`.
pub async fn event_log<F: AsyncFn() -> Arc<dyn EventLog>>(make: F) {
    offsets_are_gapless_per_partition_in_order_of_acknowledgement(make().await).await;
    records_come_back_as_they_were(make().await).await;
    reads_respect_their_limits(make().await).await;
    a_waiting_read_wakes_on_an_append(make().await).await;
    marks_and_bounds_tell_what_is_there(make().await).await;
    what_cannot_be_kept_is_rejected(make().await).await;
    dead_letters_are_kept_in_order(make().await).await;
    assert_ne!(make().await.identity(), make().await.identity(), "two logs have two identities");
}

async fn offsets_are_gapless_per_partition_in_order_of_acknowledgement(log: Arc<dyn EventLog>) {
    assert_eq!(log.partitions(), PartitionCount::DEFAULT);
    let mut tasks = Vec::new();
    for task in 0..8_u32 {
        let log = Arc::clone(&log);
        tasks.push(tokio::spawn(async move {
            let mut last = [None; 2];
            for number in 0..50 {
                let to = number % 2;
                let offset = log.append(record(to, &format!("{task}-{number}"), "{}")).await.expect("appended");
                assert!(last[to as usize].is_none_or(|last| last < offset), "a sender's appends keep their order");
                last[to as usize] = Some(offset);
            }
        }));
    }
    for task in tasks {
        task.await.expect("appended");
    }
    for number in 0..2 {
        let slice = log.read(partition(number), Offset::ZERO, ALL).await.expect("read");
        let offsets: Vec<i64> = slice.records.iter().map(|record| record.offset.get()).collect();
        assert_eq!(offsets, (0..200).collect::<Vec<_>>());
        assert_eq!(slice.bounds.end, offset(200));
    }
}

async fn records_come_back_as_they_were(log: Arc<dyn EventLog>) {
    let mut bytes = record(3, "k", "v");
    bytes.value = Some(vec![0, 255, 10]);
    let mut tombstone = record(3, "k", "");
    tombstone.value = None;
    let mut no_key = record(3, "", "v");
    no_key.key = None;
    no_key.headers = headers(&[]);
    for (expected, new) in [bytes, tombstone, no_key].into_iter().enumerate() {
        let NewRecord { timestamp, key, value, headers, .. } = new.clone();
        let at = log.append(new).await.expect("appended");
        assert_eq!(at, offset(expected as i64));
        let slice = log.read(partition(3), at, ALL).await.expect("read");
        assert_eq!(slice.records, [LogRecord { offset: at, timestamp, key, value, headers }]);
    }
}

async fn reads_respect_their_limits(log: Arc<dyn EventLog>) {
    for number in 0..10 {
        log.append(record(0, &number.to_string(), "0123456789")).await.expect("appended");
    }
    let read = async |from, limit| log.read(partition(0), offset(from), limit).await.expect("read");
    assert_eq!(read(0, ReadLimit { records: 3, ..ALL }).await.records.len(), 3);
    assert_eq!(read(8, ReadLimit { records: 3, ..ALL }).await.records.len(), 2);
    let by_bytes = read(0, ReadLimit { bytes: 25, ..ALL }).await.records.len();
    assert!((1..=3).contains(&by_bytes), "25 bytes hold three values at most, and one comes in any case: {by_bytes}");
    let at_the_end = read(10, ALL).await;
    assert!(at_the_end.records.is_empty());
    assert_eq!(at_the_end.bounds.end, offset(10));
}

async fn a_waiting_read_wakes_on_an_append(log: Arc<dyn EventLog>) {
    let reader = Arc::clone(&log);
    let limit = ReadLimit { wait: Duration::from_secs(60), ..ALL };
    let read = tokio::spawn(async move { reader.read(partition(5), Offset::ZERO, limit).await });
    tokio::task::yield_now().await;
    log.append(record(5, "k", "v")).await.expect("appended");
    let woken = tokio::time::timeout(Duration::from_secs(30), read).await.expect("the read wakes");
    assert_eq!(woken.expect("no panic").expect("read").records.len(), 1);
}

async fn marks_and_bounds_tell_what_is_there(log: Arc<dyn EventLog>) {
    let bounds = log.bounds(partition(1)).await.expect("bounds");
    assert_eq!((bounds.start, bounds.end), (Offset::ZERO, Offset::ZERO));
    log.append(record(1, "a", "1")).await.expect("appended");
    log.append(record(1, "b", "2")).await.expect("appended");
    let bounds = log.bounds(partition(1)).await.expect("bounds");
    assert_eq!((bounds.start, bounds.end), (Offset::ZERO, offset(2)));
    let mark = log.mark(partition(1), offset(1)).await.expect("mark").expect("a record");
    assert_eq!(mark.key.as_deref(), Some(&b"b"[..]));
    assert_eq!(mark.timestamp, at(1));
    assert_eq!(log.mark(partition(1), offset(2)).await.expect("mark"), None);
    let before = log.read(partition(1), offset(2), ALL).await.expect("read").before;
    assert!(matches!(before, Before::NotRead) || before == Before::Found(mark), "{before:?}");
}

async fn what_cannot_be_kept_is_rejected(log: Arc<dyn EventLog>) {
    let mut large = record(2, "k", "");
    large.value = Some(vec![b'x'; RECORD_BYTES_MAX + 1]);
    let refused = log.append(large).await.expect_err("too large");
    assert!(matches!(refused, AppendError::Rejected(_)), "{refused:?}");
    let mut elsewhere = record(2, "k", "v");
    let more = PartitionCount::new(32).expect("a valid count");
    elsewhere.partition = likewise_schema::Partition::new(20, more).expect("a valid partition");
    let refused = log.append(elsewhere).await.expect_err("no such partition");
    assert!(matches!(refused, AppendError::Rejected(_)), "{refused:?}");
    assert_eq!(log.bounds(partition(2)).await.expect("bounds").end, Offset::ZERO, "nothing was written");
}

async fn dead_letters_are_kept_in_order(log: Arc<dyn EventLog>) {
    let letter = |number: i64| {
        let record = LogRecord {
            offset: offset(number),
            timestamp: at(number),
            key: None,
            value: Some(b"not an event".to_vec()),
            headers: headers(&[("ce_type", "Other")]),
        };
        DeadLetter::new(record, partition(7), "the reason")
    };
    for number in 0..3 {
        log.bury(letter(number)).await.expect("buried");
    }
    assert_eq!(log.dead_letters(0, 10).await.expect("read"), [letter(0), letter(1), letter(2)]);
    assert_eq!(log.dead_letters(1, 1).await.expect("read"), [letter(1)]);
    let found = &log.dead_letters(2, 1).await.expect("read")[0];
    assert_eq!(found.headers.get("__dlq.errors.partition"), Some(&b"7"[..]));
    assert_eq!(found.headers.get("__dlq.errors.offset"), Some(&b"2"[..]));
    assert_eq!(found.headers.get("__dlq.errors.message"), Some(&b"the reason"[..]));
}
