//! Requests and buckets in this process's memory, bounded: the least recently used are forgotten first.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    num::NonZeroUsize,
    time::Duration,
};

use async_trait::async_trait;
use likewise_schema::Position;
use lru::LruCache;
use parking_lot::Mutex;

use super::{ANSWER_LIFE, Begin, Bucket, IN_FLIGHT_LIFE, Intent, Policy, RequestKey, RequestStore, Taken};
use crate::{Clock, StoreError};

const STRIPES: usize = 16;
/// Requests kept in all, about 100 bytes each.
const REQUESTS_MAX: usize = 524_288;
/// Buckets kept in all. One that is forgotten is full again.
const BUCKETS_MAX: usize = 524_288;

/// The request store in memory.
#[derive(Debug)]
pub struct MemoryRequests {
    clock: Clock,
    requests: Striped<RequestKey, Known>,
    buckets: Striped<Bucket, Level>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    intent: Intent,
    position: Option<Position>,
    /// Unix microseconds.
    until: i64,
}

/// A bucket's level at a moment.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// In token-microseconds of the policy's window, so that nothing is rounded.
    filled: i64,
    /// Unix microseconds.
    at: i64,
}

/// Many small caches in place of one, so that requests do not wait for each other.
#[derive(Debug)]
struct Striped<K: Hash + Eq, V> {
    hash: RandomState,
    stripes: Vec<Mutex<LruCache<K, V>>>,
}

impl<K: Hash + Eq, V> Striped<K, V> {
    fn new(size: usize) -> Self {
        let each = NonZeroUsize::new(size / STRIPES).unwrap_or(NonZeroUsize::MIN);
        let stripes = (0..STRIPES).map(|_| Mutex::new(LruCache::new(each))).collect();
        Self { hash: RandomState::new(), stripes }
    }

    fn of(&self, key: &K) -> &Mutex<LruCache<K, V>> {
        &self.stripes[(self.hash.hash_one(key) >> 60) as usize % STRIPES]
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl MemoryRequests {
    /// An empty store that reads time from `clock`.
    pub fn new(clock: Clock) -> Self {
        Self { clock, requests: Striped::new(REQUESTS_MAX), buckets: Striped::new(BUCKETS_MAX) }
    }
}

#[async_trait]
impl RequestStore for MemoryRequests {
    async fn begin(&self, key: RequestKey, intent: Intent) -> Result<Begin, StoreError> {
        let now = self.clock.micros();
        let mut requests = self.requests.of(&key).lock();
        if let Some(known) = requests.get(&key).filter(|known| now < known.until) {
            return Ok(match known.position {
                _ if known.intent != intent => Begin::Conflict,
                Some(position) => Begin::Answered(position),
                None => Begin::InFlight,
            });
        }
        requests.push(key, Known { intent, position: None, until: now.saturating_add(micros(IN_FLIGHT_LIFE)) });
        Ok(Begin::Fresh)
    }

    async fn finish(&self, key: RequestKey, intent: Intent, position: Position) -> Result<(), StoreError> {
        let until = self.clock.micros().saturating_add(micros(ANSWER_LIFE));
        let known = Known { intent, position: Some(position), until };
        let mut requests = self.requests.of(&key).lock();
        match requests.peek_mut(&key) {
            Some(mark) => *mark = known,
            None => drop(requests.push(key, known)),
        }
        Ok(())
    }

    async fn abandon(&self, key: RequestKey) -> Result<(), StoreError> {
        let mut requests = self.requests.of(&key).lock();
        if requests.peek(&key).is_some_and(|known| known.position.is_none()) {
            requests.pop(&key);
        }
        Ok(())
    }

    async fn find(&self, key: RequestKey) -> Result<Option<(Intent, Option<Position>)>, StoreError> {
        let now = self.clock.micros();
        let mut requests = self.requests.of(&key).lock();
        Ok(requests.get(&key).filter(|known| now < known.until).map(|known| (known.intent, known.position)))
    }

    async fn give_back(&self, bucket: Bucket, policy: Policy) -> Result<(), StoreError> {
        let token = micros(policy.window).max(1);
        let full = token.saturating_mul(i64::from(policy.burst));
        if let Some(level) = self.buckets.of(&bucket).lock().peek_mut(&bucket) {
            level.filled = level.filled.saturating_add(token).min(full);
        }
        Ok(())
    }

    async fn take(&self, bucket: Bucket, policy: Policy) -> Result<Taken, StoreError> {
        let now = self.clock.micros();
        // One token is `window` token-microseconds; `burst` of them flow in per microsecond.
        let (token, rate) = (micros(policy.window).max(1), i64::from(policy.burst));
        let full = token.saturating_mul(rate);
        let mut buckets = self.buckets.of(&bucket).lock();
        let level = buckets.get_or_insert_mut(bucket, || Level { filled: full, at: now });
        let flowed = (now - level.at).max(0).saturating_mul(rate);
        let mut filled = level.filled.saturating_add(flowed).min(full);
        let allowed = filled >= token;
        if allowed {
            filled -= token;
        }
        *level = Level { filled, at: now.max(level.at) };
        let rate = rate.max(1);
        let missing = ((token - filled).max(0) + rate - 1) / rate;
        Ok(Taken {
            allowed,
            remaining: u32::try_from(filled / token).unwrap_or(u32::MAX),
            next_in: Duration::from_micros(missing.unsigned_abs()),
        })
    }
}
