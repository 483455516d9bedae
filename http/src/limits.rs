//! How much work of one class may be under way.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use metrics::{Gauge, gauge};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

/// How long a request waits for its turn before it is refused.
const QUEUE_WAIT: Duration = Duration::from_millis(50);
/// How long it waits while others have lately waited in vain: a queue that stands only makes everybody late.
const STANDING_QUEUE_WAIT: Duration = Duration::from_millis(15);
/// For how long a queue counts as standing after somebody waited in vain.
const STANDING: Duration = Duration::from_millis(200);
/// Over such a time throughput is taken, and at most so often a limit shrinks.
const WINDOW: Duration = Duration::from_millis(100);
/// What is left of the highest throughput seen after each such time: half of it after 7 s.
const FADE: f64 = 0.99;
/// Fewest at once, however long they take.
const LEAST: usize = 32;

/// A class of routes that share a bound on requests under way. The bound can follow how long they take: it shrinks by a
/// tenth while they take longer than a target, and grows by about one for each round while they do not (additive
/// increase, multiplicative decrease; Chiu and Jain 1989), so that what comes in too much is refused at once and what
/// is taken is answered in time. It does not shrink below what the highest throughput of late keeps under way for half
/// the target (Little's law): what slows requests down then is not each other, but refusing the rest.
#[derive(Debug)]
pub struct Concurrency {
    permits: Semaphore,
    most: usize,
    target: Option<Duration>,
    limit: AtomicUsize,
    /// Permits that are to vanish when they are given back.
    owed: AtomicUsize,
    /// Requests that ended in time since the limit grew.
    in_time: AtomicUsize,
    /// Requests that ended in this window.
    ended: AtomicUsize,
    /// The most that ended in a window of late, in thousandths.
    highest: AtomicUsize,
    born: Instant,
    /// In milliseconds since `born`.
    window_at: AtomicU64,
    shrunk_at: AtomicU64,
    refused_at: AtomicU64,
    gauge: Option<Gauge>,
}

/// No turn came within the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// A request under way.
pub struct Turn<'a> {
    of: &'a Concurrency,
    permit: Option<SemaphorePermit<'a>>,
    since: Instant,
    has_worked: bool,
}

impl Turn<'_> {
    /// The request did what the class is for: how long it took counts. What was refused or known tells nothing.
    pub fn worked(&mut self) {
        self.has_worked = true;
    }
}

impl Concurrency {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Self {
        let now = Instant::now();
        Self {
            permits: Semaphore::new(limit),
            most: limit,
            target: None,
            limit: limit.into(),
            owed: 0.into(),
            in_time: 0.into(),
            ended: 0.into(),
            highest: 0.into(),
            window_at: 0.into(),
            born: now,
            shrunk_at: 0.into(),
            refused_at: u64::MAX.into(),
            gauge: None,
        }
    }

    /// At most `most` at once, fewer while they take longer than `target`; the metric is labelled with `class`.
    pub fn adaptive(class: &'static str, most: usize, target: Duration) -> Self {
        let gauge = gauge!("likewise_concurrency_limit", "class" => class);
        gauge.set(most as f64);
        Self { target: Some(target), gauge: Some(gauge), ..Self::new(most) }
    }

