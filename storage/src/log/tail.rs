//! The newest records of each partition, kept in the memory of the process that writes them, so that an owner that
//! keeps up never reads the file.

use std::collections::VecDeque;

use likewise_schema::{Offset, Partition, PartitionCount};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Before, Bounds, LogRecord, ReadLimit, Slice, batch};

/// Records kept in all, shared evenly by the partitions.
const RECORDS_MAX: usize = 65_536;
/// Bytes kept in all, shared evenly by the partitions.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The tails of all partitions.
#[derive(Debug)]
pub(super) struct Tails {
    partitions: Vec<Mutex<Tail>>,
    /// The end of each partition, for readers that wait.
    ends: Vec<watch::Sender<i64>>,
    records_max: usize,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Tail {
    /// Encoded as in a batch, one buffer each; gapless, the last one is just before the end.
    records: VecDeque<Vec<u8>>,
    bytes: usize,
    end: i64,
}

impl Tail {
    fn start(&self) -> i64 {
        self.end - self.records.len() as i64
    }

    /// None if there is none at `offset`.
    fn get(&self, offset: i64) -> Option<LogRecord> {
        let index = usize::try_from(offset - self.start()).ok()?;
        batch::decode_rest(offset, self.records.get(index)?)
    }
}

impl Tails {
    pub(super) fn new(count: PartitionCount) -> Self {
        let share = usize::from(count.get());
        Self {
            partitions: count.all().map(|_| Mutex::default()).collect(),
            ends: count.all().map(|_| watch::Sender::new(0)).collect(),
            records_max: RECORDS_MAX / share,
            bytes_max: BYTES_MAX / share,
        }
    }

    /// Adds a committed record, which is the next of its partition. Readers are not woken yet.
    pub(super) fn push(&self, partition: Partition, encoded: Vec<u8>) {
        let mut tail = self.of(partition).lock();
        tail.end += 1;
        tail.bytes += encoded.len();
        tail.records.push_back(encoded);
        while tail.records.len() > self.records_max || tail.bytes > self.bytes_max {
            let Some(oldest) = tail.records.pop_front() else { return };
            tail.bytes -= oldest.len();
        }
    }

    /// Takes the ends as the file has them; a tail that does not lead up to its end is forgotten. Wakes readers.
    pub(super) fn set_ends(&self, ends: &[i64]) {
        for ((tail, known), end) in self.partitions.iter().zip(&self.ends).zip(ends) {
            let mut tail = tail.lock();
            if tail.end != *end {
                *tail = Tail { end: *end, ..Tail::default() };
            }
            drop(tail);
            known.send_if_modified(|known| std::mem::replace(known, *end) != *end);
        }
    }

    /// Reads from memory. None if that reaches back too far.
    pub(super) fn read(&self, partition: Partition, from: Offset, limit: ReadLimit) -> Option<Slice> {
        let tail = self.of(partition).lock();
        let bounds = Bounds { start: Offset::ZERO, end: Offset::new(tail.end).ok()? };
        let first = from.previous().unwrap_or(from);
        // A reader of the file may be ahead of what was pushed: a commit is in the file first.
        if first.get() < tail.start() || from.get() > tail.end {
            return None;
        }
        let before = from.previous().and_then(|previous| tail.get(previous.get()));
        let mut bytes = 0;
        let mut records = Vec::new();
        for offset in from.get()..tail.end {
            let record = tail.get(offset)?;
            bytes += record.value.as_ref().map_or(0, Vec::len);
            records.push(record);
            if bytes >= limit.bytes || records.len() >= limit.records {
                break;
            }
        }
        let before = before.map_or(Before::Absent, |record| Before::Found(record.mark()));
        Some(Slice { records, bounds, before, age: std::time::Duration::ZERO })
    }

    /// Waits until the partition's end is past `from`, at most until `deadline`.
    pub(super) async fn wait_past(&self, partition: Partition, from: Offset, deadline: Instant) {
        let mut end = self.ends[usize::from(partition.get())].subscribe();
        let _at_the_deadline = timeout_at(deadline, end.wait_for(|end| *end > from.get())).await;
    }

    fn of(&self, partition: Partition) -> &Mutex<Tail> {
        &self.partitions[usize::from(partition.get())]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Between a commit and its push the file is ahead of memory, which then must not say that the log ends earlier.
    #[test]
    fn what_memory_has_not_reached_is_left_to_the_file() {
        let tails = Tails::new(PartitionCount::DEFAULT);
        tails.set_ends(&[5; 16]);
        let partition = Partition::new(0, PartitionCount::DEFAULT).unwrap();
        let limit = ReadLimit { records: 10, bytes: 1000, wait: Duration::ZERO };
        let read = |from| tails.read(partition, Offset::new(from).unwrap(), limit);
        for from in [0, 4, 5, 6] {
            assert_eq!(read(from), None, "from {from}");
        }
    }
}
