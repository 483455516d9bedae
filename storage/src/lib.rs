//! The ports of Likewise and, beside each, its adapters.
//!
//! | port | file | embedded adapter | with the feature `servers` |
//! |---|---|---|---|
//! | [`EventLog`] | `log.rs` | SQLite, group commit | Kafka |
//! | [`RecordStore`] | `records.rs` | SQLite | MySQL, MariaDB |
//! | [`CounterStore`] | `counters.rs` | memory | Redis, Redis Cluster |
//! | [`RequestStore`] | `requests.rs` | memory | Redis, Redis Cluster |
//!
//! May depend on the schema and on database clients. Must never know HTTP, nor what a like means: it keeps the rows
//! and deltas that the fold gives it. Every adapter passes its port's conformance suite (`conformance/`).

#![forbid(unsafe_code)]

pub mod backup;
#[cfg(feature = "servers")]
mod breaker;
mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod counters;
mod courier;
mod data_dir;
mod error;
pub mod log;
pub mod planted;
pub mod records;
#[cfg(feature = "servers")]
mod redis;
pub mod requests;
mod scopes;
mod sqlite;
mod wal;

pub use clock::Clock;
pub use counters::CounterStore;
pub use data_dir::DataDir;
pub use error::StoreError;
pub use log::EventLog;
pub use records::RecordStore;
#[cfg(feature = "servers")]
pub use redis::RedisTimeouts;
pub use requests::RequestStore;
pub use scopes::Scopes;
