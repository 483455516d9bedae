//! A file whose content can change while the process runs.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, RwLock};

/// How often files are looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Reads a file's content. The error says what it must be, without repeating it.
type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, String> + Send + Sync>;

/// What a file holds, read again when it changes. Content that cannot be read leaves the last that could.
pub(crate) struct Watched<T> {
    path: PathBuf,
    parse: Parse<T>,
    value: RwLock<Arc<T>>,
    seen: Mutex<Stamp>,
    /// What a file that is not there holds, if it may be missing.
    absent: Option<fn() -> T>,
}

/// By what a change is seen.
type Stamp = Option<(SystemTime, u64)>;

impl<T> Watched<T> {
    /// The content of the file at `path`; the error is a sentence about the file.
    pub(crate) fn open(
        path: PathBuf,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let seen = stamp(&path);
        let bytes = fs::read(&path).map_err(|e| format!("the file {} cannot be read ({e})", path.display()))?;
        let value = parse(&bytes).map_err(|what| format!("the file {} {what}", path.display()))?;
        let (value, seen) = (RwLock::new(Arc::new(value)), Mutex::new(seen));
        Ok(Self { path, parse: Box::new(parse), value, seen, absent: None })
    }

    /// The same; a file that is not there, or no longer, holds the default.
    pub(crate) fn open_or_default(
        path: PathBuf,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String>
    where
        T: Default,
    {
        if path.exists() {
            return Ok(Self { absent: Some(T::default), ..Self::open(path, parse)? });
        }
        let value = RwLock::new(Arc::new(T::default()));
        Ok(Self { path, parse: Box::new(parse), value, seen: Mutex::new(None), absent: Some(T::default) })
    }

    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.read())
    }

    /// Reads the file again if it has changed.
    pub(crate) fn look(&self) {
        let now = stamp(&self.path);
        let mut seen = self.seen.lock();
        if *seen == now {
            return;
        }
        *seen = now;
        let path = self.path.display();
        if now.is_none() {
            match self.absent {
                Some(absent) => *self.value.write() = Arc::new(absent()),
                None => tracing::error!(%path, "a file is gone; its last valid content counts"),
            }
            return;
        }
        let value = fs::read(&self.path).map_err(|e| e.to_string()).and_then(|bytes| (self.parse)(&bytes));
        match value {
            Ok(value) => {
                *self.value.write() = Arc::new(value);
                tracing::info!(%path, "read a changed file");
            }
            Err(what) => tracing::error!(%path, what, "a changed file is not valid; the last valid content counts"),
        }
    }
}

fn stamp(path: &std::path::Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
