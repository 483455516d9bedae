//! Counts at past moments, and how they came about.
//!
//! "At T" is, in each partition, the longest prefix in which no event was received after T. So an event counts from the
//! greatest `receivedAt` of its partition up to it on: clocks of several processes differ, and the log's order wins.

use std::{collections::BTreeMap, sync::Arc};

use likewise_schema::{Content, Offset, Partition, Timestamp, UserId};
use likewise_storage::EventLog;
use serde::Serialize;

use crate::{
    Error, Progress,
    ledger::{Ledger, Prefix},
    model::Effect,
    range::Range,
    reader::Pace,
};

/// Of what changes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Likes of a content.
    Content(Content),
    /// Likes of a user.
    User(UserId),
}

impl Subject {
    fn range(self) -> Range {
        match self {
            Self::Content(content) => Range { content: Some(content), ..Range::default() },
            Self::User(user) => Range { user: Some(user), ..Range::default() },
        }
    }

    fn unknown(self) -> Error {
        match self {
            Self::Content(content) => Error::asked(format!("the log has no event of {content} in that time")),
            Self::User(user) => Error::asked(format!("the log has no event of user {user} in that time")),
        }
    }
}

/// A count at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CountAt {
    /// Of what.
    pub content: String,
    /// When.
    pub at: Timestamp,
    /// How many users liked it then.
    pub count: i64,
    /// How many times it had been liked until then, by users who did not at that time.
    pub gained: u64,
    /// How many times a like of it had been taken back.
    pub lost: u64,
    /// The partition it is in.
    #[serde(serialize_with = "number")]
    pub partition: Partition,
    /// The first offset that was not counted.
    #[serde(serialize_with = "offset")]
    pub next_offset: Offset,
}

fn number<S: serde::Serializer>(partition: &Partition, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(partition.get())
}

fn offset<S: serde::Serializer>(offset: &Offset, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(offset.get())
}

/// The count of a content at a moment. Fails if the log has no event of it at all, or begins after that moment.
pub async fn count_at(
    log: &Arc<dyn EventLog>,
    content: Content,
    at: Timestamp,
    pace: &Arc<Pace>,
    progress: &Progress,
) -> Result<CountAt, Error> {
    let subject = Subject::Content(content);
    let ledger = Ledger::read(log, &subject.range(), &Prefix::Until(at), pace, progress).await?;
    if ledger.events == 0 {
        let ever = Ledger::read(log, &subject.range(), &Prefix::Until(Timestamp::MAX), pace, progress).await?;
        if ever.events == 0 {
            return Err(Error::asked(format!("the log has no event of {content}")));
        }
        if let Some(begins) = ledger.begins.filter(|begins| *begins > at) {
            return Err(Error::asked(format!("the log of {content} begins at {begins}, after {at}")));
        }
    }
    let (mut gained, mut lost) = (0, 0);
    for bucket in 0..ledger.buckets() {
        ledger.fold(bucket, |_, _, effect| {
            gained += u64::from(effect == Effect::Gained);
            lost += u64::from(effect == Effect::Lost);
            Ok(())
        })?;
    }
    let partition = log.partitions().partition_of(&content);
    let next_offset = ledger.ends.get(&partition).copied().unwrap_or_default();
    let count = gained as i64 - lost as i64;
    Ok(CountAt { content: content.to_string(), at, count, gained, lost, partition, next_offset })
}

/// How long a slot of a history is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An hour of UTC.
    Hour,
    /// A day of UTC.
    Day,
}

impl Step {
    /// In milliseconds.
    pub fn millis(self) -> i64 {
        match self {
            Step::Hour => 3_600_000,
            Step::Day => 86_400_000,
        }
    }
}

/// What changed in a slot in which something did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// When it begins.
    pub start: Timestamp,
    /// Likes that came.
    pub gained: u64,
    /// Likes that were taken back.
    pub lost: u64,
    /// Likes at its end: as [`count_at`] gives for its last millisecond.
    pub count: i64,
}

/// The slots between two moments in which a subject's likes changed, oldest first; each shows the count at its end. Fails
/// if the log has no event of it until then.
pub async fn history(
    log: &Arc<dyn EventLog>,
    subject: Subject,
    step: Step,
    (from, until): (Timestamp, Timestamp),
    pace: &Arc<Pace>,
    progress: &Progress,
) -> Result<Vec<Slot>, Error> {
    let ledger = Ledger::read(log, &subject.range(), &Prefix::Until(until), pace, progress).await?;
    if ledger.events == 0 {
        return Err(subject.unknown());
    }
    let mut changes: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    for bucket in 0..ledger.buckets() {
        ledger.fold(bucket, |_, logged, effect| {
            let start = logged.at().millis() / step.millis() * step.millis();
            match effect {
                Effect::Gained => changes.entry(start).or_default().0 += 1,
                Effect::Lost => changes.entry(start).or_default().1 += 1,
                Effect::Kept | Effect::Ignored => {}
            }
            Ok(())
        })?;
    }
    let mut count = 0;
    let slots = changes.into_iter().map(|(start, (gained, lost))| {
        count += gained as i64 - lost as i64;
        Slot { start: Timestamp::saturating_from_millis(start), gained, lost, count }
    });
    let first = from.millis() / step.millis() * step.millis();
    Ok(slots.filter(|slot| slot.start.millis() >= first).collect())
}
