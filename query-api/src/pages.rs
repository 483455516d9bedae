//! Pages of lists: from the replica, if there is one that is good enough, else from the primary.

use likewise_schema::{Content, ContentType, Timestamp, UserId};
use likewise_storage::{
    RecordStore, StoreError,
    records::{Checkpoint, Claim, Liked, Liker, Snapshot},
};
use tokio::time::Instant;

use crate::reads::{After, ReadError, Reads};

impl Reads {
    /// One page of a content's likers, and when it is from if it may be old.
    pub async fn likers(
        &self,
        content: Content,
        last: Option<Liker>,
        limit: usize,
        after: &After,
    ) -> Result<(Vec<Liker>, Option<Timestamp>), ReadError> {
        let partition = self.ports.partitions.partition_of(&content);
        let read = async |store: &dyn RecordStore| store.likers(content, last, limit).await;
        self.page(read, |claim| claim.partition == partition, after).await
    }

    /// One page of a user's likes, and when it is from if it may be old. It is as old as its oldest partition.
    pub async fn likes_of(
        &self,
        user: UserId,
        content_type: Option<ContentType>,
        last: Option<Liked>,
        limit: usize,
        after: &After,
    ) -> Result<(Vec<Liked>, Option<Timestamp>), ReadError> {
        let read = async |store: &dyn RecordStore| store.likes_of(user, content_type, last, limit).await;
        self.page(read, |_| true, after).await
    }

    /// Asks the replica, if there is one, then the primary, until one has reached what was asked for.
    async fn page<T>(
        &self,
        read: impl AsyncFn(&dyn RecordStore) -> Result<Snapshot<Vec<T>>, StoreError>,
        is_part: impl Fn(&Claim) -> bool,
        after: &After,
    ) -> Result<(Vec<T>, Option<Timestamp>), ReadError> {
        let claims_of = |snapshot: &Snapshot<Vec<T>>| -> Vec<Claim> {
            snapshot.checkpoints.iter().map(Checkpoint::claim).filter(&is_part).collect()
        };
        if let Some(replica) = &self.ports.replica
            && let Ok(snapshot) = read(&**replica).await
        {
            let claims = claims_of(&snapshot);
            if !claims.is_empty() && claims.iter().all(|claim| self.as_of(claim, after).is_none()) {
                return Ok((snapshot.value, None));
            }
        }
        let deadline = Instant::now() + after.wait;
        loop {
            let snapshot = read(&*self.ports.records).await?;
            let claims = claims_of(&snapshot);
            if claims.is_empty() {
                return Err(ReadError);
            }
            let missing = claims.iter().find(|claim| !after.is_reached_by(claim)).map(|claim| claim.partition);
            match missing.filter(|_| Instant::now() < deadline) {
                Some(partition) => self.wait(partition, after, deadline).await,
                None => {
                    let as_of = claims.iter().filter_map(|claim| self.as_of(claim, after)).min();
                    return Ok((snapshot.value, as_of));
                }
            }
        }
    }
}
