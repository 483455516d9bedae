//! Which partition a content belongs to.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{Content, Invalid};

/// The number of shards, each with its own tables. A partition lives on the shard `partition % 16`.
pub const SHARDS: u16 = 16;

/// How many partitions a log has: a multiple of 16, fixed when the log is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionCount(u16);

impl Default for PartitionCount {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl PartitionCount {
    /// What a log gets when nothing else is said.
    pub const DEFAULT: PartitionCount = PartitionCount(16);

    /// Fails unless `count` is a multiple of 16 between 16 and 4096.
    pub fn new(count: u32) -> Result<Self, Invalid> {
        match u16::try_from(count) {
            Ok(count) if (16..=4096).contains(&count) && count % SHARDS == 0 => Ok(Self(count)),
            _ => Err(Invalid::PARTITIONS),
        }
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Every partition, ascending.
    pub fn all(self) -> impl Iterator<Item = Partition> {
        (0..self.0).map(Partition)
    }

    /// The partition of a content: `16 * (xxh3_64(contentType ‖ 0x00 ‖ contentId as 8 big-endian bytes) % (P/16)) +
    /// contentId % 16`.
    pub fn partition_of(self, content: &Content) -> Partition {
        let kind = content.content_type.as_str().as_bytes();
        let id = content.content_id.get();
        let mut input = [0_u8; 29];
        input[..kind.len()].copy_from_slice(kind);
        input[kind.len() + 1..kind.len() + 9].copy_from_slice(&id.to_be_bytes());
        let hash = xxh3_64(&input[..kind.len() + 9]);
        let block = (hash % u64::from(self.0 / SHARDS)) as u16;
        Partition(SHARDS * block + content.shard())
    }
}

/// A log partition: the unit of order, of ownership and of freshness. Every log has the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(u16);

impl Partition {
    /// Fails unless `number` is below `count`.
    pub fn new(number: u32, count: PartitionCount) -> Result<Self, Invalid> {
        if number < u32::from(count.get()) { Ok(Self(number as u16)) } else { Err(Invalid::PARTITION) }
    }

    /// A partition whose count is not known here, as in a position: below 4096.
    pub fn unbounded(number: u16) -> Option<Self> {
        (number < 4096).then_some(Self(number))
    }

    /// The number, from 0.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The shard whose tables hold this partition, 0..16.
    pub fn shard(self) -> u16 {
        self.0 % SHARDS
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
