//! What trended at a past moment.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use likewise_schema::{Content, ContentType, Timestamp};
use likewise_storage::EventLog;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Progress,
    ledger::{ContentKey, Ledger, Prefix, number_of_content},
    model::Effect,
    range::Range,
    reader::Pace,
    spill::Spill,
};

/// What a content gained in a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gained {
    /// Which content.
    #[serde(serialize_with = "text")]
    pub content: Content,
    /// Likes that came.
    pub gained: i64,
    /// Likes that were taken back.
    pub lost: i64,
    /// Likes at the window's end.
    pub count: i64,
}

fn text<S: serde::Serializer>(content: &Content, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(content)
}

impl Gained {
    /// More likes that stayed come first, then what has a lower id.
    fn rank(&self) -> (i64, Reverse<Content>) {
        (self.gained - self.lost, Reverse(self.content))
    }
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Sums {
    gained: i64,
    lost: i64,
    count: i64,
}

/// The `limit` contents, of a type or of all, that gained most likes (came less taken back) in the `window_millis` before
/// `at`, those that gained most first. What gained nothing is left out.
pub async fn top(
    log: &Arc<dyn EventLog>,
    content_type: Option<ContentType>,
    (window_millis, at): (i64, Timestamp),
    limit: usize,
    pace: &Arc<Pace>,
    progress: &Progress,
) -> Result<Vec<Gained>, Error> {
    let ledger = Ledger::read(log, &Range::default(), &Prefix::Until(at), pace, progress).await?;
    let after = at.millis() - window_millis;
    let by_content = Spill::<(ContentKey, Sums)>::new(ledger.buckets())?;
    for bucket in 0..ledger.buckets() {
        let mut sums: HashMap<Content, Sums> = HashMap::new();
        ledger.fold(bucket, |pair, logged, effect| {
            if content_type.is_none_or(|only| only == pair.content.content_type) && effect.change() != 0 {
                let sums = sums.entry(pair.content).or_default();
                sums.count += effect.change();
                if logged.at().millis() > after {
                    sums.gained += i64::from(effect == Effect::Gained);
                    sums.lost += i64::from(effect == Effect::Lost);
                }
            }
            Ok(())
        })?;
        let each = sums.into_iter();
        by_content.put(each.map(|(content, sums)| (number_of_content(&content), (ContentKey::of(&content), sums))))?;
    }
    let mut best: Vec<Gained> = Vec::new();
    for bucket in 0..by_content.buckets() {
        let mut sums: HashMap<Content, Sums> = HashMap::new();
        by_content.each(bucket, |(key, part)| {
            let sums = sums.entry(key.content()?).or_default();
            sums.gained += part.gained;
            sums.lost += part.lost;
            sums.count += part.count;
            Ok(())
        })?;
        let gained = sums.into_iter().filter(|(_, sums)| sums.gained > sums.lost);
        best.extend(gained.map(|(content, Sums { gained, lost, count })| Gained { content, gained, lost, count }));
        best.sort_unstable_by_key(|gained| Reverse(gained.rank()));
        best.truncate(limit);
    }
    Ok(best)
}
