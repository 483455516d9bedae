//! What this process read a moment ago: a content that is asked for again and again costs no round trip.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use likewise_schema::Content;
use likewise_storage::{
    counters::{Change, Scope},
    records::Claim,
};
use moka::sync::Cache;
use tokio::time::Instant;

/// How long a count is kept while changes are heard of.
const LIFE: Duration = Duration::from_secs(1);
/// How long while they are not: a like shows no later than this after the cache has it.
const LIFE_UNHEARD: Duration = Duration::from_millis(100);
/// Counts kept, about 200 bytes each; those that are asked for seldom go first.
const COUNTS_MAX: u64 = 65_536;

/// A count with its own claim, which the readers judge as any other.
struct Kept {
    scope: Scope,
    count: i64,
    claim: Claim,
    at: Instant,
    /// A reader is about to bring a fresh one.
    is_renewed: AtomicBool,
}

/// Counts of this process alone. It holds no viewer's status.
pub(crate) struct Local {
    counts: Cache<Content, Arc<Kept>>,
    hears: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl Default for Local {
    fn default() -> Self {
        Self { counts: Cache::new(COUNTS_MAX), hears: OnceLock::new() }
    }
}

impl Local {
    /// From now on [`changed`](Self::changed) is told of changes, while `hears` says so.
    pub(crate) fn listen(&self, hears: impl Fn() -> bool + Send + Sync + 'static) {
        let _the_first_one_stays = self.hears.set(Box::new(hears));
    }

    /// A content's count, if it was kept a moment ago. Before it gets too old one reader, which then reads it anew, gets
    /// none.
    pub(crate) fn get(&self, content: &Content) -> Option<(i64, Claim)> {
        let kept = self.counts.get(content)?;
        let life = if self.hears.get().is_some_and(|hears| hears()) { LIFE } else { LIFE_UNHEARD };
        let age = kept.at.elapsed();
        let is_fresh = age < life * 3 / 4 || (age < life && kept.is_renewed.swap(true, Ordering::Relaxed));
        is_fresh.then_some((kept.count, kept.claim))
    }

    /// Some of the contents that were read lately.
    pub(crate) fn sample(&self, most: usize) -> Vec<Content> {
        let skipped = rand::random_range(0..=self.counts.entry_count().saturating_sub(most as u64)) as usize;
        self.counts.iter().skip(skipped).take(most).map(|(content, _)| *content).collect()
    }

    /// Keeps a count that was just read, unless one that reflects more is kept.
    pub(crate) fn keep(&self, scope: Scope, content: Content, count: i64, claim: Claim) {
        let known = self.counts.get(&content);
        if known.is_none_or(|known| known.scope != scope || known.claim.next_offset <= claim.next_offset) {
            let kept = Kept { scope, count, claim, at: Instant::now(), is_renewed: AtomicBool::new(false) };
            self.counts.insert(content, Arc::new(kept));
        }
    }

    /// Takes over what a publish changed of what is kept.
    pub(crate) fn changed(&self, change: &Change) {
        for (content, cached) in &change.counts {
            if self.counts.get(content).is_some_and(|known| known.scope == change.scope) {
                self.keep(change.scope, *content, cached.count, change.claim);
            }
        }
    }
}
