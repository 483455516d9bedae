//! The suites that every adapter of a port must pass, present and future. A suite gets fresh stores from a closure,
//! asserts behaviour and nothing else, and is called from each adapter's tests.

mod counters;
mod log;
mod records;
mod requests;

pub use self::{counters::counter_store, log::event_log, records::record_store, requests::request_store};

use likewise_schema::{Content, Headers, Pair, Partition, PartitionCount, RequestId, Timestamp, UserId};

/// The content `post:<id>`. With 16 partitions it is in partition `id % 16`.
pub fn post(id: i64) -> Content {
    format!("post:{id}").parse().expect("a valid content")
}

/// The user `<id>`.
pub fn user(id: i64) -> UserId {
    UserId::new(id).expect("a valid user")
}

/// A pair.
pub fn pair(post_id: i64, user_id: i64) -> Pair {
    Pair { content: post(post_id), user: user(user_id) }
}

/// A moment, in seconds after a fixed start.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000 + seconds * 1000).expect("a valid time")
}

/// A partition of a log with 16.
pub fn partition(number: u32) -> Partition {
    Partition::new(number, PartitionCount::DEFAULT).expect("a valid partition")
}

/// A requestId with a number in it.
pub fn request(number: u128) -> RequestId {
    RequestId::from_bytes(number.to_be_bytes())
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::default();
    pairs.iter().for_each(|(name, value)| headers.push((*name).to_owned(), *value));
    headers
}
