//! The contract of Likewise: what producers, projectors, readers and clients in any language agree on.
//!
//! Holds ids that cannot be invalid, the partition function, positions, the `LikeToggled` event, and (as files)
//! SQL migrations, Redis scripts and test vectors. May depend on pure libraries only. Must never do I/O, read a clock, or know how
//! a like is folded, stored or served.

#![forbid(unsafe_code)]

mod event;
mod ids;
mod partition;
mod position;
mod time;

pub use event::{
    CONTENT_TYPE_JSON, Halt, Headers, LIKE_TOGGLED, LikeToggled, Malformed, Rejected, trace_parent,
    trace_parent_is_valid,
};
pub use ids::{Content, ContentId, ContentType, Invalid, Pair, RequestId, UserId};
pub use partition::{Partition, PartitionCount, SHARDS};
pub use position::{Offset, Position};
pub use time::Timestamp;

/// SQL of the stores, one file per schema version, applied in order.
pub mod sql {
    /// The embedded log, version 1.
    pub const SQLITE_LOG: &str = include_str!("../sql/sqlite_log_0001.sql");
    /// The embedded records, version 1.
    pub const SQLITE_RECORDS: &str = include_str!("../sql/sqlite_records_0001.sql");
    /// What a MySQL server has once, version 1.
    pub const MYSQL_RECORDS: &str = include_str!("../sql/mysql_records_0001.sql");
    /// What it has for each shard, version 1: `{shard}` stands for two digits.
    pub const MYSQL_SHARD: &str = include_str!("../sql/mysql_shard_0001.sql");
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Scripts that Redis runs, each atomic within one partition's keys. The head of each file says what it takes.
pub mod lua {
    /// The owner's batch.
    pub const PUBLISH: &str = include_str!("../lua/publish.lua");
    /// Another owner.
    pub const TAKE_OVER: &str = include_str!("../lua/take_over.lua");
    /// A reader's right to fill.
    pub const LEASE: &str = include_str!("../lua/lease.lua");
    /// A reader's count.
    pub const FILL_COUNT: &str = include_str!("../lua/fill_count.lua");
    /// A reader's statuses.
    pub const FILL_STATUSES: &str = include_str!("../lua/fill_statuses.lua");
    /// A command on arrival.
    pub const ADMIT: &str = include_str!("../lua/admit.lua");
    /// A command that had no effect.
    pub const RELEASE: &str = include_str!("../lua/release.lua");
    /// A process that gives out tokens.
    pub const ATTEND: &str = include_str!("../lua/attend.lua");
}
