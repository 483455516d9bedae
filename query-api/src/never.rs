//! Contents that nobody ever liked, told without asking any store: a Bloom filter of those that somebody did.

use std::collections::HashMap;

use fastbloom::BloomFilter;
use likewise_schema::{Content, Offset, Partition, PartitionCount, Position};
use likewise_storage::{
    RecordStore, StoreError,
    counters::{Change, Scope},
    records::{Claim, First, Snapshot},
};
use metrics::gauge;
use parking_lot::RwLock;

/// Contents that a partition's filter is made for at first; it is made anew for twice as many when it is full.
const CONTENTS: usize = 16_384;
/// The share of contents that nobody liked for which a full filter knows no better.
const FALSE_POSITIVES: f64 = 0.005;
/// Contents that are read at once, of all partitions.
const READ_MAX: usize = 160_000;

/// A filter for each partition, with the prefix that it reflects.
#[derive(Default)]
pub(crate) struct NeverLiked(RwLock<HashMap<Partition, Filter>>);

struct Filter {
    scope: Scope,
    bloom: BloomFilter,
    /// For how many contents it was made.
    size: usize,
    /// Contents in it.
    contents: usize,
    /// First events from here on are not in it.
    next: Offset,
    /// What it reflects; none while it is being made.
    claim: Option<Claim>,
}

impl Filter {
    fn new(scope: Scope, size: usize) -> Self {
        let bloom = BloomFilter::with_false_pos(FALSE_POSITIVES).expected_items(size);
        Self { scope, bloom, size, contents: 0, next: Offset::ZERO, claim: None }
    }

    fn add(&mut self, content: &Content) {
        if !self.bloom.insert(content) {
            self.contents += 1;
        }
    }
}

impl NeverLiked {
    /// If nobody ever liked a content: up to where that is known.
    pub(crate) fn claim(&self, scope: Scope, content: &Content) -> Option<Claim> {
        let filters = self.0.read();
        let filter = filters.get(&scope.partition).filter(|filter| filter.scope == scope)?;
        filter.claim.filter(|_| !filter.bloom.contains(content))
    }

    /// What a publish touched may be new. A filter that reflects what was before it reflects it from now on, so that it is
    /// as fresh as the cache for as long as no change is lost.
    pub(crate) fn changed(&self, change: &Change) {
        if let Some(filter) =
            self.0.write().get_mut(&change.scope.partition).filter(|filter| filter.scope == change.scope)
        {
            change.counts.iter().for_each(|(content, _)| filter.add(content));
            let follows = |claim: &Claim| (change.from..change.claim.next_offset).contains(&claim.next_offset);
            if change.is_whole && !change.claim.recovering && filter.claim.as_ref().is_some_and(follows) {
                filter.claim = Some(change.claim);
            }
        }
    }

    /// Reads what is new, once. True if there is more to read at once.
    pub(crate) async fn advance(&self, records: &dyn RecordStore, count: PartitionCount) -> Result<bool, StoreError> {
        let next = |filters: &HashMap<Partition, Filter>, partition| {
            let offset = filters.get(&partition).map_or(Offset::ZERO, |filter| filter.next);
            Position { partition, offset }
        };
        let from: Vec<Position> = {
            let filters = self.0.read();
            count.all().map(|partition| next(&filters, partition)).collect()
        };
        let most = READ_MAX / usize::from(count.get());
        let read = records.firsts(&from, most).await?;
        Ok(self.take(&from, &read, most))
    }

