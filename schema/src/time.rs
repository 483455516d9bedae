//! A moment in UTC, to the millisecond, inside the range every store can hold.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::Invalid;

/// Milliseconds since 1970-01-01T00:00:00Z; 0 up to the end of the year 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The last millisecond of the year 9999, the end of a MySQL `DATETIME`.
    pub const MAX: Timestamp = Timestamp(253_402_300_799_999);

    /// Milliseconds since the Unix epoch. Fails outside 1970..=9999.
    pub fn from_millis(millis: i64) -> Result<Self, Invalid> {
        if (0..=Self::MAX.0).contains(&millis) { Ok(Self(millis)) } else { Err(Invalid::TIME) }
    }

    /// Milliseconds since the Unix epoch, moved into the range if it is outside.
    pub fn saturating_from_millis(millis: i64) -> Self {
        Self(millis.clamp(0, Self::MAX.0))
    }

    /// RFC 3339 with any offset; digits past the millisecond are dropped.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.len() > 40 {
            return Err(Invalid::TIME);
        }
        let parsed = DateTime::parse_from_rfc3339(text).map_err(|_| Invalid::TIME)?;
        Self::from_millis(parsed.timestamp_millis())
    }

    /// Milliseconds since the Unix epoch.
    pub fn millis(self) -> i64 {
        self.0
    }

    /// The ten-minute slot this moment is in, counted from the Unix epoch.
    pub fn ten_minute_slot(self) -> i64 {
        self.0 / 600_000
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time: DateTime<Utc> = DateTime::from_timestamp_millis(self.0).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}
