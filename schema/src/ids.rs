//! Ids that cannot hold an invalid value. Each is checked once, where it enters.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::partition::SHARDS;

/// Why a value is not an id, in words for the person who sent it. Never repeats the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(&'static str);

impl Invalid {
    pub(crate) const TIME: Invalid = Invalid("must be an RFC 3339 time between 1970 and 9999");
    pub(crate) const PARTITIONS: Invalid = Invalid("must be a multiple of 16 between 16 and 4096");
    pub(crate) const PARTITION: Invalid = Invalid("must be a partition below the partition count");
    pub(crate) const OFFSET: Invalid = Invalid("must be an offset between 0 and 2^63-1");
    pub(crate) const POSITION: Invalid = Invalid("must be a position from an earlier answer");
    const USER: Invalid = Invalid("must be a user id between 1 and 9223372036854775807");
    const CONTENT_ID: Invalid = Invalid("must be a content id between 1 and 9223372036854775807");
    const CONTENT_TYPE: Invalid =
        Invalid("must start with a-z and hold 1 to 20 characters of a-z, 0-9, underscore and hyphen");
    const CONTENT: Invalid = Invalid("must be a content such as post:42");
    const REQUEST: Invalid = Invalid("must be a UUID of 36 characters");

    /// The sentence.
    pub fn detail(self) -> &'static str {
        self.0
    }
}

/// Decimal digits without sign or leading zero, 1..=2^63-1.
fn parse_positive(text: &str) -> Option<i64> {
    let plain = !text.is_empty() && text.len() <= 19 && !text.starts_with('0');
    if !plain || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

macro_rules! positive_id {
    ($(#[$doc:meta])* $name:ident, $invalid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(i64);

        impl $name {
            /// Fails on 0 and below.
            pub fn new(id: i64) -> Result<Self, Invalid> {
                if id >= 1 { Ok(Self(id)) } else { Err($invalid) }
            }

            /// The number, 1..=2^63-1.
            pub fn get(self) -> i64 {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;
            /// Decimal digits without sign, space or leading zero.
            fn from_str(text: &str) -> Result<Self, Invalid> {
                parse_positive(text).map(Self).ok_or($invalid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        text_serde!($name, |id, serializer| serializer.collect_str(id));
    };
}

/// JSON gives ids as strings: JavaScript loses digits past 2^53.
macro_rules! text_serde {
    ($name:ident, |$id:ident, $serializer:ident| $serialize:expr) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, $serializer: S) -> Result<S::Ok, S::Error> {
                let $id = self;
                $serialize
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <Cow<'de, str>>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

positive_id!(
    /// A user: 1..=2^63-1.
    UserId,
    Invalid::USER
);
positive_id!(
    /// The number of a content within its type: 1..=2^63-1.
    ContentId,
    Invalid::CONTENT_ID
);

/// The kind of a content, such as `post`: `[a-z][a-z0-9_-]{0,19}`. Case matters because only lower case exists.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentType {
    // Kept inline: a content is copied on every hop. The rest of the bytes are 0.
    bytes: [u8; 20],
    length: u8,
}

impl ContentType {
    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl FromStr for ContentType {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let raw = text.as_bytes();
        let allowed = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        let starts_well = raw.first().is_some_and(u8::is_ascii_lowercase);
        if !starts_well || raw.len() > 20 || !raw.iter().all(allowed) {
            return Err(Invalid::CONTENT_TYPE);
        }
        let mut bytes = [0; 20];
        bytes[..raw.len()].copy_from_slice(raw);
        Ok(Self { bytes, length: raw.len() as u8 })
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl PartialOrd for ContentType {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ContentType {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

text_serde!(ContentType, |id, serializer| serializer.serialize_str(id.as_str()));

/// Something that can be liked. Written `post:42` in queries and `post/42` in event headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    /// Its kind.
    pub content_type: ContentType,
    /// Its number within the kind.
    pub content_id: ContentId,
}

impl Content {
    /// The shard whose tables hold it, 0..16, whatever the number of partitions.
    pub fn shard(&self) -> u16 {
        (self.content_id.get() % i64::from(SHARDS)) as u16
    }

    /// The CloudEvents subject, `post/42`.
    pub fn subject(&self) -> String {
        format!("{}/{}", self.content_type, self.content_id)
    }
}

impl FromStr for Content {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (content_type, content_id) = text.split_once(':').ok_or(Invalid::CONTENT)?;
        Ok(Self { content_type: content_type.parse()?, content_id: content_id.parse()? })
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.content_type, self.content_id)
    }
}

/// A user and a content: what has one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// What is liked.
    pub content: Content,
    /// Who likes it.
    pub user: UserId,
}

/// The idempotency key of a command and the key of its event: a UUID of any version; version 7 is advised, because
/// only its time lets an old copy be told from a new command after the ring has forgotten it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Uuid);

impl RequestId {
    /// The 16 bytes in network order; v7 ids compare by them in time order.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The text: lower case, 36 characters.
    pub fn text(&self) -> [u8; 36] {
        let mut text = [0; 36];
        self.0.hyphenated().encode_lower(&mut text);
        text
    }

    /// From the 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The UUID.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The Unix milliseconds inside a version 7 id (version and variant bits checked); none for any other id.
    pub fn v7_millis(&self) -> Option<i64> {
        let b = self.0.as_bytes();
        let is_v7 = b[6] >> 4 == 7 && b[8] >> 6 == 0b10;
        is_v7.then(|| b[..6].iter().fold(0, |millis, byte| millis << 8 | i64::from(*byte)))
    }
}

impl FromStr for RequestId {
    type Err = Invalid;
    /// The 36-character form, in either case.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() != 36 {
            return Err(Invalid::REQUEST);
        }
        Uuid::try_parse(text).map(Self).map_err(|_| Invalid::REQUEST)
    }
}

impl fmt::Display for RequestId {
    /// Lower case, 36 characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

text_serde!(RequestId, |id, serializer| {
    serializer.serialize_str(id.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
});
