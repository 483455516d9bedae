//! What the SQLite adapters share: opening a file, one writing thread with group commit, a pool of readers.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
    vec::Drain,
};

use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    StoreError,
    wal::{WalCheckpoints, WalLimits},
};

/// How many jobs one transaction takes at most; bounds its memory and how long the first of them waits.
const JOBS_PER_COMMIT_MAX: usize = 4096;
/// How many jobs may wait for the writer; past it a caller waits in line, within its own deadline.
const QUEUE_MAX: usize = 16_384;
/// After a commit of so many jobs the next one waits a moment unless half as many are there again: under load, time
/// is then spent on jobs rather than on commits. A job that comes alone does not wait.
const LINGER_FROM: usize = 4;
const LINGER: Duration = Duration::from_micros(100);
/// Pages that each reader keeps in memory; the rest is in the operating system's cache.
const READER_CACHE_KIB: u32 = 8192;

/// How long after an error that leaves the file in doubt it is opened anew.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// What a writer did, by store.
struct Meters {
    commits: Counter,
    jobs: Counter,
    failures: Counter,
    seconds: Histogram,
}

impl Meters {
    fn new(store: &'static str) -> Self {
        Self {
            commits: counter!("likewise_commits_total", "store" => store),
            jobs: counter!("likewise_commit_jobs_total", "store" => store),
            failures: counter!("likewise_commit_failures_total", "store" => store),
            seconds: histogram!("likewise_commit_seconds", "store" => store),
        }
    }

    fn count(&self, jobs: usize, started: Instant, failed: bool) {
        self.commits.increment(1);
        self.jobs.increment(jobs as u64);
        self.failures.increment(u64::from(failed));
        self.seconds.record(started.elapsed().as_secs_f64());
    }
}

/// How a file is opened and what its store is called in errors.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) store: &'static str,
    /// Pages that the writer keeps in memory, in KiB.
    pub(crate) cache_kib: u32,
    /// The size of a page of a new file.
    pub(crate) page_bytes: u32,
    /// `FULL`: a commit survives a power cut. `NORMAL`: it survives a crash of the process.
    pub(crate) synchronous: &'static str,
    /// For a thread that brings the write-ahead log into the file. None: the writer does, every 1,000 pages, which is
    /// cheaper where a commit writes few.
    pub(crate) wal: Option<WalLimits>,
}

impl File {
    /// Opens for writing, making the file and its tables when it is new.
    pub(crate) fn open_writable(&self, application_id: i32, schema: &str) -> Result<Connection, StoreError> {
        let connection = Connection::open(&self.path).map_err(|e| self.error(&e))?;
        let version = self.version(&connection, application_id)?;
        let set_up = || {
            self.prepare(&connection)?;
            if version == 0 {
                connection.execute_batch(&format!(
                    "BEGIN IMMEDIATE; {schema} PRAGMA application_id = {application_id}; PRAGMA user_version = 1; COMMIT;"
                ))?;
            }
            Ok(())
        };
        set_up().map_err(|e| self.error(&e))?;
        Ok(connection)
    }

