//! The `LikeToggled` event: its JSON value, its CloudEvents headers, and which records are not one.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Content, ContentId, ContentType, Pair, RequestId, UserId},
    partition::{Partition, PartitionCount},
    time::Timestamp,
};

/// The `ce_type` of the event this version writes: the name, then `v` and the major version.
pub const LIKE_TOGGLED: &str = "LikeToggled.v1";
/// The media type of an event's value.
pub const CONTENT_TYPE_JSON: &str = "application/json";
const SOURCE: &str = "/likewise/command-api";
const NAME: &str = "LikeToggled";
/// Enough for nearly every value: made once, at its length.
const VALUE_BYTES: usize = 256;
const MAJOR: u32 = 1;

/// Record headers in the order they were written. A name may repeat; the last one counts, as in Kafka's own clients.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Headers(pub Vec<(Cow<'static, str>, Cow<'static, [u8]>)>);

impl Headers {
    /// The last value under `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_ref())
    }

    /// Adds a header at the end.
    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Vec<u8>>) {
        self.0.push((name.into(), Cow::Owned(value.into())));
    }

    /// Adds a header with a constant value at the end.
    pub fn push_constant(&mut self, name: &'static str, value: &'static str) {
        self.0.push((Cow::Borrowed(name), Cow::Borrowed(value.as_bytes())));
    }
}

/// A user set their like of a content to an absolute state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LikeToggled {
    /// The idempotency key; also the record's key.
    pub request_id: RequestId,
    /// Who.
    pub user_id: UserId,
    /// What kind of content.
    pub content_type: ContentType,
    /// Which one.
    pub content_id: ContentId,
    /// The state wanted, never "the other one".
    pub liked: bool,
    /// When the client says it happened; informational.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<Timestamp>,
    /// When the command API received it; every derived time comes from here.
    pub received_at: Timestamp,
}

/// Why a record is not an event of this contract. Such a record is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No value (a tombstone) or no key.
    #[error("the record has no {0}")]
    Missing(&'static str),
    /// The key is not the requestId of the value, in lower-case text.
    #[error("the key is not the requestId of the value")]
    KeyMismatch,
    /// `ce_type` is missing or names another event.
    #[error("the header ce_type does not name LikeToggled")]
    ForeignType,
    /// Not the schema's JSON.
    #[error("the value is not a LikeToggled event: {0}")]
    Json(String),
    /// §2 computes another partition.
    #[error("the event belongs to partition {expected}")]
    WrongPartition {
        /// Where it belongs.
        expected: Partition,
    },
}

/// A known event of a major version this code does not know: the partition must stop, since guessing loses likes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event is {NAME} of major version {major}, this version reads {MAJOR}")]
pub struct Halt {
    /// The version seen.
    pub major: u32,
}

/// Why a record gives no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// A dead letter.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The partition halts.
    #[error(transparent)]
    Halt(#[from] Halt),
}

impl LikeToggled {
    /// The content.
    pub fn content(&self) -> Content {
        Content { content_type: self.content_type, content_id: self.content_id }
    }

    /// The pair whose record this event changes.
    pub fn pair(&self) -> Pair {
        Pair { content: self.content(), user: self.user_id }
    }

    /// The record's key: the requestId as lower-case text.
    pub fn key(&self) -> Vec<u8> {
        self.request_id.text().to_vec()
    }

