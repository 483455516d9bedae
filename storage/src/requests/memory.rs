//! Requests and buckets in this process's memory, bounded: those not used for longest are forgotten first.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
    time::Duration,
};

use async_trait::async_trait;
use likewise_schema::Position;
use lru::DefaultHasher;
use parking_lot::Mutex;

use super::{ANSWER_LIFE, Begin, Bucket, IN_FLIGHT_LIFE, Intent, Policy, RequestKey, RequestStore, Taken};
use crate::{Clock, StoreError};

const STRIPES: usize = 64;
/// Requests kept in all, about 110 bytes each.
const REQUESTS_MAX: usize = 524_288;
/// Buckets kept in all, about 70 bytes each. One that is forgotten is full again.
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

/// Many small maps in place of one, so that requests do not wait for each other.
#[derive(Debug)]
struct Striped<K, V> {
    hash: DefaultHasher,
    stripes: Vec<Mutex<Recent<K, V>>>,
}

impl<K: Hash + Eq, V: Copy> Striped<K, V> {
    fn new(size: usize) -> Self {
        let stripe = || Mutex::new(Recent { young: HashMap::default(), old: HashMap::default(), max: size / STRIPES });
        Self { hash: DefaultHasher::default(), stripes: (0..STRIPES).map(|_| stripe()).collect() }
    }

    fn of(&self, key: &K) -> &Mutex<Recent<K, V>> {
        &self.stripes[(self.hash.hash_one(key) >> 48) as usize % STRIPES]
    }
}

/// A map of at most `max` entries in two generations: when the young one is half of them, it becomes the old one, and
/// what was old and not used since is forgotten. It has no links between entries to keep, as a strict order would.
#[derive(Debug)]
struct Recent<K, V> {
    young: HashMap<K, V, DefaultHasher>,
    old: HashMap<K, V, DefaultHasher>,
    max: usize,
}

impl<K: Hash + Eq, V: Copy> Recent<K, V> {
    /// The entry, which counts as used.
    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.young.contains_key(key) {
            let (key, value) = self.old.remove_entry(key)?;
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }

    /// Sets an entry.
    fn insert(&mut self, key: K, value: V) {
        if let Some(known) = self.young.get_mut(&key) {
            *known = value;
            return;
        }
        if self.young.len() >= self.max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
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
        if let Some(known) = requests.get_mut(&key).filter(|known| now < known.until) {
            return Ok(match known.position {
                _ if known.intent != intent => Begin::Conflict,
                Some(position) => Begin::Answered(position),
                None => Begin::InFlight,
            });
        }
        requests.insert(key, Known { intent, position: None, until: now.saturating_add(micros(IN_FLIGHT_LIFE)) });
        Ok(Begin::Fresh)
    }

    async fn finish(&self, key: RequestKey, intent: Intent, position: Position) -> Result<(), StoreError> {
        let until = self.clock.micros().saturating_add(micros(ANSWER_LIFE));
        let known = Known { intent, position: Some(position), until };
        self.requests.of(&key).lock().insert(key, known);
        Ok(())
    }

    async fn abandon(&self, key: RequestKey) -> Result<(), StoreError> {
        let mut requests = self.requests.of(&key).lock();
        if requests.get_mut(&key).is_some_and(|known| known.position.is_none()) {
            requests.remove(&key);
        }
        Ok(())
    }

    async fn find(&self, key: RequestKey) -> Result<Option<(Intent, Option<Position>)>, StoreError> {
        let now = self.clock.micros();
        let mut requests = self.requests.of(&key).lock();
        Ok(requests.get_mut(&key).filter(|known| now < known.until).map(|known| (known.intent, known.position)))
    }

    async fn give_back(&self, bucket: Bucket, policy: Policy) -> Result<(), StoreError> {
        let token = micros(policy.window).max(1);
        let full = token.saturating_mul(i64::from(policy.burst));
        if let Some(level) = self.buckets.of(&bucket).lock().get_mut(&bucket) {
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
        let known = buckets.get_mut(&bucket);
        let level = known.as_deref().copied().unwrap_or(Level { filled: full, at: now });
        let flowed = (now - level.at).max(0).saturating_mul(rate);
        let mut filled = level.filled.saturating_add(flowed).min(full);
        let allowed = filled >= token;
        if allowed {
            filled -= token;
        }
        let after = Level { filled, at: now.max(level.at) };
        match known {
            Some(known) => *known = after,
            None => buckets.insert(bucket, after),
        }
        let rate = rate.max(1);
        let missing = ((token - filled).max(0) + rate - 1) / rate;
        Ok(Taken {
            allowed,
            remaining: u32::try_from(filled / token).unwrap_or(u32::MAX),
            next_in: Duration::from_micros(missing.unsigned_abs()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_what_is_not_is_forgotten() {
        let mut recent = Recent { young: HashMap::default(), old: HashMap::default(), max: 100 };
        recent.insert(0, 0);
        for number in 1..1000 {
            recent.insert(number, number);
            assert!(recent.young.len() + recent.old.len() <= 100);
            assert_eq!(recent.get_mut(&0), Some(&mut 0), "used since {number}");
        }
        let kept = (1..1000).filter(|number| recent.young.contains_key(number) || recent.old.contains_key(number));
        let kept: Vec<i32> = kept.collect();
        assert!(kept.len() >= 49 && kept == (1000 - kept.len() as i32..1000).collect::<Vec<_>>(), "{kept:?}");
        recent.insert(999, -1);
        assert_eq!(recent.get_mut(&999), Some(&mut -1));
        recent.remove(&999);
        assert_eq!(recent.get_mut(&999), None);
    }
}