    /// Waits for a turn, 50 ms at most.
    pub async fn enter(&self) -> Result<Turn<'_>, Busy> {
        let permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let refused_at = self.refused_at.load(Ordering::Relaxed);
                let is_standing = self.millis().saturating_sub(refused_at) < STANDING.as_millis() as u64;
                let wait = if refused_at != u64::MAX && is_standing { STANDING_QUEUE_WAIT } else { QUEUE_WAIT };
                match tokio::time::timeout(wait, self.permits.acquire()).await {
                    Ok(Ok(permit)) => permit,
                    _ => {
                        self.refused_at.store(self.millis(), Ordering::Relaxed);
                        return Err(Busy);
                    }
                }
            }
        };
        Ok(Turn { of: self, permit: Some(permit), since: Instant::now(), has_worked: false })
    }

    fn millis(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    /// One took so long.
    fn learn(&self, took: Duration) {
        let Some(target) = self.target else { return };
        let limit = self.limit.load(Ordering::Relaxed);
        let now = self.millis();
        self.ended.fetch_add(1, Ordering::Relaxed);
        if let Some(millis) = is_due(&self.window_at, now) {
            let ended = self.ended.swap(0, Ordering::Relaxed) as f64 * 1000.0;
            let in_one = ended * WINDOW.as_millis() as f64 / millis as f64;
            let windows = millis as f64 / WINDOW.as_millis() as f64;
            let highest = self.highest.load(Ordering::Relaxed) as f64 * FADE.powf(windows);
            self.highest.store(highest.max(in_one) as usize, Ordering::Relaxed);
        }
        if took > target {
            if is_due(&self.shrunk_at, now).is_some() {
                // What is under way tells more than a bound that nobody comes near.
                let under_way = limit.saturating_sub(self.permits.available_permits());
                let kept = self.highest.load(Ordering::Relaxed) as f64 / 1000.0 * target.div_duration_f64(WINDOW) / 2.0;
                self.resize((limit.min(under_way.max(LEAST)) * 9 / 10).max(kept as usize));
            }
        } else if self.permits.available_permits() * 5 < limit {
            let in_time = self.in_time.fetch_add(1, Ordering::Relaxed) + 1;
            if in_time >= limit {
                self.in_time.store(0, Ordering::Relaxed);
                self.resize(limit + 1 + limit / 64);
            }
        }
    }

    fn resize(&self, wanted: usize) {
        let wanted = wanted.clamp(LEAST.min(self.most), self.most);
        let known = self.limit.swap(wanted, Ordering::Relaxed);
        if wanted < known {
            let gone = self.permits.forget_permits(known - wanted);
            self.owed.fetch_add(known - wanted - gone, Ordering::Relaxed);
        } else {
            let mut more = wanted - known;
            while more > 0 && self.pay() {
                more -= 1;
            }
            self.permits.add_permits(more);
        }
        if let Some(gauge) = &self.gauge {
            gauge.set(wanted as f64);
        }
    }

    /// True if a permit was owed, and is so no more.
    fn pay(&self) -> bool {
        self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(1)).is_ok()
    }
}

/// How long ago `last` was, if that is a window; then it is now.
fn is_due(last: &AtomicU64, now: u64) -> Option<u64> {
    let before = last.load(Ordering::Relaxed);
    let millis = now.saturating_sub(before);
    let is_due = millis >= WINDOW.as_millis() as u64;
    let is_mine = || last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    (is_due && is_mine()).then_some(millis)
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            if self.of.pay() {
                permit.forget();
            } else {
                drop(permit);
            }
        }
        if self.has_worked {
            self.of.learn(self.since.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn round(class: &Concurrency, senders: usize, took: Duration) -> usize {
        let mut turns = Vec::new();
        while turns.len() < senders && class.permits.available_permits() > 0 {
            let mut turn = class.enter().await.ok().unwrap();
            turn.worked();
            turns.push(turn);
        }
        tokio::time::advance(took).await;
        turns.len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_follows_how_long_requests_take() {
        let class = Concurrency::adaptive("test", 400, Duration::from_millis(100));
        assert_eq!(round(&class, 400, Duration::from_millis(50)).await, 400);
        for _ in 0..600 {
            round(&class, 400, Duration::from_millis(1500)).await;
        }
        assert_eq!(round(&class, 400, Duration::from_millis(50)).await, LEAST, "too slow");
        for _ in 0..2000 {
            round(&class, 400, Duration::from_millis(50)).await;
        }
        assert_eq!(round(&class, 400, Duration::from_millis(50)).await, 400, "fast again");
        // A few slow ones of an idle class do not open the way for less than those that come.
        for _ in 0..3 {
            round(&class, 1, Duration::from_millis(150)).await;
        }
        assert!(round(&class, 400, Duration::from_millis(50)).await >= 20);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_makes_the_next_wait_less() {
        let class = Concurrency::new(1);
        let _turn = class.enter().await.ok().unwrap();
        let wait = async || {
            let started = Instant::now();
            assert!(class.enter().await.is_err());
            started.elapsed()
        };
        assert!(wait().await >= QUEUE_WAIT);
        assert!(wait().await < QUEUE_WAIT / 2);
        tokio::time::advance(STANDING * 2).await;
        assert!(wait().await >= QUEUE_WAIT);
    }
}
