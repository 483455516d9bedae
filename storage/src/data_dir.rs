//! One service owns a data directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::StoreError;

const STORE: &str = "the data directory";

/// The right to write in a directory, held until dropped or until the process ends, however it ends.
#[derive(Debug)]
pub struct DataDir {
    lock: File,
    path: PathBuf,
}

impl DataDir {
    /// Makes the directory if it is missing and takes its lock. While another process holds it, the error names it.
    pub fn acquire(path: &Path) -> Result<Self, StoreError> {
        let fail =
            |what: &str, e: std::io::Error| StoreError::unusable(STORE, format!("{} {what} ({e})", path.display()));
        std::fs::create_dir_all(path).map_err(|e| fail("cannot be made", e))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut lock = options.open(path.join("lock")).map_err(|e| fail("cannot be written", e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _unreadable = lock.read_to_string(&mut owner);
                let owner = if owner.is_empty() { "another process" } else { owner.trim() };
                return Err(StoreError::unusable(
                    STORE,
                    format!("{} is in use by {owner}; stop it or choose another --data-dir", path.display()),
                ));
            }
            Err(TryLockError::Error(e)) => return Err(fail("cannot be locked", e)),
        }
        let mut held = Self { lock, path: path.to_owned() };
        held.announce(None)?;
        Ok(held)
    }

    /// Writes who holds the lock, for the sentence that a second process gets.
    pub fn announce(&mut self, address: Option<&str>) -> Result<(), StoreError> {
        let pid = std::process::id();
        let owner = match address {
            Some(address) => format!("process {pid}, which listens on {address}\n"),
            None => format!("process {pid}\n"),
        };
        let mut write = || {
            self.lock.set_len(0)?;
            self.lock.rewind()?;
            self.lock.write_all(owner.as_bytes())
        };
        write().map_err(|e| StoreError::unavailable(STORE, format!("{}: {e}", self.path.display())))
    }
}
