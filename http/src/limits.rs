//! How much work of one class may be under way.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// How long a request waits for its turn before it is refused.
const QUEUE_WAIT: Duration = Duration::from_millis(50);

/// A class of routes that share a bound on requests under way.
#[derive(Debug)]
pub struct Concurrency {
    permits: Semaphore,
}

/// No turn came within the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl Concurrency {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Self {
        Self { permits: Semaphore::new(limit) }
    }

    /// Waits for a turn, 50 ms at most.
    pub async fn enter(&self) -> Result<SemaphorePermit<'_>, Busy> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(permit);
        }
        let turn = tokio::time::timeout(QUEUE_WAIT, self.permits.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or(Busy)
    }
}
