//! What keeps the sources of reads good beside the requests.

use std::{sync::Arc, time::Duration};

use likewise_storage::RecordStore;
use tokio::time::sleep;

use crate::{
    live::Told,
    reads::{After, Reads},
};

/// How often the filter of contents that were ever liked is brought up to the records.
const FILTER_EVERY: Duration = Duration::from_secs(1);
/// How often what is watched is read, in case a change was not heard of.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Contents that are read at once.
const READ_MAX: usize = 100;

impl Reads {
    /// Hears of changes, tells those who watch, keeps the filter of contents and what is trending; runs as long as the
    /// role does.
    pub async fn keep_up(self: Arc<Self>) {
        tokio::join!(self.hear(), self.look_at_what_is_watched(), self.filter(), self.trend());
    }

    /// The replica, if there is one: what is read here may lag, and says so.
    fn spare(&self) -> &dyn RecordStore {
        &**self.ports.replica.as_ref().unwrap_or(&self.ports.records)
    }

    async fn hear(&self) {
        let mut changes = self.ports.counters.changes();
        self.local.listen(changes.liveness());
        while let Some(change) = changes.next().await {
            self.local.changed(&change);
            self.never.changed(&change);
            self.live.changed(&change);
        }
    }

    async fn look_at_what_is_watched(self: &Arc<Self>) {
        loop {
            sleep(LOOK_EVERY).await;
            for contents in self.live.contents().chunks(READ_MAX) {
                match self.items(contents, None, &After::default()).await {
                    Ok(items) => items.into_iter().for_each(|item| {
                        self.live.tell(&item.content, Told { count: item.count, claim: item.claim, as_of: item.as_of });
                    }),
                    Err(_) => contents.iter().for_each(|content| self.live.doubt(content)),
                }
            }
        }
    }

    async fn filter(&self) {
        loop {
            let is_more = self.never.advance(self.spare(), self.ports.partitions).await;
            if !is_more.unwrap_or(false) {
                sleep(FILTER_EVERY).await;
            }
        }
    }

    /// Brings what is trending at the start into the cache, then keeps computing it.
    async fn trend(self: &Arc<Self>) {
        let (records, clock) = (self.spare(), &self.ports.clock);
        let _again_soon = self.trending.compute(records, clock).await;
        for contents in self.trending.busiest().chunks(READ_MAX) {
            let _as_a_reader_would = self.items(contents, None, &After::default()).await;
        }
        self.trending.keep_computing(records, clock).await;
    }
}
