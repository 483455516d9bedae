//! Counts that somebody watches: who watches what, and what was last told.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use likewise_schema::{Content, Timestamp};
use likewise_storage::{counters::Change, records::Claim};
use metrics::gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Contents that one subscription has at most: it remembers a bit of each.
pub(crate) const WATCHED_MAX: usize = 100;

/// A count as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) count: i64,
    pub(crate) claim: Claim,
    /// Set if it may be old: when the projection last heard from the log.
    pub(crate) as_of: Option<Timestamp>,
}

impl Told {
    /// Whether a client that knows `other` is to be told.
    pub(crate) fn differs_from(&self, other: &Told) -> bool {
        self.count != other.count || self.as_of.is_some() != other.as_of.is_some()
    }
}

/// All that is watched in this process.
#[derive(Default)]
pub(crate) struct Live {
    topics: Mutex<HashMap<Content, Topic>>,
    subscriptions: AtomicU64,
}

#[derive(Default)]
struct Topic {
    last: Option<Told>,
    /// By number; with the content's place in the subscription.
    watchers: HashMap<u64, (Arc<Changed>, u8)>,
}

/// Which of a subscription's contents changed since it last looked. Only that is remembered, so a slow reader loses what
/// was in between, and never the last.
#[derive(Default)]
struct Changed {
    places: [AtomicU64; 2],
    any: Notify,
}

impl Changed {
    fn mark(&self, place: u8) {
        self.places[usize::from(place / 64)].fetch_or(1 << (place % 64), Ordering::AcqRel);
        self.any.notify_one();
    }

    /// The places marked, which are marked no longer.
    fn take(&self) -> u128 {
        let [low, high] = [&self.places[0], &self.places[1]].map(|places| places.swap(0, Ordering::AcqRel));
        u128::from(high) << 64 | u128::from(low)
    }
}

/// The contents that one reader watches, until it is dropped.
pub(crate) struct Subscription {
    live: Arc<Live>,
    number: u64,
    contents: Vec<Content>,
    changed: Arc<Changed>,
}

impl Live {
    /// Watches contents, at most [`WATCHED_MAX`], each once.
    pub(crate) fn watch(self: &Arc<Self>, contents: Vec<Content>) -> Subscription {
        let changed = Arc::new(Changed::default());
        let number = self.subscriptions.fetch_add(1, Ordering::Relaxed);
        let mut topics = self.topics.lock();
        for (place, content) in (0..).zip(&contents) {
            let topic = topics.entry(*content).or_default();
            topic.watchers.insert(number, (Arc::clone(&changed), place));
            if topic.last.is_some() {
                // It may be further than what this reader is about to read.
                changed.mark(place);
            }
        }
        gauge!("likewise_watched_contents").set(topics.len() as f64);
        Subscription { live: Arc::clone(self), number, contents, changed }
    }

    /// Everything that is watched.
    pub(crate) fn contents(&self) -> Vec<Content> {
        self.topics.lock().keys().copied().collect()
    }

    /// Tells a count to those who watch it, unless they know something that reflects more, or it is no news.
    pub(crate) fn tell(&self, content: &Content, told: Told) {
        if let Some(topic) = self.topics.lock().get_mut(content) {
            topic.tell(told);
        }
    }

    /// What was told last of a content may be old: nobody knows better.
    pub(crate) fn doubt(&self, content: &Content) {
        if let Some(topic) = self.topics.lock().get_mut(content)
            && let Some(last) = topic.last
        {
            topic.tell(Told { as_of: Some(last.claim.heard_at), ..last });
        }
    }

    /// What a publish changed; `as_of` is set if that may be old.
    pub(crate) fn changed(&self, change: &Change, as_of: Option<Timestamp>) {
        let mut topics = self.topics.lock();
        if topics.is_empty() {
            return;
        }
        for (content, cached) in &change.counts {
            if let Some(topic) = topics.get_mut(content) {
                topic.tell(Told { count: cached.count, claim: change.claim, as_of });
            }
        }
    }
}

