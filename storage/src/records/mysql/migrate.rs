//! The tables' versions. `likewise migrate` makes and changes them; the roles only look.

use likewise_schema::{SHARDS, sql};
use sqlx::{
    AssertSqlSafe, MySqlConnection, MySqlPool, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use super::{STORE, describe};
use crate::{StoreError, records::Shards};

/// The version of the tables that this program reads and writes.
const VERSION: i64 = 1;

/// The statements of each version for a server with `shards`.
fn migrations(shards: &Shards) -> Migrator {
    let held: Vec<String> =
        (0..SHARDS).filter(|shard| shards.contains(*shard)).map(|shard| format!("{shard:02}")).collect();
    let (first, last) = shards.bounds();
    let mut tables = sql::MYSQL_RECORDS.to_owned();
    tables.extend(held.iter().map(|shard| sql::MYSQL_SHARD.replace("{shard}", shard)));
    tables += &format!("INSERT INTO record_shards VALUES (1, {first}, {last});\n");
    let parts: Vec<String> = held.iter().map(|shard| format!("SELECT * FROM like_records_{shard}")).collect();
    tables += &format!("CREATE VIEW like_records AS {};\n", parts.join(" UNION ALL "));
    let sql = AssertSqlSafe(tables).into_sql_str();
    Migrator::with_migrations(vec![Migration::new(VERSION, "records".into(), MigrationType::Simple, sql, false)])
}

/// Brings the tables to this program's version.
pub(super) async fn run(pool: &MySqlPool, shards: &Shards) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await.map_err(|e| describe(&e))?;
    if let Some(held) = held_shards(&mut connection).await {
        refuse_other_shards(held, shards)?;
    }
    drop(connection);
    migrations(shards).run(pool).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => describe(&error),
        MigrateError::Dirty(version) => StoreError::unusable(
            STORE,
            format!("version {version} of its tables was not finished: drop the database's tables and migrate again"),
        ),
        MigrateError::VersionMissing(version) => {
            StoreError::unusable(STORE, format!("its tables are of version {version}, newer than this program"))
        }
        _ => StoreError::unusable(STORE, "its tables were made by other statements than this program's"),
    })
}

/// None if there are no tables.
async fn held_shards(connection: &mut MySqlConnection) -> Option<(i16, i16)> {
    sqlx::query_as("SELECT first_shard, last_shard FROM record_shards").fetch_one(connection).await.ok()
}

fn refuse_other_shards((first, last): (i16, i16), shards: &Shards) -> Result<(), StoreError> {
    let wanted = shards.bounds();
    if (first.unsigned_abs(), last.unsigned_abs()) == wanted {
        return Ok(());
    }
    Err(StoreError::unusable(STORE, format!("the server holds shards {first}-{last}, not {shards}: say so in its URL")))
}

/// Fails as unusable unless the tables are of this program's version and hold `shards`.
pub(super) async fn check(connection: &mut MySqlConnection, shards: &Shards) -> Result<(), StoreError> {
    let version = sqlx::query_scalar("SELECT CAST(MAX(version) AS SIGNED) FROM _sqlx_migrations WHERE success");
    let version: Option<i64> = version.fetch_one(&mut *connection).await.map_err(|e| describe(&e))?;
    match version {
        Some(VERSION) => {}
        Some(newer) if newer > VERSION => {
            let reason =
                format!("its tables are of version {newer}, this program knows {VERSION}: use a newer program");
            return Err(StoreError::unusable(STORE, reason));
        }
        _ => return Err(StoreError::unusable(STORE, "its tables are older than this program: run likewise migrate")),
    }
    let held = sqlx::query_as("SELECT first_shard, last_shard FROM record_shards").fetch_one(connection).await;
    refuse_other_shards(held.map_err(|e| describe(&e))?, shards)
}
