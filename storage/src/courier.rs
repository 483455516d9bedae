//! Brings many outcomes to those who wait for them on one thread by waking that thread once.
//!
//! A thread that commits for others would else wake their event loop for each of them, which costs a system call a time.

use std::cell::RefCell;

use tokio::sync::{mpsc, oneshot};

/// Whom an outcome is for, and the outcome.
type Letter<T> = (oneshot::Sender<T>, T);

/// A task beside those who wait, in the same runtime, that hands outcomes over. It ends with the runtime, or when nobody
/// holds it.
pub(crate) struct Courier<T>(mpsc::UnboundedSender<Vec<Letter<T>>>);

impl<T> Clone for Courier<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + 'static> Courier<T> {
    /// A courier of the runtime that calls this.
    fn start() -> Self {
        let (letters, mut given) = mpsc::unbounded_channel::<Vec<Letter<T>>>();
        tokio::spawn(async move {
            while let Some(letters) = given.recv().await {
                for (waiting, outcome) in letters {
                    let _it_has_gone = waiting.send(outcome);
                }
            }
        });
        Self(letters)
    }

    /// Brings one outcome. Of many in a row only the first wakes the thread.
    #[cfg(feature = "servers")]
    pub(crate) fn bring(&self, waiting: oneshot::Sender<T>, outcome: T) {
        let _its_runtime_has_ended = self.0.send(vec![(waiting, outcome)]);
    }

    /// The courier that a thread keeps in `kept`; another one where the runtime of the first has ended.
    pub(crate) fn of_thread(kept: &RefCell<Option<Self>>) -> Self {
        let mut kept = kept.borrow_mut();
        match &*kept {
            Some(courier) if !courier.0.is_closed() => courier.clone(),
            _ => kept.insert(Self::start()).clone(),
        }
    }
}

/// Outcomes that are not yet on their way.
pub(crate) struct Post<T>(Vec<(Courier<T>, Vec<Letter<T>>)>);

impl<T> Default for Post<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Post<T> {
    /// Adds an outcome to what its courier will get. There are as many couriers as threads: few.
    pub(crate) fn add(&mut self, courier: &Courier<T>, waiting: oneshot::Sender<T>, outcome: T) {
        match self.0.iter_mut().find(|(known, _)| known.0.same_channel(&courier.0)) {
            Some((_, letters)) => letters.push((waiting, outcome)),
            None => self.0.push((courier.clone(), vec![(waiting, outcome)])),
        }
    }

    /// Gives each courier its own.
    pub(crate) fn send(self) {
        for (courier, letters) in self.0 {
            let _its_runtime_has_ended = courier.0.send(letters);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static KEPT: RefCell<Option<Courier<u32>>> = const { RefCell::new(None) };
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
    }

    #[test]
    fn each_outcome_reaches_the_one_that_waits_for_it() {
        let wait = |number: u32| {
            let (done, outcome) = oneshot::channel();
            let courier = KEPT.with(Courier::of_thread);
            ((courier, done, number), outcome)
        };
        let waiting = || async move {
            let (sent, outcomes): (Vec<_>, Vec<_>) = (0..100).map(wait).unzip();
            let post = std::thread::spawn(move || {
                let mut post = Post::default();
                sent.into_iter().for_each(|(courier, done, number)| post.add(&courier, done, number));
                assert_eq!(post.0.len(), 1, "one courier for one thread");
                post.send();
            });
            post.join().expect("sent");
            for (number, outcome) in outcomes.into_iter().enumerate() {
                assert_eq!(outcome.await, Ok(number as u32));
            }
        };
        // The second runtime of the thread has a courier of its own, for that of the first has ended.
        runtime().block_on(waiting());
        runtime().block_on(waiting());
    }
}
