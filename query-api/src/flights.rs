//! Of many readers that miss the same count at once, one asks the records, and the others take what it brings.

use std::{collections::HashMap, sync::Arc};

use likewise_schema::Content;
use likewise_storage::records::Claim;
use parking_lot::Mutex;
use tokio::sync::watch;

type Brought = Option<(i64, Claim)>;

/// Counts that are being read from the records.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<Content, watch::Receiver<Brought>>>);

/// The reads of this reader. Those that have brought nothing when it is dropped end without a value.
pub(crate) struct Own {
    flights: Arc<Flights>,
    under_way: HashMap<Content, watch::Sender<Brought>>,
}

/// The read of another.
pub(crate) struct Other(watch::Receiver<Brought>);

impl Flights {
    /// Begins a read of each content that nobody reads, and joins the others.
    pub(crate) fn begin(self: &Arc<Self>, contents: &[Content]) -> (Own, Vec<(Content, Other)>) {
        let mut all = self.0.lock();
        let (mut under_way, mut others) = (HashMap::new(), Vec::new());
        for content in contents {
            match all.get(content) {
                Some(other) => others.push((*content, Other(other.clone()))),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    all.insert(*content, receiver);
                    under_way.insert(*content, sender);
                }
            }
        }
        (Own { flights: Arc::clone(self), under_way }, others)
    }
}

impl Own {
    /// Whether this reader is the one that reads a content.
    pub(crate) fn has(&self, content: &Content) -> bool {
        self.under_way.contains_key(content)
    }

    /// Gives a count to those who wait.
    pub(crate) fn bring(&mut self, content: &Content, count: i64, claim: Claim) {
        if let Some(sender) = self.under_way.remove(content) {
            sender.send_replace(Some((count, claim)));
            self.flights.0.lock().remove(content);
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if !self.under_way.is_empty() {
            let mut all = self.flights.0.lock();
            self.under_way.keys().for_each(|content| drop(all.remove(content)));
        }
    }
}

impl Other {
    /// What the other reader brings; none if it failed.
    pub(crate) async fn brought(mut self) -> Brought {
        self.0.wait_for(Option::is_some).await.ok().and_then(|brought| *brought)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::{claim, post};

    #[tokio::test]
    async fn one_reads_and_the_others_take_what_it_brings() {
        let flights = Arc::new(Flights::default());
        let (mut own, none) = flights.begin(&[post(1), post(2)]);
        assert!(none.is_empty() && own.has(&post(1)));
        let (theirs, mut others) = flights.begin(&[post(1), post(2), post(3)]);
        assert!(theirs.has(&post(3)) && !theirs.has(&post(1)) && others.len() == 2);
        let claim = claim(0);
        own.bring(&post(1), 5, claim);
        drop(own);
        let (_, second) = others.pop().expect("two");
        let (_, first) = others.pop().expect("two");
        assert_eq!(first.brought().await, Some((5, claim)));
        assert_eq!(second.brought().await, None, "its reader has ended");
        drop(theirs);
        assert!(flights.0.lock().is_empty());
    }
}
