//! Files that only their owner may read.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

/// Replaces the file at `path`: whole or not at all, wherever the process is killed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}
