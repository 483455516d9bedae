//! Whether a thread that serves keeps up: how late its timers fire is how long a request waits that it has not even
//! read yet.

use std::{cell::Cell, rc::Rc, time::Duration};

use actix_web::http::Method;
use tokio::time::Instant;

/// How often the pulse beats.
const BEAT: Duration = Duration::from_millis(10);
/// A thread that stood still for so long was stopped, or got no processor: who sent what then lies in its sockets has
/// most likely given up.
const STOPPED: Duration = Duration::from_millis(700);
/// For how long after that commands are refused: in that time what lay there is read.
const STALE: Duration = Duration::from_millis(150);

/// What a request asks for, in the order in which it is given up under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Whether the process lives and how it does, and files, which a page cannot do without and which cost no more than a
    /// refusal: never refused.
    Beside,
    /// A change.
    Command,
    /// A count, a status or a page.
    Read,
    /// A page of a list.
    List,
}

impl Class {
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        if !path.starts_with("/v1/") {
            Self::Beside
        } else if method != Method::GET {
            Self::Command
        } else if path.starts_with("/v1/users/") || path.ends_with("/likers") {
            Self::List
        } else {
            Self::Read
        }
    }

    /// How late the thread may be before such requests are refused.
    fn patience(self) -> Duration {
        match self {
            Self::Beside => Duration::MAX,
            Self::Command => Duration::from_millis(150),
            Self::Read => Duration::from_millis(100),
            Self::List => Duration::from_millis(50),
        }
    }
}

/// The pulse of one thread.
pub(crate) struct Pulse {
    beat: Cell<Instant>,
    /// How late the thread lately was, smoothed.
    late: Cell<Duration>,
    stale_until: Cell<Instant>,
}

impl Pulse {
    /// A pulse that beats as long as somebody holds it, on the thread that calls.
    pub(crate) fn start() -> Rc<Self> {
        let pulse = Rc::new(Self::new());
        let held = Rc::downgrade(&pulse);
        actix_web::rt::spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                match held.upgrade() {
                    Some(pulse) => pulse.beat(),
                    None => return,
                }
            }
        });
        pulse
    }

    fn new() -> Self {
        let now = Instant::now();
        Self { beat: now.into(), late: Duration::ZERO.into(), stale_until: now.into() }
    }

    fn beat(&self) {
        let late = self.overdue();
        // About the last ten beats.
        self.late.set((self.late.get() * 9 + late) / 10);
        self.beat.set(Instant::now());
    }

    /// How long ago it should have beaten.
    fn overdue(&self) -> Duration {
        let overdue = self.beat.get().elapsed().saturating_sub(BEAT);
        if overdue > STOPPED {
            self.stale_until.set(Instant::now() + STALE);
        }
        overdue
    }

    /// Whether such a request has to be refused.
    pub(crate) fn refuses(&self, class: Class) -> bool {
        let overdue = self.overdue();
        let is_stale = class == Class::Command && Instant::now() < self.stale_until.get();
        is_stale || self.late.get().max(overdue / 2) > class.patience()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_is_late_gives_up_lists_first_and_files_never() {
        let pulse = Pulse::new();
        let refused = |pulse: &Pulse| {
            [Class::List, Class::Read, Class::Command, Class::of(&Method::GET, "/like-button.js")]
                .map(|class| pulse.refuses(class))
        };
        let beats = async |late: u64| {
            for _ in 0..60 {
                tokio::time::advance(BEAT + Duration::from_millis(late)).await;
                pulse.beat();
            }
        };
        beats(0).await;
        assert_eq!(refused(&pulse), [false; 4]);
        beats(70).await;
        assert_eq!(refused(&pulse), [true, false, false, false]);
        beats(120).await;
        assert_eq!(refused(&pulse), [true, true, false, false]);
        beats(200).await;
        assert_eq!(refused(&pulse), [true, true, true, false]);
        beats(0).await;
        assert_eq!(refused(&pulse), [false; 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_standstill_commands_that_lay_there_are_refused_for_a_moment() {
        let pulse = Pulse::new();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(pulse.refuses(Class::Command), "before the first beat");
        pulse.beat();
        assert!(pulse.refuses(Class::Command), "and after it");
        for _ in 0..60 {
            tokio::time::advance(BEAT).await;
            pulse.beat();
        }
        assert!(!pulse.refuses(Class::Command), "but not for long");
    }
}
