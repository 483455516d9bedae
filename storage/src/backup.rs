//! Copies of embedded files while they are in use.

use std::path::Path;

use crate::{StoreError, log, records};

/// Copies the log at `from` to a new file. What is appended meanwhile is left out.
pub fn copy_log(from: &Path, to: &Path) -> Result<(), StoreError> {
    log::sqlite_file(from).copy(log::SQLITE_APPLICATION_ID, to)
}

/// Copies records at `from` to a new file, as one snapshot shows them.
pub fn copy_records(from: &Path, to: &Path) -> Result<(), StoreError> {
    records::sqlite_file(from).copy(records::SQLITE_APPLICATION_ID, to)
}
