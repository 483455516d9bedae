//! Where in the log: offsets, and positions as clients see them.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{ids::Invalid, partition::Partition};

/// The place of an event in its partition: 0..=2^63-1, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(i64);

impl Offset {
    /// The first offset of a log.
    pub const ZERO: Offset = Offset(0);

    /// Fails below 0.
    pub fn new(offset: i64) -> Result<Self, Invalid> {
        if offset >= 0 { Ok(Self(offset)) } else { Err(Invalid::OFFSET) }
    }

    /// The number.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The offset after this one.
    pub fn next(self) -> Offset {
        Offset(self.0.saturating_add(1))
    }

    /// The offset before this one; none for the first.
    pub fn previous(self) -> Option<Offset> {
        (self.0 > 0).then(|| Offset(self.0 - 1))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event's place in the log. Clients get it as an opaque text and give it back in `after`.
///
/// The text is URL-safe base64 without padding of 11 bytes: format 1, partition and offset in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which partition.
    pub partition: Partition,
    /// Which event of it.
    pub offset: Offset,
}

const FORMAT: u8 = 1;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [FORMAT; 11];
        bytes[1..3].copy_from_slice(&self.partition.get().to_be_bytes());
        bytes[3..].copy_from_slice(&self.offset.get().to_be_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Position {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bytes: [u8; 11] = URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .filter(|bytes: &[u8; 11]| bytes[0] == FORMAT)
            .ok_or(Invalid::POSITION)?;
        let partition = u16::from_be_bytes([bytes[1], bytes[2]]);
        let mut offset = [0; 8];
        offset.copy_from_slice(&bytes[3..]);
        Ok(Self {
            partition: Partition::unbounded(partition).ok_or(Invalid::POSITION)?,
            offset: Offset::new(i64::from_be_bytes(offset)).map_err(|_| Invalid::POSITION)?,
        })
    }
}

impl Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
