//! The log as one stream: partitions merged by time, each in its own order.

use std::{collections::VecDeque, sync::Arc};

use futures::future::try_join_all;
use likewise_schema::{LikeToggled, Offset, Partition, Rejected, Timestamp};
use likewise_storage::{EventLog, log::LogRecord};

use crate::{
    Error,
    range::Range,
    reader::{Pace, PartitionReader, decode},
};

/// Records held in memory at once, shared by the partitions.
const RECORDS_MAX: usize = 65_536;

/// A record with its place, and the event that it is.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which partition.
    pub partition: Partition,
    /// The record, as it is.
    pub record: LogRecord,
    /// The event, or why it is none.
    pub event: Result<LikeToggled, Rejected>,
}

/// What a range holds, up to the ends that the log had when the stream was made.
pub struct Stream {
    log: Arc<dyn EventLog>,
    range: Range,
    sources: Vec<Source>,
    /// Records read, whether they were asked for or not.
    read: u64,
}

struct Source {
    partition: Partition,
    reader: PartitionReader,
    ready: VecDeque<Entry>,
}

impl Stream {
    /// Everything in `range`, read no faster than `pace`.
    pub async fn new(log: &Arc<dyn EventLog>, range: Range, pace: &Arc<Pace>) -> Result<Self, Error> {
        let from = match range.from {
            Some(edge) => Some((edge, edge.time(log).await?)),
            None => None,
        };
        let until = match range.until {
            Some(edge) => Some((edge, edge.time(log).await?)),
            None => None,
        };
        let partitions = range.partitions(log);
        let chunk = (RECORDS_MAX / partitions.len().max(1)).clamp(16, 8192);
        let places = partitions.into_iter().map(async |partition| {
            let bounds = log.bounds(partition).await?;
            let next = match from {
                Some((edge, time)) => edge.offset(log, partition, bounds, time).await?,
                None => bounds.start,
            };
            let end = match until {
                Some((edge, time)) => edge.offset(log, partition, bounds, time).await?,
                None => bounds.end,
            };
            let reader = PartitionReader::new(log, partition, (next, end), chunk, pace);
            Ok::<_, Error>(Source { partition, reader, ready: VecDeque::new() })
        });
        let sources = try_join_all(places).await?;
        Ok(Self { log: Arc::clone(log), range, sources, read: 0 })
    }

    /// Begins at the last `count` records of each partition, if it would begin before.
    pub fn skip_to_last(&mut self, count: u64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        for PartitionReader { next, end, .. } in self.sources.iter_mut().map(|source| &mut source.reader) {
            *next = Offset::new(end.get().saturating_sub(count)).unwrap_or_default().max(*next);
        }
    }

    /// How many records are still to be read or given.
    pub fn remaining(&self) -> u64 {
        let of = |source: &Source| {
            let unread = source.reader.end.get() - source.reader.next.get();
            unread.max(0).unsigned_abs() + source.ready.len() as u64
        };
        self.sources.iter().map(of).sum()
    }

    /// How many records were read so far, also those that were not asked for.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// Moves the ends to where they are now, if the range has none of its own.
    pub async fn extend(&mut self) -> Result<(), Error> {
        if self.range.until.is_none() {
            let log = &self.log;
            let ends = self.sources.iter().map(async |source| log.bounds(source.partition).await);
            for (bounds, source) in try_join_all(ends).await?.into_iter().zip(&mut self.sources) {
                source.reader.end = bounds.end;
            }
        }
        Ok(())
    }

    /// The earliest of what comes next in the partitions; none at the end.
    pub async fn next(&mut self) -> Result<Option<Entry>, Error> {
        let Self { log, range, sources, read } = self;
        let empty =
            sources.iter_mut().filter(|source| source.ready.is_empty() && source.reader.next < source.reader.end);
        let fetched = try_join_all(empty.map(|source| source.fetch(log, range))).await?;
        *read += fetched.into_iter().sum::<u64>();
        let time = |source: &Source| source.ready.front().map_or(Timestamp::MAX, |entry| entry.record.timestamp);
        let waiting = sources.iter_mut().filter(|source| !source.ready.is_empty());
        let earliest = waiting.min_by_key(|source| (time(source), source.partition));
        Ok(earliest.and_then(|source| source.ready.pop_front()))
    }
}

impl Source {
    /// Reads until something that was asked for comes, or the end.
    async fn fetch(&mut self, log: &Arc<dyn EventLog>, range: &Range) -> Result<u64, Error> {
        let mut read = 0;
        while self.ready.is_empty() {
            let records = self.reader.chunk().await?;
            if records.is_empty() {
                break;
            }
            read += records.len() as u64;
            for record in records {
                let event = decode(log, self.partition, &record);
                let is_asked = event.as_ref().map_or(!range.has_filter(), |event| range.holds(event));
                if is_asked {
                    self.ready.push_back(Entry { partition: self.partition, record, event });
                }
            }
        }
        Ok(read)
    }
}
