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
use uuid::Uuid;

use super::{ANSWER_LIFE, Admitted, Bucket, Charge, IN_FLIGHT_LIFE, Intent, Level, Policy, RequestKey, RequestStore};
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
    buckets: Striped<Bucket, Held>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    intent: Intent,
    position: Option<Position>,
    /// Unix microseconds.
    until: i64,
}

/// What a bucket holds at a moment.
#[derive(Clone, Copy, Debug)]
struct Held {
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
    async fn admit(&self, key: RequestKey, intent: Intent, charges: &[Charge]) -> Result<Admitted, StoreError> {
        let now = self.clock.micros();
        {
            let mut requests = self.requests.of(&key).lock();
            if let Some(known) = requests.get_mut(&key).filter(|known| now < known.until) {
                return Ok(match known.position {
                    _ if known.intent != intent => Admitted::Conflict,
                    Some(position) => Admitted::Answered(position),
                    None => Admitted::InFlight,
                });
            }
            let until = now.saturating_add(micros(IN_FLIGHT_LIFE));
            requests.insert(key, Known { intent, position: None, until });
        }
        let mut levels = Vec::with_capacity(charges.len());
        for (index, charge) in charges.iter().enumerate() {
            match self.take(charge, now) {
                Ok(level) => levels.push(level),
                Err(level) => {
                    self.release(key, &charges[..index]).await?;
                    return Ok(Admitted::Exhausted { charge: index, level });
                }
            }
        }
        Ok(Admitted::Fresh(levels))
    }

    async fn finish(&self, key: RequestKey, intent: Intent, position: Position) -> Result<(), StoreError> {
        let until = self.clock.micros().saturating_add(micros(ANSWER_LIFE));
        let known = Known { intent, position: Some(position), until };
        self.requests.of(&key).lock().insert(key, known);
        Ok(())
    }

    async fn release(&self, key: RequestKey, charges: &[Charge]) -> Result<(), StoreError> {
        {
            let mut requests = self.requests.of(&key).lock();
            if requests.get_mut(&key).is_some_and(|known| known.position.is_none()) {
                requests.remove(&key);
            }
        }
        for Charge { bucket, policy } in charges {
            if let Some(held) = self.buckets.of(bucket).lock().get_mut(bucket) {
                let Flow { token, full, .. } = Flow::of(*policy);
                held.filled = held.filled.saturating_add(token).min(full);
            }
        }
        Ok(())
    }

    async fn find(&self, key: RequestKey) -> Result<Option<(Intent, Option<Position>)>, StoreError> {
        let now = self.clock.micros();
        let mut requests = self.requests.of(&key).lock();
        Ok(requests.get_mut(&key).filter(|known| now < known.until).map(|known| (known.intent, known.position)))
    }

    fn can_be_away(&self) -> bool {
        false
    }

    /// It is alone.
    async fn attend(&self, _process: Uuid) -> Result<u32, StoreError> {
        Ok(1)
    }
}

/// A policy in token-microseconds: one token is `window` of them, and `burst` of them flow in per microsecond.
struct Flow {
    token: i64,
    rate: i64,
    full: i64,
}

impl Flow {
    fn of(policy: Policy) -> Self {
        let (token, rate) = (micros(policy.window).max(1), i64::from(policy.burst).max(1));
        Self { token, rate, full: token.saturating_mul(rate) }
    }
}

impl MemoryRequests {
    /// Takes a token; the error is a bucket without one.
    fn take(&self, charge: &Charge, now: i64) -> Result<Level, Level> {
        let Flow { token, rate, full } = Flow::of(charge.policy);
        let mut buckets = self.buckets.of(&charge.bucket).lock();
        let known = buckets.get_mut(&charge.bucket);
        let held = known.as_deref().copied().unwrap_or(Held { filled: full, at: now });
        let flowed = (now - held.at).max(0).saturating_mul(rate);
        let mut filled = held.filled.saturating_add(flowed).min(full);
        let is_taken = filled >= token;
        if is_taken {
            filled -= token;
        }
        let after = Held { filled, at: now.max(held.at) };
        match known {
            Some(known) => *known = after,
            None => buckets.insert(charge.bucket, after),
        }
        let missing = ((token - filled).max(0) + rate - 1) / rate;
        let level = Level {
            remaining: u32::try_from(filled / token).unwrap_or(u32::MAX),
            next_in: Duration::from_micros(missing.unsigned_abs()),
        };
        if is_taken { Ok(level) } else { Err(level) }
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
