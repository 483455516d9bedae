//! The MySQL records: the conformance suite on MySQL and on MariaDB, and what is special about them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use likewise_storage::{
    RecordStore, conformance,
    records::{MysqlRecords, Shards, SpreadRecords},
};
use likewise_testkit::servers;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection};

/// A new database on the server, and its URL.
async fn database(server: &str) -> String {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let name = format!("storage_{}_{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let mut connection =
        MySqlConnection::connect(&format!("{server}?ssl-mode=disabled")).await.expect("the servers answer");
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("the servers answer");
    format!("{server}/{name}?ssl-mode=disabled")
}

async fn records(server: &str, range: &str) -> (Shards, Arc<dyn RecordStore>) {
    let shards: Shards = range.parse().expect("the servers answer");
    let store = MysqlRecords::new(&database(server).await, &shards).expect("the servers answer");
    store.migrate().await.expect("the servers answer");
    (shards, Arc::new(store))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_conforms() {
    conformance::record_store(async || records(&servers::mysql(), "0-15").await.1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_conforms() {
    conformance::record_store(async || records(&servers::mariadb(), "0-15").await.1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_spread_over_both_conform() {
    conformance::record_store(async || {
        let parts = vec![records(&servers::mysql(), "0-7").await, records(&servers::mariadb(), "8-15").await];
        Arc::new(SpreadRecords::new(parts).unwrap()) as Arc<dyn RecordStore>
    })
    .await;
}
