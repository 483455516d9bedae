//! A store that another takes the place of while it is used: what is under way ends first, what comes waits.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use likewise_schema::{Content, ContentType, Pair, Partition, Position, UserId};
use tokio::sync::RwLock;

use super::{
    Batch, Checkpoint, CommitError, Committed, Count, Fence, First, Gain, Generation, LikeRecord, Liked, Liker, Owner,
    RecordStore, Repair, Scan, Snapshot,
};
use crate::StoreError;

const STORE: &str = "the record store";

/// The store of the moment.
pub struct ReplaceableRecords {
    /// None while it is replaced, and for good if that failed.
    current: RwLock<Option<Arc<dyn RecordStore>>>,
}

impl ReplaceableRecords {
    /// Begins with a store, which nobody else holds.
    pub fn new(store: Arc<dyn RecordStore>) -> Self {
        Self { current: RwLock::new(Some(store)) }
    }

    /// Closes the store, does `replace`, and goes on with what that gives. Where it fails, with what `again` gives.
    pub async fn replace<T, F: Future<Output = Result<Arc<dyn RecordStore>, StoreError>>>(
        &self,
        replace: impl FnOnce() -> F,
        again: impl FnOnce() -> T,
    ) -> Result<(), StoreError>
    where
        T: Future<Output = Result<Arc<dyn RecordStore>, StoreError>>,
    {
        let mut current = self.current.write().await;
        if let Some(store) = current.take() {
            // Its writer ends, and its files are closed, before anything else.
            let _it_panicked = tokio::task::spawn_blocking(move || drop(store)).await;
        }
        match replace().await {
            Ok(store) => {
                *current = Some(store);
                Ok(())
            }
            Err(error) => {
                *current = again().await.ok();
                Err(error)
            }
        }
    }
}

fn gone() -> StoreError {
    StoreError::unavailable(STORE, "its tables could not be replaced; start again")
}

/// Does something with the store of the moment, which stays open until that ends.
macro_rules! with {
    ($self:ident, $store:ident => $call:expr) => {{
        let current = $self.current.read().await;
        let $store = current.as_ref().ok_or_else(gone)?;
        $call.await
    }};
}

#[async_trait]
impl RecordStore for ReplaceableRecords {
    async fn acquire(&self, partition: Partition, owner: &Owner) -> Result<Checkpoint, StoreError> {
        with!(self, store => store.acquire(partition, owner))
    }

    fn home(&self, partition: Partition) -> usize {
        self.current.try_read().ok().and_then(|current| Some(current.as_ref()?.home(partition))).unwrap_or_default()
    }

    fn fault(&self) -> Option<StoreError> {
        match self.current.try_read() {
            Ok(current) => current.as_ref().map_or_else(|| Some(gone()), |store| store.fault()),
            Err(_) => None,
        }
    }

    async fn commit(&self, batch: Batch) -> Result<Committed, CommitError> {
        with!(self, store => store.commit(batch))
    }

    async fn repair(&self, fence: Fence, generation: Generation, repair: Repair) -> Result<Checkpoint, CommitError> {
        with!(self, store => store.repair(fence, generation, repair))
    }

    async fn renew_generation(&self, fence: Fence, generation: Generation) -> Result<Checkpoint, CommitError> {
        with!(self, store => store.renew_generation(fence, generation))
    }

    async fn checkpoint(&self, partition: Partition) -> Result<Option<Checkpoint>, StoreError> {
        with!(self, store => store.checkpoint(partition))
    }

    async fn counts(&self, contents: &[Content]) -> Result<Snapshot<Vec<Option<Count>>>, StoreError> {
        with!(self, store => store.counts(contents))
    }

    async fn rows(&self, pairs: &[Pair]) -> Result<Snapshot<Vec<Option<LikeRecord>>>, StoreError> {
        with!(self, store => store.rows(pairs))
    }

    async fn likers(
        &self,
        content: Content,
        after: Option<Liker>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liker>>, StoreError> {
        with!(self, store => store.likers(content, after, limit))
    }

    async fn likes_of(
        &self,
        user: UserId,
        content_type: Option<ContentType>,
        after: Option<Liked>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liked>>, StoreError> {
        with!(self, store => store.likes_of(user, content_type, after, limit))
    }

    async fn firsts(&self, from: &[Position], limit: usize) -> Result<Snapshot<Vec<First>>, StoreError> {
        with!(self, store => store.firsts(from, limit))
    }

    async fn gains(&self, slot: i64, limit: usize) -> Result<Vec<Gain>, StoreError> {
        with!(self, store => store.gains(slot, limit))
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Checkpoint>, StoreError> {
        with!(self, store => store.scan(scan))
    }
}
