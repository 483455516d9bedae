//! Brings what is in a write-ahead log into its file, on a thread beside the writer, so that commits do not wait.
//!
//! SQLite begins the write-ahead log anew only when all of it is in the file, which a writer that never pauses does
//! not let happen. So when it has grown long, the writer itself brings over what came since the thread's last pass,
//! which is little.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use rusqlite::Connection;

use crate::StoreError;

/// At how many pages of a write-ahead log something is done about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalLimits {
    /// The thread makes a pass whenever so many were added.
    pub(crate) pass: u32,
    /// From here on the writer brings over the rest.
    pub(crate) long: u32,
}

thread_local! {
    /// Pages in the write-ahead log after the last commit of this thread's connection.
    static PAGES: Cell<u32> = const { Cell::new(0) };
}

/// The thread and what the writer knows of it. It ends when this is dropped.
pub(crate) struct WalCheckpoints {
    limits: WalLimits,
    passes: Option<SyncSender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    /// A pass ended, and the writer has not yet made use of it.
    passed: Arc<AtomicBool>,
    /// Pages when a pass was last asked for.
    asked_at: u32,
}

impl WalCheckpoints {
    /// Starts the thread on a connection of its own.
    pub(crate) fn start(limits: WalLimits, beside: Connection) -> Result<Self, StoreError> {
        // Without room to wait: a pass is asked for only while none is under way, so that the writer, which brings over
        // the rest before it asks again, finds the file free.
        let (passes, asked) = sync_channel::<()>(0);
        let passed = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&passed);
        let run = move || {
            while asked.recv().is_ok() {
                let _the_writer_looks_again = checkpoint(&beside);
                done.store(true, Ordering::Release);
            }
        };
        let thread = thread::Builder::new().name("sqlite wal".into()).spawn(run);
        let thread = thread.map_err(|e| StoreError::unavailable("the thread beside the writer", e))?;
        Ok(Self { limits, passes: Some(passes), thread: Some(thread), passed, asked_at: 0 })
    }

    /// Takes over from SQLite's own checkpoints, which stop the writer, on the connection that this thread writes.
    pub(crate) fn watch(connection: &Connection) {
        PAGES.set(0);
        connection.wal_hook(Some(|_, pages| {
            PAGES.set(u32::try_from(pages).unwrap_or(0));
            Ok(())
        }));
    }

    /// Is told of each commit, by the writer.
    pub(crate) fn committed(&mut self, connection: &Connection) {
        let pages = PAGES.get();
        if pages < self.asked_at {
            self.asked_at = 0;
        }
        if pages >= self.limits.long && self.passed.load(Ordering::Acquire) && checkpoint(connection) {
            self.passed.store(false, Ordering::Release);
        }
        if pages - self.asked_at >= self.limits.pass
            && let Some(passes) = &self.passes
            && passes.try_send(()).is_ok()
        {
            self.asked_at = pages;
        }
    }
}

/// Copies as much as readers and the writer let it; true if that was all. What fails is tried again after more commits:
/// until then the write-ahead log holds it, as durably as the file would.
fn checkpoint(connection: &Connection) -> bool {
    let row = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    });
    matches!(row, Ok((0, pages, copied)) if copied == pages)
}

impl Drop for WalCheckpoints {
    fn drop(&mut self) {
        self.passes = None;
        if let Some(thread) = self.thread.take() {
            let _it_panicked = thread.join();
        }
    }
}
