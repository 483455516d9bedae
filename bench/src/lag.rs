//! How far a projection is behind, as its metrics say.

use std::{
    fmt,
    io::Result,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::sleep};

use crate::load::Connection;

/// Lag at a moment, or the worst of some time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lag {
    /// The age of the oldest event that is not projected.
    pub(crate) seconds: f64,
    /// Events that are not projected.
    pub(crate) events: u64,
}

impl Lag {
    fn include(&mut self, now: Lag) {
        self.seconds = self.seconds.max(now.seconds);
        self.events = self.events.max(now.events);
    }
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {:.2} s, {} events", self.seconds, self.events)
    }
}

/// Looks five times a second.
pub(crate) struct Watch {
    worst: Arc<Mutex<Lag>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// At the metrics of an admin port.
    pub(crate) fn start(admin: &str) -> Self {
        let worst = Arc::new(Mutex::new(Lag::default()));
        let (seen, admin) = (Arc::clone(&worst), admin.to_owned());
        let task = tokio::spawn(async move {
            while let Ok(now) = now(&admin).await {
                seen.lock().unwrap_or_else(PoisonError::into_inner).include(now);
                sleep(Duration::from_millis(200)).await;
            }
        });
        Self { worst, task }
    }

    /// The worst since the start.
    pub(crate) async fn stop(self) -> Lag {
        self.task.abort();
        let _cancelled = self.task.await;
        *self.worst.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until everything is projected.
pub(crate) async fn settle(admin: &str) -> Result<()> {
    loop {
        // The gauges are samples, of an idle projection a second old at most: let one pass, then look.
        sleep(Duration::from_millis(1500)).await;
        if now(admin).await?.events == 0 {
            return Ok(());
        }
    }
}

/// The lag of the partition that is furthest behind, in seconds, and of all together in events.
pub(crate) async fn now(admin: &str) -> Result<Lag> {
    let metrics = Connection::open(admin).await?.get("/metrics").await?;
    let values = |name: &'static str| {
        let value = |line: &str| line.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        metrics.lines().filter(move |line| line.starts_with(name)).map(value)
    };
    let seconds = values("kafka_consumergroup_group_lag_seconds{").fold(0.0, f64::max);
    let of_partitions: f64 = values("kafka_consumergroup_group_lag{").sum();
    let backlog = values("likewise_backlog_events ").fold(0.0, f64::max);
    Ok(Lag { seconds, events: of_partitions.max(backlog) as u64 })
}
