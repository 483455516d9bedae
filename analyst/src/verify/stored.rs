//! What stores hold, as it is kept in a file.

use likewise_schema::{Content, Offset, Partition, RequestId, Timestamp};
use likewise_storage::{
    counters::Scope,
    records::{Count, Generation, KeptCount, LikeRecord},
};
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    ledger::{Key, damaged},
};

/// A row.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StoredRow {
    key: Key,
    is_canceled: bool,
    created_at: i64,
    updated_at: i64,
    liked_at: Option<i64>,
    version: i64,
    ring: Vec<[u8; 16]>,
    floor: Option<[u8; 16]>,
}

impl StoredRow {
    pub(super) fn of(row: &LikeRecord) -> Self {
        Self {
            key: Key::of(&row.pair),
            is_canceled: row.is_canceled,
            created_at: row.created_at.millis(),
            updated_at: row.updated_at.millis(),
            liked_at: row.liked_at.map(Timestamp::millis),
            version: row.version.get(),
            ring: row.ring.iter().map(|id| *id.as_bytes()).collect(),
            floor: row.floor.map(|id| *id.as_bytes()),
        }
    }

    pub(super) fn record(self) -> Result<LikeRecord, Error> {
        Ok(LikeRecord {
            pair: self.key.pair()?,
            is_canceled: self.is_canceled,
            created_at: Timestamp::saturating_from_millis(self.created_at),
            updated_at: Timestamp::saturating_from_millis(self.updated_at),
            liked_at: self.liked_at.map(Timestamp::saturating_from_millis),
            version: Offset::new(self.version).map_err(|_| damaged())?,
            ring: self.ring.into_iter().map(RequestId::from_bytes).collect(),
            floor: self.floor.map(RequestId::from_bytes),
        })
    }
}

/// A count, but for its content.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct StoredCount {
    partition: u16,
    count: i64,
    version: i64,
    first: i64,
}

impl StoredCount {
    pub(super) fn of(kept: &KeptCount) -> Self {
        Self {
            partition: kept.partition.get(),
            count: kept.count.count,
            version: kept.count.version.get(),
            first: kept.first_position.get(),
        }
    }

    pub(super) fn kept(self, content: Content) -> Result<KeptCount, Error> {
        let offset = |offset| Offset::new(offset).map_err(|_| damaged());
        let count = Count { content, count: self.count, version: offset(self.version)? };
        Ok(KeptCount { count, partition: partition(self.partition)?, first_position: offset(self.first)? })
    }
}

fn partition(number: u16) -> Result<Partition, Error> {
    Partition::unbounded(number).ok_or_else(damaged)
}

pub(super) fn scope(generation: u32, number: u16) -> Result<Scope, Error> {
    Ok(Scope { generation: Generation(generation), partition: partition(number)? })
}
