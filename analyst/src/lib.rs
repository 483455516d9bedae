//! The log for analysts: the whole of it as one stream, counts at any past moment, exports to Parquet, and proofs that
//! what was derived from it equals it.
//!
//! May depend on the schema, the storage ports and on libraries for files. Must never know which adapter is behind a
//! port, HTTP, a command line, or the projector: it works out what a like means a second time ([`model`]), so that
//! neither can hide the other's mistakes.

#![forbid(unsafe_code)]

pub mod counts;
pub mod export;
mod ledger;
pub mod line;
pub mod model;
pub mod range;
pub mod reader;
mod spill;
pub mod stream;
pub mod top;
pub mod verify;

use std::sync::Arc;

use likewise_storage::StoreError;

/// Told how many more records were read.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Why an analysis ended early: one sentence for the person who asked for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A store did not give what was asked for.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was asked for cannot be given.
    #[error("{0}")]
    Asked(String),
}

impl Error {
    fn asked(sentence: impl Into<String>) -> Self {
        Self::Asked(sentence.into())
    }

    /// A file of this analysis that cannot be written or read.
    fn file(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Asked(format!("{what} ({error})"))
    }
}
