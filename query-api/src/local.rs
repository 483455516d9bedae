//! What this process read a moment ago: a content that is asked for again and again costs no round trip.

use std::time::Duration;

use likewise_schema::Content;
use likewise_storage::records::Claim;
use moka::sync::Cache;
use tokio::time::Instant;

/// How long a count is kept. Short, for a like shows no later than this after the cache has it.
const LIFE: Duration = Duration::from_millis(100);
/// Counts kept, about 200 bytes each; those that are asked for seldom go first.
const COUNTS_MAX: u64 = 65_536;

/// A count with its own claim, which the readers judge as any other.
#[derive(Clone, Copy)]
struct Kept {
    count: i64,
    claim: Claim,
    until: Instant,
}

/// Counts of this process alone. It holds no viewer's status.
pub(crate) struct Local(Cache<Content, Kept>);

impl Default for Local {
    fn default() -> Self {
        Self(Cache::new(COUNTS_MAX))
    }
}

impl Local {
    /// A content's count, if it was kept a moment ago.
    pub(crate) fn get(&self, content: &Content) -> Option<(i64, Claim)> {
        let kept = self.0.get(content).filter(|kept| Instant::now() < kept.until)?;
        Some((kept.count, kept.claim))
    }

    /// Keeps a count that was just read, unless one that reflects more is kept.
    pub(crate) fn keep(&self, content: Content, count: i64, claim: Claim) {
        if self.get(&content).is_none_or(|(_, known)| known.next_offset <= claim.next_offset) {
            self.0.insert(content, Kept { count, claim, until: Instant::now() + LIFE });
        }
    }
}
