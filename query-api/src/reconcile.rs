//! Compares samples of the cache with the records. Nothing that differs is expected; what does is told and mended.

use std::{collections::HashMap, sync::Arc, time::Duration};

use likewise_schema::Content;
use likewise_storage::{
    StoreError,
    counters::{Ask, COUNT_LIFE, CachedCount, Fill, LeaseKey, Scope, version_of},
    records::Claim,
};
use metrics::counter;
use tokio::time::sleep;

use crate::reads::Reads;

/// How often a sample is compared, and of how many counts.
const EVERY: Duration = Duration::from_secs(5);
const SAMPLE: usize = 100;

/// A count as the cache has it.
struct Cached {
    scope: Scope,
    count: i64,
    claim: Claim,
}

impl Reads {
    /// Compares a sample of what was read lately now and then.
    pub(crate) async fn reconcile(self: &Arc<Self>) {
        let (checked, wrong) = (counter!("likewise_reconciled_total"), counter!("likewise_reconciled_wrong_total"));
        loop {
            sleep(EVERY).await;
            match self.compare(self.local.sample(SAMPLE)).await {
                Ok((compared, mended)) => {
                    checked.increment(compared);
                    wrong.increment(mended);
                }
                Err(error) => tracing::debug!(%error, "the cache could not be compared"),
            }
        }
    }

    /// Gives how many counts were compared at equal positions, and how many of them were wrong.
    async fn compare(&self, contents: Vec<Content>) -> Result<(u64, u64), StoreError> {
        let cached = self.cached(&contents).await?;
        let contents: Vec<Content> = cached.keys().copied().collect();
        if contents.is_empty() {
            return Ok((0, 0));
        }
        // After the cache: what the records show is at least what it showed.
        let recorded = self.ports.records.counts(&contents).await?;
        let (mut compared, mut wrong) = (0, 0);
        for (content, count) in contents.iter().zip(recorded.value) {
            let known = &cached[content];
            let checkpoint = recorded.checkpoints.iter().find(|at| at.partition == known.scope.partition);
            let Some(checkpoint) = checkpoint.filter(|at| at.scope() == known.scope) else { continue };
            let is_later = count.is_some_and(|count| count.version >= known.claim.next_offset);
            if is_later || checkpoint.next_offset < known.claim.next_offset {
                continue;
            }
            compared += 1;
            let count = count.map_or(0, |count| count.count);
            if count != known.count {
                wrong += 1;
                tracing::error!(%content, cached = known.count, recorded = count, "the cache is wrong and is mended");
                self.mend(known.scope, *content, CachedCount { count, version: version_of(checkpoint.next_offset) })
                    .await?;
            }
        }
        Ok((compared, wrong))
    }

    /// What the cache has of contents, where it says how far it is.
    async fn cached(&self, contents: &[Content]) -> Result<HashMap<Content, Cached>, StoreError> {
        let mut asks: HashMap<Scope, Ask> = HashMap::new();
        for content in contents {
            if let Some(scope) = self.scope_of(content) {
                let ask = asks.entry(scope).or_insert_with(|| Ask { scope, counts: Vec::new(), statuses: Vec::new() });
                ask.counts.push(*content);
            }
        }
        let asks: Vec<Ask> = asks.into_values().collect();
        let answers = self.ports.counters.read(&asks, None).await?;
        let mut cached = HashMap::new();
        for (ask, answer) in asks.iter().zip(answers) {
            let Some(progress) = answer.progress.filter(|progress| !progress.recovering) else { continue };
            let (scope, claim) = (ask.scope, progress.claim(ask.scope.partition));
            let there = ask.counts.iter().zip(answer.counts).filter_map(|(content, count)| Some((*content, count?)));
            cached.extend(there.map(|(content, cached)| (content, Cached { scope, count: cached.count, claim })));
        }
        Ok(cached)
    }

    /// Fills the entry as a reader that missed it does.
    async fn mend(&self, scope: Scope, content: Content, count: CachedCount) -> Result<(), StoreError> {
        if let Some(lease) = self.ports.counters.lease(scope, LeaseKey::Count(content)).await? {
            // What changed since the records were read drops the lease, or refuses the older snapshot.
            let _refused_if_older =
                self.ports.counters.fill(scope, lease, Fill::Count(content, count, COUNT_LIFE)).await?;
        }
        Ok(())
    }
}