    /// Opens a file that was writable before.
    fn reopen(&self) -> Result<Connection, StoreError> {
        let connection =
            Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|e| self.error(&e))?;
        self.prepare(&connection).map_err(|e| self.error(&e))?;
        Ok(connection)
    }

    fn prepare(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.pragma_update(None, "page_size", self.page_bytes)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", self.synchronous)?;
        connection.pragma_update(None, "cache_size", -i64::from(self.cache_kib))?;
        connection.pragma_update(None, "busy_timeout", 5000)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(())
    }

    /// Opens for reading, beside a process that writes.
    pub(crate) fn open_readable(&self, application_id: i32) -> Result<Connection, StoreError> {
        if !self.path.exists() {
            let reason =
                format!("there is no file {}; has a service run with this data directory?", self.path.display());
            return Err(StoreError::unusable(self.store, reason));
        }
        let connection =
            Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| self.error(&e))?;
        if self.version(&connection, application_id)? == 0 {
            return Err(StoreError::unusable(self.store, format!("{} is empty", self.path.display())));
        }
        let set_up = || {
            connection.pragma_update(None, "cache_size", -i64::from(READER_CACHE_KIB))?;
            connection.pragma_update(None, "busy_timeout", 5000)?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(())
        };
        set_up().map_err(|e| self.error(&e))?;
        Ok(connection)
    }

    /// Copies what one snapshot shows into a new file, which is on disk in the end. Others may write meanwhile.
    pub(crate) fn copy(&self, application_id: i32, to: &Path) -> Result<(), StoreError> {
        let connection = self.open_readable(application_id)?;
        let copied = connection.execute("VACUUM INTO ?1", [to.display().to_string()]);
        copied.map_err(|e| {
            StoreError::unavailable(
                self.store,
                format!("{} cannot be copied to {} ({e})", self.path.display(), to.display()),
            )
        })?;
        let synced = std::fs::File::open(to).and_then(|file| file.sync_all());
        synced.map_err(|e| StoreError::unavailable(self.store, format!("{}: {e}", to.display())))
    }

    /// The schema version, 0 for a new file. Refuses a foreign, newer or damaged file.
    fn version(&self, connection: &Connection, application_id: i32) -> Result<i64, StoreError> {
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let version = pragma("user_version").map_err(|e| self.error(&e))?;
        let found = pragma("application_id").map_err(|e| self.error(&e))?;
        let unusable = |what: &str| Err(StoreError::unusable(self.store, format!("{} {what}", self.path.display())));
        let objects = || connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
        match (version, found) {
            (0, 0) if objects().map_err(|e| self.error(&e))? == 0 => Ok(0),
            (1, id) if id == i64::from(application_id) => Ok(1),
            (_, id) if id == i64::from(application_id) => unusable("was written by a newer version of likewise"),
            _ => unusable("is a database of another program"),
        }
    }

    pub(crate) fn error(&self, error: &rusqlite::Error) -> StoreError {
        let path = self.path.display();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::unusable(
                self.store,
                format!("{path} is damaged ({error}); restore it, or move it away to begin anew"),
            ),
            Some(ErrorCode::DiskFull) => StoreError::unavailable(self.store, format!("the disk of {path} is full")),
            _ => StoreError::unavailable(self.store, format!("{path}: {error}")),
        }
    }

    /// After these errors the file's content is in doubt: nothing more is written until a restart has looked at it.
    fn breaks(error: &rusqlite::Error) -> bool {
        matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::SystemIoFailure)
        )
    }
}

/// What a writer does with the jobs that wait for it: all of them share a transaction.
pub(crate) trait Commits: Send + 'static {
    /// One write.
    type Job: Send + 'static;

    /// Reads what is remembered between transactions; called at the start and again after a failure.
    fn load(&mut self, connection: &Connection) -> rusqlite::Result<()>;

    /// Writes inside the shared transaction. A job may come again, alone, after another of its transaction failed.
    fn apply(&mut self, connection: &Connection, jobs: &mut [Self::Job]) -> rusqlite::Result<()>;

    /// Tells each job its outcome, after the commit or the failure.
    fn finish(&mut self, jobs: Drain<'_, Self::Job>, outcome: &Result<(), Failure>);
}

/// Why a job has no committed effect that is known.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// Certainly no effect.
    Rejected(StoreError),
    /// The commit itself failed: there may be an effect.
    Unknown(StoreError),
}

/// The only writer of a file: a thread that takes all jobs that wait and commits them together.
///
/// Dropping it waits until what was queued is committed and the file is closed.
pub(crate) struct Writer<J> {
    jobs: Option<mpsc::Sender<J>>,
    thread: Option<thread::JoinHandle<()>>,
    fault: Fault,
}

/// Why nothing can be written right now; none if it can.
type Fault = Arc<Mutex<Option<StoreError>>>;

impl<J> Drop for Writer<J> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _it_panicked = thread.join();
        }
    }
}

impl<J> fmt::Debug for Writer<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

