//! The MySQL records: the conformance suite on MySQL and on MariaDB, and what is special about them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use likewise_schema::{Offset, Pair, Partition, PartitionCount};
use likewise_storage::{
    RecordStore,
    conformance::{self, at, pair, partition, post},
    records::{
        Advance, Batch, BucketDelta, CountDelta, Fence, LikeRecord, MysqlRecords, Owner, Shards, SpreadRecords, Writes,
    },
};
use likewise_testkit::servers;
use sqlx::{Connection, MySqlConnection};

/// A new database on the server, and its URL.
async fn database(server: &str) -> String {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let name = format!("storage_{}_{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    servers::create_database(server, &name).await;
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

fn row(pair: Pair, version: i64) -> LikeRecord {
    LikeRecord {
        pair,
        is_canceled: false,
        created_at: at(1),
        updated_at: at(1),
        liked_at: Some(at(1)),
        version: Offset::new(version).expect("valid"),
        ring: vec![conformance::request(version as u128)],
        floor: None,
    }
}

fn batch(fence: Fence, next: i64, rows: Vec<LikeRecord>) -> Batch {
    let next_offset = Offset::new(next).expect("valid");
    let advance = Advance { next_offset, mark: None, log_end: next_offset, next_event_at: None, heard_at: at(1) };
    let read = rows.iter().map(|row| row.pair).collect();
    let counts = rows.iter().map(|row| CountDelta {
        content: row.pair.content,
        delta: 1,
        version: row.version,
        first_position: row.version,
    });
    let writes = Writes { counts: counts.collect(), rows, buckets: vec![] };
    Batch { fence, advance, read, counts: HashMap::new(), fold: Box::new(move |_| writes.clone()) }
}

/// What analysts read of the buckets are sums over all batches.
async fn sum_buckets(server: String) {
    let url = database(&server).await;
    let store = MysqlRecords::new(&url, &Shards::all()).expect("a URL");
    store.migrate().await.expect("migrated");
    let owner = Owner { log_identity: "log".into(), partitions: PartitionCount::DEFAULT, fold_version: 1, micros: 1 };
    let mut fence = store.acquire(partition(1), &owner).await.expect("acquired").fence();
    let bucket = |id, slot, gained, lost| BucketDelta { content: post(id), slot, gained, lost };
    let in_turn = [
        (3, vec![bucket(1, 1000, 2, 0), bucket(17, 1000, 1, 0)]),
        (4000, vec![bucket(1, 1000, 0, 1), bucket(1, 1001, 5, 2)]),
        (4001, vec![bucket(1, 1001, 1, 0)]),
    ];
    for (next, buckets) in in_turn {
        let mut batch = batch(fence, next, vec![]);
        batch.fold = Box::new(move |_| Writes { buckets: buckets.clone(), ..Writes::default() });
        store.commit(batch).await.expect("committed");
        fence.next_offset = Offset::new(next).expect("valid");
    }
    let mut connection = MySqlConnection::connect(&url).await.expect("the servers answer");
    let sql = "SELECT content_type, content_id, slot, CAST(gained AS SIGNED), CAST(lost AS SIGNED) FROM like_buckets \
               ORDER BY content_id, slot";
    let read = async |connection: &mut MySqlConnection| -> Vec<(String, i64, i64, i64, i64)> {
        sqlx::query_as(sql).fetch_all(connection).await.expect("rows")
    };
    let post = || "post".to_owned();
    let expected = [(post(), 1, 1000, 2, 1), (post(), 1, 1001, 6, 2), (post(), 17, 1000, 1, 0)];
    assert_eq!(read(&mut connection).await, expected);
    // Two days later the old ones are gone.
    let mut later = batch(fence, 4002, vec![]);
    let newest = BucketDelta { content: conformance::post(1), slot: 1000 + 288, gained: 1, lost: 0 };
    later.fold = Box::new(move |_| Writes { buckets: vec![newest], ..Writes::default() });
    store.commit(later).await.expect("committed");
    assert_eq!(read(&mut connection).await, [(post(), 1, 1001, 6, 2), (post(), 1, 1288, 1, 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_are_sums_that_are_kept_for_two_days_in_mysql() {
    sum_buckets(servers::mysql()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_are_sums_that_are_kept_for_two_days_in_mariadb() {
    sum_buckets(servers::mariadb()).await;
}

/// Four owners write to one table at once, in orders that cross: locks collide, and no row is lost.
async fn contend(server: String) {
    const BATCHES: i64 = 40;
    const ROWS: i64 = 60;
    let (_, store) = records(&server, "0-15").await;
    let many = PartitionCount::new(64).expect("valid");
    let owner = Owner { log_identity: "log".into(), partitions: many, fold_version: 1, micros: 1 };
    let mut owners = Vec::new();
    for number in 0..4 {
        let partition = Partition::new(1 + 16 * number, many).expect("valid");
        let (store, owner) = (Arc::clone(&store), owner.clone());
        owners.push(tokio::spawn(async move {
            let mut fence = store.acquire(partition, &owner).await.expect("acquired").fence();
            for number in 0..BATCHES {
                // Users of all owners lie between each other; every second batch comes in the opposite order.
                let user = |index: i64| 1 + (number * ROWS + index) * 4 + i64::from(partition.get() / 16);
                let mut rows: Vec<_> =
                    (0..ROWS).map(|index| row(pair(1 + 16 * (index % 5), user(index)), number)).collect();
                rows.dedup_by_key(|row| row.pair);
                if number % 2 == 1 {
                    rows.reverse();
                }
                let mut next = batch(fence, number + 1, rows);
                let counts: Vec<CountDelta> = (0..5)
                    .map(|index| CountDelta {
                        // Each owner counts contents of its own, so that a sum can be checked.
                        content: post(1 + 16 * (5 * i64::from(partition.get()) + index)),
                        delta: ROWS / 5,
                        version: Offset::new(number).expect("valid"),
                        first_position: Offset::ZERO,
                    })
                    .collect();
                let fold = next.fold;
                next.fold = Box::new(move |prior| Writes { counts: counts.clone(), ..fold(prior) });
                store.commit(next).await.expect("committed, after conflicts too");
                fence.next_offset = fence.next_offset.next();
            }
        }));
    }
    for owner in owners {
        owner.await.expect("no panic");
    }
    let snapshot = store.digest().await.expect("read");
    assert_eq!(snapshot.value.rows, (4 * BATCHES * ROWS) as u64);
    let counts = store.counts(&[post(1 + 16 * 5)]).await.expect("read").value;
    assert_eq!(counts[0].map(|count| count.count), Some(BATCHES * ROWS / 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_that_share_a_table_lose_no_row_in_mysql() {
    contend(servers::mysql()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_that_share_a_table_lose_no_row_in_mariadb() {
    contend(servers::mariadb()).await;
}

/// An owner that is stopped between its fence and its commit holds locks; its successor gets the partition all the same,
/// and what the stopped one still wants to write is refused.
async fn outlive_a_stopped_owner(server: String) {
    let database = database(&server).await;
    let open = || Arc::new(MysqlRecords::new(&database, &Shards::all()).expect("a URL"));
    let (first, second) = (open(), open());
    first.migrate().await.expect("migrated");
    let owner =
        |micros| Owner { log_identity: "log".into(), partitions: PartitionCount::DEFAULT, fold_version: 1, micros };
    let held = first.acquire(partition(1), &owner(1)).await.expect("acquired");
    let (inside, is_inside) = std::sync::mpsc::channel();
    let mut stopped = batch(held.fence(), 1, vec![]);
    let (resume, resumed) = std::sync::mpsc::channel::<()>();
    let resumed = std::sync::Mutex::new(resumed);
    stopped.fold = Box::new(move |_| {
        let _first_time_only = inside.send(());
        // The thread stands still in the middle of the transaction, as all of a stopped process does.
        let _resumed = resumed.lock().expect("not poisoned").recv_timeout(Duration::from_secs(60));
        Writes { rows: vec![row(pair(1, 7), 0)], ..Writes::default() }
    });
    let zombie = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move { first.commit(stopped).await })
    });
    is_inside.recv_timeout(Duration::from_secs(30)).expect("the commit has begun");
    let started = Instant::now();
    let taken = loop {
        match second.acquire(partition(1), &owner(2)).await {
            Ok(taken) => break taken,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(45), "not acquired: {error}"),
        }
    };
    println!("the successor has the partition after {:?} (15 s)", started.elapsed());
    second.commit(batch(taken.fence(), 1, vec![row(pair(1, 8), 0)])).await.expect("the successor goes on");
    resume.send(()).expect("it waits");
    zombie.join().expect("no panic").expect_err("its transaction is gone");
    let rows = second.rows(&[pair(1, 7), pair(1, 8)]).await.expect("read").value;
    assert_eq!(rows.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_owner_does_not_hold_its_successor_up_in_mysql() {
    outlive_a_stopped_owner(servers::mysql()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_owner_does_not_hold_its_successor_up_in_mariadb() {
    outlive_a_stopped_owner(servers::mariadb()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_are_missing_or_of_other_shards_are_refused_with_a_sentence() {
    let database = database(&servers::mysql()).await;
    let store = |range: &str| MysqlRecords::new(&database, &range.parse().expect("a range")).expect("a URL");
    let refused = async |range| store(range).check().await.expect_err("refused").to_string();
    assert!(refused("0-15").await.contains("run likewise migrate"));
    store("0-7").migrate().await.unwrap();
    store("0-7").migrate().await.unwrap();
    store("0-7").check().await.unwrap();
    assert!(refused("0-15").await.contains("holds shards 0-7"));
    let other = store("8-15").migrate().await.unwrap_err().to_string();
    assert!(other.contains("holds shards 0-7"), "{other}");
    let secret = database.replace("root@", "nobody:secret@").replace("disabled", "required");
    let error = MysqlRecords::new(&secret, &Shards::all()).unwrap().check().await.unwrap_err().to_string();
    assert!(error.contains("user or the password") && !error.contains("secret"), "{error}");
}
