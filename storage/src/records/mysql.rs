//! Records in MySQL or MariaDB: sixteen tables, one for each shard, on one server or several.
//!
//! A commit is one transaction of a few multi-row statements. Rows are named by (user, content id); a type is told
//! apart here, so that no text has to be compared in a join.

mod migrate;
mod rows;
mod statements;
mod successor;

use std::{
    collections::HashMap,
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use likewise_schema::{Content, ContentType, Pair, Partition, Position, UserId};
use parking_lot::Mutex;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Executor, MySqlConnection, MySqlPool,
    mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode},
    pool::PoolConnection,
    raw_sql,
};
use tokio::{sync::OnceCell, time::timeout};

use self::statements::Flavour;
use super::{
    BUCKET_SLOTS_KEPT, Batch, Beside, Checkpoint, CommitError, Committed, Count, Fence, First, Gain, Generation,
    LikeRecord, Liked, Liker, Owner, RecordStore, Repair, Scan, Shards, Snapshot, check_owner,
};
use crate::{
    StoreError,
    breaker::{self, Breaker},
};

const STORE: &str = "the record store";
/// Commits under way at once on one server: more wait, so that batches grow.
const WRITERS: u16 = 8;
const READERS_MAX: u32 = 16;
/// How long a connection is waited for, and made.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long a commit may take before its outcome counts as unknown.
const WRITE_MAX: Duration = Duration::from_secs(6);
/// How long a read may take.
const READ_MAX: Duration = Duration::from_secs(2);
/// How long the sums of buckets may take: they are read beside requests.
const GAINS_MAX: Duration = Duration::from_secs(60);
/// Deadlocks and lock waits of one commit that are tried again.
const RETRIES_MAX: u32 = 5;
/// An unused connection is closed before the server does it.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// A connection unused for longer is tried before it is used.
const DOUBT_AFTER: Duration = Duration::from_secs(1);
/// What an owner's connection waits for; its transactions begin with their first statement. A stopped owner loses its
/// transaction, and so its locks, after `wait_timeout`.
const WRITER_SESSION: &str = "SET SESSION autocommit = 0, SESSION innodb_lock_wait_timeout = 3, \
                              SESSION lock_wait_timeout = 5, SESSION wait_timeout = 8; \
                              SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
const READER_SESSION: &str = "SET SESSION wait_timeout = 60; SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ";
/// Where the server does not answer readers, they do not wait for it, and four a second look whether it does again.
const BREAKER: breaker::Limits =
    breaker::Limits { failures: 5, lasting: Duration::from_millis(500), probe_every: Duration::from_millis(250) };
/// A read that is given up after so long counts as one that failed.
const SLOW: Duration = Duration::from_millis(300);
/// Rows that a scan sends at once.
const SCAN_ROWS: usize = 1000;

/// Records on one MySQL server.
pub struct MysqlRecords {
    shards: Shards,
    /// A connection each. A shard has its own, so that each connection prepares the statements of few tables.
    writers: Vec<MySqlPool>,
    readers: MySqlPool,
    breaker: Breaker,
    flavour: OnceCell<Flavour>,
    /// The newest bucket slot of each partition; older ones are dropped relative to it.
    newest_slots: Mutex<HashMap<Partition, i64>>,
    options: MySqlConnectOptions,
}

impl fmt::Debug for MysqlRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlRecords").field("shards", &self.shards).finish_non_exhaustive()
    }
}

/// A failure of a statement, by what can be done about it.
enum Failed {
    /// The transaction was rolled back; it may succeed when tried again.
    Conflict(sqlx::Error),
    /// Anything else.
    Other(sqlx::Error),
    /// What is stored cannot be.
    Damaged(&'static str),
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        let number = error.as_database_error().and_then(|e| e.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>());
        match number.map(sqlx::mysql::MySqlDatabaseError::number) {
            // Deadlock; lock wait timeout; and MariaDB's "record has changed since last read".
            Some(1213 | 1205 | 1020) => Failed::Conflict(error),
            _ => Failed::Other(error),
        }
    }
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Conflict(error) | Failed::Other(error) => describe(&error),
            Failed::Damaged(what) => StoreError::unusable(STORE, what),
        }
    }
}

