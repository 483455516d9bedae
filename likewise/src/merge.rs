//! The whole log as one stream: partitions merged by time, each in its own order.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use likewise_schema::{Offset, Partition, Timestamp};
use likewise_storage::{
    EventLog, StoreError,
    log::{LogRecord, ReadLimit},
};
use serde::Serialize;
use serde_json::value::RawValue;

/// Records of several partitions, from given offsets up to the ends they had when the stream was made.
pub(crate) struct Merge {
    log: Arc<dyn EventLog>,
    sources: Vec<Source>,
}

struct Source {
    partition: Partition,
    next: Offset,
    end: Offset,
    ready: VecDeque<LogRecord>,
}

impl Merge {
    /// From the start of `partitions`, or the last `last` records of each.
    pub(crate) async fn new(
        log: &Arc<dyn EventLog>,
        partitions: impl Iterator<Item = Partition>,
        last: Option<u64>,
    ) -> Result<Self, StoreError> {
        let mut sources = Vec::new();
        for partition in partitions {
            let bounds = log.bounds(partition).await?;
            let earliest =
                last.map_or(0, |last| bounds.end.get().saturating_sub(i64::try_from(last).unwrap_or(i64::MAX)));
            let next = Offset::new(earliest).unwrap_or_default().max(bounds.start);
            sources.push(Source { partition, next, end: bounds.end, ready: VecDeque::new() });
        }
        Ok(Self { log: Arc::clone(log), sources })
    }

    /// From about `time` on: a record before it can be among them, none after it is missing, as long as clocks of those who
    /// wrote them differ by less than a minute.
    pub(crate) async fn since(
        log: &Arc<dyn EventLog>,
        partitions: impl Iterator<Item = Partition>,
        time: Timestamp,
    ) -> Result<Self, StoreError> {
        let time = Timestamp::saturating_from_millis(time.millis() - CLOCKS_DIFFER_MILLIS);
        let mut merge = Self::new(log, partitions, None).await?;
        for source in &mut merge.sources {
            source.skip_to(log, time).await?;
        }
        Ok(merge)
    }

    /// How many records are still to come.
    pub(crate) fn remaining(&self) -> u64 {
        let of =
            |source: &Source| (source.end.get() - source.next.get()).max(0).unsigned_abs() + source.ready.len() as u64;
        self.sources.iter().map(of).sum()
    }

    /// Moves the ends to where they are now.
    pub(crate) async fn extend(&mut self) -> Result<(), StoreError> {
        for source in &mut self.sources {
            source.end = self.log.bounds(source.partition).await?.end;
        }
        Ok(())
    }

    /// The earliest record of those that come next in their partitions.
    pub(crate) async fn next(&mut self) -> Result<Option<(Partition, LogRecord)>, StoreError> {
        for source in &mut self.sources {
            if source.ready.is_empty() && source.next < source.end {
                source.fetch(&self.log).await?;
            }
        }
        let earliest = self
            .sources
            .iter_mut()
            .filter(|source| !source.ready.is_empty())
            .min_by_key(|source| (source.ready.front().map(|record| record.timestamp), source.partition));
        Ok(earliest.and_then(|source| source.ready.pop_front().map(|record| (source.partition, record))))
    }
}

/// By how much the clocks of processes that write may differ.
const CLOCKS_DIFFER_MILLIS: i64 = 60_000;

impl Source {
    /// Begins with the first record that is not older than `time`, found by halves.
    async fn skip_to(&mut self, log: &Arc<dyn EventLog>, time: Timestamp) -> Result<(), StoreError> {
        let (mut low, mut high) = (self.next.get(), self.end.get());
        let limit = ReadLimit { records: 1, bytes: 1, wait: Duration::ZERO };
        while low < high {
            let middle = low + (high - low) / 2;
            let slice = log.read(self.partition, Offset::new(middle).unwrap_or_default(), limit).await?;
            match slice.records.first() {
                Some(record) if record.timestamp < time => low = middle + 1,
                _ => high = middle,
            }
        }
        self.next = Offset::new(low).unwrap_or_default();
        Ok(())
    }

    async fn fetch(&mut self, log: &Arc<dyn EventLog>) -> Result<(), StoreError> {
        let limit = ReadLimit { records: 1000, bytes: 4 * 1024 * 1024, wait: Duration::ZERO };
        let slice = log.read(self.partition, self.next, limit).await?;
        for record in slice.records.into_iter().filter(|record| record.offset < self.end) {
            if record.offset != self.next {
                let (partition, next) = (self.partition, self.next);
                return Err(StoreError::unusable(
                    "the log",
                    format!("partition {partition} has a gap at offset {next}"),
                ));
            }
            self.next = record.offset.next();
            self.ready.push_back(record);
        }
        if self.ready.is_empty() {
            return Err(StoreError::unusable("the log", format!("partition {} ends early", self.partition)));
        }
        Ok(())
    }
}

/// A record as a line of JSON. Bytes that cannot stand in it as they are come as base64.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line<'a> {
    partition: u16,
    offset: i64,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// The event, byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    headers: Vec<(&'a str, String)>,
}

impl<'a> Line<'a> {
    pub(crate) fn of(partition: Partition, record: &'a LogRecord) -> Self {
        let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        let value = record.value.as_deref().filter(|value| !value.contains(&b'\n'));
        let value = value.and_then(|value| serde_json::from_slice::<&RawValue>(value).ok());
        let value = value.filter(|raw| Some(raw.get().as_bytes()) == record.value.as_deref());
        Self {
            partition: partition.get(),
            offset: record.offset.get(),
            timestamp: record.timestamp.to_string(),
            key,
            key_base64: record.key.as_ref().filter(|_| key.is_none()).map(|key| STANDARD.encode(key)),
            value,
            value_base64: record.value.as_ref().filter(|_| value.is_none()).map(|value| STANDARD.encode(value)),
            headers: record.headers.0.iter().map(|(name, value)| (name.as_ref(), header_text(value))).collect(),
        }
    }
}

/// A header's value; one that is not text as `base64:…`.
fn header_text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.starts_with("base64:") => text.to_owned(),
        _ => format!("base64:{}", STANDARD.encode(value)),
    }
}
