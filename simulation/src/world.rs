//! Chance, time and processes: what a seed decides.

use std::{sync::Arc, time::Duration};

use likewise_storage::Clock;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

/// Virtual time begins here, in Unix microseconds.
pub(crate) const START_MICROS: i64 = 1_700_000_000_000_000;

/// Everything that chance decides, in the order in which it is asked.
pub(crate) struct World {
    rng: Mutex<SmallRng>,
    start: Instant,
    calm: Mutex<bool>,
    /// How many faults were drawn: a run without any shows nothing.
    faults: Mutex<u64>,
}

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It fails without an effect.
    Before,
    /// It has its effect; the answer is lost.
    After,
    /// The caller is told of a failure; the effect comes later.
    Late(Duration),
}

impl World {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let rng = Mutex::new(SmallRng::seed_from_u64(seed));
        Arc::new(Self { rng, start: Instant::now(), calm: Mutex::new(false), faults: Mutex::new(0) })
    }

    /// Virtual wall-clock time.
    pub(crate) fn clock(self: &Arc<Self>) -> Clock {
        let world = Arc::clone(self);
        Clock::from_micros(move || START_MICROS + i64::try_from(world.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// A number below `end`.
    pub(crate) fn below(&self, end: u64) -> u64 {
        self.rng.lock().random_range(0..end)
    }

    /// True `times` in a thousand.
    pub(crate) fn chance(&self, times: u64) -> bool {
        self.below(1000) < times
    }

    pub(crate) fn bits(&self) -> u128 {
        self.rng.lock().random()
    }

    /// No more faults from now on.
    pub(crate) fn be_calm(&self) {
        *self.calm.lock() = true;
    }

    pub(crate) fn is_calm(&self) -> bool {
        *self.calm.lock()
    }

    pub(crate) fn faults(&self) -> u64 {
        *self.faults.lock()
    }

    pub(crate) fn count_fault(&self) {
        *self.faults.lock() += 1;
    }
}

/// A process as the faults see it: its calls are delayed, lost and late, and it can be stopped and resumed.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) world: Arc<World>,
    switch: Arc<Switch>,
}

/// Stops and resumes a process. Wakes in order, unlike a watch channel, whose order is random.
#[derive(Default)]
pub(crate) struct Switch {
    stopped: Mutex<bool>,
    resumed: Notify,
}

impl Switch {
    pub(crate) fn stop(&self) {
        *self.stopped.lock() = true;
    }

    pub(crate) fn resume(&self) {
        *self.stopped.lock() = false;
        self.resumed.notify_waiters();
    }
}

impl Process {
    /// A process that runs, and its switch.
    pub(crate) fn new(world: &Arc<World>) -> (Self, Arc<Switch>) {
        let switch = Arc::new(Switch::default());
        (Self { world: Arc::clone(world), switch: Arc::clone(&switch) }, switch)
    }

    /// An await: time may pass, a stopped process stays here, a killed one ends here.
    pub(crate) async fn point(&self) {
        self.resumed().await;
        if self.world.is_calm() {
            return sleep(Duration::from_micros(100)).await;
        }
        match self.world.below(100) {
            0..60 => tokio::task::yield_now().await,
            60..95 => sleep(Duration::from_micros(self.world.below(5_000))).await,
            95..99 => sleep(Duration::from_millis(self.world.below(200))).await,
            _ => sleep(Duration::from_millis(self.world.below(4_000))).await,
        }
        self.resumed().await;
    }

    async fn resumed(&self) {
        while *self.switch.stopped.lock() {
            self.switch.resumed.notified().await;
        }
    }

    /// What happens to the next call.
    pub(crate) fn draw(&self) -> Fault {
        if self.world.is_calm() {
            return Fault::None;
        }
        let fault = match self.world.below(1000) {
            0..15 => Fault::Before,
            15..35 => Fault::After,
            35..45 => Fault::Late(Duration::from_millis(self.world.below(3_000))),
            _ => return Fault::None,
        };
        self.world.count_fault();
        fault
    }

    /// Makes a call with whatever happens to it; `lost` is what the caller is then told.
    pub(crate) async fn call<T: Send, E: Send>(
        &self,
        call: impl Future<Output = Result<T, E>> + Send + 'static,
        lost: impl Fn() -> E + Send,
    ) -> Result<T, E> {
        self.point().await;
        match self.draw() {
            Fault::None => {
                let outcome = call.await;
                self.point().await;
                outcome
            }
            Fault::Before => Err(lost()),
            Fault::After => {
                let _lost_answer = call.await;
                self.point().await;
                Err(lost())
            }
            Fault::Late(delay) => {
                // Already under way in the server: not even the caller's death stops it.
                tokio::spawn(async move {
                    sleep(delay).await;
                    let _nobody_listens = call.await;
                });
                Err(lost())
            }
        }
    }
}
