//! Which part of the log: from where, until where, of what and of whom.

use std::{fmt, str::FromStr, sync::Arc};

use likewise_schema::{Content, LikeToggled, Offset, Partition, Position, Timestamp, UserId};
use likewise_storage::{EventLog, log::Bounds};

use crate::{
    Error,
    reader::{Pace, PartitionReader, decode, first_from},
};

/// A place in the whole log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// In each partition before the first event that was received then or later.
    Time(Timestamp),
    /// Before this event; in other partitions where its time is.
    Position(Position),
}

/// Milliseconds in a minute and so on.
const UNITS: [(char, i64); 4] = [('m', 60_000), ('h', 3_600_000), ('d', 86_400_000), ('w', 7 * 86_400_000)];

/// Reads a time as people write it: RFC 3339 (`2026-11-01T10:00:00Z`), also without seconds, a date (its beginning in
/// UTC), `now`, or how long ago (`90m`, `36h`, `7d`, `2w`).
pub fn parse_time(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let minutes = |text: &str| text.len() == 17 && text.ends_with('Z');
    let whole = match text {
        "now" => return Ok(now),
        date if date.len() == 10 => format!("{date}T00:00:00Z"),
        short if minutes(short) => format!("{}:00Z", &short[..16]),
        other => other.to_owned(),
    };
    if let Ok(time) = Timestamp::parse(&whole) {
        return Ok(time);
    }
    let ago = parse_duration_millis(text).and_then(|ago| Timestamp::from_millis(now.millis() - ago).ok());
    ago.ok_or_else(|| {
        "must be a time such as 2026-11-01T10:00Z, a date such as 2026-11-01, now, or how long ago, such as 36h".into()
    })
}

/// Reads a time as it ago: `90m`, `36h`, `7d`, `2w`, in milliseconds.
pub fn parse_duration_millis(text: &str) -> Option<i64> {
    let unit = text.chars().next_back()?;
    let millis = UNITS.iter().find(|(name, _)| *name == unit)?.1;
    let digits = &text[..text.len() - 1];
    let is_plain = !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse::<i64>().ok().filter(|count| is_plain && *count > 0)?.checked_mul(millis)
}

/// A position as people write it: the text of an answer, or `partition/offset` as `tail` shows it.
pub fn parse_position(text: &str) -> Option<Position> {
    if let Ok(position) = Position::from_str(text) {
        return Some(position);
    }
    let (partition, offset) = text.split_once('/')?;
    let partition = Partition::unbounded(partition.parse().ok()?)?;
    Some(Position { partition, offset: Offset::new(offset.parse().ok()?).ok()? })
}

impl Edge {
    /// Reads a time ([`parse_time`]) or a position ([`parse_position`]).
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, String> {
        match parse_position(text) {
            Some(position) => Ok(Self::Position(position)),
            None => parse_time(text, now).map(Self::Time).map_err(|what| format!("{what}; or a position")),
        }
    }

    /// The moment that it stands for in partitions other than a position's own.
    pub(crate) async fn time(self, log: &Arc<dyn EventLog>) -> Result<Timestamp, Error> {
        let Position { partition, offset } = match self {
            Self::Time(time) => return Ok(time),
            Self::Position(position) => position,
        };
        if partition.get() >= log.partitions().get() {
            return Err(Error::asked(format!("the log has no partition {partition}")));
        }
        let bounds = log.bounds(partition).await?;
        if offset < bounds.start || offset >= bounds.end {
            return Err(Error::asked(format!(
                "the log has no event {partition}/{offset}: the partition's offsets are from {} to below {}",
                bounds.start, bounds.end
            )));
        }
        let mut reader = PartitionReader::new(log, partition, (offset, offset.next()), 1, &Pace::new(0));
        let records = reader.chunk().await?;
        let time = |record| decode(log, partition, record).map_or(record.timestamp, |like| like.received_at);
        Ok(records.first().map(time).unwrap_or_default())
    }

    /// Where it is in a partition. `time` is what [`time`](Self::time) gave.
    pub(crate) async fn offset(
        self,
        log: &Arc<dyn EventLog>,
        partition: Partition,
        bounds: Bounds,
        time: Timestamp,
    ) -> Result<Offset, Error> {
        match self {
            Self::Position(position) if position.partition == partition => Ok(position.offset),
            _ => Ok(first_from(log, partition, bounds, time).await?),
        }
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => time.fmt(f),
            Self::Position(Position { partition, offset }) => write!(f, "{partition}/{offset}"),
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// Where it begins; at the log's start when left out.
    pub from: Option<Edge>,
    /// Where it ends; at the log's end when left out.
    pub until: Option<Edge>,
    /// Only events of this content.
    pub content: Option<Content>,
    /// Only events of this user.
    pub user: Option<UserId>,
    /// Only this partition.
    pub partition: Option<Partition>,
}

impl Range {
    /// Whether some events are left out by what or whose they are.
    pub fn has_filter(&self) -> bool {
        self.content.is_some() || self.user.is_some()
    }

    /// Whether an event is asked for.
    pub fn holds(&self, event: &LikeToggled) -> bool {
        self.content.is_none_or(|content| content == event.content())
            && self.user.is_none_or(|user| user == event.user_id)
    }

    /// The partitions that have to be read.
    pub(crate) fn partitions(&self, log: &Arc<dyn EventLog>) -> Vec<Partition> {
        let count = log.partitions();
        let of_content = self.content.map(|content| count.partition_of(&content));
        let is_asked = |partition: &Partition| {
            of_content.is_none_or(|only| only == *partition) && self.partition.is_none_or(|only| only == *partition)
        };
        count.all().filter(is_asked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = Timestamp::parse("2026-11-26T12:00:00Z").unwrap();
        let read = |text: &str| parse_time(text, now).map(|time| time.to_string());
        for (text, time) in [
            ("2026-11-01T10:00:00Z", "2026-11-01T10:00:00.000Z"),
            ("2026-11-01T10:00:00.5+02:00", "2026-11-01T08:00:00.500Z"),
            ("2026-11-01T10:00Z", "2026-11-01T10:00:00.000Z"),
            ("2026-11-01", "2026-11-01T00:00:00.000Z"),
            ("now", "2026-11-26T12:00:00.000Z"),
            ("90m", "2026-11-26T10:30:00.000Z"),
            ("36h", "2026-11-25T00:00:00.000Z"),
            ("2w", "2026-11-12T12:00:00.000Z"),
        ] {
            assert_eq!(read(text), Ok(time.into()), "{text}");
        }
        for bad in
            ["", "x", "2026-13-01", "yesterday", "0h", "-1h", "1.5h", "h", "99999999999w", "2026-11-01T10:00", "é"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn positions_are_read_as_answers_give_them_and_as_tail_shows_them() {
        let position = parse_position("3/1024").unwrap();
        assert_eq!((position.partition.get(), position.offset.get()), (3, 1024));
        assert_eq!(parse_position(&position.to_string()), Some(position));
        for bad in ["", "3", "3/", "/3", "5000/1", "3/-1", "a/b"] {
            assert_eq!(parse_position(bad), None, "{bad}");
        }
    }
}
