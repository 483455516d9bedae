//! Tables beside the live ones, into which everything is folded anew and which then take their place.

use std::sync::Arc;

use async_trait::async_trait;

use super::RecordStore;
use crate::StoreError;

/// How far a rebuild is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is nothing beside the live tables.
    Nothing,
    /// New tables are being filled.
    Begun,
    /// The new tables are the live ones, and the old ones are kept.
    Switched,
}

/// The tables that are to take the place of a store's.
#[async_trait]
pub trait Successor: Send + Sync {
    /// How far it is.
    async fn standing(&self) -> Result<Standing, StoreError>;

    /// The new tables: those of a rebuild that was begun, or fresh ones.
    async fn open(&self) -> Result<Arc<dyn RecordStore>, StoreError>;

    /// Does what can be done before a switch, while the live tables are in use. What [`open`](Self::open) gave must not be
    /// used any more.
    async fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Puts the new tables in the place of the live ones, checkpoints included, in one step, and keeps the old ones. Fails as
    /// unavailable, having changed nothing, if somebody keeps the live ones from being switched now.
    async fn switch(&self) -> Result<(), StoreError>;

    /// Drops the new tables.
    async fn discard(&self) -> Result<(), StoreError>;

    /// Drops the old tables that a switch kept.
    async fn discard_old(&self) -> Result<(), StoreError>;
}
