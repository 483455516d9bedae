//! A moment in UTC, to the millisecond, inside the range every store can hold.

use std::fmt;

use chrono::{DateTime, Datelike, Timelike};
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

impl Timestamp {
    /// RFC 3339 in UTC with milliseconds, `2026-11-23T10:00:00.120Z`. Written by hand: it is made for every event,
    /// and chrono's own formatting takes several times as long.
    fn text(self) -> [u8; 24] {
        fn digits(to: &mut [u8], mut number: u32) {
            for digit in to.iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
        let time = DateTime::from_timestamp_millis(self.0).unwrap_or_default().naive_utc();
        let mut text = *b"0000-00-00T00:00:00.000Z";
        digits(&mut text[0..4], time.year().unsigned_abs());
        digits(&mut text[5..7], time.month());
        digits(&mut text[8..10], time.day());
        digits(&mut text[11..13], time.hour());
        digits(&mut text[14..16], time.minute());
        digits(&mut text[17..19], time.second());
        digits(&mut text[20..23], time.and_utc().timestamp_subsec_millis());
        text
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{SecondsFormat, Utc};

    use super::*;

    #[test]
    fn the_text_is_the_one_that_chrono_writes() {
        let leap_day = 951_782_400_001;
        for millis in [0, 999, leap_day, 1_700_000_000_120, Timestamp::MAX.0] {
            let time: DateTime<Utc> = DateTime::from_timestamp_millis(millis).unwrap();
            let text = Timestamp(millis).to_string();
            assert_eq!(text, time.to_rfc3339_opts(SecondsFormat::Millis, true));
            assert_eq!(Timestamp::parse(&text), Ok(Timestamp(millis)));
        }
    }
}