    fn take(&self, from: &[Position], read: &Snapshot<Vec<First>>, most: usize) -> bool {
        let mut of_partition: HashMap<Partition, Vec<First>> = HashMap::new();
        for first in &read.value {
            of_partition.entry(first.position.partition).or_default().push(*first);
        }
        let mut filters = self.0.write();
        let mut is_more = false;
        for checkpoint in &read.checkpoints {
            let partition = checkpoint.partition;
            let Some(asked) = from.iter().find(|asked| asked.partition == partition) else { continue };
            let filter = filters.entry(partition).or_insert_with(|| Filter::new(checkpoint.scope(), CONTENTS));
            if filter.scope != checkpoint.scope() {
                // Other tables: what is known of the former ones is nothing.
                *filter = Filter::new(checkpoint.scope(), CONTENTS);
            }
            if filter.next != asked.offset {
                is_more = true;
                continue;
            }
            let firsts = of_partition.remove(&partition).unwrap_or_default();
            firsts.iter().for_each(|first| filter.add(&first.content));
            if filter.contents > filter.size {
                *filter = Filter::new(checkpoint.scope(), 2 * filter.contents);
                is_more = true;
                continue;
            }
            let is_whole = firsts.len() < most;
            filter.next = match firsts.last() {
                Some(last) if !is_whole => last.position.offset.next(),
                _ => checkpoint.next_offset,
            };
            let is_further = |claim: &Claim| claim.next_offset > checkpoint.next_offset;
            if !is_whole || !filter.claim.as_ref().is_some_and(is_further) {
                filter.claim = is_whole.then(|| checkpoint.claim());
            }
            is_more |= !is_whole;
        }
        gauge!("likewise_filter_contents").set(filters.values().map(|filter| filter.contents as f64).sum::<f64>());
        gauge!("likewise_filter_bytes")
            .set(filters.values().map(|filter| filter.bloom.num_bits() as f64 / 8.0).sum::<f64>());
        is_more
    }
}

#[cfg(test)]
mod tests {
    use likewise_storage::{counters::CachedCount, records::Generation};

    use super::*;
    use crate::examples::{claim, post};

    #[test]
    fn a_full_filter_takes_few_contents_for_others() {
        let mut filter = Filter::new(Scope { generation: Generation(1), partition: Partition::default() }, 10_000);
        (1..=10_000).for_each(|id| filter.add(&post(id)));
        assert!((1..=10_000).all(|id| filter.bloom.contains(&post(id))));
        let taken = (1..=100_000).filter(|id| filter.bloom.contains(&post(1_000_000 + id))).count();
        assert!((100..=1000).contains(&taken), "{taken} of 100,000 (500)");
        assert!(filter.bloom.num_bits() < 16 * 10_000, "{} bits", filter.bloom.num_bits());
        assert!((9900..=10_000).contains(&filter.contents), "{}", filter.contents);
    }

    #[test]
    fn changes_without_a_gap_keep_the_filter_up_to_date() {
        let scope = Scope { generation: Generation(1), partition: Partition::default() };
        let never = NeverLiked::default();
        never.0.write().insert(scope.partition, Filter { claim: Some(claim(5)), ..Filter::new(scope, 100) });
        let change = |from: i64, to: i64, id| Change {
            scope,
            from: claim(from).next_offset,
            claim: claim(to),
            counts: vec![(post(id), CachedCount { count: 1, version: to })],
            is_whole: true,
        };
        let next = || never.claim(scope, &post(99)).expect("never liked").next_offset.get();
        never.changed(&change(5, 7, 1));
        assert_eq!((next(), never.claim(scope, &post(1))), (7, None));
        never.changed(&change(8, 9, 2));
        assert_eq!((next(), never.claim(scope, &post(2))), (7, None), "one was lost in between");
        never.changed(&Change { is_whole: false, counts: vec![], ..change(7, 9, 7) });
        never.changed(&Change { claim: Claim { recovering: true, ..claim(9) }, ..change(7, 9, 3) });
        never.changed(&change(2, 6, 4));
        assert_eq!(next(), 7);
        never.changed(&change(6, 10, 5));
        assert_eq!(next(), 10, "what overlaps is no gap");
        never.changed(&Change { scope: Scope { generation: Generation(2), ..scope }, ..change(10, 12, 6) });
        assert_eq!(next(), 10, "of other tables");
    }
}
