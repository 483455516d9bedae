//! A rebuild on a server: the new tables in a database of their own beside, `<database>_rebuild`. One statement moves them
//! into the live database, and the old ones into `<database>_before`.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use likewise_schema::SHARDS;
use sqlx::{AssertSqlSafe, Executor, MySqlConnection, query_as, query_scalar, raw_sql};

use super::{Held, MysqlRecords, STORE, describe};
use crate::{
    StoreError,
    records::{RecordStore, Standing, Successor},
};

/// The longest name of a database.
const NAME_MAX: usize = 64;
/// How long the switch waits for statements that use the tables, and how often that is tried.
const SWITCH_SESSION: &str = "SET SESSION lock_wait_timeout = 1";
const SWITCH_TRIES: u32 = 20;
/// For those who waited behind it.
const SWITCH_PAUSE: Duration = Duration::from_millis(500);

impl MysqlRecords {
    /// A database of this name beside the live one.
    fn beside(&self, end: &str) -> Result<String, StoreError> {
        let live = self.options.get_database().unwrap_or_default();
        let name = format!("{live}{end}");
        let is_plain = live.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-$".contains(&b));
        if name.len() > NAME_MAX || !is_plain {
            let reason = "its database's name must be short and plain for another to stand beside it";
            return Err(StoreError::unusable(STORE, reason));
        }
        Ok(name)
    }

    fn fresh_database(&self) -> Result<String, StoreError> {
        self.beside("_rebuild")
    }

    fn old_database(&self) -> Result<String, StoreError> {
        self.beside("_before")
    }

    fn tables(&self) -> Vec<String> {
        let shards =
            (0..SHARDS).filter(|shard| self.shards.contains(*shard)).map(|shard| format!("like_records_{shard:02}"));
        ["projection_checkpoints", "like_counts", "like_bucket_chunks"]
            .map(str::to_owned)
            .into_iter()
            .chain(shards)
            .collect()
    }

    async fn create(&self, connection: &mut MySqlConnection, name: &str) -> Result<(), StoreError> {
        let create = format!("CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin");
        let created = connection.execute(raw_sql(AssertSqlSafe(create))).await;
        created.map(drop).map_err(|error| match error {
            sqlx::Error::Database(_) => StoreError::unusable(
                STORE,
                format!("its user may not make the database {name}: make it, and give the user all rights on it"),
            ),
            other => describe(&other),
        })
    }

    /// The tables of a database beside, which are made if they are not there.
    async fn made(&self, name: &str) -> Result<Arc<dyn RecordStore>, StoreError> {
        let mut connection = Held::new(&self.readers).await?;
        self.create(&mut connection, name).await?;
        connection.is_clean = true;
        drop(connection);
        let fresh = MysqlRecords::with(self.options.clone().database(name), &self.shards);
        fresh.migrate().await?;
        let mut connection = Held::new(&self.readers).await?;
        let is_there = is_there(&mut connection, name).await?;
        connection.is_clean = true;
        if !is_there {
            return Err(StoreError::unusable(STORE, format!("the database {name} lacks its tables")));
        }
        Ok(Arc::new(fresh))
    }

    /// Drops a database beside, if it is one that a rebuild made.
    async fn drop_database(&self, name: &str) -> Result<(), StoreError> {
        let mut connection = Held::new(&self.readers).await?;
        let tables = "SELECT COUNT(*), CAST(COALESCE(SUM(table_name IN ('record_shards', 'projection_checkpoints')), 0) AS SIGNED)
                      FROM information_schema.tables WHERE table_schema = ?";
        let found = query_as::<_, (i64, i64)>(tables).bind(name).fetch_one(&mut *connection).await;
        let (tables, ours) = found.map_err(|e| describe(&e))?;
        if tables > 0 && ours == 0 {
            return Err(StoreError::unusable(STORE, format!("the database {name} is none of a rebuild: move it away")));
        }
        let drop = format!("DROP DATABASE IF EXISTS `{name}`");
        connection.execute(raw_sql(AssertSqlSafe(drop))).await.map_err(|e| describe(&e))?;
        connection.is_clean = true;
        Ok(())
    }
}

/// Whether a database has the tables of a rebuild.
async fn is_there(connection: &mut MySqlConnection, database: &str) -> Result<bool, StoreError> {
    let count = query_scalar::<_, i64>(
        "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = ? AND table_name = 'projection_checkpoints'",
    );
    let found = count.bind(database).fetch_one(connection).await.map_err(|e| describe(&e))?;
    Ok(found > 0)
}

#[async_trait]
impl Successor for MysqlRecords {
    async fn standing(&self) -> Result<Standing, StoreError> {
        self.check().await?;
        let mut connection = Held::new(&self.readers).await?;
        let fresh = is_there(&mut connection, &self.fresh_database()?).await?;
        let old = is_there(&mut connection, &self.old_database()?).await?;
        connection.is_clean = true;
        Ok(match (fresh, old) {
            (true, _) => Standing::Begun,
            (false, true) => Standing::Switched,
            (false, false) => Standing::Nothing,
        })
    }

    async fn open(&self) -> Result<Arc<dyn RecordStore>, StoreError> {
        let name = self.fresh_database()?;
        match self.made(&name).await {
            // A run that was killed while it made them left half of them; one that was killed after it had switched left
            // versions without tables.
            Err(StoreError::Unusable { .. }) => {
                self.drop_database(&name).await?;
                self.made(&name).await
            }
            made => made,
        }
    }

    async fn switch(&self) -> Result<(), StoreError> {
        let (fresh, old) = (self.fresh_database()?, self.old_database()?);
        let live = self.options.get_database().unwrap_or_default().to_owned();
        // Closed in the end: its session is another than that of readers.
        let mut connection = Held::new(&self.readers).await?;
        self.create(&mut connection, &old).await?;
        connection.execute(raw_sql(SWITCH_SESSION)).await.map_err(|e| describe(&e))?;
        let moves = self
            .tables()
            .into_iter()
            .map(|table| format!("`{live}`.`{table}` TO `{old}`.`{table}`, `{fresh}`.`{table}` TO `{live}`.`{table}`"));
        let rename = format!("RENAME TABLE {}", moves.collect::<Vec<_>>().join(", "));
        let mut tries = 0;
        loop {
            let renamed = connection.execute(raw_sql(AssertSqlSafe(rename.clone()))).await;
            let Err(error) = renamed else { break };
            tries += 1;
            let reason = describe(&error);
            // Somebody is using a table: whoever waits behind the switch gets a turn before it is tried again.
            let is_locked = matches!(super::Failed::from(error), super::Failed::Conflict(_));
            if !is_locked && self.standing().await? == Standing::Switched {
                // The answer was lost, the statement was not.
                break;
            }
            if !is_locked || tries == SWITCH_TRIES {
                let reason = format!("its tables could not be switched ({reason}): try again");
                return Err(StoreError::unavailable(STORE, reason));
            }
            tokio::time::sleep(SWITCH_PAUSE).await;
        }
        drop(connection);
        // What is left there are views and versions, which are in nobody's way.
        if let Err(error) = self.drop_database(&fresh).await {
            tracing::warn!(%error, "a database that is empty now could not be dropped");
        }
        Ok(())
    }

    async fn discard(&self) -> Result<(), StoreError> {
        self.drop_database(&self.fresh_database()?).await
    }

    async fn discard_old(&self) -> Result<(), StoreError> {
        self.drop_database(&self.old_database()?).await
    }
}
