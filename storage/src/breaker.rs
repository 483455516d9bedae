//! Spares a server that does not answer, and those who would wait for it.

use std::time::Duration;

use metrics::{Gauge, gauge};
use parking_lot::Mutex;
use tokio::time::Instant;

/// When a breaker opens, and how it finds out that the server is back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Failures in a row without which it does not open.
    pub(crate) failures: u32,
    /// How long they must have gone on: one hiccup that many calls meet at once opens nothing.
    pub(crate) lasting: Duration,
    /// While open, one call in this time is let through to see.
    pub(crate) probe_every: Duration,
}

/// Lets calls through while they succeed; refuses them after failures that last, but for a probe now and then.
pub(crate) struct Breaker {
    limits: Limits,
    state: Mutex<State>,
    /// How many are open.
    open: Gauge,
}

#[derive(Default)]
struct State {
    failures: u32,
    /// When the first failure of the row was.
    since: Option<Instant>,
    /// Set while open.
    next_probe: Option<Instant>,
    /// A probe is under way.
    is_probing: bool,
}

/// A call that was let through. One that is dropped without a word took `slow` or longer, and failed, or was given up by
/// its caller, which says nothing.
pub(crate) struct Attempt<'a> {
    breaker: &'a Breaker,
    started: Instant,
    slow: Duration,
    is_probe: bool,
    is_settled: bool,
}

impl Breaker {
    /// Closed. `dependency` names it in metrics.
    pub(crate) fn new(dependency: &'static str, limits: Limits) -> Self {
        let open = gauge!("likewise_breakers_open", "dependency" => dependency);
        open.increment(0.0);
        Self { limits, state: Mutex::default(), open }
    }

    /// None while the server is to be spared.
    pub(crate) fn attempt(&self, slow: Duration) -> Option<Attempt<'_>> {
        let started = Instant::now();
        let mut state = self.state.lock();
        if let Some(probe) = state.next_probe {
            if started < probe || state.is_probing {
                return None;
            }
            state.next_probe = Some(started + self.limits.probe_every);
        }
        let is_probe = state.next_probe.is_some();
        state.is_probing = is_probe;
        drop(state);
        Some(Attempt { breaker: self, started, slow, is_probe, is_settled: false })
    }

    fn succeeded(&self) {
        let mut state = self.state.lock();
        if state.next_probe.is_some() {
            self.open.decrement(1.0);
        }
        if state.failures > 0 {
            *state = State::default();
        }
    }

    fn failed(&self) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        let since = *state.since.get_or_insert(now);
        let opens = state.failures >= self.limits.failures && now - since >= self.limits.lasting;
        if opens && state.next_probe.is_none() {
            state.next_probe = Some(now + self.limits.probe_every);
            self.open.increment(1.0);
        }
    }
}

impl Attempt<'_> {
    /// The server answered, whatever it said.
    pub(crate) fn succeeded(mut self) {
        self.is_settled = true;
        self.breaker.succeeded();
    }

    /// It did not answer, or cannot be reached.
    pub(crate) fn failed(mut self) {
        self.is_settled = true;
        self.breaker.failed();
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.breaker.state.lock().is_probing = false;
        }
        if !self.is_settled && self.started.elapsed() >= self.slow {
            self.breaker.failed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { failures: 3, lasting: Duration::from_millis(200), probe_every: Duration::from_millis(100) };
    const SLOW: Duration = Duration::from_millis(50);

    fn fail(breaker: &Breaker) {
        breaker.attempt(SLOW).expect("closed").failed();
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_that_last_and_closes_after_a_probe_that_succeeds() {
        let breaker = Breaker::new("test", LIMITS);
        for _ in 0..10 {
            fail(&breaker);
        }
        assert!(breaker.attempt(SLOW).is_some(), "a hiccup opens nothing");
        tokio::time::advance(LIMITS.lasting).await;
        fail(&breaker);
        assert!(breaker.attempt(SLOW).is_none());
        tokio::time::advance(LIMITS.probe_every).await;
        let probe = breaker.attempt(SLOW).expect("a probe");
        assert!(breaker.attempt(SLOW).is_none(), "one probe at a time");
        probe.failed();
        assert!(breaker.attempt(SLOW).is_none());
        tokio::time::advance(LIMITS.probe_every).await;
        breaker.attempt(SLOW).expect("a probe").succeeded();
        fail(&breaker);
        assert!(breaker.attempt(SLOW).is_some(), "the row of failures has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_given_up_counts_where_it_was_slow() {
        let breaker = Breaker::new("test", Limits { failures: 1, lasting: Duration::ZERO, ..LIMITS });
        drop(breaker.attempt(SLOW));
        let slow = breaker.attempt(SLOW).expect("giving up at once says nothing");
        tokio::time::advance(SLOW).await;
        drop(slow);
        assert!(breaker.attempt(SLOW).is_none());
    }
}
