//! Wall-clock time as a value that is handed in, so that the simulation can own it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use likewise_schema::Timestamp;

/// A source of wall-clock time. Ages are differences of two readings of one clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::from_micros(|| {
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
        })
    }

    /// A clock that reads Unix microseconds from `read`.
    pub fn from_micros(read: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Now, in Unix microseconds.
    pub fn micros(&self) -> i64 {
        (self.0)()
    }

    /// Now, to the millisecond.
    pub fn now(&self) -> Timestamp {
        Timestamp::saturating_from_millis(self.micros() / 1000)
    }

    /// What it was `ago`.
    pub fn before(&self, ago: Duration) -> Timestamp {
        Timestamp::saturating_from_millis(self.micros() / 1000 - i64::try_from(ago.as_millis()).unwrap_or(0))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