impl<J: Send + 'static> Writer<J> {
    /// Takes over a connection that [`File::open_writable`] opened.
    pub(crate) fn start(
        file: File,
        mut connection: Connection,
        mut commits: impl Commits<Job = J>,
    ) -> Result<Self, StoreError> {
        let (jobs, mut waiting) = mpsc::channel::<J>(QUEUE_MAX);
        commits.load(&connection).map_err(|e| file.error(&e))?;
        let mut wal = match file.wal {
            Some(limits) => Some(WalCheckpoints::start(limits, file.reopen()?)?),
            None => None,
        };
        let fault = Fault::default();
        let known_fault = Arc::clone(&fault);
        let meters = Meters::new(file.store);
        let run = move || {
            let mut broken: Option<(StoreError, Instant)> = None;
            let mut batch = Vec::new();
            let mut last = 0;
            if wal.is_some() {
                WalCheckpoints::watch(&connection);
            }
            while let Some(job) = waiting.blocking_recv() {
                batch.push(job);
                if last >= LINGER_FROM && waiting.len() < last / 2 {
                    thread::sleep(LINGER);
                }
                while batch.len() < JOBS_PER_COMMIT_MAX
                    && let Ok(job) = waiting.try_recv()
                {
                    batch.push(job);
                }
                if let Some((error, since)) = &broken {
                    // A fresh connection reads the file again, and with it what was really committed.
                    let reopened = (since.elapsed() > REOPEN_AFTER).then(|| {
                        file.reopen().and_then(|fresh| commits.load(&fresh).map_err(|e| file.error(&e)).map(|()| fresh))
                    });
                    match reopened {
                        Some(Ok(fresh)) => {
                            connection = fresh;
                            if wal.is_some() {
                                WalCheckpoints::watch(&connection);
                            }
                        }
                        _ => {
                            commits.finish(batch.drain(..), &Err(Failure::Rejected(error.clone())));
                            continue;
                        }
                    }
                }
                last = batch.len();
                let started = Instant::now();
                let in_doubt = commit(&file, &connection, &mut commits, &mut batch);
                meters.count(last, started, in_doubt.is_some());
                known_fault.lock().clone_from(&in_doubt);
                if let Some(wal) = &mut wal {
                    wal.committed(&connection);
                }
                broken = in_doubt.map(|error| (error, Instant::now()));
            }
        };
        let thread = thread::Builder::new()
            .name("sqlite writer".into())
            .spawn(run)
            .map_err(|e| StoreError::unavailable("the writer thread", e))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), fault })
    }

    /// Why nothing can be written right now; none if it can.
    pub(crate) fn fault(&self) -> Option<StoreError> {
        let has_ended = self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished);
        let ended = || has_ended.then(|| StoreError::unavailable("the writer thread", "it has ended"));
        self.fault.lock().clone().or_else(ended)
    }

    /// Queues a job; it is told its outcome. False if the writer has ended.
    pub(crate) async fn submit(&self, job: J) -> bool {
        match &self.jobs {
            Some(jobs) => jobs.send(job).await.is_ok(),
            None => false,
        }
    }
}

/// Commits a batch, or each job alone if one of them spoils it. Gives the error after which the file is in doubt.
fn commit<C: Commits>(
    file: &File,
    connection: &Connection,
    commits: &mut C,
    batch: &mut Vec<C::Job>,
) -> Option<StoreError> {
    let outcome = transact(file, connection, commits, batch);
    let Err((failure, mut broken)) = outcome else {
        commits.finish(batch.drain(..), &Ok(()));
        return None;
    };
    if broken.is_none() {
        broken = commits.load(connection).err().map(|e| file.error(&e));
    }
    if broken.is_none() && batch.len() > 1 && matches!(failure, Failure::Rejected(_)) {
        for job in std::mem::take(batch) {
            match &broken {
                Some(error) => commits.finish(vec![job].drain(..), &Err(Failure::Rejected(error.clone()))),
                None => broken = commit(file, connection, commits, &mut vec![job]),
            }
        }
    } else {
        commits.finish(batch.drain(..), &Err(failure));
    }
    broken
}

type Failed = (Failure, Option<StoreError>);

fn transact<C: Commits>(
    file: &File,
    connection: &Connection,
    commits: &mut C,
    batch: &mut [C::Job],
) -> Result<(), Failed> {
    let describe = |e: &rusqlite::Error| (file.error(e), File::breaks(e).then(|| file.error(e)));
    let mut write = || {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        commits.apply(connection, batch)
    };
    if let Err(error) = write() {
        let _may_be_rolled_back_already = connection.execute_batch("ROLLBACK");
        let (reason, broken) = describe(&error);
        return Err((Failure::Rejected(reason), broken));
    }
    if let Err(error) = connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])) {
        let _may_be_rolled_back_already = connection.execute_batch("ROLLBACK");
        let (reason, broken) = describe(&error);
        return Err((Failure::Unknown(reason), broken));
    }
    Ok(())
}

/// Connections for reading, each read in one snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    file: Arc<File>,
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn open(file: &File, application_id: i32, count: usize) -> Result<Self, StoreError> {
        let connections = (0..count).map(|_| file.open_readable(application_id)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            file: Arc::new(file.clone()),
            permits: Arc::new(Semaphore::new(connections.len())),
            idle: Arc::new(Mutex::new(connections)),
        })
    }

    /// Runs `read` on a thread that may block, in one snapshot.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let stopping = |e: &dyn ToString| StoreError::unavailable(self.file.store, e.to_string());
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|e| stopping(&e))?;
        let (idle, file) = (Arc::clone(&self.idle), Arc::clone(&self.file));
        let work = move || {
            let _permit = permit;
            let Some(connection) = idle.lock().pop() else {
                return Err(StoreError::unavailable(file.store, "no connection is idle"));
            };
            let result = connection.unchecked_transaction().and_then(|snapshot| read(&snapshot));
            idle.lock().push(connection);
            result.map_err(|e| file.error(&e))
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| stopping(&e))?
    }
}
