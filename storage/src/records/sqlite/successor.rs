//! A rebuild of an embedded file: the new one in the folder `rebuild`, the old one kept in `before-rebuild`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;

use super::{APPLICATION_ID, STORE, SqliteRecords, file};
use crate::{
    StoreError,
    records::{RecordStore, Shards, Standing, Successor},
    sqlite::File,
};

/// Pages in memory while it is filled, beside a service that has its own.
const CACHE_KIB: u32 = 24_576;
/// How long a reading command that has the file open is waited for, while nobody can read or write.
const READERS_MAX: Duration = Duration::from_millis(200);

/// The file that is to take the place of another.
pub struct SqliteSuccessor {
    path: PathBuf,
    shards: Shards,
}

fn failed(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::unavailable(STORE, format!("{}: {error}", path.display()))
}

impl SqliteSuccessor {
    /// Of the file at `path`. Whoever switches owns its directory, and has it open no more.
    pub fn new(path: &Path, shards: &Shards) -> Self {
        Self { path: path.to_owned(), shards: shards.clone() }
    }

    /// The file of the same name in a folder beside.
    fn within(&self, folder: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default();
        self.path.parent().unwrap_or(Path::new("")).join(folder).join(name)
    }

    fn fresh(&self) -> PathBuf {
        self.within("rebuild")
    }

    fn old(&self) -> PathBuf {
        self.within("before-rebuild")
    }

    /// Brings the write-ahead log into the file, and leaves none behind: another file's would be taken for its own. Fails if
    /// somebody has the file open for longer than a moment.
    fn settle(path: &Path) -> Result<(), StoreError> {
        let file = file(path);
        let connection = file.open_writable(APPLICATION_ID, likewise_schema::sql::SQLITE_RECORDS)?;
        let settled = connection
            .busy_timeout(READERS_MAX)
            .and_then(|()| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)));
        if settled.map_err(|e| file.error(&e))? != 0 {
            let reason = "a reading command has it open; try again when it has ended";
            return Err(StoreError::unavailable(STORE, reason));
        }
        drop(connection);
        for end in ["-wal", "-shm"] {
            let beside = PathBuf::from(format!("{}{end}", path.display()));
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&beside, &error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn switch_now(&self) -> Result<(), StoreError> {
        let (fresh, old) = (self.fresh(), self.old());
        let folder = |path: &Path| path.parent().unwrap_or(Path::new(".")).to_owned();
        Self::settle(&fresh)?;
        Self::settle(&self.path)?;
        fs::create_dir_all(folder(&old)).map_err(|e| failed(&old, &e))?;
        // A run that was killed here may have made the link already.
        let _there_is_none = fs::remove_file(&old);
        fs::hard_link(&self.path, &old).map_err(|e| failed(&old, &e))?;
        // The one step: the name stands for the old file before it, for the new one after it.
        fs::rename(&fresh, &self.path).map_err(|e| failed(&self.path, &e))?;
        for folder in [folder(&self.path), folder(&fresh), folder(&old)] {
            let synced = fs::File::open(&folder).and_then(|dir| dir.sync_all());
            synced.map_err(|e| failed(&folder, &e))?;
        }
        let _others_are_in_it = fs::remove_dir(folder(&fresh));
        Ok(())
    }

    /// Removes a file with what SQLite keeps beside it, and its folder once that is empty.
    fn remove(path: &Path) -> Result<(), StoreError> {
        for end in ["", "-wal", "-shm"] {
            let path = PathBuf::from(format!("{}{end}", path.display()));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, &error)),
                _ => {}
            }
        }
        if let Some(folder) = path.parent() {
            let _others_are_in_it = fs::remove_dir(folder);
        }
        Ok(())
    }
}

#[async_trait]
impl Successor for SqliteSuccessor {
    async fn standing(&self) -> Result<Standing, StoreError> {
        Ok(match (self.fresh().exists(), self.old().exists()) {
            (true, _) => Standing::Begun,
            (false, true) => Standing::Switched,
            (false, false) => Standing::Nothing,
        })
    }

    async fn open(&self) -> Result<Arc<dyn RecordStore>, StoreError> {
        let fresh = self.fresh();
        if let Some(folder) = fresh.parent() {
            fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        }
        let file = File { cache_kib: CACHE_KIB, ..file(&fresh) };
        Ok(Arc::new(SqliteRecords::open_file(file, &self.shards)?))
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let (fresh, live) = (self.fresh(), self.path.clone());
        let prepare = move || {
            Self::settle(&fresh)?;
            let file = file(&live);
            let connection = file.open_writable(APPLICATION_ID, likewise_schema::sql::SQLITE_RECORDS)?;
            let written = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            written.map_err(|e| file.error(&e))
        };
        let prepared = tokio::task::spawn_blocking(prepare).await;
        prepared.unwrap_or_else(|e| Err(StoreError::unavailable(STORE, e)))
    }

    async fn switch(&self) -> Result<(), StoreError> {
        let this = Self { path: self.path.clone(), shards: self.shards.clone() };
        let switched = tokio::task::spawn_blocking(move || this.switch_now()).await;
        switched.unwrap_or_else(|e| Err(StoreError::unavailable(STORE, e)))
    }

    async fn discard(&self) -> Result<(), StoreError> {
        Self::remove(&self.fresh())
    }

    async fn discard_old(&self) -> Result<(), StoreError> {
        Self::remove(&self.old())
    }
}