/// Without values, addresses or credentials, which the server's and the driver's own texts may hold.
fn describe(error: &sqlx::Error) -> StoreError {
    let number = |e: &dyn sqlx::error::DatabaseError| {
        e.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>().map_or(0, sqlx::mysql::MySqlDatabaseError::number)
    };
    match error {
        sqlx::Error::Database(error) => match number(&**error) {
            1044 | 1045 | 1698 => StoreError::unusable(STORE, "it refuses the user or the password in its URL"),
            1049 => StoreError::unusable(STORE, "it has no such database; make it, then run likewise migrate"),
            1146 | 1054 => {
                StoreError::unusable(STORE, "its tables are missing or older than this program: run likewise migrate")
            }
            1142 | 1143 | 1227 => StoreError::unusable(STORE, "its user lacks a right that this role needs"),
            number => StoreError::unavailable(STORE, format!("it refused a statement with error {number}")),
        },
        // How a certificate that is refused shows itself.
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => insecure(),
        sqlx::Error::Io(error) => StoreError::unavailable(STORE, error.kind()),
        sqlx::Error::PoolTimedOut => StoreError::unavailable(STORE, "no connection was free or could be made in time"),
        sqlx::Error::Tls(_) => insecure(),
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
            StoreError::unusable(STORE, "a stored value cannot be read")
        }
        sqlx::Error::Protocol(_) | sqlx::Error::Configuration(_) => {
            StoreError::unavailable(STORE, "it was not understood; a password may need ?ssl-mode=REQUIRED in its URL")
        }
        _ => StoreError::unavailable(STORE, "the connection broke"),
    }
}

fn insecure() -> StoreError {
    let needed = "no secure connection could be made: its certificate must be valid, for its name, and of an authority \
                  that is known here (?ssl-ca=FILE); ?ssl-mode=DISABLED goes without";
    StoreError::unavailable(STORE, needed)
}

fn late() -> StoreError {
    StoreError::unavailable(STORE, "it does not answer in time")
}

/// What is done in a transaction; it may be done again.
trait Work<T>: for<'c> Fn(&'c mut MySqlConnection) -> BoxFuture<'c, Result<T, Failed>> + Send + Sync {}

impl<T, F: for<'c> Fn(&'c mut MySqlConnection) -> BoxFuture<'c, Result<T, Failed>> + Send + Sync> Work<T> for F {}

impl MysqlRecords {
    /// The records of `shards` at a URL such as `mysql://user:password@host/database`. Connects when it is first used.
    ///
    /// Beyond this machine it speaks TLS and verifies the server's certificate and name, by the system's authorities or
    /// those in the PEM file of `?ssl-ca=`, unless `?ssl-mode=` says otherwise.
    pub fn new(url: &str, shards: &Shards) -> Result<Self, StoreError> {
        let wrong = |_| StoreError::unusable(STORE, "its URL must be such as mysql://user:password@host:3306/database");
        let options: MySqlConnectOptions = url.parse().map_err(wrong)?;
        if options.get_database().is_none_or(str::is_empty) {
            return Err(StoreError::unusable(STORE, "its URL names no database: mysql://user:password@host/database"));
        }
        let says_how = url.split_once('?').is_some_and(|(_, query)| query.contains("ssl-mode="));
        let is_here = ["localhost", "127.0.0.1", "[::1]", "::1"].contains(&options.get_host());
        let names_authority = url.contains("ssl-ca=");
        let options = if says_how || (is_here && !names_authority) {
            options
        } else {
            options.ssl_mode(MySqlSslMode::VerifyIdentity)
        };
        Ok(Self::with(options, shards))
    }