    /// The record's value: JSON, fields in the order of the contract.
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(VALUE_BYTES);
        // Every field serialises to a string or a bool: there is nothing that can fail.
        let _cannot_fail = serde_json::to_writer(&mut value, self);
        value
    }

    /// The record's headers: CloudEvents 1.0, binary mode, with the partitioning and tracing extensions.
    pub fn headers(&self, trace_parent: &str) -> Headers {
        let subject = self.content().subject();
        let mut headers = Headers(Vec::with_capacity(9));
        headers.push_constant("ce_specversion", "1.0");
        headers.push("ce_id", self.key());
        headers.push_constant("ce_type", LIKE_TOGGLED);
        headers.push_constant("ce_source", SOURCE);
        headers.push("ce_time", self.received_at.to_string());
        headers.push("ce_subject", subject.clone());
        headers.push("ce_partitionkey", subject);
        headers.push_constant("content-type", CONTENT_TYPE_JSON);
        headers.push("traceparent", trace_parent);
        headers
    }

    /// Reads a record that was found in `partition` of a log with `count` partitions.
    ///
    /// Unknown fields and headers are ignored. An unknown major version of `LikeToggled` is a [`Halt`]; everything
    /// else that is not an event of this contract is [`Malformed`].
    pub fn decode(
        partition: Partition,
        count: PartitionCount,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &Headers,
    ) -> Result<Self, Rejected> {
        check_type(headers.get("ce_type"))?;
        let key = key.ok_or(Malformed::Missing("key"))?;
        let value = value.ok_or(Malformed::Missing("value"))?;
        // A struct would also be read from an array; an event is an object.
        if value.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Malformed::Json("not a JSON object".into()).into());
        }
        // The reason is serde's, without the place: it can name fields, never the value's content.
        let event: Self = serde_json::from_slice(value).map_err(|e| Malformed::Json(reason(&e)))?;
        if key != event.request_id.text() {
            return Err(Malformed::KeyMismatch.into());
        }
        let expected = count.partition_of(&event.content());
        if expected != partition {
            return Err(Malformed::WrongPartition { expected }.into());
        }
        Ok(event)
    }
}

fn reason(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => "a field is missing, repeated or out of range".into(),
        _ => "not JSON".into(),
    }
}

/// Version rules: `LikeToggled.v<major>` with a decimal major without leading zero. Minor changes add optional
/// fields and keep the name; a change that an older reader would misread gets a new major.
fn check_type(header: Option<&[u8]>) -> Result<(), Rejected> {
    let text = header.and_then(|raw| std::str::from_utf8(raw).ok()).ok_or(Malformed::ForeignType)?;
    if text == LIKE_TOGGLED {
        return Ok(());
    }
    let version = text.strip_prefix(NAME).and_then(|rest| rest.strip_prefix(".v"));
    let is_major = |v: &&str| !v.is_empty() && !v.starts_with('0') && v.bytes().all(|b| b.is_ascii_digit());
    let digits = version.filter(is_major).ok_or(Malformed::ForeignType)?;
    Err(Halt { major: digits.parse().unwrap_or(u32::MAX) }.into())
}

/// Whether a text is a W3C `traceparent` of version 00 (<https://www.w3.org/TR/trace-context/>).
pub fn trace_parent_is_valid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let not_zero = |part: &str| part.bytes().any(|b| b != b'0');
    matches!(parts[..], [version, trace, parent, flags]
        if version == "00" && hex(trace, 32) && not_zero(trace) && hex(parent, 16) && not_zero(parent) && hex(flags, 2))
}

/// A W3C `traceparent` of version 00 that is not sampled. An id of 0, which the standard forbids, becomes 1.
pub fn trace_parent(trace: u128, parent: u64) -> String {
    let mut trace_text = [0; 32];
    let mut parent_text = [0; 32];
    let trace = uuid::Uuid::from_u128(trace.max(1)).simple().encode_lower(&mut trace_text);
    let parent = uuid::Uuid::from_u64_pair(parent.max(1), 0).simple().encode_lower(&mut parent_text);
    ["00-", trace, "-", &parent[..16], "-00"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_parent_is_made_as_it_is_checked() {
        assert_eq!(trace_parent(0xabc, 7), "00-00000000000000000000000000000abc-0000000000000007-00");
        assert!(
            trace_parent_is_valid(&trace_parent(0, 0)) && trace_parent_is_valid(&trace_parent(u128::MAX, u64::MAX))
        );
    }
}
