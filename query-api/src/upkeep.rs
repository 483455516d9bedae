//! What keeps the sources of reads good beside the requests.

use std::{sync::Arc, time::Duration};

use crate::reads::Reads;

/// How often the filter of contents that were ever liked is brought up to the records.
const FILTER_EVERY: Duration = Duration::from_secs(1);

impl Reads {
    /// Hears of changes and keeps the filter of contents; runs as long as the role does.
    pub async fn keep_up(self: Arc<Self>) {
        tokio::join!(self.hear(), self.filter());
    }

    async fn hear(&self) {
        let mut changes = self.ports.counters.changes();
        self.local.listen(changes.liveness());
        while let Some(change) = changes.next().await {
            self.local.changed(&change);
            self.never.changed(&change);
        }
    }

    async fn filter(&self) {
        loop {
            let store = self.ports.replica.as_ref().unwrap_or(&self.ports.records);
            let is_more = self.never.advance(&**store, self.ports.partitions).await;
            if !is_more.unwrap_or(false) {
                tokio::time::sleep(FILTER_EVERY).await;
            }
        }
    }
}