impl Topic {
    fn tell(&mut self, told: Told) {
        let told = match self.last {
            // Nobody goes back; but that the sources did makes what was told doubtful.
            Some(last) if last.claim.next_offset > told.claim.next_offset => {
                Told { as_of: told.as_of.or(last.as_of), ..last }
            }
            _ => told,
        };
        let is_news = self.last.is_none_or(|last| told.differs_from(&last));
        self.last = Some(told);
        if is_news {
            self.watchers.values().for_each(|(changed, place)| changed.mark(*place));
        }
    }
}

impl Subscription {
    /// What is watched.
    pub(crate) fn contents(&self) -> &[Content] {
        &self.contents
    }

    fn take(&self) -> Vec<(Content, Told)> {
        let places = self.changed.take();
        let topics = self.live.topics.lock();
        let at = |place: usize| {
            let content = *self.contents.get(place)?;
            Some((content, topics.get(&content)?.last?))
        };
        (0..WATCHED_MAX).filter(|place| places >> place & 1 == 1).filter_map(at).collect()
    }

    /// Waits until something changed, and gives it as it is now.
    pub(crate) async fn next(&self) -> Vec<(Content, Told)> {
        loop {
            let found = self.take();
            if !found.is_empty() {
                return found;
            }
            self.changed.any.notified().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut topics = self.live.topics.lock();
        for content in &self.contents {
            if let Some(topic) = topics.get_mut(content) {
                topic.watchers.remove(&self.number);
                if topic.watchers.is_empty() {
                    topics.remove(content);
                }
            }
        }
        gauge!("likewise_watched_contents").set(topics.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::examples::{claim, post};

    fn told(count: i64, next_offset: i64) -> Told {
        Told { count, claim: claim(next_offset), as_of: None }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_last_value_and_none_in_between() {
        let live = Arc::new(Live::default());
        let slow = live.watch(vec![post(1), post(2)]);
        let other = live.watch(vec![post(2)]);
        for count in 1..=5 {
            live.tell(&post(1), told(count, count));
        }
        live.tell(&post(1), told(4, 4));
        assert_eq!(slow.next().await, [(post(1), told(5, 5))], "and nothing that reflects less");
        assert!(slow.next().now_or_never().is_none() && other.next().now_or_never().is_none());
        live.tell(&post(1), told(5, 6));
        assert!(slow.next().now_or_never().is_none(), "the same count is no news");
        live.tell(&post(2), told(1, 1));
        assert_eq!(slow.next().now_or_never(), Some(vec![(post(2), told(1, 1))]));
        assert_eq!(other.next().now_or_never(), Some(vec![(post(2), told(1, 1))]));
        drop((slow, other));
        assert!(live.topics.lock().is_empty());
    }

    #[tokio::test]
    async fn whoever_comes_later_gets_what_was_told_before_and_doubt_reaches_all() {
        let live = Arc::new(Live::default());
        let first = live.watch(vec![post(1)]);
        live.tell(&post(1), told(5, 5));
        let second = live.watch(vec![post(1)]);
        assert_eq!(second.next().now_or_never(), Some(vec![(post(1), told(5, 5))]));
        assert_eq!(first.next().now_or_never(), Some(vec![(post(1), told(5, 5))]));
        // The sources went back, and say that they are not whole.
        let old = Told { as_of: Some(Timestamp::saturating_from_millis(1)), ..told(3, 3) };
        live.tell(&post(1), old);
        let doubted = Told { as_of: old.as_of, ..told(5, 5) };
        assert_eq!(first.next().now_or_never(), Some(vec![(post(1), doubted)]));
        live.tell(&post(1), Told { as_of: Some(Timestamp::saturating_from_millis(9)), ..told(5, 5) });
        assert!(first.next().now_or_never().is_none(), "as doubtful as before");
        live.tell(&post(1), told(5, 6));
        assert_eq!(first.next().now_or_never(), Some(vec![(post(1), told(5, 6))]));
    }

    #[tokio::test]
    async fn all_hundred_contents_are_told_apart() {
        let live = Arc::new(Live::default());
        let all: Vec<Content> = (1..=WATCHED_MAX as i64).map(post).collect();
        let subscription = live.watch(all.clone());
        for content in &all {
            live.tell(content, told(1, 1));
        }
        let told: Vec<Content> = subscription.next().await.into_iter().map(|(content, _)| content).collect();
        assert_eq!(told, all);
    }
}
