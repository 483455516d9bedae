//! Holds real servers for as long as somebody holds its standard input open, and says where they are: the lines it
//! prints are variables for a shell. `scripts/services` runs it.

#![forbid(unsafe_code)]

use std::{io::Read, thread};

use likewise_testkit::servers;

fn main() {
    let mariadb = thread::spawn(|| servers::start_mariadb(&[]));
    let redis = thread::spawn(|| (servers::start_redis(&[]), servers::start_redis_cluster()));
    let kafka = thread::spawn(|| servers::start_kafka(&[]));
    let mysql = servers::start_mysql(&[]);
    let mariadb = mariadb.join().expect("MariaDB starts");
    let (redis, cluster) = redis.join().expect("Redis starts");
    let kafka = kafka.join().expect("Kafka starts");
    println!("export LIKEWISE_TEST_KAFKA={}", kafka.address());
    println!("export LIKEWISE_TEST_MYSQL={}", servers::mysql_url(&mysql));
    println!("export LIKEWISE_TEST_MARIADB={}", servers::mysql_url(&mariadb));
    println!("export LIKEWISE_TEST_REDIS={}", servers::redis_url(&redis));
    println!("export LIKEWISE_TEST_REDIS_CLUSTER={}", servers::cluster_url(&cluster));
    let _until_nobody_holds_it = std::io::stdin().read_to_end(&mut Vec::new());
}