    fn with(options: MySqlConnectOptions, shards: &Shards) -> Self {
        // Each size of a multi-row statement is prepared once for each table.
        let options = options.statement_cache_capacity(1024).disable_statement_logging();
        let pool = |most, session: &'static str, wait, idle| {
            MySqlPoolOptions::new()
                .max_connections(most)
                .acquire_timeout(wait)
                .idle_timeout(idle)
                .test_before_acquire(false)
                .before_acquire(|connection, meta| {
                    Box::pin(async move {
                        if meta.idle_for > DOUBT_AFTER {
                            sqlx::Connection::ping(connection).await?;
                        }
                        Ok(true)
                    })
                })
                .after_connect(move |connection, _| {
                    Box::pin(async move { connection.execute(raw_sql(session)).await.map(drop) })
                })
                .connect_lazy_with(options.clone())
        };
        Self {
            shards: shards.clone(),
            writers: (0..WRITERS).map(|_| pool(1, WRITER_SESSION, WRITE_MAX, IDLE_MAX)).collect(),
            readers: pool(READERS_MAX, READER_SESSION, CONNECT_MAX, Duration::from_secs(30)),
            breaker: Breaker::new(STORE, BREAKER),
            flavour: OnceCell::new(),
            newest_slots: Mutex::default(),
            options,
        }
    }

    /// Makes the tables, or brings them to this program's version. Changes nothing where they are.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        migrate::run(&self.readers, &self.shards).await
    }

    /// Fails as unusable unless the tables are of this program's version and of these shards.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.flavour().await.map(drop)
    }

    /// Which server it is, once its tables were seen to be the right ones.
    async fn flavour(&self) -> Result<Flavour, StoreError> {
        let look = async || {
            let look = async {
                let mut connection = self.readers.acquire().await.map_err(|e| describe(&e))?;
                migrate::check(&mut connection, &self.shards).await?;
                Flavour::of(&mut connection).await.map_err(|e| describe(&e))
            };
            timeout(READ_MAX + CONNECT_MAX, look).await.unwrap_or_else(|_| Err(late()))
        };
        self.flavour.get_or_try_init(look).await.copied()
    }

    /// Does `work` on a partition in a transaction, again after a conflict. A failed or late one has an unknown outcome.
    async fn transact<T>(&self, partition: Partition, work: impl Work<T>) -> Result<T, StoreError> {
        let writer = &self.writers[usize::from(partition.shard() % WRITERS)];
        let mut tries = 0;
        loop {
            let mut connection = Held::new(writer).await?;
            let once = async {
                let done = work(&mut connection).await?;
                connection.execute(raw_sql("COMMIT")).await?;
                Ok::<T, Failed>(done)
            };
            match timeout(WRITE_MAX, once).await {
                Ok(Ok(done)) => {
                    connection.is_clean = true;
                    return Ok(done);
                }
                Ok(Err(Failed::Conflict(error))) if tries < RETRIES_MAX => {
                    tracing::debug!(%error, tries, "a transaction is tried again");
                    metrics::counter!("likewise_records_conflicts_total").increment(1);
                    let rolled_back = timeout(READ_MAX, connection.execute(raw_sql("ROLLBACK"))).await;
                    connection.is_clean = rolled_back.is_ok_and(|outcome| outcome.is_ok());
                    drop(connection);
                    tries += 1;
                    let jitter = 0.5 + rand::random::<f64>();
                    tokio::time::sleep(Duration::from_millis(4 << tries).mul_f64(jitter)).await;
                }
                Ok(Err(failed)) => return Err(failed.into()),
                Err(_) => return Err(late()),
            }
        }
    }

    /// Reads in one snapshot, with the checkpoints of that snapshot.
    async fn snapshot<T>(&self, work: impl Work<T>) -> Result<Snapshot<T>, StoreError> {
        self.reading(async |connection| {
            let checkpoints = begin_snapshot(connection).await?;
            let value = work(connection).await?;
            connection.execute(raw_sql("COMMIT")).await?;
            Ok(Snapshot { value, checkpoints })
        })
        .await
    }

    /// Reads on one connection, in time.
    async fn reading<T>(
        &self,
        read: impl AsyncFnOnce(&mut MySqlConnection) -> Result<T, Failed>,
    ) -> Result<T, StoreError> {
        let Some(attempt) = self.breaker.attempt(SLOW) else {
            return Err(StoreError::unavailable(STORE, "it has not answered for a while"));
        };
        let once = async {
            let mut connection = Held::new(&self.readers).await?;
            let value = timeout(READ_MAX, read(&mut connection)).await.map_err(|_| late())??;
            connection.is_clean = true;
            Ok(value)
        };
        let outcome = once.await;
        match outcome {
            Err(StoreError::Unavailable { .. }) => attempt.failed(),
            _ => attempt.succeeded(),
        }
        outcome
    }
}

/// A connection that is closed unless what was done with it is known to have ended: a call that is cancelled, fails or
/// comes late leaves a transaction or an answer behind, and nobody else may meet it.
struct Held {
    connection: PoolConnection<sqlx::MySql>,
    is_clean: bool,
}

impl Held {
    async fn new(pool: &MySqlPool) -> Result<Self, StoreError> {
        Ok(Self { connection: pool.acquire().await.map_err(|e| describe(&e))?, is_clean: false })
    }
}

impl Deref for Held {
    type Target = MySqlConnection;
    fn deref(&self) -> &MySqlConnection {
        &self.connection
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        &mut self.connection
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_clean {
            self.connection.close_on_drop();
        }
    }
}

