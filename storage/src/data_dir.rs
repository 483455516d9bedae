//! One service owns a data directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::StoreError;

const STORE: &str = "the data directory";
/// Begins the line that says where an operator is heard.
const OPERATOR: &str = "operator ";

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
                let owner = owner.lines().next().unwrap_or("another process");
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

    /// Where the process that holds the directory takes what an operator asks of it; none if nobody holds it, or if that
    /// process takes nothing.
    pub fn operator_of(path: &Path) -> Option<String> {
        let lock = File::open(path.join("lock")).ok()?;
        if !matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return None;
        }
        let text = std::fs::read_to_string(path.join("lock")).ok()?;
        text.lines().find_map(|line| line.strip_prefix(OPERATOR)).map(str::to_owned)
    }

    /// Writes who holds the lock, for the sentence that a second process gets, and where it takes what an operator asks.
    pub fn announce(&mut self, addresses: Option<(&str, &str)>) -> Result<(), StoreError> {
        let pid = std::process::id();
        let owner = match addresses {
            Some((address, operator)) => {
                format!("process {pid}, which listens on {address}\n{OPERATOR}{operator}\n")
            }
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
