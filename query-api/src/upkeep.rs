//! What keeps the sources of reads good beside the requests.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use likewise_schema::Content;
use likewise_storage::RecordStore;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    live::Told,
    reads::{After, Item, Reads},
};

/// How often the filter of contents that were ever liked is brought up to the records.
const FILTER_EVERY: Duration = Duration::from_secs(1);
/// How often what is watched is read, in case a change was not heard of, and how long that may take.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_millis(500);
/// Contents that are read at once.
const READ_MAX: usize = 100;
/// How long after one of these tasks broke it begins again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Reads {
    /// Hears of changes, tells those who watch, keeps the filter of contents and what is trending, and compares the cache
    /// with the records; runs as long as the role does.
    pub async fn keep_up(self: Arc<Self>) {
        tokio::join!(
            for_ever(&self, "hearing of changes", |reads| async move { reads.hear().await }),
            for_ever(&self, "looking at what is watched", |reads| async move { reads.look_at_what_is_watched().await }),
            for_ever(&self, "the filter of contents", |reads| async move { reads.filter().await }),
            for_ever(&self, "what is trending", |reads| async move { reads.trend().await }),
            for_ever(&self, "comparing the cache", |reads| async move { reads.reconcile().await }),
        );
    }

    /// The replica, if there is one, and the primary: what is read here may lag, and says so.
    fn spares(&self) -> impl Iterator<Item = &dyn RecordStore> {
        self.ports.replica.iter().chain([&self.ports.records]).map(|store| &**store)
    }

    async fn hear(&self) {
        let mut changes = self.ports.counters.changes();
        self.local.listen(changes.liveness());
        while let Some(change) = changes.next().await {
            self.local.changed(&change);
            self.never.changed(&change);
            self.live.changed(&change, self.as_of(&change.claim, &After::default()));
        }
    }

    async fn look_at_what_is_watched(self: &Arc<Self>) {
        loop {
            sleep(LOOK_EVERY).await;
            for contents in self.live.contents().chunks(READ_MAX) {
                match self.look_at(contents).await {
                    Some(items) => items.iter().for_each(|item| self.tell(item)),
                    // One that cannot be read must not make the others doubtful.
                    None => drop(join_all(contents.iter().map(|content| self.look_at_one(content))).await),
                }
            }
        }
    }

    async fn look_at(self: &Arc<Self>, contents: &[Content]) -> Option<Vec<Item>> {
        timeout(LOOK_MAX, self.items(contents, None, &After::default())).await.ok()?.ok()
    }

    async fn look_at_one(self: &Arc<Self>, content: &Content) {
        match self.look_at(std::slice::from_ref(content)).await {
            Some(items) => items.iter().for_each(|item| self.tell(item)),
            None => self.live.doubt(content),
        }
    }

    fn tell(&self, item: &Item) {
        self.live.tell(&item.content, Told { count: item.count, claim: item.claim, as_of: item.as_of });
    }

    async fn filter(&self) {
        loop {
            let mut is_more = false;
            for records in self.spares() {
                if let Ok(more) = self.never.advance(records, self.ports.partitions).await {
                    is_more = more;
                    break;
                }
            }
            if !is_more {
                sleep(FILTER_EVERY).await;
            }
        }
    }

    /// Brings what is trending at the start into the cache, then keeps computing it.
    async fn trend(self: &Arc<Self>) {
        let mut is_warm = false;
        loop {
            let pause = self.trending.compute(self.spares(), &self.ports.clock, |claim| self.is_old(claim)).await;
            if !is_warm {
                for contents in self.trending.busiest().chunks(READ_MAX) {
                    let _as_a_reader_would = self.items(contents, None, &After::default()).await;
                }
                is_warm = true;
            }
            sleep(pause).await;
        }
    }
}

/// Runs a task in one of its own, and again should it break.
async fn for_ever<F: Future<Output = ()> + Send + 'static>(
    reads: &Arc<Reads>,
    what: &str,
    task: impl Fn(Arc<Reads>) -> F,
) {
    loop {
        // In a set, so that the task ends with this one.
        let mut tasks = JoinSet::new();
        tasks.spawn(task(Arc::clone(reads)));
        let ended = tasks.join_next().await.unwrap_or(Ok(()));
        if ended.as_ref().is_err_and(tokio::task::JoinError::is_panic) {
            tracing::error!(what, "a task broke and begins again");
        }
        sleep(AGAIN_AFTER).await;
    }
}