async fn begin_snapshot(connection: &mut MySqlConnection) -> Result<Vec<Checkpoint>, Failed> {
    let begin = format!(
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY; SELECT {} FROM projection_checkpoints ORDER BY `partition`",
        rows::CHECKPOINT_COLUMNS
    );
    let found = raw_sql(AssertSqlSafe(begin)).fetch_all(connection).await?;
    found.iter().map(rows::checkpoint).collect()
}

#[async_trait]
impl RecordStore for MysqlRecords {
    async fn acquire(&self, partition: Partition, owner: &Owner) -> Result<Checkpoint, StoreError> {
        // What a server refuses today, such as a password, it may take tomorrow: only other tables are refused for good.
        let passing = |error: StoreError| match error {
            StoreError::Unusable { store, reason } => StoreError::Unavailable { store, reason },
            unavailable => unavailable,
        };
        self.flavour().await.map_err(passing)?;
        let owner = Arc::new(owner.clone());
        let acquired = self.transact(partition, move |connection| {
            let owner = Arc::clone(&owner);
            async move {
                if let Some(stored) = statements::checkpoint(connection, partition, true).await?
                    && let Err(refusal) = check_owner(STORE, &stored, &owner)
                {
                    return Ok(Err(refusal));
                }
                statements::acquire(connection, partition, &owner).await?;
                let acquired = statements::checkpoint(connection, partition, true).await?;
                let missing = Failed::Damaged("the checkpoint that was just written is not there");
                let acquired = acquired.ok_or(missing)?;
                // Another owner may have made the partition meanwhile.
                Ok(check_owner(STORE, &acquired, &owner).map(|()| acquired))
            }
            .boxed()
        });
        acquired.await.map_err(passing)?
    }

    async fn commit(&self, batch: Batch) -> Result<Committed, CommitError> {
        let flavour = self.flavour().await?;
        let batch = Arc::new(batch);
        let partition = batch.fence.partition;
        let newest_slot = self.newest_slots.lock().get(&partition).copied().unwrap_or(0);
        let committed = self
            .transact(partition, move |connection| {
                let batch = Arc::clone(&batch);
                async move {
                    if !statements::advance(connection, &batch).await? {
                        return Ok(None);
                    }
                    let prior = statements::rows(connection, flavour, &batch.read).await?;
                    let is_new = batch.new_pairs(&prior);
                    let writes = (batch.fold)(prior);
                    statements::write_rows(connection, partition, &writes.rows, &is_new).await?;
                    let counts =
                        statements::add_counts(connection, flavour, partition, &writes.counts, &batch.counts).await?;
                    statements::add_buckets(connection, partition, batch.fence.next_offset, &writes.buckets).await?;
                    let newest = writes.buckets.iter().map(|bucket| bucket.slot).max().unwrap_or(0);
                    if newest > newest_slot {
                        statements::drop_buckets(connection, partition, newest - BUCKET_SLOTS_KEPT).await?;
                    }
                    Ok(Some((Committed { rows: writes.rows, counts }, newest)))
                }
                .boxed()
            })
            .await?;
        let Some((committed, newest)) = committed else { return Err(CommitError::Fenced) };
        if newest > newest_slot {
            self.newest_slots.lock().insert(partition, newest);
        }
        Ok(committed)
    }

    async fn repair(&self, fence: Fence, generation: Generation, repair: Repair) -> Result<Checkpoint, CommitError> {
        self.flavour().await?;
        let repair = Arc::new(repair);
        let repaired = self.transact(fence.partition, move |connection| {
            let repair = Arc::clone(&repair);
            async move {
                if !statements::renew(connection, &fence, generation).await? {
                    return Ok(None);
                }
                statements::repair(connection, fence, &repair).await?;
                statements::checkpoint(connection, fence.partition, true).await
            }
            .boxed()
        });
        repaired.await?.ok_or(CommitError::Fenced)
    }

    async fn renew_generation(&self, fence: Fence, generation: Generation) -> Result<Checkpoint, CommitError> {
        let renewed = self.transact(fence.partition, move |connection| {
            async move {
                if !statements::renew(connection, &fence, generation).await? {
                    return Ok(None);
                }
                statements::checkpoint(connection, fence.partition, true).await
            }
            .boxed()
        });
        renewed.await?.ok_or(CommitError::Fenced)
    }

    async fn checkpoint(&self, partition: Partition) -> Result<Option<Checkpoint>, StoreError> {
        self.reading(async |connection| statements::checkpoint(connection, partition, false).await).await
    }

    async fn counts(&self, contents: &[Content]) -> Result<Snapshot<Vec<Option<Count>>>, StoreError> {
        let flavour = self.flavour().await?;
        let contents: Arc<[Content]> = contents.into();
        self.snapshot(move |connection| {
            let contents = Arc::clone(&contents);
            async move {
                let found = statements::counts(connection, flavour, &contents).await?;
                Ok(contents.iter().map(|content| found.get(content).copied()).collect())
            }
            .boxed()
        })
        .await
    }

    async fn rows(&self, pairs: &[Pair]) -> Result<Snapshot<Vec<Option<LikeRecord>>>, StoreError> {
        let flavour = self.flavour().await?;
        let pairs: Arc<[Pair]> = pairs.into();
        self.snapshot(move |connection| {
            let pairs = Arc::clone(&pairs);
            async move { statements::rows(connection, flavour, &pairs).await }.boxed()
        })
        .await
    }

    async fn likers(
        &self,
        content: Content,
        after: Option<Liker>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liker>>, StoreError> {
        self.snapshot(move |connection| statements::likers(connection, content, after, limit).boxed()).await
    }

    async fn likes_of(
        &self,
        user: UserId,
        content_type: Option<ContentType>,
        after: Option<Liked>,
        limit: usize,
    ) -> Result<Snapshot<Vec<Liked>>, StoreError> {
        let shards = self.shards.clone();
        self.snapshot(move |connection| {
            statements::likes_of(connection, shards.clone(), user, content_type, after, limit).boxed()
        })
        .await
    }

    async fn firsts(&self, from: &[Position], limit: usize) -> Result<Snapshot<Vec<First>>, StoreError> {
        let from: Arc<[Position]> = from.into();
        self.snapshot(move |connection| {
            let from = Arc::clone(&from);
            async move { statements::firsts(connection, &from, limit).await }.boxed()
        })
        .await
    }

    async fn gains(&self, slot: i64, limit: usize) -> Result<Vec<Gain>, StoreError> {
        let mut connection = Held::new(&self.readers).await?;
        let read = statements::gains(&mut connection, slot, limit);
        let gains = timeout(GAINS_MAX, read).await.map_err(|_| late())??;
        connection.is_clean = true;
        Ok(gains)
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Checkpoint>, StoreError> {
        self.flavour().await?;
        // Closed in the end, whatever comes of it: its snapshot ends with it.
        let mut connection = Held::new(&self.readers).await?;
        let Scan { rows, beside } = scan;
        let read = async {
            let checkpoints = begin_snapshot(&mut connection).await?;
            let sql = statements::scan(&self.shards);
            let mut found = raw_sql(AssertSqlSafe(sql)).fetch(&mut *connection);
            let mut chunk = Vec::with_capacity(SCAN_ROWS);
            while let Some(row) = found.try_next().await? {
                match (rows::record_in_place(&row), &beside) {
                    (Ok(row), _) => chunk.push(row),
                    (Err(Failed::Damaged(what)), Some(beside)) => {
                        let what = format!("the row of {}: {what}", rows::name(&row, true));
                        let _nobody_takes_it = beside.send(vec![Beside::Damaged(None, what)]).await;
                    }
                    (Err(failed), _) => return Err(failed),
                }
                if chunk.len() == SCAN_ROWS {
                    let full = std::mem::replace(&mut chunk, Vec::with_capacity(SCAN_ROWS));
                    if rows.send(full).await.is_err() {
                        return Ok(checkpoints);
                    }
                }
            }
            drop(found);
            let _nobody_takes_it = rows.send(chunk).await;
            drop(rows);
            if let Some(beside) = beside {
                for (sql, read) in statements::SCANS_BESIDE {
                    let mut found = raw_sql(sql).fetch(&mut *connection);
                    let mut chunk = Vec::with_capacity(SCAN_ROWS);
                    while let Some(row) = found.try_next().await? {
                        match read(&row) {
                            Ok(kept) => chunk.extend(kept),
                            Err(Failed::Damaged(what)) => {
                                chunk.push(Beside::Damaged(
                                    None,
                                    format!("what is counted of {}: {what}", rows::name(&row, false)),
                                ));
                            }
                            Err(failed) => return Err(failed),
                        }
                        if chunk.len() >= SCAN_ROWS && beside.send(std::mem::take(&mut chunk)).await.is_err() {
                            return Ok(checkpoints);
                        }
                    }
                    drop(found);
                    let _nobody_takes_it = beside.send(chunk).await;
                }
            }
            Ok::<_, Failed>(checkpoints)
        };
        Ok(read.await?)
    }
}
